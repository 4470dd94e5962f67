//! What every transport must do, as a suite that runs against any of them: [`run`] a [`Factory`].

use super::{ChecksumKind, FailKind, Link, Outcome, Posted, Push, PushId, ServerEnd};
use crate::archive::{ArchiveLimits, Builder, Head, ValueRef, validate};
use crate::error::ErrorKind;
use crate::ident::{Incarnation, SessionId, Version};
use crate::lease::{
    ArchiveChecksum, BlockOffset, Cell, CellState, LeaseGeometry, LeaseHeader, LeaseIndex, Sequence,
    SlotIndex,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Longest wait for a push, bound of the suite.
const PUSH_WAIT: Duration = Duration::from_secs(10);

/// Opens fresh leases of one transport.
pub trait Factory: Sync {
    /// A lease and a link to it.
    ///
    /// # Errors
    /// Why it cannot; the suite fails.
    fn open(&self, header: &LeaseHeader) -> crate::error::Result<(Arc<dyn ServerEnd>, Box<dyn Link>)>;

    /// Puts an archive where the links of this factory send from, which for most is anywhere. It stays until
    /// its push has ended.
    fn place<'a>(&'a self, archive: &'a [u8]) -> &'a [u8] {
        archive
    }
}

type Check = std::result::Result<(), String>;

type Case = fn(&dyn Factory) -> Check;

/// The cases, by name.
const CASES: &[(&str, Case)] = &[
    ("a push is read back", a_push_is_read_back),
    ("the newest cell of a pair counts", the_newest_cell_counts),
    ("sequences wrap", sequences_wrap),
    ("a touch names the same block", a_touch_names_the_same_block),
    ("tombstones and moves need no block", cells_without_blocks),
    ("a slot passes to another session", a_slot_passes_to_another_session),
    ("the largest archive fits at the end of the heap", the_largest_archive_fits),
    ("out of bounds is refused", out_of_bounds_is_refused),
    ("a sealed lease acks nothing", a_sealed_lease_acks_nothing),
    ("acked before the seal is in the scan", acked_before_the_seal_is_in_the_scan),
    ("threads push to different slots", threads_push_to_different_slots),
    ("many pushes are under way at once", many_pushes_are_under_way),
    ("a push that was given up bothers nobody", a_push_given_up_bothers_nobody),
    ("strange numbers name no push", strange_numbers_name_no_push),
    ("leases are apart", leases_are_apart),
    ("heartbeats pass", heartbeats_pass),
    ("reading needs the seal", reading_needs_the_seal),
];

/// Runs every case; returns how many ran.
///
/// # Errors
/// The first case that failed, and why.
pub fn run(factory: &dyn Factory) -> std::result::Result<usize, String> {
    for (name, case) in CASES {
        case(factory).map_err(|why| format!("{name}: {why}"))?;
    }
    Ok(CASES.len())
}

/// A lease under test.
struct Rig<'f> {
    factory: &'f dyn Factory,
    server: Arc<dyn ServerEnd>,
    link: Box<dyn Link>,
}

/// What a case pushes.
#[derive(Clone, Copy)]
struct Session {
    id: u8,
    counter: u64,
    /// Bytes of the one attribute.
    bytes: usize,
}

impl<'f> Rig<'f> {
    fn open(factory: &'f dyn Factory) -> std::result::Result<Self, String> {
        let header = LeaseHeader {
            geometry: LeaseGeometry { slot_count: 32, heap_bytes: 4 << 20, chunk_bytes: 1 << 20 },
            node: "n1".to_owned(),
            node_incarnation: Incarnation(3),
            server_incarnation: Incarnation(4),
        };
        let (server, link) = factory.open(&header).map_err(text)?;
        expect(link.geometry() == header.geometry, "the link has the lease's geometry")?;
        expect(link.server_incarnation() == header.server_incarnation, "the link knows its server")?;
        Ok(Self { factory, server, link })
    }

    fn push_live(
        &self,
        slot: u32,
        sequence: u32,
        block: u32,
        session: Session,
    ) -> std::result::Result<Outcome, String> {
        let archive = archive(session)?;
        let cell = self.live(sequence, block, session, &archive);
        self.push(slot, &cell, Some((BlockOffset(block), &archive)))
    }

    fn live(&self, sequence: u32, block: u32, session: Session, archive: &[u8]) -> Cell {
        Cell {
            id: SessionId([session.id; 16]),
            sequence: Sequence(sequence),
            version: Version { epoch: 1, counter: session.counter },
            state: CellState::Live,
            block: BlockOffset(block),
            archive_bytes: archive.len() as u32,
            expiry_ms: 1000 + session.counter,
            checksum: match self.link.checksum_kind() {
                ChecksumKind::None => ArchiveChecksum::None,
                ChecksumKind::Xxh3 => ArchiveChecksum::xxh3(archive),
            },
        }
    }

