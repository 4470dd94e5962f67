//! Where stewards come to the director: register, beat and are told views; at its socket on this host, and at
//! its TCP address from others.
//!
//! Every local user can open the socket, so the kernel's word about the peer's user id is checked against the
//! node's; whoever comes from another host must have the node's certificate. Before that nothing that the
//! peer says counts and nothing is told. Whoever sends what is no message, is slow, or is not who it says, is
//! cut off and counted, and costs others nothing.

use crate::cluster::{Event, Link};
use crate::driver::Handle;
use crate::lobby::{Complaints, Crowds, Guest, InCrowd, Lobby};
use crate::metrics::{Cut, Metrics};
use crate::wire::{From, To};
use crate::{limits, remote, wire};
use selvage_fabric::config::Config;
use selvage_fabric::control::member::Member;
use selvage_fabric::control::message::{FromDirector, Hello, HelloReply, Refusal, Role, ToDirector};
use selvage_fabric::control::stream::{answer_hello, refusal_error};
use selvage_fabric::control::tls::Keyring;
use selvage_fabric::error::{Error, ErrorKind, Origin, Result};
use selvage_fabric::ident::Incarnation;
use selvage_fabric::limits as fabric_limits;
use std::sync::Arc;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::rustls;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// What every connection needs.
#[derive(Debug)]
pub struct Control {
    /// The configuration.
    pub config: Arc<Config>,
    /// The state machine.
    pub handle: Handle,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// The director's own user.
    pub own_uid: u32,
    /// What is said about bad peers.
    pub complaints: Complaints,
    /// Connections of each node.
    pub crowds: Arc<Crowds>,
}

/// Where stewards come in.
#[derive(Debug)]
pub enum Door {
    /// From this host.
    Local(UnixListener),
    /// From others.
    Remote(TcpListener, Arc<Keyring>),
}

/// One who has come in.
enum Arrival {
    Local(UnixStream),
    Remote(TcpStream, Arc<Keyring>),
}

/// Who is at the other end, by the kernel's word or by its certificate.
enum Peer {
    User(u32),
    Member(Member),
}

/// A steward that may speak.
struct Steward {
    name: String,
    incarnation: Incarnation,
    from: From,
    to: To,
    in_crowd: InCrowd,
}

impl Door {
    async fn accept(&self) -> std::io::Result<Arrival> {
        match self {
            Self::Local(listener) => Ok(Arrival::Local(listener.accept().await?.0)),
            Self::Remote(listener, keyring) => {
                Ok(Arrival::Remote(listener.accept().await?.0, Arc::clone(keyring)))
            }
        }
    }
}

impl Control {
    /// Accepts stewards until `stop`.
    pub async fn listen(self: Arc<Self>, door: Door, stop: CancellationToken) {
        let places = Arc::new(Semaphore::new(fabric_limits::CONNECTIONS_MAX));
        let lobby = Lobby::new(limits::LOBBY_PLACES);
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = door.accept() => accepted,
            };
            let arrival = match accepted {
                Ok(arrival) => arrival,
                Err(error) => {
                    warn!("cannot accept a control connection: {error}");
                    tokio::time::sleep(limits::ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                self.metrics.cut_peer(Cut::Crowded);
                continue;
            };
            let (control, guest) = (Arc::clone(&self), lobby.enter());
            tokio::spawn(async move {
                let ended = match control.meet(arrival, guest).await {
                    Ok(steward) => control.converse(steward).await.map_err(|error| (cut(&error), error)),
                    Err(why) => Err(why),
                };
                match ended {
                    Err((Some(cut), error)) => {
                        control.metrics.cut_peer(cut);
                        control.complaints.say(&format!("a control peer is cut off: {error}"));
                    }
                    Err((None, error)) => debug!("a steward has gone: {error}"),
                    Ok(()) => {}
                }
                drop(place);
            });
        }
    }

    /// From a connection to a steward that may speak; bounded in time, and by how many others come.
    async fn meet(
        &self,
        arrival: Arrival,
        guest: Guest,
    ) -> std::result::Result<Steward, (Option<Cut>, Error)> {
        let error = |kind, what| Error::new(kind, Origin::Control, what);
        tokio::select! {
            () = guest.crowded_out() => {
                let what = "too many others came before it had shown who it is";
                Err((Some(Cut::Crowded), error(ErrorKind::Busy, what)))
            }
            met = tokio::time::timeout(fabric_limits::HELLO_WAIT, self.introduce(arrival)) => match met {
                Ok(met) => met,
                Err(_) => Err((Some(Cut::Slow), error(ErrorKind::Timeout, "no hello in time"))),
            },
        }
    }

    async fn introduce(&self, arrival: Arrival) -> std::result::Result<Steward, (Option<Cut>, Error)> {
        let (peer, from, to) = match arrival {
            Arrival::Local(stream) => {
                let user = stream.peer_cred().map_err(|error| {
                    Error::os(Origin::Control, "the kernel does not say who the peer is", error)
                });
                let user = user.map_err(|error| (Some(Cut::Denied), error))?;
                let (from, to) = wire::halves_of_unix(stream);
                (Peer::User(user.uid()), from, to)
            }
            Arrival::Remote(stream, keyring) => {
                let (member, from, to) = remote::accept(stream, &keyring).await.map_err(|error| {
                    let cut = match error.kind {
                        ErrorKind::Denied => Some(Cut::Certificate),
                        _ => cut(&error),
                    };
                    (cut, error)
                })?;
                (Peer::Member(member), from, to)
            }
        };
        self.greet(peer, from, to).await.map_err(|error| (cut(&error), error))
    }

