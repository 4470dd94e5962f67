//! The fence: a lease is sealed while its node writes at full rate. After that not one byte of it changes,
//! what was acked is found, and the node learns it.
//!
//! `SELVAGE_FENCE_TRIES` says how often (500 in CI, 10,000 in the long run), `SELVAGE_FENCE_SEED` which
//! moments.

use super::pushes::Story;
use super::segment::Segment;
use super::support::*;
use selvage_fabric::archive::ArchiveLimits;
use selvage_fabric::lease::LeaseIndex;
use selvage_fabric::transport::memory::ServerLease;
use selvage_fabric::transport::verbs::{Door, PeerId, Verbs, VerbsLink};
use selvage_fabric::transport::{FailKind, Link, Outcome, Posted, PushId};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Slots that are pushed to at once: writes in flight.
const SLOTS: usize = 8;
/// Versions that each slot can reach: more than a try has time for, unless its sealer stands still. Then the
/// last one is pushed again and again.
const VERSIONS: usize = 300;
const ARCHIVE_BYTES: usize = 900;
/// How long a sealed lease is watched.
const WATCH: Duration = Duration::from_millis(25);
/// Longest wait of the harness.
const PATIENCE: Duration = Duration::from_secs(20);

/// How a lease is ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum How {
    /// As the product does it.
    Fence,
    /// Queue pairs to the error state, nothing else.
    ErrorStateOnly,
}

/// What a writer did.
#[derive(Default)]
struct Deeds {
    /// Versions acked, by slot.
    acked: [AtomicU64; SLOTS],
    /// All of them.
    acks: AtomicU64,
    /// Set when the seal has returned.
    sealed: AtomicBool,
}

/// How a writer's life ended.
struct Death {
    at: Instant,
    kind: FailKind,
    /// Pushes that were posted after the seal had returned, and acked.
    acked_late: u32,
    under_way: usize,
}

/// Pushes to all slots, one push each at a time, until the link fails; then looks whether it stays so.
fn write(link: &VerbsLink, stories: &[Story<'_>], deeds: &Deeds) -> Option<Death> {
    let mut open: [Option<(PushId, bool)>; SLOTS] = [None; SLOTS];
    let mut version = [0_u64; SLOTS];
    let mut acked_late = 0;
    let begin = Instant::now();
    let kind = 'life: loop {
        if begin.elapsed() > PATIENCE {
            return None;
        }
        for slot in 0..SLOTS {
            if let Some((id, late)) = open[slot] {
                let Some(outcome) = link.poll(id) else { continue };
                open[slot] = None;
                match outcome {
                    Outcome::Acked => {
                        deeds.acked[slot].store(version[slot], Ordering::Release);
                        deeds.acks.fetch_add(1, Ordering::Release);
                        acked_late += u32::from(late);
                    }
                    Outcome::Failed(kind) => break 'life kind,
                    Outcome::Sealed => break 'life FailKind::Revoked,
                }
            }
            let next = (version[slot] + 1).min(VERSIONS as u64);
            let push = stories[slot].push(next).expect("a version of the story");
            let late = deeds.sealed.load(Ordering::Acquire);
            match link.post(&push) {
                Posted::Pending(id) => {
                    version[slot] = next;
                    open[slot] = Some((id, late));
                }
                Posted::Done(Outcome::Failed(kind)) => break 'life kind,
                Posted::Done(other) => panic!("a push ended at once with {other:?}"),
            }
        }
    };
    let at = Instant::now();
    // A zombie goes on trying: everything under way must fail, and nothing more is taken.
    let under_way = open.iter().flatten().count();
    // The pushes under way end, too: each has its completion.
    while open.iter().any(Option::is_some) && begin.elapsed() < PATIENCE {
        for (slot, open) in open.iter_mut().enumerate() {
            let Some((id, late)) = *open else { continue };
            match link.poll(id) {
                Some(Outcome::Acked) => {
                    deeds.acked[slot].store(version[slot], Ordering::Release);
                    acked_late += u32::from(late);
                    *open = None;
                }
                Some(_) => *open = None,
                None => {}
            }
        }
    }
    assert!(open.iter().all(Option::is_none), "a push of a broken link never ends");
    for story in stories {
        if let Some(push) = story.push(1) {
            let posted = link.post(&push);
            assert_eq!(posted, Posted::Done(Outcome::Failed(FailKind::NotPosted)), "a zombie posts");
        }
    }
    assert!(link.is_broken());
    Some(Death { at, kind, acked_late, under_way })
}

fn snapshot(lease: &ServerLease) -> Vec<u8> {
    let mut bytes = vec![0; lease.bytes() as usize];
    let read = rustix::io::pread(lease.fd(), &mut bytes, 0).unwrap();
    assert_eq!(read, bytes.len());
    bytes
}

/// A sealed lease that is being watched.
struct Watched {
    lease: ServerLease,
    _door: Door,
    then: Vec<u8>,
    since: Instant,
}

impl Watched {
    /// Bytes that have changed.
    fn changed(&self) -> usize {
        std::thread::sleep(WATCH.saturating_sub(self.since.elapsed()));
        let now = snapshot(&self.lease);
        if now == self.then { 0 } else { now.iter().zip(&self.then).filter(|(a, b)| a != b).count() }
    }
}

#[derive(Default)]
struct Tally {
    tries: usize,
    /// Tries in which writes were under way when the lease was ended.
    under_way: usize,
    changed: usize,
    acked_late: u32,
    learned: Vec<Duration>,
    kinds: [usize; 3],
}

