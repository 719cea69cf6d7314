//! Living with others: libraries that hook the same places of the server, loaded before Postern and after it.

use crate::login::at;
use crate::pooling::{code, pid, text, through, with_pool};
use crate::relay::Client;
use crate::stream::{delivered, ids, running, start, to_file};
use anyhow::{Context, Result, ensure};
use pgrx_tests::cluster::{Cluster, Stop};
use pgrx_tests::{lacking, probe, wait};
use postgres::NoTls;
use std::path::Path;
use std::time::{Duration, Instant};

/// Of the server's own: hooks of planner, executor and utility statements; of the executor; of authentication; a worker of its own.
pub const CONTRIB: &str = "pg_stat_statements,auto_explain,auth_delay,pg_prewarm";

/// How long `auth_delay` is told to wait, and how a setting says so.
const DELAY: (Duration, &str) = (Duration::from_secs(2), "2s");

/// Whether this server has a library that can be preloaded.
fn is_installed(cluster: &Cluster, library: &str) -> Result<bool> {
    let output = cluster.program("pg_config").arg("--pkglibdir").output()?;
    Ok(Path::new(String::from_utf8_lossy(&output.stdout).trim()).join(format!("{library}.so")).exists())
}

/// A server that can do everything, with pools of one connection, and with Postern and the others in this order.
fn with_others(name: &str, first: &str, then: &str) -> Result<Cluster> {
    let libraries = format!("{first},{then}");
    let cluster = start(
        name,
        &[
            ("shared_preload_libraries", &libraries),
            ("postern.pool_size", "1"),
            ("auth_delay.milliseconds", DELAY.1),
        ],
    )?;
    cluster.sql("create extension pg_stat_statements; create role app login")?;
    Ok(cluster)
}

#[test]
fn loaded_after_others_all_do_their_work() -> Result<()> {
    if lacking::in_server("contrib modules") {
        return Ok(());
    }
    everybody_works(&with_others("neighbours-last", CONTRIB, "postern")?)
}

#[test]
fn loaded_before_others_all_do_their_work() -> Result<()> {
    if lacking::in_server("contrib modules") {
        return Ok(());
    }
    everybody_works(&with_others("neighbours-first", "postern", CONTRIB)?)
}

fn everybody_works(cluster: &Cluster) -> Result<()> {
    statements_are_counted_with_text_and_role(cluster)?;
    through(cluster).connect(NoTls)?.batch_execute("create view methods as table pg_am")?;
    let utility = counted(cluster, "table pg_am")?;
    ensure!(utility == "1,postgres,create view methods as table pg_am", "{utility}");
    refused_logins_wait_at_the_servers_port_only(cluster)?;
    settings_of_others_stay_with_their_client(cluster)?;
    notifications_arrive(cluster)?;
    cluster.sql("create table t (id int primary key)")?;
    let path = to_file(cluster, "{}")?;
    through(cluster).connect(NoTls)?.batch_execute("insert into t values (1)")?;
    delivered(cluster)?;
    ensure!(ids(&path)? == [1], "{:?}", ids(&path)?);
    ensure!(probe::banner(cluster.banner_port)? == "MASTER");
    cluster.restart(Stop::Fast)?;
    running(cluster, "shop to lines")?;
    ensure!(!cluster.log().contains("terminated by signal"), "{}", cluster.log_tail());
    Ok(())
}

/// How often statements with this in them were run, by whom, and their text.
fn counted(cluster: &Cluster, marker: &str) -> Result<String> {
    cluster.sql(&format!(
        "select coalesce(string_agg(concat_ws(',', calls, rolname, query), '; ' order by rolname, query), '')
         from pg_stat_statements s join pg_roles r on r.oid = s.userid where query like '%as {marker}%' and query not like '%string_agg%'"
    ))
}