    fn push(
        &self,
        slot: u32,
        cell: &Cell,
        block: Option<(BlockOffset, &[u8])>,
    ) -> std::result::Result<Outcome, String> {
        match self.post(slot, cell, block) {
            Posted::Done(outcome) => Ok(outcome),
            Posted::Pending(id) => self.end_of(id),
        }
    }

    fn post(&self, slot: u32, cell: &Cell, block: Option<(BlockOffset, &[u8])>) -> Posted {
        let bytes = cell.encode();
        let block = block.map(|(block, archive)| (block, self.factory.place(archive)));
        self.link.post(&Push { slot: SlotIndex(slot), sequence: cell.sequence, cell: &bytes, block })
    }

    /// Polls, and sleeps now and then.
    fn end_of(&self, id: PushId) -> std::result::Result<Outcome, String> {
        let begin = Instant::now();
        for look in 1_u32.. {
            if let Some(outcome) = self.link.poll(id) {
                return Ok(outcome);
            }
            expect(begin.elapsed() < PUSH_WAIT, "a push ends in time")?;
            if look.is_multiple_of(1000) {
                self.link.wait(id, Duration::from_millis(100));
            }
        }
        Err("a push never ended".to_owned())
    }

    /// What a push into a sealed lease may end with: a link that is told so says it, one whose memory was
    /// taken away knows only that.
    fn expect_refused(&self, outcome: Outcome) -> Check {
        let refused = match outcome {
            Outcome::Sealed => true,
            Outcome::Failed(FailKind::Revoked | FailKind::NotPosted) => self.link.is_broken(),
            // The lease's end may reach the card before the reason does.
            Outcome::Failed(FailKind::Disconnected) => self.link.sends_in_place() && self.link.is_broken(),
            _ => false,
        };
        expect(refused, &format!("a late push is refused, and did not end with {outcome:?}"))
    }

    /// Seals and indexes.
    fn sealed(&self) -> std::result::Result<LeaseIndex, String> {
        self.server.seal();
        let report = self.server.scan(&ArchiveLimits::default()).map_err(text)?;
        expect(report.bad.total() == 0, &format!("no cell is bad: {:?}", report.bad))?;
        Ok(LeaseIndex::new(&report))
    }

    /// The session is in the index at this version, and its archive is what was pushed at `archived`.
    fn expect_archive(&self, index: &LeaseIndex, session: Session, archived: u64) -> Check {
        let copy = index
            .find(&SessionId([session.id; 16]))
            .ok_or_else(|| format!("session {} is not in the index", session.id))?;
        let version = Version { epoch: 1, counter: session.counter };
        expect(copy.live && copy.version == version, &format!("{copy:?} is live at {version}"))?;
        let bytes = self.server.fetch(copy, &ArchiveLimits::default()).map_err(text)?;
        expect(bytes == archive(Session { counter: archived, ..session })?, "the archive is the one pushed")
    }
}

fn archive(session: Session) -> std::result::Result<Vec<u8>, String> {
    let head = Head {
        id: SessionId([session.id; 16]),
        version: Version { epoch: 1, counter: session.counter },
        created_ms: 1,
        idle_ms: 2,
        absolute_ms: 3,
        owner: None,
    };
    let data = vec![session.counter as u8 ^ session.id; session.bytes];
    let mut builder = Builder::new();
    let limits = ArchiveLimits::default();
    let bytes =
        builder.build(&head, [("data", ValueRef::Bytes(&data))].into_iter(), &limits).map_err(text)?;
    validate(bytes, &limits).map_err(text)?;
    Ok(bytes.to_vec())
}

fn text(error: crate::error::Error) -> String {
    error.to_string()
}

fn expect(holds: bool, what: &str) -> Check {
    if holds { Ok(()) } else { Err(format!("not so: {what}")) }
}

fn expect_acked(outcome: Outcome) -> Check {
    expect(outcome == Outcome::Acked, &format!("the push was acked, not {outcome:?}"))
}

const ONE: Session = Session { id: 1, counter: 1, bytes: 1000 };

