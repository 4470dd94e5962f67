//! A commit: the changes become the session's new version, in the cache and at the servers of its placement
//! (`ARCHITECTURE.md`, "A commit, step by step").

use super::OpenMode;
use super::host::{Host, Lane, LinkState, Plan};
use super::open::{OpenSession, lifetimes_ms, raise};
use super::push::{Cargo, Flight, Reach};
use super::session::{Ack, Committed, Short};
use crate::archive::{Builder, Head};
use crate::error::{ErrorKind, Result};
use crate::ident::{SessionId, Version};
use crate::numbers::{NodeCounter, NodeTime};
use crate::rules::{Rule, holds};
use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

thread_local! {
    /// Keeps its buffer, so that a commit does not allocate one.
    static BUILDER: RefCell<Builder> = RefCell::new(Builder::new());
}

/// Whether a commit would have to wait for a link, or for the first mandate of this incarnation.
pub(super) fn must_wait(host: &Host, id: SessionId, ack: Ack) -> bool {
    ack != Ack::None && !is_ready(host, &host.plan(), id, ack)
}

fn is_ready(host: &Host, plan: &Plan, id: SessionId, ack: Ack) -> bool {
    let one = |(_, link): (_, &LinkState)| matches!(link, LinkState::Open(_));
    let links =
        plan.is_linked() || (ack == Ack::One && plan.places_of(id).any(one)) || !plan.may_wait_for(id);
    links && host.cache.mandate_until_ns() != 0
}

/// Where a commit stands that must not wait.
#[allow(clippy::large_enum_variant, reason = "boxing would allocate for every request that has to wait")]
pub(super) enum Commit {
    /// It has ended.
    Ended(Committed),
    /// The version stands in the cache; its pushes go on.
    UnderWay(UnderWay),
}

/// A commit's pushes. The session stays locked, and is kept, until they have landed.
pub(super) struct UnderWay {
    pub flight: Flight<Arc<Lane>>,
    cargo: Cargo,
    since_ns: Option<u64>,
}

impl OpenSession {
    /// Whether there is something to commit.
    fn is_changed(&self) -> bool {
        !self.changes.is_empty() || self.owner.is_some() || self.archive().is_none()
    }

    /// Commits; waits for the lock of an unlocked handle, for links as `ack` says, and for the pushes.
    pub fn commit(&mut self, ack: Ack) -> Result<Committed> {
        match self.mode {
            OpenMode::Unlocked => self.commit_unlocked(ack),
            _ => self.commit_locked(ack),
        }
    }

    /// Commits under the lock.
    pub fn commit_locked(&mut self, ack: Ack) -> Result<Committed> {
        self.hold()?.check()?;
        let host = self.host.clone();
        let since_ns = host.sample_commit();
        if must_wait(&host, self.facts.id, ack) {
            // An incarnation that is about to end gets no mandate: do not wait longer than one would last.
            let bound = Duration::from_millis(host.config.timing.mandate_ms);
            let deadline = host.deadline().min(std::time::Instant::now() + bound);
            host.wait_plan(deadline, |plan| is_ready(&host, plan, self.facts.id, ack));
        }
        let cargo = self.change()?;
        let plan = host.plan();
        let stamp = self.facts.stamp();
        let hold = self.hold()?;
        let mut flight = Flight::new(&plan, &stamp);
        flight.volley().time_if(since_ns.is_some());
        let launched = flight.launch(&host, hold, &plan, cargo);
        let reach = launched.and_then(|()| flight.land(&host, hold));
        self.committed(reach, cargo, since_ns)
    }

    /// Commits without waiting: polls for a moment, and gives back what has not ended by then.
    pub fn commit_now(&mut self) -> Result<Commit> {
        self.hold()?.check()?;
        let host = self.host.clone();
        let since_ns = host.sample_commit();
        let cargo = self.change()?;
        let plan = host.plan();
        let stamp = self.facts.stamp();
        let hold = self.hold()?;
        let mut flight = Flight::new(&plan, &stamp);
        flight.volley().time_if(since_ns.is_some());
        let launched = flight.launch(&host, hold, &plan, cargo);
        if launched.is_ok() && !flight.volley().is_over_soon(hold) {
            return Ok(Commit::UnderWay(UnderWay { flight: flight.keep(), cargo, since_ns }));
        }
        let reach = launched.and_then(|()| flight.land(&host, hold));
        self.committed(reach, cargo, since_ns).map(Commit::Ended)
    }

