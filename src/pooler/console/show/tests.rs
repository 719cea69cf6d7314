//! Every SHOW beside what PgBouncer 1.24 answers.

use super::*;
use crate::pooler::console::command::SHOWS;
use crate::pooler::console::rehearsal::Rehearsal;
use crate::pooler::console::table::Kind;
use Kind::{Bytea as B, Int4 as I, Int8 as Q, Numeric as N, Text as S};

/// The columns of PgBouncer 1.24.1, as `SHOW …` of it describes them; one letter a column's type.
const SOCKET_NAMES: &str = "type user database replication state addr port local_addr local_port connect_time \
    request_time wait wait_us close_needed ptr link remote_pid tls application_name prepared_statements id";
const SOCKET_TYPES: [Kind; 21] = [S, S, S, S, S, S, I, S, I, S, S, I, I, I, S, S, I, S, S, I, I];

fn expected(show: Show) -> (String, Vec<Kind>) {
    let (names, types): (&str, &[Kind]) = match show {
        Show::Help => ("", &[]),
        Show::Channels => ("database channel listeners delivered since", &[S, S, I, Q, S]),
        Show::Clients | Show::Servers => (SOCKET_NAMES, &SOCKET_TYPES),
        Show::Sockets | Show::ActiveSockets => {
            let names = "recv_pos pkt_pos pkt_remain send_pos send_remain pkt_avail send_avail";
            return (format!("{SOCKET_NAMES} {names}"), [&SOCKET_TYPES[..], &[I; 7]].concat());
        }
        Show::Config => ("key value default changeable", &[S, S, S, S]),
        Show::Databases => (
            "name host port database force_user pool_size min_pool_size reserve_pool_size server_lifetime \
             pool_mode load_balance_hosts max_connections current_connections max_client_connections \
             current_client_connections paused disabled",
            &[S, S, I, S, S, I, I, I, I, S, S, I, I, I, I, I, I],
        ),
        Show::DnsHosts => ("hostname ttl addrs", &[S, Q, S]),
        Show::DnsZones => ("zonename serial count", &[S, Q, I]),
        Show::Fds => (
            "fd task user database addr port cancel link client_encoding std_strings datestyle timezone password \
             scram_client_key scram_server_key",
            &[I, S, S, S, S, I, Q, I, S, S, S, S, S, B, B],
        ),
        Show::Lists => ("list items", &[S, I]),
        Show::Mem => ("name size used free memtotal", &[S, I, I, I, I]),
        Show::Peers => ("peer_id host port pool_size", &[I, S, I, I]),
        Show::PeerPools => {
            ("peer_id cl_active_cancel_req cl_waiting_cancel_req sv_active_cancel sv_login", &[I, I, I, I, I])
        }
        Show::Pools => (
            "database user cl_active cl_waiting cl_active_cancel_req cl_waiting_cancel_req sv_active \
             sv_active_cancel sv_being_canceled sv_idle sv_used sv_tested sv_login maxwait maxwait_us pool_mode \
             load_balance_hosts",
            &[S, S, I, I, I, I, I, I, I, I, I, I, I, I, I, S, S],
        ),
        Show::State => ("key value", &[S, S]),
        Show::Stats => (
            "database total_server_assignment_count total_xact_count total_query_count total_received total_sent \
             total_xact_time total_query_time total_wait_time total_client_parse_count total_server_parse_count \
             total_bind_count avg_server_assignment_count avg_xact_count avg_query_count avg_recv avg_sent \
             avg_xact_time avg_query_time avg_wait_time avg_client_parse_count avg_server_parse_count \
             avg_bind_count",
            &[S, N, N, N, N, N, N, N, N, N, N, N, N, N, N, N, N, N, N, N, N, N, N],
        ),
        Show::StatsTotals => (
            "database server_assignment_count xact_count query_count bytes_received bytes_sent xact_time \
             query_time wait_time client_parse_count server_parse_count bind_count",
            &[S, N, N, N, N, N, N, N, N, N, N, N],
        ),
        Show::StatsAverages => (
            "database server_assignment_count xact_count query_count bytes_received bytes_sent xact_time \
             query_time wait_time avg_client_parse_count avg_server_parse_count avg_bind_count",
            &[S, N, N, N, N, N, N, N, N, N, N, N],
        ),
        Show::Totals => ("name value", &[S, N]),
        Show::Users => (
            "name pool_size reserve_pool_size pool_mode max_user_connections current_connections \
             max_user_client_connections current_client_connections",
            &[S, S, S, S, I, I, I, I],
        ),
        Show::Version => ("version", &[S]),
    };
    (names.to_owned(), types.to_vec())
}

#[test]
fn every_show_has_pgbouncers_columns_and_types() {
    for (name, show) in SHOWS {
        let (names, types) = expected(*show);
        let columns = columns(*show);
        let found: Vec<_> = columns.iter().map(|column| column.name).collect();
        assert_eq!(found, names.split_whitespace().collect::<Vec<_>>(), "{name}");
        assert_eq!(columns.iter().map(|column| column.kind).collect::<Vec<_>>(), types, "{name}");
    }
}

