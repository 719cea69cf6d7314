//! The pooler: a front that logs clients in and hands their sockets to pooled backends, which serve them as their own.
//! Everything here runs on the front's network threads or is pure; what runs inside the pooled backends is
//! `postgres::agent`, and what the two share stands in [`shared`].

#![forbid(unsafe_code)]

pub mod console;
pub mod control;
pub mod shared;
pub mod slot;
pub mod state;
