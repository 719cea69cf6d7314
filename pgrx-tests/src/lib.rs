//! The test rig: real servers that are thrown away. Runs in test, demo and benchmark programs, never in a server.
//!
//! - [`machine`]: packages, the unprivileged user, the place for everything that is written
//! - [`server`], [`debian_source`], [`wheel`]: a server of each major version, the distribution's, built from Debian's source package, or
//!   PyPI's
//! - [`installation`]: a private copy of a server with Postern in it
//! - [`debian_package`], [`clean_debian`]: the package of a major version, and a Debian to install it in
//! - [`notices`], [`reference`]: what of the documentation is made from other things
//! - [`certificate`]: what TLS needs
//! - [`cluster`]: initdb, start, stop, kill, standby, promote, the log
//! - [`haproxy`]: a real haproxy in front
//! - [`pgbouncer`]: a real PgBouncer in front, to compare with
//! - [`kafka`]: a real Apache Kafka, and kcat to see what is in it
//! - [`dice`]: chance, the same for the same seed
//! - [`drivers`]: what applications connect with: psycopg, node-postgres
//! - [`lacking`]: what was not tested because this machine lacks something
//! - [`probe`]: what a checker does: banner, agent line, HTTP
//! - [`process`], [`ports`], [`wait`]: children that never outlive us, free ports, waiting for a condition
//! - [`script`]: conversations of raw clients with a server, replayed and compared
//! - [`in_server`]: runs `#[pg_test]`s; pgrx's macro calls [`run_test`] of a crate of this name
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use pgrx_tests::cluster::{Cluster, Stop};
//! let primary = Cluster::new("primary")?.start()?;
//! let standby = primary.standby("standby")?.start()?;
//! primary.stop(Stop::Fast)?;
//! standby.promote()?;
//! assert_eq!(pgrx_tests::probe::banner(standby.banner_port)?, "MASTER");
//! # Ok(())
//! # }
//! ```

pub mod certificate;
pub mod clean_debian;
pub mod cluster;
pub mod debian_package;
pub mod debian_source;
pub mod dice;
pub mod drivers;
pub mod haproxy;
pub mod in_server;
pub mod installation;
pub mod kafka;
pub mod lacking;
pub mod machine;
pub mod notices;
pub mod pgbouncer;
pub mod ports;
pub mod probe;
pub mod process;
pub mod reference;
pub mod script;
pub mod server;
pub mod wait;
pub mod wheel;

pub use in_server::run_test;
