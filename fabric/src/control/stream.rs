//! A blocking control connection, with bounded waits: over a Unix socket, with descriptor passing and peer
//! credentials, or over TCP with TLS, where the peer's certificate says who it is.
//!
//! Invariants: every wait has a time limit; a read never goes past the frame it is for, so a descriptor that
//! arrives belongs to the message it was sent with; memory for a message grows with the bytes that arrive,
//! not with what the peer announces; a stream to another host exists only once both sides are authenticated.
//! Callers: node processes, session servers, tools.

use super::channel::{Channel, Deadline, prepare};
use super::frame::{PREFIX_BYTES, body_bytes_within, decode, encode};
use super::member::Member;
use super::message::{Hello, HelloReply, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN, Refusal, Role};
use super::secure::Secure;
use super::tls::Keyring;
use crate::error::{Error, ErrorKind, Origin, Result};
use crate::ident::Incarnation;
use crate::limits::MESSAGE_BYTES_MAX;
use rustix::io::Errno;
use rustix::net::{AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Largest message of a peer that has not said hello, bytes.
const HELLO_BYTES_MAX: usize = 4096;
/// Memory that a message gets at first, and that the buffer keeps between messages, bytes.
const BODY_STEP_BYTES: usize = 64 << 10;
/// How often a connect is tried again while the listener's queue is full.
const CONNECT_RETRY: Duration = Duration::from_millis(1);

/// Who is at the other end: known, not claimed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Peer {
    /// A process of this host, as the kernel says.
    User {
        /// User id.
        uid: u32,
        /// Process id, as seen from here.
        pid: u32,
    },
    /// A member on another host (or on this one, over TCP), as its certificate says.
    Member(Member),
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
    channel: Channel,
    frame: Vec<u8>,
}

/// Ends a connection from another thread.
pub struct Closer(OwnedFd);

impl Stream {
    /// Connects to a Unix socket of this host.
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
                Ok(()) => return Self::of_unix(socket),
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

    /// Connects to a member at its address, and makes sure that it is the one that answers.
    ///
    /// # Errors
    /// `Unreachable` if nobody listens; `Timeout` if the handshake takes too long; `Denied` if one side does
    /// not accept the other's certificate. What the other side finds wrong may come with the first message
    /// only.
    pub fn connect_host(
        address: SocketAddr,
        keys: &Keyring,
        member: &Member,
        timeout: Duration,
    ) -> Result<Self> {
        let secure = Secure::connect(address, keys, member, &Deadline::after(timeout))?;
        Ok(Self::new(Channel::Secure(Arc::new(secure)), Peer::Member(member.clone())))
    }

    /// Takes over a connection that was accepted at a Unix socket.
    ///
    /// # Errors
    /// `Os` if the kernel does not say who the peer is.
    pub fn accepted(fd: impl Into<OwnedFd>) -> Result<Self> {
        let socket = fd.into();
        prepare(&socket)?;
        Self::of_unix(socket)
    }

    /// Takes over a TCP connection that was accepted, with the handshake of TLS.
    ///
    /// # Errors
    /// `Timeout` if it takes too long; `Denied` for a peer without a certificate of a member; `Corrupt` for
    /// one that does not speak TLS.
    pub fn accepted_host(fd: impl Into<OwnedFd>, keys: &Keyring, timeout: Duration) -> Result<Self> {
        let (secure, member) = Secure::accept(fd.into(), keys, &Deadline::after(timeout))?;
        Ok(Self::new(Channel::Secure(Arc::new(secure)), Peer::Member(member)))
    }

    fn of_unix(socket: OwnedFd) -> Result<Self> {
        let credentials = rustix::net::sockopt::socket_peercred(&socket)
            .map_err(|error| Error::os(Origin::Control, "the kernel does not say who the peer is", error))?;
        let pid = u32::try_from(credentials.pid.as_raw_pid()).unwrap_or(0);
        let peer = Peer::User { uid: credentials.uid.as_raw(), pid };
        Ok(Self::new(Channel::Unix(Arc::new(socket)), peer))
    }

    fn new(channel: Channel, peer: Peer) -> Self {
        let sender = Sender { channel, frame: Vec::new() };
        Self { sender, peer, frame: Vec::new(), arrived: 0, fd: None }
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// This end's address, for a connection over TCP.
    pub fn local_ip(&self) -> Option<IpAddr> {
        local_ip(self.as_fd())
    }

    /// A second handle to the same connection that can only send, for another thread. From then on only one
    /// of the two may send.
    pub fn sender(&self) -> Sender {
        Sender { channel: self.sender.channel.clone(), frame: Vec::new() }
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
            let into = &mut self.frame[self.arrived..room];
            self.arrived += self.sender.channel.receive(into, &mut self.fd, deadline)?;
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
        authorise: impl FnOnce(&Hello, &Peer) -> std::result::Result<(), Refusal>,
        timeout: Duration,
    ) -> Result<(Hello, u32)> {
        let deadline = Deadline::after(timeout);
        let (hello, _) = self.recv_within::<Hello>(HELLO_BYTES_MAX, deadline.left())?;
        let reply = answer_hello(&hello, cluster, incarnation, |hello| authorise(hello, &self.peer));
        self.send(&reply, None, deadline.left())?;
        match reply {
            HelloReply::Welcome { protocol, .. } => Ok((hello, protocol)),
            HelloReply::Refused(refusal) => Err(refusal_error(&refusal)),
        }
    }

    /// Ends the connection for both directions; a thread that waits in `recv` wakes with `Unreachable`.
    pub fn shutdown(&self) {
        self.sender.shutdown();
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.sender.channel.as_fd()
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
        self.channel.shutdown(Shutdown::Both);
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
        self.channel.send(&self.frame, fd, &deadline)
    }
}

impl Closer {
    /// For a connection that is open; it may still be in its handshake.
    ///
    /// # Errors
    /// `Os`.
    pub fn new(socket: impl AsFd) -> Result<Self> {
        let socket = rustix::io::fcntl_dupfd_cloexec(socket.as_fd(), 0)
            .map_err(|error| Error::os(Origin::Control, "cannot hold a connection", error))?;
        Ok(Self(socket))
    }

    /// Ends both directions; a thread that waits in the connection wakes with `Unreachable`.
    pub fn close(&self) {
        self.shutdown(Shutdown::Both);
    }

    /// Ends receiving: what is still to be sent goes out.
    pub fn close_receiving(&self) {
        self.shutdown(Shutdown::Read);
    }

    /// As [`Stream::local_ip`].
    pub fn local_ip(&self) -> Option<IpAddr> {
        local_ip(self.0.as_fd())
    }

    fn shutdown(&self, how: Shutdown) {
        // It can only fail if the peer has ended it already.
        let _ = rustix::net::shutdown(&self.0, how);
    }
}

fn local_ip(socket: BorrowedFd<'_>) -> Option<IpAddr> {
    let address = rustix::net::getsockname(socket).ok()?;
    SocketAddr::try_from(address).ok().map(|address| address.ip())
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

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
