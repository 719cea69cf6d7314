//! The console over the wire: what a client sends and what it is told.

mod extended;

use super::super::rehearsal::Rehearsal;
use super::*;
use crate::wire::message::{put, read_error};
use proptest::prelude::*;

fn query(text: &str) -> Vec<u8> {
    message(b'Q', &[text.as_bytes(), b"\0"])
}

fn message(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    put(&mut out, tag, |out| out.extend(parts.concat()));
    out
}

fn parse(name: &str, text: &str) -> Vec<u8> {
    message(b'P', &[name.as_bytes(), b"\0", text.as_bytes(), b"\0\0\0"])
}

fn bind(portal: &str, statement: &str, formats: &[u16]) -> Vec<u8> {
    let codes: Vec<u8> = formats.iter().flat_map(|code| code.to_be_bytes()).collect();
    let count = (formats.len() as u16).to_be_bytes();
    message(b'B', &[portal.as_bytes(), b"\0", statement.as_bytes(), b"\0\0\0\0\0", &count, &codes])
}

fn describe(kind: u8, name: &str) -> Vec<u8> {
    message(b'D', &[&[kind], name.as_bytes(), b"\0"])
}

fn execute(portal: &str, rows: i32) -> Vec<u8> {
    message(b'E', &[portal.as_bytes(), b"\0", &rows.to_be_bytes()])
}

fn sync() -> Vec<u8> {
    message(b'S', &[])
}

/// All replies up to a step that is none.
fn answers(session: &mut Session, operator: &Rehearsal) -> (Vec<u8>, Step) {
    let mut all = Vec::new();
    loop {
        match session.step(operator) {
            Step::Reply(bytes) => all.extend(bytes),
            Step::Close(bytes) => {
                all.extend(bytes);
                return (all, Step::Close(Vec::new()));
            }
            step => return (all, step),
        }
    }
}

/// The messages of an answer, each in a word or two.
fn told(bytes: &[u8]) -> Vec<String> {
    let mut told = Vec::new();
    let mut rest = bytes;
    while let Some((tag, after)) = rest.split_first() {
        let length = u32::from_be_bytes(*after.first_chunk().unwrap()) as usize;
        let body = &after[4..length];
        let text = String::from_utf8_lossy(body);
        told.push(match tag {
            b'E' | b'N' => {
                let (sqlstate, message) = read_error(body);
                format!("{} {} {sqlstate} {message}", *tag as char, text[1..].split('\0').next().unwrap())
            }
            b'C' | b'Z' => format!("{} {}", *tag as char, text.trim_end_matches('\0')),
            b'T' | b'D' | b't' => format!("{} {}", *tag as char, u16::from_be_bytes([body[0], body[1]])),
            _ => (*tag as char).to_string(),
        });
        rest = &after[length..];
    }
    told
}

fn said(access: Access, bytes: &[&[u8]]) -> Vec<String> {
    let mut session = Session::new(access);
    session.receive(&bytes.concat());
    told(&answers(&mut session, &Rehearsal::default()).0)
}

#[test]
fn the_greeting_is_pgbouncers_and_says_who_may_change_things() {
    let bytes = greeting(Access::Admin, 7, &[1, 2, 3, 4]);
    assert_eq!(told(&bytes), [vec!["S"; 9], vec!["K", "Z I"]].concat());
    let text = String::from_utf8_lossy(&bytes);
    for pair in ["server_version\x001.24.1/postern\0", "client_encoding\0UTF8\0", "is_superuser\0on\0"] {
        assert!(text.contains(pair), "{pair:?}");
    }
    assert!(bytes.ends_with(b"K\0\0\0\x0c\0\0\0\x07\x01\x02\x03\x04Z\0\0\0\x05I"));
    assert!(String::from_utf8_lossy(&greeting(Access::Monitor, 7, &[])).contains("is_superuser\0off\0"));
}

