//! The layout of a cache segment: every structure and offset in one place. Bump [`LAYOUT_VERSION`] whenever a
//! byte moves.
//!
//! All words are atomics and every store to them is a Release (see [`Word`]), so that what a killed process
//! leaves behind is always a prefix of its program: a store that is there vouches for all stores before it.

use super::memory::Words;
use super::{BookState, CacheSpec};
use crate::error::{Error, ErrorKind, Origin, Result};
use crate::lease::BlockOffset;
use crate::limits::{self, BLOCK_UNIT_BYTES, NAME_BYTES_MAX, PLACES_MAX};
use crate::numbers::BUCKETS;
use crate::sync::words::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::mem::size_of;

mod offsets;

/// Version of the layout.
pub const LAYOUT_VERSION: u32 = 3;
/// First bytes of a segment.
pub const MAGIC: u64 = u64::from_le_bytes(*b"selvageC");
/// Bytes of the header.
pub const HEADER_BYTES: usize = 4096;
/// Counters that a process has room for.
pub const COUNTERS: usize = 64;
/// Kinds of errors that a process has room for.
pub const ERRORS: usize = 32;
/// Histograms of durations that a process has room for, those of its pushes not included.
pub const TIMES: usize = 8;
/// Shards of the index.
pub const SHARDS: u32 = 64;
/// Holds that a process takes from the pool at a time.
pub const HOLDS_PER_CHUNK: u32 = 64;
/// Words of one class-hint table.
pub const CLASSES_MAX: usize = 64;
/// Words behind which one "full" hint stands.
pub const OWNER_GROUP: u32 = 256;
/// Longest view, bytes.
pub const VIEW_BYTES_MAX: usize = 256 << 10;

/// Reading and writing shared words with the orders that the whole cache uses.
pub trait Word {
    /// The plain value.
    type Value;
    /// Acquire load; pairs with every [`Word::write`].
    fn read(&self) -> Self::Value;
    /// Release store: all stores before it in this process are visible to whoever reads it, also if the
    /// process is killed right after.
    fn write(&self, value: Self::Value);
}

impl Word for AtomicU32 {
    type Value = u32;
    #[inline(always)]
    fn read(&self) -> u32 {
        self.load(Ordering::Acquire)
    }
    #[inline(always)]
    fn write(&self, value: u32) {
        #[cfg(test)]
        super::crash::point();
        self.store(value, Ordering::Release);
    }
}

impl Word for AtomicU64 {
    type Value = u64;
    #[inline(always)]
    fn read(&self) -> u64 {
        self.load(Ordering::Acquire)
    }
    #[inline(always)]
    fn write(&self, value: u64) {
        #[cfg(test)]
        super::crash::point();
        self.store(value, Ordering::Release);
    }
}

/// `state` of the header.
pub mod segment_state {
    pub const ALIVE: u32 = 1;
    pub const DRAINING: u32 = 2;
    pub const POISONED: u32 = 3;
}

/// First page. Written once before `version`, except where marked.
#[repr(C, align(64))]
pub struct Header {
    pub magic: AtomicU64,
    /// Stored last at creation (Release); 0 means not ready.
    pub version: AtomicU32,
    /// CRC32C over the fixed words.
    pub checksum: AtomicU32,
    pub total_bytes: AtomicU64,
    pub incarnation: AtomicU64,
    pub cache_bytes: AtomicU64,
    pub lease_bytes: AtomicU64,
    pub lock_hold_ms: AtomicU64,
    pub sessions_max: AtomicU32,
    pub books: AtomicU32,
    pub archive_bytes_max: AtomicU32,
    pub processes_max: AtomicU32,
    pub waiters_max: AtomicU32,
    pub node_bytes: AtomicU32,
    pub node: [AtomicU8; NAME_BYTES_MAX],
    pub reserved_a: [AtomicU32; 2],
    /// Changes: see [`segment_state`].
    pub state: AtomicU32,
    /// Changes: 1 while slots may be in quarantine.
    pub quarantine_hint: AtomicU32,
    /// Changes: number of views stored; its lowest bit says which buffer is current.
    pub view_sequence: AtomicU64,
    /// Changes: end of the mandate (R8).
    pub mandate_until_ns: AtomicU64,
    pub reserved_b: [AtomicU64; 5],
    /// Changes: rises when a session was left with fewer copies than it could have.
    pub unprotected: AtomicU64,
}

