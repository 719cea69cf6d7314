//! Who gets which backend and for how long: pool modes, sizes and time limits, the queue, cancels.

use crate::raw::Raw;
use anyhow::{Context, Result, ensure};
use pgrx_tests::cluster::{Cluster, PASSING};
use pgrx_tests::script::frontend::Message;
use pgrx_tests::wait;
use std::time::{Duration, Instant};

/// A session through the front, as superuser to database `postgres`, over TCP.
pub fn through(cluster: &Cluster) -> postgres::Config {
    cluster.through("postgres", "postgres")
}

/// A server whose pools have so many connections.
pub fn with_pool(name: &str, size: u32, settings: &[(&str, &str)]) -> Result<Cluster> {
    let cluster = Cluster::new(name)?;
    cluster.set("postern.pool_size", &size.to_string())?.set("log_min_messages", "log")?;
    for (name, value) in settings {
        cluster.set(name, value)?;
    }
    cluster.start()
}

/// The backend that the client is served by.
pub fn pid(client: &mut postgres::Client) -> Result<i32> {
    Ok(text(client, "select pg_backend_pid()")?.parse()?)
}

/// The first value of the last row of a simple query.
pub fn text(client: &mut postgres::Client, sql: &str) -> Result<String> {
    let mut last = None;
    for message in client.simple_query(sql)? {
        if let postgres::SimpleQueryMessage::Row(row) = message {
            last = Some(row.get(0).unwrap_or_default().to_owned());
        }
    }
    last.with_context(|| format!("no row: {sql}"))
}

pub fn code(error: &postgres::Error) -> &str {
    error.code().map_or("no SQLSTATE", |code| code.code())
}

/// Detail and hint as well.
pub fn words(error: &postgres::Error) -> String {
    error.as_db_error().map_or(error.to_string(), |error| {
        format!(
            "{} {} {}",
            error.message(),
            error.detail().unwrap_or_default(),
            error.hint().unwrap_or_default()
        )
    })
}

/// How long something that must not happen is given to happen.
const NOT_YET: Duration = Duration::from_millis(300);

/// Runs something in a thread; its value when it ends in time.
pub struct Doing<T>(std::sync::mpsc::Receiver<T>);

impl<T: Send + 'static> Doing<T> {
    pub fn start(what: impl FnOnce() -> T + Send + 'static) -> Self {
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let _ = sender.send(what());
        });
        Self(receiver)
    }

    pub fn value(&self) -> Result<T> {
        self.0.recv_timeout(wait::LIMIT).context("a client's thread does not end")
    }

    /// It goes on: it has neither ended nor panicked.
    pub fn not_yet(&self) -> bool {
        matches!(self.0.recv_timeout(NOT_YET), Err(std::sync::mpsc::RecvTimeoutError::Timeout))
    }
}