#[test]
fn a_simple_show_is_answered_byte_for_byte() {
    let mut session = Session::new(Access::Monitor);
    session.receive(&query("SHOW STATE;"));
    let (bytes, step) = answers(&mut session, &Rehearsal::default());
    let mut expected = Vec::new();
    expected.extend(b"T\0\0\0\x34\0\x02key\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0");
    expected.extend(b"value\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0");
    expected.extend(b"D\0\0\0\x17\0\x02\0\0\0\x06active\0\0\0\x03yes");
    expected.extend(b"D\0\0\0\x16\0\x02\0\0\0\x06paused\0\0\0\x02no");
    expected.extend(b"D\0\0\0\x19\0\x02\0\0\0\x09suspended\0\0\0\x02no");
    expected.extend(b"C\0\0\0\x09SHOW\0Z\0\0\0\x05I");
    assert_eq!(String::from_utf8_lossy(&bytes), String::from_utf8_lossy(&expected));
    assert_eq!(bytes, expected);
    assert_eq!(step, Step::More);
}

#[test]
fn bytes_that_come_one_by_one_are_the_same_messages() {
    let all =
        [query("show version"), parse("", "show pools"), bind("", "", &[]), execute("", 0), sync()].concat();
    let operator = Rehearsal::default();
    let mut session = Session::new(Access::Monitor);
    let mut slowly = Vec::new();
    for byte in &all {
        session.receive(&[*byte]);
        slowly.extend(answers(&mut session, &operator).0);
    }
    let mut session = Session::new(Access::Monitor);
    session.receive(&all);
    assert_eq!(answers(&mut session, &operator).0, slowly);
}

#[test]
fn every_command_has_pgbouncers_tag() {
    let operator = Rehearsal::default();
    for (text, tag, note) in [
        ("PAUSE", "PAUSE", "pause -"),
        ("pause app;", "PAUSE", "pause app"),
        ("RESUME \"app\"", "RESUME", "resume app"),
        ("reconnect", "RECONNECT", "reconnect -"),
        ("kill app", "KILL", "kill app"),
        ("wait_close app", "WAIT_CLOSE", "wait_close app"),
        ("enable app", "ENABLE", "enable app"),
        ("disable app", "DISABLE", "disable app"),
        ("KILL_CLIENT 1", "KILL_CLIENT", "kill_client 1 -"),
        ("reload", "RELOAD", "reload -"),
        ("SET pool_mode = 'session'", "SET pool_mode=session", "set pool_mode Some(\"session\") -"),
        ("RESET pool_mode", "SET pool_mode=DEFAULT", "set pool_mode None -"),
        ("shutdown wait_for_clients", "SHUTDOWN", "shutdown WaitForClients -"),
    ] {
        let mut session = Session::new(Access::Admin);
        session.receive(&query(text));
        let (bytes, step) = answers(&mut session, &operator);
        assert_eq!(told(&bytes), [format!("C {tag}"), "Z I".to_owned()], "{text}");
        assert_eq!(operator.told.borrow().last().unwrap(), note, "{text}");
        assert_eq!(step, Step::More);
    }
}

#[test]
fn an_immediate_shutdown_is_the_last_answer() {
    let mut session = Session::new(Access::Admin);
    session.receive(&query("shutdown; show pools"));
    let (bytes, step) = answers(&mut session, &Rehearsal::default());
    assert_eq!(told(&bytes), ["C SHUTDOWN", "Z I"]);
    assert_eq!(step, Step::Close(Vec::new()));
    session.receive(&query("show pools"));
    assert_eq!(session.step(&Rehearsal::default()), Step::Close(Vec::new()));
}

#[test]
fn a_wrong_command_is_refused_in_pgbouncers_words() {
    for (text, error) in [
        ("show pool;", "42601 invalid command 'show pool;', use SHOW HELP;"),
        ("select * from pg_class", "42601 invalid command 'select * from pg_class', use SHOW HELP;"),
        ("pause nope", "3D000 no such database: nope"),
        ("pause postern", "0A000 cannot pause admin db: postern"),
        ("kill", "42601 a database is required"),
        ("kill_client 9", "42704 client not found"),
        ("kill_client x", "22023 invalid client pointer supplied"),
        ("set nope = 1", "42704 unrecognized configuration parameter \"nope\""),
        ("suspend", "0A000 SUSPEND is not supported"),
        ("pause 'x", "42601 unterminated quoted string"),
        ("deallocate nope", "26000 prepared statement \"nope\" does not exist"),
    ] {
        // PgBouncer repeats the query as it came; here it is the command that is wrong.
        let error = error.replace(";', use", "', use");
        assert_eq!(
            said(Access::Admin, &[&query(text)]),
            [format!("E ERROR {error}"), "Z I".into()],
            "{text}"
        );
    }
    let mut session = Session::new(Access::Monitor);
    session.receive(&query("show pool"));
    let (bytes, _) = answers(&mut session, &Rehearsal::default());
    assert!(String::from_utf8_lossy(&bytes).contains("HPossible are SHOW HELP, CONFIG,"));
}

