//! Timing of a repeated operation, and pinning of processes to cores.

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use rustix::thread::{CpuSet, Pid, sched_setaffinity};
use serde::Serialize;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// The longest latency that is told apart from longer ones: 10 s, in ps.
const LATENCY_PS_MAX: u64 = 10_000_000_000_000;
const SIGNIFICANT_DIGITS: u8 = 3;
/// Share of a slice that warms caches and branch predictors up and is not recorded.
const WARM_UP_SHARE: u32 = 10;

/// Latencies of one contestant, ns.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// The shortest.
    pub min_ns: f64,
    /// Middle latency.
    pub p50_ns: f64,
    /// 99 of 100 are below.
    pub p99_ns: f64,
    /// 999 of 1000 are below.
    pub p999_ns: f64,
    /// The longest.
    pub max_ns: f64,
    /// Mean.
    pub mean_ns: f64,
    /// Operations measured.
    pub count: u64,
    /// Middle latency of each round, in their order: shows whether the machine was quiet.
    pub round_p50_ns: Vec<f64>,
}

/// Collects the latencies of several rounds of one contestant, in picoseconds: the fastest operations take
/// few ns.
pub struct Recorder {
    all: Histogram<u64>,
    round: Histogram<u64>,
    round_p50_ns: Vec<f64>,
    /// Operations between two looks at the clock.
    batch: u32,
}

impl Recorder {
    /// An empty one. The clock is read once per `batch` operations; more than one where an operation is not
    /// much longer than a look at the clock, in which case percentiles are those of batch means.
    ///
    /// # Errors
    /// Never in practice: the histogram's bounds are constant.
    pub fn new(batch: u32) -> Result<Self> {
        let empty = Histogram::new_with_bounds(1, LATENCY_PS_MAX, SIGNIFICANT_DIGITS)?;
        Ok(Self { all: empty.clone(), round: empty, round_p50_ns: Vec::new(), batch: batch.max(1) })
    }

    /// Runs `operation` for the time of a slice and records each latency. The end of one operation is the
    /// start of the next, so the clock is read once per operation and each latency contains one look at it.
    ///
    /// # Errors
    /// The operation's.
    pub fn slice(&mut self, slice: Duration, mut operation: impl FnMut() -> Result<()>) -> Result<()> {
        let begin = Instant::now();
        let recorded_from = begin + slice / WARM_UP_SHARE;
        let end = begin + slice;
        let mut last = begin;
        while last < end {
            for _ in 0..self.batch {
                operation()?;
            }
            let now = Instant::now();
            if last >= recorded_from {
                let ps = (now - last).as_nanos() as u64 * 1000 / u64::from(self.batch);
                self.round.saturating_record(ps);
            }
            last = now;
        }
        self.all.add(&self.round)?;
        self.round_p50_ns.push(self.round.value_at_quantile(0.5) as f64 / 1000.0);
        self.round.reset();
        Ok(())
    }

    /// The result.
    pub fn finish(&self) -> Measured {
        let quantile = |quantile| self.all.value_at_quantile(quantile) as f64 / 1000.0;
        Measured {
            min_ns: self.all.min() as f64 / 1000.0,
            p50_ns: quantile(0.5),
            p99_ns: quantile(0.99),
            p999_ns: quantile(0.999),
            max_ns: self.all.max() as f64 / 1000.0,
            mean_ns: self.all.mean() / 1000.0,
            count: self.all.len() * u64::from(self.batch),
            round_p50_ns: self.round_p50_ns.clone(),
        }
    }
}

/// What one look at the clock costs, ns: the floor under every latency. The best of several tries, so that
/// other work on the machine does not count.
pub fn clock_ns() -> f64 {
    const TRIES: u32 = 20;
    const LOOKS: u32 = 5_000;
    let try_once = || {
        let begin = Instant::now();
        for _ in 0..LOOKS {
            black_box(Instant::now());
        }
        begin.elapsed().as_nanos() as f64 / f64::from(LOOKS)
    };
    (0..TRIES).map(|_| try_once()).fold(f64::INFINITY, f64::min)
}

/// Pins a process (`None`: the calling thread) to these cores.
///
/// # Errors
/// If the kernel refuses.
pub fn pin(pid: Option<u32>, cores: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    for core in cores {
        set.set(*core);
    }
    let pid = pid.and_then(|pid| Pid::from_raw(pid.cast_signed()));
    sched_setaffinity(pid, &set).with_context(|| format!("cannot pin to the cores {cores:?}"))
}

/// The cores that this process may run on.
///
/// # Errors
/// If the kernel refuses.
pub fn cores() -> Result<Vec<usize>> {
    let set = rustix::thread::sched_getaffinity(None).context("cannot ask for the cores of this process")?;
    Ok((0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_records_every_operation_after_the_warm_up() {
        let mut recorder = Recorder::new(1).unwrap();
        for _ in 0..2 {
            let slept = || {
                std::thread::sleep(Duration::from_millis(2));
                Ok(())
            };
            recorder.slice(Duration::from_millis(40), slept).unwrap();
        }
        let measured = recorder.finish();
        assert!(measured.p50_ns >= 2e6, "{measured:?}");
        assert!((2..=40).contains(&measured.count), "{measured:?}");
        assert_eq!(measured.round_p50_ns.len(), 2);
    }

    #[test]
    fn a_batch_counts_its_operations_and_reports_one() {
        let mut recorder = Recorder::new(100).unwrap();
        recorder
            .slice(Duration::from_millis(5), || {
                black_box(0);
                Ok(())
            })
            .unwrap();
        let measured = recorder.finish();
        assert_eq!(measured.count % 100, 0);
        assert!(measured.p50_ns < 1e6, "{measured:?}");
    }

    #[test]
    fn errors_end_a_slice() {
        let mut recorder = Recorder::new(1).unwrap();
        assert!(recorder.slice(Duration::from_secs(60), || anyhow::bail!("no")).is_err());
    }

    #[test]
    fn pinning_is_seen() {
        let all = cores().unwrap();
        pin(None, &all[..1]).unwrap();
        assert_eq!(cores().unwrap(), all[..1]);
    }
}
