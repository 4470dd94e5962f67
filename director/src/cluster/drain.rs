//! Drain: a planned death.
//!
//! *Protecting*: the node takes no new sessions; wait until each of its sessions has a safe copy. *Emptying*:
//! its requests wait at the director; those under way end. *Preparing*: the node finishes its pushes and
//! answers `Drained`. Then its incarnation ends like any other, the others adopt, and the held requests
//! follow. Until that point any failure puts the node back to work and says why.

use super::dead::answer;
use super::{Cluster, DrainOutcome, Effect, Link, Moment, Out, Phase, Ticket};
use selvage_fabric::control::message::FromDirector;
use selvage_fabric::ident::Incarnation;

/// A drain under way.
#[derive(Debug)]
pub(super) struct Drain {
    stage: Stage,
    /// Names the hold of its requests.
    hold: u64,
    /// When the stage is given up.
    deadline: Moment,
    /// Heartbeats of the node up to which its numbers are from before the drain.
    beats_before: u64,
    pub(super) tickets: Vec<Ticket>,
    /// What the node is when it is out.
    pub(super) out: Out,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Protecting,
    Emptying,
    Preparing,
}

impl Drain {
    /// Whether the node's requests wait at the director.
    pub(super) fn holds(&self) -> bool {
        self.stage != Stage::Protecting
    }

    /// Whether it was begun because the node fails its health checks.
    pub(super) fn is_of_failing(&self) -> bool {
        self.out == Out::Failing
    }

    /// Whether the node has been told to finish.
    pub(super) fn prepares(&self) -> bool {
        self.stage == Stage::Preparing
    }
}

impl Cluster {
    pub(super) fn drain(&mut self, name: &str, ticket: Ticket, now: Moment, out: &mut Vec<Effect>) {
        self.take_out(name, Out::Drained, Some(ticket), now, out);
    }

    /// Begins a drain, or says why not; what is out already is so for another reason from now on.
    pub(super) fn take_out(
        &mut self,
        name: &str,
        why: Out,
        ticket: Option<Ticket>,
        now: Moment,
        out: &mut Vec<Effect>,
    ) {
        if let Some(refusal) = self.cannot_drain(name) {
            let outcome = DrainOutcome::Refused(refusal);
            out.extend(ticket.map(|ticket| Effect::Answer { ticket, outcome }));
            return;
        }
        let deadline = now + self.settings.hold;
        let Some(node) = self.nodes.get_mut(name) else { return };
        let Some(life) = &mut node.life else {
            // Out already: say so, or wait with the others for the adoption.
            if node.out.replace(why) != Some(why) {
                self.keep_out(out);
            }
            let outcome = DrainOutcome::HandedOver;
            match self.dead.iter_mut().rev().find(|dead| dead.name == name) {
                Some(dead) => dead.tickets.extend(ticket),
                None => out.extend(ticket.map(|ticket| Effect::Answer { ticket, outcome })),
            }
            return;
        };
        if let Some(drain) = &mut life.drain {
            drain.tickets.extend(ticket);
            drain.out = why;
            return;
        }
        life.drain = Some(Drain {
            hold: 0,
            stage: Stage::Protecting,
            deadline,
            beats_before: life.beats,
            tickets: ticket.into_iter().collect(),
            out: why,
        });
        self.changed = true;
        out.push(Effect::Log(format!("node {name} is being drained")));
    }

    pub(super) fn cannot_drain(&self, name: &str) -> Option<String> {
        if matches!(self.phase, Phase::Recovering { .. }) {
            return Some("the director has just started and does not know the cluster yet; try again".into());
        }
        let node = self.nodes.get(name)?;
        if node.out.is_some() {
            return None;
        }
        if node.life.is_none() {
            return Some(format!("node {name} is not up"));
        }
        let others = self
            .nodes
            .iter()
            .filter(|(other, node)| *other != name && node.out.is_none() && !node.health.failing);
        if others.filter_map(|(_, node)| node.life.as_ref()).all(|life| life.drain.is_some()) {
            return Some(format!("no other node is up that could take the sessions of {name}"));
        }
        if self.servers.values().all(|server| server.up.is_none()) {
            return Some(format!("no session server is up, so the sessions of {name} cannot be handed over"));
        }
        None
    }

