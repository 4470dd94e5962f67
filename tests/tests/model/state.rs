//! A state of the cluster, in as few bytes as the protocol needs.
//!
//! One session, two nodes with several lives each, two session servers, one director. Numbers are small, but
//! they are compared by the production's own types.

use selvage_fabric::ident;
use std::cmp::Ordering;
use std::hash::{Hash, Hasher};

/// Nodes, by name.
pub const NODES: usize = 2;
/// Session servers, by name.
pub const SERVERS: usize = 2;
/// Lives of nodes that there can be in all: two at the start, and one more after each fault, and one spare.
pub const LIVES: usize = 5;

/// A life of a node: its number in [`State::nodes`], counted from 1; 0 is none.
pub type Life = u8;

/// A set of small numbers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Set(pub u8);

impl Set {
    pub fn has(self, number: usize) -> bool {
        self.0 & (1 << number) != 0
    }

    pub fn add(&mut self, number: usize) {
        self.0 |= 1 << number;
    }

    pub fn remove(&mut self, number: usize) {
        self.0 &= !(1 << number);
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..8).filter(move |number| self.has(*number))
    }
}

/// A view's epoch; term 0 is none.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Epoch {
    pub term: u8,
    pub number: u8,
}

impl Epoch {
    fn real(self) -> ident::Epoch {
        ident::Epoch { term: self.term.into(), number: self.number.into() }
    }
}

impl PartialOrd for Epoch {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Epoch {
    fn cmp(&self, other: &Self) -> Ordering {
        self.real().cmp(&other.real())
    }
}

/// A session's version; ownership epoch 0 is none.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Version {
    pub epoch: u8,
    pub counter: u8,
}

impl Version {
    pub const NONE: Self = Self { epoch: 0, counter: 0 };

    pub fn next(self) -> Self {
        Self { counter: self.counter + 1, ..self }
    }

    fn real(self) -> ident::Version {
        ident::Version { epoch: self.epoch.into(), counter: self.counter.into() }
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        self.real().cmp(&other.real())
    }
}

/// What a slot's newest cell says of the session; without a version nothing, or "moved".
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Cell {
    pub version: Version,
    pub gone: bool,
}

impl Cell {
    pub fn is_live(self) -> bool {
        self.version != Version::NONE && !self.gone
    }

    /// The higher version wins; of the same, the tombstone.
    pub fn beats(self, other: Self) -> bool {
        (self.version, self.gone) > (other.version, other.gone)
    }

    pub fn or_newer(self, other: Self) -> Self {
        if other.beats(self) { other } else { self }
    }
}

/// A view: lives of the nodes and of the servers by name, 0 where none is up.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct View {
    pub epoch: Epoch,
    pub nodes: [Life; NODES],
    pub servers: [u8; SERVERS],
    /// Ended lives whose leases are not released.
    pub dead: Set,
    /// Those of them that every server has sealed.
    pub sealed: Set,
}

impl View {
    pub fn has_node(&self, life: Life) -> bool {
        self.nodes.contains(&life)
    }

    pub fn all_sealed(&self) -> bool {
        self.dead == self.sealed
    }

    pub fn up(&self) -> impl Iterator<Item = usize> {
        let servers = self.servers;
        (0..SERVERS).filter(move |server| servers[*server] != 0)
    }
}

/// Packed, because hashing is most of the work.
impl Hash for View {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        let Self { epoch: Epoch { term, number }, nodes: [n0, n1], servers: [s0, s1], dead, sealed } = *self;
        hasher.write_u64(u64::from_le_bytes([term, number, n0, n1, s0, s1, dead.0, sealed.0]));
    }
}

/// Whether somebody runs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub enum Run {
    #[default]
    Over,
    Up,
    Paused,
}

/// The session in a node's cache.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub enum Entry {
    #[default]
    None,
    Adopting,
    Live,
    Gone,
}

/// What the user of a node waits for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub enum Wish {
    #[default]
    None,
    Commit,
    Destroy,
}

/// Where a node has put the session at a server.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Place {
    /// The server's life; 0: nothing was ever posted.
    pub server: u8,
    pub acked: Version,
    /// A push under way.
    pub pushing: Version,
    /// A push that was given up and may still arrive, in the quarantined slot.
    pub late: Cell,
    /// A slot is in quarantine.
    pub doubt: bool,
}

impl Hash for Place {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        let Self { server, acked, pushing, late, doubt } = *self;
        let flags = u8::from(late.gone) | u8::from(doubt) << 1 | server << 2;
        let versions = [acked, pushing, late.version].map(|version| [version.epoch, version.counter]);
        let [[a, b], [c, d], [e, f]] = versions;
        hasher.write_u64(u64::from_le_bytes([a, b, c, d, e, f, flags, 0]));
    }
}

/// The adoption that a node is at.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Adoption {
    /// The view that it goes by.
    pub plan: View,
    /// The servers that have granted the claim.
    pub asked: Set,
    pub found: Cell,
    /// The servers that have what was found.
    pub at: Set,
}

/// A life of a node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Node {
    pub name: u8,
    pub run: Run,
    /// It slept through its own end.
    pub woken: bool,
    /// The director's term that it was registered in.
    pub born: u8,
    /// The director takes its messages as this life's.
    pub linked: bool,
    pub mandate: bool,
    pub view: View,
    pub entry: Entry,
    pub version: Version,
    pub adopted: bool,
    pub wish: Wish,
    pub places: [Place; SERVERS],
    pub adoption: Adoption,
    /// Servers that know that the adopted session is gone.
    pub declared: Set,
}

impl Node {
    pub fn is_pushing(&self) -> bool {
        self.places.iter().any(|place| place.pushing != Version::NONE)
    }
}

