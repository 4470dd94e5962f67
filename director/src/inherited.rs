//! Listening sockets that somebody else holds for the director: the service manager, by systemd's protocol
//! (`LISTEN_FDS`, `LISTEN_PID`, `LISTEN_FDNAMES`), or the director before this one ([`crate::handover`]).
//!
//! Such a socket outlives the director, so while it restarts, connections wait in the kernel's queue instead
//! of being refused. A socket is taken by its name if that is a key of `[director]`, else by its address.

use listenfd::ListenFd;
use selvage_fabric::error::{Error, ErrorKind, Origin, Result};
use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use tracing::info;

/// The keys of `[director]` whose sockets can be held, which are also their names.
const KEYS: [&str; 4] = ["listen", "admin_listen", "control", "tls_listen"];
/// Names of the sockets, in their order, separated by colons.
const NAMES: &str = "LISTEN_FDNAMES";

/// The sockets that were passed and not claimed yet.
#[derive(Debug, Default)]
pub struct Inherited {
    sockets: Vec<Socket>,
    /// Another director handed over: what it has beside these.
    pub control: Option<UnixListener>,
    /// See [`control`](Self::control).
    pub lock: Option<File>,
    is_handed_over: bool,
}

/// A socket that was claimed.
#[derive(Debug)]
pub struct Claimed {
    /// It listens.
    pub listener: TcpListener,
    /// The service manager has it by the key's name.
    pub is_named: bool,
}

#[derive(Debug)]
struct Socket {
    /// As the service manager calls it; may be empty.
    name: String,
    address: SocketAddr,
    listener: TcpListener,
}

impl Inherited {
    /// What the environment says was passed to this process; nothing if it says nothing.
    ///
    /// # Errors
    /// `Invalid` if something else than a listening TCP socket was passed.
    pub fn take() -> Result<Self> {
        let names = std::env::var(NAMES).unwrap_or_default();
        let mut passed = ListenFd::from_env();
        let mut names = names.split(':');
        let mut sockets = Vec::new();
        for at in 0..passed.len() {
            let name = names.next().unwrap_or_default().to_owned();
            let socket = passed.take_tcp_listener(at).and_then(|listener| match listener {
                Some(listener) => Ok((listener.local_addr()?, listener)),
                None => Err(std::io::ErrorKind::NotFound.into()),
            });
            let (address, listener) = socket.map_err(|error| {
                let context = format!(
                    "socket {at} of LISTEN_FDS (\"{name}\") is no listening TCP socket: take it out of the \
                     socket unit"
                );
                Error::new(ErrorKind::Invalid, Origin::Director, context).with_source(error)
            })?;
            sockets.push(Socket { name, address, listener });
        }
        Ok(Self { sockets, ..Self::default() })
    }

    /// From another director; nothing yet.
    pub fn handed_over() -> Self {
        Self { is_handed_over: true, ..Self::default() }
    }

    /// One socket more, with the name that the service manager gave it.
    ///
    /// # Errors
    /// `Os` if it is no TCP socket.
    pub fn add(&mut self, name: String, listener: TcpListener) -> Result<()> {
        let address = listener
            .local_addr()
            .map_err(|error| Error::os(Origin::Director, "what was handed over is no TCP socket", error))?;
        self.sockets.push(Socket { name, address, listener });
        Ok(())
    }

    /// The socket for a key of `[director]` that is to listen on `address`, if one was passed.
    pub fn claim(&mut self, key: &str, address: SocketAddr) -> Option<Claimed> {
        let named = |socket: &Socket| socket.name == key;
        let there = |socket: &Socket| !KEYS.contains(&&*socket.name) && socket.address == address;
        let at = self.sockets.iter().position(named).or_else(|| self.sockets.iter().position(there))?;
        let socket = self.sockets.swap_remove(at);
        if !self.is_handed_over {
            info!("`{key}`: listening on {}, whose socket is held by the service manager", socket.address);
        }
        Some(Claimed { listener: socket.listener, is_named: socket.name == key })
    }

    /// To be called when all have been claimed.
    ///
    /// # Errors
    /// `Invalid` for a socket that is nobody's: connections to it would wait for ever.
    pub fn none_is_left(&self) -> Result<()> {
        let Some(Socket { name, address, .. }) = self.sockets.first() else { return Ok(()) };
        if self.is_handed_over {
            // By its configuration the director before this one listened there, and by ours we do not.
            info!("nobody listens on {address} any more");
            return Ok(());
        }
        let context = format!(
            "the service manager passes a socket on {address} (\"{name}\") which is none of the addresses in \
             [director]: correct one of the two, or name the socket in its unit: FileDescriptorName=listen, \
             admin_listen, control or tls_listen"
        );
        Err(Error::new(ErrorKind::Invalid, Origin::Director, context))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(names: &[&str]) -> (Inherited, Vec<SocketAddr>) {
        let sockets: Vec<Socket> = names
            .iter()
            .map(|name| {
                let listener = TcpListener::bind("127.0.0.1:0").unwrap();
                let address = listener.local_addr().unwrap();
                Socket { name: (*name).to_owned(), address, listener }
            })
            .collect();
        let addresses = sockets.iter().map(|socket| socket.address).collect();
        (Inherited { sockets, ..Inherited::default() }, addresses)
    }

    #[test]
    fn a_socket_is_known_by_its_name_or_else_its_address() {
        let (mut inherited, addresses) = passed(&["selvage.socket", "listen", ""]);
        let elsewhere = "127.0.0.1:1".parse().unwrap();
        let claimed = |inherited: &mut Inherited, key: &str, address| {
            inherited.claim(key, address).map(|claimed| claimed.listener.local_addr().unwrap())
        };
        assert_eq!(claimed(&mut inherited, "listen", elsewhere), Some(addresses[1]));
        assert_eq!(claimed(&mut inherited, "admin_listen", addresses[2]), Some(addresses[2]));
        assert_eq!(claimed(&mut inherited, "control", elsewhere), None);
        let why = inherited.none_is_left().unwrap_err().to_string();
        assert!(why.contains("selvage.socket") && why.contains(&addresses[0].to_string()), "{why}");
        assert_eq!(claimed(&mut inherited, "control", addresses[0]), Some(addresses[0]));
        inherited.none_is_left().unwrap();
    }

    #[test]
    fn a_socket_with_anothers_name_is_not_taken_by_its_address() {
        let (mut inherited, addresses) = passed(&["control"]);
        assert!(inherited.claim("listen", addresses[0]).is_none());
    }
}
