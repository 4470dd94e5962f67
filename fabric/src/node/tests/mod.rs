//! The node against real leases, indexes and caches in one process, with servers and time that the tests own.

mod attached;
mod basics;
mod chaos;
mod crowds;
mod errands;
mod lifetimes;
mod numbers;
#[cfg(feature = "mutants")]
mod rules;
#[cfg_attr(not(feature = "mutants"), allow(dead_code, reason = "some of it serves the rules' tests only"))]
mod slow;
mod slow_links;
mod unlocked;
#[cfg_attr(not(feature = "mutants"), allow(dead_code, reason = "some of it serves the rules' tests only"))]
mod world;
