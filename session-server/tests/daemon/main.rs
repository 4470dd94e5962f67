//! Tests of the real daemon: one test program, so that the host's helpers are compiled once.

mod door;
mod host;
mod hosts;
mod life;
