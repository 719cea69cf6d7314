//! What the Kafka sink and the Kafka source have in common: how librdkafka, the client library, is told where the brokers are and what
//! the operator wants of it. Nothing here connects or starts a thread: that is why a backend may check options with it.

use super::options::{OptionError, Options};
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::types::RDKafkaConfRes;
use std::time::Duration;

/// Properties of librdkafka that nobody may give, for either end, and why.
const OURS: &[(&str, &str)] = &[
    ("bootstrap.servers", HOSTS),
    ("metadata.broker.list", HOSTS),
    ("socket.timeout.ms", "is set by the option \"timeout\""),
    // Code from files, in the server's process.
    ("plugin.library.paths", CODE),
    ("ssl.engine.location", CODE),
    ("ssl.providers", CODE),
    ("interceptors", CODE),
    ("sasl.kerberos.kinit.cmd", CODE),
    // These would start threads or raise signals of their own.
    ("test.mock.num.brokers", "is for tests of the library"),
    ("test.mock.broker.rtt", "is for tests of the library"),
    ("internal.termination.signal", "would raise a signal in the server"),
    // Nobody would read them.
    ("statistics.interval.ms", "is not read here"),
    ("log.queue", "is always on"),
    ("enable.sasl.oauthbearer.unsecure.jwt", "is for tests of the library"),
];
const HOSTS: &str = "is set by the option \"hosts\"";
const CODE: &str = "would run foreign code in the server";

/// The library repeats an error that lasts every 30 s; one that was not repeated is over.
pub const STALE: Duration = Duration::from_secs(45);

/// Reads `hosts` and `properties`, each property checked by the library itself. `timeout`, which both ends have under that name, is how
/// long a broker may take to answer.
///
/// `ours`: further properties that nobody may give, and why, as a continuation of the sentence.
///
/// # Errors
/// Names the option, a property as `properties.<name>`.
pub fn client_config(
    options: &mut Options,
    timeout: Duration,
    ours: &[(&str, &str)],
) -> Result<ClientConfig, OptionError> {
    let mut config = ClientConfig::new();
    // What it logs below that is its own business; connections that fail are above.
    config.set_log_level(RDKafkaLogLevel::Warning);
    config.set("bootstrap.servers", hosts(options)?);
    if !(Duration::from_millis(10)..=Duration::from_mins(5)).contains(&timeout) {
        return Err(OptionError::new("timeout", "must be from 10ms to 5min"));
    }
    config.set("socket.timeout.ms", timeout.as_millis().to_string());
    for (name, value) in options.map("properties")? {
        let option = format!("properties.{name}");
        if let Some((_, why)) = OURS.iter().chain(ours).find(|(ours, _)| *ours == name) {
            return Err(OptionError::new(option, *why));
        }
        check(&name, &value).map_err(|why| OptionError::new(option, why))?;
        config.set(name, value);
    }
    Ok(config)
}

fn hosts(options: &mut Options) -> Result<String, OptionError> {
    let hosts = options.list("hosts")?;
    if hosts.is_empty() {
        return Err(OptionError::new("hosts", "is required"));
    }
    if let Some(host) = hosts.iter().find(|host| !is_host(host)) {
        let why =
            format!("must be a list of \"host:port\", without a user, with a port up to 65535: \"{host}\"");
        return Err(OptionError::new("hosts", why));
    }
    Ok(hosts.join(","))
}

/// `name`, `name:port`, `[address]`, `[address]:port`.
fn is_host(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[').and_then(|host| host.split_once(']')) {
        Some((address, "")) => (address, None),
        Some((address, rest)) => (address, Some(rest.strip_prefix(':').unwrap_or_default())),
        None => host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port))),
    };
    let in_brackets = host.starts_with('[');
    let allowed = |c: char| c.is_alphanumeric() || "-._".contains(c) || (in_brackets && "%:".contains(c));
    let digits = |port: &str| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    !name.is_empty()
        && name.chars().all(allowed)
        && port.is_none_or(|port| digits(port) && port.parse::<u16>().is_ok_and(|port| port > 0))
}

