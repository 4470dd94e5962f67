//! What `top` shows: two statements of the director, and what happened between them. Pure.

use crate::cluster::status::{LinkStatus, NodeStatus, Protection, Status};
use crate::tool::table::{bytes, number, plain, share, state, table, text, word};
use selvage_fabric::numbers::NodeCounter;
use serde::Serialize;
use std::fmt::Write;
use std::time::Instant;

/// What the director said at one moment.
pub(in crate::tool) struct Sample {
    pub at: Instant,
    pub status: Status,
    /// Requests of browsers that have ended since its start.
    pub requests: u64,
}

/// Two samples, compared.
#[derive(Serialize)]
pub(in crate::tool) struct Picture {
    pub epoch: String,
    pub copies_wanted: u32,
    pub requests_per_s: f64,
    pub sessions: u64,
    pub protection: Protection,
    pub nodes: Vec<NodeLine>,
    pub servers: Vec<ServerLine>,
    pub links: Vec<LinkLine>,
    pub dead: Vec<DeadLine>,
}

/// A node.
#[derive(Serialize)]
pub(in crate::tool) struct NodeLine {
    pub name: String,
    pub state: String,
    pub sessions: u64,
    pub safe: [u64; 3],
    pub commits_per_s: f64,
    /// Commits that reached fewer copies than wanted.
    pub short_commits_per_s: f64,
    pub creates_per_s: f64,
    pub adoptions_per_s: f64,
    pub cache_used_bytes: u64,
    pub cache_bytes: u64,
    pub processes: usize,
}

/// A server.
#[derive(Serialize)]
pub(in crate::tool) struct ServerLine {
    pub name: String,
    pub state: String,
    pub copies: u64,
    pub bytes: u64,
}

/// A way from a node to a server.
#[derive(Serialize)]
pub(in crate::tool) struct LinkLine {
    pub from: String,
    pub to: String,
    pub transport: String,
    pub beat_age_ms: Option<u32>,
    /// Why it is not open.
    pub detail: String,
}

/// An ended incarnation.
#[derive(Serialize)]
pub(in crate::tool) struct DeadLine {
    pub name: String,
    pub tag: String,
    pub sealed: bool,
    pub unsettled: u64,
}

impl Picture {
    /// What is so now, and what happened since before.
    pub fn new(before: &Sample, now: &Sample) -> Self {
        let seconds = now.at.saturating_duration_since(before.at).as_secs_f64();
        // A count that fell is that of a new life, which began with 0.
        let per_s = |before: u64, now: u64| {
            let happened = if now < before { now } else { now - before };
            if seconds > 0.0 { happened as f64 / seconds } else { 0.0 }
        };
        let status = &now.status;
        let nodes = status.nodes.iter().map(|node| {
            let old = before.status.nodes.iter().find(|old| old.incarnation == node.incarnation);
            let rate =
                |counter: NodeCounter| per_s(old.map_or(0, |old| count(old, counter)), count(node, counter));
            NodeLine {
                name: node.name.clone(),
                state: node.state.clone(),
                sessions: node.sessions,
                safe: node.safe,
                commits_per_s: rate(NodeCounter::Commits),
                short_commits_per_s: rate(NodeCounter::ShortCommits),
                creates_per_s: rate(NodeCounter::Creates),
                adoptions_per_s: rate(NodeCounter::Adoptions),
                cache_used_bytes: node.cache_bytes.0,
                cache_bytes: node.cache_bytes.1,
                processes: node.pids.len(),
            }
        });
        let protection = status.protection;
        Self {
            epoch: status.epoch.to_string(),
            copies_wanted: status.copies,
            requests_per_s: per_s(before.requests, now.requests),
            sessions: [protection.none, protection.one, protection.two]
                .into_iter()
                .fold(0, u64::saturating_add),
            protection,
            nodes: nodes.collect(),
            servers: status
                .servers
                .iter()
                .map(|server| ServerLine {
                    name: server.name.clone(),
                    state: server.state.clone(),
                    copies: server.sessions,
                    bytes: server.bytes,
                })
                .collect(),
            links: status
                .nodes
                .iter()
                .flat_map(|node| node.links.iter().map(|link| LinkLine::new(&node.name, link)))
                .collect(),
            dead: status
                .dead
                .iter()
                .map(|dead| DeadLine {
                    name: dead.name.clone(),
                    tag: dead.tag.clone(),
                    sealed: dead.sealed,
                    unsettled: dead.unsettled,
                })
                .collect(),
        }
    }
}

impl LinkLine {
    fn new(from: &str, link: &LinkStatus) -> Self {
        Self {
            from: from.to_owned(),
            to: link.server.clone(),
            transport: link.transport.clone(),
            beat_age_ms: link.beat_age_ms,
            detail: link.detail.clone(),
        }
    }

    /// The way in a few characters.
    pub fn short(&self) -> String {
        let way = if self.transport.is_empty() { "closed" } else { &self.transport };
        plain(&format!("{}-{} {way}", self.from, if self.to.is_empty() { "?" } else { &self.to }))
    }
}

impl DeadLine {
    /// One sentence.
    pub fn sentence(&self) -> String {
        let what = if self.sealed { "being adopted" } else { "being sealed" };
        format!("{} ({}) is gone, {what}, {} copies to settle", self.name, self.tag, self.unsettled)
    }
}

/// A count of a node.
fn count(node: &NodeStatus, counter: NodeCounter) -> u64 {
    node.counters.get(counter.name()).copied().unwrap_or_default()
}

