//! A cluster in one process: real caches, leases and sealed indexes; a server that answers like a session
//! server; a clock that the test moves. Nothing happens by itself: the test publishes views, sweeps and
//! adopts.

use super::slow::{SlowLink, Slowness, Wire};
use crate::archive::{ArchiveLimits, Value, ValueRef};
use crate::cache::{Cache, CacheSpec};
use crate::config::Config;
use crate::control::message::{ClaimAnswer, FetchedArchive, FromServer, SealedCopy, ToServer};
use crate::control::stream::Stream;
use crate::error::{Error, ErrorKind, Origin, Result};
use crate::ident::{Cookie, Epoch, Incarnation, SessionId};
use crate::lease::{CELL_BYTES, Cell, LeaseGeometry, LeaseHeader, LeaseIndex, SealedIndex};
use crate::node::OpenMode;
use crate::node::clock::Clock;
use crate::node::host::Host;
use crate::node::open::{self, Found, OpenSession};
use crate::node::servers::{Lifeline, OpenedLink, Servers};
use crate::node::sweep::{Pace, Swept, sweep};
use crate::node::{Ack, Committed, adopt};
use crate::transport::chaos::{Card, Manner};
use crate::transport::{Region, memory, shm};
use crate::view::{DeadEntry, NodeEntry, NodeState, ServerEntry, View};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Time that stands still until the test moves it.
pub struct TestClock {
    ms: AtomicU64,
}

impl TestClock {
    pub fn advance_ms(&self, ms: u64) {
        self.ms.fetch_add(ms, Ordering::Relaxed);
    }

    pub fn ms(&self) -> u64 {
        self.ms.load(Ordering::Relaxed)
    }
}

impl Clock for TestClock {
    fn monotonic_ns(&self) -> u64 {
        self.ms.load(Ordering::Relaxed) * 1_000_000
    }

    fn unix_ms(&self) -> u64 {
        self.ms.load(Ordering::Relaxed)
    }
}

struct Lease {
    number: u64,
    geometry: LeaseGeometry,
    lease: memory::ServerLease,
}

/// A session server, as far as a node sees it.
#[derive(Default)]
pub struct TestServer {
    pub incarnation: Incarnation,
    leases: HashMap<Incarnation, Lease>,
    nodes: HashMap<u64, Incarnation>,
    pub index: SealedIndex,
    pub claims: HashMap<SessionId, Incarnation>,
    /// What nodes asked, in order: the asker and the sort of request.
    pub log: Vec<(Incarnation, &'static str)>,
    /// Answers nothing.
    pub is_down: bool,
    /// Slots of the leases that it grants.
    pub slots: u32,
    /// Gives the second session's archive for the first.
    pub instead: Option<(SessionId, SessionId)>,
    /// Its links behave as RDMA does.
    pub slowness: Option<Slowness>,
    /// Links of that kind, in the order of their numbers, from 1.
    pub wires: Vec<Arc<Wire>>,
    /// Destroys its end of a link when asked whether it is gone, if the node has ended its lifeline.
    pub notices_ends: bool,
    /// Links that nodes have asked for.
    pub openings: u32,
    /// Its links are those of a card that obeys only what RDMA promises.
    pub chaos: Option<Manner>,
    /// The card of each node's lease.
    cards: HashMap<Incarnation, Arc<Card>>,
    /// The server's ends of the lifelines of such links.
    lifelines: Vec<UnixStream>,
}

impl TestServer {
    /// Seals a node's lease and indexes it.
    pub fn seal(&mut self, node: Incarnation) {
        if let Some(Lease { number, lease, .. }) = self.leases.get(&node) {
            lease.seal();
            if let Some(card) = self.cards.get(&node) {
                card.fence();
            }
            let scan = lease.scan(&ArchiveLimits::default()).unwrap();
            self.index.insert(*number, LeaseIndex::new(&scan));
            self.nodes.insert(*number, node);
        }
        self.claims.retain(|_, claimant| *claimant != node);
    }