/// Why the library makes nothing of properties that it took one by one, naming the one, with the file that it names.
pub fn unusable(config: &ClientConfig, error: &KafkaError) -> OptionError {
    let said = error.to_string();
    let named = config.config_map().into_iter().filter(|(name, _)| said.contains(name));
    match named.max_by_key(|(name, _)| name.len()) {
        Some((name, value)) if name.ends_with(".location") => {
            OptionError::new(format!("properties.{name}"), format!("\"{value}\" cannot be used: {said}"))
        }
        Some((name, _)) => OptionError::new(format!("properties.{name}"), format!("cannot be used: {said}")),
        None => OptionError::new("properties", format!("cannot be used: {said}")),
    }
}

/// Whether the library knows a property and would take this value.
fn check(name: &str, value: &str) -> Result<(), String> {
    let mut alone = ClientConfig::new();
    match alone.set(name, value).create_native_config() {
        Ok(_) => Ok(()),
        Err(KafkaError::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, ..)) => {
            Err("is no property of librdkafka".to_owned())
        }
        Err(KafkaError::ClientConfig(_, text, ..)) => Err(format!("is refused by librdkafka: {text}")),
        // A zero byte in one of the two.
        Err(_) => Err("cannot be given to librdkafka".to_owned()),
    }
}

/// What the operator has not decided.
pub fn set_unless_given(config: &mut ClientConfig, name: &str, value: &str) {
    if config.get(name).is_none() {
        config.set(name, value);
    }
}

/// Who we are, for whom the brokers show it to.
pub fn name_client(config: &mut ClientConfig, stream: &str) {
    set_unless_given(config, "client.id", &format!("postern-{}", stream.replace('\0', "")));
}

/// Bytes of the largest message that the library takes.
pub fn largest(config: &ClientConfig) -> u64 {
    config.get("message.max.bytes").and_then(|bytes| bytes.parse().ok()).unwrap_or(1_000_000)
}

/// Whether a line of the library's is for the server's log.
pub fn is_for_the_log(level: RDKafkaLogLevel) -> bool {
    (level as i32) <= RDKafkaLogLevel::Warning as i32
}

/// An error of the library's in words. That no broker can be reached is said after why one cannot be reached, which helps more.
pub fn words(code: Option<RDKafkaErrorCode>, reason: &str, before: Option<String>) -> String {
    before.filter(|_| code == Some(RDKafkaErrorCode::AllBrokersDown)).unwrap_or_else(|| reason.to_owned())
}

/// A topic's name as brokers accept it: up to 249 of `a-z`, `A-Z`, `0-9`, `.`, `_` and `-`, not `.` or `..`.
///
/// # Errors
/// Names the option.
pub fn topic(option: &str, topic: &str) -> Result<String, OptionError> {
    let letters = topic.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
    if topic.is_empty() || topic.len() > 249 || topic == "." || topic == ".." || !letters {
        let why = format!(
            "names the topic \"{topic}\": a topic is up to 249 letters, digits, \".\", \"_\" and \"-\""
        );
        return Err(OptionError::new(option, why));
    }
    Ok(topic.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_is_a_name_or_an_address_with_or_without_a_port() {
        for host in ["k", "k:1", "kafka-1.example:9092", "10.0.0.1:65535", "[::1]:9092", "[fe80::1%eth0]"] {
            assert!(is_host(host), "{host}");
        }
        for host in [
            "",
            " ",
            ":1",
            "k:",
            "k:0",
            "k:99999",
            "k:+1",
            "k:1:2",
            "::1",
            "user:pw@host:1",
            "user@host",
            "PLAINTEXT://k:1",
            "k/1",
            "a,b",
            "k k",
            "[::1",
            "[::1]9092",
            "[]:1",
            "k\0:1",
        ] {
            assert!(!is_host(host), "{host}");
        }
    }
}
