//! What the numbers were measured on.

use crate::measure::{clock_ns, cores};
use anyhow::Result;
use serde::Serialize;
use std::fmt;
use std::fs;

/// The machine of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Cores that the run may use.
    pub cores: usize,
    /// Model of the processor.
    pub cpu: String,
    /// Version of the kernel.
    pub kernel: String,
    /// One look at the clock, ns.
    pub clock_ns: f64,
    /// Load average of the last minute before the run: other work makes every number worse.
    pub load: String,
}

impl Machine {
    /// This machine.
    ///
    /// # Errors
    /// If the kernel does not say how many cores there are.
    pub fn this() -> Result<Self> {
        let line = |file: &str| fs::read_to_string(file).unwrap_or_default().trim().to_owned();
        let cpu = line("/proc/cpuinfo");
        let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Ok(Self {
            cores: cores()?.len(),
            cpu: cpu.map_or("unknown processor", |(_, model)| model).to_owned(),
            kernel: line("/proc/sys/kernel/osrelease"),
            clock_ns: clock_ns(),
            load: line("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned(),
        })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cores, cpu, kernel, clock_ns, load } = self;
        write!(f, "{cores} cores of {cpu}, Linux {kernel}, load {load}, a look at the clock {clock_ns:.0} ns")
    }
}
