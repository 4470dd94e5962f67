//! TLS over TCP, below a control connection to another host.
//!
//! Invariants: the lock around the connection's state is held only for work that does not wait, so a
//! receiver that sleeps does not keep a sender in another thread from sending; nothing is received or sent
//! for the caller before both sides have been authenticated; a TCP connection whose other end is gone
//! without a word ends within a bound that follows from the cluster's silence.

use super::channel::{Deadline, closed, prepare, wait};
use super::member::Member;
use super::tls::{self, Keyring};
use crate::error::{Error, ErrorKind, Origin, Result};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};
use rustls::{ClientConnection, Connection, ServerConnection};
use std::io::{ErrorKind as IoErrorKind, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Silences after which TCP gives a peer up that acknowledges nothing. Heartbeats decide who is dead; this
/// only frees what a half-open connection holds.
const SILENCES_TO_GIVE_UP: u32 = 10;
/// Bounds of that time: below, a busy host would lose connections that are fine.
const GIVE_UP_MIN: Duration = Duration::from_secs(3);
const GIVE_UP_MAX: Duration = Duration::from_secs(60);
/// Interval of TCP's own probes on a connection that is idle.
const PROBE_EVERY: Duration = Duration::from_secs(1);

/// An authenticated connection to another member.
pub(super) struct Secure {
    socket: OwnedFd,
    state: Mutex<Connection>,
}

impl Secure {
    /// Connects to `member` at `address`, and makes sure that it is the one that answers.
    pub(super) fn connect(
        address: SocketAddr,
        keys: &Keyring,
        member: &Member,
        deadline: &Deadline,
    ) -> Result<Self> {
        let (config, name) = tls::client_config(&keys.identity(), member)?;
        let client = ClientConnection::new(config, name).map_err(tls::failed)?;
        let socket =
            connect_tcp(address, deadline).map_err(|error| in_connection_to(error, member, address))?;
        set_up(&socket, keys.silence())?;
        let secure = Self { socket, state: Mutex::new(client.into()) };
        secure.shake_hands(deadline).map_err(|error| in_connection_to(error, member, address))?;
        Ok(secure)
    }

    /// Takes over an accepted connection, and says which member has opened it.
    pub(super) fn accept(socket: OwnedFd, keys: &Keyring, deadline: &Deadline) -> Result<(Self, Member)> {
        prepare(&socket)?;
        set_up(&socket, keys.silence())?;
        let server = ServerConnection::new(tls::server_config(&keys.identity())).map_err(tls::failed)?;
        let secure = Self { socket, state: Mutex::new(server.into()) };
        secure.shake_hands(deadline)?;
        let member = tls::member_of(secure.lock().peer_certificates(), keys.cluster())?;
        Ok((secure, member))
    }

    fn shake_hands(&self, deadline: &Deadline) -> Result<()> {
        loop {
            let mut state = self.lock();
            flush(&mut state, &self.socket)?;
            let wants_write = state.wants_write();
            if !state.is_handshaking() && !wants_write {
                return Ok(());
            }
            let arrived = state.is_handshaking() && self.take_in(&mut state)?;
            drop(state);
            if deadline.is_over() {
                let what = "the peer did not finish the TLS handshake in time";
                return Err(Error::new(ErrorKind::Timeout, Origin::Control, what));
            }
            if !arrived {
                let out = if wants_write { PollFlags::OUT } else { PollFlags::empty() };
                let late = "the peer did not finish the TLS handshake in time";
                wait(self.socket.as_fd(), PollFlags::IN | out, deadline, late)?;
            }
        }
    }

    /// Sends all of `bytes`.
    pub(super) fn send(&self, bytes: &[u8], deadline: &Deadline) -> Result<()> {
        let mut taken = 0;
        loop {
            let mut state = self.lock();
            // As much as the state's bounded buffer takes; what is left of it goes first.
            if taken < bytes.len() && !state.wants_write() {
                taken += state.writer().write(&bytes[taken..]).map_err(tls::io_failed)?;
            }
            flush(&mut state, &self.socket)?;
            let wants_write = state.wants_write();
            drop(state);
            match wants_write {
                true => wait(self.socket.as_fd(), PollFlags::OUT, deadline, "the peer does not read")?,
                false if taken == bytes.len() => return Ok(()),
                false => {}
            }
        }
    }

    /// Receives at least one byte.
    pub(super) fn receive(&self, into: &mut [u8], deadline: &Deadline) -> Result<usize> {
        let late = "the peer has sent no whole message";
        let mut arrived = false;
        loop {
            let mut state = self.lock();
            match state.reader().read(into) {
                Ok(0) => return Err(closed("the peer has closed the connection")),
                Ok(bytes) => return Ok(bytes),
                // Records without content must not keep anybody here.
                Err(error) if error.kind() == IoErrorKind::WouldBlock && arrived && deadline.is_over() => {
                    return Err(Error::new(ErrorKind::Timeout, Origin::Control, late));
                }
                Err(error) if error.kind() == IoErrorKind::WouldBlock => {}
                Err(error) => return Err(closed("cannot receive from the peer").with_source(error)),
            }
            arrived = self.take_in(&mut state)?;
            // Answers of TLS itself, as far as they go out at once; the rest goes with the next message.
            flush(&mut state, &self.socket)?;
            drop(state);
            if !arrived {
                wait(self.socket.as_fd(), PollFlags::IN, deadline, late)?;
            }
        }
    }

    /// Reads what the socket has. False: nothing now.
    fn take_in(&self, state: &mut Connection) -> Result<bool> {
        match state.read_tls(&mut Socket(&self.socket)) {
            Ok(0) => return Err(closed("the peer has closed the connection")),
            Ok(_) => {}
            Err(error) if error.kind() == IoErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(closed("cannot receive from the peer").with_source(error)),
        }
        state.process_new_packets().map_err(|error| {
            // The alert tells the peer why; it need not arrive.
            let _ = flush(state, &self.socket);
            tls::failed(error)
        })?;
        Ok(true)
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for Secure {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Sends what the state holds ready, as far as the socket takes it now.
fn flush(state: &mut Connection, socket: &OwnedFd) -> Result<()> {
    while state.wants_write() {
        match state.write_tls(&mut Socket(socket)) {
            Ok(_) => {}
            Err(error) if error.kind() == IoErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(closed("cannot send to the peer").with_source(error)),
        }
    }
    Ok(())
}

/// The socket as rustls wants it. A send to a peer that has gone is an error, not a signal.
struct Socket<'a>(&'a OwnedFd);

impl Read for Socket<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        loop {
            match rustix::net::recv(self.0, &mut *into, RecvFlags::empty()) {
                Ok((bytes, _)) => return Ok(bytes),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Write for Socket<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        loop {
            match rustix::net::send(self.0, bytes, SendFlags::NOSIGNAL) {
                Err(Errno::INTR) => {}
                sent => return Ok(sent?),
            }
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn connect_tcp(address: SocketAddr, deadline: &Deadline) -> Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)
        .map_err(|error| Error::os(Origin::Control, "cannot make a TCP socket", error))?;
    match rustix::net::connect(&socket, &address) {
        Ok(()) => return Ok(socket),
        Err(Errno::INPROGRESS | Errno::INTR) => {}
        Err(error) => return Err(closed("cannot connect").with_source(error)),
    }
    // Whoever does not answer in time cannot be reached: to the caller it is the same as a refusal.
    wait(socket.as_fd(), PollFlags::OUT, deadline, "cannot connect").map_err(|error| match error.kind {
        ErrorKind::Timeout => closed("it does not answer a connect in time"),
        _ => error,
    })?;
    match sockopt::socket_error(&socket) {
        Ok(Ok(())) => Ok(socket),
        Ok(Err(error)) | Err(error) => Err(closed("cannot connect").with_source(error)),
    }
}

/// No delay for small messages, also after a loss: thin streams are retransmitted at one pace instead of ever
/// more slowly. And an end for connections whose other host is gone.
fn set_up(socket: &OwnedFd, silence: Duration) -> Result<()> {
    let give_up = (silence * SILENCES_TO_GIVE_UP).clamp(GIVE_UP_MIN, GIVE_UP_MAX);
    let probes = give_up.as_secs().max(1) as u32;
    sockopt::set_tcp_nodelay(socket, true)
        .and_then(|()| sockopt::set_tcp_thin_linear_timeouts(socket, true))
        .and_then(|()| sockopt::set_socket_keepalive(socket, true))
        .and_then(|()| sockopt::set_tcp_keepidle(socket, PROBE_EVERY))
        .and_then(|()| sockopt::set_tcp_keepintvl(socket, PROBE_EVERY))
        .and_then(|()| sockopt::set_tcp_keepcnt(socket, probes))
        .and_then(|()| sockopt::set_tcp_user_timeout(socket, give_up.as_millis() as u32))
        .map_err(|error| Error::os(Origin::Control, "cannot set up a TCP connection", error))
}

fn in_connection_to(mut error: Error, member: &Member, address: SocketAddr) -> Error {
    error.context = format!("{member} at {address}: {}", error.context);
    error
}

#[cfg(test)]
#[path = "secure_tests.rs"]
mod tests;
