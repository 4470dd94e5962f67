use super::*;
use crate::archive::{ArchiveLimits, Builder, Head, ValueRef};
use crate::error::ErrorKind;
use crate::ident::{Incarnation, SessionId, Version};
use crate::lease::{
    ArchiveChecksum, BlockOffset, Cell, CellState, HeapMemory, LEASE_MAGIC, LeaseGeometry, LeaseHeader,
    LeaseMemory, Sequence, SlotIndex,
};
use crate::transport::memory::{ServerLease, create};
use crate::transport::{Link, Outcome, Posted, Push};
use rustix::fs::{MemfdFlags, SealFlags};
use std::os::fd::{AsFd, OwnedFd};

pub(super) const NODE: Incarnation = Incarnation(0x11);
pub(super) const SERVER: Incarnation = Incarnation(0x22);

pub(super) fn header() -> LeaseHeader {
    LeaseHeader {
        geometry: LeaseGeometry { slot_count: 64, heap_bytes: 1 << 20, chunk_bytes: 1 << 20 },
        node: "n1".to_owned(),
        node_incarnation: NODE,
        server_incarnation: SERVER,
    }
}

fn passed(lease: &ServerLease) -> OwnedFd {
    lease.fd().try_clone_to_owned().unwrap()
}

/// A memfd with these first bytes, as a wrong or hostile server might pass it.
fn raw(bytes: &[u8], size: u64, seals: SealFlags) -> OwnedFd {
    let fd = rustix::fs::memfd_create("raw", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&fd, size).unwrap();
    rustix::io::pwrite(&fd, bytes, 0).unwrap();
    rustix::fs::fcntl_add_seals(&fd, seals).unwrap();
    fd
}

/// The first page of a good lease.
fn good_page() -> Vec<u8> {
    let memory = HeapMemory::new(header().geometry.total_bytes());
    header().write(&memory).unwrap();
    let mut page = vec![0; 4096];
    memory.read(0, &mut page).unwrap();
    page
}

fn refusal(fd: OwnedFd) -> (ErrorKind, String) {
    match map(fd, NODE, SERVER) {
        Ok(_) => panic!("it was mapped"),
        Err(error) => (error.kind, error.to_string()),
    }
}

#[test]
fn raw_bytes_get_the_error_that_fits() {
    let total = header().geometry.total_bytes();
    let good = good_page();
    let changed = |at: usize, bytes: &[u8]| {
        let mut page = good.clone();
        page[at..at + bytes.len()].copy_from_slice(bytes);
        raw(&page, total, SealFlags::SHRINK)
    };
    map(changed(0, &LEASE_MAGIC), NODE, SERVER).expect("the unchanged page is good");
    assert_eq!(refusal(changed(8, &[0; 8])).0, ErrorKind::NotReady);
    assert_eq!(refusal(raw(&[], total, SealFlags::SHRINK)).0, ErrorKind::NotReady);
    let (kind, text) = refusal(changed(8, &7_u64.to_le_bytes()));
    assert_eq!(kind, ErrorKind::VersionMismatch);
    assert!(text.contains('7') && text.contains('1'), "{text}");
    assert_eq!(refusal(changed(0, b"ELFELFEL")).0, ErrorKind::Corrupt);
    assert_eq!(refusal(changed(16, &0_u64.to_le_bytes())).0, ErrorKind::Corrupt);
    assert_eq!(refusal(changed(16, &u64::MAX.to_le_bytes())).0, ErrorKind::Corrupt);
    assert_eq!(refusal(changed(24, &u64::MAX.to_le_bytes())).0, ErrorKind::Corrupt);
    assert_eq!(refusal(changed(48, &4096_u64.to_le_bytes())).0, ErrorKind::Corrupt);
    assert_eq!(refusal(changed(80, &u64::MAX.to_le_bytes())).0, ErrorKind::Corrupt);
    assert_eq!(refusal(changed(88, b"/.")).0, ErrorKind::Corrupt);
    assert_eq!(refusal(raw(&good, total - 4096, SealFlags::SHRINK)).0, ErrorKind::TooSmall);
    assert_eq!(refusal(raw(&good, 100, SealFlags::SHRINK)).0, ErrorKind::TooSmall);
    assert_eq!(refusal(raw(&[], 0, SealFlags::SHRINK)).0, ErrorKind::TooSmall);
    assert_eq!(refusal(changed(64, &9_u64.to_le_bytes())).0, ErrorKind::OwnershipLost);
    assert_eq!(refusal(changed(72, &9_u64.to_le_bytes())).0, ErrorKind::OwnershipLost);
}

#[test]
fn a_descriptor_that_could_shrink_is_refused() {
    let (kind, text) = refusal(raw(&good_page(), header().geometry.total_bytes(), SealFlags::GROW));
    assert_eq!(kind, ErrorKind::Corrupt);
    assert!(text.contains("shrinking"), "{text}");
    let file = tempfile::tempfile().unwrap();
    assert_eq!(refusal(file.into()).0, ErrorKind::Corrupt);
}

#[test]
fn a_lease_is_allocated_and_sealed_against_every_size() {
    let lease = create(&header(), false).unwrap();
    let status = rustix::fs::fstat(lease.fd()).unwrap();
    assert_eq!(status.st_size as u64, lease.bytes());
    assert!(status.st_blocks as u64 * 512 >= lease.bytes(), "{} blocks", status.st_blocks);
    let fd = passed(&lease);
    for size in [0, 4096, lease.bytes() * 2] {
        assert_eq!(rustix::fs::ftruncate(&fd, size), Err(rustix::io::Errno::PERM));
    }
    assert!(
        rustix::fs::fcntl_add_seals(&fd, SealFlags::WRITE).is_err(),
        "the node must not stop the server's writes"
    );
}

