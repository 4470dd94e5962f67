//! The rate of this processor's time stamp counter, which is the clock of emulated guests, too.
//!
//! A guest would measure it at its boot, against emulated timers. With several guests booting on few
//! processors that has come out wrong by half, and hosts whose clocks run at different speeds declare each
//! other dead. Unsafe, because no safe interface reads the counter.

use std::thread;
use std::time::{Duration, Instant};

/// How long the counter is watched.
const WATCH: Duration = Duration::from_millis(100);
/// Looks at each end of that time, of which the least disturbed counts.
const LOOKS: usize = 50;

/// Counts per millisecond, if this processor has such a counter.
pub fn tsc_khz() -> Option<u64> {
    let (counter, time) = look()?;
    thread::sleep(WATCH);
    let (later_counter, later_time) = look()?;
    let nanoseconds = later_time.duration_since(time).as_nanos();
    let counts = u128::from(later_counter.checked_sub(counter)?);
    u64::try_from((counts * 1_000_000).checked_div(nanoseconds)?).ok().filter(|khz| *khz > 0)
}

/// The counter and the time at which it had this value.
fn look() -> Option<(u64, Instant)> {
    let looks = (0..LOOKS).filter_map(|_| {
        let before = Instant::now();
        let counter = counter()?;
        Some((before.elapsed(), counter, before))
    });
    looks.min_by_key(|(took, ..)| *took).map(|(_, counter, at)| (counter, at))
}

#[cfg(target_arch = "x86_64")]
fn counter() -> Option<u64> {
    // SAFETY: the instruction has no operands, touches no memory, and every x86-64 processor has it; Linux
    // lets programs use it unless they have asked it not to (`prctl(PR_SET_TSC)`), which nothing here does.
    Some(unsafe { core::arch::x86_64::_rdtsc() })
}

#[cfg(not(target_arch = "x86_64"))]
fn counter() -> Option<u64> {
    None
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn two_measurements_agree() {
        let (first, second) = (tsc_khz().unwrap(), tsc_khz().unwrap());
        assert!(first > 100_000, "{first} kHz");
        assert!(first.abs_diff(second) < first / 1000, "{first} and {second} kHz");
    }
}
