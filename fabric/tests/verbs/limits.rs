//! What runs out: the queue, the way, the other end. And large reads.

use super::pushes::Story;
use super::support::*;
use selvage_fabric::config::Rdma;
use selvage_fabric::control::message::RemoteMemory;
use selvage_fabric::error::ErrorKind;
use selvage_fabric::transport::verbs::{Door, PeerId, Verbs};
use selvage_fabric::transport::{FailKind, Link, Outcome, Posted};
use std::time::{Duration, Instant};

/// A queue of four takes four pushes and refuses the fifth while nobody fetches completions; nothing breaks.
#[test]
fn a_full_queue_refuses_and_takes_again() {
    let ends = Ends::new();
    let node = Verbs::new(&Rdma { queue_depth: 4, ..over(NODE_DEVICE) });
    let link = connect(&node, &ends.segment.region, &ends.door, &ends.lease, PeerId(1)).unwrap();
    let stories: Vec<_> = (0..32).map(|slot| Story::new(&ends.segment, slot, 2, 60_000)).collect();
    let (mut open, mut refused) = (Vec::new(), 0);
    for story in &stories {
        match link.post(&story.push(1).unwrap()) {
            Posted::Pending(id) => open.push(id),
            Posted::Done(Outcome::Failed(FailKind::NotPosted)) => refused += 1,
            Posted::Done(other) => panic!("{other:?}"),
        }
        assert!(!link.is_broken(), "{}", link.detail());
    }
    // Entries whose end nobody has asked for are in use, so four are taken and the others refused.
    assert_eq!((open.len(), refused), (4, 28));
    for id in open {
        let begin = Instant::now();
        while link.poll(id) != Some(Outcome::Acked) {
            assert!(begin.elapsed() < Duration::from_secs(5));
            link.wait(id, Duration::from_secs(1));
        }
    }
    assert!(matches!(link.post(&stories[9].push(1).unwrap()), Posted::Pending(_)));
}

/// The queue pair at the server is destroyed, as at the end of a lifeline: nothing answers any more.
#[test]
fn an_end_that_has_gone_is_named_with_a_remedy() {
    let ends = Ends::new();
    let node = Verbs::new(&Rdma { ack_timeout: 10, retry_count: 2, ..over(NODE_DEVICE) });
    let link = connect(&node, &ends.segment.region, &ends.door, &ends.lease, PeerId(1)).unwrap();
    ends.door.disconnect(PeerId(1)).unwrap();
    let stories: Vec<_> = (0..4).map(|slot| Story::new(&ends.segment, slot, 2, 1000)).collect();
    let posted: Vec<_> = stories.iter().map(|story| link.post(&story.push(1).unwrap())).collect();
    let begin = Instant::now();
    for posted in posted {
        let Posted::Pending(id) = posted else { panic!("{posted:?}") };
        let outcome = loop {
            assert!(begin.elapsed() < Duration::from_secs(10), "retries are bounded");
            link.wait(id, Duration::from_secs(1));
            if let Some(outcome) = link.poll(id) {
                break outcome;
            }
        };
        assert_eq!(outcome, Outcome::Failed(FailKind::Disconnected));
    }
    let text = link.detail();
    for words in ["rxe0 port 1", "status 12", "retries exceeded", "network"] {
        assert!(text.contains(words), "{text}");
    }
    println!("known after {:?}: {text}", begin.elapsed());
}

