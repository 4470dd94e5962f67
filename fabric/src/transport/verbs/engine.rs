//! The push engine: what a link does with each push, beat and read, over any [`Wire`].
//!
//! No allocation and no lock of ours: a push takes an entry of the table, builds its requests on the stack
//! and posts them; whoever asks for a push fetches completions for everybody and then looks at its own entry.
//! Invariants 12 to 17 of ARCHITECTURE.md are kept here.

use super::fault::{Cause, Fault};
use super::flight::{End, Flight, Ticket};
use super::requests::{self, Completions, Local, Refused, Remote, Wire};
use super::sleep::Sleepers;
use crate::control::message::RemoteMemory;
use crate::error::Result;
use crate::ident::Incarnation;
use crate::lease::{
    LeaseGeometry, NODE_BEAT_OFFSET, NODE_SESSIONS_OFFSET, SEAL_OFFSET, SERVER_BEAT_OFFSET,
    SERVER_INCARNATION_OFFSET, Words,
};
use crate::limits::{RDMA_BULK_READS, RDMA_FULL_WAIT};
use crate::rules::{Rule, holds};
use crate::sync::words::{AtomicU32, AtomicU64, Ordering};
use crate::transport::memory::Mapping;
use crate::transport::{FailKind, Outcome, Posted, Push, PushId, Region};
use rdma_mummy_sys as sys;
use std::sync::Arc;
use std::time::Instant;

/// The part of a lease's header that each beat reads.
const HEADER_BEGIN: u64 = SERVER_INCARNATION_OFFSET;
const HEADER_END: u64 = SERVER_BEAT_OFFSET + 8;
const _: () = assert!(HEADER_BEGIN < SEAL_OFFSET && SEAL_OFFSET < HEADER_END);
const _: () = assert!(NODE_SESSIONS_OFFSET == NODE_BEAT_OFFSET + 8, "a beat writes both words at once");
/// Bytes of the page that beats are read into.
const PAGE_BYTES: usize = 4096;

/// The lease at the other end.
#[derive(Clone, Copy, Debug)]
pub struct Lease {
    /// Its memory.
    pub memory: RemoteMemory,
    /// Its sizes, which the memory is large enough for.
    pub geometry: LeaseGeometry,
    /// The server's incarnation (R6).
    pub server: Incarnation,
}

/// The memory that archives are sent from: a registered region and its key.
pub struct Source {
    /// The region. Kept mapped.
    pub region: Arc<dyn Region>,
    /// Its local key.
    pub key: u32,
}

/// See the module's head.
pub struct Engine<W> {
    pub(super) wire: W,
    pub(super) flight: Flight,
    pub(super) fault: Fault,
    pub(super) sleepers: Sleepers,
    lease: Lease,
    source: Source,
    page: Arc<Mapping>,
    page_key: u32,
    /// The entry of the beat; those of bulk reads follow.
    beat_entry: u32,
    sealed: AtomicU32,
    peer_beat: AtomicU64,
}

impl<W: Wire> Engine<W> {
    /// An engine for at most `pushes` pushes at once. `register` registers the page that beats are read into.
    ///
    /// # Errors
    /// `Os` without memory for the page; what `register` says.
    pub fn new(
        wire: W,
        lease: Lease,
        source: Source,
        pushes: u32,
        register: impl FnOnce(Arc<dyn Region>) -> Result<u32>,
    ) -> Result<Self> {
        let page = Arc::new(Mapping::anonymous(PAGE_BYTES)?);
        let page_key = register(page.clone())?;
        let pushes = pushes.max(1);
        Ok(Self {
            wire,
            flight: Flight::new(pushes, 1 + RDMA_BULK_READS),
            fault: Fault::default(),
            sleepers: Sleepers::default(),
            lease,
            source,
            page,
            page_key,
            beat_entry: pushes,
            sealed: AtomicU32::new(0),
            peer_beat: AtomicU64::new(0),
        })
    }

