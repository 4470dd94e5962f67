//! Adoption in the background: the steward takes over the sessions of a dead node that fall to its own, so
//! that each is cached and safely copied again without a request (C7), and tells the servers what is settled,
//! so that they can release the dead node's leases as a set (R10).

use super::attend::unless_lost;
use super::claims::{Claimed, Wanted, admit, claim, claim_at_newcomers, fetch_archives, unclaim};
use super::destroy::declare_gone;
use super::host::{Host, Lane, Plan};
use super::push::{Cargo, Flight, Stamp, launch, window};
use super::servers::unexpected;
use super::sweep::{Pace, copies_of};
use crate::cache::{EntryInit, EntryState, Hold, Inserted};
use crate::control::message::{FromServer, ToServer};
use crate::error::{ErrorKind, Result};
use crate::ident::{Epoch, Incarnation, SessionId, Version};
use crate::placement::adopter_of;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Sessions that are claimed and fetched together.
const BATCH: usize = 256;

/// When so many passes in a row have left the same number of sessions to other nodes, this node takes them,
/// too: a process of it that died between claim and adoption, for a request, leaves a claim that keeps all
/// others away.
const STALLED: u32 = 8;

/// What a pass of adoption left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Adopted {
    /// The view it went by.
    pub epoch: Epoch,
    /// Nothing that falls to this node is unsettled.
    pub complete: bool,
    /// Sessions adopted.
    pub sessions: u64,
}

/// One pass over the unsettled sessions of a dead incarnation.
///
/// # Errors
/// If a server could not answer; what was adopted stays, and the next pass goes on.
pub(super) fn adopt(host: &Host, dead: Incarnation, pace: &mut Pace<'_>) -> Result<Adopted> {
    let plan = host.plan().clone();
    let mut pass =
        Pass { host, plan: &plan, sessions: 0, complete: true, settled: Vec::new(), gone: Vec::new() };
    let (mut ours, mut others): (Vec<SessionId>, Vec<SessionId>) = Default::default();
    for id in list_unsettled(host, &plan, dead)?.into_keys() {
        if !pass.is_cached(id)? {
            if pass.falls_to_us(id) { ours.push(id) } else { others.push(id) }
        }
    }
    if host.leave_to_others(dead, others.len()) >= STALLED {
        ours.append(&mut others);
    }
    kill_point!("adopt.listed");
    pass.report();
    for batch in ours.chunks(BATCH) {
        if !pace.step(&*host.clock, batch.len() as u64) || host.cache.is_poisoned() {
            pass.complete = false;
            break;
        }
        pass.adopt_batch(batch)?;
        pass.report();
    }
    let same_view = host.plan().view.epoch == plan.view.epoch;
    Ok(Adopted { epoch: plan.view.epoch, complete: pass.complete && same_view, sessions: pass.sessions })
}

/// The unsettled sessions of a dead incarnation over all servers, each at its highest version.
fn list_unsettled(host: &Host, plan: &Plan, dead: Incarnation) -> Result<HashMap<SessionId, Version>> {
    let mut unsettled: HashMap<SessionId, Version> = HashMap::new();
    for server in &plan.view.servers {
        let mut cursor = Some(0);
        while let Some(at) = cursor {
            let request = ToServer::ListSealed { incarnation: dead, cursor: at };
            let FromServer::Sealed { sessions, next } = host.servers.call(server, &request)? else {
                return Err(unexpected(server, "a list of sealed sessions"));
            };
            for (id, version, _) in sessions {
                let held = unsettled.entry(id).or_insert(version);
                *held = version.max(*held);
            }
            // A list that does not go on must not hold the pass for ever.
            cursor = next.filter(|next| *next > at);
        }
    }
    Ok(unsettled)
}

struct Pass<'a> {
    host: &'a Host,
    plan: &'a Plan,
    sessions: u64,
    complete: bool,
    settled: Vec<(SessionId, Version)>,
    gone: Vec<(SessionId, Version)>,
}

