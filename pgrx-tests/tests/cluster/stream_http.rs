//! The port of the change streams: psql-streamer's paths over HTTP, and their metrics there and on the status port. PARITY row C7.

use crate::stream::{delivered, file, running, start, to_file};
use anyhow::{Context, Result, ensure};
use pgrx_tests::cluster::{Cluster, Stop};
use pgrx_tests::{ports, probe, wait};

/// A server with a stream into a file, and the port.
fn with_port(name: &str) -> Result<(Cluster, u16)> {
    let port = ports::free()?;
    let cluster = start(name, &[("postern.stream_listen", &format!("127.0.0.1:{port}"))])?;
    wait::until("the port answers", || probe::code(port, "/health") == 200)
        .with_context(|| cluster.log_tail())?;
    Ok((cluster, port))
}

/// A stream into a file, which has delivered ten events.
fn ten_events(cluster: &Cluster) -> Result<()> {
    cluster.sql("create table t (id int primary key)")?;
    to_file(cluster, "{}")?;
    cluster.sql("insert into t select generate_series(1, 10)")?;
    delivered(cluster)
}

/// Fails unless a scrape has all of these lines.
fn has(scrape: &str, lines: &[String]) {
    for line in lines {
        assert!(scrape.lines().any(|one| one == line), "{line} in\n{scrape}");
    }
}

#[test]
fn status_says_so_where_no_worker_is_left_that_could_look_for_streams() -> Result<()> {
    let (cluster, port) = with_port("stream-http-no-scout")?;
    ten_events(&cluster)?;
    cluster.set("max_worker_processes", "4")?.restart(Stop::Fast)?;
    wait::until("the page says so", || {
        probe::get(port, "/status").is_ok_and(|page| {
            page.code == 500 && page.body.contains("for a scout: raise max_worker_processes")
        })
    })
    .with_context(|| format!("{:?}", probe::get(port, "/status").map(|page| page.body)))?;
    cluster.set("max_worker_processes", "16")?.restart(Stop::Fast)?;
    running(&cluster, "shop to lines")?;
    ensure!(probe::code(port, "/status") == 200);
    Ok(())
}

