//! A client's settings: reading what its session has, and bringing a backend from one client's to the next one's, in-process.
//! Pooled backends.
//!
//! Two layers make a session: the base, which RESET returns to (what ALTER ROLE and ALTER DATABASE gave it at its login, and its
//! startup options), and what it has SET since. Under both is the server's own value, which every session of the backend shares; it is
//! kept for each setting that a base may cover, because the server forgets it.

use super::super::{shim, versions};
use crate::pooler::state::{Setting, Settings, Startup, Statement};
use pgrx::prelude::*;
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int};

type Variable = *mut pg_sys::config_generic;

/// Settings of one transaction. Of a SET nothing is left afterwards but that there was one, which pg_settings shows.
const OF_A_TRANSACTION: [&[u8]; 3] =
    [b"transaction_isolation", b"transaction_read_only", b"transaction_deferrable"];

/// Has no value to come back to.
const NOT_CARRIED: &[u8] = b"seed";

/// Settings of the server's own whose check looks at a catalog, so they need a transaction. An extension's may as well.
const NEED_TRANSACTION: [&[u8]; 7] = [
    b"role",
    b"session_authorization",
    b"default_tablespace",
    b"temp_tablespaces",
    b"default_table_access_method",
    b"default_text_search_config",
    b"client_encoding",
];

/// Settings that decide what the names in a statement mean. When they change, the server analyses the statement again.
const NAMES_BY: [&CStr; 2] = [c"search_path", c"row_security"];

/// Settings by which the literals in a statement are read, once and for all when it is parsed.
const LITERALS_BY: [&CStr; 11] = [
    c"DateStyle",
    c"IntervalStyle",
    c"TimeZone",
    c"timezone_abbreviations",
    c"standard_conforming_strings",
    c"backslash_quote",
    c"transform_null_equals",
    c"array_nulls",
    c"xmloption",
    c"lc_monetary",
    c"default_text_search_config",
];

/// What a plan of a statement depends on beside its text: hashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Environment {
    pub literals: u64,
    /// Names, and the role.
    pub names: u64,
}

impl Environment {
    /// As far as a statement depends on it: one without a quoted literal and without NULL (transform_null_equals) is read the same
    /// by all settings of [`LITERALS_BY`].
    pub fn of(self, text: &[u8]) -> Self {
        Self { literals: if Self::has_literals(text) { self.literals } else { 0 }, names: self.names }
    }

    /// As far as a statement depends on it that has been read before.
    pub fn at(self, statement: &Statement<'_>) -> Self {
        Self { literals: statement.literals, names: self.names }
    }

    pub fn has_literals(text: &[u8]) -> bool {
        let quotes = |pair: &[u8]| pair[0] == b'$' && !pair[1].is_ascii_digit();
        text.contains(&b'\'')
            || text.windows(2).any(quotes)
            || text.windows(4).any(|word| word.eq_ignore_ascii_case(b"null"))
    }
}

/// The server's own value of a setting, under every client's.
struct Own {
    value: Option<CString>,
    source: pg_sys::GucSource::Type,
    context: pg_sys::GucContext::Type,
    role: pg_sys::Oid,
}

/// Why a client cannot be brought back.
#[derive(Debug)]
pub(super) struct Refused(pub String);

pub(super) struct SessionSettings {
    own: HashMap<CString, Own>,
    /// How many settings there were when all of them were in it.
    known: c_int,
    /// The settings that clients are told of, in the server's order.
    reported: Vec<Variable>,
    /// How many settings there were when they were listed.
    listed: c_int,
    literals_by: Vec<Variable>,
    names_by: Vec<Variable>,
    reloaded_at: i64,
}

impl SessionSettings {
    /// Keeps the server's own values. Before the session's base is applied, that is before authentication is over.
    pub fn before_login() -> Self {
        let mut own = HashMap::new();
        for variable in variables() {
            // SAFETY: one of the server's settings.
            unsafe { own.insert(name(variable).to_owned(), Own::of(variable)) };
        }
        Self {
            own,
            known: 0,
            reported: Vec::new(),
            listed: 0,
            literals_by: Vec::new(),
            names_by: Vec::new(),
            reloaded_at: 0,
        }
    }

