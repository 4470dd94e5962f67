//! A lease that its former owner has filled as it liked, and goes on filling while it is looked at:
//!
//! - the scan ends, reads each slot once and of archives no more than twice the heap;
//! - it finds no session twice, and its counts are those of what it found;
//! - whatever it says is there can be fetched whole, as the session and version that the cell names, or is
//!   refused (R7);
//! - when the memory rests, a second scan says the same, and each session's copy is the best of all whole
//!   cells that an own reading of the rules finds;
//! - a header that is accepted describes no more memory than there is.
//!
//! Cells have checksums, which chance does not meet; so the input is a list of acts of the owner: raw bytes
//! anywhere, a well-formed cell that says anything, a genuine session. The last ones are kept for the time of
//! the scan.

use arbitrary::{Result, Unstructured};
use selvage_fabric::archive::{ArchiveLimits, Builder, Head, OwnedArchive, ValueRef};
use selvage_fabric::error::Result as FabricResult;
use selvage_fabric::ident::{Incarnation, SessionId, Version};
use selvage_fabric::lease::{
    ArchiveChecksum, BlockOffset, CELL_BYTES, Cell, CellState, HeapMemory, LeaseGeometry, LeaseHeader,
    LeaseIndex, LeaseMemory, SLOT_BYTES, Sequence, SessionCopy, SlotIndex, fetch, scan,
};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

const SLOTS: u32 = 16;
const GEOMETRY: LeaseGeometry =
    LeaseGeometry { slot_count: SLOTS, heap_bytes: 16 << 10, chunk_bytes: 4 << 10 };
const LIMITS: ArchiveLimits = ArchiveLimits { archive_bytes_max: 4096, attributes_max: 64 };
/// The best cell of each session, if it is live, and if it is gone.
type Best = BTreeMap<SessionId, (Version, bool)>;

/// Memory whose owner does one more act before each read.
struct Restless {
    memory: HeapMemory,
    acts: Mutex<Vec<Act>>,
    bytes_read: AtomicU64,
}

/// What the owner writes at once.
type Act = Vec<(u64, Vec<u8>)>;

