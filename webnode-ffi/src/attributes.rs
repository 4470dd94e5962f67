//! A session's attributes: reading without a copy, and changing.

use std::ffi::c_char;

use selvage_fabric::archive::{Value, ValueRef};

use crate::guard::{Failure, enter};
use crate::session::selvage_session;
use crate::status::selvage_status;
use crate::text;

/// Any bytes.
pub const SELVAGE_TYPE_BYTES: u32 = 1;
/// UTF-8 text.
pub const SELVAGE_TYPE_TEXT: u32 = 2;
/// A signed 64-bit integer.
pub const SELVAGE_TYPE_I64: u32 = 3;
/// A 64-bit floating-point number.
pub const SELVAGE_TYPE_F64: u32 = 4;
/// A truth value.
pub const SELVAGE_TYPE_BOOL: u32 = 5;

/// An attribute's value where it lies. Fields that the type does not use are zero.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct selvage_value {
    /// One of SELVAGE_TYPE_*.
    pub kind: u32,
    /// Of a truth value.
    pub truth: bool,
    /// Zero.
    pub reserved: [u8; 3],
    /// Of an integer.
    pub integer: i64,
    /// Of a floating-point number.
    pub number: f64,
    /// Of bytes and text; a NUL does not end it. Lent by the session.
    pub bytes: *const u8,
    /// Length of bytes and text, bytes.
    pub bytes_len: usize,
}

impl From<ValueRef<'_>> for selvage_value {
    fn from(value: ValueRef<'_>) -> Self {
        let mut answer = Self {
            kind: SELVAGE_TYPE_BYTES,
            truth: false,
            reserved: [0; 3],
            integer: 0,
            number: 0.0,
            bytes: std::ptr::null(),
            bytes_len: 0,
        };
        match value {
            ValueRef::Bytes(bytes) => (answer.bytes, answer.bytes_len) = (bytes.as_ptr(), bytes.len()),
            ValueRef::Text(text) => {
                (answer.kind, answer.bytes, answer.bytes_len) =
                    (SELVAGE_TYPE_TEXT, text.as_ptr(), text.len());
            }
            ValueRef::I64(integer) => (answer.kind, answer.integer) = (SELVAGE_TYPE_I64, integer),
            ValueRef::F64(number) => (answer.kind, answer.number) = (SELVAGE_TYPE_F64, number),
            ValueRef::Bool(truth) => (answer.kind, answer.truth) = (SELVAGE_TYPE_BOOL, truth),
        }
        answer
    }
}

/// Reads an attribute where it lies, changes included: no copy, no allocation, no system call. Answers OK,
/// or MISSING.
///
/// Thread rule: one thread at a time per session. Blocking: never. Ownership: value->bytes is the
/// session's, valid until the next call on it that is not describe, read or read_at. Errors: INVALID if the
/// name is not UTF-8, FORKED, UNDERWAY, GONE.
///
/// # Safety
/// `session` is NULL or an open handle; `name` is valid for `name_len` bytes; `value` is NULL or
/// valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn selvage_session_read(
    session: *const selvage_session,
    name: *const c_char,
    name_len: usize,
    value: *mut selvage_value,
) -> selvage_status {
    enter!(required [session, name, value], nullable [], {
        // SAFETY: not NULL (checked above) and an open handle by this function's contract.
        let session = unsafe { &*session }.open()?;
        // SAFETY: valid for its length by this function's contract.
        let name = unsafe { text::text("name", name, name_len) }?;
        let Some(found) = session.get(name) else { return Ok(selvage_status::Missing) };
        // SAFETY: not NULL (checked above) and valid for writing by this function's contract.
        unsafe { value.write(found.into()) };
        Ok(selvage_status::Ok)
    })
}

/// Reads the attribute of an index, 0 and up, in the order of names. Answers OK, or MISSING behind the last
/// one.
///
/// Thread rule: one thread at a time per session. Blocking: never. Ownership: name and value->bytes are the
/// session's, valid until the next call on it that is not describe, read or read_at. Errors: FORKED,
/// UNDERWAY, GONE.
///
/// # Safety
/// `session` is NULL or an open handle; the outputs are NULL or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn selvage_session_read_at(
    session: *const selvage_session,
    index: usize,
    name: *mut *const c_char,
    name_len: *mut usize,
    value: *mut selvage_value,
) -> selvage_status {
    enter!(required [session, name, name_len, value], nullable [], {
        // SAFETY: not NULL (checked above) and an open handle by this function's contract.
        let session = unsafe { &*session }.open()?;
        let Some((found, read)) = session.iter().nth(index) else { return Ok(selvage_status::Missing) };
        // SAFETY: not NULL (checked above) and valid for writing by this function's contract.
        unsafe { name.write(found.as_ptr().cast()) };
        // SAFETY: as above.
        unsafe { name_len.write(found.len()) };
        // SAFETY: as above.
        unsafe { value.write(read.into()) };
        Ok(selvage_status::Ok)
    })
}

