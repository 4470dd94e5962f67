//! The node's cache: one shared-memory segment, used by all processes of the node at once.
//!
//! It holds the archives of the sessions that the node hosts, the index that finds them, the sessions' locks and pins, the
//! view that the steward last got, and the allocators of the node's leases. `kill -9` of any process at any instruction
//! leaves it consistent: every change has one word whose store makes it happen, and whoever meets a dead process's traces
//! finishes or undoes them (see `ARCHITECTURE.md`, "The cache segment").
//!
//! Callers: `node` only. On a poisoned segment every call fails with `OwnershipLost` (R3).

#![allow(unused_variables, dead_code, clippy::unimplemented)]

use crate::config::Config;
use crate::error::Result;
use crate::ident::{Epoch, Incarnation, SessionId, Version};
use crate::lease::{BlockOffset, LeaseGeometry, Sequence, SlotIndex};
use crate::sync::LockFile;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Sizes and bounds of a segment; fixed for its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheSpec {
    /// The node's configured name.
    pub node: String,
    /// The node's life.
    pub incarnation: Incarnation,
    /// Entries, and slots of each lease.
    pub sessions_max: u32,
    /// Heap for archives, bytes.
    pub cache_bytes: u64,
    /// Heap of each lease, bytes; what a server grants may be smaller, not larger.
    pub lease_bytes: u64,
    /// Lease books: twice the configured servers.
    pub books: u32,
    /// Largest archive, bytes.
    pub archive_bytes_max: u32,
    /// Processes that can be attached at once.
    pub processes_max: u32,
    /// Requests that may wait for one session.
    pub waiters_max: u32,
    /// A lock held longer than this is revoked once another waits for it, ms.
    pub lock_hold_ms: u64,
}

impl CacheSpec {
    /// The spec of a configured node's next life.
    pub fn from_config(config: &Config, node: &str, incarnation: Incarnation) -> Self {
        unimplemented!()
    }

    /// The name of the segment: `<prefix><node>-<incarnation hex>`.
    pub fn segment_name(config: &Config, node: &str, incarnation: Incarnation) -> String {
        unimplemented!()
    }
}

/// State of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SegmentState {
    /// In use.
    Alive,
    /// The director prepares the end of this incarnation: finish, take nothing new. The cache itself refuses nothing.
    Draining,
    /// The incarnation is over; every operation fails with `OwnershipLost`.
    Poisoned,
}

/// This process's attachment to a segment. Clones share it; dropping the last gives the process slot back.
#[derive(Clone)]
pub struct Cache {
    inner: Arc<()>,
}

/// Life of a process in the process table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct ProcessId {
    /// Its slot; byte 16 + slot of the lock file.
    pub slot: u32,
    /// Which life of the slot.
    pub generation: u32,
}

/// What a process of the table is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProcessInfo {
    /// Its place in the table.
    pub id: ProcessId,
    /// Its pid, as itself sees it.
    pub pid: u32,
    /// Whether it lives.
    pub alive: bool,
}

/// What an exclusive open found.
pub enum Opened {
    /// The lock is the caller's.
    Granted(Hold),
    /// Others are before; use [`Hold::wait`], or [`Hold::state`] after doorbells.
    Waiting(Hold),
    /// Too many wait already.
    Busy,
    /// No entry. (`Adopting` entries and tombstones are found: see [`EntryInfo::state`].)
    Missing,
}

/// What an insert found.
pub enum Inserted {
    /// A new entry in state `Adopting`, locked by the caller. Published to, it is `Live`; released without, it is gone.
    Granted(Hold),
    /// There is one already.
    Exists,
}

/// First facts of a new entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct EntryInit {
    /// Unix ms.
    pub created_ms: u64,
    /// Absolute end, Unix ms.
    pub absolute_ms: u64,
    /// It comes from a sealed lease: this node has a claim on it (R1), and its slots are kept while sealed copies may
    /// exist (R10).
    pub adopted: bool,
}

/// State of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EntryState {
    /// Inserted; nothing published yet.
    Adopting,
    /// Has an archive.
    Live,
    /// Destroyed or expired; the tombstone is kept while places are held (R9, R10). Its version is the tombstone's.
    Gone,
}

