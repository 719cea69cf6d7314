//! Messages of logical decoding, and the events that are made of them.
//!
//! An input is a list of messages, each behind two bytes that are its length.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postern::stream::event::{Action, Encoded, Encoder, EventOptions, KeyForm, Transaction};
use postern::stream::pgoutput::{Column, Message, Tuple};
use postern::stream::position::Lsn;
use postern::stream::relation::{Relation, Relations};
use postern::stream::types::{Form, Types};
use serde::de::IgnoredAny;
use std::time::UNIX_EPOCH;

fuzz_target!(|input: &[u8]| {
    let (types, mut relations, mut out) = (Types::default(), Relations::default(), Encoded::default());
    let mut encoders = [options(None, KeyForm::PrimaryKey), options(Some("?"), KeyForm::PsqlStreamer)]
        .map(|options| Encoder::new(options, 1));
    let transaction = Transaction { xid: 1, commit_end: Lsn(2), commit_time_micros: Some(3) };
    let mut rest = input;
    while let Some((length, more)) = rest.split_first_chunk::<2>() {
        let (bytes, after) = more.split_at(more.len().min(u16::from_le_bytes(*length).into()));
        rest = after;
        let Ok(message) = Message::parse(bytes) else { continue };
        let mut tables = Vec::new();
        match &message {
            Message::Relation(described) => {
                assert!(described.columns().count() <= bytes.len());
                relations.insert(Relation::new(described, &types));
            }
            Message::Insert { relation, new } => tables.extend(walk(*relation, &[*new])),
            Message::Update { relation, old, new } => {
                if let Some(old) = old {
                    walk(*relation, &[old.tuple()]);
                }
                tables.extend(walk(*relation, &[*new]));
            }
            Message::Delete { relation, old } => tables.extend(walk(*relation, &[old.tuple()])),
            Message::Truncate { relations, .. } => tables.extend(relations.iter()),
            _ => {}
        }
        let tables: Vec<_> = tables.iter().map(|oid| relations.find(*oid)).chain([None]).collect();
        for relation in tables {
            // The server's json and jsonb are taken at their word.
            let trusted =
                relation.is_some_and(|relation| relation.columns.iter().any(|column| has_json(&column.form)));
            for encoder in &mut encoders {
                let made = encoder.encode(&message, relation, Lsn(9), &transaction, 1, UNIX_EPOCH, &mut out);
                if made != Ok(true) {
                    continue;
                }
                assert_eq!(Some(out.action), action(&message));
                assert!(out.has_key || out.key.is_empty());
                assert!(!out.payload.contains(&b'\n') && !out.payload.contains(&b'\r'));
                let text = std::str::from_utf8(&out.payload).expect("UTF-8");
                if !trusted {
                    // Grammar only: a number may be too big for a double.
                    serde_json::from_str::<IgnoredAny>(text).expect("JSON");
                }
            }
        }
    }
});

/// Each kind of message makes events of its own action.
fn action(message: &Message<'_>) -> Option<Action> {
    Some(match message {
        Message::Insert { .. } => Action::Insert,
        Message::Update { .. } => Action::Update,
        Message::Delete { .. } => Action::Delete,
        Message::Truncate { .. } => Action::Truncate,
        Message::Begin { .. } => Action::Begin,
        Message::Commit { .. } => Action::Commit,
        Message::Message { .. } => Action::Message,
        _ => return None,
    })
}

/// Every column is there.
fn walk(relation: u32, tuples: &[Tuple<'_>]) -> Option<u32> {
    for tuple in tuples {
        let columns: Vec<Column<'_>> = tuple.columns().collect();
        assert_eq!(columns.len(), tuple.len());
    }
    Some(relation)
}

fn has_json(form: &Form) -> bool {
    match form {
        Form::Json => true,
        Form::Array(element, _) => has_json(element),
        _ => false,
    }
}

fn options(unchanged: Option<&str>, key: KeyForm) -> EventOptions {
    EventOptions {
        host: "h".into(),
        database: "d".into(),
        schema: true,
        commit_lsn: true,
        ordinal: true,
        xid: true,
        commit_timestamp: true,
        old: true,
        unchanged: unchanged.map(Into::into),
        truncate: true,
        transactions: true,
        messages: true,
        key,
    }
}
