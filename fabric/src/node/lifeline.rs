//! [`Lifeline`]: the control connection by which an RDMA link lives. When it ends, whoever ends it, the
//! server destroys its queue pair, so that nothing that was posted to the link can arrive any more (R4).

use crate::control::stream::Stream;
use crate::error::{Error, Origin, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A control connection that stands for a link. Requests that belong to the link go over it, one at a time.
pub struct Lifeline {
    stream: Mutex<Stream>,
    /// The same connection, so that it can be looked at and ended while a request waits.
    socket: OwnedFd,
}

impl Lifeline {
    /// Of a connection on which the server has accepted the link.
    ///
    /// # Errors
    /// `Os`.
    pub fn new(stream: Stream) -> Result<Self> {
        let socket = rustix::io::fcntl_dupfd_cloexec(stream.as_fd(), 0)
            .map_err(|error| Error::os(Origin::Node, "cannot hold the connection of a link", error))?;
        Ok(Self { stream: Mutex::new(stream), socket })
    }

    /// The connection, for one request and its reply.
    pub fn stream(&self) -> MutexGuard<'_, Stream> {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends it at once; a request that waits fails. Never blocks.
    pub fn close(&self) {
        // It can only fail if the server has ended it already.
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
    }

    /// Whether the server has ended it. Never blocks.
    pub fn has_ended(&self) -> bool {
        let ends = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        let mut fds = [PollFd::new(&self.socket, ends)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().intersects(ends)
    }
}
