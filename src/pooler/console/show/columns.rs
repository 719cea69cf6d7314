//! The columns of every SHOW, in PgBouncer 1.24's names, types and order. Pure; network threads.

use crate::pooler::console::command::Show;
use crate::pooler::console::table::{Column, Kind};

use Kind::{Bytea, Int4, Int8, Numeric, Text};

type Columns = &'static [(Kind, &'static [&'static str])];

const SOCKET: Columns = &[
    (Text, &["type", "user", "database", "replication", "state", "addr"]),
    (Int4, &["port"]),
    (Text, &["local_addr"]),
    (Int4, &["local_port"]),
    (Text, &["connect_time", "request_time"]),
    (Int4, &["wait", "wait_us", "close_needed"]),
    (Text, &["ptr", "link"]),
    (Int4, &["remote_pid"]),
    (Text, &["tls", "application_name"]),
    (Int4, &["prepared_statements", "id"]),
];

const SOCKET_BUFFERS: Columns =
    &[(Int4, &["recv_pos", "pkt_pos", "pkt_remain", "send_pos", "send_remain", "pkt_avail", "send_avail"])];

const POOLS: Columns = &[
    (Text, &["database", "user"]),
    (
        Int4,
        &[
            "cl_active",
            "cl_waiting",
            "cl_active_cancel_req",
            "cl_waiting_cancel_req",
            "sv_active",
            "sv_active_cancel",
            "sv_being_canceled",
            "sv_idle",
            "sv_used",
            "sv_tested",
            "sv_login",
            "maxwait",
            "maxwait_us",
        ],
    ),
    (Text, &["pool_mode", "load_balance_hosts"]),
];

const DATABASES: Columns = &[
    (Text, &["name", "host"]),
    (Int4, &["port"]),
    (Text, &["database", "force_user"]),
    (Int4, &["pool_size", "min_pool_size", "reserve_pool_size", "server_lifetime"]),
    (Text, &["pool_mode", "load_balance_hosts"]),
    (
        Int4,
        &[
            "max_connections",
            "current_connections",
            "max_client_connections",
            "current_client_connections",
            "paused",
            "disabled",
        ],
    ),
];

const USERS: Columns = &[
    (Text, &["name", "pool_size", "reserve_pool_size", "pool_mode"]),
    (
        Int4,
        &[
            "max_user_connections",
            "current_connections",
            "max_user_client_connections",
            "current_client_connections",
        ],
    ),
];

const STATS: Columns = &[
    (Text, &["database"]),
    (
        Numeric,
        &[
            "total_server_assignment_count",
            "total_xact_count",
            "total_query_count",
            "total_received",
            "total_sent",
            "total_xact_time",
            "total_query_time",
            "total_wait_time",
            "total_client_parse_count",
            "total_server_parse_count",
            "total_bind_count",
            "avg_server_assignment_count",
            "avg_xact_count",
            "avg_query_count",
            "avg_recv",
            "avg_sent",
            "avg_xact_time",
            "avg_query_time",
            "avg_wait_time",
            "avg_client_parse_count",
            "avg_server_parse_count",
            "avg_bind_count",
        ],
    ),
];

const COUNTS: Columns = &[
    (Text, &["database"]),
    (
        Numeric,
        &[
            "server_assignment_count",
            "xact_count",
            "query_count",
            "bytes_received",
            "bytes_sent",
            "xact_time",
            "query_time",
            "wait_time",
        ],
    ),
];

const TOTAL_PARSES: Columns = &[(Numeric, &["client_parse_count", "server_parse_count", "bind_count"])];

/// PgBouncer names these as no other averages.
const AVERAGE_PARSES: Columns =
    &[(Numeric, &["avg_client_parse_count", "avg_server_parse_count", "avg_bind_count"])];

/// The columns of a SHOW; none for SHOW HELP, which answers with a notice.
pub(in super::super) fn columns(show: Show) -> Vec<Column> {
    let parts: &[Columns] = match show {
        Show::Help => &[],
        Show::Channels => &[&[
            (Text, &["database", "channel"]),
            (Int4, &["listeners"]),
            (Int8, &["delivered"]),
            (Text, &["since"]),
        ]],
        Show::Clients | Show::Servers => &[SOCKET],
        Show::Sockets | Show::ActiveSockets => &[SOCKET, SOCKET_BUFFERS],
        Show::Config => &[&[(Text, &["key", "value", "default", "changeable"])]],
        Show::Databases => &[DATABASES],
        Show::DnsHosts => &[&[(Text, &["hostname"]), (Int8, &["ttl"]), (Text, &["addrs"])]],
        Show::DnsZones => &[&[(Text, &["zonename"]), (Int8, &["serial"]), (Int4, &["count"])]],
        Show::Fds => &[&[
            (Int4, &["fd"]),
            (Text, &["task", "user", "database", "addr"]),
            (Int4, &["port"]),
            (Int8, &["cancel"]),
            (Int4, &["link"]),
            (Text, &["client_encoding", "std_strings", "datestyle", "timezone", "password"]),
            (Bytea, &["scram_client_key", "scram_server_key"]),
        ]],
        Show::Lists => &[&[(Text, &["list"]), (Int4, &["items"])]],
        Show::Mem => &[&[(Text, &["name"]), (Int4, &["size", "used", "free", "memtotal"])]],
        Show::Peers => &[&[(Int4, &["peer_id"]), (Text, &["host"]), (Int4, &["port", "pool_size"])]],
        Show::PeerPools => &[&[(
            Int4,
            &["peer_id", "cl_active_cancel_req", "cl_waiting_cancel_req", "sv_active_cancel", "sv_login"],
        )]],
        Show::Pools => &[POOLS],
        Show::State => &[&[(Text, &["key", "value"])]],
        Show::Stats => &[STATS],
        Show::StatsTotals => &[COUNTS, TOTAL_PARSES],
        Show::StatsAverages => &[COUNTS, AVERAGE_PARSES],
        Show::Totals => &[&[(Text, &["name"]), (Numeric, &["value"])]],
        Show::Users => &[USERS],
        Show::Version => &[&[(Text, &["version"])]],
    };
    let groups = parts.iter().copied().flatten();
    groups.flat_map(|(kind, names)| names.iter().map(|name| Column { name, kind: *kind })).collect()
}
