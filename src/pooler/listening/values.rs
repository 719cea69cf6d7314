//! What a client of the listen-only port sees of a session: its settings, of which it may change its own, and what a SELECT shows.
//! Pure; network threads.

use super::Error;
use super::statement::Item;
use crate::wire::message::{Column, data_row_with, row_description_in};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Bytes of a setting's value that are kept.
const VALUE_MAX: usize = 1024;

/// A setting of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    pub name: String,
    pub value: String,
    /// A client is told of it unasked.
    pub reported: bool,
}

/// What the server says of itself, alike for clients of one role and database.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facts {
    /// The settings that a session begins with.
    pub parameters: Vec<Parameter>,
    /// What version() says.
    pub version: String,
}

impl Facts {
    /// The server recovers.
    pub fn recovers(&self) -> bool {
        self.parameter("in_hot_standby").is_some_and(|parameter| parameter.value == "on")
    }

    /// By a name in any case.
    fn parameter(&self, name: &str) -> Option<&Parameter> {
        self.parameters.iter().find(|parameter| parameter.name.eq_ignore_ascii_case(name))
    }
}

/// Who a client is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Identity {
    pub database: String,
    pub role: String,
    /// The pid and the key that it is told.
    pub pid: u32,
    pub key: Vec<u8>,
    /// `postern.pooler_listen`.
    pub pooler: String,
}

/// The settings that a startup packet's `options` name by `-c name=value` or `--name=value`. The server's own arguments otherwise mean
/// nothing here (pg_split_opts() in src/backend/utils/init/postinit.c).
pub fn options(text: &[u8]) -> Vec<(String, String)> {
    let (mut words, mut word, mut escaped) = (Vec::new(), Vec::new(), false);
    for byte in text.iter().chain(b" ") {
        if escaped || !(byte.is_ascii_whitespace() || *byte == b'\\') {
            word.push(*byte);
            escaped = false;
        } else if *byte == b'\\' {
            escaped = true;
        } else if !word.is_empty() {
            words.push(String::from_utf8_lossy(&std::mem::take(&mut word)).into_owned());
        }
    }
    let mut found = Vec::new();
    let mut words = words.iter().map(|word| &word[..]);
    while let Some(word) = words.next() {
        let setting = match word {
            "-c" => words.next(),
            word => word.strip_prefix("--").or_else(|| word.strip_prefix("-c")),
        };
        if let Some((name, value)) = setting.and_then(|setting| setting.split_once('=')) {
            found.push((name.replace('-', "_"), value.to_owned()));
        }
    }
    found
}

/// Settings that are the server's or the client's identity.
const FIXED: &[&str] = &[
    "server_version",
    "server_version_num",
    "server_encoding",
    "integer_datetimes",
    "is_superuser",
    "in_hot_standby",
    "max_identifier_length",
    "session_authorization",
];

/// The session's settings: what the client has made of the server's, by names in small letters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Settings {
    facts: Arc<Facts>,
    /// Of the startup packet, to which RESET goes back.
    first: BTreeMap<String, String>,
    changed: BTreeMap<String, String>,
    recovers: bool,
}

impl Settings {
    pub fn new(facts: Arc<Facts>) -> Self {
        let recovers = facts.recovers();
        Self { facts, first: BTreeMap::new(), changed: BTreeMap::new(), recovers }
    }

    pub fn version(&self) -> &str {
        &self.facts.version
    }

    /// A setting under its own name, and its value; `name` is in small letters.
    pub fn find(&self, name: &str) -> Option<(&str, &str)> {
        let parameter = self.facts.parameter(name)?;
        let own = || self.changed.get(name).or_else(|| self.first.get(name));
        let value = match name {
            "in_hot_standby" if self.recovers => "on",
            "in_hot_standby" => "off",
            "transaction_read_only" if self.recovers => "on",
            _ => own().unwrap_or(&parameter.value),
        };
        Some((&parameter.name, value))
    }

    pub fn value(&self, name: &str) -> &str {
        self.find(name).map_or("", |(_, value)| value)
    }

