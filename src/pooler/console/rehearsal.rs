//! An operator for tests: it shows one of everything and notes what it was told.

use super::report::{
    ChannelReport, ClientReport, ClientState, ConsoleReport, Counters, DatabaseReport, ListsReport,
    MemoryReport, PoolMode, PoolReport, Replication, ServerReport, ServerState, SettingReport, SocketReport,
    State, StatsReport, UserReport,
};
use super::{Error, Operator, Progress, Shutdown};
use std::cell::{Cell, RefCell};
use std::time::{Duration, UNIX_EPOCH};

#[derive(Debug)]
pub(super) struct Rehearsal {
    pub told: RefCell<Vec<String>>,
    /// What `paused` and `closed` answer.
    pub progress: Cell<Progress>,
    pub clients: usize,
}

impl Default for Rehearsal {
    fn default() -> Self {
        Self { told: RefCell::default(), progress: Cell::new(Progress::Done), clients: 1 }
    }
}

impl Rehearsal {
    /// Knows no database but `app`.
    fn note(&self, what: &str, database: Option<&str>) -> Result<(), Error> {
        match database {
            None | Some("app") => {
                self.told.borrow_mut().push(format!("{what} {}", database.unwrap_or("-")));
                Ok(())
            }
            Some(other) => Err(Error::NoSuchDatabase(other.to_owned())),
        }
    }
}

fn socket(id: u64, link: Option<u64>) -> SocketReport {
    SocketReport {
        id,
        link,
        user: Some("alice".into()),
        database: Some("app".into()),
        replication: Replication::None,
        addr: "10.0.0.1".into(),
        port: 40_001,
        local_addr: "unix".into(),
        local_port: 6432,
        connect_time: UNIX_EPOCH + Duration::from_secs(1_708_214_400),
        request_time: UNIX_EPOCH + Duration::from_secs(1_709_208_000),
        wait: Duration::from_micros(2_000_003),
        close_needed: false,
        remote_pid: 77,
        tls: String::new(),
        application_name: "psql".into(),
        prepared_statements: 3,
        unread: 0,
        unsent: id % 2,
    }
}

impl Operator for Rehearsal {
    fn itself(&self) -> ConsoleReport {
        ConsoleReport { clients: 1, port: 6432 }
    }

    fn state(&self) -> State {
        State::Active
    }

    fn databases(&self) -> Vec<DatabaseReport> {
        vec![DatabaseReport {
            name: "app".into(),
            host: None,
            port: 5432,
            database: "app".into(),
            force_user: None,
            pool_size: 20,
            min_pool_size: 0,
            reserve_pool_size: 0,
            server_lifetime: Duration::from_secs(3600),
            pool_mode: None,
            max_connections: 0,
            current_connections: 1,
            max_client_connections: 0,
            current_client_connections: 2,
            paused: true,
            disabled: false,
        }]
    }

    fn users(&self) -> Vec<UserReport> {
        vec![UserReport {
            name: "alice".into(),
            pool_size: Some(5),
            reserve_pool_size: None,
            pool_mode: Some(PoolMode::Session),
            max_user_connections: 0,
            current_connections: 1,
            max_user_client_connections: 0,
            current_client_connections: 2,
        }]
    }

    fn pools(&self) -> Vec<PoolReport> {
        vec![PoolReport {
            database: "app".into(),
            user: "alice".into(),
            cl_active: 1,
            cl_waiting: 2,
            cl_active_cancel_req: 3,
            cl_waiting_cancel_req: 4,
            sv_active: 5,
            sv_active_cancel: 6,
            sv_being_canceled: 7,
            sv_idle: 8,
            sv_used: 9,
            sv_tested: 10,
            sv_login: 11,
            maxwait: Duration::from_millis(12_013),
            pool_mode: PoolMode::Transaction,
        }]
    }

    fn clients(&self) -> Vec<ClientReport> {
        let states = [
            ClientState::Active,
            ClientState::Waiting,
            ClientState::ActiveCancelRequest,
            ClientState::WaitingCancelRequest,
            ClientState::Login,
        ];
        let some = states.into_iter().cycle().zip(1..).take(self.clients);
        some.map(|(state, id)| ClientReport { state, socket: socket(id, None) }).collect()
    }

    fn servers(&self) -> Vec<ServerReport> {
        vec![
            ServerReport { state: ServerState::Active, socket: socket(1000, Some(31)) },
            ServerReport { state: ServerState::New, socket: socket(1001, None) },
            ServerReport { state: ServerState::BeingCanceled, socket: socket(1003, None) },
        ]
    }

    fn stats(&self) -> Vec<StatsReport> {
        let total = Counters {
            server_assignment_count: 100,
            xact_count: 200,
            query_count: 300,
            received: 400,
            sent: 500,
            xact_time: 600,
            query_time: 700,
            wait_time: 800,
            client_parse_count: 900,
            server_parse_count: 1000,
            bind_count: 1100,
        };
        let recent = Counters { xact_count: 40, xact_time: 100, query_time: 7, received: u64::MAX, ..total };
        vec![StatsReport { database: "app".into(), total, recent, period: Duration::from_secs(10) }]
    }

    fn lists(&self) -> ListsReport {
        ListsReport { databases: 1, users: 1, pools: 1, used_clients: 2, ..ListsReport::default() }
    }

    fn settings(&self) -> Vec<SettingReport> {
        vec![SettingReport {
            key: "max_client_conn".into(),
            value: Some("10000".into()),
            default: Some("100".into()),
            changeable: false,
        }]
    }

    fn memory(&self) -> Vec<MemoryReport> {
        vec![MemoryReport { name: "client_cache".into(), size: 100, used: 2, free: 3 }]
    }

    fn channels(&self) -> Vec<ChannelReport> {
        vec![ChannelReport {
            database: "app".into(),
            channel: "news".into(),
            listeners: 2,
            delivered: 7,
            since: UNIX_EPOCH,
        }]
    }

    fn pause(&self, database: Option<&str>) -> Result<(), Error> {
        self.note("pause", database)
    }

    fn paused(&self, _: Option<&str>) -> Progress {
        self.progress.get()
    }

    fn resume(&self, database: Option<&str>) -> Result<(), Error> {
        self.note("resume", database)
    }

    fn reconnect(&self, database: Option<&str>) -> Result<(), Error> {
        self.note("reconnect", database)
    }

    fn wait_close(&self, database: Option<&str>) -> Result<(), Error> {
        self.note("wait_close", database)
    }

    fn closed(&self, _: Option<&str>) -> Progress {
        self.progress.get()
    }

    fn kill(&self, database: &str) -> Result<(), Error> {
        self.note("kill", Some(database))
    }

    fn enable(&self, database: &str) -> Result<(), Error> {
        self.note("enable", Some(database))
    }

    fn disable(&self, database: &str) -> Result<(), Error> {
        self.note("disable", Some(database))
    }

    fn kill_client(&self, id: u64) -> Result<(), Error> {
        if id == 1 { self.note("kill_client 1", None) } else { Err(Error::NoSuchClient) }
    }

    fn reload(&self) -> Result<(), Error> {
        self.note("reload", None)
    }

    fn set(&self, setting: &str, value: Option<&str>) -> Result<(), Error> {
        match setting {
            "pool_mode" => self.note(&format!("set {setting} {value:?}"), None),
            other => Err(Error::UnknownSetting(other.to_owned())),
        }
    }

    fn shutdown(&self, how: Shutdown) -> Result<(), Error> {
        self.note(&format!("shutdown {how:?}"), None)
    }
}
