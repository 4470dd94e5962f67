//! Listening sockets that somebody else holds for the director: the service manager, by systemd's protocol
//! (`LISTEN_FDS`, `LISTEN_PID`, `LISTEN_FDNAMES`).
//!
//! Such a socket outlives the director, so while it restarts, connections wait in the kernel's queue instead
//! of being refused. A socket is taken by its name if that is a key of `[director]`, else by its address.

use listenfd::ListenFd;
use selvage_fabric::error::{Error, ErrorKind, Origin, Result};
use std::net::{SocketAddr, TcpListener};
use tracing::info;

/// The keys of `[director]` whose sockets can be held, which are also their names.
const KEYS: [&str; 3] = ["listen", "admin_listen", "control"];
/// Names of the sockets, in their order, separated by colons.
const NAMES: &str = "LISTEN_FDNAMES";

/// The sockets that were passed and not claimed yet.
#[derive(Debug, Default)]
pub struct Inherited {
    sockets: Vec<Socket>,
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
        Ok(Self { sockets })
    }

    /// The socket for a key of `[director]` that is to listen on `address`, if one was passed.
    pub fn claim(&mut self, key: &str, address: SocketAddr) -> Option<TcpListener> {
        let named = |socket: &Socket| socket.name == key;
        let there = |socket: &Socket| !KEYS.contains(&&*socket.name) && socket.address == address;
        let at = self.sockets.iter().position(named).or_else(|| self.sockets.iter().position(there))?;
        let socket = self.sockets.swap_remove(at);
        info!("`{key}`: listening on {}, whose socket is held by the service manager", socket.address);
        Some(socket.listener)
    }

    /// To be called when all have been claimed.
    ///
    /// # Errors
    /// `Invalid` for a socket that is nobody's: connections to it would wait for ever.
    pub fn none_is_left(&self) -> Result<()> {
        let Some(Socket { name, address, .. }) = self.sockets.first() else { return Ok(()) };
        let context = format!(
            "the service manager passes a socket on {address} (\"{name}\") which is none of the addresses in \
             [director]: correct one of the two, or name the socket in its unit: FileDescriptorName=listen, \
             admin_listen or control"
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
        (Inherited { sockets }, addresses)
    }

    #[test]
    fn a_socket_is_known_by_its_name_or_else_its_address() {
        let (mut inherited, addresses) = passed(&["selvage.socket", "listen", ""]);
        let elsewhere = "127.0.0.1:1".parse().unwrap();
        let claimed = |inherited: &mut Inherited, key: &str, address| {
            inherited.claim(key, address).map(|listener| listener.local_addr().unwrap())
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
