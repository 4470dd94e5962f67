//! Nodes: registration, heartbeats and mandates, silence, death.
//!
//! A mandate goes only to the incarnation that lives, over the connection of its present steward, and it is
//! shorter than the silence that ends it (R8); so a node is declared dead only after it has stopped reporting
//! acks.

use super::dead::Dead;
use super::drain::Drain;
use super::evidence::{Verdict, judge};
use super::out::{Health, Out};
use super::{Cluster, Effect, Link, Moment, Phase};
use selvage_fabric::control::message::{FromDirector, NodeBeat, NodeNumbers, Refusal, ToDirector};
use selvage_fabric::ident::{Epoch, Incarnation};

/// A configured node.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) address: String,
    pub(super) life: Option<Life>,
    /// Kept out, and why: may not register.
    pub(super) out: Option<Out>,
    pub(super) health: Health,
    /// The first life that this director has ended: if one was from before its time, this is it.
    pub(super) ended: Option<Incarnation>,
}

/// A live incarnation of a node.
#[derive(Debug)]
pub(super) struct Life {
    pub(super) incarnation: Incarnation,
    /// Its present steward.
    pub(super) link: Option<Link>,
    /// When it was last heard, or later by what it is forgiven.
    pub(super) heard: Moment,
    /// No mandate that was ever granted to it lasts longer (R8).
    pub(super) mandate_until: Moment,
    pub(super) beat: NodeBeat,
    /// When that came.
    pub(super) beat_at: Moment,
    /// The newest that a beat brought.
    pub(super) numbers: NodeNumbers,
    /// The silence in which it was spared was counted: `heard` of then.
    spared: Option<Moment>,
    /// Beats since the drain began show the state that the drain needs.
    pub(super) beats: u64,
    pub(super) drain: Option<Drain>,
    /// The next view goes out as the answer to `Register`.
    pub(super) greet: bool,
}

/// A steward's connection.
#[derive(Debug)]
pub(super) struct Caller {
    name: String,
    incarnation: Incarnation,
    /// What it wants while the director still recovers.
    pub(super) waiting: Option<Waiting>,
}

/// A first message that waits for the end of recovery.
#[derive(Clone, Copy, Debug)]
pub(super) enum Waiting {
    Register,
    Resume(Epoch),
}

impl Life {
    pub(super) fn new(
        incarnation: Incarnation,
        link: Option<Link>,
        heard: Moment,
        mandate_until: Moment,
    ) -> Self {
        Self {
            incarnation,
            link,
            heard,
            mandate_until,
            beat: NodeBeat::default(),
            numbers: NodeNumbers::default(),
            beat_at: Moment::ZERO,
            spared: None,
            beats: 0,
            drain: None,
            greet: false,
        }
    }

    pub(super) fn forgive(&mut self, forgive: impl Fn(&mut Moment)) {
        forgive(&mut self.heard);
        forgive(&mut self.beat_at);
    }
}

impl Cluster {
    pub(super) fn node_opened(&mut self, link: Link, name: String, incarnation: Incarnation) {
        self.node_links.insert(link, Caller { name, incarnation, waiting: None });
    }

    pub(super) fn node_closed(&mut self, link: Link) {
        self.node_links.remove(&link);
        for life in self.nodes.values_mut().filter_map(|node| node.life.as_mut()) {
            if life.link == Some(link) {
                // Another process may take the steward's role over; only silence ends the incarnation.
                life.link = None;
            }
        }
    }