/// State of a hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HoldState {
    /// In the queue.
    Waiting,
    /// Has the session's lock.
    Granted,
    /// Had the lock too long while others waited, and lost it.
    Revoked,
}

/// How a wait ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Waited {
    /// The lock is the caller's.
    Granted,
    /// The lock was lost (see [`HoldState::Revoked`]).
    Revoked,
    /// Not before the deadline; the hold is still in the queue until it is dropped.
    Timeout,
}

/// A place of an entry: 0 to `PLACES_MAX - 1`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct PlaceIndex(pub u32);
/// A lease book.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct BookIndex(pub u32);
/// State of a place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PlaceState {
    /// Holds what `acked` says.
    Acked,
    /// A push is open.
    Pushing,
}

/// Snapshot of one place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PlaceInfo {
    /// Which place of the entry.
    pub index: PlaceIndex,
    /// The server's life that it is at.
    pub server: Incarnation,
    /// The book of the lease there.
    pub book: BookIndex,
    /// The slot.
    pub slot: SlotIndex,
    /// The newest acked version; `None` before the first ack.
    pub acked: Option<Version>,
    /// The block of the newest acked cell; `None` for a tombstone, or before the first ack.
    pub block: Option<BlockOffset>,
    /// Whether a push is open.
    pub state: PlaceState,
}

/// Snapshot of an entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EntryInfo {
    /// The session.
    pub id: SessionId,
    /// Its state.
    pub state: EntryState,
    /// Its version.
    pub version: Version,
    /// Bytes of its archive.
    pub archive_bytes: u32,
    /// Idle expiry, Unix ms.
    pub expiry_ms: u64,
    /// The expiry that was last acked at every place (R13), Unix ms.
    pub pushed_expiry_ms: u64,
    /// Unix ms.
    pub created_ms: u64,
    /// Absolute end, Unix ms.
    pub absolute_ms: u64,
    /// As at its insertion.
    pub adopted: bool,
    /// Whether somebody has its lock.
    pub locked: bool,
    /// Its places.
    pub places: Vec<PlaceInfo>,
}

/// What a push needs: where to write what. Made by [`Hold::begin_push`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Push {
    /// The place, for [`Hold::end_push`] and its like.
    pub place: PlaceIndex,
    /// The server's life.
    pub server: Incarnation,
    /// The lease's book.
    pub book: BookIndex,
    /// The slot.
    pub slot: SlotIndex,
    /// The sequence for the cell, to be written to cell `sequence & 1`.
    pub sequence: Sequence,
    /// Where the archive goes, or (a touch) where it lies already. `None` for a tombstone or "moved".
    pub block: Option<BlockOffset>,
    /// Whether the archive must be written to `block`.
    pub fresh: bool,
}

/// What to push.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PushKind {
    /// An archive of so many bytes, into a new block.
    Archive(u32),
    /// A cell that names the acked block again. Where the place has none, begin_push fails with `Invalid`.
    Touch,
    /// A cell without a block: tombstone or "moved".
    Bare,
}

/// An open session: in the queue for its lock, or with the lock. Dropping it leaves the queue or releases the lock;
/// the next in the queue is granted at once.
pub struct Hold {
    cache: Cache,
}

