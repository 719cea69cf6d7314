//! What the front must be able to tell and do for its console. Called on the network thread that serves the console's
//! client; no method may block.

use super::Error;
use super::report::{
    ChannelReport, ClientReport, ConsoleReport, DatabaseReport, ListsReport, MemoryReport, PoolReport,
    ServerReport, SettingReport, State, StatsReport, UserReport,
};

/// How a SHUTDOWN goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    /// Everybody is disconnected at once.
    Immediate,
    /// No new connections; it ends once every server connection is free.
    WaitForServers,
    /// No new connections; it ends once every client has gone.
    WaitForClients,
}

/// How far something is that takes time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    Pending,
    Done,
    /// Another command took it back.
    Undone,
}

/// The front, as its console sees it. Names of databases are as the client wrote them and may not exist; the console's own
/// never comes here. Where a database is optional, `None` is all of them.
///
/// Errors of every method that changes something: [`Error::NoSuchDatabase`], or what its own words say.
pub trait Operator {
    fn itself(&self) -> ConsoleReport;
    fn state(&self) -> State;
    fn databases(&self) -> Vec<DatabaseReport>;
    fn users(&self) -> Vec<UserReport>;
    fn pools(&self) -> Vec<PoolReport>;
    /// Those of the console too.
    fn clients(&self) -> Vec<ClientReport>;
    fn servers(&self) -> Vec<ServerReport>;
    /// One a database.
    fn stats(&self) -> Vec<StatsReport>;
    fn lists(&self) -> ListsReport;
    /// Under PgBouncer's names where it has the setting; exporters look for `max_client_conn` and
    /// `max_user_connections` and want numbers there.
    fn settings(&self) -> Vec<SettingReport>;
    fn memory(&self) -> Vec<MemoryReport>;
    /// Those that clients listen to.
    fn channels(&self) -> Vec<ChannelReport>;

    /// Begins to pause; [`Operator::paused`] tells when it is done.
    ///
    /// # Errors
    /// [`Error::AlreadyPaused`] while everything is paused.
    fn pause(&self, database: Option<&str>) -> Result<(), Error>;
    /// Whether every server connection that a PAUSE meant is closed.
    fn paused(&self, database: Option<&str>) -> Progress;
    /// # Errors
    /// [`Error::NotPaused`] or [`Error::DatabaseNotPaused`].
    fn resume(&self, database: Option<&str>) -> Result<(), Error>;
    /// Every server connection of now is closed once it is free.
    ///
    /// # Errors
    /// See the trait.
    fn reconnect(&self, database: Option<&str>) -> Result<(), Error>;
    /// Marks what is to be waited for; [`Operator::closed`] tells when it is done.
    ///
    /// # Errors
    /// See the trait.
    fn wait_close(&self, database: Option<&str>) -> Result<(), Error>;
    /// Whether every server connection that a RECONNECT or reload doomed is closed.
    fn closed(&self, database: Option<&str>) -> Progress;
    /// Drops all clients and server connections of a database, and pauses it.
    ///
    /// # Errors
    /// [`Error::AlreadyPaused`] while everything is paused.
    fn kill(&self, database: &str) -> Result<(), Error>;
    /// New clients are taken again.
    ///
    /// # Errors
    /// See the trait.
    fn enable(&self, database: &str) -> Result<(), Error>;
    /// No new clients are taken.
    ///
    /// # Errors
    /// See the trait.
    fn disable(&self, database: &str) -> Result<(), Error>;
    /// Drops a client, by the `id` of its [`ClientReport`].
    ///
    /// # Errors
    /// [`Error::NoSuchClient`].
    fn kill_client(&self, id: u64) -> Result<(), Error>;
    /// # Errors
    /// [`Error::Failed`].
    fn reload(&self) -> Result<(), Error>;
    /// `None` is the default. The name is in lower case unless it was quoted.
    ///
    /// # Errors
    /// [`Error::UnknownSetting`], [`Error::SettingValue`] or [`Error::SettingFixed`].
    fn set(&self, setting: &str, value: Option<&str>) -> Result<(), Error>;
    /// # Errors
    /// [`Error::Unsupported`].
    fn shutdown(&self, how: Shutdown) -> Result<(), Error>;
}