/// Server connections of the front, as the server shows them to a superuser on the server's own port.
pub fn pooled(watcher: &mut postgres::Client) -> Result<Vec<i32>> {
    let rows = watcher.query(
        "select pid from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()
            and application_name <> $1 order by pid",
        &[&PASSING],
    )?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

#[test]
fn session_mode_keeps_the_backend_and_the_next_client_finds_nothing() -> Result<()> {
    let cluster = with_pool("session", 2, &[("postern.pool_mode", "session")])?;
    let mut one = through(&cluster).connect(postgres::NoTls)?;
    one.batch_execute("set work_mem = '1MB'; prepare p as select 1; create sequence s")?;
    text(&mut one, "select nextval('s')")?;
    let first = pid(&mut one)?;
    let mut two = through(&cluster).connect(postgres::NoTls)?;
    for _ in 0..20 {
        ensure!(pid(&mut one)? == first && pid(&mut two)? != first);
    }
    ensure!(text(&mut one, "select currval('s')")? == "1", "its sequences stay its own");
    // A third waits for one of the two.
    let config = through(&cluster);
    let third = Doing::start(move || -> Result<(i32, String, String)> {
        let mut three = config.connect(postgres::NoTls)?;
        let found = text(
            &mut three,
            "select concat_ws('|', current_setting('work_mem'), (select count(*) from pg_prepared_statements))",
        )?;
        let lastval = three.batch_execute("select lastval()").err().map(|e| code(&e).to_owned());
        Ok((pid(&mut three)?, found, lastval.unwrap_or_default()))
    });
    ensure!(third.not_yet(), "the third did not wait");
    drop(one);
    let (third_pid, found, lastval) = third.value()??;
    ensure!(third_pid == first, "the third got another backend");
    ensure!(found == "4MB|0" && lastval == "55000", "{found} {lastval}");
    Ok(())
}

#[test]
fn the_mode_comes_from_role_database_options_or_a_set() -> Result<()> {
    let cluster = with_pool("modes", 2, &[])?;
    cluster.sql(
        "create role by_role login; alter role by_role set postern.pool_mode = 'session'; create role plain login; \
         create role by_statement login; alter role by_statement set postern.pool_mode = 'statement'",
    )?;
    cluster.sql("create database by_database")?;
    cluster.sql("alter database by_database set postern.pool_mode = 'session'")?;
    let cases: [(&str, &str, Option<&str>, bool); 5] = [
        ("by_role", "postgres", None, true),
        ("plain", "by_database", None, true),
        ("plain", "postgres", Some("-c postern.pool_mode=session"), true),
        ("plain", "postgres", None, false),
        ("by_role", "postgres", Some("-c postern.pool_mode=transaction"), false),
    ];
    for (role, database, options, session) in cases {
        let config = |mode: bool| {
            let mut config = through(&cluster);
            config.user(role).dbname(database);
            if let (true, Some(options)) = (mode, options) {
                config.options(options);
            }
            config
        };
        let mut client = config(true).connect(postgres::NoTls)?;
        ensure!(
            text(&mut client, "show postern.pool_mode")? == if session { "session" } else { "transaction" },
            "{role} {database} {options:?}"
        );
        let own = pid(&mut client)?;
        // In transaction mode two others can have both backends at once.
        let mut others = vec![config(true).connect(postgres::NoTls)?];
        others[0].batch_execute("begin")?;
        let mut taken = vec![pid(&mut others[0])?];
        if !session {
            others.push(config(true).connect(postgres::NoTls)?);
            others[1].batch_execute("begin")?;
            taken.push(pid(&mut others[1])?);
        }
        ensure!(taken.contains(&own) != session, "{role} {database} {options:?}: {own} in {taken:?}");
    }
    let mut statement = through(&cluster).user("by_statement").connect(postgres::NoTls)?;
    for sql in ["begin", "start transaction", "begin; select 1; commit"] {
        let error = statement.batch_execute(sql).err().with_context(|| sql)?;
        ensure!(words(&error).contains("postern.pool_mode"), "{}", words(&error));
        ensure!(text(&mut statement, "select 1")? == "1");
    }
    let error = statement.execute("begin", &[]).err().context("BEGIN by the extended protocol")?;
    ensure!(code(&error) == "0A000" && words(&error).contains("postern.pool_mode"), "{}", words(&error));
    ensure!(statement.query_one("select $1::int + 1", &[&41])?.get::<_, i32>(0) == 42);
    statement.batch_execute("select 1; select 2")?;
    let mut client = through(&cluster).connect(postgres::NoTls)?;
    client.batch_execute("set postern.pool_mode = statement")?;
    ensure!(client.batch_execute("begin").is_err(), "a SET of statement mode");
    client.batch_execute("set postern.pool_mode = transaction")?;
    client.batch_execute("begin; rollback")?;
    Ok(())
}

#[test]
fn a_pool_grows_on_demand_and_shrinks_when_idle() -> Result<()> {
    let cluster = with_pool("grows", 3, &[("postern.server_idle_timeout", "1s")])?;
    let mut watcher = cluster.connect()?;
    ensure!(pooled(&mut watcher)?.is_empty(), "nobody has asked");
    let mut clients = vec![through(&cluster).connect(postgres::NoTls)?];
    for _ in 0..50 {
        clients[0].batch_execute("select 1")?;
    }
    ensure!(
        pooled(&mut watcher)?.len() <= 2,
        "one client needs no more, but for one that was opened for its impatience"
    );
    for _ in 0..5 {
        clients.push(through(&cluster).connect(postgres::NoTls)?);
    }
    let busy: Vec<_> = clients
        .into_iter()
        .map(|mut client| Doing::start(move || client.batch_execute("select pg_sleep(2)").map(|()| client)))
        .collect();
    wait::until("there are three", || pooled(&mut watcher).is_ok_and(|pids| pids.len() == 3))?;
    let mut clients = Vec::new();
    for doing in busy {
        clients.push(doing.value()??);
        ensure!(pooled(&mut watcher)?.len() <= 3, "more than the pool's size");
    }
    wait::until("they are closed", || pooled(&mut watcher).is_ok_and(|pids| pids.is_empty()))?;
    for client in &mut clients {
        ensure!(text(client, "select 42")? == "42", "idle clients did not notice");
    }
    Ok(())
}

#[test]
fn an_old_server_connection_is_replaced() -> Result<()> {
    let cluster = with_pool("old", 1, &[("postern.server_lifetime", "1s")])?;
    let mut client = through(&cluster).connect(postgres::NoTls)?;
    client.batch_execute("set work_mem = '1MB'")?;
    client.batch_execute("prepare p as select 'kept'")?;
    let first = pid(&mut client)?;
    let begun = Instant::now();
    while pid(&mut client).context("while it is replaced")? == first {
        ensure!(begun.elapsed() < wait::LIMIT, "it is not replaced");
    }
    ensure!(text(&mut client, "show work_mem")? == "1MB" && text(&mut client, "execute p")? == "kept");
    Ok(())
}

#[test]
fn who_waits_too_long_hears_which_setting_says_so() -> Result<()> {
    let cluster = with_pool("waits", 1, &[("postern.query_wait_timeout", "8s")])?;
    let mut one = through(&cluster).connect(postgres::NoTls)?;
    let mut two = Raw::open(cluster.pooler_port)?;
    two.query("select 1")?;
    one.batch_execute("begin")?;
    two.ask("select 2");
    let said = two.last_words()?;
    ensure!(said.contains("C08P01") && said.contains("query_wait_timeout"), "{said}");
    // And a client that has not been welcomed yet.
    let error = Raw::open(cluster.pooler_port).err().context("a welcome")?.to_string();
    ensure!(error.contains("C08P01") && error.contains("query_wait_timeout"), "{error}");
    one.batch_execute("commit")?;
    ensure!(text(&mut through(&cluster).connect(postgres::NoTls)?, "select 1")? == "1");
    Ok(())
}

#[test]
fn who_waits_too_long_hears_so_also_where_every_new_connection_fails() -> Result<()> {
    let settings = [("postern.query_wait_timeout", "1s"), ("max_connections", "12")];
    let cluster = with_pool("waits-in-vain", 2, &settings)?;
    cluster.sql("create role app login")?;
    let mut watcher = cluster.connect()?;
    wait::until("whoever made it has gone", || {
        let others = "select count(*)::text from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()";
        text(&mut watcher, others).is_ok_and(|count| count == "0")
    })?;
    // All that the server has for others than superusers.
    let app = || cluster.config().user("app").connect(postgres::NoTls);
    let mut full = Vec::new();
    let refused = loop {
        match app() {
            Ok(client) => full.push(client),
            Err(error) => break error,
        }
    };
    ensure!(code(&refused) == "53300", "{}", words(&refused));
    let config = cluster.through("app", "postgres");
    let waits = Doing::start(move || config.connect(postgres::NoTls).map(drop));
    let error = waits.value()?.err().context("a connection more")?;
    ensure!(code(&error) == "08P01" && words(&error).contains("query_wait_timeout"), "{}", words(&error));
    Ok(())
}

/// Whether forty clients have not done enough yet: eight seconds, and a thousand things together, of which each has its part.
pub fn goes_on(begun: Instant, done: u64) -> bool {
    begun.elapsed() < Duration::from_secs(8) || (done <= 1_000 && begun.elapsed() < wait::LIMIT)
}

/// What an idle client hears at last, while another one is served again and again.
pub fn last_of(idle: &mut Raw, busy: &mut postgres::Client) -> Result<Vec<(u8, Vec<u8>)>> {
    let begun = Instant::now();
    loop {
        busy.batch_execute("select 1")?;
        let said = idle.unasked(Duration::from_millis(20))?;
        if !said.is_empty() {
            return Ok(said);
        }
        ensure!(begun.elapsed() < wait::LIMIT, "the idle one stays");
    }
}

#[test]
fn an_idle_client_goes_when_its_time_is_over() -> Result<()> {
    let cluster = with_pool("idle", 1, &[("postern.client_idle_timeout", "12s")])?;
    let mut idle = Raw::open(cluster.pooler_port)?;
    let mut busy = through(&cluster).connect(postgres::NoTls)?;
    idle.query("select 1")?;
    let said = last_of(&mut idle, &mut busy)?;
    let report = String::from_utf8_lossy(&said[0].1);
    ensure!(
        said.len() == 1 && report.contains("57P05") && report.contains("client_idle_timeout"),
        "{said:?}"
    );
    ensure!(text(&mut busy, "select 1")? == "1");
    Ok(())
}

#[test]
fn a_session_may_be_idle_for_as_long_as_it_said_last() -> Result<()> {
    let cluster = with_pool("session_idle", 1, &[])?;
    let (mut idle, mut spared) = (Raw::open(cluster.pooler_port)?, Raw::open(cluster.pooler_port)?);
    // Has the only backend let go of the others.
    let mut busy = through(&cluster).connect(postgres::NoTls)?;
    for (time, of_spared) in [("1min", "6s"), ("500ms", "0")] {
        idle.query(&format!("set idle_session_timeout = '{time}'"))?;
        busy.batch_execute("select 1")?;
        spared.query(&format!("set idle_session_timeout = '{of_spared}'"))?;
        busy.batch_execute("select 1")?;
    }
    let said = last_of(&mut idle, &mut busy)?;
    let report = String::from_utf8_lossy(&said[0].1);
    ensure!(report.contains("57P05") && report.contains("idle-session timeout"), "{said:?}");
    // For longer than it had said first.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(8) {
        busy.batch_execute("select 1")?;
        let said = spared.unasked(Duration::from_millis(20))?;
        ensure!(said.is_empty(), "one without a limit is ended: {said:?}");
    }
    Ok(())
}