    /// Once the session stands: where its base covers nothing the login has settled what the server's own value is. Lists what is
    /// looked at often.
    pub fn after_login(&mut self) {
        self.learn(true);
        self.list();
        self.reloaded_at = reload_time();
    }

    /// Keeps the server's own values as far as nothing covers them: of settings that are not known yet, or of all.
    fn learn(&mut self, all: bool) {
        for variable in variables() {
            // SAFETY: one of the server's settings.
            unsafe {
                if !in_base(variable) && (all || !self.own.contains_key(name(variable))) {
                    self.own.insert(name(variable).to_owned(), Own::of(variable));
                }
            }
        }
        // SAFETY: an int.
        self.known = unsafe { pg_sys::GetNumConfigOptions() };
    }

    fn list(&mut self) {
        // SAFETY: settings of the server.
        unsafe {
            self.listed = pg_sys::GetNumConfigOptions();
            let reported = |v: &Variable| (**v).flags & pg_sys::GUC_REPORT as c_int != 0;
            self.reported = variables().filter(reported).collect();
            let among = |v: &Variable, names: &[&CStr]| {
                names.iter().any(|n| name(*v).to_bytes().eq_ignore_ascii_case(n.to_bytes()))
            };
            self.literals_by = variables().filter(|v| among(v, &LITERALS_BY)).collect();
            self.names_by = variables().filter(|v| among(v, &NAMES_BY)).collect();
        }
    }

    /// The session as it is now, as [`crate::pooler::state::encode_settings`] makes it.
    ///
    /// `before` is what the client had: a custom setting of its own that it has reset stays known to it.
    pub fn read(&mut self, before: &[u8]) -> Vec<u8> {
        // SAFETY: an int.
        if self.listed != unsafe { pg_sys::GetNumConfigOptions() } {
            self.list();
        }
        let known = match crate::pooler::state::decode_settings(before) {
            Some(Settings::Session { session, .. }) => session,
            _ => Vec::new(),
        };
        let custom = |name: &[u8]| name.contains(&b'.') && known.iter().any(|s| s.name == name);
        let mut base = Vec::new();
        let mut session = Vec::new();
        for variable in variables() {
            // SAFETY: one of the server's settings.
            unsafe {
                let v = &*variable;
                if in_base(variable)
                    && let Some(value) = text(variable, true)
                {
                    base.push((variable, value, v.reset_source, v.reset_scontext, v.reset_srole));
                }
                if v.source == pg_sys::GucSource::PGC_S_SESSION
                    && name(variable).to_bytes() != NOT_CARRIED
                    && let Some(value) = text(variable, OF_A_TRANSACTION.contains(&name(variable).to_bytes()))
                {
                    session.push((variable, value, v.source, v.scontext, v.srole));
                } else if v.source == pg_sys::GucSource::PGC_S_DEFAULT
                    && v.flags & pg_sys::GUC_CUSTOM_PLACEHOLDER as c_int != 0
                    && custom(name(variable).to_bytes())
                {
                    session.push((variable, CString::default(), v.source, v.scontext, v.srole));
                }
            }
        }
        // SAFETY: names live as long as their settings; the reported values are copied before anything changes them.
        unsafe {
            let as_settings = |list: &'_ [Carried]| -> Vec<Setting<'_>> {
                list.iter()
                    .map(|(variable, value, source, context, role)| Setting {
                        name: name(*variable).to_bytes(),
                        // SAFETY: the list outlives the settings made of it.
                        value: std::slice::from_raw_parts(value.as_ptr().cast(), value.as_bytes().len()),
                        source: *source,
                        context: *context,
                        role: role.to_u32(),
                    })
                    .collect()
            };
            let told = self
                .reported
                .iter()
                .map(|v| {
                    let told = (**v).last_reported;
                    if told.is_null() { &b""[..] } else { CStr::from_ptr(told).to_bytes() }
                })
                .collect();
            let settings =
                Settings::Session { base: as_settings(&base), session: as_settings(&session), told };
            crate::pooler::state::encode_settings(&settings)
        }
    }

