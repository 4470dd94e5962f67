//! Tests of the cache on private memory, where the test says which process dies when.

mod books;
mod crash;
mod files;
mod locks;
mod tallies;

use super::layout::Word;
use super::*;
use crate::ident::Version;
use std::time::Instant;

pub fn spec() -> CacheSpec {
    CacheSpec {
        node: "n1".into(),
        incarnation: Incarnation(7 << 32 | 1),
        sessions_max: 300,
        cache_bytes: 4 << 20,
        lease_bytes: 2 << 20,
        books: 4,
        archive_bytes_max: 1 << 20,
        processes_max: 8,
        waiters_max: 3,
        lock_hold_ms: 60_000,
    }
}

pub fn id(number: u64) -> SessionId {
    // Mixed, so that shards and buckets differ.
    let hash = xxhash_rust::xxh3::xxh3_128(&number.to_le_bytes());
    SessionId(hash.to_le_bytes())
}

pub fn version(counter: u64) -> Version {
    Version { epoch: 1, counter }
}

pub fn geometry() -> LeaseGeometry {
    LeaseGeometry { slot_count: 300, heap_bytes: 2 << 20, chunk_bytes: 1 << 20 }
}

pub fn granted(opened: Opened) -> Hold {
    match opened {
        Opened::Granted(hold) => hold,
        _ => panic!("not granted at once"),
    }
}

pub fn waiting(opened: Opened) -> Hold {
    match opened {
        Opened::Waiting(hold) => hold,
        _ => panic!("not queued"),
    }
}

/// A new session whose archive is `bytes` times `fill`; locked.
pub fn insert(cache: &Cache, number: u64, fill: u8, bytes: usize) -> Hold {
    let Inserted::Granted(mut hold) = cache.insert(&id(number), EntryInit::default()).unwrap() else {
        panic!("exists");
    };
    write(&mut hold, 1, fill, bytes);
    hold
}

pub fn write(hold: &mut Hold, counter: u64, fill: u8, bytes: usize) {
    hold.stage(bytes as u32).unwrap().fill(fill);
    hold.publish(version(counter), 1000 + counter).unwrap();
}