impl Pass<'_> {
    fn falls_to_us(&self, id: SessionId) -> bool {
        adopter_of(id, &self.plan.view.nodes).is_some_and(|node| node.incarnation == self.host.incarnation())
    }

    /// Whether the session is here already; if so, notes what the servers should know.
    fn is_cached(&mut self, id: SessionId) -> Result<bool> {
        let Some(info) = self.host.cache.find(&id)? else { return Ok(false) };
        match info.state {
            EntryState::Live if copies_of(self.plan, &info) >= self.plan.copies_possible() => {
                self.settled.push((id, info.version));
            }
            EntryState::Gone => self.gone.push((id, info.version)),
            EntryState::Live => {
                self.complete = false;
                // The sweep makes its copies. Whoever left it without them could not; so it is said here.
                self.host.unprotected();
            }
            // A request finishes its fetch.
            EntryState::Adopting => self.complete = false,
        }
        Ok(true)
    }

    fn adopt_batch(&mut self, ids: &[SessionId]) -> Result<()> {
        let mut holds: HashMap<SessionId, Hold> = HashMap::new();
        for id in ids {
            match self.host.cache.insert(id, EntryInit::default()) {
                Ok(Inserted::Granted(hold)) => {
                    holds.insert(*id, hold);
                }
                // A request fetches it.
                Ok(Inserted::Exists) => self.complete = false,
                Err(error) if error.kind == ErrorKind::Full => {
                    // The session stays in its sealed lease, where a request can still find it.
                    tracing::warn!(%error, "no room to adopt a session");
                    self.complete = false;
                }
                Err(error) => return Err(error),
            }
        }
        let ids: Vec<SessionId> = holds.keys().copied().collect();
        if ids.is_empty() {
            return Ok(());
        }
        kill_point!("adopt.inserted");
        let wanted = self.claim_batch(&ids)?;
        kill_point!("adopt.claimed");
        let archives = fetch_archives(self.host, self.plan, &wanted);
        kill_point!("adopt.fetched");
        let mut admitted = Vec::new();
        for (wanted, archive) in wanted.iter().zip(archives) {
            let Some(hold) = holds.get_mut(&wanted.id) else { continue };
            match archive.and_then(|archive| admit(self.host, self.plan, hold, wanted, archive)) {
                Ok(stamp) => {
                    kill_point!("adopt.admitted");
                    admitted.push(stamp);
                }
                Err(error) if error.kind == ErrorKind::OwnershipLost => return Err(error),
                Err(error) => {
                    tracing::warn!(%error, session = %wanted.id, "a session cannot be adopted yet");
                    unclaim(self.host, self.plan, &[wanted.id]);
                    self.complete = false;
                }
            }
        }
        let admitted_ids: Vec<SessionId> = admitted.iter().map(|stamp| stamp.id).collect();
        claim_at_newcomers(self.host, self.plan, &admitted_ids)?;
        let plan = self.host.plan().clone();
        let mut flights: VecDeque<(Stamp, Hold, Flight<_>)> = VecDeque::new();
        for stamp in &admitted {
            let Some(mut hold) = holds.remove(&stamp.id) else { continue };
            self.sessions += 1;
            let missing = Cargo::Missing { same_since: None };
            match unless_lost(launch(self.host, &mut hold, &plan, stamp, missing))? {
                Some(flight) => flights.push_back((*stamp, hold, flight)),
                // The sweep makes its copies.
                None => self.complete = false,
            }
            if flights.len() >= window(self.host) {
                self.land(&plan, flights.pop_front())?;
            }
        }
        while !flights.is_empty() {
            self.land(&plan, flights.pop_front())?;
        }
        Ok(())
    }

    /// An adopted session's pushes end.
    fn land(&mut self, plan: &Plan, flight: Option<(Stamp, Hold, Flight<&Arc<Lane>>)>) -> Result<()> {
        let Some((stamp, mut hold, mut flight)) = flight else { return Ok(()) };
        let reach = unless_lost(flight.land(self.host, &mut hold))?;
        kill_point!("adopt.pushed");
        if reach.is_some_and(|reach| reach.copies >= plan.copies_possible()) {
            self.settled.push((stamp.id, stamp.version));
        } else {
            self.complete = false;
        }
        Ok(())
    }

    /// Claims a batch and sorts the answers: returns what is to be fetched.
    fn claim_batch(&mut self, ids: &[SessionId]) -> Result<Vec<Wanted>> {
        let claimed = match claim(self.host, self.plan, ids) {
            Ok(claimed) => claimed,
            Err(error) => {
                unclaim(self.host, self.plan, ids);
                return Err(error);
            }
        };
        let now_ms = self.host.clock.unix_ms();
        let mut wanted = Vec::new();
        let mut not_ours = Vec::new();
        for (id, claimed) in ids.iter().zip(claimed) {
            match claimed {
                Claimed::Ours(Some((copy, at))) if copy.live && copy.expiry_ms > now_ms => {
                    wanted.push(Wanted { id: *id, copy, at });
                }
                // Destroyed or expired at its host: final at every server from now on.
                Claimed::Ours(Some((copy, _))) => self.gone.push((*id, copy.version)),
                Claimed::Ours(None) => not_ours.push(*id),
                // Its new host settles it; a dead claimant's claim has to end first.
                Claimed::Elsewhere(node) => {
                    self.complete &= self.plan.view.node(node).is_some();
                    not_ours.push(*id);
                }
            }
        }
        unclaim(self.host, self.plan, &not_ours);
        Ok(wanted)
    }

    /// Tells the servers what is settled and what is gone; what they do not take is told again by the next
    /// pass.
    fn report(&mut self) {
        let settled = std::mem::take(&mut self.settled);
        if !settled.is_empty() {
            for server in &self.plan.view.servers {
                let request = ToServer::Settle { sessions: settled.clone() };
                if let Err(error) = self.host.servers.call(server, &request) {
                    tracing::debug!(server = server.name, %error, "cannot settle sessions yet");
                    self.complete = false;
                }
                kill_point!("adopt.settled");
            }
        }
        let gone = std::mem::take(&mut self.gone);
        if !gone.is_empty() {
            self.complete &= declare_gone(self.host, self.plan, &gone);
        }
    }
}
