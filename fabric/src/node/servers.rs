//! How a node talks to session servers: control calls and links, behind a trait that a simulation can stand
//! in for.

pub use super::lifeline::Lifeline;
use super::opener::{Opener, Way};
use super::ways::Ways;
use crate::config::Config;
use crate::control::message::{FetchedArchive, FromServer, ToServer};
use crate::control::stream::{Stream, refusal_error};
use crate::error::{Error, ErrorKind, Origin, Result};
use crate::ident::{Incarnation, SessionId};
use crate::limits::HELLO_WAIT;
use crate::transport::{Link, Region};
use crate::view::{ServerEntry, View};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A link and what the server said about its lease.
pub struct OpenedLink {
    /// The link.
    pub link: Arc<dyn Link>,
    /// Number of the lease at the server.
    pub lease: u64,
    /// Number of the link at the server; `None` if it cannot be asked for the link's end, only for the
    /// process's.
    pub number: Option<u64>,
    /// The connection that the link lives by, if it does.
    pub lifeline: Option<Arc<Lifeline>>,
}

/// The session servers, as one node incarnation reaches them.
pub trait Servers: Send + Sync {
    /// One request and its reply; bounded. A refusal is an error of the kind that it stands for.
    ///
    /// # Errors
    /// `Unreachable`, `Timeout`; `NotYet`, `OwnershipLost` and the like as refused.
    fn call(&self, server: &ServerEntry, request: &ToServer) -> Result<FromServer>;

    /// Opens this process's link to its node's lease at the server. Links that send in place send from
    /// `cache`.
    ///
    /// # Errors
    /// As [`Self::call`], and those of mapping the lease.
    fn open_link(&self, server: &ServerEntry, cache: &Arc<dyn Region>) -> Result<OpenedLink>;

    /// The archives of sealed sessions that this node has claimed. May give fewer than asked: ask again for
    /// the rest.
    ///
    /// # Errors
    /// As [`Self::call`].
    fn fetch(&self, server: &ServerEntry, ids: Vec<SessionId>) -> Result<Vec<FetchedArchive>> {
        fetch_by_control(self, server, ids)
    }

    /// Forgets connections to servers that are not in the view.
    fn retain(&self, view: &View) {
        let _ = view;
    }
}

fn fetch_by_control<S: Servers + ?Sized>(
    servers: &S,
    server: &ServerEntry,
    ids: Vec<SessionId>,
) -> Result<Vec<FetchedArchive>> {
    match servers.call(server, &ToServer::Fetch { ids })? {
        FromServer::Archives(archives) => Ok(archives),
        _ => Err(unexpected(server, "archives")),
    }
}

/// Connections kept open per server for the next call.
const IDLE_MAX: usize = 4;

/// Servers on this and other hosts, over control connections.
pub struct ControlServers {
    ways: Arc<Ways>,
    incarnation: Incarnation,
    timeout: Duration,
    opener: Opener,
    /// Idle connections by server incarnation.
    idle: Mutex<HashMap<Incarnation, Vec<Stream>>>,
}

impl ControlServers {
    /// For one incarnation of the node; a call waits no longer than a request may.
    pub fn new(config: &Config, ways: Arc<Ways>, incarnation: Incarnation) -> Self {
        let timeout = Duration::from_millis(config.session.wait_ms).min(HELLO_WAIT);
        Self {
            ways,
            incarnation,
            timeout,
            opener: Opener::new(config, incarnation, timeout),
            idle: Mutex::new(HashMap::new()),
        }
    }

    fn connect(&self, server: &ServerEntry) -> Result<Way> {
        self.ways.to_server(server, self.incarnation, self.timeout)
    }

    fn exchange(&self, stream: &mut Stream, request: &ToServer) -> Result<(FromServer, Option<OwnedFd>)> {
        stream.send(request, None, self.timeout)?;
        stream.recv::<FromServer>(self.timeout)
    }

    fn request(&self, server: &ServerEntry, request: &ToServer) -> Result<(FromServer, Option<OwnedFd>)> {
        let kept = self.lock_idle().get_mut(&server.incarnation).and_then(Vec::pop);
        if let Some(mut stream) = kept
            && let Ok(reply) = self.exchange(&mut stream, request)
        {
            self.keep(server, stream);
            return refuse(reply);
        }
        // There was no idle connection, or the server has closed it: all requests can be repeated.
        let mut stream = self.connect(server)?.stream;
        let reply = self.exchange(&mut stream, request)?;
        self.keep(server, stream);
        refuse(reply)
    }

    fn keep(&self, server: &ServerEntry, stream: Stream) {
        let mut idle = self.lock_idle();
        let streams = idle.entry(server.incarnation).or_default();
        if streams.len() < IDLE_MAX {
            streams.push(stream);
        }
    }

    fn lock_idle(&self) -> std::sync::MutexGuard<'_, HashMap<Incarnation, Vec<Stream>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Servers for ControlServers {
    fn call(&self, server: &ServerEntry, request: &ToServer) -> Result<FromServer> {
        Ok(self.request(server, request)?.0)
    }

    fn open_link(&self, server: &ServerEntry, cache: &Arc<dyn Region>) -> Result<OpenedLink> {
        let (opened, stream) = self.opener.open(server, self.connect(server)?, cache)?;
        if let Some(stream) = stream {
            self.keep(server, stream);
        }
        Ok(opened)
    }

    fn fetch(&self, server: &ServerEntry, ids: Vec<SessionId>) -> Result<Vec<FetchedArchive>> {
        match self.opener.fetch_staged(server, &ids) {
            Some(archives) => Ok(archives),
            None => fetch_by_control(self, server, ids),
        }
    }

    fn retain(&self, view: &View) {
        self.opener.retain(view);
        self.lock_idle().retain(|incarnation, _| view.server(*incarnation).is_some());
    }
}

fn refuse(reply: (FromServer, Option<OwnedFd>)) -> Result<(FromServer, Option<OwnedFd>)> {
    match reply {
        (FromServer::Refused(refusal), _) => Err(refusal_error(&refusal)),
        reply => Ok(reply),
    }
}

/// The error for a reply of the wrong sort.
pub(super) fn unexpected(server: &ServerEntry, wanted: &str) -> Error {
    let context = format!("server {} did not answer with {wanted}", server.name);
    Error::new(ErrorKind::Corrupt, Origin::Node, context)
}
