//! Texts and buffers that come from C. Callers: node, session, attributes, cookie.

use std::ffi::{CStr, c_char};

use crate::guard::{Failure, null};
use crate::status::selvage_status;

/// The length that means "up to the NUL"; `SELVAGE_NUL_TERMINATED` in the header.
pub const NUL_TERMINATED: usize = usize::MAX;

/// The bytes of a buffer; NULL is fine for length 0.
///
/// # Safety
/// `bytes` is NULL or valid for reading `len` bytes (or, with [`NUL_TERMINATED`], ends with a NUL)
/// while `'a` lasts.
pub unsafe fn bytes<'a>(name: &str, bytes: *const u8, len: usize) -> Result<&'a [u8], Failure> {
    if bytes.is_null() {
        return if len == 0 { Ok(&[]) } else { Err(null(name)) };
    }
    if len == NUL_TERMINATED {
        // SAFETY: not NULL, and ends with a NUL by the caller's contract.
        return Ok(unsafe { CStr::from_ptr(bytes.cast()) }.to_bytes());
    }
    if len > isize::MAX as usize {
        return Err(Failure::new(selvage_status::Invalid, format!("the length of `{name}` is {len}")));
    }
    // SAFETY: not NULL, valid for `len` bytes by the caller's contract, and `len` fits an isize (checked
    // above).
    Ok(unsafe { std::slice::from_raw_parts(bytes, len) })
}

/// The same as text.
///
/// # Safety
/// As [`bytes`].
pub unsafe fn text<'a>(name: &str, chars: *const c_char, len: usize) -> Result<&'a str, Failure> {
    // SAFETY: this function's contract is the same.
    let bytes = unsafe { bytes(name, chars.cast(), len) }?;
    std::str::from_utf8(bytes)
        .map_err(|error| Failure::new(selvage_status::Invalid, format!("`{name}` is not UTF-8: {error}")))
}

/// A C string; NULL is `None`.
///
/// # Safety
/// `chars` is NULL or ends with a NUL and is valid while `'a` lasts.
pub unsafe fn optional<'a>(name: &str, chars: *const c_char) -> Result<Option<&'a str>, Failure> {
    if chars.is_null() {
        return Ok(None);
    }
    // SAFETY: not NULL, and NUL-terminated by this function's contract.
    unsafe { text(name, chars, NUL_TERMINATED) }.map(Some)
}

/// Copies text into a field of fixed size, cut to leave a NUL.
pub fn field<const N: usize>(text: &str) -> [c_char; N] {
    let mut field = [0; N];
    for (to, from) in field.iter_mut().take(N - 1).zip(text.bytes()) {
        *to = from as c_char;
    }
    field
}
