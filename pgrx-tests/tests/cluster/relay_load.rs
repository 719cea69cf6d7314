//! LISTEN and NOTIFY through the pooler under load: everybody gets everything from the LISTEN's answer on, once, in one order, and
//! nobody gets anything else; also when the processes in between are ended.

mod ear;
mod promises;

use self::ear::{Ear, Ended};
use self::promises::check;
use crate::tls::Secured;
use anyhow::{Context, Result, bail, ensure};
use pgrx_tests::cluster::Cluster;
use pgrx_tests::dice::Dice;
use pgrx_tests::lacking;
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

/// One listener after another until the end; all that each has heard.
fn listener(stage: &Stage<'_>, number: usize) -> Result<Vec<Heard>> {
    let mut dice = Dice::new(number as u64);
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
            Ok(()) if stage.silent.load(Relaxed) => {
                match ear.end(&mut notifier, number) {
                    Ok(()) => {}
                    // It has been slow to notice the last that was ended.
                    Err(Ended(why)) if stage.rough && is_end_of_relay(&why) => ear.heard.ended = true,
                    Err(Ended(why)) => bail!("{number}: at the end: {why}"),
                }
                all.push(ear.heard);
                return Ok(all);
            }
            Ok(()) => {
                // What it has not read by now it may not have been sent.
                ear.heard.ended = true;
                None
            }
            Err(Ended(why)) => Some(why),
        };
        if let Some(why) = ended {
            ensure!(stage.rough && is_end_of_relay(&why), "{} was ended: {why}", ear.heard.who);
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
    let mut dice = Dice::new(1000 + number as u64);
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
    if lacking::in_server("TLS") {
        return Ok(());
    }
    play("relay_load", false, |stage| {
        stage.goes_on(ENOUGH)?;
        wait::until_within(PATIENCE, "listeners come and go", || stage.lives.load(Relaxed) > LISTENERS as u64)
    })
}

#[test]
fn who_loses_its_relay_or_its_front_under_load_hears_it_and_has_no_gap_before() -> Result<()> {
    if lacking::in_server("TLS") {
        return Ok(());
    }
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

/// What a listener hears whose relay or front has ended.
fn is_end_of_relay(why: &str) -> bool {
    ["CPN002", "C57P01"].iter().any(|code| why.contains(code))
}