/// Requests that have ended, by the director's metrics.
pub(in crate::tool) fn requests(metrics: &str) -> u64 {
    let lines = metrics.lines().filter(|line| line.starts_with("selvage_director_requests_total"));
    let values = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    values.sum::<f64>() as u64
}

/// A rate for people.
pub(in crate::tool) fn rate(per_s: f64) -> String {
    if per_s < 100.0 { format!("{per_s:.1}") } else { format!("{per_s:.0}") }
}

/// The picture as lines.
pub(in crate::tool) fn describe(picture: &Picture) -> String {
    let protection = &picture.protection;
    let mut page = format!(
        "epoch {}  {} requests/s  {} sessions: {} with 0 copies, {} with 1, {} with 2\n",
        picture.epoch,
        rate(picture.requests_per_s),
        picture.sessions,
        protection.none,
        protection.one,
        protection.two
    );
    let mut nodes = table(&NODE_HEAD);
    for node in &picture.nodes {
        let [name, rest @ ..] = node_cells(node);
        let mut row = vec![word(&name), state(&node.state)];
        row.extend(rest.into_iter().skip(1).map(number));
        nodes.add_row(row);
    }
    page += &text(nodes);
    let mut servers = table(&["SERVER", "STATE", "COPIES", "LEASES"]);
    for server in &picture.servers {
        servers.add_row(vec![
            word(&server.name),
            state(&server.state),
            number(server.copies),
            number(bytes(server.bytes)),
        ]);
    }
    page += &text(servers);
    // Writing into a string cannot fail.
    if !picture.links.is_empty() {
        let links: Vec<String> = picture.links.iter().map(LinkLine::short).collect();
        let _ = writeln!(page, "links: {}", links.join(", "));
    }
    for dead in &picture.dead {
        let _ = writeln!(page, "{}", plain(&dead.sentence()));
    }
    page.push('\n');
    page
}

/// Head of the table of nodes.
pub(in crate::tool) const NODE_HEAD: [&str; 9] = [
    "NODE",
    "STATE",
    "SESSIONS",
    "COPIES 0/1/2",
    "COMMITS/S",
    "SHORT/S",
    "CREATES/S",
    "ADOPTIONS/S",
    "CACHE",
];

/// A node's line there.
pub(in crate::tool) fn node_cells(node: &NodeLine) -> [String; 9] {
    [
        plain(&node.name),
        plain(&node.state),
        node.sessions.to_string(),
        format!("{}/{}/{}", node.safe[0], node.safe[1], node.safe[2]),
        rate(node.commits_per_s),
        rate(node.short_commits_per_s),
        rate(node.creates_per_s),
        rate(node.adoptions_per_s),
        share(node.cache_used_bytes, node.cache_bytes),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use selvage_fabric::ident::Epoch;
    use std::collections::BTreeMap;
    use std::time::Duration;

    fn node(name: &str, incarnation: u64, commits: u64) -> NodeStatus {
        NodeStatus {
            name: name.to_owned(),
            tag: "t".to_owned(),
            incarnation,
            state: "up".to_owned(),
            failing: false,
            weight: 1,
            epoch: Epoch::default(),
            sessions: 3,
            pids: vec![1, 2],
            address: String::new(),
            safe: [0, 1, 2],
            cache_bytes: (1, 4),
            links: vec![LinkStatus {
                server: "s1".to_owned(),
                incarnation: 1,
                transport: "shm".to_owned(),
                detail: String::new(),
                beat_age_ms: Some(3),
            }],
            counters: BTreeMap::from([(NodeCounter::Commits.name().to_owned(), commits)]),
            numbers: Default::default(),
        }
    }

    fn sample(at: Instant, nodes: Vec<NodeStatus>, requests: u64) -> Sample {
        let status = Status {
            epoch: Epoch::default(),
            starting: false,
            copies: 2,
            nodes,
            servers: Vec::new(),
            dead: Vec::new(),
            protection: Protection { none: 0, one: 1, two: 2 },
            spared: 0,
            takeovers: Default::default(),
        };
        Sample { at, status, requests }
    }

    #[test]
    fn rates_are_differences_by_time() {
        let began = Instant::now();
        let before = sample(began, vec![node("n1", 7, 100), node("n2", 8, 500)], 1000);
        let later = began + Duration::from_secs(2);
        let now = sample(later, vec![node("n1", 7, 150), node("n2", 9, 20)], 4000);
        let picture = Picture::new(&before, &now);
        assert_eq!(picture.requests_per_s, 1500.0);
        assert_eq!(picture.nodes[0].commits_per_s, 25.0);
        assert_eq!(picture.nodes[1].commits_per_s, 10.0, "a new life began with 0");
        let text = describe(&picture);
        for word in ["1500 requests/s", "n1", "25.0", "0/1/2", "25 %", "n1-s1 shm", "1 with 1, 2 with 2"] {
            assert!(text.contains(word), "no {word} in\n{text}");
        }
        let restarted = sample(later + Duration::from_secs(1), Vec::new(), 10);
        assert_eq!(Picture::new(&now, &restarted).requests_per_s, 10.0, "a new director began with 0");
        assert_eq!(Picture::new(&now, &now).requests_per_s, 0.0);
    }

    #[test]
    fn requests_are_summed_over_how_they_ended() {
        let page = "# TYPE selvage_director_requests counter\n\
                    selvage_director_requests_total{result=\"served\"} 5\n\
                    selvage_director_requests_total{result=\"refused\"} 2\n\
                    selvage_director_request_retries_total 9\n# EOF\n";
        assert_eq!(requests(page), 7);
    }
}
