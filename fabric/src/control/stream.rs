//! A blocking control connection over a Unix socket, with bounded waits, descriptor passing and peer credentials.

use super::message::{Hello, HelloReply, Refusal, Role};
use crate::error::Result;
use crate::ident::Incarnation;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

/// Who is at the other end, as the kernel says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peer {
    /// User id.
    pub uid: u32,
    /// Process id, as seen from here.
    pub pid: u32,
}

/// A control connection.
pub struct Stream {}

impl Stream {
    /// Connects.
    ///
    /// # Errors
    /// `Unreachable` if nobody listens or it takes longer than `timeout`.
    pub fn connect(_path: &Path, _timeout: Duration) -> Result<Self> {
        unimplemented!()
    }

    /// Takes over an accepted connection.
    ///
    /// # Errors
    /// `Os` if the kernel does not say who the peer is.
    pub fn accepted(_fd: impl Into<OwnedFd>) -> Result<Self> {
        unimplemented!()
    }

    /// Who is at the other end.
    pub fn peer(&self) -> Peer {
        unimplemented!()
    }

    /// A second handle to the same connection that can only send, for another thread.
    ///
    /// # Errors
    /// `Os`.
    pub fn sender(&self) -> Result<Sender> {
        unimplemented!()
    }

    /// Sends a message, with a descriptor beside it. Whole, or the connection is of no more use.
    ///
    /// # Errors
    /// `TooLarge`, `Timeout`, `Unreachable`.
    pub fn send(
        &mut self,
        _message: &impl Serialize,
        _fd: Option<BorrowedFd<'_>>,
        _timeout: Duration,
    ) -> Result<()> {
        unimplemented!()
    }

    /// Receives the next message and the descriptor beside it. After `Timeout` a later call goes on where it stopped.
    ///
    /// # Errors
    /// `Timeout`; `Unreachable` when the peer has closed; `Corrupt` for bytes that are no message: drop the connection.
    pub fn recv<T: DeserializeOwned>(&mut self, _timeout: Duration) -> Result<(T, Option<OwnedFd>)> {
        unimplemented!()
    }

    /// The opening side's hello. Returns the protocol version and the peer's incarnation.
    ///
    /// # Errors
    /// `VersionMismatch` with both ranges, `Denied`, `NotYet`, ... as refused; as `send` and `recv`.
    pub fn client_hello(
        &mut self,
        _cluster: &str,
        _role: Role,
        _timeout: Duration,
    ) -> Result<(u32, Incarnation)> {
        unimplemented!()
    }

    /// The accepting side's hello: checks protocol and cluster, asks `authorise`, answers.
    ///
    /// # Errors
    /// `Denied` and the like when refused (the peer was told); as `send` and `recv`.
    pub fn server_hello(
        &mut self,
        _cluster: &str,
        _incarnation: Incarnation,
        _authorise: impl FnOnce(&Hello, Peer) -> std::result::Result<(), Refusal>,
        _timeout: Duration,
    ) -> Result<(Hello, u32)> {
        unimplemented!()
    }

    /// Ends the connection for both directions; a thread that waits in `recv` wakes with `Unreachable`.
    pub fn shutdown(&self) {
        unimplemented!()
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        unimplemented!()
    }
}

/// The sending half of a [`Stream`].
pub struct Sender {}

impl Sender {
    /// As [`Stream::send`], without a descriptor.
    ///
    /// # Errors
    /// As [`Stream::send`].
    pub fn send(&mut self, _message: &impl Serialize, _timeout: Duration) -> Result<()> {
        unimplemented!()
    }
}

/// The error that a refusal stands for.
pub fn refusal_error(_refusal: &Refusal) -> crate::error::Error {
    unimplemented!()
}

/// Checks a hello and makes the answer; pure, for both kinds of server.
pub fn answer_hello(
    _hello: &Hello,
    _cluster: &str,
    _incarnation: Incarnation,
    _authorise: impl FnOnce(&Hello) -> std::result::Result<(), Refusal>,
) -> HelloReply {
    unimplemented!()
}
