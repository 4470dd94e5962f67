//! Counters of the director, and the Prometheus page: its own counters and what nodes and servers report.

use crate::cluster::status::Status;
use hyper::StatusCode;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::collections::BTreeMap;

/// How a request ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Outcome {
    /// A node answered, and not with an error of its own.
    Served,
    /// A node answered with a 5xx status.
    NodeError,
    /// Over the limit of requests under way.
    Refused,
    /// The browser's request was no good.
    BadRequest,
    /// No node could take it in time.
    Unrouted,
    /// A node was lost with it.
    Lost,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct ByOutcome {
    result: Outcome,
}

/// Why a control peer was cut off.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Cut {
    /// Its certificate is not accepted, or it does not accept ours.
    Certificate,
    /// Its certificate or user may not be what it says it is.
    Denied,
    /// It speaks no version of the protocol that we do.
    Version,
    /// What it sent is no TLS, or no message.
    Garbage,
    /// It did not show who it is in time, or does not read.
    Slow,
    /// Its host vanished without a word.
    Vanished,
    /// Too many came at once.
    Crowded,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct ByReason {
    reason: Cut,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct ByName {
    name: String,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct ByEvent {
    name: String,
    event: String,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct ByTransport {
    transport: String,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct ByLink {
    node: String,
    server: String,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct ByCopies {
    copies: u32,
}

/// Counters since start.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<ByOutcome, Counter>,
    /// Requests that were sent once more.
    pub retries: Counter,
    /// "Elsewhere" answers of nodes.
    pub elsewhere: Counter,
    bad_peers: Counter,
    cut_peers: Family<ByReason, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let requests = Family::<ByOutcome, Counter>::default();
        let (retries, elsewhere, bad_peers) = (Counter::default(), Counter::default(), Counter::default());
        registry.register("selvage_requests", "Requests by how they ended", requests.clone());
        registry.register("selvage_request_retries", "Requests that were sent once more", retries.clone());
        registry.register(
            "selvage_elsewhere",
            "Answers of nodes that the session is elsewhere",
            elsewhere.clone(),
        );
        registry.register("selvage_control_bad_peers", "Control peers refused or cut off", bad_peers.clone());
        let cut_peers = Family::<ByReason, Counter>::default();
        let help = "Control peers refused or cut off, by reason";
        registry.register("selvage_control_cut_peers", help, cut_peers.clone());
        Self { registry, requests, retries, elsewhere, bad_peers, cut_peers }
    }
}

impl Outcome {
    /// Of a request that a node answered.
    pub fn of(status: StatusCode) -> Self {
        if status.is_server_error() { Self::NodeError } else { Self::Served }
    }
}

impl EncodeLabelValue for Outcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        let text = match self {
            Self::Served => "served",
            Self::NodeError => "node_error",
            Self::Refused => "refused",
            Self::BadRequest => "bad_request",
            Self::Unrouted => "unrouted",
            Self::Lost => "lost",
        };
        text.encode(encoder)
    }
}

impl EncodeLabelValue for Cut {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        let text = match self {
            Self::Certificate => "certificate",
            Self::Denied => "denied",
            Self::Version => "version",
            Self::Garbage => "garbage",
            Self::Slow => "slow",
            Self::Vanished => "vanished",
            Self::Crowded => "crowded",
        };
        text.encode(encoder)
    }
}

impl Metrics {
    /// Counts a control peer that was refused or cut off.
    pub fn cut_peer(&self, reason: Cut) {
        self.bad_peers.inc();
        self.cut_peers.get_or_create(&ByReason { reason }).inc();
    }

    /// Counts a request.
    pub fn request(&self, result: Outcome) {
        self.requests.get_or_create(&ByOutcome { result }).inc();
    }

    /// Requests that ended so.
    pub fn requests(&self, result: Outcome) -> u64 {
        self.requests.get_or_create(&ByOutcome { result }).get()
    }

    /// The page.
    ///
    /// # Errors
    /// Never in practice: writing into a string cannot fail.
    pub fn page(&self, status: &Status) -> Result<String, std::fmt::Error> {
        let mut page = String::new();
        encode_registry(&mut page, &self.registry)?;
        encode_registry(&mut page, &snapshot(status))?;
        encode_eof(&mut page)?;
        Ok(page)
    }
}

