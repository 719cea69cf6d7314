//! The listeners of one kind: those that the settings want are opened, retried while they cannot be, and closed
//! when no longer wanted; the others are not touched by a reload. Network threads.

use super::listener::{Endpoint, Listener};
use super::resolve::{Resolver, Wanted};
use super::slots::{Kind, SLOTS, Slot, Slots};
use super::{Error, resolve};
use crate::bridge::{Bridge, Level};
use crate::settings::{ListenAddress, ListenList, Settings};
use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How long after a failure an address is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// What a kind of listener is.
#[derive(Clone, Copy)]
pub struct Family {
    pub kind: Kind,
    /// How the log calls it, such as "status banner".
    pub name: &'static str,
    /// The setting to name in errors.
    pub setting: &'static str,
    pub addresses: fn(&Settings) -> &ListenList,
}

/// Keeps the listeners of `family` until the worker stops, or until one of them panics. `serve` is called for
/// each opened listener; it is dropped when the address is no longer wanted.
pub async fn keep<F, S, W>(bridge: Bridge<F>, family: Family, slots: &'static Slots, serve: S)
where
    F: Clone + Send + Sync + 'static,
    S: Fn(Listener, &'static Slot) -> W + Clone + Send + 'static,
    W: Future<Output = ()> + Send + 'static,
{
    let stop = bridge.stop();
    let mut settings = bridge.settings_watch();
    // With each, whether the machine may lack it.
    let mut open: HashMap<Endpoint, (CancellationToken, bool)> = HashMap::new();
    let mut tasks: JoinSet<Endpoint> = JoinSet::new();
    let mut resolver = Resolver::default();
    let mut said = Vec::new();
    let mut unresolved: Vec<&Slot> = Vec::new();
    loop {
        let now = Arc::clone(&settings.borrow_and_update());
        let wanted = tokio::select! {
            () = stop.cancelled() => return,
            wanted = resolver.resolve((family.addresses)(&now)) => wanted,
        };
        log_unresolved(&bridge, family, &wanted, &mut said);
        // A name without an address has a slot too, so that whoever looks sees that it does not listen.
        unresolved.drain(..).for_each(Slot::close);
        for (entry, error) in &wanted.unresolved {
            if let Some(slot) = slots.claim(family.kind, &entry.to_string()) {
                slot.set_failed(error.errno());
                unresolved.push(slot);
            }
        }

        // What is no longer wanted is closed before anything is opened: the new address may overlap the old.
        let gone: Vec<Endpoint> =
            open.iter().filter(|(e, (_, o))| !wanted.keeps(e, *o)).map(|(e, _)| e.clone()).collect();
        let mut closing = gone.len();
        for endpoint in &gone {
            if let Some((cancel, _)) = open.remove(endpoint) {
                cancel.cancel();
            }
        }
        while closing > 0 {
            match tasks.join_next().await {
                Some(Ok(endpoint)) if gone.contains(&endpoint) => closing -= 1,
                Some(Ok(endpoint)) => drop(open.remove(&endpoint)),
                Some(Err(panic)) => return bridge.fail(format!("{}: {panic}", family.name)),
                None => break,
            }
        }

        for (endpoint, optional) in &wanted.endpoints {
            if !open.contains_key(endpoint) {
                let cancel = stop.child_token();
                let one = One {
                    bridge: bridge.clone(),
                    family,
                    endpoint: endpoint.clone(),
                    optional: *optional,
                    mode: now.server.socket_mode,
                    cancel: cancel.clone(),
                };
                tasks.spawn(one.run(slots, serve.clone()));
                open.insert(endpoint.clone(), (cancel, *optional));
            }
        }

        loop {
            let resolve_again = tokio::time::sleep(resolve::RETRY);
            tokio::select! {
                () = stop.cancelled() => {
                    while tasks.join_next().await.is_some() {}
                    return;
                }
                _ = settings.changed() => break,
                () = resolve_again, if wanted.look_again => break,
                Some(ended) = tasks.join_next() => match ended {
                    Ok(endpoint) => drop(open.remove(&endpoint)),
                    Err(panic) => return bridge.fail(format!("{}: {panic}", family.name)),
                },
            }
        }
    }
}

/// Says what cannot be resolved, once a change and not once a try.
fn log_unresolved<F: Clone + Send + Sync + 'static>(
    bridge: &Bridge<F>,
    family: Family,
    wanted: &Wanted,
    said: &mut Vec<String>,
) {
    let Family { name, setting, .. } = family;
    let retry = resolve::RETRY.as_secs();
    let line = |(entry, error): &(ListenAddress, Error)| {
        format!("{name} could not listen on \"{entry}\" ({setting}): {error}; retrying every {retry} s")
    };
    let lines: Vec<String> = wanted.unresolved.iter().map(line).collect();
    for line in lines.iter().filter(|line| !said.contains(line)) {
        bridge.log(Level::Warning, line.clone());
    }
    *said = lines;
}

/// The life of one address.
struct One<F> {
    bridge: Bridge<F>,
    family: Family,
    endpoint: Endpoint,
    /// One of several that an entry stands for, so this machine need not have it.
    optional: bool,
    mode: u32,
    cancel: CancellationToken,
}

impl<F: Clone + Send + Sync + 'static> One<F> {
    /// Returns its endpoint when cancelled.
    async fn run<S, W>(self, slots: &'static Slots, serve: S) -> Endpoint
    where
        S: Fn(Listener, &'static Slot) -> W,
        W: Future<Output = ()>,
    {
        let Family { kind, name, setting, .. } = self.family;
        let Some(slot) = slots.claim(kind, &self.endpoint.to_string()) else {
            let error = Error::NoSlot(SLOTS);
            self.bridge.log(
                Level::Warning,
                format!("{name} does not listen on {} ({setting}): {error}", self.endpoint),
            );
            return self.endpoint;
        };
        let mut said = None;
        loop {
            match Listener::open(&self.endpoint, self.mode) {
                Ok(listener) => {
                    slot.set_listening();
                    self.bridge.log(Level::Log, format!("{name} listens on {}", self.endpoint));
                    tokio::select! {
                        () = self.cancel.cancelled() => {}
                        () = serve(listener, slot) => {}
                    }
                    self.bridge.log(Level::Log, format!("{name} no longer listens on {}", self.endpoint));
                    break;
                }
                Err(Error::Listen(e)) if self.optional && is_absent(&e) => {
                    // Not a failure, but it may come: an address of a machine that is still starting.
                    slot.set_absent();
                    if said.replace(i32::MAX) != Some(i32::MAX) {
                        self.bridge
                            .log(Level::Log, format!("{name} leaves out {} for now: {e}", self.endpoint));
                    }
                }
                Err(error) => {
                    slot.set_failed(error.errno());
                    // Said once an error, not once a try.
                    if said.replace(error.errno()) != Some(error.errno()) {
                        let retry = RETRY.as_secs();
                        self.bridge.log(
                            Level::Warning,
                            format!(
                                "{name} could not listen on {} ({setting}): {error}; retrying every {retry} s",
                                self.endpoint
                            ),
                        );
                    }
                }
            }
            tokio::select! {
                () = self.cancel.cancelled() => break,
                () = tokio::time::sleep(RETRY) => {}
            }
        }
        slot.close();
        self.endpoint
    }
}

/// The machine has no such address or no such protocol, as where IPv6 is switched off.
fn is_absent(error: &std::io::Error) -> bool {
    use rustix::io::Errno as E;
    [E::AFNOSUPPORT, E::ADDRNOTAVAIL, E::PROTONOSUPPORT]
        .iter()
        .any(|e| error.raw_os_error() == Some(e.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bridge::bridge;
    use std::net::TcpListener;
    use std::sync::atomic::AtomicU64;

    static DROPPED: AtomicU64 = AtomicU64::new(0);
    const FAMILY: Family = Family {
        kind: 0,
        name: "test port",
        setting: "postern.test",
        addresses: |settings| &settings.banner,
    };

    fn wanting(list: &str) -> Settings {
        Settings { banner: list.parse().unwrap(), ..Default::default() }
    }

    async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
        for _ in 0..500 {
            if holds() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("not in time: {what}");
    }

    #[tokio::test]
    async fn a_taken_port_is_retried_and_a_reload_leaves_the_others_alone() {
        let slots: &'static Slots = Box::leak(Box::default());
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken_address = taken.local_addr().unwrap().to_string();
        let spare = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let (main, threads) = bridge((), wanting(&format!("{taken_address},{spare}")), &DROPPED, || ());
        let opened: &'static AtomicU64 = Box::leak(Box::default());
        let keeper = tokio::spawn(keep(threads.clone(), FAMILY, slots, move |listener, _| async move {
            opened.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let _listener = listener;
            std::future::pending().await
        }));
        let listening = |address: &str| slots.report().iter().any(|r| r.address == address && r.listening);
        eventually("the free port is opened", || listening(&spare)).await;
        assert!(!listening(&taken_address));
        let mut log = String::new();
        main.drain_log(|line| log.push_str(&line.text));
        let expected = format!("test port could not listen on {taken_address} (postern.test): Address");
        assert!(log.contains(&expected), "{log}");
        drop(taken);
        eventually("the taken port is opened when it is free", || listening(&taken_address)).await;

        let before = opened.load(std::sync::atomic::Ordering::Relaxed);
        main.reload(wanting(&spare));
        eventually("the other is closed", || slots.report().len() == 1).await;
        assert!(listening(&spare));
        assert_eq!(
            opened.load(std::sync::atomic::Ordering::Relaxed),
            before,
            "the one that stays is not opened anew"
        );
        main.stop();
        keeper.await.unwrap();
    }

    #[tokio::test]
    async fn a_panic_in_a_service_ends_the_worker() {
        let slots: &'static Slots = Box::leak(Box::default());
        let (main, threads) = bridge((), wanting("127.0.0.1:65534"), &DROPPED, || ());
        keep(threads, FAMILY, slots, |_, _| async { panic!("on purpose") }).await;
        assert!(main.failure().unwrap().contains("panicked"));
    }
}