    /// Ends what [`Self::commit_now`] has begun; waits for what is still under way.
    pub fn commit_later(&mut self, mut under_way: UnderWay) -> Result<Committed> {
        let host = self.host.clone();
        let reach = under_way.flight.land(&host, self.hold()?);
        let committed = self.committed(reach, under_way.cargo, under_way.since_ns);
        self.unlock();
        committed
    }

    /// Puts the changes into the cache, and says what has to be pushed. Without changes: a touch if one is
    /// due, and copies that are missing.
    fn change(&mut self) -> Result<Cargo> {
        let host = self.host.clone();
        if !self.is_changed() {
            let mut facts = self.facts;
            let same_since = raise(&host, self.hold()?, &mut facts)?;
            self.facts = facts;
            return Ok(Cargo::Missing { same_since });
        }
        let version = Version { counter: self.facts.version.counter + 1, ..self.facts.version };
        let expiry_ms = host.next_expiry_ms(self.facts.absolute_ms);
        self.publish(version, expiry_ms)?;
        self.facts.version = version;
        self.facts.expiry_ms = expiry_ms;
        self.changes.clear();
        self.owner = None;
        host.count(NodeCounter::Commits, 1);
        Ok(Cargo::Archive)
    }

    fn committed(&mut self, reach: Result<Reach>, cargo: Cargo, since_ns: Option<u64>) -> Result<Committed> {
        let reach = match reach {
            Ok(reach) => reach,
            Err(error) if error.kind == ErrorKind::LockLost && cargo == Cargo::Archive => {
                // The version stands in the cache; who has the lock now goes on from it, and the sweep copies
                // it.
                self.host.unprotected();
                Reach { short: Some(Short::NotAwaited), ..Reach::default() }
            }
            Err(error) => return Err(error),
        };
        kill_point!("commit.landed");
        self.facts.copies = reach.copies;
        if reach.short.is_some() {
            self.host.count(NodeCounter::ShortCommits, 1);
        }
        // What changed nothing was no commit, and has not moved the count that sampling goes by.
        if let (Some(since_ns), Cargo::Archive) = (since_ns, cargo) {
            self.host.observe_since(NodeTime::Commit, since_ns);
        }
        Ok(Committed { version: self.facts.version, copies: reach.copies, short: reach.short })
    }

    /// Builds the archive of `version` and makes it the entry's. On error nothing was changed.
    fn publish(&mut self, version: Version, expiry_ms: u64) -> Result<()> {
        if holds(Rule::R3Incarnation) {
            self.host.check()?;
        }
        BUILDER.with_borrow_mut(|builder| {
            let bytes = self.build(builder, self.facts.id, version)?;
            let hold = self.hold()?;
            hold.stage(bytes.len() as u32)?.copy_from_slice(bytes);
            kill_point!("commit.staged");
            hold.publish(version, expiry_ms)?;
            kill_point!("commit.published");
            Ok(())
        })
    }

    /// The archive with the changes, under this id and version.
    fn build<'b>(&self, builder: &'b mut Builder, id: SessionId, version: Version) -> Result<&'b [u8]> {
        let (idle_ms, absolute_ms) = lifetimes_ms(&self.host);
        let base = self.archive();
        let head = Head {
            id,
            version,
            created_ms: self.facts.created_ms,
            idle_ms,
            absolute_ms: base.map_or(absolute_ms, |archive| archive.absolute_ms()),
            owner: self.owner(),
        };
        let limits = self.host.archive_limits();
        match base {
            Some(base) => builder.build_over(&head, self.archive_bytes(), base, &self.changes, &limits),
            None => builder.build(&head, self.changes.over(None), &limits),
        }
    }
}
