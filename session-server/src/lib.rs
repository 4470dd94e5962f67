//! The session server: the daemon whose memory holds the copies of sessions.
//!
//! It works on the control path only: it grants leases, seals them when a view says so, indexes what is in
//! them, and gives it to those who adopt. Pushes arrive in its memory without it.
//!
//! [`decide`] holds every decision and does no I/O. Around it: [`daemon`] starts, accepts and stops,
//! `execute` carries out effects, `leases` are the memory and who may write to it, `rdma` the way in from
//! other hosts, `door` says who gets in, `connection` serves one peer, `place` holds the name on the host
//! (lock and sockets), `placement` keeps memory and threads near the network card, `tally` counts and times.

#![forbid(unsafe_code)]

mod connection;
pub mod daemon;
pub mod decide;
mod door;
mod execute;
mod leases;
mod place;
mod placement;
mod rdma;
mod tally;
