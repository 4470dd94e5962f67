//! A session server: the production's decisions, and what its threads and memory do in the product.

use crate::link::{Lease, LinkId, Wire};
use crate::mutant::{self, Broken, What};
use crate::net::{self, ConnId, Host, Message, Party};
use crate::schedule::{self, MS, Pid, Time};
use crate::world::{World, archive_limits, cover, world};
use selvage_fabric::control::message::{Endpoint, FetchedArchive, FromServer, RemoteMemory, Role, ToServer};
use selvage_fabric::error::{Error, ErrorKind, Origin};
use selvage_fabric::ident::Incarnation;
use selvage_fabric::lease::{
    HeapMemory, LAYOUT_VERSION, LeaseGeometry, LeaseHeader, LeaseIndex, LeaseMemory, NODE_BEAT_OFFSET,
    SEAL_OFFSET, SEALED, SERVER_BEAT_OFFSET, SessionCopy, fetch,
};
use selvage_fabric::rules::{Rule, holds};
use selvage_session_server::decide::{
    Batch, ConnectionId, Effect, Event, LeaseNumber, LinkNumber, Params, Server as Decisions,
};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A configured server and its present process.
pub struct Server {
    pub name: String,
    pub host: Host,
    pub life: Option<Life>,
    /// It is no member any more, or not yet.
    pub removed: bool,
    boots: u64,
}

/// A server's process.
pub struct Life {
    pub pid: Pid,
    decisions: Decisions,
    pub leases: BTreeMap<LeaseNumber, Arc<Lease>>,
    /// Links by the server's number.
    links: BTreeMap<LinkNumber, LinkId>,
    /// The last beat of each lease's node, and when it was seen to move.
    beats: BTreeMap<LeaseNumber, (u64, Option<Time>)>,
    /// Processes that had a lease's memory and have no connection any more.
    watched: Vec<(Incarnation, u32)>,
    beat: u64,
}

const TICK: Time = 100 * MS;

impl Server {
    pub fn new(name: String, host: Host) -> Self {
        Self { name, host, life: None, removed: false, boots: 0 }
    }

    pub fn incarnation(&self) -> Option<Incarnation> {
        self.life.as_ref().map(|life| life.decisions.incarnation())
    }
}

/// Starts the server's process, empty.
pub fn start(index: usize) {
    let pid = world(|world| {
        let pid = world.new_process(world.servers[index].host);
        let geometry = geometry(world);
        let server = &mut world.servers[index];
        if world.mutant != Some(What::Other(Broken::ServerLifeRepeats)) {
            server.boots += 1;
        }
        let incarnation = Incarnation((server.boots << 32) + ((index as u64 + 1) << 40) + 1);
        let params = Params {
            name: server.name.clone(),
            incarnation,
            pid: pid.0,
            slot_count: geometry.slot_count,
            heap_bytes: geometry.heap_bytes,
            lease_bytes: geometry.total_bytes(),
            bytes_max: world.swarm.server_bytes_max * geometry.total_bytes(),
            clock_skew_ms: world.config.session.clock_skew_ms,
        };
        let life = Life {
            pid,
            decisions: Decisions::new(params),
            leases: BTreeMap::new(),
            links: BTreeMap::new(),
            beats: BTreeMap::new(),
            watched: Vec::new(),
            beat: 0,
        };
        world.servers[index].life = Some(life);
        world.trace(format!("server {} starts as {incarnation:?}", world.servers[index].name));
        pid
    });
    schedule::after(TICK, move || tick(index, pid));
}

/// Kills the server's process: its memory is gone.
pub fn kill(index: usize) {
    let Some(life) = world(|world| world.servers[index].life.take()) else { return };
    world(|world| {
        world.trace(format!("server {} is killed", world.servers[index].name));
        for link in life.links.values() {
            if let Some(wire) = world.wires.get_mut(link) {
                wire.destroy(false);
            }
        }
    });
    schedule::kill(life.pid);
    net::close_all_of(life.pid);
}

pub fn geometry(world: &World) -> LeaseGeometry {
    let chunk_bytes = 1 << 20;
    LeaseGeometry {
        slot_count: world.config.memory.sessions_max,
        heap_bytes: world.config.memory.lease_bytes / chunk_bytes * chunk_bytes,
        chunk_bytes,
    }
}