    /// Seals without looking: what a zombie meets.
    pub fn set_seal_word(&self, node: Incarnation) {
        self.leases[&node].lease.seal();
    }

    pub fn unsettled(&self, node: Incarnation) -> u64 {
        self.lease_number(node).and_then(|number| self.index.lease(number)).map_or(0, LeaseIndex::unsettled)
    }

    /// Live copies of a sealed incarnation.
    pub fn live(&self, node: Incarnation) -> u64 {
        self.lease_number(node).and_then(|number| self.index.lease(number)).map_or(0, LeaseIndex::live)
    }

    /// The cells that lie in a node's lease.
    pub fn cells(&self, node: Incarnation) -> Vec<Cell> {
        let Lease { lease, geometry, .. } = &self.leases[&node];
        let file = std::fs::File::from(lease.fd().try_clone_to_owned().unwrap());
        let mut slots = vec![0; geometry.slot_count as usize * 2 * CELL_BYTES];
        file.read_exact_at(&mut slots, geometry.slots_offset()).unwrap();
        let cells = slots.chunks_exact(CELL_BYTES).map(|cell| cell.try_into().unwrap());
        cells.filter_map(|cell| Cell::decode(cell).unwrap()).collect()
    }

    fn lease_number(&self, node: Incarnation) -> Option<u64> {
        self.nodes.iter().find(|(_, sealed)| **sealed == node).map(|(number, _)| *number)
    }

    fn answer(&mut self, node: Incarnation, request: &ToServer) -> Result<FromServer> {
        if self.is_down {
            return Err(Error::new(ErrorKind::Unreachable, Origin::Server, "down"));
        }
        if self.nodes.values().any(|sealed| *sealed == node) {
            return Err(Error::new(ErrorKind::OwnershipLost, Origin::Server, "the incarnation is over"));
        }
        let (sort, answer) = match request {
            ToServer::Claim { ids, .. } => {
                let answers = ids.iter().map(|id| self.claim(node, id)).collect();
                ("claim", FromServer::Claims(answers))
            }
            ToServer::Unclaim { ids } => {
                ids.iter().for_each(|id| {
                    if self.claims.get(id) == Some(&node) {
                        self.claims.remove(id);
                    }
                });
                ("unclaim", FromServer::Done)
            }
            ToServer::RegisterClaims { ids, .. } => {
                self.claims.extend(ids.iter().map(|id| (*id, node)));
                ("register", FromServer::Done)
            }
            ToServer::Fetch { ids } => {
                let archives = ids.iter().filter_map(|id| self.fetch(node, id)).collect();
                ("fetch", FromServer::Archives(archives))
            }
            ToServer::ListSealed { incarnation, cursor } => {
                assert_eq!(*cursor, 0);
                let index = self.lease_number(*incarnation).and_then(|number| self.index.lease(number));
                let copies = index.map_or(&[][..], LeaseIndex::copies).iter();
                let sessions = copies
                    .filter(|copy| copy.live && !copy.settled)
                    .map(|copy| (copy.id, copy.version, copy.expiry_ms))
                    .collect();
                ("list", FromServer::Sealed { sessions, next: None })
            }
            ToServer::Settle { sessions } => {
                sessions.iter().for_each(|(id, version)| self.index.settle(id, *version));
                ("settle", FromServer::Done)
            }
            ToServer::Destroyed { sessions } => {
                for (id, version) in sessions {
                    self.index.destroy(id, *version);
                    self.claims.remove(id);
                }
                ("destroyed", FromServer::Done)
            }
            ToServer::ProcessGone { link: None, .. } => ("gone", FromServer::Gone(true)),
            ToServer::ProcessGone { link: Some(number), .. } if self.chaos.is_some() => {
                let gone = matches!(self.lifelines[*number as usize - 1].read(&mut [0]), Ok(0));
                if gone {
                    self.cards[&node].destroy(*number);
                }
                ("link gone", FromServer::Gone(gone))
            }
            ToServer::ProcessGone { link: Some(number), .. } => {
                let wire = &self.wires[*number as usize - 1];
                let gone = self.notices_ends && wire.is_abandoned();
                if gone {
                    wire.destroy();
                }
                ("link gone", FromServer::Gone(gone))
            }
            ToServer::Beat
            | ToServer::SetView(_)
            | ToServer::Lease
            | ToServer::Connect { .. }
            | ToServer::FetchStaged { .. } => unreachable!(),
        };
        self.log.push((node, sort));
        Ok(answer)
    }