#[test]
fn a_monitor_may_only_look() {
    for text in
        ["pause", "resume app", "kill app", "reload", "set pool_mode = session", "shutdown", "show fds"]
    {
        assert_eq!(
            said(Access::Monitor, &[&query(text)]),
            ["E ERROR 42501 admin access needed", "Z I"],
            "{text}"
        );
    }
    for text in ["show pools", "show help", "set datestyle to iso", "begin", "select 1", "show timezone", ""]
    {
        let said = said(Access::Monitor, &[&query(text)]);
        assert!(said.iter().all(|told| !told.starts_with('E')), "{text}: {said:?}");
    }
}

#[test]
fn several_commands_are_answered_in_turn_until_one_fails() {
    assert_eq!(
        said(Access::Admin, &[&query("show version; reload; kill nope; reload")]),
        ["T 1", "D 1", "C SHOW", "C RELOAD", "E ERROR 3D000 no such database: nope", "Z I"]
    );
    assert_eq!(said(Access::Admin, &[&query(" -- nothing\n;")]), ["I", "Z I"]);
    assert_eq!(
        said(Access::Admin, &[&query("reload; relaod")])[0],
        "E ERROR 42601 invalid command 'relaod', use SHOW HELP;",
        "nothing runs when one cannot be read"
    );
}

#[test]
fn transactions_are_taken_for_what_they_are_not() {
    assert_eq!(
        said(Access::Admin, &[&query("begin"), &query("show version"), &query("commit")]),
        ["C BEGIN", "Z T", "T 1", "D 1", "C SHOW", "Z T", "C COMMIT", "Z I"]
    );
    assert_eq!(
        said(Access::Admin, &[&query("begin; nonsense"), &query("begin; begin")]),
        [
            "E ERROR 42601 invalid command 'nonsense', use SHOW HELP;",
            "Z I",
            "C BEGIN",
            "N WARNING 25001 there is already a transaction in progress",
            "C BEGIN",
            "Z T"
        ]
    );
    assert_eq!(
        said(Access::Admin, &[&query("begin; reload"), &query("rollback"), &query("end")]),
        [
            "C BEGIN",
            "C RELOAD",
            "Z T",
            "N WARNING 01000 commands of the console are not rolled back",
            "C ROLLBACK",
            "Z I",
            "N WARNING 25P01 there is no transaction in progress",
            "C COMMIT",
            "Z I"
        ]
    );
    assert_eq!(said(Access::Admin, &[&query("set x = 1")])[1], "Z I");
    assert_eq!(
        said(Access::Monitor, &[&query("SET extra_float_digits = 3")]),
        ["N NOTICE 00000 SET ignored", "C SET", "Z I"]
    );
    assert_eq!(
        said(Access::Monitor, &[&query("SHOW HELP")]),
        ["N NOTICE 00000 Console usage", "C SHOW", "Z I"]
    );
}

#[test]
fn a_pause_is_answered_when_everything_is_paused() {
    let operator = Rehearsal::default();
    operator.progress.set(Progress::Pending);
    let mut session = Session::new(Access::Admin);
    session.receive(&[query("show version; pause app; reload"), query("show version")].concat());
    let (bytes, step) = answers(&mut session, &operator);
    assert_eq!((told(&bytes), step), (vec!["T 1".into(), "D 1".into(), "C SHOW".into()], Step::Wait));
    assert_eq!(session.step(&operator), Step::Wait);
    assert_eq!(*operator.told.borrow(), ["pause app"], "asked once");
    operator.progress.set(Progress::Done);
    let (bytes, step) = answers(&mut session, &operator);
    assert_eq!(told(&bytes), ["C PAUSE", "C RELOAD", "Z I", "T 1", "D 1", "C SHOW", "Z I"]);
    assert_eq!(step, Step::More);
}

