//! A new id for a session (R15), at a change of privilege: what was known under the old id must not gain what
//! the new one may.

use super::destroy::{entomb, finish};
use super::open::{Access, Facts, OpenSession, timed_out, touch};
use super::push::{Cargo, Stamp, protect};
use super::session::Short;
use crate::archive::{Builder, Head};
use crate::cache::{EntryInit, Hold, Inserted, PlaceInfo};
use crate::error::{Error, ErrorKind, Origin, Result};
use crate::ident::{SessionId, Version};
use crate::numbers::NodeCounter;
use crate::rules::{Rule, holds};
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

/// How long to wait before copies that could not be made are tried again.
const PAUSE: Duration = Duration::from_millis(2);

impl OpenSession {
    /// Moves the committed state to a new id: under both ids' locks the new copy is acked, then the old
    /// tombstone, then it returns. Uncommitted changes go along, uncommitted.
    pub fn regenerate(&mut self) -> Result<()> {
        self.lock(self.host.deadline())?;
        let regenerated = self.regenerate_locked();
        self.unlock();
        regenerated
    }

    fn regenerate_locked(&mut self) -> Result<()> {
        self.hold()?.check()?;
        let host = self.host.clone();
        let id = SessionId::random()?;
        let init = EntryInit {
            created_ms: self.facts.created_ms,
            absolute_ms: self.facts.absolute_ms,
            adopted: false,
        };
        let Inserted::Granted(mut new_hold) = host.cache.insert(&id, init)? else {
            return Err(Error::new(ErrorKind::Conflict, Origin::Node, "a new random id exists already"));
        };
        kill_point!("regenerate.inserted");
        let epoch = host.plan().view.epoch.number.max(self.facts.version.epoch);
        let mut facts =
            Facts { id, version: Version { epoch, counter: 0 }, copies: 0, adopted: false, ..self.facts };
        if self.archive().is_some() {
            self.copy_to(&mut new_hold, &mut facts)?;
            kill_point!("regenerate.copied");
        }
        let old = (std::mem::replace(&mut self.access, Access::Hold(new_hold)), self.facts);
        self.facts = facts;
        self.needs_cookie = true;
        host.count(NodeCounter::Creates, 1);
        // Before the old id disappears, and after the new one is there: who looks for sessions goes by it
        // (`errand.rs`), and one that moves between two looks at the table would be overlooked. Release:
        // pairs with the Acquire there, so that who sees the count sees the new id.
        fence(Ordering::Release);
        host.count(NodeCounter::Regenerations, 1);
        let (Access::Hold(mut old_hold), old_facts) = old else { return Ok(()) };
        if old_hold.bytes().is_empty() || !holds(Rule::R15Regenerate) {
            return Ok(());
        }
        kill_point!("regenerate.passed");
        match host.config.session.regenerate_grace_ms {
            0 => entomb(&host, &mut old_hold, &old_facts, host.deadline())?,
            grace_ms => {
                // The tombstones go to all copies as ever: it is only this host's cache that still shows it.
                let version = Version { counter: old_facts.version.counter + 1, ..old_facts.version };
                // Nor does the grace prolong the session's life.
                let until_ms = (host.clock.unix_ms() + grace_ms).min(old_facts.absolute_ms);
                old_hold.remove_graced(version, self.hold()?, until_ms)?;
                finish(&host, &mut old_hold, host.deadline())?;
            }
        }
        kill_point!("regenerate.buried");
        Ok(())
    }

    /// Publishes the committed archive under the new id and has it acked by every server of its placement
    /// that is up: by no fewer than have it under the old id, as far as the view allows, because what was
    /// acked there is about to be buried. On error nothing is left of the new id.
    fn copy_to(&mut self, hold: &mut Hold, facts: &mut Facts) -> Result<()> {
        let host = self.host.clone();
        let Some(archive) = self.archive() else { return Ok(()) };
        facts.version.counter = 1;
        let head = Head {
            id: facts.id,
            version: facts.version,
            created_ms: archive.created_ms(),
            idle_ms: archive.idle_ms(),
            absolute_ms: archive.absolute_ms(),
            owner: archive.owner(),
        };
        let mut builder = Builder::new();
        let bytes = builder.build(&head, archive.iter(), &host.archive_limits())?;
        hold.stage(bytes.len() as u32)?.copy_from_slice(bytes);
        hold.publish(facts.version, facts.expiry_ms)?;
        kill_point!("regenerate.published");
        let deadline = host.deadline();
        host.wait_plan(deadline, |plan| !plan.may_wait_for(facts.id));
        let reached = self.reach(hold, facts, deadline);
        let touched = reached.and_then(|copies| {
            facts.copies = copies;
            touch(&host, hold, facts)
        });
        match touched {
            Ok(_) => Ok(()),
            Err(error) => {
                entomb(&host, hold, facts, deadline)?;
                Err(error)
            }
        }
    }

    /// Copies the new id until it is as safe as the old one is.
    fn reach(&mut self, hold: &mut Hold, facts: &Facts, deadline: Instant) -> Result<u32> {
        let host = self.host.clone();
        let stamp = Stamp { id: facts.id, version: facts.version, expiry_ms: facts.expiry_ms };
        let mut cargo = Cargo::Archive;
        loop {
            let plan = host.plan().clone();
            let reach = protect(&host, hold, &plan, &stamp, cargo)?;
            let places = self.hold()?.info()?.places;
            let safe = |place: &&PlaceInfo| {
                place.acked.is_some() && place.block.is_some() && plan.view.server(place.server).is_some()
            };
            let wanted = (places.iter().filter(safe).count() as u32).min(plan.copies_possible());
            if reach.acked >= wanted || !holds(Rule::R15Regenerate) {
                return Ok(reach.copies);
            }
            if reach.short == Some(Short::LeaseFull) {
                let context = "a session server has no room for the session under its new id";
                return Err(Error::new(ErrorKind::Full, Origin::Node, context));
            }
            if Instant::now() >= deadline {
                return Err(timed_out(&host, "the copies of the session's new id"));
            }
            host.clock.sleep(PAUSE);
            cargo = Cargo::Missing { same_since: None };
        }
    }
}
