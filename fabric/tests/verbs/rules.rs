//! The protocol rules that the data path upholds, with the proof that these tests would notice.

use super::pushes::Story;
use super::support::*;
use selvage_fabric::ident::Incarnation;
use selvage_fabric::rules::{Rule, assert_teeth};
use selvage_fabric::transport::verbs::{Opening, PeerId, VerbsLink};
use selvage_fabric::transport::{FailKind, Link, Outcome, Posted, Push};
use std::time::{Duration, Instant};

fn ended(link: &VerbsLink, push: &Push<'_>) -> Outcome {
    let id = match link.post(push) {
        Posted::Done(outcome) => return outcome,
        Posted::Pending(id) => id,
    };
    let begin = Instant::now();
    loop {
        if let Some(outcome) = link.poll(id) {
            return outcome;
        }
        assert!(begin.elapsed() < Duration::from_secs(10), "a push never ends");
    }
}

/// Beats until the header has been read again.
fn read_header(ends: &Ends, link: &VerbsLink, beat: u64) {
    ends.lease.beat(beat);
    let begin = Instant::now();
    while link.peer_beat() != beat && !link.is_broken() && begin.elapsed() < Duration::from_secs(5) {
        link.beat(beat, 0);
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A node that has read the seal word counts no ack, although its writes still go through: the server has
/// sealed and not yet taken the memory away.
#[test]
fn r2_a_seal_that_was_read_ends_all_acks() {
    let scenario = || {
        let ends = Ends::new();
        let link = ends.link(1).map_err(|error| error.to_string())?;
        let story = Story::new(&ends.segment, 0, 4, 500);
        let push = |version| story.push(version).ok_or("no push");
        if ended(&link, &push(1)?) != Outcome::Acked {
            return Err("a push before the seal is acked".to_owned());
        }
        let before = link.post(&push(2)?);
        ends.lease.seal();
        read_header(&ends, &link, 7);
        let under_way = match before {
            Posted::Pending(id) => loop {
                if let Some(outcome) = link.poll(id) {
                    break outcome;
                }
            },
            Posted::Done(outcome) => outcome,
        };
        let after = ended(&link, &push(3)?);
        match (under_way, after) {
            (Outcome::Sealed, Outcome::Sealed) => Ok(()),
            ends => Err(format!("under way and after the seal: {ends:?}")),
        }
    };
    assert_teeth(Rule::R2SealByView, scenario);
}

/// Keys repeat: a link whose memory belongs to another life of the server acks nothing.
#[test]
fn r6_memory_of_another_life_acks_nothing() {
    let scenario = || {
        let text = |error: selvage_fabric::error::Error| error.to_string();
        let ends = Ends::new();
        let opening = Opening::begin(&ends.node, &ends.segment.region, None).map_err(text)?;
        let (endpoint, memory) = ends.door.connect(PeerId(1), &opening.offer()).map_err(text)?;
        let geometry = ends.lease.header().geometry;
        let link = opening.finish(&endpoint, memory, geometry, Incarnation(SERVER.0 + 1)).map_err(text)?;
        let story = Story::new(&ends.segment, 0, 4, 500);
        let posted = link.post(&story.push(1).ok_or("no push")?);
        read_header(&ends, &link, 3);
        if let Posted::Pending(id) = posted {
            let begin = Instant::now();
            while begin.elapsed() < Duration::from_secs(5) {
                match link.poll(id) {
                    None => {}
                    Some(Outcome::Failed(FailKind::Disconnected)) => break,
                    Some(other) => return Err(format!("the push under way ended with {other:?}")),
                }
            }
        }
        match ended(&link, &story.push(2).ok_or("no push")?) {
            Outcome::Failed(FailKind::NotPosted) if link.detail().contains("another life") => Ok(()),
            other => Err(format!("a later push ended with {other:?}")),
        }
    };
    assert_teeth(Rule::R6AckIncarnation, scenario);
}
