//! Why a client cannot listen, or is ended, and what it hears. Pure.

use super::TOO_SLOW;
use super::book::Error;
use super::shared::SOURCES;
use crate::wire::message::Report;

/// Why a client cannot listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Refusal {
    Channels = 2,
    Listens = 3,
    Databases = 4,
    /// There is no place for the database's worker.
    NoWorker = 5,
    /// The worker has ended.
    Ended = 6,
}

impl Refusal {
    pub fn of(number: u32) -> Option<Self> {
        [Self::Channels, Self::Listens, Self::Databases, Self::NoWorker, Self::Ended]
            .into_iter()
            .find(|refusal| *refusal as u32 == number)
    }

    /// What the client hears.
    pub fn report(self) -> Report {
        match self {
            Self::Channels => Report::error("53400", "too many notification channels are listened to")
                .with_hint("Raise postern.relay_max_channels and restart the server."),
            Self::Listens => Report::error("53400", "too many LISTENs are in force")
                .with_hint("Raise postern.relay_max_listens and restart the server."),
            Self::Databases => Report::error("53400", "too many databases are listened to")
                .with_hint(format!("There are relays for at most {SOURCES} databases at once.")),
            Self::NoWorker => Report::error("53400", "no background worker for the notification relay")
                .with_hint("Raise max_worker_processes and restart the server."),
            Self::Ended => Report::error("58000", "the notification relay has ended"),
        }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        match error {
            Error::Channels => Self::Channels,
            Error::Listens => Self::Listens,
            Error::Databases => Self::Databases,
        }
    }
}

/// What a client that is too slow hears.
pub fn too_slow() -> Report {
    Report::fatal(TOO_SLOW, "terminating connection because it does not read its notifications fast enough")
        .with_hint(
            "Raise postern.relay_max_backlog or postern.relay_ring_size, read notifications more often, or keep \
             transactions short.",
        )
}
