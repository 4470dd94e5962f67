//! The archived form of a session, and how borrowed attributes are serialised into it.
//!
//! The root stands at the end of the archive, as rkyv puts it. Every byte is determined by the content
//! (padding is zero), so golden bytes in `testdata` pin the format: a change of it is a new
//! [`LAYOUT_VERSION`](crate::lease::LAYOUT_VERSION).

use super::build::Head;
use super::value::ValueRef;
use crate::ident::{SessionId, Version};
use rkyv::boxed::{ArchivedBox, BoxResolver};
use rkyv::munge::munge;
use rkyv::option::ArchivedOption;
use rkyv::rancor::{Fallible, Source};
use rkyv::ser::{Allocator, Writer};
use rkyv::vec::{ArchivedVec, VecResolver};
use rkyv::with::{ArchiveWith, Map, SerializeWith};
use rkyv::{Archive, Place, Serialize};

/// A session as it is archived. It exists for its archived twin, [`ArchivedSession`]; archives are built from
/// borrowed data.
#[derive(Archive)]
#[rkyv(archived = ArchivedSession)]
pub struct SessionArchive {
    pub(super) id: [u8; 16],
    pub(super) epoch: u32,
    pub(super) counter: u64,
    pub(super) created_ms: u64,
    pub(super) idle_ms: u64,
    pub(super) absolute_ms: u64,
    pub(super) owner: Option<Box<str>>,
    pub(super) attributes: Vec<Attribute>,
}

/// One attribute. Its name is a boxed string because an rkyv `String` keeps short strings inside itself and
/// must look for their end at every access, which makes a search by name half as fast.
#[derive(Archive)]
pub struct Attribute {
    pub(super) name: Box<str>,
    pub(super) value: AttributeValue,
}

/// An attribute's value.
#[derive(Archive)]
#[allow(dead_code, reason = "only its archived twin is ever made")]
pub enum AttributeValue {
    /// Any bytes.
    Bytes(Vec<u8>),
    /// UTF-8 text.
    Text(Box<str>),
    /// A signed integer.
    I64(i64),
    /// A floating-point number.
    F64(f64),
    /// A truth value.
    Bool(bool),
}

impl ArchivedAttribute {
    pub(super) fn pair(&self) -> (&str, ValueRef<'_>) {
        (self.name.get(), self.value())
    }

    pub(super) fn value(&self) -> ValueRef<'_> {
        match &self.value {
            ArchivedAttributeValue::Bytes(bytes) => ValueRef::Bytes(bytes.as_slice()),
            ArchivedAttributeValue::Text(text) => ValueRef::Text(text.get()),
            ArchivedAttributeValue::I64(number) => ValueRef::I64(number.to_native()),
            ArchivedAttributeValue::F64(number) => ValueRef::F64(number.to_native()),
            ArchivedAttributeValue::Bool(truth) => ValueRef::Bool(*truth),
        }
    }
}

/// A whole session, borrowed: the root that the builder serialises.
pub(super) struct SessionSource<'h, I> {
    pub(super) head: &'h Head<'h>,
    pub(super) attributes: I,
}

/// What serialising the parts of a [`SessionSource`] left behind.
pub(super) struct SessionResolver {
    owner: Option<BoxResolver>,
    attributes: VecResolver,
}

impl<'a, I> Archive for SessionSource<'_, I>
where
    I: ExactSizeIterator<Item = AttributeSource<'a>> + Clone,
{
    type Archived = ArchivedSession;
    type Resolver = SessionResolver;

    fn resolve(&self, resolver: SessionResolver, out: Place<ArchivedSession>) {
        let SessionId(head_id) = self.head.id;
        let Version { epoch: head_epoch, counter: head_counter } = self.head.version;
        munge!(let ArchivedSession {
            id, epoch, counter, created_ms, idle_ms, absolute_ms, owner, attributes
        } = out);
        head_id.resolve([(); 16], id);
        head_epoch.resolve((), epoch);
        head_counter.resolve((), counter);
        self.head.created_ms.resolve((), created_ms);
        self.head.idle_ms.resolve((), idle_ms);
        self.head.absolute_ms.resolve((), absolute_ms);
        resolve_owner(&self.head.owner, resolver.owner, owner);
        ArchivedVec::resolve_from_len(self.attributes.len(), resolver.attributes, attributes);
    }
}

