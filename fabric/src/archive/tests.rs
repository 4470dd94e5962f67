use super::testing::Rng;
use super::*;
use crate::error::ErrorKind;
use crate::ident::{SessionId, Version};
use std::collections::BTreeMap;

fn head() -> Head<'static> {
    Head {
        id: SessionId(*b"0123456789abcdef"),
        version: Version { epoch: 7, counter: 0x1122_3344_5566_7788 },
        created_ms: 1_700_000_000_000,
        idle_ms: 1_800_000,
        absolute_ms: 43_200_000,
        owner: Some("somebody@example.org"),
    }
}

fn attributes() -> BTreeMap<String, Value> {
    BTreeMap::from([
        ("cart".to_owned(), Value::Bytes((0..=255).collect())),
        ("count".to_owned(), Value::I64(-42)),
        ("empty".to_owned(), Value::Text(String::new())),
        ("language".to_owned(), Value::Text("eo".to_owned())),
        ("ratio".to_owned(), Value::F64(0.5)),
        ("terms accepted".to_owned(), Value::Bool(true)),
        ("the name of this attribute is long".to_owned(), Value::Text("ŝ".repeat(100))),
    ])
}

fn borrowed(attributes: &BTreeMap<String, Value>) -> impl Iterator<Item = (&str, ValueRef<'_>)> + Clone {
    attributes.iter().map(|(name, value)| (name.as_str(), value.as_ref()))
}

fn built() -> AlignedVec {
    let attributes = attributes();
    let mut builder = Builder::new();
    let bytes = builder.build(&head(), borrowed(&attributes), &ArchiveLimits::default()).unwrap();
    let mut copy = AlignedVec::new();
    copy.extend_from_slice(bytes);
    copy
}

#[test]
fn what_is_built_reads_back() {
    let bytes = built();
    let session = validate(&bytes, &ArchiveLimits::default()).unwrap();
    let head = head();
    assert_eq!(session.id(), head.id);
    assert_eq!(session.version(), head.version);
    assert_eq!(
        (session.created_ms(), session.idle_ms(), session.absolute_ms(), session.owner()),
        (head.created_ms, head.idle_ms, head.absolute_ms, head.owner)
    );
    let read: BTreeMap<String, Value> =
        session.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    assert_eq!(read, attributes());
    for (name, value) in attributes() {
        assert_eq!(session.get(&name), Some(value.as_ref()));
    }
    for absent in ["", "a", "count ", "zzz"] {
        assert_eq!(session.get(absent), None);
    }
}

#[test]
fn every_attribute_is_found_whatever_their_number() {
    let limits = ArchiveLimits::default();
    for count in (0..70).chain([limits.attributes_max]) {
        // Only every other name of the alphabet of names is there.
        let names: Vec<String> = (0..2 * count + 1).map(|n| format!("n{n:04}")).collect();
        let there = names.iter().skip(1).step_by(2);
        let attributes: BTreeMap<String, Value> =
            there.enumerate().map(|(n, name)| (name.clone(), Value::I64(n as i64))).collect();
        let mut builder = Builder::new();
        let bytes = builder.build(&head(), borrowed(&attributes), &limits).unwrap();
        let session = validate(bytes, &limits).unwrap();
        for name in &names {
            assert_eq!(session.get(name), attributes.get(name).map(Value::as_ref), "{name} of {count}");
        }
    }
}

#[test]
fn reads_give_pointers_into_the_archive() {
    let bytes = built();
    let session = validate(&bytes, &ArchiveLimits::default()).unwrap();
    let Some(ValueRef::Bytes(cart)) = session.get("cart") else { panic!("no cart") };
    assert!(bytes.as_ptr_range().contains(&cart.as_ptr()));
}

#[test]
fn a_session_without_owner_and_attributes_is_an_archive() {
    let mut builder = Builder::new();
    let head = Head { owner: None, ..head() };
    let bytes = builder.build(&head, std::iter::empty(), &ArchiveLimits::default()).unwrap();
    let session = validate(bytes, &ArchiveLimits::default()).unwrap();
    assert_eq!((session.owner(), session.attribute_count()), (None, 0));
}

#[test]
fn changes_lie_over_a_base() {
    let bytes = built();
    let base = validate(&bytes, &ArchiveLimits::default()).unwrap();
    let mut changes = Changes::default();
    changes.set("a first", Value::I64(1));
    changes.set("count", Value::I64(2));
    changes.set("count", Value::I64(3));
    changes.remove("ratio");
    changes.remove("never there");
    changes.set("zz last", Value::Bool(false));
    assert_eq!(changes.get("count"), Some(Some(ValueRef::I64(3))));
    assert_eq!(changes.get("ratio"), Some(None));
    assert_eq!(changes.get("cart"), None);
    let mut expected = attributes();
    expected.insert("a first".to_owned(), Value::I64(1));
    expected.insert("count".to_owned(), Value::I64(3));
    expected.insert("zz last".to_owned(), Value::Bool(false));
    expected.remove("ratio");
    let mut builder = Builder::new();
    let rebuilt = builder.build(&head(), changes.over(Some(base)), &ArchiveLimits::default()).unwrap();
    let session = validate(rebuilt, &ArchiveLimits::default()).unwrap();
    let read: BTreeMap<String, Value> =
        session.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    assert_eq!(read, expected);
}

