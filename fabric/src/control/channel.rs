//! The bytes below a control connection: a Unix socket, or TLS over TCP. Both are bounded in time by a
//! deadline and never block otherwise.
//!
//! Invariant: the socket is in nonblocking mode and closed on exec; every wait is a `poll` up to the
//! deadline, without any lock. Caller: [`super::stream`].

use super::secure::Secure;
use crate::error::{Error, ErrorKind, Origin, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::{Errno, FdFlags};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, Shutdown,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// One end of a connection; clones are handles to the same one.
#[derive(Clone)]
pub(super) enum Channel {
    /// On this host; descriptors can go along.
    Unix(Arc<OwnedFd>),
    /// To another host.
    Secure(Arc<Secure>),
}

impl Channel {
    /// Sends all of `bytes`, and `fd` beside the first of them.
    pub(super) fn send(&self, bytes: &[u8], fd: Option<BorrowedFd<'_>>, deadline: &Deadline) -> Result<()> {
        match (self, fd) {
            (Self::Unix(socket), fd) => send_unix(socket, bytes, fd, deadline),
            (Self::Secure(secure), None) => secure.send(bytes, deadline),
            (Self::Secure(_), Some(_)) => {
                let what = "a descriptor cannot be passed to another host";
                Err(Error::new(ErrorKind::Invalid, Origin::Control, what))
            }
        }
    }

    /// Receives at least one byte, and what descriptor came beside it into `fd`.
    pub(super) fn receive(
        &self,
        into: &mut [u8],
        fd: &mut Option<OwnedFd>,
        deadline: &Deadline,
    ) -> Result<usize> {
        match self {
            Self::Unix(socket) => receive_unix(socket, into, fd, deadline),
            Self::Secure(secure) => secure.receive(into, deadline),
        }
    }

    /// Ends the connection for both directions; whoever waits in it wakes.
    pub(super) fn shutdown(&self, how: Shutdown) {
        // It can only fail if the peer has ended it already.
        let _ = rustix::net::shutdown(self.as_fd(), how);
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(socket) => socket.as_fd(),
            Self::Secure(secure) => secure.as_fd(),
        }
    }
}

/// Puts an accepted socket into the mode that the invariant asks for.
pub(super) fn prepare(socket: &OwnedFd) -> Result<()> {
    rustix::fs::fcntl_getfl(socket)
        .and_then(|flags| rustix::fs::fcntl_setfl(socket, flags | OFlags::NONBLOCK))
        .and_then(|()| rustix::io::fcntl_setfd(socket, FdFlags::CLOEXEC))
        .map_err(|error| Error::os(Origin::Control, "cannot set up an accepted connection", error))
}

fn send_unix(socket: &OwnedFd, bytes: &[u8], fd: Option<BorrowedFd<'_>>, deadline: &Deadline) -> Result<()> {
    let beside = fd.map(|fd| [fd]);
    let mut sent = 0;
    while sent < bytes.len() {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if sent == 0
            && let Some(beside) = &beside
            && !control.push(SendAncillaryMessage::ScmRights(beside))
        {
            return Err(Error::new(ErrorKind::TooSmall, Origin::Control, "no room for a descriptor"));
        }
        let slices = [IoSlice::new(&bytes[sent..])];
        match rustix::net::sendmsg(socket, &slices, &mut control, SendFlags::NOSIGNAL) {
            Ok(bytes) => sent += bytes,
            Err(Errno::AGAIN) => wait(socket.as_fd(), PollFlags::OUT, deadline, "the peer does not read")?,
            Err(Errno::INTR) => {}
            Err(error) => return Err(closed("cannot send to the peer").with_source(error)),
        }
    }
    Ok(())
}

fn receive_unix(
    socket: &OwnedFd,
    into: &mut [u8],
    fd: &mut Option<OwnedFd>,
    deadline: &Deadline,
) -> Result<usize> {
    loop {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(into)];
        match rustix::net::recvmsg(socket, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(received) if received.bytes == 0 => return Err(closed("the peer has closed the connection")),
            Ok(received) => {
                for message in control.drain() {
                    if let RecvAncillaryMessage::ScmRights(fds) = message {
                        // One descriptor belongs to a message; more are closed here.
                        fds.for_each(|passed| *fd = Some(passed));
                    }
                }
                return Ok(received.bytes);
            }
            Err(Errno::AGAIN) => {
                wait(socket.as_fd(), PollFlags::IN, deadline, "the peer has sent no whole message")?
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(closed("cannot receive from the peer").with_source(error)),
        }
    }
}

/// A bound of a wait.
pub(super) struct Deadline(Instant);

impl Deadline {
    pub(super) fn after(timeout: Duration) -> Self {
        let now = Instant::now();
        // A wait that overflows the clock is cut to a day.
        Self(now.checked_add(timeout).unwrap_or(now + Duration::from_secs(86_400)))
    }

    pub(super) fn left(&self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    pub(super) fn is_over(&self) -> bool {
        self.left().is_zero()
    }
}

/// Waits until the socket is ready; `what` did not happen if it takes too long.
pub(super) fn wait(socket: BorrowedFd<'_>, flags: PollFlags, deadline: &Deadline, what: &str) -> Result<()> {
    loop {
        let left = deadline.left();
        let limit = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        match poll(&mut [PollFd::new(&socket, flags)], Some(&limit)) {
            Ok(0) => return Err(Error::new(ErrorKind::Timeout, Origin::Control, what)),
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(Error::os(Origin::Control, "cannot wait for a peer", error)),
        }
    }
}

pub(super) fn closed(what: &str) -> Error {
    Error::new(ErrorKind::Unreachable, Origin::Control, what)
}
