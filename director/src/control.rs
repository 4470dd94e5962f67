//! The director's control socket: stewards connect here, register, beat and are told views.
//!
//! Every local user can open it, so the kernel's word about the peer's user id is checked against the node's,
//! before anything that the peer says counts. Whoever sends what is no message is cut off and counted.

use crate::cluster::{Event, Link};
use crate::driver::Handle;
use crate::limits;
use crate::metrics::Metrics;
use crate::wire;
use selvage_fabric::config::Config;
use selvage_fabric::control::message::{FromDirector, Hello, HelloReply, Refusal, Role, ToDirector};
use selvage_fabric::control::stream::answer_hello;
use selvage_fabric::error::{Error, ErrorKind, Origin, Result};
use selvage_fabric::ident::Incarnation;
use selvage_fabric::limits as fabric_limits;
use std::sync::Arc;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
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
}

impl Control {
    /// Accepts stewards until `stop`.
    pub async fn listen(self: Arc<Self>, listener: UnixListener, stop: CancellationToken) {
        let places = Arc::new(Semaphore::new(fabric_limits::CONNECTIONS_MAX));
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    warn!("cannot accept a control connection: {error}");
                    tokio::time::sleep(limits::ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                self.metrics.bad_peers.inc();
                continue;
            };
            let control = Arc::clone(&self);
            tokio::spawn(async move {
                if let Err(error) = control.converse(stream).await {
                    match error.kind {
                        ErrorKind::Unreachable => debug!("a steward has gone: {error}"),
                        _ => {
                            control.metrics.bad_peers.inc();
                            warn!("a control peer is cut off: {error}");
                        }
                    }
                }
                drop(place);
            });
        }
    }

    async fn converse(&self, stream: UnixStream) -> Result<()> {
        let peer = stream
            .peer_cred()
            .map_err(|error| Error::os(Origin::Control, "the kernel does not say who the peer is", error))?;
        let (mut from, mut to) = stream.into_split();
        let hello =
            tokio::time::timeout(fabric_limits::HELLO_WAIT, self.greet(&mut from, &mut to, peer.uid()));
        let late = || Error::new(ErrorKind::Timeout, Origin::Control, "no hello in time");
        let (name, incarnation) = hello.await.map_err(|_| late())??;
        let link = self.handle.next_link();
        let messages = self.handle.open_node(link, name, incarnation).await;
        let ended = tokio::select! {
            ended = self.read(link, from) => ended,
            ended = write(messages, to) => ended,
        };
        self.handle.tell(Event::NodeClosed { link }).await;
        ended
    }

    /// The hello: protocol, cluster, user.
    async fn greet(
        &self,
        from: &mut OwnedReadHalf,
        to: &mut OwnedWriteHalf,
        uid: u32,
    ) -> Result<(String, Incarnation)> {
        let hello: Hello = wire::receive(from, limits::NODE_MESSAGE_BYTES_MAX).await?;
        let cluster = &self.config.cluster.name;
        let reply = answer_hello(&hello, cluster, Incarnation::NONE, |hello| self.authorise(hello, uid));
        wire::send(to, &reply).await?;
        match (reply, hello.role) {
            (HelloReply::Welcome { .. }, Role::Node { name, incarnation, .. }) => Ok((name, incarnation)),
            (reply, role) => {
                let why = format!("user {uid} as {role:?} was refused: {reply:?}");
                Err(Error::new(ErrorKind::Denied, Origin::Control, why))
            }
        }
    }

    fn authorise(&self, hello: &Hello, uid: u32) -> std::result::Result<(), Refusal> {
        let Role::Node { name, .. } = &hello.role else {
            let why = "the director talks to nodes here; operators use the admin API";
            return Err(Refusal::Denied(why.to_owned()));
        };
        let Some(node) = self.config.node(name) else {
            return Err(Refusal::Denied(format!("no node \"{name}\" is configured")));
        };
        let allowed = match node.uids.as_slice() {
            [] => uid == self.own_uid,
            uids => uids.contains(&uid),
        };
        match allowed {
            true => Ok(()),
            false => Err(Refusal::Denied(format!("user {uid} may not act for node \"{name}\""))),
        }
    }

    async fn read(&self, link: Link, mut from: OwnedReadHalf) -> Result<()> {
        loop {
            let mut message: ToDirector = wire::receive(&mut from, limits::NODE_MESSAGE_BYTES_MAX).await?;
            check(&mut message)?;
            if !self.handle.tell(Event::NodeMessage { link, message }).await {
                return Ok(());
            }
        }
    }
}

async fn write(mut messages: mpsc::Receiver<FromDirector>, mut to: OwnedWriteHalf) -> Result<()> {
    while let Some(message) = messages.recv().await {
        wire::send(&mut to, &message).await?;
    }
    Ok(())
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
