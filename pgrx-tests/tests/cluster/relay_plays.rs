//! Plays of LISTEN and NOTIFY, by clients of the pooler and by direct connections: what everybody hears is the same.

use crate::pooling::with_pool;
use crate::relay::{Client, Notification};
use anyhow::{Context, Result, ensure};
use pgrx_tests::cluster::Cluster;
use pgrx_tests::script::connection::Target;

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
