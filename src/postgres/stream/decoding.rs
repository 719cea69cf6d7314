//! The Rust side of `decoding.c`, `slots.c` and `session.c`: decoding in this process, slots, and what is beside it. A stream worker's main
//! thread; also a scout's and the launcher's.

use super::super::shim::guarded;
use crate::stream::position::Lsn;
use pgrx::prelude::*;
use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_int, c_void};

/// `PosternTransaction` in decoding.c.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Replayed {
    pub commit_end: u64,
    pub commit_time: i64,
    pub xid: u32,
}

/// `PosternType` in decoding.c.
#[repr(C)]
pub(super) struct RawType {
    pub same: u32,
    pub element: u32,
    pub delimiter: c_char,
}

guarded! {
    fn postern_slot(
        name: *const c_char,
        database: *mut u32,
        active_pid: *mut c_int,
        confirmed: *mut u64,
        restart: *mut u64,
        invalidated: *mut bool,
        logical: *mut bool,
        two_phase: *mut bool,
        plugin: *mut c_char,
    ) -> bool;
    fn postern_slot_create(name: *const c_char, stays: bool, with_snapshot: bool, failover: bool) -> u64;
    fn postern_slot_drop(name: *const c_char);
    fn postern_decoding_begin(slot: *const c_char, publication: *const c_char, messages: bool);
    fn postern_decoding_step(records: c_int, more: *mut bool) -> u64;
    fn postern_decoding_confirm(lsn: u64);
    fn postern_decoding_end();
    fn postern_end_on_sigterm();
    fn postern_cancel_on_sigterm();
    fn postern_after_error();
    fn postern_copy_rows(
        query: *const c_char,
        row: unsafe extern "C-unwind" fn(*mut c_void, c_int, *const *const c_char),
        context: *mut c_void,
    );
    fn postern_tell_type(type_oid: u32);
    fn postern_repeatable_read();
    fn postern_execute_one(statement: *const c_char) -> bool;
    fn postern_hide_transaction(hide: bool);
    fn postern_database_is_locked(database: u32) -> bool;
    fn postern_databases(
        found: unsafe extern "C-unwind" fn(*mut c_void, u32, *const c_char),
        context: *mut c_void,
    );
}

/// A replication slot as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Slot {
    pub database: u32,
    pub active_pid: i32,
    pub confirmed: Lsn,
    pub restart: Lsn,
    pub invalidated: bool,
    pub logical: bool,
    /// Prepared transactions come when they are prepared, and their commit by itself.
    pub two_phase: bool,
    pub plugin: String,
}

/// The slot of that name.
pub(super) fn slot(name: &str) -> Option<Slot> {
    let name = CString::new(name).ok()?;
    let (mut database, mut active_pid, mut confirmed, mut restart) = (0, 0, 0, 0);
    let (mut invalidated, mut logical, mut two_phase) = (false, false, false);
    let mut plugin = [0; 64];
    // SAFETY: a terminated name, and words on our stack; the plugin's name has at most 64 bytes.
    let found = unsafe {
        postern_slot(
            name.as_ptr(),
            &raw mut database,
            &raw mut active_pid,
            &raw mut confirmed,
            &raw mut restart,
            &raw mut invalidated,
            &raw mut logical,
            &raw mut two_phase,
            plugin.as_mut_ptr(),
        )
    };
    found.then(|| Slot {
        database,
        active_pid,
        confirmed: Lsn(confirmed),
        restart: Lsn(restart),
        invalidated,
        logical,
        two_phase,
        // SAFETY: terminated by strlcpy.
        plugin: unsafe { CStr::from_ptr(plugin.as_ptr()) }.to_string_lossy().into_owned(),
    })
}

/// Bytes of WAL that the server keeps for a slot.
pub(super) fn retained(name: &str) -> Option<u64> {
    let slot = slot(name).filter(|slot| !slot.invalidated && slot.restart != Lsn(0))?;
    // SAFETY: reads a position in shared memory.
    let written = unsafe { pg_sys::GetXLogWriteRecPtr() };
    Some(written.saturating_sub(slot.restart.0))
}

/// `wal_level`, where it does not do for decoding.
pub(super) fn low_wal_level() -> Option<&'static str> {
    use pg_sys::WalLevel::{WAL_LEVEL_LOGICAL, WAL_LEVEL_REPLICA};
    // SAFETY: an int setting that does not change while the server runs.
    match unsafe { pg_sys::wal_level } {
        level if level >= WAL_LEVEL_LOGICAL as i32 => None,
        level if level >= WAL_LEVEL_REPLICA as i32 => Some("replica"),
        _ => Some("minimal"),
    }
}

/// Makes a slot of pgoutput; in a transaction that has written nothing. Waits until transactions that are running have ended. Raises the
/// server's own errors (wal_level, max_replication_slots, the name).
pub(super) fn create_slot(name: &str, failover: bool) -> Lsn {
    let name = CString::new(name).unwrap_or_default();
    // SAFETY: a terminated name; by the caller.
    Lsn(unsafe { postern_slot_create(name.as_ptr(), true, false, failover) })
}

