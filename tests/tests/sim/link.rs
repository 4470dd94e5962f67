//! A node's link to its lease: shared memory, or what RDMA promises and no more.
//!
//! Over RDMA a push is cut into pieces that land in any order at times of their own, also after its process
//! was killed, stopped, or has given it up, until the server has destroyed its end or taken the memory away.
//! Over shared memory a process can be stopped between two pieces, and go on much later.

use crate::history;
use crate::mutant::{self, Broken, What};
use crate::net::Host;
use crate::schedule::{self, FiberId, MS, Pid, Time, US};
use crate::world::{Swarm, World, cover, world};
use selvage_fabric::ident::Incarnation;
use selvage_fabric::lease::{
    Cell, CellState, HeapMemory, LeaseGeometry, LeaseMemory, NODE_BEAT_OFFSET, NODE_SESSIONS_OFFSET,
    SEAL_OFFSET, SERVER_BEAT_OFFSET,
};
use selvage_fabric::rules::{Rule, holds};
use selvage_fabric::transport::{ChecksumKind, FailKind, Link, Outcome, Posted, Push, PushId, TransportKind};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Names a link; never reused in a run.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct LinkId(pub u64);

/// A lease's memory. It lives as long as anybody maps it.
pub struct Lease {
    pub memory: HeapMemory,
    pub geometry: LeaseGeometry,
    pub server: Incarnation,
    pub node: Incarnation,
    /// The server has looked at it for the last time: what is written later is not seen.
    pub scanned: AtomicBool,
}

impl Lease {
    /// A push ends well at its node: whatever it wrote must have been there when a seal looked (guarantee 2).
    fn acked(&self, world: &mut World, cell: &[u8; 64], late: bool) {
        if late {
            let what = format!(
                "a push to the lease of {:x} at {:x} came after its seal and was acked",
                self.node.0, self.server.0
            );
            world.fail("no ack after a seal", &what);
        }
        if let Ok(Some(cell)) = Cell::decode(cell) {
            world.history.acked(&cell, (self.server, self.node));
        }
    }

    pub fn is_sealed(&self) -> bool {
        self.memory.load_u64(SEAL_OFFSET).is_ok_and(|word| word != 0)
    }
}

/// Both ends of a link over RDMA.
pub struct Wire {
    lease: Arc<Lease>,
    hosts: (Host, Host),
    server: Pid,
    flights: BTreeMap<u64, Flight>,
    flight_last: u64,
    ended: BTreeMap<u64, Outcome>,
    waiting: Vec<FiberId>,
    /// The node's end has failed.
    broken: bool,
    /// The server's end is no more: nothing arrives.
    pub destroyed: bool,
    /// It was destroyed by a seal.
    sealed: bool,
    seal_seen: bool,
    peer_beat: u64,
}

struct Flight {
    pieces: Vec<(u64, Vec<u8>)>,
    cell: [u8; 64],
    began: Time,
    forgotten: bool,
    /// What has landed, if it lands twice.
    again: Vec<(u64, Vec<u8>)>,
    /// A part of it has landed after the last look at the lease.
    late: bool,
}

/// A card gives a packet up after so long.
const RETRY_LIMIT: Time = 120 * MS;
const RETRY: Time = 4 * MS;
/// What it has sent by then may be on its way for so long.
const LINGER: Time = 3000 * MS;

/// The node's end.
pub struct SimLink {
    pub id: LinkId,
    pub lease: Arc<Lease>,
    pub rdma: bool,
}

impl Wire {
    pub fn new(lease: Arc<Lease>, hosts: (Host, Host), server: Pid) -> Self {
        Self {
            lease,
            hosts,
            server,
            flights: BTreeMap::new(),
            flight_last: 0,
            ended: BTreeMap::new(),
            waiting: Vec::new(),
            broken: false,
            destroyed: false,
            sealed: false,
            seal_seen: false,
            peer_beat: 0,
        }
    }

    /// The lease that it leads to.
    pub fn lease(&self) -> &Arc<Lease> {
        &self.lease
    }

