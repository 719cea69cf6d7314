//! Who the session is: its settings say so, unless a library has gone behind them. Pooled backends.

use super::SessionSettings;
use super::variable::Variable;
use pgrx::prelude::*;

/// The role that `role` or `session_authorization` has looked up for its value: the beginning of role_auth_extra
/// (src/backend/commands/variable.c).
///
/// # Safety
/// One of these two settings.
unsafe fn role_of(variable: Variable) -> pg_sys::Oid {
    // SAFETY: by the caller; null or such a struct.
    unsafe { (*variable).extra.cast::<pg_sys::Oid>().as_ref().copied().unwrap_or(pg_sys::InvalidOid) }
}

/// Whether a setting of postgresql.conf has a value that somebody has given this session only: no SET does that.
///
/// # Safety
/// One of the server's settings.
pub(super) unsafe fn is_a_librarys_doing(variable: Variable) -> bool {
    use pg_sys::GucContext as Context;
    // SAFETY: by the caller.
    let (context, source) = unsafe { ((*variable).context, (*variable).source) };
    source == pg_sys::GucSource::PGC_S_SESSION
        && matches!(context, Context::PGC_POSTMASTER | Context::PGC_SIGHUP)
}

impl SessionSettings {
    /// Whether a library has done to the session what no SET, RESET or login does, by the server's own functions, as set_user does: nothing
    /// that is carried from backend to backend says so, and what else the library keeps of it nobody knows. `login` is the role with
    /// which the backend has logged in.
    pub fn are_a_librarys(&self, login: pg_sys::Oid) -> bool {
        let Some([session_authorization, role]) = self.identity else { return true };
        // SAFETY: words of the session, and the two settings.
        unsafe {
            let (session, current) = (pg_sys::GetSessionUserId(), pg_sys::GetCurrentRoleId());
            let (named_session, named) = (role_of(session_authorization), role_of(role));
            let of_session = named_session == pg_sys::InvalidOid || named_session == session;
            // The server's own: SET SESSION AUTHORIZATION ends SET ROLE, whose setting keeps its value before 17.
            let of_role = current == pg_sys::InvalidOid || current == named;
            self.meddled
                || pg_sys::GetAuthenticatedUserId() != login
                || !(of_session && of_role && pg_sys::GetUserId() == pg_sys::GetOuterUserId())
        }
    }
}
