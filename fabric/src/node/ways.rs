//! [`Ways`]: how a process of a node gets a control connection to the director and to session servers: by the
//! Unix socket where the other one is on this host, else over TCP with the node's certificate.
//!
//! Invariant: a connection that is given out has passed its hello, and one to a server leads to the very life
//! that the view names; a server of that name that runs on this host by chance is passed by. Callers: joining
//! and the agent (director), [`super::owners`] (director), [`super::servers`].

use super::opener::Way;
use crate::config::Config;
use crate::control::member::Member;
use crate::control::message::Role;
use crate::control::stream::Stream;
use crate::control::tls::Keyring;
use crate::error::{Error, ErrorKind, Origin, Result};
use crate::ident::Incarnation;
use crate::limits::HELLO_WAIT;
use crate::view::ServerEntry;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The ways of one process of a node.
pub struct Ways {
    config: Arc<Config>,
    node: String,
    /// Loaded when another host is to be reached for the first time, and whenever that has failed.
    keys: Mutex<Option<Arc<Keyring>>>,
}

impl Ways {
    /// For the node of this name.
    pub fn new(config: Arc<Config>, node: &str) -> Self {
        Self { config, node: node.to_owned(), keys: Mutex::new(None) }
    }

    /// To a server's life, on behalf of the node's life `incarnation`.
    ///
    /// # Errors
    /// `Unreachable`, `Timeout`; `Denied` and the like as refused; as loading the node's certificate.
    pub fn to_server(
        &self,
        server: &ServerEntry,
        incarnation: Incarnation,
        timeout: Duration,
    ) -> Result<Way> {
        let socket = Path::new(&server.socket);
        let control = server.control.as_deref().map(|text| address(text, &server.name)).transpose()?;
        let near = || {
            let mut stream = Stream::connect(socket, timeout)?;
            self.greet_server(&mut stream, server, incarnation, timeout)?;
            Ok(Way { stream, same_host: true, local: None })
        };
        let far = |control| {
            let member = Member::Server(server.name.clone());
            let mut stream = self.connect_host(control, &member)?;
            self.greet_server(&mut stream, server, incarnation, timeout)?;
            let local = stream.local_ip();
            Ok(Way { stream, same_host: false, local })
        };
        nearest(socket, control, near, far)
    }

    /// To the director, on behalf of the node's life `incarnation`.
    ///
    /// # Errors
    /// As [`Self::to_server`].
    pub fn to_director(&self, incarnation: Incarnation, timeout: Duration) -> Result<Stream> {
        self.to_director_as(&self.node_process(incarnation), timeout)
    }

    /// To the director, to ask it for one thing.
    ///
    /// # Errors
    /// As [`Self::to_server`].
    pub fn to_director_as_application(&self, timeout: Duration) -> Result<Stream> {
        let role = Role::Application { name: self.node.clone(), pid: std::process::id() };
        self.to_director_as(&role, timeout)
    }

    fn to_director_as(&self, role: &Role, timeout: Duration) -> Result<Stream> {
        let socket = self.config.director_socket();
        let near = || {
            let mut stream = Stream::connect(&socket, timeout)?;
            self.greet(&mut stream, role.clone(), timeout)?;
            Ok(stream)
        };
        let far = |control| {
            let mut stream = self.connect_host(control, &Member::Director)?;
            self.greet(&mut stream, role.clone(), HELLO_WAIT)?;
            Ok(stream)
        };
        nearest(&socket, self.config.director.control, near, far)
    }

    /// The handshake has the time of a hello: it costs more than a look at a socket of this host.
    fn connect_host(&self, control: SocketAddr, member: &Member) -> Result<Stream> {
        Stream::connect_host(control, &*self.keys()?, member, HELLO_WAIT)
    }

    fn node_process(&self, incarnation: Incarnation) -> Role {
        Role::Node { name: self.node.clone(), incarnation, pid: std::process::id() }
    }

    fn greet(&self, stream: &mut Stream, role: Role, timeout: Duration) -> Result<Incarnation> {
        Ok(stream.client_hello(&self.config.cluster.name, role, timeout)?.1)
    }

    fn greet_server(
        &self,
        stream: &mut Stream,
        server: &ServerEntry,
        incarnation: Incarnation,
        timeout: Duration,
    ) -> Result<()> {
        let life = self.greet(stream, self.node_process(incarnation), timeout)?;
        if life == server.incarnation {
            return Ok(());
        }
        let context = format!(
            "server {} is another incarnation ({:x}) than the view's ({:x})",
            server.name, life.0, server.incarnation.0
        );
        Err(Error::new(ErrorKind::Unreachable, Origin::Node, context))
    }

    fn keys(&self) -> Result<Arc<Keyring>> {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        match &*keys {
            Some(keys) => Ok(Arc::clone(keys)),
            None => {
                let loaded = Arc::new(Keyring::new(&self.config, Member::Node(self.node.clone()))?);
                Ok(Arc::clone(keys.insert(loaded)))
            }
        }
    }
}

/// By the socket if one is there and leads anywhere, else over TCP if there is an address. A refusal at the
/// socket is one: whoever refuses is the one that was meant.
fn nearest<T>(
    socket: &Path,
    control: Option<SocketAddr>,
    near: impl FnOnce() -> Result<T>,
    far: impl FnOnce(SocketAddr) -> Result<T>,
) -> Result<T> {
    let Some(control) = control else { return near() };
    if !socket.exists() {
        return far(control);
    }
    match near() {
        Err(error) if matches!(error.kind, ErrorKind::Unreachable | ErrorKind::Timeout) => far(control),
        ended => ended,
    }
}

fn address(text: &str, server: &str) -> Result<SocketAddr> {
    text.parse().map_err(|error| {
        let context = format!("the view's address {text:?} of server {server} is none");
        Error::new(ErrorKind::Invalid, Origin::Node, context).with_source(error)
    })
}

#[cfg(test)]
#[path = "ways_tests.rs"]
mod tests;
