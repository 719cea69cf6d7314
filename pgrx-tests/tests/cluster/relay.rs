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
    fn try_extended(&mut self, sql: &str) -> Result<(String, Option<String>)> {
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

/// Two clients, A and B, who do things in turn.
struct Play {
    a: Client,
    b: Client,
    /// Single statements go by the extended protocol.
    extended: bool,
    seen: Vec<String>,
}

impl Play {
    fn new(target: &Target, extended: bool) -> Result<Self> {
        let open = || Client::open(target, "postgres", "postgres");
        Ok(Self { a: open()?, b: open()?, extended, seen: Vec::new() })
    }

    fn who(&self, pid: u32) -> &'static str {
        match pid {
            pid if pid == self.a.pid => "A",
            pid if pid == self.b.pid => "B",
            _ => "somebody else",
        }
    }

    /// A step is "A: sql" or "B: sql". What came by a command's end is that client's; what comes later is fetched at the end of the
    /// step by a notification on a channel of its own, which all must have gone before.
    fn step(&mut self, step: &str) -> Result<()> {
        let (who, sql) = step.split_once(": ").context("a step says who does it")?;
        let actor = if who == "A" { &mut self.a } else { &mut self.b };
        // What stands in quotes may have more.
        let is_single = sql.split('\'').step_by(2).all(|part| !part.contains(';'));
        let (tags, error) =
            if self.extended && is_single { actor.try_extended(sql)? } else { actor.try_query(sql)? };
        let error = error.map_or(String::new(), |error| {
            format!(" {}", error.split_whitespace().filter(|word| word.len() == 6).collect::<String>())
        });
        // Those that another has sent may come before its end or behind it.
        let own = std::mem::take(&mut actor.notifications);
        self.seen.push(format!("{who}: {sql}: {}{error}", tags.replace('A', "")));
        self.hear(who, own);
        Ok(())
    }

    fn hear(&mut self, who: &str, notifications: Vec<Notification>) {
        for (pid, channel, payload) in notifications {
            let by = self.who(pid);
            let size = payload.len();
            let payload = if size > 100 { format!("{size} bytes") } else { payload };
            self.seen.push(format!("  {who} hears {channel} '{payload}' by {by}"));
        }
    }

    /// What has come to either since the last time, in its order.
    fn end(&mut self, notifier: &mut postgres::Client) -> Result<()> {
        for who in ["A", "B"] {
            let client = if who == "A" { &mut self.a } else { &mut self.b };
            let (tags, error) = client.try_query("ROLLBACK; LISTEN the_end")?;
            ensure!(error.is_none(), "{tags} {error:?}");
            notifier.batch_execute("NOTIFY the_end")?;
            let is_end = |n: &Notification| n.1 == "the_end";
            while !client.notifications.iter().any(is_end) {
                client.wait_for(client.notifications.len() + 1)?;
            }
            let mut rest = std::mem::take(&mut client.notifications);
            rest.retain(|notification| !is_end(notification));
            self.hear(who, rest);
            let client = if who == "A" { &mut self.a } else { &mut self.b };
            client.query("UNLISTEN *")?;
        }
        Ok(())
    }
}

