//! Lease books: the allocator of one lease that the node has, and the line of the server table that says
//! which lease.
//!
//! Books are taken, retired and reset by the steward only, one at a time, whichever of its threads does it:
//! two servers in one book would be taken for each other, and acks of one for copies at the other. Slots and
//! blocks are taken and given back under the lock of the shard of the entry that owns them.

use super::heap::{Heap, HeapSize};
use super::layout::{BookPieces, BookRecord, SlotRecord, Word, book_state};
use super::memory::{Array, Memory};
use super::owner::OwnerTable;
use super::segment::{heap, owners};
use super::{BookIndex, BookInfo, BookState, Inner};
use crate::error::{Error, ErrorKind, Origin, Result};
use crate::ident::Incarnation;
use crate::lease::LeaseGeometry;
use crate::limits::{self, BLOCK_UNIT_BYTES, NAME_BYTES_MAX};
use crate::sync::words::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};

/// Owner of a slot in quarantine.
pub const QUARANTINED: u32 = 1 << 31;

/// One book.
pub struct Book {
    records: Array<BookRecord>,
    index: u32,
    pub slots: OwnerTable,
    pub slot_records: Array<SlotRecord>,
    pub heap: Heap,
}

impl Book {
    /// Over its pieces.
    pub fn new(
        memory: &Arc<Memory>,
        records: &Array<BookRecord>,
        index: u32,
        pieces: BookPieces,
    ) -> Result<Self> {
        Ok(Self {
            records: records.clone(),
            index,
            slots: owners(memory, pieces.slots, pieces.slot_groups)?,
            slot_records: memory.array(pieces.records)?,
            heap: heap(memory, pieces.heap)?,
        })
    }

    /// Its line of the server table.
    #[inline]
    pub fn record(&self) -> &BookRecord {
        &self.records[self.index]
    }

    /// Whether pushes may begin, and to which server's life.
    #[inline]
    pub fn active_for(&self) -> Option<Incarnation> {
        let record = self.record();
        let incarnation = Incarnation(record.incarnation.read());
        (record.state.read() == book_state::ACTIVE).then_some(incarnation)
    }

    /// Whether what is written down for this server's life still means something.
    #[inline]
    pub fn is_for(&self, server: u64) -> bool {
        let record = self.record();
        record.incarnation.read() == server && record.state.read() != book_state::FREE
    }

    /// How much of the heap's tables the lease uses.
    pub fn heap_size(&self) -> HeapSize {
        let record = self.record();
        // At least one unit, so that nobody divides by zero in a book that is free.
        HeapSize { chunks: record.chunks.read(), chunk_units: record.chunk_units.read().max(1) }
    }

    /// Slots that the lease and the book both have.
    pub fn slot_count(&self) -> u32 {
        self.record().slot_count.read().min(self.slots.len())
    }

    /// Snapshot.
    pub fn info(&self) -> BookInfo {
        let record = self.record();
        let name: Vec<u8> = record
            .name
            .iter()
            .take(record.name_bytes.read() as usize)
            .map(|byte| byte.load(Ordering::Relaxed))
            .collect();
        BookInfo {
            index: BookIndex(self.index),
            state: BookState::from_word(record.state.read()),
            server: String::from_utf8_lossy(&name).into_owned(),
            incarnation: Incarnation(record.incarnation.read()),
            lease: record.lease.read(),
            geometry: LeaseGeometry {
                slot_count: record.slot_count.read(),
                heap_bytes: record.heap_bytes.read(),
                chunk_bytes: record.chunk_bytes.read(),
            },
        }
    }

