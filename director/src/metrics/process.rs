//! The standard `process_*` metrics, of the director's own process, by what the kernel says at the moment.

use super::families::{Families, Labels, about};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Unit;
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};
use std::fmt::Error;
use std::fs;

/// `USER_HZ`: fixed in the kernel's interface to programs.
const TICKS_PER_SECOND: f64 = 100.0;

/// The process.
#[derive(Debug)]
pub(super) struct Process;

impl Collector for Process {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let mut families = Families(encoder);
        families.info(
            about("selvage_build", "The director's version"),
            &[("version", env!("CARGO_PKG_VERSION"))],
        )?;

        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        let cpu_s = cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9;
        let help = "Processor time that the process has used";
        families.counters(about("process_cpu", help).in_unit(Unit::Seconds), one(Some(cpu_s)))?;

        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let help = "Memory of the process that is in main memory";
        let resident = kib(&status, "VmRSS:");
        families.gauges(about("process_resident_memory", help).in_unit(Unit::Bytes), one(resident))?;
        let help = "Address space of the process";
        let virtual_memory = kib(&status, "VmSize:");
        families.gauges(about("process_virtual_memory", help).in_unit(Unit::Bytes), one(virtual_memory))?;
        families
            .gauges(about("process_threads", "Threads of the process"), one(field(&status, "Threads:")))?;

        let open = fs::read_dir("/proc/self/fd").map(|fds| fds.count() as u64).ok();
        families.gauges(about("process_open_fds", "Descriptors that are open"), one(open))?;
        let most = getrlimit(Resource::Nofile).current;
        let help = "Descriptors that may be open at once";
        families.gauges(about("process_max_fds", help), one(most))?;

        let help = "When the process was started, Unix time";
        families.gauges(about("process_start_time", help).in_unit(Unit::Seconds), one(start_s()))
    }
}

/// The one sample of a family without labels, if it is known.
fn one<V>(value: Option<V>) -> Option<(Labels, V)> {
    value.map(|value| (Labels::new(), value))
}

/// A field of `/proc/self/status`.
fn field(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

fn kib(status: &str, name: &str) -> Option<u64> {
    field(status, name).map(|kib| kib * 1024)
}

/// Unix time of the start. The kernel tells boot time and the ticks since then.
fn start_s() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The 22nd field; the second is the program's name in brackets, which may hold blanks and brackets.
    let (_, fields) = stat.rsplit_once(')')?;
    let ticks: f64 = fields.split_whitespace().nth(19)?.parse().ok()?;
    let boot = fs::read_to_string("/proc/stat").ok()?;
    let boot_s: f64 = boot.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(boot_s + ticks / TICKS_PER_SECOND)
}
