//! From reports to the rows of every SHOW, in the columns, types and order of PgBouncer 1.24. Pure.
//!
//! What PgBouncer has and this pooler has not (DNS, peers, descriptors to take over) is an empty answer in its columns.

mod columns;

pub(super) use columns::columns;

use super::command::Show;
use super::operator::Operator;
use super::report::{
    ClientReport, ClientState, Counters, DatabaseReport, PoolMode, PoolReport, Replication, ServerReport,
    ServerState, SocketReport, State, StatsReport,
};
use super::table::{Table, Value};
use super::{DATABASE, VERSION};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// SHOW TOTALS' rows, each once with `total_` and once with `avg_`.
const TOTALS: [&str; 11] = [
    "server_assignment_count",
    "xact_count",
    "query_count",
    "client_bytes",
    "server_bytes",
    "xact_time",
    "query_time",
    "wait_time",
    "ps_client_parse_count",
    "ps_server_parse_count",
    "ps_bind_count",
];

pub(super) fn table(show: Show, operator: &dyn Operator) -> Table {
    let rows = match show {
        Show::Help | Show::DnsHosts | Show::DnsZones | Show::Fds | Show::Peers | Show::PeerPools => {
            Vec::new()
        }
        Show::Channels => {
            let row = |channel: super::ChannelReport| {
                vec![
                    channel.database.into(),
                    channel.channel.into(),
                    channel.listeners.into(),
                    channel.delivered.into(),
                    time(channel.since).into(),
                ]
            };
            operator.channels().into_iter().map(row).collect()
        }
        Show::Clients => operator.clients().iter().filter_map(|client| client_row(client, "")).collect(),
        Show::Servers => operator.servers().iter().map(|server| server_row(server, "")).collect(),
        Show::Sockets => sockets(operator, |_| true),
        Show::ActiveSockets => sockets(operator, |socket| socket.unread > 0 || socket.unsent > 0),
        Show::Config => {
            let row = |setting: super::SettingReport| {
                let changeable = if setting.changeable { "yes" } else { "no" };
                vec![setting.key.into(), setting.value.into(), setting.default.into(), changeable.into()]
            };
            operator.settings().into_iter().map(row).collect()
        }
        Show::Databases => {
            operator.databases().into_iter().chain([own_database(operator)]).map(database_row).collect()
        }
        Show::Lists => lists(operator),
        Show::Mem => {
            let row = |memory: super::MemoryReport| {
                let total = memory.used.saturating_add(memory.free).saturating_mul(memory.size);
                vec![
                    memory.name.into(),
                    memory.size.into(),
                    memory.used.into(),
                    memory.free.into(),
                    total.into(),
                ]
            };
            operator.memory().into_iter().map(row).collect()
        }
        Show::Pools => operator.pools().into_iter().chain([own_pool(operator)]).map(pool_row).collect(),
        Show::State => {
            let state = operator.state();
            let row = |name: &str, is: bool| vec![name.into(), if is { "yes" } else { "no" }.into()];
            vec![
                row("active", state == State::Active),
                row("paused", state == State::Paused),
                row("suspended", false),
            ]
        }
        Show::Stats => stats(operator, |stats| [counts(&stats.total), counts(&stats.average())].concat()),
        Show::StatsTotals => stats(operator, |stats| counts(&stats.total).to_vec()),
        Show::StatsAverages => stats(operator, |stats| counts(&stats.average()).to_vec()),
        Show::Totals => totals(operator),
        Show::Users => users(operator),
        Show::Version => vec![vec![VERSION.into()]],
    };
    Table { columns: columns(show), rows }
}

fn own_database(operator: &dyn Operator) -> DatabaseReport {
    let own = operator.itself();
    DatabaseReport {
        name: DATABASE.to_owned(),
        host: None,
        port: own.port,
        database: DATABASE.to_owned(),
        force_user: None,
        pool_size: 0,
        min_pool_size: 0,
        reserve_pool_size: 0,
        server_lifetime: Duration::ZERO,
        pool_mode: Some(PoolMode::Statement),
        max_connections: 0,
        current_connections: 0,
        max_client_connections: 0,
        current_client_connections: own.clients,
        paused: false,
        disabled: false,
    }
}

