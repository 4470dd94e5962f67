//! A lock in shared memory that outlives its holder.
//!
//! The word is 0 or names the holder: its process slot + 1 and the generation of that slot, so that it can
//! never be taken for a later process. A waiter spins, then sleeps on the word in short pieces, and between
//! them asks whether the holder lives. If not, it takes the lock over in one compare-and-swap and tells its
//! caller to repair what the lock guards. If the holder lives but does not go on (SIGSTOP), the wait ends
//! with an error.
//!
//! Callers: `cache`, for its shards.

use super::futex;
use super::words::{AtomicU32, Ordering, spin};
use crate::limits;
use std::time::{Duration, Instant};

/// Set while somebody may sleep on the word.
const WAITERS: u32 = 1 << 31;
/// Rounds of spinning before the first sleep; a critical section is some tens of nanoseconds.
const SPINS: u32 = if cfg!(feature = "loom") { 1 } else { 200 };

/// How a lock was taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Acquired {
    /// Its last holder had released it.
    Clean,
    /// Its last holder died: what it guards must be repaired before it is used.
    TakenOver,
}

/// The lock was not free within its time, and its holder lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HolderStuck {
    /// The holder's word.
    pub holder: u32,
}

/// Takes the lock as `me` (31 bits, not 0). `alive` judges a holder's word.
///
/// # Errors
/// If a living holder keeps it for `timeout`.
#[inline]
pub fn acquire(
    word: &AtomicU32,
    me: u32,
    timeout: Duration,
    alive: impl Fn(u32) -> bool,
) -> Result<Acquired, HolderStuck> {
    debug_assert!(me != 0 && me & WAITERS == 0);
    // Acquire here and below pairs with the Release of `release`.
    if word.compare_exchange(0, me, Ordering::Acquire, Ordering::Relaxed).is_ok() {
        return Ok(Acquired::Clean);
    }
    acquire_slowly(word, me, timeout, alive)
}

/// Gives the lock back.
#[inline]
pub fn release(word: &AtomicU32) {
    if word.swap(0, Ordering::Release) & WAITERS != 0 {
        futex::wake(word, 1);
    }
}

/// Who has the lock; 0 if nobody.
#[inline]
pub fn holder(word: &AtomicU32) -> u32 {
    word.load(Ordering::Acquire) & !WAITERS
}

#[cold]
fn acquire_slowly(
    word: &AtomicU32,
    me: u32,
    timeout: Duration,
    alive: impl Fn(u32) -> bool,
) -> Result<Acquired, HolderStuck> {
    for _ in 0..SPINS {
        if word.load(Ordering::Relaxed) == 0
            && word.compare_exchange(0, me, Ordering::Acquire, Ordering::Relaxed).is_ok()
        {
            return Ok(Acquired::Clean);
        }
        spin();
    }
    let deadline = Instant::now() + timeout;
    // The first look comes early, so that a dead holder costs little; later ones at the poll's pace.
    let mut pause = limits::LIVENESS_POLL / 10;
    loop {
        let seen = word.load(Ordering::Relaxed);
        if seen == 0 {
            // Others may sleep still, so the word says so until the next release.
            if word.compare_exchange(0, me | WAITERS, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                return Ok(Acquired::Clean);
            }
            continue;
        }
        if seen & WAITERS == 0 {
            let marked = seen | WAITERS;
            if word.compare_exchange(seen, marked, Ordering::Relaxed, Ordering::Relaxed).is_err() {
                continue;
            }
        }
        futex::wait(word, seen | WAITERS, pause);
        pause = limits::LIVENESS_POLL;
        let now = word.load(Ordering::Relaxed);
        if now & !WAITERS != seen & !WAITERS {
            continue;
        }
        if !alive(now & !WAITERS) {
            // Acquire: the dead holder's stores are all in memory, each after the one before it in its
            // program.
            if word.compare_exchange(now, me | WAITERS, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                return Ok(Acquired::TakenOver);
            }
        } else if Instant::now() >= deadline {
            return Err(HolderStuck { holder: now & !WAITERS });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_holder_is_taken_over_and_a_stuck_one_is_an_error() {
        let word = AtomicU32::new(7);
        let start = Instant::now();
        assert_eq!(acquire(&word, 9, Duration::from_secs(5), |_| false), Ok(Acquired::TakenOver));
        assert!(start.elapsed() < Duration::from_millis(100));
        assert_eq!(holder(&word), 9);
        let stuck = acquire(&word, 11, Duration::from_millis(20), |_| true);
        assert_eq!(stuck, Err(HolderStuck { holder: 9 }));
        release(&word);
        assert_eq!(acquire(&word, 11, Duration::ZERO, |_| true), Ok(Acquired::Clean));
    }

    #[test]
    fn threads_exclude_each_other() {
        let word = AtomicU32::new(0);
        let inside = AtomicU32::new(0);
        let total = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for me in 1..=4 {
                let (word, inside, total) = (&word, &inside, &total);
                scope.spawn(move || {
                    for _ in 0..5_000 {
                        acquire(word, me, Duration::from_secs(20), |_| true).unwrap();
                        assert_eq!(inside.fetch_add(1, Ordering::Relaxed), 0);
                        // Read and write apart, so that a second holder would lose an increment.
                        let value = total.load(Ordering::Relaxed);
                        total.store(value + 1, Ordering::Relaxed);
                        inside.fetch_sub(1, Ordering::Relaxed);
                        release(word);
                    }
                });
            }
        });
        assert_eq!(total.load(Ordering::Relaxed), 20_000);
    }
}
