//! The cluster's state machine: who is up, draining, down or dead, and the view that says so.
//!
//! Pure: [`Cluster::step`] takes an event and the time and returns effects; sockets, clocks and tasks are in
//! [`crate::driver`], which is its only caller beside tests and the simulator (architecture invariant 8).
//!
//! Kept here: one live incarnation per node name; an incarnation that is over never lives again (R3, R6); a
//! dead entry is `sealed` only when every server has confirmed (R2, R8) and leaves only when every session in
//! it is settled (R10); views only rise (R12). One `step` publishes at most a few views, each complete.
//!
//! | file | what |
//! |---|---|
//! | `nodes` | registration, heartbeats and mandates, silence, death |
//! | `servers` | reports, silence, what may enter a view |
//! | `dead` | sealing and release of ended incarnations |
//! | `drain` | planned death |
//! | `out` | who is kept out: drained, in maintenance, failing health checks |
//! | `errands` | what nodes are asked to do for operators and applications |
//! | `doom` | destroying sessions wherever they are, and being sure of it |
//! | `evidence` | one-sided heartbeats, which spare the silent |
//! | `recover` | what a restarted director learns from the others |
//! | `settings` | what it must know of the configuration |
//! | `status` | a snapshot for people and metrics |
//! | `takeover` | how long takeovers take |

mod dead;
pub mod doom;
mod drain;
pub mod errands;
mod evidence;
mod nodes;
mod out;
mod recover;
mod servers;
mod settings;
pub mod status;
pub mod takeover;
#[cfg(test)]
mod tests;

use dead::Dead;
use doom::{Doom, DoomOutcome};
use errands::{ErrandAnswer, Trip};
use nodes::Node;
pub use out::{Checked, Out};
use recover::Phase;
use selvage_fabric::control::message::{Doomed, Errand, FromDirector, ServerReport, ToDirector, ToServer};
use selvage_fabric::ident::{Epoch, Incarnation};
use selvage_fabric::rules::{Rule, holds};
use selvage_fabric::view::{DeadEntry, NodeEntry, NodeState, ServerEntry, View};
use servers::Server;
pub use settings::{ServerSettings, Settings};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;
use takeover::Takeovers;

use crate::limits;

/// Time since any fixed point, on the monotonic clock.
pub type Moment = Duration;

/// A connection, named by the driver; never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Link(pub u64);

/// A waiting request, named by the driver.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Ticket(pub u64);

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// Deadlines may have passed.
    Tick,
    /// A node's steward has connected and said who it is; its user was checked.
    NodeOpened {
        /// The connection.
        link: Link,
        /// The node's configured name.
        name: String,
        /// The incarnation it claims to be; `NONE` if it has none.
        incarnation: Incarnation,
    },
    /// A steward's message.
    NodeMessage {
        /// Its connection.
        link: Link,
        /// The message, its counts checked.
        message: ToDirector,
    },
    /// A steward's connection is gone.
    NodeClosed {
        /// The connection.
        link: Link,
    },
    /// The connection to a server stands.
    ServerOpened {
        /// The server.
        name: String,
        /// The connection.
        link: Link,
        /// Its life.
        incarnation: Incarnation,
    },
    /// Nobody listens at the server's socket: its process is gone.
    ServerAbsent {
        /// The server.
        name: String,
    },
    /// A server's answer to a heartbeat or a view.
    ServerReport {
        /// The connection.
        link: Link,
        /// Its state.
        report: Box<ServerReport>,
    },
    /// A server has seen a newer term (R12).
    ServerOldTerm {
        /// The connection.
        link: Link,
        /// The epoch it knows.
        epoch: Epoch,
    },
    /// The connection to a server is gone.
    ServerClosed {
        /// The connection.
        link: Link,
    },
    /// The operator drains a node.
    Drain {
        /// The node.
        name: String,
        /// Who waits for the answer.
        ticket: Ticket,
    },
    /// The operator takes a node out to work on it.
    Maintain {
        /// The node.
        name: String,
        /// Who waits for the answer.
        ticket: Ticket,
    },
    /// A round of health checks has found nodes failing, or well again. All of a round come at once: if all
    /// fail, nothing is done, whoever took longest to do so.
    Checked {
        /// What was found of each.
        found: Vec<Checked>,
    },
    /// A reload has changed how long the proxy holds a request.
    Hold {
        /// The longest time from now on.
        hold: Duration,
    },
    /// The operator lets a node come back.
    Undrain {
        /// The node.
        name: String,
    },
    /// No request of this held node is under way.
    Idle {
        /// The node's life.
        incarnation: Incarnation,
        /// The hold that this answers.
        hold: u64,
    },
    /// A director that has handed over to this one and still serves browsers has carried a view out, or has
    /// ended.
    Elder {
        /// The newest view that it has carried out; `None` if there is no such director, or no more.
        taken: Option<Epoch>,
    },
    /// An operator asks something of a node.
    Ask {
        /// The node.
        node: String,
        /// What.
        errand: Errand,
        /// Who waits for the answer.
        ticket: Ticket,
        /// How long.
        within: Duration,
    },
    /// Somebody wants sessions destroyed, wherever they are.
    Doom {
        /// Which.
        doomed: Doomed,
        /// Who waits for the answer.
        ticket: Ticket,
        /// How long.
        within: Duration,
    },
}

