//! Writing down what the client has when its transaction is over: settings, statements, what holds it here. Pooled backends.

use super::super::{guc, shim};
use super::{Agent, settings};
use crate::pooler::shared::Pin;
use crate::pooler::state;
use pgrx::prelude::*;
use std::ffi::CStr;
use std::sync::atomic::Ordering::*;

impl Agent {
    /// After postgresql.conf was read again; whether literals are read otherwise since.
    pub(super) fn look_around(&mut self) -> bool {
        let now = settings::reload_time();
        if std::mem::replace(&mut self.environment_as_of, now) == now {
            return false;
        }
        let before = std::mem::replace(&mut self.environment, self.settings.environment());
        before.literals != self.environment.literals
    }

    /// Writes down what the client has now.
    pub(super) fn settle(&mut self) {
        let reloaded = self.look_around();
        let (Some(seat), Some(links)) = (self.seat, &self.links) else { return };
        let slot = &self.shared.slots[seat.slot as usize];
        for count in [&slot.transactions, &self.server.transactions, &self.pool.transactions] {
            count.fetch_add(1, Relaxed);
        }
        // SAFETY: flags of the shim, and words of the session.
        let (settings, mut names, told) = unsafe {
            let seen = &raw mut shim::postern_seen;
            let found = ((*seen).settings, (*seen).names, (*seen).told);
            (*seen).settings = false;
            (*seen).names = false;
            (*seen).told = false;
            found
        };
        let most = guc::client_state_size();
        let mut pins = 0;
        let names_before = names;
        names |= reloaded;
        if settings || told {
            let bytes = self.settings.read(&self.now_settings);
            if bytes != self.now_settings {
                self.now_settings = bytes;
                if settings {
                    let before = std::mem::replace(&mut self.environment, self.settings.environment());
                    // Whether the statements can move depends on it.
                    names |= before.literals != self.environment.literals;
                }
                slot.settings_hash.store(0, Relaxed);
                slot.application_name.set(&application_name());
            }
        }
        let kept_pins = slot.pins.load(Relaxed);
        if names && let Some(statements) = &mut self.statements {
            let (bytes, fixed) = statements.read(self.environment, (settings || reloaded) && names_before);
            if fixed {
                pins |= Pin::StatementNotMovable as u32;
            }
            if bytes != self.now_statements {
                self.now_statements = bytes;
                slot.statements_hash.store(0, Relaxed);
            }
        } else {
            pins |= kept_pins & Pin::StatementNotMovable as u32;
        }
        // What has no hash is not kept yet; until it is, the client stays.
        for (hash, word, bytes) in [
            (&slot.settings_hash, &slot.settings, &self.now_settings),
            (&slot.statements_hash, &slot.statements, &self.now_statements),
        ] {
            if hash.load(Relaxed) != 0 {
                continue;
            }
            if bytes.len() <= most && links.texts.store(word, bytes) {
                hash.store(state::hash(bytes), Relaxed);
            } else {
                pins |= Pin::StateTooLarge as u32;
            }
        }
        self.settle_unnamed(seat);
        pins |= self.pins();
        if pins != kept_pins {
            slot.pins.store(pins, Relaxed);
        }
    }
}

fn application_name() -> Vec<u8> {
    // SAFETY: a setting of the server; null or terminated.
    unsafe {
        let name = pg_sys::GetConfigOption(c"application_name".as_ptr(), true, false);
        if name.is_null() { Vec::new() } else { CStr::from_ptr(name).to_bytes().to_vec() }
    }
}
