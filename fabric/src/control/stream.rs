//! A blocking control connection over a Unix socket, with bounded waits, descriptor passing and peer
//! credentials.
//!
//! Invariants: the socket never blocks (every wait is a `poll` with a time limit) and is closed on exec; a
//! read never goes past the frame it is for, so a descriptor that arrives belongs to the message it was sent
//! with; memory for a message grows with the bytes that arrive, not with what the peer announces. Callers:
//! node processes, session servers, tools.

use super::frame::{PREFIX_BYTES, body_bytes_within, decode, encode};
use super::message::{Hello, HelloReply, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN, Refusal, Role};
use crate::error::{Error, ErrorKind, Origin, Result};
use crate::ident::Incarnation;
use crate::limits::MESSAGE_BYTES_MAX;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::{Errno, FdFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

/// Largest message of a peer that has not said hello, bytes.
const HELLO_BYTES_MAX: usize = 4096;
/// Memory that a message gets at first, and that the buffer keeps between messages, bytes.
const BODY_STEP_BYTES: usize = 64 << 10;
/// How often a connect is tried again while the listener's queue is full.
const CONNECT_RETRY: Duration = Duration::from_millis(1);

/// Who is at the other end, as the kernel says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peer {
    /// User id.
    pub uid: u32,
    /// Process id, as seen from here.
    pub pid: u32,
}

/// A control connection.
pub struct Stream {
    sender: Sender,
    peer: Peer,
    /// The frame that is being received: its bytes so far, the prefix first.
    frame: Vec<u8>,
    /// Bytes of `frame` that have arrived.
    arrived: usize,
    /// The descriptor that came with it.
    fd: Option<OwnedFd>,
}

/// The sending half of a [`Stream`]. Two halves of one connection must not both send.
pub struct Sender {
    socket: OwnedFd,
    frame: Vec<u8>,
}

impl Stream {
    /// Connects.
    ///
    /// # Errors
    /// `Unreachable` if nobody listens or it takes longer than `timeout`; `Invalid` for a path that no socket
    /// can have.
    pub fn connect(path: &Path, timeout: Duration) -> Result<Self> {
        let address = SocketAddrUnix::new(path).map_err(|error| {
            let what = format!("{} cannot be the path of a socket", path.display());
            Error::new(ErrorKind::Invalid, Origin::Control, what).with_source(error)
        })?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
            .map_err(|error| Error::os(Origin::Control, "cannot make a Unix socket", error))?;
        let deadline = Deadline::after(timeout);
        loop {
            match rustix::net::connect(&socket, &address) {
                Ok(()) => return Self::new(socket),
                // The listener's queue is full; a Unix socket cannot be polled for that.
                Err(Errno::AGAIN) if !deadline.is_over() => std::thread::sleep(CONNECT_RETRY),
                Err(Errno::INTR) if !deadline.is_over() => {}
                Err(error) => {
                    let what = format!("cannot connect to {}", path.display());
                    return Err(Error::new(ErrorKind::Unreachable, Origin::Control, what).with_source(error));
                }
            }
        }
    }

    /// Takes over an accepted connection.
    ///
    /// # Errors
    /// `Os` if the kernel does not say who the peer is.
    pub fn accepted(fd: impl Into<OwnedFd>) -> Result<Self> {
        let socket = fd.into();
        let prepared = rustix::fs::fcntl_getfl(&socket)
            .and_then(|flags| rustix::fs::fcntl_setfl(&socket, flags | OFlags::NONBLOCK))
            .and_then(|()| rustix::io::fcntl_setfd(&socket, FdFlags::CLOEXEC));
        prepared
            .map_err(|error| Error::os(Origin::Control, "cannot set up an accepted connection", error))?;
        Self::new(socket)
    }

