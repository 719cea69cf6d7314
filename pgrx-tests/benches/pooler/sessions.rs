//! Clients with a state of their own. Two hundred of them run prepared statements, in four states:
//!
//! - `plain`: no settings; the same twenty statements in every client
//! - `settings`: the same twenty statements, and four settings of its own, none of which changes what a statement means
//! - `statements`: no settings; twenty statements of its own
//! - `both`: twenty statements of its own, and four settings, a search_path among them
//!
//! What is compared is the rate with that state and without. Who does not carry the settings over is quick, and wrong:
//! at the end every client looks whether it still has its own.

use crate::raw::{self, Client};
use crate::{Bench, Target, alternating, median, number};
use anyhow::{Context, Result};
use pgrx_tests::pgbouncer::Pgbouncer;
use rustix::event::{Timespec, epoll};
use std::io::Write;
use std::time::{Duration, Instant};

const CLIENTS: usize = 200;
const STATEMENTS: usize = 20;
/// Threads of clients; each has its part of them on one epoll.
const THREADS: usize = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Plain,
    Settings,
    Statements,
    Both,
}

const STATES: [(State, &str); 4] = [
    (State::Plain, "plain"),
    (State::Settings, "settings"),
    (State::Statements, "statements"),
    (State::Both, "both"),
];

impl State {
    /// The four settings of a client: name and value, as SHOW shows it (an even number of kB could be shown as MB).
    fn settings(self, number: usize) -> Vec<(&'static str, String)> {
        let third = match self {
            Self::Plain | Self::Statements => return Vec::new(),
            Self::Settings => ("statement_timeout", format!("{}ms", 100_001 + number)),
            Self::Both => ("search_path", format!("client_{number}, public")),
        };
        vec![
            ("application_name", format!("client {number}")),
            third,
            ("work_mem", format!("{}kB", 5001 + 2 * number)),
            ("TimeZone", format!("Etc/GMT+{}", number % 12)),
        ]
    }

    fn has_own_statements(self) -> bool {
        matches!(self, Self::Statements | Self::Both)
    }
}

#[derive(Default)]
struct Outcome {
    done: u64,
    failed: u64,
    wrong: u64,
}

/// What one target showed in one state.
struct Figures {
    rate: f64,
    failed: u64,
    wrong: u64,
}

pub fn run(bench: &Bench) -> Result<()> {
    let bouncer = Pgbouncer::start(&bench.server, &bench.pgbouncer_options())?;
    for number in 0..CLIENTS {
        bench.server.sql(&format!("CREATE SCHEMA IF NOT EXISTS client_{number}"))?;
    }
    let targets = bench.targets(&bouncer)?;
    println!("{CLIENTS} clients, {STATEMENTS} statements each, {} backends", bench.options.pool);
    println!("{:<12}{:<12}{:>10}{:>8}{:>8}{:>8}", "", "state", "queries/s", "/plain", "failed", "wrong");
    let results = alternating(&targets, bench.options.rounds, |target| {
        STATES.iter().map(|(state, _)| round(bench, target, *state)).collect::<Result<Vec<_>>>()
    })?;
    for (target, rounds) in &results {
        let rate = |state: usize| median(rounds.iter().map(|states| states[state].rate));
        for (state, (_, name)) in STATES.iter().enumerate() {
            let sum =
                |value: fn(&Figures) -> u64| rounds.iter().map(|states| value(&states[state])).sum::<u64>();
            println!(
                "{:<12}{name:<12}{:>10}{:>8}{:>8}{:>8}",
                target.kind,
                number(rate(state), 0),
                number(rate(state) / rate(0), 2),
                sum(|figures| figures.failed),
                sum(|figures| figures.wrong)
            );
        }
    }
    Ok(())
}

