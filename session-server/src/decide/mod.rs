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
//! - A process or RDMA link counts as gone only when nothing of it can write any more (R4).
//! - Each request is answered exactly once, by a `Reply`, `SendLease` or `SendLink` to its connection, unless
//!   that is cut.

mod claims;
mod graves;
mod leases;
mod links;
mod processes;
#[cfg(test)]
mod tests;
mod views;

use graves::Graves;
use leases::{Lease, Wanted};
use links::Link;
pub use links::LinkNumber;
use processes::{Process, ProcessKey};
use selvage_fabric::control::message::{
    Endpoint, FetchedArchive, FromServer, Refusal, RemoteMemory, Role, ServerReport, StagedArchive, ToServer,
};
use selvage_fabric::error::Error;
use selvage_fabric::ident::{Epoch, Incarnation, SessionId};
use selvage_fabric::lease::{LeaseIndex, SealedIndex, SessionCopy};
use selvage_fabric::limits::BATCH_SESSIONS_MAX;
use selvage_fabric::numbers::ServerCounter;
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
        /// Its process: as the kernel says if it is local, else as its node names it.
        pid: u32,
        /// Whether it is a process of this host, so that its process id means something here.
        local: bool,
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
    /// [`Effect::Connect`] was carried out.
    LinkMade {
        /// Which.
        link: LinkNumber,
        /// The server's end and the lease's memory, or the device's error.
        result: Result<(Endpoint, RemoteMemory), Error>,
    },
    /// [`Effect::Disconnect`] was carried out: the call that destroys the queue pair has returned.
    LinkClosed {
        /// Which.
        link: LinkNumber,
        /// If it failed, the queue pair may still write.
        result: Result<(), Error>,
    },
    /// [`Effect::Stage`] was carried out.
    Staged {
        /// For whom.
        connection: ConnectionId,
        /// Where the archives lie, and which they are.
        result: Result<(RemoteMemory, Vec<StagedArchive>), Error>,
    },
    /// A peer sent what is no message, or too late, or was refused at its hello; it was cut off.
    BadPeer,
    /// Time passes.
    Tick,
}

/// Archives to read.
#[derive(Debug)]
pub struct Batch {
    /// The copies and the leases that they are in.
    pub copies: Vec<(LeaseNumber, SessionCopy)>,
    /// Answers that need no reading.
    pub answered: Vec<FetchedArchive>,
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
    /// Make a queue pair into a lease; answer [`Event::LinkMade`].
    Connect {
        /// The link's number.
        link: LinkNumber,
        /// Its lifeline.
        connection: ConnectionId,
        /// Into which lease.
        lease: LeaseNumber,
        /// The node's end.
        offer: Endpoint,
    },
    /// Send [`FromServer::Connected`].
    SendLink {
        /// To whom.
        connection: ConnectionId,
        /// The link's number.
        link: LinkNumber,
        /// Into which lease.
        lease: LeaseNumber,
        /// The server's life (R6).
        server: Incarnation,
        /// The server's end.
        endpoint: Endpoint,
        /// The lease's memory.
        memory: RemoteMemory,
    },
    /// Destroy a link's queue pair; answer [`Event::LinkClosed`] when nothing of it can write any more (R4).
    Disconnect {
        /// The link's number.
        link: LinkNumber,
        /// Its lease.
        lease: LeaseNumber,
    },
    /// Take a lease away from every writer, in this order: seal word, memory region, queue pairs; then scan
    /// and index it; answer [`Event::Sealed`] (R2).
    Seal {
        /// Which.
        lease: LeaseNumber,
    },
    /// Let go of a lease's memory, and before that of its registration and queue pairs. Its index, if it had
    /// one, comes along to be dropped where nobody waits.
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
        /// Which.
        batch: Batch,
    },
    /// As [`Effect::Fetch`], into memory that the node reads over its link; answer [`Event::Staged`].
    Stage {
        /// For whom.
        connection: ConnectionId,
        /// Its link.
        link: LinkNumber,
        /// The link's lease.
        lease: LeaseNumber,
        /// Which.
        batch: Batch,
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
    local: bool,
}

/// The state of a session server.
pub struct Server {
    params: Params,
    incarnation: Incarnation,
    peers: HashMap<ConnectionId, Peer>,
    processes: HashMap<ProcessKey, Process>,
    links: BTreeMap<LinkNumber, Link>,
    link_next: u64,
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
    /// By [`ServerCounter`].
    counters: Vec<u64>,
}

/// How often expired sealed sessions are looked for, ms. Nobody waits for it: adopters see the expiry of what
/// they list.
const SWEEP_EVERY_MS: u64 = 5000;

