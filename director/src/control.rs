//! Where nodes come to the director, at its socket on this host, and at its TCP address from others:
//! stewards, which register, beat and are told views; and applications, each with one request.
//!
//! Every local user can open the socket, so the kernel's word about the peer's user id is checked against
//! the node's; whoever comes from another host must have the node's certificate. Before that nothing that
//! the peer says counts and nothing is told. Whoever sends what is no message, is slow, or is not who it
//! says, is cut off and counted, and costs others nothing.

use crate::cluster::doom::DoomOutcome;
use crate::cluster::{Event, Link};
use crate::driver::Handle;
use crate::lobby::{Complaints, Crowds, Guest, InCrowd, Lobby};
use crate::metrics::{Cut, Metrics};
use crate::wire::{From, To};
use crate::{limits, remote, wire};
use selvage_fabric::config::Config;
use selvage_fabric::control::member::Member;
use selvage_fabric::control::message::{
    Doomed, ErrandOutcome, FromDirector, Hello, HelloReply, NodeNumbers, Refusal, Role, ToDirector,
};
use selvage_fabric::control::stream::{answer_hello, refusal_error};
use selvage_fabric::control::tls::Keyring;
use selvage_fabric::error::{Error, ErrorKind, Origin, Result};
use selvage_fabric::ident::Incarnation;
use selvage_fabric::limits as fabric_limits;
use selvage_fabric::numbers::{BUCKETS, Histogram};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::rustls;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

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
    /// Connections of each node's stewards.
    pub stewards: Arc<Crowds>,
    /// Connections of each node's applications: apart, so that no crowd of these keeps a steward out.
    pub applications: Arc<Crowds>,
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

/// A process of a node that may speak.
struct Visitor {
    name: String,
    sort: Sort,
    from: From,
    to: To,
    in_crowd: InCrowd,
}

