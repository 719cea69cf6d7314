//! Every difference between major versions, in one place.

use pgrx::prelude::*;

/// Connections that ordinary roles cannot have: `superuser_reserved_connections`, and from 16 on
/// `reserved_connections` too.
pub(super) fn reserved_connections() -> i32 {
    // SAFETY: int settings that do not change while the server runs.
    #[cfg(feature = "pg15")]
    unsafe {
        pg_sys::ReservedBackends
    }
    // SAFETY: as above.
    #[cfg(not(feature = "pg15"))]
    unsafe {
        pg_sys::SuperuserReservedConnections + pg_sys::ReservedConnections
    }
}