/// Makes a slot for a moment, only for its snapshot: from here on the transaction, which has done nothing yet, sees exactly what was
/// committed before the position that is returned. Drop it by [`drop_slot`] afterwards.
pub(super) fn take_snapshot(name: &str) -> Lsn {
    let name = CString::new(name).unwrap_or_default();
    // SAFETY: a terminated name; sets words of a transaction that has taken no snapshot.
    unsafe {
        postern_repeatable_read();
        Lsn(postern_slot_create(name.as_ptr(), false, true, false))
    }
}

/// Calls back for each row that a query gives, with its columns as text in UTF-8; the query is in the encoding of what is decoded.
/// Connected to SPI. An error that the call back raises ends it.
pub(super) fn copy_rows(query: Vec<u8>, mut row: impl FnMut(&[Option<&[u8]>])) {
    type Call<'a> = dyn FnMut(&[Option<&[u8]>]) + 'a;
    struct Row<'a> {
        row: &'a mut Call<'a>,
    }
    #[pg_guard]
    unsafe extern "C-unwind" fn call(context: *mut c_void, columns: c_int, values: *const *const c_char) {
        // SAFETY: the struct below, and as many terminated strings or nulls as there are columns, for the time of the call.
        unsafe {
            let context = &mut *context.cast::<Row<'_>>();
            let count = usize::try_from(columns).unwrap_or(0);
            let values: Vec<_> = std::slice::from_raw_parts(values, count)
                .iter()
                .map(|value| (!value.is_null()).then(|| CStr::from_ptr(*value).to_bytes()))
                .collect();
            (context.row)(&values);
        }
    }
    let query = CString::new(query).unwrap_or_default();
    let mut context = Row { row: &mut row };
    // SAFETY: a terminated query, and `call` takes what it is given.
    unsafe { postern_copy_rows(query.as_ptr(), call, (&raw mut context).cast()) }
}

/// Runs one statement of SQL; false when it is not one, or more. Connected to SPI. Raises the server's own errors.
pub(super) fn execute_one(statement: &str) -> bool {
    // A zero byte ends nothing: there is none in what came from the server.
    CString::new(statement).is_ok_and(|statement| {
        // SAFETY: a terminated text, in a transaction.
        unsafe { postern_execute_one(statement.as_ptr()) }
    })
}

/// A name as SQL has it.
pub(super) fn quoted(name: &[u8]) -> Vec<u8> {
    let mut quoted = vec![b'"'];
    for byte in name {
        quoted.extend_from_slice(if *byte == b'"' { b"\"\"" } else { std::slice::from_ref(byte) });
    }
    quoted.push(b'"');
    quoted
}

/// The receiver hears what a type is that is not built in.
pub(super) fn tell_type(type_oid: u32) {
    // SAFETY: in a transaction.
    unsafe { postern_tell_type(type_oid) }
}

/// Drops a slot that nobody has; else raises the server's own error.
pub(super) fn drop_slot(name: &str) {
    let name = CString::new(name).unwrap_or_default();
    // SAFETY: a terminated name.
    unsafe { postern_slot_drop(name.as_ptr()) }
}

/// Until a worker sets other handlers: a SIGTERM ends it, also while the server waits for something (transactions, before a slot begins).
pub(super) fn end_on_sigterm() {
    // SAFETY: at the top of a worker.
    unsafe { postern_end_on_sigterm() }
}

/// From here on a SIGTERM is [`is_terminated`], and ends what the server is doing by an error, as a cancel does.
pub(super) fn cancel_on_sigterm() {
    // SAFETY: at the top of a worker.
    unsafe { postern_cancel_on_sigterm() }
}

/// Whether there has been a SIGTERM since the worker has set a handler that only takes note of it.
pub(super) fn is_terminated() -> bool {
    // SAFETY: a word of this process, which its signal handlers set.
    unsafe { (&raw const pg_sys::ShutdownRequestPending).read_volatile() != 0 }
}

/// After an error of the server's was caught: what it held is let go.
pub(super) fn after_error() {
    // SAFETY: at the top of a worker.
    unsafe { postern_after_error() }
}

/// What this transaction writes is left out by every stream.
pub(super) fn hide_transaction(hide: bool) {
    // SAFETY: sets a word.
    unsafe { postern_hide_transaction(hide) }
}

/// Every database that can be connected to. In a transaction of a process without a database.
pub(super) fn databases() -> Vec<(u32, String)> {
    unsafe extern "C-unwind" fn found(context: *mut c_void, database: u32, name: *const c_char) {
        // SAFETY: the vector below, and a terminated name.
        unsafe {
            let list = &mut *context.cast::<Vec<(u32, String)>>();
            list.push((database, CStr::from_ptr(name).to_string_lossy().into_owned()));
        }
    }
    let mut list: Vec<(u32, String)> = Vec::new();
    // SAFETY: `found` takes what it is given.
    unsafe { postern_databases(found, (&raw mut list).cast()) }
    list
}