    /// The hello: protocol, cluster, and whether the peer is who it says.
    async fn greet(&self, peer: Peer, mut from: From, mut to: To) -> Result<Steward> {
        let hello: Hello = wire::receive(&mut from, limits::HELLO_BYTES_MAX).await?;
        let cluster = &self.config.cluster.name;
        let reply = answer_hello(&hello, cluster, Incarnation::NONE, |hello| self.authorise(hello, &peer));
        wire::send(&mut to, &reply).await?;
        match (reply, hello.role) {
            (HelloReply::Welcome { .. }, Role::Node { name, incarnation, .. }) => {
                let in_crowd = self.crowds.join(&name)?;
                Ok(Steward { name, incarnation, from, to, in_crowd })
            }
            (HelloReply::Refused(refusal), role) => {
                let kind = refusal_error(&refusal).kind;
                let why = format!("{peer} as {role:?} was refused: {refusal:?}");
                Err(Error::new(kind, Origin::Control, why))
            }
            (HelloReply::Welcome { .. }, role) => {
                Err(Error::new(ErrorKind::Denied, Origin::Control, format!("{role:?} is no node")))
            }
        }
    }

    fn authorise(&self, hello: &Hello, peer: &Peer) -> std::result::Result<(), Refusal> {
        let Role::Node { name, .. } = &hello.role else {
            let why = "the director talks to nodes here; operators use the admin API";
            return Err(Refusal::Denied(why.to_owned()));
        };
        let uid = match peer {
            Peer::Member(member) => {
                member.may_be(&hello.role)?;
                None
            }
            Peer::User(uid) => Some(*uid),
        };
        let Some(node) = self.config.node(name) else {
            return Err(Refusal::Denied(format!("no node \"{name}\" is configured")));
        };
        match uid {
            Some(uid) if !(node.uids.contains(&uid) || node.uids.is_empty() && uid == self.own_uid) => {
                Err(Refusal::Denied(format!("user {uid} may not act for node \"{name}\"")))
            }
            _ => Ok(()),
        }
    }

    async fn converse(&self, steward: Steward) -> Result<()> {
        let Steward { name, incarnation, from, to, in_crowd: _in_crowd } = steward;
        let link = self.handle.next_link();
        let messages = self.handle.open_node(link, name, incarnation).await;
        let ended = tokio::select! {
            ended = self.read(link, from) => ended,
            ended = write(messages, to) => ended,
        };
        self.handle.tell(Event::NodeClosed { link }).await;
        ended
    }

    async fn read(&self, link: Link, mut from: From) -> Result<()> {
        loop {
            let mut message: ToDirector = wire::receive(&mut from, limits::NODE_MESSAGE_BYTES_MAX).await?;
            check(&mut message)?;
            if !self.handle.tell(Event::NodeMessage { link, message }).await {
                return Ok(());
            }
        }
    }
}

async fn write(mut messages: mpsc::Receiver<FromDirector>, mut to: To) -> Result<()> {
    while let Some(message) = messages.recv().await {
        wire::send(&mut to, &message).await?;
    }
    Ok(())
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::User(uid) => write!(f, "user {uid}"),
            Self::Member(member) => member.fmt(f),
        }
    }
}

/// What a peer is counted as that was cut off with this error; `None` if it just went away.
pub(crate) fn cut(error: &Error) -> Option<Cut> {
    let source = error.source.as_deref();
    match error.kind {
        ErrorKind::Unreachable => None,
        ErrorKind::Denied if source.is_some_and(|source| source.is::<rustls::Error>()) => {
            Some(Cut::Certificate)
        }
        ErrorKind::Denied => Some(Cut::Denied),
        ErrorKind::VersionMismatch => Some(Cut::Version),
        ErrorKind::Busy => Some(Cut::Crowded),
        // The kernel's own word, not a limit of ours.
        ErrorKind::Timeout if source.is_some() => Some(Cut::Vanished),
        ErrorKind::Timeout => Some(Cut::Slow),
        _ => Some(Cut::Garbage),
    }
}

/// Every count of a message against its limit; texts for people made fit for a terminal.
fn check(message: &mut ToDirector) -> Result<()> {
    let ToDirector::Beat(beat) = message else { return Ok(()) };
    let good = beat.pids.len() <= fabric_limits::PROCESSES_MAX
        && beat.settled.len() <= fabric_limits::NODES_MAX
        && beat.links.len() <= fabric_limits::SERVERS_MAX
        && counters_are_good(&beat.counters);
    beat.links.iter_mut().for_each(|link| make_plain(&mut link.detail));
    match good {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::Corrupt, Origin::Control, "a heartbeat's list is over its limit")),
    }
}

/// Cuts a peer's text for people to its limit and takes control characters out.
pub(crate) fn make_plain(text: &mut String) {
    let plain = |letter: char| if letter.is_control() { '?' } else { letter };
    if text.len() > limits::DETAIL_CHARS_MAX || text.chars().any(char::is_control) {
        *text = text.chars().take(limits::DETAIL_CHARS_MAX).map(plain).collect();
    }
}

/// Whether reported counters are few enough and have plain names.
pub(crate) fn counters_are_good(counters: &[(String, u64)]) -> bool {
    let plain = |name: &str| {
        !name.is_empty()
            && name.len() <= limits::COUNTER_NAME_BYTES_MAX
            && name.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ')
    };
    counters.len() <= limits::COUNTERS_MAX && counters.iter().all(|(name, _)| plain(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_for_people_are_short_and_plain() {
        let mut text = "gr\u{fc}n \u{1b}[31m\r\n".to_owned();
        make_plain(&mut text);
        assert_eq!(text, "gr\u{fc}n ?[31m??");
        let mut long = "\u{fc}".repeat(10_000);
        make_plain(&mut long);
        assert_eq!(long.chars().count(), limits::DETAIL_CHARS_MAX);
    }
}
