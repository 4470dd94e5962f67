//! A lease: the range of one server's memory that exactly one node incarnation may write.
//!
//! Everything here is pure code over [`LeaseMemory`], which is a server's memfd, a heap buffer in tests and
//! simulation, or later a registered memory region. What it reads there is hostile: copied out, bounded,
//! checked, then used.

mod cell;
mod header;
mod index;
mod layout;
mod memory;
mod scan;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use cell::{ArchiveChecksum, CELL_BYTES, Cell, CellFault, CellState};
pub use header::{
    LeaseHeader, NODE_BEAT_OFFSET, NODE_SESSIONS_OFFSET, SEAL_OFFSET, SEALED, SERVER_BEAT_OFFSET,
    SERVER_INCARNATION_OFFSET,
};
pub use index::{LeaseIndex, SealedIndex, SessionCopy};
pub use layout::{
    BlockOffset, HEADER_BYTES, LAYOUT_VERSION, LEASE_MAGIC, LeaseGeometry, SLOT_BYTES, Sequence, SlotIndex,
    layout_table,
};
pub use memory::{HeapMemory, LeaseMemory, Words};
pub use scan::{BadCells, ScanReport, fetch, scan, scan_each};
