//! `postern.status` and its neighbours, as a DBA reads them.

use anyhow::Result;
use pgrx_tests::cluster::{Cluster, Stop};
use pgrx_tests::{probe, wait};

#[test]
fn the_view_shows_both_sides_of_replication() -> Result<()> {
    let primary = Cluster::new("primary")?.start()?;
    primary.create_extension()?;
    let standby = primary.standby("standby")?.start()?;
    standby.wait_streaming()?;
    let on_primary = primary.sql(
        "SELECT role, state, healthy, reason, timeline, written_lsn > '0/0', lag_bytes, wal_receiver, \
                worker_starts, worker_pid IS NOT NULL, worker_problem FROM postern.status",
    )?;
    assert_eq!(on_primary, "primary|running|t||1|t|||1|t|");
    let healthy = "SELECT role, healthy, wal_receiver, lag_bytes >= 0, lag IS NOT NULL, replayed_lsn <= primary_lsn, \
                          sender LIKE '127.0.0.1:%', written_lsn FROM postern.status";
    wait::until("the standby is healthy", || {
        standby.sql(healthy).is_ok_and(|row| row == "standby|t|streaming|t|t|t|t|")
    })?;
    primary.stop(Stop::Immediate)?;
    wait::until("the view says why it is not", || {
        standby
            .sql("SELECT reason FROM postern.status")
            .is_ok_and(|reason| reason.starts_with("not streaming"))
    })
}

#[test]
fn each_listener_counts_its_checks() -> Result<()> {
    let primary = Cluster::new("primary")?.start()?;
    primary.create_extension()?;
    let counted =
        "SELECT string_agg(kind || ':' || served, ' ' ORDER BY kind) FROM postern.listeners WHERE listening";
    // The rig has asked whether the server is up.
    let before = primary.sql("SELECT served FROM postern.listeners WHERE kind = 'http'")?.parse::<u32>()?;
    probe::banner(primary.banner_port)?;
    probe::banner(primary.banner_port)?;
    probe::get(primary.http_port, "/primary")?;
    let wanted = format!("agent:0 banner:2 http:{} pooler:0 pooler:0", before + 1);
    wait::until("all are counted", || primary.sql(counted).is_ok_and(|row| row == wanted))?;
    assert_eq!(primary.sql("SELECT jsonb_array_length(listeners) FROM postern.status")?, "5");
    Ok(())
}

#[test]
fn a_mistaken_value_is_refused_with_what_would_be_right() -> Result<()> {
    let cluster = Cluster::new("mistakes")?.start()?;
    for (setting, value, detail) in [
        (
            "postern.status_listen",
            "5400",
            "\"5400\" has no valid port: write host:port with a port from 1 to 65535.",
        ),
        (
            "postern.http_listen",
            "::1:80",
            "write host:port, *:port, [ipv6]:port or the path of a Unix socket.",
        ),
        ("postern.status_allow", "10.0.0.0/33", "write \"all\" or a list like 10.0.0.0/8, ::1/128."),
        ("postern.status_max_lag", "16 parsecs", "write bytes (\"16MB\"), a time (\"10s\") or 0 for none"),
        ("bgw_replstatus.bind", "a b", "\"a b:1\" is not an address"),
    ] {
        let error = cluster.sql(&format!("ALTER SYSTEM SET {setting} = '{value}'")).unwrap_err();
        let error = error.downcast::<postgres::Error>()?;
        let told =
            error.as_db_error().map(|e| (e.message().to_owned(), e.detail().unwrap_or_default().to_owned()));
        let (message, told) = told.unwrap_or_default();
        assert_eq!(message, format!("invalid value for parameter \"{setting}\": \"{value}\""));
        assert!(told.contains(detail), "{told}");
    }
    Ok(())
}

#[test]
fn without_preloading_the_functions_say_what_to_do() -> Result<()> {
    let cluster = Cluster::new("unloaded")?;
    cluster.set("shared_preload_libraries", "")?;
    let cluster = cluster.start()?;
    cluster.create_extension()?;
    let error = format!("{:?}", cluster.sql("SELECT * FROM postern.status").unwrap_err());
    assert!(error.contains("postern is not loaded") && error.contains("shared_preload_libraries"), "{error}");
    Ok(())
}
