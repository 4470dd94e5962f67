//! What stands between C and the library: NULL checks, a net for panics, and the text of the last error.
//!
//! Invariants: every `extern "C"` function's body is one `enter!` or `enter_infallible!` (a test looks for
//! others); no unwinding reaches C; the last error's text belongs to the thread whose call failed. Callers:
//! every file here.

use std::cell::RefCell;
use std::ffi::c_char;
use std::panic::{AssertUnwindSafe, catch_unwind};

use selvage_fabric::error::Error;

use crate::status::selvage_status;

/// Why a call failed: what C gets as a number, and as a text.
#[derive(Debug)]
pub struct Failure {
    /// The number.
    pub status: selvage_status,
    /// One sentence for a person: what, where, the limit.
    pub text: String,
}

impl Failure {
    /// A failure with its own text.
    pub fn new(status: selvage_status, text: impl Into<String>) -> Self {
        Self { status, text: text.into() }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { status: error.kind.into(), text: error.to_string() }
    }
}

/// What a body answers: an expected outcome, or a failure.
pub type Outcome = Result<selvage_status, Failure>;

thread_local! {
    static LAST: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Keeps the text for `selvage_last_error`.
pub fn remember(text: &str) {
    // During a thread's end the slot may be gone; then nobody can ask for the text either.
    let _ = LAST.try_with(|last| {
        let mut last = last.borrow_mut();
        last.clear();
        last.push_str(text);
    });
}

/// Runs a body; a failure leaves its text, a panic becomes `Internal`.
pub fn run(body: impl FnOnce() -> Outcome) -> selvage_status {
    // A body that panics may leave a handle half changed: `Internal` documents that, and no memory is
    // unsafe for it, because every handle's parts keep their own invariants through their types.
    let outcome = catch_unwind(AssertUnwindSafe(body));
    let failure = match outcome {
        Ok(Ok(status)) => return status,
        Ok(Err(failure)) => failure,
        Err(payload) => Failure::new(selvage_status::Internal, panic_text(payload.as_ref())),
    };
    let _ = catch_unwind(AssertUnwindSafe(|| remember(&failure.text)));
    failure.status
}

/// Runs a body that answers no status; a panic becomes `fallback`.
pub fn run_infallible<T>(fallback: T, body: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or(fallback)
}

/// The failure of an argument that is NULL.
pub fn null(name: &str) -> Failure {
    Failure::new(selvage_status::Null, format!("the argument `{name}` is NULL"))
}

fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    let said = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no text");
    format!("a bug in the selvage library: {said}")
}

/// The body of an `extern "C"` function that returns a status: `enter!(required [pointers], nullable
/// [pointers], { .. })`. Every pointer argument is named in one of the lists; the block is an [`Outcome`]
/// and may use `?`.
macro_rules! enter {
    (required [$($required:ident),*], nullable [$($nullable:ident),*], $body:block) => {
        $crate::guard::run(|| {
            $(if $required.is_null() {
                return Err($crate::guard::null(stringify!($required)));
            })*
            $(let _ = $nullable;)*
            $body
        })
    };
}

/// The body of an `extern "C"` function that cannot fail and takes the named pointers, each of which may be
/// NULL.
macro_rules! enter_infallible {
    ($fallback:expr, [$($nullable:ident),*], $body:block) => {
        $crate::guard::run_infallible($fallback, || {
            $(let _ = $nullable;)*
            $body
        })
    };
}

pub(crate) use {enter, enter_infallible};

/// Copies the text of the calling thread's last failure into `text`, cut to `text_len - 1` bytes and always
/// ended by a NUL (unless `text_len` is 0). Returns the whole text's length without the NUL, as snprintf
/// does.
///
/// Thread rule: any; the text is the calling thread's own. Blocking: never. Ownership: the caller's buffer.
/// Errors: none; a NULL `text` is a buffer of length 0. Only a failed call (a status of 100 and up) changes
/// the text.
///
/// # Safety
/// `text` is NULL or valid for writing `text_len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn selvage_last_error(text: *mut c_char, text_len: usize) -> usize {
    enter_infallible!(0, [text], {
        LAST.with_borrow(|last| {
            if !text.is_null() && text_len > 0 {
                let cut = last.len().min(text_len - 1);
                // SAFETY: `text` is valid for `text_len` bytes by this function's contract, and `cut <
                // text_len`; the thread's own String cannot overlap a buffer of the caller.
                unsafe { std::ptr::copy_nonoverlapping(last.as_ptr(), text.cast::<u8>(), cut) };
                // SAFETY: `cut < text_len`, so this byte is inside the caller's buffer.
                let end = unsafe { text.add(cut) };
                // SAFETY: as above.
                unsafe { end.write(0) };
            }
            last.len()
        })
    })
}

/// The library's version, as "major.minor.patch".
///
/// Thread rule: any. Blocking: never. Ownership: the text is static. Errors: none.
#[unsafe(no_mangle)]
pub extern "C" fn selvage_version() -> *const c_char {
    enter_infallible!(c"".as_ptr(), [], { concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last() -> String {
        let mut text = [0x55; 64];
        // SAFETY: the buffer is valid for its length.
        let len = unsafe { selvage_last_error(text.as_mut_ptr(), text.len()) };
        let shown: Vec<u8> = text.iter().take_while(|char| **char != 0).map(|char| *char as u8).collect();
        assert_eq!(shown.len(), len.min(text.len() - 1));
        String::from_utf8(shown).unwrap()
    }

    #[test]
    fn a_null_a_failure_and_a_panic_become_statuses_and_texts() {
        let pointer = std::ptr::null_mut::<u8>();
        let status = enter!(required [pointer], nullable [], { Ok(selvage_status::Ok) });
        assert_eq!((status, last().as_str()), (selvage_status::Null, "the argument `pointer` is NULL"));

        let status = run(|| Err(Failure::new(selvage_status::Full, "no room for 9 bytes")));
        assert_eq!((status, last().as_str()), (selvage_status::Full, "no room for 9 bytes"));
        assert_eq!(run(|| Ok(selvage_status::Missing)), selvage_status::Missing);
        assert_eq!(last(), "no room for 9 bytes", "an expected outcome leaves the text alone");

        assert_eq!(run(|| panic!("for the test")), selvage_status::Internal);
        assert_eq!(last(), "a bug in the selvage library: for the test");
        assert_eq!(run_infallible(7, || panic!("for the test")), 7);
    }

    #[test]
    fn the_text_is_cut_to_the_buffer() {
        remember("0123456789");
        let mut text = [0x55 as c_char; 5];
        // SAFETY: the buffer is valid for its length.
        assert_eq!(unsafe { selvage_last_error(text.as_mut_ptr(), text.len()) }, 10);
        assert_eq!(text.map(|char| char as u8), *b"0123\0");
        // SAFETY: one byte of the buffer.
        assert_eq!(unsafe { selvage_last_error(text.as_mut_ptr(), 1) }, 10);
        assert_eq!(text[0], 0);
        // SAFETY: NULL and length 0 are allowed.
        assert_eq!(unsafe { selvage_last_error(std::ptr::null_mut(), 0) }, 10);
    }

    #[test]
    fn the_text_belongs_to_its_thread() {
        remember("mine");
        std::thread::spawn(|| remember("another's")).join().unwrap();
        assert_eq!(last(), "mine");
    }
}
