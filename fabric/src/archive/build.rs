//! Building archives from borrowed attributes, without an allocation per attribute.

use super::read::{ArchiveLimits, ArchivedSession};
use super::value::{Value, ValueRef};
use crate::error::Result;
use crate::ident::{SessionId, Version};
use rkyv::util::AlignedVec;

/// What an archive says about its session beside the attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head<'a> {
    /// The session.
    pub id: SessionId,
    /// The version that this archive is (R7).
    pub version: Version,
    /// When the session was created, Unix ms.
    pub created_ms: u64,
    /// Idle lifetime, ms.
    pub idle_ms: u64,
    /// Absolute lifetime, ms from creation.
    pub absolute_ms: u64,
    /// The user it belongs to.
    pub owner: Option<&'a str>,
}

/// Changes to a session's attributes that are not committed yet: sorted by name, the last one of a name counts.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    entries: Vec<(Box<str>, Option<Value>)>,
}

impl Changes {
    /// Sets an attribute.
    pub fn set(&mut self, _name: &str, _value: Value) {
        unimplemented!()
    }

    /// Removes an attribute.
    pub fn remove(&mut self, _name: &str) {
        unimplemented!()
    }

    /// What was changed about an attribute: `None` not touched, `Some(None)` removed.
    pub fn get(&self, _name: &str) -> Option<Option<ValueRef<'_>>> {
        unimplemented!()
    }

    /// No changes.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Forgets all changes.
    pub fn clear(&mut self) {
        self.entries.clear();
    }

    /// The attributes of `base` with these changes, sorted by name: the input of [`Builder::build`].
    pub fn over<'a>(
        &'a self,
        _base: Option<&'a ArchivedSession>,
    ) -> impl Iterator<Item = (&'a str, ValueRef<'a>)> + Clone {
        std::iter::empty()
    }
}

/// Builds archives into a buffer that it keeps. One per thread.
#[derive(Default)]
pub struct Builder {
    buffer: AlignedVec,
}

impl Builder {
    /// A builder.
    pub fn new() -> Self {
        Self::default()
    }

    /// Builds an archive; the attributes must come sorted by name, each name once. The bytes stay until the next build.
    ///
    /// # Errors
    /// `Invalid` if a name is empty, repeated or out of order; `TooLarge`, with size and limit, if the owner, a name, the
    /// number of attributes or the whole is over its limit.
    pub fn build<'a>(
        &mut self,
        _head: &Head<'_>,
        _attributes: impl Iterator<Item = (&'a str, ValueRef<'a>)> + Clone,
        _limits: &ArchiveLimits,
    ) -> Result<&[u8]> {
        Ok(&self.buffer)
    }
}
