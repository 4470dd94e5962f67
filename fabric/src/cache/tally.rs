//! What the processes of the node have counted and timed: each in a slot of its own, all together in sums.
//!
//! A slot belongs to a place in the process table, not to a life: whoever has that place next goes on where
//! the last one stopped. So the sums never fall while the segment lives, whoever dies, and repair has
//! nothing to do here. All accesses but one are relaxed: nobody concludes anything about other memory from
//! a number, but from that of regenerations, where `node` has the fences.

use super::Cache;
use super::layout::{Tally, Timing};
use crate::error::ErrorKind;
use crate::numbers::{Histogram, NodeCounter, NodeTime, bucket_of, lower_bound_ns};
use crate::sync::words::{AtomicU64, Ordering};

/// Sums over all processes that are or were attached.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CacheNumbers {
    /// By [`NodeCounter`].
    pub counters: Vec<u64>,
    /// By [`ErrorKind`].
    pub errors: Vec<u64>,
    /// By [`NodeTime`].
    pub times: Vec<Histogram>,
    /// By way: pushes that were timed, and how many failed.
    pub pushes: Vec<(Histogram, u64)>,
}

impl Timing {
    #[inline]
    fn observe(&self, ns: u64) {
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
        // Release: pairs with the Acquire of `add_to`, so that who sees the count sees its share of the
        // sum.
        self.counts[bucket_of(ns)].fetch_add(1, Ordering::Release);
    }

    fn add_to(&self, sum: &mut Histogram) {
        let counts = self.counts.each_ref().map(|count| count.load(Ordering::Acquire));
        sum.add(counts, self.sum_ns.load(Ordering::Relaxed));
    }

    /// Whether what was counted fits the sum, at rest.
    pub(super) fn is_whole(&self) -> bool {
        let mut timed = Histogram::default();
        self.add_to(&mut timed);
        let least = timed.counts.iter().enumerate().fold(0_u64, |least, (bucket, count)| {
            least.saturating_add(lower_bound_ns(bucket).saturating_mul(*count))
        });
        timed.sum_ns >= least && self.reserved.iter().all(is_zero)
    }
}

impl Tally {
    /// Whether what was counted can be true, at rest.
    pub(super) fn is_whole(&self) -> bool {
        let spare =
            self.counters[NodeCounter::ALL.len()..].iter().chain(&self.errors[ErrorKind::ALL.len()..]);
        self.times.iter().all(Timing::is_whole) && spare.into_iter().all(is_zero)
    }
}

fn is_zero(word: &AtomicU64) -> bool {
    word.load(Ordering::Relaxed) == 0
}

impl Cache {
    #[inline]
    fn tally(&self) -> &Tally {
        &self.inner.segment.tallies[self.inner.process.slot]
    }

    /// Adds to a counter.
    #[inline]
    pub fn count(&self, counter: NodeCounter, by: u64) {
        self.tally().counters[counter as usize].fetch_add(by, Ordering::Relaxed);
    }

    /// What this process's slot has counted; for sampling.
    #[inline]
    pub fn counted_here(&self, counter: NodeCounter) -> u64 {
        self.tally().counters[counter as usize].load(Ordering::Relaxed)
    }

    /// Counts an error that a caller of the node was given.
    #[cold]
    pub fn count_error(&self, kind: ErrorKind) {
        self.tally().errors[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Takes a duration in.
    pub fn observe(&self, time: NodeTime, ns: u64) {
        self.tally().times[time as usize].observe(ns);
    }

    /// Takes the duration of a push over a way in. Ways that the segment has no room for are left out.
    pub fn observe_push(&self, way: u32, ns: u64) {
        if let Some(timing) = self.push_timing(way) {
            timing.observe(ns);
        }
    }

    /// Counts a push over a way that failed.
    pub fn count_failed_push(&self, way: u32) {
        if let Some(timing) = self.push_timing(way) {
            timing.failed.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn push_timing(&self, way: u32) -> Option<&Timing> {
        let segment = &self.inner.segment;
        let ways = segment.geometry.ways;
        (way < ways).then(|| &segment.push_times[self.inner.process.slot * ways + way])
    }

    /// What all processes have counted so far.
    pub fn counters(&self) -> Vec<u64> {
        let mut sums = vec![0_u64; NodeCounter::ALL.len()];
        self.used_slots().for_each(|slot| add(&mut sums, &self.inner.segment.tallies[slot].counters));
        sums
    }

    /// What all processes have counted and timed so far.
    pub fn numbers(&self) -> CacheNumbers {
        let segment = &self.inner.segment;
        let mut numbers = CacheNumbers {
            counters: self.counters(),
            errors: vec![0; ErrorKind::ALL.len()],
            times: vec![Histogram::default(); NodeTime::ALL.len()],
            pushes: vec![Default::default(); segment.geometry.ways as usize],
        };
        for slot in self.used_slots() {
            let tally = &segment.tallies[slot];
            add(&mut numbers.errors, &tally.errors);
            for (sum, timing) in numbers.times.iter_mut().zip(&tally.times) {
                timing.add_to(sum);
            }
            for (way, (sum, failed)) in numbers.pushes.iter_mut().enumerate() {
                let timing = &segment.push_times[slot * segment.geometry.ways + way as u32];
                timing.add_to(sum);
                *failed += timing.failed.load(Ordering::Relaxed);
            }
        }
        numbers
    }

    /// Slots of the process table that anybody has ever had.
    fn used_slots(&self) -> impl Iterator<Item = u32> {
        let processes = &self.inner.segment.processes;
        (0..self.inner.segment.tallies.len()).filter(|slot| processes.was_used(*slot))
    }

    /// What is wrong in the numbers, at rest.
    pub(super) fn verify_tallies(&self, wrong: &mut Vec<String>) {
        let segment = &self.inner.segment;
        for slot in 0..segment.tallies.len() {
            let ways = segment.geometry.ways;
            let pushes = (slot * ways..(slot + 1) * ways).map(|at| &segment.push_times[at]);
            let tally = &segment.tallies[slot];
            let whole = tally.is_whole() && pushes.clone().all(Timing::is_whole);
            let untouched = tally.counters.iter().all(is_zero)
                && pushes.clone().all(|timing| is_zero(&timing.sum_ns) && is_zero(&timing.failed));
            if !whole || (!untouched && !segment.processes.was_used(slot)) {
                wrong.push(format!("process slot {slot}: its numbers cannot be"));
            }
        }
    }
}

fn add(sums: &mut [u64], words: &[AtomicU64]) {
    for (sum, word) in sums.iter_mut().zip(words) {
        *sum += word.load(Ordering::Relaxed);
    }
}
