//! Where the server looks a prepared statement up: the agent puts the name into the session's table first. Pooled backends.

use super::settings::Environment;
use super::statements::Statements;
use super::{agent, shim};
use pgrx::prelude::*;
use std::ffi::{CStr, c_char, c_int};

/// A prepared statement's name is about to be looked up, in the middle of the server's own work.
#[pg_guard]
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn postern_agent_name(name: *const c_char) {
    // SAFETY: a terminated string, as the server's own lookup wants it.
    let name = unsafe { CStr::from_ptr(name) }.to_bytes();
    // The table has names as long as they may be, and compares no more of any.
    let name = &name[..name.len().min(pg_sys::NAMEDATALEN as usize - 1)];
    with_names(|statements, environment| statements.name(name, environment));
}

/// All names are about to be looked at.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn postern_agent_all_names() {
    with_names(Statements::name_all);
}

fn with_names(what: impl FnOnce(&mut Statements, Environment)) {
    let Some(agent) = agent() else { return };
    if let Some(statements) = &mut agent.statements {
        let mut asked = Asked::begin();
        what(statements, agent.environment);
        asked.nameless = statements.has_nameless();
    }
}

/// While names are entered: looking them up asks for none, and what their texts have to say, the client has heard when it prepared
/// them.
struct Asked {
    nameless: bool,
    client_min_messages: c_int,
}

impl Asked {
    fn begin() -> Self {
        // SAFETY: a flag of the shim and a setting, on the only thread.
        unsafe {
            shim::postern_seen.nameless = false;
            let client_min_messages = pg_sys::client_min_messages;
            pg_sys::client_min_messages = PgLogLevel::ERROR as c_int;
            Self { nameless: true, client_min_messages }
        }
    }
}

/// After an error as well, which may be caught in the client's own code: then it goes on to look for names.
impl Drop for Asked {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe {
            pg_sys::client_min_messages = self.client_min_messages;
            shim::postern_seen.nameless = self.nameless;
        }
    }
}
