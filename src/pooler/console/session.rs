//! One client of the console: bytes in, answers out, no I/O. It reads as the server does (src/backend/tcop/postgres.c):
//! simple queries, the extended protocol with errors until Sync, and FATAL for what the server would hang up on. Pure;
//! network threads.
//!
//! Bounds: a message of [`MESSAGE_MAX`] bytes; twice that read ahead; [`STATEMENTS_MAX`] prepared statements of
//! [`STATEMENTS_BYTES`] together; [`PORTALS_MAX`] portals, which keep the rows of one answer, or [`ROWS_MAX`] together. An answer
//! is as long as what it shows.

mod extended;

use self::extended::{Portal, Prepared};
use super::command::{self, Command};
use super::operator::{Operator, Progress};
use super::run::{self, Outcome, Waiting};
use super::table::describe;
use super::{Access, Error, SERVER_VERSION};
use crate::wire;
use crate::wire::inbox::{Inbox, Message};
use crate::wire::kept::Kept;
use crate::wire::message::{
    Report, backend_key_data, bodiless, command_complete, error_response, notice_response, parameter_status,
    ready_for_query,
};
use std::collections::VecDeque;

/// Bytes of the longest message that is read, with its type and length.
pub const MESSAGE_MAX: usize = 65_536;

/// How long an answer may grow before it is handed out.
const REPLY_AIM: usize = 65_536;

const STATEMENTS_MAX: usize = 256;
const STATEMENTS_BYTES: usize = 262_144;
const PORTALS_MAX: usize = 16;
const ROWS_MAX: usize = 10_000;

/// What the front does next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Send this, then ask again.
    Reply(Vec<u8>),
    /// An answer waits for the pooler: ask again when something was paused, resumed or closed, or after a while.
    Wait,
    /// Everything is answered: read from the client.
    More,
    /// Send this and hang up.
    Close(Vec<u8>),
}

/// A client of the console that is logged in.
#[derive(Debug)]
pub struct Session {
    access: Access,
    inbox: Inbox,
    out: Vec<u8>,
    /// The rest of a simple query, while one is answered.
    query: Option<VecDeque<Command>>,
    waiting: Option<Waiting>,
    canceled: bool,
    /// An error of the extended protocol: everything up to the Sync is passed over.
    skipping: bool,
    block: Option<Block>,
    statements: Kept<Prepared>,
    portals: Kept<Portal>,
    /// Why the session must end.
    doom: Option<Error>,
    ended: bool,
}

/// Between BEGIN and COMMIT, which do nothing else here.
#[derive(Debug, Default)]
struct Block {
    /// Something was changed that a ROLLBACK does not undo.
    changed: bool,
}

/// What follows AuthenticationOk: settings, the key for cancel requests, ReadyForQuery. PgBouncer's list, and what libpq asks
/// for where `target_session_attrs` is given.
pub fn greeting(access: Access, pid: u32, key: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let superuser = if access == Access::Admin { "on" } else { "off" };
    for (name, value) in [
        ("server_version", SERVER_VERSION),
        ("client_encoding", "UTF8"),
        ("server_encoding", "UTF8"),
        ("DateStyle", "ISO"),
        ("TimeZone", "GMT"),
        ("standard_conforming_strings", "on"),
        ("is_superuser", superuser),
        ("default_transaction_read_only", "off"),
        ("in_hot_standby", "off"),
    ] {
        parameter_status(&mut out, name, value);
    }
    backend_key_data(&mut out, pid, key);
    ready_for_query(&mut out, b'I');
    out
}

