//! Holds and pins: what a caller has of a session. A hold that gives its lock back becomes a pin where it is.

use super::info::{EntryInfo, EntryInit, HoldState, PlaceIndex, PlaceInfo, Push, PushKind, Waited};
use super::layout::{Word, block_word, content_state, hold_state, word_block};
use super::shard::{Guard, Replacement, STAGED_BY, coarse_now_ns, content_version, lock_lost};
use super::{BookIndex, Cache, Inner};
use crate::error::{Error, ErrorKind, Origin, Result};
use crate::ident::{Incarnation, SessionId, Version};
use crate::limits::{BLOCK_UNIT_BYTES, LIVENESS_POLL};
use crate::sync::futex;
use std::time::Instant;

/// An open session: in the queue for its lock, or with the lock. Dropping it leaves the queue or releases the
/// lock; the next in the queue is granted at once. A push that is open then goes into quarantine (R4).
pub struct Hold {
    pub(super) cache: Cache,
    pub(super) hold: u32,
    pub(super) entry: u32,
    pub(super) shard: u32,
    pub(super) id: SessionId,
}

impl Hold {
    /// Where this hold stands. A poisoned segment is seen by the operations, not here.
    pub fn state(&self) -> HoldState {
        match self.cache.inner.segment.holds[self.hold].state.read() {
            hold_state::GRANTED => HoldState::Granted,
            hold_state::REVOKED => HoldState::Revoked,
            hold_state::PINNED => HoldState::Pinned,
            _ => HoldState::Waiting,
        }
    }

