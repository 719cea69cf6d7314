//! A change as one line of JSON, with the key that its message has in a log such as Kafka's. Pure; an encoder belongs to the thread
//! that has it.
//!
//! Fields and their order are psql-streamer's: Host, Database, Table (without the schema), Action, WALPosition (a number), Timestamp
//! (when the event was made, RFC 3339 in UTC), UUID, Columns. Columns are sorted by the bytes of their names, values have the forms
//! of [`super::types`]. Then come those that [`EventOptions`] ask for: Schema, CommitLSN, Ordinal, Xid, CommitTimestamp, Old.
//!
//! An INSERT and an UPDATE carry the new row; a DELETE the columns of the replica identity and null for all others. What an UPDATE
//! did not touch and the server therefore does not send (TOASTed values) is taken from the old row where that came along
//! (REPLICA IDENTITY FULL), and otherwise left out, or what [`EventOptions::unchanged`] says.

mod row;

use self::row::{Row, Value};
use super::clock::Clock;
use super::error::Error;
use super::pgoutput::{Message, Old, Place};
use super::position::Lsn;
use super::relation::Relation;
use super::{json, value};
use siphasher::sip128::{Hasher128, SipHasher13};
use std::hash::Hasher;
use std::io::Write;
use std::time::SystemTime;
use uuid::Uuid;

/// What events are like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventOptions {
    /// The server's name in events and in psql-streamer's keys.
    pub host: String,
    pub database: String,
    /// `Schema`; empty, as `Table` is, in events that are of no table.
    pub schema: bool,
    /// `CommitLSN`: the end of the transaction's commit record, as PostgreSQL writes it.
    pub commit_lsn: bool,
    /// `Ordinal`: the number of the change in its transaction, from 1.
    pub ordinal: bool,
    /// `Xid`
    pub xid: bool,
    /// `CommitTimestamp`: RFC 3339 in UTC, to the microsecond; null in what was not committed: logical messages outside a transaction, and
    /// the rows of a snapshot.
    pub commit_timestamp: bool,
    /// `Old`: of the row before the change what the server sends: the columns of the replica identity (of an UPDATE only if it
    /// changed one of them), all with REPLICA IDENTITY FULL. Events without anything of it have no such field.
    pub old: bool,
    /// The string that stands for a value that was not sent because it had not changed; `None`: the column is left out.
    pub unchanged: Option<String>,
    /// An event for each table that is truncated: action `truncate`, no columns.
    pub truncate: bool,
    /// Events where transactions begin and end: actions `begin` and `commit`, no table, no columns.
    pub transactions: bool,
    /// Events of `pg_logical_emit_message`: action `message`, no table, columns `prefix` and `content`.
    pub messages: bool,
    pub key: KeyForm,
}

/// What the key of a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyForm {
    /// The values of the columns in [`Relation::key`] as a JSON object, in the order of the table's columns and the forms of events:
    /// `{"a":1,"b":"x"}`. The new row's, also if an UPDATE changed them ([`EventOptions::old`] shows what they were); the old one's
    /// of a DELETE. Events of tables without key columns, and of no row, have none.
    PrimaryKey,
    /// `Host:Database:Table:Action`, no JSON.
    PsqlStreamer,
}

/// The transaction that a change is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transaction {
    pub xid: u32,
    /// The end of its commit record.
    pub commit_end: Lsn,
    /// Microseconds since 2000-01-01 UTC, as pgoutput has it; none where nothing was committed.
    pub commit_time_micros: Option<i64>,
}

/// What happened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Action {
    // The numbers are in UUIDs.
    #[default]
    Insert = 0,
    Update = 1,
    Delete = 2,
    Truncate = 3,
    Begin = 4,
    Commit = 5,
    Message = 6,
}

impl Action {
    pub fn name(self) -> &'static str {
        match self {
            Self::Insert => "insert",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::Truncate => "truncate",
            Self::Begin => "begin",
            Self::Commit => "commit",
            Self::Message => "message",
        }
    }
}

