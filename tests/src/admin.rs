//! The director's admin API, seen from outside.

use crate::client::{Answer, Connection};
use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http::Method;
use selvage_fabric::ident::{Epoch, Incarnation};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// `GET /admin/view`.
#[derive(Debug, Clone, Deserialize)]
pub struct AdminView {
    /// Number of the view.
    pub epoch: Epoch,
    /// Every configured node.
    pub nodes: Vec<AdminNode>,
    /// Every configured server.
    pub servers: Vec<AdminServer>,
    /// Ended node incarnations whose sessions are not all adopted yet.
    pub dead: Vec<AdminDead>,
    /// Sessions by number of safe copies, over all live nodes.
    pub protection: BTreeMap<String, u64>,
}

/// A node there.
#[derive(Debug, Clone, Deserialize)]
pub struct AdminNode {
    /// Its name.
    pub name: String,
    /// Tag of its incarnation, as in cookies; empty without one.
    pub tag: String,
    /// `up`, `draining`, `drained` or `down`.
    pub state: String,
    /// The newest view that it has carried out.
    pub epoch: Epoch,
    /// Sessions in its cache.
    pub sessions: u64,
    /// Its processes.
    pub pids: Vec<u32>,
    /// Its way to each server of its view.
    #[serde(default)]
    pub links: Vec<AdminLink>,
}

/// The way from a node to a server there.
#[derive(Debug, Clone, Deserialize)]
pub struct AdminLink {
    /// The server's name; empty if its life is not in the view.
    pub server: String,
    /// `shm` or `verbs`; empty while the link is not open.
    pub transport: String,
    /// Device and port, or why the link is not open.
    pub detail: String,
    /// How long before the node's last heartbeat it saw the server's one-sided beat move, ms.
    pub beat_age_ms: Option<u32>,
}

/// A server there.
#[derive(Debug, Clone, Deserialize)]
pub struct AdminServer {
    /// Its name.
    pub name: String,
    /// Its life; 0 if it has none that is in the view.
    pub incarnation: u64,
    /// `up` or `down`.
    pub state: String,
    /// Copies that it holds.
    pub sessions: u64,
    /// Memory of its leases.
    pub bytes: u64,
    /// Its process; 0 if it is down.
    pub pid: u32,
    /// Its RDMA device and port, or why it has none; empty if it is down.
    #[serde(default)]
    pub rdma: String,
}

/// An ended node incarnation there.
#[derive(Debug, Clone, Deserialize)]
pub struct AdminDead {
    /// The node's name.
    pub name: String,
    /// Tag of the life that is over.
    pub tag: String,
    /// Copies of its sessions that nobody has settled yet.
    pub unsettled: u64,
}

/// A client of the admin API.
#[derive(Debug)]
pub struct Admin {
    connection: Connection,
}

impl Admin {
    /// A client; it connects when it is used.
    pub fn at(address: SocketAddr) -> Self {
        Self { connection: Connection::to(address) }
    }

    /// The view now.
    ///
    /// # Errors
    /// The director cannot be asked or answers something else.
    pub async fn view(&mut self) -> Result<AdminView> {
        let answer = self.connection.send(Method::GET, "/admin/view", None, Bytes::new()).await?;
        ensure!(answer.status.is_success(), "GET /admin/view: {}: {}", answer.status, answer.text());
        serde_json::from_slice(&answer.body)
            .with_context(|| format!("GET /admin/view has another form: {}", answer.text()))
    }

