//! The push and the seal under loom: the production code of both sides, with every older value that a load
//! may see.

use super::map;
use crate::archive::{ArchiveLimits, Builder, Head};
use crate::ident::{Incarnation, SessionId, Version};
use crate::lease::{
    ArchiveChecksum, BlockOffset, Cell, CellState, LeaseGeometry, LeaseHeader, LeaseIndex, Sequence,
    SlotIndex,
};
use crate::sync::checked::{Checked, check, outside, spawn, watch, watch_again, without_fence};
use crate::transport::memory::{self, ServerLease};
use crate::transport::shm::ShmLink;
use crate::transport::{Link, Outcome, Posted, Push, Region};
use std::panic::resume_unwind;
use std::sync::Arc;

const ID: SessionId = SessionId([9; 16]);

/// A lease with one slot, and the node's link to it; both are watched.
fn lease() -> (Arc<ServerLease>, Arc<ShmLink>) {
    let (lease, link) = outside(|| {
        let header = LeaseHeader {
            geometry: LeaseGeometry { slot_count: 1, heap_bytes: 4096, chunk_bytes: 4096 },
            node: "n1".to_owned(),
            node_incarnation: Incarnation(1),
            server_incarnation: Incarnation(2),
        };
        let lease = memory::create(&header, false).unwrap();
        let fd = lease.fd().try_clone_to_owned().unwrap();
        (lease, map(fd, Incarnation(1), Incarnation(2)).unwrap())
    });
    let bytes = lease.header().geometry.total_bytes() as usize;
    let range = watch(lease.region().address() as usize, bytes);
    watch_again(range, link.mapping().address() as usize, bytes);
    (Arc::new(lease), Arc::new(link))
}

fn archive() -> Vec<u8> {
    let version = Version { epoch: 1, counter: 1 };
    let head = Head { id: ID, version, created_ms: 1, idle_ms: 2, absolute_ms: 3, owner: None };
    Builder::new().build(&head, std::iter::empty(), &ArchiveLimits::default()).unwrap().to_vec()
}

fn push(link: &ShmLink, archive: Option<&[u8]>) -> Outcome {
    let cell = Cell {
        id: ID,
        sequence: Sequence(1),
        version: Version { epoch: 1, counter: 1 },
        state: if archive.is_some() { CellState::Live } else { CellState::Tombstone },
        block: BlockOffset(0),
        archive_bytes: archive.map_or(0, <[u8]>::len) as u32,
        expiry_ms: 5,
        checksum: ArchiveChecksum::None,
    };
    let block = archive.map(|archive| (BlockOffset(0), archive));
    match link.post(&Push { slot: SlotIndex(0), sequence: Sequence(1), cell: &cell.encode(), block }) {
        Posted::Done(outcome) => outcome,
        Posted::Pending(_) => panic!("shared memory acks at once"),
    }
}

/// The node pushes while the server seals and scans: either the node sees the seal, or the scan the cell.
fn handshake() -> Result<Checked, String> {
    check(2, || {
        let (lease, link) = lease();
        let node = spawn(move || push(&link, None));
        lease.seal();
        let scan = lease.scan(&ArchiveLimits::default()).unwrap();
        let outcome = node.join().unwrap();
        if outcome != Outcome::Sealed && scan.cells.is_empty() {
            // Not by a panic that is printed: one test expects it.
            resume_unwind(Box::new("acked, and not found"));
        }
    })
}

#[test]
fn a_push_that_was_acked_is_seen_by_the_scan() {
    println!("{:?}", handshake().unwrap());
}

#[test]
fn either_fence_is_needed() {
    for file in ["transport/shm/data.rs", "transport/memory/lease.rs"] {
        let why = without_fence(file, handshake).expect_err(file);
        assert_eq!(why, "acked, and not found");
    }
}

/// Whoever sees a cell that counts sees its block, though no checksum says so.
#[test]
fn a_cell_that_is_seen_has_its_archive() {
    let checked = check(2, || {
        let (lease, link) = lease();
        let archive = archive();
        let expected = archive.clone();
        let node = spawn(move || push(&link, Some(&archive)));
        lease.seal();
        let (index, _) = lease.index(&ArchiveLimits::default()).unwrap();
        let seen =
            LeaseIndex::find(&index, &ID).map(|copy| lease.fetch(copy, &ArchiveLimits::default()).unwrap());
        assert!(seen.is_none_or(|seen| seen == expected));
        node.join().unwrap();
    });
    println!("{:?}", checked.unwrap());
}