    fn new(socket: OwnedFd) -> Result<Self> {
        let credentials = rustix::net::sockopt::socket_peercred(&socket)
            .map_err(|error| Error::os(Origin::Control, "the kernel does not say who the peer is", error))?;
        let pid = u32::try_from(credentials.pid.as_raw_pid()).unwrap_or(0);
        let peer = Peer { uid: credentials.uid.as_raw(), pid };
        let sender = Sender { socket, frame: Vec::new() };
        Ok(Self { sender, peer, frame: Vec::new(), arrived: 0, fd: None })
    }

    /// Who is at the other end.
    pub fn peer(&self) -> Peer {
        self.peer
    }

    /// A second handle to the same connection that can only send, for another thread. From then on only one
    /// of the two may send.
    ///
    /// # Errors
    /// `Os`.
    pub fn sender(&self) -> Result<Sender> {
        let socket = rustix::io::fcntl_dupfd_cloexec(&self.sender.socket, 0)
            .map_err(|error| Error::os(Origin::Control, "cannot duplicate a connection", error))?;
        Ok(Sender { socket, frame: Vec::new() })
    }

    /// Sends a message, with a descriptor beside it. After an error the connection is of no more use.
    ///
    /// # Errors
    /// `TooLarge` (nothing was sent), `Timeout`, `Unreachable`.
    pub fn send(
        &mut self,
        message: &impl Serialize,
        fd: Option<BorrowedFd<'_>>,
        timeout: Duration,
    ) -> Result<()> {
        self.sender.send_with(message, fd, timeout)
    }

    /// Receives the next message and the descriptor beside it. After `Timeout` a later call goes on where it
    /// stopped.
    ///
    /// # Errors
    /// `Timeout`; `Unreachable` when the peer has closed; `Corrupt` for bytes that are no message: drop the
    /// connection.
    pub fn recv<T: DeserializeOwned>(&mut self, timeout: Duration) -> Result<(T, Option<OwnedFd>)> {
        self.recv_within(MESSAGE_BYTES_MAX, timeout)
    }

    fn recv_within<T: DeserializeOwned>(
        &mut self,
        limit: usize,
        timeout: Duration,
    ) -> Result<(T, Option<OwnedFd>)> {
        let deadline = Deadline::after(timeout);
        self.receive_until(PREFIX_BYTES, &deadline)?;
        let mut prefix = [0; PREFIX_BYTES];
        prefix.copy_from_slice(&self.frame[..PREFIX_BYTES]);
        let end = PREFIX_BYTES + body_bytes_within(prefix, limit)?;
        self.receive_until(end, &deadline)?;
        let message = decode(&self.frame[PREFIX_BYTES..end]);
        self.arrived = 0;
        self.frame.truncate(BODY_STEP_BYTES);
        self.frame.shrink_to(BODY_STEP_BYTES);
        let fd = self.fd.take();
        Ok((message?, fd))
    }

