//! What the console sees and does: the front's own state and the words in shared memory, as `console::Operator` wants them. Called on
//! network threads; nothing here waits.
//!
//! - `connections`: clients and server connections, one by one
//! - `pools`: databases, users, pools and channels
//! - `commands`: what is done
//! - `settings`: the pooler's settings under PgBouncer's names
//! - `id`: what a connection is called

mod commands;
mod connections;
mod id;
mod pools;
mod settings;

use super::console::{
    ChannelReport, ClientReport, ConsoleReport, DatabaseReport, Error, ListsReport, MemoryReport, Operator,
    PoolReport, Progress, ServerReport, SettingReport, Shutdown, State, StatsReport, UserReport,
};
use super::front::Front;
use super::orders::Which;
use super::shared::{Pool, Server};
use crate::settings::ListenAddress;
use std::collections::BTreeSet;
use std::sync::Arc;

/// The front, for one client of its console.
pub struct Console<'a> {
    front: &'a Arc<Front>,
    role: &'a str,
    /// Databases of the server that take connections.
    known: BTreeSet<String>,
}

impl<'a> Console<'a> {
    pub fn new(front: &'a Arc<Front>, role: &'a str) -> Self {
        Self { front, role, known: BTreeSet::new() }
    }

    /// What databases the server has.
    pub fn know(&mut self, databases: Vec<Vec<u8>>) {
        self.known = databases.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    }

    fn used<'b>(&self, database: Option<&'b str>) -> impl Iterator<Item = (u32, &'static Pool)> + use<'b> {
        of(database).pools(self.front.shared.pools)
    }

    /// Server connections to a database, or all, with their numbers.
    fn servers_of<'b>(
        &self,
        database: Option<&'b str>,
    ) -> impl Iterator<Item = (u32, &'static Server)> + use<'b> {
        of(database).connections(self.front.shared)
    }

    fn names(&self, pool: u32) -> (Option<String>, Option<String>) {
        let pool = self.front.shared.pools.get(pool as usize);
        (pool.map(|pool| pool.role_name.text()), pool.map(|pool| pool.database_name.text()))
    }

    /// Databases of the server, and those that have pools still.
    fn database_names(&self) -> BTreeSet<String> {
        let pools = self.used(None).map(|(_, pool)| pool.database_name.text());
        pools.chain(self.known.iter().cloned()).collect()
    }

    fn port(&self) -> u16 {
        let settings = self.front.bridge.settings();
        let port = |entry: &ListenAddress| match entry {
            ListenAddress::Any(port) | ListenAddress::Ip(_, port) | ListenAddress::Name(_, port) => {
                Some(*port)
            }
            ListenAddress::Unix(_) => None,
        };
        settings.pooler.listen.iter().find_map(port).unwrap_or(0)
    }
}

/// The pools of a database, or all.
fn of(database: Option<&str>) -> Which<'_> {
    Which { database: database.map(str::as_bytes), role: None }
}

impl Operator for Console<'_> {
    fn itself(&self) -> ConsoleReport {
        ConsoleReport { clients: self.front.consoles.all().len() as u64, port: self.port() }
    }

    fn state(&self) -> State {
        if self.front.shared.is_paused(None) { State::Paused } else { State::Active }
    }

    fn databases(&self) -> Vec<DatabaseReport> {
        pools::databases(self)
    }

    fn users(&self) -> Vec<UserReport> {
        pools::users(self)
    }

    fn pools(&self) -> Vec<PoolReport> {
        pools::pools(self)
    }

    fn clients(&self) -> Vec<ClientReport> {
        connections::clients(self)
    }

    fn servers(&self) -> Vec<ServerReport> {
        connections::servers(self)
    }

    fn stats(&self) -> Vec<StatsReport> {
        self.front.history.report(self.front.shared.pools)
    }

    fn lists(&self) -> ListsReport {
        pools::lists(self)
    }

    fn settings(&self) -> Vec<SettingReport> {
        settings::settings(&self.front.bridge.settings().pooler)
    }

    fn memory(&self) -> Vec<MemoryReport> {
        pools::memory(self)
    }

    fn channels(&self) -> Vec<ChannelReport> {
        pools::channels(self)
    }

    fn pause(&self, database: Option<&str>) -> Result<(), Error> {
        commands::pause(self, database)
    }

    fn paused(&self, database: Option<&str>) -> Progress {
        commands::paused(self, database)
    }

    fn resume(&self, database: Option<&str>) -> Result<(), Error> {
        commands::resume(self, database)
    }

    fn reconnect(&self, database: Option<&str>) -> Result<(), Error> {
        commands::reconnect(self, database)
    }

    fn wait_close(&self, database: Option<&str>) -> Result<(), Error> {
        commands::wait_close(self, database)
    }

    fn closed(&self, database: Option<&str>) -> Progress {
        commands::closed(self, database)
    }

    fn kill(&self, database: &str) -> Result<(), Error> {
        commands::kill(self, database)
    }

    fn enable(&self, database: &str) -> Result<(), Error> {
        commands::enable(self, database)
    }

    fn disable(&self, database: &str) -> Result<(), Error> {
        commands::disable(self, database)
    }

    fn kill_client(&self, id: u64) -> Result<(), Error> {
        commands::kill_client(self, id)
    }

    fn reload(&self) -> Result<(), Error> {
        commands::reload(self)
    }

    fn set(&self, setting: &str, _: Option<&str>) -> Result<(), Error> {
        settings::refuse(setting, &self.settings())
    }

    fn shutdown(&self, _: Shutdown) -> Result<(), Error> {
        Err(Error::Unsupported("SHUTDOWN", "The pooler ends with its server: use pg_ctl stop."))
    }
}
