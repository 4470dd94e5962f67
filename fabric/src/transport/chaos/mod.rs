//! A network card in this process that obeys only what RDMA promises, and no more.
//!
//! A push is cut into pieces of 8 bytes, the smallest that hardware keeps whole. While its end was not told,
//! pieces land in any order within and across pushes, again and again (the card sends anew what it thinks was
//! lost), and some never. A push ends well only after each of its pieces has landed, some time after that. A
//! link that fails tells all its pushes' end at once, and they go on landing until the server has destroyed
//! its end of the link. The fence (taking the memory away from the card) is what ends everything.
//!
//! What happens is chance by seed, or what a script says; then the card keeps a [`Step`] for all that was
//! posted and told, and [`explore`] tries all that may have been in memory at each step.
//!
//! Callers: tests of the transport, and of the node over it. It may lock and allocate: it is no data path.

pub mod explore;
mod tests;

use super::memory::{Mapping, ServerLease};
use super::{ChecksumKind, FailKind, Link, Outcome, Posted, Push, PushId, TransportKind};
use crate::archive::testing::Rng;
use crate::error::Result;
use crate::ident::Incarnation;
use crate::lease::{
    BlockOffset, CELL_BYTES, LeaseGeometry, LeaseHeader, LeaseMemory, NODE_BEAT_OFFSET, NODE_SESSIONS_OFFSET,
    SEAL_OFFSET, SERVER_BEAT_OFFSET, Sequence, SlotIndex,
};
use crate::sync::words::fence_full;
use std::collections::{HashMap, VecDeque};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// Bytes of a piece.
const PIECE_BYTES: usize = 8;

/// What a card does beside keeping its few promises.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// Decides what is left to chance.
    pub seed: u64,
    /// Links that fail, per thousand pieces that land.
    pub fails_per_mille: u64,
    /// The checksum that cells carry. Without one, torn archives are not noticed.
    pub checksum: ChecksumKind,
    /// Does what it is told by [`Card::answer`], and keeps the steps.
    pub scripted: bool,
}

impl Default for Manner {
    fn default() -> Self {
        Self { seed: 1, fails_per_mille: 0, checksum: ChecksumKind::Xxh3, scripted: false }
    }
}

/// What was posted, as the wire has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Write {
    /// The link's number, from 1.
    pub link: u64,
    /// The slot.
    pub slot: SlotIndex,
    /// Decides the half of the slot.
    pub sequence: Sequence,
    /// The encoded cell.
    pub cell: [u8; CELL_BYTES],
    /// The archive, and where it goes.
    pub block: Option<(BlockOffset, Vec<u8>)>,
}

/// Something that the node, or who uses it, could see. Pushes are numbered in the order of posting, from 0.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// A push began.
    Posted(Box<Write>),
    /// Its end was told: everything has landed.
    Acked(usize),
    /// Its end was told: the link has failed; any part may have landed or may yet land.
    Failed(usize),
    /// The server's end of a link is destroyed: nothing posted to it lands any more.
    Gone(u64),
    /// The user was told that the session is destroyed.
    Destroyed,
}

/// The card and the memory that it writes to: one lease.
pub struct Card {
    header: LeaseHeader,
    memory: Mapping,
    manner: Manner,
    state: Mutex<State>,
}

struct State {
    random: Rng,
    flights: Vec<Flight>,
    ended: HashMap<PushId, Outcome>,
    /// Whether each link is broken.
    broken: Vec<bool>,
    pushes: usize,
    /// The memory was taken away from the card.
    fenced: bool,
    answers: VecDeque<bool>,
    steps: Vec<Step>,
    /// Pushes are not kept as steps, and end well.
    unseen: bool,
}

/// Where a piece goes, and its bytes.
type Piece = (u64, [u8; PIECE_BYTES], usize);

struct Flight {
    id: PushId,
    link: u64,
    pieces: Vec<Piece>,
    /// The pieces that have not landed yet.
    missing: Vec<usize>,
    /// Its end was told, or nobody asks for it.
    told: bool,
}

