//! What the operator wrote for a Kafka sink, read and checked. Runs in the backend that defines the sink, and again in the worker that
//! uses it; nothing is connected here.

use crate::stream::broker::{self, set_unless_given};
use crate::stream::options::{OptionError, Options};
use rdkafka::config::ClientConfig;
use std::collections::HashMap;
use std::time::Duration;

/// What to do about an event that cannot be delivered as things are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// The stream ends and shows why; nothing after the event counts as delivered.
    Stop,
    /// The event is left out and counted.
    Skip,
}

/// A Kafka sink as its options describe it.
#[derive(Debug, Clone)]
pub struct Plan {
    pub config: ClientConfig,
    /// Where events of tables go, by `schema.table` or `table`.
    pub topics: HashMap<String, String>,
    pub fallback: Option<String>,
    pub remedies: Remedies,
}

/// The operator's choices, one for each way in which an event can be undeliverable.
#[derive(Debug, Clone, Copy)]
pub struct Remedies {
    pub oversized: Remedy,
    pub missing_topic: Remedy,
    pub unmapped: Remedy,
}

/// Properties that are options here, or without which events would be lost.
const OURS: &[(&str, &str)] = &[
    ("acks", ACKS),
    ("request.required.acks", ACKS),
    ("enable.idempotence", "is set by the option \"idempotence\""),
    ("message.timeout.ms", ENDLESS),
    ("delivery.timeout.ms", ENDLESS),
    ("retries", ENDLESS),
    ("message.send.max.retries", ENDLESS),
    ("request.timeout.ms", "is set by the option \"timeout\""),
    ("linger.ms", LINGER),
    ("queue.buffering.max.ms", LINGER),
    ("queue.buffering.max.messages", QUEUE),
    ("queue.buffering.max.kbytes", QUEUE),
    ("queuing.strategy", "would change the order of events"),
    ("batch.num.messages", "is set by the option \"batchSize\""),
    ("compression.type", COMPRESSION),
    ("compression.codec", COMPRESSION),
    ("delivery.report.only.error", REPORTS),
    ("dr_cb", REPORTS),
    ("dr_msg_cb", REPORTS),
    ("enable.gapless.guarantee", "is on, with idempotence, where batches have more than one event"),
    ("transactional.id", "is not supported: a sink uses no transactions"),
];
const ACKS: &str = "is set by the option \"requiredAcks\"";
const ENDLESS: &str = "is fixed: what was taken is tried until it is delivered";
const LINGER: &str = "is set by the option \"batchTimeout\"";
const QUEUE: &str = "follows postern.stream_buffer_size";
const COMPRESSION: &str = "is set by the option \"compression\"";
const REPORTS: &str = "is fixed: only a report of delivery makes an event safe";

impl Plan {
    /// # Errors
    /// Names the option that is wrong, a property of the library as `properties.<name>`.
    pub fn read(options: &mut Options) -> Result<Self, OptionError> {
        let timeout = options.time("timeout", Duration::from_mins(1))?;
        let mut config = broker::client_config(options, timeout, OURS)?;
        config.set("request.timeout.ms", timeout.as_millis().to_string());
        // Without end, in time and in number: an event that was taken is delivered or it stops the stream.
        config.set("message.timeout.ms", "0").set("message.send.max.retries", "2147483647");
        // Bytes are counted by the sink, which knows what else a message costs.
        config.set("queue.buffering.max.messages", "0");
        set_unless_given(&mut config, "partitioner", "murmur2_random");
        set_unless_given(&mut config, "topic.metadata.refresh.interval.ms", "60000");
        batches(options, &mut config)?;
        acknowledgements(options, &mut config)?;
        accepted(options)?;
        let (topics, fallback) = topics(options)?;
        let missing_topic = remedy(options, "on_missing_topic")?;
        if missing_topic == Remedy::Stop {
            // Well before it is a trouble that nothing is confirmed: that would say less. Whoever skips wants to be sure.
            set_unless_given(&mut config, "topic.metadata.propagation.max.ms", "5000");
        }
        let remedies = Remedies {
            oversized: remedy(options, "on_oversized")?,
            missing_topic,
            unmapped: remedy(options, "on_unmapped")?,
        };
        Ok(Self { config, topics, fallback, remedies })
    }
}