fn a_push_is_read_back(factory: &dyn Factory) -> Check {
    let rig = Rig::open(factory)?;
    // Lengths that are no multiple of any word, and an odd place.
    for (at, bytes) in [0, 1, 7, 8, 9, 255, 1000, 70_001].into_iter().enumerate() {
        let session = Session { id: at as u8 + 1, counter: 1, bytes };
        expect_acked(rig.push_live(at as u32 * 3, 1, 300 * at as u32 + 1, session)?)?;
    }
    let index = rig.sealed()?;
    for (at, bytes) in [0, 1, 7, 8, 9, 255, 1000, 70_001].into_iter().enumerate() {
        rig.expect_archive(&index, Session { id: at as u8 + 1, counter: 1, bytes }, 1)?;
    }
    expect(index.live() == 8, "nothing else is there")
}

fn the_newest_cell_counts(factory: &dyn Factory) -> Check {
    let rig = Rig::open(factory)?;
    for counter in 1..=5_u64 {
        let session = Session { counter, ..ONE };
        expect_acked(rig.push_live(4, counter as u32, (counter as u32 % 2) * 8, session)?)?;
    }
    let index = rig.sealed()?;
    rig.expect_archive(&index, Session { counter: 5, ..ONE }, 5)
}

fn sequences_wrap(factory: &dyn Factory) -> Check {
    let rig = Rig::open(factory)?;
    for (counter, sequence) in [(1, u32::MAX - 1), (2, u32::MAX), (3, 0)] {
        let session = Session { counter, ..ONE };
        expect_acked(rig.push_live(4, sequence, counter as u32 * 8, session)?)?;
    }
    let index = rig.sealed()?;
    rig.expect_archive(&index, Session { counter: 3, ..ONE }, 3)
}

fn a_touch_names_the_same_block(factory: &dyn Factory) -> Check {
    let rig = Rig::open(factory)?;
    expect_acked(rig.push_live(0, 1, 8, ONE)?)?;
    let touched = Session { counter: 2, ..ONE };
    let cell = rig.live(2, 8, touched, &archive(ONE)?);
    expect_acked(rig.push(0, &cell, None)?)?;
    let index = rig.sealed()?;
    rig.expect_archive(&index, touched, 1)?;
    let expiry = index.find(&SessionId([1; 16])).map(|copy| copy.expiry_ms);
    expect(expiry == Some(1002), "the touched expiry counts")
}

fn cells_without_blocks(factory: &dyn Factory) -> Check {
    let rig = Rig::open(factory)?;
    for (slot, state) in [(0, CellState::Tombstone), (1, CellState::Moved)] {
        let session = Session { id: slot as u8 + 1, ..ONE };
        expect_acked(rig.push_live(slot, 1, slot * 8, session)?)?;
        let version = Version { epoch: 1, counter: 2 };
        let cell = Cell::without_block(state, SessionId([session.id; 16]), Sequence(2), version, 1000);
        expect_acked(rig.push(slot, &cell, None)?)?;
    }
    let index = rig.sealed()?;
    let gone = index.find(&SessionId([1; 16])).ok_or("the tombstone is in the index")?;
    expect(!gone.live && gone.version.counter == 2, "the tombstone says gone")?;
    let fetched = rig.server.fetch(gone, &ArchiveLimits::default());
    expect(fetched.is_err_and(|error| error.kind == ErrorKind::Gone), "a tombstone is not fetched")?;
    expect(index.find(&SessionId([2; 16])).is_none(), "moved is not here")
}

fn a_slot_passes_to_another_session(factory: &dyn Factory) -> Check {
    let rig = Rig::open(factory)?;
    let other = Session { id: 2, counter: 1, bytes: 10 };
    expect_acked(rig.push_live(0, 1, 0, Session { counter: 99, ..ONE })?)?;
    expect_acked(rig.push_live(0, 2, 8, other)?)?;
    let index = rig.sealed()?;
    rig.expect_archive(&index, other, 1)?;
    expect(index.find(&SessionId([1; 16])).is_none(), "the slot's former session is not found")
}

fn the_largest_archive_fits(factory: &dyn Factory) -> Check {
    let rig = Rig::open(factory)?;
    let largest = ArchiveLimits::default().archive_bytes_max;
    let session = Session { bytes: largest - 200, ..ONE };
    let heap_bytes = rig.link.geometry().heap_bytes;
    let block = (heap_bytes - largest as u64) / 256;
    expect_acked(rig.push_live(31, 1, block as u32, session)?)?;
    let index = rig.sealed()?;
    rig.expect_archive(&index, session, 1)
}

fn out_of_bounds_is_refused(factory: &dyn Factory) -> Check {
    let rig = Rig::open(factory)?;
    let refused = Outcome::Failed(FailKind::Bounds);
    expect(rig.push_live(32, 1, 0, ONE)? == refused, "a slot after the last is refused")?;
    expect(rig.push_live(u32::MAX, 1, 0, ONE)? == refused, "a slot far outside is refused")?;
    let last = (rig.link.geometry().heap_bytes / 256) as u32 - 1;
    expect(rig.push_live(0, 1, last, ONE)? == refused, "a block over the end is refused")?;
    expect(rig.push_live(0, 1, u32::MAX, ONE)? == refused, "a block far outside is refused")?;
    let index = rig.sealed()?;
    expect(index.copies().is_empty(), "a refused push leaves nothing")
}

