//! Histograms of durations, with bounds that are powers of two of a nanosecond: finding the bucket is one
//! instruction.

use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU64, Ordering};

/// Buckets of a histogram: everything up to 256 ns, then one for each doubling up to 8.6 s, then the rest.
pub const BUCKETS: usize = 27;
/// The upper bound of the first bucket is two to the power of this, ns.
const FIRST_BOUND_BITS: u32 = 8;

/// The bucket of a duration.
#[inline]
pub const fn bucket_of(ns: u64) -> usize {
    // An upper bound belongs to its bucket, as Prometheus's `le` says.
    let bits = u64::BITS - ns.saturating_sub(1).leading_zeros();
    let bucket = bits.saturating_sub(FIRST_BOUND_BITS) as usize;
    if bucket < BUCKETS { bucket } else { BUCKETS - 1 }
}

/// The upper bound of a bucket, seconds; `None` for the last one, which has none.
pub fn bound_s(bucket: usize) -> Option<f64> {
    let ns = 1_u64.checked_shl(FIRST_BOUND_BITS + bucket as u32).filter(|_| bucket + 1 < BUCKETS)?;
    Some(ns as f64 / 1e9)
}

/// The lower bound of a bucket, ns: nothing in it took less.
pub(crate) const fn lower_bound_ns(bucket: usize) -> u64 {
    if bucket == 0 { 0 } else { (1 << (FIRST_BOUND_BITS + bucket as u32 - 1)) + 1 }
}

/// How often something took how long.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Histogram {
    /// By bucket, not summed up; what is missing at the end is zero.
    pub counts: Vec<u64>,
    /// All durations together, ns.
    pub sum_ns: u64,
}

impl Histogram {
    /// How many durations there are.
    pub fn count(&self) -> u64 {
        self.counts.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// Adds another one's numbers.
    pub fn add(&mut self, counts: impl IntoIterator<Item = u64>, sum_ns: u64) {
        for (bucket, count) in counts.into_iter().take(BUCKETS).enumerate() {
            if count > 0 && bucket >= self.counts.len() {
                self.counts.resize(bucket + 1, 0);
            }
            if let Some(of) = self.counts.get_mut(bucket) {
                *of = of.saturating_add(count);
            }
        }
        self.sum_ns = self.sum_ns.saturating_add(sum_ns);
    }
}

/// A histogram that threads write together.
#[derive(Debug, Default)]
pub struct SharedHistogram {
    counts: [AtomicU64; BUCKETS],
    sum_ns: AtomicU64,
}

impl SharedHistogram {
    /// Takes a duration in.
    pub fn observe(&self, ns: u64) {
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
        self.counts[bucket_of(ns)].fetch_add(1, Ordering::Relaxed);
    }

    /// What it holds.
    pub fn snapshot(&self) -> Histogram {
        let mut histogram = Histogram::default();
        let counts = self.counts.iter().map(|count| count.load(Ordering::Relaxed));
        histogram.add(counts, self.sum_ns.load(Ordering::Relaxed));
        histogram
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_lies_between_the_bounds_of_its_bucket() {
        let edges = (0..40).flat_map(|bits| {
            let power = 1_u64 << bits;
            [power - 1, power, power + 1]
        });
        for ns in edges.chain([0, u64::MAX]) {
            let bucket = bucket_of(ns);
            assert!(ns >= lower_bound_ns(bucket), "{ns} in bucket {bucket}");
            match bound_s(bucket) {
                Some(bound) => assert!(ns as f64 <= bound * 1e9, "{ns} in bucket {bucket}"),
                None => assert_eq!(bucket, BUCKETS - 1),
            }
        }
        let bounds: Vec<f64> = (0..BUCKETS).map_while(bound_s).collect();
        assert_eq!(bounds.len(), BUCKETS - 1);
        assert!(bounds.windows(2).all(|pair| pair[1] == pair[0] * 2.0), "{bounds:?}");
        assert_eq!((bounds[0], bounds[25]), (256e-9, 8.589934592));
    }

    #[test]
    fn histograms_add_up_and_take_no_more_than_they_have_room_for() {
        let shared = SharedHistogram::default();
        [100, 300, 300, u64::MAX >> 1].into_iter().for_each(|ns| shared.observe(ns));
        let mut sum = shared.snapshot();
        assert_eq!((sum.count(), &sum.counts[..3]), (4, &[1, 2, 0][..]));
        assert_eq!(sum.counts.len(), BUCKETS);
        sum.add([5, 0, 7], u64::MAX);
        assert_eq!((&sum.counts[..3], sum.sum_ns), (&[6, 2, 7][..], u64::MAX));
        sum.add(std::iter::repeat_n(1, 10_000), 0);
        assert_eq!(sum.counts.len(), BUCKETS);
        let mut small = Histogram::default();
        small.add([0, 2, 0, 0], 600);
        assert_eq!(small.counts, [0, 2], "nothing is sent for empty buckets at the end");
    }
}
