//! Tests of the decisions, with a lease memory that is a list of cells.

mod links;
mod rules;
mod states;

use super::*;
use selvage_fabric::control::message::{ClaimAnswer, SealedCopy};
use selvage_fabric::error::Origin;
use selvage_fabric::ident::Version;
use selvage_fabric::lease::{ArchiveChecksum, BlockOffset, Cell, CellState, ScanReport, Sequence, SlotIndex};
use selvage_fabric::rules::Rule;
use selvage_fabric::view::{DeadEntry, NodeEntry, NodeState, ServerEntry};

pub(super) const SERVER: Incarnation = Incarnation(100 << 32);
pub(super) const A: Incarnation = Incarnation((1 << 32) | 1);
pub(super) const B: Incarnation = Incarnation((1 << 32) | 2);
pub(super) const C: Incarnation = Incarnation((1 << 32) | 3);
pub(super) const D: Incarnation = Incarnation((1 << 32) | 4);
/// A node whose name is its life's, so that a test can name it by the life alone.
pub(super) fn name_of(incarnation: Incarnation) -> String {
    format!("n{}", incarnation.0 & 0xff)
}

pub(super) const LEASE_BYTES: u64 = 1000;
pub(super) const SKEW_MS: u64 = 5000;
pub(super) const START_MS: u64 = 1_000_000;

pub(super) fn id(number: u8) -> SessionId {
    SessionId([number; 16])
}

pub(super) fn version(epoch: u32, counter: u64) -> Version {
    Version { epoch, counter }
}

/// Fails a scenario that a rule's test runs with and without its rule.
macro_rules! ensure {
    ($left:expr, $right:expr) => {
        let (left, right) = (&$left, &$right);
        if left != right {
            return Err(format!("{left:?} is not {right:?} (line {})", line!()));
        }
    };
}
pub(super) use ensure;

/// A server, its peers, and what nodes have written into their leases.
pub(super) struct World {
    pub(super) server: Server,
    pub(super) now_ms: u64,
    pub(super) written: HashMap<Incarnation, Vec<Cell>>,
    pub(super) holders: HashMap<LeaseNumber, Incarnation>,
    /// Seals and lease makings are held back.
    pub(super) slow: bool,
    pub(super) held: Vec<Event>,
    /// Messages that were sent to each connection and not looked at.
    pub(super) sent: HashMap<ConnectionId, Vec<FromServer>>,
    pub(super) cut: Vec<ConnectionId>,
    pub(super) released: Vec<LeaseNumber>,
    pub(super) watched: Vec<(Incarnation, u32)>,
    /// Links whose queue pair was made, and not destroyed.
    pub(super) queue_pairs: BTreeSet<LinkNumber>,
    /// What the device answers instead, if it fails.
    pub(super) device_fails: Option<selvage_fabric::error::ErrorKind>,
    director: ConnectionId,
    nodes: HashMap<Incarnation, ConnectionId>,
    next_connection: u64,
    pub(super) number: u32,
}

impl World {
    pub(super) fn new() -> Self {
        Self::with_bytes_max(0)
    }

    pub(super) fn with_bytes_max(bytes_max: u64) -> Self {
        let params = Params {
            name: "s1".into(),
            incarnation: SERVER,
            pid: 1,
            slot_count: 64,
            heap_bytes: 1 << 20,
            lease_bytes: LEASE_BYTES,
            bytes_max,
            clock_skew_ms: SKEW_MS,
        };
        let mut world = Self {
            server: Server::new(params),
            now_ms: START_MS,
            written: HashMap::new(),
            holders: HashMap::new(),
            slow: false,
            held: Vec::new(),
            sent: HashMap::new(),
            cut: Vec::new(),
            released: Vec::new(),
            watched: Vec::new(),
            queue_pairs: BTreeSet::new(),
            device_fails: None,
            director: ConnectionId(0),
            nodes: HashMap::new(),
            next_connection: 1,
            number: 0,
        };
        world.director = world.open(Role::Director, 7);
        world
    }

    pub(super) fn open(&mut self, role: Role, pid: u32) -> ConnectionId {
        let connection = ConnectionId(self.next_connection);
        self.next_connection += 1;
        let greeted = self.server.incarnation();
        self.feed(Event::Opened { connection, role, pid, local: true, greeted });
        connection
    }

    /// A process of a node on another host.
    pub(super) fn open_remote(&mut self, incarnation: Incarnation, pid: u32) -> ConnectionId {
        let connection = ConnectionId(self.next_connection);
        self.next_connection += 1;
        let role = Role::Node { name: name_of(incarnation), incarnation, pid };
        let greeted = self.server.incarnation();
        self.feed(Event::Opened { connection, role, pid, local: false, greeted });
        connection
    }

    pub(super) fn open_node(&mut self, incarnation: Incarnation, pid: u32) -> ConnectionId {
        self.open(Role::Node { name: name_of(incarnation), incarnation, pid: 0 }, pid)
    }

