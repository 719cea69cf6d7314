//! What a source is to do, from its options. Pure; the backend that defines it checks them by this, and its worker uses them.

use super::event::{EventOptions, KeyForm};
use super::options::{OptionError, Options};
use super::source;
use serde_json::{Map, Value};
use siphasher::sip::SipHasher13;
use std::hash::Hasher;
use std::ops::RangeInclusive;
use std::time::Duration;

/// What a source can be.
pub fn kinds() -> Vec<&'static str> {
    std::iter::once("postgres").chain(source::KINDS.iter().map(|(name, _)| *name)).collect()
}

/// A source's options are right.
///
/// # Errors
/// Names the option that is wrong.
pub fn check(kind: &str, options: &Map<String, Value>) -> Result<(), OptionError> {
    match kind {
        "postgres" => PostgresSource::new(options).map(drop),
        _ if source::KINDS.iter().any(|(name, _)| *name == kind) => source::check(kind, options),
        _ => Err(OptionError::new("kind", format!("must be one of {}", kinds().join(", ")))),
    }
}

/// What becomes of WAL that waits for a sink beyond the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtLimit {
    /// It is kept, and the log warns.
    Keep,
    /// The slot is dropped: what was not delivered is lost, and the stream says so.
    Drop,
}

/// What becomes of a source whose slot is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LostSlot {
    /// It waits for the operator.
    Stop,
    /// A new slot is made, and the gap is stated.
    Continue,
}

/// Pauses before another try.
const RETRY: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_hours(24);

/// The server's own WAL.
#[derive(Debug, Clone)]
pub struct PostgresSource {
    /// Made for all tables, or for `tables`, when there is none. None: `postern_` and the source's name.
    pub publication: Option<String>,
    /// Tables of a publication that is made, as SQL has them after FOR TABLE.
    pub tables: Vec<String>,
    /// None: `postern_` and what the source's name and the database's make.
    pub slot: Option<String>,
    /// Bytes of WAL before what is delivered that are kept, so that the source can be rewound.
    pub retain: u64,
    pub retry: Duration,
    /// What is there already is sent first.
    pub snapshot: bool,
    /// Bytes of WAL that may wait; none is no limit.
    pub wal_limit: Option<u64>,
    pub at_limit: AtLimit,
    pub lost_slot: LostSlot,
    /// Kept on a standby that follows by a slot: PostgreSQL 17 and later.
    pub failover: bool,
    /// What events have; the host and the database are put in by the worker where they are empty.
    pub event: EventOptions,
}

impl PostgresSource {
    /// # Errors
    /// Names the option that is wrong.
    pub fn new(options: &Map<String, Value>) -> Result<Self, OptionError> {
        let mut o = Options::new(options);
        if o.value("dsn").is_some() {
            return Err(OptionError::new(
                "dsn",
                "is not needed: the source is the database in which it is made",
            ));
        }
        // psql-streamer's names beside ours.
        let name = o.either("slot", "replicationSlot")?;
        let slot = o.text(name)?.filter(|text| !text.is_empty());
        if let Some(slot) = &slot {
            let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            if slot.len() > 63 || !slot.chars().all(allowed) {
                let why = "must be at most 63 characters of a-z, 0-9 and the underscore";
                return Err(OptionError::new(name, why));
            }
        }
        let name = o.either("retain", "walRetain")?;
        let retain = o.bytes(name, 0)?;
        let name = o.either("retry", "startRetryInterval")?;
        let retry = o.time(name, Duration::from_secs(5))?;
        if !RETRY.contains(&retry) {
            return Err(OptionError::new(name, "must be from 100ms to 1d"));
        }
        let publication = o.text("publication")?.filter(|text| !text.is_empty());
        if publication.as_ref().is_some_and(|name| name.len() > 63) {
            return Err(OptionError::new("publication", "must have at most 63 bytes"));
        }
        let wal_limit = Some(o.bytes("wal_limit", 0)?).filter(|limit| *limit > 0);
        if o.has("at_wal_limit") && wal_limit.is_none() {
            return Err(OptionError::new("at_wal_limit", "needs the option \"wal_limit\""));
        }
        let source = Self {
            publication,
            tables: o.list("tables")?,
            slot,
            retain,
            retry,
            snapshot: o.flag("snapshot", false)?,
            wal_limit,
            at_limit: o.one_of(
                "at_wal_limit",
                &[("keep", AtLimit::Keep), ("drop", AtLimit::Drop)],
                AtLimit::Keep,
            )?,
            lost_slot: o.one_of(
                "lost_slot",
                &[("stop", LostSlot::Stop), ("continue", LostSlot::Continue)],
                LostSlot::Stop,
            )?,
            failover: o.flag("failover", true)?,
            event: EventOptions {
                host: o.text("host")?.unwrap_or_default(),
                database: o.text("database")?.unwrap_or_default(),
                schema: o.flag("schema", false)?,
                commit_lsn: o.flag("commit_lsn", false)?,
                ordinal: o.flag("ordinal", false)?,
                xid: o.flag("xid", false)?,
                commit_timestamp: o.flag("commit_timestamp", false)?,
                old: o.flag("old", false)?,
                unchanged: o.text("unchanged")?,
                truncate: o.flag("truncate", false)?,
                transactions: o.flag("transactions", false)?,
                messages: o.flag("messages", false)?,
                key: o.one_of(
                    "key",
                    &[("primary_key", KeyForm::PrimaryKey), ("psql_streamer", KeyForm::PsqlStreamer)],
                    KeyForm::PrimaryKey,
                )?,
            },
        };
        o.finish()?;
        Ok(source)
    }