/// An event. The caller keeps it and hands it in again, so that its memory is used again.
#[derive(Debug, Default)]
pub struct Encoded {
    /// Empty without a key.
    pub key: Vec<u8>,
    pub has_key: bool,
    /// One line without its line break. As long as its row is: at most six bytes for one of the server's, and the names.
    pub payload: Vec<u8>,
    pub action: Action,
}

/// Makes events of messages.
pub struct Encoder {
    options: EventOptions,
    seed: [u8; 16],
    /// The beginning of every event, up to the table.
    beginning: Vec<u8>,
    /// [`EventOptions::unchanged`] as JSON.
    unchanged: Option<Vec<u8>>,
    now: Clock,
    commit_time: Clock,
    new: Vec<Place>,
    old: Vec<Place>,
    element: Vec<u8>,
}

impl Encoder {
    /// `seed` goes into the UUIDs: streams with different seeds give different ones to the same change.
    pub fn new(options: EventOptions, seed: u128) -> Self {
        let mut beginning = br#"{"Host":"#.to_vec();
        json::string(options.host.as_bytes(), &mut beginning);
        beginning.extend_from_slice(br#","Database":"#);
        json::string(options.database.as_bytes(), &mut beginning);
        beginning.extend_from_slice(br#","Table":"#);
        let unchanged = options.unchanged.as_ref().map(|text| {
            let mut written = Vec::new();
            json::string(text.as_bytes(), &mut written);
            written
        });
        Self {
            options,
            seed: seed.to_le_bytes(),
            beginning,
            unchanged,
            now: Clock::default(),
            commit_time: Clock::default(),
            new: Vec::new(),
            old: Vec::new(),
            element: Vec::new(),
        }
    }

    /// Writes the event of a message, if it makes one: of a TRUNCATE that of `relation`, so call it once for each of its tables.
    ///
    /// The UUID looks like one of version 4, but is a hash of the seed, the position, the table and the action: the same event has
    /// the same one each time that it is delivered.
    ///
    /// # Errors
    /// When the message is of a table that is not `relation`, or its row has not the columns of `relation`, or one of them is
    /// binary. What is in `out` then is of no use.
    #[expect(clippy::too_many_arguments, reason = "all of them differ from one event to the next")]
    pub fn encode(
        &mut self,
        message: &Message<'_>,
        relation: Option<&Relation>,
        change_lsn: Lsn,
        transaction: &Transaction,
        ordinal: u64,
        now: SystemTime,
        out: &mut Encoded,
    ) -> Result<bool, Error> {
        let action = match message {
            Message::Insert { .. } => Action::Insert,
            Message::Update { .. } => Action::Update,
            Message::Delete { .. } => Action::Delete,
            Message::Truncate { .. } if self.options.truncate => Action::Truncate,
            Message::Begin { .. } if self.options.transactions => Action::Begin,
            Message::Commit { .. } if self.options.transactions => Action::Commit,
            Message::Message { .. } if self.options.messages => Action::Message,
            _ => return Ok(false),
        };
        let relation = table_of(message, relation)?;
        let row = match (message, relation) {
            (Message::Insert { new, .. }, Some(relation)) => Some(Row::new(relation, Some(*new), None)),
            (Message::Update { old, new, .. }, Some(relation)) => Some(Row::new(relation, Some(*new), *old)),
            (Message::Delete { old, .. }, Some(relation)) => Some(Row::new(relation, None, Some(*old))),
            _ => None,
        };
        if let Some(row) = &row {
            row.place(&mut self.new, &mut self.old)?;
        }
        out.begin(action);
        let payload = &mut out.payload;
        self.head(action, relation, change_lsn, transaction, ordinal, now, payload);
        match (message, &row) {
            (_, Some(row)) => self.columns(row, row.new.is_none(), false, payload)?,
            (Message::Message { prefix, content, .. }, _) => {
                payload.extend_from_slice(br#"{"prefix":"#);
                json::string(prefix, payload);
                payload.extend_from_slice(br#","content":"#);
                json::string(content, payload);
                payload.push(b'}');
            }
            _ => payload.extend_from_slice(b"{}"),
        }
        self.optional(relation, transaction, ordinal, payload);
        if self.options.old
            && let Some(row) = &row
            && let Some(old) = row.old
        {
            payload.extend_from_slice(br#","Old":"#);
            self.columns(row, true, matches!(old, Old::Key(_)), payload)?;
        }
        payload.push(b'}');
        out.has_key = self.key(action, relation, row.as_ref(), &mut out.key)?;
        Ok(true)
    }

    /// Up to the columns.
    #[expect(clippy::too_many_arguments, reason = "what the fields are made of")]
    fn head(
        &mut self,
        action: Action,
        relation: Option<&Relation>,
        change_lsn: Lsn,
        transaction: &Transaction,
        ordinal: u64,
        now: SystemTime,
        out: &mut Vec<u8>,
    ) {
        out.extend_from_slice(&self.beginning);
        out.extend_from_slice(relation.map_or(br#""""#, |relation| &relation.table_json));
        out.extend_from_slice(br#","Action":""#);
        out.extend_from_slice(action.name().as_bytes());
        out.extend_from_slice(br#"","WALPosition":"#);
        out.extend_from_slice(itoa::Buffer::new().format(change_lsn.0).as_bytes());
        out.extend_from_slice(br#","Timestamp":""#);
        self.now.system(now, out);
        out.extend_from_slice(br#"","UUID":""#);
        let what = u64::from(relation.map_or(0, |relation| relation.oid)) << 8 | action as u64;
        let uuid = uuid(&self.seed, [transaction.commit_end.0, ordinal, what]);
        out.extend_from_slice(uuid.hyphenated().encode_lower(&mut Uuid::encode_buffer()).as_bytes());
        out.extend_from_slice(br#"","Columns":"#);
    }

    /// The fields that not everybody wants, but for Old.
    fn optional(
        &mut self,
        relation: Option<&Relation>,
        transaction: &Transaction,
        ordinal: u64,
        out: &mut Vec<u8>,
    ) {
        if self.options.schema {
            out.extend_from_slice(br#","Schema":"#);
            out.extend_from_slice(relation.map_or(br#""""#, |relation| &relation.schema_json));
        }
        if self.options.commit_lsn {
            // A Vec takes everything.
            let _ = write!(out, r#","CommitLSN":"{}""#, transaction.commit_end);
        }
        if self.options.ordinal {
            out.extend_from_slice(br#","Ordinal":"#);
            out.extend_from_slice(itoa::Buffer::new().format(ordinal).as_bytes());
        }
        if self.options.xid {
            out.extend_from_slice(br#","Xid":"#);
            out.extend_from_slice(itoa::Buffer::new().format(transaction.xid).as_bytes());
        }
        if self.options.commit_timestamp {
            out.extend_from_slice(br#","CommitTimestamp":"#);
            match transaction.commit_time_micros {
                Some(micros) => {
                    out.push(b'"');
                    self.commit_time.server(micros, out);
                    out.push(b'"');
                }
                None => out.extend_from_slice(b"null"),
            }
        }
    }

    /// The new or the old row, of which maybe only the columns of the replica identity.
    fn columns(&mut self, row: &Row<'_>, old: bool, identity: bool, out: &mut Vec<u8>) -> Result<(), Error> {
        out.push(b'{');
        let start = out.len();
        for place in &row.relation.written {
            let Some(column) = row.relation.columns.get(*place) else { continue };
            if identity && !column.identity {
                continue;
            }
            let value =
                if old { row.old_value(*place, &self.old) } else { row.value(*place, &self.new, &self.old) };
            if value == Value::Unchanged && self.unchanged.is_none() {
                continue;
            }
            if out.len() != start {
                out.push(b',');
            }
            out.extend_from_slice(&column.label);
            match value {
                Value::Text(text) => value::write(&column.form, text, &mut self.element, out),
                Value::Null => out.extend_from_slice(b"null"),
                Value::Unchanged => out.extend_from_slice(self.unchanged.as_deref().unwrap_or(b"null")),
                Value::Binary => return Err(row.binary(column)),
            }
        }
        out.push(b'}');
        Ok(())
    }

    /// Appends the key; false when there is none.
    fn key(
        &mut self,
        action: Action,
        relation: Option<&Relation>,
        row: Option<&Row<'_>>,
        out: &mut Vec<u8>,
    ) -> Result<bool, Error> {
        if self.options.key == KeyForm::PsqlStreamer {
            let table = relation.map_or("", |relation| &relation.table);
            for part in [&self.options.host, &self.options.database, table, action.name()] {
                out.extend_from_slice(part.as_bytes());
                out.push(b':');
            }
            out.pop();
            return Ok(true);
        }
        let Some(row) = row.filter(|row| !row.relation.key.is_empty()) else { return Ok(false) };
        for place in &row.relation.key {
            let Some(column) = row.relation.columns.get(*place) else { continue };
            out.push(if out.is_empty() { b'{' } else { b',' });
            out.extend_from_slice(&column.label);
            match row.value(*place, &self.new, &self.old) {
                Value::Text(text) => value::write(&column.form, text, &mut self.element, out),
                Value::Null => out.extend_from_slice(b"null"),
                Value::Binary => return Err(row.binary(column)),
                // The server sends the old key along when part of it is TOASTed; should it not, there is no key.
                Value::Unchanged => {
                    out.clear();
                    return Ok(false);
                }
            }
        }
        out.push(b'}');
        Ok(true)
    }
}

impl Encoded {
    fn begin(&mut self, action: Action) {
        self.has_key = false;
        self.action = action;
        for bytes in [&mut self.key, &mut self.payload] {
            bytes.clear();
            bytes.shrink_to(KEPT);
        }
    }
}

/// The seed of a source's encoder, from the server's system identifier, the database's OID and the source's name: the same in every version
/// of Postern, so that an event keeps its UUID.
pub fn seed(system: u64, database: u32, source: &str) -> u128 {
    let mut hash = SipHasher13::new();
    hash.write(&system.to_le_bytes());
    hash.write(&database.to_le_bytes());
    hash.write(source.as_bytes());
    u128::from_le_bytes(hash.finish128().as_bytes())
}

/// A UUID as random as SipHash-1-3 is.
fn uuid(seed: &[u8; 16], words: [u64; 3]) -> Uuid {
    let mut hash = SipHasher13::new_with_key(seed);
    hash.write(words.map(u64::to_le_bytes).as_flattened());
    uuid::Builder::from_random_bytes(hash.finish128().as_bytes()).into_uuid()
}

/// The table that a message is of, which the one at hand must be.
fn table_of<'a>(
    message: &Message<'_>,
    relation: Option<&'a Relation>,
) -> Result<Option<&'a Relation>, Error> {
    let is = |oid: u32| relation.filter(|relation| relation.oid == oid).ok_or(Error::UnknownRelation(oid));
    match message {
        Message::Insert { relation, .. }
        | Message::Update { relation, .. }
        | Message::Delete { relation, .. } => is(*relation).map(Some),
        Message::Truncate { relations, .. } => {
            let oid = relation.map_or(0, |relation| relation.oid);
            is(relations.iter().find(|of| *of == oid).or(relations.iter().next()).unwrap_or(0)).map(Some)
        }
        _ => Ok(None),
    }
}

/// Bytes of memory that are kept from one event to the next; more, which a big row took, is given back.
const KEPT: usize = 1 << 20;

#[cfg(test)]
mod tests;
