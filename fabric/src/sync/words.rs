//! The atomics and fences of the cell and lock protocols: the one place to swap them for a model checker's.

pub use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, fence};

/// A full fence: no load or store moves over it, in either direction (the seal handshake needs store-load
/// order).
#[inline(always)]
pub fn fence_full() {
    fence(Ordering::SeqCst);
}