/// Each is played by two new clients.
const PLAYS: &[&[&str]] = &[
    &["A: LISTEN a", "A: NOTIFY a", "B: NOTIFY a, 'from b'", "A: SELECT 1"],
    &["A: BEGIN", "A: LISTEN a", "B: NOTIFY a, 'early'", "A: COMMIT", "B: NOTIFY a, 'later'"],
    &["A: BEGIN", "A: LISTEN a", "A: ROLLBACK", "B: NOTIFY a"],
    &["A: LISTEN a", "A: BEGIN", "A: UNLISTEN a", "A: ROLLBACK", "B: NOTIFY a, 'still'"],
    &["A: LISTEN a", "A: BEGIN", "A: UNLISTEN a", "A: COMMIT", "B: NOTIFY a, 'no more'"],
    &["A: LISTEN a", "A: LISTEN b", "A: UNLISTEN *", "B: NOTIFY a", "B: NOTIFY b"],
    &["A: LISTEN a", "A: LISTEN b", "A: UNLISTEN a", "B: NOTIFY a", "B: NOTIFY b"],
    &["A: LISTEN a; LISTEN b", "A: DISCARD ALL", "B: NOTIFY a", "B: NOTIFY b"],
    &["A: BEGIN; LISTEN a; UNLISTEN a; LISTEN a; LISTEN b; UNLISTEN b; COMMIT", "B: NOTIFY a", "B: NOTIFY b"],
    &["A: BEGIN; LISTEN a; LISTEN b; UNLISTEN *; LISTEN c; COMMIT", "B: NOTIFY a; NOTIFY b; NOTIFY c"],
    &[
        "A: BEGIN",
        "A: SAVEPOINT s",
        "A: LISTEN a",
        "A: ROLLBACK TO s",
        "A: LISTEN b",
        "A: RELEASE s",
        "A: COMMIT",
        "B: NOTIFY a",
        "B: NOTIFY b",
    ],
    &[
        "A: LISTEN a",
        "A: BEGIN",
        "A: SAVEPOINT s",
        "A: UNLISTEN a",
        "A: SAVEPOINT t",
        "A: LISTEN b",
        "A: RELEASE t",
        "A: ROLLBACK TO s",
        "A: COMMIT",
        "B: NOTIFY a; NOTIFY b",
    ],
    &["A: BEGIN; LISTEN a", "A: SELECT 1/0", "A: COMMIT", "B: NOTIFY a"],
    &["A: LISTEN a; SELECT 1/0", "B: NOTIFY a"],
    &[
        "A: LISTEN a",
        "B: BEGIN",
        "B: NOTIFY a, 'one'",
        "B: NOTIFY a, 'two'",
        "B: NOTIFY a, 'one'",
        "B: COMMIT",
    ],
    &["A: LISTEN a", "B: BEGIN", "B: NOTIFY a, 'one'", "B: ROLLBACK", "B: NOTIFY a, 'two'"],
    &[
        "A: LISTEN a",
        "B: BEGIN",
        "B: SAVEPOINT s",
        "B: NOTIFY a, 'undone'",
        "B: ROLLBACK TO s",
        "B: NOTIFY a, 'kept'",
        "B: COMMIT",
        "A: SELECT 1",
    ],
    &["A: LISTEN a", "A: BEGIN", "A: NOTIFY a, 'own'", "B: NOTIFY a, 'other'", "A: SELECT 1", "A: COMMIT"],
    &["A: BEGIN; LISTEN a; NOTIFY a, 'in one'; COMMIT"],
    &["A: LISTEN a; NOTIFY a, 'one query'"],
    &["A: DO 'BEGIN EXECUTE ''LISTEN a''; END'", "B: DO 'BEGIN PERFORM pg_notify(''a'', ''x''); END'"],
    &[
        "A: CREATE FUNCTION pg_temp.l() RETURNS void LANGUAGE plpgsql AS 'BEGIN LISTEN a; END'",
        "A: SELECT pg_temp.l()",
        "B: NOTIFY a, 'by a function'",
    ],
    &[
        "A: DO 'BEGIN LISTEN a; COMMIT; PERFORM pg_notify(''a'', ''1''); COMMIT; PERFORM pg_notify(''a'', ''2''); END'",
        "B: NOTIFY a, '3'",
    ],
    &[
        "A: DO 'BEGIN BEGIN LISTEN a; RAISE ''x''; EXCEPTION WHEN OTHERS THEN LISTEN b; END; END'",
        "B: NOTIFY a; NOTIFY b",
    ],
    &["A: LISTEN FoO; LISTEN \"FoO\"", "B: NOTIFY foo; NOTIFY \"FoO\"; NOTIFY FOO, 'x'"],
    &["A: LISTEN \"with space and \"\"quotes\"\"\"", "B: NOTIFY \"with space and \"\"quotes\"\"\", 'x'"],
    &["A: LISTEN \"größe\"", "B: SELECT pg_notify('größe', 'ß')"],
    &[
        "A: LISTEN a23456789012345678901234567890123456789012345678901234567890123",
        "B: SELECT pg_notify('a23456789012345678901234567890123456789012345678901234567890123', '63')",
    ],
    &[
        "A: LISTEN a234567890123456789012345678901234567890123456789012345678901234567890",
        "B: NOTIFY a234567890123456789012345678901234567890123456789012345678901234567890, 'cut'",
        "B: SELECT pg_notify(repeat('x', 64), 'too long')",
    ],
    &[
        "A: LISTEN a",
        "B: SELECT pg_notify('a', repeat('x', 7999))",
        "B: SELECT pg_notify('a', repeat('x', 8000))",
    ],
    &[
        "A: LISTEN a",
        "B: SELECT pg_notify('', 'no channel')",
        "B: SELECT pg_notify(NULL, 'x')",
        "B: SELECT pg_notify('a', NULL)",
    ],
    &["A: LISTEN a", "B: SELECT pg_notify('a', g::text) FROM generate_series(1, 500) g"],
    &["A: BEGIN; LISTEN a", "A: PREPARE TRANSACTION 'p'", "B: NOTIFY a"],
    &["A: BEGIN; NOTIFY a", "A: PREPARE TRANSACTION 'p'"],
    &["A: BEGIN READ ONLY; LISTEN a; COMMIT", "B: BEGIN READ ONLY; NOTIFY a; COMMIT"],
    &["A: SET search_path = pg_catalog; LISTEN a", "B: NOTIFY a", "A: SHOW search_path"],
    &[
        "A: LISTEN a; CREATE TEMP TABLE t (x int)",
        "B: NOTIFY a, 'pinned'",
        "A: DROP TABLE t",
        "B: NOTIFY a, 'free'",
    ],
    &[
        "A: CREATE TEMP TABLE t (x int)",
        "A: CREATE FUNCTION pg_temp.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_notify(''a'', new.x::text); RETURN new; END'",
        "A: CREATE CONSTRAINT TRIGGER c AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION pg_temp.f()",
        "A: LISTEN a",
        "A: BEGIN; INSERT INTO t VALUES (1), (2); SELECT 1; COMMIT",
    ],
];

