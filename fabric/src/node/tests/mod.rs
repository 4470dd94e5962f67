//! The node against real leases, indexes and caches in one process, with servers and time that the tests own.

mod basics;
#[cfg(feature = "mutants")]
mod rules;
mod world;