/// What has become of a lease.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub enum LeaseState {
    #[default]
    None,
    Open,
    Sealed,
}

/// A node life's lease at a server, and the session in it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Lease {
    pub state: LeaseState,
    pub cell: Cell,
    pub settled: bool,
}

impl Hash for Lease {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        let Self { state, cell: Cell { version, gone }, settled } = *self;
        let flags = state as u8 | u8::from(gone) << 2 | u8::from(settled) << 3;
        hasher.write_u32(u32::from_le_bytes([version.epoch, version.counter, flags, 0]));
    }
}

/// A session server.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Server {
    pub run: Run,
    pub life: u8,
    pub view: View,
    pub leases: [Lease; LIVES],
    /// Who has claimed the session.
    pub claim: Life,
    /// Node lives that have not told their claims since it joined.
    pub unregistered: Set,
}

impl Server {
    /// The best copy in sealed leases.
    pub fn best(&self) -> Cell {
        let sealed = self.leases.iter().filter(|lease| lease.state == LeaseState::Sealed);
        sealed.fold(Cell::default(), |best, lease| best.or_newer(lease.cell))
    }
}

/// The director. While it recovers it has only heard reports.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Director {
    pub run: Run,
    pub recovering: bool,
    pub epoch: Epoch,
    pub view: View,
    pub nodes: [Life; NODES],
    pub servers: [u8; SERVERS],
    /// The newest epoch that the server's life has confirmed.
    pub confirmed: [Epoch; SERVERS],
    /// Lives of servers up to this one never come back.
    pub barred: [u8; SERVERS],
    /// The first report on the present connection was taken in, so views may be sent.
    pub reported: Set,
    /// During recovery: the life and the view that were reported.
    pub reports: [(u8, View); SERVERS],
    pub dead: Set,
    pub sealed: Set,
    /// A server left the view before it confirmed that it has sealed.
    pub unconfirmed: Set,
    /// The epoch that ended a dead life.
    pub ended: [Epoch; LIVES],
    /// Nodes that no server told about may still resume.
    pub grace: bool,
    pub floor: Epoch,
    /// Some server has told what the cluster was, or a node went on without any.
    pub based: bool,
    /// The term that it began with.
    pub born: u8,
    pub changed: bool,
    /// A server has left since the last view, and the first view without the last that has.
    pub shrinks: bool,
    pub shrunk: Epoch,
}

/// What must not be.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Wrong {
    /// A life that is not the owner acked what the owner does not have.
    StrangerAcked,
    /// Somebody took over less than was acked at a server that is up.
    AckedLost,
    /// The session was served after it was told that it is gone.
    CameBack,
    /// A view's epoch was given twice, or a session's ownership epoch that a server has seen.
    EpochReused,
}

/// What an all-knowing bystander knows.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Truth {
    /// The life that took the session over last.
    pub owner: Life,
    /// The life that the user's cookie names, while anybody remembers it.
    pub first: Life,
    /// What the owner found.
    pub base: Version,
    /// The newest version whose ack was told, and by server the life that has acked it or something newer.
    pub told: Version,
    pub told_at: [u8; SERVERS],
    /// It was told that the session is gone.
    pub gone: bool,
    /// The highest epoch of a view that was ever sent.
    pub top: Epoch,
    pub wrong: Option<Wrong>,
}

/// The whole.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct State {
    pub director: Director,
    pub servers: [Server; SERVERS],
    pub nodes: [Node; LIVES],
    /// Lives of nodes so far.
    pub born: u8,
    /// Views on their way, in order.
    pub queue: Vec<View>,
    /// Connections that are cut: director and node by name, director and server, node and server.
    pub cut: Set,
    pub faults: u8,
    pub commits: u8,
    pub destroyed: bool,
    pub truth: Truth,
}

/// A connection that can be cut.
pub fn director_node(name: usize) -> usize {
    name
}

/// A connection that can be cut.
pub fn director_server(server: usize) -> usize {
    NODES + server
}

/// A connection that can be cut.
pub fn node_server(name: usize, server: usize) -> usize {
    NODES + SERVERS + name * SERVERS + server
}

impl State {
    pub fn node(&self, life: Life) -> &Node {
        &self.nodes[usize::from(life) - 1]
    }

    pub fn node_mut(&mut self, life: Life) -> &mut Node {
        &mut self.nodes[usize::from(life) - 1]
    }

    pub fn lives(&self) -> impl Iterator<Item = Life> + use<> {
        1..=self.born
    }

    /// Whether this node life and the director hear each other.
    pub fn hears_director(&self, life: Life) -> bool {
        let node = self.node(life);
        node.run == Run::Up
            && self.director.run == Run::Up
            && !self.cut.has(director_node(usize::from(node.name)))
    }

    /// Whether the director and a server hear each other.
    pub fn hears_server(&self, server: usize) -> bool {
        self.director.run == Run::Up
            && self.servers[server].run == Run::Up
            && !self.cut.has(director_server(server))
    }

    pub fn is_cut(&self, life: Life, server: usize) -> bool {
        self.cut.has(node_server(usize::from(self.node(life).name), server))
    }

    /// Whether a node life can ask the server's life of its view something.
    pub fn can_ask(&self, life: Life, server: usize, incarnation: u8) -> bool {
        let asked = &self.servers[server];
        incarnation != 0
            && self.node(life).run == Run::Up
            && asked.run == Run::Up
            && asked.life == incarnation
            && !self.is_cut(life, server)
    }

    pub fn go_wrong(&mut self, wrong: Wrong) {
        self.truth.wrong = self.truth.wrong.or(Some(wrong));
    }
}
