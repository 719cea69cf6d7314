//! A server that should get no traffic says so, and why. PARITY row S7.

use anyhow::{Context, Result};
use pgrx_tests::cluster::{Cluster, Stop};
use pgrx_tests::{probe, process, wait};
use rustix::process::Signal;

fn pair() -> Result<(Cluster, Cluster)> {
    let primary = Cluster::new("primary")?.start()?;
    let standby = primary.standby("standby")?.start()?;
    standby.wait_streaming()?;
    wait::until("the standby is healthy", || probe::code(standby.http_port, "/replica") == 200)?;
    Ok((primary, standby))
}

#[test]
fn a_smart_stop_is_told_while_old_sessions_go_on() -> Result<()> {
    let primary = Cluster::new("smart")?.start()?;
    let mut session = primary.connect()?;
    primary.request_stop(Stop::Smart)?;
    wait::until("the primary check fails", || probe::code(primary.http_port, "/primary") == 503)?;
    let answer = probe::get(primary.http_port, "/primary")?;
    assert!(answer.reason().contains("shutting down"), "{answer:?}");
    assert_eq!(probe::agent(primary.agent_port, "")?, "up drain #the server is shutting down\n");
    assert_eq!(probe::code(primary.http_port, "/health"), 503);
    assert_eq!(probe::code(primary.http_port, "/status"), 500);
    assert_eq!(probe::code(primary.http_port, "/liveness"), 200);
    wait::until("the banner no longer says MASTER", || {
        probe::banner(primary.banner_port).is_ok_and(|text| text == "STANDBY")
    })?;
    session.simple_query("SELECT 1")?;
    session.close()?;
    primary.wait_end()
}

#[test]
fn a_fast_stop_is_told_for_as_long_as_it_takes() -> Result<()> {
    let primary = Cluster::new("fast")?.start()?;
    // A backend that is stopped by the kernel cannot end: the stop takes as long as that.
    let mut session = primary.connect()?;
    let pid: i32 = session.query_one("SELECT pg_backend_pid()", &[])?.get(0);
    process::signal_pid(pid, Signal::STOP)?;
    primary.request_stop(Stop::Fast)?;
    let told = wait::until("the agent tells", || {
        probe::agent(primary.agent_port, "")
            .is_ok_and(|line| line == "up drain #the server is shutting down\n")
    });
    let answer = probe::get(primary.http_port, "/primary");
    process::signal_pid(pid, Signal::CONT)?;
    told?;
    let answer = answer?;
    assert_eq!(answer.code, 503);
    assert!(answer.reason().contains("shutting down"), "{answer:?}");
    primary.wait_end()
}

#[test]
fn a_standby_that_lost_its_primary_says_so_and_recovers() -> Result<()> {
    let (primary, standby) = pair()?;
    primary.stop(Stop::Immediate)?;
    wait::until("the standby is unhealthy", || probe::code(standby.http_port, "/replica") == 503)?;
    let answer = probe::get(standby.http_port, "/replica")?;
    assert!(answer.reason().contains("not streaming from its primary"), "{answer:?}");
    assert!(probe::agent(standby.agent_port, "")?.starts_with("up drain #not streaming"), "{answer:?}");
    assert_eq!(probe::code(standby.http_port, "/health"), 200, "it still takes connections");
    assert_eq!(probe::banner(standby.banner_port)?, "STANDBY");
    primary.start_again()?;
    wait::until("it is healthy again", || probe::code(standby.http_port, "/replica") == 200)
}

