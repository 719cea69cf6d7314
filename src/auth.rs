//! Client authentication as a PostgreSQL server does it, and the client's side of it for our own logins at the
//! server. Pure and sans-I/O: bodies of messages in, bodies of messages out; runs on the thread that asks.
//!
//! A login begins with a [`Claim`]: the name from the startup packet and what the catalog has for it. Its
//! [`Claim::challenge`] says which exchange is run; [`ScramServer`], [`Md5Server`] or [`Claim::password`] run
//! it. Each ends in a [`Credential`], which logs in as the same role elsewhere without the password, or in an
//! [`Error`], which has the server's own words for the client and, apart from them, what only the log may say.
//!
//! Sources: RFC 5802, 7677, 5929; PostgreSQL's auth.c, auth-sasl.c, auth-scram.c, crypt.c and fe-auth-scram.c.

#![forbid(unsafe_code)]

mod attributes;
mod claim;
mod error;
mod keys;
mod md5;
mod packet;
mod saslprep;
mod scram_client;
mod scram_server;
mod secret;

pub use claim::{Challenge, Claim, Credential, Found};
pub use error::Error;
pub use keys::{Key, ScramKeys};
pub use md5::{Md5Secret, Md5Server};
pub use packet::{MAX_PASSWORD_BODY, MAX_SASL_BODY};
pub use scram_client::{AwaitServerFinal, ScramClient, With};
pub use scram_server::{SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramServer, Step};
pub use secret::{ScramSecret, Secret};