    /// The server destroys its end.
    pub fn destroy(&mut self, by_seal: bool) {
        self.destroyed = true;
        self.sealed |= by_seal;
    }

    /// The node's end fails. What was sent goes on landing until the server destroys its end.
    fn fail(&mut self, kind: FailKind) {
        self.broken = true;
        for (id, flight) in &mut self.flights {
            if !std::mem::replace(&mut flight.forgotten, true) {
                self.ended.insert(*id, Outcome::Failed(kind));
            }
        }
        if self.destroyed {
            self.flights.clear();
        }
        self.waiting.drain(..).for_each(|fiber| schedule::after(0, move || schedule::wake(fiber)));
    }
}

/// Cuts a push into pieces of 8 bytes, in a random order if pieces may land in any.
fn pieces(world: &mut World, geometry: &LeaseGeometry, push: &Push<'_>) -> Option<Vec<(u64, Vec<u8>)>> {
    let broken = |broken| world.mutant == Some(What::Other(broken));
    let buried = matches!(Cell::decode(push.cell), Ok(Some(cell)) if cell.state == CellState::Tombstone);
    if buried && broken(Broken::TombstoneLost) {
        return Some(Vec::new());
    }
    let sequence = if broken(Broken::SequenceIgnored) { push.sequence.next() } else { push.sequence };
    let cell = geometry.cell_offset(push.slot, sequence)?;
    let mut pieces = Vec::new();
    if let Some((block, archive)) = push.block.filter(|_| !broken(Broken::BlockLost)) {
        let offset = geometry.block_offset(block, archive.len())?;
        pieces.extend(
            archive.chunks(64).enumerate().map(|(at, part)| (offset + at as u64 * 64, part.to_vec())),
        );
    }
    pieces.extend(push.cell.chunks(8).enumerate().map(|(at, part)| (cell + at as u64 * 8, part.to_vec())));
    if world.swarm.rdma {
        for at in (1..pieces.len()).rev() {
            let other = world.random.below(at as u64 + 1) as usize;
            pieces.swap(at, other);
        }
    }
    Some(pieces)
}

/// Lets a part of a push land, or its ack arrive.
fn advance(link: LinkId, id: u64) {
    let again = world(|world| {
        let mut wire = world.wires.remove(&link)?;
        let again = step(world, &mut wire, id);
        world.wires.insert(link, wire);
        again
    });
    if let Some(again) = again {
        schedule::after(again, move || advance(link, id));
    }
}

fn step(world: &mut World, wire: &mut Wire, id: u64) -> Option<Time> {
    let now = schedule::now();
    let flight = wire.flights.get_mut(&id)?;
    let (node, server) = wire.hosts;
    if wire.destroyed || !schedule::is_alive(wire.server) {
        if now < flight.began + 2 * MS {
            return Some(MS);
        }
        wire.destroyed = true;
        wire.fail(if wire.sealed { FailKind::Revoked } else { FailKind::Disconnected });
        return None;
    }
    let reaches = match flight.pieces.is_empty() {
        false => world.net.reaches(node, server),
        true => world.net.reaches(server, node),
    };
    if !reaches {
        let tried = now - flight.began;
        if flight.forgotten && (flight.pieces.is_empty() || tried > LINGER) {
            wire.flights.remove(&id);
            return None;
        }
        if tried > RETRY_LIMIT && !wire.broken {
            world.cover("state: card gave up");
            wire.fail(FailKind::Disconnected);
        }
        return Some(if wire.broken { MS + world.random.below(100 * MS) } else { RETRY });
    }
    if wire.broken && !flight.pieces.is_empty() {
        world.cover("fault: push landed after its link had failed");
    }
    if !flight.pieces.is_empty() {
        let all = flight.pieces.len() as u64;
        let torn = world.random.chance(world.swarm.torn_per_mille);
        let count = if torn { world.random.between(1, all) } else { all };
        if count < all {
            world.cover("fault: push in pieces");
        }
        let twice = world.random.chance(world.swarm.twice_per_mille);
        flight.late |= wire.lease.scanned.load(Ordering::Relaxed);
        for (offset, bytes) in flight.pieces.drain(..count as usize) {
            let _ = wire.lease.memory.write(offset, &bytes);
            if twice {
                flight.again.push((offset, bytes));
            }
        }
        let delay = world.delay(server, node) / 2 + US;
        return Some(if torn { delay + world.random.below(3 * MS) } else { delay });
    }
    // The ack was lost: the card has sent this a second time.
    if !flight.again.is_empty() {
        world.cover("fault: piece of a push landed twice");
        for (offset, bytes) in flight.again.drain(..) {
            let _ = wire.lease.memory.write(offset, &bytes);
        }
        return Some(world.delay(server, node) / 2 + US);
    }
    let flight = wire.flights.remove(&id)?;
    if !flight.forgotten {
        wire.lease.acked(world, &flight.cell, flight.late);
        wire.ended.insert(id, Outcome::Acked);
        wire.waiting.drain(..).for_each(|fiber| schedule::after(0, move || schedule::wake(fiber)));
    }
    None
}

