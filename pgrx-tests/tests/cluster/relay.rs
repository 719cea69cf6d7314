//! LISTEN and NOTIFY through the pooler: the relay hears for everybody.

use crate::pooling::with_pool;
use anyhow::{Result, ensure};
use pgrx_tests::cluster::Cluster;
use pgrx_tests::script::connection::{Connection, Received, Target};
use pgrx_tests::script::frontend::Message;
use pgrx_tests::wait;
use std::time::{Duration, Instant};

/// A notification as a client gets it.
pub type Notification = (u32, String, String);

/// A client that keeps what it is told in the order in which it came.
pub struct Client {
    pub connection: Connection,
    /// Of BackendKeyData.
    pub pid: u32,
    pub notifications: Vec<Notification>,
}

impl Client {
    pub fn open(target: &Target, user: &str, database: &str) -> Result<Self> {
        let mut connection = Connection::open(target)?;
        let parameters = [("user", user), ("database", database)]
            .map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec()));
        connection.send(&Message::startup((3, 0), &parameters).bytes, None);
        let mut client = Self { connection, pid: 0, notifications: Vec::new() };
        client.answer()?;
        Ok(client)
    }

    pub fn through(cluster: &Cluster) -> Result<Self> {
        Self::open(&Target::tcp(cluster.pooler_port), "postgres", "postgres")
    }

    fn note(&mut self, tag: u8, body: &[u8]) -> Result<()> {
        let number = |body: &[u8]| body.first_chunk().map_or(0, |pid| u32::from_be_bytes(*pid));
        match tag {
            b'K' => self.pid = number(body),
            b'A' => {
                let mut texts = body[4..].split(|byte| *byte == 0);
                let mut text = || String::from_utf8_lossy(texts.next().unwrap_or_default()).into_owned();
                let notification = (number(body), text(), text());
                self.notifications.push(notification);
            }
            _ => {}
        }
        Ok(())
    }

    /// The tags up to ReadyForQuery; the fields of the last error, if there was one.
    pub fn answer(&mut self) -> Result<(String, Option<String>)> {
        let (mut tags, mut error) = (String::new(), None);
        loop {
            match self.connection.receive(wait::LIMIT)? {
                Received::Message { tag, body } => {
                    self.note(tag, &body)?;
                    tags.push(tag as char);
                    if tag == b'E' {
                        error = Some(String::from_utf8_lossy(&body).replace('\0', " "));
                    }
                    if tag == b'Z' {
                        return Ok((tags, error));
                    }
                }
                other => anyhow::bail!("{other:?} after {tags}: {error:?}"),
            }
        }
    }

    /// Runs a simple query; the tags of what came.
    pub fn query(&mut self, sql: &str) -> Result<String> {
        let (tags, error) = self.try_query(sql)?;
        ensure!(error.is_none(), "{sql}: {}", error.unwrap_or_default());
        Ok(tags)
    }

    pub fn try_query(&mut self, sql: &str) -> Result<(String, Option<String>)> {
        self.connection.send(&Message::query(sql.as_bytes()).bytes, None);
        self.answer()
    }

    /// Waits for so many notifications in all.
    pub fn wait_for(&mut self, count: usize) -> Result<()> {
        let until = Instant::now() + wait::LIMIT;
        while self.notifications.len() < count {
            let left = until.saturating_duration_since(Instant::now());
            match self.connection.receive(left)? {
                Received::Message { tag, body } => {
                    ensure!(tag == b'A', "{} while waiting", tag as char);
                    self.note(tag, &body)?;
                }
                other => anyhow::bail!("{other:?} after {:?}", self.notifications),
            }
        }
        Ok(())
    }

    /// What has come since the last time, after so many more have.
    pub fn next(&mut self, count: usize) -> Result<Vec<Notification>> {
        self.wait_for(count)?;
        Ok(std::mem::take(&mut self.notifications))
    }

    /// Nothing comes for a moment.
    pub fn hears_nothing(&mut self) -> Result<()> {
        match self.connection.receive(Duration::from_millis(200))? {
            Received::Silence => Ok(()),
            other => anyhow::bail!("{other:?}"),
        }
    }
}

pub fn note(pid: u32, channel: &str, payload: &str) -> Notification {
    (pid, channel.to_owned(), payload.to_owned())
}

#[test]
fn clients_listen_on_a_shared_backend_and_hear_who_notifies() -> Result<()> {
    let cluster = with_pool("relay", 1, &[])?;
    let (mut a, mut b) = (Client::through(&cluster)?, Client::through(&cluster)?);
    a.query("LISTEN news")?;
    b.query("NOTIFY news, 'one'")?;
    assert_eq!(a.next(1)?, [note(b.pid, "news", "one")]);
    b.query("LISTEN \"News\"; LISTEN news")?;
    // Its own come before its ReadyForQuery.
    assert_eq!(b.query("NOTIFY news, 'two'")?, "CAZ");
    assert_eq!(std::mem::take(&mut b.notifications), [note(b.pid, "news", "two")]);
    assert_eq!(a.next(1)?, [note(b.pid, "news", "two")]);
    a.query("SELECT pg_notify('News', '')")?;
    assert_eq!(b.next(1)?, [note(a.pid, "News", "")]);
    a.query("UNLISTEN news")?;
    b.query("NOTIFY news, 'three'")?;
    b.next(1)?;
    a.hears_nothing()?;
    Ok(())
}
