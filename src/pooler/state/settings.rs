//! A session's settings as bytes. Pure; what the bytes are is said in `state`.

use super::{byte, number, put_number, put_text, text};

/// One setting of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting<'a> {
    pub name: &'a [u8],
    pub value: &'a [u8],
    /// The server's GucSource and GucContext of the value, and the role that set it.
    pub source: u32,
    pub context: u32,
    pub role: u32,
}

/// What a client that has just logged in brings: the rest is made of it when a backend first takes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Startup {
    /// The value of `options`.
    pub options: Option<Vec<u8>>,
    /// Names and values in the order given.
    pub settings: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A client's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settings<'a> {
    /// Logged in, and no backend has taken it yet.
    Startup(Startup),
    Session {
        /// What RESET returns to, where it is not the server's own default: sorted by name.
        base: Vec<Setting<'a>>,
        /// What the session has set: sorted by name.
        session: Vec<Setting<'a>>,
        /// The values of the reported settings as the client was last told, in the server's order of settings.
        told: Vec<&'a [u8]>,
    },
}

const STARTUP: u8 = 1;
const SESSION: u8 = 2;

/// As bytes.
pub fn encode_settings(settings: &Settings<'_>) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    match settings {
        Settings::Startup(startup) => {
            out.push(STARTUP);
            out.push(u8::from(startup.options.is_some()));
            put_text(&mut out, startup.options.as_deref().unwrap_or_default());
            put_number(&mut out, startup.settings.len() as u32);
            for (name, value) in &startup.settings {
                put_text(&mut out, name);
                put_text(&mut out, value);
            }
        }
        Settings::Session { base, session, told } => {
            out.push(SESSION);
            for list in [base, session] {
                put_number(&mut out, list.len() as u32);
                for setting in list {
                    put_text(&mut out, setting.name);
                    put_text(&mut out, setting.value);
                    put_number(&mut out, setting.source);
                    put_number(&mut out, setting.context);
                    put_number(&mut out, setting.role);
                }
            }
            put_number(&mut out, told.len() as u32);
            for value in told {
                put_text(&mut out, value);
            }
        }
    }
    out
}

/// From bytes; `None` when they are not what [`encode_settings`] makes.
pub fn decode_settings(bytes: &[u8]) -> Option<Settings<'_>> {
    let (kind, mut rest) = bytes.split_first()?;
    let rest = &mut rest;
    let settings = match *kind {
        STARTUP => {
            let has_options = byte(rest)? == 1;
            let options = text(rest)?;
            let mut settings = Vec::new();
            for _ in 0..number(rest)? {
                settings.push((text(rest)?.to_vec(), text(rest)?.to_vec()));
            }
            Settings::Startup(Startup { options: has_options.then(|| options.to_vec()), settings })
        }
        SESSION => {
            let base = list(rest)?;
            let session = list(rest)?;
            let mut told = Vec::new();
            for _ in 0..number(rest)? {
                told.push(text(rest)?);
            }
            Settings::Session { base, session, told }
        }
        _ => return None,
    };
    rest.is_empty().then_some(settings)
}

fn list<'a>(rest: &mut &'a [u8]) -> Option<Vec<Setting<'a>>> {
    let mut list = Vec::new();
    for _ in 0..number(rest)? {
        list.push(Setting {
            name: text(rest)?,
            value: text(rest)?,
            source: number(rest)?,
            context: number(rest)?,
            role: number(rest)?,
        });
    }
    Some(list)
}
