//! Reading a sealed lease: which cell of each slot counts, and the archive behind a cell.

use super::cell::Cell;
use super::index::SessionCopy;
use super::layout::{LeaseGeometry, SlotIndex};
use super::memory::LeaseMemory;
use crate::archive::ArchiveLimits;
use crate::error::Result;

/// Cells that failed a check, by kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs)]
pub struct BadCells {
    pub checksum: u64,
    pub meaning: u64,
    pub misplaced: u64,
    pub bounds: u64,
    pub archive: u64,
}

/// What a scan found.
#[derive(Debug, Default)]
pub struct ScanReport {
    /// The newest whole cell of each slot that has one.
    pub cells: Vec<(SlotIndex, Cell)>,
    /// Cells that failed a check.
    pub bad: BadCells,
}

/// Reads every slot of a sealed lease and takes the newer whole cell of each pair. The archive of a cell that carries a
/// checksum is checked; where it does not match, the older cell counts.
///
/// # Errors
/// `Corrupt` if the memory is smaller than the geometry says.
pub fn scan(
    _memory: &dyn LeaseMemory,
    _geometry: &LeaseGeometry,
    _limits: &ArchiveLimits,
) -> Result<ScanReport> {
    unimplemented!()
}

/// Copies the archive of a sealed live copy out, and checks bounds, checksum, validity, id and version (R7): the archive
/// must carry the cell's id and epoch, and its counter or, after touches (R13), a lower one.
///
/// # Errors
/// `Corrupt` with what did not match; `Gone` for a tombstone.
pub fn fetch(
    _memory: &dyn LeaseMemory,
    _geometry: &LeaseGeometry,
    _copy: &SessionCopy,
    _limits: &ArchiveLimits,
) -> Result<Vec<u8>> {
    unimplemented!()
}
