//! Repair: bringing back what `kill -9` left behind.
//!
//! A shard is repaired by whoever takes its lock over from a dead holder; a process's holds, by whoever
//! notices its death (a waiter, the steward, or the next process in its slot). Both can be cut off themselves
//! and be begun anew by others, also at the same time: each step is done under a shard's lock and looks first
//! whether it is still to be done.

use super::layout::{HOLDS_PER_CHUNK, Word, entry_used, hold_state};
use super::shard::Guard;
use super::{Inner, ProcessId, ProcessInfo};
use crate::error::Result;
use crate::sync::robust_lock;

impl Guard<'_> {
    /// Builds chains, lists and sums anew from what is true (entries by their owner words, holds by their
    /// states), and finishes or undoes what was under way.
    pub fn rebuild(&self) {
        let segment = &self.cache.segment;
        let buckets = segment.geometry.buckets;
        for bucket in 0..buckets {
            segment.heads[self.shard * buckets + bucket].write(0);
        }
        let sums = &segment.shards[self.shard];
        sums.sessions.write(0);
        sums.others.write(0);
        sums.bytes_used.write(0);
        sums.safe.iter().for_each(|sum| sum.write(0));

        for index in segment.entry_owners.iter(segment.entry_owners.len(), |owner| owner == self.shard + 1) {
            let entry = self.entry(index);
            entry.counted_state.write(0);
            if entry.used.read() != entry_used::YES {
                self.free_entry(index);
                continue;
            }
            entry.holder.write(0);
            entry.holds.write(0);
            entry.waiters.write(0);
            self.link(index);
        }
        self.rebuild_lists();
        kill_point!("steward.rebuilding");
        for index in self.entries() {
            self.drop_other_block(index);
            self.repair_places(index);
            self.grant_next(index);
            self.count(index);
            self.reap(index);
        }
    }

    /// Joins the holds of all processes to their entries again, dead ones included: those are released one by
    /// one later.
    fn rebuild_lists(&self) {
        let segment = &self.cache.segment;
        for chunk in segment.hold_owners.iter(segment.hold_owners.len(), |owner| owner != 0) {
            for hold in chunk * HOLDS_PER_CHUNK..(chunk + 1) * HOLDS_PER_CHUNK {
                let record = self.hold(hold);
                let state = record.state.read();
                if state == hold_state::FREE {
                    continue;
                }
                let Some(index) = record.entry.read().checked_sub(1) else { continue };
                if segment.entry_owners.owner(index) != self.shard + 1 {
                    continue;
                }
                let entry = self.entry(index);
                self.list(index, hold);
                match state {
                    hold_state::GRANTED => entry.holder.write(hold + 1),
                    hold_state::WAITING => {
                        entry.waiters.write(entry.waiters.read() + 1);
                        let next = entry.next_ticket.read().max(record.ticket.read() + 1);
                        entry.next_ticket.write(next);
                    }
                    _ => {}
                }
            }
        }
    }

    /// Frees the block of the content that does not count.
    fn drop_other_block(&self, index: u32) {
        let entry = self.entry(index);
        let other = &entry.content[(entry.current.read() & 1 ^ 1) as usize];
        self.drop_block(index, other.block.read());
    }
}

impl Inner {
    /// Repairs after every process of the table that died; returns those.
    pub(super) fn repair_dead(&self) -> Result<Vec<ProcessInfo>> {
        let dead: Vec<_> = self.segment.processes.iter().filter(|process| !process.alive).collect();
        dead.iter().try_for_each(|process| self.repair_process(process.id))?;
        Ok(dead)
    }

    /// Releases everything that is held in the name of a process that died.
    #[cold]
    pub(super) fn repair_process(&self, process: ProcessId) -> Result<()> {
        self.repair_slot(process.slot)?;
        self.segment.processes.leave(process);
        Ok(())
    }

    /// Releases everything that is held in the name of a slot's dead lives: an earlier repair may itself have
    /// been killed.
    pub(super) fn repair_slot(&self, slot: u32) -> Result<()> {
        let segment = &self.segment;
        let dead = |word| {
            let process = ProcessId::from_word(word);
            process.is_some_and(|process| process.slot == slot && !segment.processes.alive(process))
        };
        for shard in 0..segment.shards.len() {
            if dead(robust_lock::holder(&segment.shards[shard].lock)) {
                // Locking takes the lock over and repairs the shard.
                drop(self.lock_shard(shard)?);
            }
        }
        for chunk in 0..segment.hold_owners.len() {
            let owner = segment.hold_owners.owner(chunk);
            if dead(owner) {
                self.release_chunk(chunk, owner)?;
            }
        }
        self.clear_hints();
        Ok(())
    }

    /// Releases everything that is held in the name of one life.
    pub(super) fn release_all_of(&self, word: u32) -> Result<()> {
        let owners = &self.segment.hold_owners;
        owners.iter(owners.len(), |owner| owner == word).try_for_each(|chunk| self.release_chunk(chunk, word))
    }

    fn release_chunk(&self, chunk: u32, word: u32) -> Result<()> {
        for hold in chunk * HOLDS_PER_CHUNK..(chunk + 1) * HOLDS_PER_CHUNK {
            self.release_of(word, hold)?;
        }
        self.segment.hold_owners.give(chunk, word);
        Ok(())
    }

    /// A kill may have left "full" hints behind that are not true.
    fn clear_hints(&self) {
        let segment = &self.segment;
        segment.entry_owners.clear_hints();
        segment.hold_owners.clear_hints();
        segment.heap.clear_hints();
        for book in &segment.books {
            book.slots.clear_hints();
            book.heap.clear_hints();
        }
    }

    /// Releases a hold if it is still one of that process.
    fn release_of(&self, word: u32, hold: u32) -> Result<()> {
        let record = &self.segment.holds[hold];
        if record.state.read() == hold_state::FREE {
            return Ok(());
        }
        let Some(index) = record.entry.read().checked_sub(1) else { return Ok(()) };
        let Some(shard) = self.segment.entry_owners.owner(index).checked_sub(1) else { return Ok(()) };
        let guard = self.lock_shard(shard)?;
        // Under the lock nobody else can end or begin a hold of this shard, so what is seen now stays.
        let same = self.hold_owner(hold) == word
            && record.state.read() != hold_state::FREE
            && record.entry.read() == index + 1
            && self.segment.entry_owners.owner(index) == shard + 1;
        if same {
            guard.leave(index, hold);
            kill_point!("steward.repairing");
        }
        Ok(())
    }
}
