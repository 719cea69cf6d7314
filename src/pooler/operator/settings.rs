//! The pooler's settings under PgBouncer's names. Pure; network threads.

use crate::pooler::console::{Error, PoolMode, SettingReport};
use crate::pooler::history;
use crate::settings::{ListenAddress, PoolerSettings};
use std::time::Duration;

/// In the order of their names, as PgBouncer's are. Times are in seconds.
pub(super) fn settings(pooler: &PoolerSettings) -> Vec<SettingReport> {
    let time = |time: Option<Duration>| time.unwrap_or_default().as_secs().to_string();
    let (mut addresses, mut port) = (Vec::new(), None);
    for entry in pooler.listen.iter() {
        let (address, its) = match entry {
            ListenAddress::Any(port) => ("*".to_owned(), *port),
            ListenAddress::Ip(ip, port) => (ip.to_string(), *port),
            ListenAddress::Name(name, port) => (name.clone(), *port),
            ListenAddress::Unix(_) => continue,
        };
        addresses.push(address);
        port.get_or_insert(its);
    }
    let rows = [
        ("client_idle_timeout", time(pooler.client_idle_timeout), "0", true),
        ("client_login_timeout", time(pooler.client_login_timeout), "60", true),
        ("default_pool_size", pooler.pool_size.to_string(), "20", true),
        ("idle_transaction_timeout", time(pooler.idle_transaction_timeout), "0", true),
        ("listen_addr", addresses.join(","), "", true),
        ("listen_port", port.unwrap_or(0).to_string(), "6432", true),
        ("max_client_conn", pooler.max_clients.to_string(), "10000", false),
        ("max_db_connections", "0".to_owned(), "0", false),
        ("max_user_connections", "0".to_owned(), "0", false),
        ("min_pool_size", pooler.min_pool_size.to_string(), "0", true),
        ("pool_mode", mode(pooler.pool_mode).name().to_owned(), "transaction", true),
        ("query_timeout", time(pooler.query_timeout), "0", true),
        ("query_wait_timeout", time(pooler.query_wait_timeout), "120", true),
        ("reserve_pool_size", pooler.reserve_pool_size.to_string(), "0", true),
        ("reserve_pool_timeout", time(pooler.reserve_pool_timeout), "5", true),
        ("server_connect_timeout", time(pooler.server_connect_timeout), "15", true),
        ("server_idle_timeout", time(pooler.server_idle_timeout), "600", true),
        ("server_lifetime", time(pooler.server_lifetime), "3600", true),
        ("server_login_retry", pooler.server_login_retry.as_secs().to_string(), "15", true),
        ("stats_period", history::PERIOD.as_secs().to_string(), "60", false),
        ("transaction_timeout", time(pooler.transaction_timeout), "0", true),
        ("unix_socket_dir", pooler.door.socket_directory.clone(), "", false),
    ];
    let report = |(key, value, default, changeable): (&str, String, &str, bool)| SettingReport {
        key: key.to_owned(),
        value: Some(value),
        default: Some(default.to_owned()),
        changeable,
    };
    rows.into_iter().map(report).collect()
}

/// By the numbers that [`PoolerSettings::pool_mode`] has.
pub(super) fn mode(number: u32) -> PoolMode {
    match number {
        1 => PoolMode::Session,
        2 => PoolMode::Statement,
        _ => PoolMode::Transaction,
    }
}

/// None of them is set here: says where it is.
///
/// # Errors
/// Always; [`Error::UnknownSetting`] for one that is not among them.
pub(super) fn refuse(setting: &str, settings: &[SettingReport]) -> Result<(), Error> {
    if !settings.iter().any(|known| known.key == setting) {
        return Err(Error::UnknownSetting(setting.to_owned()));
    }
    let hint = match own_name(setting) {
        Some(own) => format!("It is the server's {own}: use ALTER SYSTEM SET {own}, and RELOAD."),
        None => "The pooler has no such limit.".to_owned(),
    };
    Err(Error::SettingFixed(setting.to_owned(), hint))
}

/// Our name of a setting of PgBouncer's.
fn own_name(setting: &str) -> Option<&'static str> {
    Some(match setting {
        "client_idle_timeout" => "postern.client_idle_timeout",
        "client_login_timeout" => "postern.client_login_timeout",
        "default_pool_size" => "postern.pool_size",
        "listen_addr" | "listen_port" => "postern.pooler_listen",
        "max_client_conn" => "postern.max_client_connections",
        "idle_transaction_timeout" => "postern.idle_transaction_timeout",
        "min_pool_size" => "postern.min_pool_size",
        "pool_mode" => "postern.pool_mode",
        "query_timeout" => "postern.query_timeout",
        "query_wait_timeout" => "postern.query_wait_timeout",
        "reserve_pool_size" => "postern.reserve_pool_size",
        "reserve_pool_timeout" => "postern.reserve_pool_timeout",
        "server_connect_timeout" => "postern.server_connect_timeout",
        "server_idle_timeout" => "postern.server_idle_timeout",
        "server_lifetime" => "postern.server_lifetime",
        "server_login_retry" => "postern.server_login_retry",
        "transaction_timeout" => "postern.transaction_timeout",
        "unix_socket_dir" => "unix_socket_directories",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_in_order_and_each_says_what_to_do_about_it() {
        let rows = settings(&PoolerSettings::default());
        assert!(rows.is_sorted_by_key(|row| row.key.clone()));
        assert!(rows.iter().filter(|row| row.changeable).all(|row| own_name(&row.key).is_some()));
    }
}
