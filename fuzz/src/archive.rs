//! An archive that anyone may have written. What passes the check:
//!
//! - can be read whole: all attributes, by their order and by their names, each once, in order;
//! - says the same when it is built anew;
//! - says the same with a new version after `restamp`, and with changed values after the short way of a
//!   commit.
//!
//! The first byte chooses between raw bytes and a good archive, with bytes of the input put over it: chance
//! rarely meets rkyv's offsets.

use arbitrary::{Result, Unstructured};
use selvage_fabric::archive::{
    ArchiveLimits, Builder, Changes, Head, OwnedArchive, Value, ValueRef, validate,
};
use selvage_fabric::ident::{SessionId, Version};

const LIMITS: ArchiveLimits = ArchiveLimits { archive_bytes_max: 1 << 16, attributes_max: 64 };

pub fn run(bytes: &[u8]) {
    match bytes.split_first() {
        Some((choice, rest)) if choice % 2 == 1 => {
            // An input that is used up builds nothing.
            let _ = built(&mut Unstructured::new(rest));
        }
        Some((_, rest)) => check(rest),
        None => {}
    }
}

/// Attributes, with what is said about their values by [`ValueRef`]'s own format, so that not-a-number equals
/// itself.
fn said(archive: &OwnedArchive) -> String {
    let session = archive.session();
    format!("{:?}", session.iter().collect::<Vec<_>>())
}

fn head_of(archive: &OwnedArchive) -> Head<'_> {
    let session = archive.session();
    Head {
        id: session.id(),
        version: session.version(),
        created_ms: session.created_ms(),
        idle_ms: session.idle_ms(),
        absolute_ms: session.absolute_ms(),
        owner: session.owner(),
    }
}

