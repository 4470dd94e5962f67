//! What a session server decides: `(state, event, now) -> (state, effects)`, with sockets, clocks, memory and
//! threads outside (invariant 8). The daemon runs it, and so does any simulation of a cluster.
//!
//! Invariants:
//! - Only a view seals a lease, and only the view that drops an incarnation releases what it sealed (R2,
//!   R10).
//! - A claim is the first claimant's until that claimant is no more in the view, or gives it up (R1).
//! - Nothing sealed is claimed, fetched or listed before the view says that everything dead is sealed
//!   everywhere (R2), nor, at a server that joined a living cluster, before its nodes have registered their
//!   claims (R1).
//! - Each request is answered exactly once, by a `Reply` or `SendLease` to its connection, unless that is
//!   cut.

mod claims;
mod graves;
mod leases;
#[cfg(test)]
mod tests;
mod views;

use graves::Graves;
use leases::Lease;
use selvage_fabric::control::message::{FetchedArchive, FromServer, Refusal, Role, ServerReport, ToServer};
use selvage_fabric::error::Error;
use selvage_fabric::ident::{Epoch, Incarnation, SessionId};
use selvage_fabric::lease::{LeaseIndex, SealedIndex, SessionCopy};
use selvage_fabric::limits::BATCH_SESSIONS_MAX;
use selvage_fabric::rules::{Rule, holds};
use selvage_fabric::view::View;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Names a connection; never used twice in a server's life.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ConnectionId(pub u64);

/// Names a lease; never used twice in a server's life.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LeaseNumber(pub u64);

/// What a server is told at start.
#[derive(Clone, Debug)]
pub struct Params {
    /// Its configured name.
    pub name: String,
    /// Its first life.
    pub incarnation: Incarnation,
    /// Its process, for reports.
    pub pid: u32,
    /// Slots of each lease.
    pub slot_count: u32,
    /// Bytes of each lease's heap.
    pub heap_bytes: u64,
    /// Bytes of one whole lease.
    pub lease_bytes: u64,
    /// Bound of all leases together, bytes; 0 is none.
    pub bytes_max: u64,
    /// Allowance before an expired session is swept (R14), ms.
    pub clock_skew_ms: u64,
}

/// Something that happened. Times are Unix milliseconds.
pub enum Event {
    /// A peer was greeted with this server's incarnation.
    Opened {
        /// Its connection.
        connection: ConnectionId,
        /// As what it was let in.
        role: Role,
        /// Its process, as the kernel says.
        pid: u32,
        /// The incarnation that it was told.
        greeted: Incarnation,
    },
    /// A connection has ended.
    Closed {
        /// Which.
        connection: ConnectionId,
    },
    /// A process of which [`Effect::WatchProcess`] spoke is gone, or cannot be watched.
    ProcessGone {
        /// Its node incarnation.
        incarnation: Incarnation,
        /// Its process id.
        pid: u32,
    },
    /// A peer asks.
    Request {
        /// Its connection.
        connection: ConnectionId,
        /// What.
        message: ToServer,
    },
    /// [`Effect::MakeLease`] was carried out.
    LeaseMade {
        /// Which.
        lease: LeaseNumber,
        /// The memory's error, if it failed.
        result: Result<(), Error>,
    },
    /// [`Effect::Seal`] was carried out.
    Sealed {
        /// Which.
        lease: LeaseNumber,
        /// What is in it.
        index: LeaseIndex,
        /// Cells that failed a check.
        cells_bad: u64,
    },
    /// [`Effect::Fetch`] was carried out.
    Fetched {
        /// For whom.
        connection: ConnectionId,
        /// The answer.
        archives: Vec<FetchedArchive>,
    },
    /// A peer sent what is no message, or too late, or was refused at its hello; it was cut off.
    BadPeer,
    /// Time passes.
    Tick,
}

