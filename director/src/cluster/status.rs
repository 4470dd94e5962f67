//! A snapshot of the cluster for the admin API, metrics and people.

use super::takeover::Takeovers;
use super::{Cluster, Out};
use selvage_fabric::config::TransportKind;
use selvage_fabric::control::message::{LinkReport, NodeNumbers, ServerNumbers};
use selvage_fabric::ident::Epoch;
use selvage_fabric::numbers::{NodeCounter, ServerCounter};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The cluster, configured members that are absent included.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Number of the view.
    pub epoch: Epoch,
    /// The director has just started: there may be nodes, and dead ones, that it does not know yet.
    #[serde(default)]
    pub starting: bool,
    /// Copies that each session shall have.
    pub copies: u32,
    /// Every configured node.
    pub nodes: Vec<NodeStatus>,
    /// Every configured server.
    pub servers: Vec<ServerStatus>,
    /// Ended incarnations whose sessions are not all adopted yet.
    pub dead: Vec<DeadStatus>,
    /// Sessions of live nodes by number of safe copies.
    pub protection: Protection,
    /// Times that a member was silent on its control connection and not declared dead, because its one-sided
    /// beats went on.
    pub spared: u64,
    /// How long takeovers took; for metrics only.
    #[serde(skip)]
    pub takeovers: Takeovers,
}

/// Sessions by number of safe copies.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Protection {
    /// With no copy.
    #[serde(rename = "0")]
    pub none: u64,
    /// With one copy.
    #[serde(rename = "1")]
    pub one: u64,
    /// With two copies.
    #[serde(rename = "2")]
    pub two: u64,
}

/// One node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Configured name.
    pub name: String,
    /// Tag of its life as it stands in cookies; empty if it has none.
    pub tag: String,
    /// Its life; 0 if it has none.
    pub incarnation: u64,
    /// `up`, `draining`, `drained`, `maintenance`, `failing` or `down`.
    pub state: String,
    /// Whether its web server fails its health checks.
    #[serde(default)]
    pub failing: bool,
    /// Its share of new sessions; the proxy's, which the admin API fills in.
    #[serde(default)]
    pub weight: u32,
    /// The newest view that it has carried out: what it says below is in the light of that one.
    pub epoch: Epoch,
    /// Sessions that it hosts.
    pub sessions: u64,
    /// Attached processes.
    pub pids: Vec<u32>,
    /// Where it serves HTTP.
    pub address: String,
    /// Its sessions by number of safe copies.
    pub safe: [u64; 3],
    /// Bytes of its cache in use, and all.
    pub cache_bytes: (u64, u64),
    /// Its way to each server of its view.
    pub links: Vec<LinkStatus>,
    /// Its counters.
    pub counters: BTreeMap<String, u64>,
    /// What else it has counted and timed; for metrics only.
    #[serde(skip)]
    pub numbers: NodeNumbers,
}

/// The way from a node to a server, as the node says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LinkStatus {
    /// The server's name; empty if the life is none that is in the view.
    pub server: String,
    /// The server's life.
    pub incarnation: u64,
    /// `shm`, `verbs`, ...; empty while the link is not open.
    pub transport: String,
    /// Device and port, or why the link is not open.
    pub detail: String,
    /// How long before the node's last heartbeat it saw the server's one-sided beat move, ms; `None` if
    /// never.
    pub beat_age_ms: Option<u32>,
}

/// One server.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ServerStatus {
    /// Configured name.
    pub name: String,
    /// Its life; 0 if it has none that is in the view.
    pub incarnation: u64,
    /// `up` or `down`.
    pub state: String,
    /// The newest view that it has carried out.
    pub epoch: Epoch,
    /// Sessions with a copy there, by the last report.
    pub sessions: u64,
    /// Bytes of its leases.
    pub bytes: u64,
    /// Its process; 0 if it is down.
    pub pid: u32,
    /// Its RDMA device and port, or why it has none; empty if it is down.
    pub rdma: String,
    /// Its counters.
    pub counters: BTreeMap<String, u64>,
    /// RDMA links that are open there.
    #[serde(default)]
    pub rdma_links: u64,
    /// Its leases, sealed ones included.
    #[serde(default)]
    pub leases: u64,
    /// What else it has counted and timed; for metrics only.
    #[serde(skip)]
    pub numbers: ServerNumbers,
}

/// One ended incarnation.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DeadStatus {
    /// The node's name.
    pub name: String,
    /// The tag of the life that is over.
    pub tag: String,
    /// The life that is over.
    pub incarnation: u64,
    /// Adoption has begun.
    pub sealed: bool,
    /// Copies of its sessions at the up servers that nobody has settled.
    pub unsettled: u64,
}