fn batches(options: &mut Options, config: &mut ClientConfig) -> Result<(), OptionError> {
    let size = options.number("batchSize", 10_000, 1, 1_000_000)?;
    let linger = options.time("batchTimeout", Duration::from_millis(5))?;
    if linger > Duration::from_mins(15) {
        return Err(OptionError::new("batchTimeout", "must not be more than 15min"));
    }
    let compressions = ["none", "gzip", "snappy", "lz4", "zstd"].map(|name| (name, name));
    let compression = options.one_of("compression", &compressions, "none")?;
    config
        .set("batch.num.messages", size.to_string())
        .set("linger.ms", linger.as_millis().to_string())
        .set("compression.type", compression);
    Ok(())
}

/// Idempotence keeps order and lets nothing arrive twice while the sink lives; the protocol has it only with acks from all replicas.
fn acknowledgements(options: &mut Options, config: &mut ClientConfig) -> Result<(), OptionError> {
    let wrong = || OptionError::new("requiredAcks", "must be \"all\", -1, 1 or 0");
    let acks = match options.value("requiredAcks") {
        None => "all",
        Some(value) => {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            ["all", "-1", "1", "0"].into_iter().find(|one| *one == text).ok_or_else(wrong)?
        }
    };
    let all = matches!(acks, "all" | "-1");
    let idempotence = options.flag("idempotence", all)?;
    if idempotence && !all {
        return Err(OptionError::new("idempotence", "needs requiredAcks \"all\""));
    }
    config.set("acks", acks).set("enable.idempotence", idempotence.to_string());
    if !idempotence {
        // Else what is tried again could overtake what came before it.
        set_unless_given(config, "max.in.flight.requests.per.connection", "1");
    }
    Ok(())
}

/// psql-streamer's options that are taken and change nothing.
fn accepted(options: &mut Options) -> Result<(), OptionError> {
    // It gives an event up after so many attempts; here nothing is given up.
    options.number("maxAttempts", 3, 1, u64::from(u32::MAX))?;
    if options.flag("async", false)? {
        return Err(OptionError::new("async", "must be false: nothing counts as delivered before it is"));
    }
    if options.list("handlers")?.iter().any(|handler| handler != "passthrough") {
        return Err(OptionError::new("handlers", "may name \"passthrough\" only"));
    }
    Ok(())
}

fn topics(options: &mut Options) -> Result<(HashMap<String, String>, Option<String>), OptionError> {
    let fallback = options.text("topicFallback")?;
    let fallback = fallback.map(|topic| broker::topic("topicFallback", &topic)).transpose()?;
    let mut topics = HashMap::new();
    for (table, topic) in options.map("tableTopicMapping")? {
        let topic = broker::topic("tableTopicMapping", &topic)?;
        if Some(&topic) == fallback.as_ref() {
            let why = format!("gives table \"{table}\" the topic of topicFallback");
            return Err(OptionError::new("tableTopicMapping", why));
        }
        topics.insert(table, topic);
    }
    if topics.is_empty() && fallback.is_none() {
        return Err(OptionError::new("topicFallback", "is required where there is no tableTopicMapping"));
    }
    Ok((topics, fallback))
}