fn own_pool(operator: &dyn Operator) -> PoolReport {
    PoolReport {
        database: DATABASE.to_owned(),
        user: DATABASE.to_owned(),
        cl_active: operator.itself().clients,
        cl_waiting: 0,
        cl_active_cancel_req: 0,
        cl_waiting_cancel_req: 0,
        sv_active: 0,
        sv_active_cancel: 0,
        sv_being_canceled: 0,
        sv_idle: 0,
        sv_used: 0,
        sv_tested: 0,
        sv_login: 0,
        maxwait: Duration::ZERO,
        pool_mode: PoolMode::Statement,
    }
}

fn own_stats() -> StatsReport {
    StatsReport {
        database: DATABASE.to_owned(),
        total: Counters::default(),
        recent: Counters::default(),
        period: Duration::ZERO,
    }
}

fn pool_row(pool: PoolReport) -> Vec<Value> {
    vec![
        pool.database.into(),
        pool.user.into(),
        pool.cl_active.into(),
        pool.cl_waiting.into(),
        pool.cl_active_cancel_req.into(),
        pool.cl_waiting_cancel_req.into(),
        pool.sv_active.into(),
        pool.sv_active_cancel.into(),
        pool.sv_being_canceled.into(),
        pool.sv_idle.into(),
        pool.sv_used.into(),
        pool.sv_tested.into(),
        pool.sv_login.into(),
        pool.maxwait.as_secs().into(),
        pool.maxwait.subsec_micros().into(),
        pool.pool_mode.name().into(),
        Value::Null,
    ]
}

fn database_row(database: DatabaseReport) -> Vec<Value> {
    vec![
        database.name.into(),
        database.host.into(),
        database.port.into(),
        database.database.into(),
        database.force_user.into(),
        database.pool_size.into(),
        database.min_pool_size.into(),
        database.reserve_pool_size.into(),
        database.server_lifetime.as_secs().into(),
        database.pool_mode.map(PoolMode::name).into(),
        Value::Null,
        database.max_connections.into(),
        database.current_connections.into(),
        database.max_client_connections.into(),
        database.current_client_connections.into(),
        database.paused.into(),
        database.disabled.into(),
    ]
}

fn users(operator: &dyn Operator) -> Vec<Vec<Value>> {
    // PgBouncer shows an empty text where its documentation says NULL; scripts know the former.
    let text = |size: Option<u32>| size.map(|size| size.to_string()).unwrap_or_default();
    let row = |user: super::UserReport| {
        vec![
            user.name.into(),
            text(user.pool_size).into(),
            text(user.reserve_pool_size).into(),
            user.pool_mode.map(PoolMode::name).into(),
            user.max_user_connections.into(),
            user.current_connections.into(),
            user.max_user_client_connections.into(),
            user.current_client_connections.into(),
        ]
    };
    operator.users().into_iter().map(row).collect()
}

fn lists(operator: &dyn Operator) -> Vec<Vec<Value>> {
    let lists = operator.lists();
    [
        ("databases", lists.databases.saturating_add(1)),
        ("users", lists.users),
        ("peers", 0),
        ("pools", lists.pools.saturating_add(1)),
        ("peer_pools", 0),
        ("free_clients", lists.free_clients),
        ("used_clients", lists.used_clients),
        ("login_clients", lists.login_clients),
        ("free_servers", lists.free_servers),
        ("used_servers", lists.used_servers),
        ("dns_names", 0),
        ("dns_zones", 0),
        ("dns_queries", 0),
        ("dns_pending", 0),
    ]
    .into_iter()
    .map(|(list, items)| vec![list.into(), items.into()])
    .collect()
}