fn a_sealed_lease_acks_nothing(factory: &dyn Factory) -> Check {
    let rig = Rig::open(factory)?;
    expect_acked(rig.push_live(0, 1, 0, ONE)?)?;
    expect(!rig.link.is_sealed(), "the lease is not sealed at first")?;
    let index = rig.sealed()?;
    for slot in 1..4 {
        let late = rig.push_live(slot, 1, 8 * slot, Session { id: 2, ..ONE })?;
        rig.expect_refused(late)?;
        expect(rig.link.is_sealed() || rig.link.is_broken(), "the node knows that the lease is over")?;
    }
    rig.expect_archive(&index, ONE, 1)
}

/// The race that the seal handshake is for.
fn acked_before_the_seal_is_in_the_scan(factory: &dyn Factory) -> Check {
    let mut raced = 0;
    for round in 0..100_u32 {
        let rig = Rig::open(factory)?;
        let acked = AtomicU64::new(0);
        std::thread::scope(|scope| {
            let pusher = scope.spawn(|| -> Check {
                for counter in 1..2000_u64 {
                    let session = Session { counter, bytes: 100, ..ONE };
                    match rig.push_live(0, counter as u32, (counter as u32 % 3) * 8, session)? {
                        Outcome::Acked => acked.store(counter, Ordering::Release),
                        other => return rig.expect_refused(other),
                    }
                }
                Ok(())
            });
            // Seals after so many acks, in the middle of whatever push is under way then.
            let begin = Instant::now();
            while acked.load(Ordering::Acquire) < u64::from(round) && begin.elapsed() < PUSH_WAIT {
                std::thread::yield_now();
            }
            rig.server.seal();
            let report = rig.server.scan(&ArchiveLimits::default()).map_err(text);
            pusher.join().map_err(|_| "the pusher panicked".to_owned())??;
            let found = report?.cells.first().map_or(0, |(_, cell)| cell.version.counter);
            let acked = acked.load(Ordering::Acquire);
            raced += u32::from(acked > 0);
            expect(found >= acked, &format!("acked {acked} is in the scan, which has {found}"))
        })?;
    }
    expect(raced > 0, "some pushes were acked before a seal")
}

fn threads_push_to_different_slots(factory: &dyn Factory) -> Check {
    let rig = Rig::open(factory)?;
    std::thread::scope(|scope| {
        let pushers: Vec<_> = (0..4_u32)
            .map(|thread| {
                let rig = &rig;
                scope.spawn(move || -> Check {
                    for counter in 1..=50_u64 {
                        let session = Session { id: thread as u8 + 1, counter, bytes: 500 };
                        let block = (thread * 2 + (counter as u32 & 1)) * 8;
                        expect_acked(rig.push_live(thread, counter as u32, block, session)?)?;
                    }
                    Ok(())
                })
            })
            .collect();
        pushers
            .into_iter()
            .try_for_each(|pusher| pusher.join().map_err(|_| "a pusher panicked".to_owned())?)
    })?;
    let index = rig.sealed()?;
    for thread in 0..4 {
        rig.expect_archive(&index, Session { id: thread + 1, counter: 50, bytes: 500 }, 50)?;
    }
    Ok(())
}