    /// The session.
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// Waits for the lock. Looks every `LIVENESS_POLL` whether the holder died (then repairs and goes on) or
    /// has held longer than `lock_hold_ms` (then revokes).
    ///
    /// # Errors
    /// `OwnershipLost`; `Timeout` if a stopped process keeps a part of the cache locked.
    pub fn wait(&self, deadline: Instant) -> Result<Waited> {
        let word = &self.cache.inner.segment.holds[self.hold].state;
        loop {
            self.cache.inner.check_alive()?;
            match self.state() {
                HoldState::Granted => return Ok(Waited::Granted),
                HoldState::Revoked | HoldState::Pinned => return Ok(Waited::Revoked),
                HoldState::Waiting => {}
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Waited::Timeout);
            }
            kill_point!("lock.waiting");
            futex::wait(word, hold_state::WAITING, left.min(LIVENESS_POLL));
            self.tend()?;
        }
    }

    /// For asynchronous waits: the look that [`Hold::wait`] takes, once. Call it every `LIVENESS_POLL` while
    /// waiting.
    ///
    /// # Errors
    /// As [`Hold::wait`].
    pub fn tend(&self) -> Result<HoldState> {
        self.cache.inner.check_alive()?;
        if self.state() == HoldState::Waiting {
            self.cache.inner.tend(self.entry, self.shard)?;
        }
        Ok(self.state())
    }

    /// Whether the lock is still the caller's: `OwnershipLost` or `LockLost` otherwise. No lock is taken.
    ///
    /// # Errors
    /// As said.
    pub fn check(&self) -> Result<()> {
        self.cache.inner.check_alive()?;
        match self.state() {
            HoldState::Granted => Ok(()),
            HoldState::Revoked => Err(lock_lost()),
            HoldState::Waiting | HoldState::Pinned => {
                Err(Error::new(ErrorKind::Invalid, Origin::Cache, "the session's lock is not granted"))
            }
        }
    }

    /// Snapshot of the entry.
    ///
    /// # Errors
    /// `OwnershipLost`, `Timeout` (a stopped process).
    pub fn info(&self) -> Result<EntryInfo> {
        self.cache.inner.check_alive()?;
        Ok(self.cache.inner.lock_shard(self.shard)?.info(self.entry))
    }

    /// The current archive; empty if there is none. Stays as it is until the next publish through this hold,
    /// even if the lock is revoked.
    pub fn bytes(&self) -> &[u8] {
        let record = &self.cache.inner.segment.holds[self.hold];
        if record.state.read() == hold_state::WAITING {
            return &[];
        }
        self.cache.inner.block_bytes(record.block.read(), record.block_bytes.read())
    }

    /// Allocates a block for a new archive of `bytes` and gives it out for writing. A second call gives the
    /// first back.
    ///
    /// # Errors
    /// `Full`, `TooLarge`, `OwnershipLost`, `LockLost`; nothing is changed then.
    pub fn stage(&mut self, bytes: u32) -> Result<&mut [u8]> {
        self.check()?;
        let segment = &self.cache.inner.segment;
        if bytes > segment.spec.archive_bytes_max {
            return Err(Error::new(
                ErrorKind::TooLarge,
                Origin::Cache,
                format!(
                    "the session would have {bytes} bytes; the limit is {}",
                    segment.spec.archive_bytes_max
                ),
            ));
        }
        let record = &segment.holds[self.hold];
        let owner = STAGED_BY | self.hold;
        if let Some(block) = word_block(record.staged.read()) {
            segment.heap.give(segment.heap_size, block, owner);
            record.staged.write(0);
        }
        let units = bytes.div_ceil(BLOCK_UNIT_BYTES as u32).max(1);
        let block = segment.heap.take(segment.heap_size, units, owner, &record.staged);
        record.staged.write(block_word(block));
        let Some(block) = block else {
            return Err(Error::new(
                ErrorKind::Full,
                Origin::Cache,
                format!(
                    "the cache ({} bytes) has no room for a session of {bytes} bytes; nothing was evicted",
                    segment.geometry.heap.count
                ),
            ));
        };
        record.staged_bytes.write(bytes);
        let offset = segment.geometry.heap.offset + block.0 as usize * BLOCK_UNIT_BYTES;
        let mut range = segment.memory.range(offset, bytes as usize);
        // SAFETY: the range lies in the mapping, which `self.cache` keeps alive (asserted by `range`). Its
        // owner word names this hold, so no other party reads or writes it before `publish` (invariants 2 and
        // 3); `&mut self` keeps this hold's other calls away while the slice lives. Bytes have no invalid
        // values.
        Ok(unsafe { range.as_mut() })
    }

    /// Replaces the facts that were given at the insertion, before the first publish: an adopter takes the
    /// entry before it claims and fetches, so that nobody else of this node does, and knows them only
    /// afterwards.
    ///
    /// # Errors
    /// As [`Hold::publish`].
    pub fn set_init(&mut self, init: EntryInit) -> Result<()> {
        let guard = self.cache.inner.lock_shard(self.shard)?;
        guard.check_granted(self.hold)?;
        guard.set_init(self.entry, &init);
        Ok(())
    }

    /// Makes the staged block the entry's archive. Anything that is pinned by readers stays until they let
    /// go.
    ///
    /// # Errors
    /// `Invalid` if nothing is staged; `Gone` if the entry is a tombstone; `OwnershipLost`, `LockLost`,
    /// `Timeout` (a stopped process): nothing is changed.
    pub fn publish(&mut self, version: Version, expiry_ms: u64) -> Result<()> {
        let guard = self.cache.inner.lock_shard(self.shard)?;
        guard.check_granted(self.hold)?;
        let record = guard.hold(self.hold);
        let block = word_block(record.staged.read()).ok_or_else(|| {
            Error::new(ErrorKind::Invalid, Origin::Cache, "publish without a staged archive")
        })?;
        if guard.content(self.entry).state.read() == content_state::GONE {
            return Err(gone());
        }
        let archive_bytes = record.staged_bytes.read();
        let new =
            Replacement { state: content_state::LIVE, block: Some(block), archive_bytes, version, expiry_ms };
        guard.replace(self.entry, self.hold, &new);
        record.staged.write(0);
        Ok(())
    }

    /// A new version and expiry, data unchanged (R13).
    ///
    /// # Errors
    /// `Gone` unless the session is live; otherwise as [`Hold::publish`].
    pub fn touch(&mut self, version: Version, expiry_ms: u64) -> Result<()> {
        let guard = self.cache.inner.lock_shard(self.shard)?;
        guard.check_granted(self.hold)?;
        let content = guard.content(self.entry);
        if content.state.read() != content_state::LIVE {
            return Err(gone());
        }
        let new = Replacement {
            state: content_state::LIVE,
            block: word_block(content.block.read()),
            archive_bytes: content.archive_bytes.read(),
            version,
            expiry_ms,
        };
        guard.replace(self.entry, self.hold, &new);
        Ok(())
    }

    /// Turns the entry into a tombstone of `version`; its cache block is freed, and the grace of ids that the
    /// session had before is over. It leaves the cache when this
    /// hold is released and no place is held.
    ///
    /// # Errors
    /// As [`Hold::publish`].
    pub fn remove(&mut self, version: Version) -> Result<()> {
        self.check()?;
        self.cache.inner.end_grace_before(self.entry)?;
        let guard = self.cache.inner.lock_shard(self.shard)?;
        guard.check_granted(self.hold)?;
        let new = Replacement {
            state: content_state::GONE,
            block: None,
            archive_bytes: 0,
            version,
            expiry_ms: guard.content(self.entry).expiry_ms.read(),
        };
        guard.replace(self.entry, self.hold, &new);
        Ok(())
    }

    /// The place at a server's life.
    ///
    /// # Errors
    /// As [`Hold::info`].
    pub fn place_at(&self, server: Incarnation) -> Result<Option<PlaceInfo>> {
        Ok(self.info()?.places.iter().find(|place| place.server == server).copied())
    }

    /// The servers at which a slot that the session was pushed to is in quarantine (R4).
    ///
    /// # Errors
    /// As [`Hold::info`].
    pub fn quarantined_at(&self) -> Result<Vec<Incarnation>> {
        self.cache.inner.check_alive()?;
        Ok(self.cache.inner.lock_shard(self.shard)?.quarantined_at(self.entry).collect())
    }

    /// Opens a push to the lease of `book`: finds the entry's place there or takes a new slot, allocates the
    /// block.
    ///
    /// # Errors
    /// `Full` (lease), `Busy` (a push is open there, or all places are taken), `Unreachable` (book not
    /// active), `Invalid` (a touch without an acked archive), `OwnershipLost`, `LockLost`, `Timeout` (a
    /// stopped process).
    pub fn begin_push(&mut self, book: BookIndex, kind: PushKind) -> Result<Push> {
        let guard = self.cache.inner.lock_shard(self.shard)?;
        guard.check_granted(self.hold)?;
        guard.begin_push(self.entry, book, kind)
    }

    /// The push is acked: the place has `version`, and its previous block is free (R7).
    ///
    /// # Errors
    /// `LockLost` if the lock was revoked meanwhile: the slot is in quarantine then (R4). `OwnershipLost`,
    /// `Invalid` (no such push), `Timeout` (a stopped process; call again).
    pub fn end_push(&mut self, push: &Push, version: Version, expiry_ms: u64) -> Result<()> {
        let guard = self.cache.inner.lock_shard(self.shard)?;
        guard.check_granted(self.hold)?;
        guard.end_push(self.entry, push, version, expiry_ms)
    }

    /// Nothing of the push was written and nothing ever will be: undo it.
    ///
    /// # Errors
    /// As [`Hold::end_push`].
    pub fn cancel_push(&mut self, push: &Push) -> Result<()> {
        let guard = self.cache.inner.lock_shard(self.shard)?;
        guard.check_granted(self.hold)?;
        guard.cancel_push(self.entry, push)
    }

    /// The push may or may not arrive: its slot and blocks go into quarantine (R4), the place is empty.
    /// `link`: the number of the link that it was posted to; `None` if only the end of the process rules out
    /// that it arrives.
    ///
    /// # Errors
    /// As [`Hold::end_push`].
    pub fn abandon_push(&mut self, push: &Push, link: Option<u64>) -> Result<()> {
        let guard = self.cache.inner.lock_shard(self.shard)?;
        guard.check_granted(self.hold)?;
        guard.abandon_push(self.entry, push, self.cache.inner.word, link.unwrap_or(0))
    }

    /// Frees the place's slot and block in its book; the caller has had its tombstone or "moved" acked (R9,
    /// R11), or the server's life is over.
    ///
    /// # Errors
    /// `NotYet` if the session is gone and another slot of it is in quarantine: its stale cell could outlive
    /// the tombstone. `Busy` if a push is open there; otherwise as [`Hold::publish`].
    pub fn free_place(&mut self, place: PlaceIndex) -> Result<()> {
        let guard = self.cache.inner.lock_shard(self.shard)?;
        guard.check_granted(self.hold)?;
        guard.free_place(self.entry, place)
    }

    /// Gives the lock back and goes on reading what it saw last: the archive stays, and the next in the queue
    /// is granted at once. A lock that was revoked is a view for reading already, and becomes one for good.
    ///
    /// # Errors
    /// `Timeout` if a stopped process keeps a part of the cache locked: the lock is still the caller's.
    pub fn demote(&mut self) -> Result<()> {
        self.cache.inner.lock_shard(self.shard)?.demote(self.entry, self.hold);
        Ok(())
    }

    /// Lets go; same as dropping.
    pub fn release(self) {}
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.cache.inner.release_hold(self.shard, self.entry, self.hold);
    }
}