/// What shall be done, in this order.
#[derive(Clone, PartialEq, Debug)]
pub enum Effect {
    /// The proxy routes by this view from now on; connections to nodes that are not in it are cut before
    /// anything else happens, so that a zombie's answers go nowhere. Requests of held nodes wait.
    Publish {
        /// The view.
        view: Arc<View>,
        /// Incarnations whose requests wait.
        held: Vec<Incarnation>,
    },
    /// Sessions that a node hosts, for choosing the least loaded.
    Load {
        /// The node's life.
        incarnation: Incarnation,
        /// Its sessions.
        sessions: u64,
    },
    /// Send to a steward.
    ToNode {
        /// The connection.
        link: Link,
        /// The message.
        message: FromDirector,
    },
    /// Close a steward's connection, after what was sent to it.
    CloseNode {
        /// The connection.
        link: Link,
    },
    /// Send to a server.
    ToServer {
        /// The connection.
        link: Link,
        /// The message.
        message: ToServer,
    },
    /// Tell [`Event::Idle`] once no request of this node is under way.
    AwaitIdle {
        /// The node's life.
        incarnation: Incarnation,
        /// Comes back with the event: an answer to an earlier hold says nothing about this one.
        hold: u64,
    },
    /// Answer a drain request.
    Answer {
        /// Whose.
        ticket: Ticket,
        /// The answer.
        outcome: DrainOutcome,
    },
    /// Answer what was asked of a node.
    ErrandAnswer {
        /// Whose.
        ticket: Ticket,
        /// The answer.
        answer: ErrandAnswer,
    },
    /// Answer a request to destroy.
    DoomAnswer {
        /// Whose.
        ticket: Ticket,
        /// The answer.
        outcome: DoomOutcome,
    },
    /// Keep for the next director which nodes the operator keeps out, and why.
    Drained(Vec<(String, Out)>),
    /// Keep this view for the next director. It is kept before anybody hears of it, so that nobody has seen a
    /// newer one than the next director.
    Keep(Arc<View>),
    /// Tell people.
    Log(String),
}

/// How a drain ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DrainOutcome {
    /// The node is out and all its sessions have a new host and their copies.
    HandedOver,
    /// The node is out; its sessions are served, and adoption goes on in the background.
    Adopting,
    /// Nothing was changed, and why.
    Refused(String),
}

/// The state machine.
#[derive(Debug)]
pub struct Cluster {
    settings: Settings,
    phase: Phase,
    epoch: Epoch,
    /// Counts the node incarnations of this director's life.
    counter: u32,
    /// Counts the holds of drains.
    hold_last: u64,
    nodes: BTreeMap<String, Node>,
    servers: BTreeMap<String, Server>,
    dead: Vec<Dead>,
    trips: Vec<Trip>,
    dooms: Vec<Doom>,
    /// Numbers errands and requests to destroy; no other director has used those above it.
    errand_last: u64,
    node_links: HashMap<Link, nodes::Caller>,
    view: Arc<View>,
    /// Something that the view says has changed since the last one.
    changed: bool,
    /// A server has left since the last view.
    shrinks: bool,
    /// The view that was the first without the server that left last; nodes that have not carried it out may
    /// still push there.
    shrunk: Epoch,
    /// What is held has changed.
    held_changed: bool,
    last_tick: Option<Moment>,
    /// Somebody has spoken to this director.
    has_heard: bool,
    /// Times that a silent member was spared because its beats went on.
    spared: u64,
    takeovers: Takeovers,
    /// See [`Event::Elder`].
    elder: Option<Epoch>,
}