    fn claim(&mut self, node: Incarnation, id: &SessionId) -> ClaimAnswer {
        let claimant = *self.claims.entry(*id).or_insert(node);
        if claimant != node {
            return ClaimAnswer::Elsewhere(claimant);
        }
        ClaimAnswer::Granted(self.index.find(id).map(|(_, copy)| SealedCopy {
            version: copy.version,
            live: copy.live,
            expiry_ms: copy.expiry_ms,
        }))
    }

    fn fetch(&self, node: Incarnation, id: &SessionId) -> Option<FetchedArchive> {
        if self.claims.get(id) != Some(&node) {
            return None;
        }
        let (number, copy) = self.index.find(id)?;
        let lease = self.leases.values().find(|lease| lease.number == number)?;
        let mut fetched = lease.lease.fetch(copy, &ArchiveLimits::default());
        if let Some((_, other)) = self.instead.filter(|(first, _)| first == id) {
            let (_, copy) = self.index.find(&other).unwrap();
            fetched = lease.lease.fetch(copy, &ArchiveLimits::default());
        }
        Some(FetchedArchive {
            id: *id,
            version: copy.version,
            expiry_ms: copy.expiry_ms,
            error: fetched.as_ref().err().map(ToString::to_string),
            archive: fetched.unwrap_or_default(),
        })
    }

    fn grant(
        &mut self,
        config: &Config,
        node: &str,
        incarnation: Incarnation,
        cache: &Arc<dyn Region>,
    ) -> Result<OpenedLink> {
        self.openings += 1;
        if self.is_down {
            return Err(Error::new(ErrorKind::Unreachable, Origin::Server, "down"));
        }
        if self.nodes.values().any(|sealed| *sealed == incarnation) {
            return Err(Error::new(ErrorKind::OwnershipLost, Origin::Server, "the incarnation is over"));
        }
        let number = self.leases.len() as u64 + 1;
        if !self.leases.contains_key(&incarnation) {
            let geometry = LeaseGeometry {
                slot_count: self.slots,
                heap_bytes: config.memory.lease_bytes,
                chunk_bytes: config.session.archive_bytes_max.max(1 << 20) as u64,
            };
            let header = LeaseHeader {
                geometry,
                node: node.to_owned(),
                node_incarnation: incarnation,
                server_incarnation: self.incarnation,
            };
            self.leases
                .insert(incarnation, Lease { number, geometry, lease: memory::create(&header, false)? });
        }
        let lease = &self.leases[&incarnation];
        if let Some(manner) = self.chaos {
            let card = match self.cards.entry(incarnation) {
                Entry::Occupied(card) => card.into_mut(),
                Entry::Vacant(none) => none.insert(Card::new(&lease.lease, manner)?),
            };
            let link = Arc::new(card.connect());
            let (node_end, server_end) = UnixStream::pair().unwrap();
            server_end.set_nonblocking(true).unwrap();
            self.lifelines.push(server_end);
            let number = Some(link.number());
            let lifeline = Some(Arc::new(Lifeline::new(Stream::accepted(node_end)?)?));
            return Ok(OpenedLink { link, lease: lease.number, number, lifeline });
        }
        let fd = lease.lease.fd().try_clone_to_owned().unwrap();
        let link = shm::map(fd, incarnation, self.incarnation)?;
        if let Some(slowness) = self.slowness {
            let (wire, lifeline) = Wire::new(link, cache.clone(), slowness);
            self.wires.push(wire.clone());
            let number = Some(self.wires.len() as u64);
            let link = Arc::new(SlowLink(wire));
            return Ok(OpenedLink { link, lease: lease.number, number, lifeline: Some(lifeline) });
        }
        Ok(OpenedLink { link: Arc::new(link), lease: lease.number, number: None, lifeline: None })
    }
}

/// All servers by incarnation, those that are gone included.
type AllServers = Arc<Mutex<HashMap<Incarnation, TestServer>>>;

struct NodesServers {
    all: AllServers,
    config: Arc<Config>,
    node: String,
    incarnation: Incarnation,
}

impl Servers for NodesServers {
    fn call(&self, server: &ServerEntry, request: &ToServer) -> Result<FromServer> {
        self.all.lock().unwrap().get_mut(&server.incarnation).unwrap().answer(self.incarnation, request)
    }