/// Nothing is wrong.
pub fn sound(cache: &Cache) {
    let wrong = cache.verify().unwrap();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_session_is_inserted_read_changed_touched_and_removed() {
    let cache = Cache::anonymous(&spec()).unwrap();
    assert!(matches!(cache.open_exclusive(&id(1)).unwrap(), Opened::Missing));
    let init = EntryInit { created_ms: 5, absolute_ms: 99, adopted: true };
    let Inserted::Granted(mut hold) = cache.insert(&id(1), init).unwrap() else { panic!() };
    assert!(matches!(cache.insert(&id(1), init).unwrap(), Inserted::Exists));
    assert!(cache.open_read(&id(1)).unwrap().is_none(), "nothing is published yet");
    assert_eq!(hold.publish(version(1), 9).unwrap_err().kind, ErrorKind::Invalid);
    write(&mut hold, 1, 0xaa, 1000);
    let info = hold.info().unwrap();
    assert_eq!((info.state, info.version, info.archive_bytes), (EntryState::Live, version(1), 1000));
    assert_eq!((info.created_ms, info.absolute_ms, info.adopted, info.locked), (5, 99, true, true));
    hold.release();

    let pin = cache.open_read(&id(1)).unwrap().unwrap();
    assert_eq!((pin.bytes(), pin.version(), pin.expiry_ms()), (&[0xaa; 1000][..], version(1), 1001));
    let mut hold = granted(cache.open_exclusive(&id(1)).unwrap());
    assert_eq!(hold.bytes(), [0xaa; 1000]);
    hold.touch(version(2), 5000).unwrap();
    assert_eq!((hold.info().unwrap().expiry_ms, hold.bytes()), (5000, &[0xaa; 1000][..]));
    let stats = cache.stats().unwrap();
    assert_eq!((stats.sessions, stats.others, stats.safe, stats.bytes_used), (1, 0, [1, 0, 0], 1024));
    hold.remove(version(3)).unwrap();
    assert_eq!(pin.bytes(), [0xaa; 1000], "a pinned archive outlives its session");
    assert_eq!(hold.touch(version(4), 1).unwrap_err().kind, ErrorKind::Gone);
    hold.stage(1).unwrap();
    assert_eq!(hold.publish(version(4), 1).unwrap_err().kind, ErrorKind::Gone, "gone is gone");
    assert_eq!(cache.find(&id(1)).unwrap().unwrap().state, EntryState::Gone);
    hold.release();
    sound(&cache);
    drop(pin);
    assert!(cache.find(&id(1)).unwrap().is_none());
    sound(&cache);
    assert_eq!(cache.stats().unwrap(), CacheStats { bytes_total: 4 << 20, ..CacheStats::default() });
}

#[test]
fn an_entry_that_was_never_published_goes_with_its_hold_and_waiters_take_it_on() {
    let cache = Cache::anonymous(&spec()).unwrap();
    let Inserted::Granted(hold) = cache.insert(&id(1), EntryInit::default()).unwrap() else { panic!() };
    let next = waiting(cache.open_exclusive(&id(1)).unwrap());
    drop(hold);
    assert_eq!(next.state(), HoldState::Granted);
    assert_eq!(next.info().unwrap().state, EntryState::Adopting);
    drop(next);
    assert!(cache.find(&id(1)).unwrap().is_none());
    sound(&cache);
}

#[test]
fn readers_keep_the_archive_that_they_opened() {
    let cache = Cache::anonymous(&spec()).unwrap();
    let mut hold = insert(&cache, 1, 1, 3000);
    let first = cache.open_read(&id(1)).unwrap().unwrap();
    let also_first = cache.open_read(&id(1)).unwrap().unwrap();
    write(&mut hold, 2, 2, 3000);
    let second = cache.open_read(&id(1)).unwrap().unwrap();
    for counter in 3..40 {
        write(&mut hold, counter, counter as u8, 3000);
        assert!(first.bytes() == [1; 3000] && also_first.bytes() == [1; 3000] && second.bytes() == [2; 3000]);
    }
    drop(first);
    assert_eq!(also_first.bytes(), [1; 3000]);
    sound(&cache);
    drop((also_first, second));
    sound(&cache);
    assert_eq!(
        cache.inner.segment.heap.iter(cache.inner.segment.heap_size).count(),
        1,
        "old blocks are free"
    );
}

#[test]
fn full_is_an_error_with_its_limit_and_changes_nothing() {
    let cache = Cache::anonymous(&spec()).unwrap();
    let mut hold = insert(&cache, 0, 9, 100);
    let error = hold.stage((1 << 20) + 1).unwrap_err();
    assert_eq!(error.kind, ErrorKind::TooLarge);
    assert!(error.to_string().contains("1048577") && error.to_string().contains("1048576"));
    // Three chunks are left beside the one that holds the small archive.
    let large: Vec<_> = (1..=3).map(|number| insert(&cache, number, 1, 1 << 20)).collect();
    let error = hold.stage(1 << 20).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Full);
    assert!(error.to_string().contains("4194304"));
    assert_eq!(hold.bytes(), [9; 100]);
    drop(large);
    assert_eq!(hold.stage(1 << 20).unwrap_err().kind, ErrorKind::Full, "nothing that lives is evicted");

    for number in 4..300 {
        insert(&cache, number, 1, 10).release();
    }
    let error = cache.insert(&id(300), EntryInit::default()).err().unwrap();
    assert_eq!(error.kind, ErrorKind::Full);
    assert!(error.to_string().contains("300"));
    sound(&cache);
}

#[test]
fn nearly_full_tables_do_not_slow_down() {
    let spec = CacheSpec { sessions_max: 50_000, cache_bytes: 16 << 20, ..spec() };
    let cache = Cache::anonymous(&spec).unwrap();
    for number in 0..50_000 {
        insert(&cache, number, 1, 10).release();
    }
    let start = Instant::now();
    for number in 50_000..55_000 {
        assert!(cache.insert(&id(number), EntryInit::default()).is_err());
        let mut hold = granted(cache.open_exclusive(&id(number - 50_000)).unwrap());
        hold.remove(version(2)).unwrap();
        hold.release();
        insert(&cache, number, 1, 10).release();
    }
    // Quadratic work would be 5,000 times 50,000 words, twice over: seconds even when optimised.
    assert!(start.elapsed().as_secs() < 3, "{:?}", start.elapsed());
    sound(&cache);
}

