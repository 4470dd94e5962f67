//! The lease without a node around it: one push through shared memory, and the scan of a sealed lease of a
//! million slots.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use selvage_fabric::archive::ArchiveLimits;
use selvage_fabric::ident::{Incarnation, SessionId, Version};
use selvage_fabric::lease::{
    ArchiveChecksum, BlockOffset, Cell, CellState, HeapMemory, LeaseGeometry, LeaseHeader, LeaseIndex,
    LeaseMemory, Sequence, SlotIndex, scan,
};
use selvage_fabric::limits::{BLOCK_UNIT_BYTES, CHUNK_BYTES_MIN};
use selvage_fabric::transport::{Link, Outcome, Posted, Push, memory, shm};
use std::time::Duration;

const SCANNED_SLOTS: u32 = 1 << 20;

fn cell(slot: u32, sequence: Sequence, block: BlockOffset, archive_bytes: u32) -> Cell {
    let mut id = SessionId::default();
    id.0[..4].copy_from_slice(&slot.wrapping_mul(0x9e37_79b9).to_le_bytes());
    id.0[4..8].copy_from_slice(&slot.to_le_bytes());
    Cell {
        id,
        sequence,
        version: Version { epoch: 1, counter: u64::from(sequence.0) },
        state: CellState::Live,
        block,
        archive_bytes,
        expiry_ms: 1_900_000_000_000,
        checksum: ArchiveChecksum::None,
    }
}

fn push(c: &mut Criterion) {
    let geometry = LeaseGeometry {
        slot_count: 1024,
        heap_bytes: 4 * CHUNK_BYTES_MIN as u64,
        chunk_bytes: CHUNK_BYTES_MIN as u64,
    };
    let (node, server) = (Incarnation(1), Incarnation(2));
    let header =
        LeaseHeader { geometry, node: "n1".into(), node_incarnation: node, server_incarnation: server };
    let lease = memory::create(&header, false).unwrap();
    let link = shm::map(lease.fd().try_clone_to_owned().unwrap(), node, server).unwrap();
    let mut group = c.benchmark_group("push");
    for bytes in [64_usize, 1024, 16 << 10] {
        let archive = vec![7; bytes];
        let blocks = [BlockOffset(0), BlockOffset(bytes.div_ceil(BLOCK_UNIT_BYTES) as u32)];
        let mut sequence = Sequence::default();
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(format!("{bytes}"), |b| {
            b.iter(|| {
                sequence = sequence.next();
                let block = blocks[sequence.0 as usize & 1];
                let cell = cell(5, sequence, block, bytes as u32).encode();
                let push = Push { slot: SlotIndex(5), sequence, cell: &cell, block: Some((block, &archive)) };
                assert_eq!(link.post(&push), Posted::Done(Outcome::Acked));
            });
        });
    }
    group.finish();
}

fn scan_a_million(c: &mut Criterion) {
    let heap_bytes = u64::from(SCANNED_SLOTS) * BLOCK_UNIT_BYTES as u64;
    let geometry =
        LeaseGeometry { slot_count: SCANNED_SLOTS, heap_bytes, chunk_bytes: CHUNK_BYTES_MIN as u64 };
    let memory = HeapMemory::new(geometry.total_bytes());
    for slot in 0..SCANNED_SLOTS {
        // Both cells of every slot are in use, as after two commits of every session.
        for sequence in [Sequence(1), Sequence(2)] {
            let at = geometry.cell_offset(SlotIndex(slot), sequence).unwrap();
            memory.write(at, &cell(slot, sequence, BlockOffset(slot), 200).encode()).unwrap();
        }
    }
    let limits = ArchiveLimits::default();
    let mut group = c.benchmark_group("sealed lease of 1 M sessions");
    group.sample_size(10);
    group.bench_function("scan", |b| {
        b.iter(|| {
            let report = scan(&memory, &geometry, &limits).unwrap();
            assert_eq!(report.cells.len(), SCANNED_SLOTS as usize);
            report
        });
    });
    group.bench_function("scan and index", |b| {
        b.iter(|| {
            let (index, _) = LeaseIndex::scan(&memory, &geometry, &limits).unwrap();
            assert_eq!(index.live(), u64::from(SCANNED_SLOTS));
            index
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = push, scan_a_million
}
criterion_main!(benches);
