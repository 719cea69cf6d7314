//! Pages of tables that were filled by hand.

use super::*;
use crate::stream::shared::Header;
use std::time::Duration;

fn tables() -> Shared {
    let sources: Vec<Source> = (0..3).map(|_| Source::default()).collect();
    let streams: Vec<Stream> = (0..4).map(|_| Stream::default()).collect();
    Shared {
        header: Box::leak(Box::new(Header::default())),
        sources: Box::leak(sources.into_boxed_slice()),
        streams: Box::leak(streams.into_boxed_slice()),
    }
}

fn add_source(shared: Shared, number: usize, name: &str, state: SourceState) -> &'static Source {
    let source = &shared.sources[number];
    source.database_name.set(b"shop");
    source.name.set(name.as_bytes());
    source.set_state(state);
    source
}

fn add_stream(
    shared: Shared,
    place: usize,
    source: usize,
    names: (&str, &str),
    state: StreamState,
) -> &'static Stream {
    let stream = &shared.streams[place];
    stream.name.set(names.0.as_bytes());
    stream.sink.set(names.1.as_bytes());
    stream.sink_kind.set(b"file");
    stream.set_source(source);
    stream.set_state(state);
    stream
}

fn get(shared: Shared, path: &str) -> (u16, String) {
    match page(shared, "GET", path) {
        Page::Text(code, text) => (code, text),
        other => panic!("{other:?}"),
    }
}

#[test]
fn health_is_answered_with_nothing_defined_and_with_everything_broken() {
    let shared = tables();
    assert_eq!(get(shared, "/health"), (200, "Alive and well\n".to_owned()));
    add_source(shared, 0, "a", SourceState::Blocked);
    assert_eq!(get(shared, "/health"), (200, "Alive and well\n".to_owned()));
}

#[test]
fn status_is_200_when_all_that_is_to_run_is_well() {
    let shared = tables();
    assert_eq!(get(shared, "/status"), (200, "no change stream is defined\n".to_owned()));
    add_source(shared, 0, "a", SourceState::Streaming).error.say("one that is over");
    add_stream(shared, 0, 0, ("a to b", "b"), StreamState::Running).error.say("one that is over");
    add_stream(shared, 1, 0, ("a to c", "c"), StreamState::Paused);
    add_source(shared, 1, "idle", SourceState::Stopped);
    add_source(shared, 2, "gone", SourceState::Dropped).error.say("no matter");
    let said = "source \"a\" of database \"shop\" is streaming\n\
                stream \"a to b\" of database \"shop\" is running\n\
                stream \"a to c\" of database \"shop\" is paused\n\
                source \"idle\" of database \"shop\" is stopped\n";
    assert_eq!(get(shared, "/status"), (200, said.to_owned()));
}

#[test]
fn status_is_500_with_a_line_for_each_error() {
    for (state, stream_state, error, said) in [
        (
            SourceState::Failed,
            StreamState::Waiting,
            "no\nWAL",
            "source \"a\" of database \"shop\" is failed: no WAL\n",
        ),
        (
            SourceState::Blocked,
            StreamState::Waiting,
            "lost",
            "source \"a\" of database \"shop\" is blocked: lost\n",
        ),
        (
            SourceState::Waiting,
            StreamState::Waiting,
            "no place",
            "source \"a\" of database \"shop\" is waiting: no place\n",
        ),
        (SourceState::Failed, StreamState::Waiting, "", "source \"a\" of database \"shop\" is failed\n"),
    ] {
        let shared = tables();
        add_source(shared, 0, "a", state).error.say(error);
        add_stream(shared, 0, 0, ("a to b", "b"), stream_state);
        assert_eq!(get(shared, "/status"), (500, said.to_owned()));
    }
    for state in [StreamState::Trouble, StreamState::Failed, StreamState::Blocked] {
        let shared = tables();
        add_source(shared, 0, "a", SourceState::Streaming);
        add_stream(shared, 0, 0, ("good", "b"), StreamState::Running);
        add_stream(shared, 1, 0, ("bad", "c"), state).error.say("disk full");
        let said = format!("stream \"bad\" of database \"shop\" is {}: disk full\n", state.name());
        assert_eq!(get(shared, "/status"), (500, said));
    }
}

