//! The extended protocol: statements that a client prepares, portals that it binds and runs, perhaps some rows at a time. Pure;
//! network threads.

use super::run::Outcome;
use super::transaction::{Block, Then};
use super::{CHANNELS_MAX, Session, lossy};
use crate::pooler::listening::Error;
use crate::pooler::listening::statement::Statement;
use crate::pooler::listening::values::{Shape, Type, Value, put_row, shape};
use crate::wire;
use crate::wire::extended::{self, Format, Named};
use crate::wire::message::{bodiless, command_complete, parameter_description};
use std::collections::VecDeque;

#[derive(Debug)]
pub(super) struct Portal {
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

impl Session {
    pub(super) fn extended(&mut self, tag: u8, body: &[u8]) -> Result<(), Error> {
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
    pub(super) fn shape(&self, statement: &Statement) -> Option<Shape> {
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
        let most = usize::try_from(execute.rows).ok().filter(|most| *most > 0);
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
                        let kept: usize = self.portals.values().map(Portal::rows_left).sum();
                        if kept + rows.len().saturating_sub(most.unwrap_or(usize::MAX)) > CHANNELS_MAX {
                            return Err(wire::Error::TooManyKept.into());
                        }
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

impl Portal {
    fn rows_left(&self) -> usize {
        match &self.progress {
            Progress::Rows(rows, _) => rows.len(),
            Progress::NotYet | Progress::Done => 0,
        }
    }
}
