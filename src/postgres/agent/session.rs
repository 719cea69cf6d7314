//! Bringing the session from one client's to another's: a new client's own beginning, and the way back of one that was here or
//! elsewhere before. Pooled backends.

use super::super::guc::{self, PoolMode};
use super::super::shim;
use super::settings::{Environment, Refused};
use super::{Agent, Seat, Transaction};
use crate::net::tls::session::cipher;
use crate::pooler::shared::{Shared, Slot};
use crate::pooler::shown::{Authenticated, Shown};
use crate::pooler::state::{self, Settings};
use crate::wire::message::{AUTHENTICATION_OK, Report};
use pgrx::prelude::*;
use std::ffi::{CString, c_int};
use std::ptr::null;
use std::sync::atomic::Ordering::*;

impl Agent {
    /// A client's first moment in a session: its own defaults, and everything that a server says first.
    pub(super) fn welcome(&mut self, seat: Seat) {
        let slot = self.slot(seat);
        if slot.to_be_told.swap(false, Relaxed) {
            // SAFETY: a whole message to the attached client's socket, which waits there for what follows, whatever that is.
            unsafe {
                shim::postern_seen.mute = false;
                shim::postern_send(AUTHENTICATION_OK.as_ptr().cast(), AUTHENTICATION_OK.len());
                shim::postern_seen.mute = true;
            }
        }
        let Some(links) = &self.links else { return };
        let bytes = links.texts.read(slot.settings.load(Relaxed)).to_vec();
        let Some(Settings::Startup(startup)) = state::decode_settings(&bytes) else {
            // SAFETY: the attached client's: nobody else is to find it in the buffer.
            unsafe { shim::postern_flush() };
            self.hang_up();
            return;
        };
        let mut transaction = Transaction::default();
        let neutral = Settings::Session { base: Vec::new(), session: Vec::new(), told: Vec::new() };
        let from = std::mem::take(&mut self.now_settings);
        let from = state::decode_settings(&from).unwrap_or_else(|| neutral.clone());
        self.settings.mark(&neutral);
        transaction.begin();
        self.show_client(seat, &mut transaction);
        let steps = self.settings.steps(&from, &neutral);
        if let Err(Refused(why)) = self.settings.swap(steps, &neutral) {
            drop(from);
            self.now_settings = self.settings.read(&[]);
            transaction.commit();
            self.last = None;
            self.server.retire.store(true, Relaxed);
            self.dismiss(&Report::fatal("57P01", "the session's state could not be reset").with_detail(why));
            return;
        }
        drop(from);
        // What follows may fail and be rolled back; this must not be.
        transaction.commit();
        transaction.begin();
        // SAFETY: a flag of the shim, and a word of the session: warnings about stored settings go to the client.
        unsafe {
            shim::postern_seen.mute = false;
            let superuser = pg_sys::superuser_arg(pg_sys::GetSessionUserId());
            self.settings.begin(&startup, superuser);
        }
        self.pool.size.store(guc::pool_size(), Relaxed);
        if !self.now_statements.is_empty()
            && let Some(statements) = &mut self.statements
        {
            statements.swap(&[], Environment::default(), guc::max_prepared_statements(), &mut || ());
            self.now_statements.clear();
        }
        transaction.commit();
        self.settings.tell_nothing();
        // SAFETY: the attached client's socket; the session's own messages.
        unsafe {
            shim::ResetSequenceCaches();
            let key = slot.cancel_key();
            shim::postern_welcome(Shared::client_pid(seat.slot), key.as_ptr(), key.len());
            shim::postern_seen.settings = true;
            shim::postern_seen.names = false;
        }
        self.environment = self.settings.environment();
        self.last = Some(seat);
        self.settle();
        // That was no transaction of the client's.
        for count in [&slot.transactions, &self.server.transactions, &self.pool.transactions] {
            count.fetch_sub(1, Relaxed);
        }
    }

