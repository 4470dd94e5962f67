//! The Selvage fabric: everything that web nodes, session servers and directors must agree on, and the node
//! library.
//!
//! Dependencies point one way (a tidy test holds it):
//! `node -> cache -> transport -> control -> lease -> archive -> limits, error, ident, sync`;
//! `placement` and `view` are pure and do no I/O. `ARCHITECTURE.md` has the map and the numbered invariants.

#[macro_use]
pub mod kill;

pub mod archive;
pub mod cache;
pub mod config;
pub mod control;
pub mod error;
pub mod ident;
pub mod lease;
pub mod limits;
pub mod log;
pub mod node;
pub mod numbers;
pub mod placement;
pub mod rules;
pub mod sync;
pub mod transport;
pub mod view;
