//! Whole clusters of real processes on this host: start, watch, kill, drive with real HTTP clients, and stop
//! without a trace.
//!
//! Used by the end-to-end tests, by `cargo x run` and `cargo x demo`, and by the side-by-side benchmark.
//! Nothing in here knows how the product works inside: it goes by the configuration file, the processes, HTTP
//! and the admin API.

pub mod admin;
pub mod claims;
pub mod client;
pub mod cluster;
pub mod guest;
pub mod load;
pub mod openmetrics;
pub mod product;
pub mod soak;
pub mod stage;
pub mod strikes;
