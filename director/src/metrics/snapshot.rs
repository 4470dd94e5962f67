//! The cluster's snapshot as metrics: what nodes and servers have reported last, and what the director makes
//! of it.

use super::families::{About, Durations, Families, Labels, about};
use crate::cluster::status::{NodeStatus, ServerStatus, Status, transport_name};
use crate::cluster::takeover::{BOUNDS_MS, Spans};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Unit;
use selvage_fabric::control::message::{LeaseUse, PushNumbers};
use selvage_fabric::error::ErrorKind;
use selvage_fabric::numbers::{
    BUCKETS, Histogram, NodeCounter, NodeTime, ServerCounter, ServerTime, bound_s,
};
use std::collections::BTreeMap;
use std::fmt::Error;

/// The snapshot that a page is made of.
#[derive(Debug)]
pub(super) struct Snapshot(pub Status);

impl Collector for Snapshot {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let mut families = Families(encoder);
        cluster(&mut families, &self.0)?;
        nodes(&mut families, &self.0)?;
        node_numbers(&mut families, &self.0)?;
        ways(&mut families, &self.0)?;
        servers(&mut families, &self.0)
    }
}

fn cluster(families: &mut Families<'_>, status: &Status) -> Result<(), Error> {
    let mut gauge = |name, help, value: u64| families.gauges(about(name, help), [(Labels::new(), value)]);
    let up = |state: &str| state == "up" || state == "draining";
    let nodes_up = status.nodes.iter().filter(|node| up(&node.state)).count();
    let servers_up = status.servers.iter().filter(|server| up(&server.state)).count();
    let unsettled = status.dead.iter().fold(0, |sum: u64, dead| sum.saturating_add(dead.unsettled));
    gauge(
        "selvage_cluster_view_term",
        "Term of the view: it rises with each director",
        status.epoch.term.into(),
    )?;
    gauge(
        "selvage_cluster_view_number",
        "Number of the view: it rises with each change",
        status.epoch.number.into(),
    )?;
    gauge("selvage_cluster_copies_wanted", "Copies that each session shall have", status.copies.into())?;
    gauge("selvage_cluster_nodes_up", "Nodes that are up, draining ones included", nodes_up as u64)?;
    gauge("selvage_cluster_servers_up", "Session servers that are up", servers_up as u64)?;
    gauge(
        "selvage_cluster_takeovers_open",
        "Ended incarnations that are not settled",
        status.dead.len() as u64,
    )?;
    let help = "Copies of sessions of ended incarnations that nobody has settled";
    gauge("selvage_cluster_unsettled_copies", help, unsettled)?;
    let help = "Silent members that were spared because their one-sided beats went on";
    families.counters(about("selvage_cluster_members_spared", help), [(Labels::new(), status.spared)])?;
    let help = "Time from the end of an incarnation until every server had sealed it";
    let sealed = spans(&status.takeovers.sealed);
    families.durations(about("selvage_cluster_seal_duration", help), [(Labels::new(), sealed)])?;
    let help = "Time from the end of an incarnation until all its sessions were safe with other nodes";
    let settled = spans(&status.takeovers.settled);
    families.durations(about("selvage_cluster_takeover_duration", help), [(Labels::new(), settled)])
}

fn nodes(families: &mut Families<'_>, status: &Status) -> Result<(), Error> {
    let mut of_nodes = |name, help, unit, value: fn(&NodeStatus) -> u64| {
        let samples = status.nodes.iter().map(|node| (node_label(node), value(node)));
        families.gauges(About { name, help, unit }, samples)
    };
    of_nodes("selvage_node_processes", "Processes that are attached", None, |node| node.pids.len() as u64)?;
    let help = "Bytes of the cache that sessions use";
    of_nodes("selvage_node_cache_used", help, Some(Unit::Bytes), |node| node.cache_bytes.0)?;
    of_nodes("selvage_node_cache", "Bytes of the cache", Some(Unit::Bytes), |node| node.cache_bytes.1)?;
    let help = "Number of the view that the node has carried out";
    of_nodes("selvage_node_view_number", help, None, |node| node.epoch.number.into())?;
    of_nodes("selvage_node_weight", "Share of new sessions", None, |node| node.weight.into())?;
    let help = "1 if the web server fails its health checks, else 0";
    of_nodes("selvage_node_failing", help, None, |node| node.failing.into())?;
    let states = status.nodes.iter().flat_map(|node| {
        ["up", "draining", "drained", "maintenance", "failing", "down"].map(|state| {
            let labels = with(node_label(node), "state", state);
            (labels, u64::from(node.state == state))
        })
    });
    families.gauges(about("selvage_node_state", "1 for the state that the node is in, else 0"), states)?;
    let sessions = status.nodes.iter().flat_map(|node| {
        let copies = ["0", "1", "2"].into_iter().zip(node.safe);
        copies.map(|(copies, sessions)| (with(node_label(node), "copies", copies), sessions))
    });
    let help = "Sessions that the node hosts, by the number of their safe copies";
    families.gauges(about("selvage_node_sessions", help), sessions)
}

