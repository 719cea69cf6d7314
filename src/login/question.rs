//! What a login asks the PostgreSQL thread, and the answers: owned values through a bounded queue. Asked on network threads, answered on
//! main.

use crate::auth::{Challenge, Found};
use crate::pooler::limits::Activity;
use crate::pooler::listening::Facts;
use crate::pooler::state::Startup;
use crate::wire::message::Report;
use crate::wire::startup::Replication;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use tokio::sync::oneshot;

/// Questions that may wait for main. Beyond it a login is refused.
pub const QUEUE: usize = 4096;

/// Where a client comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    Tcp(SocketAddr),
    Unix,
}

impl Origin {
    /// 4, 6 or 0 for a Unix socket, the address in network order, and the port.
    pub fn words(&self) -> (u8, [u32; 4], u16) {
        let Self::Tcp(address) = self else { return (0, [0; 4], 0) };
        let mut words = [0; 4];
        let family = match address.ip() {
            IpAddr::V4(ip) => {
                words[0] = u32::from_ne_bytes(ip.octets());
                4
            }
            IpAddr::V6(ip) => {
                for (word, chunk) in words.iter_mut().zip(ip.octets().chunks_exact(4)) {
                    *word = chunk.first_chunk().map_or(0, |chunk| u32::from_ne_bytes(*chunk));
                }
                6
            }
        };
        (family, words, address.port())
    }

    /// As the server names it in errors: an address, or `[local]`.
    pub fn host(&self) -> String {
        match self {
            Self::Tcp(address) => address.ip().to_string(),
            Self::Unix => "[local]".to_owned(),
        }
    }
}

/// How pg_hba.conf wants a client to show who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Method {
    Reject,
    /// No line matches.
    NoLine,
    Trust,
    Password,
    Challenge(Challenge),
    Cert,
    Peer,
    /// One that the front does not speak, by its name.
    Other(String),
}

/// The server's verdict on a connection, and what it knows of the role.
#[derive(Debug, Clone)]
pub struct Verdict {
    pub method: Method,
    /// The line's number and text; 0 where none matches.
    pub line: (u32, String),
    /// The option `clientcert`, or the method `cert`.
    pub wants_certificate: bool,
    /// `clientcert=verify-full`: its name must be the role's, by the map.
    pub certificate_names_role: bool,
    /// `clientname=DN`.
    pub certificate_by_dn: bool,
    /// The name of a map in pg_ident.conf, or empty.
    pub map: String,
    /// What pg_authid has; `None` where there is no such role.
    pub found: Option<Found>,
    pub password_encryption: Challenge,
    /// Microseconds since 2000.
    pub now: i64,
    /// The cluster's `mock_authentication_nonce`.
    pub mock_nonce: [u8; 32],
}

/// A client that has shown who it is.
#[derive(Debug, Clone)]
pub struct Arrival {
    pub slot: u32,
    pub role: Vec<u8>,
    pub database: Vec<u8>,
    pub startup: Startup,
    /// What it has shown of itself, as bytes; empty is nothing.
    pub shown: Vec<u8>,
}

/// Where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admission {
    /// OIDs.
    pub role: u32,
    pub database: u32,
}

/// What main is asked. A reply that nobody waits for any more is dropped.
pub enum Question {
    Verdict {
        role: Vec<u8>,
        database: Vec<u8>,
        origin: Origin,
        tls: bool,
        /// The client's host name, when its address leads to a name that leads back to the address.
        host_name: Option<String>,
        replication: Replication,
        reply: oneshot::Sender<Verdict>,
    },
    /// pg_ident.conf: may the outside name be the role?
    Map { map: String, role: Vec<u8>, outside: Vec<u8>, reply: oneshot::Sender<bool> },
    /// The checks that a server makes after authentication, and a place for the client's texts.
    Admit { arrival: Arrival, reply: oneshot::Sender<Result<Admission, Report>> },
    /// May the role use the console, and how? `None` when the server has a database of the name `unless`, which is meant then.
    Console { role: Vec<u8>, unless: Option<Vec<u8>>, reply: oneshot::Sender<Result<Option<Rights>, Report>> },
    /// Names of the databases that take connections.
    Databases { reply: oneshot::Sender<Vec<Vec<u8>>> },
    /// What does a session of the role and the database begin with?
    Facts { role: u32, database: u32, reply: oneshot::Sender<Result<Facts, Report>> },
    /// Does the server recover?
    Recovers { reply: oneshot::Sender<bool> },
    /// What has become of a pool's role and database, by their OIDs?
    Standing { role: u32, database: u32, reply: oneshot::Sender<Standing> },
    /// What do the backends of server connections do? In their order; `None` for one that is gone.
    Activity { servers: Vec<u32>, reply: oneshot::Sender<Vec<Option<Activity>>> },
    /// Starts the worker of a database's relay, by the number of its source; false when there is no place for one.
    StartRelay { source: u32, turn: u32, reply: oneshot::Sender<bool> },
    /// Whether such a worker has not ended.
    RelayLives { source: u32, turn: u32, reply: oneshot::Sender<bool> },
    /// A client's slot is about to be free: its texts are not needed.
    Forget { slot: u32, reply: oneshot::Sender<()> },
}

/// A role and a database that there was a pool for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// They are there, under these names.
    There {
        role: Vec<u8>,
        database: Vec<u8>,
        /// The role may log in.
        can_login: bool,
    },
    RoleGone,
    DatabaseGone,
}

/// What a role may do in the console.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rights {
    Run,
    Read,
}

/// The threads' end of the queue.
#[derive(Clone)]
pub struct Questions {
    queue: SyncSender<Question>,
    wake: Arc<dyn Fn() + Send + Sync>,
}

/// Main is too busy, or gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many logins are waiting")]
pub struct Unanswered;

/// Makes both ends; `wake` makes main look.
pub fn questions(wake: impl Fn() + Send + Sync + 'static) -> (Questions, Receiver<Question>) {
    let (queue, receiver) = sync_channel(QUEUE);
    (Questions { queue, wake: Arc::new(wake) }, receiver)
}

impl Questions {
    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// [`Unanswered`] when the queue is full or main ends.
    pub async fn ask<T>(
        &self,
        question: impl FnOnce(oneshot::Sender<T>) -> Question,
    ) -> Result<T, Unanswered> {
        let (reply, answer) = oneshot::channel();
        self.queue.try_send(question(reply)).map_err(|_| Unanswered)?;
        (self.wake)();
        answer.await.map_err(|_| Unanswered)
    }
}
