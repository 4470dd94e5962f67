//! The steward's decisions, as a state machine: `(state, event, now) -> effects`. Pure (architecture
//! invariant 8).
//!
//! One process of a node is steward. It beats to the director, keeps the mandate and the view in the segment,
//! registers claims at new servers, has every session copied where the placement wants it, adopts what falls
//! to this node when another dies, does the director's errands, and ends the incarnation when the director
//! says so. All of it is decided here; `agent` carries it out, and a simulation can do so in its place.
//!
//! Long work (a sweep over all sessions, the adoption of a dead incarnation, registering claims) is begun by
//! an effect and ended by an event. At most one piece of each kind runs at a time, so that the state machine
//! never floods its agent.

use crate::control::message::{Errand, ErrandOutcome, FromDirector, Refusal, ToDirector};
use crate::ident::{Epoch, Incarnation};
use crate::limits::ERRANDS_MAX;
use crate::rules::{Rule, holds};
use crate::view::View;

/// Times that the steward goes by, nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct StewardTiming {
    /// Interval of heartbeats.
    pub heartbeat_ns: u64,
    /// Life of a mandate from the sending of its heartbeat (R8).
    pub mandate_ns: u64,
}

/// What happened.
#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    /// Time has passed.
    Tick,
    /// The director has accepted our hello.
    Connected,
    /// The connection to the director failed or ended.
    Disconnected,
    /// A message of the director.
    Received(FromDirector),
    /// Sessions were left with fewer copies than they could have, or a process died: a sweep is due soon.
    Unprotected,
    /// A sweep has ended.
    SweepEnded {
        /// The view it went by.
        epoch: Epoch,
        /// Every session has its copies, nothing was skipped, and no lock was held nor push open.
        complete: bool,
        /// Processor time that it took.
        took_ns: u64,
    },
    /// A pass of adoption has ended.
    AdoptionEnded {
        /// The dead incarnation.
        dead: Incarnation,
        /// The view it went by.
        epoch: Epoch,
        /// Nothing that falls to this node is left unsettled.
        complete: bool,
    },
    /// The registration of claims at a server has ended.
    ClaimsEnded {
        /// The server.
        server: Incarnation,
        /// The server has taken all of them.
        done: bool,
    },
    /// An errand has ended.
    ErrandEnded {
        /// Its number.
        number: u64,
        /// How.
        outcome: ErrandOutcome,
    },
}

/// What shall be done.
#[derive(Clone, PartialEq, Debug)]
pub enum Effect {
    /// Connect to the director; ends in `Connected` or `Disconnected`.
    Connect,
    /// Send this.
    Send(ToDirector),
    /// Send a heartbeat with this time in it and everything else as it is now.
    Beat {
        /// The newest view that was carried out.
        epoch: Epoch,
        /// Dead incarnations of which nothing is left to this node.
        settled: Vec<Incarnation>,
    },
    /// Acks may be reported until then (R8).
    StoreMandate {
        /// On the monotonic clock.
        until_ns: u64,
    },
    /// Put this view where all processes of the node see it. It is newer than the last.
    Publish(View),
    /// The lease book of a server incarnation that left the view can go (R6).
    RetireBook(Incarnation),
    /// Tell a server every claim of this node (R1); ends in `ClaimsEnded`.
    RegisterClaims {
        /// The server's incarnation.
        server: Incarnation,
    },
    /// Look at every session: copy it where the placement wants it, end it if it has expired; ends in
    /// `SweepEnded`.
    Sweep,
    /// Adopt what falls to this node; ends in `AdoptionEnded`.
    Adopt {
        /// The dead incarnation.
        dead: Incarnation,
    },
    /// Do an errand, after everything that stands before it here; ends in `ErrandEnded`.
    Errand {
        /// Its number.
        number: u64,
        /// What.
        errand: Errand,
        /// Time for it, ms.
        within_ms: u32,
    },
    /// The incarnation is over: poison the segment. All processes join anew (R3).
    End {
        /// The operator has drained the node: it will be refused until undrained.
        drained: bool,
    },
}

