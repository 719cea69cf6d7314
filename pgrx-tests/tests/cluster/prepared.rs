//! Prepared statements of many clients on few backends: each has its own, whatever the others call theirs.

mod names;
mod plans;
mod texts;

use crate::pooling::{goes_on, text, through, with_pool};
use crate::woven::same_as_directly;
use anyhow::{Context, Result, ensure};
use pgrx_tests::dice::Dice;
use pgrx_tests::wait;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

fn scripts() -> Vec<(&'static str, &'static str)> {
    [&names::SCRIPTS[..], &texts::SCRIPTS].concat()
}

#[test]
fn statements_are_each_client_s_own_on_the_only_backends() -> Result<()> {
    let cluster = with_pool("prepared-two", 2, &[])?;
    same_as_directly(&cluster, &scripts())
}

#[test]
fn statements_are_each_client_s_own_when_few_or_no_plans_are_kept() -> Result<()> {
    for most in ["0", "2"] {
        let cluster = with_pool("prepared-few", 1, &[("postern.max_prepared_statements", most)])?;
        // Their clients are pinned, and leave no backend to the others.
        let pinned = ["values of their moment", "literals as they were read", "prepared inside"];
        let scripts: Vec<_> = scripts().into_iter().filter(|(name, _)| !pinned.contains(name)).collect();
        same_as_directly(&cluster, &scripts)
            .with_context(|| format!("postern.max_prepared_statements = {most}"))?;
    }
    Ok(())
}

#[test]
fn hundreds_of_statements_a_client_follow_it() -> Result<()> {
    let cluster = with_pool("prepared-many", 2, &[("postern.max_prepared_statements", "100")])?;
    let threads: Vec<_> = (0..4)
        .map(|number: i32| {
            let config = through(&cluster);
            std::thread::spawn(move || -> Result<()> {
                let mut client = config.connect(postgres::NoTls)?;
                let all: Vec<_> = (0..300)
                    .map(|n: i32| client.prepare(&format!("select {number} * 1000 + {n} + $1::int")))
                    .collect::<Result<_, _>>()?;
                for round in 0..3 {
                    for (n, statement) in all.iter().enumerate() {
                        let value: i32 = client.query_one(statement, &[&round])?.get(0);
                        ensure!(value == number * 1000 + n as i32 + round, "{value}");
                    }
                }
                ensure!(text(&mut client, "select count(*) from pg_prepared_statements")? == "300");
                Ok(())
            })
        })
        .collect();
    for thread in threads {
        thread.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
    }
    Ok(())
}

#[test]
fn literals_are_read_by_the_settings_of_after_a_reload() -> Result<()> {
    let cluster = with_pool("prepared-reload", 1, &[])?;
    let config = through(&cluster);
    let (mut before, mut after) = (config.connect(postgres::NoTls)?, config.connect(postgres::NoTls)?);
    let prepare = "prepare s as select coalesce((1 = null)::text, 'null')";
    before.batch_execute(prepare)?;
    after.batch_execute("select 1")?;
    cluster.connect()?.batch_execute("alter system set transform_null_equals = on")?;
    cluster.connect()?.batch_execute("select pg_reload_conf()")?;
    let limit = Instant::now() + wait::LIMIT;
    while text(&mut after, "show transform_null_equals")? != "on" {
        ensure!(Instant::now() < limit, "the reload does not come");
    }
    after.batch_execute(prepare)?;
    for _ in 0..3 {
        ensure!(text(&mut after, "execute s")? == "false");
        let seen = text(&mut before, "execute s")?;
        ensure!(seen == "null", "{seen} for what was read before");
    }
    Ok(())
}

#[test]
fn a_torture_of_forty_clients_has_no_wrong_answer() -> Result<()> {
    let cluster = with_pool("torture", 4, &[("max_connections", "60")])?;
    let (begun, all) = (Instant::now(), Arc::new(AtomicU64::new(0)));
    let texts = [
        "'a'",
        "'b' || 'b'",
        "repeat('c', 3)",
        "upper('d')",
        "(select 'e' from pg_class limit 1)",
        "concat('f')",
    ];
    let answers = ["a", "bb", "ccc", "D", "e", "f"];
    let threads: Vec<_> = (0..40u64)
        .map(|number| {
            let (config, all) = (through(&cluster), Arc::clone(&all));
            std::thread::spawn(move || -> Result<()> {
                let mut dice = Dice::new(number);
                let mut client = config.connect(postgres::NoTls)?;
                // What each of the names stands for.
                let mut names: [Option<usize>; 4] = [None; 4];
                while goes_on(begun, all.load(Relaxed)) {
                    let name = dice.below(4) as usize;
                    match dice.below(20) {
                        0 => {
                            client.batch_execute("deallocate all")?;
                            names = [None; 4];
                        }
                        1 => {
                            client.batch_execute("discard all")?;
                            names = [None; 4];
                        }
                        2 => {
                            client = config.connect(postgres::NoTls)?;
                            names = [None; 4];
                        }
                        3 | 4 => {
                            if names[name].take().is_some() {
                                client.batch_execute(&format!("deallocate n{name}"))?;
                            }
                        }
                        _ => match names[name] {
                            Some(text_number) => {
                                let seen = text(&mut client, &format!("execute n{name}"))?;
                                ensure!(seen == answers[text_number], "{seen} for {}", answers[text_number]);
                            }
                            None => {
                                let text_number = dice.below(6) as usize;
                                client.batch_execute(&format!(
                                    "prepare n{name} as select {}",
                                    texts[text_number]
                                ))?;
                                names[name] = Some(text_number);
                            }
                        },
                    }
                    // By the protocol as well, in names of the driver's own that every client has.
                    if dice.below(3) == 0 {
                        let text_number = dice.below(6) as usize;
                        let row = client.query_one(&format!("select {}", texts[text_number]), &[])?;
                        ensure!(row.get::<_, String>(0) == answers[text_number]);
                    }
                    all.fetch_add(1, Relaxed);
                }
                Ok(())
            })
        })
        .collect();
    let mut wrong = Vec::new();
    for thread in threads {
        if let Err(error) = thread.join().map_err(|_| anyhow::anyhow!("a client panicked"))? {
            wrong.push(format!("{error:#}"));
        }
    }
    let done = all.load(Relaxed);
    ensure!(wrong.is_empty(), "{wrong:#?}");
    ensure!(done > 1_000, "only {done} steps");
    Ok(())
}