fn tick(index: usize, pid: Pid) {
    if !schedule::is_alive(pid) {
        return;
    }
    schedule::after(TICK, move || tick(index, pid));
    if schedule::is_paused(pid) {
        return;
    }
    let gone = world(|world| {
        let Some(life) = world.servers[index].life.as_mut() else { return Vec::new() };
        life.beat += 1;
        for lease in life.leases.values() {
            let _ = lease.memory.store_u64(SERVER_BEAT_OFFSET, life.beat);
        }
        life.look_at_beats();
        let (gone, left) = life.watched.iter().partition(|(_, pid)| !schedule::is_alive(Pid(*pid)));
        life.watched = left;
        gone
    });
    for (incarnation, pid) in gone {
        handle(index, Event::ProcessGone { incarnation, pid });
    }
    handle(index, Event::Tick);
}

/// A peer's hello has come.
pub fn opened(index: usize, conn: ConnId, role: Role, pid: u32, local: bool, greeted: Incarnation) {
    handle(index, Event::Opened { connection: ConnectionId(conn.0), role, pid, local, greeted });
}

pub fn request(index: usize, conn: ConnId, message: ToServer) {
    handle(index, Event::Request { connection: ConnectionId(conn.0), message });
}

pub fn closed(index: usize, conn: ConnId) {
    handle(index, Event::Closed { connection: ConnectionId(conn.0) });
}

/// Takes an event and carries out everything that follows, as `session-server`'s executor does.
fn handle(index: usize, event: Event) {
    let mut effects = VecDeque::from(step(index, event));
    while let Some(effect) = effects.pop_front() {
        if let Some(event) = execute(index, effect) {
            effects.extend(step(index, event));
        }
    }
}

fn step(index: usize, event: Event) -> Vec<Effect> {
    world(|world| {
        let Some(life) = world.servers[index].life.as_mut() else { return Vec::new() };
        let now_ms = schedule::clock_of(Some(life.pid), true) / 1_000_000;
        life.decisions.step(event, now_ms)
    })
}

fn answer(connection: ConnectionId, message: FromServer) {
    net::send(ConnId(connection.0), 1, Message::FromServer(message));
}