    fn open(&self, server: &str, incarnation: Incarnation, lease: u64, geometry: LeaseGeometry) {
        let record = self.record();
        record.name_bytes.write(server.len() as u32);
        for (to, from) in record.name.iter().zip(server.bytes()) {
            to.store(from, Ordering::Relaxed);
        }
        record.lease.write(lease);
        record.slot_count.write(geometry.slot_count);
        record.heap_bytes.write(geometry.heap_bytes);
        record.chunk_bytes.write(geometry.chunk_bytes);
        let (units, chunks) = self.heap.capacity();
        let chunk_units = (geometry.chunk_bytes / BLOCK_UNIT_BYTES as u64) as u32;
        let lease_chunks = geometry.heap_bytes / geometry.chunk_bytes;
        let room = chunks.min(units / chunk_units);
        record.chunks.write(lease_chunks.min(u64::from(room)) as u32);
        record.chunk_units.write(chunk_units);
        record.incarnation.write(incarnation.0);
        record.state.write(book_state::ACTIVE);
    }

    fn reset(&self) {
        // While it is cleared it is retiring still, so a steward that dies here is followed by one that
        // clears again.
        self.slots.reset();
        self.heap.reset();
        for record in self.slot_records.as_slice() {
            record.sequence.write(0);
            record.entry.write(0);
            record.process.write(0);
            record.pid.write(0);
            record.blocks.iter().for_each(|block| block.write(0));
        }
        self.record().incarnation.write(0);
        self.record().state.write(book_state::FREE);
    }
}

impl Inner {
    pub(super) fn activate_book(
        &self,
        server: &str,
        incarnation: Incarnation,
        lease: u64,
        geometry: LeaseGeometry,
    ) -> Result<BookIndex> {
        self.check_alive()?;
        check(server, incarnation, geometry)?;
        let _change = self.lock_books();
        let books = &self.segment.books;
        if let Some(book) = books.iter().find(|book| book.is_for(incarnation.0)) {
            return match book.info() {
                info if info.state == BookState::Active && info.lease == lease => Ok(info.index),
                info => Err(Error::new(
                    ErrorKind::Conflict,
                    Origin::Cache,
                    format!(
                        "server {server} has a {:?} book with lease {} already, lease {lease} is new",
                        info.state, info.lease
                    ),
                )),
            };
        }
        let free = books.iter().find(|book| book.record().state.read() == book_state::FREE);
        let book = free.ok_or_else(|| {
            Error::new(
                ErrorKind::Full,
                Origin::Cache,
                format!("all {} lease books are in use; the lease of {server} must wait", books.len()),
            )
        })?;
        book.open(server, incarnation, lease, geometry);
        Ok(BookIndex(book.index))
    }

    fn lock_books(&self) -> MutexGuard<'_, ()> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn book(&self, book: BookIndex) -> &Book {
        &self.segment.books[book.0 as usize]
    }

    pub(super) fn retire_book(&self, book: BookIndex) {
        let _change = self.lock_books();
        let state = &self.book(book).record().state;
        if state.read() == book_state::ACTIVE {
            state.write(book_state::RETIRING);
        }
    }

    pub(super) fn reset_book(&self, book: BookIndex) {
        let _change = self.lock_books();
        let book = self.book(book);
        if book.record().state.read() == book_state::RETIRING {
            book.reset();
        }
    }
}

fn check(server: &str, incarnation: Incarnation, geometry: LeaseGeometry) -> Result<()> {
    let chunk = geometry.chunk_bytes;
    let bad = if server.is_empty() || server.len() > NAME_BYTES_MAX {
        format!("a server's name has 1 to {NAME_BYTES_MAX} bytes, not {}", server.len())
    } else if incarnation == Incarnation::NONE {
        format!("server {server} has no incarnation")
    } else if chunk < limits::CHUNK_BYTES_MIN as u64
        || !chunk.is_multiple_of(BLOCK_UNIT_BYTES as u64)
        || chunk > u64::from(u32::MAX)
    {
        format!(
            "a lease's chunks have at least {} bytes and a multiple of 256, not {chunk}",
            limits::CHUNK_BYTES_MIN
        )
    } else if geometry.slot_count == 0 || geometry.heap_bytes < chunk {
        format!("the lease at {server} has no slot or no chunk")
    } else {
        return Ok(());
    };
    Err(Error::new(ErrorKind::Invalid, Origin::Cache, bad))
}