#[test]
fn a_rebuilt_archive_has_the_same_bytes() {
    let bytes = built();
    let base = validate(&bytes, &ArchiveLimits::default()).unwrap();
    let mut builder = Builder::new();
    for _ in 0..2 {
        let again =
            builder.build(&head(), Changes::default().over(Some(base)), &ArchiveLimits::default()).unwrap();
        assert_eq!(again, &bytes[..]);
    }
}

/// Random changes over random sessions: the short way and the long way give the same bytes.
#[test]
fn building_over_a_base_gives_the_same_bytes_as_building() {
    fn value(rng: &mut Rng) -> Value {
        let len = [0, 1, 7, 8, 9, 40][rng.below(6) as usize];
        match rng.below(5) {
            0 => Value::Bytes((0..len).map(|_| rng.next() as u8).collect()),
            1 => Value::Text((0..len).map(|_| char::from(b'a' + rng.below(26) as u8)).collect()),
            2 => Value::I64(rng.next() as i64),
            3 => Value::F64(rng.below(1000) as f64 / 7.0),
            _ => Value::Bool(rng.below(2) == 0),
        }
    }
    let limits = ArchiveLimits::default();
    let (mut short_ways, mut builder, mut other) = (0, Builder::new(), Builder::new());
    for seed in 1..=5_000 {
        let mut rng = Rng(seed);
        let attributes: BTreeMap<String, Value> = (0..rng.below(8))
            .map(|n| (format!("{}{n}", "x".repeat(n as usize * 2)), value(&mut rng)))
            .collect();
        let owner = (rng.below(2) == 0).then_some("somebody");
        let first = Head { owner, ..head() };
        let base = builder.build(&first, borrowed(&attributes), &limits).unwrap();
        let base = OwnedArchive::copy_of(base, &limits).unwrap();
        let mut changes = Changes::default();
        for name in attributes.keys().filter(|_| rng.below(3) == 0).cloned().collect::<Vec<_>>() {
            match (rng.below(6), &attributes[&name]) {
                (0, _) => changes.remove(&name),
                (1, _) => changes.set(&name, value(&mut rng)),
                (_, Value::I64(number)) => changes.set(&name, Value::I64(number ^ 1)),
                (_, Value::Text(text)) => changes.set(&name, Value::Text("z".repeat(text.len()))),
                (_, Value::Bytes(bytes)) => changes.set(&name, Value::Bytes(vec![0xff; bytes.len()])),
                (_, same) => changes.set(&name, same.clone()),
            }
        }
        if rng.below(10) == 0 {
            changes.set("new", value(&mut rng));
        }
        let owner = if rng.below(10) == 0 { Some("somebody else") } else { owner };
        let version = Version { epoch: 9, counter: seed };
        let next = Head { id: SessionId([seed as u8; 16]), version, created_ms: seed, owner, ..first };
        let mut buffer = AlignedVec::new();
        short_ways += u32::from(
            super::patch::patch(&mut buffer, &next, base.bytes(), base.session(), &changes).is_some(),
        );
        let expected = builder.build(&next, changes.over(Some(base.session())), &limits).unwrap();
        let got = other.build_over(&next, base.bytes(), base.session(), &changes, &limits).unwrap();
        assert!(got == expected, "seed {seed}: {changes:?} over {attributes:?}");
    }
    assert!((1_000..4_500).contains(&short_ways), "both ways are taken: {short_ways}");
}

/// A root that is not the base's, and a base over the limit, take the long way.
#[test]
fn building_over_a_foreign_base_is_refused_by_the_short_way() {
    let (one, two) = (built(), built());
    let limits = ArchiveLimits::default();
    let session = validate(&two, &limits).unwrap();
    let mut changes = Changes::default();
    changes.set("count", Value::I64(1));
    let mut buffer = AlignedVec::new();
    assert_eq!(super::patch::patch(&mut buffer, &head(), &one, session, &changes), None);
    assert_eq!(super::patch::patch(&mut buffer, &head(), &two[..10], session, &changes), None);
    assert_eq!(super::patch::patch(&mut buffer, &head(), &two, session, &changes), Some(()));
    let small = ArchiveLimits { archive_bytes_max: two.len() - 1, ..limits };
    let error = Builder::new().build_over(&head(), &two, session, &changes, &small).unwrap_err();
    assert_eq!(error.kind, ErrorKind::TooLarge);
}

