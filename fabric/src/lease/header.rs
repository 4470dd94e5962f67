//! The header page: written once by the server, checked by everybody who maps the lease.

use super::layout::{HeaderPage, LAYOUT_VERSION, LEASE_MAGIC, LeaseGeometry};
use super::memory::LeaseMemory;
use crate::error::{Error, ErrorKind, Origin, Result};
use crate::ident::Incarnation;
use crate::limits::NAME_BYTES_MAX;
use std::mem::{offset_of, size_of};

/// Offset of the server's incarnation.
pub const SERVER_INCARNATION_OFFSET: u64 = offset_of!(HeaderPage, server_incarnation) as u64;
/// Offset of the seal word.
pub const SEAL_OFFSET: u64 = offset_of!(HeaderPage, seal) as u64;
/// Offset of the server's heartbeat word.
pub const SERVER_BEAT_OFFSET: u64 = offset_of!(HeaderPage, server_beat) as u64;
/// Offset of the node's heartbeat word.
pub const NODE_BEAT_OFFSET: u64 = offset_of!(HeaderPage, node_beat) as u64;
/// Offset of the node's count of its sessions.
pub const NODE_SESSIONS_OFFSET: u64 = offset_of!(HeaderPage, node_sessions) as u64;
/// Value of the seal word in a sealed lease.
pub const SEALED: u64 = 1;

/// What a lease's header page says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LeaseHeader {
    /// The sizes.
    pub geometry: LeaseGeometry,
    /// Name of the node that may write.
    pub node: String,
    /// Its incarnation.
    pub node_incarnation: Incarnation,
    /// The server's incarnation: acks are void for any other (R6).
    pub server_incarnation: Incarnation,
}

impl LeaseHeader {
    /// Writes the header into fresh, zeroed memory; the version last.
    ///
    /// # Errors
    /// `Invalid` for sizes or a name outside their limits; `TooSmall` if the memory is smaller than the sizes
    /// say.
    pub fn write(&self, memory: &dyn LeaseMemory) -> Result<()> {
        self.geometry.check()?;
        if !name_is_valid(self.node.as_bytes()) {
            let what = format!("{:?} is no node name: 1 to {NAME_BYTES_MAX} of a-z, 0-9 and -", self.node);
            return Err(Error::new(ErrorKind::Invalid, Origin::Lease, what));
        }
        if memory.bytes() < self.geometry.total_bytes() {
            return Err(too_small(memory.bytes(), self.geometry.total_bytes()));
        }
        memory.write(offset_of!(HeaderPage, magic) as u64, &LEASE_MAGIC)?;
        for (offset, value) in self.numbers() {
            memory.store_u64(offset as u64, value)?;
        }
        memory.write(offset_of!(HeaderPage, node_name) as u64, self.node.as_bytes())?;
        // Release: whoever loads the version with Acquire sees all of the header.
        memory.store_u64(offset_of!(HeaderPage, layout_version) as u64, u64::from(LAYOUT_VERSION))
    }

    /// Reads and checks the header of a lease that somebody else has made.
    ///
    /// # Errors
    /// `NotReady` while it is being made, `VersionMismatch` with both versions, `TooSmall`, `Corrupt`.
    pub fn read(memory: &dyn LeaseMemory) -> Result<Self> {
        if memory.bytes() < size_of::<HeaderPage>() as u64 {
            return Err(too_small(memory.bytes(), size_of::<HeaderPage>() as u64));
        }
        let word = |offset: usize| memory.load_u64(offset as u64);
        // Acquire: pairs with the Release at the end of `write`.
        let version = word(offset_of!(HeaderPage, layout_version))?;
        if version == 0 {
            return Err(Error::new(
                ErrorKind::NotReady,
                Origin::Lease,
                "the lease's header is not complete yet",
            ));
        }
        let mut magic = [0; 8];
        memory.read(offset_of!(HeaderPage, magic) as u64, &mut magic)?;
        if magic != LEASE_MAGIC {
            return Err(corrupt(format!("the memory begins with {magic:02x?} and is no lease")));
        }
        if version != u64::from(LAYOUT_VERSION) {
            let what = format!("the lease has layout version {version}; this program has {LAYOUT_VERSION}");
            return Err(Error::new(ErrorKind::VersionMismatch, Origin::Lease, what));
        }
        let slot_count = word(offset_of!(HeaderPage, slot_count))?;
        let geometry = LeaseGeometry {
            slot_count: u32::try_from(slot_count)
                .map_err(|_| corrupt(format!("the lease's header says {slot_count} slots")))?,
            heap_bytes: word(offset_of!(HeaderPage, heap_bytes))?,
            chunk_bytes: word(offset_of!(HeaderPage, chunk_bytes))?,
        };
        geometry.check().map_err(|error| corrupt("the lease's header is wrong".into()).with_source(error))?;
        let header = Self {
            geometry,
            node: read_name(memory)?,
            node_incarnation: Incarnation(word(offset_of!(HeaderPage, node_incarnation))?),
            server_incarnation: Incarnation(word(offset_of!(HeaderPage, server_incarnation))?),
        };
        for (offset, expected) in header.numbers() {
            let found = word(offset)?;
            if found != expected {
                return Err(corrupt(format!(
                    "the lease's header has {found} at offset {offset}, not {expected}"
                )));
            }
        }
        if memory.bytes() < geometry.total_bytes() {
            return Err(too_small(memory.bytes(), geometry.total_bytes()));
        }
        Ok(header)
    }

    /// Every number of the header but the version: offset and value.
    fn numbers(&self) -> [(usize, u64); 9] {
        let geometry = &self.geometry;
        [
            (offset_of!(HeaderPage, slot_count), u64::from(geometry.slot_count)),
            (offset_of!(HeaderPage, heap_bytes), geometry.heap_bytes),
            (offset_of!(HeaderPage, chunk_bytes), geometry.chunk_bytes),
            (offset_of!(HeaderPage, slots_offset), geometry.slots_offset()),
            (offset_of!(HeaderPage, heap_offset), geometry.heap_offset()),
            (offset_of!(HeaderPage, total_bytes), geometry.total_bytes()),
            (offset_of!(HeaderPage, node_incarnation), self.node_incarnation.0),
            (offset_of!(HeaderPage, server_incarnation), self.server_incarnation.0),
            (offset_of!(HeaderPage, node_name_bytes), self.node.len() as u64),
        ]
    }
}

fn read_name(memory: &dyn LeaseMemory) -> Result<String> {
    let bytes = memory.load_u64(offset_of!(HeaderPage, node_name_bytes) as u64)?;
    let mut name = [0; NAME_BYTES_MAX];
    memory.read(offset_of!(HeaderPage, node_name) as u64, &mut name)?;
    usize::try_from(bytes)
        .ok()
        .and_then(|bytes| name.get(..bytes))
        .filter(|name| name_is_valid(name))
        .and_then(|name| String::from_utf8(name.to_vec()).ok())
        .ok_or_else(|| corrupt("the lease's header has no valid node name".into()))
}

fn name_is_valid(name: &[u8]) -> bool {
    let valid = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-';
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.iter().all(valid)
}

fn too_small(bytes: u64, needed: u64) -> Error {
    let what = format!("the lease's memory has {bytes} bytes; {needed} are needed");
    Error::new(ErrorKind::TooSmall, Origin::Lease, what)
}

fn corrupt(what: String) -> Error {
    Error::new(ErrorKind::Corrupt, Origin::Lease, what)
}

const _: () = assert!(NAME_BYTES_MAX == 32, "the header has 32 bytes for the node's name");
