//! Tests on real servers. One program, so that it links once; a file a subject.

mod agent;
mod banner;
mod console;
mod drivers;
mod failover;
mod honest;
mod hostile;
mod http;
mod large;
mod lifecycle;
mod limits;
mod login;
mod opening;
mod pgbouncer;
mod pool_views;
mod pooler;
mod pooling;
mod prepared;
mod protocol;
mod relay;
mod replication;
mod rig;
mod state;
mod threads;
mod tls;
mod view;