#[test]
fn status_tells_of_what_finds_no_place_while_it_finds_none() {
    let shared = tables();
    shared.header.refuse();
    shared.header.no_worker_slot.store(1, Relaxed);
    shared.header.no_scout_slot.store(1, Relaxed);
    let (code, text) = get(shared, "/status");
    assert_eq!((code, text.lines().count()), (500, 3));
    assert!(text.contains("for a scout: raise max_worker_processes"), "{text}");
    assert!(
        text.contains("for the launcher: raise max_worker_processes") && text.contains("postern.max_streams"),
        "{text}"
    );
    // It is looked for more often than that: it has its place by now, or is no more.
    shared.header.no_worker_slot.store(0, Relaxed);
    shared.header.no_scout_slot.store(0, Relaxed);
    shared.header.refused_at.fetch_sub(61_000_000, Relaxed);
    assert_eq!(get(shared, "/status"), (200, "no change stream is defined\n".to_owned()));
    assert_eq!(shared.header.refused.load(Relaxed), 1);
}

#[test]
fn stats_have_a_line_for_each_source_and_each_sink() {
    let shared = tables();
    let source = add_source(shared, 0, "a", SourceState::Streaming);
    source.timings.add(Duration::from_millis(3));
    source.received.store(0x1_0000_0020, Relaxed);
    source.starts.store(2, Relaxed);
    add_source(shared, 1, "b", SourceState::Streaming);
    for (place, from) in [0, 1].into_iter().enumerate() {
        let stream =
            add_stream(shared, place, from, (&format!("{from} to lines"), "lines"), StreamState::Running);
        stream.events.store(5, Relaxed);
        stream.bytes.store(70, Relaxed);
    }
    let of_b = "source \"b\" of database \"shop\" is streaming: events 0, received 0/0, confirmed 0/0, buffered 0 bytes, \
                worker starts 0, errors 0\n";
    let said = format!(
        "source \"a\" of database \"shop\" is streaming: events 1, received 1/20, confirmed 0/0, buffered 0 bytes, \
         worker starts 2, errors 0\n{of_b}\
         sink \"lines\" of database \"shop\": streams 2, events 10, bytes 140, skipped 0, errors 0\n"
    );
    assert_eq!(get(shared, "/stats"), (200, said));
}

#[test]
fn debugging_is_switched_on_and_off_by_get_and_post_and_by_nothing_else() {
    let shared = tables();
    let is_on = || shared.header.debug.load(Relaxed) == 1;
    assert_eq!(get(shared, "/debug/on"), (200, "debug is on\n".to_owned()));
    assert!(is_on());
    for (method, path) in [("HEAD", "/debug/off"), ("PUT", "/debug/off"), ("get", "/debug/off")] {
        assert_eq!(page(shared, method, path), Page::Refused("GET, POST"));
    }
    for path in ["/debug/", "/debug/of", "/debug/off/", "/debug/OFF"] {
        assert_eq!(get(shared, path).0, 400, "{path}");
    }
    assert_eq!(get(shared, "/debug").0, 404);
    assert!(is_on());
    assert_eq!(page(shared, "POST", "/debug/off"), Page::Text(200, "debug is off\n".to_owned()));
    assert!(!is_on());
}

#[test]
fn other_paths_and_methods_are_refused() {
    let shared = tables();
    assert_eq!(page(shared, "GET", "/metrics"), Page::Metrics);
    for path in ["/health", "/status", "/stats", "/metrics", "/", ""] {
        assert_eq!(page(shared, "POST", path), Page::Refused("GET, HEAD"), "{path}");
    }
    for path in ["/", "", "/healthy", "/STATUS", "/stats/"] {
        assert_eq!(get(shared, path).0, 404, "{path}");
    }
}