fn check(bytes: &[u8]) {
    let Ok(mut archive) = OwnedArchive::copy_of(bytes, &LIMITS) else { return };
    let session = archive.session();
    let attributes: Vec<(&str, ValueRef<'_>)> = session.iter().collect();
    assert_eq!(attributes.len(), session.attribute_count());
    assert!(attributes.len() <= LIMITS.attributes_max);
    assert!(attributes.is_sorted_by(|a, b| a.0 < b.0), "names in order, each once");
    for (name, value) in &attributes {
        assert_eq!(format!("{:?}", session.get(name)), format!("{:?}", Some(value)), "{name}");
        let near = format!("{name}\0");
        assert_eq!(session.get(&near).is_some(), attributes.iter().any(|(name, _)| *name == near), "{near}");
    }
    let mut builder = Builder::new();
    // What is too large when it is built anew was packed more tightly by somebody else.
    if let Ok(built) = builder.build(&head_of(&archive), attributes.iter().copied(), &LIMITS) {
        let again = OwnedArchive::copy_of(built, &LIMITS).expect("what is built is whole");
        assert_eq!((said(&again), head_of(&again)), (said(&archive), head_of(&archive)));
    }
    change(&archive);
    let before = said(&archive);
    let version = Version { epoch: 7, counter: u64::MAX };
    archive.restamp(version);
    validate(archive.bytes(), &LIMITS).expect("restamped, it is whole");
    assert_eq!((archive.session().version(), said(&archive)), (version, before));
}

/// Every value becomes another of its size, so that the new archive is made by overwriting.
fn change(archive: &OwnedArchive) {
    let session = archive.session();
    let mut changes = Changes::default();
    let mut expected = Vec::new();
    for (name, value) in session.iter() {
        let other = match value {
            ValueRef::Bytes(bytes) => Value::Bytes(bytes.iter().map(|byte| !byte).collect()),
            ValueRef::Text(text) => Value::Text("x".repeat(text.len())),
            ValueRef::I64(number) => Value::I64(!number),
            ValueRef::F64(number) => Value::F64(f64::from_bits(!number.to_bits())),
            ValueRef::Bool(truth) => Value::Bool(!truth),
        };
        changes.set(name, other.clone());
        expected.push((name, other));
    }
    let head = Head { version: Version { epoch: 3, counter: 4 }, ..head_of(archive) };
    let mut builder = Builder::new();
    let Ok(changed) = builder.build_over(&head, archive.bytes(), session, &changes, &LIMITS) else { return };
    let changed = OwnedArchive::copy_of(changed, &LIMITS).expect("what a commit makes is whole");
    let expected: Vec<(&str, ValueRef<'_>)> =
        expected.iter().map(|(name, value)| (*name, value.as_ref())).collect();
    assert_eq!((said(&changed), head_of(&changed)), (format!("{expected:?}"), head));
}

fn built(input: &mut Unstructured<'_>) -> Result<()> {
    let mut attributes: Vec<(&str, ValueRef<'_>)> = Vec::new();
    for _ in 0..input.int_in_range(0..=20)? {
        let name = input.arbitrary::<&str>()?;
        let value = match input.int_in_range(0..=4)? {
            0 => ValueRef::Bytes(input.arbitrary()?),
            1 => ValueRef::Text(input.arbitrary()?),
            2 => ValueRef::I64(input.arbitrary()?),
            3 => ValueRef::F64(input.arbitrary()?),
            _ => ValueRef::Bool(input.arbitrary()?),
        };
        attributes.push((name, value));
    }
    attributes.sort_by_key(|(name, _)| *name);
    let owner = input.arbitrary::<bool>()?.then(|| input.arbitrary()).transpose()?;
    let version = Version { epoch: input.arbitrary()?, counter: input.arbitrary()? };
    let head = Head { id: SessionId([7; 16]), version, created_ms: 1, idle_ms: 2, absolute_ms: 3, owner };
    let mut builder = Builder::new();
    let Ok(archive) = builder.build(&head, attributes.iter().copied(), &LIMITS) else { return Ok(()) };
    let mut archive = archive.to_vec();
    let whole = OwnedArchive::copy_of(&archive, &LIMITS).expect("what is built is whole");
    assert_eq!((said(&whole), head_of(&whole)), (format!("{attributes:?}"), head));
    check(&archive);
    // Then somebody else's hand.
    while !input.is_empty() {
        let at = input.int_in_range(0..=archive.len() - 1)?;
        archive[at] = input.arbitrary()?;
    }
    check(&archive);
    Ok(())
}

pub fn seeds() -> Vec<Vec<u8>> {
    let text = "a somewhat longer text, as carts and profiles have them";
    let sets: [&[(&str, ValueRef<'_>)]; 5] = [
        &[],
        &[("n", ValueRef::I64(-1))],
        &[
            ("cart", ValueRef::Bytes(b"\0\x01\xff")),
            ("rate", ValueRef::F64(0.5)),
            ("user", ValueRef::Text("anna")),
        ],
        &[("a", ValueRef::Bool(true)), ("b", ValueRef::Bool(false)), ("empty", ValueRef::Bytes(b""))],
        &[("long", ValueRef::Text(text)), ("none", ValueRef::Text("")), ("pi", ValueRef::F64(f64::NAN))],
    ];
    let mut seeds = Vec::new();
    for (owner, attributes) in [None, Some("anna")].into_iter().flat_map(|owner| sets.map(|set| (owner, set)))
    {
        let version = Version { epoch: 2, counter: 9 };
        let head = Head {
            id: SessionId([5; 16]),
            version,
            created_ms: 1_700_000_000_000,
            idle_ms: 1_800_000,
            absolute_ms: 43_200_000,
            owner,
        };
        let mut builder = Builder::new();
        let archive = builder.build(&head, attributes.iter().copied(), &LIMITS).expect("a good archive");
        seeds.push([&[0][..], archive].concat());
    }
    // For the other choice: any bytes mean attributes.
    seeds.push([&[1][..], &(0..=255).collect::<Vec<u8>>()].concat());
    seeds.push([&[1][..], &(0..=255).rev().collect::<Vec<u8>>()].concat());
    seeds
}
