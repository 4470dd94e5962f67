//! Many real processes work in one real segment, and `kill -9` hits them at random moments.
//!
//! Afterwards nothing may be locked, lost, mixed or leaked, and waiters must have gone on. The workers are
//! this test binary itself, started again with [`worker`] as its only test.

use rustix::process::{Pid, Signal, kill_process};
use selvage_fabric::cache::{
    BookIndex, Cache, CacheSpec, EntryInit, EntryState, Hold, Inserted, Opened, PushKind, Waited,
};
use selvage_fabric::error::ErrorKind;
use selvage_fabric::ident::{Incarnation, SessionId, Version};
use selvage_fabric::lease::LeaseGeometry;
use selvage_fabric::numbers::{NodeCounter, NodeTime};
use selvage_fabric::sync::LockFile;
use shared_memory::{Shmem, ShmemConf};
use std::ops::Deref;
use std::os::unix::process::ExitStatusExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const SESSIONS: u64 = 24;
const WORKERS: usize = 4;
const KILLS: u32 = 220;
const SERVER: Incarnation = Incarnation(70);

/// A cache, and words beside it that all processes share: each session's newest published version.
struct Shared {
    cache: Cache,
    newest: Shmem,
}

impl Shared {
    fn new(cache: Cache, name: &str) -> Self {
        let conf = || ShmemConf::new().os_id(format!("/{name}-newest")).size(8 * SESSIONS as usize);
        let newest = conf().create().or_else(|_| conf().open()).unwrap();
        Self { cache, newest }
    }

    fn newest(&self, number: u64) -> &AtomicU64 {
        assert!(number < SESSIONS);
        // SAFETY: the mapping has `SESSIONS` words, of which this is one.
        let word = unsafe { self.newest.as_ptr().cast::<u64>().add(number as usize) };
        // SAFETY: the mapping is page aligned and lives as long as `self`, and all that use it use atomics.
        unsafe { AtomicU64::from_ptr(word) }
    }

    /// What all workers have done, those that were killed included.
    fn operations(&self) -> u64 {
        self.counters()[NodeCounter::Commits as usize]
    }
}

impl Deref for Shared {
    type Target = Cache;
    fn deref(&self) -> &Cache {
        &self.cache
    }
}

// SAFETY: the mapping is only read by `newest`, which gives out atomics.
unsafe impl Sync for Shared {}

/// The segment and the folder of the lock file; both go when dropped.
struct Place {
    dir: tempfile::TempDir,
    name: String,
}

impl Place {
    fn new(what: &str) -> Self {
        let name = format!("selvage-kill-{}-{what}", std::process::id());
        Self { dir: tempfile::tempdir().unwrap(), name }
    }

    fn lock(&self) -> PathBuf {
        self.dir.path().join("lock")
    }

    fn create(&self) -> Shared {
        let spec = CacheSpec {
            node: "n1".into(),
            incarnation: Incarnation(1),
            sessions_max: 64,
            cache_bytes: 4 << 20,
            lease_bytes: 4 << 20,
            books: 2,
            archive_bytes_max: 64 << 10,
            processes_max: 16,
            waiters_max: 64,
            lock_hold_ms: 60_000,
        };
        let cache =
            Cache::create(&spec, &self.name, Arc::new(LockFile::open(&self.lock()).unwrap())).unwrap();
        let geometry = LeaseGeometry { slot_count: 64, heap_bytes: 4 << 20, chunk_bytes: 1 << 20 };
        cache.activate_book("s1", SERVER, 1, geometry).unwrap();
        Shared::new(cache, &self.name)
    }

    /// Starts a worker that does `task`.
    fn start(&self, task: &str) -> Child {
        Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "worker", "--nocapture", "--test-threads=1"])
            .env("SELVAGE_KILL_TASK", task)
            .env("SELVAGE_KILL_NAME", &self.name)
            .env("SELVAGE_KILL_LOCK", self.lock())
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        Cache::unlink(&self.name).unwrap();
        assert!(!Path::new("/dev/shm").join(&self.name).exists());
    }
}