    /// Reads until `end` bytes of the frame have arrived, and never a byte more.
    fn receive_until(&mut self, end: usize, deadline: &Deadline) -> Result<()> {
        while self.arrived < end {
            if self.frame.len() == self.arrived {
                // Doubling: a liar gets at most twice the memory of what it has really sent.
                let step = self.arrived.max(BODY_STEP_BYTES);
                self.frame.resize((self.arrived + step).min(end.max(BODY_STEP_BYTES)), 0);
            }
            let room = self.frame.len().min(end);
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut slices = [IoSliceMut::new(&mut self.frame[self.arrived..room])];
            let socket = &self.sender.socket;
            match rustix::net::recvmsg(socket, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Ok(received) if received.bytes == 0 => {
                    return Err(closed("the peer has closed the connection"));
                }
                Ok(received) => {
                    self.arrived += received.bytes;
                    for message in control.drain() {
                        if let RecvAncillaryMessage::ScmRights(fds) = message {
                            // One descriptor belongs to a message; more are closed here.
                            fds.for_each(|fd| self.fd = Some(fd));
                        }
                    }
                }
                Err(Errno::AGAIN) => {
                    wait(socket, PollFlags::IN, deadline, "the peer has sent no whole message")?
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(closed("cannot receive from the peer").with_source(error)),
            }
        }
        Ok(())
    }

    /// The opening side's hello. Returns the protocol version and the peer's incarnation.
    ///
    /// # Errors
    /// `VersionMismatch` with both ranges, `Denied`, `NotYet`, ... as refused; as `send` and `recv`.
    pub fn client_hello(
        &mut self,
        cluster: &str,
        role: Role,
        timeout: Duration,
    ) -> Result<(u32, Incarnation)> {
        let deadline = Deadline::after(timeout);
        let hello = Hello {
            protocol_min: PROTOCOL_VERSION_MIN,
            protocol_max: PROTOCOL_VERSION,
            cluster: cluster.to_owned(),
            role,
        };
        self.send(&hello, None, deadline.left())?;
        match self.recv::<HelloReply>(deadline.left())?.0 {
            HelloReply::Welcome { protocol, incarnation }
                if (PROTOCOL_VERSION_MIN..=PROTOCOL_VERSION).contains(&protocol) =>
            {
                Ok((protocol, incarnation))
            }
            HelloReply::Welcome { protocol, .. } => {
                let what = format!("the peer chose protocol version {protocol}, which was not offered");
                Err(Error::new(ErrorKind::Corrupt, Origin::Control, what))
            }
            HelloReply::Refused(refusal) => Err(refusal_error(&refusal)),
        }
    }

    /// The accepting side's hello: checks protocol and cluster, asks `authorise`, answers.
    ///
    /// # Errors
    /// `Denied` and the like when refused (the peer was told); as `send` and `recv`.
    pub fn server_hello(
        &mut self,
        cluster: &str,
        incarnation: Incarnation,
        authorise: impl FnOnce(&Hello, Peer) -> std::result::Result<(), Refusal>,
        timeout: Duration,
    ) -> Result<(Hello, u32)> {
        let deadline = Deadline::after(timeout);
        let (hello, _) = self.recv_within::<Hello>(HELLO_BYTES_MAX, deadline.left())?;
        let peer = self.peer;
        let reply = answer_hello(&hello, cluster, incarnation, |hello| authorise(hello, peer));
        self.send(&reply, None, deadline.left())?;
        match reply {
            HelloReply::Welcome { protocol, .. } => Ok((hello, protocol)),
            HelloReply::Refused(refusal) => Err(refusal_error(&refusal)),
        }
    }

    /// Ends the connection for both directions; a thread that waits in `recv` wakes with `Unreachable`.
    pub fn shutdown(&self) {
        // It can only fail if the peer has ended it already.
        let _ = rustix::net::shutdown(&self.sender.socket, Shutdown::Both);
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.sender.socket.as_fd()
    }
}

impl Sender {
    /// As [`Stream::send`], without a descriptor.
    ///
    /// # Errors
    /// As [`Stream::send`].
    pub fn send(&mut self, message: &impl Serialize, timeout: Duration) -> Result<()> {
        self.send_with(message, None, timeout)
    }

    /// As [`Stream::shutdown`].
    pub fn shutdown(&self) {
        // It can only fail if the peer has ended it already.
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
    }

    fn send_with(
        &mut self,
        message: &impl Serialize,
        fd: Option<BorrowedFd<'_>>,
        timeout: Duration,
    ) -> Result<()> {
        let deadline = Deadline::after(timeout);
        self.frame.clear();
        self.frame.shrink_to(BODY_STEP_BYTES);
        encode(message, &mut self.frame)?;
        let beside = fd.map(|fd| [fd]);
        let mut sent = 0;
        while sent < self.frame.len() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if sent == 0
                && let Some(beside) = &beside
                && !control.push(SendAncillaryMessage::ScmRights(beside))
            {
                return Err(Error::new(ErrorKind::TooSmall, Origin::Control, "no room for a descriptor"));
            }
            let slices = [IoSlice::new(&self.frame[sent..])];
            match rustix::net::sendmsg(&self.socket, &slices, &mut control, SendFlags::NOSIGNAL) {
                Ok(bytes) => sent += bytes,
                Err(Errno::AGAIN) => wait(&self.socket, PollFlags::OUT, &deadline, "the peer does not read")?,
                Err(Errno::INTR) => {}
                Err(error) => return Err(closed("cannot send to the peer").with_source(error)),
            }
        }
        Ok(())
    }
}

