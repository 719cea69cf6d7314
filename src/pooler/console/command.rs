//! From a query's text to commands: PgBouncer's, and what drivers send unasked. Words in any case, quoted names, comments,
//! several commands between semicolons; all are read before any is run, as the server does. Pure.

use super::operator::Shutdown;
use super::{Error, VERSION, parameter};
use crate::pooler::scan::{Kind, Token, Words, statements, tokens};

/// What SHOW shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Show {
    ActiveSockets,
    /// Ours, not PgBouncer's.
    Channels,
    Clients,
    Config,
    Databases,
    DnsHosts,
    DnsZones,
    Fds,
    Help,
    Lists,
    Mem,
    PeerPools,
    Peers,
    Pools,
    Servers,
    Sockets,
    State,
    Stats,
    StatsAverages,
    StatsTotals,
    Totals,
    Users,
    Version,
}

/// Every SHOW by its name.
pub(super) const SHOWS: &[(&str, Show)] = &[
    ("active_sockets", Show::ActiveSockets),
    ("channels", Show::Channels),
    ("clients", Show::Clients),
    ("config", Show::Config),
    ("databases", Show::Databases),
    ("dns_hosts", Show::DnsHosts),
    ("dns_zones", Show::DnsZones),
    ("fds", Show::Fds),
    ("help", Show::Help),
    ("lists", Show::Lists),
    ("mem", Show::Mem),
    ("peer_pools", Show::PeerPools),
    ("peers", Show::Peers),
    ("pools", Show::Pools),
    ("servers", Show::Servers),
    ("sockets", Show::Sockets),
    ("state", Show::State),
    ("stats", Show::Stats),
    ("stats_averages", Show::StatsAverages),
    ("stats_totals", Show::StatsTotals),
    ("totals", Show::Totals),
    ("users", Show::Users),
    ("version", Show::Version),
];

/// SHOW HELP's detail.
pub(super) const HELP: &str = "
\tSHOW HELP|CONFIG|DATABASES|POOLS|CLIENTS|SERVERS|USERS|VERSION
\tSHOW PEERS|PEER_POOLS
\tSHOW FDS|SOCKETS|ACTIVE_SOCKETS|LISTS|MEM|STATE
\tSHOW DNS_HOSTS|DNS_ZONES
\tSHOW STATS|STATS_TOTALS|STATS_AVERAGES|TOTALS
\tSET key = arg
\tRELOAD
\tPAUSE [<db>]
\tRESUME [<db>]
\tDISABLE <db>
\tENABLE <db>
\tRECONNECT [<db>]
\tKILL <db>
\tKILL_CLIENT <client_id>
\tSHUTDOWN
\tSHUTDOWN WAIT_FOR_SERVERS|WAIT_FOR_CLIENTS
\tWAIT_CLOSE [<db>]";

/// How much of a wrong command an error repeats, in characters.
const REPEATED: usize = 200;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Command {
    Show(Show),
    /// One row of one text column.
    Text(&'static str, &'static str),
    /// `SELECT 1`.
    Number(i32),
    Pause(Option<String>),
    Resume(Option<String>),
    Reconnect(Option<String>),
    WaitClose(Option<String>),
    Kill(String),
    Enable(String),
    Disable(String),
    KillClient(u64),
    Reload,
    Suspend,
    Shutdown(Shutdown),
    /// The setting and its value; `None` is its default.
    Set(String, Option<String>),
    /// SET of a client's own setting.
    SetIgnored,
    /// Nothing, with this tag.
    Nothing(&'static str),
    /// BEGIN or START TRANSACTION.
    Begin(&'static str),
    Commit,
    Rollback,
    /// Forgets prepared statements: one, or all. The tag.
    Forget(Option<String>, &'static str),
}

impl Command {
    /// Whether it changes something of the pooler.
    pub fn needs_admin(&self) -> bool {
        matches!(
            self,
            Self::Show(Show::Fds)
                | Self::Pause(_)
                | Self::Resume(_)
                | Self::Reconnect(_)
                | Self::WaitClose(_)
                | Self::Kill(_)
                | Self::Enable(_)
                | Self::Disable(_)
                | Self::KillClient(_)
                | Self::Reload
                | Self::Suspend
                | Self::Shutdown(_)
                | Self::Set(..)
        )
    }
}

/// What an error about `text` says is possible.
pub(super) fn possible_instead_of(text: &str) -> &'static str {
    let word = text.split(|c: char| !c.is_ascii_alphabetic()).next().unwrap_or_default();
    if word.eq_ignore_ascii_case("show") {
        "Possible are SHOW HELP, CONFIG, DATABASES, POOLS, CLIENTS, SERVERS, SOCKETS, ACTIVE_SOCKETS, LISTS, USERS, \
         STATS, STATS_TOTALS, STATS_AVERAGES, TOTALS, MEM, VERSION, STATE, FDS, DNS_HOSTS, DNS_ZONES, PEERS, \
         PEER_POOLS and CHANNELS."
    } else {
        "Possible are SHOW, SET key = value, RELOAD, PAUSE [db], RESUME [db], RECONNECT [db], WAIT_CLOSE [db], \
         KILL db, ENABLE db, DISABLE db, KILL_CLIENT id and SHUTDOWN. A name of other than letters, digits and _ \
         stands in double quotes."
    }
}

/// The commands of `query` in order; none for an empty query.
///
/// # Errors
/// [`Error::InvalidCommand`], [`Error::Unterminated`], [`Error::TakesNoParameters`], [`Error::DatabaseRequired`] or
/// [`Error::ClientId`] for the first that is none.
pub(super) fn parse(query: &str) -> Result<Vec<Command>, Error> {
    let tokens = tokens(query.as_bytes(), WORDS).collect::<Result<Vec<_>, _>>()?;
    if tokens.iter().any(|token| token.kind == Kind::Word && token.bytes.starts_with(b"$")) {
        return Err(Error::TakesNoParameters);
    }
    statements(&tokens).map(|tokens| Statement { query, tokens }.command()).collect()
}

/// Letters, digits, `_`, `.`, `$` and everything beyond ASCII: a number is a word too.
const WORDS: Words = Words { begin: of_word, go_on: of_word };

fn of_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'$') || !byte.is_ascii()
}

