//! Clusters over several hosts, with everything between hosts going over RDMA. `cargo x rdma-test` runs this
//! in guest 0, beside guests that can be killed, cut off and started again.
//!
//! Few clusters and many claims on each: starting one takes seconds where the processors are emulated.

mod claims;
mod hosts;
mod machines;
mod network;
mod setting;
mod zombies;
