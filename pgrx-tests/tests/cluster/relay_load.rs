//! LISTEN and NOTIFY through the pooler under load: everybody gets everything from the LISTEN's answer on, once, in one order, and
//! nobody gets anything else; also when the processes in between are ended.

use crate::tls::Secured;
use anyhow::{Context, Result, bail, ensure};
use pgrx_tests::cluster::Cluster;
use pgrx_tests::script::connection::{Connection, Received, Target};
use pgrx_tests::script::frontend::Message;
use pgrx_tests::wait;
use std::collections::{HashMap, HashSet};
use std::fmt::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};
use std::thread;
use std::time::{Duration, Instant};

const DATABASES: [&str; 3] = ["postgres", "one", "two"];
const CHANNELS: u64 = 4;

/// Who notifies, and the number of the transaction.
type Stamp = (usize, u64);

/// Numbers by chance, the same on every run.
struct Dice(u64);

impl Dice {
    fn new(seed: usize) -> Self {
        Self(0x9e37_79b9_7f4a_7c15 ^ (seed as u64 + 1).wrapping_mul(0xbf58_476d_1ce4_e5b9))
    }

    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % most
    }
}

/// A transaction that notifies one channel.
struct Sent {
    stamp: Stamp,
    channel: u64,
    began: u64,
    /// When its commit was answered; never, when it was not.
    answered: u64,
}

/// That a client listened to a channel.
struct Listened {
    channel: u64,
    asked: u64,
    answered: u64,
    /// When the UNLISTEN was sent, and when it was answered.
    until: u64,
    over: u64,
}

/// What one connection has heard.
struct Heard {
    who: String,
    database: usize,
    listens: Vec<Listened>,
    /// In the order in which it came, with the moment.
    got: Vec<(Stamp, u64, u64)>,
    /// It was ended: what is behind the last that it got was never promised.
    ended: bool,
}

/// What all share.
struct Stage<'a> {
    cluster: &'a Cluster,
    targets: [Target; 3],
    start: Instant,
    /// Nobody is to notify any more; nobody does.
    stop: AtomicBool,
    silent: AtomicBool,
    /// Processes in between are ended.
    rough: bool,
    endings: AtomicU64,
    /// Notifications that have come, and connections that were over before the end.
    heard: AtomicU64,
    lives: AtomicU64,
}

/// How long anything may take in which everybody takes part.
const PATIENCE: Duration = Duration::from_secs(120);

impl Stage<'_> {
    /// Until so many notifications have come from now on.
    fn goes_on(&self, notifications: u64) -> Result<()> {
        let enough = self.heard.load(Relaxed) + notifications;
        wait::until_within(PATIENCE, "notifications come", || self.heard.load(Relaxed) >= enough)
            .with_context(|| self.doing())
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// What the server's processes do.
    fn doing(&self) -> String {
        let sql = "SELECT string_agg(concat_ws(' ', pid, backend_type, datname, client_port, state, wait_event, query), E'\\n') \
                   FROM pg_stat_activity";
        self.cluster.sql(sql).unwrap_or_else(|error| error.to_string())
    }
}

/// Why a client's connection is no more.
#[derive(Debug)]
struct Ended(String);

/// A client that listens.
struct Ear<'a> {
    stage: &'a Stage<'a>,
    connection: Connection,
    heard: Heard,
    /// What it listens to, by the place in `heard.listens`.
    now: HashMap<u64, usize>,
}