/// A reader's view of a session: its archive as it was at [`Cache::open_read`], without copy, until dropped.
pub struct Pin {
    pub(super) cache: Cache,
    pub(super) hold: u32,
    pub(super) entry: u32,
    pub(super) shard: u32,
    pub(super) block: u32,
    pub(super) archive_bytes: u32,
    pub(super) version: Version,
    pub(super) expiry_ms: u64,
    pub(super) absolute_ms: u64,
}

impl Pin {
    /// What a hold that has joined an entry pins.
    #[inline]
    pub(super) fn of(cache: &Cache, guard: &Guard<'_>, entry: u32, hold: u32) -> Self {
        let content = guard.content(entry);
        let (version, expiry_ms) = pin_facts(content);
        Self {
            cache: cache.clone(),
            hold,
            entry,
            shard: guard.shard,
            block: content.block.read(),
            archive_bytes: content.archive_bytes.read(),
            version,
            expiry_ms,
            absolute_ms: guard.entry(entry).absolute_ms.read(),
        }
    }

    /// The archive.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        self.cache.inner.block_bytes(self.block, self.archive_bytes)
    }

    /// Its version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Idle expiry, Unix ms; from [`Cache::open_graced`] the end of the grace.
    pub fn expiry_ms(&self) -> u64 {
        self.expiry_ms
    }

    /// Absolute end, Unix ms.
    pub fn absolute_ms(&self) -> u64 {
        self.absolute_ms
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.cache.inner.release_hold(self.shard, self.entry, self.hold);
    }
}

