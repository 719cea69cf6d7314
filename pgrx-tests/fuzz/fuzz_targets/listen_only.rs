//! What a client sends to the listen-only port: any bytes, in pieces of any length. Every answer is whole messages, and the relay is
//! asked for what the client does not listen to and told of the end of what it does.
#![no_main]

mod answer;

use answer::assert_whole_messages;
use libfuzzer_sys::fuzz_target;
use postern::pooler::listening::{Facts, Identity, Parameter, Session, Step};
use postern::wire::message::Report;
use std::collections::BTreeSet;
use std::sync::Arc;

// The first byte says whether the server recovers and the relay refuses, and the database's encoding; the second how long the pieces
// are.
fuzz_target!(|bytes: &[u8]| {
    let [kind, length, sent @ ..] = bytes else { return };
    let encoding = if kind & 4 == 0 { "UTF8" } else { "SQL_ASCII" };
    let parameters = [
        ("application_name", ""),
        ("client_encoding", encoding),
        ("DateStyle", "ISO, MDY"),
        ("in_hot_standby", if kind & 1 == 0 { "off" } else { "on" }),
        ("server_encoding", encoding),
    ];
    let parameter = |(name, value): (&str, &str)| Parameter {
        name: name.to_owned(),
        value: value.to_owned(),
        reported: true,
    };
    let facts = Facts { parameters: parameters.map(parameter).into(), version: "PostgreSQL".to_owned() };
    let mut session = Session::new(Arc::new(facts), Identity::default());
    assert_whole_messages(&session.welcome());
    let mut channels = BTreeSet::new();
    for (number, piece) in sent.chunks(usize::from(*length).max(1)).enumerate() {
        session.receive(piece);
        loop {
            match session.step() {
                Step::Reply(bytes) => {
                    assert!(!bytes.is_empty());
                    assert_whole_messages(&bytes);
                }
                Step::Change(change) => {
                    assert!(!change.listen.is_empty() || !change.unlisten.is_empty());
                    assert!(change.listen.iter().all(|name| !channels.contains(name)));
                    assert!(
                        change.listen.iter().all(|name| (1..=63).contains(&name.len()) && !name.contains(&0))
                    );
                    assert!(change.unlisten.iter().all(|name| channels.contains(name)));
                    let is_all = change.listen.is_empty() && change.unlisten.len() == channels.len();
                    assert_eq!(change.is_all, is_all);
                    let refuses = kind & 2 != 0 && number % 2 == 0;
                    if !refuses {
                        channels.retain(|name| !change.unlisten.contains(name));
                        channels.extend(change.listen);
                    }
                    session.changed(if refuses { Err(Report::error("53400", "no")) } else { Ok(()) });
                }
                Step::More => break,
                Step::Close(bytes) => return assert_whole_messages(&bytes),
            }
        }
    }
});
