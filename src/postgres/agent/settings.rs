//! A client's settings: reading what its session has, and bringing a backend from one client's to the next one's, in-process.
//! Pooled backends.
//!
//! Two layers make a session: the base, which RESET returns to (what ALTER ROLE and ALTER DATABASE gave it at its login, and its
//! startup options), and what it has SET since. Under both is the server's own value, which every session of the backend shares; it is
//! kept for each setting that a base may cover, because the server forgets it.
//!
//! - `variable`: one setting of the server
//! - `environment`: what statements depend on
//! - `identity`: whether the settings say who the session is
//! - `steps`: from one client's settings to another's

mod environment;
mod identity;
mod steps;
mod variable;

pub(super) use self::environment::Environment;
use self::environment::{LITERALS_BY, NAMES_BY};
pub(super) use self::steps::Steps;
pub(super) use self::variable::reload_time;
use self::variable::{
    Variable, find, give, identity_order, in_base, name, reset, reset_context, set, text, trusted, variables,
};
use super::super::{shim, versions};
use crate::pooler::state::{Setting, Settings, Startup};
use pgrx::prelude::*;
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_int};

/// Settings of one transaction. Of a SET nothing is left afterwards but that there was one, which pg_settings shows.
const OF_A_TRANSACTION: [&[u8]; 3] =
    [b"transaction_isolation", b"transaction_read_only", b"transaction_deferrable"];

/// Has no value to come back to.
const NOT_CARRIED: &[u8] = b"seed";

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
    /// A library has given the session a value that only postgresql.conf can give.
    meddled: bool,
    /// session_authorization and role.
    identity: Option<[Variable; 2]>,
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
            meddled: false,
            identity: None,
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
        self.known = versions::count_settings();
    }

    fn list(&mut self) {
        // SAFETY: settings of the server.
        unsafe {
            self.listed = versions::count_settings();
            let reported = |v: &Variable| (**v).flags & pg_sys::GUC_REPORT as c_int != 0;
            self.reported = variables().filter(reported).collect();
            // In the same order in every backend: what a client was told is carried in it.
            self.reported.sort_by_key(|v| name(*v));
            self.identity = find(b"session_authorization").zip(find(b"role")).map(Into::into);
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
        if self.listed != versions::count_settings() {
            self.list();
        }
        let known = match crate::pooler::state::decode_settings(before) {
            Some(Settings::Session { session, .. }) => session,
            _ => Vec::new(),
        };
        let custom = |name: &[u8]| name.contains(&b'.') && known.iter().any(|s| s.name == name);
        let mut base = Vec::new();
        let mut session = Vec::new();
        self.meddled = false;
        for variable in variables() {
            // SAFETY: one of the server's settings.
            unsafe {
                let v = &*variable;
                self.meddled |= identity::is_a_librarys_doing(variable);
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
            // In the same order in every backend: equal states are equal bytes.
            base.sort_by_key(|carried| name(carried.0));
            session.sort_by_key(|carried| name(carried.0));
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
            // SAFETY: outside a transaction or in one of our own, with nobody's query running.
            unsafe { shim::postern_report_nothing() };
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
        for (index, variable) in self.reported.iter().enumerate() {
            // SAFETY: one of the server's settings; the text is the server's own to free. A flag of the shim.
            unsafe {
                let v = &mut **variable;
                let value = told.get(index).copied().unwrap_or_default();
                let same = !v.last_reported.is_null() && CStr::from_ptr(v.last_reported).to_bytes() == value;
                if !same {
                    versions::set_last_reported(v, CString::new(value).ok().as_deref());
                    shim::postern_seen.report = true;
                }
            }
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
        if self.known != versions::count_settings() {
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
