//! Tables as pgoutput describes them, prepared so that their rows are written without looking anything up. Pure.

use super::json;
use super::pgoutput::{RelationMessage, ReplicaIdentity};
use super::types::{Form, Types};
use std::collections::HashMap;

/// A table at one point of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation {
    pub oid: u32,
    /// Names that are not valid UTF-8 are `\x` and hexadecimal digits.
    pub schema: String,
    pub table: String,
    pub identity: ReplicaIdentity,
    /// In the order of `pg_attribute.attnum`, as tuples have them; without dropped, generated and unpublished ones.
    pub columns: Vec<Column>,
    /// The places of columns in [`Self::columns`] in the order in which events have them: by the bytes of their names, as Go's
    /// encoding/json writes maps.
    pub written: Vec<usize>,
    /// The places of the columns whose values are the key of a row's messages; empty when there is none.
    pub key: Vec<usize>,
    /// Schema and table as JSON strings.
    pub(super) schema_json: Vec<u8>,
    pub(super) table_json: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    pub type_oid: u32,
    /// `pg_attribute.atttypmod`
    pub type_modifier: i32,
    /// It is of the replica identity: it is sent with old rows.
    pub identity: bool,
    pub form: Form,
    /// `"name":`
    pub(super) label: Vec<u8>,
}

impl Relation {
    /// A table by its description. A type that `types` does not know counts as text.
    ///
    /// The key is the replica identity: with REPLICA IDENTITY DEFAULT the primary key, with USING INDEX that index's columns. With
    /// FULL every column is of the identity, which makes no key: two equal rows are told apart by nothing, and an UPDATE would
    /// always change it. [`Self::with_key`] gives such a table its primary key.
    pub fn new(message: &RelationMessage<'_>, types: &Types) -> Self {
        let columns = message.columns().map(|column| {
            let mut label = Vec::new();
            json::string(column.name, &mut label);
            label.push(b':');
            Column {
                name: text(column.name),
                type_oid: column.type_oid,
                type_modifier: column.type_modifier,
                identity: column.key,
                form: types.form(column.type_oid),
                label,
            }
        });
        let columns: Vec<_> = columns.collect();
        let mut written: Vec<_> = (0..columns.len()).collect();
        written.sort_by(|a, b| columns[*a].name.as_bytes().cmp(columns[*b].name.as_bytes()));
        let key = match message.identity {
            ReplicaIdentity::Default | ReplicaIdentity::Index => {
                (0..columns.len()).filter(|place| columns[*place].identity).collect()
            }
            ReplicaIdentity::Nothing | ReplicaIdentity::Full => Vec::new(),
        };
        let (mut schema_json, mut table_json) = (Vec::new(), Vec::new());
        json::string(message.schema, &mut schema_json);
        json::string(message.name, &mut table_json);
        Self {
            oid: message.oid,
            schema: text(message.schema),
            table: text(message.name),
            identity: message.identity,
            columns,
            written,
            key,
            schema_json,
            table_json,
        }
    }

    /// Makes these columns the key, in the order of the columns. Nothing changes unless all of them are there, and sent with old
    /// rows, so that a DELETE has the key too.
    pub fn with_key(mut self, names: &[&str]) -> Self {
        let is_key = |column: &Column| column.identity && names.contains(&column.name.as_str());
        let key: Vec<_> = (0..self.columns.len()).filter(|place| is_key(&self.columns[*place])).collect();
        if !names.is_empty() && key.len() == names.len() {
            self.key = key;
        }
        self
    }
}

/// A name, as it is in [`Relation`].
fn text(name: &[u8]) -> String {
    match str::from_utf8(name) {
        Ok(name) => name.to_owned(),
        Err(_) => name.iter().fold("\\x".to_owned(), |text, byte| format!("{text}{byte:02x}")),
    }
}

/// The tables of a stream by their OIDs. pgoutput describes each once in a session and then only when it has changed, so none may be
/// forgotten: as many as the publication has tables that something happened to, which the server's own decoder keeps as well.
#[derive(Debug, Default)]
pub struct Relations {
    by_oid: HashMap<u32, Relation>,
}

impl Relations {
    /// Instead of what was known of it.
    pub fn insert(&mut self, relation: Relation) {
        self.by_oid.insert(relation.oid, relation);
    }

    /// [`Relation::with_key`] of one that is known, by names with a zero byte after each.
    pub fn give_key(&mut self, oid: u32, names: &[u8]) {
        let names: Vec<_> =
            names.split(|byte| *byte == 0).filter(|name| !name.is_empty()).map(text).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        if let Some(relation) = self.by_oid.remove(&oid) {
            self.by_oid.insert(oid, relation.with_key(&names));
        }
    }

    pub fn find(&self, oid: u32) -> Option<&Relation> {
        self.by_oid.get(&oid)
    }
}

#[cfg(test)]
mod tests;
