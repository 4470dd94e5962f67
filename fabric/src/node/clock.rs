//! The two clocks of a node, passed in so that a simulation can own time.

use rustix::time::{ClockId, clock_gettime};
use std::sync::{Condvar, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Time as a node sees it.
pub trait Clock: Send + Sync {
    /// The monotonic clock that all processes of the host share: mandates go by it.
    fn monotonic_ns(&self) -> u64;
    /// Unix time, ms: expiries go by it.
    fn unix_ms(&self) -> u64;
    /// Sleeps.
    fn sleep(&self, time: Duration) {
        std::thread::sleep(time);
    }
    /// Waits for `changed`, at most so long; may return early. The caller looks again.
    fn wait(&self, changed: &Condvar, guard: MutexGuard<'_, ()>, timeout: Duration) {
        drop(changed.wait_timeout(guard, timeout));
    }
}

/// The kernel's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn monotonic_ns(&self) -> u64 {
        let now = clock_gettime(ClockId::Monotonic);
        now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
    }

    fn unix_ms(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_millis() as u64)
    }
}
