//! Placement: which session servers hold a session, and which node adopts it. Pure.
//!
//! Weighted rendezvous: every server has a score for every session, drawn from a hash of its *name* (so that
//! a server that returns gets the same sessions back) and bent by its weight; the highest scores win. When a
//! server goes, only the sessions that it held move; when one comes, only those move that it now wins. The
//! arithmetic is in whole numbers, so that all parts of a cluster agree whatever mathematical library they
//! run on.
//!
//! Callers: the node's commit, re-copy and adoption; the director's routing of dead tags.

use crate::ident::SessionId;
use crate::limits::COPIES_MAX;
use crate::view::{NodeEntry, NodeState, ServerEntry};
use std::cmp::Ordering;
use std::ops::Deref;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// The servers that shall hold a session, best first: indexes into the list that was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Placement {
    indexes: [u16; COPIES_MAX],
    len: u8,
}

impl Deref for Placement {
    type Target = [u16];

    fn deref(&self) -> &[u16] {
        &self.indexes[..usize::from(self.len)]
    }
}

/// The `copies` servers (or all, if there are fewer) that shall hold the session `id`.
///
/// ```
/// use selvage_fabric::ident::{Incarnation, SessionId};
/// use selvage_fabric::placement::servers_for;
/// use selvage_fabric::view::ServerEntry;
///
/// let server = |name: &str| ServerEntry {
///     name: name.to_owned(),
///     incarnation: Incarnation(1),
///     weight: 1,
///     socket: String::new(),
///     control: None,
/// };
/// let servers = [server("s1"), server("s2"), server("s3")];
/// let chosen = servers_for(SessionId([7; 16]), &servers, 2);
/// assert_eq!(chosen.len(), 2);
/// assert_ne!(chosen[0], chosen[1]);
/// assert_eq!(servers_for(SessionId([7; 16]), &servers[..1], 2).len(), 1, "no more than there are");
/// ```
pub fn servers_for(id: SessionId, servers: &[ServerEntry], copies: u32) -> Placement {
    let wanted = (copies as usize).min(COPIES_MAX).min(servers.len());
    let mut best: [Option<(Score, u16)>; COPIES_MAX] = [None; COPIES_MAX];
    for (index, server) in servers.iter().enumerate() {
        let mut candidate = Some((Score::of(id, &server.name, server.weight), index as u16));
        for place in &mut best[..wanted] {
            let better = match (&candidate, &*place) {
                (Some((score, _)), Some((held, _))) => score.cmp(held) == Ordering::Greater,
                (Some(_), None) => true,
                (None, _) => false,
            };
            if better {
                std::mem::swap(place, &mut candidate);
            }
        }
    }
    let mut placement = Placement { len: wanted as u8, ..Placement::default() };
    for (slot, chosen) in placement.indexes.iter_mut().zip(best.iter().flatten()) {
        *slot = chosen.1;
    }
    placement
}

/// The live node that adopts the session `id` of a dead one: rendezvous by name over the nodes that take new
/// sessions.
pub fn adopter_of(id: SessionId, nodes: &[NodeEntry]) -> Option<&NodeEntry> {
    nodes
        .iter()
        .filter(|node| node.state == NodeState::Up)
        .max_by(|a, b| Score::of(id, &a.name, 1).cmp(&Score::of(id, &b.name, 1)))
}

/// How much a member wants a session: `weight / -log2(uniform)`, compared without dividing.
#[derive(Clone, Copy)]
struct Score<'a> {
    weight: u64,
    /// `-log2` of the hash taken as a number in (0, 1), in units of 2^-32.
    distance: u64,
    hash: u64,
    name: &'a str,
}

impl<'a> Score<'a> {
    fn of(id: SessionId, name: &'a str, weight: u32) -> Self {
        let hash = xxh3_64_with_seed(&id.0, xxh3_64(name.as_bytes()));
        Self { weight: u64::from(weight.max(1)), distance: minus_log2(hash), hash, name }
    }

    /// Total order: names differ where all else is equal.
    fn cmp(&self, other: &Self) -> Ordering {
        let ours = u128::from(self.weight) * u128::from(other.distance);
        let theirs = u128::from(other.weight) * u128::from(self.distance);
        ours.cmp(&theirs).then(self.hash.cmp(&other.hash)).then_with(|| other.name.cmp(self.name))
    }
}

/// `64 - log2(hash)` in units of 2^-32: the position of the top bit, then a table with linear interpolation,
/// whose error is below 3e-6. Never rises when `hash` rises.
fn minus_log2(hash: u64) -> u64 {
    let hash = hash.max(1);
    let zeros = hash.leading_zeros();
    let fraction = (hash << zeros) << 1;
    let index = (fraction >> 56) as usize;
    let rest = (fraction >> 24) & 0xffff_ffff;
    let low = LOG2_TABLE[index];
    let high = LOG2_TABLE[index + 1];
    let log2 = low + (((high - low) * rest) >> 32);
    (u64::from(zeros + 1) << 32) - log2
}

/// `log2(1 + i / 256)` in units of 2^-32.
static LOG2_TABLE: [u64; 257] = {
    let mut table = [0; 257];
    let mut index = 0;
    while index < 256 {
        table[index] = log2_of(256 + index as u64);
        index += 1;
    }
    table[256] = 1 << 32;
    table
};

/// `log2(numerator / 256)` for `256 <= numerator < 512`, in units of 2^-32, bit by bit: squaring doubles a
/// logarithm.
const fn log2_of(numerator: u64) -> u64 {
    let mut value = (numerator as u128) << 55;
    let mut log2 = 0;
    let mut bit = 0;
    while bit < 32 {
        value = (value * value) >> 63;
        log2 <<= 1;
        if value >= 1 << 64 {
            value >>= 1;
            log2 |= 1;
        }
        bit += 1;
    }
    log2
}

#[cfg(test)]
mod tests;
