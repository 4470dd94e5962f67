//! Opening sessions: for change, for reading, anew.

use super::hold::{Hold, Pin};
use super::info::{EntryInit, Inserted, Opened};
use super::layout::{Word, content_state, hold_state};
use super::shard::shard_of;
use super::{Cache, Inner};
use crate::error::{Error, ErrorKind, Origin, Result};
use crate::ident::SessionId;

/// A hold from the pool; goes back unless it was joined to an entry.
pub(super) struct Unused<'a> {
    cache: &'a Inner,
    pub hold: u32,
}

impl<'a> Unused<'a> {
    #[inline]
    pub fn new(cache: &'a Inner) -> Result<Self> {
        cache.check_alive()?;
        let hold = cache.pool.pop(&cache.segment.hold_owners, cache.word)?;
        Ok(Self { cache, hold })
    }

    /// It is in use now.
    #[inline]
    pub fn joined(self) -> u32 {
        let hold = self.hold;
        std::mem::forget(self);
        hold
    }
}

impl Drop for Unused<'_> {
    fn drop(&mut self) {
        self.cache.pool.push(self.hold);
    }
}

/// Opens for change. With `queue` false, only if nobody has or waits for the lock.
pub(super) fn exclusive(cache: &Cache, id: &SessionId, queue: bool) -> Result<Opened> {
    let inner = &*cache.inner;
    let unused = Unused::new(inner)?;
    let shard = shard_of(id);
    let guard = inner.lock_shard(shard)?;
    let Some(entry) = guard.find(id) else { return Ok(Opened::Missing) };
    let words = guard.entry(entry);
    let waiters = words.waiters.read();
    let free = words.holder.read() == 0 && waiters == 0;
    if !free && (!queue || waiters >= inner.segment.spec.waiters_max) {
        return Ok(Opened::Busy);
    }
    let state = if free { hold_state::GRANTED } else { hold_state::WAITING };
    guard.join(entry, unused.hold, state);
    let hold = Hold { cache: cache.clone(), hold: unused.joined(), entry, shard, id: *id };
    Ok(if free { Opened::Granted(hold) } else { Opened::Waiting(hold) })
}

/// A new entry, locked by the caller.
pub(super) fn insert(cache: &Cache, id: &SessionId, init: &EntryInit) -> Result<Inserted> {
    let inner = &*cache.inner;
    let unused = Unused::new(inner)?;
    let shard = shard_of(id);
    let guard = inner.lock_shard(shard)?;
    if guard.find(id).is_some() {
        return Ok(Inserted::Exists);
    }
    let Some(entry) = guard.insert(id, init) else {
        return Err(Error::new(
            ErrorKind::Full,
            Origin::Cache,
            format!(
                "the cache holds {} sessions, which is the limit; nothing was evicted",
                inner.segment.spec.sessions_max
            ),
        ));
    };
    guard.join(entry, unused.hold, hold_state::GRANTED);
    Ok(Inserted::Granted(Hold { cache: cache.clone(), hold: unused.joined(), entry, shard, id: *id }))
}

/// Pins a live session's archive.
pub(super) fn read(cache: &Cache, id: &SessionId) -> Result<Option<Pin>> {
    let inner = &*cache.inner;
    let unused = Unused::new(inner)?;
    let shard = shard_of(id);
    let guard = inner.lock_shard(shard)?;
    let Some(entry) = guard.find(id) else { return Ok(None) };
    if guard.content(entry).state.read() != content_state::LIVE {
        return Ok(None);
    }
    guard.join(entry, unused.hold, hold_state::PINNED);
    Ok(Some(Pin::of(cache, &guard, entry, unused.joined())))
}
