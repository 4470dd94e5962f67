//! Reading a sealed lease: which cell of each slot counts, and the archive behind a cell.
//!
//! The memory is hostile: its former owner may write anything there, and may go on writing. So each slot is
//! read once, and what was read is checked and kept; an archive is copied out before it is looked at.

use super::cell::{ArchiveChecksum, Cell, CellFault, CellState, sequence_of};
use super::index::SessionCopy;
use super::layout::{CELL_BYTES, LeaseGeometry, SLOT_BYTES, SlotIndex};
use super::memory::LeaseMemory;
use crate::archive::{AlignedVec, ArchiveLimits, validate};
use crate::error::{Error, ErrorKind, Origin, Result};
use crate::rules::{Rule, holds};
use crate::sync::words::{Ordering, fence};

/// Slots that are read at once: 64 KiB.
const SLOTS_PER_READ: usize = 512;

/// Cells that were looked at and failed a check, by kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BadCells {
    /// [`CellFault::Checksum`]
    pub checksum: u64,
    /// [`CellFault::Meaning`]
    pub meaning: u64,
    /// [`CellFault::Misplaced`]
    pub misplaced: u64,
    /// [`CellFault::Bounds`]
    pub bounds: u64,
    /// [`CellFault::Archive`]
    pub archive: u64,
}

impl BadCells {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.checksum + self.meaning + self.misplaced + self.bounds + self.archive
    }

    fn count(&mut self, fault: CellFault) {
        match fault {
            CellFault::Checksum => self.checksum += 1,
            CellFault::Meaning => self.meaning += 1,
            CellFault::Misplaced => self.misplaced += 1,
            CellFault::Bounds => self.bounds += 1,
            CellFault::Archive => self.archive += 1,
        }
    }
}

/// What a scan found.
#[derive(Debug, Default)]
pub struct ScanReport {
    /// The newest whole cell of each slot that has one.
    pub cells: Vec<(SlotIndex, Cell)>,
    /// Cells that failed a check.
    pub bad: BadCells,
}

/// Reads every slot of a sealed lease and takes the newer whole cell of each pair. The archive of a cell that
/// carries a checksum is checked, because its transport keeps no order; where it does not match, the older
/// cell counts.
///
/// # Errors
/// `Corrupt` if the memory is smaller than the geometry says.
pub fn scan(
    memory: &dyn LeaseMemory,
    geometry: &LeaseGeometry,
    limits: &ArchiveLimits,
) -> Result<ScanReport> {
    let mut cells = Vec::new();
    let bad = scan_each(memory, geometry, limits, |slot, cell| cells.push((slot, cell)))?;
    Ok(ScanReport { cells, bad })
}

/// As [`scan`], but hands each slot's cell over at once.
///
/// # Errors
/// As [`scan`].
pub fn scan_each(
    memory: &dyn LeaseMemory,
    geometry: &LeaseGeometry,
    limits: &ArchiveLimits,
    mut found: impl FnMut(SlotIndex, Cell),
) -> Result<BadCells> {
    let mut scanner = Scanner {
        memory,
        geometry,
        limits,
        archive: AlignedVec::new(),
        bad: BadCells::default(),
        heap_left: geometry.heap_bytes,
        checked_left: geometry.heap_bytes.saturating_mul(2),
    };
    let mut buffer = vec![[0_u8; SLOT_BYTES]; SLOTS_PER_READ.min(geometry.slot_count as usize)];
    let mut slot = 0;
    while slot < geometry.slot_count {
        let count = buffer.len().min((geometry.slot_count - slot) as usize);
        let pairs = &mut buffer[..count];
        memory
            .read(geometry.slots_offset() + u64::from(slot) * SLOT_BYTES as u64, pairs.as_flattened_mut())?;
        // Acquire: pairs with the Release of a push that is made meanwhile. Who has seen its cell sees its
        // block.
        fence(Ordering::Acquire);
        for pair in pairs.iter() {
            if let Some(cell) = scanner.choose(pair) {
                found(SlotIndex(slot), cell);
            }
            slot += 1;
        }
    }
    Ok(scanner.bad)
}

struct Scanner<'a> {
    memory: &'a dyn LeaseMemory,
    geometry: &'a LeaseGeometry,
    limits: &'a ArchiveLimits,
    archive: AlignedVec,
    bad: BadCells,
    /// Blocks of live sessions are apart, so their archives cannot have more bytes than the heap. A hostile
    /// node that names one block in every cell would otherwise make others fetch the same megabyte a million
    /// times.
    heap_left: u64,
    /// Likewise for the archives that are checked, of which each pair may have two.
    checked_left: u64,
}