impl Hold {
    /// Where this hold stands. A poisoned segment is seen by the operations, not here.
    pub fn state(&self) -> HoldState {
        unimplemented!()
    }
    /// The session.
    pub fn id(&self) -> SessionId {
        unimplemented!()
    }
    /// Waits for the lock. Looks every `LIVENESS_POLL` whether the holder died (then repairs and goes on) or has held
    /// longer than `lock_hold_ms` (then revokes).
    pub fn wait(&self, deadline: Instant) -> Result<Waited> {
        unimplemented!()
    }
    /// For asynchronous waits: the look that [`Hold::wait`] takes, once. Call it every `LIVENESS_POLL` while waiting.
    pub fn tend(&self) -> Result<HoldState> {
        unimplemented!()
    }
    /// Whether the lock is still the caller's: `OwnershipLost` or `LockLost` otherwise. No lock is taken.
    pub fn check(&self) -> Result<()> {
        unimplemented!()
    }
    /// Snapshot of the entry.
    pub fn info(&self) -> Result<EntryInfo> {
        unimplemented!()
    }
    /// The current archive; empty if there is none. Stays as it is until the next publish through this hold, even if the
    /// lock is revoked.
    pub fn bytes(&self) -> &[u8] {
        unimplemented!()
    }
    /// Allocates a block for a new archive of `bytes` and gives it out for writing. A second call gives the first back.
    /// `Full`, `TooLarge`.
    pub fn stage(&mut self, bytes: u32) -> Result<&mut [u8]> {
        unimplemented!()
    }
    /// Replaces the facts that were given at the insertion, before the first publish: an adopter takes the entry before it
    /// claims and fetches, so that nobody else of this node does, and knows them only afterwards.
    pub fn set_init(&mut self, init: EntryInit) -> Result<()> {
        unimplemented!()
    }
    /// Makes the staged block the entry's archive. Anything that is pinned by readers stays until they let go.
    pub fn publish(&mut self, version: Version, expiry_ms: u64) -> Result<()> {
        unimplemented!()
    }
    /// A new version and expiry, data unchanged (R13).
    pub fn touch(&mut self, version: Version, expiry_ms: u64) -> Result<()> {
        unimplemented!()
    }
    /// Turns the entry into a tombstone of `version`; its cache block is freed. It leaves the cache when this hold is
    /// released and no place is held.
    pub fn remove(&mut self, version: Version) -> Result<()> {
        unimplemented!()
    }
    /// The place at a server's life.
    pub fn place_at(&self, server: Incarnation) -> Result<Option<PlaceInfo>> {
        unimplemented!()
    }
    /// Opens a push to the lease of `book`: finds the entry's place there or takes a new slot, allocates the block.
    /// `Full` (lease), `Busy` (a push is open there, or all places are taken), `Unreachable` (book not active).
    pub fn begin_push(&mut self, book: BookIndex, kind: PushKind) -> Result<Push> {
        unimplemented!()
    }
    /// The push is acked: the place has `version`, and its previous block is free (R7). `LockLost` if the lock was
    /// revoked meanwhile: the slot is in quarantine then (R4).
    pub fn end_push(&mut self, push: &Push, version: Version, expiry_ms: u64) -> Result<()> {
        unimplemented!()
    }
    /// Nothing of the push was written and nothing ever will be: undo it.
    pub fn cancel_push(&mut self, push: &Push) -> Result<()> {
        unimplemented!()
    }
    /// The push may or may not arrive: its slot and blocks go into quarantine (R4), the place is empty.
    pub fn abandon_push(&mut self, push: &Push) -> Result<()> {
        unimplemented!()
    }
    /// Frees the place's slot and block in its book; the caller has had its tombstone or "moved" acked (R9, R11), or the
    /// server's life is over.
    pub fn free_place(&mut self, place: PlaceIndex) -> Result<()> {
        unimplemented!()
    }
    /// Lets go; same as dropping.
    pub fn release(self) {}
}

/// A reader's view of a session: its archive as it was at [`Cache::open_read`], without copy, until dropped.
pub struct Pin {
    cache: Cache,
}

impl Pin {
    /// The archive.
    pub fn bytes(&self) -> &[u8] {
        unimplemented!()
    }
    /// Its version.
    pub fn version(&self) -> Version {
        unimplemented!()
    }
    /// Idle expiry, Unix ms.
    pub fn expiry_ms(&self) -> u64 {
        unimplemented!()
    }
    /// Absolute end, Unix ms.
    pub fn absolute_ms(&self) -> u64 {
        unimplemented!()
    }
}

/// State of a lease book.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BookState {
    /// Unused.
    Free,
    /// Pushes go through it.
    Active,
    /// Its server's life is over for this node; places there are being given up.
    Retiring,
}

/// Snapshot of a lease book.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BookInfo {
    /// Which book.
    pub index: BookIndex,
    /// Its state.
    pub state: BookState,
    /// The server's configured name.
    pub server: String,
    /// The server's life.
    pub incarnation: Incarnation,
    /// Number of the lease there.
    pub lease: u64,
    /// Sizes of the lease.
    pub geometry: LeaseGeometry,
}

