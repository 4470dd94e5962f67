//! How a node's pushes reach a lease: the trait [`Link`] and its contract, one file or folder per
//! implementation.
//!
//! - Setup ([`shm::setup`]) and data path ([`shm::data`]) are apart; the data path neither allocates nor
//!   locks.
//! - Acks come by [`Posted::Done`] at once (shared memory) or by [`Link::poll`] later (RDMA).

#[cfg(test)]
pub(crate) mod chaos;
pub mod conformance;
pub mod memory;
mod region;
pub mod select;
pub mod shm;
pub mod sim;
pub mod verbs;

use crate::archive::ArchiveLimits;
use crate::error::Result;
use crate::ident::Incarnation;
use crate::lease::{BlockOffset, CELL_BYTES, LeaseGeometry, ScanReport, Sequence, SessionCopy, SlotIndex};
use std::time::Duration;

pub use crate::config::TransportKind;
pub use region::Region;

/// Which archive checksum the cells pushed over a link must carry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChecksumKind {
    /// None: the transport keeps the order of writes.
    None,
    /// XXH3-64.
    Xxh3,
}

/// One push: a block (unless it is a touch, a tombstone or a move) and then a cell.
#[derive(Clone, Copy, Debug)]
pub struct Push<'a> {
    /// The slot.
    pub slot: SlotIndex,
    /// The cell's sequence; its lowest bit says which cell of the pair is written.
    pub sequence: Sequence,
    /// The encoded cell.
    pub cell: &'a [u8; CELL_BYTES],
    /// The archive and the free block that takes it.
    pub block: Option<(BlockOffset, &'a [u8])>,
}

/// Names a push that is under way on one link.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PushId(pub u64);

/// How a push ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The push is complete at the server.
    Acked,
    /// The lease is sealed: no ack from any lease of this incarnation counts any more (R2).
    Sealed,
    /// It is unknown whether the push arrived; slot and blocks must be quarantined (R4) unless `kind` is
    /// `Bounds` or `NotPosted`.
    Failed(FailKind),
}

/// Why a push failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FailKind {
    /// Slot or block lie outside the lease; nothing was written.
    Bounds,
    /// The link has not taken it: as many pushes are under way as it can hold, or it was broken before
    /// ([`Link::is_broken`] tells which). Nothing was written and nothing will be.
    NotPosted,
    /// The link is cut.
    Disconnected,
    /// The server has taken the memory away: it has sealed the lease, or it is going. The hardware cannot
    /// tell which, so this is no proof of a seal: the node asks the server before it draws conclusions.
    Revoked,
}

/// What became of a posted push.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Posted {
    /// It has ended.
    Done(Outcome),
    /// It is under way; [`Link::poll`] will tell.
    Pending(PushId),
}

/// A node's end of a lease. Posting to different slots at the same time is allowed; to one slot it is not:
/// the caller keeps at most one un-acked push per slot (invariant 5), and never posts into a block that a
/// cell has named (invariant 4).
pub trait Link: Send + Sync {
    /// Which way it is.
    fn kind(&self) -> TransportKind;
    /// Which checksum its cells must carry.
    fn checksum_kind(&self) -> ChecksumKind;
    /// The lease's sizes.
    fn geometry(&self) -> LeaseGeometry;
    /// The server's incarnation (R6).
    fn server_incarnation(&self) -> Incarnation;
    /// Begins a push. The bytes may be reused when it has ended. A link that [`Self::sends_in_place`] takes
    /// the archive from the node's cache segment and refuses any other memory with `Bounds`.
    fn post(&self, push: &Push<'_>) -> Posted;
    /// How a pending push ended, if it has; told once. Each call also makes the link look for the ends of all
    /// its pushes; threads may ask for different pushes at the same time.
    fn poll(&self, push: PushId) -> Option<Outcome>;
    /// Sleeps until this push may have ended, `timeout` at most: for those who have polled long enough. May
    /// return early.
    fn wait(&self, push: PushId, timeout: Duration);
    /// Gives a pending push up: nobody will ask for it again. The link forgets it when it ends.
    fn forget(&self, push: PushId);
    /// Whether archives are sent from where they lie, in the cache segment, instead of being copied by
    /// `post`.
    fn sends_in_place(&self) -> bool;
    /// For people: device, port and the like; empty if there is nothing to say.
    fn detail(&self) -> String;
    /// Whether the link is of no more use: it must be opened again, or its server asked why.
    fn is_broken(&self) -> bool;
    /// Writes the node's heartbeat and its number of sessions in this lease for the server to see, and asks
    /// for the server's; neither is waited for.
    fn beat(&self, beat: u64, sessions: u64);
    /// The server's heartbeat, as last seen.
    fn peer_beat(&self) -> u64;
    /// Whether the lease is known to be sealed (R2). Only what the server has written counts; see
    /// [`FailKind::Revoked`].
    fn is_sealed(&self) -> bool;
}

/// A server's end of a lease, over any transport. [`memory::ServerLease`] is the one of real leases.
pub trait ServerEnd: Send + Sync {
    /// Ends the lease: nothing written afterwards is acked (R2). When it returns, a scan sees every acked
    /// push.
    fn seal(&self);
    /// Reads all slots of a sealed lease.
    ///
    /// # Errors
    /// `Invalid` unless it is sealed.
    fn scan(&self, limits: &ArchiveLimits) -> Result<ScanReport>;
    /// The archive of a sealed copy, checked (see [`crate::lease::fetch`]).
    ///
    /// # Errors
    /// As [`crate::lease::fetch`]; `Invalid` unless it is sealed.
    fn fetch(&self, copy: &SessionCopy, limits: &ArchiveLimits) -> Result<Vec<u8>>;
    /// Writes the server's heartbeat for the node to see.
    fn beat(&self, beat: u64);
    /// The node's heartbeat.
    fn node_beat(&self) -> u64;
    /// The node's own count of its sessions in this lease.
    fn node_sessions(&self) -> u64;
}