impl Card {
    /// A card that writes to a lease.
    ///
    /// # Errors
    /// `Os` if the lease cannot be mapped.
    pub fn new(lease: &ServerLease, manner: Manner) -> Result<Arc<Self>> {
        let memory = Mapping::new(lease.fd().as_fd(), lease.bytes() as usize)?;
        let state = State {
            random: Rng(manner.seed.wrapping_mul(2).wrapping_add(1)),
            flights: Vec::new(),
            ended: HashMap::new(),
            broken: Vec::new(),
            pushes: 0,
            fenced: false,
            answers: VecDeque::new(),
            steps: Vec::new(),
            unseen: false,
        };
        Ok(Arc::new(Self { header: lease.header().clone(), memory, manner, state: Mutex::new(state) }))
    }

    /// Another link.
    pub fn connect(self: &Arc<Self>) -> ChaosLink {
        let mut state = self.state();
        state.broken.push(false);
        ChaosLink { card: Arc::clone(self), number: state.broken.len() as u64 }
    }

    /// Whether the next push that has no answer yet ends well.
    pub fn answer(&self, well: bool) {
        self.state().answers.push_back(well);
    }

    /// Takes the answers back that no push has needed.
    pub fn take_answers(&self) -> usize {
        std::mem::take(&mut self.state().answers).len()
    }

    /// Whether pushes are of no interest from now on: those of other sessions, which only move allocators on.
    pub fn look_away(&self, unseen: bool) {
        self.state().unseen = unseen;
    }

    /// Notes what the user was told.
    pub fn note(&self, step: Step) {
        self.state().steps.push(step);
    }

    /// What has happened so far.
    pub fn steps(&self) -> Vec<Step> {
        self.state().steps.clone()
    }

    /// The server's end of a link is destroyed.
    pub fn destroy(&self, link: u64) {
        let mut state = self.state();
        state.broken[link as usize - 1] = true;
        state.flights.retain(|flight| flight.link != link);
        state.steps.push(Step::Gone(link));
    }

    /// The memory is taken away from the card; when it returns, nothing lands any more.
    pub fn fence(&self) {
        let mut state = self.state();
        state.fenced = true;
        state.fail(|_| true, FailKind::Revoked);
        state.flights.clear();
    }

    /// Everything that is under way lands; links that have not failed tell so.
    pub fn settle(&self) {
        let mut state = self.state();
        while !state.flights.is_empty() && !state.fenced {
            state.work(&self.memory, 0);
        }
    }