    /// Those that a client is told of unasked.
    pub fn reported(&self) -> impl Iterator<Item = (&str, &str)> {
        let reported = self.facts.parameters.iter().filter(|parameter| parameter.reported);
        reported.filter_map(|parameter| self.find(&parameter.name.to_ascii_lowercase()))
    }

    /// The encoding of names and payloads is UTF-8.
    pub fn is_utf8(&self) -> bool {
        self.value("server_encoding") == "UTF8"
    }

    pub fn in_recovery(&self) -> bool {
        self.recovers
    }

    pub fn set_recovery(&mut self, recovers: bool) {
        self.recovers = recovers;
    }

    /// Sets what is known, as far as it can be told from what the server would make of it; what is not known has no effect here.
    ///
    /// # Errors
    /// [`Error::FixedSetting`] and [`Error::Encoding`].
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), Error> {
        if FIXED.contains(&name) {
            return Err(Error::FixedSetting(name.to_owned()));
        }
        if name == "client_encoding" && !self.speaks(value) {
            return Err(Error::Encoding(self.value("server_encoding").to_owned()));
        }
        let Some((_, before)) = self.find(name) else { return Ok(()) };
        if value.len() > VALUE_MAX {
            return Ok(());
        }
        let value = match name {
            "client_encoding" => canonical(value),
            "datestyle" => date_style(before, value),
            "application_name" => printable(value),
            _ => boolean(before, value),
        };
        self.changed.insert(name.to_owned(), value);
        Ok(())
    }

    pub fn reset(&mut self, name: &str) {
        self.changed.remove(name);
    }

    pub fn reset_all(&mut self) {
        self.changed.clear();
    }

    /// What is set now is what the session began with.
    pub fn begin(&mut self) {
        self.first.append(&mut self.changed);
    }

    /// Whether a client of that encoding needs no conversion.
    fn speaks(&self, encoding: &str) -> bool {
        let ours = self.value("server_encoding");
        let wanted = canonical(encoding);
        wanted == ours || wanted == "SQL_ASCII" || ours == "SQL_ASCII"
    }
}

/// An encoding's name as the server has it, for those that have several.
fn canonical(name: &str) -> String {
    let plain: String =
        name.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_uppercase();
    match &plain[..] {
        "UTF8" | "UNICODE" => "UTF8".to_owned(),
        "SQLASCII" => "SQL_ASCII".to_owned(),
        "LATIN1" | "ISO88591" => "LATIN1".to_owned(),
        _ => name.to_ascii_uppercase(),
    }
}

/// A style without an order of day and month keeps the order.
fn date_style(before: &str, value: &str) -> String {
    let (mut style, mut order) = before.split_once(", ").unwrap_or((before, "MDY"));
    for word in value.split(',').map(str::trim) {
        match &word.to_ascii_uppercase()[..] {
            "ISO" => style = "ISO",
            "SQL" => style = "SQL",
            "POSTGRES" => style = "Postgres",
            "GERMAN" => style = "German",
            "MDY" | "US" | "NONEURO" | "NONEUROPEAN" => order = "MDY",
            "DMY" | "EURO" | "EUROPEAN" => order = "DMY",
            "YMD" => order = "YMD",
            _ => {}
        }
    }
    format!("{style}, {order}")
}

/// What the server shows of a name that has other than printable ASCII.
fn printable(value: &str) -> String {
    let cut: String = value
        .bytes()
        .take(63)
        .map(|byte| if (32..127).contains(&byte) { byte as char } else { '?' })
        .collect();
    cut
}

/// A setting that is on or off is so afterwards.
fn boolean(before: &str, value: &str) -> String {
    match &value.to_ascii_lowercase()[..] {
        "true" | "yes" | "1" if matches!(before, "on" | "off") => "on".to_owned(),
        "false" | "no" | "0" if matches!(before, "on" | "off") => "off".to_owned(),
        _ => value.to_owned(),
    }
}

/// A column's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Type {
    Text,
    Integer,
    Boolean,
    Name,
    Void,
}