fn round(bench: &Bench, target: &Target, state: State) -> Result<Figures> {
    let time = Duration::from_secs(u64::from(bench.options.seconds));
    let rows = i32::try_from(bench.options.scale)? * 100_000;
    let mut groups = Vec::new();
    for thread in 0..THREADS {
        let numbers = (0..CLIENTS).filter(|number| number % THREADS == thread);
        let clients = numbers.map(|number| {
            let client = connect(target.port, number, state);
            Ok((number, client.with_context(|| format!("{}: client {number}, {state:?}", target.kind))?))
        });
        groups.push(clients.collect::<Result<Vec<_>>>()?);
    }
    let threads: Vec<_> = groups
        .into_iter()
        .map(|clients| std::thread::spawn(move || drive(clients, state, rows, time)))
        .collect();
    let mut all = Outcome::default();
    for thread in threads {
        let outcome = thread.join().map_err(|_| anyhow::anyhow!("a thread of clients has panicked"))??;
        all.done += outcome.done;
        all.failed += outcome.failed;
        all.wrong += outcome.wrong;
    }
    Ok(Figures { rate: all.done as f64 / time.as_secs_f64(), failed: all.failed, wrong: all.wrong })
}

fn connect(port: u16, number: usize, state: State) -> Result<Client> {
    let mut client = Client::connect(port)?;
    for (name, value) in state.settings(number) {
        client.query(&format!("SELECT set_config('{name}', '{value}', false)")).context("settings")?;
    }
    let own = if state.has_own_statements() { format!(" of client {number}") } else { String::new() };
    for i in 0..STATEMENTS {
        let sql = format!("SELECT abalance FROM pgbench_accounts WHERE aid = $1 /* statement {i}{own} */");
        client.prepare(&statement(i), &sql).context("statements")?;
    }
    Ok(client)
}

fn statement(number: usize) -> String {
    format!("statement_{number}")
}

/// Keeps one query under way in every client until the time is over, then asks each for its settings.
fn drive(mut clients: Vec<(usize, Client)>, state: State, rows: i32, time: Duration) -> Result<Outcome> {
    let names: Vec<String> = (0..STATEMENTS).map(statement).collect();
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut random = 0x9E37_79B9_u32;
    let mut message = Vec::new();
    let mut outcome = Outcome::default();
    let mut send = |client: &mut Client| -> std::io::Result<()> {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        // The upper bits: the lower ones of such a generator go in short circles.
        let parameter = 1 + (random >> 8).cast_signed() % rows;
        raw::execute(&mut message, &names[(random >> 27) as usize % STATEMENTS], parameter);
        client.stream.write_all(&message)
    };
    for (place, (_, client)) in clients.iter_mut().enumerate() {
        client.stream.set_nonblocking(true)?;
        epoll::add(&poll, &client.stream, epoll::EventData::new_u64(place as u64), epoll::EventFlags::IN)?;
        send(client)?;
    }
    let start = Instant::now();
    let mut under_way = clients.len();
    let mut lost = vec![false; clients.len()];
    let mut events = Vec::with_capacity(clients.len());
    // What is under way at the end is waited for and not counted.
    let limit = time + Duration::from_secs(30);
    while under_way > 0 && start.elapsed() < limit {
        events.clear();
        let second = Timespec { tv_sec: 1, tv_nsec: 0 };
        epoll::wait(&poll, rustix::buffer::spare_capacity(&mut events), Some(&second))?;
        let over = start.elapsed() >= time;
        for event in &events {
            let place = event.data.u64() as usize;
            let client = &mut clients[place].1;
            let going = client.advance().and_then(|progress| {
                outcome.failed += u64::from(progress.errors);
                if progress.ready && over {
                    under_way -= 1;
                } else if progress.ready {
                    outcome.done += u64::from(progress.errors == 0);
                    send(client)?;
                }
                Ok(())
            });
            if going.is_err() {
                outcome.failed += 1;
                under_way -= 1;
                lost[place] = true;
                epoll::delete(&poll, &client.stream)?;
            }
        }
    }
    outcome.failed += under_way as u64;
    if under_way == 0 {
        for ((number, client), _) in clients.iter_mut().zip(lost).filter(|(_, lost)| !lost) {
            client.stream.set_nonblocking(false)?;
            outcome.wrong += u64::from(!has_own_settings(state, *number, client)?);
        }
    }
    Ok(outcome)
}

fn has_own_settings(state: State, number: usize, client: &mut Client) -> Result<bool> {
    for (name, value) in state.settings(number) {
        if client.query(&format!("SELECT current_setting('{name}')"))? != [value] {
            return Ok(false);
        }
    }
    Ok(true)
}
