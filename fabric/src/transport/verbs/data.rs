//! The data path of RDMA: pushes, beats and bulk reads over one [`Channel`].

use super::channel::Channel;

/// A node's end of a lease over RDMA.
pub struct VerbsLink {
    channel: Channel,
}

impl VerbsLink {
    pub(super) fn new(channel: Channel) -> Self {
        Self { channel }
    }

    /// Device, port, GID and path MTU; for people.
    pub fn path(&self) -> String {
        self.channel.detail()
    }
}
