//! The change streams' settings. Defined in the postmaster, read on main.

use super::definition::{LIST_HELP, check_list, number, text};
use pgrx::{GucContext, GucFlags, GucSetting};
use std::ffi::CString;

static MAX_STREAMS: GucSetting<i32> = GucSetting::<i32>::new(32);
pub(super) static STREAM_LISTEN: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static STREAM_BUFFER_SIZE: GucSetting<i32> = GucSetting::<i32>::new(64 * 1024);

pub(super) fn define() {
    text(
        c"postern.stream_listen",
        c"Addresses on which the server answers psql-streamer's HTTP requests about change streams.",
        LIST_HELP,
        &STREAM_LISTEN,
        check_list,
    );
    number(
        c"postern.max_streams",
        c"Sources and streams of change streams that the server runs, of each.",
        c"Sizes their tables in shared memory; takes effect at the server's start.",
        &MAX_STREAMS,
        (1, 1_024),
        GucContext::Postmaster,
        GucFlags::default(),
    );
    number(
        c"postern.stream_buffer_size",
        c"Memory that a source of change streams uses for changes that its sinks have not taken.",
        c"One change that is larger passes all the same. Takes effect when the source's worker starts again.",
        &STREAM_BUFFER_SIZE,
        (1_024, 1_048_576),
        GucContext::Sighup,
        GucFlags::UNIT_KB,
    );
}

pub(in crate::postgres) fn max_streams() -> usize {
    usize::try_from(MAX_STREAMS.get()).unwrap_or(1)
}

/// Bytes.
pub(in crate::postgres) fn stream_buffer_size() -> usize {
    usize::try_from(STREAM_BUFFER_SIZE.get()).unwrap_or(1) * 1024
}
