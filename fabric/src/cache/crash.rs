//! Simulated `kill -9` between any two stores to shared memory; tests only.
//!
//! [`point`] stands before each store and after each compare-and-swap of the cache. A test lets the n-th one
//! of its thread panic; while that unwinds, [`dead`] keeps every drop from touching the segment, as a killed
//! process would not either.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

thread_local! {
    static LEFT: Cell<Option<u32>> = const { Cell::new(None) };
    static DEAD: Cell<bool> = const { Cell::new(false) };
}

struct Killed;

/// A place where the thread's process may die.
#[inline]
pub fn point() {
    match LEFT.get() {
        None => {}
        Some(0) => {
            LEFT.set(None);
            DEAD.set(true);
            // Without the panic hook, which would print thousands of traces.
            resume_unwind(Box::new(Killed));
        }
        Some(left) => LEFT.set(Some(left - 1)),
    }
}

/// Whether the thread's process died just now.
#[inline]
pub fn dead() -> bool {
    DEAD.get()
}

/// Runs `action` and kills its process at point number `after`; false if it was killed. Panics go on to the
/// caller.
pub fn run(after: u32, action: impl FnOnce()) -> bool {
    LEFT.set(Some(after));
    let result = catch_unwind(AssertUnwindSafe(action));
    LEFT.set(None);
    DEAD.set(false);
    match result {
        Ok(()) => true,
        Err(payload) if payload.is::<Killed>() => false,
        Err(payload) => resume_unwind(payload),
    }
}

/// Runs what another process does in the same thread: it is not the one that is to be killed.
pub fn spared<T>(action: impl FnOnce() -> T) -> T {
    let left = LEFT.replace(None);
    let result = action();
    LEFT.set(left);
    result
}
