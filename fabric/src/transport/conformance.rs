//! What every transport must do, as a suite that runs against any of them: [`run`] a [`Factory`].

use super::{ChecksumKind, FailKind, Link, Outcome, Posted, Push, ServerEnd};
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
pub trait Factory {
    /// A lease and a link to it.
    ///
    /// # Errors
    /// Why it cannot; the suite fails.
    fn open(&self, header: &LeaseHeader) -> crate::error::Result<(Arc<dyn ServerEnd>, Box<dyn Link>)>;
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
struct Rig {
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

impl Rig {
    fn open(factory: &dyn Factory) -> std::result::Result<Self, String> {
        let header = LeaseHeader {
            geometry: LeaseGeometry { slot_count: 32, heap_bytes: 4 << 20, chunk_bytes: 1 << 20 },
            node: "n1".to_owned(),
            node_incarnation: Incarnation(3),
            server_incarnation: Incarnation(4),
        };
        let (server, link) = factory.open(&header).map_err(text)?;
        expect(link.geometry() == header.geometry, "the link has the lease's geometry")?;
        expect(link.server_incarnation() == header.server_incarnation, "the link knows its server")?;
        Ok(Self { server, link })
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
        let bytes = cell.encode();
        let push = Push { slot: SlotIndex(slot), sequence: cell.sequence, cell: &bytes, block };
        let id = match self.link.post(&push) {
            Posted::Done(outcome) => return Ok(outcome),
            Posted::Pending(id) => id,
        };
        let begin = Instant::now();
        loop {
            if let Some(outcome) = self.link.poll(id) {
                return Ok(outcome);
            }
            expect(begin.elapsed() < PUSH_WAIT, "a push ends in time")?;
        }
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
    expect(rig.link.is_sealed(), "the node sees the seal")?;
    let late = rig.push_live(1, 1, 8, Session { id: 2, ..ONE })?;
    expect(late == Outcome::Sealed, &format!("a late push ends with Sealed, not {late:?}"))?;
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
                        Outcome::Sealed => return Ok(()),
                        other => return Err(format!("a push ended with {other:?}")),
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
    rig.link.beat(5, 77);
    rig.server.beat(6);
    let begin = Instant::now();
    let arrived = || (rig.server.node_beat(), rig.server.node_sessions(), rig.link.peer_beat()) == (5, 77, 6);
    while !arrived() {
        expect(begin.elapsed() < PUSH_WAIT, "heartbeats arrive")?;
    }
    Ok(())
}

fn reading_needs_the_seal(factory: &dyn Factory) -> Check {
    let rig = Rig::open(factory)?;
    let scanned = rig.server.scan(&ArchiveLimits::default());
    expect(scanned.is_err_and(|error| error.kind == ErrorKind::Invalid), "an unsealed lease is not scanned")
}
