//! Mapping a lease that a server has passed (node).

use super::data::ShmLink;
use crate::error::{Error, ErrorKind, Origin, Result};
use crate::ident::Incarnation;
use crate::lease::{HEADER_BYTES, LeaseHeader};
use crate::transport::memory::Mapping;
use rustix::fs::SealFlags;
use std::os::fd::{AsFd, OwnedFd};

/// Maps a lease that a server has passed, and checks all that the header says.
///
/// # Errors
/// `NotReady` before the header is complete, `VersionMismatch`, `TooSmall`, `Corrupt` (not a lease, or not
/// sealed against shrinking), `OwnershipLost` if it is another incarnation's.
pub fn map(fd: OwnedFd, node: Incarnation, server: Incarnation) -> Result<ShmLink> {
    let corrupt = |what: &str| Error::new(ErrorKind::Corrupt, Origin::Transport, what);
    let seals = rustix::fs::fcntl_get_seals(&fd)
        .map_err(|error| corrupt("the descriptor that was passed is no memfd").with_source(error))?;
    if !seals.contains(SealFlags::SHRINK) {
        return Err(corrupt("the memfd that was passed is not sealed against shrinking"));
    }
    let status = rustix::fs::fstat(&fd)
        .map_err(|error| Error::os(Origin::Transport, "cannot ask for the size of a lease", error))?;
    let bytes = usize::try_from(status.st_size).unwrap_or_default();
    if (bytes as u64) < HEADER_BYTES {
        let what = format!("the lease has {bytes} bytes; its header alone has {HEADER_BYTES}");
        return Err(Error::new(ErrorKind::TooSmall, Origin::Transport, what));
    }
    let mapping = Mapping::new(fd.as_fd(), bytes)?;
    let header = LeaseHeader::read(&mapping)?;
    if (header.node_incarnation, header.server_incarnation) != (node, server) {
        let what = format!(
            "the lease is node incarnation {:?}'s at server incarnation {:?}, not {node:?}'s at {server:?}",
            header.node_incarnation, header.server_incarnation
        );
        return Err(Error::new(ErrorKind::OwnershipLost, Origin::Transport, what));
    }
    Ok(ShmLink::new(mapping, header))
}
