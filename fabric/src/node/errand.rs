//! Errands: what the director asks of a node on behalf of operators and applications, about the sessions
//! that the node hosts. List them, show one, destroy one or all of an owner.
//!
//! They go by the same operations as requests do: reading pins a version, and destroying takes the
//! session's lock, in its turn, and ends the session as its user would (R9). A session whose lock is not to
//! be had in time is told, not skipped.
//!
//! Destroying all of an owner is complete when one pass over the whole table leaves nothing and no session
//! passed the pass by. Within a node a session moves only by a new id (R15), which is counted: after the
//! new id is there, and before the old one is gone. So if the count stood still from before the first look
//! until after the last, every session was met under the one id or the other. Sessions that are being
//! fetched from sealed leases are waited for. That nothing comes from another node is the director's
//! business: see `director/src/cluster/doom.rs`.
//!
//! Caller: the agent of the steward, on a thread of its own for each errand.

use super::destroy::{entomb, finish, is_finished};
use super::host::Host;
use super::open::{facts_of, is_expired, pinned_archive};
use crate::archive::{ArchivedSession, ValueRef};
use crate::cache::{EntryInfo, EntryState, Hold, HoldState, Opened};
use crate::control::message::{
    AttributeFacts, AttributeKind, AttributeValue, Doomed, Errand, ErrandOutcome, SessionDetail, SessionFacts,
};
use crate::error::{ErrorKind, Result};
use crate::ident::SessionId;
use crate::limits::{
    ERRAND_WAIT, LIST_ENTRIES_MAX, LIST_SESSIONS_MAX, SHOWN_BYTES_MAX, SHOWN_VALUE_BYTES_MAX,
};
use crate::numbers::NodeCounter;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::time::{Duration, Instant};

/// How often a lock that somebody else has is looked at.
const LOOK: Duration = Duration::from_millis(2);
/// Sessions that are named when they could not be destroyed.
const NAMED_MAX: usize = 4;

/// Does an errand, within so much time; `stop` ends it early.
pub(super) fn run(host: &Host, errand: &Errand, within: Duration, stop: &AtomicBool) -> ErrandOutcome {
    let runner = Runner { host, stop, deadline: Instant::now() + within.min(ERRAND_WAIT) };
    let outcome = match errand {
        Errand::List { owner, cursor, limit } => runner.list(owner.as_deref(), *cursor, *limit),
        Errand::Show { id, values } => runner.show(id, *values),
        Errand::Destroy(doomed) => runner.destroy(doomed),
    };
    outcome.unwrap_or_else(|error| ErrandOutcome::Failed(error.to_string()))
}

struct Runner<'a> {
    host: &'a Host,
    stop: &'a AtomicBool,
    deadline: Instant,
}

/// What became of one session that was to be destroyed.
#[derive(PartialEq, Eq, Debug)]
enum End {
    /// It is none of those that were meant.
    Spared,
    /// It is gone, from every copy.
    Destroyed,
    /// It is gone here, but not everywhere yet, and why.
    Open(String),
    /// Somebody else has its lock.
    Locked,
}

/// A pass over the sessions that are to be destroyed.
#[derive(Default)]
struct Pass {
    destroyed: u64,
    /// To be waited for.
    locked: Vec<SessionId>,
    /// What could not be done.
    open: Vec<String>,
}