    pub(super) fn node_message(
        &mut self,
        link: Link,
        message: ToDirector,
        now: Moment,
        out: &mut Vec<Effect>,
    ) {
        let Some(caller) = self.node_links.get_mut(&link) else { return };
        let recovering = matches!(self.phase, Phase::Recovering { .. });
        let (name, incarnation) = (caller.name.clone(), caller.incarnation);
        match message {
            ToDirector::Register if recovering => caller.waiting = Some(Waiting::Register),
            ToDirector::Resume { epoch } if recovering => caller.waiting = Some(Waiting::Resume(epoch)),
            // No mandate before it is known who lives.
            ToDirector::Beat(_) | ToDirector::Drained if recovering => {}
            ToDirector::Register => self.register(link, &name, now, out),
            ToDirector::Resume { epoch } => self.resume(link, &name, incarnation, epoch, now, out),
            ToDirector::Beat(beat) => self.beat(link, &name, incarnation, beat, now, out),
            ToDirector::Drained => self.drained(link, &name, now, out),
            ToDirector::ErrandEnded { number, outcome } => self.errand_ended(link, number, outcome),
            // Applications are heard elsewhere.
            ToDirector::DestroyOwner { .. } => {}
        }
    }

    /// A new life of a node: ends the older one at once.
    pub(super) fn register(&mut self, link: Link, name: &str, now: Moment, out: &mut Vec<Effect>) {
        if self.node_links.get(&link).is_some_and(|caller| self.lives(&caller.name, caller.incarnation, link))
        {
            let why = "this connection has registered already".to_owned();
            out.push(Effect::ToNode { link, message: FromDirector::Refused(Refusal::Bad(why)) });
            out.push(Effect::CloseNode { link });
            return;
        }
        self.end(name, now, "a newer life of it registers", out);
        let Some(node) = self.nodes.get(name) else { return };
        if node.out.is_some() {
            out.push(Effect::ToNode { link, message: FromDirector::Over { drained: true } });
            return;
        }
        let incarnation = self.next_incarnation();
        let Some(node) = self.nodes.get_mut(name) else { return };
        let mut life = Life::new(incarnation, Some(link), now, now);
        life.greet = true;
        node.life = Some(life);
        node.health.begin();
        if let Some(caller) = self.node_links.get_mut(&link) {
            caller.incarnation = incarnation;
        }
        self.changed = true;
        out.push(Effect::Log(format!("node {name} is up as {}", incarnation.tag())));
    }

    /// A new steward of a living incarnation, or an old one after the director's restart.
    pub(super) fn resume(
        &mut self,
        link: Link,
        name: &str,
        incarnation: Incarnation,
        epoch: Epoch,
        now: Moment,
        out: &mut Vec<Effect>,
    ) {
        if !self.may_resume(name, incarnation, epoch, now) {
            let drained = self.nodes.get(name).is_some_and(|node| node.out.is_some());
            out.push(Effect::ToNode { link, message: FromDirector::Over { drained } });
            return;
        }
        self.above(epoch);
        if self.nodes.get(name).is_some_and(|node| node.life.is_none()) {
            self.went_on();
        }
        let (mandate, view) = (self.settings.mandate, (*self.view).clone());
        let Some(node) = self.nodes.get_mut(name) else { return };
        if node.life.is_none() {
            self.changed = true;
            out.push(Effect::Log(format!("node {name} goes on as {}", incarnation.tag())));
        }
        // An older director may have granted a mandate just now, so count one from here.
        let life = node.life.get_or_insert_with(|| Life::new(incarnation, None, now, now + mandate));
        life.heard = life.heard.max(now);
        if let Some(old) = life.link.replace(link).filter(|old| *old != link) {
            out.push(Effect::CloseNode { link: old });
        }
        if !self.changed {
            out.push(Effect::ToNode { link, message: FromDirector::View(view) });
        }
        if life.drain.as_ref().is_some_and(Drain::prepares) {
            out.push(Effect::ToNode { link, message: FromDirector::PrepareDrain });
        }
    }