/// A slot that a writer may still write (R4), kept until its process is known to be gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quarantined {
    /// The lease's book.
    pub book: BookIndex,
    /// The server's life.
    pub server: Incarnation,
    /// The slot.
    pub slot: SlotIndex,
    /// The sequence for a cell that supersedes whatever the writer may have left there. The steward writes "moved" with it
    /// before it releases the slot: an old live cell of a session that is destroyed later must not revive it (R9).
    pub sequence: Sequence,
    /// The session that the writer pushed.
    pub id: SessionId,
    /// The writer.
    pub process: ProcessId,
    /// The writer's pid.
    pub pid: u32,
}

/// Sums over the cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CacheStats {
    /// Live sessions.
    pub sessions: u64,
    /// Tombstones and adopting entries.
    pub others: u64,
    /// Live sessions whose current version is acked at 0, 1, 2 (or more) active books.
    pub safe: [u64; 3],
    /// Bytes of heap blocks that live sessions use.
    pub bytes_used: u64,
    /// Bytes of the heap.
    pub bytes_total: u64,
}

/// Number of counter cells in the header.
pub const COUNTERS: usize = 64;

impl Cache {
    /// Creates the segment `name`, fully allocated, mode 0600, and attaches. The caller holds the creation lock.
    ///
    /// # Errors
    /// `Full` if /dev/shm is too small (says how large it is, and what to do), `Conflict` if the name exists.
    pub fn create(spec: &CacheSpec, name: &str, lock_file: Arc<LockFile>) -> Result<Self> {
        unimplemented!()
    }
    /// Attaches to the segment `name`. The caller holds the creation lock.
    ///
    /// # Errors
    /// `NotReady`, `VersionMismatch`, `TooSmall`, `Corrupt`, `Denied` (another user's), `Busy` (no process slot left),
    /// `OwnershipLost` if it is poisoned, `Os` if it is not there.
    pub fn attach(name: &str, lock_file: Arc<LockFile>) -> Result<Self> {
        unimplemented!()
    }
    /// A segment on private memory with the same code, for tests and simulation.
    pub fn anonymous(spec: &CacheSpec) -> Result<Self> {
        unimplemented!()
    }
    /// Attaches another simulated process to an anonymous segment.
    pub fn sibling(&self) -> Result<Self> {
        unimplemented!()
    }
    /// Simulates `kill -9` of a process attached to an anonymous segment: it counts as dead and nothing of it is undone.
    pub fn kill(self) {
        unimplemented!()
    }
    /// Removes the segment's name; processes attached keep it until they let go. Missing is fine.
    pub fn unlink(name: &str) -> Result<()> {
        unimplemented!()
    }
    /// Poisons (if it can be attached) and removes every segment of this node but `keep`. Under the creation lock.
    pub fn remove_stale(prefix_and_node: &str, keep: Option<&str>) -> Result<u32> {
        unimplemented!()
    }

    /// The sizes that it was created with.
    pub fn spec(&self) -> &CacheSpec {
        unimplemented!()
    }
    /// The node's life.
    pub fn incarnation(&self) -> Incarnation {
        unimplemented!()
    }
    /// This process's place in the table.
    pub fn process(&self) -> ProcessId {
        unimplemented!()
    }
    /// The attached processes.
    pub fn processes(&self) -> Vec<ProcessInfo> {
        unimplemented!()
    }
    /// State of the segment.
    pub fn state(&self) -> SegmentState {
        unimplemented!()
    }
    /// Alive to draining or back. Never leaves `Poisoned`.
    pub fn set_draining(&self, draining: bool) {
        unimplemented!()
    }
    /// Ends this incarnation: everything waiting is woken, everything fails with `OwnershipLost`. Cannot be undone.
    pub fn poison(&self) {
        unimplemented!()
    }
    /// Whether it is poisoned.
    pub fn is_poisoned(&self) -> bool {
        unimplemented!()
    }
    /// End of the mandate (R8), on `CLOCK_MONOTONIC`, ns; 0 if there never was one.
    pub fn mandate_until_ns(&self) -> u64 {
        unimplemented!()
    }
    /// Moves the mandate's end (forward only).
    pub fn set_mandate_until_ns(&self, until_ns: u64) {
        unimplemented!()
    }
    /// The newest view's epoch and its bytes as the steward stored them; `None` before the first.
    pub fn view(&self) -> Option<(Epoch, Vec<u8>)> {
        unimplemented!()
    }
    /// Changes whenever the view does; 0 before the first.
    pub fn view_sequence(&self) -> u64 {
        unimplemented!()
    }
    /// Stores a view; steward only. `TooLarge` over 256 KiB.
    pub fn set_view(&self, epoch: Epoch, bytes: &[u8]) -> Result<()> {
        unimplemented!()
    }
    /// A counter cell; the caller gives numbers their names.
    pub fn counter(&self, index: usize) -> &std::sync::atomic::AtomicU64 {
        unimplemented!()
    }

