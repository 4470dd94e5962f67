//! Free TCP ports of 127.0.0.1 for clusters that start at the same time.
//!
//! A port is only free until somebody else binds it. So each port is also reserved among launchers, for the
//! life of the reservation, by an abstract Unix socket of its number, which the kernel gives back when the
//! process ends.

use anyhow::{Result, bail};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener};

/// Below the range from which the kernel takes the ports of outgoing connections.
const RANGE: std::ops::Range<u16> = 15_000..32_000;

/// A port that no other launcher on this host will take.
#[derive(Debug)]
pub struct Port {
    /// Address with the port.
    pub address: SocketAddr,
    _reservation: UnixListener,
}

impl Port {
    /// A free port.
    ///
    /// # Errors
    /// None is left.
    pub fn free() -> Result<Self> {
        let mut seed = [0; 2];
        getrandom::fill(&mut seed)?;
        let count = RANGE.end - RANGE.start;
        let first = u16::from_le_bytes(seed) % count;
        for step in 0..count {
            let number = RANGE.start + (first + step) % count;
            let Some(port) = Self::reserve(number) else { continue };
            if is_free(port.address) {
                return Ok(port);
            }
        }
        bail!("no free port on 127.0.0.1 from {} to {}", RANGE.start, RANGE.end)
    }

    /// Reserves one port, whether or not it is free; `None` if another launcher has it.
    pub fn reserve(number: u16) -> Option<Self> {
        let name = UnixAddr::from_abstract_name(format!("selvage-port-{number}")).ok()?;
        let reservation = UnixListener::bind_addr(&name).ok()?;
        Some(Self { address: SocketAddr::from((Ipv4Addr::LOCALHOST, number)), _reservation: reservation })
    }
}

/// Whether nobody listens there now.
pub fn is_free(address: SocketAddr) -> bool {
    TcpListener::bind(address).is_ok()
}
