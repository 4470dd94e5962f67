//! A deterministic, seeded link over private memory that can stop, tear, delay, reorder or drop any write.
//!
//! A push is cut into pieces; pieces land in the lease one by one, in order (as in shared memory) or in any
//! order (as RDMA may do). What happens is a function of the seed and of the calls. The simulation may lock
//! and allocate: it is no data path.

use super::{ChecksumKind, FailKind, Link, Outcome, Posted, Push, PushId, ServerEnd, TransportKind};
use crate::archive::ArchiveLimits;
use crate::error::{Error, ErrorKind, Origin, Result};
use crate::ident::Incarnation;
use crate::lease::{
    self, HeapMemory, LeaseGeometry, LeaseHeader, LeaseMemory, NODE_BEAT_OFFSET, NODE_SESSIONS_OFFSET,
    SEAL_OFFSET, SEALED, SERVER_BEAT_OFFSET, ScanReport, SessionCopy,
};
use crate::sync::words::fence_full;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// In which order the pieces of a push land.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WriteOrder {
    /// Block, then cell, from first to last byte.
    InOrder,
    /// Any, chosen by the seed.
    AnyOrder,
}

/// What a simulated link does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SimConfig {
    /// Decides everything that is left to chance.
    pub seed: u64,
    /// The archive checksum that its cells must carry.
    pub checksum: ChecksumKind,
    /// The order of landing.
    pub order: WriteOrder,
    /// Bytes of a piece, 1 to 64; the RDMA model uses 8.
    pub piece_bytes: usize,
    /// Most pieces that land per poll; 0: everything lands at once, in `post`.
    pub pieces_per_poll: u64,
    /// After so many pieces the link is cut for good.
    pub cut_after_pieces: Option<u64>,
    /// Pushes per thousand that fail after a part has landed; the rest never lands.
    pub torn_per_mille: u16,
    /// Pushes per thousand that fail at once although all of them still lands later (R4).
    pub late_per_mille: u16,
    /// Whether sealing stops pieces from landing (as deregistering memory does) or only acks (as in shared
    /// memory).
    pub seal_stops_writes: bool,
}

impl Default for SimConfig {
    /// Shared memory without faults.
    fn default() -> Self {
        Self {
            seed: 1,
            checksum: ChecksumKind::None,
            order: WriteOrder::InOrder,
            piece_bytes: 8,
            pieces_per_poll: 0,
            cut_after_pieces: None,
            torn_per_mille: 0,
            late_per_mille: 0,
            seal_stops_writes: false,
        }
    }
}

/// The server's end of a simulated lease.
pub struct SimLease {
    memory: HeapMemory,
    header: LeaseHeader,
}

/// A node's end of a simulated lease.
pub struct SimLink {
    lease: Arc<SimLease>,
    config: SimConfig,
    state: Mutex<State>,
}

/// Makes a simulated lease and a link to it.
///
/// # Errors
/// `Invalid` for a bad geometry or name.
pub fn open(header: &LeaseHeader, config: SimConfig) -> Result<(Arc<SimLease>, SimLink)> {
    header.geometry.check()?;
    let memory = HeapMemory::new(header.geometry.total_bytes());
    header.write(&memory)?;
    let lease = Arc::new(SimLease { memory, header: header.clone() });
    let link = SimLink::new(Arc::clone(&lease), config);
    Ok((lease, link))
}

impl SimLease {
    /// The memory, for tests that look at it or damage it.
    pub fn memory(&self) -> &HeapMemory {
        &self.memory
    }

    /// The sizes.
    pub fn geometry(&self) -> &LeaseGeometry {
        &self.header.geometry
    }

    fn is_sealed(&self) -> bool {
        self.memory.load_u64(SEAL_OFFSET).is_ok_and(|word| word != 0)
    }

    fn require_sealed(&self) -> Result<()> {
        if self.is_sealed() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Invalid, Origin::Transport, "a lease must be sealed before it is read"))
    }
}

impl ServerEnd for SimLease {
    fn seal(&self) {
        // The fixed offsets are inside every lease, here and below.
        let _ = self.memory.store_u64(SEAL_OFFSET, SEALED);
        // The handshake of the shared-memory transport, for tests that use the simulation with real threads.
        fence_full();
    }