/// One of the two view buffers.
#[repr(C, align(64))]
pub struct ViewBuffer {
    pub term: AtomicU32,
    pub number: AtomicU32,
    pub bytes: AtomicU64,
    pub words: [AtomicU64; VIEW_BYTES_MAX / 8],
}

/// One process of the process table.
#[repr(C, align(64))]
pub struct ProcessRecord {
    /// `generation << 1 | live`.
    pub life: AtomicU32,
    pub pid: AtomicU32,
    pub doorbell: AtomicU32,
    pub reserved: [AtomicU32; 13],
}

/// Durations by size, and how often something failed. Statistics of one process slot, written by its threads
/// only, and by whichever process has the slot: so they never fall while the segment lives.
#[repr(C, align(128))]
pub struct Timing {
    /// By [`crate::numbers::bucket_of`]. Each rises after `sum_ns` has, so that the sum is never too small.
    pub counts: [AtomicU64; BUCKETS],
    pub sum_ns: AtomicU64,
    /// Of pushes: those that did not end with an ack.
    pub failed: AtomicU64,
    pub reserved: [AtomicU64; 3],
}

/// What one process slot has counted and timed; on cache lines of its own, since each request writes here.
#[repr(C, align(128))]
pub struct Tally {
    /// By [`NodeCounter`].
    pub counters: [AtomicU64; COUNTERS],
    /// By [`ErrorKind`].
    pub errors: [AtomicU64; ERRORS],
    /// By [`NodeTime`].
    pub times: [Timing; TIMES],
}

/// `state` of a hold.
pub mod hold_state {
    pub const FREE: u32 = 0;
    pub const WAITING: u32 = 1;
    pub const GRANTED: u32 = 2;
    pub const REVOKED: u32 = 3;
    pub const PINNED: u32 = 4;
}

/// An open session of one process. Changes only under the lock of its entry's shard, `staged` excepted.
#[repr(C, align(64))]
pub struct HoldRecord {
    /// See [`hold_state`]; also the word that a waiter sleeps on.
    pub state: AtomicU32,
    /// Entry + 1.
    pub entry: AtomicU32,
    /// Pinned cache block + 1.
    pub block: AtomicU32,
    /// Bytes of the archive in it.
    pub block_bytes: AtomicU32,
    /// Block + 1 that was allocated for the next archive; written before the block's owner word.
    pub staged: AtomicU32,
    pub staged_bytes: AtomicU32,
    /// Next and previous hold + 1 of the same entry; rebuilt by repair.
    pub next: AtomicU32,
    pub previous: AtomicU32,
    /// Order of arrival.
    pub ticket: AtomicU64,
    /// When the lock was granted, monotonic.
    pub granted_ns: AtomicU64,
    pub reserved: [AtomicU64; 2],
}

/// A shard of the index, on cache lines of its own.
#[repr(C, align(128))]
pub struct Shard {
    /// Robust lock.
    pub lock: AtomicU32,
    /// 1: repair before use.
    pub dirty: AtomicU32,
    pub reserved: [AtomicU32; 2],
    /// Sums over the shard's entries, kept under its lock, counted anew by repair.
    pub sessions: AtomicU64,
    pub others: AtomicU64,
    pub bytes_used: AtomicU64,
    pub safe: [AtomicU64; 3],
}

/// `used` of an entry.
pub mod entry_used {
    pub const NO: u32 = 0;
    pub const YES: u32 = 1;
}

/// `state` of a content.
pub mod content_state {
    pub const ADOPTING: u32 = 1;
    pub const LIVE: u32 = 2;
    pub const GONE: u32 = 3;
}

/// What an entry says; an entry has two, and `Entry::current` says which one counts.
#[repr(C)]
pub struct Content {
    pub version_counter: AtomicU64,
    pub expiry_ms: AtomicU64,
    pub version_epoch: AtomicU32,
    pub archive_bytes: AtomicU32,
    /// Cache block + 1.
    pub block: AtomicU32,
    /// See [`content_state`].
    pub state: AtomicU32,
}