impl Tally {
    fn print(&mut self, how: How) {
        self.learned.sort();
        let last = self.learned.len() - 1;
        println!(
            "{how:?}: {} tries, {} with writes under way; memory changed afterwards in {}; \
             the writer knew after p50 {:?}, p99 {:?}, max {:?}; revoked {}, disconnected {}, not posted {}; \
             acked late {}",
            self.tries,
            self.under_way,
            self.changed,
            self.learned[last / 2],
            self.learned[last * 99 / 100],
            self.learned[last],
            self.kinds[0],
            self.kinds[1],
            self.kinds[2],
            self.acked_late,
        );
    }
}

/// Ends `tries` leases, each in the middle of a writer's work.
fn harness(how: How, tries: usize, seed: u64) -> Tally {
    let (node, server) = (Verbs::new(&over(NODE_DEVICE)), Verbs::new(&over(SERVER_DEVICE)));
    let segment = Segment::new();
    let stories: Vec<_> =
        (0..SLOTS as u32).map(|slot| Story::new(&segment, slot, VERSIONS, ARCHIVE_BYTES)).collect();
    let mut tally = Tally::default();
    let mut watched: VecDeque<Watched> = VecDeque::new();
    let mut chance = seed;
    let judge = |watched: Watched, tally: &mut Tally| {
        let changed = watched.changed();
        tally.changed += usize::from(changed > 0);
        assert!(how != How::Fence || changed == 0, "{changed} bytes changed after the seal (seed {seed})");
    };
    for _ in 0..tries {
        chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let lease = small_lease("n1");
        let door = Door::open(&server, &lease, None, ARCHIVE_BYTES_MAX).unwrap();
        let link = connect(&node, &segment.region, &door, &lease, PeerId(1)).unwrap();
        let deeds = Deeds::default();
        let (begun, death) = std::thread::scope(|scope| {
            let writer = scope.spawn(|| write(&link, &stories, &deeds));
            let begin = Instant::now();
            while deeds.acks.load(Ordering::Acquire) < chance >> 33 & 63 {
                assert!(begin.elapsed() < PATIENCE, "the writer gets nowhere: {}", link.detail());
                std::hint::spin_loop();
            }
            let begun = Instant::now();
            match how {
                How::Fence => {
                    lease.seal();
                    door.seal().unwrap();
                }
                How::ErrorStateOnly => door.fence_badly().unwrap(),
            }
            let then = snapshot(&lease);
            deeds.sealed.store(true, Ordering::Release);
            let since = Instant::now();
            if how == How::Fence {
                assert!(lease.settle(8).unwrap(), "a sealed lease still changes");
                judge_scan(&lease, &stories);
            }
            watched.push_back(Watched { lease, _door: door, then, since });
            (begun, writer.join().unwrap().expect("the writer is told in time"))
        });
        tally.tries += 1;
        tally.under_way += usize::from(death.under_way > 0);
        tally.acked_late += death.acked_late;
        tally.learned.push(death.at.saturating_duration_since(begun));
        tally.kinds[match death.kind {
            FailKind::Revoked => 0,
            FailKind::NotPosted => 2,
            _ => 1,
        }] += 1;
        if how == How::Fence {
            let lease = &watched.back().unwrap().lease;
            judge_acks(lease, &stories, &deeds);
        }
        if watched.len() > 4 {
            judge(watched.pop_front().unwrap(), &mut tally);
        }
    }
    watched.into_iter().for_each(|watched| judge(watched, &mut tally));
    tally
}

/// All that the scan finds is whole.
fn judge_scan(lease: &ServerLease, stories: &[Story<'_>]) {
    let limits = ArchiveLimits::default();
    let report = lease.scan(&limits).unwrap();
    let index = LeaseIndex::new(&report);
    for story in stories {
        if let Some(copy) = index.find(&story.id) {
            assert_eq!(lease.fetch(copy, &limits).unwrap(), story.archive_of(copy), "{copy:?}");
        }
    }
}

/// Every commit that was acked is found, in this version or a later one.
fn judge_acks(lease: &ServerLease, stories: &[Story<'_>], deeds: &Deeds) {
    let index = LeaseIndex::new(&lease.scan(&ArchiveLimits::default()).unwrap());
    for (story, acked) in stories.iter().zip(&deeds.acked) {
        let acked = acked.load(Ordering::Acquire);
        let found = index.find(&story.id).map_or(0, |copy| copy.version.counter);
        assert!(found >= acked, "{} was acked at version {acked} and is found at {found}", story.id);
        assert!(found <= acked + 1, "{} is found at {found}, and {acked} was the last acked", story.id);
    }
}

fn tries(name: &str, otherwise: usize) -> usize {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap())
}

#[test]
fn not_a_byte_changes_after_a_seal() {
    let count = tries("SELVAGE_FENCE_TRIES", 500);
    let mut tally = harness(How::Fence, count, tries("SELVAGE_FENCE_SEED", 1) as u64);
    tally.print(How::Fence);
    assert_eq!(tally.tries, count);
    assert_eq!((tally.changed, tally.acked_late), (0, 0));
    assert!(tally.under_way * 10 >= count * 8, "writes were under way in {} of {count}", tally.under_way);
}

/// The harness would notice: without waiting for references, memory changes afterwards now and then. How
/// often is chance (1 of 920 and 1 of 30 were seen, and none of 100), so the number is told and not asserted.
#[test]
fn control_error_state_alone_is_no_fence() {
    let mut tally = harness(How::ErrorStateOnly, tries("SELVAGE_CONTROL_TRIES", 20), 2);
    tally.print(How::ErrorStateOnly);
    assert!(tally.tries > 0);
}
