//! Words that several processes share, and the ways to wait for one.
//!
//! [`words`] is the only door to atomics and fences for protocol code; the feature `loom` puts a model
//! checker's behind it.

#[cfg(feature = "loom")]
pub mod checked;
pub mod futex;
mod lock_file;
pub mod robust_lock;
#[cfg(all(test, feature = "loom"))]
mod robust_lock_models;
pub mod words;

pub use lock_file::{CreationLock, LockFile};