    fn open_link(&self, server: &ServerEntry, cache: &Arc<dyn Region>) -> Result<OpenedLink> {
        let mut all = self.all.lock().unwrap();
        let server = all.get_mut(&server.incarnation).unwrap();
        server.grant(&self.config, &self.node, self.incarnation, cache)
    }
}

pub struct World {
    pub clock: Arc<TestClock>,
    pub config: Arc<Config>,
    pub view: View,
    servers: AllServers,
    pub nodes: HashMap<String, Arc<Host>>,
    next_incarnation: u64,
    /// Of the servers that are added.
    pub slowness: Option<Slowness>,
    /// Likewise; each server has a seed of its own.
    pub chaos: Option<Manner>,
}

impl World {
    /// So many servers `s1`, `s2`, ... and nodes `n1`, `n2`, ...; all linked, with mandates.
    pub fn new(servers: usize, nodes: usize, copies: u32) -> Self {
        Self::with(servers, nodes, copies, "wait_ms = 100")
    }

    /// The same, with links that behave as RDMA does.
    pub fn slow(servers: usize, nodes: usize, copies: u32, wait_ms: u64, slowness: Slowness) -> Self {
        Self::slow_with(servers, nodes, copies, &format!("wait_ms = {wait_ms}"), slowness)
    }

    pub fn slow_with(servers: usize, nodes: usize, copies: u32, session: &str, slowness: Slowness) -> Self {
        Self::make(servers, nodes, copies, session, Some(slowness), None)
    }

    /// The same, with links over cards that obey only what RDMA promises. Only node n1 may push.
    pub fn chaotic(servers: usize, copies: u32, wait_ms: u64, manner: Manner) -> Self {
        Self::make(servers, 1, copies, &format!("wait_ms = {wait_ms}"), None, Some(manner))
    }

    pub fn with(servers: usize, nodes: usize, copies: u32, session: &str) -> Self {
        Self::make(servers, nodes, copies, session, None, None)
    }

    fn make(
        servers: usize,
        nodes: usize,
        copies: u32,
        session: &str,
        slowness: Option<Slowness>,
        chaos: Option<Manner>,
    ) -> Self {
        let mut text = format!(
            "[cluster]\nname = \"t\"\nrun_dir = \"/nowhere\"\ncopies = {copies}\n\
             cookie_keys = [\"{}\"]\n[director]\n[session]\narchive_bytes_max = 65536\n{session}\n\
             [memory]\nsessions_max = 1024\ncache_bytes = 8388608\nlease_bytes = 8388608\n",
            "ab".repeat(32)
        );
        for server in 1..=servers.max(3) {
            text += &format!("[[server]]\nname = \"s{server}\"\n");
        }
        for node in 1..=nodes {
            text += &format!("[[node]]\nname = \"n{node}\"\naddress = \"127.0.0.1:{node}\"\n");
        }
        let config = Arc::new(Config::parse(Path::new("test.toml"), &text).unwrap());
        let view = View { epoch: Epoch { term: 1, number: 1 }, copies, ..View::default() };
        let mut world = Self {
            clock: Arc::new(TestClock { ms: AtomicU64::new(1_000_000) }),
            config,
            view,
            servers: AllServers::default(),
            nodes: HashMap::new(),
            next_incarnation: 100,
            slowness,
            chaos,
        };
        for server in 1..=servers {
            world.add_server(&format!("s{server}"));
        }
        for node in 1..=nodes {
            world.add_node(&format!("n{node}"));
        }
        world.publish();
        world
    }