fn remedy(options: &mut Options, name: &str) -> Result<Remedy, OptionError> {
    options.one_of(name, &[("stop", Remedy::Stop), ("skip", Remedy::Skip)], Remedy::Stop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(options: Value) -> Result<Plan, String> {
        let Value::Object(map) = options else { panic!("no object") };
        let mut options = Options::new(&map);
        let plan = Plan::read(&mut options).map_err(|error| error.to_string())?;
        options.finish().map_err(|error| error.to_string())?;
        Ok(plan)
    }

    fn with(name: &str, value: Value) -> Result<Plan, String> {
        let mut options = json!({"hosts": ["a:1", "b:2"], "topicFallback": "rest"});
        options[name] = value;
        read(options)
    }

    #[test]
    fn psql_streamers_options_are_taken_as_they_are() {
        let plan = read(json!({
            "hosts": ["a:9092", "b:9092"], "handlers": ["passthrough"], "timeout": "2s", "maxAttempts": 3,
            "tableTopicMapping": {"Orders": "orders", "public.orders": "small"}, "topicFallback": "rest",
            "requiredAcks": -1, "async": false, "batchSize": 100, "batchTimeout": "5ms",
        }))
        .unwrap();
        let set = |name: &str| plan.config.get(name).unwrap_or("-").to_owned();
        assert_eq!(set("bootstrap.servers"), "a:9092,b:9092");
        assert_eq!((set("acks"), set("enable.idempotence")), ("-1".into(), "true".into()));
        assert_eq!((set("batch.num.messages"), set("linger.ms")), ("100".into(), "5".into()));
        assert_eq!((set("message.timeout.ms"), set("socket.timeout.ms")), ("0".into(), "2000".into()));
        assert_eq!(plan.topics["Orders"], "orders");
        assert_eq!(plan.topics["public.orders"], "small");
        assert_eq!((plan.fallback.as_deref(), broker::largest(&plan.config)), (Some("rest"), 1_000_000));
    }

    #[test]
    fn each_mistake_names_its_option() {
        let wrong = |name: &str, value: Value| with(name, value).unwrap_err();
        assert_eq!(read(json!({"topicFallback": "x"})).unwrap_err(), "option \"hosts\" is required");
        let unrouted = read(json!({"hosts": "a:1"})).unwrap_err();
        assert!(unrouted.starts_with("option \"topicFallback\" is required"), "{unrouted}");
        assert!(wrong("hosts", json!(["a:1,b:2"])).starts_with("option \"hosts\" must be a list"));
        assert!(wrong("tableTopicMapping", json!({"t": "rest"})).contains("the topic of topicFallback"));
        assert!(wrong("tableTopicMapping", json!({"t": "no topic"})).contains("\"no topic\""));
        assert!(wrong("handlers", json!(["mangle"])).contains("passthrough"));
        assert!(wrong("async", json!(true)).contains("must be false"));
        assert!(wrong("requiredAcks", json!(2)).contains("must be \"all\""));
        assert!(wrong("timeout", json!("1ms")).contains("must be from"));
        assert!(wrong("compression", json!("rar")).contains("one of none"));
        assert!(wrong("on_oversized", json!("cut")).contains("one of stop, skip"));
        assert!(wrong("idempotent", json!(true)).contains("is not known"));
        let mut weak = json!({"hosts": "a", "topicFallback": "t", "requiredAcks": 1, "idempotence": true});
        assert!(read(weak.clone()).unwrap_err().contains("needs requiredAcks"));
        weak["idempotence"] = Value::Null;
        let plan = read(weak).unwrap();
        assert_eq!(plan.config.get("enable.idempotence"), Some("false"));
        assert_eq!(plan.config.get("max.in.flight.requests.per.connection"), Some("1"));
    }

    #[test]
    fn properties_are_checked_by_the_library_and_ours_are_refused() {
        let wrong = |name: &str, value: &str| with("properties", json!({name: value})).unwrap_err();
        assert_eq!(wrong("no.such", "1"), "option \"properties.no.such\" is no property of librdkafka");
        let range = wrong("message.max.bytes", "1");
        assert!(range.starts_with("option \"properties.message.max.bytes\" is refused by librdkafka: "));
        assert!(range.contains("1000"), "{range}");
        let idempotence = wrong("enable.idempotence", "false");
        assert!(idempotence.ends_with("is set by the option \"idempotence\""), "{idempotence}");
        assert!(wrong("plugin.library.paths", "/tmp/x.so").contains("foreign code"));
        assert!(wrong("message.timeout.ms", "5").contains("tried until it is delivered"));
        assert!(wrong("a\0b", "5").contains("cannot be given"));
        let plan = with(
            "properties",
            json!({"security.protocol": "sasl_ssl", "sasl.mechanism": "SCRAM-SHA-512", "sasl.username": "u",
                "sasl.password": "p", "message.max.bytes": 2_000_000, "partitioner": "consistent"}),
        )
        .unwrap();
        assert_eq!(
            (broker::largest(&plan.config), plan.config.get("partitioner")),
            (2_000_000, Some("consistent"))
        );
    }
}