/// The steward of one node incarnation.
#[derive(Debug)]
pub struct Steward {
    incarnation: Incarnation,
    timing: StewardTiming,
    director: Director,
    view: View,
    mandate_until_ns: u64,
    sweep: Sweep,
    claims: Vec<Claims>,
    adoptions: Vec<Adoption>,
    draining: Option<Draining>,
    /// Errands under way.
    errands: usize,
    over: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Director {
    Away { retry_ns: u64 },
    Connecting,
    There { beat_ns: u64 },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Sweep {
    Due {
        at_ns: u64,
    },
    /// `again_ns`: something changed meanwhile, so another one begins so long after the end.
    Running {
        again_ns: Option<u64>,
    },
}

/// Whether a server has all our claims.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Claims {
    server: Incarnation,
    state: Work,
}

/// Adoption of one dead incarnation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Adoption {
    dead: Incarnation,
    state: Work,
    /// The last whole pass left nothing to this node, by the view that still holds.
    settled: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Work {
    Due { at_ns: u64 },
    Running,
    Done,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Draining {
    Asked,
    Reported,
}

/// A complete sweep is repeated when this many times its own processor time has passed, so that it costs at
/// most 1 %; but what nobody raised [`Event::Unprotected`] for waits no longer than [`SWEEP_PAUSE_MAX_NS`].
const SWEEP_SHARE: u64 = 100;
const SWEEP_PAUSE_MAX_NS: u64 = 5_000_000_000;

impl Steward {
    /// The steward of a segment whose newest view is `view`. `connected`: the connection that gave the
    /// incarnation is still there, so there is nothing to resume.
    pub fn new(
        incarnation: Incarnation,
        timing: StewardTiming,
        view: View,
        connected: bool,
        now_ns: u64,
    ) -> Self {
        let director =
            if connected { Director::There { beat_ns: now_ns } } else { Director::Away { retry_ns: now_ns } };
        let mut steward = Self {
            incarnation,
            timing,
            director,
            view: View::default(),
            mandate_until_ns: 0,
            sweep: Sweep::Due { at_ns: now_ns },
            claims: Vec::new(),
            adoptions: Vec::new(),
            draining: None,
            errands: 0,
            over: false,
        };
        steward.follow(&view, now_ns);
        steward.view = view;
        steward
    }

    /// The newest view.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Whether this incarnation has ended.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// When the next `Tick` is due.
    pub fn deadline_ns(&self) -> u64 {
        let director = match self.director {
            Director::Away { retry_ns } => retry_ns,
            Director::Connecting => u64::MAX,
            Director::There { beat_ns } => beat_ns,
        };
        let sweep = match self.sweep {
            Sweep::Due { at_ns } => at_ns,
            Sweep::Running { .. } => u64::MAX,
        };
        let works = self.claims.iter().map(|claims| claims.state);
        let works = works.chain(self.adoptions.iter().map(|adoption| adoption.state));
        let works = works.filter_map(|work| match work {
            Work::Due { at_ns } => Some(at_ns),
            _ => None,
        });
        works.fold(director.min(sweep), u64::min)
    }

    /// Takes one event at the monotonic time `now_ns` and says what to do, in order.
    pub fn handle(&mut self, event: Event, now_ns: u64) -> Vec<Effect> {
        let mut effects = Vec::new();
        if self.over {
            return effects;
        }
        match event {
            Event::Tick => {}
            Event::Connected => {
                self.director = Director::There { beat_ns: now_ns };
                effects.push(Effect::Send(ToDirector::Resume { epoch: self.view.epoch }));
            }
            Event::Disconnected => {
                self.director = Director::Away { retry_ns: now_ns + self.timing.heartbeat_ns };
                // A director that comes back does not know what its predecessor asked for; it will ask again.
                self.draining = None;
            }
            Event::Received(message) => self.receive(message, now_ns, &mut effects),
            Event::Unprotected => match &mut self.sweep {
                Sweep::Due { at_ns } => *at_ns = (*at_ns).min(now_ns + self.timing.heartbeat_ns / 2),
                Sweep::Running { again_ns } => {
                    // A sweep may itself be what finds sessions that it cannot copy: not at once again.
                    *again_ns = (*again_ns).or(Some(self.timing.heartbeat_ns / 2));
                }
            },
            Event::SweepEnded { epoch, complete, took_ns } => {
                self.sweep_ended(epoch, complete, took_ns, now_ns, &mut effects);
            }
            Event::AdoptionEnded { dead, epoch, complete } => {
                let current = epoch == self.view.epoch;
                let again = now_ns + self.timing.heartbeat_ns;
                if let Some(adoption) = self.adoptions.iter_mut().find(|adoption| adoption.dead == dead) {
                    adoption.settled = complete && current;
                    // A whole pass is repeated, slowly, until the view drops the incarnation: a node that
                    // dies now leaves its part to us without a change of the list.
                    let pause = if adoption.settled { 4 * self.timing.heartbeat_ns } else { 0 };
                    let at_ns = if current { again + pause } else { now_ns };
                    adoption.state = Work::Due { at_ns };
                }
            }
            Event::ClaimsEnded { server, done } => {
                let again = Work::Due { at_ns: now_ns + self.timing.heartbeat_ns };
                if let Some(claims) = self.claims.iter_mut().find(|claims| claims.server == server) {
                    claims.state = if done { Work::Done } else { again };
                }
            }
            Event::ErrandEnded { number, outcome } => {
                self.errands = self.errands.saturating_sub(1);
                effects.push(Effect::Send(ToDirector::ErrandEnded { number, outcome }));
            }
        }
        if !self.over {
            self.run_due(now_ns, &mut effects);
        }
        effects
    }

    fn receive(&mut self, message: FromDirector, now_ns: u64, effects: &mut Vec<Effect>) {
        match message {
            FromDirector::Mandate { sent_ns } => {
                let until_ns = sent_ns.saturating_add(self.timing.mandate_ns);
                // A time from the future was not sent by us; an old answer must not shorten a newer mandate.
                if sent_ns <= now_ns && until_ns > self.mandate_until_ns {
                    self.mandate_until_ns = until_ns;
                    effects.push(Effect::StoreMandate { until_ns });
                }
            }
            FromDirector::View(view) | FromDirector::Registered { view, .. } => {
                self.take_view(view, now_ns, effects);
            }
            FromDirector::PrepareDrain => {
                self.draining = Some(Draining::Asked);
                self.sweep_now(now_ns);
            }
            FromDirector::Over { drained } => self.end(drained, effects),
            FromDirector::Refused(Refusal::Over) => self.end(false, effects),
            FromDirector::Errand { number, .. } if self.errands >= ERRANDS_MAX => {
                let outcome = ErrandOutcome::Failed(format!("it has {ERRANDS_MAX} errands already"));
                effects.push(Effect::Send(ToDirector::ErrandEnded { number, outcome }));
            }
            FromDirector::Errand { number, errand, within_ms } => {
                self.errands += 1;
                effects.push(Effect::Errand { number, errand, within_ms });
            }
            // An answer to an application is for it alone.
            FromDirector::Refused(_) | FromDirector::OwnerDestroyed { .. } => {}
        }
    }

    fn take_view(&mut self, view: View, now_ns: u64, effects: &mut Vec<Effect>) {
        if holds(Rule::R12Epochs) && view.epoch <= self.view.epoch {
            return;
        }
        if view.node(self.incarnation).is_none() {
            return self.end(false, effects);
        }
        effects.push(Effect::Publish(view.clone()));
        for server in &self.view.servers {
            if view.server(server.incarnation).is_none() {
                effects.push(Effect::RetireBook(server.incarnation));
            }
        }
        self.follow(&view, now_ns);
        self.view = view;
    }

    /// Adjusts claims, adoptions and the sweep to a view that is about to be the newest.
    fn follow(&mut self, view: &View, now_ns: u64) {
        let due = Work::Due { at_ns: now_ns };
        self.claims.retain(|claims| view.server(claims.server).is_some());
        for server in &view.servers {
            if !self.claims.iter().any(|claims| claims.server == server.incarnation) {
                self.claims.push(Claims { server: server.incarnation, state: due });
            }
        }
        self.adoptions.retain(|adoption| view.dead.iter().any(|dead| dead.incarnation == adoption.dead));
        // R2: nothing is adopted before all servers have sealed.
        for dead in view.dead.iter().filter(|dead| dead.sealed || !holds(Rule::R2SealByView)) {
            match self.adoptions.iter_mut().find(|adoption| adoption.dead == dead.incarnation) {
                None => {
                    self.adoptions.push(Adoption { dead: dead.incarnation, state: due, settled: false });
                }
                // Other nodes or servers may mean other adopters or places.
                Some(adoption) => {
                    adoption.settled = false;
                    if adoption.state != Work::Running {
                        adoption.state = due;
                    }
                }
            }
        }
        self.sweep_now(now_ns);
    }

    fn sweep_now(&mut self, now_ns: u64) {
        self.sweep = match self.sweep {
            Sweep::Due { .. } => Sweep::Due { at_ns: now_ns },
            Sweep::Running { .. } => Sweep::Running { again_ns: Some(0) },
        };
    }

    fn sweep_ended(
        &mut self,
        epoch: Epoch,
        complete: bool,
        took_ns: u64,
        now_ns: u64,
        effects: &mut Vec<Effect>,
    ) {
        let again_ns = match self.sweep {
            Sweep::Running { again_ns } => again_ns,
            Sweep::Due { .. } => None,
        };
        let pause_ns = match (again_ns, complete) {
            (Some(again_ns), _) => again_ns,
            (None, true) => {
                let share = took_ns.saturating_mul(SWEEP_SHARE).min(SWEEP_PAUSE_MAX_NS);
                share.max(4 * self.timing.heartbeat_ns)
            }
            (None, false) => took_ns.max(self.timing.heartbeat_ns / 4),
        };
        self.sweep = Sweep::Due { at_ns: now_ns + pause_ns };
        let current = epoch == self.view.epoch && again_ns.is_none();
        if complete && current && self.draining == Some(Draining::Asked) {
            self.draining = Some(Draining::Reported);
            // The director goes by the last heartbeat, which is from before this sweep's copies.
            effects.push(self.beat());
            effects.push(Effect::Send(ToDirector::Drained));
        }
    }

    fn beat(&self) -> Effect {
        let settled = self.adoptions.iter().filter(|adoption| adoption.settled);
        Effect::Beat { epoch: self.view.epoch, settled: settled.map(|adoption| adoption.dead).collect() }
    }

    fn end(&mut self, drained: bool, effects: &mut Vec<Effect>) {
        self.over = true;
        effects.push(Effect::End { drained });
    }

    /// Begins whatever is due.
    fn run_due(&mut self, now_ns: u64, effects: &mut Vec<Effect>) {
        match &mut self.director {
            Director::Away { retry_ns } if *retry_ns <= now_ns => {
                self.director = Director::Connecting;
                effects.push(Effect::Connect);
            }
            Director::There { beat_ns } if *beat_ns <= now_ns => {
                // From now, not from the deadline: after a pause one heartbeat is enough.
                *beat_ns = now_ns + self.timing.heartbeat_ns;
                effects.push(self.beat());
            }
            _ => {}
        }
        for claims in &mut self.claims {
            if matches!(claims.state, Work::Due { at_ns } if at_ns <= now_ns) {
                claims.state = Work::Running;
                effects.push(Effect::RegisterClaims { server: claims.server });
            }
        }
        for adoption in &mut self.adoptions {
            if matches!(adoption.state, Work::Due { at_ns } if at_ns <= now_ns) {
                adoption.state = Work::Running;
                effects.push(Effect::Adopt { dead: adoption.dead });
            }
        }
        if matches!(self.sweep, Sweep::Due { at_ns } if at_ns <= now_ns) {
            self.sweep = Sweep::Running { again_ns: None };
            effects.push(Effect::Sweep);
        }
    }
}

#[cfg(test)]
mod tests;
