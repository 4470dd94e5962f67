//! How long takeovers take: from the moment in which the director ends an incarnation, because it is silent,
//! drained or replaced, to the view that lets its sessions be adopted, and to the one that knows all of them
//! safe.

use super::Moment;
use std::time::Duration;

/// Upper bounds of what is told apart, ms; what takes longer is counted, too.
pub const BOUNDS_MS: [u64; 12] = [50, 100, 200, 300, 500, 1000, 2000, 5000, 10_000, 30_000, 60_000, 300_000];

/// Durations by size.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Spans {
    /// By [`BOUNDS_MS`]; the last is for all that are longer.
    pub counts: [u64; BOUNDS_MS.len() + 1],
    /// All of them together.
    pub sum: Duration,
}

impl Spans {
    fn add(&mut self, span: Duration) {
        let longer = |bound: &u64| span > Duration::from_millis(*bound);
        self.counts[BOUNDS_MS.iter().take_while(|bound| longer(bound)).count()] += 1;
        self.sum += span;
    }
}

/// Takeovers of this director's life.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Takeovers {
    /// Until every server had sealed what the incarnation had there.
    pub sealed: Spans,
    /// Until all its sessions were safe with others.
    pub settled: Spans,
}

impl Takeovers {
    pub(super) fn sealed(&mut self, since: Moment, now: Moment) {
        self.sealed.add(now.saturating_sub(since));
    }

    pub(super) fn settled(&mut self, since: Moment, now: Moment) {
        self.settled.add(now.saturating_sub(since));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_counted_up_to_its_bound() {
        let mut spans = Spans::default();
        [0, 50, 51, 300_000, 300_001].into_iter().for_each(|ms| spans.add(Duration::from_millis(ms)));
        assert_eq!((spans.counts[0], spans.counts[1], spans.counts[11], spans.counts[12]), (2, 1, 1, 1));
        assert_eq!(spans.sum, Duration::from_millis(600_102));
        assert!(BOUNDS_MS.is_sorted());
    }
}