fn execute(index: usize, effect: Effect) -> Option<Event> {
    match effect {
        Effect::Reply { connection, mut message } => {
            if let FromServer::Report(report) = &mut message {
                world(|world| {
                    let Some(life) = world.servers[index].life.as_mut() else { return };
                    life.look_at_beats();
                    for (lease, (_, moved)) in report.leases.iter_mut().zip(life.beats.values()) {
                        lease.beat_age_ms = moved.map(|at| ((schedule::now() - at) / MS) as u32);
                    }
                });
            }
            answer(connection, message);
            None
        }
        Effect::SendLease { connection, lease, server, .. } => {
            let geometry = world(|world| geometry(world));
            let (slot_count, heap_bytes) = (geometry.slot_count, geometry.heap_bytes);
            let layout = LAYOUT_VERSION;
            answer(connection, FromServer::Lease { lease: lease.0, server, layout, slot_count, heap_bytes });
            None
        }
        Effect::Cut { connection } => {
            net::close(ConnId(connection.0), 1);
            // The product's thread notices its own end.
            Some(Event::Closed { connection })
        }
        Effect::MakeLease { lease, node, incarnation, server } => {
            let result = world(|world| make_lease(world, index, lease, node, incarnation, server));
            Some(Event::LeaseMade { lease, result })
        }
        Effect::Connect { link, connection, lease, .. } => {
            world(|world| connect(world, index, link, ConnId(connection.0), lease));
            Some(Event::LinkMade { link, result: Ok((Endpoint::default(), RemoteMemory::default())) })
        }
        Effect::SendLink { connection, link, lease, server, endpoint, memory } => {
            let LeaseGeometry { slot_count, heap_bytes, chunk_bytes } = world(|world| geometry(world));
            let (link, lease, layout) = (link.0, lease.0, LAYOUT_VERSION);
            let message = FromServer::Connected {
                link,
                lease,
                server,
                layout,
                slot_count,
                heap_bytes,
                chunk_bytes,
                endpoint,
                memory,
            };
            answer(connection, message);
            None
        }
        Effect::Disconnect { link, .. } => {
            world(|world| destroy_link(world, index, link, false));
            Some(Event::LinkClosed { link, result: Ok(()) })
        }
        Effect::Seal { lease } => {
            let (pid, time) = world(|world| {
                fence(world, index, lease);
                let pid = world.servers[index].life.as_ref().map(|life| life.pid);
                let time = world.swarm.seal_time;
                (pid, if time == 0 { 0 } else { world.random.below(time) })
            });
            if let Some(pid) = pid.filter(|_| time > 0) {
                cover("state: a seal takes its time");
                schedule::after(time, move || sealed_later(index, pid, lease));
                return None;
            }
            let (index, cells_bad) = world(|world| look(world, index, lease));
            Some(Event::Sealed { lease, index, cells_bad })
        }
        Effect::Release { lease, .. } => {
            if !mutant::is(Broken::LeaseKept) {
                world(|world| release(world, index, lease));
            }
            None
        }
        Effect::Fetch { connection, batch } => {
            let archives = world(|world| read(world, index, batch));
            Some(Event::Fetched { connection, archives })
        }
        Effect::Stage { connection, .. } => {
            let error = Error::new(ErrorKind::Unreachable, Origin::Server, "not simulated");
            Some(Event::Staged { connection, result: Err(error) })
        }
        Effect::WatchProcess { incarnation, pid } => {
            world(|world| {
                if let Some(life) = world.servers[index].life.as_mut() {
                    life.watched.push((incarnation, pid));
                }
            });
            None
        }
        Effect::ForgetProcess { incarnation, pid } => {
            world(|world| {
                if let Some(life) = world.servers[index].life.as_mut() {
                    life.watched.retain(|watched| *watched != (incarnation, pid));
                }
            });
            None
        }
    }
}

fn make_lease(
    world: &mut World,
    index: usize,
    number: LeaseNumber,
    node: String,
    node_incarnation: Incarnation,
    server_incarnation: Incarnation,
) -> Result<(), Error> {
    if world.random.chance(world.swarm.no_memory_per_mille) {
        world.cover("fault: no memory for a lease");
        return Err(Error::new(ErrorKind::Full, Origin::Transport, "the host has no memory"));
    }
    let geometry = geometry(world);
    let memory = HeapMemory::new(geometry.total_bytes());
    LeaseHeader { geometry, node, node_incarnation, server_incarnation }.write(&memory)?;
    let scanned = AtomicBool::new(false);
    let lease = Lease { memory, geometry, server: server_incarnation, node: node_incarnation, scanned };
    if let Some(life) = world.servers[index].life.as_mut() {
        life.leases.insert(number, Arc::new(lease));
        life.beats.insert(number, (0, None));
    }
    Ok(())
}

fn connect(world: &mut World, index: usize, link: LinkNumber, lifeline: ConnId, lease: LeaseNumber) {
    let host = world.servers[index].host;
    let Some(life) = world.servers[index].life.as_mut() else { return };
    let Some(lease) = life.leases.get(&lease).cloned() else { return };
    world.wire_last += 1;
    let id = LinkId(world.wire_last);
    life.links.insert(link, id);
    let node = world.node_host_of(lease.node);
    world.wires.insert(
        id,
        Wire::new(lease, (node, host), world.servers[index].life.as_ref().map_or(Pid(0), |life| life.pid)),
    );
    world.wires_by_lifeline.insert(lifeline, id);
}

fn destroy_link(world: &mut World, index: usize, link: LinkNumber, by_seal: bool) {
    let id = world.servers[index].life.as_ref().and_then(|life| life.links.get(&link).copied());
    if let Some(wire) = id.and_then(|id| world.wires.get_mut(&id)) {
        wire.destroy(by_seal);
    }
}

/// Links of a lease, by their identity of memory.
fn shut(world: &mut World, index: usize, lease: &Arc<Lease>) {
    let Some(life) = world.servers[index].life.as_ref() else { return };
    let links: Vec<LinkId> = life.links.values().copied().collect();
    for link in links {
        if let Some(wire) = world.wires.get_mut(&link).filter(|wire| wire.is_of(lease)) {
            wire.destroy(true);
        }
    }
}

