//! The session, message by message.

use super::*;
use crate::pooler::listening::Parameter;
use crate::wire::message::{put, put_string, read_error};
use proptest::prelude::*;

fn facts(recovers: bool) -> Arc<Facts> {
    let parameter = |(name, value, reported): (&str, &str, bool)| Parameter {
        name: name.to_owned(),
        value: value.to_owned(),
        reported,
    };
    let parameters = [
        ("server_version", "15.20", true),
        ("server_encoding", "UTF8", true),
        ("client_encoding", "UTF8", true),
        ("application_name", "", true),
        ("DateStyle", "ISO, MDY", true),
        ("in_hot_standby", if recovers { "on" } else { "off" }, true),
        ("statement_timeout", "0", false),
    ];
    Arc::new(Facts { parameters: parameters.map(parameter).into(), version: "PostgreSQL 15".to_owned() })
}

fn session() -> Session {
    let mut session = Session::new(facts(false), Identity { pid: 7, ..Identity::default() });
    session.welcome();
    session
}

fn message(tag: u8, texts: &[&str], more: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put(&mut out, tag, |out| {
        texts.iter().for_each(|text| put_string(out, text.as_bytes()));
        out.extend(more);
    });
    out
}

fn query(text: &str) -> Vec<u8> {
    message(b'Q', &[text], &[])
}

fn sync() -> Vec<u8> {
    message(b'S', &[], &[])
}

/// What comes of it: tags of messages, an error's SQLSTATE behind its tag, and `<` and `>` before the channels that are listened to and
/// left. The relay does as it is told.
fn send(session: &mut Session, bytes: &[u8]) -> String {
    send_to(session, bytes, &mut || Ok(()))
}

fn send_to(session: &mut Session, bytes: &[u8], relay: &mut dyn FnMut() -> Result<(), Report>) -> String {
    session.receive(bytes);
    let mut said = String::new();
    loop {
        match session.step() {
            Step::Reply(bytes) => said.push_str(&tags(&bytes)),
            Step::Change(change) => {
                for (mark, names) in [('<', &change.listen), ('>', &change.unlisten)] {
                    names.iter().for_each(|name| said.push_str(&format!("{mark}{}", lossy(name))));
                }
                let result = relay();
                session.changed(result);
            }
            Step::More => return said,
            Step::Close(bytes) => return format!("{said}{}.", tags(&bytes)),
        }
    }
}

fn tags(mut bytes: &[u8]) -> String {
    let mut tags = String::new();
    while let [tag, length @ ..] = bytes {
        let length = u32::from_be_bytes(*length.first_chunk().unwrap()) as usize;
        tags.push(char::from(*tag));
        match tag {
            b'E' => tags.push_str(&read_error(&bytes[5..=length]).0),
            b'Z' => tags.push(char::from(bytes[5])),
            _ => {}
        }
        bytes = &bytes[length + 1..];
    }
    tags
}

#[test]
fn a_listen_is_complete_when_the_relay_has_it() {
    let mut session = session();
    assert_eq!(send(&mut session, &query("LISTEN a")), "<aCZI");
    assert_eq!(send(&mut session, &query("LISTEN a; LISTEN b; UNLISTEN a")), "CC<b>aCZI");
    assert_eq!(send(&mut session, &query("SELECT pg_listening_channels()")), "TDCZI");
    assert_eq!(send(&mut session, &query("UNLISTEN *")), ">bCZI");
    assert_eq!(send(&mut session, &query("UNLISTEN *")), "CZI");
    assert_eq!(send(&mut session, &query(" ; -- ping")), "IZI");
    let mut refuse = || Err(Report::error("53400", "no"));
    assert_eq!(send_to(&mut session, &query("LISTEN a"), &mut refuse), "<aE53400ZI");
    assert_eq!(send(&mut session, &query("SELECT pg_listening_channels()")), "TCZI");
}

#[test]
fn what_a_transaction_names_is_in_force_when_it_commits() {
    let mut session = session();
    assert_eq!(send(&mut session, &query("BEGIN")), "CZT");
    assert_eq!(send(&mut session, &query("LISTEN a")), "CZT");
    assert!(!session.is_idle());
    assert_eq!(send(&mut session, &query("COMMIT")), "<aCZI");
    assert!(session.is_idle());
    assert_eq!(send(&mut session, &query("BEGIN; UNLISTEN *; LISTEN a; LISTEN b; COMMIT")), "CCCC<bCZI");
    assert_eq!(send(&mut session, &query("BEGIN; UNLISTEN *; ROLLBACK")), "CCCZI");
    assert_eq!(send(&mut session, &query("BEGIN; LISTEN c; SELECT x")), "E0A000ZI", "nothing of it runs");
    assert_eq!(send(&mut session, &query("BEGIN; LISTEN c; SHOW x; LISTEN d")), "CCE42704ZE");
    assert_eq!(send(&mut session, &query("LISTEN d")), "E25P02ZE");
    assert_eq!(send(&mut session, &query("COMMIT")), "CZI");
    assert_eq!(send(&mut session, &query("LISTEN c; SHOW x")), "CE42704ZI");
    assert_eq!(send(&mut session, &query("COMMIT")), "NCZI");
    assert_eq!(send(&mut session, &query("DISCARD ALL")), ">a>bCZI");
}

