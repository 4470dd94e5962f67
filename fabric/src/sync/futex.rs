//! Waiting for a shared word to change, between processes.

use super::words::AtomicU32;
use rustix::thread::futex::{self, Flags, Timespec};
use std::time::Duration;

/// Sleeps while `word` is `seen`, at most for `timeout`. May return early for no reason; the caller looks
/// again.
pub fn wait(word: &AtomicU32, seen: u32, timeout: Duration) {
    #[cfg(feature = "loom")]
    if super::checked::runs() {
        // Another thread of the model goes on: sleepers may wake for no reason.
        return super::words::spin();
    }
    #[cfg(feature = "loom")]
    let word = word.plain();
    let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: i64::from(timeout.subsec_nanos()) };
    // Every way to fail (changed word, time over, a signal) means the same to the caller: look again.
    let _ = futex::wait(word, Flags::empty(), seen, Some(&timeout));
}

/// Wakes up to `count` sleepers.
pub fn wake(word: &AtomicU32, count: u32) {
    #[cfg(feature = "loom")]
    let word = word.plain();
    // The only failure is a bad address, which a reference excludes.
    let _ = futex::wake(word, Flags::empty(), count.min(i32::MAX as u32));
}
