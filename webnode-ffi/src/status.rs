//! The one status of the C interface: its numbers, their ranges and their texts.
//!
//! Invariant: a number never changes its meaning, and a retired number is never used again. Ranges: 0
//! success; 1 to 99 expected outcomes; 100 to 199 the caller's mistakes; 200 to 299 states of the session
//! or the cluster that may pass; 300 to 399 the environment; 900 and up a bug in the library. Callers:
//! every file here.

use std::ffi::{CStr, c_char, c_int};

use selvage_fabric::error::ErrorKind;

/// Result of every function that can fail. 0 is success; see the ranges at the head of this file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum selvage_status {
    /// Done.
    Ok = 0,
    /// Begun; exactly one completion will come.
    Pending = 1,
    /// No such session or attribute.
    Missing = 2,
    /// Another live node hosts the session.
    Elsewhere = 3,
    /// The attribute exists and has another type.
    WrongType = 4,
    /// No completion is waiting.
    Empty = 5,

    /// A pointer that must not be NULL is NULL.
    Null = 100,
    /// An argument or a setting is outside its documented range.
    Invalid = 101,
    /// An attribute or a session is over its limit; nothing was changed.
    TooLarge = 102,
    /// The handle belongs to another process: it was inherited over fork.
    Forked = 103,
    /// The session was opened read-only.
    ReadOnly = 104,
    /// An operation that was begun on this session is not complete yet.
    Underway = 105,

    /// The cache or a lease has no room; nothing that lives was evicted.
    Full = 200,
    /// Too many requests wait for this session already.
    Busy = 201,
    /// The wait was longer than its bound.
    Timeout = 202,
    /// The node's incarnation is over; the session may be hosted by another node now.
    OwnershipLost = 203,
    /// The session's lock was held longer than allowed and was given to the next.
    LockLost = 204,
    /// The session is gone: destroyed or expired.
    Gone = 205,
    /// The node has not joined the cluster yet.
    NotReady = 206,
    /// The cluster cannot answer yet: a change of the view is under way.
    NotYet = 207,
    /// The director or a session server cannot be reached.
    Unreachable = 208,

    /// This user or role may not do this.
    Denied = 300,
    /// Somebody else has this name, lock or role.
    Conflict = 301,
    /// The operating system refused.
    Os = 302,
    /// Layout or protocol versions do not fit together.
    VersionMismatch = 303,
    /// A memory segment is smaller than it must be.
    TooSmall = 304,
    /// Bytes from another party failed a check.
    Corrupt = 305,

    /// A bug in the library; the operation may have happened in part.
    Internal = 900,
}

impl selvage_status {
    /// Every status; a test compares it with the enumeration above.
    pub(crate) const ALL: [Self; 28] = [
        Self::Ok,
        Self::Pending,
        Self::Missing,
        Self::Elsewhere,
        Self::WrongType,
        Self::Empty,
        Self::Null,
        Self::Invalid,
        Self::TooLarge,
        Self::Forked,
        Self::ReadOnly,
        Self::Underway,
        Self::Full,
        Self::Busy,
        Self::Timeout,
        Self::OwnershipLost,
        Self::LockLost,
        Self::Gone,
        Self::NotReady,
        Self::NotYet,
        Self::Unreachable,
        Self::Denied,
        Self::Conflict,
        Self::Os,
        Self::VersionMismatch,
        Self::TooSmall,
        Self::Corrupt,
        Self::Internal,
    ];

