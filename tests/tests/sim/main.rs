//! The simulation of a whole cluster: director, session servers, web nodes with several processes, browsers,
//! all running the production protocol code, on one thread, in simulated time, decided by a seed.
//!
//! `cargo x sim --seeds N` runs seeds 1 to N, `--seed S` one, with its trace.
//!
//! # Seams
//! - *Time, random bytes, process ids*: `kernel` stands in for the C library's functions, so production code
//!   is unchanged; hash maps are seeded, too. `schedule` owns time and runs *fibers*; nodes sleep by `Clock`.
//! - *Director*: `director` gives events to [`selvage_director::cluster`] and carries effects out, as its
//!   driver does, and routes by the production's table.
//! - *Servers*: `server` does that for [`selvage_session_server::decide`].
//! - *Nodes*: `node` carries out what the production's steward decides, by production's sweep, adoption,
//!   claims and links ([`selvage_fabric::node::inside`]); requests open, commit, destroy and regenerate by
//!   production code, over the traits `Clock`, `Servers` (here `node`) and `Link` (here `link`).
//! - *Kill*: a process dies where its fibers sleep: between two messages, pushes, or pieces of a push. Death
//!   inside the cache's own steps is the business of the cache's crash tests.

mod browser;
mod director;
mod fault;
mod history;
mod kernel;
mod link;
mod mutant;
mod net;
mod node;
mod request;
mod rest;
mod run;
mod schedule;
mod server;
mod world;

use std::process::ExitCode;

fn main() -> ExitCode {
    run::main()
}