    /// The lease at the other end.
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// See [`crate::transport::Link::post`].
    #[inline]
    pub fn post(&self, push: &Push<'_>) -> Posted {
        if self.fault.is_set() {
            return Posted::Done(Outcome::Failed(FailKind::NotPosted));
        }
        if self.is_sealed() && holds(Rule::R2SealByView) {
            return Posted::Done(Outcome::Sealed);
        }
        let Some((archive, cell)) = self.places(push) else {
            return Posted::Done(Outcome::Failed(FailKind::Bounds));
        };
        let Some(ticket) = self.flight.take().or_else(|| self.take_when_full()) else {
            return Posted::Done(Outcome::Failed(FailKind::NotPosted));
        };
        let ids = (ticket.id(), ticket.part_id());
        match requests::push(&self.wire, archive, push.cell, cell, ids) {
            Ok(()) => Posted::Pending(PushId(ticket.id())),
            Err(refused) => Posted::Done(Outcome::Failed(self.refused(ticket, refused))),
        }
    }

    /// See [`crate::transport::Link::poll`].
    #[inline]
    pub fn poll(&self, push: PushId) -> Option<Outcome> {
        let ticket = Ticket::of_push(push.0);
        let end = match self.flight.ask(ticket) {
            Some(end) => end,
            None => {
                self.drain();
                match self.flight.ask(ticket) {
                    Some(end) => end,
                    None => return self.lost(ticket),
                }
            }
        };
        Some(match end {
            End::Failed => Outcome::Failed(self.fault.kind()),
            // Only a view seals: nothing counts any more, whenever it arrived (R2).
            End::Done if self.is_sealed() && holds(Rule::R2SealByView) => Outcome::Sealed,
            // What another life of the server took is not an ack of this one (R6).
            End::Done if self.fault.cause() == Some(Cause::Foreign) => {
                Outcome::Failed(FailKind::Disconnected)
            }
            End::Done => Outcome::Acked,
        })
    }

    /// See [`crate::transport::Link::forget`].
    pub fn forget(&self, push: PushId) {
        self.flight.forget(Ticket::of_push(push.0));
    }

    /// See [`crate::transport::Link::beat`].
    pub fn beat(&self, beat: u64, sessions: u64) {
        self.drain();
        if self.wire.is_lost() {
            self.lose();
        }
        if self.fault.is_set() {
            return;
        }
        // The last one is still under way: the network is slow, and this beat would only queue behind it.
        let Some(ticket) = self.flight.take_at(self.beat_entry) else { return };
        let mut words = [0; 16];
        words[..8].copy_from_slice(&beat.to_le_bytes());
        words[8..].copy_from_slice(&sessions.to_le_bytes());
        let page = Local {
            address: self.page.address() as u64,
            bytes: (HEADER_END - HEADER_BEGIN) as u32,
            key: self.page_key,
        };
        let (to, from) = (self.at(NODE_BEAT_OFFSET), self.at(HEADER_BEGIN));
        let ids = (ticket.id(), ticket.part_id());
        if let Err(refused) = requests::beat(&self.wire, &words, to, from, page, ids) {
            self.refused(ticket, refused);
        }
    }

    /// See [`crate::transport::Link::peer_beat`].
    pub fn peer_beat(&self) -> u64 {
        self.drain();
        self.peer_beat.load(Ordering::Acquire)
    }

    /// See [`crate::transport::Link::is_sealed`].
    #[inline]
    pub fn is_sealed(&self) -> bool {
        self.sealed.load(Ordering::Acquire) != 0
    }

    /// Begins a read as number `index` of the bulk reads; `None` if the one before it there has not ended.
    pub(super) fn read(&self, index: u32, from: Remote, into: Local) -> Option<Ticket> {
        if self.fault.is_set() {
            return None;
        }
        let ticket = self.flight.take_at(self.beat_entry + 1 + index)?;
        match requests::read(&self.wire, from, into, ticket.id()) {
            Ok(()) => Some(ticket),
            Err(refused) => {
                self.refused(ticket, refused);
                None
            }
        }
    }

    /// Fetches completions and notes them, whoever they are for.
    pub(super) fn drain(&self) {
        let mut room = Completions::new();
        let completions = self.wire.poll(&mut room);
        for completion in completions {
            self.note(completion);
        }
        if !completions.is_empty() {
            self.sleepers.wake();
        }
    }

    /// Device or port have gone: nothing that is under way need ever complete.
    #[cold]
    pub(super) fn lose(&self) {
        self.fault.set(Cause::Device);
    }

