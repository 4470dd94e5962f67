//! The node's cache: one shared-memory segment, used by all processes of the node at once.
//!
//! It holds the archives of the sessions that the node hosts, the index that finds them, the sessions' locks
//! and pins, the view that the steward last got, and the allocators of the node's leases. `kill -9` of any
//! process at any instruction leaves it consistent: every change has one word whose store makes it happen,
//! and whoever meets a dead process's traces finishes or undoes them (see `ARCHITECTURE.md`, "The cache
//! segment").
//!
//! Callers: `node` only. On a poisoned segment every call fails with `OwnershipLost` (R3).

mod attach;
mod book;
#[cfg(test)]
mod crash;
mod grace;
mod header;
mod heap;
mod hold;
mod info;
mod layout;
mod memory;
#[cfg(all(test, feature = "loom"))]
mod models;
mod open;
mod owner;
mod place;
mod pool;
mod process;
mod repair;
mod segment;
mod shard;
mod spec;
mod tally;
#[cfg(test)]
mod tests;
mod verify;

pub use hold::{Hold, Pin};
pub use info::{
    BookIndex, BookInfo, BookState, CacheStats, EntryInfo, EntryInit, EntryState, HoldState, Inserted,
    Opened, PlaceIndex, PlaceInfo, PlaceState, Places, ProcessId, ProcessInfo, Push, PushKind, Quarantined,
    SegmentState, Waited,
};
pub use layout::{LAYOUT_VERSION, VIEW_BYTES_MAX, chunk_bytes};
pub use spec::{CacheSpec, WAYS_PER_SERVER};
pub use tally::CacheNumbers;

use crate::error::{Error, ErrorKind, Origin, Result};
use crate::ident::{Epoch, Incarnation, SessionId};
use crate::lease::LeaseGeometry;
use crate::limits::BLOCK_UNIT_BYTES;
use crate::rules::{self, Rule};
use crate::sync::LockFile;
use crate::sync::words::Ordering;
use crate::transport::Region;
use layout::{Word, segment_state};
use pool::HoldPool;
use segment::Segment;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// This process's attachment to a segment. Clones share it; dropping the last gives the process slot back. A
/// child made by fork must not use it: it is not the process that the table names.
#[derive(Clone)]
pub struct Cache {
    inner: Arc<Inner>,
}

/// The attachment itself.
struct Inner {
    segment: Segment,
    process: ProcessId,
    /// `process` as one word.
    word: u32,
    pool: HoldPool,
    /// Held while a book changes hands. One process at a time does that, the steward, but on a thread per
    /// link.
    books: Mutex<()>,
    /// Holds whose release a stopped process has prevented.
    deferred: Mutex<Vec<u32>>,
    has_deferred: AtomicBool,
    /// A simulated `kill -9`: nothing is undone on drop.
    killed: AtomicBool,
}

impl Inner {
    /// R3: a poisoned segment's incarnation is over, and with it everything that is held in it.
    #[inline]
    fn check_alive(&self) -> Result<()> {
        if rules::holds(Rule::R3Incarnation) && self.segment.header().state.read() == segment_state::POISONED
        {
            return Err(self.ownership_lost());
        }
        Ok(())
    }

    #[cold]
    fn ownership_lost(&self) -> Error {
        Error::new(
            ErrorKind::OwnershipLost,
            Origin::Cache,
            format!(
                "incarnation {} of node {} is over",
                self.segment.spec.incarnation.tag(),
                self.segment.spec.node
            ),
        )
    }

    fn is_killed(&self) -> bool {
        #[cfg(test)]
        if crash::dead() {
            return true;
        }
        self.killed.load(Ordering::Relaxed)
    }
}

impl Cache {
    /// Creates the segment `name`, fully allocated, mode 0600, and attaches. The caller holds the creation
    /// lock.
    ///
    /// # Errors
    /// `Full` if /dev/shm is too small (says how large it is, and what to do), `Conflict` if the name exists.
    pub fn create(spec: &CacheSpec, name: &str, lock_file: Arc<LockFile>) -> Result<Self> {
        attach::create(spec, name, lock_file)
    }

    /// Attaches to the segment `name`. The caller holds the creation lock.
    ///
    /// # Errors
    /// `NotReady`, `VersionMismatch`, `TooSmall`, `Corrupt`, `Denied` (another user's), `Busy` (no process
    /// slot left), `OwnershipLost` if it is poisoned, `Os` if it is not there.
    pub fn attach(name: &str, lock_file: Arc<LockFile>) -> Result<Self> {
        attach::attach(name, lock_file)
    }

