//! A real server on `rxe1`, and node processes on `rxe0`: links, their end, the fence, staging, and a device
//! that is removed. `cargo x rdma-test` runs these where there are such devices; without them they fail.

#[path = "../daemon/host.rs"]
#[allow(dead_code, reason = "shared with the tests of the daemon, which use the rest")]
mod host;
mod rate;
#[path = "../../../fabric/tests/verbs/rave.rs"]
mod rave;
#[path = "../../../fabric/tests/verbs/segment.rs"]
mod segment;
mod support;

use host::*;
use selvage_fabric::config::Rdma;
use selvage_fabric::control::message::{ClaimAnswer, FromServer, Refusal, RemoteMemory, ToServer};
use selvage_fabric::ident::SessionId;
use selvage_fabric::lease::{
    ArchiveChecksum, BlockOffset, Cell, CellState, LeaseGeometry, Sequence, SlotIndex,
};
use selvage_fabric::numbers::ServerCounter;
use selvage_fabric::transport::verbs::{Opening, Verbs, VerbsLink};
use selvage_fabric::transport::{FailKind, Link, Outcome, Posted, Push, Region};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

const SMALL: &str = "sessions_max = 1024\nlease_bytes = 4194304\n[rdma]\ndevice = \"rxe1\"\n";

/// A node's process: its hold on RDMA and the memory that it would push from.
struct Process {
    verbs: Verbs,
    segment: Arc<dyn Region>,
}

/// A link and its lifeline.
struct Connected {
    peer: Peer,
    number: u64,
    link: VerbsLink,
    /// The lease, as the server told it.
    memory: RemoteMemory,
}

impl Process {
    fn new() -> Self {
        Self::of(support::lease_of("segment", 1 << 20).region())
    }

    /// A process that pushes from this memory.
    fn of(segment: Arc<dyn Region>) -> Self {
        let settings = Rdma { device: Some("rxe0".into()), ..Rdma::default() };
        Self { verbs: Verbs::new(&settings), segment }
    }

    fn try_connect(&self, host: &Host, node: u64) -> Result<Connected, Refusal> {
        self.aim(host, node, |own| own)
    }

    /// Connects, and uses another piece of memory than it was told.
    fn aim(
        &self,
        host: &Host,
        node: u64,
        aim: impl FnOnce(RemoteMemory) -> RemoteMemory,
    ) -> Result<Connected, Refusal> {
        let mut peer = host.node(node);
        let opening = Opening::begin(&self.verbs, &self.segment, None).unwrap();
        match peer.ask(&ToServer::Connect { offer: opening.offer() }) {
            FromServer::Connected {
                link,
                server,
                slot_count,
                heap_bytes,
                chunk_bytes,
                endpoint,
                memory,
                ..
            } => {
                let geometry = LeaseGeometry { slot_count, heap_bytes, chunk_bytes };
                let number = link;
                let link = opening.finish(&endpoint, aim(memory), geometry, server).unwrap();
                Ok(Connected { peer, number, link, memory })
            }
            FromServer::Refused(refusal) => Err(refusal),
            other => panic!("neither connected nor refused: {other:?}"),
        }
    }

    fn connect(&self, host: &Host, node: u64) -> Connected {
        self.try_connect(host, node).unwrap_or_else(|refusal| panic!("{refusal:?}"))
    }
}

/// Pushes a tombstone, and waits for its end.
fn push(link: &VerbsLink, slot: u32, id: SessionId) -> Outcome {
    let cell = Cell {
        id,
        sequence: Sequence(1),
        version: version(1),
        state: CellState::Tombstone,
        block: BlockOffset(0),
        archive_bytes: 0,
        expiry_ms: u64::MAX / 2,
        checksum: ArchiveChecksum::None,
    };
    let push = Push { slot: SlotIndex(slot), sequence: cell.sequence, cell: &cell.encode(), block: None };
    end_of(link, link.post(&push))
}