    /// From the last client's session to this one's.
    pub(super) fn swap(&mut self, seat: Seat) -> Result<(), Refused> {
        let slot = self.slot(seat);
        self.server.swaps.fetch_add(1, Relaxed);
        if self.unnamed_of == Some(seat) {
            // It may have another by now.
            self.unnamed_of = None;
        }
        self.pool.swaps.fetch_add(1, Relaxed);
        let Some(links) = &self.links else { return Ok(()) };
        let texts = links.texts;
        let mut transaction = Transaction::default();
        self.show_client(seat, &mut transaction);
        let wanted = texts.read(slot.settings.load(Relaxed));
        if wanted != self.now_settings {
            let from = std::mem::take(&mut self.now_settings);
            let lists = state::decode_settings(&from).zip(state::decode_settings(wanted));
            let Some((from, to)) = lists else {
                return Err(Refused("its settings could not be read".to_owned()));
            };
            self.settings.mark(&to);
            let steps = self.settings.steps(&from, &to);
            if steps.need_transaction() {
                transaction.begin();
            }
            let changes = steps.change_environment();
            let swapped = self.settings.swap(steps, &to);
            self.now_settings = wanted.to_vec();
            if swapped.is_err() {
                transaction.commit();
                return swapped;
            }
            if changes {
                self.environment = self.settings.environment();
            }
        }
        let wanted = texts.read(slot.statements.load(Relaxed));
        if wanted != self.now_statements
            && let Some(statements) = &mut self.statements
        {
            let most = guc::max_prepared_statements();
            statements.swap(wanted, self.environment, most, &mut || transaction.begin());
            self.now_statements = wanted.to_vec();
        }
        transaction.commit();
        // SAFETY: the session's caches, and flags of the shim: what the swap did is not the client's doing.
        unsafe {
            shim::ResetSequenceCaches();
            shim::postern_seen.settings = false;
            shim::postern_seen.names = false;
            shim::postern_seen.told = false;
            shim::postern_seen.statement_mode = guc::pool_mode() == PoolMode::statement;
        }
        Ok(())
    }

    /// pg_stat_activity, pg_stat_ssl, SYSTEM_USER and the log show the client.
    pub(super) fn show_client(&mut self, seat: Seat, transaction: &mut Transaction) {
        let slot = self.slot(seat);
        let address = slot.address.each_ref().map(|word| word.load(Relaxed));
        let (family, port) = (c_int::from(slot.family.load(Relaxed)), c_int::from(slot.port.load(Relaxed)));
        let local = slot.local_address.each_ref().map(|word| word.load(Relaxed));
        let local_port = c_int::from(slot.local_port.load(Relaxed));
        // SAFETY: four words of address each.
        unsafe { shim::postern_set_client(family, address.as_ptr(), port, local.as_ptr(), local_port) }
        let tls = slot.tls.load(Relaxed);
        let shows = (tls, tls != 0 && slot.shown.load(Relaxed) != 0);
        // Of a plain client after another there is nothing to show, nor of those who differ in nothing.
        if shows != self.shows_tls || shows.1 {
            self.show_tls(tls, slot, transaction);
            self.shows_tls = shows;
        }
        if super::super::versions::HAS_SYSTEM_USER {
            self.show_identity(slot);
        }
    }

    fn show_tls(&self, tls: u8, slot: &Slot, transaction: &mut Transaction) {
        let Some(cipher) = cipher(tls) else {
            // SAFETY: nulls: no TLS.
            unsafe { shim::postern_set_tls(0, null(), null(), null(), null(), null()) };
            return;
        };
        let shown = self.shown(slot);
        if !(shown.subject.is_ascii() && shown.issuer.is_ascii()) {
            // They are brought into the database's encoding.
            transaction.begin();
        }
        let [version, name] = [cipher.version, cipher.name].map(|name| text(name.as_bytes()));
        let [subject, serial, issuer] = [shown.subject, shown.serial, shown.issuer].map(text);
        // SAFETY: terminated strings.
        unsafe {
            shim::postern_set_tls(
                c_int::from(cipher.bits),
                version.as_ptr(),
                name.as_ptr(),
                subject.as_ptr(),
                serial.as_ptr(),
                issuer.as_ptr(),
            );
        }
    }

    fn show_identity(&self, slot: &Slot) {
        let method = slot.authenticated.load(Relaxed);
        let shown = if method >= Authenticated::Cert as u8 { self.shown(slot) } else { Shown::default() };
        let identity = text(shown.identity);
        // SAFETY: a number of `Authenticated`, and a terminated string.
        unsafe { shim::postern_set_identity(c_int::from(method), identity.as_ptr()) };
    }

    fn shown<'a>(&'a self, slot: &Slot) -> Shown<'a> {
        let bytes = self.links.as_ref().map_or(&[][..], |links| links.texts.read(slot.shown.load(Relaxed)));
        Shown::decode(bytes)
    }
}

fn text(bytes: &[u8]) -> CString {
    // What stands in a certificate behind a null is nobody's name.
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    CString::new(&bytes[..end]).unwrap_or_default()
}
