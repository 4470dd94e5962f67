//! Links that reach for what is not theirs, or not any more: the card refuses, and nobody else notices.

use super::support::*;
use selvage_fabric::control::message::RemoteMemory;
use selvage_fabric::transport::Link;
use selvage_fabric::transport::verbs::{Opening, PeerId, VerbsLink};
use std::time::{Duration, Instant};

/// Longest wait for a completion: six retries of 67 ms, four times each in the worst case, and a slow host.
const WAIT: Duration = Duration::from_secs(20);

/// Connects with what the server told, changed.
fn lying_link(ends: &Ends, peer: u64, lie: impl FnOnce(RemoteMemory) -> RemoteMemory) -> VerbsLink {
    let opening = Opening::begin(&ends.node, &ends.segment.region, None).unwrap();
    let (endpoint, memory) = ends.door.connect(PeerId(peer), &opening.offer()).unwrap();
    opening.finish(&endpoint, lie(memory), ends.lease.header().geometry, SERVER).unwrap()
}

/// Beats until the link is broken; how long that took.
fn until_broken(link: &VerbsLink) -> Duration {
    let begin = Instant::now();
    let mut beat = 1 << 32;
    while !link.is_broken() {
        assert!(begin.elapsed() < WAIT, "the link is not broken: {}", link.detail());
        link.beat(beat, 0);
        beat += 1;
        std::thread::sleep(Duration::from_millis(1));
    }
    begin.elapsed()
}

/// Beats until the server sees it.
fn until_seen(ends: &Ends, link: &VerbsLink, beat: u64) {
    let begin = Instant::now();
    while ends.lease.node_beat() != beat {
        assert!(begin.elapsed() < WAIT && !link.is_broken(), "no beat arrives: {}", link.detail());
        link.beat(beat, 0);
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_wrong_key_or_address_breaks_its_own_link_only() {
    let ends = Ends::new();
    let honest = ends.link(1).unwrap();
    until_seen(&ends, &honest, 7);
    let wrong_key = lying_link(&ends, 2, |memory| RemoteMemory { key: memory.key ^ 0x5a, ..memory });
    let took = until_broken(&wrong_key);
    println!("a wrong key: {} after {} ms", wrong_key.detail(), took.as_millis());
    let end = |memory: RemoteMemory| RemoteMemory { address: memory.address + memory.bytes, ..memory };
    let wrong_address = lying_link(&ends, 3, end);
    let took = until_broken(&wrong_address);
    println!("a wrong address: {} after {} ms", wrong_address.detail(), took.as_millis());
    for link in [&wrong_key, &wrong_address] {
        assert!(link.detail().contains("remote access"), "{}", link.detail());
    }
    assert_eq!(ends.lease.node_beat(), 7);
    until_seen(&ends, &honest, 8);
    assert!(!honest.is_broken());
}

#[test]
fn who_was_shut_out_writes_nothing_more() {
    let ends = Ends::new();
    let (gone, stays) = (ends.link(1).unwrap(), ends.link(2).unwrap());
    until_seen(&ends, &gone, 5);
    until_seen(&ends, &stays, 6);
    ends.door.disconnect(PeerId(1)).unwrap();
    let took = until_broken(&gone);
    println!("shut out: {} after {} ms", gone.detail(), took.as_millis());
    assert_eq!(ends.lease.node_beat(), 6);
    until_seen(&ends, &stays, 9);
    // The process itself may come back by a new link.
    until_seen(&ends, &ends.link(1).unwrap(), 10);
}

#[test]
fn the_two_sides_see_each_others_beats() {
    let ends = Ends::new();
    let link = ends.link(1).unwrap();
    ends.lease.beat(41);
    let begin = Instant::now();
    while link.peer_beat() != 41 || ends.lease.node_sessions() != 17 {
        assert!(begin.elapsed() < WAIT, "{}", link.detail());
        link.beat(3, 17);
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(ends.lease.node_beat(), 3);
    assert!(!link.is_sealed());
    // The seal word arrives the same way, before the fence.
    ends.lease.seal();
    while !link.is_sealed() {
        assert!(begin.elapsed() < WAIT, "{}", link.detail());
        link.beat(4, 17);
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn staged_archives_are_read_over_the_link_that_they_were_staged_for() {
    let ends = Ends::new();
    let link = ends.link(1).unwrap();
    let big: Vec<u8> = (0..ARCHIVE_BYTES_MAX as u32).map(|at| (at % 251) as u8).collect();
    for archives in [vec![&big[..], b"tail"], vec![b"one", b"two", b"three"], vec![&big[..], &big[..777_777]]]
    {
        let memory = ends.door.stage(PeerId(1), &archives).unwrap();
        assert!(link.read_bulk(memory).unwrap() == archives.concat());
    }
    assert_eq!(link.read_bulk(ends.door.stage(PeerId(1), &[]).unwrap()).unwrap(), b"");
    // It goes with the process.
    let memory = ends.door.stage(PeerId(1), &[b"secret"]).unwrap();
    let other = ends.link(2).unwrap();
    assert_eq!(other.read_bulk(memory).unwrap(), b"secret", "processes of one node share a domain");
    ends.door.disconnect(PeerId(1)).unwrap();
    assert!(other.read_bulk(memory).is_err());
    assert!(other.is_broken());
}
