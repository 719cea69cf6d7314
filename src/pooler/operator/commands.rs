//! What the console's commands do to the front; each is logged. Nothing here waits: what takes time is looked at again. Network
//! threads.

use super::connections::Seen;
use super::id::Id;
use super::{Console, of};
use crate::bridge::Level;
use crate::pooler::console::{Error, Progress};
use crate::pooler::orders::{self, TooMany};
use crate::pooler::shared::{Order, Server};
use rustix::process::{Signal, getppid, kill_process};
use std::sync::atomic::Ordering::*;

pub(super) fn pause(console: &Console<'_>, database: Option<&str>) -> Result<(), Error> {
    check(console, database)?;
    order_pause(console, database)?;
    note(console, "PAUSE", database);
    Ok(())
}

pub(super) fn paused(console: &Console<'_>, database: Option<&str>) -> Progress {
    if !console.front.shared.is_paused(database.map(str::as_bytes)) {
        return Progress::Undone;
    }
    // One whose opening had begun before.
    orders::retire_all(&console.front.shared, of(database));
    if console.servers_of(database).next().is_none() { Progress::Done } else { Progress::Pending }
}

pub(super) fn resume(console: &Console<'_>, database: Option<&str>) -> Result<(), Error> {
    check(console, database)?;
    if !orders::take_back_pause(&console.front.shared, database.map(str::as_bytes)) {
        return Err(match database {
            Some(name) => Error::DatabaseNotPaused(name.to_owned()),
            None => Error::NotPaused,
        });
    }
    note(console, "RESUME", database);
    for pool in console.front.pools.all() {
        pool.news.notify_one();
    }
    Ok(())
}

pub(super) fn reconnect(console: &Console<'_>, database: Option<&str>) -> Result<(), Error> {
    check(console, database)?;
    note(console, "RECONNECT", database);
    orders::retire_all(&console.front.shared, of(database));
    Ok(())
}

pub(super) fn wait_close(console: &Console<'_>, database: Option<&str>) -> Result<(), Error> {
    check(console, database)
}

pub(super) fn closed(console: &Console<'_>, database: Option<&str>) -> Progress {
    let doomed = |(_, server): (u32, &'static Server)| server.retire.load(Acquire);
    if console.servers_of(database).any(doomed) { Progress::Pending } else { Progress::Done }
}

pub(super) fn kill(console: &Console<'_>, database: &str) -> Result<(), Error> {
    check(console, Some(database))?;
    order_pause(console, Some(database))?;
    note(console, "KILL", Some(database));
    let its = |client: &Seen<'_>| console.names_of(client).1.as_deref() == Some(database);
    let clients = console.seen().into_iter().filter(its);
    let clients: Vec<_> = clients.map(|client| (client.number, client.generation)).collect();
    for (number, generation) in clients {
        console.front.kill_client(number, generation);
    }
    Ok(())
}

pub(super) fn enable(console: &Console<'_>, database: &str) -> Result<(), Error> {
    check(console, Some(database))?;
    note(console, "ENABLE", Some(database));
    console.front.shared.header.orders.take_back(database.as_bytes(), Order::Disable);
    Ok(())
}

pub(super) fn disable(console: &Console<'_>, database: &str) -> Result<(), Error> {
    check(console, Some(database))?;
    note(console, "DISABLE", Some(database));
    let given = console.front.shared.header.orders.give(database.as_bytes(), Order::Disable);
    if given { Ok(()) } else { Err(failed(TooMany)) }
}

pub(super) fn kill_client(console: &Console<'_>, id: u64) -> Result<(), Error> {
    let done = match Id::of(id) {
        Some(Id::Console(number)) => console.front.consoles.kill(number),
        Some(Id::Client(slot, _)) => console.front.shared.slots.get(slot as usize).is_some_and(|words| {
            let generation = words.word.seen().generation();
            Id::client(slot, generation).number() == id && console.front.kill_client(slot, generation)
        }),
        _ => false,
    };
    if !done {
        return Err(Error::NoSuchClient);
    }
    note(console, &format!("KILL_CLIENT {id}"), None);
    Ok(())
}

pub(super) fn reload(console: &Console<'_>) -> Result<(), Error> {
    // As pg_reload_conf() does. A parent of another number is whoever took us over when the postmaster died.
    let postmaster = getppid().filter(|parent| parent.as_raw_nonzero().get() == console.front.postmaster);
    let told = postmaster.is_some_and(|postmaster| kill_process(postmaster, Signal::HUP).is_ok());
    if !told {
        return Err(Error::Failed("failed to send signal to postmaster".to_owned()));
    }
    note(console, "RELOAD", None);
    Ok(())
}

/// # Errors
/// [`Error::NoSuchDatabase`].
fn check(console: &Console<'_>, database: Option<&str>) -> Result<(), Error> {
    match database {
        Some(name)
            if !console.known.contains(name)
                && console.used(None).all(|(_, pool)| pool.database_name.text() != name) =>
        {
            Err(Error::NoSuchDatabase(name.to_owned()))
        }
        _ => Ok(()),
    }
}

fn note(console: &Console<'_>, what: &str, database: Option<&str>) {
    let of = database.map_or(String::new(), |name| format!(" {name}"));
    console.front.bridge.log(Level::Log, format!("pooler console: {what}{of} by role \"{}\"", console.role));
}

fn order_pause(console: &Console<'_>, database: Option<&str>) -> Result<(), Error> {
    if console.front.shared.is_paused(None) {
        return Err(Error::AlreadyPaused);
    }
    orders::pause(&console.front.shared, of(database)).map_err(failed)?;
    Ok(())
}

fn failed(error: TooMany) -> Error {
    Error::Failed(error.to_string())
}