impl<'a> Ear<'a> {
    fn open(stage: &'a Stage<'a>, target: &Target, database: usize, who: String) -> Result<Self, Ended> {
        let connection = Connection::open(target).map_err(|error| Ended(format!("{error:#}")))?;
        let heard = Heard { who, database, listens: Vec::new(), got: Vec::new(), ended: false };
        let mut ear = Self { stage, connection, heard, now: HashMap::new() };
        let parameters = [("user", "postgres"), ("database", DATABASES[database])]
            .map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec()));
        ear.connection.send(&Message::startup((3, 0), &parameters).bytes, None);
        ear.answer()?;
        Ok(ear)
    }

    /// The error of the last command, if it had one.
    fn answer(&mut self) -> Result<Option<String>, Ended> {
        let mut error = None;
        loop {
            match self.hear(wait::LIMIT)? {
                Some((b'Z', _)) => return Ok(error),
                Some((b'E', text)) => error = Some(text),
                Some(_) => {}
                None => {
                    let port = self.connection.local_port();
                    let doing = self.stage.doing();
                    return Err(Ended(format!("silence at port {port:?} after {error:?}; {doing}")));
                }
            }
        }
    }

    fn hear(&mut self, patience: Duration) -> Result<Option<(u8, String)>, Ended> {
        let received = self.connection.receive(patience).map_err(|error| Ended(format!("{error:#}")))?;
        match received {
            Received::Message { tag: b'A', body } => {
                let mut texts = body[4..].split(|byte| *byte == 0);
                let mut text = || String::from_utf8_lossy(texts.next().unwrap_or_default()).into_owned();
                let (channel, payload) = (text(), text());
                let number = |text: Option<&str>| text.and_then(|text| text.parse().ok());
                let mut parts = payload.split(':').map(Some);
                let mut part = || number(parts.next().flatten());
                let (Some(database), Some(notifier), Some(sequence)) = (part(), part(), part()) else {
                    return Err(Ended(format!("wrong payload {payload:?}")));
                };
                let channel = channel.trim_start_matches('c').parse().unwrap_or(u64::MAX);
                if database != self.heard.database as u64 || !self.now.contains_key(&channel) {
                    return Err(Ended(format!(
                        "wrong: c{channel} {payload:?} when it listens to {:?}",
                        self.now
                    )));
                }
                self.heard.got.push(((notifier as usize, sequence), channel, self.stage.now()));
                self.stage.heard.fetch_add(1, Relaxed);
                Ok(Some((b'A', String::new())))
            }
            Received::Message { tag, body } => {
                let text = String::from_utf8_lossy(&body).replace('\0', " ");
                if tag == b'E' && text.contains("VFATAL") {
                    return Err(Ended(text));
                }
                Ok(Some((tag, text)))
            }
            Received::Silence => Ok(None),
            other => Err(Ended(format!("{other:?}"))),
        }
    }

    fn query(&mut self, sql: &str) -> Result<Option<String>, Ended> {
        self.connection.send(&Message::query(sql.as_bytes()).bytes, None);
        self.answer()
    }

    /// Commands, of which the last one's answer is that of a LISTEN.
    fn listen(&mut self, channel: u64, sql: &str) -> Result<(), Ended> {
        let asked = self.stage.now();
        let new = !self.now.contains_key(&channel);
        if new {
            self.now.insert(channel, self.heard.listens.len());
            let never = u64::MAX;
            self.heard.listens.push(Listened { channel, asked, answered: never, until: never, over: never });
        }
        let error = self.query(sql)?;
        let now = self.stage.now();
        if let Some(error) = error {
            if !self.stage.rough {
                return Err(Ended(format!("wrong: {sql}: {error}")));
            }
            if new {
                self.now.remove(&channel);
                self.heard.listens.pop();
            }
        } else if new && let Some(listened) = self.heard.listens.last_mut() {
            listened.answered = now;
        }
        Ok(())
    }

    fn unlisten(&mut self, channels: &[u64], sql: &str) -> Result<(), Ended> {
        let until = self.stage.now();
        for channel in channels {
            if let Some(place) = self.now.get(channel) {
                self.heard.listens[*place].until = until;
            }
        }
        self.query(sql)?;
        let over = self.stage.now();
        for channel in channels {
            if let Some(place) = self.now.remove(channel) {
                self.heard.listens[place].over = over;
            }
        }
        Ok(())
    }

    fn rest(&mut self, millis: u64) -> Result<(), Ended> {
        let until = Instant::now() + Duration::from_millis(millis);
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            self.hear(left)?;
        }
    }

    /// One thing that a client does.
    fn act(&mut self, dice: &mut Dice) -> Result<(), Ended> {
        let channel = dice.below(CHANNELS);
        match dice.below(12) {
            0..3 => self.listen(channel, &format!("LISTEN c{channel}")),
            3 => self.listen(channel, &format!("BEGIN; SELECT 1; LISTEN c{channel}; COMMIT")),
            4 => self.unlisten(&[channel], &format!("UNLISTEN c{channel}")),
            5 if dice.below(4) == 0 => {
                let all: Vec<u64> = self.now.keys().copied().collect();
                self.unlisten(&all, "UNLISTEN *")
            }
            6 => {
                self.query("BEGIN")?;
                self.rest(dice.below(10))?;
                self.query("SELECT 1")?;
                self.query(if dice.below(2) == 0 { "COMMIT" } else { "ROLLBACK" }).map(drop)
            }
            7 => {
                // Nothing of it comes to pass.
                self.query("BEGIN")?;
                self.query(&format!("UNLISTEN *; LISTEN d{channel}"))?;
                self.query("ROLLBACK").map(drop)
            }
            8 => self.query("SELECT 1; SELECT 2").map(drop),
            _ => self.rest(dice.below(100)),
        }
    }

    /// Everything that was promised has come when what is notified now has.
    fn end(mut self, notifier: &mut postgres::Client, number: usize) -> Result<Heard, Ended> {
        if let Some(error) = self.query("SELECT 1")? {
            return Err(Ended(format!("wrong: {error}")));
        }
        let channel = CHANNELS + number as u64;
        self.now.insert(channel, usize::MAX);
        if let Some(error) = self.query(&format!("LISTEN c{channel}"))? {
            return Err(Ended(format!("wrong: {error}")));
        }
        let sql = format!("NOTIFY c{channel}, '{}:{}:0'", self.heard.database, usize::MAX);
        notifier.batch_execute(&sql).map_err(|error| Ended(format!("wrong: {error}")))?;
        while self.heard.got.last().is_none_or(|(_, last, _)| *last != channel) {
            if self.hear(wait::LIMIT)?.is_none() {
                return Err(Ended("wrong: the last notification has not come".to_owned()));
            }
        }
        self.heard.got.pop();
        Ok(self.heard)
    }
}