    /// The first process of a node.
    pub(super) fn node(&mut self, incarnation: Incarnation) -> ConnectionId {
        if let Some(connection) = self.nodes.get(&incarnation) {
            return *connection;
        }
        let connection = self.open_node(incarnation, 1000 + incarnation.0 as u32);
        self.nodes.insert(incarnation, connection);
        connection
    }

    pub(super) fn feed(&mut self, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for effect in self.server.step(event, self.now_ms) {
                match self.carry_out(effect) {
                    Some(event) if self.slow && !matches!(event, Event::Fetched { .. }) => {
                        self.held.push(event);
                    }
                    Some(event) => events.push(event),
                    None => {}
                }
            }
        }
    }

    pub(super) fn let_go(&mut self) {
        self.slow = false;
        for event in std::mem::take(&mut self.held) {
            self.feed(event);
        }
    }

    fn carry_out(&mut self, effect: Effect) -> Option<Event> {
        match effect {
            Effect::Reply { connection, message } => {
                self.sent.entry(connection).or_default().push(message);
                None
            }
            Effect::SendLease { connection, lease, server, .. } => {
                let message = FromServer::Lease {
                    lease: lease.0,
                    server,
                    layout: 1,
                    slot_count: 64,
                    heap_bytes: 1 << 20,
                };
                self.sent.entry(connection).or_default().push(message);
                None
            }
            Effect::Cut { connection } => {
                self.cut.push(connection);
                self.nodes.retain(|_, known| *known != connection);
                None
            }
            Effect::MakeLease { lease, incarnation, .. } => {
                self.holders.insert(lease, incarnation);
                Some(Event::LeaseMade { lease, result: Ok(()) })
            }
            Effect::Seal { lease } => {
                let cells = self.written.get(&self.holders[&lease]).cloned().unwrap_or_default();
                let cells = cells.into_iter().zip(0..).map(|(cell, slot)| (SlotIndex(slot), cell)).collect();
                let index = LeaseIndex::new(&ScanReport { cells, ..ScanReport::default() });
                Some(Event::Sealed { lease, index, cells_bad: 0 })
            }
            Effect::Release { lease, .. } => {
                self.released.push(lease);
                None
            }
            Effect::Fetch { connection, batch: Batch { copies, answered } } => {
                let mut archives = answered;
                archives.extend(copies.iter().map(|(lease, copy)| FetchedArchive {
                    id: copy.id,
                    version: copy.version,
                    expiry_ms: copy.expiry_ms,
                    archive: name_of(self.holders[lease]).into_bytes(),
                    error: None,
                }));
                Some(Event::Fetched { connection, archives })
            }
            Effect::Connect { link, .. } => {
                let failed = self.device_fails.map(|kind| Error::new(kind, Origin::Transport, "device"));
                let result = failed.map_or(Ok((server_end(link), LEASE_MEMORY)), Err);
                if result.is_ok() {
                    self.queue_pairs.insert(link);
                }
                Some(Event::LinkMade { link, result })
            }
            Effect::SendLink { connection, link, lease, server, endpoint, memory } => {
                let message = FromServer::Connected {
                    link: link.0,
                    lease: lease.0,
                    server,
                    layout: 1,
                    slot_count: 64,
                    heap_bytes: 1 << 20,
                    chunk_bytes: 1 << 20,
                    endpoint,
                    memory,
                };
                self.sent.entry(connection).or_default().push(message);
                None
            }
            Effect::Disconnect { link, .. } => {
                let failed = self.device_fails.map(|kind| Error::new(kind, Origin::Transport, "device"));
                let result = failed.map_or(Ok(()), Err);
                if result.is_ok() {
                    self.queue_pairs.remove(&link);
                }
                Some(Event::LinkClosed { link, result })
            }
            Effect::Stage { connection, batch: Batch { copies, answered }, .. } => {
                let failed = self.device_fails.map(|kind| Error::new(kind, Origin::Transport, "device"));
                let staged = |id, version, expiry_ms, bytes, error| StagedArchive {
                    id,
                    version,
                    expiry_ms,
                    bytes,
                    error,
                };
                let ready =
                    copies.iter().map(|(_, copy)| staged(copy.id, copy.version, copy.expiry_ms, 100, None));
                let errors =
                    answered.into_iter().map(|it| staged(it.id, it.version, it.expiry_ms, 0, it.error));
                let archives: Vec<StagedArchive> = errors.chain(ready).collect();
                let bytes = archives.iter().map(|archive| u64::from(archive.bytes)).sum();
                let result = failed.map_or(Ok((RemoteMemory { bytes, ..LEASE_MEMORY }, archives)), Err);
                Some(Event::Staged { connection, result })
            }
            Effect::WatchProcess { incarnation, pid } => {
                self.watched.push((incarnation, pid));
                None
            }
            Effect::ForgetProcess { .. } => None,
        }
    }

    /// Sends a request and returns its answer, if it came at once.
    pub(super) fn ask(&mut self, connection: ConnectionId, message: ToServer) -> Option<FromServer> {
        self.sent.remove(&connection);
        self.feed(Event::Request { connection, message });
        let mut sent = self.sent.remove(&connection)?;
        assert_eq!(sent.len(), 1, "one request has one answer: {sent:?}");
        sent.pop()
    }

    pub(super) fn ask_node(&mut self, incarnation: Incarnation, message: ToServer) -> FromServer {
        let connection = self.node(incarnation);
        self.ask(connection, message).expect("an answer at once")
    }

    /// The next view: live nodes, and dead ones with whether all is sealed.
    pub(super) fn view(&mut self, live: &[Incarnation], dead: &[(Incarnation, bool)]) -> View {
        self.number += 1;
        let node = |incarnation: &Incarnation| NodeEntry {
            name: name_of(*incarnation),
            incarnation: *incarnation,
            state: NodeState::Up,
            address: "127.0.0.1:1".into(),
        };
        let ended = |(incarnation, sealed): &(Incarnation, bool)| DeadEntry {
            name: name_of(*incarnation),
            incarnation: *incarnation,
            sealed: *sealed,
        };
        View {
            epoch: Epoch { term: 1, number: self.number },
            copies: 2,
            nodes: live.iter().map(node).collect(),
            servers: vec![ServerEntry {
                name: "s1".into(),
                incarnation: self.server.incarnation(),
                weight: 1,
                socket: "s1".into(),
                control: None,
            }],
            dead: dead.iter().map(ended).collect(),
        }
    }

    pub(super) fn ask_director(&mut self, message: ToServer) -> Option<FromServer> {
        self.ask(self.director, message)
    }

    pub(super) fn set_view(&mut self, live: &[Incarnation], dead: &[(Incarnation, bool)]) -> ServerReport {
        let view = self.view(live, dead);
        match self.ask_director(ToServer::SetView(view)) {
            Some(FromServer::Report(report)) => report,
            other => panic!("not a report: {other:?}"),
        }
    }

    pub(super) fn report(&mut self) -> ServerReport {
        self.server.report()
    }

    /// Makes leases for nodes that are up, and writes sessions into them.
    pub(super) fn lease(&mut self, incarnation: Incarnation, cells: &[Cell]) {
        let answer = self.ask_node(incarnation, ToServer::Lease);
        assert!(matches!(answer, FromServer::Lease { .. }), "{answer:?}");
        self.written.insert(incarnation, cells.to_vec());
    }

    pub(super) fn claim(&mut self, incarnation: Incarnation, sessions: &[SessionId]) -> FromServer {
        let epoch = self.server.carried_out;
        self.ask_node(incarnation, ToServer::Claim { epoch, ids: sessions.to_vec() })
    }

    pub(super) fn claim_one(
        &mut self,
        incarnation: Incarnation,
        session: SessionId,
    ) -> Result<ClaimAnswer, String> {
        match self.claim(incarnation, &[session]) {
            FromServer::Claims(answers) if answers.len() == 1 => Ok(answers[0]),
            other => Err(format!("no claim: {other:?}")),
        }
    }

    pub(super) fn fetch_one(
        &mut self,
        incarnation: Incarnation,
        session: SessionId,
    ) -> Result<FetchedArchive, String> {
        match self.ask_node(incarnation, ToServer::Fetch { ids: vec![session] }) {
            FromServer::Archives(mut archives) if archives.len() == 1 => Ok(archives.remove(0)),
            other => Err(format!("no archive: {other:?}")),
        }
    }

    /// A server whose node A has died with these sessions in its lease; B and C live.
    pub(super) fn with_dead(cells: &[Cell]) -> Self {
        let mut world = Self::new();
        world.set_view(&[A, B, C], &[]);
        world.join(&[A, B, C]);
        world.lease(A, cells);
        world.set_view(&[B, C], &[(A, false)]);
        world.set_view(&[B, C], &[(A, true)]);
        world
    }

    /// Nodes tell a server that is new to them that they hold no claims.
    pub(super) fn join(&mut self, nodes: &[Incarnation]) {
        for node in nodes {
            let epoch = self.server.carried_out;
            let answer =
                self.ask_node(*node, ToServer::RegisterClaims { epoch, ids: Vec::new(), last: true });
            assert_eq!(answer, FromServer::Done);
        }
    }
}

pub(super) const LEASE_MEMORY: RemoteMemory = RemoteMemory { address: 0x1000, bytes: LEASE_BYTES, key: 7 };

/// What the device answers for a link.
pub(super) fn server_end(link: LinkNumber) -> Endpoint {
    Endpoint { qp_number: 100 + link.0 as u32, mtu: 3, ..Endpoint::default() }
}

/// A cell as a node writes it.
pub(super) fn cell(session: SessionId, version: Version, state: CellState) -> Cell {
    let live = state == CellState::Live;
    Cell {
        id: session,
        sequence: Sequence(1),
        version,
        state,
        block: BlockOffset(0),
        archive_bytes: if live { 100 } else { 0 },
        expiry_ms: START_MS + 60_000,
        checksum: ArchiveChecksum::None,
    }
}

pub(super) fn live(session: SessionId, at: Version) -> Cell {
    cell(session, at, CellState::Live)
}

pub(super) fn granted(at: Version, live: bool) -> ClaimAnswer {
    ClaimAnswer::Granted(Some(SealedCopy { version: at, live, expiry_ms: START_MS + 60_000 }))
}
