//! Shared memory on one host: the server makes the lease as a memfd and passes it over its Unix socket to the
//! node.
//!
//! [`setup`] makes and maps leases, [`data`] is the push itself, `mapping` holds all the unsafe code of this
//! transport.

pub mod data;
mod mapping;
#[cfg(test)]
mod process_tests;
pub mod setup;
#[cfg(test)]
mod tests;

pub use data::ShmLink;
pub use setup::{ServerLease, create, map};