/// Something to do. Effects are carried out in order.
pub enum Effect {
    /// Send an answer.
    Reply {
        /// To whom.
        connection: ConnectionId,
        /// What.
        message: FromServer,
    },
    /// Send [`FromServer::Lease`] with the lease's descriptor. From now on the process may write, so hold on
    /// to it.
    SendLease {
        /// To whom.
        connection: ConnectionId,
        /// The node's life.
        incarnation: Incarnation,
        /// The process.
        pid: u32,
        /// Which lease.
        lease: LeaseNumber,
        /// The server's life (R6).
        server: Incarnation,
    },
    /// Cut a connection off, after what it was sent.
    Cut {
        /// Which.
        connection: ConnectionId,
    },
    /// Make a lease; answer [`Event::LeaseMade`].
    MakeLease {
        /// Its number.
        lease: LeaseNumber,
        /// The node's name.
        node: String,
        /// The node's life.
        incarnation: Incarnation,
        /// The server's life (R6).
        server: Incarnation,
    },
    /// Seal, scan and index a lease; answer [`Event::Sealed`].
    Seal {
        /// Which.
        lease: LeaseNumber,
    },
    /// Let go of a lease's memory. Its index, if it had one, comes along to be dropped where nobody waits.
    Release {
        /// Which.
        lease: LeaseNumber,
        /// What was in it.
        index: Option<LeaseIndex>,
    },
    /// Read archives, as many as a reply takes; answer [`Event::Fetched`].
    Fetch {
        /// For whom.
        connection: ConnectionId,
        /// The copies and the leases that they are in.
        copies: Vec<(LeaseNumber, SessionCopy)>,
        /// Answers that need no reading.
        answered: Vec<FetchedArchive>,
    },
    /// Tell by [`Event::ProcessGone`] when this process, which has lost its last connection, is gone (R4).
    WatchProcess {
        /// Its node incarnation.
        incarnation: Incarnation,
        /// Its process id.
        pid: u32,
    },
    /// The process is of no interest any more.
    ForgetProcess {
        /// Its node incarnation.
        incarnation: Incarnation,
        /// Its process id.
        pid: u32,
    },
}

/// A peer that has been greeted.
#[derive(Clone, Debug)]
struct Peer {
    role: Role,
    pid: u32,
}

/// A process of a node (R4).
#[derive(Clone, Copy, Debug, Default)]
struct Process {
    connections: u32,
    /// It was given the lease, so it may write as long as it lives.
    may_write: bool,
}

/// The state of a session server.
pub struct Server {
    params: Params,
    incarnation: Incarnation,
    peers: HashMap<ConnectionId, Peer>,
    processes: HashMap<(Incarnation, u32), Process>,
    /// The newest view that was accepted.
    view: Option<View>,
    /// The newest view that is carried out: all that it seals is sealed and indexed.
    carried_out: Epoch,
    /// Connections that wait for the accepted view to be carried out.
    view_waiters: Vec<ConnectionId>,
    /// Nodes whose claims this server must still hear (R1).
    unregistered: BTreeSet<Incarnation>,
    /// The highest ended life of each node.
    ended: BTreeMap<String, Incarnation>,
    leases: BTreeMap<LeaseNumber, Lease>,
    lease_next: u64,
    sealed: SealedIndex,
    claims: HashMap<SessionId, Incarnation>,
    claim_counts: HashMap<Incarnation, u64>,
    graves: Graves,
    sweep_next_ms: u64,
    counters: BTreeMap<&'static str, u64>,
}

/// How often expired sealed sessions are looked for, ms. Nobody waits for it: adopters see the expiry of what
/// they list.
const SWEEP_EVERY_MS: u64 = 5000;

/// Counters that exist from the start, so that metrics show them at zero.
const COUNTERS: [&str; 18] = [
    "cells_bad",
    "claims_disputed",
    "claims_elsewhere",
    "claims_granted",
    "destroyed",
    "fetch_errors",
    "fetched",
    "leases_full",
    "leases_made",
    "leases_released",
    "leases_sealed",
    "peers_bad",
    "refused_bad",
    "refused_denied",
    "refused_old_term",
    "settled",
    "swept",
    "views",
];

