//! Ended incarnations: sealed everywhere, then adopted, then released.
//!
//! Adoption may begin (`sealed: true`) only when every server of the view has carried out the view that ended
//! the incarnation (R2). Where a server left without confirming, or before, but not as far as the dead had
//! heard, its memory may still take pushes, so adoption waits until no mandate of the dead can be valid (R8).
//! A director that has handed over and still serves browsers must have cut the dead, too, or be gone: what a
//! dead node answers there would be older than what the adopter has.
//! The entry leaves the view, which releases the leases, only when no server holds an unsettled session of
//! it (R10).

use super::{Cluster, DrainOutcome, Effect, Moment, Server, Ticket};
use selvage_fabric::ident::{Epoch, Incarnation};
use selvage_fabric::rules::{Rule, holds};

/// An ended incarnation whose leases are not released.
#[derive(Debug)]
pub(super) struct Dead {
    pub(super) name: String,
    pub(super) incarnation: Incarnation,
    /// When it was ended, or found to have been.
    pub(super) since: Moment,
    /// The view that ended it; `None` until that is published.
    pub(super) ended: Option<Epoch>,
    pub(super) sealed: bool,
    /// A server that it may push to left the view before it confirmed.
    pub(super) unconfirmed: bool,
    /// No mandate of it lasts longer.
    pub(super) mandate_until: Moment,
    /// Drain requests that wait for the hand-over.
    pub(super) tickets: Vec<Ticket>,
    /// When those are answered at the latest.
    pub(super) answer_by: Moment,
}

impl Dead {
    pub(super) fn new(name: &str, incarnation: Incarnation, since: Moment, mandate_until: Moment) -> Self {
        Self {
            name: name.to_owned(),
            incarnation,
            since,
            ended: None,
            sealed: false,
            unconfirmed: false,
            mandate_until,
            tickets: Vec::new(),
            answer_by: mandate_until,
        }
    }

    /// Whether every up server has sealed it, nothing it acks can be lost (R2, R8), and nobody gets its
    /// answers any more.
    fn may_be_adopted(&self, ended: Epoch, servers: &[&Server], elder: Option<Epoch>, now: Moment) -> bool {
        if elder.is_some_and(|taken| taken < ended) {
            return false;
        }
        let confirmed = servers.iter().all(|server| server.confirmed >= ended);
        let mandate_over = !self.unconfirmed || now > self.mandate_until;
        (confirmed || !holds(Rule::R2SealByView)) && (mandate_over || !holds(Rule::R8Mandate))
    }

    /// Whether every up server reports, after sealing, that nothing in it is unsettled (R10).
    fn is_settled(&self, ended: Epoch, servers: &[&Server]) -> bool {
        let settled = servers.iter().all(|server| {
            let leases = server.report.leases.iter();
            // Without a report of after the sealing, an empty list says nothing.
            server.confirmed >= ended
                && leases
                    .filter(|lease| lease.incarnation == self.incarnation)
                    .all(|lease| lease.sealed && lease.unsettled == 0)
        });
        settled || !holds(Rule::R10ReleaseAsSet)
    }
}

impl Cluster {
    /// Looks at each ended incarnation: can it be adopted, can it be released.
    pub(super) fn review_dead(&mut self, now: Moment, out: &mut Vec<Effect>) {
        let servers: Vec<&Server> = self.servers.values().filter(|server| server.up.is_some()).collect();
        let takeovers = &mut self.takeovers;
        let mut changed = false;
        self.dead.retain_mut(|dead| {
            let Some(ended) = dead.ended else { return true };
            if !dead.sealed {
                dead.sealed = dead.may_be_adopted(ended, &servers, self.elder, now);
                if dead.sealed {
                    changed = true;
                    takeovers.sealed(dead.since, now);
                    out.push(Effect::Log(format!(
                        "node {} ({}) is sealed at {} servers; its sessions can be adopted",
                        dead.name,
                        dead.incarnation.tag(),
                        servers.len()
                    )));
                }
                return true;
            }
            let settled = dead.is_settled(ended, &servers);
            if settled || now > dead.answer_by {
                let outcome = if settled { DrainOutcome::HandedOver } else { DrainOutcome::Adopting };
                answer(&mut dead.tickets, &outcome, out);
            }
            if settled {
                changed = true;
                takeovers.settled(dead.since, now);
                out.push(Effect::Log(format!("node {} ({}) is settled", dead.name, dead.incarnation.tag())));
            }
            !settled
        });
        self.changed |= changed;
    }

    /// A server leaves the view: those that it has not confirmed must wait for their mandate (R8).
    pub(super) fn left_unconfirmed(&mut self, confirmed: Epoch) {
        for dead in &mut self.dead {
            if !dead.sealed && dead.ended.is_none_or(|ended| confirmed < ended) {
                dead.unconfirmed = true;
            }
        }
    }

    /// Whether this incarnation is over and not yet released.
    pub(super) fn is_dead(&self, incarnation: Incarnation) -> bool {
        self.dead.iter().any(|dead| dead.incarnation == incarnation)
    }
}

/// Gives all waiting tickets the same answer.
pub(super) fn answer(tickets: &mut Vec<Ticket>, outcome: &DrainOutcome, out: &mut Vec<Effect>) {
    let answers = tickets.drain(..).map(|ticket| Effect::Answer { ticket, outcome: outcome.clone() });
    out.extend(answers);
}