    fn scan(&self, limits: &ArchiveLimits) -> Result<ScanReport> {
        self.require_sealed()?;
        lease::scan(&self.memory, &self.header.geometry, limits)
    }

    fn fetch(&self, copy: &SessionCopy, limits: &ArchiveLimits) -> Result<Vec<u8>> {
        self.require_sealed()?;
        lease::fetch(&self.memory, &self.header.geometry, copy, limits)
    }

    fn beat(&self, beat: u64) {
        let _ = self.memory.store_u64(SERVER_BEAT_OFFSET, beat);
    }

    fn node_beat(&self) -> u64 {
        self.memory.load_u64(NODE_BEAT_OFFSET).unwrap_or_default()
    }

    fn node_sessions(&self) -> u64 {
        self.memory.load_u64(NODE_SESSIONS_OFFSET).unwrap_or_default()
    }
}

impl SimLink {
    /// A link to a lease; a lease can have several, as a node has several processes.
    pub fn new(lease: Arc<SimLease>, config: SimConfig) -> Self {
        // Zero would be the generator's one fixed point.
        let random = config.seed.wrapping_mul(2).wrapping_add(1);
        let pieces_left = config.cut_after_pieces.unwrap_or(u64::MAX);
        let state = State { random, pieces_left, next_push: 1, flights: Vec::new(), ended: HashMap::new() };
        Self { lease, config, state: Mutex::new(state) }
    }

    /// Cuts the link: what has not landed never will, and every pending push fails.
    pub fn cut(&self) {
        let mut state = self.state();
        state.pieces_left = 0;
        state.fail_all();
    }