impl Server {
    /// A server without leases that has seen no view.
    pub fn new(params: Params) -> Self {
        let graves_max = (params.slot_count as usize).max(BATCH_SESSIONS_MAX);
        Self {
            incarnation: params.incarnation,
            params,
            peers: HashMap::new(),
            processes: HashMap::new(),
            view: None,
            carried_out: Epoch::default(),
            view_waiters: Vec::new(),
            unregistered: BTreeSet::new(),
            ended: BTreeMap::new(),
            leases: BTreeMap::new(),
            lease_next: 1,
            sealed: SealedIndex::default(),
            claims: HashMap::new(),
            claim_counts: HashMap::new(),
            graves: Graves::new(graves_max),
            sweep_next_ms: 0,
            counters: COUNTERS.iter().map(|name| (*name, 0)).collect(),
        }
    }

    /// Its present life. A server that a view has dropped begins a new one (R6).
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// Takes an event and says what to do.
    pub fn step(&mut self, event: Event, now_ms: u64) -> Vec<Effect> {
        match event {
            Event::Opened { connection, role, pid, greeted } => self.opened(connection, role, pid, greeted),
            Event::Closed { connection } => self.closed(connection),
            Event::ProcessGone { incarnation, pid } => {
                let key = (incarnation, pid);
                if self.processes.get(&key).is_some_and(|process| process.connections == 0) {
                    self.processes.remove(&key);
                }
                Vec::new()
            }
            Event::Request { connection, message } => self.request(connection, message),
            Event::LeaseMade { lease, result } => self.lease_made(lease, result),
            Event::Sealed { lease, index, cells_bad } => self.lease_sealed(lease, index, cells_bad),
            Event::Fetched { connection, archives } => {
                let failed = archives.iter().filter(|archive| archive.error.is_some()).count() as u64;
                self.count("fetch_errors", failed);
                self.count("fetched", archives.len() as u64 - failed);
                vec![Effect::Reply { connection, message: FromServer::Archives(archives) }]
            }
            Event::BadPeer => {
                self.count("peers_bad", 1);
                Vec::new()
            }
            Event::Tick => self.sweep(now_ms),
        }
    }

    /// The state for directors and operators.
    pub fn report(&self) -> ServerReport {
        ServerReport {
            name: self.params.name.clone(),
            incarnation: self.incarnation,
            pid: self.params.pid,
            epoch: self.carried_out,
            view: self.view.clone(),
            leases: self.lease_reports(),
            bytes: self.bytes(),
            counters: self.counters.iter().map(|(name, value)| ((*name).into(), *value)).collect(),
            rdma: String::new(),
        }
    }

    fn opened(
        &mut self,
        connection: ConnectionId,
        role: Role,
        pid: u32,
        greeted: Incarnation,
    ) -> Vec<Effect> {
        if greeted != self.incarnation {
            return vec![Effect::Cut { connection }];
        }
        if let Role::Node { incarnation, .. } = role {
            self.processes.entry((incarnation, pid)).or_default().connections += 1;
        }
        self.peers.insert(connection, Peer { role, pid });
        Vec::new()
    }

    fn closed(&mut self, connection: ConnectionId) -> Vec<Effect> {
        self.view_waiters.retain(|waiter| *waiter != connection);
        let Some(Peer { role: Role::Node { incarnation, .. }, pid }) = self.peers.remove(&connection) else {
            return Vec::new();
        };
        let key = (incarnation, pid);
        let Some(process) = self.processes.get_mut(&key) else { return Vec::new() };
        process.connections -= 1;
        if process.connections > 0 {
            return Vec::new();
        }
        let lives = self.view.as_ref().is_some_and(|view| view.node(incarnation).is_some());
        if process.may_write && lives {
            return vec![Effect::WatchProcess { incarnation, pid }];
        }
        let may_write = process.may_write;
        self.processes.remove(&key);
        if may_write { vec![Effect::ForgetProcess { incarnation, pid }] } else { Vec::new() }
    }

