//! The file sink on real files in a directory of the test's own.

use super::*;
use crate::stream::sink;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// A directory that goes with the test.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("postern-file-{}-{number}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn path(&self) -> PathBuf {
        self.0.join("events.jsonl")
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.0.join(name)).unwrap()
    }

    fn names(&self) -> Vec<String> {
        let names = fs::read_dir(&self.0).unwrap();
        let mut names: Vec<_> =
            names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn sink(&self, more: Value) -> File {
        self.build(more, Arc::new(|_| {}))
    }

    fn build(&self, more: Value, log: Log) -> File {
        let mut options = json!({"path": self.path(), "sync": 0});
        for (name, value) in more.as_object().unwrap() {
            options[name] = value.clone();
        }
        let map = options.as_object().unwrap();
        sink::check("file", map).unwrap();
        let setting = Setting { log, ..self.setting() };
        File::new(Plan::read(&mut Options::new(map)).unwrap(), &setting)
    }

    fn setting(&self) -> Setting {
        Setting { delivered: 0, buffer_size: 1 << 20, stream: "s".to_owned(), log: Arc::new(|_| {}) }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn give(sink: &mut File, serial: u64, payload: &str) -> Result<Given, Failure> {
    sink.give(&Event { serial, schema: "public", table: "t", key: None, payload: payload.as_bytes() })
}

fn delivered(sink: &mut File) -> u64 {
    sink.poll(Duration::ZERO).unwrap().delivered
}

#[test]
fn events_are_lines_and_delivered_when_they_are_synced() {
    let place = Place::new();
    let mut sink = place.sink(json!({"sync": "1h"}));
    assert_eq!(place.names(), [""; 0]);
    give(&mut sink, 1, "{\"a\":1}").unwrap();
    give(&mut sink, 2, "{\n\"b\":\n2}").unwrap();
    sink.flush().unwrap();
    assert_eq!(place.read("events.jsonl"), "{\"a\":1}\n{ \"b\": 2}\n");
    assert_eq!(delivered(&mut sink), 0);
    sink.plan.sync = Duration::from_millis(1);
    assert_eq!(sink.poll(Duration::from_secs(1)).unwrap().delivered, 2);
}

#[test]
fn a_poll_waits_for_the_sync_and_no_longer_than_it_may() {
    let place = Place::new();
    let mut sink = place.sink(json!({"sync": "4s"}));
    give(&mut sink, 1, "{}").unwrap();
    let started = Instant::now();
    assert_eq!(sink.poll(Duration::from_millis(5)).unwrap().delivered, 0);
    assert!(started.elapsed() < Duration::from_millis(3900));
    assert_eq!(sink.poll(Duration::from_secs(60)).unwrap().delivered, 1);
    assert!(started.elapsed() < Duration::from_secs(30));
    // Nothing is out: nothing to wait for.
    let started = Instant::now();
    sink.poll(Duration::from_secs(60)).unwrap();
    assert!(started.elapsed() < Duration::from_secs(30));
}

#[test]
fn a_full_file_is_rotated_between_two_lines_and_the_oldest_go() {
    let place = Place::new();
    let mut sink = place.sink(json!({"rotate_size": 20, "keep": 2}));
    for serial in 1..=9 {
        give(&mut sink, serial, &format!("{{\"n\":{serial}}}")).unwrap();
    }
    assert_eq!(delivered(&mut sink), 9);
    assert_eq!(place.names(), ["events.jsonl", "events.jsonl.000003", "events.jsonl.000004"]);
    assert_eq!(place.read("events.jsonl.000003"), "{\"n\":5}\n{\"n\":6}\n");
    assert_eq!(place.read("events.jsonl"), "{\"n\":9}\n");
    drop(sink);
    // Numbers rise on after a restart, and a line that is larger than a file has one for itself.
    let mut sink = place.sink(json!({"rotate_size": 20}));
    give(&mut sink, 10, &format!("{{\"long\":\"{}\"}}", "x".repeat(100))).unwrap();
    give(&mut sink, 11, "{}").unwrap();
    assert_eq!(delivered(&mut sink), 11);
    assert_eq!(place.names().len(), 5);
    assert_eq!(place.read("events.jsonl.000005"), "{\"n\":9}\n");
    assert!(place.read("events.jsonl.000006").len() > 100);
}

#[test]
fn an_old_file_is_rotated_without_any_event() {
    let place = Place::new();
    let mut sink = place.sink(json!({"rotate_age": "20ms"}));
    give(&mut sink, 1, "{}").unwrap();
    let started = Instant::now();
    while place.names().len() < 2 {
        assert_eq!(sink.poll(Duration::from_millis(1)).unwrap().delivered, 1);
        assert!(started.elapsed() < Duration::from_secs(10));
    }
    assert_eq!(place.read("events.jsonl.000001"), "{}\n");
    // The new one is empty, however old.
    while started.elapsed() < Duration::from_millis(60) {
        sink.poll(Duration::from_millis(1)).unwrap();
    }
    assert_eq!(place.names().len(), 2);
}

#[test]
fn what_a_crash_left_of_a_line_is_cut_off() {
    let place = Place::new();
    let long = "x".repeat(200_000);
    for (left, whole) in
        [("{}\n{\"cut", "{}\n"), ("{\"cut", ""), ("{}\n", "{}\n"), (&*format!("{{}}\n{long}"), "{}\n")]
    {
        fs::write(place.path(), left).unwrap();
        let lines = Arc::new(parking_lot::Mutex::new(Vec::new()));
        let log = lines.clone();
        let mut sink = place.build(json!({}), Arc::new(move |line| log.lock().push(line)));
        give(&mut sink, 1, "{\"next\":1}").unwrap();
        assert_eq!(delivered(&mut sink), 1);
        assert_eq!(place.read("events.jsonl"), format!("{whole}{{\"next\":1}}\n"));
        assert_eq!(lines.lock().len(), usize::from(left != whole), "{:?}", lines.lock());
    }
}

#[test]
fn a_full_disk_is_a_failure_that_passes_and_names_the_path() {
    let place = Place::new();
    let mut sink = place.sink(json!({"sync": "1h"}));
    give(&mut sink, 1, "{\"n\":1}").unwrap();
    sink.sync().unwrap();
    assert_eq!(delivered(&mut sink), 1);
    give(&mut sink, 2, "{\"n\":2}").unwrap();
    sink.flush().unwrap();
    // Written but not safe; then every further write finds no space.
    let full = fs::OpenOptions::new().append(true).open("/dev/full").unwrap();
    sink.segment.as_mut().unwrap().replace_file(full);
    give(&mut sink, 3, "{\"n\":3}").unwrap();
    let failure = sink.flush().unwrap_err();
    assert!(!failure.lasting);
    let path = place.path();
    assert!(failure.message.contains(path.to_str().unwrap()), "{failure}");
    assert!(failure.message.contains("No space left"), "{failure}");
    drop(sink);
    assert!(place.read("events.jsonl").starts_with("{\"n\":1}\n"));
}

#[test]
fn what_failed_before_it_was_safe_is_cut_off_again() {
    let place = Place::new();
    let mut sink = place.sink(json!({"sync": "1h"}));
    give(&mut sink, 1, "{\"n\":1}").unwrap();
    sink.sync().unwrap();
    give(&mut sink, 2, "{\"n\":2}").unwrap();
    sink.flush().unwrap();
    let failure = sink.failed(&io::ErrorKind::StorageFull.into());
    assert!(!failure.lasting);
    assert_eq!(place.read("events.jsonl"), "{\"n\":1}\n");
}

#[test]
fn two_sinks_do_not_write_one_file() {
    let place = Place::new();
    let mut first = place.sink(json!({}));
    give(&mut first, 1, "{}").unwrap();
    let mut second = place.sink(json!({}));
    let failure = give(&mut second, 1, "{}").unwrap_err();
    assert!(failure.message.contains("somebody else"), "{failure}");
    drop(first);
    give(&mut second, 1, "{}").unwrap();
    assert_eq!(delivered(&mut second), 1);
}

#[test]
fn a_directory_that_goes_away_is_a_failure_that_names_the_path() {
    let place = Place::new();
    let mut sink = place.sink(json!({}));
    fs::remove_dir_all(&place.0).unwrap();
    let failure = give(&mut sink, 1, "{}").unwrap_err();
    assert!(!failure.lasting && failure.message.contains("events.jsonl"), "{failure}");
}

#[test]
fn a_file_that_is_renamed_keeps_its_lines_and_one_that_is_removed_is_no_delivery() {
    let place = Place::new();
    let mut sink = place.sink(json!({}));
    give(&mut sink, 1, "{}").unwrap();
    sink.poll(Duration::ZERO).unwrap();
    let elsewhere = place.0.join("elsewhere");
    fs::rename(place.path(), &elsewhere).unwrap();
    give(&mut sink, 2, "{}").unwrap();
    assert_eq!(sink.poll(Duration::ZERO).unwrap().delivered, 2);
    give(&mut sink, 3, "{}").unwrap();
    assert_eq!(sink.poll(Duration::ZERO).unwrap().delivered, 3);
    let lines = |path: &std::path::Path| fs::read_to_string(path).unwrap().lines().count();
    assert_eq!((lines(&elsewhere), lines(&place.path())), (2, 1));
    fs::remove_file(place.path()).unwrap();
    let failed = give(&mut sink, 4, "{}").and_then(|_| sink.poll(Duration::ZERO).map(|_| Given::Taken));
    let failure = failed.unwrap_err();
    assert!(!failure.lasting && failure.message.contains("removed"), "{failure}");
}

#[test]
fn each_mistake_names_its_option() {
    let place = Place::new();
    let check = |options: Value| sink::check("file", options.as_object().unwrap()).unwrap_err().to_string();
    assert_eq!(check(json!({})), "option \"path\" is required");
    assert!(check(json!({"path": "events"})).contains("absolute"));
    assert!(check(json!({"path": "/"})).contains("absolute"));
    // What is not there on this machine may be on another: it is said when the sink is made.
    let setting = place.setting();
    let make = |path: Value| {
        let options = json!({"path": path});
        sink::check("file", options.as_object().unwrap()).unwrap();
        sink::make("file", options.as_object().unwrap(), &setting).err().unwrap().to_string()
    };
    assert!(make(json!("/no/such/place/x")).contains("\"/no/such/place\", which is no directory"));
    assert!(make(json!(place.0)).contains("no file"));
    assert!(make(json!("/dev/full")).contains("no file"));
    assert!(check(json!({"path": place.path(), "mode": "0999"})).contains("octal"));
    assert!(check(json!({"path": place.path(), "mode": "0400"})).contains("octal"));
    assert!(check(json!({"path": place.path(), "rotate": 1})).contains("is not known"));
}

#[test]
fn a_file_has_the_mode_that_was_asked_for_whatever_the_umask_and_one_that_was_there_keeps_its_own() {
    let place = Place::new();
    let mode = |name: &str| fs::metadata(place.0.join(name)).unwrap().permissions().mode() & 0o777;
    // More than any usual umask lets through.
    let mut sink = place.sink(json!({"mode": "0666", "rotate_size": 10}));
    for serial in 1..=2 {
        give(&mut sink, serial, "{\"n\":123}").unwrap();
    }
    drop(sink);
    let names = place.names();
    assert_eq!(names.len(), 2, "{names:?}");
    names.iter().for_each(|name| assert_eq!(mode(name), 0o666, "{name}"));
    let mut sink = place.sink(json!({}));
    give(&mut sink, 1, "{}").unwrap();
    assert_eq!(mode("events.jsonl"), 0o666);
    // Nobody but the owner unless it was asked for.
    fs::remove_file(place.path()).unwrap();
    let mut sink = place.sink(json!({}));
    give(&mut sink, 1, "{}").unwrap();
    assert_eq!(mode("events.jsonl"), 0o600);
}

#[test]
fn what_was_synced_before_a_failure_is_told_before_it() {
    let place = Place::new();
    let mut sink = place.sink(json!({"rotate_size": 10, "sync": "1h"}));
    assert_eq!(give(&mut sink, 1, "{\"first\":1}"), Ok(Given::Taken));
    // The first file is synced, and then there is no directory in which it could be renamed.
    let aside = place.0.with_extension("aside");
    fs::rename(&place.0, &aside).unwrap();
    assert_eq!(give(&mut sink, 2, "{\"second\":2}"), Ok(Given::Full));
    assert_eq!(sink.flush(), Ok(()));
    assert_eq!(sink.poll(Duration::ZERO).unwrap().delivered, 1);
    assert!(sink.poll(Duration::ZERO).unwrap_err().message.contains("cannot write"));
    drop(sink);
    fs::rename(&aside, &place.0).unwrap();
    assert_eq!(place.read("events.jsonl"), "{\"first\":1}\n");
}
