use super::*;
use crate::archive::{Builder, Head, ValueRef};
use crate::ident::{SessionId, Version};
use crate::lease::{ArchiveChecksum, BlockOffset, Cell, CellState, LeaseIndex, Sequence, SlotIndex};
use crate::transport::conformance::{self, Factory};

const SESSION: SessionId = SessionId([5; 16]);

struct SimFactory(SimConfig);

impl Factory for SimFactory {
    fn open(&self, header: &LeaseHeader) -> Result<(Arc<dyn ServerEnd>, Box<dyn Link>)> {
        let (lease, link) = open(header, self.0)?;
        Ok((lease, Box::new(link)))
    }
}

#[test]
fn the_simulation_conforms() {
    let plain = SimConfig::default();
    let rdma = SimConfig {
        checksum: ChecksumKind::Xxh3,
        order: WriteOrder::AnyOrder,
        piece_bytes: 64,
        pieces_per_poll: 5000,
        seal_stops_writes: true,
        ..plain
    };
    for config in [plain, rdma, SimConfig { piece_bytes: 61, pieces_per_poll: 1000, ..plain }] {
        let ran = conformance::run(&SimFactory(config)).unwrap_or_else(|why| panic!("{config:?}: {why}"));
        assert!(ran >= 17, "{ran}");
    }
}

fn header() -> LeaseHeader {
    LeaseHeader {
        geometry: LeaseGeometry { slot_count: 4, heap_bytes: 1 << 16, chunk_bytes: 1 << 16 },
        node: "n1".to_owned(),
        node_incarnation: Incarnation(1),
        server_incarnation: Incarnation(2),
    }
}

fn archive(counter: u64) -> Vec<u8> {
    let head = Head {
        id: SESSION,
        version: Version { epoch: 1, counter },
        created_ms: 1,
        idle_ms: 2,
        absolute_ms: 3,
        owner: None,
    };
    let data = [counter as u8; 150];
    let attributes = [("data", ValueRef::Bytes(&data))];
    Builder::new().build(&head, attributes.into_iter(), &ArchiveLimits::default()).unwrap().to_vec()
}

/// Pushes version `counter`, which is also its sequence, into slot 0 and the block of its parity.
fn post(link: &SimLink, counter: u64) -> Posted {
    let archive = archive(counter);
    let block = BlockOffset((counter & 1) as u32 * 8);
    let cell = Cell {
        id: SESSION,
        sequence: Sequence(counter as u32),
        version: Version { epoch: 1, counter },
        state: CellState::Live,
        block,
        archive_bytes: archive.len() as u32,
        expiry_ms: 1000,
        checksum: match link.checksum_kind() {
            ChecksumKind::None => ArchiveChecksum::None,
            ChecksumKind::Xxh3 => ArchiveChecksum::xxh3(&archive),
        },
    };
    let push = Push {
        slot: SlotIndex(0),
        sequence: cell.sequence,
        cell: &cell.encode(),
        block: Some((block, &archive)),
    };
    link.post(&push)
}

/// The version that a new host would get, or why it gets none.
fn recovered(lease: &SimLease) -> std::result::Result<u64, String> {
    lease.seal();
    let limits = ArchiveLimits::default();
    let report = lease.scan(&limits).map_err(|error| error.to_string())?;
    let index = LeaseIndex::new(&report);
    let copy = index.find(&SESSION).ok_or_else(|| format!("no copy; bad cells: {:?}", report.bad))?;
    let bytes = lease.fetch(copy, &limits).map_err(|error| error.to_string())?;
    let counter = copy.version.counter;
    if bytes == archive(counter) { Ok(counter) } else { Err(format!("version {counter} is mixed")) }
}

/// Guarantee 4: a push that is cut at any byte leaves the previous version whole, or is the new one.
#[test]
fn a_push_cut_at_any_byte_costs_nothing() {
    let mut outcomes = [0_u32; 2];
    let all = (archive(2).len() + 64) as u64;
    for cut in 0..=all {
        let config = SimConfig { piece_bytes: 1, ..SimConfig::default() };
        let (lease, first) = open(&header(), config).unwrap();
        assert_eq!(post(&first, 1), Posted::Done(Outcome::Acked));
        let second = SimLink::new(Arc::clone(&lease), SimConfig { cut_after_pieces: Some(cut), ..config });
        let posted = post(&second, 2);
        let expected = if cut < all { 1 } else { 2 };
        let acked = posted == Posted::Done(Outcome::Acked);
        assert_eq!(acked, cut == all, "byte {cut}: {posted:?}");
        let found = recovered(&lease).unwrap_or_else(|why| panic!("cut at byte {cut} of {all}: {why}"));
        assert_eq!(found, expected, "cut at byte {cut} of {all}");
        outcomes[usize::from(found == 2)] += 1;
    }
    assert!(outcomes[0] > 64 && outcomes[1] == 1, "{outcomes:?}");
}