/// Simple, prepared by name on a backend that has changed hands since, and after `set role`. What differs in the name of a column only
/// is one statement to the server, so these differ in more.
fn statements_are_counted_with_text_and_role(cluster: &Cluster) -> Result<()> {
    let connect = |user: &str| cluster.through(user, "postgres").connect(NoTls);
    let (mut one, mut two) = (connect("app")?, connect("app")?);
    let (prepared, other) =
        (one.prepare("select $1::int as of_one")?, two.prepare("select $1::text as of_two")?);
    for _ in 0..3 {
        let backend = pid(&mut one)?;
        one.query_one(&prepared, &[&1])?;
        ensure!(pid(&mut two)? == backend, "they take turns on one backend");
        two.query_one(&other, &[&"x"])?;
        two.simple_query("select 7 as simple_of_two")?;
    }
    ensure!(
        counted(cluster, "of_one")? == "3,app,select $1::int as of_one",
        "{}",
        counted(cluster, "of_one")?
    );
    ensure!(
        counted(cluster, "of_two")? == "3,app,select $1::text as of_two",
        "{}",
        counted(cluster, "of_two")?
    );
    let simple = counted(cluster, "simple_of_two")?;
    ensure!(simple == "3,app,select $1 as simple_of_two", "{simple}");
    let (mut boss, mut other) = (through(cluster).connect(NoTls)?, through(cluster).connect(NoTls)?);
    boss.batch_execute("set role app")?;
    for _ in 0..2 {
        boss.simple_query("select 1, 2 as whose")?;
        other.simple_query("select 1, 2 as whose")?;
    }
    let whose = counted(cluster, "whose")?;
    ensure!(whose == "2,app,select $1, $2 as whose; 2,postgres,select $1, $2 as whose", "{whose}");
    Ok(())
}

fn refused_logins_wait_at_the_servers_port_only(cluster: &Cluster) -> Result<()> {
    cluster.sql("create role guarded login password 'right'")?;
    cluster.set_hba("local all all trust\nhost all guarded all scram-sha-256\nhost all all all trust\n")?;
    cluster.reload()?;
    let refused = |port: u16| -> Result<Duration> {
        let before = Instant::now();
        let login = at(port, "guarded", "postgres").password("wrong").connect(NoTls);
        let error = login.err().context("a wrong password lets nobody in")?;
        ensure!(code(&error) == "28P01", "{error}");
        Ok(before.elapsed())
    };
    wait::until("the passwords are asked for", || refused(cluster.pooler_port).is_ok())?;
    let (own, pooled) = (refused(cluster.port)?, refused(cluster.pooler_port)?);
    ensure!(own >= DELAY.0 && pooled < DELAY.0, "{own:?} at the server's port, {pooled:?} at the pooler's");
    let mut client = cluster.through("guarded", "postgres").password("right").connect(NoTls)?;
    ensure!(text(&mut client, "select 1")? == "1");
    Ok(())
}

fn settings_of_others_stay_with_their_client(cluster: &Cluster) -> Result<()> {
    let (mut one, mut two) = (through(cluster).connect(NoTls)?, through(cluster).connect(NoTls)?);
    one.batch_execute("set auto_explain.log_min_duration = 0; set auto_explain.log_format = json")?;
    two.batch_execute("set pg_stat_statements.track = none")?;
    for _ in 0..3 {
        let backend = pid(&mut one)?;
        one.query("select 1, 2, 3 as explained", &[])?;
        ensure!(pid(&mut two)? == backend, "they take turns on one backend");
        two.query("select 1, 2, 3, 4 as left_alone", &[])?;
    }
    let log = cluster.log();
    ensure!(
        log.matches("\"Query Text\": \"select 1, 2, 3 as explained\"").count() == 3,
        "{}",
        cluster.log_tail()
    );
    ensure!(!log.contains("as left_alone"), "{}", cluster.log_tail());
    ensure!(counted(cluster, "explained")? == "3,postgres,select $1, $2, $3 as explained");
    ensure!(counted(cluster, "left_alone")?.is_empty(), "{}", counted(cluster, "left_alone")?);
    // And nothing of either is left for whoever comes next.
    drop((one, two));
    let mut next = through(cluster).connect(NoTls)?;
    let left = "select current_setting('auto_explain.log_min_duration') || current_setting('pg_stat_statements.track')";
    ensure!(text(&mut next, left)? == "-1top");
    Ok(())
}