    /// Pieces that land now, if there are any.
    pub fn work(&self, count: u64) {
        let mut state = self.state();
        for _ in 0..count {
            state.work(&self.memory, self.manner.fails_per_mille);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The pieces of a push; `None` if it is out of bounds.
    fn pieces(&self, push: &Push<'_>) -> Option<Vec<Piece>> {
        let geometry = &self.header.geometry;
        let cell = geometry.cell_offset(push.slot, push.sequence)?;
        let mut ranges = vec![(cell, &push.cell[..])];
        if let Some((block, archive)) = push.block {
            ranges.push((geometry.block_offset(block, archive.len())?, archive));
        }
        let cut = |(offset, bytes): (u64, &[u8])| {
            let piece = |(at, part): (usize, &[u8])| {
                let mut bytes = [0; PIECE_BYTES];
                bytes[..part.len()].copy_from_slice(part);
                (offset + (at * PIECE_BYTES) as u64, bytes, part.len())
            };
            bytes.chunks(PIECE_BYTES).enumerate().map(piece).collect::<Vec<_>>()
        };
        Some(ranges.into_iter().flat_map(cut).collect())
    }
}

impl State {
    /// One piece lands, or one push ends, or a link fails.
    fn work(&mut self, memory: &Mapping, fails_per_mille: u64) {
        if self.fenced || self.flights.is_empty() {
            return;
        }
        let at = self.random.below(self.flights.len() as u64) as usize;
        if self.random.below(1000) < fails_per_mille {
            let link = self.flights[at].link;
            self.broken[link as usize - 1] = true;
            self.fail(|flight| flight.link == link, FailKind::Disconnected);
            return;
        }
        // Long archives are not to take long: most of their pieces land once.
        let again = self.random.below(4) == 0 && self.flights[at].missing.len() < 1000;
        let choice = self.random.next() as usize;
        let flight = &mut self.flights[at];
        let piece = if flight.missing.is_empty() {
            if !again {
                let flight = self.flights.swap_remove(at);
                fence_full();
                if !flight.told {
                    self.ended.insert(flight.id, Outcome::Acked);
                }
                return;
            }
            choice % flight.pieces.len()
        } else if again {
            // One that has landed may land once more; another one has landed for the first time.
            let piece = choice % flight.pieces.len();
            flight.missing.retain(|missing| *missing != piece);
            piece
        } else {
            flight.missing.swap_remove(choice % flight.missing.len())
        };
        let (offset, bytes, length) = &flight.pieces[piece];
        memory.write(*offset, &bytes[..*length]).unwrap();
    }

    /// Tells some pushes that they have failed. They go on landing.
    fn fail(&mut self, which: impl Fn(&Flight) -> bool, kind: FailKind) {
        for flight in self.flights.iter_mut().filter(|flight| !flight.told && which(flight)) {
            flight.told = true;
            self.ended.insert(flight.id, Outcome::Failed(kind));
        }
    }
}

/// A node's link over a [`Card`].
pub struct ChaosLink {
    card: Arc<Card>,
    number: u64,
}

impl ChaosLink {
    /// Its number at the server.
    pub fn number(&self) -> u64 {
        self.number
    }

    fn post_by_script(&self, state: &mut State, push: &Push<'_>) -> Outcome {
        if state.unseen {
            return Outcome::Acked;
        }
        let flight = state.pushes;
        state.pushes += 1;
        let Push { slot, sequence, cell, block } = *push;
        let block = block.map(|(block, archive)| (block, archive.to_vec()));
        let write = Write { link: self.number, slot, sequence, cell: *cell, block };
        state.steps.push(Step::Posted(Box::new(write)));
        if state.answers.pop_front().unwrap_or(true) {
            state.steps.push(Step::Acked(flight));
            return Outcome::Acked;
        }
        state.steps.push(Step::Failed(flight));
        state.broken[self.number as usize - 1] = true;
        Outcome::Failed(FailKind::Disconnected)
    }
}

impl Link for ChaosLink {
    fn kind(&self) -> TransportKind {
        TransportKind::Sim
    }

    fn checksum_kind(&self) -> ChecksumKind {
        self.card.manner.checksum
    }

    fn geometry(&self) -> LeaseGeometry {
        self.card.header.geometry
    }

    fn server_incarnation(&self) -> Incarnation {
        self.card.header.server_incarnation
    }

    fn post(&self, push: &Push<'_>) -> Posted {
        let Some(pieces) = self.card.pieces(push) else {
            return Posted::Done(Outcome::Failed(FailKind::Bounds));
        };
        let mut state = self.card.state();
        if state.broken[self.number as usize - 1] || state.fenced {
            return Posted::Done(Outcome::Failed(FailKind::NotPosted));
        }
        if self.card.manner.scripted {
            return Posted::Done(self.post_by_script(&mut state, push));
        }
        let id = PushId(state.pushes as u64);
        state.pushes += 1;
        let missing = (0..pieces.len()).collect();
        state.flights.push(Flight { id, link: self.number, pieces, missing, told: false });
        Posted::Pending(id)
    }

    fn poll(&self, push: PushId) -> Option<Outcome> {
        let mut state = self.card.state();
        let most = 24 + state.flights.iter().map(|flight| flight.missing.len() as u64).sum::<u64>() / 16;
        for _ in 0..state.random.below(most) {
            state.work(&self.card.memory, self.card.manner.fails_per_mille);
        }
        state.ended.remove(&push)
    }

    /// Nothing lands but by asking, so there is nothing to wait for.
    fn wait(&self, _push: PushId, _timeout: Duration) {}

    fn forget(&self, push: PushId) {
        let mut state = self.card.state();
        state.ended.remove(&push);
        if let Some(flight) = state.flights.iter_mut().find(|flight| flight.id == push) {
            flight.told = true;
        }
    }

    fn sends_in_place(&self) -> bool {
        false
    }

    fn detail(&self) -> String {
        format!("seed {}", self.card.manner.seed)
    }

    fn is_broken(&self) -> bool {
        let state = self.card.state();
        state.broken[self.number as usize - 1] || state.fenced
    }

    fn beat(&self, beat: u64, sessions: u64) {
        self.card.memory.store_u64(NODE_SESSIONS_OFFSET, sessions).unwrap();
        self.card.memory.store_u64(NODE_BEAT_OFFSET, beat).unwrap();
    }

    fn peer_beat(&self) -> u64 {
        self.card.memory.load_u64(SERVER_BEAT_OFFSET).unwrap()
    }

    fn is_sealed(&self) -> bool {
        self.card.memory.load_u64(SEAL_OFFSET).unwrap() != 0
    }
}
