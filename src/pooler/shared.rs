//! What the front, the pooled backends and the views share, as words in shared memory: clients ([`Slot`]), server
//! connections ([`Server`]), pools ([`Pool`]). All-zero bytes are a valid, empty table.
//!
//! Written by the front's main thread and network threads and by the session agents; whose word it is stands at each.

mod client;
mod orders;
mod pool;
mod server;
mod waiters;

pub use self::client::{Doom, Pin, Slot};
pub use self::orders::{Order, Orders};
pub use self::pool::Pool;
pub use self::server::{Server, ServerState};
pub use crate::bridge::now;

use crate::bridge::WorkerWords;
use crate::net::slots::Slots;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::*};

/// Pools at once: pairs of a database and a role.
pub const POOLS: usize = 512;

/// The most server connections of one pool.
pub const POOL_SIZE_MAX: usize = 512;

/// The parts that do not depend on a setting.
#[repr(C)]
#[derive(Default)]
pub struct Header {
    pub worker: WorkerWords,
    /// The postmaster had no place for the worker.
    pub no_worker_slot: AtomicU32,
    /// Counts the starts and ends of the front: what an earlier one left is not taken for this one's.
    pub epoch: AtomicU32,
    /// The epoch whose front ends and looks at idle clients for the last time: whoever lets go of one afterwards ends it.
    pub ending: AtomicU32,
    /// The number of the descriptor of slot 0, in the front and in every pooled backend.
    pub base: AtomicU32,
    /// Clients that this machine's limit of open files allows; at most the size of the table.
    pub capacity: AtomicU32,
    /// The control socket's name in the abstract namespace: "postern-" and this in hexadecimal.
    pub control: [AtomicU64; 2],
    /// The epoch of the front whose descriptors a backend was not let take. One is enough: such a try may be logged by the kernel.
    pub not_taken: AtomicU32,
    /// The dynamic shared memory that holds the clients' texts; 0 is none.
    pub texts: AtomicU32,
    /// Log lines that found the queue full.
    pub log_dropped: AtomicU64,
    pub listeners: Slots,
    /// Clients that have not finished their login.
    pub logins: AtomicU32,
    /// Some line of pg_hba.conf names a host, so clients' names are looked up before main is asked.
    pub names_hosts: AtomicBool,
    /// Replication connections that are being copied.
    pub replications: AtomicU32,
    pub orders: Orders,
    pub counters: Counters,
}

/// Counts since the server's start.
#[repr(C)]
#[derive(Default)]
pub struct Counters {
    pub clients: AtomicU64,
    pub logins_failed: AtomicU64,
    pub cancels: AtomicU64,
}

/// The mapped tables.
#[derive(Clone, Copy)]
pub struct Shared {
    pub header: &'static Header,
    pub pools: &'static [Pool],
    pub servers: &'static [Server],
    pub slots: &'static [Slot],
}

impl Shared {
    /// The connections of a pool, those too that are being opened.
    pub fn connections(&self, pool: u32) -> impl Iterator<Item = &'static Server> {
        let of =
            move |server: &&Server| server.state() != ServerState::Free && server.pool.load(Acquire) == pool;
        self.servers.iter().filter(of)
    }

    /// The slots that may have a client, with their numbers. The others are never used, and reading them would make them resident.
    pub fn slots_in_use(&self) -> impl Iterator<Item = (u32, &'static Slot)> + use<> {
        let capacity = self.header.capacity.load(Acquire) as usize;
        self.slots.iter().take(capacity).zip(0..).map(|(slot, number)| (number, slot))
    }

    /// The pid that a client of a slot is told in BackendKeyData: no process of a system that numbers them below 2^22 has it.
    pub fn client_pid(slot: u32) -> u32 {
        0x4000_0000 | slot
    }

    /// The slot of such a pid.
    pub fn slot_of_pid(pid: u32) -> Option<u32> {
        (pid & 0xc000_0000 == 0x4000_0000).then_some(pid & 0x3fff_ffff)
    }

    /// Whether server connections to a database, or to all, are not to be used.
    pub fn is_paused(&self, database: Option<&[u8]>) -> bool {
        let orders = &self.header.orders;
        orders.pause.load(Acquire) || database.is_some_and(|name| orders.has(name, Order::Pause))
    }

    /// The control socket's name in the abstract namespace.
    pub fn control_name(&self) -> String {
        let [high, low] = self.header.control.each_ref().map(|word| word.load(Relaxed));
        format!("postern-{high:016x}{low:016x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clients_pid_leads_to_its_slot() {
        assert_eq!(Shared::slot_of_pid(Shared::client_pid(9_999)), Some(9_999));
        assert_eq!(Shared::slot_of_pid(4_194_304), None);
    }
}
