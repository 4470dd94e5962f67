//! The index of sealed leases: which sessions are in them, and at which version.
//!
//! It keeps private copies of the cells, so that nothing its former owner writes later can change them. The
//! table is open addressing over positions with a hash that is keyed at random: a hostile node may choose the
//! ids in its own lease.

use super::cell::{ArchiveChecksum, Cell, CellState};
use super::layout::{BlockOffset, LeaseGeometry};
use super::memory::LeaseMemory;
use super::scan::{BadCells, ScanReport, scan_each};
use crate::archive::ArchiveLimits;
use crate::error::Result;
use crate::ident::{SessionId, Version};
use crate::rules::{Rule, holds};
use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Sessions that are made room for before a scan; more make the table grow.
const CAPACITY_AT_FIRST: usize = 1 << 20;
/// Cells that are added to the table at once.
const BATCH: usize = 64;

/// A private copy of what a sealed lease says of one session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionCopy {
    /// The session.
    pub id: SessionId,
    /// Its version.
    pub version: Version,
    /// When it expires, Unix ms.
    pub expiry_ms: u64,
    /// False: a tombstone.
    pub live: bool,
    /// Settled, destroyed or expired: it does not hold the release of its set back (R10).
    pub settled: bool,
    /// Where the archive is in its lease; meaningless for a tombstone.
    pub block: BlockOffset,
    /// The archive's length.
    pub archive_bytes: u32,
    /// The archive's checksum.
    pub checksum: ArchiveChecksum,
}

impl SessionCopy {
    /// What a cell says; `None` for "moved", which is not here (R11).
    fn of(cell: &Cell) -> Option<Self> {
        if cell.state == CellState::Moved && holds(Rule::R11Moved) {
            return None;
        }
        let live = cell.state == CellState::Live;
        Some(Self {
            id: cell.id,
            version: cell.version,
            expiry_ms: cell.expiry_ms,
            live,
            settled: !live,
            block: cell.block,
            archive_bytes: cell.archive_bytes,
            checksum: cell.checksum,
        })
    }

    /// The higher version; of one version a tombstone.
    fn beats(&self, other: &Self) -> bool {
        (self.version, !self.live) > (other.version, !other.live)
    }
}

/// The sessions of one sealed lease, each once, at its highest version.
pub struct LeaseIndex {
    copies: Vec<SessionCopy>,
    /// A power of two of entries: 0, or position + 1 in the low half and a part of the hash in the high half.
    table: Vec<u64>,
    seed: u64,
    live: u64,
    unsettled: u64,
}

impl LeaseIndex {
    /// Indexes a scan. "Moved" is not here (R11); a tombstone beats a live copy of the same or a lower
    /// version.
    pub fn new(scan: &ScanReport) -> Self {
        let mut index = Self::with_capacity(scan.cells.len());
        scan.cells.iter().for_each(|(_, cell)| index.add(cell));
        index
    }

    /// Scans a sealed lease and indexes it in one pass.
    ///
    /// # Errors
    /// As [`super::scan()`].
    pub fn scan(
        memory: &dyn LeaseMemory,
        geometry: &LeaseGeometry,
        limits: &ArchiveLimits,
    ) -> Result<(Self, BadCells)> {
        let mut index = Self::with_capacity((geometry.slot_count as usize).min(CAPACITY_AT_FIRST));
        let mut batch = Vec::with_capacity(BATCH);
        let bad = scan_each(memory, geometry, limits, |_, cell| {
            batch.push(cell);
            if batch.len() == BATCH {
                index.add_batch(&batch);
                batch.clear();
            }
        })?;
        index.add_batch(&batch);
        Ok((index, bad))
    }

    fn with_capacity(count: usize) -> Self {
        let table = vec![0; (count * 2).next_power_of_two().max(16)];
        let seed = RandomState::new().hash_one(0_u64);
        Self { copies: Vec::with_capacity(count), table, seed, live: 0, unsettled: 0 }
    }

    /// What the lease says of a session.
    pub fn find(&self, id: &SessionId) -> Option<&SessionCopy> {
        self.copies.get(self.position(id, self.hash(id)).ok()?)
    }

    /// All copies; the position is the cursor of `ListSealed`.
    pub fn copies(&self) -> &[SessionCopy] {
        &self.copies
    }

    /// Live copies.
    pub fn live(&self) -> u64 {
        self.live
    }

    /// Live copies that no one has settled, destroyed or outlived (R10).
    pub fn unsettled(&self) -> u64 {
        self.unsettled
    }

    /// Adds cells. The table is far larger than the processor's caches and hit at random: the entries of a
    /// batch are loaded first, so that their misses overlap instead of coming one after the other.
    fn add_batch(&mut self, cells: &[Cell]) {
        let mask = self.table.len() - 1;
        let near = |sum: u64, cell: &Cell| sum ^ self.table[self.hash(&cell.id) as usize & mask];
        std::hint::black_box(cells.iter().fold(0, near));
        cells.iter().for_each(|cell| self.add(cell));
    }

