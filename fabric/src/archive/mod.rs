//! A session as one rkyv archive: building, validation of hostile bytes, and reading in place.
//!
//! Archives contain no shared pointers. Attributes are sorted by name and unique, so reading is a binary
//! search in the archived bytes: no copy, no decoding, no allocation.

mod build;
mod format;
mod patch;
mod read;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod value;

pub use build::{Builder, Changes, Head};
pub use format::{ArchivedSession, SessionArchive};
pub use read::{ArchiveLimits, OwnedArchive, restamp, trusted, validate};
pub use rkyv::util::AlignedVec;
pub use value::{Value, ValueRef};