    fn beat(
        &mut self,
        link: Link,
        name: &str,
        incarnation: Incarnation,
        mut beat: NodeBeat,
        now: Moment,
        out: &mut Vec<Effect>,
    ) {
        if !self.lives(name, incarnation, link) {
            let drained = self.nodes.get(name).is_some_and(|node| node.out.is_some());
            out.push(Effect::ToNode { link, message: FromDirector::Over { drained } });
            return;
        }
        self.above(beat.epoch);
        let mandate = self.settings.mandate;
        let Some(life) = self.nodes.get_mut(name).and_then(|node| node.life.as_mut()) else { return };
        life.heard = life.heard.max(now);
        life.mandate_until = now + mandate;
        life.beats += 1;
        out.push(Effect::ToNode { link, message: FromDirector::Mandate { sent_ns: beat.sent_ns } });
        // Always: the proxy adds what it has sent there since.
        out.push(Effect::Load { incarnation, sessions: beat.sessions });
        if let Some(numbers) = beat.numbers.take() {
            life.numbers = *numbers;
        }
        (life.beat, life.beat_at) = (beat, now);
        self.drain_protected(name, now, out);
    }

    /// The name and incarnation that a steward's connection speaks for.
    pub(super) fn caller(&self, link: Link) -> Option<(String, Incarnation)> {
        self.node_links.get(&link).map(|caller| (caller.name.clone(), caller.incarnation))
    }

    /// Whether this connection is that of the present steward of the node's living incarnation.
    pub(super) fn lives(&self, name: &str, incarnation: Incarnation, link: Link) -> bool {
        let life = self.nodes.get(name).and_then(|node| node.life.as_ref());
        life.is_some_and(|life| life.incarnation == incarnation && life.link == Some(link))
    }

    pub(super) fn silent_nodes(&mut self, now: Moment, out: &mut Vec<Effect>) {
        if matches!(self.phase, Phase::Recovering { .. }) {
            return;
        }
        let silence = self.settings.silence;
        let lives = self.nodes.iter().filter_map(|(name, node)| Some((name, node.life.as_ref()?)));
        let judged: Vec<(String, Verdict)> = lives
            .map(|(name, life)| {
                let seen = || self.node_seen(life.incarnation);
                (name.clone(), judge(life.heard, silence, seen, silence, now))
            })
            .collect();
        for (name, verdict) in judged {
            match verdict {
                Verdict::Heard => {}
                Verdict::Spared => self.spare_node(&name, out),
                Verdict::Silent => self.end(&name, now, "it is silent", out),
            }
        }
    }

    /// Tells and counts a silent node that is spared, once for each silence.
    fn spare_node(&mut self, name: &str, out: &mut Vec<Effect>) {
        let Some(life) = self.nodes.get_mut(name).and_then(|node| node.life.as_mut()) else { return };
        if life.spared.replace(life.heard) != Some(life.heard) {
            self.spared += 1;
            out.push(Effect::Log(format!("node {name} is not heard, but session servers see it beat")));
        }
    }

    /// Ends the node's living incarnation, if it has one.
    pub(super) fn end(&mut self, name: &str, now: Moment, why: &str, out: &mut Vec<Effect>) {
        let Some(node) = self.nodes.get_mut(name) else { return };
        let Some(life) = node.life.take() else { return };
        node.ended.get_or_insert(life.incarnation);
        let mut tickets = Vec::new();
        if let Some(drain) = life.drain {
            // Whatever ended it, the operator wanted it out.
            node.out = Some(drain.out);
            tickets = drain.tickets;
        }
        let was_drained = node.out.is_some();
        if let Some(link) = life.link {
            out.push(Effect::ToNode { link, message: FromDirector::Over { drained: was_drained } });
        }
        out.push(Effect::Log(format!("node {name} ({}) is over: {why}", life.incarnation.tag())));
        let mut dead = Dead::new(name, life.incarnation, now, life.mandate_until);
        // By its last word it may push to a server that has left, and cannot confirm any more (R8).
        dead.unconfirmed = self.shrinks || life.beat.epoch < self.shrunk;
        dead.tickets = tickets;
        dead.answer_by = now + crate::limits::ADOPTION_WAIT;
        self.dead.push(dead);
        self.changed = true;
        if was_drained {
            self.keep_out(out);
        }
    }
}
