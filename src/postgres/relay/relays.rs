//! The relays' workers as the pooler's main thread starts them and asks after them.

use super::source_of;
use crate::bridge::{Level, LogLine};
use crate::postgres::dynamic::Started;
use crate::postgres::worker::log;
use std::collections::HashMap;

const FUNCTION: &str = "postern_relay_main";

/// The workers that the front's main thread has started.
#[derive(Default)]
pub(in crate::postgres) struct Relays(HashMap<u32, (u32, Started)>);

impl Relays {
    /// Starts the worker of a source; false when there is no place for one.
    pub fn start(&mut self, number: u32, turn: u32) -> bool {
        let Some(source) = source_of(number) else { return false };
        let name = format!("postern relay {}", source.database_name.text());
        let worker = Started::new(&name, "postern relay", FUNCTION, (number, turn));
        match worker {
            Some(worker) => {
                self.0.insert(number, (turn, worker));
                true
            }
            None => {
                log(LogLine {
                    level: Level::Warning,
                    text: format!("no background worker for \"{name}\": raise max_worker_processes"),
                });
                false
            }
        }
    }

    /// Whether that worker of a source has not ended.
    pub fn lives(&self, number: u32, turn: u32) -> bool {
        self.0.get(&number).is_some_and(|(its, worker)| *its == turn && worker.lives())
    }
}