/// Reads an attribute as the bytes that stand for it in an HTTP body: bytes and text as they are, an
/// integer in decimal, a floating-point number in the shortest form that reads back the same, a truth value
/// as true or false. kind says its type and may be NULL. Answers OK, or MISSING.
///
/// Thread rule: one thread at a time per session. Blocking: never. Ownership: bytes is the session's, valid
/// until the next call on it that is not describe, read or read_at. Errors: INVALID if the name is not
/// UTF-8, FORKED, UNDERWAY, GONE.
///
/// # Safety
/// `session` is NULL or an open handle; `name` is valid for `name_len` bytes; the outputs are NULL
/// or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn selvage_session_render(
    session: *mut selvage_session,
    name: *const c_char,
    name_len: usize,
    bytes: *mut *const u8,
    bytes_len: *mut usize,
    kind: *mut u32,
) -> selvage_status {
    enter!(required [session, name, bytes, bytes_len], nullable [kind], {
        // SAFETY: valid for its length by this function's contract.
        let name = unsafe { text::text("name", name, name_len) }?;
        // SAFETY: not NULL (checked above), and an open handle of which this is the only user by this
        // function's contract.
        let handle = unsafe { &mut *session };
        let Some(found) = handle.open()?.get(name) else { return Ok(selvage_status::Missing) };
        let is = selvage_value::from(found);
        let lent = match found {
            ValueRef::Bytes(_) | ValueRef::Text(_) => (is.bytes, is.bytes_len),
            ValueRef::I64(integer) => handle.lend(integer.to_string().into_bytes()),
            ValueRef::F64(number) => handle.lend(number.to_string().into_bytes()),
            ValueRef::Bool(truth) => handle.lend(truth.to_string().into_bytes()),
        };
        // SAFETY: not NULL (checked above) and valid for writing by this function's contract.
        unsafe { bytes.write(lent.0) };
        // SAFETY: as above.
        unsafe { bytes_len.write(lent.1) };
        if !kind.is_null() {
            // SAFETY: not NULL and valid for writing by this function's contract.
            unsafe { kind.write(is.kind) };
        }
        Ok(selvage_status::Ok)
    })
}

/// Sets an attribute of a handle that may be changed.
///
/// # Safety
/// `session` is an open handle of which the caller is the only user; `name` is valid for `name_len` bytes.
unsafe fn set(
    session: *mut selvage_session,
    name: *const c_char,
    name_len: usize,
    value: Value,
) -> Result<selvage_status, Failure> {
    // SAFETY: valid for its length by this function's contract.
    let name = unsafe { text::text("name", name, name_len) }?;
    // SAFETY: an open handle of which this is the only user by this function's contract.
    unsafe { &mut *session }.writable()?.set(name, value)?;
    Ok(selvage_status::Ok)
}

/// Sets an attribute to bytes. It counts with the next commit.
///
/// Thread rule: one thread at a time per session. Blocking: never. Ownership: copies. Errors: TOO_LARGE
/// with size and limit, INVALID for the name, READ_ONLY, FORKED, UNDERWAY, GONE.
///
/// # Safety
/// `session` is NULL or an open handle; the buffers are valid for their lengths.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn selvage_session_set_bytes(
    session: *mut selvage_session,
    name: *const c_char,
    name_len: usize,
    bytes: *const u8,
    bytes_len: usize,
) -> selvage_status {
    enter!(required [session, name], nullable [bytes], {
        // SAFETY: valid for its length by this function's contract.
        let value = unsafe { text::bytes("bytes", bytes, bytes_len) }?;
        // SAFETY: an open handle and a valid name by this function's contract.
        unsafe { set(session, name, name_len, Value::Bytes(value.to_vec())) }
    })
}

/// Sets an attribute to text. It counts with the next commit.
///
/// Thread rule: one thread at a time per session. Blocking: never. Ownership: copies. Errors: TOO_LARGE
/// with size and limit, INVALID for the name or text that is not UTF-8, READ_ONLY, FORKED, UNDERWAY, GONE.
///
/// # Safety
/// `session` is NULL or an open handle; the buffers are valid for their lengths.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn selvage_session_set_text(
    session: *mut selvage_session,
    name: *const c_char,
    name_len: usize,
    chars: *const c_char,
    chars_len: usize,
) -> selvage_status {
    enter!(required [session, name], nullable [chars], {
        // SAFETY: valid for its length by this function's contract.
        let value = unsafe { text::text("chars", chars, chars_len) }?;
        // SAFETY: an open handle and a valid name by this function's contract.
        unsafe { set(session, name, name_len, Value::Text(value.to_owned())) }
    })
}

