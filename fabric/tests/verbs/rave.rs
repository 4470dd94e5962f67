//! A node that has gone mad, and writes as fast as it can. Also used by the session server's tests.

use super::segment::Segment;
use selvage_fabric::lease::{BlockOffset, CELL_BYTES, Sequence, SlotIndex};
use selvage_fabric::transport::verbs::VerbsLink;
use selvage_fabric::transport::{FailKind, Link, Outcome, Posted, Push};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Writes random cells and blocks over all that the link reaches, as fast as it goes.
pub fn rave(link: &VerbsLink, segment: &Segment, stop: &AtomicBool, written: &AtomicU64, seed: u64) {
    let geometry = link.geometry();
    let mut chance = seed;
    let mut next = || {
        chance ^= chance << 13;
        chance ^= chance >> 7;
        chance ^= chance << 17;
        chance
    };
    let noise: Vec<u8> = (0..64 << 10).map(|_| next() as u8).collect();
    let noise = segment.place(&noise);
    let mut open = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let bytes = 1 + (next() % 4000) as usize;
        let from = next() as usize % (noise.len() - bytes);
        let units = (geometry.heap_bytes - bytes as u64) / 256;
        let block = BlockOffset((next() % units) as u32);
        let cell: [u8; CELL_BYTES] = std::array::from_fn(|at| noise[(from + at * 7) % noise.len()]);
        let push = Push {
            slot: SlotIndex((next() % u64::from(geometry.slot_count)) as u32),
            sequence: Sequence(next() as u32),
            cell: &cell,
            block: Some((block, &noise[from..from + bytes])),
        };
        match link.post(&push) {
            Posted::Pending(id) => open.push(id),
            Posted::Done(Outcome::Failed(FailKind::NotPosted)) => {}
            Posted::Done(other) => panic!("garbage ended with {other:?}"),
        }
        if open.len() >= 16 {
            for id in open.drain(..) {
                // A failure is the seal.
                while !link.is_broken() && link.poll(id).is_none() {}
                written.fetch_add(1, Ordering::Relaxed);
            }
        }
        if link.is_broken() {
            return;
        }
    }
}
