//! The verdict of pg_hba.conf.

use super::raw::{Raw, Source};
use super::{at, said, until_said};
use anyhow::{Context, Result};
use pgrx_tests::cluster::Cluster;
use pgrx_tests::wait;
use std::collections::BTreeSet;

/// What a line asks for tells which line it was; nobody comes so far as to be let in.
const LINES: &str = r#"
local all postgres trust
host all banned all reject
local db1,"db 2" alice password
local sameuser all md5
local all +crew scram-sha-256
hostssl all all all trust
host samerole +crew 127.0.0.1/32 password
host samerole all 127.0.0.1/32 scram-sha-256
host "all" all 127.0.0.1/32 md5
host db1,"db 2" alice,bob 127.0.0.2/32 md5
host db1 all 127.0.0.2/32 scram-sha-256
host all +crew 127.0.0.0/8 password
host all +crew ::1/128 md5
host db1 alice ::1 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff scram-sha-256
host "db 2" all samehost reject
hostnossl db1 all 127.0.0.3 255.255.255.255 md5
host db1 "Mixed Case" all scram-sha-256
host db1 mixed all password
host db1 alice all reject
"#;

const ROLES: [&str; 8] = ["alice", "bob", "carol", "banned", "boss", "Mixed Case", "mixed", "no such role"];
const DATABASES: [&str; 7] = ["db1", "db 2", "crew", "alice", "all", "postgres", "no such database"];

fn sources() -> Vec<Source> {
    let mut sources = vec![Source::Unix];
    sources.extend((1..4).map(|last| Source::Address([127, 0, 0, last].into())));
    sources.push(Source::Address(std::net::Ipv6Addr::LOCALHOST.into()));
    sources
}

fn first_answer(cluster: &Cluster, port: u16, source: Source, role: &str, database: &str) -> Result<String> {
    let mut client = Raw::open(cluster, port, source)?;
    client.startup(&[("user", role), ("database", database)]);
    Ok(client.hear()?.shown())
}

/// Every case at both ports; the answers that were given.
fn compare(cluster: &Cluster) -> Result<BTreeSet<String>> {
    let mut answers = BTreeSet::new();
    for source in sources() {
        for role in ROLES {
            for database in DATABASES {
                let direct = first_answer(cluster, cluster.port, source, role, database)?;
                let through = first_answer(cluster, cluster.pooler_port, source, role, database)?;
                assert_eq!(through, direct, "{role} to {database} from {source:?}");
                answers.insert(direct);
            }
        }
    }
    Ok(answers)
}

fn cluster(name: &str) -> Result<Cluster> {
    let cluster = Cluster::new(name)?;
    cluster.set("listen_addresses", "127.0.0.1, ::1")?;
    let port = cluster.pooler_port;
    cluster.set("postern.pooler_listen", &format!("127.0.0.1:{port}, [::1]:{port}"))?;
    cluster.start()
}

#[test]
fn the_verdict_of_pg_hba_conf_is_the_servers_own_also_after_a_reload() -> Result<()> {
    let cluster = cluster("hba")?;
    for statement in [
        "create role crew",
        "create role subcrew in role crew",
        "set password_encryption = 'md5'; create role alice login password 'x'",
        "set password_encryption = 'md5'; create role bob login in role crew password 'x'",
        "create role carol login in role subcrew",
        "create role banned login in role crew",
        "create role boss login superuser",
        "create role \"Mixed Case\" login",
        "create role mixed login",
    ] {
        cluster.sql(statement)?;
    }
    cluster.set_hba(LINES)?;
    cluster.reload()?;
    let one = Source::Address([127, 0, 0, 1].into());
    let ask = |port, role: &str, database: &str| {
        first_answer(&cluster, port, one, role, database).unwrap_or_default()
    };
    for port in [cluster.port, cluster.pooler_port] {
        wait::until("the new lines are in force", || {
            ask(port, "banned", "db1").contains("rejects connection")
        })?;
    }
    let answers = compare(&cluster)?;
    // So the table has a case for everything: three methods, a reject line and no line, and names in the texts.
    for wanted in
        ["authentication 3", "authentication 5", "SASL ", "rejects connection", "no pg_hba.conf entry"]
    {
        assert!(answers.iter().any(|answer| answer.contains(wanted)), "{wanted} is missing");
    }

    // A mistake leaves the lines of before in force.
    cluster.set_hba(&format!("{LINES}host all all 127.0.0.1/32 trsut\n"))?;
    cluster.reload()?;
    cluster.wait_log("pg_hba.conf was not reloaded")?;
    compare(&cluster).context("after a reload with a mistake")?;

    // Another order is another verdict; a member that joins is one at once.
    cluster.set_hba("local all postgres trust\nhost all +crew all password\nhost all all 127.0.0.1/32 md5\nhost all banned all reject\n")?;
    cluster.reload()?;
    for port in [cluster.port, cluster.pooler_port] {
        wait::until("the new lines are in force", || ask(port, "banned", "db1") == "authentication 3")?;
        assert_eq!(ask(port, "alice", "db1"), "authentication 5");
    }
    cluster.sql("grant crew to alice; revoke crew from banned")?;
    for port in [cluster.port, cluster.pooler_port] {
        assert_eq!(ask(port, "alice", "db1"), "authentication 3");
        assert_ne!(ask(port, "banned", "db1"), "authentication 3");
    }
    compare(&cluster).context("after a reload")?;

    // Names of hosts, of an address that leads to one without asking anybody else.
    cluster.set_hba("local all postgres trust\nhost all banned localhost reject\nhost all alice nowhere.invalid reject\nhost all all localhost md5\nhost all all all password\n")?;
    cluster.reload()?;
    for port in [cluster.port, cluster.pooler_port] {
        wait::until("the new lines are in force", || {
            ask(port, "banned", "db1").contains("rejects connection")
        })?;
    }
    for role in ROLES {
        assert_eq!(ask(cluster.pooler_port, role, "db1"), ask(cluster.port, role, "db1"), "{role}");
    }
    Ok(())
}

#[test]
fn a_pooler_that_starts_with_a_broken_pg_hba_conf_lets_nobody_in_until_it_is_mended() -> Result<()> {
    let cluster = Cluster::new("hba-broken")?.start()?;
    cluster.set_hba("host all all 127.0.0.1/32 trsut\n")?;
    let worker = cluster.front_pid()?;
    // A worker that ends by itself starts again a second later, and then reads the file for the first time.
    pgrx_tests::process::signal_pid(worker, rustix::process::Signal::TERM)?;
    cluster.wait_log("could not load pg_hba.conf")?;
    let client = at(cluster.pooler_port, "postgres", "postgres");
    wait::until("the pooler listens again", || said(&client).contains("28000"))
        .with_context(|| format!("{}; {}", said(&client), cluster.log_tail()))?;
    assert_eq!(said(&at(cluster.port, "postgres", "postgres")), "in as postgres to postgres");
    cluster.set_hba("local all all trust\nhost all all 127.0.0.1/32 trust\n")?;
    cluster.reload()?;
    until_said(&client, "in as postgres")
}