    /// Waits until the view is as wished; returns it.
    ///
    /// # Errors
    /// It is not within `wait`: names the wish and shows the last view.
    pub async fn until(
        &mut self,
        wish: &str,
        wait: Duration,
        good: impl Fn(&AdminView) -> bool,
    ) -> Result<AdminView> {
        let deadline = Instant::now() + wait;
        loop {
            let view = self.view().await;
            match view {
                Ok(view) if good(&view) => return Ok(view),
                Ok(view) if Instant::now() > deadline => {
                    bail!("not within {wait:?}: {wish}; the view: {view:?}")
                }
                Err(error) if Instant::now() > deadline => {
                    return Err(error).with_context(|| format!("not within {wait:?}: {wish}"));
                }
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }

    /// Any request.
    ///
    /// # Errors
    /// The director cannot be asked.
    pub async fn send(&mut self, method: Method, path: &str) -> Result<Answer> {
        self.connection.send(method, path, None, Bytes::new()).await
    }

    /// Drains a node; returns when the director has accepted it.
    ///
    /// # Errors
    /// It has not.
    pub async fn drain(&mut self, node: &str) -> Result<()> {
        self.post(&format!("/admin/nodes/{node}/drain")).await
    }

    /// Takes a drained node back.
    ///
    /// # Errors
    /// It is not accepted.
    pub async fn undrain(&mut self, node: &str) -> Result<()> {
        self.post(&format!("/admin/nodes/{node}/undrain")).await
    }

    async fn post(&mut self, path: &str) -> Result<()> {
        let answer = self.send(Method::POST, path).await?;
        ensure!(answer.status.is_success(), "POST {path}: {}: {}", answer.status, answer.text());
        Ok(())
    }

    /// The value of a metric without labels, or with exactly these: `name` or `name{label="x"}`.
    ///
    /// # Errors
    /// The director cannot be asked.
    pub async fn metric(&mut self, name: &str) -> Result<Option<f64>> {
        let answer = self.send(Method::GET, "/metrics").await?;
        let text = answer.text();
        Ok(text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok()))
    }
}

impl AdminView {
    /// The way from a node to a server.
    pub fn link(&self, node: &str, server: &str) -> Option<&AdminLink> {
        self.node(node)?.links.iter().find(|link| link.server == server)
    }

    /// The node with this name.
    pub fn node(&self, name: &str) -> Option<&AdminNode> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// The server with this name.
    pub fn server(&self, name: &str) -> Option<&AdminServer> {
        self.servers.iter().find(|server| server.name == name)
    }

    /// Whether this node is in that state.
    pub fn node_is(&self, name: &str, state: &str) -> bool {
        self.node(name).is_some_and(|node| node.state == state)
    }

    /// Whether this server is in that state.
    pub fn server_is(&self, name: &str, state: &str) -> bool {
        self.server(name).is_some_and(|server| server.state == state)
    }

    /// The incarnation of this node, if it is alive.
    pub fn incarnation(&self, node: &str) -> Option<Incarnation> {
        Incarnation::from_tag(&self.node(node)?.tag)
    }

    /// The life of this node or server, if it has one.
    pub fn life(&self, member: &str) -> Option<Incarnation> {
        let server = self.servers.iter().find(|server| server.name == member && server.incarnation != 0);
        server.map(|server| Incarnation(server.incarnation)).or_else(|| self.incarnation(member))
    }

    /// Name of the node whose incarnation this is.
    pub fn host(&self, incarnation: Incarnation) -> Option<&str> {
        let tag = incarnation.tag();
        self.nodes.iter().find(|node| node.tag == tag).map(|node| node.name.as_str())
    }

    /// Sessions on all live nodes.
    pub fn sessions(&self) -> u64 {
        self.protection.values().sum()
    }

    /// Sessions with exactly this many safe copies.
    pub fn with_copies(&self, copies: u32) -> u64 {
        self.protection.get(&copies.to_string()).copied().unwrap_or(0)
    }

    /// Copies on all servers that are up.
    pub fn copies(&self) -> u64 {
        self.servers.iter().map(|server| server.sessions).sum()
    }

    /// Whether at least `sessions` sessions are hosted, each has `copies` copies, nothing is left to adopt,
    /// and all nodes say so in the light of this very view: an older statement may count copies on a server
    /// that is gone.
    pub fn protects(&self, sessions: u64, copies: u32) -> bool {
        let safe = |have: &str| have.parse().is_ok_and(|have: u32| have >= copies);
        self.dead.is_empty()
            && self.nodes.iter().all(|node| node.tag.is_empty() || node.epoch == self.epoch)
            && self.sessions() >= sessions
            && self.protection.iter().all(|(have, count)| safe(have) || *count == 0)
    }
}