    /// What the session's statements depend on now.
    pub fn environment(&self) -> Environment {
        let hashed = |variables: &[Variable], more: u32| {
            let mut bytes = Vec::with_capacity(256);
            for variable in variables {
                // SAFETY: one of the server's settings.
                unsafe { put_value(*variable, &mut bytes) };
                bytes.push(0);
            }
            bytes.extend(more.to_le_bytes());
            crate::pooler::state::hash(&bytes)
        };
        // SAFETY: a word of the session.
        let role = unsafe { pg_sys::GetUserId() }.to_u32();
        Environment { literals: hashed(&self.literals_by, 0), names: hashed(&self.names_by, role) }
    }

    /// What brings the settings of the last client to those of the next.
    pub fn steps<'a>(&self, from: &'a Settings<'a>, to: &'a Settings<'a>) -> Steps<'a> {
        let lists = |settings: &'a Settings<'a>| -> (&'a [Setting<'a>], &'a [Setting<'a>]) {
            match settings {
                Settings::Session { base, session, .. } => (base, session),
                Settings::Startup(_) => (&[], &[]),
            }
        };
        let ((from_base, from_session), (to_base, to_session)) = (lists(from), lists(to));
        let stays = |setting: &Setting<'_>, list: &[Setting<'_>]| list.contains(setting);
        // Back to the base: who the client is first, because it decides what may be set.
        let mut back: Vec<_> = from_session.iter().filter(|s| !stays(s, to_session)).collect();
        back.retain(|s| !OF_A_TRANSACTION.contains(&s.name) && s.source != KNOWN);
        back.sort_by_key(|s| !is_identity(s.name));
        let lower: Vec<_> = from_base.iter().filter(|s| !stays(s, to_base)).collect();
        let mut raise: Vec<_> = to_base.iter().filter(|s| !stays(s, from_base)).collect();
        raise.sort_by_key(|s| identity_order(s.name));
        // A covered value may have changed in postgresql.conf while it was covered.
        let stale = reload_time() != self.reloaded_at;
        let kept: Vec<_> =
            if stale { from_base.iter().filter(|s| stays(s, to_base)).collect() } else { Vec::new() };
        // What stands over a base value goes with it when that is taken off.
        let rebased =
            |s: &Setting<'_>| [&lower, &raise, &kept].into_iter().flatten().any(|b| b.name == s.name);
        let mut forth: Vec<_> = to_session.iter().filter(|s| !stays(s, from_session) || rebased(s)).collect();
        forth.retain(|s| !OF_A_TRANSACTION.contains(&s.name));
        forth.sort_by_key(|s| identity_order(s.name));
        // A change of identity undoes and redoes the other: session_authorization resets role.
        let identity = back.iter().chain(&forth).any(|s| is_identity(s.name));
        if identity {
            back.retain(|s| !is_identity(s.name));
            forth.retain(|s| !is_identity(s.name));
            let mut all: Vec<_> = from_session.iter().filter(|s| is_identity(s.name)).collect();
            all.append(&mut back);
            back = all;
            let mut last: Vec<_> = to_session.iter().filter(|s| is_identity(s.name)).collect();
            last.sort_by_key(|s| identity_order(s.name));
            forth.append(&mut last);
        } else {
            // What is set anew need not be reset first, where no other setting has a say in it.
            back.retain(|s| {
                !(forth.iter().any(|f| f.name == s.name && f.source != KNOWN) && is_alone(s.name))
            });
        }
        Steps { back, lower, kept, stale, raise, forth }
    }

    /// Takes the steps.
    ///
    /// # Errors
    /// When a value of the next client's is refused now (its role is gone): the session is then neither's, and
    /// [`SessionSettings::read`] and another swap bring it to a next one.
    pub fn swap(&mut self, steps: Steps<'_>, to: &Settings<'_>) -> Result<(), Refused> {
        let Steps { back, lower, kept, stale, mut raise, forth } = steps;
        for setting in &back {
            reset(setting.name)?;
        }
        for setting in &lower {
            self.lower(setting.name)?;
        }
        if stale {
            // Everything that the client has is off, so the server's own values come through.
            for setting in kept {
                self.lower(setting.name)?;
                raise.push(setting);
            }
            // SAFETY: outside a transaction or in one of our own, as the server's main loop does it.
            unsafe { shim::postern_reload() };
            for (name, own) in &mut self.own {
                if let Some(variable) = find(name.to_bytes()) {
                    // SAFETY: one of the server's settings.
                    *own = unsafe { Own::of(variable) };
                }
            }
            self.reloaded_at = reload_time();
            raise.sort_by_key(|s| identity_order(s.name));
        }
        for setting in &raise {
            self.raise(setting)?;
        }
        for setting in &forth {
            if setting.source != KNOWN {
                set(setting)?;
            } else if find(setting.name).is_none() {
                set(setting)?;
                reset(setting.name)?;
            }
        }
        if let Settings::Session { told, .. } = to {
            self.tell(told);
        }
        Ok(())
    }

    /// Which of the settings of a transaction the next client has SET: the part of a swap that is done outside one.
    pub fn mark(&mut self, to: &Settings<'_>) {
        let Settings::Session { session, .. } = to else { return };
        for setting in OF_A_TRANSACTION {
            let Some(variable) = find(setting) else { continue };
            let set = session.iter().any(|s| s.name == setting);
            // SAFETY: one of the server's settings.
            unsafe {
                if ((*variable).source == pg_sys::GucSource::PGC_S_SESSION) != set {
                    shim::postern_mark_transaction_setting(variable, set);
                }
            }
        }
    }

    /// After an error amid a swap: a rollback has brought back values whose base is another client's or gone. They go back to
    /// what RESET says now.
    pub fn recover(&mut self) {
        for variable in variables() {
            // SAFETY: one of the server's settings.
            let (source, base, name) =
                unsafe { ((*variable).source, (*variable).reset_source, name(variable).to_bytes()) };
            use pg_sys::GucSource as Source;
            let session = (Source::PGC_S_GLOBAL..=Source::PGC_S_CLIENT).contains(&source)
                || source >= Source::PGC_S_INTERACTIVE;
            if source != base && session && name != NOT_CARRIED && !OF_A_TRANSACTION.contains(&name) {
                let _ = reset(name);
            }
        }
    }

    /// The client knows these values and no others; before its next ReadyForQuery it is told the differences.
    pub fn tell(&mut self, told: &[&[u8]]) {
        let mut all = false;
        for (index, variable) in self.reported.iter().enumerate() {
            // SAFETY: one of the server's settings; the text is the server's own to free.
            unsafe {
                let v = &mut **variable;
                let value = told.get(index).copied().unwrap_or_default();
                let same = !v.last_reported.is_null() && CStr::from_ptr(v.last_reported).to_bytes() == value;
                if !same {
                    versions::set_last_reported(v, CString::new(value).ok().as_deref());
                    // The server looks by itself at what has just been set.
                    all |= v.status & GUC_NEEDS_REPORT == 0;
                }
            }
        }
        if all {
            // SAFETY: a flag of shim.c.
            unsafe { shim::postern_seen.report = true };
        }
    }

    /// Forgets what the last client was told, so that the next one is told everything.
    pub fn tell_nothing(&mut self) {
        for variable in &self.reported {
            // SAFETY: one of the server's settings.
            unsafe { versions::set_last_reported(&mut **variable, None) };
        }
    }

    /// A client that has just logged in: its role's and database's settings as they are now, and its own options. In a transaction.
    ///
    /// Raises the server's own error for an option that it refuses.
    pub fn begin(&mut self, startup: &Startup, superuser: bool) {
        // A base covers a value from here on, so every own value that it may cover is kept: a library may have brought new ones.
        // SAFETY: an int.
        if self.known != unsafe { pg_sys::GetNumConfigOptions() } {
            self.learn(false);
        }
        let context =
            if superuser { pg_sys::GucContext::PGC_SU_BACKEND } else { pg_sys::GucContext::PGC_BACKEND };
        // SAFETY: in a transaction; terminated strings; the order is InitPostgres()'s.
        unsafe {
            if let Some(options) = startup.options.as_ref().and_then(|o| CString::new(o.clone()).ok()) {
                shim::postern_apply_options(options.as_ptr(), superuser);
            }
            for (name, value) in &startup.settings {
                let (Ok(name), Ok(value)) = (CString::new(name.clone()), CString::new(value.clone())) else {
                    continue;
                };
                pg_sys::SetConfigOption(
                    name.as_ptr(),
                    value.as_ptr(),
                    context,
                    pg_sys::GucSource::PGC_S_CLIENT,
                );
            }
            shim::postern_apply_role_settings();
        }
    }

    /// Takes a base value off: the server's own shows again.
    fn lower(&mut self, name: &[u8]) -> Result<(), Refused> {
        let Some(variable) = find(name) else { return Ok(()) };
        // One that a client's startup packet brought into being has no value of the server's under it: it is empty again.
        let nothing = Own {
            value: None,
            source: pg_sys::GucSource::PGC_S_DEFAULT,
            context: pg_sys::GucContext::PGC_INTERNAL,
            role: pg_sys::Oid::from(pg_sys::BOOTSTRAP_SUPERUSERID),
        };
        let own = CString::new(name).ok().and_then(|name| self.own.get(&name)).unwrap_or(&nothing);
        // SAFETY: one of the server's settings. Only the source of the value for RESET is written (the list of settings that
        // are not at their default follows `source`, which the server itself then lowers).
        unsafe {
            (*variable).reset_source = pg_sys::GucSource::PGC_S_DEFAULT;
            reset(name)?;
            let default = own.source == pg_sys::GucSource::PGC_S_DEFAULT;
            let value = own.value.as_deref().filter(|_| !default);
            let context = match reset_context(variable) {
                pg_sys::GucContext::PGC_SU_BACKEND => pg_sys::GucContext::PGC_SU_BACKEND,
                _ => own.context,
            };
            give((*variable).name, value, context, own.source, own.role)
        }
    }

    /// Puts a base value over the server's own.
    fn raise(&mut self, setting: &Setting<'_>) -> Result<(), Refused> {
        let name = CString::new(setting.name).map_err(|_| Refused("a name with a zero byte".to_owned()))?;
        let value =
            CString::new(setting.value).map_err(|_| Refused("a value with a zero byte".to_owned()))?;
        if !self.own.contains_key(&name)
            && let Some(variable) = find(setting.name)
        {
            // SAFETY: one of the server's settings.
            self.own.insert(name.clone(), unsafe { Own::of(variable) });
        }
        give(
            name.as_ptr(),
            Some(&value),
            trusted(setting.context),
            setting.source,
            pg_sys::Oid::from(setting.role),
        )?;
        if let Some(variable) = find(setting.name) {
            // SAFETY: one of the server's settings: who set it is what it was.
            unsafe {
                (*variable).reset_scontext = setting.context;
                (*variable).scontext = setting.context;
            }
        }
        Ok(())
    }
}

