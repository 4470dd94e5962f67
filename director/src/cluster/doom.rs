//! Destroying a session, or every session of an owner, wherever in the cluster they are.
//!
//! The promise to who asks: when the answer is [`DoomOutcome::Done`], every session that was meant when the
//! request came, by a commit that had returned, has been destroyed, and its tombstones are acked by every
//! server that ever had a copy or is still in the view. Otherwise the answer says what is not certain.
//! Nothing that was destroyed comes back in either case.
//!
//! Why one pass is enough if it is *undisturbed*: every life of the view has answered that it hosts nothing
//! of it any more, the view was the same from before the first question until after the last answer,
//! nothing was dead in it, and no node may still resume.
//!
//! 1. A session that was committed is in the cache of a live node, or in sealed leases of a dead
//!    incarnation, or lost with all its copies. Without dead entries in the view there are no sealed
//!    leases: an entry leaves the view only when every session in it is settled at all servers (R10), so it
//!    is in the cache of a node that had claimed it (R1), destroyed or expired; and a restarted director
//!    takes the dead of its predecessor's view up, or nodes resume within their period of grace.
//! 2. A session changes its node only through sealed leases (R1, R2), so not within one view without dead
//!    entries. Whoever still fetches by an older view has made the entry in its cache before that node
//!    published this view, and the pass, which comes after that on the same connection, waits for it; what
//!    would be admitted later from leases that have been released meanwhile is refused (`node/claims.rs`).
//! 3. Within a node the pass meets it under one id or another (`node/errand.rs`).
//!
//! What dies later cannot bring it back: its tombstones are in every lease it was ever posted to (R9).
//!
//! So passes are repeated until one is undisturbed, or the time is over. The first begins at once, so that
//! what can be destroyed is destroyed soon; others wait until nothing is dead. Killed nodes, moved stewards
//! and new views only spoil a pass. A request that breaks off (this director ends) may be made again.

use super::errands::{Asker, ErrandAnswer};
use super::recover::Phase;
use super::{Cluster, Effect, Moment, Ticket};
use crate::limits;
use selvage_fabric::control::message::{Doomed, Errand, ErrandOutcome};
use selvage_fabric::ident::{Epoch, Incarnation};
use std::collections::BTreeMap;

/// How a request to destroy ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DoomOutcome {
    /// None of it is left.
    Done {
        /// Sessions that were destroyed for this, as far as nodes could tell.
        sessions: u64,
    },
    /// Time is over, and something may be left.
    Uncertain {
        /// Sessions that were destroyed for this, as far as nodes could tell.
        sessions: u64,
        /// What is not certain, for people.
        why: String,
    },
}

/// A request to destroy.
#[derive(Debug)]
pub(super) struct Doom {
    number: u64,
    ticket: Ticket,
    doomed: Doomed,
    until: Moment,
    sessions: u64,
    /// A pass has begun.
    begun: bool,
    pass: Option<Pass>,
    /// When the next pass may begin.
    pause_until: Moment,
    /// What spoiled the last pass.
    trouble: Option<String>,
}

/// One round of questions to all lives.
#[derive(Debug)]
struct Pass {
    epoch: Epoch,
    /// Nothing was dead, and nobody may resume.
    may_be_last: bool,
    /// Who has not answered.
    waiting: BTreeMap<Incarnation, String>,
    /// Every answer so far said that nothing is left.
    clean: bool,
}

impl Cluster {
    /// A request to destroy.
    pub(super) fn doom(
        &mut self,
        doomed: Doomed,
        ticket: Ticket,
        now: Moment,
        until: Moment,
        out: &mut Vec<Effect>,
    ) {
        if self.dooms.len() >= limits::DOOMS_MAX {
            let why = format!("{} such requests are under way already; try again", limits::DOOMS_MAX);
            let outcome = DoomOutcome::Uncertain { sessions: 0, why };
            out.push(Effect::DoomAnswer { ticket, outcome });
            return;
        }
        self.errand_last += 1;
        self.dooms.push(Doom {
            number: self.errand_last,
            ticket,
            doomed,
            until,
            sessions: 0,
            begun: false,
            pass: None,
            pause_until: now,
            trouble: None,
        });
    }

