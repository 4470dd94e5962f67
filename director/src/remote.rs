//! Connections to and from other hosts: TCP that notices when the other host vanishes, and TLS inside it for
//! control, with certificates on both sides.
//!
//! A host that dies or is cut off sends no word, so TCP alone would hang for a quarter of an hour. Every
//! connection therefore has a limit for what is not acknowledged, and probes when it is idle. Callers:
//! [`crate::control`] and [`crate::server_link`] for control, [`crate::proxy::upstream`] for requests.

use crate::limits;
use crate::wire::{From, To};
use selvage_fabric::control::member::Member;
use selvage_fabric::control::tls::{Keyring, client_config, io_failed, member_of, server_config};
use selvage_fabric::error::{Error, ErrorKind, Origin, Result};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// Prepares a connection: nothing is held back, and after `vanished` without an acknowledgement it fails with
/// `TimedOut`.
///
/// # Errors
/// If the connection is gone already.
pub fn prepare(stream: &TcpStream, vanished: Duration) -> io::Result<()> {
    use rustix::net::sockopt;
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, limits::KEEPALIVE_PAUSE)?;
    sockopt::set_tcp_keepintvl(stream, limits::KEEPALIVE_PAUSE)?;
    // Counts for probes, too.
    let vanished_ms = u32::try_from(vanished.as_millis()).unwrap_or(u32::MAX);
    sockopt::set_tcp_user_timeout(stream, vanished_ms)?;
    Ok(())
}

/// As [`prepare`], for heartbeats: a stream that is thin retransmits at the same pace, instead of waiting
/// twice as long each time.
fn prepare_control(stream: &TcpStream, keyring: &Keyring) -> Result<()> {
    let vanished = (keyring.silence() * limits::VANISHED_FACTOR).max(limits::VANISHED_MIN);
    prepare(stream, vanished)
        .and_then(|()| Ok(rustix::net::sockopt::set_tcp_thin_linear_timeouts(stream, true)?))
        .map_err(|error| {
            Error::new(ErrorKind::Unreachable, Origin::Control, "the connection is gone").with_source(error)
        })
}

/// The accepting side's handshake: who it is, and the halves of the connection. The caller bounds the time.
///
/// # Errors
/// `Denied` for a certificate that is not accepted, `Corrupt` for what is no TLS, `Unreachable` if the peer
/// goes away.
pub async fn accept(stream: TcpStream, keyring: &Keyring) -> Result<(Member, From, To)> {
    prepare_control(&stream, keyring)?;
    let identity = keyring.identity();
    let acceptor = TlsAcceptor::from(server_config(&identity));
    let stream = acceptor.accept(stream).await.map_err(io_failed)?;
    let member = member_of(stream.get_ref().1.peer_certificates(), keyring.cluster())?;
    let (from, to) = tokio::io::split(stream);
    Ok((member, Box::new(from), Box::new(to)))
}

/// Connects to a member, which proves that it is that one. `None`: its host answers that nobody listens.
///
/// # Errors
/// `Unreachable` if its host does not answer or the connection breaks; otherwise as [`accept`]. The caller
/// bounds the time of the handshake.
pub async fn connect(address: SocketAddr, keyring: &Keyring, member: &Member) -> Result<Option<(From, To)>> {
    let identity = keyring.identity();
    let (config, name) = client_config(&identity, member)?;
    let wait = keyring.silence().max(limits::CONTROL_CONNECT_WAIT);
    let connecting = tokio::time::timeout(wait, TcpStream::connect(address));
    let stream = match connecting.await {
        // Where nobody listens on a port of this host that the kernel also gives to clients, it may have
        // given just that one: then this has connected to itself.
        Ok(Ok(stream)) if stream.local_addr().is_ok_and(|own| own == address) => return Ok(None),
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok(None),
        Ok(Err(error)) => {
            let what = format!("cannot connect to {address}");
            return Err(Error::new(ErrorKind::Unreachable, Origin::Control, what).with_source(error));
        }
        Err(_) => {
            let what = format!("the host of {address} does not answer");
            return Err(Error::new(ErrorKind::Unreachable, Origin::Control, what));
        }
    };
    prepare_control(&stream, keyring)?;
    let stream = TlsConnector::from(config).connect(name, stream).await.map_err(io_failed)?;
    let (from, to) = tokio::io::split(stream);
    Ok(Some((Box::new(from), Box::new(to))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::sockopt;
    use tokio::net::TcpListener;

    #[test]
    fn a_connection_notices_a_vanished_host() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            prepare(&stream, Duration::from_millis(1234)).unwrap();
            assert!(stream.nodelay().unwrap() && sockopt::socket_keepalive(&stream).unwrap());
            assert_eq!(sockopt::tcp_user_timeout(&stream).unwrap(), 1234);
            assert_eq!(sockopt::tcp_keepidle(&stream).unwrap(), limits::KEEPALIVE_PAUSE);
            assert_eq!(sockopt::tcp_keepintvl(&stream).unwrap(), limits::KEEPALIVE_PAUSE);
        });
    }
}