/// From one client's settings to another's.
pub(super) struct Steps<'a> {
    /// Session values that are reset.
    back: Vec<&'a Setting<'a>>,
    /// Base values that are taken off.
    lower: Vec<&'a Setting<'a>>,
    /// Base values that both have; what they cover is looked at again after a reload.
    kept: Vec<&'a Setting<'a>>,
    /// postgresql.conf was read since.
    stale: bool,
    /// Base values that are put on.
    raise: Vec<&'a Setting<'a>>,
    /// Session values that are set.
    forth: Vec<&'a Setting<'a>>,
}

impl Steps<'_> {
    fn all(&self) -> impl Iterator<Item = &Setting<'_>> {
        [&self.back, &self.lower, &self.kept, &self.raise, &self.forth].into_iter().flatten().copied()
    }

    /// Whether they need a transaction: a setting's check may look at a catalog.
    pub fn need_transaction(&self) -> bool {
        self.stale || self.all().any(|s| NEED_TRANSACTION.contains(&s.name) || is_an_extensions(s.name))
    }

    /// Whether what statements depend on may change.
    pub fn change_environment(&self) -> bool {
        let among = |s: &Setting<'_>, names: &[&CStr]| {
            names.iter().any(|name| name.to_bytes().eq_ignore_ascii_case(s.name))
        };
        self.stale || self.all().any(|s| is_identity(s.name) || among(s, &NAMES_BY) || among(s, &LITERALS_BY))
    }
}

