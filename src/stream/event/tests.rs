//! Events of messages that are built by hand.

use super::*;
use crate::stream::pgoutput::Column::{self, Null, Text, Unchanged};
use crate::stream::pgoutput::written;
use crate::stream::types::Types;
use proptest::prelude::*;
use serde_json::{Value as Json, json};
use std::time::{Duration, UNIX_EPOCH};

fn options() -> EventOptions {
    EventOptions {
        host: "127.0.0.1".into(),
        database: "cdc".into(),
        schema: false,
        commit_lsn: false,
        ordinal: false,
        xid: false,
        commit_timestamp: false,
        old: false,
        unchanged: None,
        truncate: false,
        transactions: false,
        messages: false,
        key: KeyForm::PrimaryKey,
    }
}

fn table(oid: u32, name: &str, identity: u8, columns: &[written::Described]) -> Relation {
    let message = written::relation(oid, "public", name, identity, columns);
    let Ok(Message::Relation(message)) = Message::parse(&message) else { panic!() };
    Relation::new(&message, &Types::default())
}

/// `two (a int, b text, v int, primary key (a, b))`
fn two() -> Relation {
    table(5, "two", b'd', &[(true, "a", 23), (true, "b", 25), (false, "v", 23)])
}

const TRANSACTION: Transaction =
    Transaction { xid: 731, commit_end: Lsn(0x16_B374_D848), commit_time_micros: Some(820_638_245_678_901) };

fn encode(
    options: &EventOptions,
    relation: Option<&Relation>,
    message: &[u8],
) -> Result<Option<Encoded>, Error> {
    let mut out =
        Encoded { key: b"old".to_vec(), has_key: true, payload: b"old".to_vec(), action: Action::Message };
    let message = Message::parse(message)?;
    let now = UNIX_EPOCH + Duration::new(1_795_254_345, 155_929_000);
    let written = Encoder::new(options.clone(), 1).encode(
        &message,
        relation,
        Lsn(26_594_424),
        &TRANSACTION,
        3,
        now,
        &mut out,
    )?;
    Ok(written.then_some(out))
}

fn event(options: &EventOptions, relation: Option<&Relation>, message: &[u8]) -> Encoded {
    encode(options, relation, message).unwrap().unwrap()
}

fn parsed(event: &Encoded) -> Json {
    serde_json::from_slice(&event.payload).unwrap()
}

fn columns(options: &EventOptions, relation: &Relation, message: &[u8]) -> Json {
    parsed(&event(options, Some(relation), message))["Columns"].take()
}

fn key(options: &EventOptions, relation: &Relation, message: &[u8]) -> Option<String> {
    let event = event(options, Some(relation), message);
    assert!(event.has_key || event.key.is_empty());
    event.has_key.then(|| String::from_utf8(event.key).unwrap())
}

/// What the seed program wrote for reference/psql-streamer's statements: its key, a tab, its event.
const PSQL_STREAMER: &str = include_str!("psql_streamer.tsv");

