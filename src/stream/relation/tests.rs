//! Tables as they are prepared for writing.

use super::*;
use crate::stream::pgoutput::Message;
use crate::stream::pgoutput::written::{self, Described as Column};
use crate::stream::types::Described;

fn relation(identity: u8, columns: &[Column]) -> Relation {
    let message = written::relation(5, "public", "ta\"ble", identity, columns);
    let Ok(Message::Relation(message)) = Message::parse(&message) else { panic!() };
    let mut types = Types::default();
    types.learn(20_000, Described::Same(23));
    Relation::new(&message, &types)
}

#[test]
fn columns_are_written_by_their_names_bytes() {
    let columns = [(true, "b", 23), (false, "ä", 25), (false, "B", 20_000), (false, "a\"", 20_001)];
    let relation = relation(b'd', &columns);
    let names: Vec<_> = relation.written.iter().map(|place| relation.columns[*place].name.as_str()).collect();
    assert_eq!(names, ["B", "a\"", "b", "ä"]);
    assert_eq!(relation.columns[3].label, br#""a\"":"#);
    assert_eq!(
        (relation.columns[2].form.clone(), relation.columns[3].form.clone()),
        (Form::Integer, Form::Text)
    );
    assert_eq!(
        (relation.table.as_str(), relation.table_json.as_slice()),
        ("ta\"ble", br#""ta\"ble""#.as_slice())
    );
}

#[test]
fn the_key_is_the_replica_identity_but_never_the_whole_row() {
    let columns = [(false, "v", 25), (true, "b", 23), (true, "a", 23)];
    assert_eq!(relation(b'd', &columns).key, [1, 2]);
    assert_eq!(relation(b'i', &columns).key, [1, 2]);
    assert_eq!(relation(b'd', &columns.map(|(_, name, oid)| (false, name, oid))).key, [0usize; 0]);
    assert_eq!(relation(b'n', &columns).key, [0usize; 0]);
    assert_eq!(relation(b'f', &columns.map(|(_, name, oid)| (true, name, oid))).key, [0usize; 0]);
}

#[test]
fn a_key_that_old_rows_have_can_be_given() {
    let full = relation(b'f', &[(true, "v", 25), (true, "b", 23), (true, "a", 23)]);
    assert_eq!(full.clone().with_key(&["a", "b"]).key, [1, 2]);
    assert_eq!(full.clone().with_key(&["a", "gone"]).key, [0usize; 0]);
    assert_eq!(full.with_key(&["a"]).with_key(&[]).key, [2]);
    assert_eq!(
        relation(b'i', &[(true, "a", 23), (false, "b", 23)]).with_key(&["b"]).key,
        [0],
        "b is not sent with old rows"
    );
}

#[test]
fn a_name_that_is_not_utf8_is_written_in_hexadecimal() {
    let mut bytes = written::relation(5, "s", "t", b'd', &[(false, "??", 25)]);
    let place = bytes.windows(2).position(|name| name == b"??").unwrap();
    bytes[place..place + 2].copy_from_slice(b"a\xff");
    let Ok(Message::Relation(message)) = Message::parse(&bytes) else { panic!() };
    let relation = Relation::new(&message, &Types::default());
    assert_eq!(relation.columns[0].name, r"\x61ff");
    assert_eq!(relation.columns[0].label, br#""\\x61ff":"#);
}

#[test]
fn the_last_description_of_a_table_counts() {
    let mut relations = Relations::default();
    relations.insert(relation(b'd', &[(false, "a", 23)]));
    relations.insert(relation(b'd', &[(false, "b", 23)]));
    assert_eq!(relations.find(5).unwrap().columns[0].name, "b");
    assert!(relations.find(6).is_none());
}

#[test]
fn a_table_with_all_columns_for_an_identity_is_keyed_by_its_primary_key() {
    let mut relations = Relations::default();
    relations.insert(relation(b'f', &[(true, "b", 23), (true, "a", 23), (true, "v", 25)]));
    assert!(relations.find(5).unwrap().key.is_empty());
    relations.give_key(5, b"a\0b\0");
    relations.give_key(6, b"a\0");
    assert_eq!(relations.find(5).unwrap().key, [0, 1]);
    relations.give_key(5, b"gone\0");
    assert_eq!(relations.find(5).unwrap().key, [0, 1], "a key that is not there is none");
}
