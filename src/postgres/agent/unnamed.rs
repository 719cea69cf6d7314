//! The unnamed statement: it survives a Sync, and the session has one for all its clients, so the client's own is kept, and brought
//! back by messages of ours before its first message is read. Pooled backends.

use super::super::{guc, shim};
use super::{Agent, Seat, statements};
use crate::pooler::state::{self, Settings};
use crate::wire::message;
use rustix::net::SendFlags;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::Ordering::*;

impl Agent {
    /// Keeps the text of the client's unnamed statement, which survives a Sync.
    pub(super) fn settle_unnamed(&mut self, seat: Seat) {
        let Some(links) = &self.links else { return };
        let slot = &self.shared.slots[seat.slot as usize];
        // SAFETY: null, or a plan source that the session has.
        let (plan, number) = unsafe { (shim::postern_unnamed(), shim::postern_unnamed_number()) };
        let anothers = number == self.unnamed_before && self.unnamed_of != Some(seat);
        if plan.is_null() || anothers {
            if slot.unnamed.load(Relaxed) != 0 {
                links.texts.free(&slot.unnamed);
            }
            if self.unnamed_of == Some(seat) {
                self.unnamed_of = None;
            }
            return;
        }
        if number == self.unnamed_before {
            return;
        }
        self.unnamed_before = number;
        // SAFETY: a complete plan source of the session.
        let bytes = unsafe { statements::unnamed(plan, self.environment.literals) };
        if links.texts.read(slot.unnamed.load(Relaxed)) != bytes
            && (bytes.len() > guc::client_state_size() || !links.texts.store(&slot.unnamed, &bytes))
        {
            links.texts.free(&slot.unnamed);
        }
        self.unnamed_of = Some(seat);
    }

    /// When the session's unnamed statement is another's and the client's first message may use its own, messages of ours bring
    /// it back first: PostgresMain() then reads those. False when that cannot be.
    pub(super) fn restore_unnamed(&mut self, seat: Seat) -> bool {
        let Some(links) = &self.links else { return false };
        let slot = &self.shared.slots[seat.slot as usize];
        // SAFETY: a word of the shim.
        let there = unsafe { !shim::postern_unnamed().is_null() };
        let wanted = slot.unnamed.load(Relaxed) != 0;
        if (self.unnamed_of == Some(seat) && there == wanted) || (!there && !wanted) {
            return true;
        }
        let replaces = matches!(self.first, Some((b'Q', _) | (b'P', Some(0))));
        if replaces {
            return true;
        }
        let mut messages = Vec::new();
        let kept = links.texts.read(slot.unnamed.load(Relaxed));
        match state::decode_statements(kept).unwrap_or_default().first() {
            Some(statement) => message::put(&mut messages, b'P', |out| {
                out.push(0);
                out.extend(statement.text);
                out.push(0);
                out.extend((statement.types.len() as u16).to_be_bytes());
                out.extend(statement.types.iter().flat_map(|oid| oid.to_be_bytes()));
            }),
            None => message::put(&mut messages, b'C', |out| out.extend(b"S\0")),
        }
        message::bodiless(&mut messages, b'S');
        let Ok((ours, its)) = std::os::unix::net::UnixStream::pair() else { return false };
        let _ = its.set_nonblocking(true);
        // A text of up to the state's size may be longer than a socket holds.
        let _ = rustix::net::sockopt::set_socket_send_buffer_size(&its, messages.len() * 2 + 4096);
        if rustix::net::send(&its, &messages, SendFlags::NOSIGNAL) != Ok(messages.len()) {
            return false;
        }
        let _ = ours.set_nonblocking(true);
        // SAFETY: an open socket until `injected`.
        unsafe {
            shim::postern_seen.mute = true;
            shim::postern_set_socket(ours.as_raw_fd());
        }
        self.injecting = Some(OwnedFd::from(ours));
        self.unnamed_of = Some(seat);
        true
    }

    /// Our own messages are answered: now the client's.
    pub(super) fn injected(&mut self) {
        let Some((seat, links)) = self.seat.zip(self.links.as_ref()) else { return };
        let kept = links.texts.read(self.shared.slots[seat.slot as usize].unnamed.load(Relaxed));
        if let Some(statement) = state::decode_statements(kept).unwrap_or_default().first() {
            // SAFETY: null, or the plan source that our own Parse has just made.
            unsafe {
                let plan = shim::postern_unnamed();
                if !plan.is_null() {
                    statements::expect_columns(plan, statement);
                }
            }
        }
        // SAFETY: a flag of the shim.
        if unsafe { shim::postern_seen.told } {
            // What was to be told to the client has gone by unheard.
            let kept = links.texts.read(self.shared.slots[seat.slot as usize].settings.load(Relaxed));
            if let Some(Settings::Session { told, .. }) = state::decode_settings(kept) {
                self.settings.tell(&told);
            }
        }
        // SAFETY: the attached client's socket.
        unsafe {
            shim::postern_set_socket(links.number(seat.slot));
            shim::postern_seen.mute = false;
            shim::postern_seen.told = false;
            self.unnamed_before = shim::postern_unnamed_number();
        }
    }
}
