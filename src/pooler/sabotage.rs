//! A switch with which tests break the front as a defect would: an application_name, only in a library that was built with
//! the feature `pg_test`. Network threads.

use super::front::Front;
use crate::login::Login;

/// Does what the name that the client gives itself asks for; any other name does nothing.
#[cfg(feature = "pg_test")]
pub(super) fn break_on_purpose(front: &Front, login: &Login) {
    let name = login.message.settings.iter().find(|(name, _)| name == b"application_name");
    match name.map(|(_, value)| &value[..]) {
        Some(b"test panic") => panic!("on purpose"),
        Some(b"test fail") => front.bridge.fail("on purpose"),
        _ => {}
    }
}

#[cfg(not(feature = "pg_test"))]
pub(super) fn break_on_purpose(_front: &Front, _login: &Login) {}
