//! The data path of shared memory: one memory copy, one cell, one fence, one look at the seal word.
//!
//! The handshake with the server's seal (DESIGN.md section 5): the server stores the seal word, full fence,
//! scans; the node writes the cell, full fence, loads the seal word. In the one total order of the two fences
//! either the server's comes first, then the node sees the seal and does not ack; or the node's comes first,
//! then the scan sees the cell.

use crate::ident::Incarnation;
use crate::lease::{
    LeaseGeometry, LeaseHeader, LeaseMemory, NODE_BEAT_OFFSET, NODE_SESSIONS_OFFSET, SEAL_OFFSET,
    SERVER_BEAT_OFFSET, Words,
};
use crate::rules::{Rule, holds};
use crate::sync::words::{AtomicU64, Ordering, fence, fence_full};
use crate::transport::memory::Mapping;
use crate::transport::{ChecksumKind, FailKind, Link, Outcome, Posted, Push, PushId, TransportKind};
use std::time::Duration;

/// A node's end of a lease in shared memory. See [`super::setup::map`].
pub struct ShmLink {
    mapping: Mapping,
    header: LeaseHeader,
}

impl ShmLink {
    pub(super) fn new(mapping: Mapping, header: LeaseHeader) -> Self {
        Self { mapping, header }
    }

    /// What the lease's header says.
    pub fn header(&self) -> &LeaseHeader {
        &self.header
    }

    /// The memory, for a model that watches it.
    #[cfg(all(test, feature = "loom"))]
    pub(super) fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    /// The word at one of the layout's fixed offsets, which the mapping is never too small for.
    fn word(&self, offset: u64) -> u64 {
        self.mapping.load_u64(offset).unwrap_or_default()
    }

    fn push(&self, push: &Push<'_>) -> Outcome {
        let geometry = &self.header.geometry;
        let Some(cell) = geometry.cell_offset(push.slot, push.sequence) else {
            return Outcome::Failed(FailKind::Bounds);
        };
        if let Some((block, archive)) = push.block {
            let Some(offset) = geometry.block_offset(block, archive.len()) else {
                return Outcome::Failed(FailKind::Bounds);
            };
            if !self.mapping.copy_in(offset, archive) {
                return Outcome::Failed(FailKind::Bounds);
            }
            kill_point!("push.block");
        }
        let first = cell as usize / size_of::<AtomicU64>();
        let (words, _) = push.cell.as_chunks::<8>();
        let Some(target) = self.mapping.words().get(first..first + words.len()) else {
            return Outcome::Failed(FailKind::Bounds);
        };
        // Release: whoever sees a word of the cell sees the block (the scan has an Acquire fence behind its
        // look at the cells).
        fence(Ordering::Release);
        for (at, (target, bytes)) in target.iter().zip(words).enumerate() {
            target.store(u64::from_le_bytes(*bytes), Ordering::Relaxed);
            if at == words.len() / 2 {
                kill_point!("push.cell");
            }
        }
        kill_point!("push.written");
        // The handshake: cell, full fence, seal word.
        fence_full();
        kill_point!("push.fenced");
        if self.is_sealed() && holds(Rule::R2SealByView) { Outcome::Sealed } else { Outcome::Acked }
    }
}

impl Link for ShmLink {
    fn kind(&self) -> TransportKind {
        TransportKind::Shm
    }

    fn checksum_kind(&self) -> ChecksumKind {
        ChecksumKind::None
    }

    fn geometry(&self) -> LeaseGeometry {
        self.header.geometry
    }

    fn server_incarnation(&self) -> Incarnation {
        self.header.server_incarnation
    }

    fn post(&self, push: &Push<'_>) -> Posted {
        Posted::Done(self.push(push))
    }

    /// No push is ever pending.
    fn poll(&self, _push: PushId) -> Option<Outcome> {
        None
    }

    fn wait(&self, _push: PushId, _timeout: Duration) {}

    fn forget(&self, _push: PushId) {}

    fn sends_in_place(&self) -> bool {
        false
    }

    fn detail(&self) -> String {
        String::new()
    }

    fn is_broken(&self) -> bool {
        false
    }

    fn beat(&self, beat: u64, sessions: u64) {
        // The offsets are inside every mapping (checked when it was mapped).
        let _ = self.mapping.store_u64(NODE_SESSIONS_OFFSET, sessions);
        let _ = self.mapping.store_u64(NODE_BEAT_OFFSET, beat);
    }

    fn peer_beat(&self) -> u64 {
        self.word(SERVER_BEAT_OFFSET)
    }

    fn is_sealed(&self) -> bool {
        self.word(SEAL_OFFSET) != 0
    }
}
