//! Keeps the host program's signals away from the library's threads.
//!
//! A server's signal handlers set flags that its main loop must see at once: nginx's worker sleeps in epoll
//! and wakes because the signal interrupts that very thread. A thread inherits the mask of the one that
//! starts it, so all signals are blocked while the node library may start threads. Callers: node,
//! completion.

use std::mem::MaybeUninit;

/// All signals are blocked in this thread until the value is dropped.
pub struct Blocked {
    before: Option<libc::sigset_t>,
}

impl Blocked {
    /// Blocks all signals in this thread.
    pub fn new() -> Self {
        let mut all = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: the pointer is valid for writing a signal set.
        if unsafe { libc::sigfillset(all.as_mut_ptr()) } != 0 {
            return Self { before: None };
        }
        let mut before = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: `all` was filled above, and `before` is valid for writing a signal set.
        let refused = unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) };
        // SAFETY: written by the call above, which has succeeded where this is used.
        Self { before: (refused == 0).then(|| unsafe { before.assume_init() }) }
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // SAFETY: a mask that this thread had, and no old one is asked for.
            unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before, std::ptr::null_mut()) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocked(signal: i32) -> bool {
        let mut mask = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: asks for the mask only; the pointer is valid for writing it.
        assert_eq!(unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), mask.as_mut_ptr()) }, 0);
        // SAFETY: written by the call above.
        unsafe { libc::sigismember(mask.as_ptr(), signal) == 1 }
    }

    #[test]
    fn a_thread_started_meanwhile_has_them_blocked_and_this_one_has_them_back() {
        assert!(!blocked(libc::SIGTERM));
        let guard = Blocked::new();
        let thread = std::thread::spawn(|| blocked(libc::SIGTERM) && blocked(libc::SIGHUP));
        drop(guard);
        assert!(thread.join().unwrap());
        assert!(!blocked(libc::SIGTERM));
    }
}