#[test]
fn a_diverged_old_primary_names_both_timelines() -> Result<()> {
    let (primary, standby) = pair()?;
    standby.wait_caught_up(&primary)?;
    // Promoted while the old primary writes on: their histories part.
    standby.promote()?;
    primary.sql("CREATE TABLE only_here AS SELECT 1")?;
    standby.sql("CREATE TABLE only_there AS SELECT 1")?;
    primary.stop(Stop::Fast)?;
    primary.follow(&standby)?;
    primary.start_again()?;
    let mut answer = probe::get(primary.http_port, "/replica")?;
    wait::until("the reason names the timelines", || {
        let Ok(now) = probe::get(primary.http_port, "/replica") else { return false };
        answer = now;
        answer.reason().contains("this server is on timeline 1, its primary is on timeline 2")
    })
    .map_err(|error| error.context(format!("{answer:?}")))?;
    for _ in 0..200 {
        assert_eq!(probe::code(primary.http_port, "/replica"), 503, "however often its WAL receiver tries");
    }
    assert!(
        probe::agent(primary.agent_port, "")?
            .starts_with("up drain #not streaming: this server is on timeline 1")
    );
    assert_eq!(probe::code(primary.http_port, "/read-only"), 503);
    Ok(())
}

#[test]
fn lag_beyond_the_limit_in_bytes_and_in_time_is_told() -> Result<()> {
    let (primary, standby) = pair()?;
    standby.sql("SELECT pg_wal_replay_pause()")?;
    primary.sql("CREATE TABLE t AS SELECT repeat('x', 1000) FROM generate_series(1, 3000)")?;
    wait::until("lag is seen", || probe::code(standby.http_port, "/replica?lag=1MB") == 503)?;
    let answer = probe::get(standby.http_port, "/replica?lag=1MB")?;
    assert!(answer.reason().starts_with("lag ") && answer.reason().ends_with("beyond 1024kB"), "{answer:?}");
    assert_eq!(probe::code(standby.http_port, "/replica?lag=1GB"), 200);
    assert_eq!(probe::code(standby.http_port, "/replica"), 200, "without a limit any lag is fine");
    wait::until("lag in time is seen", || probe::code(standby.http_port, "/replica?lag=1s") == 503)?;
    assert_eq!(probe::code(standby.http_port, "/replica?lag=1h"), 200);
    standby.set("postern.status_max_lag", "1MB")?;
    standby.reload()?;
    wait::until("the setting is taken", || probe::code(standby.http_port, "/replica") == 503)?;
    assert!(probe::agent(standby.agent_port, "")?.starts_with("up drain #lag "));
    assert_eq!(probe::code(standby.http_port, "/replica?lag=1GB"), 200, "a check's own limit goes first");
    standby.sql("SELECT pg_wal_replay_resume()")?;
    wait::until("it is healthy again", || probe::code(standby.http_port, "/replica?lag=1s") == 200)
}

#[test]
fn lag_is_counted_from_the_primary_even_when_nothing_arrives() -> Result<()> {
    let (primary, standby) = pair()?;
    let receiver: i32 = standby.sql("SELECT pid FROM pg_stat_wal_receiver")?.parse()?;
    // A receiver that hangs: what has been received is replayed, and what has not is the lag.
    process::signal_pid(receiver, Signal::STOP)?;
    let refused = |path: &str| probe::code(standby.http_port, path) == 503;
    let checked = primary
        .sql("CREATE TABLE t AS SELECT repeat('x', 1000) FROM generate_series(1, 3000)")
        .and_then(|_| wait::until("the lag in bytes is seen", || refused("/replica?lag=1MB")))
        .and_then(|()| wait::until("the lag in time is seen", || refused("/replica?lag=2s")));
    process::signal_pid(receiver, Signal::CONT)?;
    checked?;
    wait::until("it is healthy again", || probe::code(standby.http_port, "/replica?lag=1MB") == 200)
}