/// More than any queue holds, posted by several threads before they ask for any: each is acked, or was not
/// taken and is posted again.
fn many_pushes_are_under_way(factory: &dyn Factory) -> Check {
    const ROUNDS: u32 = 40;
    let rig = Rig::open(factory)?;
    let pusher = |thread: u32| -> Check {
        for round in 1..=ROUNDS {
            let mut open = Vec::new();
            for slot in thread * 8..thread * 8 + 8 {
                let session = Session { id: slot as u8 + 1, counter: u64::from(round), bytes: 300 };
                let block = (slot * 2 + (round & 1)) * 4;
                let archive = archive(session)?;
                let cell = rig.live(round, block, session, &archive);
                let begin = Instant::now();
                loop {
                    match rig.post(slot, &cell, Some((BlockOffset(block), &archive))) {
                        Posted::Done(Outcome::Acked) => break,
                        Posted::Pending(id) => {
                            open.push(id);
                            break;
                        }
                        Posted::Done(Outcome::Failed(FailKind::NotPosted)) => {
                            expect(!rig.link.is_broken(), "a full queue breaks nothing")?;
                            // Those of this thread may be what fills it.
                            for id in open.drain(..) {
                                expect_acked(rig.end_of(id)?)?;
                            }
                        }
                        Posted::Done(other) => return Err(format!("a push ended with {other:?}")),
                    }
                    expect(begin.elapsed() < PUSH_WAIT, "there is room in time")?;
                }
            }
            for id in open.into_iter().rev() {
                expect_acked(rig.end_of(id)?)?;
                expect(rig.link.poll(id).is_none(), "an end is told once")?;
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let pushers: Vec<_> = (0..4).map(|thread| scope.spawn(move || pusher(thread))).collect();
        pushers
            .into_iter()
            .try_for_each(|pusher| pusher.join().map_err(|_| "a pusher panicked".to_owned())?)
    })?;
    let index = rig.sealed()?;
    for slot in 0..32 {
        let counter = u64::from(ROUNDS);
        rig.expect_archive(&index, Session { id: slot + 1, counter, bytes: 300 }, counter)?;
    }
    Ok(())
}

fn a_push_given_up_bothers_nobody(factory: &dyn Factory) -> Check {
    let rig = Rig::open(factory)?;
    // More than a link can hold, so that entries must come back.
    for round in 0..500_u32 {
        let session = Session { id: 1, counter: u64::from(round) + 1, bytes: 100 };
        let archive = archive(session)?;
        let cell = rig.live(round + 1, (round % 64) * 4, session, &archive);
        let posted = rig.post(0, &cell, Some((BlockOffset((round % 64) * 4), &archive)));
        if let Posted::Pending(id) = posted {
            rig.link.forget(id);
            expect(rig.link.poll(id).is_none(), "nobody asks any more")?;
        }
    }
    let begin = Instant::now();
    let last = Session { id: 2, ..ONE };
    while rig.push_live(1, 1, 4096, last)? != Outcome::Acked {
        expect(begin.elapsed() < PUSH_WAIT, "the link takes pushes again")?;
    }
    // Pushes of one slot that nobody has waited for may have torn each other's cells.
    rig.server.seal();
    let report = rig.server.scan(&ArchiveLimits::default()).map_err(text)?;
    rig.expect_archive(&LeaseIndex::new(&report), last, 1)
}

fn strange_numbers_name_no_push(factory: &dyn Factory) -> Check {
    let rig = Rig::open(factory)?;
    for id in [0, 1, 1 << 31, 1 << 32, u64::MAX] {
        expect(rig.link.poll(PushId(id)).is_none(), "a number that was never given has no end")?;
        rig.link.forget(PushId(id));
        rig.link.wait(PushId(id), Duration::from_millis(1));
    }
    expect_acked(rig.push_live(0, 1, 0, ONE)?)
}

fn leases_are_apart(factory: &dyn Factory) -> Check {
    let (one, two) = (Rig::open(factory)?, Rig::open(factory)?);
    expect_acked(one.push_live(0, 1, 0, ONE)?)?;
    one.server.seal();
    expect(!two.link.is_sealed(), "a seal is for one lease")?;
    expect_acked(two.push_live(0, 1, 0, Session { id: 2, ..ONE })?)?;
    expect(two.sealed()?.find(&SessionId([1; 16])).is_none(), "a push is in one lease")?;
    let index = one.sealed()?;
    one.expect_archive(&index, ONE, 1)
}

fn heartbeats_pass(factory: &dyn Factory) -> Check {
    let rig = Rig::open(factory)?;
    rig.server.beat(6);
    for beat in 5..9 {
        rig.link.beat(beat, 77);
        let begin = Instant::now();
        let arrived = || {
            let node = (rig.server.node_beat(), rig.server.node_sessions());
            node == (beat, 77) && rig.link.peer_beat() == beat + 1
        };
        while !arrived() {
            expect(begin.elapsed() < PUSH_WAIT, "heartbeats arrive")?;
            // Nobody waits for a beat, so the link may leave out one that comes too early, and what is read
            // with one is what stood there then.
            std::thread::sleep(Duration::from_millis(1));
            rig.link.beat(beat, 77);
        }
        rig.server.beat(beat + 2);
    }
    expect(!rig.link.is_sealed() && !rig.link.is_broken(), "a beat changes nothing else")
}

fn reading_needs_the_seal(factory: &dyn Factory) -> Check {
    let rig = Rig::open(factory)?;
    let scanned = rig.server.scan(&ArchiveLimits::default());
    expect(scanned.is_err_and(|error| error.kind == ErrorKind::Invalid), "an unsealed lease is not scanned")
}