impl Session {
    pub fn new(access: Access) -> Self {
        Self {
            access,
            inbox: Inbox::new(MESSAGE_MAX),
            out: Vec::new(),
            query: None,
            waiting: None,
            canceled: false,
            skipping: false,
            block: None,
            statements: Kept::statements(STATEMENTS_MAX),
            portals: Kept::portals(PORTALS_MAX),
            doom: None,
            ended: false,
        }
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

    /// A cancel request with this client's key. It ends the waiting of PAUSE and WAIT_CLOSE; nothing else takes time.
    pub fn cancel(&mut self) {
        self.canceled = self.waiting.is_some();
    }

    /// Goes on until there is something to do for the front.
    pub fn step(&mut self, operator: &dyn Operator) -> Step {
        loop {
            if let Some(error) = self.doom.take() {
                error_response(&mut self.out, &error.report("FATAL"));
                self.ended = true;
            }
            if self.ended {
                self.inbox.clear();
                return Step::Close(std::mem::take(&mut self.out));
            }
            if self.out.len() >= REPLY_AIM {
                return self.reply_or(Step::More);
            }
            if let Some(waiting) = self.waiting.take() {
                if let Some(waiting) = self.wait(waiting, operator) {
                    self.waiting = Some(waiting);
                    return self.reply_or(Step::Wait);
                }
            } else if self.query.is_some() {
                self.next_of_query(operator);
            } else {
                match self.inbox.next_message() {
                    Ok(Some(Message { tag, body })) => self.message(tag, &body, operator),
                    Ok(None) => return self.reply_or(Step::More),
                    Err(error) => self.doom = Some(error.into()),
                }
            }
        }
    }

    fn reply_or(&mut self, otherwise: Step) -> Step {
        if self.out.is_empty() { otherwise } else { Step::Reply(std::mem::take(&mut self.out)) }
    }

    fn message(&mut self, tag: u8, body: &[u8], operator: &dyn Operator) {
        match tag {
            b'X' => self.ended = true,
            b'S' => {
                self.skipping = false;
                self.ready();
            }
            _ if self.skipping => {}
            b'Q' => {
                // As the server does, lest a driver's unnamed statement outlives its use.
                self.statements.close(b"");
                self.portals.close(b"");
                match self.read_query(body) {
                    Ok(commands) => self.query = Some(commands),
                    Err(error) => self.fail_query(&error),
                }
            }
            b'F' => self.fail_query(&Error::Unsupported("a function call", "Use a query.")),
            // What is left of a COPY that failed elsewhere; the server passes over it too.
            b'd' | b'c' | b'f' => {}
            b'H' => {}
            _ => {
                if let Err(error) = self.extended(tag, body, operator) {
                    self.fail_extended(&error);
                }
            }
        }
    }

    /// The end of a simple query, or a Sync. Portals live no longer, but in a transaction block.
    fn ready(&mut self) {
        if self.block.is_none() {
            self.portals.clear();
        }
        ready_for_query(&mut self.out, if self.block.is_some() { b'T' } else { b'I' });
    }

    fn error(&mut self, error: &Error) {
        error_response(&mut self.out, &error.report("ERROR"));
    }

    fn fail_query(&mut self, error: &Error) {
        self.query = None;
        self.error(error);
        self.ready();
    }

    fn fail_extended(&mut self, error: &Error) {
        self.error(error);
        self.skipping = true;
    }

    fn read_query(&mut self, body: &[u8]) -> Result<VecDeque<Command>, Error> {
        let commands = command::parse(text(wire::extended::query(body)?)?)?;
        if commands.is_empty() {
            bodiless(&mut self.out, b'I');
        }
        Ok(commands.into())
    }

    fn next_of_query(&mut self, operator: &dyn Operator) {
        let Some(command) = self.query.as_mut().and_then(VecDeque::pop_front) else {
            self.query = None;
            self.ready();
            return;
        };
        match self.run(&command, operator) {
            Ok(Outcome::Rows(table, tag)) => {
                describe(&mut self.out, &table.columns, &[]);
                for row in &table.rows {
                    table.put_row(&mut self.out, row, &[]);
                }
                command_complete(&mut self.out, tag);
            }
            Ok(Outcome::Leave(tag)) => {
                command_complete(&mut self.out, tag);
                self.ready();
                self.ended = true;
            }
            Ok(outcome) => self.finish(outcome),
            Err(error) => self.fail_query(&error),
        }
    }

    /// What simple and extended queries do alike with an outcome without rows.
    fn finish(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Done(tag) => command_complete(&mut self.out, &tag),
            Outcome::Told(report, tag) => {
                notice_response(&mut self.out, &report);
                command_complete(&mut self.out, tag);
            }
            Outcome::Wait(waiting) => self.waiting = Some(waiting),
            Outcome::Leave(tag) => {
                command_complete(&mut self.out, tag);
                self.ended = true;
            }
            Outcome::Rows(_, tag) => command_complete(&mut self.out, tag),
        }
    }

    /// Gives back what is still to be waited for.
    fn wait(&mut self, waiting: Waiting, operator: &dyn Operator) -> Option<Waiting> {
        let error = match waiting.progress(operator) {
            Progress::Done => {
                command_complete(&mut self.out, waiting.tag());
                self.canceled = false;
                return None;
            }
            Progress::Undone => Error::Undone(waiting.tag()),
            Progress::Pending if self.canceled => Error::Canceled,
            Progress::Pending => return Some(waiting),
        };
        self.canceled = false;
        if self.query.is_some() {
            self.fail_query(&error)
        } else {
            self.fail_extended(&error)
        }
        None
    }

    /// Runs a command, with what it means for the session.
    fn run(&mut self, command: &Command, operator: &dyn Operator) -> Result<Outcome, Error> {
        let warn = |out: &mut Vec<u8>, sqlstate: &str, message: &str| {
            let mut warning = Report::error(sqlstate, message);
            warning.severity = "WARNING";
            notice_response(out, &warning);
        };
        match command {
            Command::Begin(_) if self.block.is_some() => {
                warn(&mut self.out, "25001", "there is already a transaction in progress");
            }
            Command::Begin(_) => self.block = Some(Block::default()),
            Command::Commit | Command::Rollback => {
                match self.block.take() {
                    None => warn(&mut self.out, "25P01", "there is no transaction in progress"),
                    Some(block) if block.changed && *command == Command::Rollback => {
                        warn(&mut self.out, "01000", "commands of the console are not rolled back");
                    }
                    Some(_) => {}
                }
                self.portals.clear();
            }
            Command::Forget(None, _) => self.statements.clear(),
            Command::Forget(Some(name), _) => {
                self.statements.remove(name.as_bytes())?;
            }
            _ => {}
        }
        let outcome = run::run(command, self.access, operator)?;
        if let Some(block) = &mut self.block {
            block.changed |= command.needs_admin();
        }
        Ok(outcome)
    }
}

fn text(bytes: &[u8]) -> Result<&str, Error> {
    std::str::from_utf8(bytes).map_err(|_| Error::NotUtf8)
}

#[cfg(test)]
mod tests;