impl Runner<'_> {
    fn is_over(&self) -> bool {
        Instant::now() >= self.deadline || self.stop.load(Ordering::Relaxed)
    }

    /// Times that sessions of this node were given new ids. Each process counts for itself and no count
    /// falls, so equal sums are equal counts.
    fn regenerations(&self) -> Option<u64> {
        self.host.cache.counters().get(NodeCounter::Regenerations as usize).copied()
    }

    fn list(&self, owner: Option<&str>, cursor: u32, limit: u32) -> Result<ErrandOutcome> {
        let end = self.host.cache.spec().sessions_max;
        let until = end.min(cursor.saturating_add(LIST_ENTRIES_MAX));
        let limit = limit.clamp(1, LIST_SESSIONS_MAX) as usize;
        let mut sessions = Vec::new();
        let mut index = cursor;
        while index < until && sessions.len() < limit && !self.is_over() {
            if let Some(info) = self.host.cache.entry(index)?
                && let Some((facts, _)) = self.look(&info, |archive| {
                    owner.is_none_or(|owner| archive.owner() == Some(owner)).then_some(())
                })?
            {
                sessions.push(facts);
            }
            index += 1;
        }
        Ok(ErrandOutcome::Listed { sessions, next: (index < end).then_some(index) })
    }

    fn show(&self, id: &SessionId, values: bool) -> Result<ErrandOutcome> {
        let Some(info) = self.host.cache.find(id)? else { return Ok(ErrandOutcome::Shown(None)) };
        let shown = self.look(&info, |archive| {
            let mut room = if values { SHOWN_BYTES_MAX } else { 0 };
            Some(archive.iter().map(|(name, value)| describe(name, value, &mut room)).collect())
        })?;
        let detail = shown.map(|(facts, attributes)| Box::new(SessionDetail { facts, attributes }));
        Ok(ErrandOutcome::Shown(detail))
    }

    /// A live session's facts, and what `see` finds in it; `None` if that is nothing.
    fn look<T>(
        &self,
        info: &EntryInfo,
        see: impl FnOnce(&ArchivedSession) -> Option<T>,
    ) -> Result<Option<(SessionFacts, T)>> {
        if info.state != EntryState::Live || is_expired(self.host, info) {
            return Ok(None);
        }
        // It may have ended since.
        let Some(pin) = self.host.cache.open_read(&info.id)? else { return Ok(None) };
        let Some(archive) = pinned_archive(&pin) else { return Ok(None) };
        let Some(seen) = see(archive) else { return Ok(None) };
        let facts = facts_of(&self.host.plan(), info);
        let facts = SessionFacts {
            id: info.id,
            owner: archive.owner().map(str::to_owned),
            version: info.version,
            copies: facts.copies,
            created_ms: info.created_ms,
            expiry_ms: info.expiry_ms,
            absolute_ms: info.absolute_ms,
            bytes: info.archive_bytes,
            locked: info.locked,
        };
        Ok(Some((facts, seen)))
    }

    /// Pass after pass, until one leaves nothing or the time is over.
    fn destroy(&self, doomed: &Doomed) -> Result<ErrandOutcome> {
        let mut destroyed = 0;
        loop {
            let before = self.regenerations();
            // Acquire: pairs with the Release before the count is raised.
            fence(Ordering::Acquire);
            let mut pass = Pass::default();
            match doomed {
                Doomed::Session(id) => {
                    if let Some(info) = self.host.cache.find(id)? {
                        self.end_grace(doomed, &info)?;
                    }
                    pass.take(*id, self.end(doomed, id, false)?);
                }
                Doomed::Owner(_) => self.pass_over_all(doomed, &mut pass)?,
            }
            for id in std::mem::take(&mut pass.locked) {
                pass.take(id, self.end(doomed, &id, true)?);
            }
            destroyed += pass.destroyed;
            let passed_by = matches!(doomed, Doomed::Owner(_)) && self.regenerations() != before;
            if pass.open.is_empty() && pass.locked.is_empty() && !passed_by {
                return Ok(ErrandOutcome::Destroyed { sessions: destroyed, left: None });
            }
            if self.is_over() {
                return Ok(ErrandOutcome::Destroyed { sessions: destroyed, left: Some(pass.left()) });
            }
            self.host.clock.sleep(LOOK);
        }
    }

    fn pass_over_all(&self, doomed: &Doomed, pass: &mut Pass) -> Result<()> {
        for index in 0..self.host.cache.spec().sessions_max {
            let Some(info) = self.host.cache.entry(index)? else { continue };
            self.end_grace(doomed, &info)?;
            match info.state {
                // Being created: nobody has committed it yet. Being fetched: it may be any one's.
                EntryState::Adopting if info.created_ms != 0 => {}
                EntryState::Adopting => pass.locked.push(info.id),
                EntryState::Live if !self.is_meant(doomed, &info.id)? => {}
                // While there are sealed leases no pass is the last one, and many tombstones are kept.
                EntryState::Gone if self.host.plan().sealed_copies_exist() => {}
                EntryState::Live | EntryState::Gone => pass.take(info.id, self.end(doomed, &info.id, false)?),
            }
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
        }
        Ok(())
    }

    /// An id that was given up can still be read for a moment: not if the session was meant then. (Ids that a
    /// session had before end with it.)
    fn end_grace(&self, doomed: &Doomed, info: &EntryInfo) -> Result<()> {
        if info.grace_until_ms.is_some()
            && let Some(pin) = self.host.cache.open_graced(&info.id)?
            && pinned_archive(&pin).is_some_and(|archive| is_doomed(doomed, archive))
        {
            self.host.cache.end_grace(&info.id)?;
        }
        Ok(())
    }

    /// Whether a session that was live is one of those that are to go. If it has ended meanwhile, its end
    /// is looked at.
    fn is_meant(&self, doomed: &Doomed, id: &SessionId) -> Result<bool> {
        let pin = self.host.cache.open_read(id)?;
        Ok(pin.is_none_or(|pin| pinned_archive(&pin).is_some_and(|archive| is_doomed(doomed, archive))))
    }

    /// Ends a session if it is meant. `wait`: in its turn for the lock.
    fn end(&self, doomed: &Doomed, id: &SessionId, wait: bool) -> Result<End> {
        let opened = match wait {
            true => self.host.cache.open_exclusive(id)?,
            false => self.host.cache.try_exclusive(id)?,
        };
        let mut hold = match opened {
            Opened::Granted(hold) => hold,
            Opened::Missing => return Ok(End::Spared),
            Opened::Busy => return Ok(End::Locked),
            Opened::Waiting(hold) => match self.wait(hold)? {
                Some(hold) => hold,
                None => return Ok(End::Locked),
            },
        };
        let info = hold.info()?;
        let ended = match info.state {
            // Its fetch or creation came to nothing: it disappears with this hold.
            EntryState::Adopting => return Ok(End::Spared),
            EntryState::Gone if is_finished(self.host, &hold)? => return Ok(End::Spared),
            // Somebody else destroyed it and was not told that it is gone everywhere.
            EntryState::Gone => finish(self.host, &mut hold, self.deadline).map(|()| End::Spared),
            EntryState::Live if !self.is_meant(doomed, id)? => return Ok(End::Spared),
            EntryState::Live => {
                let facts = facts_of(&self.host.plan(), &info);
                self.host.count(NodeCounter::Destroys, 1);
                entomb(self.host, &mut hold, &facts, self.deadline).map(|()| End::Destroyed)
            }
        };
        match ended {
            Err(error) if error.kind == ErrorKind::OwnershipLost => Err(error),
            Err(error) => Ok(End::Open(error.to_string())),
            ended => ended,
        }
    }

    fn wait(&self, hold: Hold) -> Result<Option<Hold>> {
        loop {
            match hold.tend()? {
                HoldState::Granted => return Ok(Some(hold)),
                HoldState::Revoked | HoldState::Pinned => return Ok(None),
                HoldState::Waiting if self.is_over() => return Ok(None),
                HoldState::Waiting => self.host.clock.sleep(LOOK),
            }
        }
    }
}