/// The error that a refusal stands for.
pub fn refusal_error(refusal: &Refusal) -> Error {
    let (kind, what) = match refusal {
        Refusal::Version { ours, theirs } => (
            ErrorKind::VersionMismatch,
            format!(
                "the peer speaks protocol versions {} to {}; this program speaks {} to {}",
                ours.0, ours.1, theirs.0, theirs.1
            ),
        ),
        Refusal::Denied(why) => (ErrorKind::Denied, format!("the peer refuses: {why}")),
        Refusal::NotYet(why) => (ErrorKind::NotYet, format!("the peer cannot answer yet: {why}")),
        Refusal::Over => (ErrorKind::OwnershipLost, "the incarnation is over".to_owned()),
        Refusal::OldTerm(newest) => {
            (ErrorKind::Conflict, format!("the peer has seen epoch {newest}, of a newer director's term"))
        }
        Refusal::Full { needed, left } => {
            (ErrorKind::Full, format!("the peer has {left} bytes left; {needed} are needed"))
        }
        Refusal::Bad(why) => (ErrorKind::Invalid, format!("the peer does not accept the request: {why}")),
    };
    Error::new(kind, Origin::Control, what)
}

/// Checks a hello and makes the answer; pure, for both kinds of server.
pub fn answer_hello(
    hello: &Hello,
    cluster: &str,
    incarnation: Incarnation,
    authorise: impl FnOnce(&Hello) -> std::result::Result<(), Refusal>,
) -> HelloReply {
    let oldest = PROTOCOL_VERSION_MIN.max(hello.protocol_min);
    let protocol = PROTOCOL_VERSION.min(hello.protocol_max);
    if oldest > protocol {
        return HelloReply::Refused(Refusal::Version {
            ours: (PROTOCOL_VERSION_MIN, PROTOCOL_VERSION),
            theirs: (hello.protocol_min, hello.protocol_max),
        });
    }
    if hello.cluster != cluster {
        let what = format!("this is cluster {cluster:?}, not {:?}", hello.cluster);
        return HelloReply::Refused(Refusal::Denied(what));
    }
    match authorise(hello) {
        Ok(()) => HelloReply::Welcome { protocol, incarnation },
        Err(refusal) => HelloReply::Refused(refusal),
    }
}

/// A bound of a wait.
struct Deadline(Instant);

impl Deadline {
    fn after(timeout: Duration) -> Self {
        let now = Instant::now();
        // A wait that overflows the clock is cut to a day.
        Self(now.checked_add(timeout).unwrap_or(now + Duration::from_secs(86_400)))
    }

    fn left(&self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    fn is_over(&self) -> bool {
        self.left().is_zero()
    }
}

/// Waits until the socket is ready; `what` did not happen if it takes too long.
fn wait(socket: &OwnedFd, flags: PollFlags, deadline: &Deadline, what: &str) -> Result<()> {
    loop {
        let left = deadline.left();
        let limit = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        match poll(&mut [PollFd::new(socket, flags)], Some(&limit)) {
            Ok(0) => return Err(Error::new(ErrorKind::Timeout, Origin::Control, what)),
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(Error::os(Origin::Control, "cannot wait for a peer", error)),
        }
    }
}

fn closed(what: &str) -> Error {
    Error::new(ErrorKind::Unreachable, Origin::Control, what)
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