impl SimLink {
    /// A line for the trace.
    fn tell(&self, push: &Push<'_>) {
        let Ok(Some(cell)) = Cell::decode(push.cell) else { return };
        let pid = schedule::current_pid().map_or(0, |pid| pid.0);
        let block = push.block.map(|(block, archive)| (block.0, archive.len()));
        let (id, version, server) = (crate::request::short(cell.id), cell.version, self.lease.server.0);
        let (state, slot, sequence) = (cell.state, push.slot.0, push.sequence.0);
        world(|world| {
            world.trace(format!(
                "push of {pid} to {server:x}: {id} {version} {state:?} slot {slot} sequence {sequence} block \
                 {:?} {block:?} life {:x}",
                cell.block.0, self.lease.node.0
            ));
        });
    }

    /// Shared memory: pieces in order; the process may lose its processor between two.
    fn copy(&self, push: &Push<'_>) -> Outcome {
        let Some(pieces) = world(|world| pieces(world, &self.lease.geometry, push)) else {
            return Outcome::Failed(FailKind::Bounds);
        };
        let stop = world(|world| match world.random.chance(world.swarm.torn_per_mille) {
            true => world.random.below(pieces.len() as u64),
            false => u64::MAX,
        });
        for (at, (offset, bytes)) in pieces.iter().enumerate() {
            if at as u64 == stop {
                cover("fault: push in pieces");
                // Mostly it soon goes on; now and then only when everybody has given its node up.
                let long = world(|world| {
                    let Swarm { stall_per_mille, stall_ms, .. } = world.swarm;
                    world.random.chance(stall_per_mille).then(|| world.random.between(100, stall_ms))
                });
                schedule::sleep(long.map_or(20 * US, |ms| ms * MS));
            }
            let _ = self.lease.memory.write(*offset, bytes);
        }
        let late = self.lease.scanned.load(Ordering::Relaxed);
        if self.lease.is_sealed() && holds(Rule::R2SealByView) && !mutant::is(Broken::PushIgnoresSeal) {
            cover("state: push found the seal");
            return Outcome::Sealed;
        }
        world(|world| self.lease.acked(world, push.cell, late));
        Outcome::Acked
    }

    fn wire<T>(&self, work: impl FnOnce(&mut Wire) -> T) -> Option<T> {
        world(|world| world.wires.get_mut(&self.id).map(work))
    }
}

impl Link for SimLink {
    fn kind(&self) -> TransportKind {
        if self.rdma { TransportKind::Sim } else { TransportKind::Shm }
    }

    fn checksum_kind(&self) -> ChecksumKind {
        if self.rdma { ChecksumKind::Xxh3 } else { ChecksumKind::None }
    }

    fn geometry(&self) -> LeaseGeometry {
        self.lease.geometry
    }

    fn server_incarnation(&self) -> Incarnation {
        self.lease.server
    }

