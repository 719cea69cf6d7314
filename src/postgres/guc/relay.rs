//! The relay's settings. Defined in the postmaster, read on main.

use super::definition::{LIST_HELP, check_list, number, text};
use pgrx::{GucContext, GucFlags, GucSetting};
use std::ffi::CString;

pub(super) static RELAY_LISTEN: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static RELAY_RING_SIZE: GucSetting<i32> = GucSetting::<i32>::new(16 * 1024);
static RELAY_MAX_CHANNELS: GucSetting<i32> = GucSetting::<i32>::new(4096);
static RELAY_MAX_LISTENS: GucSetting<i32> = GucSetting::<i32>::new(65_536);
pub(super) static RELAY_MAX_BACKLOG: GucSetting<i32> = GucSetting::<i32>::new(0);

pub(super) fn define() {
    text(
        c"postern.relay_listen",
        c"Addresses of the listen-only port; also a Unix socket of the same port beside each of the server's.",
        LIST_HELP,
        &RELAY_LISTEN,
        check_list,
    );
    number(
        c"postern.relay_ring_size",
        c"Shared memory for notifications that clients of the pooler have still to be sent.",
        c"A client that has not read a notification when it is overwritten is disconnected. Takes effect at the server's start.",
        &RELAY_RING_SIZE,
        (64, 1_048_576),
        GucContext::Postmaster,
        GucFlags::UNIT_KB,
    );
    number(
        c"postern.relay_max_channels",
        c"Channels that clients of the pooler listen to at once, in all databases.",
        c"Beyond it LISTEN is an error. Takes effect at the server's start.",
        &RELAY_MAX_CHANNELS,
        (1, 1_048_576),
        GucContext::Postmaster,
        GucFlags::default(),
    );
    number(
        c"postern.relay_max_listens",
        c"LISTENs of all clients of the pooler that are in force at once: one for each client and channel.",
        c"Beyond it LISTEN is an error. Takes effect at the server's start.",
        &RELAY_MAX_LISTENS,
        (1, 16_777_216),
        GucContext::Postmaster,
        GucFlags::default(),
    );
    number(
        c"postern.relay_max_backlog",
        c"Memory of the ring of notifications by which a client may be behind before it is disconnected.",
        c"0 is as much as postern.relay_ring_size. Takes effect on reload.",
        &RELAY_MAX_BACKLOG,
        (0, 1_048_576),
        GucContext::Sighup,
        GucFlags::UNIT_KB,
    );
}

/// What the relay's tables are as long as. Fixed at the server's start.
pub(in crate::postgres) struct RelaySizes {
    /// Words of eight bytes.
    pub ring: usize,
    pub channels: usize,
    pub listens: usize,
}

pub(in crate::postgres) fn relay_sizes() -> RelaySizes {
    let of = |setting: &GucSetting<i32>| usize::try_from(setting.get()).unwrap_or(1);
    RelaySizes {
        ring: of(&RELAY_RING_SIZE) * 128,
        channels: of(&RELAY_MAX_CHANNELS),
        listens: of(&RELAY_MAX_LISTENS),
    }
}