    /// Lets up to `count` pieces land, of whichever pushes the seed chooses.
    pub fn advance(&self, count: u64) {
        let mut state = self.state();
        for _ in 0..count {
            if !state.land_one(&self.lease, &self.config) {
                break;
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A test that panicked while it held the lock has failed already.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Cuts a push into pieces, the last to land first.
    fn pieces(&self, push: &Push<'_>) -> Option<Vec<Piece>> {
        let geometry = &self.lease.header.geometry;
        let cell = geometry.cell_offset(push.slot, push.sequence)?;
        let mut ranges = Vec::new();
        if let Some((block, archive)) = push.block {
            ranges.push((geometry.block_offset(block, archive.len())?, archive));
        }
        ranges.push((cell, push.cell));
        let size = self.config.piece_bytes.clamp(1, 64);
        let cut = |(offset, bytes): (u64, &[u8])| {
            let piece = move |(at, part): (usize, &[u8])| Piece {
                offset: offset + (at * size) as u64,
                bytes: part.into(),
            };
            bytes.chunks(size).enumerate().map(piece).collect::<Vec<_>>()
        };
        let mut pieces: Vec<_> = ranges.into_iter().flat_map(cut).collect();
        pieces.reverse();
        Some(pieces)
    }
}

impl Link for SimLink {
    fn kind(&self) -> TransportKind {
        TransportKind::Sim
    }

    fn checksum_kind(&self) -> ChecksumKind {
        self.config.checksum
    }

    fn geometry(&self) -> LeaseGeometry {
        self.lease.header.geometry
    }

    fn server_incarnation(&self) -> Incarnation {
        self.lease.header.server_incarnation
    }

    fn post(&self, push: &Push<'_>) -> Posted {
        let Some(mut pieces) = self.pieces(push) else {
            return Posted::Done(Outcome::Failed(FailKind::Bounds));
        };
        let mut state = self.state();
        if state.pieces_left == 0 {
            return Posted::Done(Outcome::Failed(FailKind::Disconnected));
        }
        if self.config.order == WriteOrder::AnyOrder {
            for at in (1..pieces.len()).rev() {
                pieces.swap(at, state.below(at as u64 + 1) as usize);
            }
        }
        let id = PushId(state.next_push);
        state.next_push += 1;
        let chance = state.below(1000) as u16;
        let mut flight = Flight { id, pieces, answer: Answer::AtTheEnd };
        if chance < self.config.torn_per_mille {
            let lost = 1 + state.below(flight.pieces.len() as u64) as usize;
            flight.pieces.drain(..lost);
            flight.answer = Answer::Failure;
        } else if chance < self.config.torn_per_mille + self.config.late_per_mille {
            state.ended.insert(id, Outcome::Failed(FailKind::Disconnected));
            flight.answer = Answer::Given;
        }
        state.flights.push(flight);
        if self.config.pieces_per_poll > 0 {
            return Posted::Pending(id);
        }
        while state.land_one(&self.lease, &self.config) {}
        match state.ended.remove(&id) {
            Some(outcome) => Posted::Done(outcome),
            None => Posted::Pending(id),
        }
    }

    fn poll(&self, push: PushId) -> Option<Outcome> {
        let mut state = self.state();
        let count = match self.config.pieces_per_poll {
            0 => u64::MAX,
            most => state.below(most + 1),
        };
        for _ in 0..count {
            if !state.land_one(&self.lease, &self.config) {
                break;
            }
        }
        state.ended.remove(&push)
    }

    /// Nothing lands but by polling, so there is nothing to wait for.
    fn wait(&self, _push: PushId, _timeout: Duration) {}

    fn forget(&self, push: PushId) {
        let mut state = self.state();
        state.ended.remove(&push);
        if let Some(flight) = state.flights.iter_mut().find(|flight| flight.id == push) {
            flight.answer = Answer::Given;
        }
    }

    fn sends_in_place(&self) -> bool {
        false
    }

    fn detail(&self) -> String {
        String::new()
    }

    fn is_broken(&self) -> bool {
        self.state().pieces_left == 0
    }

    fn beat(&self, beat: u64, sessions: u64) {
        let _ = self.lease.memory.store_u64(NODE_SESSIONS_OFFSET, sessions);
        let _ = self.lease.memory.store_u64(NODE_BEAT_OFFSET, beat);
    }

    fn peer_beat(&self) -> u64 {
        self.lease.memory.load_u64(SERVER_BEAT_OFFSET).unwrap_or_default()
    }

    fn is_sealed(&self) -> bool {
        self.lease.is_sealed()
    }
}

/// A part of a push.
struct Piece {
    offset: u64,
    bytes: Box<[u8]>,
}

/// When a push in flight tells its end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answer {
    AtTheEnd,
    Failure,
    Given,
}

/// A push in flight.
struct Flight {
    id: PushId,
    /// What has not landed; the next one is the last.
    pieces: Vec<Piece>,
    answer: Answer,
}

struct State {
    random: u64,
    pieces_left: u64,
    next_push: u64,
    flights: Vec<Flight>,
    ended: HashMap<PushId, Outcome>,
}

impl State {
    /// Lets one piece of one flight land, or ends a flight that has none left; false if nothing is in flight.
    fn land_one(&mut self, lease: &SimLease, config: &SimConfig) -> bool {
        if self.flights.is_empty() {
            return false;
        }
        let at = self.below(self.flights.len() as u64) as usize;
        if let Some(piece) = self.flights[at].pieces.pop() {
            if self.pieces_left == 0 {
                self.fail_all();
                return false;
            }
            self.pieces_left -= 1;
            if !(config.seal_stops_writes && lease.is_sealed()) {
                // In bounds: the geometry gave the offset.
                let _ = lease.memory.write(piece.offset, &piece.bytes);
            }
        }
        if self.flights[at].pieces.is_empty() {
            let flight = self.flights.swap_remove(at);
            fence_full();
            let outcome = match flight.answer {
                Answer::Given => return true,
                Answer::Failure => Outcome::Failed(FailKind::Disconnected),
                Answer::AtTheEnd if lease.is_sealed() => Outcome::Sealed,
                Answer::AtTheEnd => Outcome::Acked,
            };
            self.ended.insert(flight.id, outcome);
        }
        true
    }

    fn fail_all(&mut self) {
        for flight in self.flights.drain(..).filter(|flight| flight.answer != Answer::Given) {
            let outcome = Outcome::Failed(FailKind::Disconnected);
            self.ended.insert(flight.id, outcome);
        }
    }

    /// A number below `end`, by xorshift64*.
    fn below(&mut self, end: u64) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_F491_4F6C_DD1D) % end.max(1)
    }
}

#[cfg(test)]
#[path = "sim_tests.rs"]
mod tests;