impl Cluster {
    /// A director's life begins.
    pub fn new(settings: Settings, now: Moment) -> Self {
        let nodes = settings.nodes.iter().map(|(name, address)| {
            let out = settings.drained.iter().find(|(drained, _)| drained == name).map(|(_, out)| *out);
            let address = address.clone();
            (name.clone(), Node { address, life: None, out, health: out::Health::default(), ended: None })
        });
        let nodes = nodes.collect();
        let servers = settings.servers.iter();
        let servers = servers.map(|server| (server.name.clone(), Server::new(server))).collect();
        let view = Arc::new(View { copies: settings.copies, ..View::default() });
        let until = now + settings.silence * limits::RECOVERY_FACTOR;
        let errand_last = u64::from(settings.term_min) << 32;
        Self {
            settings,
            phase: Phase::Recovering { until },
            epoch: Epoch::default(),
            counter: 0,
            hold_last: 0,
            nodes,
            servers,
            dead: Vec::new(),
            trips: Vec::new(),
            dooms: Vec::new(),
            errand_last,
            node_links: HashMap::new(),
            view,
            changed: false,
            shrinks: false,
            shrunk: Epoch::default(),
            held_changed: false,
            last_tick: None,
            has_heard: false,
            spared: 0,
            takeovers: Takeovers::default(),
            elder: None,
        }
    }

    /// The newest view.
    pub fn view(&self) -> &Arc<View> {
        &self.view
    }

    /// Takes an event and says what to do.
    pub fn step(&mut self, event: Event, now: Moment) -> Vec<Effect> {
        let mut out = Vec::new();
        self.has_heard |= matches!(event, Event::NodeMessage { .. } | Event::ServerReport { .. });
        match event {
            Event::Tick => self.tick(now, &mut out),
            Event::NodeOpened { link, name, incarnation } => self.node_opened(link, name, incarnation),
            Event::NodeMessage { link, message } => self.node_message(link, message, now, &mut out),
            Event::NodeClosed { link } => self.node_closed(link),
            Event::ServerOpened { name, link, incarnation } => {
                self.server_opened(&name, link, incarnation, now, &mut out);
            }
            Event::ServerAbsent { name } => self.server_absent(&name, &mut out),
            Event::ServerReport { link, report } => self.server_report(link, *report, now, &mut out),
            Event::ServerOldTerm { link, epoch } => self.server_old_term(link, epoch),
            Event::ServerClosed { link } => self.server_closed(link),
            Event::Drain { name, ticket } => self.drain(&name, ticket, now, &mut out),
            Event::Maintain { name, ticket } => self.maintain(&name, ticket, now, &mut out),
            Event::Checked { found } => {
                found.into_iter().for_each(|found| self.checked(&found, now, &mut out));
            }
            Event::Hold { hold } => self.settings.hold = hold,
            Event::Undrain { name } => self.undrain(&name, &mut out),
            Event::Idle { incarnation, hold } => self.node_idle(incarnation, hold, &mut out),
            Event::Elder { taken } => self.elder = taken,
            Event::Ask { node, errand, ticket, within } => {
                self.ask(&node, errand, ticket, now + within, &mut out);
            }
            Event::Doom { doomed, ticket, within } => {
                self.doom(doomed, ticket, now, now + within, &mut out);
            }
        }
        self.advance(now, &mut out);
        self.tend_requests(now, &mut out);
        out
    }

    fn tick(&mut self, now: Moment, out: &mut Vec<Effect>) {
        self.forgive_own_pause(now);
        self.silent_nodes(now, out);
        self.silent_servers(now, out);
        self.drain_deadlines(now, out);
        self.hand_over_failing(now, out);
        self.beat_servers(now, out);
    }

    /// The director's own pauses do not count as silence of others: what they sent meanwhile may still be
    /// unread. Nor does the time in which nobody at all was heard after its start: it is itself that is cut
    /// off.
    fn forgive_own_pause(&mut self, now: Moment) {
        let gap = self.last_tick.map_or(Duration::ZERO, |last| now.saturating_sub(last));
        self.last_tick = Some(now);
        if !self.has_heard {
            self.forgive(gap, now);
        } else if gap > self.settings.tick * 2 {
            let late = gap - self.settings.tick;
            self.forgive(late, now);
            if let Phase::Recovering { until } = &mut self.phase {
                *until += late;
            }
        }
    }

