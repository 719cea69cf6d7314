//! The rig's Kafka broker: what goes in comes out, it survives what a broker survives, and it leaves nothing behind.

use anyhow::{Context, Result};
use pgrx_tests::certificate::Certificate;
use pgrx_tests::kafka::{self, Broker, Options, Secured, kcat, no_broker};
use pgrx_tests::lacking;
use pgrx_tests::process;
use std::process::{Command, Output};
use std::sync::mpsc::channel;

/// Makes [`says_whether_there_is_a_broker`] do so.
const SAY: &str = "POSTERN_TEST_SAY_BROKER";

#[test]
fn what_is_produced_to_kafka_is_consumed() -> Result<()> {
    if no_broker() {
        return Ok(());
    }
    let broker = Broker::start("round-trip")?;
    broker.create_topic("orders", 3)?;
    assert_eq!(broker.consume("orders")?, []);
    let payload = "{\"op\": \"insert\",\n \"name\": \"Zoë \\u0000 'quoted' \\\\\"}";
    broker.produce("orders", Some("1"), payload)?;
    broker.produce("orders", Some("1"), "second")?;
    broker.produce("orders", None, "no key")?;
    let records = broker.consume("orders")?;
    let of_key: Vec<_> = records.iter().filter(|r| r.key.as_deref() == Some("1")).collect();
    assert_eq!(of_key.iter().map(|r| r.payload.as_str()).collect::<Vec<_>>(), [payload, "second"]);
    assert_eq!(of_key[0].partition, of_key[1].partition);
    assert!(of_key[0].offset < of_key[1].offset);
    let keyless: Vec<_> = records.iter().filter(|r| r.key.is_none()).collect();
    assert_eq!(keyless.iter().map(|r| r.payload.as_str()).collect::<Vec<_>>(), ["no key"]);
    Ok(())
}

#[test]
fn kafka_tombstones_and_headers_are_told_apart_from_empty() -> Result<()> {
    if no_broker() {
        return Ok(());
    }
    let broker = Broker::start("tombstone")?;
    broker.create_topic("orders", 1)?;
    let sent = Command::new("sh")
        .args(["-c", "printf '1:\\n' | kcat -P -b \"$0\" -t orders -K : -Z -H source=shop -H lsn=0/1"])
        .arg(broker.address())
        .status()?;
    assert!(sent.success());
    let records = broker.consume("orders")?;
    assert_eq!(records.len(), 1);
    assert!(records[0].tombstone && records[0].payload.is_empty());
    assert_eq!(records[0].key.as_deref(), Some("1"));
    let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(records[0].headers, [header("source", "shop"), header("lsn", "0/1")]);
    Ok(())
}

#[test]
fn a_killed_or_stopped_kafka_has_everything_when_it_is_started_again() -> Result<()> {
    if no_broker() {
        return Ok(());
    }
    let broker = Broker::start("killed")?;
    broker.create_topic("orders", 2)?;
    for number in 0..10 {
        broker.produce("orders", Some(&number.to_string()), &format!("payload {number}"))?;
    }
    let before = broker.consume("orders")?;
    assert_eq!(before.len(), 10);
    let pid = broker.pid()?;
    broker.kill()?;
    assert!(!process::is_running(pid) && std::net::TcpStream::connect(broker.address()).is_err());
    broker.start_again()?;
    assert_eq!(broker.consume("orders")?, before);
    broker.produce("orders", Some("more"), "more")?;
    broker.stop()?;
    assert!(std::net::TcpStream::connect(broker.address()).is_err());
    broker.start_again()?;
    assert_eq!(broker.consume("orders")?.len(), 11);
    Ok(())
}

#[test]
fn kafka_takes_no_topic_that_was_not_made_and_no_record_that_is_too_large() -> Result<()> {
    if no_broker() {
        return Ok(());
    }
    let options = Options { message_max_bytes: Some(10_000), ..Options::default() };
    let broker = Broker::with("limits", &options)?;
    assert!(broker.consume("missing").is_err());
    broker.create_topic("small", 1)?;
    assert!(broker.create_topic("small", 1).is_err_and(|e| e.to_string().contains("already exists")));
    broker.produce("small", None, &"x".repeat(9_000))?;
    let refused = broker.produce("small", None, &"x".repeat(11_000));
    assert!(refused.is_err_and(|error| error.to_string().contains("Message size too large")));
    assert_eq!(broker.consume("small")?.len(), 1);
    Ok(())
}

