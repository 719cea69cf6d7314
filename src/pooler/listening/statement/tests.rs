//! What the listen-only port takes for which statement.

use super::*;
use proptest::prelude::*;

fn one(query: &str) -> Statement {
    let mut read = parse(query.as_bytes(), true).unwrap();
    assert_eq!(read.len(), 1, "{query}");
    read.remove(0)
}

fn listen(name: &str) -> Statement {
    Statement::Listen(Name { bytes: name.as_bytes().to_vec(), whole: None })
}

#[test]
fn names_are_folded_and_unquoted_as_the_server_does() {
    assert_eq!(one("LISTEN News"), listen("news"));
    assert_eq!(one("listen \"Ne\"\"ws\";"), listen("Ne\"ws"));
    assert_eq!(one("/* a /* b */ */ LISTEN -- why\n größe$1"), listen("größe$1"));
    assert_eq!(one("UNLISTEN *"), Statement::UnlistenAll);
    assert_eq!(parse(b" ; -- ping", true), Ok(Vec::new()));
    assert_eq!(parse(b"LISTEN a; LISTEN b", true).unwrap(), [listen("a"), listen("b")]);
}

#[test]
fn long_names_are_cut_between_characters() {
    let Statement::Listen(name) = one(&format!("LISTEN {}", "ä".repeat(40))) else { panic!() };
    assert_eq!((name.bytes.len(), name.whole.map(|whole| whole.len())), (62, Some(80)));
    let Statement::Listen(name) = one(&format!("LISTEN {}", "a".repeat(64))) else { panic!() };
    assert_eq!(name.bytes.len(), 63);
    assert_eq!(parse(format!("LISTEN {}", "ä".repeat(40)).as_bytes(), false).unwrap().len(), 1);
}

#[test]
fn mistakes_have_the_servers_words() {
    let error = |query: &str| parse(query.as_bytes(), true).unwrap_err().report().message;
    assert_eq!(error("LISTEN"), "syntax error at end of input");
    assert_eq!(error("LISTEN 'a'"), "syntax error at or near \"'a'\"");
    assert_eq!(error("LISTEN a b"), "syntax error at or near \"b\"");
    assert_eq!(error("LISTEN \"\""), "zero-length delimited identifier");
    assert_eq!(error("LISTEN \"a"), "unterminated quoted identifier");
    for query in
        ["SELECT 1 FROM x", "SELECT $1", "NOTIFY a", "ROLLBACK TO a", "SELECT", "$$;$$", "SELECT 1 2"]
    {
        assert_eq!(parse(query.as_bytes(), true), Err(Error::NotHere), "{query}");
    }
}

#[test]
fn what_drivers_send_is_read() {
    assert_eq!(one("SET DateStyle = ISO, mdy"), Statement::Set("datestyle".into(), Some("iso, mdy".into())));
    assert_eq!(one("set time zone 'UTC'"), Statement::Set("timezone".into(), Some("UTC".into())));
    assert_eq!(one("SET SESSION x.y TO -1"), Statement::Set("x.y".into(), Some("-1".into())));
    assert_eq!(one("SHOW TRANSACTION ISOLATION LEVEL"), Statement::Show("transaction_isolation".into()));
    assert_eq!(one("BEGIN ISOLATION LEVEL SERIALIZABLE"), Statement::Begin("BEGIN"));
    assert_eq!(one("SELECT 1 AS ping"), Statement::Select(Item::Number(1), Some("ping".into())));
    assert_eq!(one("select pg_catalog.version()"), Statement::Select(Item::Version, None));
    let channels = Statement::Select(Item::ListeningChannels, None);
    assert_eq!(one("SELECT * FROM pg_listening_channels()"), channels);
    assert_eq!(one("SELECT pg_listening_channels()"), channels);
    let reset = b"SELECT pg_advisory_unlock_all(); CLOSE ALL; UNLISTEN *; RESET ALL;";
    assert_eq!(parse(reset, true).unwrap().len(), 4);
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), utf8: bool) {
        let _ = parse(&bytes, utf8);
    }

    #[test]
    fn any_words_are_read_or_refused(text in "(LISTEN|UNLISTEN|SELECT|SET|SHOW|\\*|;|'|\"|[a-z(). ,=]){0,30}") {
        let _ = parse(text.as_bytes(), true);
    }
}
