//! The view: the numbered statement of which nodes and servers are up, draining or down. Pure data.

use crate::ident::{Epoch, Incarnation};
use serde::{Deserialize, Serialize};

/// State of a node in the view.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// Hosts sessions and takes new ones.
    Up,
    /// Still hosts its sessions until they are handed over; takes no new ones.
    Draining,
}

/// A live node incarnation.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeEntry {
    /// The configured name.
    pub name: String,
    /// Its life.
    pub incarnation: Incarnation,
    /// Its state.
    pub state: NodeState,
    /// Where it serves HTTP, as `host:port`.
    pub address: String,
}

/// A session server that is up.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ServerEntry {
    /// The configured name; placement goes by it, so that a server that returns gets the same sessions.
    pub name: String,
    /// Its life. An incarnation that was declared down never re-enters a view (R6).
    pub incarnation: Incarnation,
    /// Weight of the placement, 1 to 1000.
    pub weight: u32,
    /// Its control socket, on its own host.
    pub socket: String,
    /// Where it listens for other hosts, as `host:port`, if it does.
    pub control: Option<String>,
}

/// A node incarnation that is over and whose sealed leases still exist.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DeadEntry {
    /// The node's name.
    pub name: String,
    /// The life that is over.
    pub incarnation: Incarnation,
    /// Every server of the view has confirmed that all its leases are sealed: fetch, claim and adoption may
    /// begin (R2).
    pub sealed: bool,
}

/// A numbered statement of the cluster's members. Entries are sorted by name; servers' order is the claims'
/// order (R1).
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct View {
    /// Its number.
    pub epoch: Epoch,
    /// Copies that each session shall have.
    pub copies: u32,
    /// Live nodes.
    pub nodes: Vec<NodeEntry>,
    /// Servers that are up.
    pub servers: Vec<ServerEntry>,
    /// Ended node incarnations whose leases are not released yet.
    pub dead: Vec<DeadEntry>,
}

impl View {
    /// The live node with this incarnation.
    pub fn node(&self, incarnation: Incarnation) -> Option<&NodeEntry> {
        self.nodes.iter().find(|node| node.incarnation == incarnation)
    }

    /// The up server with this incarnation.
    pub fn server(&self, incarnation: Incarnation) -> Option<&ServerEntry> {
        self.servers.iter().find(|server| server.incarnation == incarnation)
    }

    /// Whether every ended incarnation's leases are sealed everywhere.
    pub fn all_sealed(&self) -> bool {
        self.dead.iter().all(|dead| dead.sealed)
    }
}