#[test]
fn every_row_is_as_wide_as_its_columns() {
    let operator = Rehearsal { clients: 5, ..Rehearsal::default() };
    for (name, show) in SHOWS {
        let table = table(*show, &operator);
        assert!(table.rows.iter().all(|row| row.len() == table.columns.len()), "{name}");
        for (column, value) in table.rows.iter().flat_map(|row| table.columns.iter().zip(row)) {
            let fits = match value {
                Value::Null => true,
                Value::Text(_) => column.kind == Kind::Text,
                Value::Count(_) | Value::Int(_) => column.kind != Kind::Text,
            };
            assert!(fits, "{name}.{} is {value:?}", column.name);
        }
    }
}

/// A table as text, a row a line.
fn shown(show: Show, operator: &Rehearsal) -> Vec<String> {
    let text = |value: &Value| match value {
        Value::Null => "NULL".to_owned(),
        Value::Text(text) => text.clone(),
        Value::Count(count) => count.to_string(),
        Value::Int(number) => number.to_string(),
    };
    let rows = table(show, operator).rows;
    rows.iter().map(|row| row.iter().map(text).collect::<Vec<_>>().join("|")).collect()
}

#[test]
fn pools_are_followed_by_the_consoles_own() {
    assert_eq!(
        shown(Show::Pools, &Rehearsal::default()),
        [
            "app|alice|1|2|3|4|5|6|7|8|9|10|11|12|13000|transaction|NULL",
            "postern|postern|1|0|0|0|0|0|0|0|0|0|0|0|0|statement|NULL",
        ]
    );
    assert_eq!(
        shown(Show::Databases, &Rehearsal::default()),
        [
            "app|NULL|5432|app|NULL|20|0|0|3600|NULL|NULL|0|1|0|2|1|0",
            "postern|NULL|6432|postern|NULL|0|0|0|0|statement|NULL|0|0|0|1|0|0",
        ]
    );
    assert_eq!(shown(Show::Users, &Rehearsal::default()), ["alice|5||session|0|1|0|2"]);
    assert_eq!(shown(Show::Mem, &Rehearsal::default()), ["client_cache|100|2|3|500"]);
    assert_eq!(shown(Show::Lists, &Rehearsal::default())[..2], ["databases|2", "users|1"]);
    assert_eq!(shown(Show::State, &Rehearsal::default()), ["active|yes", "paused|no", "suspended|no"]);
}

#[test]
fn sockets_are_shown_by_state_as_each_list_names_it() {
    let operator = Rehearsal { clients: 5, ..Rehearsal::default() };
    let states = |show| -> Vec<_> {
        shown(show, &operator)
            .iter()
            .map(|row| row.split('|').nth(4).map(str::to_owned).unwrap_or_default())
            .collect()
    };
    assert_eq!(states(Show::Clients), ["active", "waiting", "active_cancel_req", "waiting_cancel_req"]);
    assert_eq!(states(Show::Servers), ["active", "new", "being_canceled"]);
    assert_eq!(states(Show::Sockets), ["cl_active", "cl_waiting", "sv_active", "sv_login", "cl_login"]);
    assert_eq!(states(Show::ActiveSockets), ["cl_active", "sv_login", "cl_login"]);
    assert_eq!(
        shown(Show::Servers, &operator)[0],
        "S|alice|app|none|active|10.0.0.1|40001|unix|6432|2024-02-18 00:00:00 UTC|2024-02-29 12:00:00 UTC|2|3|0\
         |0x3e8|0x1f|77||psql|3|1000"
    );
}

#[test]
fn averages_are_a_second_and_a_thing() {
    let rows = shown(Show::Stats, &Rehearsal::default());
    let overflow = u64::MAX / 10;
    assert_eq!(
        rows,
        [
            format!(
                "app|100|200|300|400|500|600|700|800|900|1000|1100|10|4|30|{overflow}|50|2|0|8|90|100|110"
            ),
            format!("postern{}", "|0".repeat(22)),
        ]
    );
    let totals = shown(Show::Totals, &Rehearsal::default());
    assert_eq!(totals.len(), 22);
    assert_eq!(totals[0], "total_server_assignment_count|100");
    assert_eq!(totals[3], "total_client_bytes|400");
    assert_eq!(totals[19], "avg_ps_client_parse_count|90");
}

#[test]
fn the_version_begins_with_pgbouncers_number() {
    let shown = shown(Show::Version, &Rehearsal::default());
    assert!(shown[0].starts_with("PgBouncer 1.24.1 (postern "), "{shown:?}");
}

#[test]
fn dates_are_right_in_leap_years_and_centuries() {
    assert_eq!(date(0), (1970, 1, 1));
    assert_eq!(date(58), (1970, 2, 28));
    assert_eq!(date(59), (1970, 3, 1));
    assert_eq!(date(11_016), (2000, 2, 29));
    assert_eq!(date(11_322), (2000, 12, 31));
    assert_eq!(date(11_323), (2001, 1, 1));
    assert_eq!(date(47_540), (2100, 2, 28));
    assert_eq!(date(47_541), (2100, 3, 1));
    assert_eq!(time(UNIX_EPOCH + Duration::from_secs(86_399)), "1970-01-01 23:59:59 UTC");
    // Every day follows the one before it.
    let mut last = date(0);
    for day in 1..200_000 {
        let next = date(day);
        let follows = next == (last.0, last.1, last.2 + 1)
            || next == (last.0, last.1 + 1, 1)
            || (next == (last.0 + 1, 1, 1) && (last.1, last.2) == (12, 31));
        assert!(follows && next.2 <= 31, "{last:?} {next:?}");
        last = next;
    }
}