#[test]
fn the_secured_kafka_lets_in_who_has_its_authority_and_password() -> Result<()> {
    if no_broker() {
        return Ok(());
    }
    let (broker, secured) = Broker::secured("secured", &Options::default())?;
    broker.create_topic("orders", 1)?;
    broker.produce("orders", None, "a secret")?;
    let read = read_secured(&secured)?;
    assert_eq!(String::from_utf8_lossy(&read.stdout), "a secret\n", "{read:?}\n{}", broker.log_tail());
    for mechanism in ["SCRAM-SHA-256", "SCRAM-SHA-512"] {
        let output = log_in(&broker, &secured, mechanism)?;
        assert!(output.status.success(), "{mechanism}: {output:?}\n{}", broker.log_tail());
    }
    let wrong = Secured { password: "wrong".to_owned(), ..secured.clone() };
    let read = read_secured(&wrong)?;
    assert!(!read.status.success() && read.stdout.is_empty(), "PLAIN takes any password");
    assert!(!log_in(&broker, &wrong, "SCRAM-SHA-256")?.status.success(), "SCRAM takes any password");
    let stranger = Certificate::authority(broker.path(), "stranger")?;
    let strange = Secured { authority: stranger.certificate, ..secured };
    assert!(!read_secured(&strange)?.status.success());
    assert!(broker.log().contains("SSL handshake failed"), "{}", broker.log_tail());
    Ok(())
}

/// Reads topic `orders` by the secured listener with PLAIN.
fn read_secured(secured: &Secured) -> Result<Output> {
    let settings = [
        "security.protocol=SASL_SSL".to_owned(),
        "sasl.mechanisms=PLAIN".to_owned(),
        format!("ssl.ca.location={}", secured.authority.display()),
        format!("sasl.username={}", secured.user),
        format!("sasl.password={}", secured.password),
    ];
    let mut arguments = vec!["-C", "-b", &secured.address, "-t", "orders", "-e", "-q", "-o", "beginning"];
    arguments.extend(settings.iter().flat_map(|setting| ["-X", setting]));
    kcat(&arguments)
}

/// Asks the secured listener something after a login by SCRAM, with Kafka's own client.
fn log_in(broker: &Broker, secured: &Secured, mechanism: &str) -> Result<Output> {
    let file = broker.path().join("client.properties");
    let settings = format!(
        "security.protocol=SASL_SSL\nssl.truststore.type=PEM\nssl.truststore.location={}\n\
         sasl.mechanism={mechanism}\nsasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule \
         required username=\"{}\" password=\"{}\";\n",
        secured.authority.display(),
        secured.user,
        secured.password
    );
    std::fs::write(&file, settings)?;
    let mut command = kafka::program("kafka.admin.ConfigCommand")?;
    command.args(["--bootstrap-server", &secured.address, "--command-config"]).arg(file);
    Ok(command.args(["--describe", "--entity-type", "brokers", "--entity-name", "1"]).output()?)
}

#[test]
fn a_panic_ends_kafka_and_removes_its_files() -> Result<()> {
    if no_broker() {
        return Ok(());
    }
    let (tell, told) = channel();
    let test = std::thread::spawn(move || {
        let broker = Broker::start("panics").unwrap();
        tell.send((broker.pid().unwrap(), broker.path().to_owned())).unwrap();
        panic!("on purpose");
    });
    assert!(test.join().is_err());
    let (pid, path) = told.recv()?;
    assert!(!process::is_running(pid));
    assert!(!path.exists());
    Ok(())
}

#[test]
fn where_no_kafka_can_be_had_the_rig_says_why() -> Result<()> {
    // Another place for what is downloaded, and no program to be found.
    let empty = std::env::temp_dir().join(format!("postern-no-broker-{}", std::process::id()));
    std::fs::create_dir_all(&empty)?;
    let output = Command::new(std::env::current_exe()?)
        .args(["--exact", "kafka_rig::says_whether_there_is_a_broker", "--nocapture"])
        .env(SAY, "1")
        .env("CARGO_TARGET_DIR", empty.join("target"))
        .env("PATH", &empty)
        .output();
    let said = empty.join("said");
    let test = |ci: &str| {
        Command::new(std::env::current_exe()?)
            .args(["--exact", "kafka_rig::what_is_produced_to_kafka_is_consumed"])
            .env("CARGO_TARGET_DIR", empty.join("target"))
            .env("PATH", &empty)
            .env(lacking::FILE, &said)
            .env("CI", ci)
            .output()
    };
    let (looked_at, not_looked_at) = (test(""), test("true"));
    let noted = std::fs::read_to_string(&said);
    std::fs::remove_dir_all(&empty)?;
    assert!(looked_at?.status.success(), "a test that needs one does nothing");
    let noted = noted.context("what cargo verify says at its end")?;
    let not_run = "not run: kafka_rig::what_is_produced_to_kafka_is_consumed: no Apache Kafka here: ";
    assert!(noted.starts_with(not_run), "{noted}");
    assert_eq!(noted.lines().count(), 1, "{noted}");
    assert!(!not_looked_at?.status.success(), "where nobody looks, it fails");
    let output = output.context("the test program")?;
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("no Apache Kafka here: "), "{said}");
    for package in ["default-jre-headless", "maven", "kcat"] {
        assert!(said.contains(package), "{said}");
    }
    Ok(())
}

/// Part of the test above, in a program of its own; by itself it does nothing.
#[test]
fn says_whether_there_is_a_broker() {
    if std::env::var_os(SAY).is_some() {
        println!("{}", kafka::unavailable().unwrap_or_default());
        let started = Broker::start("none").err().map(|error| error.to_string());
        assert_eq!(started, kafka::unavailable());
    }
}
