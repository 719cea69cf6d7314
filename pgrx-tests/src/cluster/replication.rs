//! Standbys: making, following, waiting, promoting.

use super::{Cluster, Ports};
use crate::installation::run;
use crate::{machine, wait};
use anyhow::{Context, Result};
use std::fs;

impl Cluster {
    /// A streaming standby of this running server, by pg_basebackup, not started. It has a slot of its name.
    ///
    /// # Errors
    /// When the backup fails.
    pub fn standby(&self, name: &str) -> Result<Self> {
        self.standby_on(name, Ports::free()?)
    }

    /// [`Cluster::standby`] on given ports.
    ///
    /// # Errors
    /// As [`Cluster::standby`].
    pub fn standby_on(&self, name: &str, ports: Ports) -> Result<Self> {
        let standby = Self::empty(self.installation, name, ports)?;
        let slot = standby.slot();
        let mut backup = self.program("pg_basebackup");
        backup.args(["-h", &self.socket_directory().to_string_lossy(), "-p", &self.port.to_string()]);
        backup.args(["-U", "postgres", "-c", "fast", "-C", "-S", &slot, "-D"]).arg(standby.data());
        run(&mut backup)?;
        standby.write_settings()?;
        standby.follow(self)?;
        Ok(standby)
    }

    /// Makes this stopped cluster a standby of another; its slot there is made when it is missing.
    ///
    /// # Errors
    /// When the slot cannot be made.
    pub fn follow(&self, primary: &Cluster) -> Result<()> {
        let slot = self.slot();
        primary.sql(&format!(
            "SELECT pg_create_physical_replication_slot('{slot}') \
             WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = '{slot}')"
        ))?;
        self.set("primary_conninfo", &format!("host=127.0.0.1 port={} user=postgres", primary.port))?;
        self.set("primary_slot_name", &slot)?;
        let signal = self.data().join("standby.signal");
        fs::write(&signal, "")?;
        machine::give_to_server_user(&signal)
    }

    /// The replication slot of this node on whatever it follows.
    fn slot(&self) -> String {
        format!("slot_{}", self.name.replace(|c: char| !c.is_ascii_alphanumeric(), "_"))
    }

    /// Waits until this standby streams.
    ///
    /// # Errors
    /// With the end of the log, when it does not in time.
    pub fn wait_streaming(&self) -> Result<()> {
        wait::until("the standby streams", || {
            self.sql("SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'")
                .is_ok_and(|n| n == "1")
        })
        .with_context(|| self.log_tail())
    }

    /// Waits until this standby has replayed all that `primary` has written so far.
    ///
    /// # Errors
    /// When it does not in time.
    pub fn wait_caught_up(&self, primary: &Cluster) -> Result<()> {
        let written = primary.sql("SELECT pg_current_wal_lsn()")?;
        wait::until("the standby has caught up", || {
            self.sql(&format!("SELECT pg_last_wal_replay_lsn() >= '{written}'")).is_ok_and(|yes| yes == "t")
        })
    }

    /// Promotes this standby and waits until it takes writes.
    ///
    /// # Errors
    /// When it does not in time.
    pub fn promote(&self) -> Result<()> {
        self.sql("SELECT pg_promote()").map(drop)
    }
}
