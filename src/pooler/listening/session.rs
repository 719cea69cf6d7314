//! One client of the listen-only port: bytes in, answers and what the relay is to do out, no I/O. It reads as the server does
//! (src/backend/tcop/postgres.c): simple queries, the extended protocol with errors until Sync, transactions whose LISTENs take
//! effect when they commit. Pure; network threads.
//!
//! Bounds: a message of [`MESSAGE_MAX`] bytes; twice that read ahead; [`STATEMENTS_MAX`] prepared statements and as many portals;
//! [`CHANNELS_MAX`] channels that are listened to, as many that a transaction names, and as many rows that portals have not sent yet.

mod extended;
mod run;
mod transaction;

pub use transaction::Change;

use self::extended::Portal;
use self::run::Outcome;
use self::transaction::{Block, Then};
use super::Error;
use super::statement::{self, Statement};
use super::values::{Facts, Identity, Settings, put_row};
use crate::wire;
use crate::wire::inbox::{Inbox, Message};
use crate::wire::kept::Kept;
use crate::wire::message::{
    Report, backend_key_data, bodiless, command_complete, error_response, parameter_status, ready_for_query,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// Bytes of the longest message that is read, with its type and length.
pub const MESSAGE_MAX: usize = 8192;

/// How long an answer may grow before it is handed out.
const REPLY_AIM: usize = 65_536;

const STATEMENTS_MAX: usize = 32;
const CHANNELS_MAX: usize = 10_000;

/// What the front does next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Send this, then ask again.
    Reply(Vec<u8>),
    /// Tell the relay, then say what came of it by [`Session::changed`].
    Change(Change),
    /// Everything is answered: read from the client.
    More,
    /// Send this and hang up.
    Close(Vec<u8>),
}

/// A client that is logged in.
#[derive(Debug)]
pub struct Session {
    client: Identity,
    settings: Settings,
    /// As they were before the transaction changed one.
    before: Option<Settings>,
    /// As the client was told of them last.
    told: Option<Settings>,
    inbox: Inbox,
    out: Vec<u8>,
    /// The rest of a simple query, while one is answered.
    query: Option<VecDeque<Statement>>,
    block: Block,
    /// Something of the extended protocol has come since the last Sync: a transaction is open.
    open: bool,
    /// An error of the extended protocol: everything up to the Sync is passed over.
    skipping: bool,
    channels: BTreeSet<Vec<u8>>,
    /// What the transaction has named: whether it is to be listened to; and whether all others are not.
    named: BTreeMap<Vec<u8>, bool>,
    all_left: bool,
    /// The relay is asked; what follows.
    waiting: Option<(Change, Then)>,
    asked: bool,
    /// `None` is an empty query.
    statements: Kept<Option<Statement>>,
    portals: Kept<Portal>,
    /// Why the session must end.
    doom: Option<Error>,
    ended: bool,
}

impl Session {
    pub fn new(facts: Arc<Facts>, client: Identity) -> Self {
        Self {
            client,
            settings: Settings::new(facts),
            before: None,
            told: None,
            inbox: Inbox::new(MESSAGE_MAX),
            out: Vec::new(),
            query: None,
            block: Block::None,
            open: false,
            skipping: false,
            channels: BTreeSet::new(),
            named: BTreeMap::new(),
            all_left: false,
            waiting: None,
            asked: false,
            statements: Kept::statements(STATEMENTS_MAX),
            portals: Kept::portals(STATEMENTS_MAX),
            doom: None,
            ended: false,
        }
    }

    /// What the client's startup packet sets.
    ///
    /// # Errors
    /// What the client hears instead of a welcome.
    pub fn set_at_startup(&mut self, name: &str, value: &str) -> Result<(), Report> {
        let set = self.settings.set(&name.to_ascii_lowercase(), value);
        set.map_err(|error| Report { severity: "FATAL", ..error.report() })
    }

    /// What follows AuthenticationOk.
    pub fn welcome(&mut self) -> Vec<u8> {
        self.settings.begin();
        let mut out = Vec::new();
        self.report_settings(&mut out);
        backend_key_data(&mut out, self.client.pid, &self.client.key);
        ready_for_query(&mut out, b'I');
        out
    }

    pub fn application_name(&self) -> &str {
        self.settings.value("application_name")
    }

    /// Whether the server recovers, as far as is known.
    pub fn set_recovery(&mut self, recovers: bool) {
        self.settings.set_recovery(recovers);
        if let Some(before) = &mut self.before {
            before.set_recovery(recovers);
        }
    }

    /// Notifications may stand here: between messages, and in no transaction.
    pub fn is_idle(&self) -> bool {
        self.block == Block::None
            && !self.open
            && !self.skipping
            && self.query.is_none()
            && self.waiting.is_none()
            && !self.ended
    }

    /// Takes what the client has sent: at most [`MESSAGE_MAX`] bytes, and only when [`Session::step`] has said
    /// [`Step::More`]. A client whose bytes come faster than that is dropped.
    pub fn receive(&mut self, bytes: &[u8]) {
        if self.ended || self.doom.is_some() {
            return;
        }
        if let Err(error) = self.inbox.receive(bytes) {
            self.doom = Some(error.into());
        }
    }