/// One listener after another until the end; all that each has heard.
fn listener(stage: &Stage<'_>, number: usize) -> Result<Vec<Heard>> {
    let mut dice = Dice::new(number);
    let database = number % DATABASES.len();
    // Some of each kind in each database; few enough in session mode that the pool has backends for the others.
    let target = &stage.targets[number / 3 % 3];
    let session = number / 9 % 4 == 1;
    let mut all = Vec::new();
    let mut notifier = stage.cluster.config().dbname(DATABASES[database]).connect(postgres::NoTls)?;
    while !stage.silent.load(Relaxed) {
        let who = format!("{number} at {target:?}{}", if session { " in session mode" } else { "" });
        let mut ear = match Ear::open(stage, target, database, who) {
            Ok(ear) => ear,
            Err(_) if stage.rough => {
                thread::sleep(Duration::from_millis(20));
                continue;
            }
            Err(Ended(why)) => bail!("{number} was not let in: {why}"),
        };
        let life = 20 + dice.below(200);
        let mut live = || -> Result<(), Ended> {
            if session {
                ear.query("SET postern.pool_mode = session")?;
            }
            for _ in 0..life {
                if stage.silent.load(Relaxed) {
                    break;
                }
                ear.act(&mut dice)?;
            }
            Ok(())
        };
        let lived = live();
        let ended = match lived {
            Ok(()) if stage.silent.load(Relaxed) => match ear.end(&mut notifier, number) {
                Ok(heard) => {
                    all.push(heard);
                    return Ok(all);
                }
                Err(Ended(why)) => bail!("{number}: at the end: {why}"),
            },
            Ok(()) => {
                // What it has not read by now it may not have been sent.
                ear.heard.ended = true;
                None
            }
            Err(Ended(why)) => Some(why),
        };
        if let Some(why) = ended {
            let known = ["CPN002", "C57P01"].iter().any(|code| why.contains(code));
            ensure!(stage.rough && known, "{} was ended: {why}", ear.heard.who);
            stage.endings.fetch_add(1, Relaxed);
            ear.heard.ended = true;
        }
        all.push(ear.heard);
        stage.lives.fetch_add(1, Relaxed);
    }
    Ok(all)
}

/// Notifies until the end, directly or through the pooler.
fn notifier(stage: &Stage<'_>, number: usize) -> Result<Vec<Sent>> {
    let mut dice = Dice::new(1000 + number);
    let database = number % DATABASES.len();
    let direct = (number / DATABASES.len()).is_multiple_of(2);
    let connect = || {
        let name = DATABASES[database];
        let mut config =
            if direct { stage.cluster.config() } else { stage.cluster.through("postgres", name) };
        config.dbname(name).connect(postgres::NoTls)
    };
    let mut client = connect()?;
    let (mut sent, mut sequence) = (Vec::new(), 0);
    while !stage.stop.load(Relaxed) {
        let mut sql = String::new();
        let channels = 1 + dice.below(3);
        let first = sent.len();
        let began = stage.now();
        for _ in 0..channels {
            let channel = dice.below(CHANNELS);
            sequence += 1;
            write!(sql, "NOTIFY c{channel}, '{database}:{number}:{sequence}';")?;
            sent.push(Sent { stamp: (number, sequence), channel, began, answered: u64::MAX });
        }
        match client.batch_execute(&sql) {
            Ok(()) => {
                let answered = stage.now();
                sent[first..].iter_mut().for_each(|sent| sent.answered = answered);
            }
            Err(error) => {
                ensure!(stage.rough && !direct, "{sql}: {error:?}");
                while client.is_closed() && !stage.stop.load(Relaxed) {
                    match connect() {
                        Ok(connected) => client = connected,
                        Err(_) => thread::sleep(Duration::from_millis(20)),
                    }
                }
            }
        }
    }
    Ok(sent)
}