#[test]
fn the_extended_protocol_commits_at_its_sync() {
    let mut session = session();
    let describe = message(b'D', &[], b"P\0");
    let listen = [message(b'P', &["", "LISTEN a"], &[0; 2]), message(b'B', &["", ""], &[0; 6]), describe];
    let execute = message(b'E', &[""], &[0; 4]);
    assert_eq!(send(&mut session, &[listen.concat(), execute.clone()].concat()), "12nC");
    assert!(!session.is_idle());
    assert_eq!(send(&mut session, &sync()), "<aZI");
    let wrong = message(b'P', &["", "SELECT x"], &[0; 2]);
    assert_eq!(send(&mut session, &[wrong, execute.clone(), sync()].concat()), "E0A000ZI");
    let number = [
        message(b'P', &["s", "SELECT 1"], &[0; 2]),
        message(b'D', &[], b"Ss\0"),
        message(b'B', &["", "s"], &[0, 0, 0, 0, 0, 1, 0, 1]),
        execute,
        sync(),
    ];
    session.receive(&number.concat());
    let Step::Reply(bytes) = session.step() else { panic!() };
    assert_eq!(tags(&bytes), "1tT2DCZI");
    assert!(bytes.windows(8).any(|window| window == [0, 0, 0, 4, 0, 0, 0, 1]), "in binary");
    let empty =
        [message(b'P', &["", ""], &[0; 2]), message(b'B', &["", ""], &[0; 6]), message(b'E', &[""], &[0; 4])];
    assert_eq!(send(&mut session, &[empty.concat(), sync()].concat()), "12IZI");
    let twice = message(b'P', &["", "LISTEN a; LISTEN b"], &[0; 2]);
    assert_eq!(send(&mut session, &[twice, sync()].concat()), "E42601ZI");
}

#[test]
fn a_server_that_recovers_refuses_as_it_does() {
    let mut session = Session::new(facts(true), Identity::default());
    assert!(session.welcome().windows(17).any(|window| window == b"in_hot_standby\0on"));
    assert_eq!(send(&mut session, &query("LISTEN a")), "E25006ZI");
    assert_eq!(send(&mut session, &query("UNLISTEN a")), "CZI");
    session.set_recovery(false);
    assert_eq!(send(&mut session, &query("LISTEN a")), "<aCSZI");
}

#[test]
fn settings_are_told_and_undone() {
    let mut session = session();
    assert_eq!(send(&mut session, &query("SET application_name TO 'x'")), "CSZI");
    assert_eq!(session.application_name(), "x");
    assert_eq!(send(&mut session, &query("BEGIN; SET application_name TO 'y'; ROLLBACK")), "CCCZI");
    assert_eq!(session.application_name(), "x");
    assert_eq!(send(&mut session, &query("SET client_encoding TO 'LATIN1'")), "E0A000ZI");
    assert_eq!(
        send(&mut session, &query("SET NAMES 'utf8'; SET extra.thing = 1; SET TIME ZONE 'UTC'")),
        "CCCZI"
    );
    assert_eq!(send(&mut session, &query("SET server_version TO '9'")), "E55P02ZI");
    assert_eq!(send(&mut session, &query("RESET ALL")), "CSZI");
    assert_eq!(session.application_name(), "");
}

#[test]
fn garbage_and_long_messages_end_the_session() {
    for bytes in [&b"zzzzzzzz"[..], b"Q\0\0\0\x01", b"Q\0\0\x40\0"] {
        let said = send(&mut session(), bytes);
        assert!(said.starts_with('E') && said.ends_with('.'), "{said}");
    }
    assert_eq!(send(&mut session(), &message(b'X', &[], &[])), ".");
    let mut session = session();
    let long = query(&"LISTEN a;".repeat(900));
    assert_eq!(long.len(), 8106);
    assert!(send(&mut session, &long).ends_with("ZI"));
}

