//! What a node can reach: its own lease, and nothing else; and what garbage there does to others.

use super::pushes::{Story, archive};
use super::rave::rave;
use super::segment::Segment;
use super::support::*;
use selvage_fabric::archive::{ArchiveLimits, validate};
use selvage_fabric::control::message::RemoteMemory;
use selvage_fabric::error::ErrorKind;
use selvage_fabric::ident::SessionId;
use selvage_fabric::lease::{LeaseGeometry, LeaseIndex};
use selvage_fabric::transport::memory::ServerLease;
use selvage_fabric::transport::verbs::{Door, Opening, PeerId, Verbs, VerbsLink};
use selvage_fabric::transport::{FailKind, Link, Outcome, Posted};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

fn end_of(link: &VerbsLink, posted: Posted) -> Outcome {
    let id = match posted {
        Posted::Done(outcome) => return outcome,
        Posted::Pending(id) => id,
    };
    let begin = Instant::now();
    loop {
        if let Some(outcome) = link.poll(id) {
            return outcome;
        }
        assert!(begin.elapsed() < Duration::from_secs(10), "a push never ends: {}", link.detail());
        link.wait(id, Duration::from_millis(100));
    }
}

fn bytes_of(lease: &ServerLease) -> Vec<u8> {
    let mut bytes = vec![0; lease.bytes() as usize];
    assert_eq!(rustix::io::pread(lease.fd(), &mut bytes, 0).unwrap(), bytes.len());
    bytes
}

/// A link of this door's queue pair that uses whatever memory it is told.
fn aimed(
    node: &Verbs,
    segment: &Segment,
    door: &Door,
    peer: u64,
    aim: impl FnOnce(RemoteMemory) -> RemoteMemory,
    geometry: LeaseGeometry,
) -> VerbsLink {
    let opening = Opening::begin(node, &segment.region, None).unwrap();
    let (endpoint, own) = door.connect(PeerId(peer), &opening.offer()).unwrap();
    opening.finish(&endpoint, aim(own), geometry, SERVER).unwrap()
}