    #[inline]
    fn note(&self, completion: &sys::ibv_wc) {
        let is_good = completion.status == sys::ibv_wc_status::IBV_WC_SUCCESS;
        if !is_good {
            // First, so that whoever sees the entry ended finds the cause.
            self.fault.set(Cause::Completion(completion.status, completion.vendor_err));
        }
        // A part completes only if it fails, and the last of its chain is flushed then: that ends the push.
        let Some(ticket) = Ticket::of_completion(completion.wr_id) else { return };
        if ticket.index() == self.beat_entry {
            if is_good {
                self.take_header();
            }
            self.flight.give_back(ticket);
        } else {
            self.flight.end(ticket, if is_good { End::Done } else { End::Failed });
        }
    }

    /// Takes over what the last beat has read. The page is ours until the beat's entry is given back.
    fn take_header(&self) {
        let word = |offset: u64| {
            let at = (offset - HEADER_BEGIN) as usize / 8;
            self.page.words().get(at).map_or(0, |word| word.load(Ordering::Relaxed))
        };
        if word(SERVER_INCARNATION_OFFSET) != self.lease.server.0 && holds(Rule::R6AckIncarnation) {
            // Keys repeat: this is other memory than the lease that was granted.
            self.fault.set(Cause::Foreign);
            return;
        }
        if word(SEAL_OFFSET) != 0 {
            self.sealed.store(1, Ordering::Release);
        }
        self.peer_beat.store(word(SERVER_BEAT_OFFSET), Ordering::Release);
    }

    /// Where a push's archive lies and goes, and where its cell goes; `None` out of bounds.
    #[inline]
    fn places(&self, push: &Push<'_>) -> Option<(Option<(Local, Remote)>, Remote)> {
        let geometry = &self.lease.geometry;
        let cell = self.at(geometry.cell_offset(push.slot, push.sequence)?);
        let Some((block, archive)) = push.block else { return Some((None, cell)) };
        let to = self.at(geometry.block_offset(block, archive.len())?);
        let begin = archive.as_ptr() as u64;
        let region = self.source.region.address() as u64;
        let skipped = begin.checked_sub(region)?;
        let inside = skipped.checked_add(archive.len() as u64)? <= self.source.region.bytes() as u64;
        let bytes = u32::try_from(archive.len()).ok()?;
        let from = Local { address: begin, bytes, key: self.source.key };
        inside.then_some(((bytes > 0).then_some((from, to)), cell))
    }

    /// A place in the lease. The geometry's offsets are inside the memory that was told (checked when the
    /// link was opened), so nothing overflows.
    #[inline]
    fn at(&self, offset: u64) -> Remote {
        Remote { address: self.lease.memory.address.wrapping_add(offset), key: self.lease.memory.key }
    }

    /// Every entry is in use: fetches completions until one is free, for a short while.
    #[cold]
    fn take_when_full(&self) -> Option<Ticket> {
        let begin = Instant::now();
        loop {
            self.drain();
            if let Some(ticket) = self.flight.take() {
                return Some(ticket);
            }
            if self.fault.is_set() || begin.elapsed() >= RDMA_FULL_WAIT {
                return None;
            }
            std::thread::yield_now();
        }
    }

    /// The send queue has not taken a chain, or not all of it.
    #[cold]
    fn refused(&self, ticket: Ticket, refused: Refused) -> FailKind {
        match refused {
            Refused::All(errno) => {
                self.flight.give_back(ticket);
                // A full send queue passes; anything else is a queue pair that takes nothing any more.
                if errno != libc::ENOMEM.unsigned_abs() {
                    self.fault.set(Cause::Post(errno));
                }
                FailKind::NotPosted
            }
            Refused::Part(errno) => {
                // The archive may be on its way without the cell that would complete.
                self.flight.forget(ticket);
                self.fault.set(Cause::Post(errno));
                FailKind::Disconnected
            }
        }
    }

    /// The end of a push that no completion will tell.
    fn lost(&self, ticket: Ticket) -> Option<Outcome> {
        if self.fault.cause() != Some(Cause::Device) || !self.flight.is_pending(ticket) {
            return None;
        }
        self.flight.forget(ticket);
        Some(Outcome::Failed(FailKind::Disconnected))
    }
}