    fn request(&mut self, connection: ConnectionId, message: ToServer) -> Vec<Effect> {
        // A connection that was cut may have had a request on its way: nobody waits for the answer.
        let Some(peer) = self.peers.get(&connection).cloned() else { return Vec::new() };
        match (peer.role, message) {
            (Role::Director | Role::Operator, ToServer::Beat) => {
                vec![Effect::Reply { connection, message: FromServer::Report(self.report()) }]
            }
            (Role::Director, ToServer::SetView(view)) => self.set_view(connection, view),
            (Role::Node { name, incarnation, .. }, message) => {
                let asker = Asker { connection, name, incarnation, pid: peer.pid };
                self.node_request(&asker, message)
            }
            (role, _) => {
                self.refuse(connection, Refusal::Denied(format!("{} may not ask this", role_name(&role))))
            }
        }
    }

    fn node_request(&mut self, asker: &Asker, message: ToServer) -> Vec<Effect> {
        let connection = asker.connection;
        let answer = match message {
            ToServer::Beat | ToServer::SetView(_) => Err(Refusal::Denied("a node may not ask this".into())),
            ToServer::Lease => return self.lease_wanted(asker),
            ToServer::Connect { .. } | ToServer::FetchStaged { .. } => {
                Err(Refusal::NotYet("this server has no RDMA".into()))
            }
            ToServer::Claim { epoch, ids } => self.claim(asker, epoch, &ids).map(FromServer::Claims),
            ToServer::Unclaim { ids } => self.unclaim(asker, &ids).map(|()| FromServer::Done),
            ToServer::RegisterClaims { epoch, ids, last } => {
                self.register(asker, epoch, &ids, last).map(|()| FromServer::Done)
            }
            ToServer::Fetch { ids } => match self.fetch(asker, &ids) {
                Ok(effect) => return vec![effect],
                Err(refusal) => Err(refusal),
            },
            ToServer::ListSealed { incarnation, cursor } => self.list_sealed(asker, incarnation, cursor),
            ToServer::Settle { sessions } => self.settle(asker, &sessions).map(|()| FromServer::Done),
            ToServer::Destroyed { sessions } => self.destroyed(asker, &sessions).map(|()| FromServer::Done),
            ToServer::ProcessGone { pid, .. } => {
                let may_write = self.processes.contains_key(&(asker.incarnation, pid));
                Ok(FromServer::Gone(!may_write || !holds(Rule::R4FreshSlot)))
            }
        };
        match answer {
            Ok(message) => {
                let mut effects = vec![Effect::Reply { connection, message }];
                effects.extend(self.release_without_r10());
                effects
            }
            Err(refusal) => self.refuse(connection, refusal),
        }
    }

    /// Answers with a refusal. Who asks what makes no sense is cut off, too.
    fn refuse(&mut self, connection: ConnectionId, refusal: Refusal) -> Vec<Effect> {
        let cut = match &refusal {
            Refusal::Bad(_) => {
                self.count("refused_bad", 1);
                true
            }
            Refusal::Denied(_) => {
                self.count("refused_denied", 1);
                false
            }
            Refusal::OldTerm(_) => {
                self.count("refused_old_term", 1);
                false
            }
            _ => false,
        };
        let mut effects = vec![Effect::Reply { connection, message: FromServer::Refused(refusal) }];
        if cut {
            self.count("peers_bad", 1);
            effects.push(Effect::Cut { connection });
        }
        effects
    }

    fn count(&mut self, name: &'static str, by: u64) {
        *self.counters.entry(name).or_default() += by;
    }
}

/// The node process that asks.
struct Asker {
    connection: ConnectionId,
    name: String,
    incarnation: Incarnation,
    pid: u32,
}

/// Refuses a batch that is longer than any honest one.
fn check_batch(length: usize) -> Result<(), Refusal> {
    if length <= BATCH_SESSIONS_MAX {
        return Ok(());
    }
    Err(Refusal::Bad(format!("a batch of {length} sessions is over the limit of {BATCH_SESSIONS_MAX}")))
}

fn role_name(role: &Role) -> &'static str {
    match role {
        Role::Node { .. } => "a node",
        Role::Director => "a director",
        Role::Operator => "an operator",
    }
}
