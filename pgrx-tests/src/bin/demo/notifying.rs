//! A thousand clients that listen at the listen-only port, then through the pooler, beside listeners of the server itself.

use crate::nodes::Nodes;
use crate::screen::{heading, show, step};
use anyhow::{Context, Result, ensure};
use pgrx_tests::wait;
use postgres::fallible_iterator::FallibleIterator;
use postgres::{Client, Config, NoTls};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::time::{Duration, Instant};

const LISTENERS: usize = 1000;

/// As many as the demo's servers have places for, beside everything else.
const NATIVE: usize = 80;

/// How long each rate is measured.
const TIME: Duration = Duration::from_secs(1);

pub fn show_notifications(nodes: &Nodes) -> Result<()> {
    heading(
        "A thousand clients LISTEN on one worker and no server connection; NOTIFYs a second of one client",
    );
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    let node = &nodes.primary;
    let one = step("one listener at the server's own port", || rate(nodes, node.port, 1))?;
    let some =
        step(&format!("{NATIVE} listeners at the server's own port"), || rate(nodes, node.port, NATIVE))?;
    let only_listen = node.pooler_port + 1;
    let only = step(&format!("{LISTENERS} listeners at the listen-only port, {only_listen}"), || {
        rate(nodes, only_listen, LISTENERS)
    })?;
    let all = step(&format!("{LISTENERS} listeners through the pooler, {}", node.pooler_port), || {
        rate(nodes, node.pooler_port, LISTENERS)
    })?;
    let shown = |rate: f64| format!("{rate:.0} NOTIFYs/s, {:.2} of the rate with one", rate / one);
    show("native, 1 listener", &format!("{one:.0} NOTIFYs/s"));
    show(&format!("native, {NATIVE} listeners"), &shown(some));
    show(&format!("at the listen-only port, {LISTENERS}"), &shown(only));
    show(&format!("through the pooler, {LISTENERS}"), &shown(all));
    let mut standby = client(nodes.standby.pooler_port + 1)?;
    let refused = standby.batch_execute("LISTEN demo").err().context("a standby listens")?;
    let words = refused.as_db_error().map_or_else(|| refused.to_string(), |error| error.message().to_owned());
    show(&format!("node2, {}: LISTEN", nodes.standby.pooler_port + 1), &words);
    Ok(())
}

/// How many NOTIFYs a second commit beside so many listeners, all of which hear all of them.
fn rate(nodes: &Nodes, port: u16, listeners: usize) -> Result<f64> {
    let node = &nodes.primary;
    let mut clients = Vec::new();
    for _ in 0..listeners {
        let mut client = client(port)?;
        client.batch_execute("LISTEN demo")?;
        clients.push(client);
    }
    if port != node.port {
        let sql = "SELECT channel, listeners, worker_pid FROM postern.channels";
        println!("\n    {sql}");
        for line in nodes.table(node, sql)? {
            println!("      {line}");
        }
    }
    let mut notifier = client(node.port)?;
    // It is not the disk that is measured.
    notifier.batch_execute("SET synchronous_commit = off")?;
    let began = Instant::now();
    let mut count = 0;
    while began.elapsed() < TIME {
        notifier.batch_execute(&format!("NOTIFY demo, '{count}'"))?;
        count += 1;
    }
    let rate = f64::from(count) / began.elapsed().as_secs_f64();
    for client in &mut clients {
        let last = (count - 1).to_string();
        let mut heard = 0;
        let mut notifications = client.notifications();
        let mut waiting = notifications.timeout_iter(wait::LIMIT);
        while let Some(notification) = waiting.next().context("a listener")? {
            heard += 1;
            if notification.payload() == last {
                break;
            }
        }
        ensure!(heard == count, "a listener has heard {heard} of {count} notifications");
    }
    Ok(rate)
}

fn client(port: u16) -> Result<Client> {
    let mut config = Config::new();
    config.host("127.0.0.1").port(port).user("app").password("app").dbname("shop");
    config.connect(NoTls).with_context(|| format!("app to shop through port {port}"))
}
