//! The layout of a lease: every structure, offset and number in one place.

use crate::error::Result;
use crate::ident::Incarnation;

/// Version of the layout. Bump it whenever a byte moves.
pub const LAYOUT_VERSION: u32 = 1;

/// Index of a slot in the slot table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct SlotIndex(pub u32);

/// Offset of a block from the start of the heap, in units of 256 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct BlockOffset(pub u32);

/// Sequence of a slot: rises by one (wrapping) with each cell that is written there, whichever session it is for. Cell
/// `sequence & 1` of the pair holds it. The first cell of a slot has sequence 1.
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
        unimplemented!()
    }

    /// Offset of the slot table.
    pub fn slots_offset(&self) -> u64 {
        unimplemented!()
    }

    /// Offset of the heap.
    pub fn heap_offset(&self) -> u64 {
        unimplemented!()
    }

    /// Bytes of the whole lease.
    pub fn total_bytes(&self) -> u64 {
        unimplemented!()
    }

    /// Offset of the cell in which `sequence` of a slot stands; `None` out of bounds.
    pub fn cell_offset(&self, _slot: SlotIndex, _sequence: Sequence) -> Option<u64> {
        unimplemented!()
    }

    /// Offset of a block of `bytes`; `None` out of bounds.
    pub fn block_offset(&self, _block: BlockOffset, _bytes: usize) -> Option<u64> {
        unimplemented!()
    }
}

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

/// The table of `docs/layout.md`, generated from the structures.
pub fn layout_table() -> String {
    unimplemented!()
}