    /// Goes on until there is something to do for the front.
    pub fn step(&mut self) -> Step {
        loop {
            if let Some(error) = self.doom.take() {
                error_response(&mut self.out, &Report { severity: "FATAL", ..error.report() });
                self.ended = true;
            }
            if self.ended {
                self.inbox.clear();
                return Step::Close(std::mem::take(&mut self.out));
            }
            if let Some((change, _)) = &self.waiting {
                if !self.out.is_empty() {
                    return Step::Reply(std::mem::take(&mut self.out));
                }
                self.asked = true;
                return Step::Change(change.clone());
            }
            if self.out.len() >= REPLY_AIM {
                return Step::Reply(std::mem::take(&mut self.out));
            }
            if self.query.is_some() {
                self.next_of_query();
                continue;
            }
            match self.inbox.next_message() {
                Ok(Some(Message { tag, body })) => self.message(tag, &body),
                Ok(None) if self.out.is_empty() => return Step::More,
                Ok(None) => return Step::Reply(std::mem::take(&mut self.out)),
                Err(error) => self.doom = Some(error.into()),
            }
        }
    }

    fn message(&mut self, tag: u8, body: &[u8]) {
        match tag {
            b'X' => self.ended = true,
            b'S' => {
                self.open = false;
                if std::mem::take(&mut self.skipping) {
                    return self.ready();
                }
                self.commit_unless_block(Then::Ready);
            }
            _ if self.skipping => {}
            b'Q' => {
                self.open = false;
                // As the server does, lest a driver's unnamed statement outlives its use.
                self.statements.close(b"");
                self.portals.close(b"");
                match wire::extended::query(body).map_err(Error::from).and_then(|text| self.read(text)) {
                    Ok(statements) => {
                        if statements.is_empty() {
                            bodiless(&mut self.out, b'I');
                        }
                        self.query = Some(statements.into());
                    }
                    Err(error) => self.fail_query(&error),
                }
            }
            b'F' => self.fail_query(&Error::NotHere),
            // What is left of a COPY that failed elsewhere; the server passes over it too.
            b'd' | b'c' | b'f' | b'H' => {}
            _ => {
                self.open = true;
                if let Err(error) = self.extended(tag, body) {
                    self.fail_extended(&error);
                }
            }
        }
    }

    fn read(&self, text: &[u8]) -> Result<Vec<Statement>, Error> {
        let utf8 = self.settings.is_utf8();
        if utf8 && std::str::from_utf8(text).is_err() {
            return Err(Error::NotUtf8);
        }
        statement::parse(text, utf8)
    }

    /// ReadyForQuery. Portals live no longer, but in a transaction block.
    fn ready(&mut self) {
        if self.block == Block::None {
            self.portals.clear();
        }
        let mut out = std::mem::take(&mut self.out);
        self.report_settings(&mut out);
        let status = match self.block {
            Block::None => b'I',
            Block::Open => b'T',
            Block::Failed => b'E',
        };
        ready_for_query(&mut out, status);
        self.out = out;
    }

    /// The settings that have changed since the client was last told.
    fn report_settings(&mut self, out: &mut Vec<u8>) {
        if self.told.as_ref() == Some(&self.settings) {
            return;
        }
        for (name, value) in self.settings.reported() {
            let told = self.told.as_ref().map(|told| told.value(&name.to_ascii_lowercase()));
            if told != Some(value) {
                parameter_status(out, name, value);
            }
        }
        self.told = Some(self.settings.clone());
    }

    fn report(&self, error: &Error) -> Report {
        let report = error.report();
        match error {
            Error::NotHere | Error::NoSetting(_) => report.with_hint(format!(
                "Send queries to the pooler's port (postern.pooler_listen is \"{}\").",
                self.client.pooler
            )),
            _ => report,
        }
    }

    fn fail_query(&mut self, error: &Error) {
        let report = self.report(error);
        self.fail_query_with(&report);
    }

    fn fail_query_with(&mut self, report: &Report) {
        self.query = None;
        error_response(&mut self.out, report);
        self.abort();
        self.ready();
    }

    fn fail_extended(&mut self, error: &Error) {
        let report = self.report(error);
        error_response(&mut self.out, &report);
        self.abort();
        self.skipping = true;
    }

    fn next_of_query(&mut self) {
        let Some(next) = self.query.as_mut().and_then(VecDeque::pop_front) else {
            self.query = None;
            return self.commit_unless_block(Then::Ready);
        };
        let last = self.query.as_ref().is_none_or(VecDeque::is_empty);
        match self.run(&next, last) {
            Ok(Outcome::Rows(rows, tag)) => {
                if let Some(shape) = self.shape(&next) {
                    shape.describe(&mut self.out, false);
                }
                let count = rows.len();
                rows.iter().for_each(|row| put_row(&mut self.out, row, false));
                self.complete_rows(tag, count);
            }
            Ok(Outcome::Commit(tag)) => self.commit(Then::Complete(tag)),
            // As in the server, the last statement is complete when its transaction is.
            Ok(Outcome::Done(tag)) if last => self.commit_unless_block(Then::Complete(tag)),
            Ok(Outcome::Done(tag)) => command_complete(&mut self.out, tag),
            Err(error) => self.fail_query(&error),
        }
    }

    fn complete_rows(&mut self, tag: &'static str, count: usize) {
        if tag == "SELECT" {
            command_complete(&mut self.out, &format!("SELECT {count}"));
        } else {
            command_complete(&mut self.out, tag);
        }
    }
}

fn lossy(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

#[cfg(test)]
mod tests;