    fn forgive(&mut self, late: Duration, now: Moment) {
        let forgive = |heard: &mut Moment| *heard = (*heard).max((*heard + late).min(now));
        self.nodes.values_mut().filter_map(|node| node.life.as_mut()).for_each(|life| life.forgive(forgive));
        self.servers.values_mut().for_each(|server| server.forgive(forgive));
    }

    /// Follows up: recovery that is complete, then views until nothing more changes.
    fn advance(&mut self, now: Moment, out: &mut Vec<Effect>) {
        if matches!(self.phase, Phase::Recovering { .. }) && !self.try_recover(now, out) {
            return;
        }
        loop {
            self.review_dead(now, out);
            if !self.changed {
                break;
            }
            self.raise(now, out);
        }
        if self.held_changed {
            self.held_changed = false;
            out.push(self.publish());
        }
    }

    /// The next view: published to the proxy, then to servers and stewards.
    fn raise(&mut self, now: Moment, out: &mut Vec<Effect>) {
        self.changed = false;
        self.held_changed = false;
        self.epoch.number = self.epoch.number.saturating_add(1);
        if std::mem::take(&mut self.shrinks) {
            self.shrunk = self.epoch;
        }
        self.dead
            .iter_mut()
            .filter(|dead| dead.ended.is_none())
            .for_each(|dead| dead.ended = Some(self.epoch));
        self.view = Arc::new(self.build_view());
        out.push(Effect::Keep(Arc::clone(&self.view)));
        out.push(self.publish());
        for server in self.servers.values_mut() {
            if let Some(link) = server.send_view(now) {
                out.push(Effect::ToServer { link, message: ToServer::SetView((*self.view).clone()) });
            }
        }
        for life in self.nodes.values_mut().filter_map(|node| node.life.as_mut()) {
            let Some(link) = life.link else { continue };
            let view = (*self.view).clone();
            let message = match std::mem::take(&mut life.greet) {
                true => FromDirector::Registered { incarnation: life.incarnation, view },
                false => FromDirector::View(view),
            };
            out.push(Effect::ToNode { link, message });
        }
    }

    fn publish(&self) -> Effect {
        let held = self
            .nodes
            .values()
            .filter_map(|node| node.life.as_ref())
            .filter(|life| life.drain.as_ref().is_some_and(drain::Drain::holds))
            .map(|life| life.incarnation)
            .collect();
        Effect::Publish { view: Arc::clone(&self.view), held }
    }

    fn build_view(&self) -> View {
        let nodes = self.nodes.iter().filter_map(|(name, node)| {
            let life = node.life.as_ref()?;
            let state = if life.drain.is_some() { NodeState::Draining } else { NodeState::Up };
            let address = node.address.clone();
            Some(NodeEntry { name: name.clone(), incarnation: life.incarnation, state, address })
        });
        let servers = self.servers.iter().filter_map(|(name, server)| {
            Some(ServerEntry {
                name: name.clone(),
                incarnation: server.up?,
                weight: server.weight,
                socket: server.socket.clone(),
                control: server.control.clone(),
            })
        });
        let dead = self.dead.iter().map(|dead| DeadEntry {
            name: dead.name.clone(),
            incarnation: dead.incarnation,
            sealed: dead.sealed,
        });
        let mut view = View {
            epoch: self.epoch,
            copies: self.settings.copies,
            nodes: nodes.collect(),
            servers: servers.collect(),
            dead: dead.collect(),
        };
        view.dead.sort_by(|a, b| (&a.name, a.incarnation).cmp(&(&b.name, b.incarnation)));
        view
    }

    /// Someone has seen an epoch that this director did not give: go above it (R12).
    fn above(&mut self, seen: Epoch) {
        if !holds(Rule::R12Epochs) || !self.is_plausible(seen) {
            return;
        }
        if seen.term > self.epoch.term || (seen.term == self.epoch.term && seen.number > self.epoch.number) {
            self.epoch.term = seen.term.saturating_add(1);
            self.changed = true;
        }
        if seen.number > self.epoch.number {
            self.epoch.number = seen.number;
            self.changed = true;
        }
    }

    /// A term far ahead of the clock, or a number near its end, is a fault of the peer and would use up the
    /// epochs.
    fn is_plausible(&self, seen: Epoch) -> bool {
        let term_max = self.settings.term_min.saturating_add(limits::TERM_AHEAD_MAX_S);
        seen.term < term_max && seen.number < limits::NUMBER_MAX
    }

    fn next_incarnation(&mut self) -> Incarnation {
        self.counter += 1;
        Incarnation((u64::from(self.epoch.term) << 32) | u64::from(self.counter))
    }
}