fn id(number: u64) -> SessionId {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    bytes[8..].copy_from_slice(&number.to_le_bytes());
    SessionId(bytes)
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// Fills the archive of a session at a version: all its words say both. Cheap, so that most of a worker's
/// time is spent in the cache and most kills hit it there.
fn fill(bytes: &mut [u8], number: u64, counter: u64) {
    let word = (number << 48 | counter).to_le_bytes();
    bytes.chunks_mut(8).for_each(|chunk| chunk.copy_from_slice(&word[..chunk.len()]));
}

fn length(number: u64, counter: u64) -> usize {
    8 + (number * 7919 + counter * 977) as usize % 500
}

fn check_archive(bytes: &[u8], number: u64, counter: u64) {
    let mut expected = [0; 508];
    let expected = &mut expected[..length(number, counter)];
    fill(expected, number, counter);
    assert!(bytes == expected, "session {number} at version {counter} is mixed or torn");
}

/// Publishes the next version and pushes it (to a lease that exists in the book only).
fn commit(cache: &Shared, hold: &mut Hold, number: u64, random: &mut Random) {
    let cell = cache.newest(number);
    let info = hold.info().unwrap();
    if info.state == EntryState::Live {
        check_archive(hold.bytes(), number, info.version.counter);
    }
    let counter = info.version.counter.max(cell.load(Ordering::Acquire)) + 1;
    let bytes = length(number, counter);
    let version = Version { epoch: 1, counter };
    match hold.stage(bytes as u32) {
        Ok(staged) => fill(staged, number, counter),
        Err(error) if error.kind == ErrorKind::Full => return,
        Err(error) => panic!("{error}"),
    }
    hold.publish(version, counter).unwrap();
    cell.fetch_max(counter, Ordering::AcqRel);
    match hold.begin_push(BookIndex(0), PushKind::Archive(bytes as u32)) {
        Ok(push) => match random.below(20) {
            0 => hold.abandon_push(&push, None).unwrap(),
            1 => hold.cancel_push(&push).unwrap(),
            _ => hold.end_push(&push, version, counter).unwrap(),
        },
        // Slots in quarantine fill the lease until the parent releases them.
        Err(error) => assert_eq!(error.kind, ErrorKind::Full, "{error}"),
    }
}

fn destroy(hold: &mut Hold) {
    let info = hold.info().unwrap();
    let version = Version { epoch: 1, counter: info.version.counter + 1 };
    hold.remove(version).unwrap();
    for place in &hold.info().unwrap().places {
        match hold.free_place(place.index) {
            Ok(()) => {}
            Err(error) => assert_eq!(error.kind, ErrorKind::NotYet, "{error}"),
        }
    }
}

/// Opens for change, waiting as long as it takes but not for ever.
fn open(cache: &Shared, number: u64) -> Option<Hold> {
    match cache.open_exclusive(&id(number)).unwrap() {
        Opened::Granted(hold) => Some(hold),
        Opened::Waiting(hold) => {
            let waited = hold.wait(Instant::now() + Duration::from_secs(15)).unwrap();
            assert_eq!(waited, Waited::Granted, "a waiter of session {number} does not go on");
            Some(hold)
        }
        Opened::Busy => None,
        Opened::Missing => match cache.insert(&id(number), EntryInit::default()).unwrap() {
            Inserted::Granted(hold) => Some(hold),
            Inserted::Exists => None,
        },
    }
}

fn hammer(cache: &Shared, seed: u64) {
    let mut random = Random(seed);
    loop {
        let number = random.below(SESSIONS);
        if random.below(2) == 0 {
            let newest = cache.newest(number).load(Ordering::Acquire);
            if let Some(pin) = cache.open_read(&id(number)).unwrap() {
                let counter = pin.version().counter;
                assert!(
                    counter >= newest,
                    "session {number}: version {newest} was published, {counter} is there"
                );
                check_archive(pin.bytes(), number, counter);
            }
        } else if let Some(mut hold) = open(cache, number) {
            match hold.info().unwrap().state {
                EntryState::Gone => destroy(&mut hold),
                EntryState::Live if random.below(2) == 0 => destroy(&mut hold),
                _ => commit(cache, &mut hold, number, &mut random),
            }
        }
        cache.observe(NodeTime::Commit, random.below(1 << 20));
        cache.observe_push(random.below(2) as u32, random.below(1 << 20));
        cache.count(NodeCounter::Commits, 1);
    }
}

/// Not a test of its own: what the processes do that the other tests start.
#[test]
#[ignore = "started by the other tests as a process of its own"]
fn worker() {
    let Ok(task) = std::env::var("SELVAGE_KILL_TASK") else {
        panic!("this is a process of the other tests");
    };
    let name = std::env::var("SELVAGE_KILL_NAME").unwrap();
    let lock = LockFile::open(Path::new(&std::env::var_os("SELVAGE_KILL_LOCK").unwrap())).unwrap();
    let lock = Arc::new(lock);
    let cache = {
        let _creation = lock.lock_creation(Duration::from_secs(10)).unwrap();
        Shared::new(Cache::attach(&name, lock.clone()).unwrap(), &name)
    };
    // A parent that is gone kills nobody any more.
    std::thread::spawn({
        let parent = rustix::process::getppid();
        move || {
            while rustix::process::getppid() == parent {
                std::thread::sleep(Duration::from_millis(100));
            }
            std::process::exit(1);
        }
    });
    let seed = u64::from(std::process::id()) << 20 | u64::from(cache.process().generation);
    match task.as_str() {
        "hammer" => std::thread::scope(|scope| {
            for thread in 0..2 {
                let cache = &cache;
                // A thread that fails must end the process with an error, not leave the other one alone.
                scope.spawn(move || {
                    let result = catch_unwind(AssertUnwindSafe(|| hammer(cache, seed + thread)));
                    std::process::exit(if result.is_err() { 3 } else { 0 });
                });
            }
        }),
        _ => {
            let _hold = open(&cache, 1).unwrap();
            cache.count(NodeCounter::Commits, 1);
            std::thread::sleep(Duration::from_secs(60));
        }
    }
}

fn kill(child: &mut Child) {
    kill_process(Pid::from_child(child), Signal::KILL).unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.signal(), Some(9), "the worker ended by itself: {status} (its words are above)");
}

