//! Who gets in: the checks of a peer before anything is granted or told, and the bound on those that have not
//! passed them yet.
//!
//! Invariant: a peer of this host comes in by the kernel's word on its user, a peer of another host by a
//! certificate of the cluster; what it says of itself must agree with that. Callers: the daemon and every
//! connection's thread.

use crate::decide::ConnectionId;
use crate::execute::lock;
use selvage_fabric::config::Config;
use selvage_fabric::control::member::Member;
use selvage_fabric::control::message::{Refusal, Role};
use selvage_fabric::control::stream::{Closer, Peer, Stream};
use selvage_fabric::control::tls::Keyring;
use selvage_fabric::error::{Error, ErrorKind, Origin, Result};
use selvage_fabric::limits::HELLO_WAIT;
use std::collections::HashMap;
use std::net::{IpAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Peers of other hosts that may be on their way through handshake and hello at once.
const PORCH_MAX: usize = 64;
/// Time that each of them has for sure before it makes room for others; an honest one needs some
/// milliseconds.
const PORCH_GRACE: Duration = Duration::from_millis(100);

/// Who may do what.
pub(crate) struct Access {
    /// The cluster's name.
    pub(crate) cluster: String,
    own_uid: u32,
    operator_uids: Vec<u32>,
    node_uids: HashMap<String, Vec<u32>>,
    /// For peers of other hosts, if there are to be any.
    keys: Option<Keyring>,
}

/// The checks, and those that have not passed them yet.
pub(crate) struct Door {
    /// Who may do what.
    pub(crate) access: Access,
    /// Peers of other hosts on their way in.
    pub(crate) porch: Porch,
}

/// A connection that was accepted and has said nothing yet.
pub(crate) enum Incoming {
    /// From this host.
    Unix(UnixStream),
    /// Over TCP.
    Host(TcpStream),
}

impl AsFd for Incoming {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(socket) => socket.as_fd(),
            Self::Host(socket) => socket.as_fd(),
        }
    }
}

impl Access {
    /// What the configuration says, for the server of this name.
    pub(crate) fn new(config: &Config, name: &str) -> Result<Self> {
        let listens = config.server(name).is_some_and(|server| server.control.is_some());
        let keys = listens.then(|| Keyring::new(config, Member::Server(name.to_owned()))).transpose()?;
        Ok(Self {
            cluster: config.cluster.name.clone(),
            own_uid: rustix::process::geteuid().as_raw(),
            operator_uids: config.cluster.operator_uids.clone(),
            node_uids: config.nodes.iter().map(|node| (node.name.clone(), node.uids.clone())).collect(),
            keys,
        })
    }

    /// Makes a control stream of a connection, with the handshake of TLS if it comes from another host.
    pub(crate) fn open(&self, incoming: Incoming) -> Result<Stream> {
        match (incoming, &self.keys) {
            (Incoming::Unix(socket), _) => Stream::accepted(socket),
            (Incoming::Host(socket), Some(keys)) => Stream::accepted_host(socket, keys, HELLO_WAIT),
            (Incoming::Host(_), None) => {
                Err(Error::new(ErrorKind::Denied, Origin::Server, "no peers of other hosts are expected"))
            }
        }
    }

    /// Whether a peer may come in this role.
    pub(crate) fn check(&self, role: &Role, peer: &Peer) -> Result<(), Refusal> {
        match peer {
            Peer::User { uid, .. } => self.check_user(role, *uid),
            Peer::Member(member) => {
                member.may_be(role)?;
                match member {
                    _ if matches!(role, Role::Application { .. }) => Err(no_application()),
                    Member::Node(name) if !self.node_uids.contains_key(name) => Err(unknown(name)),
                    _ => Ok(()),
                }
            }
        }
    }

    fn check_user(&self, role: &Role, uid: u32) -> Result<(), Refusal> {
        match role {
            Role::Application { .. } => Err(no_application()),
            Role::Director | Role::Operator => {
                if uid == 0 || uid == self.own_uid || self.operator_uids.contains(&uid) {
                    return Ok(());
                }
                Err(Refusal::Denied(format!(
                    "user {uid} is no operator: run as user {} or add the user to cluster.operator_uids",
                    self.own_uid
                )))
            }
            Role::Node { name, .. } => {
                let Some(uids) = self.node_uids.get(name) else { return Err(unknown(name)) };
                if uids.contains(&uid) || (uids.is_empty() && uid == self.own_uid) {
                    return Ok(());
                }
                Err(Refusal::Denied(format!(
                    "user {uid} may not act for node \"{name}\": add the user to uids of that node"
                )))
            }
        }
    }
}