fn node_numbers(families: &mut Families<'_>, status: &Status) -> Result<(), Error> {
    for counter in NodeCounter::ALL {
        let name = format!("selvage_node_{}", counter.name());
        let samples =
            status.nodes.iter().map(|node| (node_label(node), counted(&node.counters, counter.name())));
        families.counters(about(&name, counter.help()), samples)?;
    }
    let samples = status.nodes.iter().flat_map(|node| errors(node_label(node), &node.numbers.errors));
    families.counters(
        about("selvage_node_errors", "Calls of web servers that ended with an error, by its kind"),
        samples,
    )?;
    for (at, time) in NodeTime::ALL.iter().enumerate() {
        let name = format!("selvage_node_{}_duration", time.name());
        let samples = status.nodes.iter().map(|node| (node_label(node), timed(node.numbers.times.get(at))));
        families.durations(about(&name, time.help()), samples)?;
    }
    Ok(())
}

/// The ways from nodes to servers.
fn ways(families: &mut Families<'_>, status: &Status) -> Result<(), Error> {
    let known = |server: &str| status.servers.iter().any(|it| it.name == server);
    let links = || {
        let links = status.nodes.iter().flat_map(|node| node.links.iter().map(move |link| (node, link)));
        links.filter(|(_, link)| known(&link.server))
    };
    let up = links().map(|(node, link)| {
        let transport = if link.transport.is_empty() { "none" } else { &link.transport };
        let labels = with(way_labels(node, &link.server), "transport", transport);
        (labels, u64::from(!link.transport.is_empty()))
    });
    let help = "1 if the steward's link to a server is open, else 0 with transport \"none\"";
    families.gauges(about("selvage_node_link_up", help), up)?;
    let ages = links().filter_map(|(node, link)| {
        Some((way_labels(node, &link.server), f64::from(link.beat_age_ms?) / 1e3))
    });
    let help = "Time since the node saw the server's one-sided beat move";
    families.gauges(about("selvage_node_link_beat_age", help).in_unit(Unit::Seconds), ages)?;

    let pushes = || {
        let pushes =
            status.nodes.iter().flat_map(|node| node.numbers.pushes.iter().map(move |push| (node, push)));
        pushes.filter(|(_, push)| known(&push.server))
    };
    let labels = |node: &NodeStatus, push: &PushNumbers| {
        with(way_labels(node, &push.server), "transport", transport_name(push.transport))
    };
    let help = "Time from the posting of a push to its ack (of the commits that are timed, one in 16)";
    let times = pushes().map(|(node, push)| (labels(node, push), timed(Some(&push.time))));
    families.durations(about("selvage_node_push_duration", help), times)?;
    let failed = pushes().map(|(node, push)| (labels(node, push), push.failed));
    families.counters(about("selvage_node_push_failures", "Pushes that did not end with an ack"), failed)?;

    let mut of_leases = |name, help, unit, value: fn(&LeaseUse) -> u64| {
        let leases =
            status.nodes.iter().flat_map(|node| node.numbers.leases.iter().map(move |it| (node, it)));
        let leases = leases.filter(|(_, lease)| known(&lease.server));
        let samples = leases.map(|(node, lease)| (way_labels(node, &lease.server), value(lease)));
        families.gauges(About { name, help, unit }, samples)
    };
    let help = "Slots of the node's lease at a server that are in use: sessions with a copy there";
    of_leases("selvage_node_lease_slots_used", help, None, |lease| lease.slots.0)?;
    of_leases("selvage_node_lease_slots", "Slots of the node's lease at a server", None, |lease| {
        lease.slots.1
    })?;
    let help = "Bytes of the node's lease at a server that are in use";
    of_leases("selvage_node_lease_used", help, Some(Unit::Bytes), |lease| lease.bytes.0)?;
    let help = "Bytes for archives in the node's lease at a server";
    of_leases("selvage_node_lease", help, Some(Unit::Bytes), |lease| lease.bytes.1)
}

