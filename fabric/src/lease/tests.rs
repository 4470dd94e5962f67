use super::testing::compare_golden;
use super::*;
use crate::archive::testing::Rng;
use crate::archive::{ArchiveLimits, Builder, Head};
use crate::error::ErrorKind;
use crate::ident::{Incarnation, SessionId, Version};

const GEOMETRY: LeaseGeometry = LeaseGeometry { slot_count: 100, heap_bytes: 1 << 20, chunk_bytes: 1 << 18 };

fn version(epoch: u32, counter: u64) -> Version {
    Version { epoch, counter }
}

fn id(number: u8) -> SessionId {
    SessionId([number; 16])
}

fn live(number: u8, sequence: u32, version: Version, block: u32) -> Cell {
    Cell {
        id: id(number),
        sequence: Sequence(sequence),
        version,
        state: CellState::Live,
        block: BlockOffset(block),
        archive_bytes: archive(number, version).len() as u32,
        expiry_ms: 1_700_000_000_000,
        checksum: ArchiveChecksum::None,
    }
}

fn archive(number: u8, version: Version) -> Vec<u8> {
    let head = Head { id: id(number), version, created_ms: 1, idle_ms: 2, absolute_ms: 3, owner: None };
    Builder::new().build(&head, std::iter::empty(), &ArchiveLimits::default()).unwrap().to_vec()
}

/// A lease in which cells are put where they belong.
struct Lease(HeapMemory);

impl Lease {
    fn new() -> Self {
        Self(HeapMemory::new(GEOMETRY.total_bytes()))
    }

    fn put(&self, slot: u32, cell: &Cell) {
        self.put_bytes(slot, cell.sequence, &cell.encode());
    }

    fn put_bytes(&self, slot: u32, sequence: Sequence, bytes: &[u8]) {
        self.0.write(GEOMETRY.cell_offset(SlotIndex(slot), sequence).unwrap(), bytes).unwrap();
    }

    fn put_block(&self, block: u32, bytes: &[u8]) {
        self.0.write(GEOMETRY.block_offset(BlockOffset(block), bytes.len()).unwrap(), bytes).unwrap();
    }

    /// Block and cell.
    fn put_session(&self, slot: u32, number: u8, sequence: u32, version: Version, block: u32) {
        self.put_block(block, &archive(number, version));
        self.put(slot, &live(number, sequence, version, block));
    }

    fn scan(&self) -> ScanReport {
        scan(&self.0, &GEOMETRY, &ArchiveLimits::default()).unwrap()
    }

    fn index(&self) -> LeaseIndex {
        LeaseIndex::new(&self.scan())
    }

    fn fetch(&self, copy: &SessionCopy) -> crate::error::Result<Vec<u8>> {
        fetch(&self.0, &GEOMETRY, copy, &ArchiveLimits::default())
    }
}

/// A rule's scenario: with the feature, once whole and once without the rule.
fn with_teeth(rule: crate::rules::Rule, scenario: impl Fn() -> Result<(), String>) {
    #[cfg(feature = "mutants")]
    crate::rules::assert_teeth(rule, scenario);
    #[cfg(not(feature = "mutants"))]
    {
        let _ = rule;
        scenario().unwrap();
    }
}

#[test]
fn cells_round_trip() {
    let cell = Cell {
        checksum: ArchiveChecksum::Xxh3(0x0123_4567_89ab_cdef),
        ..live(7, u32::MAX, version(3, 1 << 40), 9)
    };
    assert_eq!(Cell::decode(&cell.encode()), Ok(Some(cell)));
    for state in [CellState::Tombstone, CellState::Moved] {
        let cell = Cell::without_block(state, id(1), Sequence(2), version(1, 2), 3);
        assert_eq!(Cell::decode(&cell.encode()), Ok(Some(cell)));
    }
    assert_eq!(Cell::decode(&[0; CELL_BYTES]), Ok(None));
}

#[test]
fn every_changed_bit_of_a_cell_is_noticed() {
    let good = live(7, 3, version(3, 4), 9).encode();
    for bit in 0..CELL_BYTES * 8 {
        let mut bytes = good;
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(Cell::decode(&bytes), Err(CellFault::Checksum), "bit {bit}");
    }
}

