//! The node against real leases, indexes and caches in one process, with servers and time that the tests own.

mod attached;
mod basics;
mod chaos;
#[cfg(feature = "mutants")]
mod rules;
#[cfg_attr(not(feature = "mutants"), allow(dead_code, reason = "some of it serves the rules' tests only"))]
mod slow;
mod slow_links;
#[cfg_attr(not(feature = "mutants"), allow(dead_code, reason = "some of it serves the rules' tests only"))]
mod world;
