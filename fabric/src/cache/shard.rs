//! Work under a shard's lock: the index, what entries say, who holds, waits and pins, and the sums.
//!
//! Nothing here waits, enters the kernel (waking others happens after the lock is given back) or allocates on
//! the heap. Every function may be cut off by `kill -9` after any store; `rebuild` brings the shard back from
//! any such point. Stores that make something happen ("truth") come before those that only help to find it
//! (chains, lists, sums).

use super::layout::{
    Content, Entry, FLAG_ADOPTED, HOLDS_PER_CHUNK, HoldRecord, SHARDS, Word, block_word, content_state,
    entry_used, hold_state, place_state, word_block,
};
use super::{EntryInit, Inner, ProcessId};
use crate::error::{Error, ErrorKind, Origin, Result};
use crate::ident::{SessionId, Version};
use crate::lease::BlockOffset;
use crate::limits;
use crate::sync::words::{AtomicU32, AtomicU64};
use crate::sync::{futex, robust_lock};
use std::cell::Cell;

/// Owner words of cache blocks that are staged: this bit and the hold.
pub const STAGED_BY: u32 = 1 << 31;

/// The shard of a session.
#[inline]
pub fn shard_of(id: &SessionId) -> u32 {
    (id.hash64() % u64::from(SHARDS)) as u32
}

/// A locked shard; unlocks when dropped.
pub struct Guard<'a> {
    pub cache: &'a Inner,
    pub shard: u32,
    /// A hold to wake after the unlocking.
    wake: Cell<Option<u32>>,
}

impl Inner {
    /// Locks a shard, repairing it first if its last holder died.
    #[inline]
    pub fn lock_shard(&self, shard: u32) -> Result<Guard<'_>> {
        let words = &self.segment.shards[shard];
        let alive = |word| self.segment.processes.word_alive(word);
        let acquired = robust_lock::acquire(&words.lock, self.word, limits::SHARD_WAIT, alive);
        let guard = Guard { cache: self, shard, wake: Cell::new(None) };
        match acquired {
            Ok(robust_lock::Acquired::Clean) => {}
            Ok(robust_lock::Acquired::TakenOver) => words.dirty.write(1),
            Err(stuck) => {
                std::mem::forget(guard);
                return Err(self.stuck(stuck.holder));
            }
        }
        kill_point!("lock.shard");
        if words.dirty.read() != 0 {
            guard.rebuild();
            words.dirty.write(0);
        }
        Ok(guard)
    }

    #[cold]
    fn stuck(&self, holder: u32) -> Error {
        let pid = ProcessId::from_word(holder).map_or(0, |process| self.segment.processes.pid(process.slot));
        Error::new(
            ErrorKind::Timeout,
            Origin::Cache,
            format!(
                "process {pid} has kept a lock of the cache for {} ms and lives: is it stopped?",
                limits::SHARD_WAIT.as_millis()
            ),
        )
    }

    /// Wakes who waits with a hold, and its process's event loop.
    pub fn wake(&self, hold: u32) {
        futex::wake(&self.segment.holds[hold].state, 1);
        if let Some(process) = ProcessId::from_word(self.hold_owner(hold)) {
            self.segment.processes.ring(process.slot);
        }
    }

    /// The word of the process that a hold belongs to.
    #[inline]
    pub fn hold_owner(&self, hold: u32) -> u32 {
        self.segment.hold_owners.owner(hold / HOLDS_PER_CHUNK)
    }
}

impl Drop for Guard<'_> {
    #[inline]
    fn drop(&mut self) {
        #[cfg(test)]
        {
            if super::crash::dead() {
                return;
            }
            super::crash::point();
        }
        let words = &self.cache.segment.shards[self.shard];
        if std::thread::panicking() {
            words.dirty.write(1);
        }
        robust_lock::release(&words.lock);
        if let Some(hold) = self.wake.take() {
            self.cache.wake(hold);
        }
    }
}

