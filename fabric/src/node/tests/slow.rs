//! A link that behaves as RDMA does, over a real lease: pushes end later, archives are read from the cache
//! when they are sent and not when they are posted, a seal shows as an error of the hardware, and what was
//! given up may still arrive until the server has destroyed its end.
//!
//! Unsafe code: reading the cache's segment as a network card does, past all its locks.

use crate::control::stream::Stream;
use crate::ident::Incarnation;
use crate::lease::{BlockOffset, CELL_BYTES, LeaseGeometry, Sequence, SlotIndex};
use crate::node::servers::Lifeline;
use crate::transport::shm::ShmLink;
use crate::transport::{ChecksumKind, FailKind, Link, Outcome, Posted, Push, PushId, Region, TransportKind};
use std::collections::HashMap;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// What a test decides about the links that a server gives.
#[derive(Clone, Copy, Debug)]
pub struct Slowness {
    /// From the posting of a push to its ack.
    pub latency: Duration,
    /// Nothing arrives.
    pub held: bool,
    /// Pushes that a link takes at once.
    pub depth: usize,
}

impl Default for Slowness {
    fn default() -> Self {
        Self { latency: Duration::ZERO, held: false, depth: usize::MAX }
    }
}

/// One connection: the node's end of it is a [`Link`], the server's end is the test's.
pub struct Wire {
    lease: ShmLink,
    cache: Arc<dyn Region>,
    state: Mutex<State>,
    /// The server's end of the lifeline.
    server_end: Mutex<UnixStream>,
}

struct State {
    slowness: Slowness,
    broken: bool,
    destroyed: bool,
    next: u64,
    flights: Vec<Flight>,
    ended: HashMap<PushId, Outcome>,
    most_at_once: usize,
    beat: u64,
}

struct Flight {
    id: PushId,
    slot: SlotIndex,
    sequence: Sequence,
    cell: [u8; CELL_BYTES],
    /// Where in the lease, from where in the segment, how long.
    block: Option<(BlockOffset, usize, usize)>,
    due: Instant,
    /// Its end was told, or nobody asks for it: it only still may arrive.
    is_late: bool,
}

impl Wire {
    /// A connection to `lease` that sends from `cache`; and the node's end of its lifeline.
    pub fn new(lease: ShmLink, cache: Arc<dyn Region>, slowness: Slowness) -> (Arc<Self>, Arc<Lifeline>) {
        let (node_end, server_end) = UnixStream::pair().unwrap();
        server_end.set_nonblocking(true).unwrap();
        let lifeline = Lifeline::new(Stream::accepted(node_end).unwrap()).unwrap();
        let state = State {
            slowness,
            broken: false,
            destroyed: false,
            next: 1,
            flights: Vec::new(),
            ended: HashMap::new(),
            most_at_once: 0,
            beat: 0,
        };
        let wire = Self { lease, cache, state: Mutex::new(state), server_end: Mutex::new(server_end) };
        (Arc::new(wire), Arc::new(lifeline))
    }

    pub fn set(&self, slowness: Slowness) {
        self.state().slowness = slowness;
    }

    /// Whether the node has ended the lifeline.
    pub fn is_abandoned(&self) -> bool {
        matches!(self.server_end.lock().unwrap().read(&mut [0]), Ok(0))
    }

    /// The server's process ends.
    pub fn hang_up(&self) {
        self.server_end.lock().unwrap().shutdown(std::net::Shutdown::Both).unwrap();
    }

    /// The server's end is destroyed: nothing that is under way arrives any more.
    pub fn destroy(&self) {
        self.state().destroyed = true;
    }

    /// The hardware reports errors for all that is under way; it may arrive all the same.
    pub fn cut(&self) {
        self.state().fail(FailKind::Disconnected);
    }

    /// Whatever is still under way arrives now, if it can. Returns how many pushes did.
    pub fn land_late(&self) -> usize {
        let mut state = self.state();
        let flights = std::mem::take(&mut state.flights);
        if state.destroyed {
            return 0;
        }
        flights.iter().filter(|flight| self.land(flight) == Outcome::Acked).count()
    }

    /// What would arrive if the card sent the first push that is under way now.
    pub fn would_send(&self) -> Vec<u8> {
        let state = self.state();
        let (_, offset, bytes) = state.flights[0].block.unwrap();
        self.read_cache(offset, bytes)
    }

    /// From now on the card finds other bytes where the archives lay: it reads 256 bytes further on.
    pub fn garble(&self) {
        for (_, offset, _) in self.state().flights.iter_mut().filter_map(|flight| flight.block.as_mut()) {
            *offset += 256;
        }
    }

    /// Whether a push is under way.
    pub fn is_busy(&self) -> bool {
        !self.state().flights.is_empty()
    }