    fn post(&self, push: &Push<'_>) -> Posted {
        history::posted(push, self.lease.node);
        if world(|world| world.verbose) {
            self.tell(push);
        }
        if !self.rdma {
            return Posted::Done(self.copy(push));
        }
        let id = world(|world| {
            let pieces = pieces(world, &self.lease.geometry, push);
            let wire = world.wires.get_mut(&self.id).filter(|wire| !wire.broken);
            let Some(wire) = wire else { return Err(FailKind::NotPosted) };
            let Some(pieces) = pieces else { return Err(FailKind::Bounds) };
            wire.flight_last += 1;
            let id = wire.flight_last;
            let (began, again) = (schedule::now(), Vec::new());
            let flight = Flight { pieces, cell: *push.cell, began, forgotten: false, again, late: false };
            wire.flights.insert(id, flight);
            let (node, server) = wire.hosts;
            if world.mutant == Some(What::Other(Broken::AckTooEarly)) {
                wire.ended.insert(id, Outcome::Acked);
            }
            Ok((id, world.delay(node, server) / 4 + US))
        });
        match id {
            Ok((id, delay)) => {
                let link = self.id;
                schedule::after(delay, move || advance(link, id));
                Posted::Pending(PushId(id))
            }
            Err(kind) => Posted::Done(Outcome::Failed(kind)),
        }
    }

    fn poll(&self, push: PushId) -> Option<Outcome> {
        let ended = self.wire(|wire| wire.ended.remove(&push.0)).flatten();
        if ended.is_none() {
            schedule::spin(10 * US);
        }
        ended
    }

    fn wait(&self, push: PushId, timeout: Duration) {
        let fiber = schedule::current();
        let wait = self.wire(|wire| {
            wire.waiting.extend(fiber);
            !wire.ended.contains_key(&push.0)
        });
        if wait == Some(true) {
            schedule::park((timeout.as_nanos() as u64).max(US));
        }
    }

    fn forget(&self, push: PushId) {
        self.wire(|wire| {
            wire.ended.remove(&push.0);
            if let Some(flight) = wire.flights.get_mut(&push.0) {
                flight.forgotten = true;
            }
        });
    }

    fn sends_in_place(&self) -> bool {
        false
    }

    fn detail(&self) -> String {
        String::new()
    }

    fn is_broken(&self) -> bool {
        self.rdma && self.wire(|wire| wire.broken).unwrap_or(true)
    }

    fn beat(&self, beat: u64, sessions: u64) {
        if !self.rdma {
            let _ = self.lease.memory.store_u64(NODE_SESSIONS_OFFSET, sessions);
            let _ = self.lease.memory.store_u64(NODE_BEAT_OFFSET, beat);
            return;
        }
        let link = self.id;
        let delay = world(|world| {
            let (node, server) = world.wires.get(&link)?.hosts;
            Some(world.delay(node, server))
        });
        schedule::after(delay.unwrap_or(MS), move || {
            world(|world| {
                let World { wires, net, .. } = world;
                let Some(wire) = wires.get_mut(&link) else { return };
                let (node, server) = wire.hosts;
                if wire.destroyed || !schedule::is_alive(wire.server) {
                    wire.fail(if wire.sealed { FailKind::Revoked } else { FailKind::Disconnected });
                } else if net.reaches(node, server) {
                    let _ = wire.lease.memory.store_u64(NODE_SESSIONS_OFFSET, sessions);
                    let _ = wire.lease.memory.store_u64(NODE_BEAT_OFFSET, beat);
                    if net.reaches(server, node) {
                        wire.seal_seen |= wire.lease.is_sealed();
                        wire.peer_beat = wire.lease.memory.load_u64(SERVER_BEAT_OFFSET).unwrap_or_default();
                    }
                }
            });
        });
    }

    fn peer_beat(&self) -> u64 {
        match self.rdma {
            true => self.wire(|wire| wire.peer_beat).unwrap_or_default(),
            false => self.lease.memory.load_u64(SERVER_BEAT_OFFSET).unwrap_or_default(),
        }
    }

    fn is_sealed(&self) -> bool {
        match self.rdma {
            true => self.wire(|wire| wire.seal_seen).unwrap_or(false),
            false => self.lease.is_sealed(),
        }
    }
}