#[test]
fn nobody_starves_in_a_pool_of_one() -> Result<()> {
    let cluster = with_pool("fair", 1, &[])?;
    let mut rounds = Vec::new();
    // A client that stands still itself is not the one that starves.
    while rounds.len() < 5 {
        let counts = turns_of_ten(&cluster)?;
        let most = counts.iter().map(|(done, _)| *done).max().unwrap_or_default();
        let least = counts.iter().map(|(done, _)| *done).min().unwrap_or_default();
        if most > 20 && least * 3 > most {
            return Ok(());
        }
        rounds.push(counts);
    }
    anyhow::bail!("{rounds:?}")
}

/// How many queries each of ten clients gets done in three seconds, and how long the longest took.
fn turns_of_ten(cluster: &Cluster) -> Result<Vec<(u64, Duration)>> {
    let deadline = Instant::now() + Duration::from_secs(3);
    let clients: Vec<_> = (0..10)
        .map(|_| {
            let config = through(cluster);
            Doing::start(move || -> Result<(u64, Duration)> {
                let mut client = config.connect(postgres::NoTls)?;
                let (mut done, mut longest) = (0, Duration::ZERO);
                while Instant::now() < deadline {
                    let asked = Instant::now();
                    client.batch_execute("select pg_sleep(0.001)")?;
                    longest = longest.max(asked.elapsed());
                    done += 1;
                }
                Ok((done, longest))
            })
        })
        .collect();
    clients.iter().map(|doing| doing.value()?).collect()
}

