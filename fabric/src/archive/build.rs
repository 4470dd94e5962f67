//! Building archives from borrowed attributes, without an allocation per attribute.

use super::format::{ArchivedAttribute, ArchivedSession, AttributeSource, SessionSource};
use super::patch::patch;
use super::read::ArchiveLimits;
use super::value::{Value, ValueRef};
use crate::error::{Error, ErrorKind, Origin, Result};
use crate::ident::{SessionId, Version};
use crate::limits::{ATTRIBUTE_NAME_BYTES_MAX, OWNER_BYTES_MAX};
use rkyv::api::serialize_using;
use rkyv::rancor::{Failure, Strategy};
use rkyv::ser::Serializer;
use rkyv::ser::allocator::Arena;
use rkyv::util::AlignedVec;
use std::cmp::Ordering;

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

/// Changes to a session's attributes that are not committed yet: sorted by name, the last one of a name
/// counts.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    entries: Vec<(Box<str>, Option<Value>)>,
}

impl Changes {
    /// Sets an attribute.
    pub fn set(&mut self, name: &str, value: Value) {
        self.put(name, Some(value));
    }

    /// Removes an attribute.
    pub fn remove(&mut self, name: &str) {
        self.put(name, None);
    }

    /// What was changed about an attribute: `None` not touched, `Some(None)` removed.
    pub fn get(&self, name: &str) -> Option<Option<ValueRef<'_>>> {
        let at = self.position(name).ok()?;
        Some(self.entries[at].1.as_ref().map(Value::as_ref))
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
        base: Option<&'a ArchivedSession>,
    ) -> impl Iterator<Item = (&'a str, ValueRef<'a>)> + Clone {
        Merged { base: base.map_or(&[], ArchivedSession::attributes), changes: &self.entries }
    }

    /// The changes, sorted by name; `None` is a removal.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, Option<&Value>)> {
        self.entries.iter().map(|(name, value)| (&**name, value.as_ref()))
    }

    fn put(&mut self, name: &str, value: Option<Value>) {
        match self.position(name) {
            Ok(at) => self.entries[at].1 = value,
            Err(at) => self.entries.insert(at, (name.into(), value)),
        }
    }

    fn position(&self, name: &str) -> std::result::Result<usize, usize> {
        self.entries.binary_search_by(|(entry, _)| (**entry).cmp(name))
    }
}

/// Two sorted sources as one; changes win, removals drop out.
#[derive(Clone)]
struct Merged<'a> {
    base: &'a [ArchivedAttribute],
    changes: &'a [(Box<str>, Option<Value>)],
}

impl<'a> Iterator for Merged<'a> {
    type Item = (&'a str, ValueRef<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let Some(((name, change), rest)) = self.changes.split_first() else {
                let (old, rest) = self.base.split_first()?;
                self.base = rest;
                return Some(old.pair());
            };
            if let Some((old, left)) = self.base.split_first() {
                let order = old.name.get().cmp(name);
                if order != Ordering::Greater {
                    self.base = left;
                }
                if order == Ordering::Less {
                    return Some(old.pair());
                }
            }
            self.changes = rest;
            if let Some(value) = change {
                return Some((name, value.as_ref()));
            }
        }
    }
}

/// Builds archives into a buffer that it keeps. One per thread.
#[derive(Default)]
pub struct Builder {
    buffer: AlignedVec,
    arena: Arena,
}

impl Builder {
    /// A builder.
    pub fn new() -> Self {
        Self::default()
    }

    /// Builds the archive of `head` with `changes` over the archive `base`, of which `session` is the root.
    /// Several times faster than [`Self::build`], with the same result, if the changes change no sizes and
    /// the owner stays.
    ///
    /// # Errors
    /// As [`Self::build`].
    pub fn build_over(
        &mut self,
        head: &Head<'_>,
        base: &[u8],
        session: &ArchivedSession,
        changes: &Changes,
        limits: &ArchiveLimits,
    ) -> Result<&[u8]> {
        let fits = base.len() <= limits.archive_bytes_max;
        if fits && patch(&mut self.buffer, head, base, session, changes).is_some() {
            return Ok(&self.buffer);
        }
        self.build(head, changes.over(Some(session)), limits)
    }