/// A hostile node can compute checksums: what the fields mean is checked, too.
#[test]
fn a_cell_with_a_good_checksum_and_bad_meaning_is_refused() {
    let changed = |cell: Cell, at: usize, value: u8| {
        let mut bytes = cell.encode();
        bytes[at] = value;
        let crc = crc32c::crc32c(&bytes[..60]);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        Cell::decode(&bytes)
    };
    let cell = live(7, 3, version(3, 4), 9);
    let tombstone = Cell::without_block(CellState::Tombstone, id(1), Sequence(2), version(1, 2), 3);
    assert_eq!(changed(cell, 56, 1), Ok(Some(cell)));
    for (cell, at, value) in [
        (cell, 56, 0),
        (cell, 56, 4),
        (cell, 57, 2),
        (cell, 48, 1),
        (cell, 58, 1),
        (cell, 59, 1),
        (tombstone, 32, 1),
        (tombstone, 36, 1),
        (tombstone, 57, 1),
    ] {
        assert_eq!(changed(cell, at, value), Err(CellFault::Meaning), "byte {at} = {value}");
    }
}

#[test]
fn the_layout_is_pinned_by_golden_bytes() {
    let cell = Cell {
        checksum: ArchiveChecksum::Xxh3(0x0123_4567_89ab_cdef),
        ..live(7, 5, version(0x0a0b_0c0d, 0x1112_1314_1516_1718), 0x2122)
    };
    compare_golden(concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/cell.bin"), &cell.encode());
    let memory = HeapMemory::new(GEOMETRY.total_bytes());
    let header = LeaseHeader {
        geometry: GEOMETRY,
        node: "node-1".to_owned(),
        node_incarnation: Incarnation(0x3132_3334),
        server_incarnation: Incarnation(0x4142_4344),
    };
    header.write(&memory).unwrap();
    let mut page = vec![0; 512];
    memory.read(0, &mut page).unwrap();
    compare_golden(concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/lease_header.bin"), &page);
    assert_eq!(LeaseHeader::read(&memory).unwrap(), header);
}

#[test]
fn the_document_shows_the_layout() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/layout.md");
    testing::compare_section(path, "lease", &layout_table());
}

#[test]
fn bad_geometries_and_names_are_refused_with_the_limit() {
    for (geometry, word) in [
        (LeaseGeometry { slot_count: 0, ..GEOMETRY }, "slot_count"),
        (LeaseGeometry { slot_count: u32::MAX, ..GEOMETRY }, "slot_count"),
        (LeaseGeometry { chunk_bytes: 0, ..GEOMETRY }, "chunk_bytes"),
        (LeaseGeometry { chunk_bytes: 100, ..GEOMETRY }, "chunk_bytes"),
        (LeaseGeometry { heap_bytes: 0, ..GEOMETRY }, "heap_bytes"),
        (LeaseGeometry { heap_bytes: (1 << 20) + 256, ..GEOMETRY }, "heap_bytes"),
        (LeaseGeometry { heap_bytes: 1 << 41, ..GEOMETRY }, "heap_bytes"),
    ] {
        let error = geometry.check().unwrap_err();
        assert!(error.kind == ErrorKind::Invalid && error.context.contains(word), "{error}");
    }
    let header = LeaseHeader {
        geometry: GEOMETRY,
        node: "N 1".to_owned(),
        node_incarnation: Incarnation(1),
        server_incarnation: Incarnation(2),
    };
    assert_eq!(header.write(&HeapMemory::new(GEOMETRY.total_bytes())).unwrap_err().kind, ErrorKind::Invalid);
    let named = LeaseHeader { node: "n1".to_owned(), ..header };
    assert_eq!(named.write(&HeapMemory::new(4096)).unwrap_err().kind, ErrorKind::TooSmall);
}

#[test]
fn memory_reads_and_writes_any_range_and_nothing_outside() {
    let memory = HeapMemory::new(64);
    let mut model = [0_u8; 64];
    let mut rng = Rng(3);
    for _ in 0..20_000 {
        let offset = rng.below(70);
        let data: Vec<u8> = (0..rng.below(40)).map(|_| rng.next() as u8).collect();
        let end = offset as usize + data.len();
        let written = memory.write(offset, &data);
        assert_eq!(written.is_ok(), end <= 64, "{offset} {}", data.len());
        if written.is_ok() {
            model[offset as usize..end].copy_from_slice(&data);
        }
        let mut read = vec![0; data.len()];
        if memory.read(offset, &mut read).is_ok() {
            assert_eq!(read, model[offset as usize..end]);
        }
    }
    for bad in [1, 57, 64, u64::MAX, u64::MAX - 7] {
        assert_eq!(memory.load_u64(bad).unwrap_err().kind, ErrorKind::Corrupt);
        assert_eq!(memory.store_u64(bad, 1).unwrap_err().kind, ErrorKind::Corrupt);
        assert!(memory.read(bad, &mut [0; 8]).is_err() || bad <= 56);
    }
}

#[test]
fn the_newer_cell_of_a_pair_counts_also_over_the_wrap() {
    for sequence in [1, 2, 77, u32::MAX - 1, u32::MAX, i32::MAX as u32] {
        let lease = Lease::new();
        let next = Sequence(sequence).next().0;
        lease.put(3, &live(1, sequence, version(1, 1), 0));
        lease.put(3, &live(1, next, version(1, 2), 4));
        let report = lease.scan();
        assert_eq!(report.cells, [(SlotIndex(3), live(1, next, version(1, 2), 4))], "sequence {sequence}");
        assert_eq!(report.bad, BadCells::default());
    }
}

#[test]
fn a_bad_newer_cell_leaves_the_older_one() {
    let lease = Lease::new();
    let old = live(1, 6, version(1, 1), 0);
    let new = live(1, 7, version(1, 2), 4);
    let outside = Cell { block: BlockOffset(1 << 20), ..new };
    let empty = Cell { archive_bytes: 0, ..new };
    let unmatched = Cell { checksum: ArchiveChecksum::Xxh3(1), ..new };
    let mut torn = new.encode();
    torn[30] ^= 1;
    let expected = [
        (torn, BadCells { checksum: 1, ..BadCells::default() }),
        (outside.encode(), BadCells { bounds: 1, ..BadCells::default() }),
        (empty.encode(), BadCells { bounds: 1, ..BadCells::default() }),
        (unmatched.encode(), BadCells { archive: 1, ..BadCells::default() }),
    ];
    for (bytes, bad) in expected {
        lease.put(0, &old);
        lease.put_bytes(0, Sequence(7), &bytes);
        let report = lease.scan();
        assert_eq!((report.cells, report.bad), (vec![(SlotIndex(0), old)], bad));
    }
    // A whole cell whose sequence belongs into the other half.
    lease.put_bytes(0, Sequence(7), &Cell { sequence: Sequence(8), ..new }.encode());
    let report = lease.scan();
    assert_eq!((report.cells, report.bad.misplaced), (vec![(SlotIndex(0), old)], 1));
}

#[test]
fn a_matching_checksum_is_accepted() {
    let lease = Lease::new();
    lease.put_session(0, 1, 1, version(1, 1), 0);
    let checksum = ArchiveChecksum::xxh3(&archive(1, version(1, 1)));
    let cell = Cell { checksum, ..live(1, 1, version(1, 1), 0) };
    lease.put(0, &cell);
    assert_eq!(lease.scan().cells, [(SlotIndex(0), cell)]);
}

/// One block named by every cell: the sum of the archives cannot be more than the heap.
#[test]
fn a_hostile_node_cannot_multiply_its_heap() {
    let lease = Lease::new();
    let big = Cell { archive_bytes: 1 << 19, ..live(1, 1, version(1, 1), 0) };
    for slot in 0..100 {
        lease.put(slot, &Cell { id: id(slot as u8), ..big });
    }
    let report = lease.scan();
    assert_eq!((report.cells.len(), report.bad.bounds), (2, 98));
}

#[test]
fn a_geometry_that_lies_about_the_memory_is_an_error() {
    let memory = HeapMemory::new(GEOMETRY.slots_offset() + 10 * SLOT_BYTES as u64);
    let error = scan(&memory, &GEOMETRY, &ArchiveLimits::default()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Corrupt);
}

#[test]
fn the_index_keeps_the_best_copy() {
    let lease = Lease::new();
    lease.put(0, &live(1, 1, version(1, 9), 0));
    lease.put(1, &live(1, 1, version(2, 1), 4));
    lease.put(2, &live(2, 1, version(1, 5), 8));
    lease.put(3, &Cell::without_block(CellState::Tombstone, id(2), Sequence(1), version(1, 5), 7));
    lease.put(4, &live(3, 1, version(2, 1), 12));
    lease.put(5, &Cell::without_block(CellState::Tombstone, id(3), Sequence(1), version(1, 8), 7));
    let index = lease.index();
    assert_eq!(index.find(&id(1)).unwrap().version, version(2, 1));
    assert!(!index.find(&id(2)).unwrap().live, "a tombstone beats a live copy of its version");
    assert!(index.find(&id(3)).unwrap().live, "a tombstone of a lower version does not");
    assert_eq!((index.copies().len(), index.live(), index.unsettled()), (3, 2, 2));
    assert!(index.find(&id(4)).is_none());
}

#[test]
fn the_index_finds_all_of_many() {
    let mut scan = ScanReport::default();
    let number = |n: u32| SessionId(u128::from(n).to_le_bytes());
    for n in 0..10_000 {
        scan.cells.push((SlotIndex(n), Cell { id: number(n), ..live(1, 1, version(1, u64::from(n)), 0) }));
    }
    let index = LeaseIndex::new(&scan);
    for n in 0..10_000 {
        assert_eq!(index.find(&number(n)).unwrap().version.counter, u64::from(n));
    }
    assert!(index.find(&number(10_000)).is_none());
    // Grown while it is filled, it finds the same.
    let lease = Lease::new();
    for slot in 0..100 {
        lease.put(slot, &live(slot as u8, 1, version(1, 1), slot * 4));
    }
    let (index, _) = LeaseIndex::scan(&lease.0, &GEOMETRY, &ArchiveLimits::default()).unwrap();
    assert!((0..100).all(|n| index.find(&id(n)).is_some()) && index.copies().len() == 100);
}

#[test]
fn sealed_leases_are_searched_together_and_settle() {
    let mut sealed = SealedIndex::default();
    for (key, counter) in [(1, 5), (2, 7)] {
        let lease = Lease::new();
        lease.put(0, &live(1, 1, version(1, counter), 0));
        lease.put(1, &live(2, 1, version(1, counter), 4));
        lease.put(2, &Cell { expiry_ms: 50, ..live(3, 1, version(1, counter), 8) });
        sealed.insert(key, lease.index());
    }
    let unsettled = |sealed: &SealedIndex| [1, 2].map(|key| sealed.lease(key).unwrap().unsettled());
    assert_eq!(sealed.find(&id(1)).map(|(key, copy)| (key, copy.version)), Some((2, version(1, 7))));
    // Safe at version 6 elsewhere: the copy at 7 is newer, so it still holds its set back.
    sealed.settle(&id(1), version(1, 6));
    assert_eq!(unsettled(&sealed), [2, 3]);
    sealed.settle(&id(1), version(2, 1));
    sealed.settle(&id(1), version(2, 1));
    assert_eq!(unsettled(&sealed), [2, 2]);
    sealed.destroy(&id(2), version(1, 8));
    assert_eq!(unsettled(&sealed), [1, 1]);
    let (_, copy) = sealed.find(&id(2)).unwrap();
    assert!(!copy.live && copy.version == version(1, 8));
    assert_eq!((sealed.sweep(50), sealed.sweep(51), sealed.sweep(51)), (0, 2, 0));
    let (_, copy) = sealed.find(&id(3)).unwrap();
    assert!(!copy.live && copy.version == version(1, 7), "a swept copy leaves its version as a tombstone");
    assert_eq!(unsettled(&sealed), [0, 0]);
    assert!(sealed.remove(2).is_some() && sealed.lease(2).is_none());
    assert_eq!(sealed.find(&id(2)).unwrap().0, 1);
}

/// R7: a block that was used again under a cell that still names it is noticed; the wrong data is never
/// served.
#[test]
fn r7_a_block_used_again_is_not_served() {
    // Another session's archive, a newer version of the same session, and another ownership.
    for (number, used) in [(2, version(1, 5)), (1, version(1, 6)), (1, version(2, 5)), (1, version(0, 5))] {
        with_teeth(crate::rules::Rule::R7Blocks, || {
            let lease = Lease::new();
            lease.put_session(0, 1, 1, version(1, 5), 0);
            let index = lease.index();
            let copy = index.find(&id(1)).ok_or("the session is not indexed")?;
            let whole = lease.fetch(copy).map_err(|error| error.to_string())?;
            if whole != archive(1, version(1, 5)) {
                return Err("the archive is not the one pushed".into());
            }
            lease.put_block(0, &archive(number, used));
            match lease.fetch(copy) {
                Err(error) if error.kind == ErrorKind::Corrupt => Ok(()),
                Err(error) => Err(format!("the wrong error: {error}")),
                Ok(_) => Err("the block was used again and served".into()),
            }
        });
    }
}

/// R7 and R13: a touch names the block of an older counter.
#[test]
fn r7_a_touched_copy_is_served() {
    let lease = Lease::new();
    lease.put_session(0, 1, 1, version(1, 5), 0);
    lease.put(0, &Cell { version: version(1, 9), expiry_ms: 99, ..live(1, 2, version(1, 5), 0) });
    let index = lease.index();
    let copy = index.find(&id(1)).unwrap();
    assert_eq!((copy.version, copy.expiry_ms), (version(1, 9), 99));
    assert_eq!(lease.fetch(copy).unwrap(), archive(1, version(1, 5)));
}

/// R11: "moved" reads as "not here", never as "gone".
#[test]
fn r11_moved_is_not_here() {
    with_teeth(crate::rules::Rule::R11Moved, || {
        let (old, new) = (Lease::new(), Lease::new());
        old.put_session(0, 1, 1, version(1, 5), 0);
        old.put(0, &Cell::without_block(CellState::Moved, id(1), Sequence(2), version(1, 6), 7));
        new.put_session(0, 1, 1, version(1, 6), 0);
        if let Some(copy) = old.index().find(&id(1)) {
            return Err(format!("the old lease says {copy:?}"));
        }
        let mut sealed = SealedIndex::default();
        sealed.insert(1, old.index());
        sealed.insert(2, new.index());
        match sealed.find(&id(1)) {
            Some((2, copy)) if copy.live => Ok(()),
            other => Err(format!("over both leases: {other:?}")),
        }
    });
}

#[test]
fn fetch_checks_bounds_checksum_and_archive() {
    let lease = Lease::new();
    lease.put_session(0, 1, 1, version(1, 5), 0);
    let good = *lease.index().find(&id(1)).unwrap();
    lease.fetch(&good).unwrap();
    let bad = [
        SessionCopy { block: BlockOffset(u32::MAX), ..good },
        SessionCopy { archive_bytes: u32::MAX, ..good },
        SessionCopy { archive_bytes: 0, ..good },
        SessionCopy { archive_bytes: good.archive_bytes - 1, ..good },
        SessionCopy { checksum: ArchiveChecksum::Xxh3(3), ..good },
        SessionCopy { block: BlockOffset(100), ..good },
        SessionCopy { id: id(2), ..good },
    ];
    for copy in bad {
        assert_eq!(lease.fetch(&copy).unwrap_err().kind, ErrorKind::Corrupt, "{copy:?}");
    }
    assert_eq!(lease.fetch(&SessionCopy { live: false, ..good }).unwrap_err().kind, ErrorKind::Gone);
}

/// Leases full of chance: no panic, nothing outside is read, and whatever is served is a valid archive of its
/// session.
#[test]
fn hostile_leases_harm_nobody() {
    let (mut bad, mut served) = (0, 0);
    for seed in 1..=300_u64 {
        let mut rng = Rng(seed);
        let lease = Lease::new();
        for slot in 0..GEOMETRY.slot_count {
            let number = rng.below(20) as u8;
            let found = version(rng.below(3) as u32, rng.below(4));
            let mut cell = live(number, rng.next() as u32, found, rng.below(4200) as u32);
            match rng.below(4) {
                0 => cell.archive_bytes = rng.next() as u32,
                1 => cell.checksum = ArchiveChecksum::Xxh3(rng.next()),
                2 => lease.put_block(cell.block.0 % 4000, &archive(number, found)),
                _ => {}
            }
            let mut bytes = cell.encode();
            if rng.below(3) == 0 {
                bytes[rng.below(64) as usize] = rng.next() as u8;
            }
            if rng.below(8) == 0 {
                bytes.iter_mut().for_each(|byte| *byte = rng.next() as u8);
            }
            lease.put_bytes(slot, Sequence(rng.below(2) as u32), &bytes);
        }
        let report = lease.scan();
        bad += report.bad.total();
        for copy in LeaseIndex::new(&report).copies() {
            if let Ok(bytes) = lease.fetch(copy) {
                let owned = crate::archive::OwnedArchive::copy_of(&bytes, &ArchiveLimits::default()).unwrap();
                assert_eq!(owned.session().id(), copy.id, "seed {seed}");
                served += 1;
            }
        }
    }
    assert!(bad > 1000 && served > 1000, "{bad} bad cells, {served} served");
}
