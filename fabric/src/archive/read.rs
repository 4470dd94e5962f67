//! Reading archives: validation of hostile bytes, and access without copy to bytes that were validated when
//! they entered.

use super::format::{ArchivedAttribute, ArchivedAttributeValue, ArchivedSession};
use super::value::ValueRef;
use crate::error::{Error, ErrorKind, Origin, Result};
use crate::ident::{SessionId, Version};
use crate::limits;
use rkyv::rancor;
use rkyv::rend::{u32_le, u64_le};
use rkyv::util::AlignedVec;
use std::mem::{align_of, offset_of, size_of};

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

/// Up to so many attributes are looked through from first to last: most names differ in their length already,
/// and the processor looks at several at once, which it cannot in a binary search.
const LINEAR_MAX: usize = 16;

/// Blocks begin at multiples of 256 bytes, so an archive at a block's start is aligned.
const _: () = assert!(limits::BLOCK_UNIT_BYTES.is_multiple_of(align_of::<ArchivedSession>()));

impl ArchivedSession {
    /// The session.
    pub fn id(&self) -> SessionId {
        SessionId(self.id)
    }

    /// The version that this archive is.
    pub fn version(&self) -> Version {
        Version { epoch: self.epoch.to_native(), counter: self.counter.to_native() }
    }

    /// When the session was created, Unix ms.
    pub fn created_ms(&self) -> u64 {
        self.created_ms.to_native()
    }

    /// Idle lifetime, ms.
    pub fn idle_ms(&self) -> u64 {
        self.idle_ms.to_native()
    }

    /// Absolute lifetime, ms from creation.
    pub fn absolute_ms(&self) -> u64 {
        self.absolute_ms.to_native()
    }

    /// The user it belongs to.
    pub fn owner(&self) -> Option<&str> {
        self.owner.as_ref().map(|owner| owner.get())
    }

    /// Number of attributes.
    pub fn attribute_count(&self) -> usize {
        self.attributes.len()
    }

    /// An attribute, by its name.
    pub fn get(&self, name: &str) -> Option<ValueRef<'_>> {
        Some(self.attribute(name)?.value())
    }

    /// The archived value of an attribute.
    pub(super) fn find(&self, name: &str) -> Option<&ArchivedAttributeValue> {
        Some(&self.attribute(name)?.value)
    }

    pub(super) fn attributes(&self) -> &[ArchivedAttribute] {
        self.attributes.as_slice()
    }

    fn attribute(&self, name: &str) -> Option<&ArchivedAttribute> {
        let mut left = self.attributes();
        while left.len() > LINEAR_MAX {
            let (before, after) = left.split_at(left.len() / 2);
            left = if after.first().is_some_and(|first| first.name.get() <= name) { after } else { before };
        }
        left.iter().find(|attribute| attribute.name.get() == name)
    }

    /// The attributes, sorted by name.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, ValueRef<'_>)> + Clone {
        self.attributes().iter().map(ArchivedAttribute::pair)
    }
}

/// Checks bytes that anyone may have written, and reads them where they are.
///
/// # Errors
/// `TooLarge` over the limit; `Corrupt`, saying what, for anything that is not a whole archive: misaligned (8
/// bytes are needed; see [`OwnedArchive`]), bad pointers, text that is not UTF-8, names out of order,
/// repeated or over the limit.
pub fn validate<'a>(bytes: &'a [u8], limits: &ArchiveLimits) -> Result<&'a ArchivedSession> {
    if bytes.len() > limits.archive_bytes_max {
        let what = format!("an archive has {} bytes; the limit is {}", bytes.len(), limits.archive_bytes_max);
        return Err(Error::new(ErrorKind::TooLarge, Origin::Archive, what));
    }
    let session = rkyv::access::<ArchivedSession, rancor::Error>(bytes)
        .map_err(|error| corrupt(format!("{} bytes are no archive", bytes.len())).with_source(error))?;
    check(session, limits)?;
    Ok(session)
}

