//! What a client sends to the pooler's console: any bytes, in pieces of any length. Every answer is whole messages.
#![no_main]

mod answer;

use answer::assert_whole_messages;
use libfuzzer_sys::fuzz_target;
use postern::pooler::console::{
    Access, ChannelReport, ClientReport, ConsoleReport, DatabaseReport, Error, ListsReport, MemoryReport,
    Operator, PoolMode, PoolReport, Progress, ServerReport, Session, SettingReport, Shutdown, State,
    StatsReport, Step, UserReport,
};
use std::time::Duration;

/// Does everything and has one pool; what takes time ends as it is told.
struct Willing(Progress);

impl Operator for Willing {
    fn itself(&self) -> ConsoleReport {
        ConsoleReport { clients: 1, port: 6432 }
    }
    fn state(&self) -> State {
        State::Paused
    }
    fn databases(&self) -> Vec<DatabaseReport> {
        Vec::new()
    }
    fn users(&self) -> Vec<UserReport> {
        Vec::new()
    }
    fn pools(&self) -> Vec<PoolReport> {
        vec![PoolReport {
            database: "app".to_owned(),
            user: "alice".to_owned(),
            cl_active: u64::MAX,
            cl_waiting: 1,
            cl_active_cancel_req: 0,
            cl_waiting_cancel_req: 0,
            sv_active: 1,
            sv_active_cancel: 0,
            sv_being_canceled: 0,
            sv_idle: 0,
            sv_used: 0,
            sv_tested: 0,
            sv_login: 0,
            maxwait: Duration::MAX,
            pool_mode: PoolMode::Transaction,
        }]
    }
    fn clients(&self) -> Vec<ClientReport> {
        Vec::new()
    }
    fn servers(&self) -> Vec<ServerReport> {
        Vec::new()
    }
    fn stats(&self) -> Vec<StatsReport> {
        Vec::new()
    }
    fn lists(&self) -> ListsReport {
        ListsReport { databases: u64::MAX, ..ListsReport::default() }
    }
    fn settings(&self) -> Vec<SettingReport> {
        Vec::new()
    }
    fn memory(&self) -> Vec<MemoryReport> {
        Vec::new()
    }
    fn channels(&self) -> Vec<ChannelReport> {
        Vec::new()
    }
    fn pause(&self, _: Option<&str>) -> Result<(), Error> {
        Ok(())
    }
    fn paused(&self, _: Option<&str>) -> Progress {
        self.0
    }
    fn resume(&self, _: Option<&str>) -> Result<(), Error> {
        Err(Error::NotPaused)
    }
    fn reconnect(&self, _: Option<&str>) -> Result<(), Error> {
        Ok(())
    }
    fn wait_close(&self, _: Option<&str>) -> Result<(), Error> {
        Ok(())
    }
    fn closed(&self, _: Option<&str>) -> Progress {
        self.0
    }
    fn kill(&self, database: &str) -> Result<(), Error> {
        Err(Error::NoSuchDatabase(database.to_owned()))
    }
    fn enable(&self, _: &str) -> Result<(), Error> {
        Ok(())
    }
    fn disable(&self, _: &str) -> Result<(), Error> {
        Ok(())
    }
    fn kill_client(&self, _: u64) -> Result<(), Error> {
        Err(Error::NoSuchClient)
    }
    fn reload(&self) -> Result<(), Error> {
        Ok(())
    }
    fn set(&self, setting: &str, value: Option<&str>) -> Result<(), Error> {
        match value {
            Some(value) => Err(Error::SettingValue(setting.to_owned(), value.to_owned(), String::new())),
            None => Ok(()),
        }
    }
    fn shutdown(&self, _: Shutdown) -> Result<(), Error> {
        Ok(())
    }
}

// The first byte says who the client is and what becomes of what takes time, the second how long the pieces are.
fuzz_target!(|bytes: &[u8]| {
    let [kind, length, sent @ ..] = bytes else { return };
    let access = if kind & 1 == 0 { Access::Admin } else { Access::Monitor };
    let operator = Willing([Progress::Done, Progress::Pending, Progress::Undone][usize::from(kind >> 1) % 3]);
    let mut session = Session::new(access);
    for piece in sent.chunks(usize::from(*length).max(1)) {
        session.receive(piece);
        loop {
            match session.step(&operator) {
                Step::Reply(bytes) => {
                    assert!(!bytes.is_empty());
                    assert_whole_messages(&bytes);
                }
                Step::Wait => session.cancel(),
                Step::More => break,
                Step::Close(bytes) => return assert_whole_messages(&bytes),
            }
        }
    }
});