impl Cluster {
    /// A snapshot.
    pub fn status(&self) -> Status {
        let mut protection = Protection::default();
        let nodes = self.nodes.iter().map(|(name, node)| {
            let life = node.life.as_ref();
            let state = match life {
                Some(life) if life.drain.is_some() => "draining",
                Some(_) => "up",
                None => node.out.map_or("down", Out::name),
            };
            let beat = life.map(|life| life.beat.clone()).unwrap_or_default();
            protection.none = protection.none.saturating_add(beat.safe[0]);
            protection.one = protection.one.saturating_add(beat.safe[1]);
            protection.two = protection.two.saturating_add(beat.safe[2]);
            NodeStatus {
                name: name.clone(),
                tag: life.map(|life| life.incarnation.tag()).unwrap_or_default(),
                incarnation: life.map_or(0, |life| life.incarnation.0),
                state: state.to_owned(),
                failing: node.health.failing,
                weight: 0,
                epoch: beat.epoch,
                sessions: beat.sessions,
                pids: beat.pids,
                address: node.address.clone(),
                safe: beat.safe,
                cache_bytes: beat.cache_bytes,
                links: beat.links.into_iter().map(|link| self.link_status(link)).collect(),
                counters: named(NodeCounter::ALL.iter().map(|counter| counter.name()), &beat.counters),
                numbers: life.map(|life| life.numbers.clone()).unwrap_or_default(),
            }
        });
        let nodes = nodes.collect();
        Status {
            epoch: self.epoch,
            starting: self.is_starting(),
            copies: self.settings.copies,
            nodes,
            servers: self.server_statuses(),
            dead: self.dead_statuses(),
            protection,
            spared: self.spared,
            takeovers: self.takeovers.clone(),
        }
    }

    fn link_status(&self, link: LinkReport) -> LinkStatus {
        let server = self.servers.iter().find(|(_, server)| server.up == Some(link.server));
        LinkStatus {
            server: server.map(|(name, _)| name.clone()).unwrap_or_default(),
            incarnation: link.server.0,
            transport: link.transport.map(transport_name).unwrap_or_default().to_owned(),
            detail: link.detail,
            beat_age_ms: link.beat_age_ms,
        }
    }

    fn server_statuses(&self) -> Vec<ServerStatus> {
        let servers = self.servers.iter().map(|(name, server)| {
            let up = server.up.filter(|up| *up == server.report.incarnation);
            let report = up.map(|_| server.report.clone()).unwrap_or_default();
            ServerStatus {
                name: name.clone(),
                incarnation: server.up.map_or(0, |up| up.0),
                state: if server.up.is_some() { "up" } else { "down" }.to_owned(),
                epoch: report.epoch,
                sessions: total(report.leases.iter().map(|lease| lease.sessions)),
                bytes: report.bytes,
                pid: report.pid,
                rdma: report.rdma,
                counters: named(ServerCounter::ALL.iter().map(|counter| counter.name()), &report.counters),
                rdma_links: report.rdma_links,
                leases: report.leases.len() as u64,
                numbers: up.map(|_| server.numbers.clone()).unwrap_or_default(),
            }
        });
        servers.collect()
    }

    fn dead_statuses(&self) -> Vec<DeadStatus> {
        let dead = self.dead.iter().map(|dead| {
            let up = self.servers.values().filter(|server| server.up.is_some());
            let leases = up.flat_map(|server| &server.report.leases);
            DeadStatus {
                name: dead.name.clone(),
                tag: dead.incarnation.tag(),
                incarnation: dead.incarnation.0,
                sealed: dead.sealed,
                unsettled: total(
                    leases.filter(|lease| lease.incarnation == dead.incarnation).map(|lease| lease.unsettled),
                ),
            }
        });
        dead.collect()
    }
}

/// A transport's name in status and metrics.
pub(crate) fn transport_name(kind: TransportKind) -> &'static str {
    match kind {
        TransportKind::Shm => "shm",
        TransportKind::Verbs => "verbs",
        TransportKind::Sim => "sim",
    }
}

/// Reported counters under their names. What this director does not know is left out, and what the member
/// does not know is zero.
fn named(names: impl Iterator<Item = &'static str>, values: &[u64]) -> BTreeMap<String, u64> {
    let values = values.iter().copied().chain(std::iter::repeat(0));
    names.zip(values).map(|(name, value)| (name.to_owned(), value)).collect()
}

/// A sum of what others report, so it may be anything.
fn total(values: impl Iterator<Item = u64>) -> u64 {
    values.fold(0, u64::saturating_add)
}