impl Type {
    /// Its OID (src/include/catalog/pg_type.dat), and its length.
    fn of(self) -> (u32, i16) {
        match self {
            Self::Text => (25, -1),
            Self::Integer => (23, 4),
            Self::Boolean => (16, 1),
            Self::Name => (19, 64),
            Self::Void => (2278, 4),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Bytes(Vec<u8>),
    Integer(i32),
    Boolean(bool),
}

impl Value {
    fn put(&self, binary: bool, out: &mut Vec<u8>) {
        match self {
            Self::Bytes(bytes) => out.extend(bytes),
            Self::Integer(number) if binary => out.extend(number.to_be_bytes()),
            Self::Integer(number) => out.extend(number.to_string().as_bytes()),
            Self::Boolean(truth) if binary => out.push(u8::from(*truth)),
            Self::Boolean(truth) => out.push(if *truth { b't' } else { b'f' }),
        }
    }
}

/// The one column of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shape {
    pub name: String,
    pub of: Type,
}

impl Shape {
    pub fn describe(&self, out: &mut Vec<u8>, binary: bool) {
        let (type_oid, type_length) = self.of.of();
        let column = Column { name: &self.name, type_oid, type_length };
        row_description_in(out, &[column], |_| u16::from(binary));
    }
}

pub(super) fn put_row(out: &mut Vec<u8>, value: &Value, binary: bool) {
    data_row_with(out, 1, |_, out| {
        value.put(binary, out);
        true
    });
}

/// What a SELECT of the item answers with.
pub(super) fn shape(item: &Item, alias: Option<&str>) -> Shape {
    let (name, of) = match item {
        Item::Number(_) => ("?column?", Type::Integer),
        Item::Text(_) => ("?column?", Type::Text),
        Item::Version => ("version", Type::Text),
        Item::ListeningChannels => ("pg_listening_channels", Type::Text),
        Item::BackendPid => ("pg_backend_pid", Type::Integer),
        Item::Database => ("current_database", Type::Name),
        Item::Schema => ("current_schema", Type::Name),
        Item::Role(name) => (*name, Type::Name),
        Item::InRecovery => ("pg_is_in_recovery", Type::Boolean),
        Item::Unlock => ("pg_advisory_unlock_all", Type::Void),
        Item::Setting(_) => ("current_setting", Type::Text),
    };
    Shape { name: alias.unwrap_or(name).to_owned(), of }
}

/// The one value of an item that has one.
///
/// # Errors
/// [`Error::NoSetting`].
pub(super) fn value(item: &Item, client: &Identity, settings: &Settings) -> Result<Option<Value>, Error> {
    let text = |text: &str| Value::Bytes(text.as_bytes().to_vec());
    Ok(Some(match item {
        Item::Number(number) => Value::Integer(*number),
        Item::Text(said) => text(said),
        Item::Version => text(settings.version()),
        Item::ListeningChannels => return Ok(None),
        Item::BackendPid => Value::Integer(client.pid.cast_signed()),
        Item::Database => text(&client.database),
        Item::Schema => text("public"),
        Item::Role(_) => text(&client.role),
        Item::InRecovery => Value::Boolean(settings.in_recovery()),
        Item::Unlock => text(""),
        Item::Setting(name) => text(settings.find(name).ok_or_else(|| Error::NoSetting(name.clone()))?.1),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_style_of_dates_keeps_its_order() {
        assert_eq!(date_style("ISO, MDY", "ISO"), "ISO, MDY");
        assert_eq!(date_style("ISO, DMY", "sql"), "SQL, DMY");
        assert_eq!(date_style("ISO, MDY", "German, DMY"), "German, DMY");
    }

    #[test]
    fn options_are_split_as_the_server_does() {
        let found = options(b"-c search_path=a\\ b --application-name=x -d 5 -cjit=off -c");
        let pairs: Vec<_> = found.iter().map(|(name, value)| (&name[..], &value[..])).collect();
        assert_eq!(pairs, [("search_path", "a b"), ("application_name", "x"), ("jit", "off")]);
    }

    #[test]
    fn encodings_have_one_name() {
        for name in ["utf-8", "UTF8", "unicode"] {
            assert_eq!(canonical(name), "UTF8");
        }
        assert_eq!(canonical("sql_ascii"), "SQL_ASCII");
    }
}