#[test]
fn statements_and_portals_are_bounded_and_refused_as_the_server_does() {
    let parse = |name: &str| message(b'P', &[name, "SELECT 1"], &[0; 2]);
    let bind = |portal: &str, formats: &[u8]| message(b'B', &[portal, "s0"], &[&[0; 4], formats].concat());
    let mut session = session();
    let mut said = |bytes: Vec<u8>| {
        send(&mut session, &[message(b'Q', &["BEGIN"], &[]), bytes, sync(), query("ABORT")].concat())
    };
    let all: Vec<_> = (0..=STATEMENTS_MAX).map(|number| parse(&format!("s{number}"))).collect();
    assert_eq!(said(all.concat()), format!("CZT{}E54000ZECZI", "1".repeat(STATEMENTS_MAX)));
    let all: Vec<_> = (0..=STATEMENTS_MAX).map(|number| bind(&format!("p{number}"), &[0; 2])).collect();
    assert_eq!(said(all.concat()), format!("CZT{}E54000ZECZI", "2".repeat(STATEMENTS_MAX)));
    let valued = message(b'B', &["", "s0"], &[0, 0, 0, 1, 0, 0, 0, 1, b'x', 0, 0]);
    for (bytes, sqlstate) in [
        (parse("s1"), "42P05"),
        (message(b'D', &[], b"Sx\0"), "26000"),
        (message(b'D', &[], b"Px\0"), "34000"),
        ([bind("p", &[0; 2]), bind("p", &[0; 2])].concat(), "42P03"),
        (bind("", &[0, 1, 0, 2]), "22023"),
        (bind("", &[0, 2, 0, 0, 0, 0]), "08P01"),
        (valued, "08P01"),
    ] {
        let said = said(bytes);
        assert!(said.ends_with(&format!("E{sqlstate}ZECZI")), "{sqlstate}: {said}");
    }
}

#[test]
fn rows_that_portals_have_not_sent_yet_are_bounded_together() {
    let mut session = session();
    session.channels = (0..6000).map(|number| format!("channel{number}").into_bytes()).collect();
    let parse = message(b'P', &["s", "SELECT pg_listening_channels()"], &[0; 2]);
    let begin = [query("BEGIN"), parse, sync()].concat();
    assert_eq!(send(&mut session, &begin), "CZT1ZT");
    let mut run = |portal: &str, rows: u8| {
        let bind = message(b'B', &[portal, "s"], &[0; 6]);
        let said = send(&mut session, &[bind, message(b'E', &[portal], &[0, 0, 0, rows]), sync()].concat());
        said.replace('D', "")
    };
    assert_eq!(run("a", 1), "2sZT");
    assert_eq!(run("b", 0), "2CZT", "what is sent at once is not kept");
    assert_eq!(run("c", 1), "2E54000ZE");
}

#[test]
fn what_is_beyond_the_ports_bounds_is_told_as_such() {
    assert_eq!(send(&mut session(), b"Q\0\0\x20\0"), "E54000.", "8193 bytes with its type");
    assert_eq!(send(&mut session(), &vec![b'd'; Inbox::ahead_max(MESSAGE_MAX) + 1]), "E54000.");
}

proptest! {
    #[test]
    fn any_messages_are_answered(
        messages in prop::collection::vec((prop::sample::select(b"QPBDECSHFXdcf".to_vec()), prop::collection::vec(any::<u8>(), 0..60)), 0..20),
        refuse: bool,
    ) {
        let mut session = session();
        let mut relay = || if refuse { Err(Report::error("53400", "no")) } else { Ok(()) };
        for (tag, body) in messages {
            if send_to(&mut session, &message(tag, &[], &body), &mut relay).ends_with('.') {
                return Ok(());
            }
        }
    }

    #[test]
    fn what_is_listened_to_is_what_the_transactions_that_committed_have_named(
        transactions in prop::collection::vec(
            (prop::collection::vec((0u8..3, prop::sample::select(vec!["a", "b", "c"])), 0..5), any::<bool>()),
            0..8,
        ),
    ) {
        let mut session = session();
        let mut channels = BTreeSet::new();
        for (statements, commits) in transactions {
            let mut after = channels.clone();
            let mut text = "BEGIN".to_owned();
            for (what, name) in statements {
                match what {
                    0 => { after.insert(name); text.push_str(&format!(";LISTEN {name}")) }
                    1 => { after.remove(name); text.push_str(&format!(";UNLISTEN {name}")) }
                    _ => { after.clear(); text.push_str(";UNLISTEN *") }
                }
            }
            text.push_str(if commits { ";COMMIT" } else { ";ROLLBACK" });
            let said = send(&mut session, &query(&text));
            if commits {
                let new: String = after.difference(&channels).map(|name| format!("<{name}")).collect();
                let left: String = channels.difference(&after).map(|name| format!(">{name}")).collect();
                prop_assert!(said.ends_with(&format!("C{new}{left}CZI")), "{text}: {said}");
                channels = after;
            }
        }
        let rows = send(&mut session, &query("SELECT pg_listening_channels()"));
        prop_assert_eq!(rows, format!("T{}CZI", "D".repeat(channels.len())));
    }

    #[test]
    fn any_statements_leave_a_session_that_answers(
        texts in prop::collection::vec("(LISTEN a|LISTEN b|UNLISTEN a|UNLISTEN \\*|BEGIN|COMMIT|ROLLBACK|SHOW x|DISCARD ALL|;){0,6}", 0..12),
        refuse: bool,
    ) {
        let mut session = session();
        let mut relay = || if refuse { Err(Report::error("53400", "no")) } else { Ok(()) };
        for text in texts {
            let said = send_to(&mut session, &query(&text), &mut relay);
            prop_assert!(said.contains('Z'), "{text}: {said}");
        }
        prop_assert!(send(&mut session, &query("ROLLBACK")).ends_with("ZI"));
    }
}