/// A client that listens hears what another says, both through the pooler.
pub fn notifications_arrive(cluster: &Cluster) -> Result<()> {
    let mut listener = Client::through(cluster)?;
    listener.query("listen news")?;
    through(cluster).connect(NoTls)?.batch_execute("notify news, 'hello'")?;
    let heard = listener.next(1)?;
    ensure!((&*heard[0].1, &*heard[0].2) == ("news", "hello"), "{heard:?}");
    Ok(())
}

#[test]
fn on_a_standby_others_count_what_pooled_clients_ask() -> Result<()> {
    if lacking::in_server("contrib modules") {
        return Ok(());
    }
    let primary = with_others("neighbours-primary", CONTRIB, "postern")?;
    let standby = primary.standby("neighbours-standby")?;
    for (name, value) in [
        ("shared_preload_libraries", &*format!("postern,{CONTRIB}")),
        ("wal_level", "logical"),
        ("max_worker_processes", "16"),
        ("postern.pool_size", "1"),
    ] {
        standby.set(name, value)?;
    }
    let standby = standby.start()?;
    standby.wait_streaming()?;
    standby.wait_caught_up(&primary)?;
    ensure!(probe::banner(standby.banner_port)? == "STANDBY");
    statements_are_counted_with_text_and_role(&standby)?;
    settings_of_others_stay_with_their_client(&standby)
}

/// With the last of these libraries, which has an extension of its name and may be in a package of its own, and before it what it needs;
/// loaded before Postern, and after it.
fn beside(
    libraries: &str,
    setting: Option<(&str, &str)>,
    does_its_work: impl Fn(&Cluster) -> Result<()>,
) -> Result<()> {
    let library = libraries.rsplit(',').next().unwrap_or_default();
    if !is_installed(&Cluster::new("neighbours-probe")?, library)? {
        lacking::not_run("an extension that this server does not have");
        return Ok(());
    }
    for all in [format!("{libraries},postern"), format!("postern,{libraries}")] {
        let settings: Vec<_> = [("shared_preload_libraries", &*all)].into_iter().chain(setting).collect();
        let cluster = with_pool("neighbours-packages", 1, &settings)?;
        through(&cluster).connect(NoTls)?.batch_execute(&format!("create extension {library} cascade"))?;
        does_its_work(&cluster)?;
        notifications_arrive(&cluster)?;
    }
    Ok(())
}

#[test]
fn pgaudit_audits_only_who_is_audited() -> Result<()> {
    beside("pgaudit", None, audits_only_who_is_audited)
}

#[test]
fn pg_cron_takes_its_jobs_from_pooled_clients() -> Result<()> {
    beside("pg_cron", Some(("cron.use_background_workers", "on")), |cluster| {
        let mut one = through(cluster).connect(NoTls)?;
        one.batch_execute("select cron.schedule('* * * * *', 'select 1')")?;
        ensure!(text(&mut one, "select count(*) from cron.job")? == "1");
        Ok(())
    })
}

#[test]
fn pg_stat_kcache_counts_what_pooled_clients_run() -> Result<()> {
    beside("pg_stat_statements,pg_stat_kcache", None, |cluster| {
        let mut one = through(cluster).connect(NoTls)?;
        one.query("select 1 as of_ours", &[])?;
        let counted = "select count(*) from pg_stat_kcache_detail where query like 'select $1 as of_ours'";
        ensure!(text(&mut one, counted)? == "1");
        Ok(())
    })
}