/// `state` of a place. For the last two, the lowest bit says which of the two blocks the newest acked cell
/// names.
pub mod place_state {
    pub const EMPTY: u32 = 0;
    /// A slot is being taken; `Place::slot` may be owned already.
    pub const ALLOCATING: u32 = 1;
    /// Slot and blocks are being given back.
    pub const FREEING: u32 = 2;
    /// At rest; the other block, if any, is to be freed.
    pub const ACKED: u32 = 4;
    /// A push is open; its block, if any, is the other one.
    pub const PUSHING: u32 = 6;
}

/// Where a copy of a session is or goes.
#[repr(C)]
pub struct Place {
    /// The server's incarnation.
    pub server: AtomicU64,
    pub acked_counter: AtomicU64,
    pub acked_epoch: AtomicU32,
    pub book: AtomicU32,
    /// Slot + 1.
    pub slot: AtomicU32,
    /// See [`place_state`].
    pub state: AtomicU32,
    /// Lease blocks + 1.
    pub blocks: [AtomicU32; 2],
}

/// Bit of [`Entry::flags`]: came from a sealed lease.
pub const FLAG_ADOPTED: u32 = 1;

/// A session of the node. Changes only under its shard's lock.
#[repr(C, align(64))]
pub struct Entry {
    pub id: [AtomicU64; 2],
    /// See [`entry_used`].
    pub used: AtomicU32,
    /// Next entry + 1 of the hash chain; rebuilt by repair.
    pub next: AtomicU32,
    /// Hold + 1 that has the session's lock; rebuilt by repair.
    pub holder: AtomicU32,
    /// First hold + 1 of this entry; rebuilt by repair.
    pub holds: AtomicU32,
    pub content: [Content; 2],
    pub current: AtomicU32,
    /// Holds that wait; rebuilt by repair.
    pub waiters: AtomicU32,
    pub next_ticket: AtomicU64,
    pub created_ms: AtomicU64,
    pub absolute_ms: AtomicU64,
    pub pushed_expiry_ms: AtomicU64,
    pub flags: AtomicU32,
    /// What the shard's sums hold of this entry: content state, safe copies, bytes of the block.
    pub counted_state: AtomicU32,
    pub counted_safe: AtomicU32,
    pub counted_bytes: AtomicU32,
    pub places: [Place; PLACES_MAX],
    /// Entry + 1 of the id that this session had before, and of the one that it has now: see `grace`.
    pub predecessor: AtomicU32,
    pub successor: AtomicU32,
}

/// `state` of a book.
pub mod book_state {
    pub const FREE: u32 = 0;
    pub const ACTIVE: u32 = 1;
    pub const RETIRING: u32 = 2;
}

/// A line of the server table: the lease behind a book.
#[repr(C, align(64))]
pub struct BookRecord {
    /// See [`book_state`]; written last when a book is taken, first when it is given up.
    pub state: AtomicU32,
    pub name_bytes: AtomicU32,
    pub incarnation: AtomicU64,
    pub lease: AtomicU64,
    pub heap_bytes: AtomicU64,
    pub chunk_bytes: AtomicU64,
    pub slot_count: AtomicU32,
    /// Chunks of the lease, as many as the book has room for; and units of each: worked out once.
    pub chunks: AtomicU32,
    pub chunk_units: AtomicU32,
    pub reserved: AtomicU32,
    pub name: [AtomicU8; NAME_BYTES_MAX],
    pub reserved_b: [AtomicU64; 5],
}

/// What the allocator keeps of one slot of a lease, beside its owner word. All but `sequence` only while in
/// quarantine.
#[repr(C)]
pub struct SlotRecord {
    /// Sequence of the newest cell that was, or may have been, written there.
    pub sequence: AtomicU32,
    /// Entry + 1 that pushed.
    pub entry: AtomicU32,
    /// Blocks + 1 that its cells may name.
    pub blocks: [AtomicU32; 2],
    /// The writer: its lock word and pid.
    pub process: AtomicU32,
    pub pid: AtomicU32,
    /// The link that it wrote over; 0: any of the process's.
    pub link: AtomicU64,
}

/// A chunk of a heap.
#[repr(C)]
pub struct Chunk {
    /// Class + 1 (0: none), whether it is changing, and a version: see `heap`.
    pub word: AtomicU32,
    /// Hint: the block to look at first.
    pub cursor: AtomicU32,
    /// Hint: no block was free at the last look.
    pub full: AtomicU32,
    /// Hint: a unit that was in use at the last look.
    pub witness: AtomicU32,
}