impl Pass {
    fn take(&mut self, id: SessionId, end: End) {
        match end {
            End::Spared => {}
            End::Destroyed => self.destroyed += 1,
            End::Open(why) => self.open.push(format!("session {id}: {why}")),
            End::Locked => self.locked.push(id),
        }
    }

    /// What is left, for people.
    fn left(&self) -> String {
        let named = |ids: &[SessionId]| {
            let names: Vec<String> = ids.iter().take(NAMED_MAX).map(SessionId::to_string).collect();
            names.join(", ")
        };
        match (self.locked.as_slice(), self.open.first()) {
            ([], None) => "its sessions change their ids faster than they are looked at".to_owned(),
            ([], Some(why)) => format!("{} sessions are not gone everywhere: {why}", self.open.len()),
            (locked, _) => {
                format!("requests have the locks of {} sessions: {}", locked.len(), named(locked))
            }
        }
    }
}

fn is_doomed(doomed: &Doomed, archive: &ArchivedSession) -> bool {
    match doomed {
        Doomed::Session(id) => archive.id() == *id,
        Doomed::Owner(owner) => archive.owner() == Some(owner.as_str()),
    }
}

/// An attribute, with as much of its value as there is room for.
pub(super) fn describe(name: &str, value: ValueRef<'_>, room: &mut usize) -> AttributeFacts {
    let (kind, bytes) = match value {
        ValueRef::Bytes(bytes) => (AttributeKind::Bytes, bytes.len()),
        ValueRef::Text(text) => (AttributeKind::Text, text.len()),
        ValueRef::I64(_) => (AttributeKind::I64, 8),
        ValueRef::F64(_) => (AttributeKind::F64, 8),
        ValueRef::Bool(_) => (AttributeKind::Bool, 1),
    };
    let shown = bytes.min(SHOWN_VALUE_BYTES_MAX);
    let value = (shown <= *room && *room > 0).then(|| {
        *room -= shown;
        match value {
            ValueRef::Bytes(bytes) => AttributeValue::Bytes(bytes[..shown].to_vec()),
            ValueRef::Text(text) => {
                let end = (0..=shown).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
                AttributeValue::Text(text[..end].to_owned())
            }
            ValueRef::I64(number) => AttributeValue::I64(number),
            ValueRef::F64(number) => AttributeValue::F64(number),
            ValueRef::Bool(truth) => AttributeValue::Bool(truth),
        }
    });
    AttributeFacts { name: name.to_owned(), kind, bytes: bytes as u32, value }
}
