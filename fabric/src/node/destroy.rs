//! The end of a session: destroyed by its user or expired. Gone is gone, from every copy.
//!
//! The entry becomes a tombstone first, so that nobody of this node sees the session again; then every lease
//! to which it was ever posted gets a tombstone (R9), sealed copies are declared gone, and last the slots are
//! given back, unless sealed copies may still exist (R10) or a slot of the session is in quarantine. A lease
//! in which the session has nothing but a slot in quarantine gets its tombstone in a fresh slot: what lies in
//! the other one, or still arrives there, is older and counts for less. Whatever cannot be done now is done
//! by the steward's sweep, which finds the entry by its state.

use super::host::{Host, Lane, Plan};
use super::open::{Facts, OpenSession, facts_of, timed_out};
use super::push::Stamp;
use super::volley::{End, Volley};
use crate::cache::{EntryInfo, EntryState, Hold, PlaceInfo, PushKind};
use crate::control::message::ToServer;
use crate::error::{ErrorKind, Result};
use crate::ident::{Incarnation, SessionId, Version};
use crate::lease::CellState;
use crate::numbers::NodeCounter;
use crate::rules::{Rule, holds};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How far a burial has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Burial {
    /// All tombstones are acked and the entry is on its way out.
    Done,
    /// All tombstones are acked; the slots are kept while sealed copies exist (R10).
    Kept,
    /// A server of the view has not acked.
    Open,
}

impl OpenSession {
    /// Destroys the session; returns when every server that ever had a copy has its tombstone or is out of
    /// the view.
    pub fn destroy(mut self) -> Result<()> {
        let host = self.host.clone();
        // Whatever was collected is of no use any more, and must not keep it from being destroyed.
        self.changes.clear();
        self.lock(host.deadline())?;
        if self.archive().is_none() {
            // Never committed: letting go of the hold leaves nothing.
            self.hold()?;
            return Ok(());
        }
        let facts = self.facts;
        host.count(NodeCounter::Destroys, 1);
        entomb(&host, self.hold()?, &facts, host.deadline())
    }
}

/// Ends a session whose time is over; the caller answers "expired" after that (R14).
pub(super) fn expire(host: &Host, hold: &mut Hold, info: &EntryInfo) -> Result<()> {
    host.count(NodeCounter::Expiries, 1);
    if !holds(Rule::R14Expiry) {
        return Ok(());
    }
    kill_point!("expire.asked");
    entomb(host, hold, &facts_of(&host.plan(), info), host.deadline())?;
    kill_point!("expire.answered");
    Ok(())
}

/// Begins to end a session whose time is over, for who answers nobody and comes again.
pub(super) fn begin_expiry(host: &Host, hold: &mut Hold, info: &EntryInfo) -> Result<Burying> {
    host.count(NodeCounter::Expiries, 1);
    hold.remove(Version { counter: info.version.counter + 1, ..info.version })?;
    kill_point!("expire.swept");
    begin_burial(host, hold, Instant::now())
}

/// Makes the entry a tombstone and buries it, waiting for its servers.
pub(super) fn entomb(host: &Host, hold: &mut Hold, facts: &Facts, deadline: Instant) -> Result<()> {
    let version = Version { counter: facts.version.counter + 1, ..facts.version };
    hold.remove(version)?;
    kill_point!("destroy.removed");
    finish(host, hold, deadline)
}

/// Whether a tombstone entry needs nothing more before it may be said that the session is gone.
pub(super) fn is_finished(host: &Host, hold: &Hold) -> Result<bool> {
    let (plan, info) = (host.plan(), hold.info()?);
    let declared = !(info.adopted && plan.sealed_copies_exist());
    Ok(declared && due_servers(&plan, hold, &info)?.is_empty())
}

