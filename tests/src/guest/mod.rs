//! Several guests as the hosts of one cluster, as a test in guest 0 sees them.
//!
//! `cargo x rdma-test` starts them: guest 0 runs the test and is never killed; guests 1 to [`count`] each run
//! an agent, by which the test starts and watches processes there. Every guest has one card, `eth0`, with one
//! soft-RoCE device, `rxe0`, all in one network. What happens to a guest as a machine (its power, its cable)
//! is asked of the [`Hypervisor`].
//!
//! The agent does whatever it is told, by anybody who reaches it: it exists only inside of guests, whose
//! network nothing else is joined to.

mod agent;
mod hypervisor;
mod serve;
mod wire;

pub use agent::Agent;
pub use hypervisor::Hypervisor;
pub use serve::serve;
pub use wire::{Output, Start};

use anyhow::{Context, Result};
use std::net::{Ipv4Addr, SocketAddrV4};

/// Number of guests beside guest 0, in the environment of the test.
pub const COUNT_VARIABLE: &str = "SELVAGE_GUESTS";
/// Where agents listen.
pub const AGENT_PORT: u16 = 7077;
/// The character device that leads to the hypervisor, in guest 0.
pub const CONTROL_DEVICE: &str = "/dev/virtio-ports/control";

/// How many guests there are beside guest 0.
///
/// # Errors
/// This does not run in a guest.
pub fn count() -> Result<u8> {
    let count = std::env::var(COUNT_VARIABLE);
    let count = count.with_context(|| format!("{COUNT_VARIABLE} is not set: run `cargo x rdma-test`"))?;
    count.parse().with_context(|| format!("{COUNT_VARIABLE} is {count}"))
}

/// The address of a guest's only interface and soft-RoCE device.
pub const fn address(guest: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, 10 + guest)
}

/// Where the agent of a guest listens.
pub const fn agent_address(guest: u8) -> SocketAddrV4 {
    SocketAddrV4::new(address(guest), AGENT_PORT)
}

#[cfg(test)]
mod tests;
