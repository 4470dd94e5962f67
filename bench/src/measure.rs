//! Timing of a repeated operation, and pinning of processes to cores.

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use rustix::thread::{CpuSet, Pid, sched_setaffinity};
use std::time::{Duration, Instant};

/// Latencies of one contestant, ns.
pub struct Measured {
    /// Middle latency.
    pub p50: u64,
    /// 99 of 100 are below.
    pub p99: u64,
    /// 999 of 1000 are below.
    pub p999: u64,
    /// Mean, from the total time of the run: free of the clock's own cost per operation.
    pub mean: f64,
    /// Operations measured.
    pub count: u64,
}

/// Collects the latencies of several rounds of one contestant.
pub struct Recorder {
    histogram: Histogram<u64>,
    total: Duration,
}

impl Recorder {
    /// An empty one.
    ///
    /// # Errors
    /// Never in practice: the histogram's bounds are constant.
    pub fn new() -> Result<Self> {
        Ok(Self { histogram: Histogram::new_with_bounds(1, 10_000_000_000, 3)?, total: Duration::ZERO })
    }

    /// Runs `operation` `count` times and records each latency. The clock is read once per operation: the end of
    /// one is the start of the next.
    ///
    /// # Errors
    /// The operation's.
    pub fn round(&mut self, count: u64, mut operation: impl FnMut(u64) -> Result<()>) -> Result<()> {
        let begin = Instant::now();
        let mut last = begin;
        for index in 0..count {
            operation(index)?;
            let now = Instant::now();
            self.histogram.saturating_record((now - last).as_nanos() as u64);
            last = now;
        }
        self.total += last - begin;
        Ok(())
    }

    /// The result.
    pub fn finish(&self) -> Measured {
        let count = self.histogram.len();
        Measured {
            p50: self.histogram.value_at_quantile(0.5),
            p99: self.histogram.value_at_quantile(0.99),
            p999: self.histogram.value_at_quantile(0.999),
            mean: self.total.as_nanos() as f64 / count.max(1) as f64,
            count,
        }
    }
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
    let pid = pid.and_then(|pid| Pid::from_raw(pid as i32));
    sched_setaffinity(pid, &set).with_context(|| format!("cannot pin to the cores {cores:?}"))
}