    /// A segment on private memory with the same code, for tests and simulation.
    pub fn anonymous(spec: &CacheSpec) -> Result<Self> {
        attach::anonymous(spec)
    }

    /// Attaches another simulated process to an anonymous segment.
    pub fn sibling(&self) -> Result<Self> {
        attach::sibling(&self.inner)
    }

    /// Simulates `kill -9` of a process attached to an anonymous segment: it counts as dead and nothing of it
    /// is undone.
    pub fn kill(self) {
        self.inner.killed.store(true, Ordering::Relaxed);
        self.inner.segment.processes.liveness().kill(self.inner.process.slot);
    }

    /// Removes the segment's name; processes attached keep it until they let go. Missing is fine.
    pub fn unlink(name: &str) -> Result<()> {
        segment::unlink(name)
    }

    /// Poisons (if it can be attached) and removes every segment of this node but `keep`. Under the creation
    /// lock.
    pub fn remove_stale(prefix_and_node: &str, keep: Option<&str>) -> Result<u32> {
        segment::remove_stale(&format!("{prefix_and_node}-"), keep)
    }

    /// The sizes that it was created with.
    pub fn spec(&self) -> &CacheSpec {
        &self.inner.segment.spec
    }

    /// The node's life.
    pub fn incarnation(&self) -> Incarnation {
        self.inner.segment.spec.incarnation
    }

    /// The segment, for links that send from it.
    pub fn region(&self) -> Arc<dyn Region> {
        self.inner.segment.memory.clone()
    }

    /// This process's place in the table.
    pub fn process(&self) -> ProcessId {
        self.inner.process
    }

    /// The attached processes.
    pub fn processes(&self) -> Vec<ProcessInfo> {
        self.inner.segment.processes.iter().collect()
    }

    /// State of the segment.
    pub fn state(&self) -> SegmentState {
        self.inner.state()
    }

    /// Alive to draining or back. Never leaves `Poisoned`.
    pub fn set_draining(&self, draining: bool) {
        self.inner.set_draining(draining);
    }

    /// Ends this incarnation: everything waiting is woken, everything fails with `OwnershipLost`. Cannot be
    /// undone.
    pub fn poison(&self) {
        self.inner.poison();
    }

    /// Whether it is poisoned.
    pub fn is_poisoned(&self) -> bool {
        self.inner.segment.header().state.read() == segment_state::POISONED
    }

    /// End of the mandate (R8), on `CLOCK_MONOTONIC`, ns; 0 if there never was one.
    pub fn mandate_until_ns(&self) -> u64 {
        self.inner.segment.header().mandate_until_ns.read()
    }

    /// Moves the mandate's end (forward only).
    pub fn set_mandate_until_ns(&self, until_ns: u64) {
        self.inner.segment.header().mandate_until_ns.fetch_max(until_ns, Ordering::AcqRel);
    }

    /// The newest view's epoch and its bytes as the steward stored them; `None` before the first.
    pub fn view(&self) -> Option<(Epoch, Vec<u8>)> {
        self.inner.view()
    }

    /// Changes whenever the view does; 0 before the first.
    pub fn view_sequence(&self) -> u64 {
        self.inner.segment.header().view_sequence.read()
    }

    /// Stores a view; steward only. `TooLarge` over 256 KiB.
    pub fn set_view(&self, epoch: Epoch, bytes: &[u8]) -> Result<()> {
        self.inner.set_view(epoch, bytes)
    }

    /// Rises with every [`Cache::raise_unprotected`] of any process.
    pub fn unprotected(&self) -> u64 {
        self.inner.segment.header().unprotected.read()
    }

    /// Tells the steward that a session was left with fewer copies than it could have.
    pub fn raise_unprotected(&self) {
        self.inner.segment.header().unprotected.fetch_add(1, Ordering::AcqRel);
    }

    /// Opens for change; joins the queue if others hold or wait.
    pub fn open_exclusive(&self, id: &SessionId) -> Result<Opened> {
        open::exclusive(self, id, true)
    }

    /// Opens for change if nobody holds or waits; `Busy` otherwise. For the steward.
    pub fn try_exclusive(&self, id: &SessionId) -> Result<Opened> {
        open::exclusive(self, id, false)
    }

    /// A new entry. `Full` if there are `sessions_max` already.
    pub fn insert(&self, id: &SessionId, init: EntryInit) -> Result<Inserted> {
        open::insert(self, id, &init)
    }

    /// Pins the current archive of a live session. The caller judges the expiry.
    pub fn open_read(&self, id: &SessionId) -> Result<Option<Pin>> {
        open::read(self, id)
    }