    fn incarnation(&mut self) -> Incarnation {
        self.next_incarnation += 1;
        Incarnation(self.next_incarnation)
    }

    /// Puts a new life of a server into the view (not yet published).
    pub fn add_server(&mut self, name: &str) -> Incarnation {
        let incarnation = self.incarnation();
        self.view.servers.retain(|server| server.name != name);
        self.view.servers.push(ServerEntry {
            name: name.into(),
            incarnation,
            weight: 1,
            socket: String::new(),
            control: None,
        });
        self.view.servers.sort_by(|a, b| a.name.cmp(&b.name));
        let slots = self.config.memory.sessions_max;
        let (slowness, notices_ends) = (self.slowness, true);
        let chaos = self.chaos.map(|manner| Manner { seed: manner.seed ^ incarnation.0 << 32, ..manner });
        let server =
            TestServer { incarnation, slots, slowness, notices_ends, chaos, ..TestServer::default() };
        self.servers.lock().unwrap().insert(incarnation, server);
        incarnation
    }

    /// Begins a new life of a node and puts it into the view (not yet published).
    pub fn add_node(&mut self, name: &str) -> Arc<Host> {
        let incarnation = self.incarnation();
        self.view.nodes.retain(|node| node.name != name);
        self.view.nodes.push(NodeEntry {
            name: name.into(),
            incarnation,
            state: NodeState::Up,
            address: String::new(),
        });
        self.view.nodes.sort_by(|a, b| a.name.cmp(&b.name));
        let spec = CacheSpec::from_config(&self.config, name, incarnation);
        let host = self.process_of(Cache::anonymous(&spec).unwrap(), name);
        self.nodes.insert(name.to_owned(), host.clone());
        host
    }

    /// Another process of a node.
    pub fn add_process(&self, name: &str) -> Arc<Host> {
        let host = self.process_of(self.nodes[name].cache.sibling().unwrap(), name);
        assert!(host.open_links(false));
        host
    }

    fn process_of(&self, cache: Cache, name: &str) -> Arc<Host> {
        let servers = NodesServers {
            all: self.servers.clone(),
            config: self.config.clone(),
            node: name.to_owned(),
            incarnation: cache.incarnation(),
        };
        Arc::new(Host::new(cache, self.config.clone(), name, self.clock.clone(), Arc::new(servers)))
    }

    /// Raises the epoch and lets every node follow, as its steward would.
    pub fn publish(&mut self) {
        self.view.epoch.number += 1;
        for node in self.view.nodes.clone() {
            let host = &self.nodes[&node.name];
            for server in host.cache.books() {
                if self.view.server(server.incarnation).is_none() {
                    host.cache.retire_book(server.index);
                }
            }
            host.publish(&self.view).unwrap();
            host.open_links(true);
            self.mandate(&node.name);
        }
    }

    /// Gives a node a mandate.
    pub fn mandate(&self, name: &str) {
        let until_ns = self.clock.monotonic_ns() + self.config.timing.mandate().as_nanos() as u64;
        self.nodes[name].cache.set_mandate_until_ns(until_ns);
    }

    pub fn host(&self, name: &str) -> Arc<Host> {
        self.nodes[name].clone()
    }

    /// Works on the present life of a server.
    pub fn on_server<T>(&self, name: &str, work: impl FnOnce(&mut TestServer) -> T) -> T {
        let incarnation = self.view.servers.iter().find(|server| server.name == name).unwrap().incarnation;
        let mut all: MutexGuard<'_, _> = self.servers.lock().unwrap();
        work(all.get_mut(&incarnation).unwrap())
    }