#[test]
fn bounds_are_errors_with_size_and_limit() {
    let mut builder = Builder::new();
    let limits = ArchiveLimits { archive_bytes_max: 4096, attributes_max: 3 };
    let mut refused = |head: &Head<'_>, attributes: &[(&str, ValueRef<'_>)]| {
        let error = builder.build(head, attributes.iter().copied(), &limits).unwrap_err();
        (error.kind, error.context)
    };
    let big = vec![0; 5000];
    let (kind, text) = refused(&head(), &[("a", ValueRef::Bytes(&big))]);
    assert_eq!(kind, ErrorKind::TooLarge);
    assert!(text.contains("5000") && text.contains("4096"), "{text}");
    // The parts fit, the whole does not.
    let (kind, text) = refused(&head(), &[("a", ValueRef::Bytes(&big[..4090]))]);
    assert_eq!(kind, ErrorKind::TooLarge);
    assert!(text.contains("4096"), "{text}");
    let one = ValueRef::I64(1);
    assert_eq!(refused(&head(), &[("a", one), ("b", one), ("c", one), ("d", one)]).0, ErrorKind::TooLarge);
    assert_eq!(refused(&head(), &[("n".repeat(129).as_str(), one)]).0, ErrorKind::TooLarge);
    assert_eq!(refused(&Head { owner: Some(&"o".repeat(129)), ..head() }, &[]).0, ErrorKind::TooLarge);
    assert_eq!(refused(&head(), &[("b", one), ("a", one)]).0, ErrorKind::Invalid);
    assert_eq!(refused(&head(), &[("a", one), ("a", one)]).0, ErrorKind::Invalid);
    assert_eq!(refused(&head(), &[("", one)]).0, ErrorKind::Invalid);
}

#[test]
fn restamp_changes_the_version_only() {
    let mut archive = OwnedArchive::copy_of(&built(), &ArchiveLimits::default()).unwrap();
    let version = Version { epoch: 99, counter: 5 };
    archive.restamp(version);
    assert_eq!(archive.session().version(), version);
    let same = Head { version, ..head() };
    let attributes = attributes();
    let mut builder = Builder::new();
    let expected = builder.build(&same, borrowed(&attributes), &ArchiveLimits::default()).unwrap();
    assert_eq!(archive.bytes(), expected);
    assert_eq!(restamp(&mut [0; 8], version).unwrap_err().kind, ErrorKind::Corrupt);
}

#[test]
fn misaligned_bytes_are_refused_and_copied_when_owned() {
    let bytes = built();
    let mut shifted = AlignedVec::<16>::new();
    shifted.push(0);
    shifted.extend_from_slice(&bytes);
    assert_eq!(
        validate(&shifted[1..], &ArchiveLimits::default()).map(|_| ()).unwrap_err().kind,
        ErrorKind::Corrupt
    );
    let owned = OwnedArchive::copy_of(&shifted[1..], &ArchiveLimits::default()).unwrap();
    assert_eq!(owned.session().id(), head().id);
}

#[test]
fn every_cut_archive_is_refused_or_whole() {
    let bytes = built();
    for end in 0..bytes.len() {
        let result = OwnedArchive::copy_of(&bytes[..end], &ArchiveLimits::default());
        assert!(result.is_err(), "{end} of {} bytes", bytes.len());
    }
}

/// Bytes that anyone may have written: nothing panics, and what is accepted keeps every bound.
#[test]
fn hostile_bytes_never_break_a_bound() {
    let good = built();
    let limits = ArchiveLimits::default();
    let mut accepted = 0;
    for seed in 1..=20_000_u64 {
        let mut rng = Rng(seed);
        let mut bytes = good.to_vec();
        match rng.below(4) {
            0 => bytes.iter_mut().for_each(|byte| *byte = rng.next() as u8),
            // The root and the attribute table are at the end: most damage goes there.
            1 => {
                let at = bytes.len() - 1 - rng.below(300) as usize;
                bytes[at] = rng.next() as u8;
            }
            _ => {
                for _ in 0..=rng.below(8) {
                    let at = rng.below(bytes.len() as u64) as usize;
                    bytes[at] ^= 1 << rng.below(8);
                }
            }
        }
        let Ok(owned) = OwnedArchive::copy_of(&bytes, &limits) else { continue };
        accepted += 1;
        let session = owned.session();
        assert!(session.attribute_count() <= limits.attributes_max);
        let mut before = String::new();
        for (name, value) in session.iter() {
            assert!(
                name > before.as_str() && name.len() <= crate::limits::ATTRIBUTE_NAME_BYTES_MAX,
                "seed {seed}"
            );
            before = name.to_owned();
            let size = match value {
                ValueRef::Bytes(bytes) => bytes.len(),
                ValueRef::Text(text) => std::str::from_utf8(text.as_bytes()).unwrap().len(),
                _ => 0,
            };
            assert!(size <= bytes.len(), "seed {seed}");
        }
    }
    assert!(accepted > 0, "damage to plain values leaves an archive");
}

#[test]
fn the_format_is_pinned_by_golden_bytes() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/archive.bin");
    crate::lease::testing::compare_golden(path, &built());
}