/// A seal that takes its time ends, if its server lives and runs.
fn sealed_later(index: usize, pid: Pid, lease: LeaseNumber) {
    if !schedule::is_alive(pid) {
        return;
    }
    if schedule::is_paused(pid) {
        return schedule::after(10 * MS, move || sealed_later(index, pid, lease));
    }
    let (found, cells_bad) = world(|world| look(world, index, lease));
    handle(index, Event::Sealed { lease, index: found, cells_bad });
}

fn lease_of(world: &World, index: usize, number: LeaseNumber) -> Option<Arc<Lease>> {
    world.servers[index].life.as_ref()?.leases.get(&number).cloned()
}

/// The first part of a seal: from here on nothing counts any more.
fn fence(world: &mut World, index: usize, number: LeaseNumber) {
    world.cover("state: lease sealed");
    let Some(lease) = lease_of(world, index, number) else { return };
    let _ = lease.memory.store_u64(SEAL_OFFSET, SEALED);
    let fenced = world.mutant != Some(What::Other(Broken::SealWithoutFence));
    if holds(Rule::R2SealByView) && fenced {
        shut(world, index, &lease);
    }
}

/// The second: what counts.
fn look(world: &mut World, index: usize, number: LeaseNumber) -> (LeaseIndex, u64) {
    let empty = || LeaseIndex::new(&Default::default());
    let Some(lease) = lease_of(world, index, number) else { return (empty(), 0) };
    lease.scanned.store(true, Ordering::Relaxed);
    match LeaseIndex::scan(&lease.memory, &lease.geometry, &archive_limits()) {
        Ok((index, bad)) => {
            let cells_bad = bad.checksum + bad.meaning + bad.misplaced + bad.bounds + bad.archive;
            if cells_bad > 0 {
                world.cover("state: torn cell in a sealed lease");
            }
            (index, cells_bad)
        }
        Err(error) => {
            world.fail("scan", &format!("a sealed lease cannot be read: {error}"));
            (empty(), 0)
        }
    }
}

fn release(world: &mut World, index: usize, number: LeaseNumber) {
    let lease = world.servers[index].life.as_mut().and_then(|life| {
        life.beats.remove(&number);
        life.leases.remove(&number)
    });
    if let Some(lease) = lease {
        shut(world, index, &lease);
        let latest_ms = world.latest_ms();
        world.history.released((lease.server, lease.node), latest_ms);
        world.look_at_history();
    }
}

fn read(world: &mut World, index: usize, batch: Batch) -> Vec<FetchedArchive> {
    let mut archives = batch.answered;
    for (number, copy) in batch.copies {
        let lease = world.servers[index].life.as_ref().and_then(|life| life.leases.get(&number).cloned());
        let released = || Error::new(ErrorKind::Gone, Origin::Server, "its lease is released");
        let fetched = lease
            .ok_or_else(released)
            .and_then(|lease| fetch(&lease.memory, &lease.geometry, &copy, &archive_limits()));
        let error = fetched.as_ref().err().map(ToString::to_string);
        let SessionCopy { id, version, expiry_ms, .. } = copy;
        archives.push(FetchedArchive { id, version, expiry_ms, archive: fetched.unwrap_or_default(), error });
    }
    archives
}

impl Life {
    fn look_at_beats(&mut self) {
        for (number, lease) in &self.leases {
            let value = lease.memory.load_u64(NODE_BEAT_OFFSET).unwrap_or_default();
            let beat = self.beats.entry(*number).or_insert((0, None));
            if beat.0 != value {
                *beat = (value, Some(schedule::now()));
            }
        }
    }
}

impl Wire {
    fn is_of(&self, lease: &Arc<Lease>) -> bool {
        Arc::ptr_eq(self.lease(), lease)
    }
}

/// The director connects to a server's present process: its life, if it can be reached.
pub fn party(index: usize) -> Option<(Pid, Host, Party)> {
    world(|world| {
        let server = &world.servers[index];
        Some((server.life.as_ref()?.pid, server.host, Party::Server(index)))
    })
}