impl<'a> Guard<'a> {
    #[inline]
    pub fn entry(&self, entry: u32) -> &'a Entry {
        &self.cache.segment.entries[entry]
    }

    #[inline]
    pub fn hold(&self, hold: u32) -> &'a HoldRecord {
        &self.cache.segment.holds[hold]
    }

    /// The entry of a session.
    #[inline]
    pub fn find(&self, id: &SessionId) -> Option<u32> {
        let words = id_words(id);
        let mut at = self.head(id).read();
        while let Some(index) = at.checked_sub(1) {
            let entry = self.entry(index);
            if entry.id[0].read() == words[0] && entry.id[1].read() == words[1] {
                return Some(index);
            }
            at = entry.next.read();
        }
        None
    }

    /// Makes an entry; `None` if there are `sessions_max`.
    pub fn insert(&self, id: &SessionId, init: &EntryInit) -> Option<u32> {
        let owners = &self.cache.segment.entry_owners;
        // Repair finds an entry that was taken and not used by its owner word, so no intent is needed.
        let unused = AtomicU32::new(0);
        let index = owners.take(owners.len(), self.shard + 1, &unused)?;
        kill_point!("allocate.entry");
        let entry = self.entry(index);
        for (to, from) in entry.id.iter().zip(id_words(id)) {
            to.write(from);
        }
        entry.holder.write(0);
        entry.holds.write(0);
        entry.waiters.write(0);
        entry.next_ticket.write(1);
        entry.predecessor.write(0);
        entry.successor.write(0);
        entry.pushed_expiry_ms.write(0);
        self.set_init(index, init);
        entry.counted_state.write(0);
        entry.current.write(0);
        for content in &entry.content {
            write_content(content, content_state::ADOPTING, 0, 0, Version::default(), 0);
        }
        entry.places.iter().for_each(|place| place.state.write(place_state::EMPTY));
        entry.used.write(entry_used::YES);
        self.link(index);
        self.count(index);
        Some(index)
    }

    /// Writes the first facts of an entry.
    pub fn set_init(&self, index: u32, init: &EntryInit) {
        let entry = self.entry(index);
        entry.created_ms.write(init.created_ms);
        entry.absolute_ms.write(init.absolute_ms);
        entry.flags.write(if init.adopted { FLAG_ADOPTED } else { 0 });
    }

    /// Lets an entry go if nothing needs it any more.
    pub fn reap(&self, index: u32) {
        let entry = self.entry(index);
        let live = self.content(index).state.read() == content_state::LIVE;
        let placed = entry.places.iter().any(|place| place.state.read() != place_state::EMPTY);
        let held = entry.holds.read() != 0 || self.is_graced(index);
        if live || placed || held || self.is_quarantined(index) {
            return;
        }
        entry.used.write(entry_used::NO);
        self.count(index);
        self.unlink(index);
        self.free_entry(index);
    }

    /// Gives back all that an unused entry names, last itself.
    pub(super) fn free_entry(&self, index: u32) {
        for content in &self.entry(index).content {
            self.give_block(index, content.block.read());
            content.block.write(0);
        }
        self.cache.segment.entry_owners.give(index, self.shard + 1);
    }

    /// What the entry says now.
    #[inline]
    pub fn content(&self, index: u32) -> &'a Content {
        let entry = self.entry(index);
        &entry.content[(entry.current.read() & 1) as usize]
    }

    /// Makes the entry say something else, in one store. The block before is freed, or left to those who pin
    /// it; `hold`, whose own pin follows, does not count.
    pub fn replace(&self, index: u32, hold: u32, new: &Replacement) {
        let entry = self.entry(index);
        let current = entry.current.read() & 1;
        let before = entry.content[current as usize].block.read();
        let other = &entry.content[(current ^ 1) as usize];
        write_content(other, new.state, block_word(new.block), new.archive_bytes, new.version, new.expiry_ms);
        if let Some(block) = new.block {
            // A staged block becomes the entry's; one that stays (touch) is already.
            self.cache.segment.heap.pass(block, STAGED_BY | hold, index + 1);
        }
        entry.current.write(current ^ 1);
        kill_point!("commit.replaced");
        let record = self.hold(hold);
        record.block_bytes.write(new.archive_bytes);
        record.block.write(block_word(new.block));
        self.drop_block(index, before);
        self.count(index);
    }

    /// Frees a block of the entry's unless it is current or pinned.
    pub fn drop_block(&self, index: u32, block: u32) {
        if block == 0 || block == self.content(index).block.read() {
            return;
        }
        let pinned = self.holds_of(index).any(|hold| self.hold(hold).block.read() == block);
        if !pinned {
            self.give_block(index, block);
        }
    }

    fn give_block(&self, index: u32, block: u32) {
        if let Some(block) = word_block(block) {
            self.cache.segment.heap.give(self.cache.segment.heap_size, block, index + 1);
        }
    }

    /// The holds of an entry, newest first.
    #[inline]
    pub fn holds_of(&self, index: u32) -> impl Iterator<Item = u32> + use<'a> {
        let holds = &self.cache.segment.holds;
        let mut at = self.entry(index).holds.read();
        std::iter::from_fn(move || {
            let hold = at.checked_sub(1)?;
            at = holds[hold].next.read();
            Some(hold)
        })
    }

    /// Joins a hold to an entry in the given state; a waiting one gets its ticket.
    #[inline]
    pub fn join(&self, index: u32, hold: u32, state: u32) {
        let (entry, record) = (self.entry(index), self.hold(hold));
        record.entry.write(index + 1);
        record.staged.write(0);
        record.block.write(0);
        if state == hold_state::WAITING {
            let ticket = entry.next_ticket.read();
            entry.next_ticket.write(ticket + 1);
            record.ticket.write(ticket);
            entry.waiters.write(entry.waiters.read() + 1);
        } else {
            self.pin(index, hold);
        }
        if state == hold_state::GRANTED {
            record.granted_ns.write(coarse_now_ns());
        }
        record.state.write(state);
        kill_point!("lock.joined");
        if state == hold_state::GRANTED {
            entry.holder.write(hold + 1);
        }
        self.list(index, hold);
    }

    /// Ends a hold, whatever it was, and passes the lock on.
    pub fn leave(&self, index: u32, hold: u32) {
        let (entry, record) = (self.entry(index), self.hold(hold));
        let state = record.state.read();
        if state == hold_state::GRANTED {
            self.quarantine_open_pushes(index, self.cache.hold_owner(hold));
            entry.holder.write(0);
        } else if state == hold_state::WAITING {
            entry.waiters.write(entry.waiters.read().saturating_sub(1));
        }
        kill_point!("lock.left");
        self.unlist(index, hold);
        self.drop_staged(hold);
        self.drop_block(index, record.block.read());
        record.block.write(0);
        record.state.write(hold_state::FREE);
        kill_point!("lock.freed");
        if state == hold_state::PINNED {
            // A tombstone may have waited for its last reader.
            if entry.holds.read() == 0 {
                self.reap(index);
            }
            return;
        }
        self.grant_next(index);
        self.count(index);
        self.reap(index);
    }

    /// Makes a hold that has or had the lock a pin of what it saw last, and passes the lock on. The state is
    /// what counts: who is killed after its store has given the lock back.
    pub fn demote(&self, index: u32, hold: u32) {
        let (entry, record) = (self.entry(index), self.hold(hold));
        let had_lock = record.state.read() == hold_state::GRANTED;
        if had_lock {
            self.quarantine_open_pushes(index, self.cache.hold_owner(hold));
        }
        self.drop_staged(hold);
        record.state.write(hold_state::PINNED);
        kill_point!("lock.demoted");
        if had_lock {
            entry.holder.write(0);
            self.grant_next(index);
            self.count(index);
        }
    }

    /// Frees the block that a hold has staged.
    pub fn drop_staged(&self, hold: u32) {
        let record = self.hold(hold);
        if let Some(block) = word_block(record.staged.read()) {
            self.cache.segment.heap.give(self.cache.segment.heap_size, block, STAGED_BY | hold);
            record.staged.write(0);
        }
    }

    /// Gives the lock to the one who has waited longest, if nobody has it.
    pub fn grant_next(&self, index: u32) {
        let entry = self.entry(index);
        if entry.holder.read() != 0 || entry.waiters.read() == 0 {
            return;
        }
        let next = self
            .holds_of(index)
            .filter(|hold| self.hold(*hold).state.read() == hold_state::WAITING)
            .min_by_key(|hold| self.hold(*hold).ticket.read());
        let Some(hold) = next else { return };
        let record = self.hold(hold);
        self.pin(index, hold);
        record.granted_ns.write(coarse_now_ns());
        record.state.write(hold_state::GRANTED);
        kill_point!("lock.granted");
        entry.waiters.write(entry.waiters.read().saturating_sub(1));
        entry.holder.write(hold + 1);
        self.wake_later(hold);
    }

    /// Takes the lock from a hold that had it too long; the next one gets it.
    pub fn revoke(&self, index: u32, hold: u32) {
        self.quarantine_open_pushes(index, self.cache.hold_owner(hold));
        self.hold(hold).state.write(hold_state::REVOKED);
        self.entry(index).holder.write(0);
        self.wake_later(hold);
        self.grant_next(index);
        self.count(index);
    }

    /// Whether the hold still has the session's lock.
    pub fn check_granted(&self, hold: u32) -> Result<()> {
        self.cache.check_alive()?;
        if self.hold(hold).state.read() == hold_state::GRANTED {
            return Ok(());
        }
        Err(lock_lost())
    }

    /// Brings the shard's sums up to date with an entry.
    pub fn count(&self, index: u32) {
        let entry = self.entry(index);
        let content = self.content(index);
        let used = entry.used.read() == entry_used::YES;
        let state = if used { content.state.read() } else { 0 };
        let live = state == content_state::LIVE;
        let safe = if live { self.safe_copies(index) } else { 0 };
        let bytes = word_block(content.block.read())
            .filter(|_| live)
            .map_or(0, |block| self.cache.segment.heap.block_units(self.cache.segment.heap_size, block));
        let (was, was_safe, was_bytes) =
            (entry.counted_state.read(), entry.counted_safe.read(), entry.counted_bytes.read());
        if (state, safe, bytes) == (was, was_safe, was_bytes) {
            return;
        }
        if was != 0 {
            self.add(was, was_safe, was_bytes, u64::MAX);
        }
        if state != 0 {
            self.add(state, safe, bytes, 1);
        }
        entry.counted_state.write(state);
        entry.counted_safe.write(safe);
        entry.counted_bytes.write(bytes);
    }

    /// Adds (`sign` 1) or takes away (`sign` -1, wrapping) an entry.
    fn add(&self, state: u32, safe: u32, bytes: u32, sign: u64) {
        let sums = &self.cache.segment.shards[self.shard];
        let add = |word: &AtomicU64, by: u64| word.write(word.read().wrapping_add(by.wrapping_mul(sign)));
        if state == content_state::LIVE {
            add(&sums.sessions, 1);
            add(&sums.safe[safe as usize], 1);
            add(&sums.bytes_used, u64::from(bytes) * limits::BLOCK_UNIT_BYTES as u64);
        } else {
            add(&sums.others, 1);
        }
    }

    /// Entries of this shard that are in use.
    pub fn entries(&self) -> impl Iterator<Item = u32> + '_ {
        let owners = &self.cache.segment.entry_owners;
        owners
            .iter(owners.len(), |owner| owner == self.shard + 1)
            .filter(|index| self.entry(*index).used.read() == entry_used::YES)
    }

    /// Pins the entry's current block in a hold.
    #[inline]
    fn pin(&self, index: u32, hold: u32) {
        let (content, record) = (self.content(index), self.hold(hold));
        record.block_bytes.write(content.archive_bytes.read());
        record.block.write(content.block.read());
    }

    fn head(&self, id: &SessionId) -> &'a AtomicU32 {
        let buckets = self.cache.segment.geometry.buckets;
        let bucket = (id.hash64() / u64::from(SHARDS)) as u32 & (buckets - 1);
        &self.cache.segment.heads[self.shard * buckets + bucket]
    }

    pub(super) fn link(&self, index: u32) {
        let head = self.head(&entry_id(self.entry(index)));
        self.entry(index).next.write(head.read());
        head.write(index + 1);
    }

    fn unlink(&self, index: u32) {
        let entry = self.entry(index);
        let mut link = self.head(&entry_id(entry));
        while let Some(at) = link.read().checked_sub(1) {
            if at == index {
                link.write(entry.next.read());
                return;
            }
            link = &self.entry(at).next;
        }
    }

    /// Puts a hold at the head of its entry's list.
    #[inline]
    pub(super) fn list(&self, index: u32, hold: u32) {
        let (entry, record) = (self.entry(index), self.hold(hold));
        let first = entry.holds.read();
        record.previous.write(0);
        record.next.write(first);
        if let Some(first) = first.checked_sub(1) {
            self.hold(first).previous.write(hold + 1);
        }
        entry.holds.write(hold + 1);
    }

    #[inline]
    fn unlist(&self, index: u32, hold: u32) {
        let record = self.hold(hold);
        let (previous, next) = (record.previous.read(), record.next.read());
        match previous.checked_sub(1) {
            Some(previous) => self.hold(previous).next.write(next),
            None => self.entry(index).holds.write(next),
        }
        if let Some(next) = next.checked_sub(1) {
            self.hold(next).previous.write(previous);
        }
    }

    fn wake_later(&self, hold: u32) {
        if let Some(before) = self.wake.replace(Some(hold)) {
            self.cache.wake(before);
        }
    }
}

