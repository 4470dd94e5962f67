//! Shared memory on one host: the server passes the lease's memfd over its Unix socket to the node.
//!
//! [`setup`] maps leases, [`data`] is the push itself; [`super::memory`] has the memory.

pub mod data;
#[cfg(all(test, feature = "loom"))]
mod models;
#[cfg(test)]
mod process_tests;
pub mod setup;
#[cfg(test)]
mod tests;

pub use data::ShmLink;
pub use setup::map;
