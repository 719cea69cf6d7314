//! Other clients at the same address, who leave server connections in every state that a pool may have to clean up. They
//! run in threads of test programs.

use super::connection::Target;
use anyhow::{Result, anyhow};
use postgres::{Client, NoTls};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Clients that work until they are told to stop.
pub struct Noise {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<u64>>>,
}

impl Noise {
    /// As many clients as that, each with session states of its own.
    pub fn start(clients: usize, target: &Target) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let start = |number| {
            let (stop, target) = (stop.clone(), target.clone());
            std::thread::spawn(move || work(number, &target, &stop))
        };
        let threads = (0..clients).map(start).collect();
        Self { stop, threads }
    }

    /// How many rounds all have done.
    ///
    /// # Errors
    /// What the first client failed with.
    pub fn stop(mut self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let rounds =
            self.threads.drain(..).map(|thread| thread.join().map_err(|_| anyhow!("a client panicked"))?);
        rounds.sum()
    }
}

impl Drop for Noise {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn work(number: usize, target: &Target, stop: &AtomicBool) -> Result<u64> {
    let mut rounds = 0;
    while !stop.load(Ordering::Relaxed) {
        let mut client = connect(number, target)?;
        // Some leave early: their states are then nobody's.
        for _ in 0..=(number % 3) * 20 {
            round(&mut client, number)?;
            rounds += 1;
            std::thread::sleep(Duration::from_millis(2));
            if stop.load(Ordering::Relaxed) {
                break;
            }
        }
    }
    Ok(rounds)
}

fn connect(number: usize, target: &Target) -> Result<Client> {
    let mut config = target.config();
    if number % 2 == 1 {
        config
            .application_name("noise")
            .options("-c work_mem=7MB -c DateStyle=German -c search_path=pg_catalog");
    }
    Ok(config.connect(NoTls)?)
}

/// The names are the corpus's: what leaks must show.
fn round(client: &mut Client, number: usize) -> Result<()> {
    client.batch_execute(&format!(
        "set work_mem = '{}MB'; set statement_timeout = '{}s'; set timezone = 'Asia/Tokyo'; set application_name = 'noise {number}';
         set bytea_output = 'escape'; set extra_float_digits = -2; set noise.mark = 'noise {number}'",
        number + 5,
        number + 50,
    ))?;
    client.batch_execute(&format!(
        "prepare s1 as select 'noise {number}'; prepare s2 (int) as select $1 + 1000; execute s1; execute s2(1)"
    ))?;
    let statement = client.prepare("select $1::int + 100000, 'noise'::text")?;
    let row = client.query_one(&statement, &[&1_i32])?;
    anyhow::ensure!(row.get::<_, i32>(0) == 100_001, "a wrong answer to the noise");
    let mut transaction = client.transaction()?;
    transaction.batch_execute("set local datestyle = 'SQL, DMY'; declare c1 cursor for select generate_series(1, 9); fetch 2 from c1")?;
    if number.is_multiple_of(2) {
        transaction.rollback()?;
    } else {
        transaction.commit()?;
    }
    anyhow::ensure!(client.batch_execute("select 1/0").is_err(), "a division by zero without an error");
    let work_mem =
        client.query_one("select current_setting('work_mem'), current_setting('noise.mark')", &[])?;
    let told: (String, String) = (work_mem.get(0), work_mem.get(1));
    anyhow::ensure!(
        told == (format!("{}MB", number + 5), format!("noise {number}")),
        "somebody else's settings: {told:?}"
    );
    client.batch_execute("deallocate s1; deallocate s2")?;
    if number.is_multiple_of(3) {
        client.batch_execute("discard all")?;
    }
    Ok(())
}