/// Marks the structures above as made of atomics only.
macro_rules! words {
    ($($name:ty),*) => {
        $(
            // SAFETY: the type is `repr(C)` and has nothing but atomics, for which every bit pattern is
            // valid, and which other processes may change under a shared reference (invariant 10).
            unsafe impl Words for $name {}
        )*
    };
}
words!(
    Header,
    ViewBuffer,
    ProcessRecord,
    Timing,
    Tally,
    HoldRecord,
    Shard,
    Entry,
    BookRecord,
    SlotRecord,
    Chunk,
    AtomicU32,
    AtomicU64
);

/// The chunk size that goes with a largest archive, for caches and leases: the largest archive fits into one.
pub fn chunk_bytes(archive_bytes_max: usize) -> u64 {
    let units = archive_bytes_max.div_ceil(BLOCK_UNIT_BYTES).max(1) as u32;
    let class = super::heap::class_units(super::heap::class_of(units));
    (u64::from(class) * BLOCK_UNIT_BYTES as u64).max(limits::CHUNK_BYTES_MIN as u64)
}

/// A piece of the segment: `count` structures from byte `offset`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    pub offset: usize,
    pub count: usize,
}

/// Where the allocator of one heap lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HeapPieces {
    pub hints: Piece,
    pub chunks: Piece,
    pub units: Piece,
}

/// Where one book lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BookPieces {
    pub slots: Piece,
    pub slot_groups: Piece,
    pub records: Piece,
    pub heap: HeapPieces,
}

/// Where everything lies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Geometry {
    pub book_records: Piece,
    pub views: Piece,
    pub processes: Piece,
    pub tallies: Piece,
    /// One process's after the other's.
    pub push_times: Piece,
    pub hold_owners: Piece,
    pub hold_groups: Piece,
    pub holds: Piece,
    pub shards: Piece,
    pub heads: Piece,
    pub entry_owners: Piece,
    pub entry_groups: Piece,
    pub entries: Piece,
    pub cache: HeapPieces,
    pub books: Vec<BookPieces>,
    pub heap: Piece,
    pub total_bytes: usize,
    /// Ways to servers whose pushes a process times each for itself.
    pub ways: u32,
    /// Hash chains of one shard, a power of two.
    pub buckets: u32,
    pub chunk_bytes: u64,
}

/// Hands out offsets one after the other.
struct Cursor(usize);

impl Cursor {
    fn take<T>(&mut self, count: usize) -> Piece {
        let offset = self.0.next_multiple_of(64.max(align_of::<T>()));
        self.0 = offset + count * size_of::<T>();
        Piece { offset, count }
    }

    /// An owner table: its words, then its hints.
    fn owners(&mut self, count: usize) -> (Piece, Piece) {
        let words = self.take::<AtomicU32>(count);
        (words, self.take::<AtomicU32>(count.div_ceil(OWNER_GROUP as usize)))
    }

    fn heap(&mut self, bytes: u64, chunk_bytes_min: u64) -> HeapPieces {
        HeapPieces {
            hints: self.take::<AtomicU32>(CLASSES_MAX),
            chunks: self.take::<Chunk>((bytes / chunk_bytes_min) as usize),
            units: self.take::<AtomicU32>((bytes / BLOCK_UNIT_BYTES as u64) as usize),
        }
    }
}