/// A setting of a library that is loaded; a placeholder of no library's has no check.
fn is_an_extensions(name: &[u8]) -> bool {
    let placeholder =
        // SAFETY: one of the server's settings.
        |variable: Variable| unsafe { (*variable).flags & pg_sys::GUC_CUSTOM_PLACEHOLDER as c_int != 0 };
    name.contains(&b'.') && find(name).is_none_or(|variable| !placeholder(variable))
}

/// Whether a value is accepted whatever the others are: log_statement_stats and its kin exclude each other, and what an extension's
/// settings do nobody knows.
fn is_alone(name: &[u8]) -> bool {
    !name.ends_with(b"_stats") && !is_an_extensions(name)
}

/// The source of a custom setting that the session knows and that has no value: it shows as empty.
const KNOWN: u32 = pg_sys::GucSource::PGC_S_DEFAULT;

type Carried = (Variable, CString, u32, u32, pg_sys::Oid);

impl Own {
    /// # Safety
    /// One of the server's settings.
    unsafe fn of(variable: Variable) -> Self {
        // SAFETY: by the caller.
        unsafe {
            Self {
                value: text(variable, true),
                source: (*variable).reset_source,
                context: (*variable).reset_scontext,
                role: (*variable).reset_srole,
            }
        }
    }
}

