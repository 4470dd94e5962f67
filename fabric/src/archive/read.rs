//! Reading archives: validation of hostile bytes, and access without copy to bytes that were validated when they entered.

use super::value::ValueRef;
use crate::error::Result;
use crate::ident::{SessionId, Version};
use crate::limits;
use rkyv::util::AlignedVec;

/// Bounds that an archive must keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArchiveLimits {
    /// Largest archive, bytes.
    pub archive_bytes_max: usize,
    /// Most attributes.
    pub attributes_max: usize,
}

impl Default for ArchiveLimits {
    fn default() -> Self {
        Self { archive_bytes_max: limits::ARCHIVE_BYTES_DEFAULT, attributes_max: limits::ATTRIBUTES_MAX }
    }
}

/// A session's archive where it lies.
pub struct ArchivedSession {
    _private: (),
}

impl ArchivedSession {
    /// The session.
    pub fn id(&self) -> SessionId {
        unimplemented!()
    }
    /// The version that this archive is.
    pub fn version(&self) -> Version {
        unimplemented!()
    }
    /// When the session was created, Unix ms.
    pub fn created_ms(&self) -> u64 {
        unimplemented!()
    }
    /// Idle lifetime, ms.
    pub fn idle_ms(&self) -> u64 {
        unimplemented!()
    }
    /// Absolute lifetime, ms from creation.
    pub fn absolute_ms(&self) -> u64 {
        unimplemented!()
    }
    /// The user it belongs to.
    pub fn owner(&self) -> Option<&str> {
        unimplemented!()
    }
    /// Number of attributes.
    pub fn attribute_count(&self) -> usize {
        unimplemented!()
    }
    /// An attribute, by binary search.
    pub fn get(&self, _name: &str) -> Option<ValueRef<'_>> {
        unimplemented!()
    }
    /// The attributes, sorted by name.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, ValueRef<'_>)> + Clone {
        std::iter::empty()
    }
}

/// Checks bytes that anyone may have written, and reads them where they are.
///
/// # Errors
/// `TooLarge` over the limit; `Corrupt`, saying what, for anything that is not a whole archive: misaligned (8 bytes are
/// needed; see [`OwnedArchive`]), bad pointers, text that is not UTF-8, names out of order, repeated or over the limit.
pub fn validate<'a>(_bytes: &'a [u8], _limits: &ArchiveLimits) -> Result<&'a ArchivedSession> {
    unimplemented!()
}

/// Reads an archive that was validated when it entered this process's trusted memory (invariant 7), without a check.
///
/// # Safety
/// `bytes` must be exactly a whole archive that [`Builder::build`](super::Builder::build) made or [`validate`] accepted,
/// 8-byte aligned, and must not change while the reference lives.
pub unsafe fn trusted(_bytes: &[u8]) -> &ArchivedSession {
    unimplemented!()
}

/// Gives a whole, validated archive another version, in place: an adopter's (R12).
///
/// # Errors
/// `Corrupt` if the bytes are shorter than any archive.
pub fn restamp(_archive: &mut [u8], _version: Version) -> Result<()> {
    unimplemented!()
}

/// An aligned, private, validated archive.
pub struct OwnedArchive {
    bytes: AlignedVec,
}

impl OwnedArchive {
    /// Copies and validates bytes that anyone may have written.
    ///
    /// # Errors
    /// As [`validate`].
    pub fn copy_of(_bytes: &[u8], _limits: &ArchiveLimits) -> Result<Self> {
        unimplemented!()
    }

    /// Gives it another version, in place: an adopter's (R12).
    pub fn restamp(&mut self, _version: Version) {
        unimplemented!()
    }

    /// Reads it.
    pub fn session(&self) -> &ArchivedSession {
        unimplemented!()
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}
