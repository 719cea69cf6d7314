//! One client of the listen-only port: bytes in, answers and what the relay is to do out, no I/O. It reads as the server does
//! (src/backend/tcop/postgres.c): simple queries, the extended protocol with errors until Sync, transactions whose LISTENs take
//! effect when they commit. Pure; network threads.
//!
//! Bounds: a message of [`MESSAGE_MAX`] bytes; twice that read ahead; [`STATEMENTS_MAX`] prepared statements and as many portals;
//! [`CHANNELS_MAX`] channels that are listened to, and as many that a transaction names.

use super::Error;
use super::statement::{self, Item, Name, Statement};
use super::values::{Facts, Identity, Settings, Shape, Type, Value, put_row, shape, value};
use crate::wire;
use crate::wire::extended::{self, Format, Named};
use crate::wire::inbox::{Inbox, Message};
use crate::wire::kept::Kept;
use crate::wire::message::{
    Report, backend_key_data, bodiless, command_complete, error_response, notice_response,
    parameter_description, parameter_status, ready_for_query,
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

/// What a transaction that commits changes: in force all together, or not at all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Change {
    /// Channels that the client has not listened to, and such that it has.
    pub listen: Vec<Vec<u8>>,
    pub unlisten: Vec<Vec<u8>>,
    /// It listens to nothing afterwards.
    pub is_all: bool,
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Block {
    None,
    Open,
    Failed,
}

/// What follows a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// CommandComplete with this tag, and what comes next.
    Complete(&'static str),
    /// ReadyForQuery.
    Ready,
}

#[derive(Debug)]
struct Portal {
    statement: Option<Statement>,
    binary: bool,
    progress: Progress,
}

#[derive(Debug)]
enum Progress {
    NotYet,
    Rows(VecDeque<Value>, &'static str),
    /// It had no rows, and is not run twice.
    Done,
}

/// What came of a statement.
enum Outcome {
    Done(&'static str),
    /// Its transaction is to be committed first.
    Commit(&'static str),
    Rows(VecDeque<Value>, &'static str),
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
                match extended::query(body).map_err(Error::from).and_then(|text| self.read(text)) {
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

    /// Nothing of the transaction comes to pass.
    fn abort(&mut self) {
        self.named.clear();
        self.all_left = false;
        if let Some(before) = self.before.take() {
            self.settings = before;
        }
        self.block = match self.block {
            Block::None => Block::None,
            Block::Open | Block::Failed => Block::Failed,
        };
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

    fn warn(&mut self, sqlstate: &str, message: &str) {
        let warning = Report { severity: "WARNING", ..Report::error(sqlstate, message) };
        notice_response(&mut self.out, &warning);
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

    fn commit_unless_block(&mut self, then: Then) {
        if self.block == Block::None { self.commit(then) } else { self.follow(then) }
    }

    /// What the transaction has named comes into force; the relay may have to be asked.
    fn commit(&mut self, then: Then) {
        let named = std::mem::take(&mut self.named);
        let all_left = std::mem::take(&mut self.all_left);
        if named.is_empty() && !all_left {
            return self.committed(then);
        }
        let is_over = |name: &&Vec<u8>| named.get(*name).map_or(all_left, |wanted| !wanted);
        let unlisten: Vec<_> = self.channels.iter().filter(is_over).cloned().collect();
        let is_new = |(name, wanted): &(Vec<u8>, bool)| *wanted && !self.channels.contains(name);
        let listen: Vec<_> =
            named.iter().map(|(name, wanted)| (name.clone(), *wanted)).filter(is_new).collect();
        let listen: Vec<_> = listen.into_iter().map(|(name, _)| name).collect();
        if listen.is_empty() && unlisten.is_empty() {
            return self.committed(then);
        }
        if self.channels.len() + listen.len() > CHANNELS_MAX + unlisten.len() {
            return self.not_committed(then, &Error::TooManyChannels.report());
        }
        let is_all = listen.is_empty() && unlisten.len() == self.channels.len();
        self.waiting = Some((Change { listen, unlisten, is_all }, then));
    }

    fn committed(&mut self, then: Then) {
        self.before = None;
        self.block = Block::None;
        self.follow(then);
    }

    fn not_committed(&mut self, then: Then, report: &Report) {
        self.block = Block::None;
        if self.query.is_some() {
            return self.fail_query_with(report);
        }
        error_response(&mut self.out, report);
        self.abort();
        match then {
            Then::Complete(_) => self.skipping = true,
            Then::Ready => self.ready(),
        }
    }

    fn follow(&mut self, then: Then) {
        match then {
            Then::Complete(tag) => command_complete(&mut self.out, tag),
            Then::Ready => self.ready(),
        }
    }

    /// What came of a [`Step::Change`]: in force, or an error and nothing of it is.
    pub fn changed(&mut self, result: Result<(), Report>) {
        if !std::mem::take(&mut self.asked) {
            return;
        }
        let Some((change, then)) = self.waiting.take() else { return };
        match result {
            Ok(()) => {
                for name in &change.unlisten {
                    self.channels.remove(name);
                }
                self.channels.extend(change.listen);
                self.committed(then);
            }
            Err(report) => self.not_committed(then, &report),
        }
    }

    fn name(&mut self, name: &Name) -> Vec<u8> {
        if let Some(whole) = &name.whole {
            let [whole, cut] = [whole, &name.bytes].map(|name| String::from_utf8_lossy(name).into_owned());
            let text = format!("identifier \"{whole}\" will be truncated to \"{cut}\"");
            let notice = Report { severity: "NOTICE", ..Report::error("42622", text) };
            notice_response(&mut self.out, &notice);
        }
        name.bytes.clone()
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), Error> {
        self.remember();
        self.settings.set(name, value)
    }

    fn remember(&mut self) {
        if self.before.is_none() {
            self.before = Some(self.settings.clone());
        }
    }

    /// Runs a statement, perhaps the last of its query.
    fn run(&mut self, statement: &Statement, last: bool) -> Result<Outcome, Error> {
        if self.block == Block::Failed && !statement.ends_transaction() {
            return Err(Error::Aborted);
        }
        Ok(match statement {
            Statement::Listen(name) => {
                if self.settings.in_recovery() {
                    return Err(Error::Recovery);
                }
                let name = self.name(name);
                self.name_channel(name, true)?;
                Outcome::Done("LISTEN")
            }
            Statement::Unlisten(name) => {
                let name = self.name(name);
                self.name_channel(name, false)?;
                Outcome::Done("UNLISTEN")
            }
            Statement::UnlistenAll => {
                self.leave_all();
                Outcome::Done("UNLISTEN")
            }
            Statement::Begin(tag) => {
                if self.block == Block::Open {
                    self.warn("25001", "there is already a transaction in progress");
                }
                self.block = Block::Open;
                Outcome::Done(tag)
            }
            Statement::Commit if self.block == Block::Failed => {
                self.abort();
                self.block = Block::None;
                Outcome::Done("ROLLBACK")
            }
            Statement::Commit => {
                if self.block == Block::None {
                    self.warn("25P01", "there is no transaction in progress");
                }
                self.portals.clear();
                Outcome::Commit("COMMIT")
            }
            Statement::Rollback => {
                if self.block == Block::None {
                    self.warn("25P01", "there is no transaction in progress");
                }
                self.abort();
                self.block = Block::None;
                self.portals.clear();
                Outcome::Done("ROLLBACK")
            }
            Statement::Set(name, Some(value)) => {
                self.set(name, value)?;
                Outcome::Done("SET")
            }
            Statement::Set(name, None) => {
                self.remember();
                self.settings.reset(name);
                Outcome::Done("SET")
            }
            Statement::SetNothing => Outcome::Done("SET"),
            Statement::Reset(name) => {
                self.remember();
                self.settings.reset(name);
                Outcome::Done("RESET")
            }
            Statement::ResetAll => {
                self.reset_all();
                Outcome::Done("RESET")
            }
            Statement::Show(name) => {
                let (_, value) = self.settings.find(name).ok_or_else(|| Error::NoSetting(name.clone()))?;
                Outcome::Rows([Value::Bytes(value.as_bytes().to_vec())].into(), "SHOW")
            }
            Statement::Select(Item::ListeningChannels, _) => {
                let rows = self.channels.iter().cloned().map(Value::Bytes).collect();
                Outcome::Rows(rows, "SELECT")
            }
            Statement::Select(item, _) => {
                let value = value(item, &self.client, &self.settings)?;
                Outcome::Rows(value.into_iter().collect(), "SELECT")
            }
            Statement::DiscardAll => {
                if self.block != Block::None || !last || !self.named.is_empty() {
                    return Err(Error::InBlock);
                }
                self.leave_all();
                self.reset_all();
                self.statements.clear_named();
                Outcome::Done("DISCARD ALL")
            }
            Statement::Deallocate(None) => {
                self.statements.clear_named();
                Outcome::Done("DEALLOCATE ALL")
            }
            Statement::Deallocate(Some(name)) => {
                self.statements.remove(name)?;
                Outcome::Done("DEALLOCATE")
            }
            Statement::Nothing(tag) => Outcome::Done(tag),
        })
    }

    fn reset_all(&mut self) {
        self.remember();
        self.settings.reset_all();
    }

    fn name_channel(&mut self, name: Vec<u8>, wanted: bool) -> Result<(), Error> {
        if self.named.len() >= CHANNELS_MAX && !self.named.contains_key(&name) {
            return Err(Error::TooManyChannels);
        }
        self.named.insert(name, wanted);
        Ok(())
    }

    fn leave_all(&mut self) {
        self.named.clear();
        self.all_left = true;
    }

    fn extended(&mut self, tag: u8, body: &[u8]) -> Result<(), Error> {
        match tag {
            b'P' => self.parse(body),
            b'B' => self.bind(body),
            b'D' => self.describe(extended::named(body)?),
            b'E' => self.execute(body),
            b'C' => {
                match extended::named(body)? {
                    Named::Statement(name) => self.statements.close(name),
                    Named::Portal(name) => self.portals.close(name),
                }
                bodiless(&mut self.out, b'3');
                Ok(())
            }
            other => Err(wire::Error::MessageType(other).into()),
        }
    }

    /// In a transaction that has failed only its end is looked at.
    fn check_block(&self, statement: Option<&Statement>) -> Result<(), Error> {
        let runs = statement.is_none_or(Statement::ends_transaction);
        if self.block == Block::Failed && !runs { Err(Error::Aborted) } else { Ok(()) }
    }

    fn parse(&mut self, body: &[u8]) -> Result<(), Error> {
        let parse = extended::parse(body)?;
        let mut statements = self.read(parse.query)?;
        if statements.len() > 1 {
            return Err(Error::SeveralCommands);
        }
        let statement = statements.pop();
        self.check_block(statement.as_ref())?;
        self.statements.keep(parse.statement, statement)?;
        bodiless(&mut self.out, b'1');
        Ok(())
    }

    fn bind(&mut self, body: &[u8]) -> Result<(), Error> {
        let bind = extended::bind(body)?;
        let statement = self.statements.find(bind.statement)?.clone();
        self.check_block(statement.as_ref())?;
        bind.check_no_parameters()?;
        let columns = usize::from(statement.as_ref().and_then(|statement| self.shape(statement)).is_some());
        let binary = bind.formats_for(columns)?.contains(&Format::Binary);
        self.portals.keep(bind.portal, Portal { statement, binary, progress: Progress::NotYet })?;
        bodiless(&mut self.out, b'2');
        Ok(())
    }

    /// The column of a statement that has rows.
    fn shape(&self, statement: &Statement) -> Option<Shape> {
        match statement {
            Statement::Select(item, alias) => Some(shape(item, alias.as_deref())),
            Statement::Show(name) => {
                let name = self.settings.find(name).map_or(&name[..], |(name, _)| name);
                Some(Shape { name: name.to_owned(), of: Type::Text })
            }
            _ => None,
        }
    }

    fn describe(&mut self, named: Named<'_>) -> Result<(), Error> {
        let (statement, binary) = match named {
            Named::Statement(name) => (self.statements.find(name)?.clone(), None),
            Named::Portal(name) => {
                let portal = self.portals.find(name)?;
                (portal.statement.clone(), Some(portal.binary))
            }
        };
        self.check_block(statement.as_ref())?;
        if binary.is_none() {
            parameter_description(&mut self.out, &[]);
        }
        match statement.as_ref().and_then(|statement| self.shape(statement)) {
            Some(shape) => shape.describe(&mut self.out, binary.unwrap_or(false)),
            None => bodiless(&mut self.out, b'n'),
        }
        Ok(())
    }

    fn execute(&mut self, body: &[u8]) -> Result<(), Error> {
        let execute = extended::execute(body)?;
        let name = execute.portal;
        let portal = self.portals.find_mut(name)?;
        let Some(statement) = portal.statement.clone() else {
            bodiless(&mut self.out, b'I');
            return Ok(());
        };
        match portal.progress {
            Progress::Done => return Err(wire::Error::PortalDone(lossy(name)).into()),
            Progress::Rows(..) => {}
            Progress::NotYet => {
                portal.progress = Progress::Done;
                match self.run(&statement, true)? {
                    Outcome::Rows(rows, tag) => {
                        if let Ok(portal) = self.portals.find_mut(name) {
                            portal.progress = Progress::Rows(rows, tag);
                        }
                    }
                    Outcome::Done(tag) => {
                        command_complete(&mut self.out, tag);
                        return Ok(());
                    }
                    Outcome::Commit(tag) => {
                        self.commit(Then::Complete(tag));
                        return Ok(());
                    }
                }
            }
        }
        let Ok(portal) = self.portals.find_mut(name) else { return Ok(()) };
        let Progress::Rows(rows, tag) = &mut portal.progress else { return Ok(()) };
        let (binary, tag) = (portal.binary, *tag);
        let most = usize::try_from(execute.rows).ok().filter(|most| *most > 0);
        let count = most.map_or(rows.len(), |most| most.min(rows.len()));
        for row in rows.drain(..count) {
            put_row(&mut self.out, &row, binary);
        }
        // As in the server, the end is known only where fewer rows came than were asked for.
        if most == Some(count) {
            bodiless(&mut self.out, b's');
        } else {
            self.complete_rows(tag, count);
        }
        Ok(())
    }
}

fn lossy(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

#[cfg(test)]
mod tests;
