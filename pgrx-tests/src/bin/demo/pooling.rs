//! A hundred clients with a hundred different session states on a few server connections, through the pooler and through
//! PgBouncer; then the console.

use crate::nodes::Nodes;
use crate::screen::{heading, show, step};
use anyhow::{Context, Result, ensure};
use pgrx_tests::cluster::Cluster;
use pgrx_tests::pgbouncer::{self, Options, Pgbouncer};
use postgres::{Client, Config, NoTls, SimpleQueryMessage};

const CLIENTS: usize = 100;
const ROUNDS: usize = 20;

/// Four settings that differ from client to client, each set in another way, and one that is taken back.
const STATE: [&str; 5] = [
    "SET work_mem = '{n}MB'",
    "SELECT set_config('statement_timeout', '{n}min', false)",
    "DO $$BEGIN PERFORM set_config('app.client', '{n}', false); END$$",
    "SET lock_timeout = '{n}s'",
    "BEGIN; SET lock_timeout = '1h'; ROLLBACK",
];

const LOOK: &str = "SELECT concat_ws(' ', current_setting('work_mem'), current_setting('statement_timeout'), \
    current_setting('app.client', true), current_setting('lock_timeout'))";

/// What one run has shown.
struct Run {
    wrong: usize,
    looks: usize,
    servers: String,
}

pub fn show_pooling(nodes: &Nodes) -> Result<()> {
    heading("A hundred clients, four settings of their own each, on a few server connections");
    let node = &nodes.primary;
    let ours = step("through node1's pooler on 6432", || run(node, node.pooler_port, "app", Some("app")))?;
    tell(&ours);
    ensure!(ours.wrong == 0, "{} of {} looks saw somebody else's settings", ours.wrong, ours.looks);
    match pgbouncer::build().and_then(|_| Pgbouncer::start(node, &Options::default())) {
        Ok(peer) => {
            let theirs = step("the same through PgBouncer, transaction mode", || {
                run(node, peer.port, "postgres", None)
            })?;
            tell(&theirs);
        }
        Err(error) => show("PgBouncer could not be had for comparison", &format!("{error:#}")),
    }
    heading("The pooler's console: psql -p 6432 postern -c 'SHOW POOLS'");
    let mut console = client(node, node.pooler_port, "postgres", Some("postgres"), "postern")?;
    for pool in console.simple_query("SHOW POOLS")? {
        if let SimpleQueryMessage::Row(pool) = pool {
            let of = |name: &str| pool.get(name).unwrap_or_default();
            let title = format!("{} as {}", of("database"), of("user"));
            let clients = format!("{} active, {} waiting", of("cl_active"), of("cl_waiting"));
            show(
                &title,
                &format!("clients {clients}; servers {} active, {} idle", of("sv_active"), of("sv_idle")),
            );
        }
    }
    let mut standby = client(&nodes.standby, nodes.standby.pooler_port, "app", Some("app"), "shop")?;
    let row = standby.query_one("SELECT pg_is_in_recovery()::text", &[])?;
    show("node2's pooler on 6442: in recovery", row.get(0));
    Ok(())
}

fn run(node: &Cluster, port: u16, role: &str, password: Option<&str>) -> Result<Run> {
    let mut clients = Vec::new();
    for number in 1..=CLIENTS {
        let mut client = client(node, port, role, password, "shop")?;
        for statement in STATE {
            client.batch_execute(&statement.replace("{n}", &number.to_string()))?;
        }
        clients.push(client);
    }
    let mut wrong = 0;
    // In an order that differs from round to round.
    for round in 0..ROUNDS {
        for turn in 0..CLIENTS {
            let number = (turn * 37 + round * 11) % CLIENTS + 1;
            let seen = look(&mut clients[number - 1])?;
            // As the server shows so much time.
            let minutes = if number == 60 { "1h".to_owned() } else { format!("{number}min") };
            let seconds = if number == 60 { "1min".to_owned() } else { format!("{number}s") };
            wrong += usize::from(seen != format!("{number}MB {minutes} {number} {seconds}"));
        }
    }
    let mine = format!("SELECT count(*) FROM pg_stat_activity WHERE datname = 'shop' AND usename = '{role}'");
    let servers = node.sql(&mine)?;
    Ok(Run { wrong, looks: ROUNDS * CLIENTS, servers })
}

fn look(client: &mut Client) -> Result<String> {
    Ok(client.query_one(LOOK, &[])?.get(0))
}

fn tell(run: &Run) {
    show("looks that saw somebody else's settings", &format!("{} of {}", run.wrong, run.looks));
    show("server connections for a hundred clients", &run.servers);
}

fn client(node: &Cluster, port: u16, role: &str, password: Option<&str>, database: &str) -> Result<Client> {
    let mut config = Config::new();
    config.host("127.0.0.1").port(port).user(role).dbname(database);
    if let Some(password) = password {
        config.password(password);
    }
    config
        .connect(NoTls)
        .with_context(|| format!("{role} to {database} through port {port} of {}", node.name))
}
