//! The status answers: the banner, the agent line, and HTTP. Everything here runs on network threads, or is
//! pure; what it knows of PostgreSQL comes through the bridge as [`facts::Facts`].
//!
//! Three kinds of ports of its own, because a server-first and a client-first protocol cannot share one, and an agent
//! line must end in a newline while the banner must not; and a fourth, on which it answers for the change streams.

#![forbid(unsafe_code)]

mod agent;
mod answer;
mod banner;
mod body;
pub mod facts;
mod health;
mod http;
mod inquiry;
mod lag;
pub mod metrics;
mod sabotage;
mod serve;
pub mod shared;
mod snapshot;
mod upstream;

pub use crate::bridge::Lsn;
pub use answer::{Answer, Check, Pages, lag_of_query};
pub use health::{Health, Problem, Role};
pub use lag::{Guess, LagClock};
pub use serve::start;
pub use upstream::{Ask, AskError, AskFor, Said, SyncState, SyncUnknown, UpstreamFacts};