impl LeaseMemory for Restless {
    fn bytes(&self) -> u64 {
        self.memory.bytes()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> FabricResult<()> {
        if let Some(act) = self.acts.lock().unwrap_or_else(PoisonError::into_inner).pop() {
            write(&self.memory, &act);
        }
        self.bytes_read.fetch_add(out.len() as u64, Ordering::Relaxed);
        self.memory.read(offset, out)
    }
    fn write(&self, offset: u64, data: &[u8]) -> FabricResult<()> {
        self.memory.write(offset, data)
    }
    fn load_u64(&self, offset: u64) -> FabricResult<u64> {
        self.memory.load_u64(offset)
    }
    fn store_u64(&self, offset: u64, value: u64) -> FabricResult<()> {
        self.memory.store_u64(offset, value)
    }
}

pub fn run(bytes: &[u8]) {
    let memory = HeapMemory::new(GEOMETRY.total_bytes());
    write_header(&memory);
    let mut input = Unstructured::new(bytes);
    let mut acts = Vec::new();
    let late = input.int_in_range(0..=8).unwrap_or(0);
    // An input that is used up ends the acts.
    while let Some(act) = (!input.is_empty()).then(|| act(&mut input).ok()).flatten() {
        acts.push(act);
    }
    let late = acts.split_off(acts.len().saturating_sub(late));
    acts.iter().for_each(|act| write(&memory, act));

    let restless = Restless { memory, acts: Mutex::new(late), bytes_read: AtomicU64::new(0) };
    let (index, _) =
        LeaseIndex::scan(&restless, &GEOMETRY, &LIMITS).expect("the memory is as large as it says");
    let bytes_read = restless.bytes_read.load(Ordering::Relaxed);
    assert!(
        bytes_read <= u64::from(SLOTS) * SLOT_BYTES as u64 + 2 * GEOMETRY.heap_bytes,
        "{bytes_read} read"
    );
    holds(&index, &restless);

    let memory = restless.memory;
    let (index, bad) = LeaseIndex::scan(&memory, &GEOMETRY, &LIMITS).expect("as before");
    holds(&index, &memory);
    let report = scan(&memory, &GEOMETRY, &LIMITS).expect("as before");
    assert_eq!(report.bad, bad);
    assert_eq!(LeaseIndex::new(&report).copies(), index.copies());
    let found = index.copies().iter().map(|copy| (copy.id, (copy.version, copy.live))).collect::<Best>();
    assert_eq!(found, best(&memory));
    header(&memory);
}

/// What must hold of any index, over any memory.
fn holds(index: &LeaseIndex, memory: &dyn LeaseMemory) {
    let copies = index.copies();
    assert!(copies.len() <= SLOTS as usize);
    assert_eq!(index.live(), copies.iter().filter(|copy| copy.live).count() as u64);
    assert_eq!(index.unsettled(), index.live());
    let live_bytes: u64 =
        copies.iter().filter(|copy| copy.live).map(|copy| u64::from(copy.archive_bytes)).sum();
    assert!(live_bytes <= GEOMETRY.heap_bytes, "{live_bytes} live");
    for copy in copies {
        assert_eq!(index.find(&copy.id), Some(copy), "each session once");
        fetched(memory, copy);
    }
}

fn fetched(memory: &dyn LeaseMemory, copy: &SessionCopy) {
    let Ok(archive) = fetch(memory, &GEOMETRY, copy, &LIMITS) else { return };
    assert!(copy.live, "a tombstone has no archive");
    let archive = OwnedArchive::copy_of(&archive, &LIMITS).expect("what is given out is whole");
    let version = archive.session().version();
    assert_eq!((archive.session().id(), version.epoch), (copy.id, copy.version.epoch), "R7");
    assert!(version.counter <= copy.version.counter, "R7: {version} for {}", copy.version);
    assert!(copy.checksum.matches(archive.bytes()));
}

/// The rules of section 4 of the design, read anew: the newer whole cell of each slot, and of several slots
/// the higher version; of one version the tombstone.
fn best(memory: &HeapMemory) -> Best {
    let mut best = Best::new();
    let (mut heap_left, mut checked_left) = (GEOMETRY.heap_bytes, 2 * GEOMETRY.heap_bytes);
    for slot in 0..SLOTS {
        let mut pair: Vec<(Sequence, Option<Cell>)> = Vec::new();
        for half in 0..2 {
            let mut bytes = [0; CELL_BYTES];
            let offset = GEOMETRY.cell_offset(SlotIndex(slot), Sequence(half)).expect("a slot");
            memory.read(offset, &mut bytes).expect("inside");
            let cell = Cell::decode(&bytes).ok().flatten().filter(|cell| cell.sequence.0 % 2 == half);
            let sequence = Sequence(u32::from_le_bytes([bytes[16], bytes[17], bytes[18], bytes[19]]));
            pair.push((sequence, cell));
        }
        if pair[1].0.is_newer_than(pair[0].0) {
            pair.swap(0, 1);
        }
        let whole = pair.into_iter().filter_map(|(_, cell)| cell);
        let mut whole = whole.filter(|cell| is_whole(memory, cell, &mut heap_left, &mut checked_left));
        let Some(cell) = whole.next() else { continue };
        if cell.state == CellState::Moved {
            continue;
        }
        let (version, live) = (cell.version, cell.state == CellState::Live);
        let known = best.entry(cell.id).or_insert((version, live));
        if (version, !live) > (known.0, !known.1) {
            *known = (version, live);
        }
    }
    best
}

fn is_whole(memory: &HeapMemory, cell: &Cell, heap_left: &mut u64, checked_left: &mut u64) -> bool {
    if cell.state != CellState::Live {
        return true;
    }
    let length = cell.archive_bytes as usize;
    let begin = u64::from(cell.block.0) * 256;
    let is_inside = begin + length as u64 <= GEOMETRY.heap_bytes;
    if length == 0 || length > LIMITS.archive_bytes_max || !is_inside || length as u64 > *heap_left {
        return false;
    }
    if cell.checksum != ArchiveChecksum::None {
        if length as u64 > *checked_left {
            return false;
        }
        *checked_left -= length as u64;
        let mut archive = vec![0; length];
        memory.read(GEOMETRY.heap_offset() + begin, &mut archive).expect("inside");
        if !cell.checksum.matches(&archive) {
            return false;
        }
    }
    *heap_left -= length as u64;
    true
}

fn write_header(memory: &HeapMemory) {
    let header = LeaseHeader {
        geometry: GEOMETRY,
        node: "n1".to_owned(),
        node_incarnation: Incarnation(1),
        server_incarnation: Incarnation(2),
    };
    header.write(memory).expect("a good header");
}

/// A node that maps a lease goes by its header.
fn header(memory: &HeapMemory) {
    let Ok(header) = LeaseHeader::read(memory) else { return };
    header.geometry.check().expect("checked");
    assert!(header.geometry.total_bytes() <= memory.bytes(), "{header:?}");
    let (index, _) = LeaseIndex::scan(memory, &header.geometry, &LIMITS).expect("inside");
    for copy in index.copies() {
        // Refused or whole; which, `holds` knows for the true geometry.
        let _ = fetch(memory, &header.geometry, copy, &LIMITS);
    }
}

fn write(memory: &HeapMemory, act: &Act) {
    for (offset, bytes) in act {
        // Past the end is refused.
        let _ = memory.write(*offset, bytes);
    }
}

fn act(input: &mut Unstructured<'_>) -> Result<Act> {
    match input.int_in_range(0..=3)? {
        0 => {
            let offset = input.int_in_range(0..=GEOMETRY.total_bytes())?;
            let length = input.int_in_range(0..=64)?;
            Ok(vec![(offset, input.bytes(usize::min(length, input.len()))?.to_vec())])
        }
        1 => {
            let (slot, cell) = (input.int_in_range(0..=SLOTS - 1)?, cell(input)?);
            Ok(vec![put(slot, &cell)])
        }
        _ => genuine(input),
    }
}

fn cell(input: &mut Unstructured<'_>) -> Result<Cell> {
    let state = *input.choose(&[CellState::Live, CellState::Tombstone, CellState::Moved])?;
    let id = SessionId([input.int_in_range(0..=3)?; 16]);
    let sequence = Sequence(input.arbitrary()?);
    let version = Version { epoch: input.arbitrary()?, counter: input.arbitrary()? };
    if input.arbitrary()? {
        return Ok(Cell::without_block(state, id, sequence, version, input.arbitrary()?));
    }
    let checksum =
        if input.arbitrary()? { ArchiveChecksum::Xxh3(input.arbitrary()?) } else { ArchiveChecksum::None };
    Ok(Cell {
        id,
        sequence,
        version,
        state,
        block: BlockOffset(input.arbitrary()?),
        archive_bytes: input.arbitrary()?,
        expiry_ms: input.arbitrary()?,
        checksum,
    })
}

fn genuine(input: &mut Unstructured<'_>) -> Result<Act> {
    let id = SessionId([input.int_in_range(0..=3)?; 16]);
    let version = Version { epoch: input.int_in_range(0..=2)?, counter: input.int_in_range(0..=3)? };
    let head = Head { id, version, created_ms: 1, idle_ms: 2, absolute_ms: 3, owner: None };
    let mut builder = Builder::new();
    let text = "x".repeat(input.int_in_range(0..=2048)?);
    let attributes = [("n", ValueRef::I64(input.arbitrary()?)), ("t", ValueRef::Text(&text))];
    let Ok(archive) = builder.build(&head, attributes.into_iter(), &LIMITS) else { return Ok(Act::new()) };
    let block = BlockOffset(input.int_in_range(0..=63)?);
    let Some(offset) = GEOMETRY.block_offset(block, archive.len()) else { return Ok(Act::new()) };
    let counter = version.counter + u64::from(input.int_in_range(0..=2_u8)?);
    let checksum = if input.arbitrary()? { ArchiveChecksum::xxh3(archive) } else { ArchiveChecksum::None };
    let cell = Cell {
        id,
        sequence: Sequence(input.int_in_range(0..=5)?),
        version: Version { counter, ..version },
        state: CellState::Live,
        block,
        archive_bytes: archive.len() as u32,
        expiry_ms: 1,
        checksum,
    };
    Ok(vec![(offset, archive.to_vec()), put(input.int_in_range(0..=SLOTS - 1)?, &cell)])
}

fn put(slot: u32, cell: &Cell) -> (u64, Vec<u8>) {
    let offset = GEOMETRY.cell_offset(SlotIndex(slot), cell.sequence).expect("a slot of the lease");
    (offset, cell.encode().to_vec())
}

/// Any bytes are acts; these choose each kind, many times over.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut number = 0x9e37_79b9_u32;
    let mut byte = || {
        number ^= number << 13;
        number ^= number >> 17;
        number ^= number << 5;
        number as u8
    };
    let mut seeds: Vec<Vec<u8>> = (1..=12).map(|length| (0..40 * length).map(|_| byte()).collect()).collect();
    seeds.push(vec![0; 64]);
    seeds.push(vec![2; 256]);
    seeds.push(vec![0xff; 64]);
    seeds
}
