//! What this host's devices look like: the plain description that the choice goes by.
//!
//! Unsafe: partition keys and a device's place in the system's tree, which sideway does not have.

use super::choose::{Choice, DeviceFacts, GidFacts, GidKind, PortFacts};
use super::endpoint::mtu_bytes;
use super::error;
use rdma_mummy_sys as sys;
use sideway::ibverbs::address::GidType;
use sideway::ibverbs::device::{Device, DeviceInfo, TransportType};
use sideway::ibverbs::device_context::DeviceContext;
use std::ffi::CStr;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// Partition keys that are asked for; tables have up to 65,535 and all but the first few are empty.
const PARTITION_KEYS_MAX: u16 = 128;

/// The place in the system's tree that a device has as long as the kernel has it.
pub(super) fn shown_at(context: &DeviceContext) -> Option<PathBuf> {
    // SAFETY: the pointer is used while `context` is borrowed.
    let raw = unsafe { context.context() };
    // SAFETY: the context is open, so it has a device, which never changes.
    let device = unsafe { (*raw.as_ptr()).device };
    // SAFETY: the device structure lives as long as its context.
    let bytes = unsafe { (*device).dev_path }.map(|byte| byte as u8);
    let path = CStr::from_bytes_until_nul(&bytes).ok()?.to_str().ok()?;
    Some(PathBuf::from(path)).filter(|path| path.is_absolute() && path.exists())
}

/// What was chosen, with GID and MTU, for people.
pub(super) fn describe(choice: &Choice) -> String {
    let Choice { device, port, gid } = choice;
    let mtu = mtu_bytes(port.mtu);
    let number = port.number;
    if port.ethernet {
        format!("{device} port {number}, RoCE v2, GID {} ({}), MTU {mtu}", gid.index, gid.ip())
    } else {
        format!("{device} port {number}, InfiniBand, LID {}, MTU {mtu}", port.lid)
    }
}

/// Opens a device for a look, and says what the choice needs to know of it.
pub(super) fn look_at(device: &Device<'_>) -> (Option<Arc<DeviceContext>>, DeviceFacts) {
    let name = device.name();
    let without =
        |why: String| (None, DeviceFacts { name: name.clone(), unusable: Some(why), ports: Vec::new() });
    if !matches!(device.transport_type(), TransportType::InfiniBand) {
        return without("speaks another protocol than InfiniBand's, such as iWARP".to_owned());
    }
    let opened = device.open().map_err(|error| error::cause(&error));
    let looked = opened.and_then(|context| {
        let ports = ports(&context).map_err(|error| error::cause(&error))?;
        Ok((context, ports))
    });
    match looked {
        Ok((context, ports)) => (Some(context), DeviceFacts { name, unusable: None, ports }),
        Err(why) => without(format!("cannot be opened: {why} (may this user open /dev/infiniband/uverbs*?)")),
    }
}

fn ports(context: &DeviceContext) -> io::Result<Vec<PortFacts>> {
    let attributes = context.query_device().map_err(io::Error::other)?;
    (1..=attributes.phys_port_cnt()).map(|number| port_facts(context, number)).collect()
}

fn port_facts(context: &DeviceContext, number: u8) -> io::Result<PortFacts> {
    // The fields as they are: sideway's getters panic at values that they do not know.
    let attributes = context.query_port(number).map_err(io::Error::other)?.attr;
    let state = match attributes.state {
        sys::ibv_port_state::IBV_PORT_DOWN => "down",
        sys::ibv_port_state::IBV_PORT_INIT => "initialising",
        sys::ibv_port_state::IBV_PORT_ARMED => "armed",
        sys::ibv_port_state::IBV_PORT_ACTIVE => "active",
        _ => "in no known state",
    };
    let entries = u32::try_from(attributes.gid_tbl_len).unwrap_or(0).min(u32::from(u8::MAX) + 1);
    // An entry that cannot be read is an empty one.
    let gids = (0..entries).filter_map(|index| gid_facts(context, number, index)).collect();
    let lanes = match attributes.active_width {
        2 => 4,
        4 => 8,
        8 => 12,
        16 => 2,
        _ => 1,
    };
    Ok(PortFacts {
        number,
        active: attributes.state == sys::ibv_port_state::IBV_PORT_ACTIVE,
        state,
        ethernet: attributes.link_layer == sys::IBV_LINK_LAYER_ETHERNET,
        mtu: u8::try_from(attributes.active_mtu).unwrap_or(1),
        speed: lanes * u32::from(attributes.active_speed),
        lid: attributes.lid,
        partition_keys: partition_keys(context, number, attributes.pkey_tbl_len),
        gids,
    })
}

fn gid_facts(context: &DeviceContext, port: u8, index: u32) -> Option<GidFacts> {
    let entry = context.query_gid_ex(port, index).ok()?;
    let gid = entry.gid();
    let kind = match entry.gid_type() {
        GidType::InfiniBand => GidKind::InfiniBand,
        GidType::RoceV1 => GidKind::RoceV1,
        GidType::RoceV2 => GidKind::RoceV2,
    };
    (!gid.is_zero()).then_some(GidFacts { index: u8::try_from(index).ok()?, kind, gid: gid.raw })
}

/// A port's partition keys, by index.
pub(super) fn partition_keys(context: &DeviceContext, port: u8, count: u16) -> Vec<u16> {
    // SAFETY: the pointer is used while `context` is borrowed.
    let raw = unsafe { context.context() };
    let key = |index: u16| {
        let mut key = 0_u16;
        // SAFETY: the context is open, and the result is written to a word of the right size.
        let result = unsafe { sys::ibv_query_pkey(raw.as_ptr(), port, i32::from(index), &raw mut key) };
        if result == 0 { u16::from_be(key) } else { 0 }
    };
    (0..count.min(PARTITION_KEYS_MAX)).map(key).collect()
}
