//! A new id for a session (R15), at a change of privilege: what was known under the old id must not gain what
//! the new one may.

use super::destroy::entomb;
use super::host::Counter;
use super::open::{Access, Facts, OpenSession, touch};
use super::push::{Cargo, Stamp, protect};
use crate::archive::{Builder, Head};
use crate::cache::{EntryInit, Hold, Inserted};
use crate::error::{Error, ErrorKind, Origin, Result};
use crate::ident::{SessionId, Version};
use crate::rules::{Rule, holds};

impl OpenSession {
    /// Moves the committed state to a new id: under both ids' locks the new copy is acked, then the old
    /// tombstone, then it returns. Uncommitted changes go along, uncommitted.
    pub fn regenerate(&mut self) -> Result<()> {
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
        let epoch = host.plan().view.epoch.number.max(self.facts.version.epoch);
        let mut facts =
            Facts { id, version: Version { epoch, counter: 0 }, copies: 0, adopted: false, ..self.facts };
        if self.archive().is_some() {
            self.copy_to(&mut new_hold, &mut facts)?;
        }
        let old = (std::mem::replace(&mut self.access, Access::Exclusive(new_hold)), self.facts);
        self.facts = facts;
        self.needs_cookie = true;
        host.count(Counter::Creates, 1);
        let (Access::Exclusive(mut old_hold), old_facts) = old else { return Ok(()) };
        if old_hold.bytes().is_empty() || !holds(Rule::R15Regenerate) {
            return Ok(());
        }
        entomb(&host, &mut old_hold, &old_facts, host.deadline())
    }

    /// Publishes the committed archive under the new id and has it acked by every server of its placement
    /// that is up.
    fn copy_to(&self, hold: &mut Hold, facts: &mut Facts) -> Result<()> {
        let Some(archive) = self.archive() else { return Ok(()) };
        let host = &self.host;
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
        let deadline = host.deadline();
        host.wait_plan(deadline, |plan| !plan.may_wait_for(facts.id));
        let stamp = Stamp { id: facts.id, version: facts.version, expiry_ms: facts.expiry_ms };
        let reach = protect(host, hold, &host.plan(), &stamp, Cargo::Archive);
        match reach {
            Ok(reach) => {
                facts.copies = reach.copies;
                touch(host, hold, facts)?;
                Ok(())
            }
            Err(error) => {
                entomb(host, hold, facts, deadline)?;
                Err(error)
            }
        }
    }
}
