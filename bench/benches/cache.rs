//! The cache without a node around it: what opening, reading, locking and publishing cost in one process.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use selvage_fabric::cache::{BookIndex, Cache, CacheSpec, EntryInit, Hold, Inserted, Opened, PushKind};
use selvage_fabric::ident::{Incarnation, SessionId, Version};
use selvage_fabric::lease::LeaseGeometry;
use std::hint::black_box;

const SESSIONS: u64 = 60_000;
const ARCHIVE_BYTES: u32 = 1024;

fn id(number: u64) -> SessionId {
    let mut id = SessionId::default();
    id.0[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    id.0[8..].copy_from_slice(&number.to_le_bytes());
    id
}

fn version(counter: u64) -> Version {
    Version { epoch: 1, counter }
}

/// A cache of the default size with `SESSIONS` sessions, and a lease book.
fn filled() -> (Cache, BookIndex) {
    let spec = CacheSpec {
        node: "n1".into(),
        incarnation: Incarnation(1),
        sessions_max: 65_536,
        cache_bytes: 128 << 20,
        lease_bytes: 128 << 20,
        books: 4,
        archive_bytes_max: 1 << 20,
        processes_max: 256,
        waiters_max: 64,
        lock_hold_ms: 60_000,
    };
    let cache = Cache::anonymous(&spec).unwrap();
    let geometry = LeaseGeometry { slot_count: 65_536, heap_bytes: 128 << 20, chunk_bytes: 1 << 20 };
    let book = cache.activate_book("s1", Incarnation(2), 1, geometry).unwrap();
    for number in 0..SESSIONS {
        let Inserted::Granted(mut hold) = cache.insert(&id(number), EntryInit::default()).unwrap() else {
            panic!("the id is new");
        };
        hold.stage(ARCHIVE_BYTES).unwrap().fill(1);
        hold.publish(version(1), 1).unwrap();
    }
    (cache, book)
}

fn open(cache: &Cache, number: u64) -> Hold {
    match cache.open_exclusive(&id(number)).unwrap() {
        Opened::Granted(hold) => hold,
        _ => panic!("nobody else has it"),
    }
}

fn cache(c: &mut Criterion) {
    let (cache, book) = filled();
    let mut group = c.benchmark_group("cache");
    group.throughput(Throughput::Elements(1));
    let read = |number| black_box(cache.open_read(&id(number)).unwrap().unwrap().bytes()[5]);
    group.bench_function("open, read and close one session", |b| b.iter(|| read(7)));
    group.bench_function("open, read and close any of 60,000", |b| {
        let mut number = 0;
        b.iter(|| {
            number = (number + 7919) % SESSIONS;
            read(number)
        });
    });
    group.bench_function("lock and release", |b| b.iter(|| open(&cache, 7).release()));
    let mut hold = open(&cache, 7);
    let mut counter = 1;
    group.bench_function("stage and publish 1 KiB", |b| {
        b.iter(|| {
            counter += 1;
            hold.stage(ARCHIVE_BYTES).unwrap().fill(counter as u8);
            hold.publish(version(counter), counter).unwrap();
        });
    });
    group.bench_function("begin and end a push", |b| {
        b.iter(|| {
            let push = hold.begin_push(book, PushKind::Archive(ARCHIVE_BYTES)).unwrap();
            hold.end_push(&push, version(counter), counter).unwrap();
        });
    });
    group.finish();
}

criterion_group!(benches, cache);
criterion_main!(benches);
