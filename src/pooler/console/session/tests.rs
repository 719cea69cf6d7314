//! The console over the wire: what a client sends and what it is told.

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

#[test]
fn a_driver_prepares_describes_and_executes() {
    assert_eq!(
        said(
            Access::Monitor,
            &[
                &parse("s1", "SHOW POOLS"),
                &describe(b'S', "s1"),
                &sync(),
                &bind("", "s1", &[1]),
                &execute("", 0),
                &sync(),
                &message(b'C', &[b"Ss1\0"]),
                &sync(),
            ]
        ),
        ["1", "t 0", "T 17", "Z I", "2", "D 17", "D 17", "C SHOW", "Z I", "3", "Z I"]
    );
    assert_eq!(
        said(
            Access::Monitor,
            &[&parse("", ""), &describe(b'S', ""), &bind("", "", &[]), &execute("", 0), &sync()]
        ),
        ["1", "t 0", "n", "2", "I", "Z I"],
        "an empty query"
    );
}

#[test]
fn results_are_binary_where_that_is_asked_for() {
    let mut session = Session::new(Access::Monitor);
    session.receive(
        &[parse("", "show lists"), bind("", "", &[0, 1]), describe(b'P', ""), execute("", 1)].concat(),
    );
    let (bytes, _) = answers(&mut session, &Rehearsal::default());
    let mut expected = b"1\0\0\0\x042\0\0\0\x04T\0\0\0\x35\0\x02".to_vec();
    expected.extend(b"list\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0");
    expected.extend(b"items\0\0\0\0\0\0\0\0\0\0\x17\0\x04\xff\xff\xff\xff\0\x01");
    expected.extend(b"D\0\0\0\x1b\0\x02\0\0\0\x09databases\0\0\0\x04\0\0\0\x02");
    expected.extend(b"s\0\0\0\x04");
    assert_eq!(bytes, expected);
}

#[test]
fn a_row_limit_suspends_a_portal_and_goes_on_in_it() {
    let some = |portal: &str, rows| execute(portal, rows);
    assert_eq!(
        said(
            Access::Monitor,
            &[
                &parse("", "show state"),
                &bind("p", "", &[]),
                &some("p", 2),
                &some("p", 1),
                &some("p", 2),
                &some("p", 0),
                &sync(),
                &some("p", 1),
                &sync(),
            ]
        ),
        [
            "1",
            "2",
            "D 2",
            "D 2",
            "s",
            "D 2",
            "s",
            "C SHOW",
            "C SHOW",
            "Z I",
            "E ERROR 34000 portal \"p\" does not exist",
            "Z I"
        ]
    );
    assert_eq!(
        said(
            Access::Monitor,
            &[
                &query("begin"),
                &parse("", "show state"),
                &bind("p", "", &[]),
                &some("p", 2),
                &sync(),
                &some("p", 9),
                &sync(),
                &query("commit"),
                &some("p", 9),
                &sync()
            ]
        )[8..],
        ["D 2", "C SHOW", "Z T", "C COMMIT", "Z I", "E ERROR 34000 portal \"p\" does not exist", "Z I"],
        "a portal lives as long as its transaction block"
    );
}

#[test]
fn after_an_error_everything_up_to_the_sync_is_passed_over() {
    let types = message(b'P', &[b"\0show pools\0\0\x01\0\0\0\x17"]);
    let valued = message(b'B', &[b"\0\0\0\0\0\x01\0\0\0\x01x\0\0"]);
    let ok = parse("", "show pools");
    let twice = [parse("a", "show pools"), parse("a", "show pools")].concat();
    for (messages, error) in [
        (parse("", "nonsense"), "42601 invalid command 'nonsense', use SHOW HELP;"),
        (parse("", "pause $1"), "42P02 the console takes no parameters"),
        (types, "42P02 the console takes no parameters"),
        (parse("", "reload; reload"), "42601 cannot insert multiple commands into a prepared statement"),
        (message(b'P', &[b"\0\xff\0\0\0"]), "22021 invalid byte sequence for encoding \"UTF8\""),
        (message(b'P', &[b"\0"]), "08P01 invalid message format"),
        (twice, "42P05 prepared statement \"a\" already exists"),
        (bind("", "", &[]), "26000 prepared statement \"\" does not exist"),
        (
            [&ok[..], &valued].concat(),
            "08P01 bind message supplies 1 parameters, but prepared statement \"\" requires 0",
        ),
        (
            [&ok[..], &bind("", "", &[0, 1])].concat(),
            "08P01 bind message has 2 result formats but query has 17 columns",
        ),
        ([&ok[..], &bind("", "", &[2])].concat(), "22023 unsupported format code: 2"),
        ([&ok[..], &bind("p", "", &[]), &bind("p", "", &[])].concat(), "42P03 portal \"p\" already exists"),
        (execute("x", 0), "34000 portal \"x\" does not exist"),
        (describe(b'P', "x"), "34000 portal \"x\" does not exist"),
        (
            [&parse("", "reload")[..], &bind("", "", &[]), &execute("", 0), &execute("", 0)].concat(),
            "55000 portal \"\" cannot be run",
        ),
    ] {
        let said = said(
            Access::Admin,
            &[&messages, &execute("", 0), &query("show pools"), &sync(), &query("select 1")],
        );
        let from = said.iter().position(|told| told.starts_with('E')).unwrap();
        assert_eq!(
            said[from..],
            [&format!("E ERROR {error}"), "Z I", "T 1", "D 1", "C SELECT 1", "Z I"],
            "{error}"
        );
    }
}

