//! Words that several processes share, and the ways to wait for one.
//!
//! [`words`] is the only door to atomics and fences for protocol code, so that a later build can put loom's
//! behind it.

pub mod futex;
mod lock_file;
pub mod robust_lock;
pub mod words;

pub use lock_file::{CreationLock, LockFile};
