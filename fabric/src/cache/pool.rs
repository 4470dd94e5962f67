//! The holds that a process has to give out. They lie in the segment; which of them are unused is this
//! process's own affair and lies in its private memory, so that nothing has to be repaired when it dies.

use super::layout::HOLDS_PER_CHUNK;
use super::owner::OwnerTable;
use crate::error::{Error, ErrorKind, Origin, Result};
use crate::limits::HOLDS_PER_PROCESS;
use crate::sync::words::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// A stack of unused holds; popping and pushing is one compare-and-swap each.
pub struct HoldPool {
    /// `tag << 32 | hold + 1`; the tag rises with each change, so that a stale top is never taken for the
    /// current one.
    top: AtomicU64,
    /// Hold + 1 below each hold.
    below: Box<[AtomicU32]>,
    /// Chunks taken so far; the lock is for growing only.
    chunks: Mutex<u32>,
}

impl HoldPool {
    /// A pool that may give out any of `holds`; empty at first.
    pub fn new(holds: u32) -> Self {
        let below = (0..holds).map(|_| AtomicU32::new(0)).collect();
        Self { top: AtomicU64::new(0), below, chunks: Mutex::new(0) }
    }

    /// An unused hold. Takes a chunk of the segment's for `owner` when there is none.
    ///
    /// # Errors
    /// `Busy` if this process has `HOLDS_PER_PROCESS`, or the node has no more.
    #[inline]
    pub fn pop(&self, owners: &OwnerTable, owner: u32) -> Result<u32> {
        match self.try_pop() {
            Some(hold) => Ok(hold),
            None => self.grow(owners, owner),
        }
    }

    /// A model watches its words.
    #[cfg(all(test, feature = "loom"))]
    pub fn watch(&self) {
        use crate::sync::checked::watch;
        watch(std::ptr::from_ref(&self.top) as usize, size_of_val(&self.top));
        watch(self.below.as_ptr() as usize, size_of_val(&*self.below));
    }

    /// Gives a hold back.
    #[inline]
    pub fn push(&self, hold: u32) {
        let mut top = self.top.load(Ordering::Relaxed);
        loop {
            self.below[hold as usize].store(top as u32, Ordering::Relaxed);
            let new = next_tag(top) | u64::from(hold + 1);
            match self.top.compare_exchange_weak(top, new, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => top = now,
            }
        }
    }

    #[inline]
    fn try_pop(&self) -> Option<u32> {
        let mut top = self.top.load(Ordering::Acquire);
        loop {
            let hold = (top as u32).checked_sub(1)?;
            let below = self.below[hold as usize].load(Ordering::Relaxed);
            let new = next_tag(top) | u64::from(below);
            match self.top.compare_exchange_weak(top, new, Ordering::Acquire, Ordering::Acquire) {
                Ok(_) => return Some(hold),
                Err(now) => top = now,
            }
        }
    }

    #[cold]
    fn grow(&self, owners: &OwnerTable, owner: u32) -> Result<u32> {
        let mut chunks = self.chunks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(hold) = self.try_pop() {
            return Ok(hold);
        }
        let busy = |what: &str| Error::new(ErrorKind::Busy, Origin::Cache, what);
        if *chunks >= HOLDS_PER_PROCESS as u32 / HOLDS_PER_CHUNK {
            return Err(busy("this process has as many sessions open as it may (4096)"));
        }
        // A chunk needs no intent: repair finds it by its owner.
        let chunk = owners
            .take(owners.len(), owner, &AtomicU32::new(0))
            .ok_or_else(|| busy("this node has as many sessions open as it may (65536)"))?;
        kill_point!("allocate.holds");
        *chunks += 1;
        let first = chunk * HOLDS_PER_CHUNK;
        (first + 1..first + HOLDS_PER_CHUNK).rev().for_each(|hold| self.push(hold));
        Ok(first)
    }
}

fn next_tag(top: u64) -> u64 {
    (top >> 32).wrapping_add(1) << 32
}

const _: () = assert!(HOLDS_PER_PROCESS == 4096 && crate::limits::HOLDS_MAX == 65_536, "the messages above");