/// At rest after all workers were killed: whole, and all that is there can be used.
fn check(cache: &Shared) {
    cache.repair_dead().unwrap();
    let wrong = cache.verify().unwrap();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(cache.processes().len(), 1);
    cache.quarantined().iter().for_each(|slot| cache.release_quarantined(slot));
    for number in 0..SESSIONS {
        let newest = cache.newest(number).load(Ordering::Acquire);
        if let Some(pin) = cache.open_read(&id(number)).unwrap() {
            assert!(pin.version().counter >= newest);
            check_archive(pin.bytes(), number, pin.version().counter);
        }
        match cache.try_exclusive(&id(number)).unwrap() {
            Opened::Granted(_) | Opened::Missing => {}
            _ => panic!("session {number} is locked, and nobody is there"),
        }
    }
}

#[test]
fn kill_9_at_any_moment_leaves_the_cache_whole() {
    let place = Place::new("any");
    let cache = place.create();
    let mut random = Random(u64::from(std::process::id()));
    let start = Instant::now();
    let mut workers: Vec<_> = (0..WORKERS).map(|_| place.start("hammer")).collect();
    let mut counted = cache.operations();
    for kills in 1..=KILLS {
        std::thread::sleep(Duration::from_micros(random.below(30_000)));
        let victim = random.below(WORKERS as u64) as usize;
        kill(&mut workers[victim]);
        let counts = cache.operations();
        assert!(counts >= counted, "counters fall: {counted}, then {counts}");
        counted = counts;
        if kills % 20 == 0 {
            workers
                .iter_mut()
                .enumerate()
                .filter(|(at, _)| *at != victim)
                .for_each(|(_, worker)| kill(worker));
            check(&cache);
            workers = (0..WORKERS).map(|_| place.start("hammer")).collect();
        } else {
            workers[victim] = place.start("hammer");
        }
    }
    let before = cache.operations();
    let deadline = Instant::now() + Duration::from_secs(10);
    while cache.operations() < before + 1000 {
        assert!(Instant::now() < deadline, "the workers that are left do not go on");
        std::thread::sleep(Duration::from_millis(1));
    }
    workers.iter_mut().for_each(kill);
    check(&cache);
    for number in 0..SESSIONS {
        if let Opened::Granted(mut hold) = cache.open_exclusive(&id(number)).unwrap() {
            destroy(&mut hold);
        }
    }
    let stats = cache.stats().unwrap();
    assert_eq!((stats.sessions, stats.others, stats.bytes_used), (0, 0, 0));
    assert_eq!(cache.verify().unwrap(), [""; 0]);
    // A worker that is killed has timed at most one operation of each thread that it has not counted.
    let (operations, numbers) = (cache.operations(), cache.numbers());
    let timed = numbers.times[NodeTime::Commit as usize].count();
    assert!((operations..=operations + 2 * u64::from(KILLS + 200)).contains(&timed), "{operations}, {timed}");
    println!("{KILLS} kills, {operations} operations in {:?}", start.elapsed());
}

#[test]
fn the_next_waiter_has_the_lock_100_ms_after_the_holder_was_killed() {
    let place = Place::new("wait");
    let cache = place.create();
    let mut times = Vec::new();
    for round in 1..=15 {
        let mut holder = place.start("hold");
        let deadline = Instant::now() + Duration::from_secs(10);
        while cache.operations() < round {
            assert!(Instant::now() < deadline, "the holder does not come");
            std::thread::sleep(Duration::from_millis(1));
        }
        let Opened::Waiting(hold) = cache.open_exclusive(&id(1)).unwrap() else { panic!("not held") };
        let killed = std::thread::scope(|scope| {
            let killer = scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(7));
                let killed = Instant::now();
                kill(&mut holder);
                killed
            });
            assert_eq!(hold.wait(Instant::now() + Duration::from_secs(10)).unwrap(), Waited::Granted);
            let granted = Instant::now();
            granted.saturating_duration_since(killer.join().unwrap())
        });
        times.push(killed);
    }
    times.sort();
    // The median stands for the mechanism; the worst also has what the machine does meanwhile.
    assert!(times[times.len() / 2] < Duration::from_millis(100), "{times:?}");
    assert!(times.iter().all(|time| *time < Duration::from_secs(2)), "{times:?}");
    println!("from kill to grant: {times:?}");
}