/// Fails unless everybody got what was promised, and nothing else. How many notifications came.
fn check(sent: &[Vec<Sent>], heard: &[Heard]) -> Result<usize> {
    let mut by_stamp = HashMap::new();
    let mut by_channel: HashMap<(usize, u64), Vec<&Sent>> = HashMap::new();
    for sent in sent.iter().flatten() {
        let database = sent.stamp.0 % DATABASES.len();
        by_stamp.insert(sent.stamp, sent);
        by_channel.entry((database, sent.channel)).or_default().push(sent);
    }
    let mut promised = 0;
    let mut after: HashMap<Stamp, HashSet<Stamp>> = HashMap::new();
    for heard in heard {
        let who = &heard.who;
        let mut last: HashMap<usize, u64> = HashMap::new();
        let mut got = HashSet::new();
        for (stamp, channel, at) in &heard.got {
            let sent = by_stamp.get(stamp).with_context(|| format!("{who}: nobody has sent {stamp:?}"))?;
            ensure!(sent.channel == *channel, "{who}: {stamp:?} on c{channel}");
            ensure!(got.insert(*stamp), "{who}: {stamp:?} twice");
            let before = last.insert(stamp.0, stamp.1).unwrap_or(0);
            ensure!(before < stamp.1, "{who}: {stamp:?} after {before}");
            let due = heard.listens.iter().any(|l| l.channel == *channel && sent.answered > l.asked);
            let listens = heard.listens.iter().filter(|l| l.channel == *channel);
            let listens: Vec<_> = listens.map(|l| (l.asked, l.answered, l.over)).collect();
            ensure!(
                due,
                "{who}: {stamp:?} on c{channel} came at {at} and was committed at {}, before it listened: {listens:?}",
                sent.answered
            );
        }
        for pair in heard.got.windows(2) {
            after.entry(pair[0].0).or_default().insert(pair[1].0);
        }
        // From a client that was ended nothing may be missing before the last that it got.
        let end = if heard.ended {
            heard.got.iter().filter_map(|(stamp, ..)| by_stamp.get(stamp)).map(|sent| sent.began).max()
        } else {
            Some(u64::MAX)
        };
        for listened in &heard.listens {
            let until = listened.until.min(end.unwrap_or(0));
            let all = by_channel.get(&(heard.database, listened.channel)).into_iter().flatten();
            for sent in all.filter(|sent| sent.began > listened.answered && sent.answered < until) {
                promised += 1;
                ensure!(
                    got.contains(&sent.stamp),
                    "{who}: {:?} on c{} (sent at {}, committed by {}) is missing; it listened from {} to {} ({}), of {} got",
                    sent.stamp,
                    sent.channel,
                    sent.began,
                    sent.answered,
                    listened.answered,
                    listened.until,
                    listened.over,
                    heard.got.len()
                );
            }
        }
    }
    ensure!(is_one_order(&after), "not all have heard what they heard in one order");
    Ok(promised)
}

/// Whether some order of everything has all of these.
fn is_one_order(after: &HashMap<Stamp, HashSet<Stamp>>) -> bool {
    let mut before: HashMap<Stamp, usize> = HashMap::new();
    for (first, seconds) in after {
        before.entry(*first).or_default();
        seconds.iter().for_each(|second| *before.entry(*second).or_default() += 1);
    }
    let all = before.len();
    let mut free: Vec<Stamp> =
        before.iter().filter(|(_, count)| **count == 0).map(|(stamp, _)| *stamp).collect();
    let mut seen = 0;
    while let Some(stamp) = free.pop() {
        seen += 1;
        for second in after.get(&stamp).into_iter().flatten() {
            let count = before.entry(*second).or_default();
            *count -= 1;
            if *count == 0 {
                free.push(*second);
            }
        }
    }
    seen == all
}