#[test]
fn every_path_of_psql_streamer_is_answered() -> Result<()> {
    let (cluster, port) = with_port("stream-http")?;
    assert_eq!(probe::get(port, "/status")?.body, "no change stream is defined\n");
    ten_events(&cluster)?;
    let health = probe::get(port, "/health")?;
    assert_eq!((health.code, health.body.as_str()), (200, "Alive and well\n"));
    assert!(health.head.contains("text/plain"), "{}", health.head);
    let status = probe::get(port, "/status")?;
    let well = "source \"shop\" of database \"postgres\" is streaming\n\
                stream \"shop to lines\" of database \"postgres\" is running\n";
    assert_eq!((status.code, status.body.as_str()), (200, well));
    let stats = probe::get(port, "/stats")?.body;
    let lines: Vec<_> = stats.lines().collect();
    let [source, sink] = lines[..] else { anyhow::bail!("{stats}") };
    ensure!(
        source.starts_with("source \"shop\" of database \"postgres\" is streaming: events 10, "),
        "{stats}"
    );
    ensure!(
        sink.starts_with("sink \"lines\" of database \"postgres\": streams 1, events 10, bytes "),
        "{stats}"
    );
    let request = |line: &str| {
        probe::request(port, &format!("{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))
    };
    for (line, code) in [
        ("HEAD /health", 200),
        ("GET /nonsense", 404),
        ("GET /debug/maybe", 400),
        ("POST /debug/off", 200),
        ("POST /status", 405),
        ("OPTIONS /health", 405),
        ("HEAD /debug/on", 405),
    ] {
        let answer = request(line)?;
        assert_eq!(answer.code, code, "{line}: {answer:?}");
    }
    let refused = request("PUT /stats")?.head.to_ascii_lowercase();
    assert!(refused.contains("allow: get, head"), "{refused}");
    // The checks are on the other port only.
    assert_eq!(probe::code(port, "/primary"), 404);
    assert_eq!(probe::code(cluster.http_port, "/debug/on"), 404);
    let listener =
        cluster.sql("select listening, served > 10 from postern.listeners where kind = 'stream'")?;
    assert_eq!(listener, "t|t");
    Ok(())
}

#[test]
fn a_sink_in_trouble_is_an_error_of_status_until_it_is_well_again() -> Result<()> {
    let (cluster, port) = with_port("stream-http-error")?;
    cluster.sql("create table t (id int primary key)")?;
    let directory = file(&cluster, "events");
    cluster.sql(&format!("copy (select 1) to program 'cat > /dev/null; mkdir {}'", directory.display()))?;
    cluster.sql(&format!(
        "select postern.create_source('shop', 'postgres', '{{\"retry\":\"1s\"}}');
         select postern.create_sink('lines', 'file', '{{\"path\":\"{}/events.jsonl\"}}');
         select postern.create_stream('shop to lines', 'shop', 'lines')",
        directory.display()
    ))?;
    running(&cluster, "shop to lines")?;
    assert_eq!(probe::code(port, "/status"), 200);
    let move_away = |from: &str, to: &str| {
        cluster.sql(&format!("copy (select 1) to program 'cat > /dev/null; mv {from} {to}'"))
    };
    let (here, away) = (directory.display().to_string(), format!("{}-away", directory.display()));
    move_away(&here, &away)?;
    cluster.sql("insert into t values (1)")?;
    let ill = || probe::get(port, "/status").is_ok_and(|status| status.code == 500);
    wait::until("the error is told", ill).with_context(|| cluster.log_tail())?;
    let mut said = String::new();
    wait::until("the error is in one line", || {
        said = probe::get(port, "/status").map_or(String::new(), |status| status.body);
        said.lines().count() == 1 && said.contains("of database \"postgres\" is ") && said.contains("events")
    })
    .with_context(|| said.clone())?;
    assert_eq!(probe::code(port, "/health"), 200);
    let metrics = probe::get(cluster.http_port, "/metrics")?.body;
    let errors = "postern_stream_errors_total{database=\"postgres\",sink=\"lines\",source=\"shop\",stream=\"shop to lines\"} ";
    assert!(probe::metric(&metrics, errors)? > 0.0, "{metrics}");
    move_away(&away, &here)?;
    // Blocked is for the operator, retrying mends itself.
    cluster.sql("select postern.start_stream('shop to lines')")?;
    wait::until("it is well again", || probe::code(port, "/status") == 200)
        .with_context(|| format!("{:?}; {}", probe::get(port, "/status"), cluster.log_tail()))?;
    delivered(&cluster)
}

#[test]
fn the_port_opens_and_closes_on_reload_and_lets_in_whom_the_other_ports_do() -> Result<()> {
    let port = ports::free()?;
    let cluster = start("stream-http-reload", &[])?;
    let listens = || cluster.sql("select count(*) from postern.listeners where kind = 'stream'");
    assert_eq!(listens()?, "0");
    assert_eq!(probe::code(port, "/health"), 0);
    cluster.set("postern.stream_listen", &format!("127.0.0.1:{port}"))?.reload()?;
    wait::until("the port is open", || probe::code(port, "/health") == 200)?;
    cluster.set("postern.status_allow", "10.1.2.3")?.reload()?;
    wait::until("nobody is let in", || probe::code(port, "/health") == 0)?;
    assert_eq!(listens()?, "1");
    cluster.set("postern.status_allow", "all")?.reload()?;
    wait::until("everybody is let in", || probe::code(port, "/health") == 200)?;
    cluster.set("postern.stream_listen", "")?.reload()?;
    wait::until("the port is closed", || {
        probe::code(port, "/health") == 0 && listens().is_ok_and(|listens| listens == "0")
    })?;
    assert_eq!(probe::code(cluster.http_port, "/health"), 200, "the others stay");
    Ok(())
}

#[test]
fn the_status_ports_metrics_have_sources_and_streams_and_promtool_accepts_them() -> Result<()> {
    let (cluster, port) = with_port("stream-metrics")?;
    ten_events(&cluster)?;
    let text = probe::get(cluster.http_port, "/metrics")?.body;
    crate::http::promtool_accepts(&text)?;
    let source = "database=\"postgres\",source=\"shop\"";
    let stream = "database=\"postgres\",sink=\"lines\",source=\"shop\",stream=\"shop to lines\"";
    let lines = [
        format!("postern_source_up{{{source}}} 1"),
        format!("postern_source_state{{{source},state=\"streaming\"}} 1"),
        format!("postern_source_state{{{source},state=\"blocked\"}} 0"),
        format!("postern_source_events_total{{{source}}} 10"),
        format!("postern_source_errors_total{{{source}}} 0"),
        format!("postern_stream_up{{{stream}}} 1"),
        format!("postern_stream_events_total{{{stream}}} 10"),
        format!("postern_stream_skipped_total{{{stream}}} 0"),
        format!("postern_stream_lag_seconds{{{stream}}} 0"),
    ];
    has(&text, &lines);
    let number = |name: &str| probe::metric(&text, name);
    let delivered_to = number("postern_stream_delivered_bytes{")?;
    assert!(delivered_to > 0.0 && delivered_to <= number("postern_source_received_bytes{")?, "{text}");
    assert!(number("postern_stream_lag_bytes{")? < 16e6, "{text}");
    assert!(!text.contains("sink_event"), "psql-streamer's names are not for this page");

    let page = probe::get(port, "/metrics")?;
    assert!(page.head.contains("text/plain; version=0.0.4"), "{}", page.head);
    for (name, kind) in [("source", "postgres"), ("sink", "file")] {
        let of = if name == "source" { "shop" } else { "lines" };
        let labels = format!("database=\"postgres\",{name}Name=\"{of}\",{name}Type=\"{kind}\"");
        let lines = [
            format!("{name}_events{{{labels}}} 10"),
            format!("{name}_errors{{{labels}}} 0"),
            format!("{name}_event_processing_time_sec_bucket{{{labels},le=\"+Inf\"}} 10"),
            format!("{name}_event_processing_time_sec_count{{{labels}}} 10"),
        ];
        has(&page.body, &lines);
    }
    has(&page.body, &[format!("postern_stream_up{{{stream}}} 1")]);
    only_the_old_names_displease_promtool(&page.body)
}

#[test]
fn lag_grows_while_a_stream_is_stopped_and_no_other_port_is_open() -> Result<()> {
    let (cluster, port) = with_port("stream-http-lag")?;
    cluster.sql("create table t (v text)")?;
    to_file(&cluster, "{}")?;
    for other in ["postern.http_listen", "postern.status_listen", "postern.agent_listen"] {
        cluster.set(other, "")?;
    }
    cluster.reload()?;
    wait::until("the others are closed", || probe::code(cluster.http_port, "/health") == 0)?;
    let lag = || probe::metric(&probe::get(port, "/metrics")?.body, "postern_stream_lag_bytes{");
    wait::until("it keeps up", || lag().is_ok_and(|lag| lag < 1e6))?;
    cluster.sql("select postern.stop_stream('shop to lines')")?;
    wait::until("its worker has gone", || {
        cluster.sql("select coalesce(worker_pid, 0) from postern.sources").is_ok_and(|pid| pid == "0")
    })?;
    assert_eq!(probe::code(port, "/status"), 200, "what is not to run is not ill");
    cluster.sql("insert into t select repeat('x', 1000) from generate_series(1, 2000)")?;
    wait::until("lag is seen", || lag().is_ok_and(|lag| lag > 2e6))
        .with_context(|| format!("{:?}", lag()))?;
    // Nobody knows when that was committed: that is not "just now".
    let times = || probe::metric(&probe::get(port, "/metrics")?.body, "postern_stream_lag_seconds{");
    assert!(times().is_err(), "{:?}", times());
    let shown = || cluster.sql("select lag is null, lag_bytes > 2e6 from postern.streams");
    assert_eq!(shown()?, "t|t");
    cluster.sql("select postern.start_stream('shop to lines')")?;
    delivered(&cluster)?;
    wait::until("it has caught up", || lag().is_ok_and(|lag| lag < 1e6))?;
    wait::until("its time is known", || times().is_ok() && shown().is_ok_and(|shown| shown == "f|f"))
}

/// Their names are as they are; the text around them is right.
fn only_the_old_names_displease_promtool(text: &str) -> Result<()> {
    let said = probe::promtool(text)?;
    let names = ["source_events ", "source_errors ", "sink_events ", "sink_errors "];
    let times = ["source_event_processing_time_sec ", "sink_event_processing_time_sec "];
    for line in said.lines() {
        ensure!(names.iter().chain(&times).any(|name| line.starts_with(name)), "{said}\n{text}");
    }
    Ok(())
}

#[test]
fn debugging_logs_each_event_until_it_is_switched_off() -> Result<()> {
    let (cluster, port) = with_port("stream-http-debug")?;
    cluster.sql("create table t (id int primary key, secret text)")?;
    to_file(&cluster, "{}")?;
    let said = || cluster.log().matches("was given an event of public.t at ").count();
    let lines = |ids: std::ops::Range<i32>| -> Result<()> {
        for id in ids {
            cluster.sql(&format!("insert into t values ({id}, 'hunter2')"))?;
        }
        delivered(&cluster)
    };
    lines(0..3)?;
    assert_eq!(said(), 0);
    assert_eq!(probe::get(port, "/debug/on")?.body, "debug is on\n");
    lines(3..6)?;
    wait::until("three events are logged", || said() == 3).with_context(|| cluster.log_tail())?;
    cluster
        .wait_log("stream of \"shop\": debug: stream \"shop to lines\" was given an event of public.t at ")?;
    assert!(!cluster.log().contains("hunter2"), "what an event says is not for the log");
    has(&probe::get(port, "/metrics")?.body, &["postern_stream_debug 1".to_owned()]);
    // Another path and a failed request change nothing.
    assert_eq!(probe::code(port, "/debug/of"), 400);
    lines(6..7)?;
    wait::until("the fourth event is logged", || said() == 4).with_context(|| cluster.log_tail())?;
    assert_eq!(probe::get(port, "/debug/off")?.body, "debug is off\n");
    lines(7..10)?;
    // The line after them comes after theirs would have.
    assert_eq!(probe::get(port, "/debug/on")?.body, "debug is on\n");
    lines(10..11)?;
    wait::until("the next event is logged", || said() >= 5).with_context(|| cluster.log_tail())?;
    assert_eq!(said(), 5, "{}", cluster.log_tail());
    Ok(())
}
