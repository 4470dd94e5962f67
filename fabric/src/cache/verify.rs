//! Checks of a whole segment at rest, for tests and for `selvage` to look at a segment: the invariants that
//! repair upholds.

use super::book::QUARANTINED;
use super::layout::{Word, content_state, entry_used, hold_state, place_state, word_block};
use super::shard::{Guard, STAGED_BY};
use super::{BookIndex, Cache, CacheStats};
use crate::error::Result;
use crate::sync::robust_lock;
use std::collections::BTreeSet;

impl Cache {
    /// What is wrong in the segment; empty if nothing. Only at rest: no other process may work in it, and
    /// dead ones must have been repaired. Finds stuck locks, entries outside chains, sums that are off,
    /// owned things that their owner does not name, and statistics that cannot be.
    ///
    /// # Errors
    /// `Timeout` if a shard is locked by a process that lives.
    pub fn verify(&self) -> Result<Vec<String>> {
        let inner = &self.inner;
        let mut wrong = Vec::new();
        let mut stats = CacheStats { bytes_total: self.stats()?.bytes_total, ..CacheStats::default() };
        // Blocks of the cache's heap that some entry or hold names, with their owner.
        let mut named = BTreeSet::new();
        for shard in 0..inner.segment.shards.len() {
            let words = &inner.segment.shards[shard];
            let holder = robust_lock::holder(&words.lock);
            if holder != 0 || words.dirty.read() != 0 {
                wrong.push(format!("shard {shard}: locked by {holder:#x} or not repaired, at rest"));
            }
            let guard = inner.lock_shard(shard)?;
            guard.verify_shard(&mut wrong, &mut stats, &mut named);
        }
        for (block, owner, whole) in inner.segment.heap.iter(inner.segment.heap_size) {
            if !whole {
                wrong.push(format!("cache block {}: not on its chunk's grid", block.0));
            }
            if !named.contains(&(block.0, owner)) {
                wrong.push(format!("cache block {}: owner {owner:#x} does not name it", block.0));
            }
        }
        let sums = self.stats()?;
        if sums != stats {
            wrong.push(format!("sums are {sums:?}, entries say {stats:?}"));
        }
        for index in 0..inner.segment.books.len() {
            self.verify_book(BookIndex(index as u32), &mut wrong);
        }
        self.verify_tallies(&mut wrong);
        Ok(wrong)
    }

    fn verify_book(&self, index: BookIndex, wrong: &mut Vec<String>) {
        let book = self.inner.book(index);
        let entries = &self.inner.segment.entries;
        // What a place of the entry behind an owner word names: slot and blocks.
        let names = |owner: u32, what: &dyn Fn(&super::layout::Place) -> bool| {
            let entry = owner.checked_sub(1).filter(|entry| *entry < entries.len());
            entry.is_some_and(|entry| {
                entries[entry].used.read() == entry_used::YES
                    && entries[entry].places.iter().any(|place| {
                        place.state.read() != place_state::EMPTY
                            && place.book.read() == index.0
                            && book.is_for(place.server.read())
                            && what(place)
                    })
            })
        };
        for slot in 0..book.slots.len() {
            let owner = book.slots.owner(slot);
            if owner != 0 && owner & QUARANTINED == 0 && !names(owner, &|place| place.slot.read() == slot + 1)
            {
                wrong.push(format!("book {}: slot {slot}: owner {owner:#x} does not name it", index.0));
            }
        }
        for (block, owner, whole) in book.heap.iter(book.heap_size()) {
            let is_named = if owner & QUARANTINED != 0 {
                let slot = owner & !QUARANTINED;
                book.slots.owner(slot) == owner
                    && book.slot_records[slot].blocks.iter().any(|at| at.read() == block.0 + 1)
            } else {
                names(owner, &|place| place.blocks.iter().any(|at| at.read() == block.0 + 1))
            };
            if !is_named || !whole {
                wrong.push(format!(
                    "book {}: block {}: owner {owner:#x} does not name it, or it is off the grid",
                    index.0, block.0
                ));
            }
        }
    }
}

impl Guard<'_> {
    fn verify_shard(
        &self,
        wrong: &mut Vec<String>,
        stats: &mut CacheStats,
        named: &mut BTreeSet<(u32, u32)>,
    ) {
        let segment = &self.cache.segment;
        for index in segment.entry_owners.iter(segment.entry_owners.len(), |owner| owner == self.shard + 1) {
            let entry = self.entry(index);
            if entry.used.read() != entry_used::YES {
                wrong.push(format!("entry {index}: owned and not used"));
                continue;
            }
            let info = self.info(index);
            if self.find(&info.id) != Some(index) {
                wrong.push(format!("entry {index} ({}): not in its chain", info.id));
            }
            let content = self.content(index);
            named.insert((content.block.read().wrapping_sub(1), index + 1));
            let block = word_block(content.block.read());
            if block.is_some_and(|block| segment.heap.owner(block) != index + 1) {
                wrong.push(format!("entry {index} ({}): its archive's block is not its own", info.id));
            }
            if content.state.read() == content_state::LIVE {
                let block = block.map_or(0, |block| segment.heap.block_units(segment.heap_size, block));
                stats.sessions += 1;
                stats.safe[self.safe_copies(index) as usize] += 1;
                stats.bytes_used += u64::from(block) * crate::limits::BLOCK_UNIT_BYTES as u64;
            } else {
                stats.others += 1;
            }
            self.verify_holds(index, wrong, named);
        }
    }

    fn verify_holds(&self, index: u32, wrong: &mut Vec<String>, named: &mut BTreeSet<(u32, u32)>) {
        let entry = self.entry(index);
        let mut waiters = 0;
        let mut holder = 0;
        for hold in self.holds_of(index) {
            let record = self.hold(hold);
            match record.state.read() {
                hold_state::FREE => wrong.push(format!("entry {index}: a free hold in its list")),
                hold_state::GRANTED => holder = hold + 1,
                hold_state::WAITING => waiters += 1,
                _ => {}
            }
            if !self.cache.segment.processes.word_alive(self.cache.hold_owner(hold)) {
                wrong.push(format!("entry {index}: hold {hold} of a dead process"));
            }
            named.insert((record.block.read().wrapping_sub(1), index + 1));
            named.insert((record.staged.read().wrapping_sub(1), STAGED_BY | hold));
        }
        if (entry.holder.read(), entry.waiters.read()) != (holder, waiters) {
            wrong.push(format!("entry {index}: holder or waiters are off"));
        }
        if holder == 0 && waiters != 0 {
            wrong.push(format!("entry {index}: waiters, and nobody has the lock"));
        }
    }
}
