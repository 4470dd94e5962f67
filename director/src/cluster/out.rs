//! Nodes that are kept out of the cluster: drained, in maintenance, or failing their health checks.
//!
//! Each way out is a drain, with no failed request, and each needs somebody who takes the sessions. What the
//! operator said stays until he says otherwise, over restarts; what the checks said goes with the next good
//! ones. A failing node whose requests do not end either is ended like a dead one once its sessions are
//! safe: whoever waits for it waits in vain.

use super::drain::Drain;
use super::{Cluster, DrainOutcome, Effect, Moment, Phase, Ticket};
use selvage_fabric::ident::Incarnation;
use std::str::FromStr;

/// Why a node is kept out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Out {
    /// The operator has drained it.
    Drained,
    /// The operator works on it; it is not checked either.
    Maintenance,
    /// Its web server answers no health checks, but its steward beats.
    Failing,
}

/// What health checks say of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Health {
    pub(super) failing: bool,
    /// Its sessions are not handed over before; a hand-over that failed is tried again then.
    pub(super) not_before: Moment,
}

/// What a round of health checks has found of a node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Checked {
    /// The node.
    pub name: String,
    /// Its life when the round began; `NONE` if it had none.
    pub life: Incarnation,
    /// What they have found.
    pub failing: bool,
}

impl Health {
    /// No check has found yet that this life of the node fails.
    const UNPROVEN: Moment = Moment::MAX;

    /// A new life begins. What was found before its time says nothing about it: while its host restarted
    /// nobody could answer.
    pub(super) fn begin(&mut self) {
        if self.failing {
            self.not_before = Self::UNPROVEN;
        }
    }
}

impl Out {
    /// As it stands in status.
    pub fn name(self) -> &'static str {
        match self {
            Self::Drained => "drained",
            Self::Maintenance => "maintenance",
            Self::Failing => "failing",
        }
    }
}

impl FromStr for Out {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        [Self::Drained, Self::Maintenance].into_iter().find(|out| out.name() == name).ok_or(())
    }
}

impl Cluster {
    /// The operator takes a node out for maintenance; it need not be up.
    pub(super) fn maintain(&mut self, name: &str, ticket: Ticket, now: Moment, out: &mut Vec<Effect>) {
        let recovering = matches!(self.phase, Phase::Recovering { .. });
        let Some(node) = self.nodes.get_mut(name) else { return };
        if node.life.is_some() || recovering {
            self.take_out(name, Out::Maintenance, Some(ticket), now, out);
            return;
        }
        node.out = Some(Out::Maintenance);
        self.keep_out(out);
        out.push(Effect::Log(format!("node {name} is in maintenance")));
        match self.dead.iter_mut().rev().find(|dead| dead.name == name) {
            Some(dead) => dead.tickets.push(ticket),
            None => out.push(Effect::Answer { ticket, outcome: DrainOutcome::HandedOver }),
        }
    }

    /// The operator lets a node come back, or stops its drain.
    pub(super) fn undrain(&mut self, name: &str, out: &mut Vec<Effect>) {
        let Some(node) = self.nodes.get_mut(name) else { return };
        node.out = None;
        self.keep_out(out);
        self.give_up_drain(name, "it was undrained meanwhile", out);
    }

    /// Health checks have found a node failing, or well again.
    pub(super) fn checked(&mut self, found: &Checked, now: Moment, out: &mut Vec<Effect>) {
        let Checked { name, life, failing } = found;
        let (name, failing) = (name.as_str(), *failing);
        let Some(node) = self.nodes.get_mut(name) else { return };
        let is_of_life = node.life.as_ref().is_none_or(|present| present.incarnation == *life);
        if node.health.failing == failing {
            if is_of_life && node.health.not_before == Health::UNPROVEN {
                node.health.not_before = now;
            }
            return;
        }
        node.health = Health { failing, not_before: if is_of_life { now } else { Health::UNPROVEN } };
        let what = if failing { "answers no health checks" } else { "answers health checks again" };
        out.push(Effect::Log(format!("the web server of node {name} {what}")));
        if failing {
            return;
        }
        if node.out == Some(Out::Failing) {
            node.out = None;
        }
        let drain = node.life.as_ref().and_then(|life| life.drain.as_ref());
        if drain.is_some_and(Drain::is_of_failing) {
            self.give_up_drain(name, "its web server answers again", out);
        }
    }

    /// Hands the sessions of failing nodes over, as soon as somebody can take them.
    pub(super) fn hand_over_failing(&mut self, now: Moment, out: &mut Vec<Effect>) {
        let due = self.nodes.iter().filter(|(_, node)| {
            let idle = node.life.as_ref().is_some_and(|life| life.drain.is_none());
            idle && node.health.failing && now >= node.health.not_before
        });
        let due: Vec<String> = due.map(|(name, _)| name.clone()).collect();
        for name in due {
            if self.cannot_drain(&name).is_none() {
                self.take_out(&name, Out::Failing, None, now, out);
            }
        }
    }

    /// A hand-over was given up: the next one is tried after a pause.
    pub(super) fn put_off_failing(&mut self, name: &str, now: Moment) {
        let not_before = now + self.settings.hold;
        if let Some(node) = self.nodes.get_mut(name) {
            node.health.not_before = not_before;
        }
    }

    /// A failing node's requests do not end: ends the node, if nothing is lost by it. False: it was not.
    pub(super) fn end_failing(&mut self, name: &str, now: Moment, out: &mut Vec<Effect>) -> bool {
        let life = self.nodes.get(name).and_then(|node| node.life.as_ref());
        let safe = life.is_some_and(|life| {
            life.beat.safe[0] == 0 && life.drain.as_ref().is_some_and(Drain::is_of_failing)
        });
        if !safe || self.cannot_drain(name).is_some() {
            return false;
        }
        self.end(name, now, "its web server answers neither requests nor health checks", out);
        true
    }

    /// Names of nodes that the operator keeps out, for the next director.
    pub(super) fn keep_out(&self, out: &mut Vec<Effect>) {
        let told = self.nodes.iter().filter_map(|(name, node)| {
            let why = node.out.filter(|out| *out != Out::Failing)?;
            Some((name.clone(), why))
        });
        out.push(Effect::Drained(told.collect()));
    }
}