    /// Takes a server out of the view (not yet published).
    pub fn drop_server(&mut self, name: &str) {
        self.on_server(name, |server| server.is_down = true);
        self.view.servers.retain(|server| server.name != name);
    }

    /// A node dies: its leases are sealed, the view says so and is published.
    pub fn end_node(&mut self, name: &str) -> Incarnation {
        let incarnation = self.lose_node(name);
        self.seal_node(incarnation);
        incarnation
    }

    /// A node dies, and nothing is sealed yet.
    pub fn lose_node(&mut self, name: &str) -> Incarnation {
        let incarnation = self.host(name).incarnation();
        self.view.nodes.retain(|node| node.name != name);
        self.view.dead.push(DeadEntry { name: name.into(), incarnation, sealed: false });
        self.publish();
        incarnation
    }

    /// Every server of the view seals the leases of a dead node, and the view says so.
    pub fn seal_node(&mut self, incarnation: Incarnation) {
        for server in self.view.servers.clone() {
            self.on_server(&server.name, |server| server.seal(incarnation));
        }
        for dead in &mut self.view.dead {
            dead.sealed |= dead.incarnation == incarnation;
        }
        self.publish();
    }

    /// The card of a node's lease at a server.
    pub fn card(&self, server: &str, node: &str) -> Arc<Card> {
        let node = self.host(node).incarnation();
        self.on_server(server, |server| server.cards[&node].clone())
    }

    /// The newest link of a server.
    pub fn wire(&self, server: &str) -> Arc<Wire> {
        self.on_server(server, |server| server.wires.last().unwrap().clone())
    }

    pub fn sweep(&self, name: &str) -> Swept {
        let stop = AtomicBool::new(false);
        sweep(&self.host(name), &mut Pace::new(0, &stop)).unwrap()
    }

    pub fn adopt(&self, name: &str, dead: Incarnation) -> adopt::Adopted {
        let stop = AtomicBool::new(false);
        adopt::adopt(&self.host(name), dead, &mut Pace::new(0, &stop)).unwrap()
    }
}

/// A new session with one number in it, committed.
pub fn create(host: &Arc<Host>, number: i64) -> (Cookie, Committed) {
    let mut session = open::create(host, None).unwrap();
    session.set("n", Value::I64(number)).unwrap();
    let committed = session.commit(Ack::All).unwrap();
    (Cookie { id: session.facts.id, host: host.incarnation() }, committed)
}

/// How long [`find`] waits for a session; shorter than a node's silence.
pub const FIND_WAIT: Duration = Duration::from_millis(200);

pub fn find(host: &Arc<Host>, cookie: &Cookie) -> Result<Found> {
    let deadline = Instant::now() + FIND_WAIT;
    open::blocking(host, cookie, OpenMode::Exclusive, deadline)
}

pub fn open(host: &Arc<Host>, cookie: &Cookie) -> OpenSession {
    match find(host, cookie) {
        Ok(Found::Session(session)) => session,
        Ok(Found::Missing) => panic!("missing"),
        Ok(Found::Elsewhere(node)) => panic!("elsewhere: {node:?}"),
        Err(error) => panic!("{error}"),
    }
}

/// What the session's number is, or why it cannot be read.
pub fn number(host: &Arc<Host>, cookie: &Cookie) -> Result<i64, String> {
    match find(host, cookie) {
        Ok(Found::Session(session)) => match session.get("n") {
            Some(ValueRef::I64(number)) => Ok(number),
            other => Err(format!("{other:?}")),
        },
        Ok(Found::Missing) => Err("missing".into()),
        Ok(Found::Elsewhere(node)) => Err(format!("elsewhere: {node:?}")),
        Err(error) => Err(error.to_string()),
    }
}

/// Changes the session's number and commits.
pub fn change(host: &Arc<Host>, cookie: &Cookie, number: i64) -> Result<Committed> {
    let mut session = open(host, cookie);
    session.set("n", Value::I64(number))?;
    session.commit(Ack::All)
}
