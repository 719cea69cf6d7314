//! Many clients that take turns: nobody ever sees another's state.

use crate::pooling::{goes_on, text, through, with_pool};
use crate::raw::Raw;
use anyhow::{Context, Result, ensure};
use pgrx_tests::cluster::Cluster;
use pgrx_tests::wait;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

#[test]
fn two_clients_ten_thousand_times_in_turns_never_see_each_other() -> Result<()> {
    let cluster = with_pool("turns", 1, &[])?;
    let ask = "select concat_ws('|', current_setting('work_mem'), current_setting('timezone'), '2024-02-03'::date, \
               current_setting('state.who'), current_user)";
    let own = [
        "set work_mem = '1111kB'; set timezone = 'Asia/Tokyo'; set datestyle = 'German'; set state.who = 'one'",
        "set work_mem = '2222kB'; set timezone = 'Europe/Rome'; set datestyle = 'SQL, DMY'; set state.who = 'two'; \
         set role pg_monitor",
    ];
    let expected =
        ["1111kB|Asia/Tokyo|03.02.2024|one|postgres", "2222kB|Europe/Rome|03/02/2024|two|pg_monitor"];
    let mut clients = [Raw::open(cluster.pooler_port)?, Raw::open(cluster.pooler_port)?];
    for (client, own) in clients.iter_mut().zip(own) {
        client.query(own)?;
    }
    let begun = Instant::now();
    let mut turns = 0;
    while turns < 10_000 {
        ensure!(begun.elapsed() < 5 * wait::LIMIT, "only {turns} turns in time");
        for (client, expected) in clients.iter_mut().zip(expected) {
            let answer = client.query(ask)?;
            ensure!(tags(&answer) == "TDCZ", "turn {turns}: {answer:?}");
            let value = String::from_utf8_lossy(&answer[1].1[6..]).into_owned();
            ensure!(value == expected, "turn {turns}: {value} and not {expected}");
        }
        turns += 1;
    }
    let swaps = cluster.sql("create extension postern; select swaps from postern.pools where clients = 2")?;
    ensure!(
        swaps.parse::<u64>()? >= 2 * turns - 1,
        "{turns} turns, and they had the backend in turns {swaps} times only"
    );
    Ok(())
}

#[test]
fn forty_clients_with_four_settings_each_on_four_backends() -> Result<()> {
    let cluster = with_pool("shuffled", 4, &[])?;
    // As long as it takes, for who stands still for some seconds of it.
    let (begun, all) = (Instant::now(), Arc::new(AtomicU64::new(0)));
    let threads: Vec<_> = (0..40)
        .map(|number| {
            let (config, all) = (through(&cluster), Arc::clone(&all));
            std::thread::spawn(move || -> Result<()> {
                let mut client = config.connect(postgres::NoTls)?;
                let zone = ["UTC", "Asia/Tokyo", "Europe/Rome"][number % 3];
                client.batch_execute(&format!(
                    "set work_mem = '{}kB'; set timezone = '{zone}'; set application_name = 'c{number}'; set state.n = '{number}'",
                    1100 + number
                ))?;
                let expected = format!("{}kB|{zone}|c{number}|{number}", 1100 + number);
                let mut done = 0;
                while done < 500 && goes_on(begun, all.load(Relaxed)) {
                    let seen = text(
                        &mut client,
                        "select replace(concat_ws('|', current_setting('work_mem'), current_setting('timezone'), \
                         current_setting('application_name'), current_setting('state.n')), ' ', '')",
                    )?;
                    ensure!(seen == expected, "{seen} and not {expected}");
                    done += 1;
                    all.fetch_add(1, Relaxed);
                }
                Ok(())
            })
        })
        .collect();
    for thread in threads {
        thread.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
    }
    let done = all.load(Relaxed);
    ensure!(done > 1_000, "only {done} transactions");
    ensure!(backends(&cluster, "postgres")? <= 4, "more backends than the pool's size");
    Ok(())
}

fn tags(messages: &[(u8, Vec<u8>)]) -> String {
    messages.iter().map(|(tag, _)| *tag as char).collect()
}

/// Backends of pools as the server shows them: those whose clients are not on its own port.
fn backends(cluster: &Cluster, role: &str) -> Result<i64> {
    Ok(cluster
        .connect()?
        .query_one(
            "select count(*) from pg_stat_activity where usename = $1 and backend_type = 'client backend' and pid <> pg_backend_pid()",
            &[&role],
        )?
        .get(0))
}

#[test]
fn a_sequence_s_current_value_is_an_error_after_a_move_and_never_another_s() -> Result<()> {
    let cluster = with_pool("currval", 1, &[])?;
    cluster.sql("create sequence s; create table ident (id int generated always as identity, who text)")?;
    let mut one = through(&cluster).connect(postgres::NoTls)?;
    let mut two = through(&cluster).connect(postgres::NoTls)?;
    let code = |error: postgres::Error| error.code().map(|code| code.code().to_owned()).unwrap_or_default();
    for turn in 0..5 {
        let value: i64 = one.query_one("select nextval('s')", &[])?.get(0);
        // Nobody in between: it is still there, or the client was moved and hears so.
        match one.query_one("select currval('s')", &[]) {
            Ok(row) => ensure!(row.get::<_, i64>(0) == value, "turn {turn}"),
            Err(error) => ensure!(code(error) == "55000"),
        }
        two.query_one("select nextval('s')", &[])?;
        for sql in ["select currval('s')", "select lastval()"] {
            match one.query_one(sql, &[]) {
                Ok(row) => ensure!(row.get::<_, i64>(0) == value, "turn {turn}: {sql} lies"),
                Err(error) => ensure!(code(error) == "55000", "turn {turn}"),
            }
            two.query_one("select 1", &[])?;
        }
        one.execute("insert into ident (who) values ('one')", &[])?;
        two.execute("insert into ident (who) values ('two')", &[])?;
        for client in [&mut one, &mut two] {
            let error = client.query_one("select lastval()", &[]).err().context("a value of another's")?;
            ensure!(code(error) == "55000");
            let error = client.query_one("select currval('ident_id_seq')", &[]);
            ensure!(code(error.err().context("a value of another's")?) == "55000");
        }
        // In one transaction it is as directly.
        let mut transaction = one.transaction()?;
        let value: i64 = transaction.query_one("select nextval('s')", &[])?.get(0);
        ensure!(transaction.query_one("select lastval()", &[])?.get::<_, i64>(0) == value);
        transaction.commit()?;
    }
    Ok(())
}
