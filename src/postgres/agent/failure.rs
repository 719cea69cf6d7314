//! An error of the server's while no client's query runs: who hears it, and how the backend goes on. Pooled backends.

use super::super::shim;
use super::Agent;
use super::transaction::Transaction;
use crate::wire::message::Report;
use pgrx::pg_sys::panic::CaughtError;
use pgrx::prelude::*;
use std::ffi::CStr;

impl Agent {
    /// An error of the server's in here ends the client that is attached, and no other.
    pub(super) fn failed(&mut self, error: CaughtError) {
        // SAFETY: at the top of the session, with no transaction of the client's.
        unsafe {
            shim::postern_hold_cancel();
            pg_sys::AbortOutOfAnyTransaction();
        }
        let report = shim::report(&error);
        // SAFETY: the five characters of a code, in a place of the server's that its next call overwrites.
        let code = unsafe { CStr::from_ptr(pg_sys::unpack_sql_state(report.sql_error_code() as i32)) };
        let mut told = Report::fatal(&code.to_string_lossy(), report.message());
        told.detail = report.detail().map(str::to_owned);
        told.hint = report.hint().map(str::to_owned);
        told.place = Some((
            report.file().to_owned(),
            report.line_number(),
            report.function_name().unwrap_or_default().to_owned(),
        ));
        self.dismiss(&told);
        if self.settling {
            self.leave();
        }
        // The session is somewhere between two clients.
        // SAFETY: a flag of the shim.
        unsafe { shim::postern_seen.mute = true };
        let mut transaction = Transaction::default();
        transaction.begin();
        self.settings.recover();
        transaction.commit();
        self.now_settings = self.settings.read(&[]);
        self.environment = self.settings.environment();
        if let Some(statements) = &mut self.statements {
            self.now_statements = statements.read(self.environment, false).0;
        }
        self.last = None;
        if self.links.is_none() {
            self.leave();
        }
    }

    /// Ends the attached client with an error.
    pub(super) fn dismiss(&mut self, report: &Report) {
        let bytes = report.to_bytes();
        if self.seat.is_some() {
            // SAFETY: whole messages to the attached client's socket; a failed send only marks the connection as lost.
            unsafe {
                shim::postern_seen.mute = false;
                shim::postern_send(bytes.as_ptr().cast(), bytes.len());
                shim::postern_flush();
            }
            log!("postern: client ended: {}", report.message);
            self.hang_up();
        }
    }
}
