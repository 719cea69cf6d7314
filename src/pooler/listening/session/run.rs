//! What each statement does to its session, within the transaction that it stands in. Pure; network threads.

use super::Session;
use super::transaction::Block;
use crate::pooler::listening::Error;
use crate::pooler::listening::statement::{Item, Name, Statement};
use crate::pooler::listening::values::{Value, value};
use crate::wire::message::{Report, notice_response};
use std::collections::VecDeque;

/// What came of a statement.
pub(super) enum Outcome {
    Done(&'static str),
    /// Its transaction is to be committed first.
    Commit(&'static str),
    Rows(VecDeque<Value>, &'static str),
}

impl Session {
    /// Runs a statement, perhaps the last of its query.
    pub(super) fn run(&mut self, statement: &Statement, last: bool) -> Result<Outcome, Error> {
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

    fn name(&mut self, name: &Name) -> Vec<u8> {
        if let Some(whole) = &name.whole {
            let [whole, cut] = [whole, &name.bytes].map(|name| String::from_utf8_lossy(name).into_owned());
            let text = format!("identifier \"{whole}\" will be truncated to \"{cut}\"");
            let notice = Report { severity: "NOTICE", ..Report::error("42622", text) };
            notice_response(&mut self.out, &notice);
        }
        name.bytes.clone()
    }

    fn warn(&mut self, sqlstate: &str, message: &str) {
        let warning = Report { severity: "WARNING", ..Report::error(sqlstate, message) };
        notice_response(&mut self.out, &warning);
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

    fn reset_all(&mut self) {
        self.remember();
        self.settings.reset_all();
    }
}