impl Geometry {
    /// The layout for a spec.
    ///
    /// # Errors
    /// `Invalid` with what is wrong in it.
    pub fn new(spec: &CacheSpec) -> Result<Self> {
        check(spec)?;
        let chunk_bytes = chunk_bytes(spec.archive_bytes_max as usize);
        let cache_bytes = spec.cache_bytes.next_multiple_of(chunk_bytes);
        let lease_bytes = spec.lease_bytes.next_multiple_of(chunk_bytes);
        let sessions = spec.sessions_max as usize;
        let processes = spec.processes_max as usize;
        let holds = limits::HOLDS_MAX.max(processes * HOLDS_PER_CHUNK as usize);
        let buckets = (spec.sessions_max / SHARDS).next_power_of_two();

        let mut cursor = Cursor(HEADER_BYTES);
        let book_records = cursor.take::<BookRecord>(spec.books as usize);
        let views = cursor.take::<ViewBuffer>(2);
        let tallies = processes;
        let ways = spec.ways();
        let processes = cursor.take::<ProcessRecord>(processes);
        let push_times = cursor.take::<Timing>(tallies * ways as usize);
        let tallies = cursor.take::<Tally>(tallies);
        let (hold_owners, hold_groups) = cursor.owners(holds / HOLDS_PER_CHUNK as usize);
        let holds = cursor.take::<HoldRecord>(holds);
        let shards = cursor.take::<Shard>(SHARDS as usize);
        let heads = cursor.take::<AtomicU32>((SHARDS * buckets) as usize);
        let (entry_owners, entry_groups) = cursor.owners(sessions);
        let entries = cursor.take::<Entry>(sessions);
        let cache = cursor.heap(cache_bytes, chunk_bytes);
        let mut books = Vec::with_capacity(spec.books as usize);
        for _ in 0..spec.books {
            let (slots, slot_groups) = cursor.owners(sessions);
            let records = cursor.take::<SlotRecord>(sessions);
            // A server may cut its lease into smaller chunks than this node would.
            let heap = cursor.heap(lease_bytes, limits::CHUNK_BYTES_MIN as u64);
            books.push(BookPieces { slots, slot_groups, records, heap });
        }
        let offset = cursor.0.next_multiple_of(HEADER_BYTES);
        let heap = Piece { offset, count: cache_bytes as usize };
        let total_bytes = (offset + heap.count).next_multiple_of(HEADER_BYTES);
        Ok(Self {
            book_records,
            views,
            processes,
            tallies,
            push_times,
            hold_owners,
            hold_groups,
            holds,
            shards,
            heads,
            entry_owners,
            entry_groups,
            entries,
            cache,
            books,
            heap,
            total_bytes,
            ways,
            buckets,
            chunk_bytes,
        })
    }
}

fn check(spec: &CacheSpec) -> Result<()> {
    let archive = spec.archive_bytes_max as usize;
    let bad = if spec.node.is_empty() || spec.node.len() > NAME_BYTES_MAX {
        format!("a node's name has 1 to {NAME_BYTES_MAX} bytes, not {}", spec.node.len())
    } else if archive == 0 || archive > limits::ARCHIVE_BYTES_MAX {
        format!("the largest archive has 1 to {} bytes, not {archive}", limits::ARCHIVE_BYTES_MAX)
    } else if spec.sessions_max == 0 || spec.sessions_max > 1 << 28 {
        format!("a cache holds 1 to {} sessions, not {}", 1 << 28, spec.sessions_max)
    } else if spec.processes_max == 0 || spec.processes_max as usize > limits::PROCESSES_MAX {
        format!("a node has 1 to {} processes, not {}", limits::PROCESSES_MAX, spec.processes_max)
    } else if spec.books == 0 || spec.books as usize > 2 * limits::SERVERS_MAX {
        format!("a cache has 1 to {} lease books, not {}", 2 * limits::SERVERS_MAX, spec.books)
    } else if spec.cache_bytes == 0 || spec.lease_bytes == 0 {
        "the heaps of cache and lease cannot be empty".into()
    } else if spec.cache_bytes > HEAP_BYTES_MAX || spec.lease_bytes > HEAP_BYTES_MAX {
        format!("the heap of a cache or lease has at most {HEAP_BYTES_MAX} bytes")
    } else {
        return Ok(());
    };
    Err(Error::new(ErrorKind::Invalid, Origin::Cache, bad))
}

/// Largest heap: its units must be numbered in 31 bits, with one to spare for "none".
pub const HEAP_BYTES_MAX: u64 = (1 << 30) * BLOCK_UNIT_BYTES as u64;

/// A block as it stands in a shared word: 0 is none.
pub fn block_word(block: Option<BlockOffset>) -> u32 {
    block.map_or(0, |block| block.0 + 1)
}

/// The block behind a shared word.
pub fn word_block(word: u32) -> Option<BlockOffset> {
    word.checked_sub(1).map(BlockOffset)
}

impl BookState {
    /// From its shared word.
    pub(super) fn from_word(word: u32) -> Self {
        match word {
            book_state::ACTIVE => Self::Active,
            book_state::RETIRING => Self::Retiring,
            _ => Self::Free,
        }
    }
}
