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
    entries: Vec<Change>,
}

/// What shall become of one attribute.
#[derive(Debug, Clone)]
struct Change {
    name: Box<str>,
    /// `None`: it is removed.
    value: Option<Value>,
    /// The value is a sum over the base's, and this is what was added. `None`: it stands for itself.
    added: Option<i64>,
}

impl Changes {
    /// Sets an attribute.
    pub fn set(&mut self, name: &str, value: Value) {
        self.put(name, Some(value), None);
    }

    /// Removes an attribute.
    pub fn remove(&mut self, name: &str) {
        self.put(name, None, None);
    }

    /// Adds to a whole number, a missing one counting as 0, and gives the new one. It is kept as what was
    /// added, so that [`Self::rebase`] can add the same to another base's number; what was set or removed
    /// here before stands for itself.
    ///
    /// # Errors
    /// `WrongType` if the attribute is something else, `Invalid` if it would leave the range; nothing is
    /// changed then.
    pub fn add(&mut self, base: Option<&ArchivedSession>, name: &str, by: i64) -> Result<i64> {
        match self.position(name) {
            Ok(at) => {
                let change = &mut self.entries[at];
                let sum = sum(name, change.value.as_ref().map(Value::as_ref), by)?;
                if let Some(added) = change.added {
                    change.added = Some(added.checked_add(by).ok_or_else(|| out_of_range(name))?);
                }
                change.value = Some(Value::I64(sum));
                Ok(sum)
            }
            Err(at) => {
                let sum = sum(name, base.and_then(|base| base.get(name)), by)?;
                let change = Change { name: name.into(), value: Some(Value::I64(sum)), added: Some(by) };
                self.entries.insert(at, change);
                Ok(sum)
            }
        }
    }

    /// Takes these changes over to another base: what was added is added to its numbers.
    ///
    /// # Errors
    /// `WrongType` if an attribute that was added to is no whole number there, `Invalid` if it would leave
    /// the range; no change is changed then.
    pub fn rebase(&mut self, base: Option<&ArchivedSession>) -> Result<()> {
        let sum_of =
            |change: &Change, by| sum(&change.name, base.and_then(|base| base.get(&change.name)), by);
        // All are looked at before the first is changed.
        for change in &self.entries {
            change.added.map_or(Ok(0), |by| sum_of(change, by))?;
        }
        for change in &mut self.entries {
            if let Some(by) = change.added {
                change.value = Some(Value::I64(sum_of(change, by)?));
            }
        }
        Ok(())
    }

    /// Whether a base would be another one with these changes, as far as that is seen without comparing
    /// values: removing what is not there is no change.
    pub fn affect(&self, base: Option<&ArchivedSession>) -> bool {
        let is_there = |name: &str| base.is_some_and(|base| base.get(name).is_some());
        self.entries.iter().any(|change| change.value.is_some() || is_there(&change.name))
    }

    /// What was changed about an attribute: `None` not touched, `Some(None)` removed.
    pub fn get(&self, name: &str) -> Option<Option<ValueRef<'_>>> {
        let at = self.position(name).ok()?;
        Some(self.entries[at].value.as_ref().map(Value::as_ref))
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
        self.entries.iter().map(|change| (&*change.name, change.value.as_ref()))
    }

    fn put(&mut self, name: &str, value: Option<Value>, added: Option<i64>) {
        match self.position(name) {
            Ok(at) => {
                let change = &mut self.entries[at];
                (change.value, change.added) = (value, added);
            }
            Err(at) => self.entries.insert(at, Change { name: name.into(), value, added }),
        }
    }

    fn position(&self, name: &str) -> std::result::Result<usize, usize> {
        self.entries.binary_search_by(|change| (*change.name).cmp(name))
    }
}

/// A whole number, a missing one counting as 0, and what is added to it.
fn sum(name: &str, number: Option<ValueRef<'_>>, by: i64) -> Result<i64> {
    let number = match number {
        None => 0,
        Some(ValueRef::I64(number)) => number,
        Some(_) => {
            let what = format!("attribute \"{name}\" is not a whole number");
            return Err(Error::new(ErrorKind::WrongType, Origin::Archive, what));
        }
    };
    number.checked_add(by).ok_or_else(|| out_of_range(name))
}

fn out_of_range(name: &str) -> Error {
    invalid(format!("attribute \"{name}\" would leave the range of 64-bit numbers"))
}

fn invalid(what: String) -> Error {
    Error::new(ErrorKind::Invalid, Origin::Archive, what)
}

/// Two sorted sources as one; changes win, removals drop out.
#[derive(Clone)]
struct Merged<'a> {
    base: &'a [ArchivedAttribute],
    changes: &'a [Change],
}

impl<'a> Iterator for Merged<'a> {
    type Item = (&'a str, ValueRef<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let Some((change, rest)) = self.changes.split_first() else {
                let (old, rest) = self.base.split_first()?;
                self.base = rest;
                return Some(old.pair());
            };
            if let Some((old, left)) = self.base.split_first() {
                let order = old.name.get().cmp(&change.name);
                if order != Ordering::Greater {
                    self.base = left;
                }
                if order == Ordering::Less {
                    return Some(old.pair());
                }
            }
            self.changes = rest;
            if let Some(value) = &change.value {
                return Some((&change.name, value.as_ref()));
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
            return Err(invalid(what));
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
