//! What a node's link is built on: a connected queue pair and all that a work request must name.
//! [`super::setup`] makes it; [`super::data::VerbsLink`] owns it and is the only one that posts.

use super::choose::Choice;
use super::device::Device;
use super::endpoint::mtu_bytes;
use super::look::describe;
use super::objects::{Cq, Mr, Qp};
use crate::control::message::RemoteMemory;
use crate::ident::Incarnation;
use crate::lease::LeaseGeometry;
use std::sync::Arc;

/// A queue pair in RTS towards one lease. Fields are dropped in order: the queue pair first, so that the card
/// is done with the memory before it is deregistered.
pub(super) struct Channel {
    /// The queue pair. `qp.caps()` says how many work requests it takes (`2 * queue_depth` of the
    /// configuration and `EXTRA_WRS` more; its completion queue has room for all of them, as a broken queue
    /// pair flushes even the unsignalled ones) and how many bytes one takes inline (`RDMA_INLINE_BYTES` or
    /// more).
    pub(super) qp: Qp,
    /// Its completions, with a channel that does not block.
    pub(super) cq: Arc<Cq>,
    /// The whole cache segment, for the card to read: `source.lkey()`, `source.region()`. A region that is
    /// read into is registered by `device.land(region)`.
    pub(super) source: Arc<Mr>,
    /// The lease at the server.
    pub(super) lease: RemoteLease,
    /// The way there.
    pub(super) path: Path,
    /// The device. Kept to the last.
    pub(super) device: Arc<Device>,
}

/// The lease as the server told it over control.
#[derive(Clone, Copy, Debug)]
pub(super) struct RemoteLease {
    /// Address and key: offsets of the geometry are added to `memory.address`. Checked: `memory.bytes` is no
    /// less than the geometry needs.
    pub(super) memory: RemoteMemory,
    /// Sizes.
    pub(super) geometry: LeaseGeometry,
    /// The server's incarnation (R6).
    pub(super) server: Incarnation,
}

/// The way of a connection, and up to when it is known to hold.
pub(super) struct Path {
    /// This end.
    pub(super) choice: Choice,
    /// Path MTU as an exponent.
    pub(super) mtu: u8,
    /// The device's count of changes up to which this end's GID and LID are known to be what they were.
    pub(super) changes: u32,
}

impl Channel {
    /// Why the link is of no more use, as far as its device knows; completions say the rest. Never blocks; a
    /// system call.
    pub(super) fn fault(&self) -> Option<String> {
        self.device.fault(&self.path.choice, self.path.changes)
    }

    /// Device, port, GID and path MTU; for people.
    pub(super) fn detail(&self) -> String {
        format!("{}, path MTU {}", describe(&self.path.choice), mtu_bytes(self.path.mtu))
    }
}