#[test]
fn events_are_those_of_psql_streamer_but_for_what_it_loses() {
    let orders = [
        (true, "id", 23),
        (false, "total", 1700),
        (false, "note", 25),
        (false, "paid", 16),
        (false, "placed", 1184),
        (false, "placed_local", 1114),
        (false, "day", 1082),
        (false, "clock", 1083),
    ];
    let types: [(&str, u32); 21] = [
        ("id", 20),
        ("i2", 21),
        ("i4", 23),
        ("i8", 20),
        ("f4", 700),
        ("f8", 701),
        ("n", 1700),
        ("b", 16),
        ("t", 25),
        ("v", 1043),
        ("c", 1042),
        ("bin", 17),
        ("d", 1082),
        ("tm", 1083),
        ("tmz", 1266),
        ("ts", 1114),
        ("tsz", 1184),
        ("iv", 1186),
        ("u", 2950),
        ("j", 114),
        ("jb", 3802),
    ];
    let orders = table(1, "Orders", b'd', &orders);
    let types = table(2, "types_a", b'd', &types.map(|(name, oid)| (name == "id", name, oid)));
    let nokey = table(3, "nokey", b'f', &[(true, "a", 23), (true, "b", 25)]);
    let two = two();
    let first = |total| {
        let note = "first \"quoted\" <tag> & ünïcode";
        let texts = [
            "1",
            total,
            note,
            "t",
            "2026-01-02 01:04:05.678901+00",
            "2026-01-02 03:04:05.5",
            "2026-01-02",
            "03:04:05",
        ];
        texts.map(|text| Text(text.as_bytes()))
    };
    let only_id = |id| [Text(id), Null, Null, Null, Null, Null, Null, Null];
    let row = |texts: &[&'static str]| texts.iter().map(|text| Text(text.as_bytes())).collect::<Vec<_>>();
    let values = row(&[
        "9007199254740993",
        "-32768",
        "2147483647",
        "9223372036854775807",
        "1.5",
        "0.1",
        "123456789012345678901234567890.123456789",
        "f",
        "line\nbreak\ttab\\",
        "vc",
        "ch   ",
        "\\xdeadbeef",
        "2026-12-31",
        "23:59:59.999999",
        "12:00:00+02",
        "2026-12-31 23:59:59.999999",
        "2026-12-31 23:59:59.999999+00",
        "1 year 2 mons 3 days 04:05:06.789",
        "6b29fc40-ca47-1067-b31d-00dd010662da",
        "{\"k\": [1, 2.50, null]}",
        "{\"k\": [1, 2.50, null]}",
    ]);
    let mut nulls = vec![Null; 21];
    nulls[0] = Text(b"2");
    let messages = [
        (&orders, written::insert(1, &first("12.50"))),
        (&orders, written::insert(1, &only_id(b"2"))),
        (&orders, written::update(1, None, &first("13.00"))),
        (&orders, written::update(1, Some((b'K', &only_id(b"2"))), &only_id(b"3"))),
        (&orders, written::delete(1, b'K', &only_id(b"3"))),
        (&two, written::insert(5, &row(&["1", "x", "10"]))),
        (&two, written::update(5, None, &row(&["1", "x", "11"]))),
        (&two, written::update(5, Some((b'K', &[Text(b"1"), Text(b"x"), Null])), &row(&["1", "y", "11"]))),
        (&two, written::delete(5, b'K', &[Text(b"1"), Text(b"y"), Null])),
        (&nokey, written::insert(3, &row(&["1", "a"]))),
        (&nokey, written::update(3, Some((b'O', &row(&["1", "a"]))), &row(&["1", "c"]))),
        (&nokey, written::delete(3, b'O', &row(&["1", "c"]))),
        (&types, written::insert(2, &values)),
        (&types, written::insert(2, &nulls)),
        (&two, written::insert(5, &row(&["5", "t", "1"]))),
        (&two, written::insert(5, &row(&["6", "t", "2"]))),
    ];
    let mut encoder = Encoder::new(EventOptions { key: KeyForm::PsqlStreamer, ..options() }, 1);
    let mut out = Encoded::default();
    assert_eq!(PSQL_STREAMER.lines().count(), messages.len());
    for ((relation, message), line) in messages.iter().zip(PSQL_STREAMER.lines()) {
        let (their_key, theirs) = line.split_once('\t').unwrap();
        let their: Json = serde_json::from_str(theirs).unwrap();
        // Their clock: all of it was written in one second.
        let (_, fraction) =
            their["Timestamp"].as_str().unwrap().trim_end_matches('Z').split_once('.').unwrap();
        let now = UNIX_EPOCH + Duration::new(1_795_254_345, format!("{fraction:0<9}").parse().unwrap());
        let lsn = Lsn(their["WALPosition"].as_u64().unwrap());
        let message = Message::parse(message).unwrap();
        assert!(encoder.encode(&message, Some(relation), lsn, &TRANSACTION, 1, now, &mut out).unwrap());
        assert_eq!(str::from_utf8(&out.key), Ok(their_key));
        let mut ours = parsed(&out);
        let uuid = |event: &Json| event["UUID"].as_str().unwrap().to_owned();
        if their["Columns"].get("bin").is_some_and(Json::is_string) {
            // It loses these three and breaks the fourth.
            for (lost, value) in [
                ("u", json!("6b29fc40-ca47-1067-b31d-00dd010662da")),
                ("j", json!({"k": [1, 2.5, null]})),
                ("jb", json!({"k": [1, 2.5, null]})),
                ("bin", json!("\\xdeadbeef")),
            ] {
                assert_eq!(ours["Columns"].as_object_mut().unwrap().remove(lost), Some(value));
            }
            let mut sound = their["Columns"].clone();
            sound.as_object_mut().unwrap().remove("bin");
            assert_eq!(ours["Columns"], sound);
            continue;
        }
        let expected = theirs
            .replace(&uuid(&their), &uuid(&ours))
            .replace("\\u003c", "<")
            .replace("\\u003e", ">")
            .replace("\\u0026", "&");
        assert_eq!(str::from_utf8(&out.payload), Ok(expected.as_str()));
    }
}

#[test]
fn fields_that_were_asked_for_follow_in_their_order() {
    let all = EventOptions {
        schema: true,
        commit_lsn: true,
        ordinal: true,
        xid: true,
        commit_timestamp: true,
        old: true,
        ..options()
    };
    let update = written::update(
        5,
        Some((b'K', &[Text(b"1"), Text(b"x"), Null])),
        &[Text(b"1"), Text(b"y"), Text(b"11")],
    );
    let event = event(&all, Some(&two()), &update);
    let uuid = parsed(&event)["UUID"].as_str().unwrap().to_owned();
    let expected = [
        r#"{"Host":"127.0.0.1","Database":"cdc","Table":"two","Action":"update","WALPosition":26594424,"#,
        r#""Timestamp":"2026-11-21T09:45:45.155929Z","UUID":""#,
        &uuid,
        r#"","Columns":{"a":1,"b":"y","v":11},"Schema":"public","CommitLSN":"16/B374D848","Ordinal":3,"Xid":731,"#,
        r#""CommitTimestamp":"2026-01-02T03:04:05.678901Z","Old":{"a":1,"b":"x"}}"#,
    ];
    let expected = expected.concat();
    assert_eq!(str::from_utf8(&event.payload), Ok(expected.as_str()));
    assert_eq!((event.key.as_slice(), event.action), (br#"{"a":1,"b":"y"}"#.as_slice(), Action::Update));
}

#[test]
fn old_is_what_the_server_sends_of_the_row_before() {
    let old = EventOptions { old: true, ..options() };
    let full = table(5, "two", b'f', &[(true, "a", 23), (true, "b", 25), (true, "v", 23)]);
    let (before, after) = ([Text(b"1"), Text(b"x"), Null], [Text(b"1"), Text(b"x"), Text(b"2")]);
    let update = event(&old, Some(&full), &written::update(5, Some((b'O', &before)), &after));
    assert_eq!(parsed(&update)["Old"], json!({"a": 1, "b": "x", "v": null}));
    let delete = event(&old, Some(&two()), &written::delete(5, b'K', &before));
    assert_eq!(parsed(&delete)["Old"], json!({"a": 1, "b": "x"}));
    assert_eq!(parsed(&delete)["Columns"], json!({"a": 1, "b": "x", "v": null}));
    for message in [written::insert(5, &after), written::update(5, None, &after)] {
        assert_eq!(parsed(&event(&old, Some(&two()), &message)).get("Old"), None);
    }
}

#[test]
fn an_unchanged_value_is_left_out_marked_or_known_from_the_old_row() {
    let big = [(true, "id", 23), (false, "doc", 25), (false, "n", 23)];
    let default = table(5, "t", b'd', &big);
    let full = table(5, "t", b'f', &big.map(|(_, name, oid)| (true, name, oid)));
    let marked = EventOptions { unchanged: Some("__\"unchanged".into()), ..options() };
    let new = [Text(b"1"), Unchanged, Text(b"2")];
    let update = written::update(5, None, &new);
    assert_eq!(columns(&options(), &default, &update), json!({"id": 1, "n": 2}));
    assert_eq!(columns(&marked, &default, &update), json!({"id": 1, "doc": "__\"unchanged", "n": 2}));
    let update = written::update(5, Some((b'O', &[Text(b"1"), Text(b"big"), Text(b"1")])), &new);
    assert_eq!(columns(&marked, &full, &update), json!({"id": 1, "doc": "big", "n": 2}));
    // The old key says nothing of columns that are not of the key.
    let update = written::update(5, Some((b'K', &[Text(b"0"), Null, Null])), &new);
    assert_eq!(columns(&options(), &default, &update), json!({"id": 1, "n": 2}));
}

#[test]
fn an_unchanged_key_is_known_from_the_old_key_and_never_made_up() {
    let table = table(5, "t", b'd', &[(true, "a", 25), (true, "b", 25)]);
    let new = [Unchanged, Text(b"2")];
    let update = written::update(5, Some((b'K', &[Text(b"long"), Text(b"1")])), &new);
    assert_eq!(key(&options(), &table, &update).as_deref(), Some(r#"{"a":"long","b":"2"}"#));
    assert_eq!(key(&options(), &table, &written::update(5, None, &new)), None);
}

#[test]
fn keys_are_the_key_columns_in_the_tables_order() {
    let row = [Text(b"t"), Text(b"2026-01-02 03:04:05"), Text(b"1")];
    let keyed = table(5, "t", b'd', &[(false, "v", 25), (true, "z", 1114), (true, "a", 23)]);
    assert_eq!(
        key(&options(), &keyed, &written::insert(5, &row)).as_deref(),
        Some(r#"{"z":"2026-01-02T03:04:05Z","a":1}"#)
    );
    let full = table(5, "t", b'f', &[(true, "v", 25), (true, "z", 1114), (true, "a", 23)]);
    assert_eq!(key(&options(), &full, &written::insert(5, &row)), None);
    assert_eq!(
        key(&options(), &full.clone().with_key(&["a"]), &written::delete(5, b'O', &row)).as_deref(),
        Some(r#"{"a":1}"#)
    );
    let theirs = EventOptions { key: KeyForm::PsqlStreamer, ..options() };
    assert_eq!(key(&theirs, &full, &written::insert(5, &row)).as_deref(), Some("127.0.0.1:cdc:t:insert"));
}

#[test]
fn other_messages_are_events_only_when_asked_for() {
    let asked =
        EventOptions { truncate: true, transactions: true, messages: true, schema: true, ..options() };
    let two = two();
    let truncate = written::truncate(&[4, 5], 0);
    let begin = written::begin(1, 2, 3);
    let text = written::message("out\"box", "{\"ü\":\n1}".as_bytes());
    let cases = [
        (truncate.as_slice(), Some(&two), "two", "public", "truncate", json!({})),
        (&begin, None, "", "", "begin", json!({})),
        (&written::commit(1, 2, 3), None, "", "", "commit", json!({})),
        (&text, None, "", "", "message", json!({"prefix": "out\"box", "content": "{\"ü\":\n1}"})),
        (
            &written::message("p", b"\xff\0"),
            None,
            "",
            "",
            "message",
            json!({"prefix": "p", "content": "\\xff00"}),
        ),
    ];
    for (message, relation, table, schema, action, columns) in cases {
        let event = event(&asked, relation, message);
        assert!(!event.has_key && event.key.is_empty() && !event.payload.contains(&b'\n'));
        assert_eq!(event.action.name(), action);
        let event = parsed(&event);
        assert_eq!(event["Table"], table);
        assert_eq!(event["Schema"], schema);
        assert_eq!(event["Action"], action);
        assert_eq!(event["Columns"], columns);
        assert!(encode(&options(), relation, message).unwrap().is_none(), "{action}");
    }
    let relation = written::relation(5, "public", "two", b'd', &[]);
    assert!(encode(&asked, Some(&two), &relation).unwrap().is_none());
}

#[test]
fn a_row_that_does_not_fit_its_table_is_an_error_that_names_it() {
    let two = two();
    let refused = |relation, message: &[u8]| encode(&options(), relation, message).err().unwrap().to_string();
    let empty = written::insert(5, &[]);
    assert_eq!(refused(Some(&two), &empty), "row of table \"two\" has 0 columns, but 3 were described");
    let longer = written::delete(5, b'K', &[Null; 4]);
    assert_eq!(refused(Some(&two), &longer), "row of table \"two\" has 4 columns, but 3 were described");
    let binary = written::insert(5, &[Text(b"1"), Column::Binary(b"x"), Null]);
    assert_eq!(refused(Some(&two), &binary), "column \"b\" of table \"two\" came in binary format");
    for relation in [Some(&two), None] {
        let change = written::insert(6, &[Null; 3]);
        assert_eq!(refused(relation, &change), "change of relation 6, which was not described");
    }
    let truncating = EventOptions { truncate: true, ..options() };
    let truncate = encode(&truncating, Some(&two), &written::truncate(&[6], 0));
    assert_eq!(truncate.err(), Some(Error::UnknownRelation(6)));
}

#[test]
fn a_table_without_columns_has_events() {
    let empty = table(5, "empty", b'd', &[]);
    assert_eq!(columns(&options(), &empty, &written::insert(5, &[])), json!({}));
}

#[test]
fn an_event_has_one_uuid_for_ever_and_no_other_event_has_it() {
    let (two, row) = (two(), [Text(b"1"), Text(b"x"), Null]);
    let (insert, delete) = (written::insert(5, &row), written::delete(5, b'K', &row));
    let uuid = |seed: u128, message: &[u8], commit: u64, ordinal: u64| {
        let mut out = Encoded::default();
        let transaction = Transaction { commit_end: Lsn(commit), ..TRANSACTION };
        let message = Message::parse(message).unwrap();
        let mut encoder = Encoder::new(options(), seed);
        encoder.encode(&message, Some(&two), Lsn(9), &transaction, ordinal, UNIX_EPOCH, &mut out).unwrap();
        parsed(&out)["UUID"].as_str().unwrap().to_owned()
    };
    // Consumers remember UUIDs over upgrades.
    let first = uuid(1, &insert, 2, 3);
    assert_eq!(first, "bc57e7d0-0ad5-43ff-bf02-83982faaf716");
    let parsed = uuid::Uuid::parse_str(&first).unwrap();
    assert_eq!((parsed.get_version_num(), parsed.get_variant()), (4, uuid::Variant::RFC4122));
    let others =
        [uuid(2, &insert, 2, 3), uuid(1, &insert, 3, 3), uuid(1, &insert, 2, 4), uuid(1, &delete, 2, 3)];
    for (place, other) in others.iter().enumerate() {
        assert!(*other != first && !others[..place].contains(other), "{place}");
    }
}

#[test]
fn the_memory_of_a_big_row_is_given_back() {
    let big = vec![b'x'; KEPT * 2];
    let two = two();
    let mut encoder = Encoder::new(options(), 1);
    let mut out = Encoded::default();
    for text in [big.as_slice(), b"small"] {
        let insert = written::insert(5, &[Text(b"1"), Text(text), Null]);
        let message = Message::parse(&insert).unwrap();
        assert!(encoder.encode(&message, Some(&two), Lsn(1), &TRANSACTION, 1, UNIX_EPOCH, &mut out).unwrap());
        assert!(out.payload.windows(text.len()).any(|part| part == text));
    }
    assert!(out.payload.capacity() <= KEPT && out.key.capacity() <= KEPT);
}

proptest! {
    #[test]
    fn texts_and_integers_of_a_row_are_read_back(number in any::<i64>(), text in any::<String>(), name in "[^\\x00]{1,20}") {
        prop_assume!(name != "id");
        let table = table(5, &name, b'd', &[(true, "id", 20), (false, &name, 25)]);
        let digits = number.to_string();
        let insert = written::insert(5, &[Text(digits.as_bytes()), Text(text.as_bytes())]);
        let event = event(&EventOptions { host: name.clone(), ..options() }, Some(&table), &insert);
        let key: Json = serde_json::from_slice(&event.key).unwrap();
        prop_assert_eq!(key, json!({"id": number}));
        let event = parsed(&event);
        prop_assert_eq!(&event["Columns"]["id"], &json!(number));
        prop_assert_eq!(&event["Columns"][&name], &json!(text));
        prop_assert_eq!((&event["Table"], &event["Host"]), (&json!(name), &json!(name)));
    }
}

#[test]
fn an_events_uuid_is_the_same_in_every_version() {
    let seed = seed(7_345_678_901_234_567_890, 16_384, "shop");
    assert_eq!(format!("{seed:032x}"), "370597c8ba2623e269c325e5b8fb27f0");
    let made = uuid(&seed.to_le_bytes(), [0x16_B374_D848, 3, 24_601 << 8]);
    assert_eq!(made.hyphenated().to_string(), "9d66e4b3-b253-4ffc-92a0-edb2ecf2a6be");
}
