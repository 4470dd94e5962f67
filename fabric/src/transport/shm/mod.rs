//! Shared memory on one host: the server makes the lease as a memfd and passes it over its Unix socket to the node.

pub mod data;
pub mod setup;

pub use data::ShmLink;
pub use setup::{ServerLease, create, map};
