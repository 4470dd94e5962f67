//! Grace: a session that is gone because it has another id now can be read for a moment as it was before.
//!
//! Its entry is a tombstone like any other, with one difference: it keeps its last archive, which can be
//! pinned, and its `expiry_ms` says until when. The cache has no clock: who opens, and the sweep, go by that
//! time and end the grace.
//!
//! Invariants:
//! - What can be read is the archive that was current when the tombstone was made. Nobody publishes to a
//!   tombstone, so it never changes, and nothing in the entry names the new id.
//! - One store makes the tombstone with the end of its grace: a kill before it leaves the session as it was,
//!   lifetime included.
//! - The new entry (`predecessor`) and the old one (`successor`) name each other. An entry that is used again
//!   for something else is named by nobody, so a link that is not returned is void. The end of the new
//!   session ends the grace first, so that no kill leaves the old one readable after it; and no grace ends
//!   before those of the ids before it, so that the links lead to all of them.
//! - Grace needs no session lock: it ends under the shard's.

use super::hold::{Hold, Pin, gone, pin_facts};
use super::layout::{Word, content_state, entry_used, hold_state, word_block};
use super::open::Unused;
use super::shard::{Guard, Replacement, shard_of, write_content};
use super::{Cache, Inner};
use crate::error::Result;
use crate::ident::{SessionId, Version};

impl Hold {
    /// As [`Hold::remove`], but the archive can be read with [`Cache::open_graced`] until `until_ms` (Unix),
    /// or until the session of `successor` is removed.
    ///
    /// # Errors
    /// As [`Hold::publish`].
    pub fn remove_graced(&mut self, version: Version, successor: &mut Hold, until_ms: u64) -> Result<()> {
        let new = successor.entry;
        {
            let guard = self.cache.inner.lock_shard(successor.shard)?;
            guard.check_granted(successor.hold)?;
            guard.entry(new).predecessor.write(self.entry + 1);
        }
        let guard = self.cache.inner.lock_shard(self.shard)?;
        guard.check_granted(self.hold)?;
        let (entry, content) = (guard.entry(self.entry), guard.content(self.entry));
        if content.state.read() != content_state::LIVE {
            return Err(gone());
        }
        entry.successor.write(new + 1);
        let gone = Replacement {
            state: content_state::GONE,
            block: word_block(content.block.read()),
            archive_bytes: content.archive_bytes.read(),
            version,
            expiry_ms: until_ms,
        };
        guard.replace(self.entry, self.hold, &gone);
        Ok(())
    }
}

impl Cache {
    /// Pins the last archive of a session that is gone and graced; its [`Pin::expiry_ms`] is the end of
    /// that, by which the caller judges.
    ///
    /// # Errors
    /// As [`Cache::open_read`].
    pub fn open_graced(&self, id: &SessionId) -> Result<Option<Pin>> {
        let inner = &*self.inner;
        let unused = Unused::new(inner)?;
        let shard = shard_of(id);
        let guard = inner.lock_shard(shard)?;
        let Some(entry) = guard.find(id).filter(|entry| guard.is_graced(*entry)) else { return Ok(None) };
        guard.join(entry, unused.hold, hold_state::PINNED);
        Ok(Some(Pin::of(self, &guard, entry, unused.joined())))
    }

    /// Ends the grace of a session, if it has any, and of the ids that it had before this one, to which only
    /// this one's link leads. Who has them open goes on reading.
    ///
    /// # Errors
    /// As [`Cache::find`].
    pub fn end_grace(&self, id: &SessionId) -> Result<()> {
        self.inner.check_alive()?;
        let shard = shard_of(id);
        let graced = |guard: &Guard<'_>| guard.find(id).filter(|entry| guard.is_graced(*entry));
        let Some(entry) = graced(&self.inner.lock_shard(shard)?) else { return Ok(()) };
        // If somebody else ends it meanwhile and the entry is used again, another session's grace may end
        // early: that is never wrong.
        self.inner.end_grace_before(entry)?;
        let guard = self.inner.lock_shard(shard)?;
        if let Some(entry) = graced(&guard) {
            guard.end_grace(entry);
        }
        Ok(())
    }
}

impl Inner {
    /// Ends the grace of all ids that the session of this entry had before.
    ///
    /// # Errors
    /// `Timeout` (a stopped process).
    pub(super) fn end_grace_before(&self, entry: u32) -> Result<()> {
        let entries = &self.segment.entries;
        let (mut after, mut at) = (entry, entries[entry].predecessor.read());
        while let Some(index) = at.checked_sub(1).filter(|index| *index < entries.len()) {
            // An entry that is owned by no shard any more is nobody's predecessor.
            let Some(shard) = self.segment.entry_owners.owner(index).checked_sub(1) else { return Ok(()) };
            let guard = self.lock_shard(shard)?;
            let words = guard.entry(index);
            let is_ours = self.segment.entry_owners.owner(index) == shard + 1
                && words.used.read() == entry_used::YES
                && words.successor.read() == after + 1
                && guard.is_graced(index);
            if !is_ours {
                return Ok(());
            }
            (after, at) = (index, words.predecessor.read());
            guard.end_grace(index);
        }
        Ok(())
    }
}

impl Guard<'_> {
    /// Whether the entry is a tombstone whose last archive can be read.
    pub(super) fn is_graced(&self, index: u32) -> bool {
        let content = self.content(index);
        content.state.read() == content_state::GONE && content.block.read() != 0
    }

    /// Lets the last archive of a tombstone go, in one store, and the entry, if nothing needs it any more.
    pub(super) fn end_grace(&self, index: u32) {
        if !self.is_graced(index) {
            return;
        }
        let content = self.content(index);
        let block = content.block.read();
        let (version, expiry_ms) = pin_facts(content);
        let (entry, other) = (self.entry(index), self.entry(index).current.read() & 1 ^ 1);
        write_content(&entry.content[other as usize], content_state::GONE, 0, 0, version, expiry_ms);
        entry.current.write(other);
        kill_point!("regenerate.graced");
        self.drop_block(index, block);
        self.reap(index);
    }
}
