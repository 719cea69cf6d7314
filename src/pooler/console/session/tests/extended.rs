//! Statements and portals: the extended protocol of the console.

use super::*;

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