#[test]
fn a_storm_of_cancels_hits_only_its_own_client() -> Result<()> {
    let cluster = with_pool("cancels", 2, &[])?;
    let deadline = Instant::now() + Duration::from_secs(8);
    let others: Vec<_> = (0..4)
        .map(|_| {
            let config = through(&cluster);
            Doing::start(move || -> Result<u64> {
                let mut client = config.connect(postgres::NoTls)?;
                let mut done = 0;
                while Instant::now() < deadline {
                    client.batch_execute("select pg_sleep(0.001)").context("another was cancelled")?;
                    done += 1;
                }
                Ok(done)
            })
        })
        .collect();
    let mut target = through(&cluster).connect(postgres::NoTls)?;
    let token = target.cancel_token();
    let storm = Doing::start(move || {
        let mut sent = 0;
        while Instant::now() < deadline {
            sent += u64::from(token.cancel_query(postgres::NoTls).is_ok());
        }
        sent
    });
    let (mut hit, mut spared) = (0, 0);
    while Instant::now() < deadline {
        match target.batch_execute("select pg_sleep(0.003)") {
            Ok(()) => spared += 1,
            Err(error) => {
                ensure!(code(&error) == "57014", "{error}");
                hit += 1;
            }
        }
    }
    for other in others {
        ensure!(other.value()?? > 20);
    }
    let sent = storm.value()?;
    ensure!(hit > 5, "{hit} hit, {spared} spared of {sent} sent: no storm");
    Ok(())
}