/// What it comes for.
#[derive(Clone, Copy)]
enum Sort {
    /// As the steward of this life.
    Steward(Incarnation),
    /// To ask for one thing.
    Application,
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
                    Ok(visitor) => control.converse(visitor).await.map_err(|error| (cut(&error), error)),
                    Err(why) => Err(why),
                };
                match ended {
                    Err((Some(cut), error)) => {
                        control.metrics.cut_peer(cut);
                        control.metrics.error(error.kind);
                        control.complaints.say(&format!("a control peer is cut off: {error}"));
                    }
                    Err((None, error)) => debug!("a process of a node has gone: {error}"),
                    Ok(()) => {}
                }
                drop(place);
            });
        }
    }

    /// From a connection to a visitor that may speak; bounded in time, and by how many others come.
    async fn meet(
        &self,
        arrival: Arrival,
        guest: Guest,
    ) -> std::result::Result<Visitor, (Option<Cut>, Error)> {
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

    async fn introduce(&self, arrival: Arrival) -> std::result::Result<Visitor, (Option<Cut>, Error)> {
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
    async fn greet(&self, peer: Peer, mut from: From, mut to: To) -> Result<Visitor> {
        let hello: Hello = wire::receive(&mut from, limits::HELLO_BYTES_MAX).await?;
        let cluster = &self.config.cluster.name;
        let reply = answer_hello(&hello, cluster, Incarnation::NONE, |hello| self.authorise(hello, &peer));
        wire::send(&mut to, &reply).await?;
        match (reply, hello.role) {
            (HelloReply::Welcome { .. }, Role::Node { name, incarnation, .. }) => {
                let in_crowd = self.stewards.join(&name)?;
                Ok(Visitor { name, sort: Sort::Steward(incarnation), from, to, in_crowd })
            }
            (HelloReply::Welcome { .. }, Role::Application { name, .. }) => {
                let in_crowd = self.applications.join(&name)?;
                Ok(Visitor { name, sort: Sort::Application, from, to, in_crowd })
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
        let (Role::Node { name, .. } | Role::Application { name, .. }) = &hello.role else {
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

    async fn converse(&self, visitor: Visitor) -> Result<()> {
        let Visitor { name, sort, from, to, in_crowd: _in_crowd } = visitor;
        match sort {
            Sort::Steward(incarnation) => self.beat(name, incarnation, from, to).await,
            Sort::Application => self.answer(&name, from, to).await,
        }
    }

    /// A steward's connection.
    async fn beat(&self, name: String, incarnation: Incarnation, from: From, to: To) -> Result<()> {
        let link = self.handle.next_link();
        let messages = self.handle.open_node(link, name, incarnation).await;
        let ended = tokio::select! {
            ended = self.read(link, from) => ended,
            ended = write(messages, to) => ended,
        };
        self.handle.tell(Event::NodeClosed { link }).await;
        ended
    }

    /// An application's one request.
    async fn answer(&self, node: &str, mut from: From, mut to: To) -> Result<()> {
        let garbage = |what: &str| Error::new(ErrorKind::Corrupt, Origin::Control, what);
        let request = wire::receive(&mut from, limits::HELLO_BYTES_MAX);
        let request = tokio::time::timeout(fabric_limits::HELLO_WAIT, request).await;
        let late = |_| Error::new(ErrorKind::Timeout, Origin::Control, "no request in time");
        let ToDirector::DestroyOwner { owner, within_ms } = request.map_err(late)?? else {
            return Err(garbage("an application says what only stewards do"));
        };
        if owner.len() > fabric_limits::OWNER_BYTES_MAX {
            return Err(garbage("the owner's name is over its limit"));
        }
        info!(node, "an application of this node has all sessions of an owner destroyed");
        let within = Duration::from_millis(within_ms.into()).min(limits::REQUEST_WAIT_MAX);
        let doom = self.handle.doom(Doomed::Owner(owner), within);
        let outcome = tokio::select! {
            outcome = doom => outcome,
            // It says nothing more: it has gone, or is no application of ours.
            said = wire::receive::<ToDirector>(&mut from, limits::HELLO_BYTES_MAX) => {
                return said.and_then(|_| Err(garbage("a second request on an application's connection")));
            }
        };
        let answer = match outcome {
            Some(DoomOutcome::Done { sessions }) => FromDirector::OwnerDestroyed { sessions },
            Some(DoomOutcome::Uncertain { why, .. }) => FromDirector::Refused(Refusal::NotYet(why)),
            None => FromDirector::Refused(Refusal::NotYet("the director is stopping".to_owned())),
        };
        wire::send(&mut to, &answer).await
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
    let beat = match message {
        ToDirector::Beat(beat) => beat,
        ToDirector::ErrandEnded { outcome, .. } => return check_errand(outcome),
        _ => return Ok(()),
    };
    let good = beat.pids.len() <= fabric_limits::PROCESSES_MAX
        && beat.settled.len() <= fabric_limits::NODES_MAX
        && beat.links.len() <= fabric_limits::SERVERS_MAX
        && counters_are_good(&beat.counters)
        && beat.numbers.as_deref().is_none_or(numbers_are_good);
    beat.links.iter_mut().for_each(|link| make_plain(&mut link.detail));
    match good {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::Corrupt, Origin::Control, "a heartbeat's list is over its limit")),
    }
}

/// As [`check`], for what a node says about its sessions: names and values are users' and stay as they are.
fn check_errand(outcome: &mut ErrandOutcome) -> Result<()> {
    let good = match outcome {
        ErrandOutcome::Listed { sessions, .. } => sessions.len() <= fabric_limits::LIST_SESSIONS_MAX as usize,
        ErrandOutcome::Shown(detail) => {
            detail.as_ref().is_none_or(|detail| detail.attributes.len() <= fabric_limits::ATTRIBUTES_MAX)
        }
        ErrandOutcome::Destroyed { left: None, .. } => true,
        ErrandOutcome::Destroyed { left: Some(why), .. } | ErrandOutcome::Failed(why) => {
            make_plain(why);
            true
        }
    };
    match good {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::Corrupt, Origin::Control, "an errand's list is over its limit")),
    }
}

/// Cuts a peer's text for people to its limit and takes control characters out.
pub(crate) fn make_plain(text: &mut String) {
    let plain = |letter: char| if letter.is_control() { '?' } else { letter };
    if text.len() > limits::DETAIL_CHARS_MAX || text.chars().any(char::is_control) {
        *text = text.chars().take(limits::DETAIL_CHARS_MAX).map(plain).collect();
    }
}

/// Whether reported numbers are few enough; what this director does not know of them it leaves out.
pub(crate) fn counters_are_good(counters: &[u64]) -> bool {
    counters.len() <= limits::COUNTERS_MAX
}

/// Whether reported histograms are few enough, and each has no more buckets than there are.
pub(crate) fn times_are_good<'a>(times: impl IntoIterator<Item = &'a Histogram>) -> bool {
    let mut count = 0;
    let fit = times.into_iter().all(|times| {
        count += 1;
        times.counts.len() <= BUCKETS
    });
    fit && count <= limits::COUNTERS_MAX
}

fn numbers_are_good(numbers: &NodeNumbers) -> bool {
    let pushes = numbers.pushes.len() <= 2 * fabric_limits::SERVERS_MAX;
    let leases = numbers.leases.len() <= fabric_limits::SERVERS_MAX;
    pushes
        && leases
        && counters_are_good(&numbers.errors)
        && times_are_good(numbers.times.iter().chain(numbers.pushes.iter().map(|pushes| &pushes.time)))
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