/// Every connection but those of cancel requests, as PgBouncer does.
fn sockets(operator: &dyn Operator, wanted: impl Fn(&SocketReport) -> bool) -> Vec<Vec<Value>> {
    let clients = operator.clients();
    let servers = operator.servers();
    let login = |client: &&ClientReport| client.state == ClientState::Login;
    let with_buffers = |mut row: Vec<Value>, socket: &SocketReport| {
        // Positions within PgBouncer's buffers, which are not here; then what is unread and what unsent.
        row.extend((0..5).map(|_| Value::Count(0)));
        row.extend([Value::Count(socket.unread), Value::Count(socket.unsent)]);
        row
    };
    let clients_in = clients.iter().filter(|client| !login(client)).filter_map(|client| {
        let shown = matches!(client.state, ClientState::Active | ClientState::Waiting);
        let row = client_row(client, "cl_").filter(|_| shown && wanted(&client.socket))?;
        Some(with_buffers(row, &client.socket))
    });
    let servers_in = servers.iter().filter_map(|server| {
        let shown = !matches!(server.state, ServerState::ActiveCancel | ServerState::BeingCanceled);
        (shown && wanted(&server.socket)).then(|| with_buffers(server_row(server, "sv_"), &server.socket))
    });
    let logging_in =
        clients.iter().filter(login).filter(|client| wanted(&client.socket)).map(|client| {
            with_buffers(socket_row("C", "cl_login".to_owned(), &client.socket), &client.socket)
        });
    clients_in.chain(servers_in).chain(logging_in).collect()
}

/// `None` for one that is not logged in.
fn client_row(client: &ClientReport, prefix: &str) -> Option<Vec<Value>> {
    let state = match client.state {
        ClientState::Active => "active",
        ClientState::Waiting => "waiting",
        ClientState::ActiveCancelRequest => "active_cancel_req",
        ClientState::WaitingCancelRequest => "waiting_cancel_req",
        ClientState::Login => return None,
    };
    Some(socket_row("C", format!("{prefix}{state}"), &client.socket))
}

fn server_row(server: &ServerReport, prefix: &str) -> Vec<Value> {
    let state = match server.state {
        ServerState::Active => "active",
        ServerState::Idle => "idle",
        ServerState::Used => "used",
        ServerState::Tested => "tested",
        // SHOW SOCKETS has another word for it than SHOW SERVERS.
        ServerState::New if prefix.is_empty() => "new",
        ServerState::New => "login",
        ServerState::ActiveCancel => "active_cancel",
        ServerState::BeingCanceled => "being_canceled",
    };
    socket_row("S", format!("{prefix}{state}"), &server.socket)
}

fn socket_row(kind: &str, state: String, socket: &SocketReport) -> Vec<Value> {
    let pointer = |id: u64| format!("{id:#x}");
    vec![
        kind.into(),
        socket.user.as_deref().unwrap_or("(nouser)").into(),
        socket.database.as_deref().unwrap_or("(nodb)").into(),
        match socket.replication {
            Replication::None => "none",
            Replication::Logical => "logical",
            Replication::Physical => "physical",
        }
        .into(),
        state.into(),
        socket.addr.as_str().into(),
        socket.port.into(),
        socket.local_addr.as_str().into(),
        socket.local_port.into(),
        time(socket.connect_time).into(),
        time(socket.request_time).into(),
        socket.wait.as_secs().into(),
        socket.wait.subsec_micros().into(),
        socket.close_needed.into(),
        pointer(socket.id).into(),
        socket.link.map(pointer).unwrap_or_default().into(),
        socket.remote_pid.into(),
        socket.tls.as_str().into(),
        socket.application_name.as_str().into(),
        socket.prepared_statements.into(),
        socket.id.into(),
    ]
}