#[test]
fn an_idle_primary_that_writes_once_is_no_lag_of_an_hour() -> Result<()> {
    let (primary, standby) = pair()?;
    standby.wait_caught_up(&primary)?;
    // By the age of the last commit it is late from here on, and by that alone it would be for good.
    primary.sql("CREATE TABLE t ()")?;
    standby.wait_caught_up(&primary)?;
    wait::until("the last commit is long ago", || {
        standby
            .sql("SELECT now() - pg_last_xact_replay_timestamp() > '6 seconds'")
            .is_ok_and(|is_long_ago| is_long_ago == "t")
    })?;
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            (0..30).try_for_each(|_| primary.sql("SELECT pg_switch_wal(), pg_sleep(0.05)").map(drop))
        });
        let mut answers = Vec::new();
        while !writer.is_finished() {
            answers.push(probe::get(standby.http_port, "/replica?lag=5s")?);
        }
        // A receiver that stands still for so long is that late.
        let late: Vec<_> = answers.iter().filter(|answer| answer.code != 200).collect();
        assert!(late.len() * 10 <= answers.len(), "of {} answers: {late:?}", answers.len());
        writer.join().unwrap()
    })
}

#[test]
fn what_only_the_primary_knows_is_asked_there() -> Result<()> {
    let (primary, standby) = pair()?;
    wait::until("the primary is asked", || probe::code(standby.http_port, "/async") == 200)?;
    primary.set("synchronous_standby_names", "standby")?;
    primary.reload()?;
    wait::until("it has become synchronous", || probe::code(standby.http_port, "/sync") == 200)?;
    assert_eq!(probe::code(standby.http_port, "/async"), 503);
    let leader = probe::get(standby.http_port, "/standby-leader")?;
    assert!(leader.code == 503 && leader.reason().contains("no standby follows it"), "{leader:?}");
    let below = standby.standby("below")?.start()?;
    below.wait_streaming()?;
    wait::until("the head of the cascade is told", || {
        probe::code(standby.http_port, "/standby-leader") == 200
    })?;
    let answer =
        || probe::get(below.http_port, "/standby-leader").map(|answer| answer.reason()).unwrap_or_default();
    wait::until("the one below is not it", || answer().contains("it follows another standby"))
}

#[test]
fn where_the_primary_lets_only_replication_in_the_reason_says_so() -> Result<()> {
    let (primary, standby) = pair()?;
    primary.set_hba("local all all trust\nhost replication all 127.0.0.1/32 trust\n")?;
    primary.reload()?;
    standby.restart(Stop::Fast)?;
    standby.wait_streaming()?;
    wait::until("the standby is healthy", || probe::code(standby.http_port, "/replica?lag=16MB") == 200)?;
    wait::until("it says what pg_hba.conf there must do", || {
        probe::get(standby.http_port, "/sync").is_ok_and(|answer| {
            answer.code == 503
                && answer.reason().contains("pg_hba.conf there must let it into a database too")
        })
    })
    .with_context(|| format!("{:?}", probe::get(standby.http_port, "/sync")))?;
    assert!(standby.log().contains("asking the primary: "), "the log has the primary's own words");
    assert!(standby.log().contains("no pg_hba.conf entry"), "{}", standby.log_tail());
    let leader = probe::get(standby.http_port, "/standby-leader")?;
    assert!(
        leader.reason().contains("no standby follows it"),
        "the replication protocol tells the rest: {leader:?}"
    );
    Ok(())
}

#[test]
fn asking_never_takes_the_last_place_of_a_wal_receiver() -> Result<()> {
    let primary = Cluster::new("primary")?;
    primary.set("max_wal_senders", "1")?;
    primary.set_hba(
        "local all all trust\nlocal replication all trust\nhost replication all 127.0.0.1/32 trust\n",
    )?;
    let primary = primary.start()?;
    // A backup streams its WAL over a second connection.
    primary.set("max_wal_senders", "3")?;
    primary.restart(Stop::Fast)?;
    let standby = primary.standby("standby")?.start()?;
    standby.wait_streaming()?;
    primary.set("max_wal_senders", "1")?;
    for _ in 0..3 {
        primary.restart(Stop::Fast)?;
        // Checks that want to know more, all the time, while the only place is free.
        wait::until("the standby streams again under checks", || {
            let _ = probe::get(standby.http_port, "/replica?lag=1MB");
            probe::code(standby.http_port, "/replica") == 200
        })?;
    }
    Ok(())
}

