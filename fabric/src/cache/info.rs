//! What the cache tells about itself: states, snapshots and the words of its interface.

use super::Hold;
use super::layout::{FLAG_ADOPTED, Word, content_state};
use super::shard::{Guard, content_version, entry_id};
use crate::ident::{Incarnation, SessionId, Version};
use crate::lease::{BlockOffset, LeaseGeometry, Sequence, SlotIndex};
use crate::limits::PLACES_MAX;
use std::ops::Deref;

/// State of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SegmentState {
    /// In use.
    Alive,
    /// The director prepares the end of this incarnation: finish, take nothing new. The cache itself refuses
    /// nothing.
    Draining,
    /// The incarnation is over; every operation fails with `OwnershipLost`.
    Poisoned,
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
    /// A new entry in state `Adopting`, locked by the caller. Published to, it is `Live`; released without,
    /// it is gone.
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
    /// It comes from a sealed lease: this node has a claim on it (R1), and its slots are kept while sealed
    /// copies may exist (R10).
    pub adopted: bool,
}

/// State of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EntryState {
    /// Inserted; nothing published yet.
    Adopting,
    /// Has an archive.
    Live,
    /// Destroyed or expired; the tombstone is kept while places are held (R9, R10). Its version is the
    /// tombstone's.
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
    /// Gave the lock back and goes on reading.
    Pinned,
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
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub struct PlaceIndex(pub u32);
/// A lease book.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub struct BookIndex(pub u32);
/// State of a place.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum PlaceState {
    /// Holds what `acked` says.
    #[default]
    Acked,
    /// A push is open.
    Pushing,
}

/// Snapshot of one place.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
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
    /// Idle expiry, Unix ms; of a tombstone in its grace the end of that.
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
    /// Until when it can be read although it is gone, Unix ms: its session has another id.
    pub grace_until_ms: Option<u64>,
    /// Its places.
    pub places: Places,
}

/// The places of an entry that are not empty; a slice without heap.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Places {
    places: [PlaceInfo; PLACES_MAX],
    count: usize,
}

impl Places {
    fn push(&mut self, place: PlaceInfo) {
        self.places[self.count] = place;
        self.count += 1;
    }
}

impl FromIterator<PlaceInfo> for Places {
    /// # Panics
    /// If there are more than `PLACES_MAX`.
    fn from_iter<T: IntoIterator<Item = PlaceInfo>>(places: T) -> Self {
        let mut all = Self::default();
        places.into_iter().for_each(|place| all.push(place));
        all
    }
}

impl Deref for Places {
    type Target = [PlaceInfo];
    fn deref(&self) -> &[PlaceInfo] {
        &self.places[..self.count]
    }
}

impl<'a> IntoIterator for &'a Places {
    type Item = &'a PlaceInfo;
    type IntoIter = std::slice::Iter<'a, PlaceInfo>;
    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl std::fmt::Debug for Places {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
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

/// A slot that a writer may still write (R4), kept until the writer is known to be gone: one link of a
/// process, or the whole process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quarantined {
    /// The lease's book.
    pub book: BookIndex,
    /// The server's life.
    pub server: Incarnation,
    /// The slot.
    pub slot: SlotIndex,
    /// The sequence for a cell that supersedes whatever the writer may have left there. The steward writes
    /// "moved" with it before it releases the slot: an old live cell of a session that is destroyed later
    /// must not revive it (R9).
    pub sequence: Sequence,
    /// The session that the writer pushed.
    pub id: SessionId,
    /// The writer.
    pub process: ProcessId,
    /// The writer's pid.
    pub pid: u32,
    /// The link that it wrote over, by its number at the server. `None`: any, so the process must be gone.
    pub link: Option<u64>,
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

impl Guard<'_> {
    /// Snapshot of an entry.
    pub(super) fn info(&self, index: u32) -> EntryInfo {
        let (entry, content) = (self.entry(index), self.content(index));
        EntryInfo {
            id: entry_id(entry),
            state: match content.state.read() {
                content_state::LIVE => EntryState::Live,
                content_state::GONE => EntryState::Gone,
                _ => EntryState::Adopting,
            },
            version: content_version(content),
            archive_bytes: content.archive_bytes.read(),
            expiry_ms: content.expiry_ms.read(),
            pushed_expiry_ms: entry.pushed_expiry_ms.read(),
            created_ms: entry.created_ms.read(),
            absolute_ms: entry.absolute_ms.read(),
            adopted: entry.flags.read() & FLAG_ADOPTED != 0,
            locked: entry.holder.read() != 0,
            grace_until_ms: self.is_graced(index).then(|| content.expiry_ms.read()),
            places: (0..PLACES_MAX as u32).filter_map(|place| self.place_info(index, place)).collect(),
        }
    }
}