/// Reads an archive that was validated when it entered this process's trusted memory (invariant 7), without a
/// check.
///
/// # Safety
/// `bytes` must be exactly a whole archive that [`Builder::build`](super::Builder::build) made or
/// [`validate`] accepted, 8-byte aligned, and must not change while the reference lives.
pub unsafe fn trusted(bytes: &[u8]) -> &ArchivedSession {
    debug_assert!(bytes.len() >= size_of::<ArchivedSession>());
    debug_assert!(bytes.as_ptr().addr().is_multiple_of(align_of::<ArchivedSession>()));
    // SAFETY: `access_unchecked` needs bytes that hold a valid archived session at the default root position:
    // the caller promises that they are what `Builder::build` made or `validate` accepted, aligned, and
    // unchanged for the lifetime.
    unsafe { rkyv::access_unchecked::<ArchivedSession>(bytes) }
}

/// Gives a whole, validated archive another version, in place: an adopter's (R12).
///
/// # Errors
/// `Corrupt` if the bytes are shorter than any archive.
pub fn restamp(archive: &mut [u8], version: Version) -> Result<()> {
    let root = archive
        .len()
        .checked_sub(size_of::<ArchivedSession>())
        .ok_or_else(|| corrupt(format!("{} bytes are no archive", archive.len())))?;
    let mut put = |field: usize, value: &[u8]| {
        archive[root + field..][..value.len()].copy_from_slice(value);
    };
    // The fields are plain little-endian numbers: any value is valid there.
    const _: () = assert!(size_of::<u32_le>() == 4 && size_of::<u64_le>() == 8);
    put(offset_of!(ArchivedSession, epoch), &version.epoch.to_le_bytes());
    put(offset_of!(ArchivedSession, counter), &version.counter.to_le_bytes());
    Ok(())
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
    pub fn copy_of(bytes: &[u8], limits: &ArchiveLimits) -> Result<Self> {
        if bytes.len() > limits.archive_bytes_max {
            // Refuses before it copies; the error is validate's.
            validate(bytes, limits)?;
        }
        let mut copy = AlignedVec::with_capacity(bytes.len());
        copy.extend_from_slice(bytes);
        validate(&copy, limits)?;
        Ok(Self { bytes: copy })
    }

    /// Gives it another version, in place: an adopter's (R12).
    pub fn restamp(&mut self, version: Version) {
        // Validated bytes are never shorter than an archive.
        let _ = restamp(&mut self.bytes, version);
    }

    /// Reads it.
    pub fn session(&self) -> &ArchivedSession {
        // SAFETY: `bytes` is private, was accepted by `validate` in `copy_of`, is 16-byte aligned, and is
        // changed only by `restamp` through `&mut self`, which writes two plain numbers.
        unsafe { trusted(&self.bytes) }
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// What rkyv's own validation does not know: names, their order, and our bounds.
fn check(session: &ArchivedSession, limits: &ArchiveLimits) -> Result<()> {
    let owner_bytes = session.owner().map_or(0, str::len);
    if owner_bytes > limits::OWNER_BYTES_MAX {
        return Err(corrupt(format!(
            "an archive's owner has {owner_bytes} bytes; the limit is {}",
            limits::OWNER_BYTES_MAX
        )));
    }
    if session.attribute_count() > limits.attributes_max {
        return Err(corrupt(format!(
            "an archive has {} attributes; the limit is {}",
            session.attribute_count(),
            limits.attributes_max
        )));
    }
    let mut before = "";
    for (at, (name, _)) in session.iter().enumerate() {
        if name.len() > limits::ATTRIBUTE_NAME_BYTES_MAX {
            return Err(corrupt(format!(
                "the name of an archive's attribute {at} has {} bytes; the limit is {}",
                name.len(),
                limits::ATTRIBUTE_NAME_BYTES_MAX
            )));
        }
        // The first comparison also refuses the empty name.
        if name <= before {
            return Err(corrupt(format!(
                "the name of an archive's attribute {at} is empty, repeated or out of order"
            )));
        }
        before = name;
    }
    Ok(())
}

fn corrupt(what: String) -> Error {
    Error::new(ErrorKind::Corrupt, Origin::Archive, what)
}