#[test]
fn r3_a_poisoned_segment_serves_nothing() {
    let scenario = || {
        let cache = Cache::anonymous(&spec()).unwrap();
        let mut hold = insert(&cache, 1, 1, 10);
        let waiter = waiting(cache.open_exclusive(&id(1)).unwrap());
        hold.stage(10).unwrap();
        let other = cache.sibling().unwrap();
        other.poison();
        let lost = |result: Result<()>, what: &str| match result {
            Err(error) if error.kind == ErrorKind::OwnershipLost => Ok(()),
            other => Err(format!("{what} on a poisoned segment: {other:?}")),
        };
        lost(hold.publish(version(2), 2), "publish")?;
        lost(hold.touch(version(2), 2), "touch")?;
        lost(hold.remove(version(2)), "remove")?;
        lost(hold.check(), "check")?;
        lost(waiter.wait(Instant::now()).map(drop), "wait")?;
        lost(cache.open_read(&id(1)).map(drop), "open_read")?;
        lost(cache.open_exclusive(&id(1)).map(drop), "open_exclusive")?;
        lost(cache.insert(&id(2), EntryInit::default()).map(drop), "insert")?;
        lost(cache.sibling().map(drop), "attach")?;
        lost(hold.begin_push(BookIndex(0), PushKind::Bare).map(drop), "begin_push")
    };
    #[cfg(feature = "mutants")]
    rules::assert_teeth(Rule::R3Incarnation, scenario);
    #[cfg(not(feature = "mutants"))]
    scenario().unwrap();
}

#[test]
fn views_are_whole_and_survive_a_writer_that_dies() {
    let cache = Cache::anonymous(&spec()).unwrap();
    assert!(cache.view().is_none() && cache.view_sequence() == 0);
    let epoch = |number| Epoch { term: 3, number };
    cache.set_view(epoch(1), b"one").unwrap();
    // A writer that died half way has written to the other buffer only.
    let next = &cache.inner.segment.views[0];
    next.number.write(99);
    next.words[0].write(u64::MAX);
    assert_eq!(cache.view().unwrap(), (epoch(1), b"one".to_vec()));
    let error = cache.set_view(epoch(2), &vec![0; VIEW_BYTES_MAX + 1]).unwrap_err();
    assert_eq!(error.kind, ErrorKind::TooLarge);

    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = cache.sibling().unwrap();
        scope.spawn(|| {
            let reader = reader;
            let mut seen = 0;
            while !stop.load(Ordering::Relaxed) {
                let (epoch, bytes) = reader.view().unwrap();
                assert!(epoch.number >= seen, "views go forward");
                seen = epoch.number;
                assert!(seen == 1 || bytes == vec![seen as u8; 100 + seen as usize], "a mixed view");
            }
        });
        for number in 2..3000 {
            cache.set_view(epoch(number), &vec![number as u8; 100 + number as usize]).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn states_mandate_and_alarms() {
    let cache = Cache::anonymous(&spec()).unwrap();
    let other = cache.sibling().unwrap();
    assert_eq!(other.spec(), &spec());
    cache.set_draining(true);
    assert_eq!(other.state(), SegmentState::Draining);
    cache.set_draining(false);
    cache.set_mandate_until_ns(50);
    cache.set_mandate_until_ns(40);
    assert_eq!(other.mandate_until_ns(), 50, "a mandate only moves forward");
    cache.raise_unprotected();
    assert_eq!(other.unprotected(), 1);
    let bell = other.doorbell();
    cache.poison();
    cache.set_draining(true);
    assert_eq!(cache.state(), SegmentState::Poisoned, "poisoned is for ever");
    assert_ne!(other.wait_doorbell(bell, Duration::from_secs(5)), bell);
}
