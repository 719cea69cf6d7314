//! Several network threads: everything that a client may do works on each of them, and each is missed when it breaks.

use crate::tls::{Secured, signed};
use anyhow::{Context, Result, ensure};
use pgrx_tests::certificate::Certificate;
use pgrx_tests::cluster::{Cluster, Stop};
use pgrx_tests::{lacking, process, wait};
use postgres::{Client, NoTls};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::process::{Child, Stdio};

const THREADS: usize = 4;

fn start(name: &str) -> Result<Secured> {
    let secured = Secured::with(name, &[("postern.pooler_threads", "4")])?;
    secured
        .cluster
        .set_hba("local all all trust\nhost all app all scram-sha-256\nhost all all all trust\n")?;
    secured.cluster.reload()?;
    Ok(secured)
}

/// A plain session through the front.
fn through(cluster: &Cluster, user: &str) -> Result<Client> {
    Ok(cluster.through(user, "postgres").password("app").connect(NoTls)?)
}

/// The front's network threads by name, with the nanoseconds that each has had of a processor.
fn threads(cluster: &Cluster) -> Result<BTreeMap<String, u64>> {
    let mut found = BTreeMap::new();
    for task in std::fs::read_dir(format!("/proc/{}/task", cluster.front_pid()?))? {
        let task = task?.path();
        let name = std::fs::read_to_string(task.join("comm"))?.trim().to_owned();
        let used = std::fs::read_to_string(task.join("schedstat"))?;
        if name.starts_with("postern front") {
            let used = used.split(' ').next().context("an empty schedstat")?;
            *found.entry(name).or_default() += used.parse::<u64>()?;
        }
    }
    Ok(found)
}

/// A psql that does what it is told, over TLS.
fn session(secured: &Secured) -> Result<Child> {
    let mut psql = secured.cluster.program("psql");
    let connection = format!(
        "host=localhost hostaddr=127.0.0.1 port={} dbname=postgres user=app sslmode=require connect_timeout=10",
        secured.cluster.pooler_port
    );
    psql.env("HOME", "/nonexistent").env("PGPASSWORD", "app").args(["-X", "-At", "-d", &connection]);
    Ok(psql.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?)
}

#[test]
fn clients_are_spread_and_everything_works_on_each_thread() -> Result<()> {
    if lacking::in_server("TLS") {
        return Ok(());
    }
    let secured = start("threads")?;
    let cluster = &secured.cluster;
    cluster.create_extension()?;
    wait::until("the pooler lets in over TLS", || {
        secured.psql("app", "sslmode=require", "SELECT 1").is_ok_and(|(ok, _)| ok)
    })?;
    let before = threads(cluster)?;
    ensure!(before.len() == THREADS, "{before:?}");
    for _ in 0..THREADS {
        let sql = "SELECT length(repeat('x', 1000)), repeat('y', 8000000)";
        let (ok, text) = secured.psql("app", "sslmode=require", sql)?;
        ensure!(ok && text.len() > 8_000_000, "{} bytes", text.len());
        let (ok, text) = secured.psql("postgres", "sslmode=require dbname=postern", "SHOW VERSION")?;
        ensure!(ok && text.contains("PgBouncer"), "{text}");
    }
    for _ in 0..THREADS {
        // In turns with the two above, so that each kind meets each thread.
        let (ok, text) = secured.psql("postgres", "sslmode=require dbname=postern", "SHOW VERSION")?;
        ensure!(ok, "{text}");
        let (ok, text) = secured.psql("app", "sslmode=require", "SELECT repeat('y', 8000000)")?;
        ensure!(ok && text.len() >= 8_000_000, "{} bytes", text.len());
        secured.psql("app", "sslmode=disable", "SELECT 1")?;
    }
    let after = threads(cluster)?;
    for (name, used) in &after {
        let used = used - before.get(name).copied().unwrap_or(0);
        ensure!(used > 10_000_000, "\"{name}\" has had {used} ns to encrypt: {before:?} {after:?}");
    }
    // Plain clients of every thread, and cancel requests that come to any.
    let mut clients = (0..2 * THREADS).map(|_| through(cluster, "app")).collect::<Result<Vec<_>>>()?;
    for client in &mut clients {
        let token = client.cancel_token();
        let error = std::thread::scope(|scope| {
            let running = scope.spawn(|| client.batch_execute("SELECT pg_sleep(60)"));
            // One that comes before its query is nobody's.
            let canceled = wait::until("the query is canceled", || {
                running.is_finished() || (token.cancel_query(NoTls).is_ok() && running.is_finished())
            });
            canceled.map(|()| running.join().ok().and_then(Result::err))
        })?;
        let error = error.context("it has slept")?;
        ensure!(error.code() == Some(&postgres::error::SqlState::QUERY_CANCELED), "{error}");
    }
    wait::until("there are no others", || {
        cluster
            .sql("SELECT count(*) FROM postern.clients")
            .is_ok_and(|count| count == clients.len().to_string())
    })?;
    cluster.sql("SELECT postern.kill(pid) FROM postern.clients")?;
    for client in &mut clients {
        wait::until("the client is ended", || client.batch_execute("SELECT 1").is_err())?;
    }
    // A reload reaches all.
    Certificate::authority(&secured.directory, "next")?;
    signed(&secured.directory, "next", "server", "localhost")?;
    cluster.reload()?;
    let full = format!("sslmode=verify-full sslrootcert={}", secured.file("next.crt"));
    let by_next = || secured.psql("app", &full, "SELECT 1").is_ok_and(|(ok, _)| ok);
    wait::until("the new certificate is shown", by_next)?;
    for _ in 0..THREADS {
        ensure!(by_next(), "a thread shows the old certificate");
    }
    Ok(())
}