const LISTENERS: usize = 36;
const NOTIFIERS: usize = 6;

/// Notifications that make a play: of these, more than were promised come too, and some are lost with who was to hear them.
const ENOUGH: u64 = 200_000;

/// Everybody at once, for as long as `meanwhile` takes, which is given the stage.
fn play(name: &str, rough: bool, meanwhile: impl FnOnce(&Stage<'_>) -> Result<()>) -> Result<()> {
    let settings = [
        ("postern.pool_size", "6"),
        ("max_connections", "120"),
        ("log_min_messages", "log"),
        ("postern.relay_ring_size", "64MB"),
    ];
    let server = Secured::with(name, &settings)?;
    let cluster = &server.cluster;
    for database in &DATABASES[1..] {
        cluster.sql(&format!("CREATE DATABASE {database}"))?;
    }
    let port = cluster.pooler_port;
    let stage = Stage {
        cluster,
        targets: [
            Target::tcp(port),
            Target::tls(port, server.directory.join("ca.crt").as_path()),
            Target::unix(cluster.socket_directory(), port),
        ],
        start: Instant::now(),
        stop: AtomicBool::new(false),
        silent: AtomicBool::new(false),
        rough,
        endings: AtomicU64::new(0),
        heard: AtomicU64::new(0),
        lives: AtomicU64::new(0),
    };
    let (sent, heard) = thread::scope(|scope| -> Result<_> {
        let stage = &stage;
        let notifiers: Vec<_> =
            (0..NOTIFIERS).map(|number| scope.spawn(move || notifier(stage, number))).collect();
        let listeners: Vec<_> =
            (0..LISTENERS).map(|number| scope.spawn(move || listener(stage, number))).collect();
        let done = meanwhile(stage);
        stage.stop.store(true, Relaxed);
        let ended: Vec<_> = notifiers.into_iter().map(thread::ScopedJoinHandle::join).collect();
        // Whoever ends while somebody notifies does not know what it was promised.
        stage.silent.store(true, Relaxed);
        let mut sent = Vec::new();
        for ended in ended {
            sent.push(ended.map_err(|_| anyhow::anyhow!("a notifier has panicked"))??);
        }
        let mut heard = Vec::new();
        for thread in listeners {
            heard.extend(thread.join().map_err(|_| anyhow::anyhow!("a listener has panicked"))??);
        }
        done.map(|()| (sent, heard))
    })?;
    let promised = check(&sent, &heard)?;
    let (sent, connections) = (sent.iter().map(Vec::len).sum::<usize>(), heard.len());
    let endings = stage.endings.load(Relaxed);
    eprintln!("{sent} sent, {connections} connections, {promised} promised and kept, {endings} ended");
    ensure!(promised > 20_000 && connections > LISTENERS, "{promised} of {connections}");
    ensure!(endings > 0 || !rough);
    Ok(())
}

/// Ends a process of the server as an administrator does, once there is one of that kind.
fn terminate(cluster: &Cluster, backend_type: &str) -> Result<()> {
    let sql = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = '{backend_type}' ORDER BY random() LIMIT 1"
    );
    wait::until(&format!("there is a {backend_type}"), || cluster.sql(&sql).is_ok_and(|ended| ended == "t"))
}

#[test]
fn under_load_every_listener_gets_everything_once_and_in_one_order() -> Result<()> {
    play("relay_load", false, |stage| {
        stage.goes_on(ENOUGH)?;
        wait::until_within(PATIENCE, "listeners come and go", || stage.lives.load(Relaxed) > LISTENERS as u64)
    })
}

#[test]
fn who_loses_its_relay_or_its_front_under_load_hears_it_and_has_no_gap_before() -> Result<()> {
    play("relay_rough", true, |stage| {
        for round in 0..8 {
            stage.goes_on(ENOUGH / 8)?;
            let before = stage.endings.load(Relaxed);
            if round % 4 == 3 {
                let front = stage.cluster.front_pid()?;
                terminate(stage.cluster, "postern pooler")?;
                wait::until("there is a new front", || {
                    stage.cluster.front_pid().is_ok_and(|pid| pid != front)
                })?;
            } else {
                terminate(stage.cluster, "postern relay")?;
            }
            wait::until_within(PATIENCE, "somebody hears it", || stage.endings.load(Relaxed) > before)?;
        }
        stage.goes_on(ENOUGH / 8)
    })
}