    /// The most pushes that were under way at once.
    pub fn most_at_once(&self) -> usize {
        self.state().most_at_once
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// What lies in the segment now: as a card reads it, at a time of its own choosing.
    fn read_cache(&self, offset: usize, bytes: usize) -> Vec<u8> {
        assert!(offset + bytes <= self.cache.bytes());
        let read = |at: usize| {
            // SAFETY: within the mapping (asserted above), which `self.cache` keeps up.
            let byte = unsafe { self.cache.address().add(at) };
            // SAFETY: mapped, aligned for a byte; other threads may write it meanwhile, which atomics allow.
            unsafe { AtomicU8::from_ptr(byte) }.load(Ordering::Relaxed)
        };
        (offset..offset + bytes).map(read).collect()
    }

    fn land(&self, flight: &Flight) -> Outcome {
        let archive = flight.block.map(|(block, offset, bytes)| (block, self.read_cache(offset, bytes)));
        if self.lease.is_sealed() {
            // The server has taken its memory away from the card: nothing is written.
            return Outcome::Failed(FailKind::Revoked);
        }
        let push = Push {
            slot: flight.slot,
            sequence: flight.sequence,
            cell: &flight.cell,
            block: archive.as_ref().map(|(block, archive)| (*block, archive.as_slice())),
        };
        match self.lease.post(&push) {
            Posted::Done(outcome) => outcome,
            Posted::Pending(_) => unreachable!("shared memory acks at once"),
        }
    }

    fn look(&self) {
        let mut state = self.state();
        let now = Instant::now();
        while !state.slowness.held && !state.broken && !state.destroyed {
            let due = |flight: &Flight| !flight.is_late && flight.due <= now;
            let Some(at) = state.flights.iter().position(due) else { return };
            let flight = state.flights.remove(at);
            match self.land(&flight) {
                Outcome::Failed(FailKind::Revoked) => {
                    state.ended.insert(flight.id, Outcome::Failed(FailKind::Revoked));
                    state.fail(FailKind::Revoked);
                }
                outcome => drop(state.ended.insert(flight.id, outcome)),
            }
        }
    }
}

impl State {
    fn fail(&mut self, kind: FailKind) {
        self.broken = true;
        for flight in self.flights.iter_mut().filter(|flight| !flight.is_late) {
            flight.is_late = true;
            self.ended.insert(flight.id, Outcome::Failed(kind));
        }
    }
}

/// The node's end.
pub struct SlowLink(pub Arc<Wire>);

impl Link for SlowLink {
    fn kind(&self) -> TransportKind {
        TransportKind::Sim
    }

    fn checksum_kind(&self) -> ChecksumKind {
        ChecksumKind::Xxh3
    }

    fn geometry(&self) -> LeaseGeometry {
        self.0.lease.geometry()
    }

    fn server_incarnation(&self) -> Incarnation {
        self.0.lease.server_incarnation()
    }

    fn post(&self, push: &Push<'_>) -> Posted {
        let base = self.0.cache.address() as usize;
        let block = push.block.map(|(block, archive)| {
            let offset = (archive.as_ptr() as usize).checked_sub(base).expect("archives lie in the segment");
            assert!(offset + archive.len() <= self.0.cache.bytes(), "archives lie in the segment");
            (block, offset, archive.len())
        });
        let mut state = self.0.state();
        let under_way = state.flights.iter().filter(|flight| !flight.is_late).count();
        if state.broken || under_way >= state.slowness.depth {
            return Posted::Done(Outcome::Failed(FailKind::NotPosted));
        }
        let id = PushId(state.next);
        state.next += 1;
        state.most_at_once = state.most_at_once.max(under_way + 1);
        let due = Instant::now() + state.slowness.latency;
        let (slot, sequence, cell) = (push.slot, push.sequence, *push.cell);
        state.flights.push(Flight { id, slot, sequence, cell, block, due, is_late: false });
        Posted::Pending(id)
    }

    fn poll(&self, push: PushId) -> Option<Outcome> {
        self.0.look();
        self.0.state().ended.remove(&push)
    }

    fn wait(&self, push: PushId, timeout: Duration) {
        let (held, due) = {
            let state = self.0.state();
            let due = state.flights.iter().find(|flight| flight.id == push).map(|flight| flight.due);
            (state.slowness.held, due)
        };
        let left = due.map_or(Duration::ZERO, |due| due.saturating_duration_since(Instant::now()));
        std::thread::sleep(if held { timeout.min(Duration::from_millis(1)) } else { left.min(timeout) });
    }

    fn forget(&self, push: PushId) {
        let mut state = self.0.state();
        state.ended.remove(&push);
        state.flights.iter_mut().filter(|flight| flight.id == push).for_each(|flight| flight.is_late = true);
    }

    fn sends_in_place(&self) -> bool {
        true
    }

    fn detail(&self) -> String {
        "a slow wire".into()
    }

    fn is_broken(&self) -> bool {
        self.0.state().broken
    }

    fn beat(&self, beat: u64, sessions: u64) {
        self.0.lease.beat(beat, sessions);
        let beat = self.0.lease.peer_beat();
        self.0.state().beat = beat;
    }

    fn peer_beat(&self) -> u64 {
        self.0.state().beat
    }

    /// Only a read over the wire could tell, and a revoked one gives none.
    fn is_sealed(&self) -> bool {
        false
    }
}
