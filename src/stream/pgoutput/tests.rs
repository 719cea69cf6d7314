//! Messages come out as they were written, and nothing else does.

use super::*;
use proptest::prelude::*;

const ROW: &[Column] =
    &[Column::Text(b"1"), Column::Null, Column::Unchanged, Column::Text(b""), Column::Binary(b"\0")];

fn columns<'a>(tuple: &Tuple<'a>) -> Vec<Column<'a>> {
    tuple.columns().collect()
}

#[test]
fn a_transaction_is_read_as_it_was_written() {
    let begin = written::begin(1, -2, 3);
    assert_eq!(Message::parse(&begin), Ok(Message::Begin { commit: Lsn(1), commit_time_micros: -2, xid: 3 }));
    let commit = written::commit(1, 2, 3);
    let expected = Message::Commit { commit: Lsn(1), end: Lsn(2), commit_time_micros: 3 };
    assert_eq!(Message::parse(&commit), Ok(expected));
    let origin = [b"O".as_slice(), &9u64.to_be_bytes(), b"elsewhere\0"].concat();
    assert_eq!(Message::parse(&origin), Ok(Message::Origin { commit: Lsn(9), name: b"elsewhere" }));
    let named = [b"Y".as_slice(), &16_400u32.to_be_bytes(), b"public\0mood\0"].concat();
    assert_eq!(Message::parse(&named), Ok(Message::Type { oid: 16_400, schema: b"public", name: b"mood" }));
    let message = written::message("outbox", b"\0\xff");
    let expected =
        Message::Message { transactional: true, lsn: Lsn(7), prefix: b"outbox", content: b"\0\xff" };
    assert_eq!(Message::parse(&message), Ok(expected));
}

#[test]
fn rows_are_read_as_they_were_written() {
    let insert = written::insert(5, ROW);
    let Ok(Message::Insert { relation: 5, new }) = Message::parse(&insert) else { panic!() };
    assert_eq!((columns(&new), new.len(), new.is_empty()), (ROW.to_vec(), 5, false));

    let key = &[Column::Text(b"old"), Column::Null];
    for (kind, is_key) in [(b'K', true), (b'O', false)] {
        let update = written::update(6, Some((kind, key)), ROW);
        let Ok(Message::Update { relation: 6, old: Some(old), new }) = Message::parse(&update) else {
            panic!()
        };
        assert_eq!((columns(&old.tuple()), columns(&new)), (key.to_vec(), ROW.to_vec()));
        assert_eq!(matches!(old, Old::Key(_)), is_key);
        let delete = written::delete(7, kind, key);
        let Ok(Message::Delete { relation: 7, old }) = Message::parse(&delete) else { panic!() };
        assert_eq!((columns(&old.tuple()), matches!(old, Old::Key(_))), (key.to_vec(), is_key));
    }
    let update = written::update(6, None, &[]);
    let Ok(Message::Update { old: None, new, .. }) = Message::parse(&update) else { panic!() };
    assert!(new.is_empty());

    let truncate = written::truncate(&[8, 9], 2);
    let Ok(Message::Truncate { relations, cascade: false, restart_identity: true }) =
        Message::parse(&truncate)
    else {
        panic!()
    };
    assert_eq!(relations.iter().collect::<Vec<_>>(), [8, 9]);
}

#[test]
fn a_relation_is_read_as_it_was_written() {
    let bytes = written::relation(5, "", "pg_class", b'i', &[(true, "a", 23), (false, "b", 25)]);
    let Ok(Message::Relation(relation)) = Message::parse(&bytes) else { panic!() };
    assert_eq!(
        (relation.oid, relation.schema, relation.name),
        (5, b"pg_catalog".as_slice(), b"pg_class".as_slice())
    );
    assert_eq!(relation.identity, ReplicaIdentity::Index);
    let column = |key, name, type_oid| DescribedColumn { key, name, type_oid, type_modifier: -1 };
    assert_eq!(relation.columns().collect::<Vec<_>>(), [column(true, b"a", 23), column(false, b"b", 25)]);
}

/// One message of each kind.
fn all() -> Vec<Vec<u8>> {
    vec![
        written::begin(1, 2, 3),
        written::commit(1, 2, 3),
        [b"O".as_slice(), &9u64.to_be_bytes(), b"elsewhere\0"].concat(),
        [b"Y".as_slice(), &16_400u32.to_be_bytes(), b"public\0mood\0"].concat(),
        written::relation(5, "public", "t", b'd', &[(true, "a", 23), (false, "b", 25)]),
        written::insert(5, ROW),
        written::update(5, Some((b'K', ROW)), ROW),
        written::update(5, Some((b'O', ROW)), ROW),
        written::update(5, None, ROW),
        written::delete(5, b'K', ROW),
        written::truncate(&[5, 6], 3),
        written::message("outbox", b"content"),
    ]
}

#[test]
fn a_message_that_is_cut_or_too_long_is_an_error() {
    for message in all() {
        for length in 0..message.len() {
            assert_eq!(Message::parse(&message[..length]), Err(Error::Short), "{length} of {message:?}");
        }
        let longer = [message.as_slice(), b"xy"].concat();
        assert_eq!(Message::parse(&longer), Err(Error::Long(2)), "{message:?}");
    }
}

#[test]
fn messages_that_were_not_asked_for_are_errors() {
    for tag in [b'S', b'E', b'c', b'A', b'b', b'P', b'K', b'r', b'p', 0] {
        assert_eq!(Message::parse(&[tag, 0, 0, 0, 0]), Err(Error::Unexpected(tag)));
    }
    let identity = written::relation(5, "s", "t", b'x', &[]);
    assert_eq!(Message::parse(&identity), Err(Error::Invalid { what: "replica identity", byte: b'x' }));
    assert_eq!(Message::parse(b"I\0\0\0\x01X"), Err(Error::Invalid { what: "kind of new row", byte: b'X' }));
    assert_eq!(Message::parse(b"D\0\0\0\x01N"), Err(Error::Invalid { what: "kind of old row", byte: b'N' }));
    let column = Message::parse(b"I\0\0\0\x01N\0\x01x");
    assert_eq!(column, Err(Error::Invalid { what: "kind of column", byte: b'x' }));
    assert_eq!(Error::Unexpected(0).to_string(), r"unexpected pgoutput message type \x00");
}

proptest! {
    #[test]
    fn a_broken_message_is_an_error_or_another_message(which in 0..12usize, place in any::<usize>(), byte in any::<u8>()) {
        let mut message = all().swap_remove(which);
        let place = place % message.len();
        message[place] = byte;
        match Message::parse(&message) {
            Ok(Message::Insert { new, .. }) => prop_assert_eq!(new.columns().count(), new.len()),
            Ok(Message::Relation(relation)) => prop_assert!(relation.columns().count() <= message.len()),
            _ => {}
        }
    }

    #[test]
    fn any_bytes_are_a_message_or_an_error(mut bytes in any::<Vec<u8>>(), tag in prop::sample::select(b"BCORYIUDTM".to_vec())) {
        bytes.insert(0, tag);
        let _ = Message::parse(&bytes);
    }
}