/// Two sessions over TLS on each thread: an idle one and a busy one.
fn idle_and_busy(secured: &Secured) -> Result<Vec<Child>> {
    let mut sessions = Vec::new();
    for number in 0..2 * THREADS {
        let mut psql = session(secured)?;
        let input = psql.stdin.as_mut().context("stdin")?;
        writeln!(input, "SELECT 'here{number}';")?;
        if number >= THREADS {
            writeln!(input, "SELECT pg_sleep(60);")?;
        }
        let output = psql.stdout.as_mut().context("stdout")?;
        let mut heard = vec![0; "here0\n".len()];
        output.read_exact(&mut heard)?;
        ensure!(heard == format!("here{number}\n").as_bytes(), "{}", String::from_utf8_lossy(&heard));
        sessions.push(psql);
    }
    let busy = "SELECT count(*) FROM pg_stat_activity JOIN pg_stat_ssl USING (pid) \
                WHERE query LIKE '%pg_sleep(60);%' AND state = 'active' AND ssl";
    wait::until("half of them are busy", || {
        secured.cluster.sql(busy).is_ok_and(|count| count == THREADS.to_string())
    })?;
    Ok(sessions)
}

/// Each has been told why it ends.
fn have_heard(sessions: Vec<Child>) -> Result<()> {
    for mut psql in sessions {
        // An idle one hears it when it next wants something.
        let _ = writeln!(psql.stdin.as_mut().context("stdin")?, "SELECT 1;");
        let output = psql.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(said.contains("terminating connection due to administrator command"), "{said}");
    }
    Ok(())
}

#[test]
fn a_fast_stop_tells_the_clients_of_every_thread() -> Result<()> {
    if lacking::in_server("TLS") {
        return Ok(());
    }
    let secured = start("threads-stop")?;
    let sessions = idle_and_busy(&secured)?;
    secured.cluster.stop(Stop::Fast)?;
    have_heard(sessions)
}

#[test]
fn a_worker_that_ends_tells_the_clients_of_every_thread() -> Result<()> {
    if lacking::in_server("TLS") {
        return Ok(());
    }
    let secured = start("threads-end")?;
    let sessions = idle_and_busy(&secured)?;
    let front = secured.cluster.front_pid()?;
    process::signal_pid(front, rustix::process::Signal::TERM)?;
    wait::until("the worker has ended", || !process::is_running(front))?;
    have_heard(sessions)?;
    wait::until("the next one serves", || {
        secured.psql("app", "sslmode=require", "SELECT 1").is_ok_and(|(ok, _)| ok)
    })
}

#[test]
fn a_panic_on_any_thread_starts_the_worker_again() -> Result<()> {
    if lacking::in_server("TLS") {
        return Ok(());
    }
    let secured = start("threads-panic")?;
    let cluster = &secured.cluster;
    for number in 0..THREADS {
        // Nobody connects before these, so each is given to the thread whose turn it is.
        let told = || format!("round {number}: {}", cluster.log_tail());
        wait::until("the pooler listens", || {
            cluster.log().matches("pooler listens on 127.0.0.1").count() > number
        })
        .with_context(told)?;
        let before = (0..number).map(|_| through(cluster, "postgres")).collect::<Result<Vec<_>>>();
        let before = before.with_context(told)?;
        let mut config = cluster.through("postgres", "postgres");
        ensure!(config.application_name("test panic").connect(NoTls).is_err());
        let name =
            if number == 0 { "postern front".to_owned() } else { format!("postern front{}", number + 1) };
        cluster
            .wait_log(&format!("pooler ends to be started again: a task of thread \"{name}\" panicked"))?;
        for mut client in before {
            wait::until("its clients are dropped", || client.batch_execute("SELECT 1").is_err())?;
        }
    }
    wait::until("the pooler is back", || through(cluster, "postgres").is_ok())
}
