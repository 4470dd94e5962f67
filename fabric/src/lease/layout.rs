//! The layout of a lease: every structure, offset and number in one place.
//!
//! ```text
//! header page (4096 B) | slot table: slot_count pairs of 64-byte cells | padding to 4096 | heap
//! ```
//!
//! All numbers are little-endian. The structures exist for their offsets; nothing ever makes a reference to
//! one in shared memory (invariant 10). Each word that changes after creation has a cache line of its own,
//! and one writer. `docs/layout.md` shows the tables that [`layout_table`] makes from this file; a test
//! compares them.

use crate::error::{Error, ErrorKind, Origin, Result};
use crate::limits::{BLOCK_UNIT_BYTES, SLOTS_MAX};
use std::fmt::Write as _;
use std::mem::{offset_of, size_of};

#[cfg(target_endian = "big")]
compile_error!("Selvage's shared memory is little-endian and is used in place");

/// Version of the layout of leases and archives. Bump it whenever a byte moves.
pub const LAYOUT_VERSION: u32 = 1;
/// First bytes of a lease.
pub const LEASE_MAGIC: [u8; 8] = *b"SELVLEAS";
/// Bytes of the header page, and the alignment of the heap.
pub const HEADER_BYTES: u64 = 4096;
/// Bytes of a cell.
pub const CELL_BYTES: usize = 64;
/// Bytes of a slot: its two cells.
pub const SLOT_BYTES: usize = 2 * CELL_BYTES;
/// Most slots of a lease.
pub const SLOT_COUNT_MAX: u32 = SLOTS_MAX;
/// Largest heap: what 32 bits of 256-byte units can name.
pub const HEAP_BYTES_MAX: u64 = (BLOCK_UNIT_BYTES as u64) << 32;

