//! The process table: who is attached, and who of them lives.

use super::layout::{ProcessRecord, Word};
use super::memory::Array;
use super::{ProcessId, ProcessInfo};
use crate::error::{Error, ErrorKind, Origin, Result};
use crate::sync::words::{AtomicU32, Ordering};
use crate::sync::{LockFile, futex};
use std::sync::Arc;

/// Bits of a process's word that hold its slot + 1; the generation follows. Bit 31 stays free for the robust
/// lock.
const SLOT_BITS: u32 = 9;
const GENERATION_MASK: u32 = (1 << (31 - SLOT_BITS)) - 1;

const _: () = assert!(crate::limits::PROCESSES_MAX < 1 << SLOT_BITS);

impl ProcessId {
    /// The word that names this process in locks and owner tables.
    pub(super) fn word(self) -> u32 {
        (self.generation & GENERATION_MASK) << SLOT_BITS | (self.slot + 1)
    }

    /// The process that a word names; `None` for 0.
    pub(super) fn from_word(word: u32) -> Option<Self> {
        let slot = (word & ((1 << SLOT_BITS) - 1)).checked_sub(1)?;
        Some(Self { slot, generation: word >> SLOT_BITS & GENERATION_MASK })
    }
}

/// How the processes of a segment know of each other's life. A slot's claim ends with its process.
pub trait Liveness: Send + Sync {
    /// Takes the slot for this process; false if somebody has it.
    fn claim(&self, slot: u32) -> Result<bool>;
    /// Gives it back.
    fn release(&self, slot: u32);
    /// Whether somebody has it. When in doubt: yes.
    fn alive(&self, slot: u32) -> bool;
    /// Simulated processes only: the slot's process counts as dead.
    fn kill(&self, slot: u32) {
        self.release(slot);
    }
}

impl Liveness for LockFile {
    fn claim(&self, slot: u32) -> Result<bool> {
        self.try_process(slot)
    }

    fn release(&self, slot: u32) {
        if let Err(error) = self.release_process(slot) {
            tracing::warn!(slot, %error, "cannot give the process slot back; it ends with the process");
        }
    }

    fn alive(&self, slot: u32) -> bool {
        self.process_alive(slot).unwrap_or(true)
    }
}

/// Processes that exist only in one test or simulation.
pub struct SimulatedProcesses(Vec<AtomicU32>);

impl SimulatedProcesses {
    /// So many slots, all free.
    pub fn new(slots: u32) -> Self {
        Self((0..slots).map(|_| AtomicU32::new(0)).collect())
    }
}

impl Liveness for SimulatedProcesses {
    fn claim(&self, slot: u32) -> Result<bool> {
        let slot = &self.0[slot as usize];
        Ok(slot.compare_exchange(0, 1, Ordering::SeqCst, Ordering::SeqCst).is_ok())
    }

    fn release(&self, slot: u32) {
        self.0[slot as usize].store(0, Ordering::SeqCst);
    }

    fn alive(&self, slot: u32) -> bool {
        self.0[slot as usize].load(Ordering::SeqCst) != 0
    }
}

/// The table in the segment, and the judge of life beside it.
pub struct ProcessTable {
    records: Array<ProcessRecord>,
    liveness: Arc<dyn Liveness>,
}

impl ProcessTable {
    /// Over its records.
    pub fn new(records: Array<ProcessRecord>, liveness: Arc<dyn Liveness>) -> Self {
        Self { records, liveness }
    }

    /// The judge of life.
    pub fn liveness(&self) -> &Arc<dyn Liveness> {
        &self.liveness
    }

    /// Claims a slot for this process; call [`ProcessTable::enter`] next.
    pub fn claim(&self) -> Result<u32> {
        for slot in 0..self.records.len() {
            if self.liveness.claim(slot)? {
                return Ok(slot);
            }
        }
        let all = self.records.len();
        Err(Error::new(
            ErrorKind::Busy,
            Origin::Cache,
            format!("{all} processes are attached to the cache already, which is the limit"),
        ))
    }

    /// Begins a new life in a claimed slot. Earlier ones count as dead from here on; repair after them.
    pub fn enter(&self, slot: u32) -> ProcessId {
        let record = &self.records[slot];
        // The generation must fit the word, and must not be 0, so that no word is.
        let generation = ((record.life.read() >> 1) + 1) & GENERATION_MASK;
        let generation = generation.max(1);
        record.pid.write(std::process::id());
        record.life.write(generation << 1 | 1);
        ProcessId { slot, generation }
    }

    /// Ends a life; nothing is held in its name any more.
    pub fn leave(&self, process: ProcessId) {
        let (live, over) = (process.generation << 1 | 1, process.generation << 1);
        // A later life of the slot may have begun; then there is nothing to do.
        let _ =
            self.records[process.slot].life.compare_exchange(live, over, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// Whether the process that a word names lives.
    pub fn word_alive(&self, word: u32) -> bool {
        ProcessId::from_word(word).is_some_and(|process| self.alive(process))
    }

    /// Whether a process lives.
    pub fn alive(&self, process: ProcessId) -> bool {
        if process.slot >= self.records.len() {
            return false;
        }
        // The generation is read before the claim is looked at: a claim seen free after that is this life's
        // end.
        let current = self.records[process.slot].life.read();
        current == process.generation << 1 | 1 && self.liveness.alive(process.slot)
    }

    /// Whether a process has ever had this slot.
    pub fn was_used(&self, slot: u32) -> bool {
        self.records[slot].life.read() != 0
    }

    /// The pid that a process gave.
    pub fn pid(&self, slot: u32) -> u32 {
        self.records[slot].pid.read()
    }

    /// The doorbell of a slot.
    pub fn doorbell(&self, slot: u32) -> &AtomicU32 {
        &self.records[slot].doorbell
    }

    /// Rings a slot's doorbell.
    pub fn ring(&self, slot: u32) {
        let doorbell = self.doorbell(slot);
        doorbell.fetch_add(1, Ordering::Release);
        futex::wake(doorbell, u32::MAX);
    }

    /// All lives that have not ended in order.
    pub fn iter(&self) -> impl Iterator<Item = ProcessInfo> {
        (0..self.records.len()).filter_map(|slot| {
            let life = self.records[slot].life.read();
            let id = ProcessId { slot, generation: life >> 1 };
            (life & 1 != 0).then(|| ProcessInfo { id, pid: self.pid(slot), alive: self.alive(id) })
        })
    }
}
