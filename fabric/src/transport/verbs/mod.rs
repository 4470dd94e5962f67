//! RDMA: pushes are one-sided writes of the node's network card into the server's registered memory, and no
//! processor there wakes.
//!
//! - `choose` picks device, port and GID from a plain description, which `look` makes; `device` opens
//!   devices; `endpoint` is what both sides tell each other over control, and the attributes of queue pairs.
//! - `setup` (node: [`Opening`]) and `server` ([`Door`]) connect: one round trip over a control connection
//!   that then stands for the link's life.
//! - `channel` is what setup hands to the data path in `data`: a queue pair in RTS, its completion queue,
//!   the registered cache segment, and where the lease lies.
//! - `objects` owns what libibverbs gives out.
//!
//! The unsafe code is in `objects`, `device` and `data`. Without the feature `verbs`, `absent` has the same
//! names, so that callers need not care.
//!
//! libibverbs is found at run time: without it, or without a device, [`Verbs::availability`] says so and all
//! else works. Native InfiniBand is not tested on hardware.

#[cfg(not(feature = "verbs"))]
mod absent;
#[cfg(feature = "verbs")]
mod bulk;
#[cfg(feature = "verbs")]
mod channel;
#[cfg(feature = "verbs")]
mod choose;
#[cfg(feature = "verbs")]
mod data;
#[cfg(feature = "verbs")]
mod device;
#[cfg(feature = "verbs")]
mod endpoint;
#[cfg(feature = "verbs")]
mod engine;
#[cfg(all(test, feature = "verbs"))]
mod engine_tests;
#[cfg(feature = "verbs")]
mod error;
#[cfg(feature = "verbs")]
mod fault;
#[cfg(feature = "verbs")]
mod flight;
#[cfg(feature = "verbs")]
mod look;
#[cfg(feature = "verbs")]
mod objects;
#[cfg(feature = "verbs")]
mod requests;
#[cfg(feature = "verbs")]
mod server;
#[cfg(feature = "verbs")]
mod setup;
#[cfg(feature = "verbs")]
mod sleep;

#[cfg(not(feature = "verbs"))]
pub use absent::{Door, Opening, Verbs, VerbsLink};
#[cfg(feature = "verbs")]
pub use {data::VerbsLink, device::Verbs, server::Door, setup::Opening};

/// Names a control connection, and so one link, for its life.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PeerId(pub u64);

/// Work requests of a link beyond its pushes: beats and bulk reads.
#[cfg(feature = "verbs")]
const EXTRA_WRS: u32 = 32;
/// Work requests of a push: archive and cell.
#[cfg(feature = "verbs")]
const WRS_PER_PUSH: u32 = 2;
#[cfg(feature = "verbs")]
const _: () = assert!(crate::limits::RDMA_BULK_READS + 2 <= EXTRA_WRS, "a beat is two requests");

/// The seam below the push engine, for programs that measure the engine alone, and bare verbs.
#[cfg(feature = "verbs")]
#[doc(hidden)]
pub mod measured {
    pub use super::Bare;
    pub use super::engine::{Engine, Lease, Source};
    pub use super::requests::{Completions, Wire};
    pub use rdma_mummy_sys as sys;
}

/// What posting on a link's own queue pair needs.
#[cfg(feature = "verbs")]
#[doc(hidden)]
#[derive(Clone, Copy)]
pub struct Bare {
    /// The queue pair.
    pub qp: *mut rdma_mummy_sys::ibv_qp,
    /// Its completion queue.
    pub cq: *mut rdma_mummy_sys::ibv_cq,
    /// Key of the memory that archives are sent from.
    pub local_key: u32,
    /// The lease.
    pub memory: crate::control::message::RemoteMemory,
}
