//! Which process a handle belongs to, known without a system call.
//!
//! The generation is a count of forks on the way from the first process to this one; a child's is one more
//! than its parent's was. Invariant: a handle is used only in the generation that made it. Callers: node,
//! session.

use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::guard::Failure;
use crate::status::selvage_status;

static GENERATION: AtomicU64 = AtomicU64::new(0);

extern "C" fn in_child() {
    crate::guard::enter_infallible!((), [], {
        // Runs in the child's only thread, before any of its code: relaxed suffices.
        GENERATION.fetch_add(1, Ordering::Relaxed);
        crate::completion::forget_parent();
    });
}

/// Begins counting forks; before the first handle is made.
///
/// # Errors
/// `Os` if the C library has no memory for the registration.
pub fn watch() -> Result<(), Failure> {
    static WATCH: Once = Once::new();
    let mut refused = 0;
    WATCH.call_once(|| {
        // SAFETY: `in_child` is async-signal-safe (atomic operations only), lives as long as the library,
        // and a library that has given out handles must stay loaded.
        refused = unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
    });
    if refused != 0 {
        return Err(Failure::new(selvage_status::Os, "the C library cannot register a fork handler"));
    }
    Ok(())
}

/// The generation of this process.
pub fn generation() -> u64 {
    GENERATION.load(Ordering::Relaxed)
}

/// Refuses a handle that was made before a fork.
///
/// # Errors
/// `Forked`.
pub fn same(made_in: u64) -> Result<(), Failure> {
    if made_in == generation() {
        return Ok(());
    }
    Err(Failure::new(
        selvage_status::Forked,
        "this handle belongs to the parent process; attach again in the child",
    ))
}
