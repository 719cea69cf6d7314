//! A client that writes through haproxy and, like a good client, connects again when its connection ends. It notes what
//! was acknowledged to it. A thread of the demo.

use crate::INTERRUPTED;
use anyhow::{Context, Result, bail};
use postgres::{Client, Config, NoTls};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const PAUSE: Duration = Duration::from_millis(20);
const LIMIT: Duration = Duration::from_secs(60);

pub struct Writer {
    told: Arc<Mutex<Told>>,
    thread: Option<JoinHandle<()>>,
}

/// What the client knows.
#[derive(Default, Clone)]
pub struct Told {
    pub acknowledged: Vec<i64>,
    /// Tries that failed, at connecting or at writing.
    pub failures: u32,
    node: String,
    last: Option<Instant>,
    longest_gap: Duration,
    stop: bool,
}

impl Writer {
    pub fn start() -> Result<Self> {
        let told = Arc::new(Mutex::new(Told::default()));
        let thread = std::thread::Builder::new().name("writer".to_owned()).spawn({
            let told = Arc::clone(&told);
            move || write(&told)
        })?;
        Ok(Self { told, thread: Some(thread) })
    }

    /// Waits until so many more writes have been acknowledged.
    pub fn wait_for(&self, more: usize) -> Result<()> {
        let before = self.told().acknowledged.len();
        self.until("writes are acknowledged", |told| told.acknowledged.len() >= before + more)
    }

    /// Waits until a write has reached a node.
    pub fn wait_for_node(&self, node: &str) -> Result<()> {
        self.until(&format!("a write reaches {node}"), |told| told.node == node)
    }

    pub fn longest_gap(&self) -> Duration {
        self.told().longest_gap
    }

    pub fn forget_gap(&self) {
        self.told().longest_gap = Duration::ZERO;
    }

    pub fn stop(mut self) -> Result<Told> {
        self.told().stop = true;
        if let Some(thread) = self.thread.take() {
            thread.join().ok().context("the writer has panicked")?;
        }
        Ok(self.told().clone())
    }

    fn until(&self, what: &str, holds: impl Fn(&Told) -> bool) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        while !holds(&self.told()) {
            if INTERRUPTED.load(Ordering::SeqCst) {
                bail!("interrupted");
            }
            if Instant::now() > deadline {
                bail!("not within {LIMIT:?}: {what}");
            }
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        lock(&self.told)
    }
}

fn lock(told: &Mutex<Told>) -> MutexGuard<'_, Told> {
    told.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn write(told: &Mutex<Told>) {
    let mut client: Option<Client> = None;
    for id in 1.. {
        if lock(told).stop || INTERRUPTED.load(Ordering::SeqCst) {
            return;
        }
        match write_one(&mut client, id) {
            Ok(node) => {
                let mut told = lock(told);
                let now = Instant::now();
                if let Some(last) = told.last.replace(now) {
                    told.longest_gap = told.longest_gap.max(now - last);
                }
                told.acknowledged.push(id);
                told.node = node;
            }
            Err(_) => {
                client = None;
                lock(told).failures += 1;
            }
        }
        std::thread::sleep(PAUSE);
    }
}

fn write_one(client: &mut Option<Client>, id: i64) -> Result<String> {
    if client.as_ref().is_none_or(Client::is_closed) {
        let mut config = Config::new();
        config.host("127.0.0.1").port(5999).user("app").password("app").dbname("shop");
        *client = Some(config.connect_timeout(Duration::from_secs(1)).connect(NoTls)?);
    }
    let client = client.as_mut().context("just connected")?;
    let insert = "INSERT INTO orders (id, node) VALUES ($1, current_setting('cluster_name')) RETURNING node";
    Ok(client.query_one(insert, &[&id])?.get(0))
}