    /// The slot's name: the operator's, or one that no other source has.
    pub fn slot_name(&self, source: &str, database: u32) -> String {
        self.slot.clone().unwrap_or_else(|| {
            let plain = |c: char| {
                let c = c.to_ascii_lowercase();
                if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '_' }
            };
            let name: String = source.chars().map(plain).take(32).collect();
            // Two names that look alike in these letters must not share a slot.
            let differs = if name == source { String::new() } else { format!("_{:08x}", digest(source)) };
            format!("postern_{database}_{name}{differs}")
        })
    }

    pub fn publication_name(&self, source: &str) -> String {
        self.publication.clone().unwrap_or_else(|| {
            let whole = format!("postern_{source}");
            if whole.len() <= 63 {
                return whole;
            }
            // The server would cut it without a word.
            format!("{}_{:08x}", &whole[..whole.floor_char_boundary(54)], digest(source))
        })
    }
}

/// The same in every version of Postern.
fn digest(text: &str) -> u32 {
    let mut hash = SipHasher13::new();
    hash.write(text.as_bytes());
    hash.finish() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(json: &str) -> Result<PostgresSource, OptionError> {
        PostgresSource::new(&serde_json::from_str(json).unwrap())
    }

    #[test]
    fn psql_streamers_names_are_known() {
        let source = source(
            r#"{"publication":"p","replicationSlot":"s","walRetain":1048576,"startRetryInterval":"1s"}"#,
        );
        let source = source.unwrap();
        assert_eq!((source.publication_name("x"), source.slot_name("x", 1)), ("p".into(), "s".into()));
        assert_eq!((source.retain, source.retry), (1 << 20, Duration::from_secs(1)));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let said = |json: &str| source(json).unwrap_err().to_string();
        assert!(said(r#"{"slot":"Ö"}"#).starts_with("option \"slot\" must be"));
        assert!(said(r#"{"dsn":"host=x"}"#).starts_with("option \"dsn\" is not needed"));
        assert_eq!(said(r#"{"snapshots":true}"#), "option \"snapshots\" is not known");
        assert!(said(r#"{"key":"id"}"#).contains("must be one of primary_key, psql_streamer"));
        for (one, other) in [
            (r#""slot":"a","replicationSlot":"a""#, "replicationSlot"),
            (r#""retain":1,"walRetain":2"#, "walRetain"),
            (r#""retry":"1s","startRetryInterval":"1s""#, "startRetryInterval"),
        ] {
            let both = said(&format!("{{{one}}}"));
            assert!(both.starts_with(&format!("option \"{other}\" is another name of \"")), "{both}");
        }
        assert!(said(r#"{"replicationSlot":"Ö"}"#).starts_with("option \"replicationSlot\" must be"));
        assert_eq!(said(r#"{"retry":0}"#), "option \"retry\" must be from 100ms to 1d");
        assert_eq!(
            said(r#"{"startRetryInterval":"25h"}"#),
            "option \"startRetryInterval\" must be from 100ms to 1d"
        );
        assert_eq!(
            said(r#"{"at_wal_limit":"drop"}"#),
            "option \"at_wal_limit\" needs the option \"wal_limit\""
        );
        assert!(check("mysql", &Map::new()).unwrap_err().to_string().contains("must be one of postgres"));
    }

    #[test]
    fn a_slot_of_no_name_gets_one_that_the_server_takes() {
        let source = source("{}").unwrap();
        assert_eq!(source.slot_name("shop_1", 5), "postern_5_shop_1");
        assert_eq!(source.slot_name("Shop-Öl 1", 5), "postern_5_shop__l_1_297870b4", "in every version");
        assert_ne!(source.slot_name("Shop", 5), source.slot_name("shop", 5));
        assert!(source.slot_name(&"x".repeat(63), u32::MAX).len() <= 63);
        assert_eq!(source.publication_name("Shop"), "postern_Shop");
        let long = source.publication_name(&"ü".repeat(31));
        assert!(long.starts_with("postern_üü") && long.len() <= 63, "{long}");
        assert_ne!(long, source.publication_name(&format!("{}x", "ü".repeat(31))));
    }
}
