//! What the console takes for which command.

use super::*;
use crate::pooler::scan::Unterminated;
use proptest::prelude::*;

fn one(query: &str) -> Command {
    let commands = parse(query).unwrap();
    assert_eq!(commands.len(), 1, "{query}");
    commands.into_iter().next().unwrap()
}

fn named(name: &str) -> Option<String> {
    Some(name.to_owned())
}

#[test]
fn every_show_is_read_however_it_is_written() {
    for (name, show) in SHOWS {
        for query in [
            format!("SHOW {}", name.to_uppercase()),
            format!("  show\t{name} ;"),
            format!("-- why\nShow /* a /* b */ c */ \"{name}\" ; -- end"),
            format!("select {name};"),
        ] {
            assert_eq!(one(&query), Command::Show(*show), "{query}");
        }
    }
}

#[test]
fn a_database_is_taken_as_it_is_written() {
    assert_eq!(one("PAUSE"), Command::Pause(None));
    assert_eq!(one("pause Sales;"), Command::Pause(named("Sales")));
    assert_eq!(one("resume \"my \"\"db\"\"-1\""), Command::Resume(named("my \"db\"-1")));
    assert_eq!(one("kill \"pause\""), Command::Kill("pause".into()));
    assert_eq!(one("wait_close größe"), Command::WaitClose(named("größe")));
    assert_eq!(parse("kill"), Err(Error::DatabaseRequired));
    assert_eq!(parse("pause my-db"), Err(Error::InvalidCommand("pause my-db".into())));
    assert_eq!(parse("pause 'db'"), Err(Error::InvalidCommand("pause 'db'".into())));
}

#[test]
fn a_client_is_named_by_its_id_or_its_pointer() {
    assert_eq!(one("KILL_CLIENT 12"), Command::KillClient(12));
    assert_eq!(one("kill_client 0xC"), Command::KillClient(12));
    for wrong in ["kill_client", "kill_client x", "kill_client 1 2", "kill_client -1"] {
        assert_eq!(parse(wrong), Err(Error::ClientId), "{wrong}");
    }
}

#[test]
fn settings_of_the_pooler_are_set_and_those_of_a_client_ignored() {
    let set = |query, key: &str, value: Option<&str>| {
        assert_eq!(one(query), Command::Set(key.into(), value.map(Into::into)), "{query}");
    };
    set("SET Pool_Mode = session", "pool_mode", Some("session"));
    set("set x='it''s'", "x", Some("it's"));
    set("set \"X\" to \"y\";", "X", Some("y"));
    set("set query_timeout = -1.5", "query_timeout", Some("-1.5"));
    set("set a = b, c", "a", Some("b, c"));
    set("set session a = default", "a", None);
    set("reset a", "a", None);
    for ignored in [
        "SET extra_float_digits = 3",
        "SET datestyle TO 'ISO'",
        "set local TimeZone to default",
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
        "SET TIME ZONE 'UTC'",
        "SET NAMES 'UTF8'",
        "set search_path = a, b",
    ] {
        assert_eq!(one(ignored), Command::SetIgnored, "{ignored}");
    }
    for wrong in ["set", "set a", "set a =", "set = a", "set a b", "set role x", "reset"] {
        assert!(matches!(parse(wrong), Err(Error::InvalidCommand(_))), "{wrong}");
    }
}

#[test]
fn what_drivers_send_is_understood() {
    assert_eq!(one("SELECT 1"), Command::Number(1));
    assert_eq!(one("select pg_catalog.version()"), Command::Text("version", VERSION));
    assert_eq!(one("BEGIN ISOLATION LEVEL SERIALIZABLE"), Command::Begin("BEGIN"));
    assert_eq!(one("start transaction"), Command::Begin("START TRANSACTION"));
    assert_eq!(one("END"), Command::Commit);
    assert_eq!(one("ROLLBACK TO SAVEPOINT a"), Command::Nothing("ROLLBACK"));
    assert_eq!(one("ABORT"), Command::Rollback);
    assert_eq!(one("SHOW client_encoding"), Command::Text("client_encoding", "UTF8"));
    assert_eq!(
        one("show transaction isolation level"),
        Command::Text("transaction_isolation", "read committed")
    );
    assert_eq!(one("DISCARD ALL"), Command::Forget(None, "DISCARD ALL"));
    assert_eq!(one("deallocate prepare all"), Command::Forget(None, "DEALLOCATE ALL"));
    assert_eq!(one("deallocate s1"), Command::Forget(named("s1"), "DEALLOCATE"));
}

#[test]
fn several_commands_are_all_read_before_any_is_run() {
    assert_eq!(parse(" ; ;; -- nothing"), Ok(vec![]));
    assert_eq!(parse("reload; ;pause;"), Ok(vec![Command::Reload, Command::Pause(None)]));
    assert_eq!(parse("pause 'a;b'"), Err(Error::InvalidCommand("pause 'a;b'".into())));
    assert_eq!(parse("reload; resmue ; pause"), Err(Error::InvalidCommand("resmue".into())));
}

#[test]
fn a_comment_ends_with_its_line_as_it_does_for_the_server() {
    assert_eq!(parse("-- why\nreload"), Ok(vec![Command::Reload]));
    assert_eq!(parse("-- why\rreload -- so"), Ok(vec![Command::Reload]));
}

#[test]
fn what_has_no_end_or_wants_a_value_is_refused() {
    assert_eq!(parse("pause \"a"), Err(Error::Unterminated(Unterminated("quoted identifier"))));
    assert_eq!(parse("set a = 'b''"), Err(Error::Unterminated(Unterminated("quoted string"))));
    assert_eq!(parse("show /* /* */ pools"), Err(Error::Unterminated(Unterminated("/* comment"))));
    assert_eq!(parse("pause $1"), Err(Error::TakesNoParameters));
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in ".{0,60}") {
        let _ = parse(&text);
    }

    #[test]
    fn any_words_are_read_or_refused(words in prop::collection::vec(
        prop::sample::select(vec![
            "show", "set", "pools", "pause", "to", "=", "default", "session", "\"", "'", "/*", "*/", "--", "\n",
            ";", "$1", "time", "zone", "select", "1", "(", ")", "version", "deallocate", "all", "ü",
        ]), 0..12))
    {
        let _ = parse(&words.join(" "));
        let _ = parse(&words.concat());
    }
}