#[test]
fn pg_wait_sampling_sees_what_pooled_backends_wait_for() -> Result<()> {
    beside("pg_wait_sampling", None, |cluster| {
        cluster.sql("create extension postern")?;
        let waits =
            "select count(*) from pg_wait_sampling_profile where pid in (select pid from postern.servers)";
        wait::until("the waits are seen", || cluster.sql(waits).is_ok_and(|waits| waits != "0"))
    })
}

#[test]
fn set_user_keeps_who_becomes_another_role_where_it_is() -> Result<()> {
    beside("set_user", None, who_becomes_another_role_stays_where_it_is)
}

/// `set_user` changes the role by the server's own functions, which no setting says, and keeps what it was: for as long as its client is
/// there the backend is that client's, and then nobody's.
fn who_becomes_another_role_stays_where_it_is(cluster: &Cluster) -> Result<()> {
    cluster.sql(
        "create extension postern; create role boss login; create role app login; grant boss to app;
         grant execute on function set_user(text), set_user(text, text), set_session_auth(text) to app, boss",
    )?;
    cluster.set("postern.pool_size", "2")?;
    cluster.reload()?;
    let app = || cluster.through("app", "postgres").connect(NoTls);
    let who = |client: &mut postgres::Client| text(client, "select session_user || ' ' || current_user");
    let pinned = || {
        let by = "select coalesce(string_agg(array_to_string(pinned_by, ','), ''), '') from postern.clients where role = 'app'";
        cluster.sql(by)
    };
    let mut two = app()?;
    for (statements, becomes) in [
        (&["select set_user('boss')"][..], "app boss"),
        (&["select set_user('boss', 'token')"], "app boss"),
        (&["select set_user('app', 'token')"], "app app"),
        (&["set role boss", "select set_user('app', 'token')"], "app app"),
        (&["set role boss", "select set_user('boss')"], "app boss"),
        (&["select set_user('boss')", "select reset_user()"], "app app"),
        (&["select set_session_auth('boss')"], "boss boss"),
        (&["do $$ begin perform set_user('boss'); raise exception 'no'; end $$"], "app app"),
    ] {
        let mut one = app()?;
        for sql in statements {
            let said = one.simple_query(sql);
            ensure!(said.is_ok() || sql.contains("raise"), "{sql}: {said:?}");
        }
        let backend = pid(&mut one)?;
        ensure!(pinned()? == "set by a library", "{statements:?}: {}", pinned()?);
        for _ in 0..3 {
            ensure!(who(&mut two)? == "app app" && pid(&mut two)? != backend, "{statements:?}");
            ensure!(who(&mut one)? == becomes && pid(&mut one)? == backend, "{statements:?}");
        }
        drop(one);
        for _ in 0..2 {
            let mut next = app()?;
            ensure!(who(&mut next)? == "app app" && pid(&mut next)? != backend, "{statements:?}");
            ensure!(
                next.simple_query("select reset_user()").is_ok() && who(&mut next)? == "app app",
                "{statements:?}"
            );
            drop(next);
            ensure!(who(&mut two)? == "app app" && pid(&mut two)? != backend, "{statements:?}");
        }
    }
    Ok(())
}

fn audits_only_who_is_audited(cluster: &Cluster) -> Result<()> {
    cluster.sql("create table audited (v int)")?;
    let (mut one, mut two) = (through(cluster).connect(NoTls)?, through(cluster).connect(NoTls)?);
    one.batch_execute("set pgaudit.log = 'read'")?;
    for _ in 0..3 {
        one.simple_query("select v as by_one from audited")?;
        two.simple_query("select v as by_two from audited")?;
    }
    let log = cluster.log();
    let audits =
        |text: &str| log.lines().filter(|line| line.contains("AUDIT:") && line.contains(text)).count();
    ensure!((audits("by_one"), audits("by_two")) == (3, 0), "{}", cluster.log_tail());
    Ok(())
}
