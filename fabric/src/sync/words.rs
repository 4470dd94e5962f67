//! The atomics and fences of the cell and lock protocols: the one place to swap them for a model checker's.
//!
//! With the feature `loom` they are those of `super::checked`: the same words at the same places, which
//! loom checks while a model runs, and std's otherwise.

#[cfg(feature = "loom")]
pub use super::checked::{AtomicU8, AtomicU32, AtomicU64, fence, fence_full, spin};
#[cfg(feature = "loom")]
pub use std::sync::atomic::Ordering;
#[cfg(not(feature = "loom"))]
pub use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, fence};

/// A full fence: no load or store moves over it, in either direction (the seal handshake needs store-load
/// order).
#[cfg(not(feature = "loom"))]
#[inline(always)]
pub fn fence_full() {
    fence(Ordering::SeqCst);
}

/// A moment of waiting for another thread.
#[cfg(not(feature = "loom"))]
#[inline(always)]
pub fn spin() {
    std::hint::spin_loop();
}
