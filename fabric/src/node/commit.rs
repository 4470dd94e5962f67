//! A commit: the changes become the session's new version, in the cache and at the servers of its placement
//! (`ARCHITECTURE.md`, "A commit, step by step").

use super::host::{Counter, Host, LinkState, Plan};
use super::open::{OpenSession, lifetimes_ms, touch};
use super::push::{Cargo, Reach, Stamp, protect};
use super::session::{Ack, Committed, Short};
use crate::archive::{Builder, Head};
use crate::error::{ErrorKind, Result};
use crate::ident::{SessionId, Version};
use crate::rules::{Rule, holds};
use std::cell::RefCell;
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

impl OpenSession {
    /// Whether there is something to commit.
    fn is_changed(&self) -> bool {
        !self.changes.is_empty() || self.owner.is_some() || self.archive().is_none()
    }

    /// Commits; waits for links as `ack` says.
    pub fn commit(&mut self, ack: Ack) -> Result<Committed> {
        self.hold()?.check()?;
        let host = self.host.clone();
        if must_wait(&host, self.facts.id, ack) {
            // An incarnation that is about to end gets no mandate: do not wait longer than one would last.
            let bound = Duration::from_millis(host.config.timing.mandate_ms);
            let deadline = host.deadline().min(std::time::Instant::now() + bound);
            host.wait_plan(deadline, |plan| is_ready(&host, plan, self.facts.id, ack));
        }
        if !self.is_changed() {
            return self.commit_unchanged();
        }
        let version = Version { counter: self.facts.version.counter + 1, ..self.facts.version };
        let expiry_ms = host.next_expiry_ms(self.facts.absolute_ms);
        self.publish(version, expiry_ms)?;
        self.facts.version = version;
        self.facts.expiry_ms = expiry_ms;
        self.changes.clear();
        self.owner = None;
        host.count(Counter::Commits, 1);
        let stamp = Stamp { id: self.facts.id, version, expiry_ms };
        let plan = host.plan();
        let reach = match protect(&host, self.hold()?, &plan, &stamp, Cargo::Archive) {
            Ok(reach) => reach,
            Err(error) if error.kind == ErrorKind::LockLost => {
                // The version stands in the cache; who has the lock now goes on from it, and the sweep copies
                // it.
                host.count(Counter::Unprotected, 1);
                Reach { short: Some(Short::NotAwaited), ..Reach::default() }
            }
            Err(error) => return Err(error),
        };
        Ok(self.committed(reach))
    }

    /// Nothing was changed: a touch if one is due, and copies that are missing.
    fn commit_unchanged(&mut self) -> Result<Committed> {
        let host = self.host.clone();
        let mut facts = self.facts;
        touch(&host, self.hold()?, &mut facts)?;
        self.facts = facts;
        let stamp = Stamp { id: facts.id, version: facts.version, expiry_ms: facts.expiry_ms };
        let missing = Cargo::Missing { same_since: None };
        let reach = protect(&host, self.hold()?, &host.plan(), &stamp, missing)?;
        Ok(self.committed(reach))
    }

    fn committed(&mut self, reach: Reach) -> Committed {
        self.facts.copies = reach.copies;
        if reach.short.is_some() {
            self.host.count(Counter::ShortCommits, 1);
        }
        Committed { version: self.facts.version, copies: reach.copies, short: reach.short }
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
            hold.publish(version, expiry_ms)
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
