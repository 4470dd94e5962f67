//! The short way to a new archive: most commits change values and no sizes (counters, times, flags, tokens of
//! one length), and then the new archive is the old one with other bytes at a few places.
//!
//! The result has the same bytes as [`Builder::build`](super::Builder::build) makes from a base that it has
//! made (a test holds them together). Archives name their parts by relative offsets, so a copy is an archive
//! wherever it lies.
//!
//! Invariant: everything here is checked arithmetic on offsets into a private copy; what does not fit is
//! `None`, and the caller builds anew. Validation has made sure that no two parts of an archive from
//! elsewhere overlap.

use super::build::{Changes, Head};
use super::format::{ArchivedAttributeValue, ArchivedSession};
use super::value::Value;
use rkyv::rend::{u32_le, u64_le};
use rkyv::util::AlignedVec;
use std::mem::{offset_of, size_of};

/// Makes `out` the archive of `head` with `changes` over `session`, the root of the archive `base`. `None` if
/// that takes more than other bytes at the same places; `out` is of no use then.
pub(super) fn patch(
    out: &mut AlignedVec,
    head: &Head<'_>,
    base: &[u8],
    session: &ArchivedSession,
    changes: &Changes,
) -> Option<()> {
    let root = base.len().checked_sub(size_of::<ArchivedSession>())?;
    if offset_in(base, std::ptr::from_ref(session).addr())? != root || session.owner() != head.owner {
        return None;
    }
    out.clear();
    out.extend_from_slice(base);
    // The fields are plain little-endian numbers.
    const _: () = assert!(size_of::<u32_le>() == 4 && size_of::<u64_le>() == 8);
    put(out, root + offset_of!(ArchivedSession, id), &head.id.0)?;
    put(out, root + offset_of!(ArchivedSession, epoch), &head.version.epoch.to_le_bytes())?;
    put(out, root + offset_of!(ArchivedSession, counter), &head.version.counter.to_le_bytes())?;
    put(out, root + offset_of!(ArchivedSession, created_ms), &head.created_ms.to_le_bytes())?;
    put(out, root + offset_of!(ArchivedSession, idle_ms), &head.idle_ms.to_le_bytes())?;
    put(out, root + offset_of!(ArchivedSession, absolute_ms), &head.absolute_ms.to_le_bytes())?;
    for (name, value) in changes.iter() {
        put_value(out, base, session.find(name)?, value?)?;
    }
    Some(())
}

/// Overwrites an attribute's value with one of the same type and size.
fn put_value(out: &mut [u8], base: &[u8], old: &ArchivedAttributeValue, new: &Value) -> Option<()> {
    let (address, len) = match old {
        ArchivedAttributeValue::I64(number) => (std::ptr::from_ref(number).addr(), size_of::<i64>()),
        ArchivedAttributeValue::F64(number) => (std::ptr::from_ref(number).addr(), size_of::<f64>()),
        ArchivedAttributeValue::Bool(truth) => (std::ptr::from_ref(truth).addr(), 1),
        ArchivedAttributeValue::Text(text) => (text.get().as_ptr().addr(), text.len()),
        ArchivedAttributeValue::Bytes(bytes) => (bytes.as_slice().as_ptr().addr(), bytes.len()),
    };
    let put_sized = |out: &mut [u8], bytes: &[u8]| {
        if bytes.len() != len {
            return None;
        }
        // Nothing to write; an empty part may have an address anywhere.
        if len == 0 {
            return Some(());
        }
        put(out, offset_in(base, address)?, bytes)
    };
    match (old, new) {
        (ArchivedAttributeValue::I64(_), Value::I64(number)) => put_sized(out, &number.to_le_bytes()),
        (ArchivedAttributeValue::F64(_), Value::F64(number)) => put_sized(out, &number.to_le_bytes()),
        (ArchivedAttributeValue::Bool(_), Value::Bool(truth)) => put_sized(out, &[u8::from(*truth)]),
        (ArchivedAttributeValue::Text(_), Value::Text(text)) => put_sized(out, text.as_bytes()),
        (ArchivedAttributeValue::Bytes(_), Value::Bytes(bytes)) => put_sized(out, bytes),
        _ => None,
    }
}

fn offset_in(base: &[u8], address: usize) -> Option<usize> {
    address.checked_sub(base.as_ptr().addr()).filter(|offset| *offset < base.len())
}

fn put(out: &mut [u8], at: usize, bytes: &[u8]) -> Option<()> {
    out.get_mut(at..at.checked_add(bytes.len())?)?.copy_from_slice(bytes);
    Some(())
}