/// `2026-11-21 09:05:03 UTC`: PgBouncer's form, always in UTC, because a thread cannot ask for the server's time zone.
fn time(at: SystemTime) -> String {
    let seconds = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (year, month, day) = date(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

/// Year, month and day from days since 1970-01-01. Years begin in March, so that the leap day ends one: then 400 years are
/// 146,097 days, and the months from March on are 31, 30, 31, 30, 31 days twice and a rest.
fn date(days: u64) -> (u64, u64, u64) {
    // From 0000-03-01.
    let days = days + 719_468;
    let (cycle, day) = (days / 146_097, days % 146_097);
    // Less the leap days that have been.
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let january = month >= 10;
    let year = cycle * 400 + year + u64::from(january);
    (year, if january { month - 9 } else { month + 3 }, day)
}

fn stats(operator: &dyn Operator, values: impl Fn(&StatsReport) -> Vec<u64>) -> Vec<Vec<Value>> {
    let all = operator.stats().into_iter().chain([own_stats()]);
    all.map(|stats| {
        let values = values(&stats);
        std::iter::once(Value::Text(stats.database)).chain(values.into_iter().map(Value::Count)).collect()
    })
    .collect()
}

fn totals(operator: &dyn Operator) -> Vec<Vec<Value>> {
    let mut sum = own_stats();
    for stats in operator.stats() {
        sum.total = sum.total.plus(&stats.total);
        sum.recent = sum.recent.plus(&stats.recent);
        sum.period = sum.period.max(stats.period);
    }
    let rows = |prefix: &'static str, counters: Counters| {
        TOTALS
            .iter()
            .zip(counts(&counters))
            .map(move |(name, value)| vec![format!("{prefix}{name}").into(), value.into()])
    };
    rows("total_", sum.total).chain(rows("avg_", sum.average())).collect()
}

/// In the order in which every SHOW has them.
fn counts(counters: &Counters) -> [u64; 11] {
    [
        counters.server_assignment_count,
        counters.xact_count,
        counters.query_count,
        counters.received,
        counters.sent,
        counters.xact_time,
        counters.query_time,
        counters.wait_time,
        counters.client_parse_count,
        counters.server_parse_count,
        counters.bind_count,
    ]
}

impl Counters {
    fn plus(&self, other: &Self) -> Self {
        Self {
            server_assignment_count: self
                .server_assignment_count
                .saturating_add(other.server_assignment_count),
            xact_count: self.xact_count.saturating_add(other.xact_count),
            query_count: self.query_count.saturating_add(other.query_count),
            received: self.received.saturating_add(other.received),
            sent: self.sent.saturating_add(other.sent),
            xact_time: self.xact_time.saturating_add(other.xact_time),
            query_time: self.query_time.saturating_add(other.query_time),
            wait_time: self.wait_time.saturating_add(other.wait_time),
            client_parse_count: self.client_parse_count.saturating_add(other.client_parse_count),
            server_parse_count: self.server_parse_count.saturating_add(other.server_parse_count),
            bind_count: self.bind_count.saturating_add(other.bind_count),
        }
    }
}

impl StatsReport {
    /// Counts a second, and the mean of a time over what took it.
    fn average(&self) -> Counters {
        let rate = |count: u64| {
            let micros = self.period.as_micros();
            u128::from(count).saturating_mul(1_000_000).checked_div(micros).map_or(0, narrow)
        };
        let mean = |time: u64, count: u64| time.checked_div(count).unwrap_or(0);
        let recent = &self.recent;
        Counters {
            server_assignment_count: rate(recent.server_assignment_count),
            xact_count: rate(recent.xact_count),
            query_count: rate(recent.query_count),
            received: rate(recent.received),
            sent: rate(recent.sent),
            xact_time: mean(recent.xact_time, recent.xact_count),
            query_time: mean(recent.query_time, recent.query_count),
            wait_time: mean(recent.wait_time, recent.server_assignment_count),
            client_parse_count: rate(recent.client_parse_count),
            server_parse_count: rate(recent.server_parse_count),
            bind_count: rate(recent.bind_count),
        }
    }
}

fn narrow(count: u128) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