fn resolve_owner(
    owner: &Option<&str>,
    resolver: Option<BoxResolver>,
    out: Place<ArchivedOption<ArchivedBox<str>>>,
) {
    <Map<AsText> as ArchiveWith<Option<&str>>>::resolve_with(owner, resolver, out);
}

impl<'a, I, S> Serialize<S> for SessionSource<'_, I>
where
    I: ExactSizeIterator<Item = AttributeSource<'a>> + Clone,
    S: Fallible<Error: Source> + Allocator + Writer + ?Sized,
{
    fn serialize(&self, serializer: &mut S) -> Result<SessionResolver, S::Error> {
        let owner =
            <Map<AsText> as SerializeWith<Option<&str>, S>>::serialize_with(&self.head.owner, serializer)?;
        let attributes = ArchivedVec::<ArchivedAttribute>::serialize_from_iter::<AttributeSource<'a>, _, S>(
            self.attributes.clone(),
            serializer,
        )?;
        Ok(SessionResolver { owner, attributes })
    }
}

/// One attribute, borrowed.
pub(super) struct AttributeSource<'a> {
    pub(super) name: &'a str,
    pub(super) value: ValueSource<'a>,
}

impl<'a> Archive for AttributeSource<'a> {
    type Archived = ArchivedAttribute;
    type Resolver = (BoxResolver, ValueSourceResolver<'a>);

    fn resolve(&self, resolver: Self::Resolver, out: Place<ArchivedAttribute>) {
        munge!(let ArchivedAttribute { name, value } = out);
        ArchivedBox::resolve_from_ref(self.name, resolver.0, name);
        self.value.resolve(resolver.1, value);
    }
}

impl<S> Serialize<S> for AttributeSource<'_>
where
    S: Fallible<Error: Source> + Allocator + Writer + ?Sized,
{
    fn serialize(&self, serializer: &mut S) -> Result<Self::Resolver, S::Error> {
        let name = ArchivedBox::serialize_from_ref(self.name, serializer)?;
        Ok((name, self.value.serialize(serializer)?))
    }
}

/// A value, borrowed.
#[derive(Archive, Serialize)]
#[rkyv(as = ArchivedAttributeValue)]
pub(super) enum ValueSource<'a> {
    Bytes(#[rkyv(with = AsBytes)] &'a [u8]),
    Text(#[rkyv(with = AsText)] &'a str),
    I64(i64),
    F64(f64),
    Bool(bool),
}

impl<'a> From<(&'a str, ValueRef<'a>)> for AttributeSource<'a> {
    fn from((name, value): (&'a str, ValueRef<'a>)) -> Self {
        let value = match value {
            ValueRef::Bytes(bytes) => ValueSource::Bytes(bytes),
            ValueRef::Text(text) => ValueSource::Text(text),
            ValueRef::I64(number) => ValueSource::I64(number),
            ValueRef::F64(number) => ValueSource::F64(number),
            ValueRef::Bool(truth) => ValueSource::Bool(truth),
        };
        Self { name, value }
    }
}

/// Archives a `&str` as a `Box<str>` is.
struct AsText;

impl ArchiveWith<&str> for AsText {
    type Archived = ArchivedBox<str>;
    type Resolver = BoxResolver;

    fn resolve_with(field: &&str, resolver: BoxResolver, out: Place<ArchivedBox<str>>) {
        ArchivedBox::resolve_from_ref(*field, resolver, out);
    }
}

impl<S: Fallible<Error: Source> + Writer + ?Sized> SerializeWith<&str, S> for AsText {
    fn serialize_with(field: &&str, serializer: &mut S) -> Result<BoxResolver, S::Error> {
        ArchivedBox::serialize_from_ref(*field, serializer)
    }
}

/// Archives a `&[u8]` as a `Vec<u8>` is.
struct AsBytes;

impl ArchiveWith<&[u8]> for AsBytes {
    type Archived = ArchivedVec<u8>;
    type Resolver = VecResolver;

    fn resolve_with(field: &&[u8], resolver: VecResolver, out: Place<ArchivedVec<u8>>) {
        ArchivedVec::resolve_from_slice(field, resolver, out);
    }
}

impl<S: Fallible + Allocator + Writer + ?Sized> SerializeWith<&[u8], S> for AsBytes {
    fn serialize_with(field: &&[u8], serializer: &mut S) -> Result<VecResolver, S::Error> {
        ArchivedVec::serialize_from_slice(field, serializer)
    }
}