    /// Opens for change; joins the queue if others hold or wait.
    pub fn open_exclusive(&self, id: &SessionId) -> Result<Opened> {
        unimplemented!()
    }
    /// Opens for change if nobody holds or waits; `Busy` otherwise. For the steward.
    pub fn try_exclusive(&self, id: &SessionId) -> Result<Opened> {
        unimplemented!()
    }
    /// A new entry. `Full` if there are `sessions_max` already.
    pub fn insert(&self, id: &SessionId, init: EntryInit) -> Result<Inserted> {
        unimplemented!()
    }
    /// Pins the current archive of a live session. The caller judges the expiry.
    pub fn open_read(&self, id: &SessionId) -> Result<Option<Pin>> {
        unimplemented!()
    }
    /// Snapshot of the entry with this index, for the steward's rounds: 0 to `sessions_max - 1`.
    pub fn entry(&self, index: u32) -> Result<Option<EntryInfo>> {
        unimplemented!()
    }
    /// Snapshot by id.
    pub fn find(&self, id: &SessionId) -> Result<Option<EntryInfo>> {
        unimplemented!()
    }
    /// Sums; cheap (kept per shard).
    pub fn stats(&self) -> Result<CacheStats> {
        unimplemented!()
    }
    /// Counts the safe copies of all sessions anew; after a change of books.
    pub fn recount(&self) -> Result<()> {
        unimplemented!()
    }
    /// The process's doorbell: rises when one of its waiting holds was granted or revoked, or the segment was poisoned.
    pub fn doorbell(&self) -> u32 {
        unimplemented!()
    }
    /// Waits until the doorbell differs from `seen`, or the timeout. Returns its value.
    pub fn wait_doorbell(&self, seen: u32, timeout: Duration) -> u32 {
        unimplemented!()
    }
    /// Rings the own process's doorbell (to end a `wait_doorbell`).
    pub fn ring_doorbell(&self) {
        unimplemented!()
    }

    /// Looks for processes that died, releases their holds, pins and waits, and puts their open pushes into quarantine.
    pub fn repair_dead(&self) -> Result<Vec<ProcessInfo>> {
        unimplemented!()
    }
    /// Slots in quarantine.
    pub fn quarantined(&self) -> Vec<Quarantined> {
        unimplemented!()
    }
    /// The server has confirmed that the writer is gone: its slot and blocks are free.
    pub fn release_quarantined(&self, quarantined: &Quarantined) {
        unimplemented!()
    }

    /// All books that are not free.
    pub fn books(&self) -> Vec<BookInfo> {
        unimplemented!()
    }
    /// One book.
    pub fn book(&self, book: BookIndex) -> BookInfo {
        unimplemented!()
    }
    /// The active or retiring book of a server's life.
    pub fn book_of(&self, server: Incarnation) -> Option<BookInfo> {
        unimplemented!()
    }
    /// Takes a free book for a server's life (or gives the one that it has); steward only. `Full` if none is free.
    pub fn activate_book(
        &self,
        server: &str,
        incarnation: Incarnation,
        lease: u64,
        geometry: LeaseGeometry,
    ) -> Result<BookIndex> {
        unimplemented!()
    }
    /// No further push begins there; its places are not counted as safe any more. Steward only.
    pub fn retire_book(&self, book: BookIndex) {
        unimplemented!()
    }
    /// A retiring book becomes free; steward only, after all places there were given up. Those that were not are void.
    pub fn reset_book(&self, book: BookIndex) {
        unimplemented!()
    }
}