#[test]
fn what_the_server_would_hang_up_on_is_fatal() {
    let long = |length: usize| {
        let mut bytes = vec![b'Q'];
        bytes.extend((length as u32 - 1).to_be_bytes());
        bytes
    };
    for (bytes, error) in [
        (vec![b'p', 0, 0, 0, 4], "08P01 invalid frontend message type 112"),
        (vec![b'S', 0, 0, 0, 3], "08P01 invalid message length"),
        (long(MESSAGE_MAX + 1), "08P01 message of 65537 bytes is too long for the console"),
        (vec![b'd'; Inbox::ahead_max(MESSAGE_MAX) + 1], "08P01 more is sent than the console reads ahead"),
    ] {
        let mut session = Session::new(Access::Admin);
        session.receive(&bytes);
        let (bytes, step) = answers(&mut session, &Rehearsal::default());
        assert_eq!(told(&bytes), [format!("E FATAL {error}")]);
        assert_eq!(step, Step::Close(Vec::new()));
    }
    let mut longest = query(&" ".repeat(MESSAGE_MAX - 6));
    assert_eq!(longest.len(), MESSAGE_MAX);
    longest.extend(query("show version"));
    assert_eq!(said(Access::Admin, &[&longest]), ["I", "Z I", "T 1", "D 1", "C SHOW", "Z I"]);
}

#[test]
fn what_belongs_to_no_query_is_passed_over_or_refused() {
    assert_eq!(said(Access::Admin, &[&message(b'c', &[]), &message(b'H', &[])]), Vec::<String>::new());
    assert_eq!(
        said(Access::Admin, &[&message(b'F', &[])]),
        ["E ERROR 0A000 a function call is not supported", "Z I"]
    );
    let mut session = Session::new(Access::Admin);
    session.receive(&[query("reload"), message(b'X', &[]), query("pause")].concat());
    let operator = Rehearsal::default();
    let (bytes, step) = answers(&mut session, &operator);
    assert_eq!((told(&bytes).len(), step), (2, Step::Close(Vec::new())));
    assert_eq!(*operator.told.borrow(), ["reload -"]);
}

#[test]
fn statements_and_portals_are_bounded() {
    let operator = Rehearsal::default();
    let mut session = Session::new(Access::Monitor);
    let mut fill = |what: &dyn Fn(usize) -> Vec<u8>, most: usize| {
        for number in 0..=most {
            session.receive(&what(number));
            let told = told(&answers(&mut session, &operator).0);
            let refused = told[0].starts_with("E ERROR 53400");
            assert_eq!(refused, number == most, "{number}: {told:?}");
        }
        session.receive(&sync());
        answers(&mut session, &operator);
    };
    fill(&|number| parse(&format!("s{number}"), "show pools"), STATEMENTS_MAX);
    fill(&|number| bind(&format!("p{number}"), "s1", &[]), PORTALS_MAX);
    session.receive(&query("deallocate all"));
    assert_eq!(told(&answers(&mut session, &operator).0), ["C DEALLOCATE ALL", "Z I"]);
    let mut fill = |number: usize| {
        session.receive(&parse(&format!("s{number}"), &format!("show pools {}", " ".repeat(60_000))));
        told(&answers(&mut session, &operator).0)[0].clone()
    };
    assert_eq!((0..4).map(&mut fill).collect::<Vec<_>>(), ["1"; 4]);
    assert!(fill(4).starts_with("E ERROR 53400"));
}

#[test]
fn portals_keep_the_rows_of_one_long_answer_only() {
    let operator = Rehearsal { clients: 15_000, ..Rehearsal::default() };
    let mut session = Session::new(Access::Monitor);
    let mut run = |bytes: &[Vec<u8>]| {
        session.receive(&bytes.concat());
        told(&answers(&mut session, &operator).0).last().unwrap().clone()
    };
    run(&[query("begin"), parse("long", "show clients"), parse("short", "show state"), sync()]);
    let mut opened = |portal: &str, statement: &str, rows| {
        let said = run(&[bind(portal, statement, &[]), execute(portal, rows)]);
        run(&[sync()]);
        said
    };
    assert_eq!(opened("a", "long", 1), "s", "alone it may be as long as it is");
    assert_eq!(opened("b", "long", 0), "C SHOW", "what is sent at once is not kept");
    let refused = "E ERROR 53400 too many prepared statements or portals";
    assert_eq!(opened("c", "long", 1), refused);
    assert_eq!(opened("d", "short", 1), refused);
    let mut session = Session::new(Access::Monitor);
    session.receive(&[parse("s", "show state"), bind("a", "s", &[]), bind("b", "s", &[])].concat());
    session.receive(&[execute("a", 1), execute("b", 1)].concat());
    assert_eq!(told(&answers(&mut session, &operator).0), ["1", "2", "2", "D 2", "s", "D 2", "s"]);
}

#[test]
fn a_long_answer_is_handed_out_before_the_next_is_made() {
    let operator = Rehearsal { clients: 1000, ..Rehearsal::default() };
    let mut session = Session::new(Access::Monitor);
    session.receive(&query(&"show clients;".repeat(100)));
    let mut replies = Vec::new();
    while let Step::Reply(bytes) = session.step(&operator) {
        replies.push(bytes.len());
    }
    assert_eq!(replies.len(), 101, "and ReadyForQuery");
    assert!(replies[..100].iter().all(|length| *length == replies[0]));
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