/// What an entry shall say.
pub struct Replacement {
    pub state: u32,
    pub block: Option<BlockOffset>,
    pub archive_bytes: u32,
    pub version: Version,
    pub expiry_ms: u64,
}

/// The version that a content says.
pub fn content_version(content: &Content) -> Version {
    Version { epoch: content.version_epoch.read(), counter: content.version_counter.read() }
}

/// The session of an entry.
pub fn entry_id(entry: &Entry) -> SessionId {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&entry.id[0].read().to_le_bytes());
    bytes[8..].copy_from_slice(&entry.id[1].read().to_le_bytes());
    SessionId(bytes)
}

/// The lock was taken away.
pub fn lock_lost() -> Error {
    Error::new(
        ErrorKind::LockLost,
        Origin::Cache,
        "the session's lock was held longer than `lock_hold_ms` while others waited, and passed on",
    )
}

/// The monotonic clock at the resolution of the timer tick: enough for `lock_hold_ms`, and cheap.
pub fn coarse_now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

pub(super) fn write_content(
    content: &Content,
    state: u32,
    block: u32,
    bytes: u32,
    version: Version,
    expiry: u64,
) {
    content.version_epoch.write(version.epoch);
    content.version_counter.write(version.counter);
    content.expiry_ms.write(expiry);
    content.archive_bytes.write(bytes);
    content.state.write(state);
    content.block.write(block);
}

fn id_words(id: &SessionId) -> [u64; 2] {
    let (low, high) = id.0.split_at(8);
    let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
    [word(low), word(high)]
}