impl Server {
    /// A server without leases that has seen no view.
    pub fn new(params: Params) -> Self {
        let graves_max = (params.slot_count as usize).max(BATCH_SESSIONS_MAX);
        Self {
            incarnation: params.incarnation,
            params,
            peers: HashMap::new(),
            processes: HashMap::new(),
            links: BTreeMap::new(),
            link_next: 1,
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
            counters: vec![0; ServerCounter::ALL.len()],
        }
    }

    /// Its present life. A server that a view has dropped begins a new one (R6).
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// Takes an event and says what to do.
    pub fn step(&mut self, event: Event, now_ms: u64) -> Vec<Effect> {
        match event {
            Event::Opened { connection, role, pid, local, greeted } => {
                self.opened(connection, Peer { role, pid, local }, greeted)
            }
            Event::Closed { connection } => self.closed(connection),
            Event::ProcessGone { incarnation, pid } => {
                self.process_ended((incarnation, pid));
                Vec::new()
            }
            Event::Request { connection, message } => self.request(connection, message),
            Event::LeaseMade { lease, result } => self.lease_made(lease, result),
            Event::Sealed { lease, index, cells_bad } => self.lease_sealed(lease, index, cells_bad),
            Event::Fetched { connection, archives } => {
                self.count_fetched(archives.iter().map(|archive| archive.error.is_some()));
                vec![Effect::Reply { connection, message: FromServer::Archives(archives) }]
            }
            Event::LinkMade { link, result } => self.link_made(link, result),
            Event::LinkClosed { link, result } => {
                self.link_closed(link, result);
                Vec::new()
            }
            Event::Staged { connection, result } => self.staged(connection, result),
            Event::BadPeer => {
                self.count(ServerCounter::PeersBad, 1);
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
            counters: self.counters.clone(),
            rdma_links: self.links_open(),
            numbers: None,
            rdma: String::new(),
        }
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
                let asker = Asker { connection, name, incarnation, pid: peer.pid, local: peer.local };
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
            ToServer::Lease => return self.lease_wanted(asker, Wanted::Memory),
            ToServer::Connect { offer } => return self.link_wanted(asker, offer),
            ToServer::Claim { epoch, ids } => self.claim(asker, epoch, &ids).map(FromServer::Claims),
            ToServer::Unclaim { ids } => self.unclaim(asker, &ids).map(|()| FromServer::Done),
            ToServer::RegisterClaims { epoch, ids, last } => {
                self.register(asker, epoch, &ids, last).map(|()| FromServer::Done)
            }
            ToServer::Fetch { ids } => match self.fetch(asker, &ids) {
                Ok(effect) => return vec![effect],
                Err(refusal) => Err(refusal),
            },
            ToServer::FetchStaged { ids } => match self.stage(asker, &ids) {
                Ok(effect) => return vec![effect],
                Err(refusal) => Err(refusal),
            },
            ToServer::ListSealed { incarnation, cursor } => self.list_sealed(asker, incarnation, cursor),
            ToServer::Settle { sessions } => self.settle(asker, &sessions).map(|()| FromServer::Done),
            ToServer::Destroyed { sessions } => self.destroyed(asker, &sessions).map(|()| FromServer::Done),
            ToServer::ProcessGone { pid, link } => Ok(FromServer::Gone(self.is_gone(asker, pid, link))),
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
                self.count(ServerCounter::RefusedBad, 1);
                true
            }
            Refusal::Denied(_) => {
                self.count(ServerCounter::RefusedDenied, 1);
                false
            }
            Refusal::OldTerm(_) => {
                self.count(ServerCounter::RefusedOldTerm, 1);
                false
            }
            _ => false,
        };
        let mut effects = vec![Effect::Reply { connection, message: FromServer::Refused(refusal) }];
        if cut {
            self.count(ServerCounter::PeersBad, 1);
            effects.push(Effect::Cut { connection });
        }
        effects
    }

    /// Counts fetched sessions, each by whether it has an error.
    fn count_fetched(&mut self, errors: impl Iterator<Item = bool>) {
        for failed in errors {
            self.count(if failed { ServerCounter::FetchErrors } else { ServerCounter::Fetched }, 1);
        }
    }

    fn count(&mut self, counter: ServerCounter, by: u64) {
        self.counters[counter as usize] += by;
    }
}

/// The node process that asks.
struct Asker {
    connection: ConnectionId,
    name: String,
    incarnation: Incarnation,
    pid: u32,
    local: bool,
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
        Role::Application { .. } => "an application",
    }
}
