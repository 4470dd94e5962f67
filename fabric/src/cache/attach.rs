//! Coming and going of processes.

use super::layout::Word;
use super::pool::HoldPool;
use super::process::SimulatedProcesses;
use super::segment::Segment;
use super::{Cache, CacheSpec, Inner};
use crate::error::Result;
use crate::sync::LockFile;
use crate::sync::words::Ordering;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

pub(super) fn create(spec: &CacheSpec, name: &str, lock_file: Arc<LockFile>) -> Result<Cache> {
    enter(Segment::create(spec, name, lock_file)?)
}

pub(super) fn attach(name: &str, lock_file: Arc<LockFile>) -> Result<Cache> {
    enter(Segment::attach(name, lock_file)?)
}

pub(super) fn anonymous(spec: &CacheSpec) -> Result<Cache> {
    enter(Segment::anonymous(spec, Arc::new(SimulatedProcesses::new(spec.processes_max)))?)
}

pub(super) fn sibling(inner: &Inner) -> Result<Cache> {
    let liveness = inner.segment.processes.liveness().clone();
    enter(Segment::over(inner.segment.memory.clone(), liveness)?)
}

/// Takes a process slot, after repairing what its last process may have left.
fn enter(segment: Segment) -> Result<Cache> {
    let slot = segment.processes.claim()?;
    kill_point!("attach.claimed");
    let process = segment.processes.enter(slot);
    kill_point!("attach.entered");
    let inner = Inner {
        pool: HoldPool::new(segment.holds.len()),
        segment,
        process,
        word: process.word(),
        books: Mutex::default(),
        deferred: Mutex::default(),
        has_deferred: AtomicBool::new(false),
        killed: AtomicBool::new(false),
    };
    // From `enter` on, earlier lives of the slot count as dead.
    inner.repair_slot(slot)?;
    kill_point!("attach.repaired");
    inner.check_alive()?;
    Ok(Cache { inner: Arc::new(inner) })
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.is_killed() {
            return;
        }
        // All holds keep the attachment alive, so what is left to give back is their chunks and what was
        // deferred.
        match self.release_all_of(self.word) {
            Ok(()) => self.segment.processes.leave(self.process),
            // The table goes on naming this life, and without its claim it counts as dead: others repair.
            Err(error) => tracing::warn!(%error, "cannot detach in order from the cache"),
        }
        self.segment.processes.liveness().release(self.process.slot);
    }
}

impl Inner {
    /// Remembers a hold that could not be released.
    #[cold]
    pub(super) fn defer(&self, hold: u32) {
        self.deferred.lock().unwrap_or_else(PoisonError::into_inner).push(hold);
        self.has_deferred.store(true, Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn has_deferred(&self) -> bool {
        self.has_deferred.load(Ordering::Relaxed)
    }

    /// Tries again to release what was deferred.
    #[cold]
    pub(super) fn release_deferred(&self) {
        let mut deferred = self.deferred.lock().unwrap_or_else(PoisonError::into_inner);
        self.has_deferred.store(false, Ordering::Relaxed);
        while let Some(hold) = deferred.pop() {
            let record = &self.segment.holds[hold];
            let entry = record.entry.read() - 1;
            let shard = self.segment.entry_owners.owner(entry) - 1;
            match self.lock_shard(shard) {
                Ok(guard) => guard.leave(entry, hold),
                Err(_) => {
                    deferred.push(hold);
                    self.has_deferred.store(true, Ordering::Relaxed);
                    return;
                }
            }
            self.pool.push(hold);
        }
    }
}