/// What the cluster's snapshot says, as metrics.
fn snapshot(status: &Status) -> Registry {
    let mut registry = Registry::default();
    let mut gauge = |name: &str, help: &str, value: i64| {
        let gauge = Gauge::<i64>::default();
        gauge.set(value);
        registry.register(name, help, gauge);
    };
    let count = |states: &mut dyn Iterator<Item = &str>| states.filter(|state| *state == "up").count() as i64;
    gauge("selvage_epoch_term", "Term of the view", status.epoch.term.into());
    gauge("selvage_epoch_number", "Number of the view", status.epoch.number.into());
    gauge("selvage_nodes_up", "Nodes that are up", count(&mut status.nodes.iter().map(|node| &*node.state)));
    gauge(
        "selvage_servers_up",
        "Servers that are up",
        count(&mut status.servers.iter().map(|server| &*server.state)),
    );
    gauge("selvage_dead", "Ended incarnations that are not settled", status.dead.len() as i64);
    let unsettled = status.dead.iter().fold(0, |sum: u64, dead| sum.saturating_add(dead.unsettled));
    gauge("selvage_unsettled", "Copies of sessions of ended incarnations to be adopted", clamp(unsettled));

    let spared = Counter::<u64>::default();
    spared.inc_by(status.spared);
    registry.register(
        "selvage_spared",
        "Silent members that were spared because their beats went on",
        spared,
    );
    links(&mut registry, status);

    let protection = Family::<ByCopies, Gauge>::default();
    let by_copies = [status.protection.none, status.protection.one, status.protection.two];
    for (copies, sessions) in (0..).zip(by_copies) {
        protection.get_or_create(&ByCopies { copies }).set(clamp(sessions));
    }
    registry.register("selvage_protection", "Sessions by number of safe copies", protection);

    let nodes = |value: fn(&crate::cluster::status::NodeStatus) -> u64| {
        named(status.nodes.iter().map(|node| (&*node.name, value(node))))
    };
    registry.register("selvage_node_sessions", "Sessions that a node hosts", nodes(|node| node.sessions));
    registry.register("selvage_node_processes", "Attached processes", nodes(|node| node.pids.len() as u64));
    registry.register("selvage_node_cache_used_bytes", "Cache in use", nodes(|node| node.cache_bytes.0));
    registry.register("selvage_node_cache_bytes", "Cache", nodes(|node| node.cache_bytes.1));
    let servers = |value: fn(&crate::cluster::status::ServerStatus) -> u64| {
        named(status.servers.iter().map(|server| (&*server.name, value(server))))
    };
    registry.register("selvage_server_sessions", "Copies at a server", servers(|server| server.sessions));
    registry.register("selvage_server_bytes", "Bytes of a server's leases", servers(|server| server.bytes));

    let events = |counters: &mut dyn Iterator<Item = (&String, &BTreeMap<String, u64>)>| {
        let family = Family::<ByEvent, Counter>::default();
        for (name, counters) in counters {
            for (event, value) in counters {
                let labels = ByEvent { name: name.clone(), event: event.clone() };
                family.get_or_create(&labels).inc_by(*value);
            }
        }
        family
    };
    let of_nodes = events(&mut status.nodes.iter().map(|node| (&node.name, &node.counters)));
    registry.register("selvage_node_events", "What nodes count", of_nodes);
    let of_servers = events(&mut status.servers.iter().map(|server| (&server.name, &server.counters)));
    registry.register("selvage_server_events", "What servers count", of_servers);
    registry
}

/// The ways from nodes to servers.
fn links(registry: &mut Registry, status: &Status) {
    let by_transport = Family::<ByTransport, Gauge>::default();
    let ages = Family::<ByLink, Gauge>::default();
    for (node, link) in status.nodes.iter().flat_map(|node| node.links.iter().map(move |link| (node, link))) {
        let transport = if link.transport.is_empty() { "none" } else { &link.transport };
        by_transport.get_or_create(&ByTransport { transport: transport.to_owned() }).inc();
        if let Some(age) = link.beat_age_ms.filter(|_| !link.server.is_empty()) {
            let labels = ByLink { node: node.name.clone(), server: link.server.clone() };
            ages.get_or_create(&labels).set(age.into());
        }
    }
    registry.register("selvage_links", "Ways from nodes to servers by transport", by_transport);
    registry.register("selvage_link_beat_age_ms", "Age of a server's beat as its node sees it", ages);
}

fn named<'a>(values: impl Iterator<Item = (&'a str, u64)>) -> Family<ByName, Gauge> {
    let family = Family::<ByName, Gauge>::default();
    for (name, value) in values {
        family.get_or_create(&ByName { name: name.to_owned() }).set(clamp(value));
    }
    family
}

fn clamp(value: u64) -> i64 {
    value.try_into().unwrap_or(i64::MAX)
}
