//! The director's connection to each session server: kept up for ever, requests in order, answers as events.
//! By the server's socket if it is on this host, else by its address over TCP and TLS.

use crate::cluster::{Event, Link};
use crate::control::{counters_are_good, cut, make_plain, times_are_good};
use crate::driver::Handle;
use crate::metrics::Metrics;
use crate::wire::{From, To};
use crate::{limits, remote, wire};
use selvage_fabric::control::member::Member;
use selvage_fabric::control::message::{
    FromServer, Hello, HelloReply, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN, Refusal, Role, ServerReport,
    ToServer,
};
use selvage_fabric::control::stream::refusal_error;
use selvage_fabric::control::tls::Keyring;
use selvage_fabric::error::{Error, ErrorKind, Origin, Result};
use selvage_fabric::ident::Incarnation;
use selvage_fabric::limits as fabric_limits;
use std::io::ErrorKind as IoErrorKind;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tracing::{debug, warn};

/// One server to keep connected.
#[derive(Debug)]
pub struct ServerLink {
    /// Its configured name.
    pub name: String,
    /// Its control socket, if it is on this host.
    pub socket: PathBuf,
    /// Its address for other hosts, if it has one, and how to show who we are there.
    pub remote: Option<(SocketAddr, Arc<Keyring>)>,
    /// The cluster's name.
    pub cluster: String,
    /// The state machine.
    pub handle: Handle,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

impl ServerLink {
    /// Connects again and again; never returns. The caller drops it to stop.
    pub async fn run(self) {
        let mut told = String::new();
        loop {
            let mut pause = limits::RECONNECT_PAUSE;
            match self.connect().await {
                Ok(None) => {
                    if !self.handle.tell(Event::ServerAbsent { name: self.name.clone() }).await {
                        return;
                    }
                }
                Ok(Some((from, to, incarnation))) => {
                    told.clear();
                    let ended = self.converse(from, to, incarnation).await;
                    match ended {
                        Err(error) if error.kind != ErrorKind::Unreachable => {
                            self.count(&error);
                            warn!("server {} is cut off: {error}", self.name);
                        }
                        _ => debug!("the connection to server {} is gone", self.name),
                    }
                    // Whether anybody still listens must be known soon, but not in a hot loop.
                    tokio::time::sleep(limits::LOOK_AGAIN_PAUSE).await;
                    continue;
                }
                Err(error) => {
                    if !matches!(error.kind, ErrorKind::Unreachable | ErrorKind::Timeout) {
                        pause = limits::STRANGER_PAUSE;
                    }
                    // Said once, not at every attempt.
                    let text = error.to_string();
                    if text != told {
                        warn!("server {}: {text}", self.name);
                        self.count(&error);
                        told = text;
                    }
                }
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// `None`: nobody listens. Where the server has an address, that decides: a socket that is not there, or
    /// that nobody answers at, says only that the server is not on this host.
    async fn connect(&self) -> Result<Option<(From, To, Incarnation)>> {
        let greeted = async {
            let Some((from, to)) = self.reach().await? else { return Ok(None) };
            self.greet(from, to).await.map(Some)
        };
        let late = || Error::new(ErrorKind::Timeout, Origin::Control, "it does not answer the hello");
        tokio::time::timeout(fabric_limits::HELLO_WAIT, greeted).await.map_err(|_| late())?
    }

    async fn reach(&self) -> Result<Option<(From, To)>> {
        match UnixStream::connect(&self.socket).await {
            Ok(stream) => return Ok(Some(wire::halves_of_unix(stream))),
            Err(error) if matches!(error.kind(), IoErrorKind::NotFound | IoErrorKind::ConnectionRefused) => {}
            Err(error) => return Err(Error::os(Origin::Control, "cannot connect", error)),
        }
        let Some((address, keyring)) = &self.remote else { return Ok(None) };
        remote::connect(*address, keyring, &Member::Server(self.name.clone())).await
    }

    async fn greet(&self, mut from: From, mut to: To) -> Result<(From, To, Incarnation)> {
        let hello = Hello {
            protocol_min: PROTOCOL_VERSION_MIN,
            protocol_max: PROTOCOL_VERSION,
            cluster: self.cluster.clone(),
            role: Role::Director,
        };
        wire::send(&mut to, &hello).await?;
        match wire::receive::<HelloReply>(&mut from, limits::NODE_MESSAGE_BYTES_MAX).await? {
            HelloReply::Welcome { incarnation, .. } => Ok((from, to, incarnation)),
            HelloReply::Refused(refusal) => Err(refusal_error(&refusal)),
        }
    }

    fn count(&self, error: &Error) {
        if let Some(cut) = cut(error) {
            self.metrics.cut_peer(cut);
            self.metrics.error(error.kind);
        }
    }

    async fn converse(&self, from: From, to: To, incarnation: Incarnation) -> Result<()> {
        let link = self.handle.next_link();
        let messages = self.handle.open_server(link, self.name.clone(), incarnation).await;
        let ended = tokio::select! {
            ended = self.read(link, from) => ended,
            ended = write(messages, to) => ended,
        };
        self.handle.tell(Event::ServerClosed { link }).await;
        ended
    }

    async fn read(&self, link: Link, mut from: From) -> Result<()> {
        loop {
            let event = match wire::receive(&mut from, limits::SERVER_MESSAGE_BYTES_MAX).await? {
                FromServer::Report(mut report) => {
                    self.check(&report)?;
                    make_plain(&mut report.rdma);
                    Event::ServerReport { link, report: Box::new(report) }
                }
                FromServer::Refused(Refusal::OldTerm(epoch)) => Event::ServerOldTerm { link, epoch },
                other => {
                    let why = format!("it answers {other:?}");
                    return Err(Error::new(ErrorKind::Corrupt, Origin::Control, why));
                }
            };
            if !self.handle.tell(event).await {
                return Ok(());
            }
        }
    }

    /// A report's name and counts against what they may be.
    fn check(&self, report: &ServerReport) -> Result<()> {
        let view_good = report.view.as_ref().is_none_or(|view| {
            view.nodes.len() <= fabric_limits::NODES_MAX
                && view.servers.len() <= fabric_limits::SERVERS_MAX
                && view.dead.len() <= limits::LEASES_MAX
        });
        let good = report.name == self.name
            && report.leases.len() <= limits::LEASES_MAX
            && counters_are_good(&report.counters)
            && report
                .numbers
                .as_deref()
                .is_none_or(|numbers| counters_are_good(&numbers.errors) && times_are_good(&numbers.times))
            && view_good;
        match good {
            true => Ok(()),
            false => {
                let why =
                    format!("the report of \"{}\" has a wrong name or a list over its limit", report.name);
                Err(Error::new(ErrorKind::Corrupt, Origin::Control, why))
            }
        }
    }
}

async fn write(mut messages: mpsc::Receiver<ToServer>, mut to: To) -> Result<()> {
    while let Some(message) = messages.recv().await {
        wire::send(&mut to, &message).await?;
    }
    Ok(())
}