    /// A node's answer to a question of a pass.
    pub(super) fn doom_heard(&mut self, number: u64, node: &str, life: Incarnation, answer: ErrandAnswer) {
        let Some(doom) = self.dooms.iter_mut().find(|doom| doom.number == number) else { return };
        let left = match answer {
            Ok(ErrandOutcome::Destroyed { sessions, left }) => {
                doom.sessions = doom.sessions.saturating_add(sessions);
                left
            }
            Ok(ErrandOutcome::Failed(why)) | Err(why) => Some(why),
            Ok(ErrandOutcome::Listed { .. } | ErrandOutcome::Shown(_)) => {
                Some("it answered something else".to_owned())
            }
        };
        let Some(pass) = &mut doom.pass else { return };
        pass.waiting.remove(&life);
        if let Some(why) = left {
            pass.clean = false;
            doom.trouble = Some(format!("node {node}: {why}"));
        }
    }

    /// Follows up what operators and applications have asked.
    pub(super) fn tend_requests(&mut self, now: Moment, out: &mut Vec<Effect>) {
        self.tend_errands(now, out);
        if !self.dooms.is_empty() {
            self.tend_dooms(now, out);
            self.tend_errands(now, out);
        }
    }

    /// Ends passes whose answers are complete, begins others, and answers.
    fn tend_dooms(&mut self, now: Moment, out: &mut Vec<Effect>) {
        for mut doom in std::mem::take(&mut self.dooms) {
            match self.judge_doom(&mut doom, now) {
                Some(outcome) => {
                    self.forget_errands(Asker::Doom(doom.number));
                    out.push(Effect::DoomAnswer { ticket: doom.ticket, outcome });
                }
                None => self.dooms.push(doom),
            }
        }
    }

    fn judge_doom(&mut self, doom: &mut Doom, now: Moment) -> Option<DoomOutcome> {
        if let Some(pass) = doom.pass.take_if(|pass| pass.waiting.is_empty()) {
            let undisturbed = pass.may_be_last && pass.epoch == self.view.epoch;
            // One session is at one node: if that node has destroyed it, it is everywhere gone.
            let found = matches!(doom.doomed, Doomed::Session(_)) && doom.sessions > 0;
            if pass.clean && (undisturbed || found) {
                return Some(DoomOutcome::Done { sessions: doom.sessions });
            }
            if pass.clean {
                doom.trouble = None;
            }
            doom.pause_until = now + self.settings.heartbeat;
        }
        if now >= doom.until {
            return Some(DoomOutcome::Uncertain { sessions: doom.sessions, why: self.uncertain(doom) });
        }
        let knows_cluster = matches!(self.phase, Phase::Steady { .. });
        let is_due = now >= doom.pause_until && (self.nothing_moves(now) || !doom.begun);
        if doom.pass.is_none() && knows_cluster && is_due {
            doom.begun = true;
            doom.pass = Some(self.begin_pass(doom, now));
        }
        None
    }

    fn begin_pass(&mut self, doom: &Doom, now: Moment) -> Pass {
        let lives = self.nodes.iter().filter_map(|(name, node)| {
            let life = node.life.as_ref()?;
            Some((life.incarnation, name.clone()))
        });
        let waiting: BTreeMap<Incarnation, String> = lives.collect();
        for (life, name) in &waiting {
            let errand = Errand::Destroy(doom.doomed.clone());
            self.set_out(name, *life, errand, doom.until, Asker::Doom(doom.number));
        }
        Pass { epoch: self.view.epoch, may_be_last: self.nothing_moves(now), waiting, clean: true }
    }

    /// Whether every session is in the cache of a node of the view, and stays there as long as this view
    /// holds.
    fn nothing_moves(&self, now: Moment) -> bool {
        match self.phase {
            Phase::Recovering { .. } => false,
            Phase::Steady { grace_until, .. } => {
                now > grace_until && self.dead.is_empty() && self.view.dead.is_empty() && !self.changed
            }
        }
    }

    /// What keeps a request from an answer, for people.
    fn uncertain(&self, doom: &Doom) -> String {
        if matches!(self.phase, Phase::Recovering { .. }) {
            return "the director has just started and does not know the cluster yet; try again".to_owned();
        }
        let mut why: Vec<String> = Vec::new();
        if let Some(pass) = &doom.pass {
            why.extend(pass.waiting.values().map(|name| format!("node {name} has not answered")));
        }
        why.extend(self.dead.iter().map(|dead| match dead.sealed {
            true => format!("sessions of {} ({}) are still being adopted", dead.name, dead.incarnation.tag()),
            false => format!("{} ({}) is still being sealed", dead.name, dead.incarnation.tag()),
        }));
        why.extend(doom.trouble.clone());
        match why.is_empty() {
            true => "the cluster changed while it was looked through; try again".to_owned(),
            false => why.join("; "),
        }
    }
}
