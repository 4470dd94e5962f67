//! The index of sealed leases: which sessions are in them, and at which version.

use super::cell::ArchiveChecksum;
use super::layout::BlockOffset;
use super::scan::ScanReport;
use crate::ident::{SessionId, Version};

/// A private copy of what a sealed lease says of one session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionCopy {
    /// The session.
    pub id: SessionId,
    /// Its version.
    pub version: Version,
    /// When it expires, Unix ms.
    pub expiry_ms: u64,
    /// False: a tombstone.
    pub live: bool,
    /// Settled, destroyed or expired: it does not hold the release of its set back (R10).
    pub settled: bool,
    /// Where the archive is in its lease; meaningless for a tombstone.
    pub block: BlockOffset,
    /// The archive's length.
    pub archive_bytes: u32,
    /// The archive's checksum.
    pub checksum: ArchiveChecksum,
}

/// The sessions of one sealed lease, each once, at its highest version.
pub struct LeaseIndex {}

impl LeaseIndex {
    /// Indexes a scan. "Moved" is not here (R11); a tombstone beats a live copy of the same or a lower version.
    pub fn new(_scan: &ScanReport) -> Self {
        unimplemented!()
    }

    /// What the lease says of a session.
    pub fn find(&self, _id: &SessionId) -> Option<&SessionCopy> {
        unimplemented!()
    }

    /// All copies; the position is the cursor of `ListSealed`.
    pub fn copies(&self) -> &[SessionCopy] {
        unimplemented!()
    }

    /// Live copies.
    pub fn live(&self) -> u64 {
        unimplemented!()
    }

    /// Live copies that no one has settled, destroyed or outlived (R10).
    pub fn unsettled(&self) -> u64 {
        unimplemented!()
    }
}

/// The sessions of all sealed leases of a server. Leases are named by a key of the caller's choice.
#[derive(Default)]
pub struct SealedIndex {}

impl SealedIndex {
    /// Adds a sealed lease.
    pub fn insert(&mut self, _lease: u64, _index: LeaseIndex) {
        unimplemented!()
    }

    /// Releases a sealed lease (R10).
    pub fn remove(&mut self, _lease: u64) -> Option<LeaseIndex> {
        unimplemented!()
    }

    /// The index of one lease.
    pub fn lease(&self, _lease: u64) -> Option<&LeaseIndex> {
        unimplemented!()
    }

    /// The best copy of a session over all leases, and the lease it is in: the highest version, a tombstone first.
    pub fn find(&self, _id: &SessionId) -> Option<(u64, &SessionCopy)> {
        unimplemented!()
    }

    /// The session is safe elsewhere at this version: copies up to it are settled (R10).
    pub fn settle(&mut self, _id: &SessionId, _version: Version) {
        unimplemented!()
    }

    /// The session is gone at this version: copies up to it become tombstones of it (R9).
    pub fn destroy(&mut self, _id: &SessionId, _version: Version) {
        unimplemented!()
    }

    /// Live copies whose expiry is before `before_ms` (now less the allowance for clock skew) become tombstones of their
    /// version (R14). Returns how many.
    pub fn sweep(&mut self, _before_ms: u64) -> u64 {
        unimplemented!()
    }
}