#[test]
fn large_reads_bring_what_was_staged() {
    let ends = Ends::new();
    let (one, two) = (ends.link(1).unwrap(), ends.link(2).unwrap());
    for bytes in [1, 4095, 256 << 10, (256 << 10) + 1, 2_000_000] {
        let archives: Vec<Vec<u8>> = (0..3_u8)
            .map(|at| (0..bytes / 3 + usize::from(at)).map(|byte| (byte % 251) as u8 ^ at).collect())
            .collect();
        let slices: Vec<&[u8]> = archives.iter().map(Vec::as_slice).collect();
        let memory = ends.door.stage(PeerId(1), &slices).unwrap();
        assert!(one.read_bulk(memory).unwrap() == archives.concat(), "{bytes}");
    }
    let memory = ends.door.stage(PeerId(1), &[b"for one"]).unwrap();
    let huge = RemoteMemory { bytes: 1 << 40, ..memory };
    assert_eq!(one.read_bulk(huge).unwrap_err().kind, ErrorKind::TooLarge);
    let wraps = RemoteMemory { address: u64::MAX - 10, bytes: 100, ..memory };
    assert_eq!(one.read_bulk(wraps).unwrap_err().kind, ErrorKind::TooLarge);
    assert!(one.read_bulk(RemoteMemory { bytes: 0, ..memory }).unwrap().is_empty());
    assert_eq!(one.read_bulk(memory).unwrap(), b"for one");
    ends.door.seal().unwrap();
    assert_eq!(two.read_bulk(memory).unwrap_err().kind, ErrorKind::Unreachable);
}

/// Pushes go on while another thread reads in bulk and a third beats.
#[test]
fn pushes_reads_and_beats_share_a_link() {
    let ends = Ends::new();
    let link = ends.link(1).unwrap();
    let staged: Vec<u8> = (0..1_500_000).map(|at| (at % 253) as u8).collect();
    let memory = ends.door.stage(PeerId(1), &[&staged]).unwrap();
    let story = Story::new(&ends.segment, 3, 200, 700);
    std::thread::scope(|scope| {
        scope.spawn(|| (0..4).for_each(|_| assert!(link.read_bulk(memory).unwrap() == staged)));
        scope.spawn(|| {
            for beat in 1..200 {
                link.beat(beat, 1);
                ends.lease.beat(beat);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        for version in 1..=200 {
            let Posted::Pending(id) = link.post(&story.push(version).unwrap()) else { panic!() };
            let begin = Instant::now();
            loop {
                match link.poll(id) {
                    Some(outcome) => break assert_eq!(outcome, Outcome::Acked, "{}", link.detail()),
                    None => assert!(begin.elapsed() < Duration::from_secs(10)),
                }
                link.wait(id, Duration::from_millis(50));
            }
        }
    });
    assert!(ends.lease.node_beat() > 0 && link.peer_beat() > 0);
}

/// Many threads sleep on one link; each wakes for its own push, long before its time is over.
#[test]
fn sleepers_wake_for_their_own_pushes() {
    let ends = Ends::new();
    let link = ends.link(1).unwrap();
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for slot in 0..8 {
            let (link, segment) = (&link, &ends.segment);
            scope.spawn(move || {
                let story = Story::new(segment, slot, 60, 300);
                for version in 1..=60 {
                    let Posted::Pending(id) = link.post(&story.push(version).unwrap()) else { panic!() };
                    while link.poll(id).is_none() {
                        link.wait(id, Duration::from_secs(20));
                    }
                }
            });
        }
    });
    assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
}

/// A 16 MiB archive, the largest that can be configured, goes in one piece.
#[test]
fn the_largest_archive_of_all_goes() {
    let (node, server) = (Verbs::new(&over(NODE_DEVICE)), Verbs::new(&over(SERVER_DEVICE)));
    let lease = lease_of("n1", 48 << 20);
    let door = Door::open(&server, &lease, None, ARCHIVE_BYTES_MAX).unwrap();
    let segment = super::segment::Segment::of(80 << 20);
    let link = connect(&node, &segment.region, &door, &lease, PeerId(1)).unwrap();
    let story = Story::new(&segment, 0, 1, (16 << 20) - 300);
    let Posted::Pending(id) = link.post(&story.push(1).unwrap()) else { panic!() };
    let begin = Instant::now();
    let outcome = loop {
        if let Some(outcome) = link.poll(id) {
            break outcome;
        }
        assert!(begin.elapsed() < Duration::from_secs(20));
        link.wait(id, Duration::from_secs(1));
    };
    assert_eq!(outcome, Outcome::Acked, "{}", link.detail());
}
