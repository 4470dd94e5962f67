//! Sizes of a segment, and its name.

use crate::config::Config;
use crate::ident::Incarnation;
use crate::limits;

/// Transports that are told apart in the numbers of pushes.
pub const WAYS_PER_SERVER: u32 = 2;

/// Sizes and bounds of a segment; fixed for its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheSpec {
    /// The node's configured name.
    pub node: String,
    /// The node's life.
    pub incarnation: Incarnation,
    /// Entries, and slots of each lease.
    pub sessions_max: u32,
    /// Heap for archives, bytes; rounded up to whole chunks.
    pub cache_bytes: u64,
    /// Heap of each lease, bytes; of what a server grants beyond it, nothing is used.
    pub lease_bytes: u64,
    /// Lease books: twice the configured servers.
    pub books: u32,
    /// Largest archive, bytes.
    pub archive_bytes_max: u32,
    /// Processes that can be attached at once.
    pub processes_max: u32,
    /// Requests that may wait for one session.
    pub waiters_max: u32,
    /// A lock held longer than this is revoked once another waits for it, ms.
    pub lock_hold_ms: u64,
}

impl CacheSpec {
    /// The spec of a configured node's next life.
    pub fn from_config(config: &Config, node: &str, incarnation: Incarnation) -> Self {
        Self {
            node: node.to_owned(),
            incarnation,
            sessions_max: config.memory.sessions_max,
            cache_bytes: config.memory.cache_bytes,
            lease_bytes: config.memory.lease_bytes,
            books: 2 * config.servers.len() as u32,
            archive_bytes_max: config.session.archive_bytes_max as u32,
            processes_max: limits::PROCESSES_MAX as u32,
            waiters_max: config.session.waiters_max,
            lock_hold_ms: config.session.lock_hold_ms,
        }
    }

    /// Ways to servers that are told apart in its numbers: each configured server by each transport between
    /// hosts' processes.
    pub fn ways(&self) -> u32 {
        self.books.div_ceil(2) * WAYS_PER_SERVER
    }

    /// The name of the segment: `<prefix><node>-<incarnation hex>`.
    pub fn segment_name(config: &Config, node: &str, incarnation: Incarnation) -> String {
        format!("{}{node}-{:016x}", config.segment_prefix(), incarnation.0)
    }
}
