//! What the header says to all processes: state, view, sums, doorbells.

use super::info::{CacheStats, EntryInfo, SegmentState};
use super::layout::{SHARDS, VIEW_BYTES_MAX, Word, hold_state, segment_state};
use super::shard::shard_of;
use super::{CacheSpec, Inner};
use crate::error::{Error, ErrorKind, Origin, Result};
use crate::ident::{Epoch, SessionId};
use crate::sync::words::{Ordering, fence};
use crate::sync::{futex, robust_lock};
use std::time::{Duration, Instant};

impl Inner {
    pub(super) fn state(&self) -> SegmentState {
        match self.segment.header().state.read() {
            segment_state::ALIVE => SegmentState::Alive,
            segment_state::DRAINING => SegmentState::Draining,
            _ => SegmentState::Poisoned,
        }
    }

    pub(super) fn set_draining(&self, draining: bool) {
        let (from, to) = if draining {
            (segment_state::ALIVE, segment_state::DRAINING)
        } else {
            (segment_state::DRAINING, segment_state::ALIVE)
        };
        // A swap from one to the other only, so that a poisoned segment stays so.
        let _ = self.segment.header().state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed);
    }

    pub(super) fn poison(&self) {
        self.segment.poison();
        for hold in self.segment.holds.as_slice() {
            if hold.state.read() == hold_state::WAITING {
                futex::wake(&hold.state, 1);
            }
        }
        self.segment.processes.iter().for_each(|process| self.segment.processes.ring(process.id.slot));
    }

    /// The current view. A writer fills the buffer that is not current and then makes it so; a writer that
    /// dies on the way leaves the current one untouched, so readers never wait for it.
    pub(super) fn view(&self) -> Option<(Epoch, Vec<u8>)> {
        let header = self.segment.header();
        loop {
            let sequence = header.view_sequence.read();
            if sequence == 0 {
                return None;
            }
            let buffer = &self.segment.views[(sequence & 1) as u32];
            let epoch = Epoch {
                term: buffer.term.load(Ordering::Relaxed),
                number: buffer.number.load(Ordering::Relaxed),
            };
            let length = (buffer.bytes.load(Ordering::Relaxed) as usize).min(VIEW_BYTES_MAX);
            let mut bytes = Vec::with_capacity(length.next_multiple_of(8));
            for word in &buffer.words[..length.div_ceil(8)] {
                bytes.extend_from_slice(&word.load(Ordering::Relaxed).to_le_bytes());
            }
            bytes.truncate(length);
            // Pairs with the fence of `set_view`: whoever has read a word of a later view sees the later
            // number, too.
            fence(Ordering::Acquire);
            if header.view_sequence.load(Ordering::Relaxed) == sequence {
                return Some((epoch, bytes));
            }
        }
    }

    pub(super) fn set_view(&self, epoch: Epoch, bytes: &[u8]) -> Result<()> {
        self.check_alive()?;
        if bytes.len() > VIEW_BYTES_MAX {
            return Err(Error::new(
                ErrorKind::TooLarge,
                Origin::Cache,
                format!("a view of {} bytes; the limit is {VIEW_BYTES_MAX}", bytes.len()),
            ));
        }
        let header = self.segment.header();
        let next = header.view_sequence.read() + 1;
        let buffer = &self.segment.views[(next & 1) as u32];
        // The buffer was current two views ago; a reader that is still there finds the number changed.
        fence(Ordering::Release);
        buffer.term.store(epoch.term, Ordering::Relaxed);
        buffer.number.store(epoch.number, Ordering::Relaxed);
        buffer.bytes.store(bytes.len() as u64, Ordering::Relaxed);
        for (word, chunk) in buffer.words.iter().zip(bytes.chunks(8)) {
            let mut padded = [0; 8];
            padded[..chunk.len()].copy_from_slice(chunk);
            word.store(u64::from_le_bytes(padded), Ordering::Relaxed);
        }
        header.view_sequence.write(next);
        Ok(())
    }

    pub(super) fn entry(&self, index: u32) -> Result<Option<EntryInfo>> {
        self.check_alive()?;
        if index >= self.segment.entries.len() {
            return Ok(None);
        }
        let owner = self.segment.entry_owners.owner(index);
        let Some(shard) = owner.checked_sub(1) else { return Ok(None) };
        let guard = self.lock_shard(shard)?;
        // It may have passed to another shard, or to nobody, before the lock was taken.
        let same = self.segment.entry_owners.owner(index) == owner
            && guard.entry(index).used.read() == super::layout::entry_used::YES;
        Ok(same.then(|| guard.info(index)))
    }

    pub(super) fn find(&self, id: &SessionId) -> Result<Option<EntryInfo>> {
        self.check_alive()?;
        let guard = self.lock_shard(shard_of(id))?;
        Ok(guard.find(id).map(|index| guard.info(index)))
    }

    pub(super) fn stats(&self) -> Result<CacheStats> {
        self.check_alive()?;
        let total = self.segment.geometry.heap.count as u64;
        let mut stats = CacheStats { bytes_total: total, ..CacheStats::default() };
        for shard in 0..SHARDS {
            // Locking repairs sums that a dead process left half done; the sums themselves are single words.
            let sums = &self.segment.shards[shard];
            if robust_lock::holder(&sums.lock) != 0 {
                drop(self.lock_shard(shard)?);
            }
            stats.sessions += sums.sessions.read();
            stats.others += sums.others.read();
            stats.bytes_used += sums.bytes_used.read();
            for (sum, word) in stats.safe.iter_mut().zip(&sums.safe) {
                *sum += word.read();
            }
        }
        Ok(stats)
    }

    pub(super) fn recount(&self) -> Result<()> {
        self.check_alive()?;
        for shard in 0..SHARDS {
            let guard = self.lock_shard(shard)?;
            guard.entries().for_each(|index| guard.count(index));
        }
        Ok(())
    }

    pub(super) fn wait_doorbell(&self, seen: u32, timeout: Duration) -> u32 {
        let doorbell = self.segment.processes.doorbell(self.process.slot);
        let deadline = Instant::now() + timeout;
        loop {
            let now = doorbell.read();
            let left = deadline.saturating_duration_since(Instant::now());
            if now != seen || left.is_zero() {
                return now;
            }
            futex::wait(doorbell, seen, left);
        }
    }
}

impl CacheSpec {
    /// Bytes that a segment of this spec takes.
    ///
    /// # Errors
    /// `Invalid` with what is wrong in it.
    pub fn segment_bytes(&self) -> Result<u64> {
        Ok(super::layout::Geometry::new(self)?.total_bytes as u64)
    }
}