/// Whether nobody can connect to a database at the moment. In a transaction.
pub(super) fn is_locked(database: u32) -> bool {
    // SAFETY: in a transaction, by the caller.
    unsafe { postern_database_is_locked(database) }
}

/// Who takes what is decoded. Called amid the server's own decoding: errors that are raised end the round.
pub(super) trait Receiver {
    fn message(&mut self, transaction: Replayed, lsn: Lsn, data: &[u8]);
    fn described(&mut self, oid: u32, described: &RawType);
    /// The columns of the primary key of a table with REPLICA IDENTITY FULL that was described just now, a zero byte after each.
    fn key(&mut self, relation: u32, names: &[u8]);
    /// When this change was made there was no such publication.
    fn unpublished(&mut self, lsn: Lsn);
    fn commit(&mut self, transaction: Replayed);
    /// Time passes without a change.
    fn goes_on(&mut self);
}

/// The one receiver of the process.
struct Place(RefCell<Option<Box<dyn Receiver>>>);

// SAFETY: a stream worker decodes on its main thread only.
unsafe impl Sync for Place {}

static PLACE: Place = Place(RefCell::new(None));

fn with_receiver(act: impl FnOnce(&mut dyn Receiver)) {
    // Nobody else has it: decoding does not call back into itself.
    if let Ok(mut receiver) = PLACE.0.try_borrow_mut()
        && let Some(receiver) = receiver.as_deref_mut()
    {
        act(receiver);
    }
}

/// From here on this hears what is decoded.
pub(super) fn receive(receiver: Box<dyn Receiver>) {
    *PLACE.0.borrow_mut() = Some(receiver);
}

/// Begins to decode what the slot has not confirmed. Outside a transaction.
pub(super) fn begin(slot: &str, publication: &str, messages: bool) {
    let (slot, publication) =
        (CString::new(slot).unwrap_or_default(), CString::new(publication).unwrap_or_default());
    // SAFETY: terminated strings; at the top of a worker.
    unsafe { postern_decoding_begin(slot.as_ptr(), publication.as_ptr(), messages) }
}

/// Decodes at most so many records. How far that is, and whether there is more.
pub(super) fn step(records: i32) -> (Lsn, bool) {
    let mut more = false;
    // SAFETY: after `begin`, outside a transaction.
    let lsn = unsafe { postern_decoding_step(records, &raw mut more) };
    (Lsn(lsn), more)
}

/// What was committed before this is never wanted again.
pub(super) fn confirm(lsn: Lsn) {
    // SAFETY: after `begin`.
    unsafe { postern_decoding_confirm(lsn.0) }
}

/// Lets the slot go.
pub(super) fn end() {
    // SAFETY: looks itself whether there is one.
    unsafe { postern_decoding_end() }
}

#[pg_guard]
#[unsafe(no_mangle)]
extern "C-unwind" fn postern_decoded(
    transaction: *const Replayed,
    lsn: u64,
    data: *const c_char,
    length: usize,
) {
    // SAFETY: by decoding.c, for the time of the call.
    let (transaction, data) =
        unsafe { (*transaction, std::slice::from_raw_parts(data.cast::<u8>(), length)) };
    with_receiver(|receiver| receiver.message(transaction, Lsn(lsn), data));
}

#[pg_guard]
#[unsafe(no_mangle)]
extern "C-unwind" fn postern_decoded_type(oid: u32, described: *const RawType) {
    // SAFETY: as above.
    let described = unsafe { &*described };
    with_receiver(|receiver| receiver.described(oid, described));
}

#[pg_guard]
#[unsafe(no_mangle)]
extern "C-unwind" fn postern_decoded_key(relation: u32, names: *const c_char, length: usize) {
    // SAFETY: as above.
    let names = unsafe { std::slice::from_raw_parts(names.cast::<u8>(), length) };
    with_receiver(|receiver| receiver.key(relation, names));
}

#[pg_guard]
#[unsafe(no_mangle)]
extern "C-unwind" fn postern_decoded_unpublished(lsn: u64) {
    with_receiver(|receiver| receiver.unpublished(Lsn(lsn)));
}

#[pg_guard]
#[unsafe(no_mangle)]
extern "C-unwind" fn postern_decoded_commit(transaction: *const Replayed) {
    // SAFETY: as above.
    let transaction = unsafe { *transaction };
    with_receiver(|receiver| receiver.commit(transaction));
}

#[pg_guard]
#[unsafe(no_mangle)]
extern "C-unwind" fn postern_decoding_goes_on() {
    with_receiver(|receiver| receiver.goes_on());
}