    /// A heartbeat of a draining node: once its sessions are protected its requests are held.
    pub(super) fn drain_protected(&mut self, name: &str, now: Moment, out: &mut Vec<Effect>) {
        let half_hold = self.settings.hold / 2;
        let Some(life) = self.nodes.get_mut(name).and_then(|node| node.life.as_mut()) else { return };
        let Some(drain) = &mut life.drain else { return };
        let fresh = life.beats > drain.beats_before;
        if drain.stage != Stage::Protecting || !fresh || life.beat.safe[0] > 0 {
            return;
        }
        drain.stage = Stage::Emptying;
        self.hold_last += 1;
        let hold = self.hold_last;
        drain.hold = hold;
        // Held requests wait no longer than `hold`; sealing and adoption need their part of it.
        drain.deadline = now + half_hold;
        self.held_changed = true;
        out.push(self.publish());
        self.held_changed = false;
        let Some(life) = self.nodes.get(name).and_then(|node| node.life.as_ref()) else { return };
        out.push(Effect::AwaitIdle { incarnation: life.incarnation, hold });
    }

    pub(super) fn node_idle(&mut self, incarnation: Incarnation, hold: u64, out: &mut Vec<Effect>) {
        let lives = self.nodes.values_mut().filter_map(|node| node.life.as_mut());
        let Some(life) = lives.into_iter().find(|life| life.incarnation == incarnation) else { return };
        let Some(drain) = life.drain.as_mut().filter(|drain| drain.stage == Stage::Emptying) else { return };
        if drain.hold != hold {
            return;
        }
        drain.stage = Stage::Preparing;
        if let Some(link) = life.link {
            out.push(Effect::ToNode { link, message: FromDirector::PrepareDrain });
        }
    }

    pub(super) fn drained(&mut self, link: Link, name: &str, now: Moment, out: &mut Vec<Effect>) {
        let Some(life) = self.nodes.get(name).and_then(|node| node.life.as_ref()) else { return };
        if life.link != Some(link) || !life.drain.as_ref().is_some_and(Drain::prepares) {
            return;
        }
        // Nodes and servers may have gone since the drain began.
        let unprotected =
            (life.beat.safe[0] > 0).then(|| "some of its sessions have no safe copy".to_owned());
        match self.cannot_drain(name).or(unprotected) {
            Some(why) => self.give_up_drain(name, &why, out),
            None => self.end(name, now, "it is drained", out),
        }
    }

    pub(super) fn drain_deadlines(&mut self, now: Moment, out: &mut Vec<Effect>) {
        let late: Vec<(String, Stage, String)> = self
            .nodes
            .iter()
            .filter_map(|(name, node)| {
                let life = node.life.as_ref()?;
                let drain = life.drain.as_ref().filter(|drain| now > drain.deadline)?;
                let why = match drain.stage {
                    Stage::Protecting => format!("{} of its sessions have no safe copy", life.beat.safe[0]),
                    Stage::Emptying => "requests of it are still under way".to_owned(),
                    Stage::Preparing => "its sessions did not get all their copies in time".to_owned(),
                };
                Some((name.clone(), drain.stage, why))
            })
            .collect();
        for (name, stage, why) in late {
            if stage != Stage::Emptying || !self.end_failing(&name, now, out) {
                self.put_off_failing(&name, now);
                self.give_up_drain(&name, &why, out);
            }
        }
    }

    /// Puts a draining node back to work.
    pub(super) fn give_up_drain(&mut self, name: &str, why: &str, out: &mut Vec<Effect>) {
        let Some(life) = self.nodes.get_mut(name).and_then(|node| node.life.as_mut()) else { return };
        let Some(mut drain) = life.drain.take() else { return };
        let text = format!("node {name} was not drained: {why}");
        answer(&mut drain.tickets, &DrainOutcome::Refused(text.clone()), out);
        out.push(Effect::Log(text));
        self.changed = true;
    }
}
