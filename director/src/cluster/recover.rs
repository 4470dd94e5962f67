//! What a restarted director learns from the others (R12).
//!
//! It waits, bounded, until every server has reported or is known to be absent. The newest view among the
//! reports is where it goes on: its nodes and servers stay, each with a period of grace to be heard, its dead
//! stay dead. Its own term is above every term reported and not below the Unix time, so no tag comes back
//! even if everything died at once.
//!
//! Those who carried the last views out may be gone or not heard: then servers, or nodes that were stopped,
//! know older ones, in which somebody lives whose sessions others have had since. And nodes that live on
//! would be taken for dead until they are heard, if no server told of them. So the last director here has
//! kept its last view, and where that is newer it counts in place of what was reported. A director that hears
//! nobody at all ends nobody: it is itself that is cut off.

use super::dead::Dead;
use super::nodes::{Life, Waiting};
use super::{Cluster, Effect, Link, Moment};
use selvage_fabric::ident::{Epoch, Incarnation};
use selvage_fabric::rules::{Rule, holds};
use selvage_fabric::view::View;

/// Where the director's life stands.
#[derive(Debug)]
pub(super) enum Phase {
    /// Nothing is decided before this moment, or all servers have reported.
    Recovering { until: Moment },
    /// The normal state.
    Steady {
        /// Until then a node that no server told about may resume.
        grace_until: Moment,
        /// The newest epoch of others that was seen at recovery.
        floor: Epoch,
        /// This director's first term.
        born: u32,
        /// A server or the kept view told what the cluster was before, or a node went on without any.
        based: bool,
    },
}

impl Cluster {
    /// Ends recovery if all have reported or the time is over. False: not yet.
    pub(super) fn try_recover(&mut self, now: Moment, out: &mut Vec<Effect>) -> bool {
        let Phase::Recovering { until } = self.phase else { return true };
        if now < until && !self.servers.values().all(|server| server.known) {
            return false;
        }
        let reports = self.servers.values().filter(|server| server.reported).map(|server| &server.report);
        let views = reports.clone().filter_map(|report| report.view.as_ref());
        let base = views.chain(self.kept()).max_by_key(|view| view.epoch).cloned();
        let resumes = self.node_links.values().filter_map(|caller| match caller.waiting {
            Some(Waiting::Resume(epoch)) => Some(epoch),
            _ => None,
        });
        let seen: Vec<Epoch> = reports
            .map(|report| report.epoch)
            .chain(resumes)
            .filter(|epoch| self.is_plausible(*epoch))
            .collect();
        let floor = seen.iter().copied().max().unwrap_or_default();
        self.epoch.term = self.settings.term_min;
        if holds(Rule::R12Epochs) {
            let kept = self.kept().map(|view| view.epoch).unwrap_or_default();
            self.epoch.term = self.epoch.term.max(floor.max(kept).term.saturating_add(1));
            self.epoch.number = seen.iter().map(|epoch| epoch.number).fold(kept.number, u32::max);
        }
        self.phase = Phase::Steady {
            grace_until: now + self.settings.silence * 2,
            floor,
            born: self.epoch.term,
            based: base.is_some(),
        };
        self.changed = true;
        // Servers may have left whom a node of before still pushes to.
        self.shrinks = true;
        match &base {
            Some(view) => {
                out.push(Effect::Log(format!(
                    "going on from epoch {} as term {}",
                    view.epoch, self.epoch.term
                )));
                self.take_up(view, now);
            }
            None => out.push(Effect::Log(format!("beginning term {}", self.epoch.term))),
        }
        self.admit_reported(base.as_ref(), now, out);
        self.serve_waiting(now, out);
        true
    }

    /// Whether nodes that nobody has told of may still show up with their sessions.
    pub(super) fn is_starting(&self) -> bool {
        match self.phase {
            Phase::Recovering { .. } => true,
            Phase::Steady { grace_until, .. } => self.last_tick.is_none_or(|last| last <= grace_until),
        }
    }

    /// What the last director here published last.
    fn kept(&self) -> Option<&View> {
        self.settings.kept.as_ref().filter(|view| holds(Rule::R12Epochs) && self.is_plausible(view.epoch))
    }