#[test]
fn a_flush_behind_a_sync_holds_no_backend() -> Result<()> {
    // psycopg ends its pipelines so, and libpq sends one with PQsendFlushRequest().
    let cluster = with_pool("flush", 1, &[])?;
    let mut one = Raw::open(cluster.pooler_port)?;
    let mut other = through(&cluster).connect(postgres::NoTls)?;
    let query = || {
        Message::parse(b"", b"select 1", &[])
            .then(Message::bind(b"", b"", &[], &[], &[]))
            .then(Message::execute(b"", 0))
            .then(Message::sync())
    };
    let began = Instant::now();
    for number in 0..20 {
        // With it, and after it when the client is idle already.
        one.send_and_hear(&query().then(Message::flush()).bytes)?;
        one.send(&Message::flush().bytes);
        ensure!(text(&mut other, &format!("select {number}"))? == number.to_string());
        one.send_and_hear(&Message::flush().then(query()).bytes)?;
    }
    ensure!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    Ok(())
}

#[test]
fn a_flush_after_another_clients_settings_holds_no_backend() -> Result<()> {
    // What a swap changes and the server reports is no message of the client's, and neither is the answer to what it prepares anew.
    let cluster = with_pool("flush-swapped", 1, &[])?;
    let mut one = Raw::open(cluster.pooler_port)?;
    one.query("prepare s as select 'one'")?;
    let mut other = through(&cluster).application_name("other").connect(postgres::NoTls)?;
    other.batch_execute("prepare s as select 'other'")?;
    let began = Instant::now();
    for number in 0..10 {
        ensure!(text(&mut other, &format!("select {number}"))? == number.to_string());
        one.send(&Message::flush().bytes);
    }
    ensure!(
        text(&mut other, "show application_name")? == "other" && text(&mut other, "execute s")? == "other"
    );
    ensure!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    one.query("select 1").map(drop)
}
