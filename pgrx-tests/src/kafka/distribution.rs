//! Apache Kafka itself: its jars and what they need, fetched by Maven into the rig's base directory, once, and a formatted
//! directory to copy for every new broker. Runs in test and benchmark programs.

use super::secured;
use crate::{installation, machine};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The version of Kafka that is fetched.
pub const VERSION: &str = "4.1.1";

/// A logger that writes to standard error, of the interface version that Kafka is built with.
const SLF4J: &str = "1.7.36";

/// What copies the jars.
const PLUGIN: &str = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies";

/// Kafka 4's brokers are built for it.
const JAVA: u32 = 17;

/// Seconds that one attempt to fetch the 43 MB may take. A second attempt goes on where the first one was.
const LIMIT: &str = "240";

/// Any 16 bytes, in base64 for URLs.
const CLUSTER_ID: &str = "cG9zdGVybi1rYWZrYS0wMQ";

/// Quiet but for warnings, the word that the server is up, and failed logins.
const LOGGING: [&str; 5] = [
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info",
    "-Dorg.slf4j.simpleLogger.log.org.apache.kafka.common.network.Selector=info",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS",
];

/// What a broker runs on.
pub(super) struct Distribution {
    jars: PathBuf,
    /// A data directory as StorageTool leaves it, owned by the user that runs servers; copied for every broker.
    pub(super) formatted: PathBuf,
}

impl Distribution {
    fn at(home: &Path) -> Self {
        Self { jars: home.join("jars"), formatted: home.join("formatted") }
    }

    /// Java with Kafka's classes: small, and quick to start rather than fast in the long run.
    pub(super) fn java(&self) -> Command {
        let mut command = Command::new("java");
        command.args(["-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData"]);
        command.args(LOGGING).arg("-cp").arg(self.jars.join("*"));
        // It says so on standard error when it has heard of these, and they are meant for somebody else.
        command.env_remove("JAVA_TOOL_OPTIONS").env_remove("_JAVA_OPTIONS").env_remove("JDK_JAVA_OPTIONS");
        command
    }
}

/// One of Kafka's own programs, such as `kafka.admin.ConfigCommand`, to be given arguments and run.
///
/// # Errors
/// As [`super::unavailable`] says.
pub fn program(class: &str) -> Result<Command> {
    let mut command = ready()?.java();
    command.arg(class);
    Ok(command)
}

/// Kafka, ready to be started; fetched when it is not there. A program tries once.
///
/// # Errors
/// When it cannot be had: why, and what to install.
pub(super) fn ready() -> Result<&'static Distribution> {
    static READY: OnceLock<Result<Distribution, String>> = OnceLock::new();
    let ready = READY.get_or_init(|| make().map_err(|error| format!("no Apache Kafka here: {error:#}")));
    ready.as_ref().map_err(|error| anyhow::anyhow!("{error}"))
}

fn make() -> Result<Distribution> {
    let base = machine::base()?;
    let _alone = installation::lock(&base.join(format!("kafka-{VERSION}.lock")))?;
    let home = base.join(format!("kafka-{VERSION}"));
    let mut missing = machine::broker_packages();
    // Nobody needs Maven for what is there.
    missing.retain(|package| package != "maven" || !home.exists());
    if !missing.is_empty() {
        machine::install(&missing, |what| eprintln!("{what}"))
            .with_context(|| format!("its tests need {}", missing.join(", ")))?;
    }
    let version = java_version()?;
    if version < JAVA {
        bail!("java is version {version}, and Kafka {VERSION} needs {JAVA}");
    }
    if !home.exists() {
        // Made aside and renamed, so that it is whole or not there. What a killed program left behind is in the way.
        let aside = base.join(format!("kafka-{VERSION}-new"));
        let _ = fs::remove_dir_all(&aside);
        let made = fetch(&aside).and_then(|()| format(&aside));
        if let Err(error) = made {
            let _ = fs::remove_dir_all(&aside);
            return Err(error);
        }
        fs::rename(&aside, &home)?;
    }
    Ok(Distribution::at(&home))
}