    fn add(&mut self, cell: &Cell) {
        let Some(copy) = SessionCopy::of(cell) else { return };
        if (self.copies.len() + 1) * 2 > self.table.len() {
            self.grow();
        }
        let hash = self.hash(&copy.id);
        match self.position(&copy.id, hash) {
            Ok(at) if copy.beats(&self.copies[at]) => self.change(at, |old| *old = copy),
            Ok(_) => {}
            Err(entry) => {
                self.table[entry] = table_entry(self.copies.len(), hash);
                self.copies.push(copy);
                self.live += u64::from(copy.live);
                self.unsettled += u64::from(!copy.settled);
            }
        }
    }

    fn grow(&mut self) {
        let mut table = vec![0; self.table.len() * 4];
        for (at, copy) in self.copies.iter().enumerate() {
            let hash = self.hash(&copy.id);
            let mut entry = hash as usize & (table.len() - 1);
            while table[entry] != 0 {
                entry = (entry + 1) & (table.len() - 1);
            }
            table[entry] = table_entry(at, hash);
        }
        self.table = table;
    }

    /// The position of a session's copy, or else the free entry of the table where it belongs.
    fn position(&self, id: &SessionId, hash: u64) -> std::result::Result<usize, usize> {
        let mut entry = hash as usize & (self.table.len() - 1);
        loop {
            let found = self.table[entry];
            if found == 0 {
                return Err(entry);
            }
            let at = (found as u32 - 1) as usize;
            if found >> 32 == hash >> 32 && self.copies[at].id == *id {
                return Ok(at);
            }
            // The table is at most half full, so a free entry comes.
            entry = (entry + 1) & (self.table.len() - 1);
        }
    }

    fn hash(&self, id: &SessionId) -> u64 {
        xxh3_64_with_seed(&id.0, self.seed)
    }

    /// Changes one copy and keeps the counts true.
    fn change(&mut self, at: usize, change: impl FnOnce(&mut SessionCopy)) {
        let copy = &mut self.copies[at];
        self.live -= u64::from(copy.live);
        self.unsettled -= u64::from(!copy.settled);
        change(copy);
        self.live += u64::from(copy.live);
        self.unsettled += u64::from(!copy.settled);
    }

    fn change_up_to(&mut self, id: &SessionId, version: Version, change: impl FnOnce(&mut SessionCopy)) {
        if let Ok(at) = self.position(id, self.hash(id))
            && self.copies[at].version <= version
        {
            self.change(at, change);
        }
    }
}

fn table_entry(at: usize, hash: u64) -> u64 {
    (hash & !0xffff_ffff) | (at as u64 + 1)
}

/// The sessions of all sealed leases of a server. Leases are named by a key of the caller's choice.
#[derive(Default)]
pub struct SealedIndex {
    leases: BTreeMap<u64, LeaseIndex>,
}

impl SealedIndex {
    /// Adds a sealed lease.
    pub fn insert(&mut self, lease: u64, index: LeaseIndex) {
        self.leases.insert(lease, index);
    }

    /// Releases a sealed lease (R10).
    pub fn remove(&mut self, lease: u64) -> Option<LeaseIndex> {
        self.leases.remove(&lease)
    }

    /// The index of one lease.
    pub fn lease(&self, lease: u64) -> Option<&LeaseIndex> {
        self.leases.get(&lease)
    }

    /// The best copy of a session over all leases, and the lease it is in: the highest version, a tombstone
    /// first.
    pub fn find(&self, id: &SessionId) -> Option<(u64, &SessionCopy)> {
        let found = self.leases.iter().filter_map(|(lease, index)| Some((*lease, index.find(id)?)));
        found.reduce(|best, other| if other.1.beats(best.1) { other } else { best })
    }

    /// The session is safe elsewhere at this version: copies up to it are settled (R10).
    pub fn settle(&mut self, id: &SessionId, version: Version) {
        for index in self.leases.values_mut() {
            index.change_up_to(id, version, |copy| copy.settled = true);
        }
    }

    /// The session is gone at this version: copies up to it become tombstones of it (R9).
    pub fn destroy(&mut self, id: &SessionId, version: Version) {
        for index in self.leases.values_mut() {
            index.change_up_to(id, version, |copy| {
                (copy.version, copy.live, copy.settled) = (version, false, true);
            });
        }
    }

    /// Live copies whose expiry is before `before_ms` (now less the allowance for clock skew) become
    /// tombstones of their version (R14). Returns how many.
    pub fn sweep(&mut self, before_ms: u64) -> u64 {
        let mut swept = 0;
        for index in self.leases.values_mut() {
            for at in 0..index.copies.len() {
                if index.copies[at].live && index.copies[at].expiry_ms < before_ms {
                    index.change(at, |copy| (copy.live, copy.settled) = (false, true));
                    swept += 1;
                }
            }
        }
        swept
    }
}