/// Every setting.
fn variables() -> impl Iterator<Item = Variable> {
    versions::settings()
}

/// # Safety
/// One of the server's settings.
unsafe fn name(variable: Variable) -> &'static CStr {
    // SAFETY: by the caller; a name lives as long as its setting, and settings are not removed.
    unsafe { CStr::from_ptr((*variable).name) }
}

/// Whether the value for RESET is the session's own: of its role, its database or its startup packet.
///
/// # Safety
/// One of the server's settings.
unsafe fn in_base(variable: Variable) -> bool {
    use pg_sys::GucSource as Source;
    // SAFETY: by the caller.
    let source = unsafe { (*variable).reset_source };
    (Source::PGC_S_GLOBAL..=Source::PGC_S_CLIENT).contains(&source)
}

fn find(name: &[u8]) -> Option<Variable> {
    versions::setting(name)
}

/// The value as a text that the server reads back to the same value; `None` for a null string. `base`: the one for RESET.
///
/// # Safety
/// One of the server's settings.
unsafe fn text(variable: Variable, base: bool) -> Option<CString> {
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
unsafe fn put_value(variable: Variable, out: &mut Vec<u8>) {
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

fn is_identity(name: &[u8]) -> bool {
    name == b"role" || name == b"session_authorization"
}

/// session_authorization resets role, and what is set as another role may be refused: role goes last.
fn identity_order(name: &[u8]) -> u8 {
    match name {
        b"session_authorization" => 1,
        b"role" => 2,
        _ => 0,
    }
}

/// A context in which a value that was once accepted is accepted again.
fn trusted(context: u32) -> pg_sys::GucContext::Type {
    match context {
        pg_sys::GucContext::PGC_USERSET => pg_sys::GucContext::PGC_SUSET,
        other => other,
    }
}

/// A setting that a session may only begin with is changed as if it began.
fn reset_context(variable: Variable) -> pg_sys::GucContext::Type {
    use pg_sys::GucContext as Context;
    // SAFETY: one of the server's settings.
    match unsafe { (*variable).context } {
        Context::PGC_BACKEND | Context::PGC_SU_BACKEND => Context::PGC_SU_BACKEND,
        _ => Context::PGC_SUSET,
    }
}

/// RESET.
fn reset(name: &[u8]) -> Result<(), Refused> {
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
fn set(setting: &Setting<'_>) -> Result<(), Refused> {
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

fn give(
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

/// In `status` of a setting (src/include/utils/guc_tables.h).
const GUC_NEEDS_REPORT: c_int = 0x0004;

/// When this process last read postgresql.conf.
pub(super) fn reload_time() -> i64 {
    // SAFETY: a word of the process.
    unsafe { pg_sys::PgReloadTime }
}