/// The jars, by way of a Maven repository of our own: what is in the user's is the user's.
fn fetch(home: &Path) -> Result<()> {
    let (pom, repository) = (home.join("pom.xml"), home.join("repository"));
    fs::create_dir_all(&repository)?;
    fs::write(&pom, project())?;
    let attempt = || {
        let mut maven = Command::new("timeout");
        maven.args(["--kill-after=5", LIMIT, "mvn", "--batch-mode", "--quiet", "--strict-checksums", "-f"]);
        maven.arg(&pom).arg(format!("-Dmaven.repo.local={}", repository.display()));
        maven.args([PLUGIN, "-DincludeScope=runtime"]);
        installation::run(maven.arg(format!("-DoutputDirectory={}", home.join("jars").display())))
    };
    attempt().or_else(|_| attempt()).context("Maven must be able to download it")?;
    Ok(fs::remove_dir_all(&repository)?)
}

/// What Maven reads: nothing but what a broker needs to run.
fn project() -> String {
    let dependency = |group: &str, artifact: &str, version: &str| {
        format!(
            "<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId>\
             <version>{version}</version></dependency>\n"
        )
    };
    format!(
        "<project xmlns=\"http://maven.apache.org/POM/4.0.0\">\n<modelVersion>4.0.0</modelVersion>\n\
         <groupId>postern</groupId><artifactId>broker</artifactId><version>1</version>\
         <packaging>pom</packaging>\n<dependencies>\n{}{}</dependencies>\n</project>\n",
        dependency("org.apache.kafka", "kafka_2.13", VERSION),
        dependency("org.slf4j", "slf4j-simple", SLF4J),
    )
}

/// Formats a data directory, with the secured listener's user in it: SCRAM's secrets are part of the metadata.
fn format(home: &Path) -> Result<()> {
    let distribution = Distribution::at(home);
    fs::create_dir_all(&distribution.formatted)?;
    machine::give_to_server_user(&distribution.formatted)?;
    let settings = home.join("format.properties");
    // Ports are not written down by it.
    fs::write(
        &settings,
        format!(
            "process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters=1@127.0.0.1:1\n\
             listeners=PLAINTEXT://127.0.0.1:2,CONTROLLER://127.0.0.1:1\n\
             controller.listener.names=CONTROLLER\nlog.dirs={}\n",
            distribution.formatted.display()
        ),
    )?;
    let mut java = distribution.java();
    java.current_dir("/").args(["kafka.tools.StorageTool", "format", "--cluster-id", CLUSTER_ID]);
    for mechanism in secured::SCRAM {
        java.arg("--add-scram");
        java.arg(format!("{mechanism}=[name={},password={}]", secured::USER, secured::PASSWORD));
    }
    java.arg("--config").arg(&settings);
    machine::as_server_user(&mut java)?;
    installation::run(&mut java).map(drop)
}

fn java_version() -> Result<u32> {
    let output = Command::new("java").arg("-version").output().context("java -version")?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    major(&text).with_context(|| format!("java does not tell its version: {text}"))
}

/// `openjdk version "17.0.15" 2025-04-15`; 8 and older are `"1.8.0_392"`.
fn major(text: &str) -> Option<u32> {
    let mut parts = text.split("version \"").nth(1)?.split(|c: char| !c.is_ascii_digit());
    match parts.next()?.parse().ok()? {
        1 => parts.next()?.parse().ok(),
        major => Some(major),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn java_versions_old_and_new_are_read() {
        assert_eq!(major("openjdk version \"17.0.15\" 2025-04-15\nOpenJDK Runtime"), Some(17));
        assert_eq!(major("Picked up OPTIONS\nopenjdk version \"21\" 2023-09-19"), Some(21));
        assert_eq!(major("java version \"1.8.0_392\""), Some(8));
        assert_eq!(major("command not found"), None);
    }
}