impl Scanner<'_> {
    /// The newest whole cell of a pair. If the first one tried is whole it counts, whatever the other one is:
    /// it is the newer one of two whole ones, or the only whole one.
    fn choose(&mut self, pair: &[u8; SLOT_BYTES]) -> Option<Cell> {
        let ([first, second], _) = pair.as_chunks::<CELL_BYTES>() else { return None };
        let mut order = [(0, first), (1, second)];
        if sequence_of(second).is_newer_than(sequence_of(first)) {
            order.swap(0, 1);
        }
        for (half, bytes) in order {
            match Cell::decode(bytes) {
                Ok(None) => {}
                Ok(Some(cell)) => match self.check(half, &cell) {
                    Ok(()) => return Some(cell),
                    Err(fault) => self.bad.count(fault),
                },
                Err(fault) => self.bad.count(fault),
            }
        }
        None
    }

    /// Checks a whole cell's place, its bounds and, if it carries a checksum, its archive.
    fn check(&mut self, half: u32, cell: &Cell) -> std::result::Result<(), CellFault> {
        if cell.sequence.0 & 1 != half {
            return Err(CellFault::Misplaced);
        }
        if cell.state != CellState::Live {
            return Ok(());
        }
        let bytes = u64::from(cell.archive_bytes);
        let offset = archive_offset(self.geometry, cell, self.limits).ok_or(CellFault::Bounds)?;
        let heap_left = self.heap_left.checked_sub(bytes).ok_or(CellFault::Bounds)?;
        if cell.checksum != ArchiveChecksum::None {
            self.checked_left = self.checked_left.checked_sub(bytes).ok_or(CellFault::Bounds)?;
            self.archive.clear();
            self.archive.resize(cell.archive_bytes as usize, 0);
            self.memory.read(offset, &mut self.archive).map_err(|_| CellFault::Bounds)?;
            if !cell.checksum.matches(&self.archive) {
                return Err(CellFault::Archive);
            }
        }
        self.heap_left = heap_left;
        Ok(())
    }
}

/// Where a live cell's archive is, if it is within the heap and the limit.
fn archive_offset(geometry: &LeaseGeometry, cell: &Cell, limits: &ArchiveLimits) -> Option<u64> {
    let bytes = cell.archive_bytes as usize;
    (1..=limits.archive_bytes_max).contains(&bytes).then(|| geometry.block_offset(cell.block, bytes))?
}

/// Copies the archive of a sealed live copy out, and checks bounds, checksum, validity, id and version (R7):
/// the archive must carry the cell's id and epoch, and its counter or, after touches (R13), a lower one. A
/// higher counter means that the block was used again, which R7 forbids while a cell names it.
///
/// # Errors
/// `Corrupt` with what did not match; `Gone` for a tombstone.
pub fn fetch(
    memory: &dyn LeaseMemory,
    geometry: &LeaseGeometry,
    copy: &SessionCopy,
    limits: &ArchiveLimits,
) -> Result<Vec<u8>> {
    if !copy.live {
        let what = format!("session {} is gone since version {}", copy.id, copy.version);
        return Err(Error::new(ErrorKind::Gone, Origin::Lease, what));
    }
    let bytes = copy.archive_bytes as usize;
    let within = (1..=limits.archive_bytes_max).contains(&bytes);
    let Some(offset) = geometry.block_offset(copy.block, bytes).filter(|_| within) else {
        return Err(corrupt(copy, format!("{bytes} bytes at block {} are out of bounds", copy.block.0)));
    };
    let mut archive = AlignedVec::<16>::with_capacity(bytes);
    archive.resize(bytes, 0);
    memory.read(offset, &mut archive)?;
    if !copy.checksum.matches(&archive) {
        return Err(corrupt(copy, "the archive does not match its checksum".into()));
    }
    let session = validate(&archive, limits)
        .map_err(|error| corrupt(copy, "the archive is not valid".into()).with_source(error))?;
    let (id, version) = (session.id(), session.version());
    let same =
        id == copy.id && version.epoch == copy.version.epoch && version.counter <= copy.version.counter;
    if !same && holds(Rule::R7Blocks) {
        return Err(corrupt(copy, format!("its block holds session {id} at version {version}")));
    }
    Ok(archive.to_vec())
}

fn corrupt(copy: &SessionCopy, what: String) -> Error {
    let what = format!("the copy of session {} at version {}: {what}", copy.id, copy.version);
    Error::new(ErrorKind::Corrupt, Origin::Lease, what)
}
