//! Making a topic: one CreateTopics request of Kafka's protocol, written out because kcat has no word for it and a Java
//! program would take two seconds. Runs on the thread that asks.
//!
//! Source: "CreateTopics API (Key: 19)", version 2, and "Request Header v1" in <https://kafka.apache.org/protocol>.

use anyhow::{Context, Result, bail};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

const API_KEY: i16 = 19;
const API_VERSION: i16 = 2;
const CLIENT: &str = "postern-rig";

/// How long the broker may take, and how long we wait for it.
const LIMIT: Duration = Duration::from_secs(30);

/// An answer names one topic, perhaps with an error's text.
const LARGEST_ANSWER: usize = 64 * 1024;

/// Makes a topic of so many partitions, with one replica each, by the listener without TLS.
///
/// # Errors
/// When the broker refuses, with its words.
pub(super) fn create(address: &str, topic: &str, partitions: u32) -> Result<()> {
    let mut connection = TcpStream::connect(address)?;
    connection.set_read_timeout(Some(LIMIT))?;
    connection.write_all(&request(topic, partitions)?)?;
    let mut length = [0; 4];
    connection.read_exact(&mut length)?;
    let length = usize::try_from(i32::from_be_bytes(length))?;
    if length > LARGEST_ANSWER {
        bail!("the broker answers with {length} bytes");
    }
    let mut answer = vec![0; length];
    connection.read_exact(&mut answer)?;
    match outcome(&answer).context("the broker's answer is cut off")? {
        (0, _) => Ok(()),
        (code, message) => bail!("topic \"{topic}\" was not made, error {code}: {message}"),
    }
}

fn request(topic: &str, partitions: u32) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    body.extend(API_KEY.to_be_bytes());
    body.extend(API_VERSION.to_be_bytes());
    // The correlation id: there is one request.
    body.extend(1_i32.to_be_bytes());
    put_string(&mut body, CLIENT)?;
    // One topic.
    body.extend(1_i32.to_be_bytes());
    put_string(&mut body, topic)?;
    body.extend(i32::try_from(partitions)?.to_be_bytes());
    // The replication factor; no assignments, no configuration.
    body.extend(1_i16.to_be_bytes());
    body.extend(0_i32.to_be_bytes());
    body.extend(0_i32.to_be_bytes());
    body.extend(i32::try_from(LIMIT.as_millis())?.to_be_bytes());
    // Not only to see whether it could be made.
    body.push(0);
    let mut request = i32::try_from(body.len())?.to_be_bytes().to_vec();
    request.append(&mut body);
    Ok(request)
}

fn put_string(to: &mut Vec<u8>, text: &str) -> Result<()> {
    to.extend(i16::try_from(text.len())?.to_be_bytes());
    to.extend(text.as_bytes());
    Ok(())
}

/// The topic's error code, 0 for none, and message: correlation id, throttle time, number of topics, then the name, the code
/// and a text that may be null.
fn outcome(answer: &[u8]) -> Option<(i16, String)> {
    let after_name = |rest: &[u8]| -> Option<usize> { usize::try_from(number(rest)?).ok()?.checked_add(2) };
    let name = answer.get(12..)?;
    let rest = name.get(after_name(name)?..)?;
    let (code, message) = (number(rest)?, rest.get(2..)?);
    let text = match usize::try_from(number(message)?) {
        Ok(length) => String::from_utf8_lossy(message.get(2..length.checked_add(2)?)?).into_owned(),
        Err(_) => String::new(),
    };
    Some((code, text))
}

fn number(bytes: &[u8]) -> Option<i16> {
    Some(i16::from_be_bytes(bytes.get(..2)?.try_into().ok()?))
}