/// Sets an attribute to an integer. It counts with the next commit.
///
/// Thread rule: one thread at a time per session. Blocking: never. Ownership: copies. Errors: TOO_LARGE,
/// INVALID for the name, READ_ONLY, FORKED, UNDERWAY, GONE.
///
/// # Safety
/// `session` is NULL or an open handle; `name` is valid for `name_len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn selvage_session_set_i64(
    session: *mut selvage_session,
    name: *const c_char,
    name_len: usize,
    integer: i64,
) -> selvage_status {
    enter!(required [session, name], nullable [], {
        // SAFETY: an open handle and a valid name by this function's contract.
        unsafe { set(session, name, name_len, Value::I64(integer)) }
    })
}

/// Sets an attribute to a floating-point number. It counts with the next commit.
///
/// Thread rule: one thread at a time per session. Blocking: never. Ownership: copies. Errors: TOO_LARGE,
/// INVALID for the name, READ_ONLY, FORKED, UNDERWAY, GONE.
///
/// # Safety
/// `session` is NULL or an open handle; `name` is valid for `name_len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn selvage_session_set_f64(
    session: *mut selvage_session,
    name: *const c_char,
    name_len: usize,
    number: f64,
) -> selvage_status {
    enter!(required [session, name], nullable [], {
        // SAFETY: an open handle and a valid name by this function's contract.
        unsafe { set(session, name, name_len, Value::F64(number)) }
    })
}

/// Sets an attribute to a truth value: 0 is false, anything else true. It counts with the next commit.
///
/// Thread rule: one thread at a time per session. Blocking: never. Ownership: copies. Errors: TOO_LARGE,
/// INVALID for the name, READ_ONLY, FORKED, UNDERWAY, GONE.
///
/// # Safety
/// `session` is NULL or an open handle; `name` is valid for `name_len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn selvage_session_set_bool(
    session: *mut selvage_session,
    name: *const c_char,
    name_len: usize,
    truth: u32,
) -> selvage_status {
    enter!(required [session, name], nullable [], {
        // SAFETY: an open handle and a valid name by this function's contract.
        unsafe { set(session, name, name_len, Value::Bool(truth != 0)) }
    })
}

/// Removes an attribute. Answers OK, or MISSING if there was none. It counts with the next commit.
///
/// Thread rule: one thread at a time per session. Blocking: never. Ownership: none. Errors: INVALID if the
/// name is not UTF-8, READ_ONLY, FORKED, UNDERWAY, GONE.
///
/// # Safety
/// `session` is NULL or an open handle; `name` is valid for `name_len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn selvage_session_remove(
    session: *mut selvage_session,
    name: *const c_char,
    name_len: usize,
) -> selvage_status {
    enter!(required [session, name], nullable [], {
        // SAFETY: valid for its length by this function's contract.
        let name = unsafe { text::text("name", name, name_len) }?;
        // SAFETY: not NULL (checked above), and an open handle of which this is the only user by this
        // function's contract.
        let removed = unsafe { &mut *session }.writable()?.remove(name)?;
        Ok(if removed { selvage_status::Ok } else { selvage_status::Missing })
    })
}

/// Adds to an integer, a missing one counting as 0, and writes the new one. It counts with the next commit.
/// Answers OK, or WRONG_TYPE if the attribute is something else; integer may be NULL.
///
/// Thread rule: one thread at a time per session. Blocking: never. Ownership: none. Errors: INVALID for the
/// name and for a sum that does not fit, TOO_LARGE, READ_ONLY, FORKED, UNDERWAY, GONE.
///
/// # Safety
/// `session` is NULL or an open handle; `name` is valid for `name_len` bytes; `integer` is NULL or
/// valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn selvage_session_incr(
    session: *mut selvage_session,
    name: *const c_char,
    name_len: usize,
    by: i64,
    integer: *mut i64,
) -> selvage_status {
    enter!(required [session, name], nullable [integer], {
        // SAFETY: valid for its length by this function's contract.
        let name = unsafe { text::text("name", name, name_len) }?;
        // SAFETY: not NULL (checked above), and an open handle of which this is the only user by this
        // function's contract.
        let session = unsafe { &mut *session }.writable()?;
        if !matches!(session.get(name), None | Some(ValueRef::I64(_))) {
            return Ok(selvage_status::WrongType);
        }
        let sum = session.incr(name, by)?;
        if !integer.is_null() {
            // SAFETY: not NULL and valid for writing by this function's contract.
            unsafe { integer.write(sum) };
        }
        Ok(selvage_status::Ok)
    })
}