/// Buries a tombstone entry, waiting for its servers: also one that somebody else made and could not bury,
/// who may have been killed at it. Before that nobody may be told that the session is gone: if this node
/// dies, its copies would bring it back.
pub(super) fn finish(host: &Host, hold: &mut Hold, deadline: Instant) -> Result<()> {
    while bury(host, hold, deadline, true)? == Burial::Open {
        if Instant::now() >= deadline {
            host.unprotected();
            return Err(timed_out(host, "the session's tombstones; they follow in the background"));
        }
        // A server that does not ack leaves the view soon; until then look again.
        host.clock.sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Takes a tombstone entry as far as it goes now; waits for links that were not opened yet until `deadline`.
fn bury(host: &Host, hold: &mut Hold, deadline: Instant, declare: bool) -> Result<Burial> {
    begin_burial(host, hold, deadline)?.land(host, hold, declare)
}

/// A session's tombstones, on their way to every lease to which it was ever posted.
pub(super) struct Burying {
    info: EntryInfo,
    plan: Arc<Plan>,
    tombstones: Volley<Arc<Lane>>,
    /// A server of the view could not be reached.
    open: bool,
}

/// Posts the tombstones of an entry; waits for links that were not opened yet until `deadline`.
pub(super) fn begin_burial(host: &Host, hold: &mut Hold, deadline: Instant) -> Result<Burying> {
    let info = hold.info()?;
    debug_assert_eq!(info.state, EntryState::Gone);
    let plan = host.plan().clone();
    let due = due_servers(&plan, hold, &info)?;
    let known =
        |plan: &Plan, server: Incarnation| plan.lane(server).is_some() || plan.view.server(server).is_none();
    // First the links, so that none of the tombstones waits for another.
    for server in due.iter().filter(|server| !known(&plan, **server)) {
        host.wait_plan(deadline, |plan| known(plan, *server));
    }
    let newest = host.plan().clone();
    let stamp = Stamp { id: info.id, version: info.version, expiry_ms: info.expiry_ms };
    let (mut tombstones, mut open) = (Volley::new(&stamp), false);
    for server in due {
        match newest.lane(server) {
            Some(lane) => {
                let short =
                    tombstones.post(host, hold, lane.clone(), PushKind::Bare, CellState::Tombstone)?;
                open |= short.is_some();
            }
            None => open |= newest.view.server(server).is_some(),
        }
    }
    kill_point!("destroy.posted");
    Ok(Burying { info, plan, tombstones, open })
}

/// The servers that must still be given the tombstone (R9): where the session has a place, and where it has
/// only a slot in quarantine.
fn due_servers(plan: &Plan, hold: &Hold, info: &EntryInfo) -> Result<Vec<Incarnation>> {
    let places = info.places.iter().filter(|place| needs_tombstone(plan, place, info.id, info.version));
    let mut due: Vec<Incarnation> = places.map(|place| place.server).collect();
    let placed = |server: &Incarnation| info.places.iter().any(|place| place.server == *server);
    let mut in_doubt = hold.quarantined_at()?;
    in_doubt.retain(|server| plan.view.server(*server).is_some() && !placed(server));
    if holds(Rule::R9Destroy) {
        due.extend(in_doubt);
    }
    Ok(due)
}

impl Burying {
    /// The tombstones.
    pub fn volley(&mut self) -> &mut Volley<Arc<Lane>> {
        &mut self.tombstones
    }

    /// Waits for the tombstones, and lets the session go if it may. `declare`: sealed copies are declared
    /// gone. Who comes again need not while they exist: what a server missed, it lists to the adoption.
    pub fn land(self, host: &Host, hold: &mut Hold, declare: bool) -> Result<Burial> {
        let Self { info, plan, mut tombstones, mut open } = self;
        tombstones.land(host, hold, |end| open |= end != End::Acked)?;
        kill_point!("destroy.acked");
        let declare = declare || !plan.sealed_copies_exist();
        if info.adopted && declare && !declare_gone(host, &plan, &[(info.id, info.version)]) {
            open = true;
        }
        if open {
            return Ok(Burial::Open);
        }
        let kept = info.adopted && plan.sealed_copies_exist() && holds(Rule::R10ReleaseAsSet);
        if kept {
            return Ok(Burial::Kept);
        }
        for place in &info.places {
            match hold.free_place(place.index) {
                Ok(()) => {}
                // A slot of this session is in quarantine: what lies there must not outlive the tombstone.
                Err(error) if error.kind == ErrorKind::NotYet => return Ok(Burial::Kept),
                Err(error) => return Err(error),
            }
        }
        Ok(Burial::Done)
    }
}

/// Whether a place must still be given the tombstone (R9): all do, not only the placement's; but for a server
/// that has left the view nothing counts any more.
fn needs_tombstone(plan: &Plan, place: &PlaceInfo, id: SessionId, version: Version) -> bool {
    if plan.view.server(place.server).is_none() {
        return false;
    }
    let placed = plan.places_of(id).any(|(server, _)| server.incarnation == place.server);
    let due = place.acked != Some(version) || place.block.is_some();
    due && (placed || holds(Rule::R9Destroy))
}

/// Tells every up server that sealed copies up to these versions are gone. Returns whether all have taken it.
pub(super) fn declare_gone(host: &Host, plan: &Plan, sessions: &[(SessionId, Version)]) -> bool {
    if !holds(Rule::R9Destroy) {
        return true;
    }
    let request = ToServer::Destroyed { sessions: sessions.to_vec() };
    plan.view.servers.iter().fold(true, |all, server| {
        let told = host.servers.call(server, &request);
        if let Err(error) = &told {
            tracing::debug!(server = server.name, %error, "cannot declare sessions gone yet");
        }
        all & told.is_ok()
    })
}
