//! The extended protocol: statements that a client prepares, portals that it binds and runs, perhaps some rows at a time. Pure;
//! network threads.

use super::{ROWS_MAX, STATEMENTS_BYTES, Session, text};
use crate::pooler::console::Error;
use crate::pooler::console::command::{self, Command};
use crate::pooler::console::operator::Operator;
use crate::pooler::console::run::{self, Outcome};
use crate::pooler::console::table::{Table, describe};
use crate::wire;
use crate::wire::extended::{self, Format, Named};
use crate::wire::message::{bodiless, command_complete, parameter_description};

#[derive(Debug)]
pub(super) struct Prepared {
    /// `None` is an empty query.
    command: Option<Command>,
    /// Bytes of its name and text.
    size: usize,
}

#[derive(Debug)]
pub(super) struct Portal {
    command: Option<Command>,
    formats: Vec<Format>,
    progress: Run,
}

#[derive(Debug)]
enum Run {
    NotYet,
    /// Its rows, which of them is next, and the tag.
    Rows(Table, usize, &'static str),
    /// It had no rows, and is not run twice.
    Done,
}

impl Session {
    pub(super) fn extended(&mut self, tag: u8, body: &[u8], operator: &dyn Operator) -> Result<(), Error> {
        match tag {
            b'P' => self.parse(body),
            b'B' => self.bind(body),
            b'D' => self.describe(extended::named(body)?),
            b'E' => self.execute(body, operator),
            b'C' => {
                match extended::named(body)? {
                    Named::Statement(name) => self.statements.close(text(name)?.as_bytes()),
                    Named::Portal(name) => self.portals.close(text(name)?.as_bytes()),
                }
                bodiless(&mut self.out, b'3');
                Ok(())
            }
            other => Err(wire::Error::MessageType(other).into()),
        }
    }

    fn parse(&mut self, body: &[u8]) -> Result<(), Error> {
        let parse = extended::parse(body)?;
        let name = text(parse.statement)?.as_bytes();
        self.statements.free(name)?;
        if !parse.types.is_empty() {
            return Err(Error::TakesNoParameters);
        }
        let mut commands = command::parse(text(parse.query)?)?;
        if commands.len() > 1 {
            return Err(Error::SeveralCommands);
        }
        let size = name.len() + parse.query.len();
        let kept: usize = self.statements.values().map(|statement| statement.size).sum();
        if kept + size > STATEMENTS_BYTES {
            return Err(Error::TooManyKept);
        }
        self.statements.keep(name, Prepared { command: commands.pop(), size })?;
        bodiless(&mut self.out, b'1');
        Ok(())
    }

    fn bind(&mut self, body: &[u8]) -> Result<(), Error> {
        let bind = extended::bind(body)?;
        let (portal, statement) = (text(bind.portal)?.as_bytes(), text(bind.statement)?.as_bytes());
        let command = self.statements.find(statement)?.command.clone();
        bind.check_no_parameters()?;
        let columns = command.as_ref().map_or(0, |command| run::columns(command).len());
        let formats = bind.formats_for(columns)?;
        self.portals.keep(portal, Portal { command, formats, progress: Run::NotYet })?;
        bodiless(&mut self.out, b'2');
        Ok(())
    }

    fn describe(&mut self, named: Named<'_>) -> Result<(), Error> {
        let (command, formats): (_, &[Format]) = match named {
            Named::Statement(name) => {
                let command = self.statements.find(text(name)?.as_bytes())?.command.clone();
                parameter_description(&mut self.out, &[]);
                (command, &[])
            }
            Named::Portal(name) => {
                let portal = self.portals.find(text(name)?.as_bytes())?;
                (portal.command.clone(), &portal.formats)
            }
        };
        let columns = command.as_ref().map(run::columns).unwrap_or_default();
        if columns.is_empty() {
            bodiless(&mut self.out, b'n');
        } else {
            describe(&mut self.out, &columns, formats);
        }
        Ok(())
    }

    fn execute(&mut self, body: &[u8], operator: &dyn Operator) -> Result<(), Error> {
        let execute = extended::execute(body)?;
        let name = text(execute.portal)?;
        let most = usize::try_from(execute.rows).ok().filter(|rows| *rows > 0);
        let portal = self.portals.find_mut(name.as_bytes())?;
        let Some(command) = &portal.command else {
            bodiless(&mut self.out, b'I');
            return Ok(());
        };
        match portal.progress {
            Run::Done => return Err(wire::Error::PortalDone(name.to_owned()).into()),
            Run::Rows(..) => {}
            Run::NotYet => {
                let command = command.clone();
                portal.progress = Run::Done;
                match self.run(&command, operator)? {
                    Outcome::Rows(table, tag) => {
                        let kept: usize = self.portals.values().map(Portal::rows_kept).sum();
                        let keeps = most.is_some_and(|most| most <= table.rows.len());
                        if keeps && kept > 0 && kept + table.rows.len() > ROWS_MAX {
                            return Err(Error::TooManyKept);
                        }
                        if let Ok(portal) = self.portals.find_mut(name.as_bytes()) {
                            portal.progress = Run::Rows(table, 0, tag);
                        }
                    }
                    outcome => {
                        self.finish(outcome);
                        return Ok(());
                    }
                }
            }
        }
        if let Ok(portal) = self.portals.find_mut(name.as_bytes()) {
            portal.send(most, &mut self.out);
        }
        Ok(())
    }
}

impl Portal {
    /// Those that are sent too, until all are.
    fn rows_kept(&self) -> usize {
        match &self.progress {
            Run::Rows(table, ..) => table.rows.len(),
            Run::NotYet | Run::Done => 0,
        }
    }

    /// Appends the next rows and what ends them: as the server does, the end is known only where fewer rows came than
    /// were asked for.
    fn send(&mut self, most: Option<usize>, out: &mut Vec<u8>) {
        let Run::Rows(table, next, tag) = &mut self.progress else { return };
        let rest = &table.rows[*next..];
        let count = most.map_or(rest.len(), |most| most.min(rest.len()));
        for row in &rest[..count] {
            table.put_row(out, row, &self.formats);
        }
        *next += count;
        if most == Some(count) {
            bodiless(out, b's');
        } else {
            command_complete(out, tag);
            // What was sent need not be kept; asked again, there are no rows.
            *next = 0;
            table.rows = Vec::new();
        }
    }
}
