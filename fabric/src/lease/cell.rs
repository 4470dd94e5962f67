//! The cell: the 64-byte descriptor of one session in a lease.

pub use super::layout::CELL_BYTES;

use super::layout::{BlockOffset, CellLayout, Sequence};
use crate::ident::{SessionId, Version};
use std::mem::offset_of;
use xxhash_rust::xxh3::xxh3_64;

/// What a cell says of its session. An all-zero cell is empty.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum CellState {
    /// The session lives; its archive is in the block.
    Live = 1,
    /// The session is gone. Names no block.
    Tombstone = 2,
    /// The session has its copy at another server now; reads as "not here" (R11). Names no block.
    Moved = 3,
}

/// Checksum of the archive in the block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ArchiveChecksum {
    /// None: the transport orders its writes (shared memory), or there is no archive.
    None,
    /// XXH3-64.
    Xxh3(u64),
}

impl ArchiveChecksum {
    /// XXH3-64 of an archive.
    pub fn xxh3(archive: &[u8]) -> Self {
        Self::Xxh3(xxh3_64(archive))
    }

    /// Whether the archive is the one that was named.
    pub fn matches(self, archive: &[u8]) -> bool {
        match self {
            Self::None => true,
            Self::Xxh3(sum) => sum == xxh3_64(archive),
        }
    }
}

/// A cell's content.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cell {
    /// The session.
    pub id: SessionId,
    /// Decides which cell of the pair is newer.
    pub sequence: Sequence,
    /// Decides between copies. The archive inside the block has the same epoch, and the same counter or,
    /// after touches (R13), a lower one.
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

/// Why 64 bytes are not a cell that counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CellFault {
    /// The cell's own checksum does not match: torn, or never whole.
    Checksum,
    /// An unknown state, checksum kind or flag, or a field that must be zero is not.
    Meaning,
    /// Its sequence belongs into the other cell of the pair.
    Misplaced,
    /// The block lies outside the heap, or the archive's length is 0 or over the limit.
    Bounds,
    /// The archive does not match its checksum.
    Archive,
}

impl Cell {
    /// A cell without a block.
    pub fn without_block(
        state: CellState,
        id: SessionId,
        sequence: Sequence,
        version: Version,
        expiry_ms: u64,
    ) -> Self {
        let (block, archive_bytes, checksum) = (BlockOffset(0), 0, ArchiveChecksum::None);
        Self { id, sequence, version, state, block, archive_bytes, expiry_ms, checksum }
    }

    /// The cell's bytes, with its checksum.
    pub fn encode(&self) -> [u8; CELL_BYTES] {
        let mut bytes = [0; CELL_BYTES];
        let mut put = |offset: usize, value: &[u8]| bytes[offset..][..value.len()].copy_from_slice(value);
        put(offset_of!(CellLayout, id), &self.id.0);
        put(offset_of!(CellLayout, sequence), &self.sequence.0.to_le_bytes());
        put(offset_of!(CellLayout, epoch), &self.version.epoch.to_le_bytes());
        put(offset_of!(CellLayout, counter), &self.version.counter.to_le_bytes());
        put(offset_of!(CellLayout, block), &self.block.0.to_le_bytes());
        put(offset_of!(CellLayout, archive_bytes), &self.archive_bytes.to_le_bytes());
        put(offset_of!(CellLayout, expiry_ms), &self.expiry_ms.to_le_bytes());
        let (kind, sum) = match self.checksum {
            ArchiveChecksum::None => (0, 0),
            ArchiveChecksum::Xxh3(sum) => (1, sum),
        };
        put(offset_of!(CellLayout, archive_checksum), &sum.to_le_bytes());
        put(offset_of!(CellLayout, state), &[self.state as u8, kind]);
        let crc = cell_checksum(&bytes);
        bytes[offset_of!(CellLayout, cell_checksum)..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The cell in these bytes; `None` if it is empty. Says nothing about bounds and place.
    ///
    /// # Errors
    /// Why they are not a cell.
    pub fn decode(bytes: &[u8; CELL_BYTES]) -> Result<Option<Self>, CellFault> {
        let (words, _) = bytes.as_chunks::<8>();
        if words.iter().fold(0, |bits, word| bits | u64::from_le_bytes(*word)) == 0 {
            return Ok(None);
        }
        if u32_at(bytes, offset_of!(CellLayout, cell_checksum)) != cell_checksum(bytes) {
            return Err(CellFault::Checksum);
        }
        let state = match bytes[offset_of!(CellLayout, state)] {
            1 => CellState::Live,
            2 => CellState::Tombstone,
            3 => CellState::Moved,
            _ => return Err(CellFault::Meaning),
        };
        let sum = u64_at(bytes, offset_of!(CellLayout, archive_checksum));
        let checksum = match (bytes[offset_of!(CellLayout, checksum_kind)], sum) {
            (0, 0) => ArchiveChecksum::None,
            (1, sum) => ArchiveChecksum::Xxh3(sum),
            _ => return Err(CellFault::Meaning),
        };
        let cell = Self {
            id: SessionId(array_at(bytes, offset_of!(CellLayout, id))),
            sequence: sequence_of(bytes),
            version: Version {
                epoch: u32_at(bytes, offset_of!(CellLayout, epoch)),
                counter: u64_at(bytes, offset_of!(CellLayout, counter)),
            },
            state,
            block: BlockOffset(u32_at(bytes, offset_of!(CellLayout, block))),
            archive_bytes: u32_at(bytes, offset_of!(CellLayout, archive_bytes)),
            expiry_ms: u64_at(bytes, offset_of!(CellLayout, expiry_ms)),
            checksum,
        };
        let flags: [u8; 2] = array_at(bytes, offset_of!(CellLayout, flags));
        let names_block =
            (cell.block, cell.archive_bytes, checksum) != (BlockOffset(0), 0, ArchiveChecksum::None);
        if flags != [0; 2] || (state != CellState::Live && names_block) {
            return Err(CellFault::Meaning);
        }
        Ok(Some(cell))
    }
}

/// The sequence that bytes carry, whether they are a whole cell or not.
pub(super) fn sequence_of(bytes: &[u8; CELL_BYTES]) -> Sequence {
    Sequence(u32_at(bytes, offset_of!(CellLayout, sequence)))
}

fn cell_checksum(bytes: &[u8; CELL_BYTES]) -> u32 {
    crc32c::crc32c(&bytes[..offset_of!(CellLayout, cell_checksum)])
}

fn array_at<const N: usize>(bytes: &[u8; CELL_BYTES], offset: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[offset..offset + N]);
    array
}

fn u32_at(bytes: &[u8; CELL_BYTES], offset: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, offset))
}

fn u64_at(bytes: &[u8; CELL_BYTES], offset: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, offset))
}
