//! One setting as the server keeps it: finding it, reading its values, setting and resetting it. Pooled backends.

use super::Refused;
use crate::pooler::state::Setting;
use crate::postgres::versions;
use pgrx::prelude::*;
use std::ffi::{CStr, CString, c_char, c_int};

pub(super) type Variable = *mut pg_sys::config_generic;

/// Every setting.
pub(super) fn variables() -> impl Iterator<Item = Variable> {
    versions::settings()
}

/// # Safety
/// One of the server's settings.
pub(super) unsafe fn name(variable: Variable) -> &'static CStr {
    // SAFETY: by the caller; a name lives as long as its setting, and settings are not removed.
    unsafe { CStr::from_ptr((*variable).name) }
}

/// Whether the value for RESET is the session's own: of its role, its database or its startup packet.
///
/// # Safety
/// One of the server's settings.
pub(super) unsafe fn in_base(variable: Variable) -> bool {
    use pg_sys::GucSource as Source;
    // SAFETY: by the caller.
    let source = unsafe { (*variable).reset_source };
    (Source::PGC_S_GLOBAL..=Source::PGC_S_CLIENT).contains(&source)
}

pub(super) fn find(name: &[u8]) -> Option<Variable> {
    versions::setting(name)
}

/// The value as a text that the server reads back to the same value; `None` for a null string. `base`: the one for RESET.
///
/// # Safety
/// One of the server's settings.
pub(super) unsafe fn text(variable: Variable, base: bool) -> Option<CString> {
    use pg_sys::config_type as Type;
    // SAFETY: by the caller; the kind says which struct it is.
    unsafe {
        let text = match (*variable).vartype {
            Type::PGC_BOOL => {
                let v = &*variable.cast::<pg_sys::config_bool>();
                (if base { v.reset_val } else { *v.variable }).to_string()
            }
            Type::PGC_INT => {
                let v = &*variable.cast::<pg_sys::config_int>();
                (if base { v.reset_val } else { *v.variable }).to_string()
            }
            Type::PGC_REAL => {
                let v = &*variable.cast::<pg_sys::config_real>();
                // Rust prints as many digits as it takes to read the same number back.
                (if base { v.reset_val } else { *v.variable }).to_string()
            }
            Type::PGC_ENUM => {
                let v = variable.cast::<pg_sys::config_enum>();
                let value = if base { (*v).reset_val } else { *(*v).variable };
                return Some(CStr::from_ptr(pg_sys::config_enum_lookup_by_value(v, value)).to_owned());
            }
            _ => {
                let v = &*variable.cast::<pg_sys::config_string>();
                let value = if base { v.reset_val } else { *v.variable };
                return (!value.is_null()).then(|| CStr::from_ptr(value).to_owned());
            }
        };
        CString::new(text).ok()
    }
}

/// The value as bytes that are another value's only if that is the same.
///
/// # Safety
/// One of the server's settings, of a kind that is a word or a text.
pub(super) unsafe fn put_value(variable: Variable, out: &mut Vec<u8>) {
    use pg_sys::config_type as Type;
    // SAFETY: by the caller; the kind says which struct it is.
    unsafe {
        match (*variable).vartype {
            Type::PGC_BOOL => out.push(u8::from(*(*variable.cast::<pg_sys::config_bool>()).variable)),
            Type::PGC_INT => out.extend((*(*variable.cast::<pg_sys::config_int>()).variable).to_le_bytes()),
            Type::PGC_ENUM => out.extend((*(*variable.cast::<pg_sys::config_enum>()).variable).to_le_bytes()),
            Type::PGC_REAL => out.extend((*(*variable.cast::<pg_sys::config_real>()).variable).to_le_bytes()),
            _ => {
                let text = *(*variable.cast::<pg_sys::config_string>()).variable;
                if !text.is_null() {
                    out.extend(CStr::from_ptr(text).to_bytes());
                }
            }
        }
    }
}

pub(super) fn is_identity(name: &[u8]) -> bool {
    name == b"role" || name == b"session_authorization"
}

/// session_authorization resets role, and what is set as another role may be refused: role goes last.
pub(super) fn identity_order(name: &[u8]) -> u8 {
    match name {
        b"session_authorization" => 1,
        b"role" => 2,
        _ => 0,
    }
}

/// A context in which a value that was once accepted is accepted again.
pub(super) fn trusted(context: u32) -> pg_sys::GucContext::Type {
    match context {
        pg_sys::GucContext::PGC_USERSET => pg_sys::GucContext::PGC_SUSET,
        other => other,
    }
}

/// A setting that a session may only begin with is changed as if it began.
pub(super) fn reset_context(variable: Variable) -> pg_sys::GucContext::Type {
    use pg_sys::GucContext as Context;
    // SAFETY: one of the server's settings.
    match unsafe { (*variable).context } {
        Context::PGC_BACKEND | Context::PGC_SU_BACKEND => Context::PGC_SU_BACKEND,
        _ => Context::PGC_SUSET,
    }
}

/// RESET.
pub(super) fn reset(name: &[u8]) -> Result<(), Refused> {
    let context = find(name).map_or(pg_sys::GucContext::PGC_SUSET, reset_context);
    let name = CString::new(name).map_err(|_| Refused("a name with a zero byte".to_owned()))?;
    give(
        name.as_ptr(),
        None,
        context,
        pg_sys::GucSource::PGC_S_SESSION,
        pg_sys::Oid::from(pg_sys::BOOTSTRAP_SUPERUSERID),
    )
}

/// SET, and who set it stays who it was: else an ordinary client's placeholder would later be taken for a superuser's.
pub(super) fn set(setting: &Setting<'_>) -> Result<(), Refused> {
    let name = CString::new(setting.name).map_err(|_| Refused("a name with a zero byte".to_owned()))?;
    let value = CString::new(setting.value).map_err(|_| Refused("a value with a zero byte".to_owned()))?;
    let source = pg_sys::GucSource::PGC_S_SESSION;
    let superuser = pg_sys::Oid::from(pg_sys::BOOTSTRAP_SUPERUSERID);
    give(name.as_ptr(), Some(&value), pg_sys::GucContext::PGC_SUSET, source, superuser)?;
    if let Some(variable) = find(setting.name) {
        // SAFETY: one of the server's settings.
        unsafe {
            (*variable).scontext = setting.context;
            (*variable).srole = pg_sys::Oid::from(setting.role);
        }
    }
    Ok(())
}

pub(super) fn give(
    name: *const c_char,
    value: Option<&CStr>,
    context: pg_sys::GucContext::Type,
    source: pg_sys::GucSource::Type,
    role: pg_sys::Oid,
) -> Result<(), Refused> {
    // SAFETY: terminated strings, a source and a context of the server's own.
    let result = unsafe {
        pg_sys::set_config_option_ext(
            name,
            value.map_or(std::ptr::null(), CStr::as_ptr),
            context,
            source,
            role,
            pg_sys::GucAction::GUC_ACTION_SET,
            true,
            pg_sys::LOG as c_int,
            false,
        )
    };
    if result == 0 {
        // SAFETY: a terminated string.
        let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
        return Err(Refused(format!("parameter \"{name}\" can no longer be set to its value")));
    }
    Ok(())
}

/// When this process last read postgresql.conf.
pub(in crate::postgres::agent) fn reload_time() -> i64 {
    // SAFETY: a word of the process.
    unsafe { pg_sys::PgReloadTime }
}