fn no_application() -> Refusal {
    Refusal::Denied("applications ask the director".to_owned())
}

fn unknown(node: &str) -> Refusal {
    Refusal::Denied(format!("no node \"{node}\" is configured"))
}

/// Peers of other hosts that have connected and are not known yet.
///
/// When it is full, no more are accepted until one has passed, or the oldest of the host with the most there
/// has had its time and is cut off: so a flood of half-open connections costs honest peers some milliseconds,
/// and a burst of honest ones loses nobody.
#[derive(Default)]
pub(crate) struct Porch(Mutex<Vec<Waiting>>);

struct Waiting {
    connection: ConnectionId,
    host: IpAddr,
    since: Instant,
    closer: Closer,
}

impl Porch {
    /// Whether another peer may be accepted now.
    pub(crate) fn has_room(&self) -> bool {
        lock(&self.0).len() < PORCH_MAX
    }

    /// Lets a peer in as far as here.
    pub(crate) fn enter(&self, connection: ConnectionId, host: IpAddr, closer: Closer) {
        lock(&self.0).push(Waiting { connection, host: network(host), since: Instant::now(), closer });
    }

    /// The peer is known, or gone. Does nothing for one that is not here.
    pub(crate) fn leave(&self, connection: ConnectionId) {
        lock(&self.0).retain(|waiting| waiting.connection != connection);
    }

    /// Makes room if there is none, by cutting one off. Says whether one was.
    pub(crate) fn make_room(&self, now: Instant) -> bool {
        let mut all = lock(&self.0);
        if all.len() < PORCH_MAX {
            return false;
        }
        let mut crowds: HashMap<IpAddr, usize> = HashMap::new();
        all.iter().for_each(|waiting| *crowds.entry(waiting.host).or_default() += 1);
        let late = |waiting: &Waiting| now.saturating_duration_since(waiting.since) >= PORCH_GRACE;
        let worst = (0..all.len())
            .filter(|at| late(&all[*at]))
            .max_by_key(|at| (crowds[&all[*at].host], std::cmp::Reverse(all[*at].since)));
        let Some(worst) = worst else { return false };
        let waiting = all.remove(worst);
        waiting.closer.close();
        true
    }
}

/// What counts as one host: with IPv6 a host has a whole network of addresses to come from.
fn network(host: IpAddr) -> IpAddr {
    match host.to_canonical() {
        IpAddr::V6(address) => {
            let mut segments = address.segments();
            segments[4..].fill(0);
            IpAddr::from(segments)
        }
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    const MARGIN: Duration = Duration::from_millis(1);

    fn enter(porch: &Porch, number: u64, host: [u8; 4]) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        porch.enter(ConnectionId(number), host.into(), Closer::new(&ours).unwrap());
        theirs.set_nonblocking(true).unwrap();
        theirs
    }

    fn is_cut(mut socket: &UnixStream) -> bool {
        matches!(socket.read(&mut [0]), Ok(0))
    }

    #[test]
    fn a_crowd_makes_room_and_others_stay() {
        let porch = Porch::default();
        let early = enter(&porch, 1, [10, 0, 0, 1]);
        let crowd: Vec<_> =
            (0..PORCH_MAX as u64 - 2).map(|at| enter(&porch, 10 + at, [10, 0, 0, 9])).collect();
        assert!(porch.has_room() && !porch.make_room(Instant::now() + PORCH_GRACE));
        let late = enter(&porch, 2, [10, 0, 0, 2]);
        assert!(!porch.has_room());
        // Nobody is cut off before its time.
        assert!(!porch.make_room(Instant::now() - MARGIN));
        let over = Instant::now() + PORCH_GRACE;
        assert!(porch.make_room(over) && porch.has_room());
        assert!(is_cut(&crowd[0]) && !is_cut(&crowd[1]), "the crowd's oldest");
        assert!(!is_cut(&early) && !is_cut(&late));
        // Whoever has passed takes no room.
        let _more = enter(&porch, 3, [10, 0, 0, 9]);
        porch.leave(ConnectionId(1));
        porch.leave(ConnectionId(1));
        assert!(porch.has_room() && !porch.make_room(over));
    }

    #[test]
    fn a_host_is_a_network_of_addresses() {
        let parse = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(network(parse("2001:db8::1")), network(parse("2001:db8::ffff:1")));
        assert_ne!(network(parse("2001:db8::1")), network(parse("2001:db8:0:1::1")));
        assert_eq!(network(parse("::ffff:10.0.0.1")), parse("10.0.0.1"));
    }
}