/// Declares a structure of the layout: field, type, offset, who writes it, what it says.
macro_rules! layout {
    ($(#[$meta:meta])* $name:ident, $table:ident, $bytes:expr;
     $($field:ident: $type:ty = $offset:literal, $writer:literal, $what:literal;)*) => {
        $(#[$meta])*
        #[repr(C)]
        #[allow(dead_code, reason = "exists for its offsets")]
        pub(super) struct $name { $(pub(super) $field: $type),* }
        const _: () = assert!(size_of::<$name>() == $bytes);
        $(const _: () = assert!(offset_of!($name, $field) == $offset);)*
        const $table: &[Field] = &[$(Field {
            name: stringify!($field),
            offset: $offset,
            bytes: size_of::<$type>(),
            writer: $writer,
            what: $what,
        }),*];
    };
}

layout! {
    /// The first page of a lease.
    HeaderPage, HEADER_FIELDS, HEADER_BYTES as usize;
    magic: [u8; 8] = 0, "server, once", "`SELVLEAS`";
    layout_version: u64 = 8, "server, once, last", "0 until the header is complete (stored with Release)";
    slot_count: u64 = 16, "server, once", "slots";
    heap_bytes: u64 = 24, "server, once", "bytes of the heap";
    chunk_bytes: u64 = 32, "server, once", "bytes of a chunk of the heap";
    slots_offset: u64 = 40, "server, once", "where the slot table begins";
    heap_offset: u64 = 48, "server, once", "where the heap begins";
    total_bytes: u64 = 56, "server, once", "bytes of the lease";
    node_incarnation: u64 = 64, "server, once", "the node incarnation that may write";
    server_incarnation: u64 = 72, "server, once", "the server incarnation that acks belong to (R6)";
    node_name_bytes: u64 = 80, "server, once", "length of the node's name";
    node_name: [u8; 32] = 88, "server, once", "the node's name, padded with zeros";
    reserved_names: [u8; 8] = 120, "nobody", "zero";
    seal: u64 = 128, "server", "0, or 1 when the lease is sealed (R2)";
    reserved_seal: [u8; 56] = 136, "nobody", "zero";
    server_beat: u64 = 192, "server", "the server's heartbeat";
    reserved_server: [u8; 56] = 200, "nobody", "zero";
    node_beat: u64 = 256, "node", "the node's heartbeat";
    node_sessions: u64 = 264, "node", "the node's count of its sessions";
    reserved_node: [u8; 3824] = 272, "nobody", "zero";
}

layout! {
    /// The 64-byte descriptor of one session. An all-zero cell is empty.
    CellLayout, CELL_FIELDS, CELL_BYTES;
    id: [u8; 16] = 0, "node", "the session";
    sequence: u32 = 16, "node", "per slot, compared with wrapping; its lowest bit is the cell's index";
    epoch: u32 = 20, "node", "ownership epoch, first half of the version";
    counter: u64 = 24, "node", "counter, second half of the version";
    block: u32 = 32, "node", "where the archive begins: 256-byte units from the heap's start; 0 unless live";
    archive_bytes: u32 = 36, "node", "length of the archive; 0 unless live";
    expiry_ms: u64 = 40, "node", "when the session expires, Unix ms";
    archive_checksum: u64 = 48, "node", "XXH3-64 of the archive, or 0";
    state: u8 = 56, "node", "1 live, 2 tombstone, 3 moved";
    checksum_kind: u8 = 57, "node", "0 none, 1 XXH3-64";
    flags: u16 = 58, "node", "zero";
    cell_checksum: u32 = 60, "node", "CRC32C of the 60 bytes before";
}

/// One line of a table.
struct Field {
    name: &'static str,
    offset: usize,
    bytes: usize,
    writer: &'static str,
    what: &'static str,
}

/// Index of a slot in the slot table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct SlotIndex(pub u32);

/// Offset of a block from the start of the heap, in units of 256 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct BlockOffset(pub u32);

/// Sequence of a slot: rises by one (wrapping) with each cell that is written there, whichever session it is
/// for. Cell `sequence & 1` of the pair holds it. The first cell of a slot has sequence 1.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Sequence(pub u32);

impl Sequence {
    /// The next one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }

    /// Whether it is newer than another one of the same slot (wrapping).
    pub fn is_newer_than(self, other: Self) -> bool {
        (self.0.wrapping_sub(other.0) as i32) > 0
    }
}

/// Sizes that decide a lease's layout.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeaseGeometry {
    /// Slots: sessions that it can hold.
    pub slot_count: u32,
    /// Bytes of the heap, a multiple of `chunk_bytes`.
    pub heap_bytes: u64,
    /// Bytes of a chunk, the piece of the heap that its owner gives to one size class. A multiple of 256.
    pub chunk_bytes: u64,
}

impl LeaseGeometry {
    /// Checks the sizes against the limits.
    ///
    /// # Errors
    /// `Invalid` with what and the limit.
    pub fn check(&self) -> Result<()> {
        let fault = if self.slot_count == 0 || self.slot_count > SLOT_COUNT_MAX {
            format!("slot_count is {}; it must be 1 to {SLOT_COUNT_MAX}", self.slot_count)
        } else if self.chunk_bytes == 0 || !self.chunk_bytes.is_multiple_of(BLOCK_UNIT_BYTES as u64) {
            format!("chunk_bytes is {}; it must be a multiple of {BLOCK_UNIT_BYTES}", self.chunk_bytes)
        } else if self.heap_bytes == 0 || !self.heap_bytes.is_multiple_of(self.chunk_bytes) {
            format!(
                "heap_bytes is {}; it must be a multiple of chunk_bytes, {}",
                self.heap_bytes, self.chunk_bytes
            )
        } else if self.heap_bytes > HEAP_BYTES_MAX {
            format!("heap_bytes is {}; the limit is {HEAP_BYTES_MAX}", self.heap_bytes)
        } else {
            return Ok(());
        };
        Err(Error::new(ErrorKind::Invalid, Origin::Lease, format!("a lease's {fault}")))
    }

    /// Offset of the slot table.
    pub fn slots_offset(&self) -> u64 {
        HEADER_BYTES
    }

    /// Offset of the heap.
    pub fn heap_offset(&self) -> u64 {
        (HEADER_BYTES + u64::from(self.slot_count) * SLOT_BYTES as u64).next_multiple_of(HEADER_BYTES)
    }

    /// Bytes of the whole lease.
    pub fn total_bytes(&self) -> u64 {
        self.heap_offset() + self.heap_bytes
    }

    /// Offset of the cell in which `sequence` of a slot stands; `None` out of bounds.
    pub fn cell_offset(&self, slot: SlotIndex, sequence: Sequence) -> Option<u64> {
        (slot.0 < self.slot_count).then(|| {
            let half = u64::from(sequence.0 & 1) * CELL_BYTES as u64;
            HEADER_BYTES + u64::from(slot.0) * SLOT_BYTES as u64 + half
        })
    }

    /// Offset of a block of `bytes`; `None` out of bounds.
    pub fn block_offset(&self, block: BlockOffset, bytes: usize) -> Option<u64> {
        let begin = u64::from(block.0) * BLOCK_UNIT_BYTES as u64;
        let end = begin.checked_add(u64::try_from(bytes).ok()?)?;
        (end <= self.heap_bytes).then(|| self.heap_offset() + begin)
    }
}

/// The tables of `docs/layout.md`, generated from the structures.
pub fn layout_table() -> String {
    let mut text = format!("Layout version {LAYOUT_VERSION}.\n\nHeader page, {HEADER_BYTES} bytes:\n\n");
    table(&mut text, HEADER_FIELDS);
    let _ = write!(text, "\nCell, {CELL_BYTES} bytes; a slot is two of them:\n\n");
    table(&mut text, CELL_FIELDS);
    text
}

fn table(text: &mut String, fields: &[Field]) {
    text.push_str("| offset | bytes | field | written by | what |\n|---:|---:|---|---|---|\n");
    for Field { name, offset, bytes, writer, what } in fields {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "| {offset} | {bytes} | `{name}` | {writer} | {what} |");
    }
}