fn servers(families: &mut Families<'_>, status: &Status) -> Result<(), Error> {
    let mut of_servers = |name, help, unit, value: fn(&ServerStatus) -> u64| {
        let samples = status.servers.iter().map(|server| (server_label(server), value(server)));
        families.gauges(About { name, help, unit }, samples)
    };
    let help = "1 if the server is in the view, else 0";
    of_servers("selvage_server_up", help, None, |server| u64::from(server.state == "up"))?;
    of_servers("selvage_server_copies", "Copies of sessions at the server", None, |server| server.sessions)?;
    of_servers("selvage_server_leases", "Leases at the server, sealed ones included", None, |server| {
        server.leases
    })?;
    of_servers("selvage_server_leases", "Bytes of the server's leases", Some(Unit::Bytes), |server| {
        server.bytes
    })?;
    of_servers("selvage_server_rdma_links", "RDMA links that are open", None, |server| server.rdma_links)?;
    let help = "Number of the view that the server has carried out";
    of_servers("selvage_server_view_number", help, None, |server| server.epoch.number.into())?;

    for counter in ServerCounter::ALL {
        let name = format!("selvage_server_{}", counter.name());
        let samples = status
            .servers
            .iter()
            .map(|server| (server_label(server), counted(&server.counters, counter.name())));
        families.counters(about(&name, counter.help()), samples)?;
    }
    let samples =
        status.servers.iter().flat_map(|server| errors(server_label(server), &server.numbers.errors));
    families.counters(
        about("selvage_server_errors", "Requests that ended with an error, by its kind"),
        samples,
    )?;
    for (at, time) in ServerTime::ALL.iter().enumerate() {
        let name = format!("selvage_server_{}_duration", time.name());
        let samples =
            status.servers.iter().map(|server| (server_label(server), timed(server.numbers.times.get(at))));
        families.durations(about(&name, time.help()), samples)?;
    }
    Ok(())
}

fn node_label(node: &NodeStatus) -> Labels {
    vec![("node", node.name.clone())]
}

fn server_label(server: &ServerStatus) -> Labels {
    vec![("server", server.name.clone())]
}

fn way_labels(node: &NodeStatus, server: &str) -> Labels {
    with(node_label(node), "server", server)
}

fn with(mut labels: Labels, name: &'static str, value: &str) -> Labels {
    labels.push((name, value.to_owned()));
    labels
}

fn counted(counters: &BTreeMap<String, u64>, name: &str) -> u64 {
    counters.get(name).copied().unwrap_or_default()
}

fn errors(labels: Labels, errors: &[u64]) -> impl Iterator<Item = (Labels, u64)> {
    let errors = errors.iter().copied().chain(std::iter::repeat(0));
    ErrorKind::ALL
        .into_iter()
        .zip(errors)
        .map(move |(kind, count)| (with(labels.clone(), "kind", kind.name()), count))
        .collect::<Vec<_>>()
        .into_iter()
}

/// A member's histogram; whatever it reports, it has our buckets.
fn timed(histogram: Option<&Histogram>) -> Durations {
    let counts = histogram.map_or(&[][..], |histogram| &histogram.counts);
    let counts = counts.iter().copied().chain(std::iter::repeat(0));
    let buckets =
        (0..BUCKETS).zip(counts).map(|(bucket, count)| (bound_s(bucket).unwrap_or(f64::MAX), count));
    let sum_s = histogram.map_or(0.0, |histogram| histogram.sum_ns as f64 / 1e9);
    Durations { sum_s, buckets: buckets.collect() }
}

fn spans(spans: &Spans) -> Durations {
    let bounds = BOUNDS_MS.iter().map(|bound| *bound as f64 / 1e3).chain([f64::MAX]);
    Durations { sum_s: spans.sum.as_secs_f64(), buckets: bounds.zip(spans.counts).collect() }
}
