//! What a checker does: connect, read, judge. Runs in test and demo programs.

use anyhow::{Context, Result, bail};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);

/// Connects to a port on this machine and reads to the end without sending anything.
///
/// # Errors
/// When the connection fails or nothing ends it in time.
pub fn banner(port: u16) -> Result<String> {
    banner_at(([127, 0, 0, 1], port).into())
}

/// [`banner`] at any address.
///
/// # Errors
/// As [`banner`].
pub fn banner_at(address: SocketAddr) -> Result<String> {
    read_all(connect(address)?)
}

/// haproxy's agent check, with what `agent-send` would send.
///
/// # Errors
/// As [`banner`].
pub fn agent(port: u16, send: &str) -> Result<String> {
    let mut stream = connect(([127, 0, 0, 1], port).into())?;
    stream.write_all(send.as_bytes())?;
    read_all(stream)
}

/// An HTTP answer.
#[derive(Debug, Clone)]
pub struct Response {
    pub code: u16,
    pub head: String,
    pub body: String,
}

impl Response {
    /// The body as JSON; null when it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }

    /// The body's reason, or nothing.
    pub fn reason(&self) -> String {
        self.json()["reason"].as_str().unwrap_or_default().to_owned()
    }
}

/// GET over HTTP/1.1.
///
/// # Errors
/// When there is no answer in time.
pub fn get(port: u16, path: &str) -> Result<Response> {
    request(port, &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"))
}

/// The status code of [`get`], 0 when there is no answer.
pub fn code(port: u16, path: &str) -> u16 {
    get(port, path).map_or(0, |response| response.code)
}

/// Sends any bytes and reads the answer.
///
/// # Errors
/// When there is no answer in time.
pub fn request(port: u16, bytes: &str) -> Result<Response> {
    let mut stream = connect(([127, 0, 0, 1], port).into())?;
    // A server may answer and close before it has read all of a request that it refuses.
    let _ = stream.write_all(bytes.as_bytes());
    parse(&read_all(stream)?)
}

/// The value of the first sample of a scrape whose line begins so: a metric's name, with a blank or as many of its labels as it takes.
///
/// # Errors
/// With the scrape, when it has no such sample.
pub fn metric(scrape: &str, begins: &str) -> Result<f64> {
    let line = scrape.lines().find(|line| line.starts_with(begins));
    let line = line.with_context(|| format!("{begins} in\n{scrape}"))?;
    Ok(line.rsplit(' ').next().unwrap_or_default().parse()?)
}

/// What promtool has to say of a scrape: nothing when it is content.
///
/// # Errors
/// When there is no promtool, or it fails without a word.
pub fn promtool(scrape: &str) -> Result<String> {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("promtool (package prometheus) is not installed")?;
    promtool.stdin.take().context("stdin")?.write_all(scrape.as_bytes())?;
    let verdict = promtool.wait_with_output()?;
    let said = String::from_utf8_lossy(&verdict.stderr).into_owned();
    if said.is_empty() && !verdict.status.success() {
        bail!("promtool: {}", verdict.status);
    }
    Ok(said)
}

fn parse(text: &str) -> Result<Response> {
    let (head, body) = text.split_once("\r\n\r\n").with_context(|| format!("no HTTP answer: {text:?}"))?;
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("no status code")?;
    Ok(Response { code, head: head.to_owned(), body: body.to_owned() })
}

fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn read_all(mut stream: TcpStream) -> Result<String> {
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(String::from_utf8_lossy(&text).into_owned()),
            Ok(read) => text.extend_from_slice(&buffer[..read]),
            Err(error) => bail!("after {:?}: {error}", String::from_utf8_lossy(&text)),
        }
    }
}