/// One command's tokens, at least one.
struct Statement<'a> {
    query: &'a str,
    tokens: &'a [Token],
}

impl Statement<'_> {
    fn invalid(&self) -> Error {
        Error::InvalidCommand(self.source(0).chars().take(REPEATED).collect())
    }

    /// The text as it was written, from a token on.
    fn source(&self, from: usize) -> &str {
        match (self.tokens.get(from), self.tokens.last()) {
            (Some(first), Some(last)) => self.query.get(first.start..last.end).unwrap_or_default(),
            _ => "",
        }
    }

    /// Whether these words follow, perhaps with more after them.
    fn begins(&self, words: &[&str]) -> bool {
        words.len() <= self.tokens.len()
            && self.tokens.iter().zip(words).all(|(token, word)| token.is_word(word))
    }

    fn is(&self, words: &[&str]) -> bool {
        words.len() == self.tokens.len() && self.begins(words)
    }

    fn command(&self) -> Result<Command, Error> {
        let Some(first) = self.tokens.first().filter(|first| first.kind == Kind::Word) else {
            return Err(self.invalid());
        };
        let plain = |command| if self.tokens.len() == 1 { Ok(command) } else { Err(self.invalid()) };
        match first.text().to_ascii_lowercase().as_str() {
            "show" => self.show(),
            "select" => self.select(),
            "pause" => self.database().map(Command::Pause),
            "resume" => self.database().map(Command::Resume),
            "reconnect" => self.database().map(Command::Reconnect),
            "wait_close" => self.database().map(Command::WaitClose),
            "kill" => self.needed_database().map(Command::Kill),
            "enable" => self.needed_database().map(Command::Enable),
            "disable" => self.needed_database().map(Command::Disable),
            "kill_client" => self.client().map(Command::KillClient),
            "reload" => plain(Command::Reload),
            "suspend" => plain(Command::Suspend),
            "shutdown" => self.shutdown(),
            "set" => self.set(),
            "reset" => self.reset(),
            "begin" => Ok(Command::Begin("BEGIN")),
            "start" if self.begins(&["start", "transaction"]) => Ok(Command::Begin("START TRANSACTION")),
            "commit" | "end" => Ok(Command::Commit),
            "rollback" | "abort" if self.tokens.iter().any(|token| token.is_word("to")) => {
                Ok(Command::Nothing("ROLLBACK"))
            }
            "rollback" | "abort" => Ok(Command::Rollback),
            "savepoint" => Ok(Command::Nothing("SAVEPOINT")),
            "release" => Ok(Command::Nothing("RELEASE")),
            "unlisten" => Ok(Command::Nothing("UNLISTEN")),
            "close" if self.is(&["close", "all"]) => Ok(Command::Nothing("CLOSE CURSOR ALL")),
            "discard" if self.is(&["discard", "all"]) => Ok(Command::Forget(None, "DISCARD ALL")),
            "deallocate" => self.deallocate(),
            _ => Err(self.invalid()),
        }
    }

    /// The name that may follow.
    fn database(&self) -> Result<Option<String>, Error> {
        match &self.tokens[1..] {
            [] => Ok(None),
            [name] if name.is_name() => Ok(Some(name.text().into_owned())),
            _ => Err(self.invalid()),
        }
    }

    fn needed_database(&self) -> Result<String, Error> {
        self.database()?.ok_or(Error::DatabaseRequired)
    }

    /// An id as SHOW CLIENTS shows it, or as its column `ptr` does.
    fn client(&self) -> Result<u64, Error> {
        let [id] = &self.tokens[1..] else { return Err(Error::ClientId) };
        let read = match id.text().strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => id.text().parse(),
        };
        read.map_err(|_| Error::ClientId)
    }

    fn show(&self) -> Result<Command, Error> {
        if self.is(&["show", "time", "zone"]) {
            return Ok(Command::Text("timezone", "GMT"));
        }
        if self.is(&["show", "transaction", "isolation", "level"]) {
            return Ok(Command::Text("transaction_isolation", "read committed"));
        }
        let [what] = &self.tokens[1..] else { return Err(self.invalid()) };
        if let Some(show) = shown(what) {
            return Ok(Command::Show(show));
        }
        match parameter::find(&what.text()) {
            Some((name, value)) if what.is_name() => Ok(Command::Text(name, value)),
            _ => Err(self.invalid()),
        }
    }

    /// PgBouncer takes SELECT for SHOW. A number is what drivers ask for to see whether somebody answers.
    fn select(&self) -> Result<Command, Error> {
        match &self.tokens[1..] {
            [what] => {
                if let Ok(number) = what.text().parse()
                    && what.kind == Kind::Word
                {
                    return Ok(Command::Number(number));
                }
                self.show()
            }
            [what, open, close]
                if (what.is_word("version") || what.is_word("pg_catalog.version"))
                    && open.is_symbol(b'(')
                    && close.is_symbol(b')') =>
            {
                Ok(Command::Text("version", VERSION))
            }
            _ => Err(self.invalid()),
        }
    }

    fn shutdown(&self) -> Result<Command, Error> {
        let how = match &self.tokens[1..] {
            [] => Shutdown::Immediate,
            [how] if how.is_word("wait_for_servers") => Shutdown::WaitForServers,
            [how] if how.is_word("wait_for_clients") => Shutdown::WaitForClients,
            _ => return Err(self.invalid()),
        };
        Ok(Command::Shutdown(how))
    }

    fn set(&self) -> Result<Command, Error> {
        let starts: [&[&str]; 5] = [
            &["set", "names"],
            &["set", "time", "zone"],
            &["set", "session", "time", "zone"],
            &["set", "transaction"],
            &["set", "session", "characteristics", "as", "transaction"],
        ];
        let assigns = |place: usize| {
            self.tokens.get(place).is_some_and(|token| token.is_symbol(b'=') || token.is_word("to"))
        };
        if !assigns(2) && starts.iter().any(|start| self.begins(start)) {
            return Ok(Command::SetIgnored);
        }
        let scope = ["session", "local"].iter().any(|scope| self.begins(&["set", scope])) && !assigns(2);
        let place = if scope { 2 } else { 1 };
        let (Some(key), true) = (self.tokens.get(place).filter(|key| key.is_name()), assigns(place + 1))
        else {
            return Err(self.invalid());
        };
        let value = match &self.tokens[place + 2..] {
            [] => return Err(self.invalid()),
            [value] if value.is_word("default") => None,
            [value] => Some(value.text().into_owned()),
            // `-1`, `a, b`: as written.
            _ => Some(self.source(place + 2).to_owned()),
        };
        Ok(match parameter::find(&key.text()) {
            Some(_) => Command::SetIgnored,
            None => Command::Set(setting(key), value),
        })
    }

    fn reset(&self) -> Result<Command, Error> {
        match &self.tokens[1..] {
            [all] if all.is_word("all") => Ok(Command::Nothing("RESET")),
            [key] if key.is_name() => Ok(match parameter::find(&key.text()) {
                Some(_) => Command::Nothing("RESET"),
                None => Command::Set(setting(key), None),
            }),
            _ => Err(self.invalid()),
        }
    }

    fn deallocate(&self) -> Result<Command, Error> {
        match &self.tokens[1..] {
            [name] | [_, name] if name.is_word("all") => Ok(Command::Forget(None, "DEALLOCATE ALL")),
            [name] if name.is_name() => Ok(Command::Forget(Some(name.text().into_owned()), "DEALLOCATE")),
            [prepare, name] if prepare.is_word("prepare") && name.is_name() => {
                Ok(Command::Forget(Some(name.text().into_owned()), "DEALLOCATE"))
            }
            _ => Err(self.invalid()),
        }
    }
}

fn shown(what: &Token) -> Option<Show> {
    SHOWS
        .iter()
        .find(|(name, _)| what.is_name() && what.text().eq_ignore_ascii_case(name))
        .map(|(_, show)| *show)
}

fn setting(key: &Token) -> String {
    if key.kind == Kind::Word { key.text().to_ascii_lowercase() } else { key.text().into_owned() }
}

#[cfg(test)]
mod tests;
