//! The cell: the 64-byte descriptor of one session in a lease.

use super::layout::{BlockOffset, Sequence};
use crate::ident::{SessionId, Version};

/// Bytes of a cell.
pub const CELL_BYTES: usize = 64;

/// What a cell says of its session. An all-zero cell is empty.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CellState {
    /// The session lives; its archive is in the block.
    Live,
    /// The session is gone. Names no block.
    Tombstone,
    /// The session has its copy at another server now; reads as "not here" (R11). Names no block.
    Moved,
}

/// Checksum of the archive in the block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ArchiveChecksum {
    /// None: the transport orders its writes (shared memory).
    None,
    /// XXH3-64.
    Xxh3(u64),
}

/// A cell's content.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cell {
    /// The session.
    pub id: SessionId,
    /// Decides which cell of the pair is newer.
    pub sequence: Sequence,
    /// Decides between copies. The archive inside the block has the same epoch, and the same counter or, after touches
    /// (R13), a lower one.
    pub version: Version,
    /// What it says.
    pub state: CellState,
    /// Where the archive is; 0 unless live.
    pub block: BlockOffset,
    /// The archive's length; 0 unless live.
    pub archive_bytes: u32,
    /// When the session expires, Unix ms.
    pub expiry_ms: u64,
    /// The archive's checksum.
    pub checksum: ArchiveChecksum,
}

/// Why 64 bytes are not a cell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CellFault {
    /// The cell's own checksum does not match: torn, or never whole.
    Checksum,
    /// An unknown state, checksum kind or flag, or a field that must be zero is not.
    Meaning,
    /// Sequence parity says the other cell of the pair.
    Misplaced,
    /// The block lies outside the heap, or the archive's length is 0 or over the limit.
    Bounds,
    /// The archive does not match its checksum.
    Archive,
}

impl Cell {
    /// The cell's bytes, with its checksum.
    pub fn encode(&self) -> [u8; CELL_BYTES] {
        unimplemented!()
    }

    /// The cell in these bytes; `None` if it is empty.
    ///
    /// # Errors
    /// Why they are not a cell.
    pub fn decode(_bytes: &[u8; CELL_BYTES]) -> Result<Option<Self>, CellFault> {
        unimplemented!()
    }
}
