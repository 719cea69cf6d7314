//! Other clients at the same address: they play scripts over and over, leave server connections in every state that a pool
//! may have to clean up, and are held to what those scripts show directly. They run in threads of test programs.

use super::connection::Target;
use super::language::Script;
use super::replay::replay;
use super::transcript::Transcript;
use anyhow::{Context, Result, anyhow, ensure};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Between two scripts: the noise is not to starve what it is noise to.
const BREATH: Duration = Duration::from_millis(5);

/// Clients that play until they are told to stop.
pub struct Noise {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<u64>>>,
}

impl Noise {
    /// What can be played at any time beside anything: scripts without a setup that are neither `alone` nor `undisturbed`, with what they show at
    /// `direct`.
    ///
    /// # Errors
    /// When one cannot be played there.
    pub fn rehearse(scripts: &[Script], direct: &Target) -> Result<Vec<(Script, Transcript)>> {
        let fits = |script: &&Script| script.setup.is_empty() && !script.alone && !script.undisturbed;
        let play = |script: &Script| {
            let seen = replay(script, direct).with_context(|| script.name.clone())?;
            Ok((script.clone(), seen))
        };
        scripts.iter().filter(fits).map(play).collect()
    }

    /// As many clients as that, each beginning with another script.
    pub fn start(clients: usize, target: &Target, scripts: Vec<(Script, Transcript)>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let scripts = Arc::new(scripts);
        let start = |number: usize| {
            let (stop, target, scripts) = (stop.clone(), target.clone(), scripts.clone());
            std::thread::spawn(move || {
                let mut played = 0;
                let from = number * scripts.len() / clients;
                for (script, direct) in scripts.iter().cycle().skip(from) {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let seen = replay(script, &target).with_context(|| script.name.clone())?;
                    let difference = direct.difference(&seen);
                    ensure!(difference.is_none(), "{}:\n{}", script.name, difference.unwrap_or_default());
                    played += 1;
                    std::thread::sleep(BREATH);
                }
                Ok(played)
            })
        };
        let threads = (0..clients).map(start).collect();
        Self { stop, threads }
    }

    /// Stops, and gives how many scripts all have played.
    ///
    /// # Errors
    /// With the first script that a client did not see as it is directly.
    pub fn stop(mut self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let threads = self.threads.drain(..);
        threads.map(|thread| thread.join().map_err(|_| anyhow!("a client panicked"))?).sum()
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
