//! Switches with which tests break the front as a defect would: application_names, only in a library that was built with
//! the feature `pg_test`. Network threads.

use super::front::Front;
use super::shared::Server;
use crate::login::Login;
#[cfg(feature = "pg_test")]
use std::sync::atomic::{AtomicBool, Ordering::*};

/// The next server connection's token is written over before its backend shows it.
#[cfg(feature = "pg_test")]
static SPOIL: AtomicBool = AtomicBool::new(false);

/// Does what the name that the client gives itself asks for; any other name does nothing.
#[cfg(feature = "pg_test")]
pub(super) fn break_on_purpose(front: &Front, login: &Login) {
    let name = login.message.settings.iter().find(|(name, _)| name == b"application_name");
    match name.map(|(_, value)| &value[..]) {
        Some(b"test panic") => panic!("on purpose"),
        Some(b"test fail") => front.bridge.fail("on purpose"),
        Some(b"test token") => SPOIL.store(true, Relaxed),
        Some(b"test closed") => close_to_others(&front.bridge),
        _ => {}
    }
}

/// As a security module or a container's filter would: no other process takes a descriptor from this one any more.
#[cfg(feature = "pg_test")]
fn close_to_others(bridge: &crate::bridge::Bridge<()>) {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        bridge.fail(error.to_string());
    }
}

/// As somebody would who came late and held it for another's.
#[cfg(feature = "pg_test")]
pub(super) fn spoil(server: &Server) {
    if SPOIL.swap(false, Relaxed) {
        server.token[1].store(0, Relaxed);
    }
}

#[cfg(not(feature = "pg_test"))]
pub(super) fn break_on_purpose(_front: &Front, _login: &Login) {}

#[cfg(not(feature = "pg_test"))]
pub(super) fn spoil(_server: &Server) {}