#[test]
fn a_broken_primary_conninfo_tells_nobody_the_password() -> Result<()> {
    let (_primary, standby) = pair()?;
    for secret in
        ["password=my S3cretword", "postgres://rep:S3cretword@[::1:5432/", "postgres://rep:S3cretword%zz@h/"]
    {
        standby.set("primary_conninfo", secret)?;
        standby.reload()?;
        wait::until("the setting is taken", || {
            standby.sql("SHOW primary_conninfo").is_ok_and(|now| now == secret)
        })?;
        let mut said = String::new();
        wait::until("the checks say that it is not valid", || {
            said =
                probe::get(standby.http_port, "/sync?lag=1MB").map(|answer| answer.body).unwrap_or_default();
            said += &probe::agent(standby.agent_port, "").unwrap_or_default();
            said.contains("primary_conninfo is not valid") || said.contains("cannot be reached")
        })?;
        assert!(!said.contains("S3cret"), "{said}");
        let ours: Vec<_> =
            standby.log().lines().filter(|l| l.contains("postern: ")).map(str::to_owned).collect();
        assert!(!ours.iter().any(|line| line.contains("S3cret")), "{ours:?}");
    }
    Ok(())
}

#[test]
fn a_standby_that_starts_far_behind_is_late_at_once() -> Result<()> {
    let (primary, standby) = pair()?;
    primary.sql("CREATE TABLE t (x int); INSERT INTO t VALUES (1)")?;
    standby.wait_caught_up(&primary)?;
    standby.stop(Stop::Fast)?;
    primary.sql("INSERT INTO t SELECT g FROM generate_series(1, 1000) g; SELECT pg_sleep(3)")?;
    standby.set("recovery_min_apply_delay", "1h")?;
    standby.start_again()?;
    standby.wait_streaming()?;
    // It has been behind for three seconds, not since its start.
    for _ in 0..20 {
        let answer = probe::get(standby.http_port, "/replica?lag=2s")?;
        assert_eq!(answer.code, 503, "{answer:?}");
    }
    Ok(())
}

#[test]
fn a_new_worker_does_not_drain_a_standby_that_streams() -> Result<()> {
    let (_primary, standby) = pair()?;
    let worker = standby.worker_pid()?;
    process::signal_pid(worker, Signal::TERM)?;
    wait::until("another worker answers", || {
        standby.worker_pid().is_ok_and(|pid| pid != worker)
            && probe::banner(standby.banner_port).is_ok()
            && probe::code(standby.http_port, "/liveness") == 200
    })?;
    let answer = probe::get(standby.http_port, "/replica")?;
    assert_eq!(answer.code, 200, "{answer:?}");
    Ok(())
}

#[test]
fn a_plain_replication_role_can_ask_and_is_told_what_it_lacks() -> Result<()> {
    let (primary, standby) = pair()?;
    primary.sql("CREATE ROLE rep LOGIN REPLICATION")?;
    let upstream = format!("host=127.0.0.1 port={} user=rep", primary.port);
    standby.set("primary_conninfo", &upstream)?;
    standby.restart(Stop::Fast)?;
    wait::until("the standby is healthy", || probe::code(standby.http_port, "/replica?lag=16MB") == 200)?;
    let says = |path: &str, reason: &str| {
        wait::until(reason, || {
            probe::get(standby.http_port, path)
                .is_ok_and(|answer| answer.code == 503 && answer.reason().contains(reason))
        })
        .with_context(|| format!("{:?}", probe::get(standby.http_port, path)))
    };
    says("/standby-leader", "no standby follows it")?;
    says("/async", "needs pg_monitor")?;
    primary.sql("GRANT pg_monitor TO rep")?;
    wait::until("it is told", || probe::code(standby.http_port, "/async") == 200)
}
