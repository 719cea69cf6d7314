//! Plans that a backend keeps: how often a text is parsed, and which are forgotten.

use crate::pooling::{pid, text, through, with_pool};
use anyhow::{Result, ensure};
use pgrx_tests::cluster::Cluster;

/// How often a session has analysed a statement, by the server's log. Background workers, such as the one that looks for streams, analyse too.
fn analysed(cluster: &Cluster) -> usize {
    let log = cluster.log();
    log.lines()
        .filter(|line| line.contains("] client backend ") && line.contains("PARSE ANALYSIS STATISTICS"))
        .count()
}

#[test]
fn a_text_that_many_clients_have_is_parsed_once_on_a_backend_that_has_not_met_it() -> Result<()> {
    let cluster = with_pool("prepared-once", 2, &[("log_parser_stats", "on")])?;
    let open = || through(&cluster).connect(postgres::NoTls);
    let (mut first, mut second) = (open()?, open()?);
    first.batch_execute("begin")?;
    let mut clients = (0..10)
        .map(|_| {
            let mut client = open()?;
            let statement = client.prepare("select $1::int + 41")?;
            Ok((client, statement))
        })
        .collect::<Result<Vec<_>>>()?;
    ensure!(analysed(&cluster) >= 10, "the server tells of its parsing");
    // From here on the other backend has them all.
    second.batch_execute("begin")?;
    ensure!(pid(&mut first)? != pid(&mut second)?);
    first.batch_execute("commit")?;
    let before = analysed(&cluster);
    for _ in 0..3 {
        for (client, statement) in &mut clients {
            ensure!(client.query_one(&*statement, &[&1])?.get::<_, i32>(0) == 42);
        }
    }
    let count = analysed(&cluster) - before;
    ensure!(count == 1, "it was analysed {count} times");
    Ok(())
}

#[test]
fn a_backend_forgets_the_plans_that_were_not_used_for_longest() -> Result<()> {
    let settings = [("log_parser_stats", "on"), ("postern.max_prepared_statements", "2")];
    let cluster = with_pool("prepared-oldest", 1, &settings)?;
    let mut client = through(&cluster).connect(postgres::NoTls)?;
    let mut other = through(&cluster).connect(postgres::NoTls)?;
    let own: Vec<_> =
        (0..4).map(|n| client.prepare(&format!("select {n} + $1::int"))).collect::<Result<_, _>>()?;
    let mut uses = |order: &[usize]| -> Result<usize> {
        let before = analysed(&cluster);
        for n in order {
            ensure!(client.query_one(&own[*n], &[&1])?.get::<_, i32>(0) == *n as i32 + 1);
        }
        let count = analysed(&cluster) - before;
        // All that the client has are its own while it is there, and beyond two nobody's while another is.
        ensure!(text(&mut other, "select 'the other'")? == "the other");
        Ok(count)
    };
    uses(&[0, 1, 2, 3])?;
    ensure!(uses(&[2, 3])? == 0, "the last two are kept");
    ensure!(uses(&[3, 2])? == 0, "and again");
    ensure!(uses(&[0, 1])? == 2, "the others are not");
    ensure!(uses(&[0, 1])? == 0, "now they are the last two");
    ensure!(uses(&[0, 1, 2, 3])? == 2);
    ensure!(uses(&[1, 3, 0, 2])? == 2);
    ensure!(uses(&[0, 2])? == 0, "in the order in which they were used");
    Ok(())
}