    /// Goes on from an earlier director's view: its members stay and must be heard within two silence
    /// periods.
    fn take_up(&mut self, base: &View, now: Moment) {
        let grace = now + self.settings.silence;
        let mandate_until = now + self.settings.mandate;
        for entry in &base.nodes {
            match self.nodes.get_mut(&entry.name) {
                Some(node) if node.life.is_none() && node.out.is_none() => {
                    node.life = Some(Life::new(entry.incarnation, None, grace, mandate_until));
                }
                Some(node)
                    if node.life.as_ref().is_some_and(|life| life.incarnation == entry.incarnation) => {}
                // Not configured any more, or a newer life of it is there.
                _ => self.dead.push(Dead::new(&entry.name, entry.incarnation, now, mandate_until)),
            }
        }
        for entry in &base.dead {
            let mut dead = Dead::new(&entry.name, entry.incarnation, now, mandate_until);
            dead.sealed = entry.sealed;
            // Servers may have left before they confirmed it to the earlier director.
            dead.unconfirmed = true;
            self.dead.push(dead);
        }
        for entry in &base.servers {
            if let Some(server) = self.servers.get_mut(&entry.name).filter(|server| server.up.is_none()) {
                server.up = Some(entry.incarnation);
                server.heard = grace;
            }
        }
    }

    /// The first server that is heard after a recovery that heard none tells what the cluster was.
    pub(super) fn take_up_late(&mut self, old: &View, now: Moment, out: &mut Vec<Effect>) -> bool {
        let Phase::Steady { based, .. } = &mut self.phase else { return false };
        if std::mem::replace(based, true) {
            return false;
        }
        out.push(Effect::Log(format!("taking up epoch {}, heard late", old.epoch)));
        self.take_up(old, now);
        true
    }

    /// A node goes on from before, by a view without the servers that it knew: that void their leases' books
    /// there (R6), so those lives must not come back, however late they are heard.
    pub(super) fn went_on(&mut self) {
        if let Phase::Steady { based, .. } = &mut self.phase {
            *based |= holds(Rule::R6AckIncarnation);
        }
    }

    fn admit_reported(&mut self, base: Option<&View>, now: Moment, out: &mut Vec<Effect>) {
        for (name, server) in &mut self.servers {
            let Some((_, incarnation)) = server.link else { continue };
            if !server.reported {
                continue;
            }
            let was_member =
                server.report.view.as_ref().is_some_and(|view| view.server(incarnation).is_some());
            let is_member = base.is_some_and(|view| view.server(incarnation).is_some());
            if was_member && !is_member && holds(Rule::R6AckIncarnation) {
                // The newest view has dropped this life; it gets that view and begins another.
                server.bar(incarnation);
                continue;
            }
            if let Some(old) = server.up.filter(|up| *up != incarnation) {
                server.bar(old);
            }
            server.up = Some(incarnation);
            server.heard = now;
            out.push(Effect::Log(format!("server {name} is up as {:x}", incarnation.0)));
        }
    }

    /// Nodes that spoke during recovery get their answers.
    fn serve_waiting(&mut self, now: Moment, out: &mut Vec<Effect>) {
        let mut waiting: Vec<(Link, Waiting)> = self
            .node_links
            .iter_mut()
            .filter_map(|(link, caller)| caller.waiting.take().map(|waiting| (*link, waiting)))
            .collect();
        waiting.sort_by_key(|(link, _)| *link);
        for (link, first) in waiting {
            let Some((name, incarnation)) = self.caller(link) else { continue };
            match first {
                Waiting::Register => self.register(link, &name, now, out),
                Waiting::Resume(epoch) => self.resume(link, &name, incarnation, epoch, now, out),
            }
        }
    }

    /// Whether this incarnation lives, or can have lived until the director's restart although neither a
    /// server nor a kept view tells so.
    pub(super) fn may_resume(&self, name: &str, incarnation: Incarnation, epoch: Epoch, now: Moment) -> bool {
        let Some(node) = self.nodes.get(name) else { return false };
        if let Some(life) = &node.life {
            return life.incarnation == incarnation;
        }
        let Phase::Steady { grace_until, floor, born, .. } = self.phase else { return false };
        incarnation != Incarnation::NONE
            && node.out.is_none()
            && !self.is_dead(incarnation)
            // Nor after its end was forgotten, whatever it says that it has seen; and under no other name.
            && node.ended.is_none()
            && self.nodes.values().all(|node| node.ended != Some(incarnation))
            // A node that lies about its life takes no other's.
            && !self.is_lived(incarnation)
            && now <= grace_until
            // One who has seen less than others may have been ended by what it has not seen.
            && epoch >= floor
            // Whom the newest view has lives already.
            && self.kept().is_none_or(|kept| kept.epoch < floor)
            // Of this director's own life every end is known.
            && incarnation.0 >> 32 < u64::from(born)
    }

    fn is_lived(&self, incarnation: Incarnation) -> bool {
        let mut lives = self.nodes.values().filter_map(|node| node.life.as_ref());
        lives.any(|life| life.incarnation == incarnation)
    }
}