/// Waits for the end of a push.
fn end_of(link: &VerbsLink, posted: Posted) -> Outcome {
    match posted {
        Posted::Done(outcome) => outcome,
        Posted::Pending(id) => {
            let begun = Instant::now();
            loop {
                if let Some(outcome) = link.poll(id) {
                    return outcome;
                }
                assert!(begun.elapsed() < WAIT, "a push does not end");
            }
        }
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < WAIT, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn shell(command: &str) {
    let output = Command::new("bash").args(["-c", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_node_pushes_until_the_seal_and_everything_acked_is_found() {
    let host = Host::new(SMALL);
    let _daemon = host.start("s1");
    let mut director = host.director();
    let server = director.server;
    assert!(director.report().rdma.starts_with("rxe1 port 1"), "{}", director.report().rdma);
    director.set_view(view(1, server, &[1, 2], &[]));
    let mut heir = host.node(2);
    heir.register(1);
    let process = Process::new();
    let mut node = process.connect(&host, 1);
    node.peer.register(1);
    for slot in 0..100 {
        assert_eq!(push(&node.link, slot, id(slot.into())), Outcome::Acked);
    }
    node.link.beat(7, 100);
    until("the node's heartbeat arrives", || {
        let report = director.report();
        report.leases[0].sessions == 100 && report.leases[0].beat_age_ms.is_some_and(|age| age < 5000)
    });
    until("the server's heartbeat is read", || {
        node.link.beat(8, 100);
        node.link.peer_beat() > 0
    });
    assert_eq!((director.rdma_links(), director.counter(ServerCounter::RdmaConnects)), (1, 1));
    assert!(director.report().rdma.contains("path MTU"), "{}", director.report().rdma);

    // The zombie writes at full rate meanwhile, and learns it from the card.
    let acked = AtomicU32::new(100);
    let (failed, learned) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            loop {
                let slot = acked.load(Ordering::Relaxed);
                match push(&node.link, slot % 1024, id(slot.into())) {
                    Outcome::Acked => acked.fetch_add(1, Ordering::Relaxed),
                    failed => return (failed, Instant::now()),
                };
                assert!(slot < 1023, "the seal comes too late for this test");
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        let begun = acked.load(Ordering::Relaxed);
        until("the writer is at work", || acked.load(Ordering::Relaxed) > begun + 20);
        let report = director.set_view(view(2, server, &[2], &[(1, false)]));
        let sealed = Instant::now();
        assert!(report.leases[0].sealed);
        let (failed, at) = writer.join().unwrap();
        (failed, at.saturating_duration_since(sealed))
    });
    let acked = acked.into_inner();
    println!("{acked} acked before the seal; {failed:?} {learned:?} after it");
    assert!(matches!(failed, Outcome::Sealed | Outcome::Failed(FailKind::Revoked | FailKind::Disconnected)));
    let late = push(&node.link, 1023, id(2000));
    assert!(matches!(late, Outcome::Sealed | Outcome::Failed(_)), "{late:?}");
    assert_eq!(director.rdma_links(), 0);
    let report = director.set_view(view(3, server, &[2], &[(1, true)]));
    assert_eq!((report.leases[0].sealed, director.counter(ServerCounter::CellsBad)), (true, 0));
    let ids: Vec<SessionId> = (0..u64::from(acked)).chain([2000]).map(id).collect();
    let found = heir.claim(3, &ids);
    let tombstones = found.iter().filter(|answer| {
        matches!(answer, ClaimAnswer::Granted(Some(copy)) if !copy.live && copy.version == version(1))
    });
    assert_eq!(tombstones.count(), acked as usize, "everything acked is found");
    assert_eq!(found.last(), Some(&ClaimAnswer::Granted(None)));
    // The zombie asks why.
    let again = process.try_connect(&host, 1).map(|_| ()).unwrap_err();
    assert_eq!(again, Refusal::Over);
}

#[test]
fn r4_a_link_ends_with_its_connection_and_is_gone_then() {
    let host = Host::new(SMALL);
    let _daemon = host.start("s1");
    let mut director = host.director();
    director.set_view(view(1, director.server, &[1], &[]));
    let process = Process::new();
    let (first, mut second) = (process.connect(&host, 1), process.connect(&host, 1));
    let pid = std::process::id();
    let mut gone = |link| match second.peer.ask(&ToServer::ProcessGone { pid, link }) {
        FromServer::Gone(gone) => gone,
        other => panic!("{other:?}"),
    };
    assert!(!gone(Some(first.number)));
    let Connected { peer, number, link, .. } = first;
    drop(peer);
    until("the first link is gone", || gone(Some(number)));
    assert!(!gone(None), "the process has another");
    assert!(!gone(Some(second.number)));
    assert!(matches!(push(&link, 1, id(1)), Outcome::Failed(_)), "nobody is there to ack it");
    assert_eq!(push(&second.link, 1, id(1)), Outcome::Acked);
    assert_eq!(director.rdma_links(), 1);
}

#[test]
fn archives_are_staged_and_read_in_bulk() {
    let host = Host::new(SMALL);
    let _daemon = host.start("s1");
    let mut director = host.director();
    let server = director.server;
    director.set_view(view(1, server, &[1, 2], &[]));
    host.node(1).register(1);
    let process = Process::new();
    let mut heir = process.connect(&host, 2);
    heir.peer.register(1);
    // The one that dies pushes through shared memory; how its copies came makes no difference.
    let link = host.node(1).lease(1);
    let archives: Vec<Vec<u8>> =
        (0..50).map(|at| archive(id(at), version(at), &vec![at as u8; 1000 + 37 * at as usize])).collect();
    for (slot, archive) in (0_u32..).zip(&archives) {
        let cell = cell(id(slot.into()), version(slot.into()), 1, slot * 16, archive.len());
        let block = Some((cell.block, &archive[..]));
        let push = Push { slot: SlotIndex(slot), sequence: cell.sequence, cell: &cell.encode(), block };
        assert_eq!(link.post(&push), Posted::Done(Outcome::Acked));
    }
    director.set_view(view(2, server, &[2], &[(1, false)]));
    director.set_view(view(3, server, &[2], &[(1, true)]));
    let ids: Vec<SessionId> = (0..51).map(id).collect();
    heir.peer.claim(3, &ids);
    for _ in 0..2 {
        let FromServer::Staged { memory, archives: staged } =
            heir.peer.ask(&ToServer::FetchStaged { ids: ids.clone() })
        else {
            panic!("nothing staged")
        };
        let bytes = heir.link.read_bulk(memory).unwrap();
        let mut at = 0;
        let mut read = 0;
        for told in &staged {
            let archive = &bytes[at..at + told.bytes as usize];
            at += told.bytes as usize;
            match (0..50).find(|number| id(*number) == told.id) {
                Some(number) => {
                    assert_eq!(archive, archives[number as usize]);
                    read += 1;
                }
                None => assert!(told.error.is_some() && told.bytes == 0, "{told:?}"),
            }
        }
        assert_eq!((read, at, staged.len()), (50, bytes.len(), 51));
    }
    assert_eq!(director.counter(ServerCounter::Fetched), 100);
    assert!(director.counter(ServerCounter::StagedBytes) > 100_000);
    let other = host.node(2).ask(&ToServer::FetchStaged { ids });
    assert!(
        matches!(other, FromServer::Refused(Refusal::Denied(_))),
        "a connection without a link: {other:?}"
    );
}

/// Puts the server's device back, whatever became of the test.
struct Restored;

impl Drop for Restored {
    fn drop(&mut self) {
        let again = "rdma link show rxe1/1 >/dev/null 2>&1 || rdma link add rxe1 type rxe netdev v1";
        let _ = Command::new("bash").args(["-c", again]).status();
    }
}

#[test]
fn the_device_is_removed_and_the_server_goes_on() {
    let host = Host::new(SMALL);
    let daemon = host.start("s1");
    let mut director = host.director();
    let server = director.server;
    director.set_view(view(1, server, &[1, 2, 3], &[]));
    let process = Process::new();
    let node = process.connect(&host, 1);
    let _other = process.connect(&host, 3);
    assert_eq!(push(&node.link, 0, id(0)), Outcome::Acked);
    let _restored = Restored;
    // It waits for those who have it open, or not, as the driver likes.
    let removal = std::thread::spawn(|| shell("rdma link del rxe1"));
    until("the report says so", || !director.report().rdma.starts_with("rxe1 port 1"));
    println!("without the device: {}", director.report().rdma);
    let refused = process.try_connect(&host, 2).map(|_| ()).unwrap_err();
    assert!(matches!(refused, Refusal::NotYet(_) | Refusal::Denied(_)), "{refused:?}");
    // Seals need nothing of a device that has gone.
    let begun = Instant::now();
    let report = director.set_view(view(2, server, &[2, 3], &[(1, false)]));
    assert!(report.leases.iter().any(|lease| lease.sealed && lease.incarnation == life(1)));
    println!("sealed a lease of the removed device in {:?}", begun.elapsed());
    drop(node);
    let mut heir = host.node(2);
    assert!(heir.lease(2).server_incarnation() == server, "shared memory needs no device");
    let begun = Instant::now();
    until("the device is let go", || removal.is_finished());
    removal.join().unwrap();
    println!("the server let the device go {:?} later", begun.elapsed());
    shell("rdma link add rxe1 type rxe netdev v1");
    until("nodes connect again, to leases of the old device, too", || {
        process.try_connect(&host, 3).is_ok_and(|again| push(&again.link, 1, id(1)) == Outcome::Acked)
    });
    assert!(director.report().rdma.starts_with("rxe1 port 1"), "{}", director.report().rdma);
    let before = daemon.cpu();
    std::thread::sleep(Duration::from_secs(1));
    let idle = daemon.cpu() - before;
    assert!(idle < Duration::from_millis(250), "something spins: {idle:?} in a second");
}
