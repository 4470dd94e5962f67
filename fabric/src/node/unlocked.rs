//! Handles that were opened unlocked: they read one version and collect changes without the session's lock.
//! What needs the lock (commit, destroy, regenerate) takes it for itself, goes on from the version that is
//! current then, and gives the lock back.
//!
//! Invariants:
//! - What is published is the current version with the collected changes (R16): the lock is held from the
//!   look at that version until the new one stands in the cache, and sums are made anew over it.
//! - Taking the lock never brings a session back: one that was destroyed, has expired or has another id by
//!   then answers `Gone`, after its tombstones are acked (R9, R14); a lock of an incarnation that is over
//!   answers `OwnershipLost` (R3).
//! - An operation that fails before it has published leaves the collected changes as they were. The handle
//!   then sees the version that was current, unless the changes do not fit to that.
//! - The lock is given back before the end of the operation is told.
//!
//! Callers: `commit`, `destroy`, `regenerate`, and `operations`, which must not wait for the lock.

use super::OpenMode;
use super::open::{
    Access, Behind, OpenSession, behind, busy, facts_of, is_expired, is_touch_due, lock_lost, timed_out, wait,
};
use super::session::{Ack, Committed, Short};
use crate::cache::{EntryState, Hold, HoldState, Opened, Waited};
use crate::error::{Error, ErrorKind, Origin, Result};
use crate::rules::{Rule, holds};
use std::time::Instant;

/// How the lock comes to a handle that asks for it.
pub(super) enum Locking {
    /// At once; see [`OpenSession::catch_up`].
    Granted(Hold),
    /// In its turn.
    Waiting(Hold),
}

impl OpenSession {
    /// Whether the lock must be taken before anything is changed.
    pub fn must_lock(&self) -> bool {
        self.mode == OpenMode::Unlocked && !self.is_locked()
    }

    fn is_locked(&self) -> bool {
        matches!(&self.access, Access::Hold(hold) if hold.state() == HoldState::Granted)
    }

    /// Asks for the lock. Never waits.
    pub fn begin_lock(&self) -> Result<Locking> {
        self.host.check()?;
        match self.host.cache.open_exclusive(&self.facts.id)? {
            Opened::Granted(hold) => Ok(Locking::Granted(hold)),
            Opened::Waiting(hold) => Ok(Locking::Waiting(hold)),
            Opened::Busy => Err(busy(&self.host)),
            Opened::Missing => Err(gone()),
        }
    }

    /// Goes on from the version that is current under a lock that was granted; from here on the handle has
    /// it. Gives the lock back if what is to be done needs a thread that may block.
    pub fn catch_up(&mut self, mut hold: Hold, may_block: bool) -> Result<Option<Hold>> {
        let host = self.host.clone();
        kill_point!("commit.relocked");
        let info = match behind(&host, &mut hold, may_block)? {
            Behind::Live(info) => info,
            Behind::Unknown if !may_block => return Ok(Some(hold)),
            Behind::Gone | Behind::Unknown => return Err(gone()),
        };
        if !holds(Rule::R16Merge) {
            self.write_back();
        }
        let seen = std::mem::replace(&mut self.access, Access::Hold(hold));
        let mut changes = std::mem::take(&mut self.changes);
        let rebased = if holds(Rule::R16Merge) { changes.rebase(self.archive()) } else { Ok(()) };
        self.changes = changes;
        if let Err(error) = rebased {
            self.access = seen;
            return Err(error);
        }
        self.facts = facts_of(&host.plan(), &info);
        kill_point!("commit.merged");
        Ok(None)
    }

    /// Takes the lock, waiting for it until `deadline`, unless the handle has it.
    pub fn lock(&mut self, deadline: Instant) -> Result<()> {
        if !self.must_lock() {
            return Ok(());
        }
        let hold = match self.begin_lock()? {
            Locking::Granted(hold) => hold,
            Locking::Waiting(hold) => match wait(&self.host, &hold, deadline)? {
                Waited::Granted => hold,
                Waited::Revoked => return Err(lock_lost()),
                Waited::Timeout => return Err(timed_out(&self.host, "the session's lock")),
            },
        };
        // With a thread that may block there is nothing that it gives the lock back for.
        self.catch_up(hold, true).map(drop)
    }

    /// Gives the lock of an unlocked handle back; the handle goes on seeing what it saw last.
    pub fn unlock(&mut self) {
        if self.mode != OpenMode::Unlocked {
            return;
        }
        if let Access::Hold(hold) = &mut self.access
            && let Err(error) = hold.demote()
        {
            // It has the lock until it is used again or closed.
            tracing::warn!(%error, "a session's lock is given back later");
        }
    }

    /// Commits: takes the lock, merges, publishes, pushes, and gives the lock back.
    pub fn commit_unlocked(&mut self, ack: Ack) -> Result<Committed> {
        if let Some(committed) = self.commit_nothing()? {
            return Ok(committed);
        }
        self.lock(self.host.deadline())?;
        let committed = self.commit_locked(ack);
        self.unlock();
        committed
    }

    /// Ends a commit of an unlocked handle that has nothing to commit, so that those who only read never wait
    /// for a lock. `None`: it takes the lock, to change the session, to touch it, or to find out how it has
    /// ended.
    pub fn commit_nothing(&mut self) -> Result<Option<Committed>> {
        if !self.must_lock() || self.owner.is_some() || self.changes.affect(self.archive()) {
            return Ok(None);
        }
        let host = &self.host;
        host.check()?;
        let Some(info) = host.cache.find(&self.facts.id)? else { return Ok(None) };
        let due = is_touch_due(host, info.expiry_ms, info.absolute_ms);
        if info.state != EntryState::Live || is_expired(host, &info) || due {
            return Ok(None);
        }
        // What changes nothing in the version that this handle sees may change a newer one: somebody else may
        // have set what is to be removed (R16).
        let is_current = info.version == self.facts.version;
        if !is_current && !self.changes.is_empty() {
            return Ok(None);
        }
        let plan = host.plan();
        let copies = if is_current { facts_of(&plan, &info).copies } else { 0 };
        let (copies, short) = match host.has_mandate() {
            false => (0, Some(Short::NoMandate)),
            true => (copies, (copies < plan.view.copies).then_some(Short::NotAwaited)),
        };
        drop(plan);
        self.changes.clear();
        self.facts.copies = copies;
        Ok(Some(Committed { version: self.facts.version, copies, short }))
    }

    /// What goes wrong without R16: all that was read is written over the current version.
    fn write_back(&mut self) {
        let mut changes = std::mem::take(&mut self.changes);
        for (name, value) in self.archive().into_iter().flat_map(|archive| archive.iter()) {
            if changes.get(name).is_none() {
                changes.set(name, value.to_owned());
            }
        }
        self.changes = changes;
    }
}

fn gone() -> Error {
    let context = "the session was destroyed, has expired or has another id since it was opened";
    Error::new(ErrorKind::Gone, Origin::Node, context)
}