#[test]
fn a_pause_that_is_undone_or_canceled_is_an_error() {
    let operator = Rehearsal::default();
    operator.progress.set(Progress::Pending);
    let mut session = Session::new(Access::Admin);
    session.cancel();
    session.receive(&query("pause; reload"));
    assert_eq!(session.step(&operator), Step::Wait, "what is canceled must have begun");
    session.cancel();
    let (bytes, _) = answers(&mut session, &operator);
    assert_eq!(told(&bytes), ["E ERROR 57014 canceling statement due to user request", "Z I"]);

    session.receive(&[parse("", "wait_close"), bind("", "", &[]), execute("", 0), sync()].concat());
    let (bytes, step) = answers(&mut session, &operator);
    assert_eq!((told(&bytes), step), (vec!["1".into(), "2".into()], Step::Wait));
    operator.progress.set(Progress::Undone);
    let (bytes, _) = answers(&mut session, &operator);
    assert_eq!(told(&bytes), ["E ERROR 55000 WAIT_CLOSE was undone by another command", "Z I"]);
}

#[test]
fn an_extended_pause_completes_before_its_sync() {
    let operator = Rehearsal::default();
    operator.progress.set(Progress::Pending);
    let mut session = Session::new(Access::Admin);
    session.receive(
        &[parse("", "pause"), bind("", "", &[]), describe(b'P', ""), execute("", 0), sync()].concat(),
    );
    assert_eq!(told(&answers(&mut session, &operator).0), ["1", "2", "n"]);
    operator.progress.set(Progress::Done);
    assert_eq!(told(&answers(&mut session, &operator).0), ["C PAUSE", "Z I"]);
}

fn any_message() -> impl Strategy<Value = Vec<u8>> {
    let text = prop::sample::select(vec![
        "show pools",
        "show state",
        "show stats; show version",
        "begin",
        "commit",
        "rollback",
        "pause",
        "wait_close app",
        "kill",
        "",
        ";",
        "deallocate all",
        "discard all",
        "nonsense",
        "select 1",
        "'",
    ]);
    let name = prop::sample::select(vec!["", "a", "b"]);
    prop_oneof![
        text.clone().prop_map(query),
        (name.clone(), text).prop_map(|(name, text)| parse(name, text)),
        (name.clone(), name.clone(), prop::collection::vec(0u16..3, 0..3))
            .prop_map(|(portal, statement, formats)| bind(portal, statement, &formats)),
        (any::<bool>(), name.clone())
            .prop_map(|(portal, name)| describe(if portal { b'P' } else { b'S' }, name)),
        (name.clone(), -1i32..4).prop_map(|(portal, rows)| execute(portal, rows)),
        (any::<bool>(), name).prop_map(|(portal, name)| message(
            b'C',
            &[if portal { b"P" } else { b"S" }, name.as_bytes(), b"\0"]
        )),
        Just(sync()),
        Just(message(b'H', &[])),
        (prop::sample::select(b"QPBDECFdcf".to_vec()), prop::collection::vec(any::<u8>(), 0..20))
            .prop_map(|(tag, body)| message(tag, &[&body])),
    ]
}

proptest! {
    #[test]
    fn any_bytes_are_answered_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut session = Session::new(Access::Admin);
        session.receive(&bytes);
        let (out, step) = answers(&mut session, &Rehearsal::default());
        told(&out);
        prop_assert_ne!(step, Step::Wait);
    }

    #[test]
    fn every_query_and_sync_has_one_ready(
        messages in prop::collection::vec(any_message(), 0..30), progress in 0usize..3,
    ) {
        let operator = Rehearsal::default();
        operator.progress.set([Progress::Done, Progress::Pending, Progress::Undone][progress]);
        let mut session = Session::new(Access::Admin);
        let mut out = Vec::new();
        let mut expected = 0;
        let mut skipping = false;
        for bytes in &messages {
            session.receive(bytes);
            loop {
                let (said, step) = answers(&mut session, &operator);
                out.extend(said);
                match step {
                    Step::Wait => session.cancel(),
                    Step::More => break,
                    other => panic!("{other:?}"),
                }
            }
            let before = skipping;
            skipping = session.skipping;
            expected += usize::from(bytes[0] == b'S' || (!before && matches!(bytes[0], b'Q' | b'F')));
        }
        let ready = told(&out).iter().filter(|told| told.starts_with('Z')).count();
        prop_assert_eq!(ready, expected);
    }
}