impl Inner {
    /// Releases a hold of this process. If a stopped process keeps the shard locked, that is done later.
    pub(super) fn release_hold(&self, shard: u32, entry: u32, hold: u32) {
        if self.is_killed() {
            return;
        }
        match self.lock_shard(shard) {
            Ok(guard) => guard.leave(entry, hold),
            Err(error) => {
                tracing::warn!(%error, "a session will be released later");
                return self.defer(hold);
            }
        }
        self.pool.push(hold);
        if self.has_deferred() {
            self.release_deferred();
        }
    }

    /// One look of a waiter at who is in its way.
    fn tend(&self, entry: u32, shard: u32) -> Result<()> {
        let words = &self.segment.entries[entry];
        let holder = words.holder.read();
        let Some(hold) = holder.checked_sub(1) else {
            // Nobody has the lock and it was not passed on: whoever should have, died at it. Taking the
            // shard's lock over from it repairs that.
            self.lock_shard(shard)?.grant_next(entry);
            return Ok(());
        };
        let owner = self.hold_owner(hold);
        if owner != 0 && !self.segment.processes.word_alive(owner) {
            if let Some(process) = super::ProcessId::from_word(owner) {
                self.repair_process(process)?;
            }
            return Ok(());
        }
        if self.overdue(hold) {
            let guard = self.lock_shard(shard)?;
            // Under the lock the holder cannot change, and its time of grant is its own.
            if words.holder.read() == holder && self.overdue(hold) {
                guard.revoke(entry, hold);
            }
        }
        Ok(())
    }

    fn overdue(&self, hold: u32) -> bool {
        let granted = self.segment.holds[hold].granted_ns.read();
        let limit = self.segment.spec.lock_hold_ms.saturating_mul(1_000_000);
        coarse_now_ns().saturating_sub(granted) > limit
    }

    /// The bytes of a pinned block.
    #[inline]
    pub(super) fn block_bytes(&self, block: u32, bytes: u32) -> &[u8] {
        let Some(block) = word_block(block) else { return &[] };
        let offset = self.segment.geometry.heap.offset + block.0 as usize * BLOCK_UNIT_BYTES;
        let range = self.segment.memory.range(offset, bytes as usize);
        // SAFETY: the range lies in the mapping, which `self` keeps alive (asserted by `range`). The block
        // was published before the caller's hold pinned it, both under the shard's lock, so its bytes are
        // written and visible; while it is pinned nobody writes it (invariants 2 and 7, the exception to 10).
        // The borrow of the hold's owner ends before the hold is released. Bytes have no invalid values.
        unsafe { range.as_ref() }
    }
}

pub(super) fn gone() -> Error {
    Error::new(ErrorKind::Gone, Origin::Cache, "the session is gone")
}

/// The version and expiry that a pin remembers.
pub(super) fn pin_facts(content: &super::layout::Content) -> (Version, u64) {
    (content_version(content), content.expiry_ms.read())
}
