//! Sessions to push, made beforehand, so that a writer does nothing but post and poll.

use super::segment::Segment;
use selvage_fabric::archive::{ArchiveLimits, Builder, Head, ValueRef};
use selvage_fabric::ident::{SessionId, Version};
use selvage_fabric::lease::{
    ArchiveChecksum, BlockOffset, CELL_BYTES, Cell, CellState, Sequence, SessionCopy, SlotIndex,
};
use selvage_fabric::transport::Push;

/// One push, ready to go.
pub struct Ready<'a> {
    slot: SlotIndex,
    sequence: Sequence,
    cell: [u8; CELL_BYTES],
    block: BlockOffset,
    archive: &'a [u8],
}

/// Pushes of one session in one slot; push `at` has version `at + 1`. The two blocks take turns, so that an
/// acked cell never names a block that is written (R7).
pub struct Story<'a> {
    pub id: SessionId,
    pushes: Vec<Ready<'a>>,
}

impl<'a> Story<'a> {
    pub fn new(segment: &'a Segment, slot: u32, pushes: usize, bytes: usize) -> Self {
        let id = SessionId([slot as u8 + 1; 16]);
        let units = (bytes as u32 + 512).div_ceil(256);
        let pushes = (1..=pushes as u32)
            .map(|counter| {
                let archive = segment.place(&archive(id, u64::from(counter), bytes));
                let block = BlockOffset((slot * 2 + (counter & 1)) * units);
                let cell = Cell {
                    id,
                    sequence: Sequence(counter),
                    version: Version { epoch: 1, counter: u64::from(counter) },
                    state: CellState::Live,
                    block,
                    archive_bytes: archive.len() as u32,
                    expiry_ms: u64::MAX,
                    checksum: ArchiveChecksum::xxh3(archive),
                };
                let sequence = Sequence(counter);
                Ready { slot: SlotIndex(slot), sequence, cell: cell.encode(), block, archive }
            })
            .collect();
        Self { id, pushes }
    }

    pub fn push(&self, version: u64) -> Option<Push<'_>> {
        let ready = self.pushes.get(usize::try_from(version).ok()?.checked_sub(1)?)?;
        Some(Push {
            slot: ready.slot,
            sequence: ready.sequence,
            cell: &ready.cell,
            block: Some((ready.block, ready.archive)),
        })
    }

    /// What a fetch must give for a copy.
    pub fn archive_of(&self, copy: &SessionCopy) -> &[u8] {
        self.pushes[copy.version.counter as usize - 1].archive
    }
}

/// An archive whose attribute tells its version.
pub fn archive(id: SessionId, counter: u64, bytes: usize) -> Vec<u8> {
    let version = Version { epoch: 1, counter };
    let head = Head { id, version, created_ms: 1, idle_ms: 2, absolute_ms: 3, owner: None };
    let data = vec![counter as u8 ^ id.0[0]; bytes];
    let limits = ArchiveLimits { archive_bytes_max: 16 << 20, ..ArchiveLimits::default() };
    Builder::new().build(&head, [("data", ValueRef::Bytes(&data))].into_iter(), &limits).unwrap().to_vec()
}
