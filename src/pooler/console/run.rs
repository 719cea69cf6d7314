//! A command upon an operator: who may give it, what comes of it. What concerns the client's own session only (BEGIN,
//! DEALLOCATE) is the session's. Pure.

use super::command::{Command, HELP, Show};
use super::operator::{Operator, Progress, Shutdown};
use super::table::{Column, Kind, Table, Value};
use super::{Access, DATABASE, Error, show};
use crate::wire::message::Report;

/// What comes of a command.
#[derive(Debug)]
pub(super) enum Outcome {
    Rows(Table, &'static str),
    /// Nothing but its tag.
    Done(String),
    /// Something to tell before the tag.
    Told(Report, &'static str),
    Wait(Waiting),
    /// The tag, after which the console hangs up.
    Leave(&'static str),
}

/// What an answer waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Waiting {
    Paused(Option<String>),
    Closed(Option<String>),
}

impl Waiting {
    pub fn tag(&self) -> &'static str {
        match self {
            Self::Paused(_) => "PAUSE",
            Self::Closed(_) => "WAIT_CLOSE",
        }
    }

    pub fn progress(&self, operator: &dyn Operator) -> Progress {
        match self {
            Self::Paused(database) => operator.paused(database.as_deref()),
            Self::Closed(database) => operator.closed(database.as_deref()),
        }
    }
}

/// The columns of the rows that a command answers with; none where it answers with none.
pub(super) fn columns(command: &Command) -> Vec<Column> {
    match command {
        Command::Show(show) => show::columns(*show),
        Command::Text(name, _) => vec![Column { name, kind: Kind::Text }],
        Command::Number(_) => vec![Column { name: "?column?", kind: Kind::Int4 }],
        _ => Vec::new(),
    }
}

/// Runs a command.
///
/// # Errors
/// [`Error::AdminNeeded`], [`Error::OwnDatabase`], and what the operator says.
pub(super) fn run(command: &Command, access: Access, operator: &dyn Operator) -> Result<Outcome, Error> {
    if command.needs_admin() && access != Access::Admin {
        return Err(Error::AdminNeeded);
    }
    let done = |tag: &str| Ok(Outcome::Done(tag.to_owned()));
    match command {
        Command::Show(Show::Help) => {
            let mut usage = Report::error("00000", "Console usage").with_detail(HELP);
            usage.severity = "NOTICE";
            Ok(Outcome::Told(usage, "SHOW"))
        }
        Command::Show(show) => Ok(Outcome::Rows(show::table(*show, operator), "SHOW")),
        Command::Text(_, value) => Ok(single(command, Value::from(*value), "SHOW")),
        Command::Number(number) => Ok(single(command, Value::Int(*number), "SELECT 1")),
        Command::Pause(database) => {
            operator.pause(others(database.as_deref(), "pause")?)?;
            Ok(Outcome::Wait(Waiting::Paused(database.clone())))
        }
        Command::Resume(database) => {
            operator.resume(others(database.as_deref(), "resume")?)?;
            done("RESUME")
        }
        Command::Reconnect(database) => {
            operator.reconnect(others(database.as_deref(), "reconnect")?)?;
            done("RECONNECT")
        }
        Command::WaitClose(database) => {
            operator.wait_close(others(database.as_deref(), "wait in")?)?;
            Ok(Outcome::Wait(Waiting::Closed(database.clone())))
        }
        Command::Kill(database) => {
            others(Some(database), "kill")?;
            operator.kill(database)?;
            done("KILL")
        }
        Command::Enable(database) => {
            others(Some(database), "enable")?;
            operator.enable(database)?;
            done("ENABLE")
        }
        Command::Disable(database) => {
            others(Some(database), "disable")?;
            operator.disable(database)?;
            done("DISABLE")
        }
        Command::KillClient(id) => {
            operator.kill_client(*id)?;
            done("KILL_CLIENT")
        }
        Command::Reload => {
            operator.reload()?;
            done("RELOAD")
        }
        Command::Suspend => Err(Error::Unsupported(
            "SUSPEND",
            "It serves PgBouncer's restart under the same sockets. PAUSE stops the use of the server.",
        )),
        Command::Shutdown(how) => {
            operator.shutdown(*how)?;
            // PgBouncer leaves this one without an answer until it is gone; so does nobody who asks well.
            if *how == Shutdown::Immediate { Ok(Outcome::Leave("SHUTDOWN")) } else { done("SHUTDOWN") }
        }
        Command::Set(setting, value) => {
            operator.set(setting, value.as_deref())?;
            Ok(Outcome::Done(format!("SET {setting}={}", value.as_deref().unwrap_or("DEFAULT"))))
        }
        Command::SetIgnored => {
            let mut ignored = Report::error("00000", "SET ignored");
            ignored.severity = "NOTICE";
            Ok(Outcome::Told(ignored, "SET"))
        }
        Command::Nothing(tag) | Command::Begin(tag) | Command::Forget(_, tag) => done(tag),
        Command::Commit => done("COMMIT"),
        Command::Rollback => done("ROLLBACK"),
    }
}

fn single(command: &Command, value: Value, tag: &'static str) -> Outcome {
    Outcome::Rows(Table { columns: columns(command), rows: vec![vec![value]] }, tag)
}

/// The database, unless it is the console's own.
fn others<'a>(database: Option<&'a str>, verb: &'static str) -> Result<Option<&'a str>, Error> {
    match database {
        Some(DATABASE) => Err(Error::OwnDatabase(verb, DATABASE.to_owned())),
        _ => Ok(database),
    }
}