    /// Snapshot of the entry with this index, for the steward's rounds: 0 to `sessions_max - 1`.
    pub fn entry(&self, index: u32) -> Result<Option<EntryInfo>> {
        self.inner.entry(index)
    }

    /// Snapshot by id.
    pub fn find(&self, id: &SessionId) -> Result<Option<EntryInfo>> {
        self.inner.find(id)
    }

    /// Sums; cheap (kept per shard).
    pub fn stats(&self) -> Result<CacheStats> {
        self.inner.stats()
    }

    /// Counts the safe copies of all sessions anew; after a change of books.
    pub fn recount(&self) -> Result<()> {
        self.inner.recount()
    }

    /// The process's doorbell: rises when one of its waiting holds was granted or revoked, or the segment was
    /// poisoned.
    pub fn doorbell(&self) -> u32 {
        self.inner.segment.processes.doorbell(self.inner.process.slot).read()
    }

    /// Waits until the doorbell differs from `seen`, or the timeout. Returns its value.
    pub fn wait_doorbell(&self, seen: u32, timeout: Duration) -> u32 {
        self.inner.wait_doorbell(seen, timeout)
    }

    /// Rings the own process's doorbell (to end a `wait_doorbell`).
    pub fn ring_doorbell(&self) {
        self.inner.segment.processes.ring(self.inner.process.slot);
    }

    /// Looks for processes that died, releases their holds, pins and waits, and puts their open pushes into
    /// quarantine.
    pub fn repair_dead(&self) -> Result<Vec<ProcessInfo>> {
        self.inner.repair_dead()
    }

    /// Slots in quarantine.
    pub fn quarantined(&self) -> Vec<Quarantined> {
        self.inner.quarantined()
    }

    /// The writer is gone, and this process is about to write over its slot, by its own `link`: from now on
    /// the slot waits for that.
    pub fn take_over_quarantined(&self, quarantined: &Quarantined, link: Option<u64>) {
        self.inner.take_over_quarantined(quarantined, link);
    }

    /// The server has confirmed that the writer is gone: its slot and blocks are free.
    pub fn release_quarantined(&self, quarantined: &Quarantined) {
        self.inner.release_quarantined(quarantined);
    }

    /// All books that are not free.
    pub fn books(&self) -> Vec<BookInfo> {
        let books = self.inner.segment.books.iter().map(book::Book::info);
        books.filter(|book| book.state != BookState::Free).collect()
    }

    /// One book.
    pub fn book(&self, book: BookIndex) -> BookInfo {
        self.inner.book(book).info()
    }

    /// Sessions that have a place in the lease of this book. Looks at every slot.
    pub fn places_at(&self, book: BookIndex) -> u64 {
        let book = self.inner.book(book);
        book.slots.iter(book.slot_count(), |owner| owner != 0 && owner & book::QUARANTINED == 0).count()
            as u64
    }

    /// Slots and bytes of the lease of this book, as far as they can be used.
    pub fn lease_size(&self, book: BookIndex) -> (u64, u64) {
        let book = self.inner.book(book);
        let heap = book.heap_size();
        let units = u64::from(heap.chunks) * u64::from(heap.chunk_units);
        (u64::from(book.slot_count()), units * BLOCK_UNIT_BYTES as u64)
    }

    /// Bytes of the lease of this book that are in use. Looks at every block.
    pub fn lease_bytes(&self, book: BookIndex) -> u64 {
        let book = self.inner.book(book);
        book.heap.used_units(book.heap_size()) * BLOCK_UNIT_BYTES as u64
    }

    /// The active or retiring book of a server's life.
    pub fn book_of(&self, server: Incarnation) -> Option<BookInfo> {
        self.books().into_iter().find(|book| book.incarnation == server)
    }

    /// Takes a free book for a server's life (or gives the one that it has); steward only. `Full` if none is
    /// free.
    pub fn activate_book(
        &self,
        server: &str,
        incarnation: Incarnation,
        lease: u64,
        geometry: LeaseGeometry,
    ) -> Result<BookIndex> {
        self.inner.activate_book(server, incarnation, lease, geometry)
    }

    /// No further push begins there; its places are not counted as safe any more. Steward only.
    pub fn retire_book(&self, book: BookIndex) {
        self.inner.retire_book(book);
    }

    /// A retiring book becomes free; steward only, after all places there were given up. Those that were not
    /// are void.
    pub fn reset_book(&self, book: BookIndex) {
        self.inner.reset_book(book);
    }
}
