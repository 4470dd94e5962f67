//! Which device, port and GID a connection goes over: a pure function of a plain description.
//!
//! Never a fixed index: GID tables differ between drivers and change with the interfaces' addresses. On RoCE
//! the GID must be of version 2 and routable; a native InfiniBand port is reached by its LID, and its first
//! GID will do.

use super::error::{no_usable_port, wrong_setting};
use crate::config::Rdma;
use crate::error::Result;
use std::net::{IpAddr, Ipv6Addr};

/// A device, as far as the choice goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct DeviceFacts {
    /// Like `mlx5_0`.
    pub(super) name: String,
    /// Why none of its ports can be used, if so.
    pub(super) unusable: Option<String>,
    /// Its ports.
    pub(super) ports: Vec<PortFacts>,
}

/// A port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct PortFacts {
    /// From 1.
    pub(super) number: u8,
    /// Whether it can send and receive.
    pub(super) active: bool,
    /// Its state, for people.
    pub(super) state: &'static str,
    /// RoCE or, otherwise, InfiniBand.
    pub(super) ethernet: bool,
    /// Active MTU as an exponent: 256 B x 2^(this - 1).
    pub(super) mtu: u8,
    /// Speed in comparable units; 0 if unknown.
    pub(super) speed: u32,
    /// Local identifier; 0 on RoCE.
    pub(super) lid: u16,
    /// Partition keys by index; 0 is no key.
    pub(super) partition_keys: Vec<u16>,
    /// GIDs that are not zero.
    pub(super) gids: Vec<GidFacts>,
}

/// An entry of a port's GID table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct GidFacts {
    /// Where in the table.
    pub(super) index: u8,
    /// What packets with it look like.
    pub(super) kind: GidKind,
    /// The GID.
    pub(super) gid: [u8; 16],
}

/// What packets with a GID look like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum GidKind {
    /// InfiniBand's own.
    InfiniBand,
    /// RoCE version 1: not routed.
    RoceV1,
    /// RoCE version 2: UDP.
    RoceV2,
}

/// What was chosen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Choice {
    /// The device's name.
    pub(super) device: String,
    /// The port as it was.
    pub(super) port: PortFacts,
    /// The GID.
    pub(super) gid: GidFacts,
}

impl GidFacts {
    /// Whether it reaches beyond the wire (not `fe80::/10`).
    fn is_routable(&self) -> bool {
        !(self.gid[0] == 0xfe && self.gid[1] & 0xc0 == 0x80)
    }

    /// The IP address that a RoCE GID stands for.
    pub(super) fn ip(&self) -> IpAddr {
        Ipv6Addr::from(self.gid).to_canonical()
    }

    /// Whether it serves on its port.
    fn is_usable(&self, port: &PortFacts) -> bool {
        match self.kind {
            GidKind::RoceV2 => port.ethernet && self.is_routable(),
            GidKind::InfiniBand => !port.ethernet,
            GidKind::RoceV1 => false,
        }
    }
}

/// Chooses. `local` is this host's address of the control connection, if there is one: the port that has it
/// wins; otherwise the fastest active one, InfiniBand or RoCE, in the devices' order. What the configuration
/// names is taken or refused, never replaced.
///
/// # Errors
/// `Unreachable` with device, port and remedy if no port can be used; `Invalid` if the configuration names
/// what is not there.
pub(super) fn choose(devices: &[DeviceFacts], config: &Rdma, local: Option<IpAddr>) -> Result<Choice> {
    if let Some(wanted) = &config.device
        && !devices.iter().any(|device| device.name == *wanted)
    {
        let names: Vec<_> = devices.iter().map(|device| device.name.as_str()).collect();
        let what = format!("device = \"{wanted}\", but this host has {}", names.join(", "));
        return Err(wrong_setting(&what));
    }
    let named = |device: &&DeviceFacts| config.device.as_ref().is_none_or(|wanted| *wanted == device.name);
    let numbered = |port: &&PortFacts| config.port.is_none_or(|wanted| wanted == port.number);
    let mut best: Option<(Rank, Choice)> = None;
    let mut refusals = Vec::new();
    for device in devices.iter().filter(named) {
        if let Some(why) = &device.unusable {
            refusals.push(format!("{} {why}", device.name));
            continue;
        }
        let mut ports = device.ports.iter().filter(numbered).peekable();
        if let (None, Some(wanted)) = (ports.peek(), config.port) {
            refusals.push(format!("{} has no port {wanted}", device.name));
        }
        for port in ports {
            match usable(device, port, config, local)? {
                Ok(gid) => {
                    let rank = Rank { has_local: is_local(&gid, local), speed: port.speed };
                    if best.as_ref().is_none_or(|(other, _)| rank > *other) {
                        best = Some((rank, Choice { device: device.name.clone(), port: port.clone(), gid }));
                    }
                }
                Err(why) => refusals.push(why),
            }
        }
    }
    best.map(|(_, choice)| choice).ok_or_else(|| no_usable_port(&refusals))
}

/// How good a port is; of equals the first counts.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    has_local: bool,
    speed: u32,
}

/// The GID to use on a port, or why the port cannot be used. The error is a wrong setting.
fn usable(
    device: &DeviceFacts,
    port: &PortFacts,
    config: &Rdma,
    local: Option<IpAddr>,
) -> Result<Result<GidFacts, String>> {
    let place = format!("{} port {}", device.name, port.number);
    if !port.active {
        let remedy = if port.ethernet { "set its network interface up" } else { "is a subnet manager up?" };
        return Ok(Err(format!("{place} is {} ({remedy})", port.state)));
    }
    if !port.ethernet && port.lid == 0 {
        return Ok(Err(format!("{place} has no LID (is a subnet manager up?)")));
    }
    if let Some(index) = config.gid_index {
        return named_gid(&place, port, index).map(Ok);
    }
    let mut gids: Vec<_> = port.gids.iter().filter(|gid| gid.is_usable(port)).collect();
    // The control connection's own address, then IPv4, then whatever comes first.
    gids.sort_by_key(|gid| (!is_local(gid, local), port.ethernet && gid.ip().is_ipv6(), gid.index));
    Ok(gids.first().map(|gid| **gid).ok_or_else(|| {
        let found = if port.gids.is_empty() { "no GIDs" } else { "only link-local or RoCE v1 GIDs" };
        format!("{place} has {found} (give its network interface an IP address)")
    }))
}

/// The GID that the configuration names, if it can be used.
fn named_gid(place: &str, port: &PortFacts, index: u8) -> Result<GidFacts> {
    let usable = port.gids.iter().filter(|gid| gid.is_usable(port));
    let usable_indices: Vec<_> = usable.map(|gid| gid.index.to_string()).collect();
    let fault = match port.gids.iter().find(|gid| gid.index == index) {
        Some(gid) if gid.is_usable(port) => return Ok(*gid),
        Some(gid) if gid.kind == GidKind::RoceV1 => "is of RoCE version 1",
        Some(_) => "is link-local",
        None => "is empty",
    };
    let what =
        format!("gid_index = {index}, which {fault} at {place}; usable: {}", usable_indices.join(", "));
    Err(wrong_setting(&what))
}

/// Whether a GID is the address that the control connection has here.
fn is_local(gid: &GidFacts, local: Option<IpAddr>) -> bool {
    gid.kind == GidKind::RoceV2 && local.is_some_and(|local| local.to_canonical() == gid.ip())
}

#[cfg(test)]
#[path = "choose_tests.rs"]
mod tests;