/// What clients see of every play at a port.
fn played(
    cluster: &Cluster,
    target: &Target,
    setting: &str,
    (blocks, extended): (bool, bool),
) -> Result<Vec<Vec<String>>> {
    let mut notifier = cluster.connect()?;
    let mut all = Vec::new();
    let has_blocks = |steps: &&[&str]| steps.iter().any(|step| step[3..].starts_with("BEGIN"));
    for steps in PLAYS.iter().filter(|steps| blocks || !has_blocks(steps)) {
        let mut play = Play::new(target, extended)?;
        for client in [&mut play.a, &mut play.b] {
            client.query(setting)?;
        }
        for step in *steps {
            play.step(step)?;
        }
        play.end(&mut notifier).with_context(|| format!("{steps:?}"))?;
        // Somebody else's come before or behind the end of one's own command: who hears what in which order is the same.
        let (heard, done): (Vec<_>, Vec<_>) = play.seen.into_iter().partition(|line| line.starts_with("  "));
        let of = |who: &str| heard.iter().filter(|line| line.starts_with(who)).cloned().collect::<Vec<_>>();
        all.push([done, of("  A"), of("  B")].concat());
    }
    Ok(all)
}

#[test]
fn every_play_of_listen_and_notify_is_as_with_direct_connections() -> Result<()> {
    let cluster = with_pool("relay_plays", 2, &[("max_prepared_transactions", "2")])?;
    for (mode, extended) in [
        ("transaction", false),
        ("transaction", true),
        ("session", false),
        ("session", true),
        ("statement", false),
        ("statement", true),
    ] {
        let which = (mode != "statement", extended);
        let direct = played(&cluster, &Target::tcp(cluster.port), "SELECT", which)?;
        let heard = direct.iter().flatten().filter(|line| line.contains(" hears ")).count();
        ensure!(heard > 520, "{heard} notifications");
        let setting = format!("SET postern.pool_mode = {mode}");
        let through = played(&cluster, &Target::tcp(cluster.pooler_port), &setting, which)?;
        ensure!(direct.len() == through.len() && direct.len() > 15);
        for (direct, through) in direct.iter().zip(&through) {
            ensure!(
                direct == through,
                "{mode} mode, extended {extended}: directly {direct:#?}, through the pooler {through:#?}"
            );
        }
    }
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
        let found = cluster.sql(sql)?;
        ensure!(found == what, "{sql}: {found}");
        Ok(())
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
    let page = pgrx_tests::probe::get(cluster.http_port, "/metrics")?.body;
    for line in [
        "postern_relay_channels 3",
        "postern_relay_listens 4",
        "postern_relay_clients_total 3",
        "postern_relay_listens_total 4",
        "postern_relay_unlistens_total 0",
        "postern_relay_notifications_total 2",
        "postern_relay_slow_clients_total 0",
    ] {
        ensure!(page.lines().any(|found| found == line), "{line}: {page}");
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
