//! What the server counts and times outside its state machine: errors and durations. Written by the threads
//! that carry effects out, told with the director's reports.

use selvage_fabric::control::message::ServerNumbers;
use selvage_fabric::error::ErrorKind;
use selvage_fabric::numbers::{ServerTime, SharedHistogram};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Time from one report of these numbers to the next.
const EVERY: Duration = Duration::from_secs(1);

/// Errors and durations since the process's start.
#[derive(Debug)]
pub(crate) struct Tally {
    errors: [AtomicU64; ErrorKind::ALL.len()],
    times: [SharedHistogram; ServerTime::ALL.len()],
    reported: Mutex<Option<Instant>>,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            errors: [const { AtomicU64::new(0) }; ErrorKind::ALL.len()],
            times: std::array::from_fn(|_| SharedHistogram::default()),
            reported: Mutex::default(),
        }
    }
}

impl Tally {
    /// Counts an error.
    pub(crate) fn error(&self, kind: ErrorKind) {
        self.errors[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Takes in how long something took that began then.
    pub(crate) fn observe(&self, time: ServerTime, began: Instant) {
        let took_ns = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.times[time as usize].observe(took_ns);
    }

    /// The numbers, if nobody was told for a second.
    pub(crate) fn due(&self) -> Option<Box<ServerNumbers>> {
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        if reported.is_some_and(|at| at.elapsed() < EVERY) {
            return None;
        }
        *reported = Some(Instant::now());
        Some(Box::new(ServerNumbers {
            errors: self.errors.iter().map(|count| count.load(Ordering::Relaxed)).collect(),
            times: self.times.iter().map(SharedHistogram::snapshot).collect(),
        }))
    }
}
