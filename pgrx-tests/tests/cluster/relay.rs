//! LISTEN and NOTIFY through the pooler: the relay hears for everybody.

use crate::pooling::with_pool;
use anyhow::{Context, Result, ensure};
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

    /// The same as one statement of the extended protocol, parsed, bound, described and executed.
    pub fn try_extended(&mut self, sql: &str) -> Result<(String, Option<String>)> {
        let messages = Message::parse(b"", sql.as_bytes(), &[])
            .then(Message::bind(b"", b"", &[], &[], &[]))
            .then(Message::describe(b'P', b""))
            .then(Message::execute(b"", 0))
            .then(Message::sync());
        self.connection.send(&messages.bytes, None);
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

#[test]
fn the_views_and_the_metrics_show_who_listens_to_what() -> Result<()> {
    let cluster = with_pool("relay_views", 1, &[])?;
    cluster.create_extension()?;
    let (mut a, mut b) = (Client::through(&cluster)?, Client::through(&cluster)?);
    a.query("LISTEN news; LISTEN \"Größe\"")?;
    b.query("LISTEN news")?;
    b.query("NOTIFY news")?;
    a.wait_for(1)?;
    let shows = |sql: &str, what: &str| -> Result<()> {
        // The relay counts what it has sent when it has sent it.
        wait::until(sql, || cluster.sql(sql).is_ok_and(|found| found == what))
            .with_context(|| format!("{:?}", cluster.sql(sql)))
    };
    shows(
        "SELECT string_agg(concat_ws(' ', database, channel, listeners, delivered, since > now() - '1 min'::interval, \
         worker_pid = (SELECT pid FROM pg_stat_activity WHERE backend_type = 'postern relay')), ', ' ORDER BY channel) \
         FROM postern.channels",
        "postgres Größe 1 0 t t, postgres news 2 2 t t",
    )?;
    shows(
        "SELECT databases, channels, channel_capacity, listens, listened, unlistened, received, delivered, too_slow \
         FROM postern.relay",
        "1|2|4096|3|3|0|1|2|0",
    )?;
    let mut console = crate::pooling::through(&cluster).dbname("postern").connect(postgres::NoTls)?;
    let rows: Vec<_> = console
        .simple_query("SHOW CHANNELS")?
        .into_iter()
        .filter_map(|message| match message {
            postgres::SimpleQueryMessage::Row(row) => {
                Some((0..4).map(|column| row.get(column).unwrap_or_default()).collect::<Vec<_>>().join(" "))
            }
            _ => None,
        })
        .collect();
    ensure!(rows == ["postgres news 2 2", "postgres Größe 1 0"], "{rows:?}");
    drop(console);
    let listens = format!("{}:Größe {}:news {}:news", a.pid, a.pid, b.pid);
    shows(
        "SELECT string_agg(pid || ':' || channel, ' ' ORDER BY pid, channel) FROM postern.listens",
        &listens,
    )?;
    // What pg_listening_channels() says of a session, directly and for anybody who is served by one.
    cluster.sql("CREATE ROLE somebody LOGIN")?;
    let mut somebody = Client::open(&Target::tcp(cluster.pooler_port), "somebody", "postgres")?;
    somebody.query("LISTEN mine")?;
    somebody.query(
        "DO $$ BEGIN ASSERT (SELECT array_agg(c) = '{mine}' FROM postern.listening_channels() c); END $$",
    )?;
    let mut direct = Client::open(&Target::tcp(cluster.port), "somebody", "postgres")?;
    direct.query("LISTEN own")?;
    direct.query(
        "DO $$ BEGIN ASSERT (SELECT array_agg(c) = '{own}' FROM postern.listening_channels() c); END $$",
    )?;
    let page = || pgrx_tests::probe::get(cluster.http_port, "/metrics").map(|page| page.body);
    for line in [
        "postern_relay_channels 3",
        "postern_relay_listens 4",
        "postern_relay_clients_total 3",
        "postern_relay_listens_total 4",
        "postern_relay_unlistens_total 0",
        "postern_relay_notifications_total 2",
        "postern_relay_slow_clients_total 0",
    ] {
        wait::until(line, || page().is_ok_and(|page| page.lines().any(|found| found == line)))
            .with_context(|| format!("{:?}", page()))?;
    }
    drop((a, b, somebody));
    wait::until("nobody listens", || {
        cluster
            .sql("SELECT channels, listens, listened - unlistened, databases FROM postern.relay")
            .is_ok_and(|n| n == "0|0|0|0")
    })?;
    shows("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'postern relay'", "0")
}

#[test]
fn the_first_transaction_that_listens_and_notifies_hears_itself_by_its_own_pid() -> Result<()> {
    let cluster = with_pool("relay_first", 1, &[])?;
    for _ in 0..3 {
        // No relay runs before it.
        wait::until("no relay runs", || {
            let sql = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'postern relay'";
            cluster.sql(sql).is_ok_and(|count| count == "0")
        })?;
        let mut a = Client::through(&cluster)?;
        assert_eq!(a.query("BEGIN; LISTEN a; NOTIFY a, 'own'; COMMIT")?, "CCCCAZ");
        assert_eq!(a.next(1)?, [note(a.pid, "a", "own")]);
    }
    Ok(())
}