/// A node that knows another node's address and key, all of them, gets an error completion.
#[test]
fn another_nodes_address_and_key_open_nothing() {
    let thief = Ends::new();
    let victim_lease = lease_of("victim", 4 << 20);
    let victim_door = Door::open(&thief.server, &victim_lease, None, ARCHIVE_BYTES_MAX).unwrap();
    let victim = Opening::begin(&thief.node, &thief.segment.region, None).unwrap();
    let (endpoint, target) = victim_door.connect(PeerId(9), &victim.offer()).unwrap();
    let geometry = victim_lease.header().geometry;
    let victim = victim.finish(&endpoint, target, geometry, SERVER).unwrap();
    let story = Story::new(&thief.segment, 0, 8, 4000);
    assert_eq!(end_of(&victim, victim.post(&story.push(1).unwrap())), Outcome::Acked);
    let before = bytes_of(&victim_lease);
    let behind = |own: RemoteMemory| own.address + thief.lease.bytes();
    type Aim<'a> = &'a dyn Fn(RemoteMemory) -> RemoteMemory;
    let aims: [(&str, Aim<'_>); 4] = [
        ("the victim's address and key", &|_| target),
        ("the victim's address and the own key", &|own| RemoteMemory { address: target.address, ..own }),
        ("the own address and the victim's key", &|own| RemoteMemory { key: target.key, ..own }),
        ("behind the own lease", &|own| RemoteMemory { address: behind(own), ..own }),
    ];
    let mut tried = 0;
    for (what, aim) in aims {
        let link = aimed(&thief.node, &thief.segment, &thief.door, 100 + tried, aim, geometry);
        let outcome = end_of(&link, link.post(&story.push(2).unwrap()));
        assert_eq!(outcome, Outcome::Failed(FailKind::Revoked), "{what}");
        assert!(link.is_broken() && link.detail().contains("remote access"), "{}", link.detail());
        let link = aimed(&thief.node, &thief.segment, &thief.door, 200 + tried, aim, geometry);
        let wanted = RemoteMemory { bytes: 4096, ..aim(thief_memory(&thief, 300 + tried)) };
        let read = link.read_bulk(wanted).map(|bytes| bytes.len());
        assert_eq!(read.map_err(|error| error.kind), Err(ErrorKind::Unreachable), "{what}");
        tried += 1;
    }
    assert!(bytes_of(&victim_lease) == before, "the victim's lease has changed");
    assert_eq!(end_of(&victim, victim.post(&story.push(3).unwrap())), Outcome::Acked);
    println!("{tried} ways to trespass: an error completion each, for writing and for reading");
}

/// What a process of the thief is told about its own lease.
fn thief_memory(thief: &Ends, peer: u64) -> RemoteMemory {
    let opening = Opening::begin(&thief.node, &thief.segment.region, None).unwrap();
    let (_, memory) = thief.door.connect(PeerId(peer), &opening.offer()).unwrap();
    thief.door.disconnect(PeerId(peer)).unwrap();
    memory
}

/// A node writes random bytes over all of its own lease, header included; others are served meanwhile, and
/// its lease can be sealed, scanned and fetched from.
#[test]
fn garbage_over_a_whole_lease_harms_nobody_else() {
    let limits = ArchiveLimits::default();
    let (node, server) = (Verbs::new(&over(NODE_DEVICE)), Verbs::new(&over(SERVER_DEVICE)));
    let (segment, noise) = (Segment::new(), Segment::new());
    let mad_lease = small_lease("mad");
    let mad_door = Door::open(&server, &mad_lease, None, ARCHIVE_BYTES_MAX).unwrap();
    let geometry = mad_lease.header().geometry;
    // Two of its processes; the second has moved its aim so that what it takes for slots is the header.
    let honest = aimed(&node, &noise, &mad_door, 1, |own| own, geometry);
    let moved = aimed(
        &node,
        &noise,
        &mad_door,
        2,
        |own| RemoteMemory { address: own.address - 4096, ..own },
        geometry,
    );
    let pristine = bytes_of(&mad_lease);
    let (stop, written) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut served = 0;
    let mut kept = Vec::new();
    std::thread::scope(|scope| {
        for (link, seed) in [(&honest, 0x1234_5678_9abc), (&moved, 0xfeed_beef_cafe)] {
            let (noise, stop, written) = (&noise, &stop, &written);
            scope.spawn(move || rave(link, noise, stop, written, seed));
        }
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(4) || served < 3 {
            served += 1;
            let lease = small_lease("good");
            let door = Door::open(&server, &lease, None, ARCHIVE_BYTES_MAX).unwrap();
            let link = connect(&node, &segment.region, &door, &lease, PeerId(3)).unwrap();
            let story = Story::new(&segment, 5, 4, 900);
            for version in 1..=4 {
                let outcome = end_of(&link, link.post(&story.push(version).unwrap()));
                assert_eq!(outcome, Outcome::Acked, "{}", link.detail());
            }
            lease.seal();
            door.seal().unwrap();
            assert!(lease.settle(8).unwrap());
            let report = lease.scan(&limits).unwrap();
            assert_eq!(report.bad.total(), 0);
            let index = LeaseIndex::new(&report);
            let copy = index.find(&SessionId([6; 16])).expect("the good session is there");
            assert_eq!(copy.version.counter, 4);
            assert_eq!(lease.fetch(copy, &limits).unwrap(), archive(SessionId([6; 16]), 4, 900));
            kept.push(lease);
        }
        mad_lease.seal();
        mad_door.seal().unwrap();
        stop.store(true, Ordering::Relaxed);
    });
    assert!(mad_lease.settle(8).unwrap(), "a sealed lease still changes");
    let garbage = bytes_of(&mad_lease);
    let touched = garbage.iter().zip(&pristine).filter(|(now, then)| now != then).count();
    assert!(garbage[..4096] != pristine[..4096], "the header was written to as well");
    assert!(touched > garbage.len() / 2, "only {touched} of {} bytes were overwritten", garbage.len());
    let report = mad_lease.scan(&limits).unwrap();
    let index = LeaseIndex::new(&report);
    for copy in index.copies() {
        // What passes every check may be fetched; it is validated like all that comes from a lease.
        if let Ok(bytes) = mad_lease.fetch(copy, &limits) {
            assert!(validate(&bytes, &limits).is_ok());
        }
    }
    println!(
        "{} garbage pushes over {touched} of {} bytes, {} bad cells; {served} other leases served meanwhile",
        written.load(Ordering::Relaxed),
        garbage.len(),
        report.bad.total()
    );
    assert!(report.bad.total() > 0 && written.load(Ordering::Relaxed) > 100);
}
