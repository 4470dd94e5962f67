//! Large one-sided reads: how the archives of an ended node reach their new host.
//!
//! What was told is read in pieces, several under way at once, into a buffer of this link, and copied out
//! from there: a read that was given up may still land later, and then lands in nobody's archive. A piece of
//! the buffer is used again only when the entry of its read is free.

use super::engine::Engine;
use super::flight::{End, Ticket};
use super::requests::{Local, Remote, Wire};
use crate::control::message::RemoteMemory;
use crate::error::{Error, ErrorKind, Origin, Result};
use crate::lease::LeaseMemory;
use crate::limits::{ARCHIVE_BYTES_MAX, FETCH_BATCH_BYTES, RDMA_BULK_BYTES, RDMA_BULK_READS, RDMA_BULK_WAIT};
use crate::transport::Region;
use crate::transport::memory::Mapping;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

/// Looks before a reader sleeps.
const LOOKS: u32 = 200;

/// The buffer, with its key.
pub(super) struct Buffer {
    pub(super) memory: Arc<Mapping>,
    pub(super) key: u32,
}

impl Buffer {
    /// Bytes of a buffer.
    pub(super) const BYTES: usize = RDMA_BULK_BYTES * RDMA_BULK_READS as usize;
}

struct Piece {
    ticket: Ticket,
    index: u32,
    bytes: usize,
}

impl<W: Wire> Engine<W> {
    /// Reads all of `remote`. The buffer is the caller's alone.
    pub(super) fn read_bulk(&self, remote: RemoteMemory, buffer: &Buffer) -> Result<Vec<u8>> {
        let largest = (FETCH_BATCH_BYTES + ARCHIVE_BYTES_MAX) as u64;
        let end = remote.address.checked_add(remote.bytes);
        if remote.bytes > largest || end.is_none() {
            let what = format!(
                "the server offers {} bytes at {:#x} to be read at once; the limit is {largest}",
                remote.bytes, remote.address
            );
            return Err(Error::new(ErrorKind::TooLarge, Origin::Transport, what));
        }
        let bytes = remote.bytes as usize;
        let mut out = vec![0; bytes];
        let mut under_way = VecDeque::with_capacity(RDMA_BULK_READS as usize);
        let (mut asked, mut filled, mut next) = (0, 0, 0);
        let mut moved = Instant::now();
        while filled < bytes {
            if asked < bytes
                && under_way.len() < RDMA_BULK_READS as usize
                && let Some(piece) = self.read_piece(remote, buffer, next, asked, bytes)
            {
                asked += piece.bytes;
                next = (next + 1) % RDMA_BULK_READS;
                under_way.push_back(piece);
                moved = Instant::now();
                continue;
            }
            let ended = match under_way.front() {
                Some(piece) => self.await_read(piece.ticket),
                None => {
                    // An earlier read that was given up has this piece of the buffer.
                    self.drain();
                    std::thread::yield_now();
                    None
                }
            };
            match ended {
                Some(End::Done) => {
                    let Some(piece) = under_way.pop_front() else { continue };
                    let at = piece.index as usize * RDMA_BULK_BYTES;
                    buffer.memory.read(at as u64, &mut out[filled..filled + piece.bytes])?;
                    filled += piece.bytes;
                    moved = Instant::now();
                }
                _ if self.fault.is_set() || moved.elapsed() >= RDMA_BULK_WAIT => {
                    under_way.iter().for_each(|piece| self.flight.forget(piece.ticket));
                    return Err(self.read_failed(filled, bytes));
                }
                _ => {}
            }
        }
        Ok(out)
    }

    fn read_piece(
        &self,
        remote: RemoteMemory,
        buffer: &Buffer,
        index: u32,
        asked: usize,
        bytes: usize,
    ) -> Option<Piece> {
        let length = RDMA_BULK_BYTES.min(bytes - asked);
        let at = index as usize * RDMA_BULK_BYTES;
        let from = Remote { address: remote.address + asked as u64, key: remote.key };
        let into = Local {
            address: buffer.memory.address() as u64 + at as u64,
            bytes: length as u32,
            key: buffer.key,
        };
        Some(Piece { ticket: self.read(index, from, into)?, index, bytes: length })
    }

    /// Looks for a while, sleeps once, and looks again.
    fn await_read(&self, ticket: Ticket) -> Option<End> {
        for _ in 0..LOOKS {
            self.drain();
            if let Some(end) = self.flight.ask(ticket) {
                return Some(end);
            }
        }
        self.sleep(ticket, RDMA_BULK_WAIT);
        self.flight.ask(ticket)
    }

    fn read_failed(&self, filled: usize, bytes: usize) -> Error {
        let (kind, why) = match self.fault.cause() {
            Some(cause) => (ErrorKind::Unreachable, cause.text()),
            None => (ErrorKind::Timeout, format!("nothing came for {} ms", RDMA_BULK_WAIT.as_millis())),
        };
        let what = format!("read {filled} of {bytes} bytes from a server: {why}");
        Error::new(kind, Origin::Transport, what)
    }
}
