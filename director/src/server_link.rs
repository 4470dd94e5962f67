//! The director's connection to each session server: kept up for ever, requests in order, answers as events.

use crate::cluster::{Event, Link};
use crate::control::{counters_are_good, make_plain};
use crate::driver::Handle;
use crate::limits;
use crate::wire;
use selvage_fabric::control::message::{
    FromServer, Hello, HelloReply, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN, Refusal, Role, ServerReport,
    ToServer,
};
use selvage_fabric::error::{Error, ErrorKind, Origin, Result};
use selvage_fabric::ident::Incarnation;
use selvage_fabric::limits as fabric_limits;
use std::path::PathBuf;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tracing::{debug, warn};

/// One server to keep connected.
#[derive(Debug)]
pub struct ServerLink {
    /// Its configured name.
    pub name: String,
    /// Its control socket.
    pub socket: PathBuf,
    /// The cluster's name.
    pub cluster: String,
    /// The state machine.
    pub handle: Handle,
}

impl ServerLink {
    /// Connects again and again; never returns. The caller drops it to stop.
    pub async fn run(self) {
        let mut told = String::new();
        loop {
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
                            warn!("server {} is cut off: {error}", self.name);
                        }
                        _ => debug!("the connection to server {} is gone", self.name),
                    }
                    // Whether anybody still listens must be known soon, but not in a hot loop.
                    tokio::time::sleep(limits::LOOK_AGAIN_PAUSE).await;
                    continue;
                }
                Err(error) => {
                    // Said once, not at every attempt.
                    let text = error.to_string();
                    if text != told {
                        warn!("server {}: {text}", self.name);
                        told = text;
                    }
                }
            }
            tokio::time::sleep(limits::RECONNECT_PAUSE).await;
        }
    }

    /// `None`: nobody listens.
    async fn connect(&self) -> Result<Option<(OwnedReadHalf, OwnedWriteHalf, Incarnation)>> {
        let stream = match UnixStream::connect(&self.socket).await {
            Ok(stream) => stream,
            Err(error) => {
                return match error.kind() {
                    std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => Ok(None),
                    _ => Err(Error::os(Origin::Control, "cannot connect", error)),
                };
            }
        };
        let (mut from, mut to) = stream.into_split();
        let hello = Hello {
            protocol_min: PROTOCOL_VERSION_MIN,
            protocol_max: PROTOCOL_VERSION,
            cluster: self.cluster.clone(),
            role: Role::Director,
        };
        wire::send(&mut to, &hello).await?;
        let reply = wire::receive::<HelloReply>(&mut from, limits::NODE_MESSAGE_BYTES_MAX);
        let late = || Error::new(ErrorKind::Timeout, Origin::Control, "it does not answer the hello");
        match tokio::time::timeout(fabric_limits::HELLO_WAIT, reply).await.map_err(|_| late())?? {
            HelloReply::Welcome { incarnation, .. } => Ok(Some((from, to, incarnation))),
            HelloReply::Refused(refusal) => {
                let why = format!("it refuses the director: {refusal:?}");
                Err(Error::new(ErrorKind::Denied, Origin::Control, why))
            }
        }
    }

    async fn converse(
        &self,
        from: OwnedReadHalf,
        to: OwnedWriteHalf,
        incarnation: Incarnation,
    ) -> Result<()> {
        let link = self.handle.next_link();
        let messages = self.handle.open_server(link, self.name.clone(), incarnation).await;
        let ended = tokio::select! {
            ended = self.read(link, from) => ended,
            ended = write(messages, to) => ended,
        };
        self.handle.tell(Event::ServerClosed { link }).await;
        ended
    }

    async fn read(&self, link: Link, mut from: OwnedReadHalf) -> Result<()> {
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

async fn write(mut messages: mpsc::Receiver<ToServer>, mut to: OwnedWriteHalf) -> Result<()> {
    while let Some(message) = messages.recv().await {
        wire::send(&mut to, &message).await?;
    }
    Ok(())
}
