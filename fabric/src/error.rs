//! The fabric's one error type. Callers decide from its fields, never from its text.
//!
//! Expected outcomes (a miss, elsewhere, would block) are values, not errors.

use std::fmt;

/// What went wrong. The C status codes map one to one to these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// An argument or a setting is outside its documented range.
    Invalid,
    /// An attribute has another type than what was asked of it needs; nothing was changed.
    WrongType,
    /// An attribute or a session is over its limit; nothing was changed.
    TooLarge,
    /// The cache or a lease has no room; nothing that lives was evicted.
    Full,
    /// Too many requests wait for this session already.
    Busy,
    /// The wait was longer than its bound.
    Timeout,
    /// The incarnation of the handle is over; the session may be hosted by another node now (R3).
    OwnershipLost,
    /// The session's lock was revoked because it was held longer than allowed.
    LockLost,
    /// The handle belongs to another process (it was inherited over fork).
    Forked,
    /// The session is gone: destroyed or expired.
    Gone,
    /// Shared memory is not initialised yet.
    NotReady,
    /// A layout or protocol version does not fit.
    VersionMismatch,
    /// A memory segment or a buffer is smaller than it must be.
    TooSmall,
    /// Bytes from another party failed a check.
    Corrupt,
    /// The peer may not do this (user id, role, incarnation).
    Denied,
    /// The peer cannot be reached or has cut the connection.
    Unreachable,
    /// The peer cannot answer yet (view behind, claims not complete, seal not confirmed).
    NotYet,
    /// Somebody else has this name, port, lock or role.
    Conflict,
    /// The operating system refused.
    Os,
}

impl ErrorKind {
    /// All of them, in order: `ALL[kind as usize]` is `kind`.
    pub const ALL: [Self; 19] = [
        Self::Invalid,
        Self::WrongType,
        Self::TooLarge,
        Self::Full,
        Self::Busy,
        Self::Timeout,
        Self::OwnershipLost,
        Self::LockLost,
        Self::Forked,
        Self::Gone,
        Self::NotReady,
        Self::VersionMismatch,
        Self::TooSmall,
        Self::Corrupt,
        Self::Denied,
        Self::Unreachable,
        Self::NotYet,
        Self::Conflict,
        Self::Os,
    ];

    /// Its name in metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::WrongType => "wrong_type",
            Self::TooLarge => "too_large",
            Self::Full => "full",
            Self::Busy => "busy",
            Self::Timeout => "timeout",
            Self::OwnershipLost => "ownership_lost",
            Self::LockLost => "lock_lost",
            Self::Forked => "forked",
            Self::Gone => "gone",
            Self::NotReady => "not_ready",
            Self::VersionMismatch => "version_mismatch",
            Self::TooSmall => "too_small",
            Self::Corrupt => "corrupt",
            Self::Denied => "denied",
            Self::Unreachable => "unreachable",
            Self::NotYet => "not_yet",
            Self::Conflict => "conflict",
            Self::Os => "os",
        }
    }
}

// The list is complete and in order: its last entry is the last variant.
const _: () = {
    let mut at = 0;
    while at < ErrorKind::ALL.len() {
        assert!(ErrorKind::ALL[at] as usize == at);
        at += 1;
    }
};

/// Which part found the error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Origin {
    Config,
    Archive,
    Lease,
    Transport,
    Cache,
    Control,
    Node,
    Server,
    Director,
}

/// Whether the same call can succeed later without a change by the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Retry {
    /// It will fail again.
    Never,
    /// It may succeed later.
    Later,
}

/// An error of the fabric.
#[derive(Debug)]
pub struct Error {
    /// What went wrong.
    pub kind: ErrorKind,
    /// Who found it.
    pub origin: Origin,
    /// Whether to try again.
    pub retry: Retry,
    /// What, where and the limit: one sentence for a person.
    pub context: String,
    /// The error below, if any.
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Result of the fabric.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error with the retry rule that its kind usually has.
    pub fn new(kind: ErrorKind, origin: Origin, context: impl Into<String>) -> Self {
        let retry = match kind {
            ErrorKind::Busy
            | ErrorKind::Timeout
            | ErrorKind::Full
            | ErrorKind::NotReady
            | ErrorKind::NotYet
            | ErrorKind::Unreachable
            | ErrorKind::OwnershipLost => Retry::Later,
            _ => Retry::Never,
        };
        Self { kind, origin, retry, context: context.into(), source: None }
    }

    /// Adds the error below.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// An error of the operating system: what was tried, on what.
    pub fn os(origin: Origin, context: impl Into<String>, source: impl Into<std::io::Error>) -> Self {
        Self::new(ErrorKind::Os, origin, context).with_source(source.into())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)?;
        match &self.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| source.as_ref() as &(dyn std::error::Error + 'static))
    }
}