    /// Builds an archive; the attributes must come sorted by name, each name once. The bytes stay until the
    /// next build.
    ///
    /// # Errors
    /// `Invalid` if a name is empty, repeated or out of order; `TooLarge`, with size and limit, if the owner,
    /// a name, the number of attributes or the whole is over its limit.
    pub fn build<'a>(
        &mut self,
        head: &Head<'_>,
        attributes: impl Iterator<Item = (&'a str, ValueRef<'a>)> + Clone,
        limits: &ArchiveLimits,
    ) -> Result<&[u8]> {
        let left = check(head, attributes.clone(), limits)?;
        let source = SessionSource { head, attributes: Counted { inner: attributes, left } };
        let mut writer = std::mem::take(&mut self.buffer);
        writer.clear();
        let mut serializer = Serializer::new(writer, self.arena.acquire(), ());
        let built = serialize_using(&source, Strategy::<_, Failure>::wrap(&mut serializer));
        self.buffer = serializer.into_writer();
        built.map_err(|error| {
            Error::new(ErrorKind::TooLarge, Origin::Archive, "a value does not fit into an archive")
                .with_source(error)
        })?;
        if self.buffer.len() > limits.archive_bytes_max {
            return Err(too_large(
                "the session's archive",
                self.buffer.len(),
                limits.archive_bytes_max,
                "bytes",
            ));
        }
        Ok(&self.buffer)
    }
}

/// Checks what goes into an archive and counts the attributes. The sum of the parts is checked here so that
/// no absurd size reaches the serialiser; the exact size is known after it.
fn check<'a>(
    head: &Head<'_>,
    attributes: impl Iterator<Item = (&'a str, ValueRef<'a>)>,
    limits: &ArchiveLimits,
) -> Result<usize> {
    if let Some(owner) = head.owner
        && owner.len() > OWNER_BYTES_MAX
    {
        return Err(too_large("the owner's name", owner.len(), OWNER_BYTES_MAX, "bytes"));
    }
    let mut count = 0;
    let mut bytes = 0_usize;
    let mut before: Option<&str> = None;
    for (name, value) in attributes {
        if name.is_empty() || before.is_some_and(|before| before >= name) {
            let what =
                format!("attribute names must be sorted, unique and not empty; {name:?} follows {before:?}");
            return Err(Error::new(ErrorKind::Invalid, Origin::Archive, what));
        }
        if name.len() > ATTRIBUTE_NAME_BYTES_MAX {
            return Err(too_large("an attribute's name", name.len(), ATTRIBUTE_NAME_BYTES_MAX, "bytes"));
        }
        before = Some(name);
        count += 1;
        bytes = bytes.saturating_add(match value {
            ValueRef::Bytes(bytes) => bytes.len(),
            ValueRef::Text(text) => text.len(),
            _ => 0,
        });
    }
    if count > limits.attributes_max {
        return Err(too_large("the session", count, limits.attributes_max, "attributes"));
    }
    if bytes > limits.archive_bytes_max {
        return Err(too_large("the session's archive", bytes, limits.archive_bytes_max, "bytes"));
    }
    Ok(count)
}

fn too_large(what: &str, size: usize, limit: usize, unit: &str) -> Error {
    let text = format!("{what} has {size} {unit}; the limit is {limit}");
    Error::new(ErrorKind::TooLarge, Origin::Archive, text)
}

/// An iterator whose length was counted before; rkyv wants to know it.
#[derive(Clone)]
struct Counted<I> {
    inner: I,
    left: usize,
}

impl<'a, I: Iterator<Item = (&'a str, ValueRef<'a>)>> Iterator for Counted<I> {
    type Item = AttributeSource<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        // `left` bounds the count even if a clone of the iterator should not repeat itself.
        self.left = self.left.checked_sub(1)?;
        self.inner.next().map(AttributeSource::from)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl<'a, I: Iterator<Item = (&'a str, ValueRef<'a>)>> ExactSizeIterator for Counted<I> {}
