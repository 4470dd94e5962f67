//! Tells a forked child from its parent without a system call: one private page that the kernel wipes in
//! every child.

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

const PAGE_BYTES: usize = 4096;

/// A number that is this process's alone: its pid, remembered. Handles keep the one under which they were
/// made.
pub(super) fn process_mark() -> u32 {
    let Some(word) = wiped_word() else { return std::process::id() };
    match word.load(Ordering::Relaxed) {
        0 => {
            let pid = std::process::id();
            word.store(pid, Ordering::Relaxed);
            pid
        }
        pid => pid,
    }
}

/// The word, or `None` where the kernel cannot wipe pages on fork.
fn wiped_word() -> Option<&'static AtomicU32> {
    static WORD: OnceLock<Option<&'static AtomicU32>> = OnceLock::new();
    *WORD.get_or_init(|| {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new private mapping at an address of the kernel's choice touches no memory that exists.
        let page = unsafe { mmap_anonymous(std::ptr::null_mut(), PAGE_BYTES, protection, MapFlags::PRIVATE) }
            .ok()?;
        // SAFETY: the page was mapped above and nothing refers to it yet; the advice only changes what a
        // child sees.
        unsafe { madvise(page, PAGE_BYTES, Advice::LinuxWipeOnFork) }.ok()?;
        // SAFETY: the page is mapped for the rest of the process's life, zeroed (a valid `AtomicU32`),
        // aligned, and only ever used as this atomic.
        Some(unsafe { &*page.cast::<AtomicU32>() })
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_is_the_pid_and_stays() {
        assert_eq!(super::process_mark(), std::process::id());
        assert_eq!(super::process_mark(), std::process::id());
        assert!(super::wiped_word().is_some());
    }
}