#[test]
fn more_than_the_host_has_is_full_not_a_signal() {
    let geometry = LeaseGeometry { slot_count: 64, heap_bytes: 1 << 39, chunk_bytes: 1 << 20 };
    let error = create(&LeaseHeader { geometry, ..header() }, false).map(|_| ()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Full);
    assert!(error.context.contains(&geometry.total_bytes().to_string()), "{error}");
}

#[test]
fn huge_pages_are_used_or_their_refusal_is_told() {
    let lease = create(&header(), true).unwrap();
    match lease.huge_pages_refused() {
        None => assert_eq!(lease.bytes() % (2 << 20), 0),
        Some(why) => assert!(!why.is_empty()),
    }
    map(passed(&lease), NODE, SERVER).unwrap();
}

pub(super) fn archive(id: SessionId, version: Version, bytes: usize) -> Vec<u8> {
    let head = Head { id, version, created_ms: 1, idle_ms: 2, absolute_ms: 3, owner: None };
    let data = vec![version.counter as u8; bytes];
    let attributes = [("data", ValueRef::Bytes(&data))];
    Builder::new().build(&head, attributes.into_iter(), &ArchiveLimits::default()).unwrap().to_vec()
}

pub(super) fn live(id: SessionId, sequence: u32, counter: u64, block: u32, archive_bytes: usize) -> Cell {
    Cell {
        id,
        sequence: Sequence(sequence),
        version: Version { epoch: 1, counter },
        state: CellState::Live,
        block: BlockOffset(block),
        archive_bytes: archive_bytes as u32,
        expiry_ms: 1,
        checksum: ArchiveChecksum::None,
    }
}

#[test]
fn pushes_out_of_bounds_write_nothing() {
    let lease = create(&header(), false).unwrap();
    let link = map(passed(&lease), NODE, SERVER).unwrap();
    let before = lease_bytes(&lease);
    let id = SessionId([1; 16]);
    let archive = archive(id, Version { epoch: 1, counter: 1 }, 100);
    let cell = live(id, 1, 1, 0, archive.len()).encode();
    let base = Push { slot: SlotIndex(0), sequence: Sequence(1), cell: &cell, block: None };
    for push in [
        Push { slot: SlotIndex(64), ..base },
        Push { slot: SlotIndex(u32::MAX), ..base },
        Push { block: Some((BlockOffset(4096), &archive)), ..base },
        Push { block: Some((BlockOffset(4095), &[1; 257])), ..base },
        Push { block: Some((BlockOffset(u32::MAX), &archive)), ..base },
    ] {
        assert_eq!(link.post(&push), Posted::Done(Outcome::Failed(crate::transport::FailKind::Bounds)));
    }
    assert!(lease_bytes(&lease) == before, "a refused push wrote something");
}

fn lease_bytes(lease: &ServerLease) -> Vec<u8> {
    let mut bytes = vec![0; lease.bytes() as usize];
    rustix::io::pread(lease.fd().as_fd(), &mut bytes, 0).unwrap();
    bytes
}

#[test]
fn reading_needs_the_seal() {
    let lease = create(&header(), false).unwrap();
    assert_eq!(lease.scan(&ArchiveLimits::default()).unwrap_err().kind, ErrorKind::Invalid);
    lease.seal();
    assert!(lease.scan(&ArchiveLimits::default()).unwrap().cells.is_empty());
}

/// A node that wakes up after its lease was sealed writes what it likes; it acks nothing, and what was
/// scanned stays.
#[test]
fn r2_a_zombie_acks_nothing() {
    let scenario = || {
        let lease = create(&header(), false).map_err(|error| error.to_string())?;
        let link = map(passed(&lease), NODE, SERVER).map_err(|error| error.to_string())?;
        lease.seal();
        let cell = live(SessionId([1; 16]), 1, 1, 0, 100).encode();
        let push = Push { slot: SlotIndex(0), sequence: Sequence(1), cell: &cell, block: None };
        match link.post(&push) {
            Posted::Done(Outcome::Sealed) => Ok(()),
            other => Err(format!("a push into a sealed lease ended with {other:?}")),
        }
    };
    #[cfg(feature = "mutants")]
    crate::rules::assert_teeth(crate::rules::Rule::R2SealByView, scenario);
    #[cfg(not(feature = "mutants"))]
    scenario().unwrap();
}

#[test]
fn heartbeats_pass_in_both_directions() {
    let lease = create(&header(), false).unwrap();
    let link = map(passed(&lease), NODE, SERVER).unwrap();
    lease.beat(7);
    link.beat(9, 1234);
    assert_eq!((link.peer_beat(), lease.node_beat(), lease.node_sessions()), (7, 9, 1234));
}

struct ShmFactory;

impl crate::transport::conformance::Factory for ShmFactory {
    fn open(
        &self,
        header: &LeaseHeader,
    ) -> crate::error::Result<(std::sync::Arc<dyn crate::transport::ServerEnd>, Box<dyn Link>)> {
        let lease = create(header, false)?;
        let link = map(passed(&lease), header.node_incarnation, header.server_incarnation)?;
        Ok((std::sync::Arc::new(lease), Box::new(link)))
    }
}

#[test]
fn shared_memory_conforms() {
    let ran = crate::transport::conformance::run(&ShmFactory).unwrap_or_else(|why| panic!("{why}"));
    assert!(ran >= 17, "{ran}");
}
