//! What cannot move keeps its client, and is gone with it.

use crate::pooling::{pid, text, through, with_pool};
use crate::raw::Raw;
use anyhow::{Context, Result, ensure};
use pgrx_tests::lacking;
use pgrx_tests::wait;

#[test]
fn what_cannot_move_keeps_its_client_where_it_is_until_it_is_gone() -> Result<()> {
    if lacking::in_server("contrib modules") {
        return Ok(());
    }
    let cluster = with_pool("pins", 2, &[])?;
    let cases = [
        ("create temp table pinned (a int)", "discard all"),
        ("select pg_advisory_lock(1)", "select pg_advisory_unlock(1)"),
        ("select pg_advisory_lock_shared(1)", "select pg_advisory_unlock_all()"),
        ("declare c cursor with hold for select 1", "close c"),
        ("set postern.pool_mode = 'session'", "reset postern.pool_mode"),
        ("load 'auto_explain'", "-"),
        ("select setseed(0.5)", "-"),
        ("set seed = 0.5", "-"),
        ("prepare n as select 'now'::timestamptz", "deallocate n"),
    ];
    for (pins, unpins) in cases {
        let mut client = through(&cluster).connect(postgres::NoTls)?;
        client.batch_execute(pins)?;
        let first = pid(&mut client)?;
        // Two others take turns on whatever is free.
        let mut others: Vec<_> =
            (0..3).map(|_| through(&cluster).connect(postgres::NoTls)).collect::<Result<_, _>>()?;
        let moves = |client: &mut postgres::Client, others: &mut [postgres::Client]| -> Result<bool> {
            let before = pid(client)?;
            for _ in 0..20 {
                // Whoever sleeps keeps a backend; then the client's is asked for by the others.
                let mut pids = Vec::new();
                for other in others.iter_mut() {
                    other.batch_execute("begin")?;
                    pids.push(pid(other)?);
                    if !pids.contains(&before) && pids.len() < 2 {
                        continue;
                    }
                    break;
                }
                let other_has_it = pids.contains(&before);
                if other_has_it {
                    for other in others.iter_mut() {
                        other.batch_execute("rollback")?;
                    }
                    return Ok(true);
                }
                for other in others.iter_mut() {
                    other.batch_execute("rollback")?;
                }
            }
            Ok(false)
        };
        // One other only: a second one would wait for the pinned backend for ever.
        for _ in 0..5 {
            others[0].batch_execute("begin")?;
            let other = pid(&mut others[0])?;
            ensure!(other != first, "{pins}: another client is on its backend");
            ensure!(pid(&mut client)? == first, "{pins}: the client was moved");
            others[0].batch_execute("rollback")?;
        }
        if unpins == "-" {
            drop(client);
            continue;
        }
        client.batch_execute(unpins)?;
        ensure!(moves(&mut client, &mut others).with_context(|| pins)?, "{pins}, {unpins}: still pinned");
    }
    Ok(())
}

#[test]
fn a_pinned_client_that_vanishes_leaves_nothing() -> Result<()> {
    if lacking::in_server("contrib modules") {
        return Ok(());
    }
    let cluster = with_pool("leaves", 1, &[])?;
    let mut watcher = cluster.connect()?;
    for end in [true, false] {
        for pins in [
            "create temp table left_temp (a int); prepare l as select 1",
            "select pg_advisory_lock(77), pg_advisory_lock_shared(78)",
            "declare left_c cursor with hold for select 1",
            "listen left_chan",
            "load 'auto_explain'; set auto_explain.log_min_duration = 0",
            "select setseed(0.25)",
            "set postern.pool_mode = session; set work_mem = '1MB'; prepare l as select 2",
            "begin; create temp table left_temp (a int); select pg_advisory_lock(77); listen left_chan",
            "set work_mem = '1MB'; begin; set work_mem = '2MB'",
        ] {
            let mut raw = Raw::open(cluster.pooler_port)?;
            raw.query(pins)?;
            if end {
                raw.goodbye()?;
            } else {
                drop(raw);
            }
            // Waits for its turn on the only backend.
            let mut next = through(&cluster).connect(postgres::NoTls).context(pins)?;
            let found = text(
                &mut next,
                "select concat_ws('|', (select count(*) from pg_prepared_statements), (select count(*) from pg_cursors), \
                 (select count(*) from pg_locks where locktype = 'advisory'), (select count(*) from pg_listening_channels()), \
                 to_regclass('pg_temp.left_temp'), current_setting('work_mem'), \
                 coalesce(nullif(current_setting('auto_explain.log_min_duration', true), ''), '-1'), \
                 (select count(*) from pg_settings where source = 'session'))",
            )?;
            let expected = "0|0|0|0|4MB|-1|0";
            ensure!(found == expected, "after {pins:?}: {found} and not {expected}");
        }
    }
    wait::until("no temporary table is left", || {
        let count = watcher.query_one("select count(*) from pg_class where relname = 'left_temp'", &[]);
        count.is_ok_and(|row| row.get::<_, i64>(0) == 0)
    })
}