    fn text(self) -> &'static CStr {
        match self {
            Self::Ok => c"done",
            Self::Pending => c"begun, a completion will come",
            Self::Missing => c"no such session or attribute",
            Self::Elsewhere => c"another node hosts the session",
            Self::WrongType => c"the attribute has another type",
            Self::Empty => c"no completion is waiting",
            Self::Null => c"a required pointer is NULL",
            Self::Invalid => c"an argument or a setting is outside its range",
            Self::TooLarge => c"over the limit, nothing was changed",
            Self::Forked => c"the handle belongs to the parent process",
            Self::ReadOnly => c"the session was opened read-only",
            Self::Underway => c"an operation on this session is not complete yet",
            Self::Full => c"no room in the cache or a lease",
            Self::Busy => c"too many requests wait for this session",
            Self::Timeout => c"the wait was longer than its bound",
            Self::OwnershipLost => c"the node's incarnation is over",
            Self::LockLost => c"the session's lock was held too long",
            Self::Gone => c"the session is destroyed or expired",
            Self::NotReady => c"the node has not joined the cluster yet",
            Self::NotYet => c"the cluster is changing, try again",
            Self::Unreachable => c"the director or a session server cannot be reached",
            Self::Denied => c"this user or role may not do this",
            Self::Conflict => c"somebody else has this name, lock or role",
            Self::Os => c"the operating system refused",
            Self::VersionMismatch => c"layout or protocol versions do not fit together",
            Self::TooSmall => c"a memory segment is too small",
            Self::Corrupt => c"bytes from another party failed a check",
            Self::Internal => c"a bug in the library",
        }
    }
}

impl From<ErrorKind> for selvage_status {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::Invalid => Self::Invalid,
            ErrorKind::WrongType => Self::WrongType,
            ErrorKind::TooLarge => Self::TooLarge,
            ErrorKind::Full => Self::Full,
            ErrorKind::Busy => Self::Busy,
            ErrorKind::Timeout => Self::Timeout,
            ErrorKind::OwnershipLost => Self::OwnershipLost,
            ErrorKind::LockLost => Self::LockLost,
            ErrorKind::Forked => Self::Forked,
            ErrorKind::Gone => Self::Gone,
            ErrorKind::NotReady => Self::NotReady,
            ErrorKind::VersionMismatch => Self::VersionMismatch,
            ErrorKind::TooSmall => Self::TooSmall,
            ErrorKind::Corrupt => Self::Corrupt,
            ErrorKind::Denied => Self::Denied,
            ErrorKind::Unreachable => Self::Unreachable,
            ErrorKind::NotYet => Self::NotYet,
            ErrorKind::Conflict => Self::Conflict,
            ErrorKind::Os => Self::Os,
            // The fabric's kinds may grow; a new one is a bug here until it has a number.
            _ => Self::Internal,
        }
    }
}

/// A short English text for a status; never NULL, for any integer.
///
/// Thread rule: any. Blocking: never. Ownership: the text is static. Errors: none.
#[unsafe(no_mangle)]
pub extern "C" fn selvage_status_text(status: c_int) -> *const c_char {
    crate::guard::enter_infallible!(c"a bug in the library".as_ptr(), [], {
        let known = selvage_status::ALL.iter().find(|known| **known as c_int == status);
        known.map_or(c"not a selvage status", |known| known.text()).as_ptr()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CStr;

    fn text_of(status: c_int) -> String {
        // SAFETY: the function answers a static text for any integer.
        unsafe { CStr::from_ptr(selvage_status_text(status)) }.to_str().unwrap().to_owned()
    }

    #[test]
    fn the_list_is_whole() {
        let source = include_str!("status.rs");
        let body = source.split("pub enum selvage_status {").nth(1).unwrap().split("\n}").next().unwrap();
        let numbers: Vec<c_int> = body
            .lines()
            .filter_map(|line| line.trim().strip_suffix(',')?.split_once(" = ")?.1.parse().ok())
            .collect();
        assert_eq!(numbers, selvage_status::ALL.map(|status| status as c_int));
    }

    #[test]
    fn every_integer_has_a_text_and_every_status_its_own() {
        let mut texts: Vec<String> =
            selvage_status::ALL.iter().map(|status| text_of(*status as c_int)).collect();
        texts.sort();
        texts.dedup();
        assert_eq!(texts.len(), selvage_status::ALL.len());
        for unknown in [-1, 6, 99, 901, c_int::MIN, c_int::MAX] {
            assert_eq!(text_of(unknown), "not a selvage status");
        }
    }
}
