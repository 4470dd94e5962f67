//! Making a lease (server) and mapping one (node).

use super::data::ShmLink;
use crate::archive::ArchiveLimits;
use crate::error::Result;
use crate::ident::Incarnation;
use crate::lease::{LeaseHeader, ScanReport, SessionCopy};
use std::os::fd::{BorrowedFd, OwnedFd};

/// The server's end of a lease in a memfd: it makes, seals, scans and reads it. Safe for any thread.
pub struct ServerLease {}

/// Makes a lease: fully allocated, sealed against shrinking and growing, huge pages if asked for and available.
///
/// # Errors
/// `Full` with what was needed if the host has not the memory; `Invalid` for a bad geometry; `Os`.
pub fn create(_header: &LeaseHeader, _huge_pages: bool) -> Result<ServerLease> {
    unimplemented!()
}

impl ServerLease {
    /// The descriptor to pass to the node's processes.
    pub fn fd(&self) -> BorrowedFd<'_> {
        unimplemented!()
    }
    /// What it was made with.
    pub fn header(&self) -> &LeaseHeader {
        unimplemented!()
    }
    /// Bytes of memory that it takes.
    pub fn bytes(&self) -> u64 {
        unimplemented!()
    }
    /// Why it has no huge pages although they were asked for, if so.
    pub fn huge_pages_refused(&self) -> Option<&str> {
        unimplemented!()
    }
    /// Seals it: seal word, full fence. A node that has written its cell before is seen by a scan from now on; one that
    /// writes later sees the seal and does not ack (R2). Final.
    pub fn seal(&self) {
        unimplemented!()
    }
    /// Whether [`Self::seal`] was called. The word in memory, which the node could write, is not asked.
    pub fn is_sealed(&self) -> bool {
        unimplemented!()
    }
    /// Reads all slots of a sealed lease.
    ///
    /// # Errors
    /// `Invalid` unless it is sealed.
    pub fn scan(&self, _limits: &ArchiveLimits) -> Result<ScanReport> {
        unimplemented!()
    }
    /// The archive of a sealed copy, checked (see [`crate::lease::fetch`]).
    ///
    /// # Errors
    /// As [`crate::lease::fetch`]; `Invalid` unless it is sealed.
    pub fn fetch(&self, _copy: &SessionCopy, _limits: &ArchiveLimits) -> Result<Vec<u8>> {
        unimplemented!()
    }
    /// Writes the server's heartbeat for the node to see.
    pub fn beat(&self, _beat: u64) {
        unimplemented!()
    }
    /// The node's heartbeat.
    pub fn node_beat(&self) -> u64 {
        unimplemented!()
    }
    /// The node's own count of its sessions; believe it only for display.
    pub fn node_sessions(&self) -> u64 {
        unimplemented!()
    }
}

/// Maps a lease that a server has passed, and checks all that the header says.
///
/// # Errors
/// `NotReady` before the header is complete, `VersionMismatch`, `TooSmall`, `Corrupt` (not a lease, or not sealed against
/// shrinking), `OwnershipLost` if it is another incarnation's.
pub fn map(_fd: OwnedFd, _node: Incarnation, _server: Incarnation) -> Result<ShmLink> {
    unimplemented!()
}
