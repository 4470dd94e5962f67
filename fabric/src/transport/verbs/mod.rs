//! RDMA: pushes are one-sided writes of the node's network card into the server's registered memory, and no
//! processor there wakes.
//!
//! - `choose` picks device, port and GID from a plain description; `device` makes the description and opens
//!   devices; `endpoint` is what both sides tell each other over control, and the attributes of queue pairs.
//! - [`setup`] (node) and [`server`] (server) connect: one round trip over a control connection that then
//!   stands for the link's life.
//! - `channel` is what setup hands to the data path in [`data`]: a queue pair in RTS, its completion queue,
//!   the registered cache segment, and where the lease lies.
//! - `objects` owns what libibverbs gives out; it and the modules that post have the unsafe code.
//!
//! libibverbs is found at run time: without it, or without a device, [`availability`] says so and all else
//! works.

#![allow(dead_code, reason = "the data path and the daemons come next")]

mod channel;
pub mod data;
mod device;
mod objects;

pub use data::VerbsLink;

/// Work requests of a link beyond its pushes: beats and bulk reads.
const EXTRA_WRS: u32 = 32;
