//! Roles and databases that change or go while the pooler has connections of theirs.

use super::{at, backend, said, until_said, with_password};
use anyhow::{Context, Result};
use pgrx_tests::cluster::Cluster;
use pgrx_tests::wait;
use postgres::NoTls;

/// The pooler gets in over TCP with what clients show.
const HBA: &str = "local all postgres trust\nlocal all all reject\nhost all postgres 127.0.0.1/32 trust\n\
                   host all easy,easier,another 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n";

fn cluster(name: &str) -> Result<Cluster> {
    let cluster = Cluster::new(name)?;
    cluster.set_hba(HBA)?;
    cluster.start()
}

/// Waits until the server has no session of a role, by its OID.
fn until_none_of(cluster: &Cluster, oid: &str) -> Result<()> {
    let count = || cluster.sql(&format!("select count(*) from pg_stat_activity where usesysid = {oid}"));
    wait::until("no session of the role is left", || count().is_ok_and(|count| count == "0"))
}

#[test]
fn a_new_password_counts_at_the_next_login_and_opens_connections_anew() -> Result<()> {
    let cluster = Cluster::new("new-password")?;
    cluster.set_hba(HBA)?;
    cluster.set("postern.pool_size", "1")?;
    let cluster = cluster.start()?;
    cluster.sql("create role app login password 'old'")?;
    let port = cluster.pooler_port;
    let (old, new) = (
        with_password(at(port, "app", "postgres"), "old"),
        with_password(at(port, "app", "postgres"), "new"),
    );
    let mut early = old.connect(NoTls)?;
    let before = backend(&mut early)?;
    assert_eq!(backend(&mut old.connect(NoTls)?)?, before, "one connection serves both");
    assert!(said(&new).contains("28P01"));
    assert_eq!(backend(&mut early)?, before, "a wrong password changes nothing");
    cluster.sql("alter role app password 'new'")?;
    assert!(said(&old).contains("28P01"), "{}", said(&old));
    // As a session of the server's own, one that is there goes on.
    assert_eq!(backend(&mut early)?, before);
    let mut late = new.connect(NoTls)?;
    wait::until("the connection of the old password is not lent any more", || {
        backend(&mut late).is_ok_and(|now| now != before)
    })?;
    let now = backend(&mut early).context("the early client goes on")?;
    assert_ne!(now, before);
    wait::until("it has ended", || {
        let sql = format!("select count(*) from pg_stat_activity where pid = {before}");
        cluster.sql(&sql).is_ok_and(|count| count == "0")
    })?;
    // From a SCRAM secret to an md5 one, which this line of pg_hba.conf does not take, and back.
    cluster.sql("set password_encryption = 'md5'; alter role app password 'new'")?;
    assert!(said(&new).contains("28P01"));
    cluster.sql("set password_encryption = 'scram-sha-256'; alter role app password 'new'")?;
    assert_eq!(said(&new), "in as app to postgres");
    cluster.sql("alter role app valid until '2001-01-01'")?;
    assert!(said(&new).contains("28P01"));
    Ok(())
}

#[test]
fn connections_of_a_role_that_is_dropped_or_may_not_log_in_end() -> Result<()> {
    let cluster = cluster("dropped-role")?;
    cluster.sql("create role app login password 'x'; create role easy login")?;
    let app = with_password(at(cluster.pooler_port, "app", "postgres"), "x");
    let oid = cluster.sql("select oid from pg_roles where rolname = 'app'")?;
    let mut client = app.connect(NoTls)?;
    let mut busy = app.connect(NoTls)?;
    busy.batch_execute("begin; select 1")?;
    backend(&mut client)?;

    cluster.sql("alter role app nologin")?;
    assert_eq!(said(&app), "FATAL 28000: role \"app\" is not permitted to log in |  | ");
    busy.batch_execute("select 2; commit").context("a transaction ends in peace")?;
    until_none_of(&cluster, &oid)?;
    cluster.sql("alter role app login")?;
    assert_eq!(said(&app), "in as app to postgres");
    let mut client = super::raw::Raw::tcp(&cluster, cluster.pooler_port)?;
    client.startup(&[("user", "easy"), ("database", "postgres")]);
    client.hear_all()?;

    cluster.sql("drop role app")?;
    assert!(said(&app).contains("28P01"), "{}", said(&app));
    until_none_of(&cluster, &oid)?;
    // Another role of that name is another role.
    cluster.sql("create role app login password 'x'")?;
    assert_eq!(said(&app), "in as app to postgres");

    // By trust, no login shows anything.
    let easy = at(cluster.pooler_port, "easy", "postgres");
    let oid = cluster.sql("select oid from pg_roles where rolname = 'easy'")?;
    assert_eq!(said(&easy), "in as easy to postgres");
    cluster.sql("drop role easy")?;
    assert_eq!(said(&easy), "FATAL 28000: role \"easy\" does not exist |  | ");
    until_none_of(&cluster, &oid)?;
    let heard = client.hear_all()?;
    assert!(heard.len() == 2 && heard[0].contains("57P01") && heard[0].contains("dropped"), "{heard:?}");
    Ok(())
}

#[test]
fn a_role_or_database_of_another_name_is_the_same_one() -> Result<()> {
    let cluster = cluster("renamed")?;
    cluster.sql("create role easy login")?;
    cluster.sql("create role app login password 'x'")?;
    let oid = cluster.sql("select oid from pg_roles where rolname = 'easy'")?;
    let who = "select session_user::text, oid::text from pg_roles where rolname = session_user";
    let port = cluster.pooler_port;
    let mut client = at(port, "easy", "postgres").connect(NoTls)?;
    let before = backend(&mut client)?;
    cluster.sql("alter role easy rename to easier")?;
    // Its name is given to somebody else at once.
    cluster.sql("create role easy login")?;
    let mut other = at(port, "easy", "postgres").connect(NoTls)?;
    let row = other.query_one(who, &[])?;
    assert_eq!(row.get::<_, &str>(0), "easy");
    assert_ne!(row.get::<_, &str>(1), oid);
    wait::until("the connection under the old name is not lent any more", || {
        backend(&mut client).is_ok_and(|now| now != before)
    })?;
    let row = client.query_one(who, &[])?;
    assert_eq!((row.get::<_, &str>(0), row.get::<_, &str>(1)), ("easier", &oid[..]));
    assert_eq!(said(&at(port, "easier", "postgres")), "in as easier to postgres");

    let app = with_password(at(port, "app", "postgres"), "x");
    assert_eq!(said(&app), "in as app to postgres");
    cluster.sql("alter role app rename to apple")?;
    assert!(said(&app).contains("28P01"));
    assert_eq!(said(&with_password(at(port, "apple", "postgres"), "x")), "in as apple to postgres");
    Ok(())
}

#[test]
fn a_database_that_is_dropped_by_force_takes_its_clients_with_it() -> Result<()> {
    let cluster = cluster("dropped-database")?;
    cluster.sql("create database shop")?;
    let shop = at(cluster.pooler_port, "postgres", "shop");
    let mut client = super::raw::Raw::tcp(&cluster, cluster.pooler_port)?;
    client.startup(&[("user", "postgres"), ("database", "shop")]);
    client.hear_all()?;
    cluster.sql("drop database shop with (force)")?;
    assert_eq!(said(&shop), "FATAL 3D000: database \"shop\" does not exist |  | ");
    let heard = client.hear_all()?;
    assert!(heard.len() == 2 && heard[0].contains("57P01"), "{heard:?}");
    cluster.sql("create database shop")?;
    until_said(&shop, "in as postgres to shop")
}