/// The same where pieces land in any order, as RDMA may do: then the checksums decide, not the order.
#[test]
fn a_push_torn_in_any_order_costs_nothing() {
    let mut outcomes = [0_u32; 2];
    for seed in 0..3000_u64 {
        let config = SimConfig {
            seed,
            checksum: ChecksumKind::Xxh3,
            order: WriteOrder::AnyOrder,
            piece_bytes: 8,
            ..SimConfig::default()
        };
        let (lease, first) = open(&header(), config).unwrap();
        assert_eq!(post(&first, 1), Posted::Done(Outcome::Acked));
        let all = (archive(2).len().div_ceil(8) + 8) as u64;
        let cut = seed % (all + 1);
        let second = SimLink::new(Arc::clone(&lease), SimConfig { cut_after_pieces: Some(cut), ..config });
        let posted = post(&second, 2);
        let found = recovered(&lease)
            .unwrap_or_else(|why| panic!("seed {seed}, cut after {cut} of {all} pieces: {why}"));
        assert!(found == 2 || posted != Posted::Done(Outcome::Acked), "seed {seed}: an acked push was lost");
        outcomes[usize::from(found == 2)] += 1;
    }
    assert!(outcomes[0] > 0 && outcomes[1] > 0, "{outcomes:?}");
}

/// Without the archive's checksum the same tears do mix versions: the simulation can tear, and the checksum
/// is needed.
#[test]
fn without_a_checksum_any_order_would_mix() {
    let mixed = (0..3000_u64).any(|seed| {
        let config = SimConfig { seed, order: WriteOrder::AnyOrder, ..SimConfig::default() };
        let (lease, first) = open(&header(), config).unwrap();
        post(&first, 1);
        let second =
            SimLink::new(Arc::clone(&lease), SimConfig { cut_after_pieces: Some(seed % 40), ..config });
        post(&second, 2);
        recovered(&lease).is_err()
    });
    assert!(mixed, "no seed tears a block under a whole cell");
}

/// A push that was reported as failed and lands later (a stopped process, a dead one's queue pair): if its
/// slot is used again meanwhile it destroys an acked version. This is why R4 gives the session a fresh slot.
#[test]
fn a_late_write_harms_a_slot_that_is_used_again() {
    let harmed = (0..200_u64).any(|seed| {
        let late = SimConfig { seed, late_per_mille: 1000, pieces_per_poll: 1, ..SimConfig::default() };
        let (lease, zombie) = open(&header(), late).unwrap();
        let Posted::Pending(push) = post(&zombie, 1) else { panic!("not pending") };
        assert_eq!(zombie.poll(push), Some(Outcome::Failed(FailKind::Disconnected)));
        // Against R4: the next push goes to the same slot. Version 3 has the parity, and so the cell, of the
        // late one.
        let next = SimLink::new(Arc::clone(&lease), SimConfig::default());
        assert_eq!(post(&next, 3), Posted::Done(Outcome::Acked));
        zombie.advance(u64::MAX);
        recovered(&lease) != Ok(3)
    });
    assert!(harmed, "a late write never lands");
}

#[test]
fn one_seed_is_one_history() {
    let run = |seed| {
        let config = SimConfig {
            seed,
            order: WriteOrder::AnyOrder,
            pieces_per_poll: 7,
            torn_per_mille: 300,
            late_per_mille: 200,
            ..SimConfig::default()
        };
        let (lease, link) = open(&header(), config).unwrap();
        let mut history = Vec::new();
        let mut open = Vec::new();
        let mut look = |open: &mut Vec<PushId>| {
            open.retain(|push| {
                let ended = link.poll(*push);
                history.extend(ended.map(|outcome| (*push, outcome)));
                ended.is_none()
            });
        };
        for counter in 1..50 {
            match post(&link, counter) {
                Posted::Pending(push) => open.push(push),
                Posted::Done(outcome) => panic!("{outcome:?} at once"),
            }
            look(&mut open);
        }
        (0..1000).for_each(|_| look(&mut open));
        let mut bytes = vec![0; lease.memory().bytes() as usize];
        lease.memory().read(0, &mut bytes).unwrap();
        (history, bytes)
    };
    let (history, bytes) = run(7);
    assert!(history.iter().any(|(_, outcome)| *outcome == Outcome::Acked));
    assert!(history.iter().any(|(_, outcome)| *outcome != Outcome::Acked));
    assert!(run(7) == (history, bytes));
    assert!(run(8) != run(7));
}

#[test]
fn a_cut_link_fails_what_is_pending_and_what_follows() {
    let config = SimConfig { pieces_per_poll: 1, ..SimConfig::default() };
    let (_, link) = open(&header(), config).unwrap();
    let Posted::Pending(push) = post(&link, 1) else { panic!("not pending") };
    link.cut();
    let outcome = Outcome::Failed(FailKind::Disconnected);
    assert_eq!((link.poll(push), link.poll(push)), (Some(outcome), None));
    assert_eq!(post(&link, 2), Posted::Done(outcome));
}
