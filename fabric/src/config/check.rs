//! The file as it stands, and what is checked of it: each complaint names file, line and key.

use super::{Cluster, Config, Director, Memory, Node, Rdma, Server, Session, Timing, Tls};
use crate::error::{Error, ErrorKind, Origin, Result};
use crate::limits;
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::Path;
use toml::Spanned;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    cluster: Spanned<Cluster>,
    director: Spanned<Director>,
    #[serde(default = "default_spanned")]
    session: Spanned<Session>,
    #[serde(default = "default_spanned")]
    timing: Spanned<Timing>,
    #[serde(default = "default_spanned")]
    memory: Spanned<Memory>,
    tls: Option<Spanned<Tls>>,
    #[serde(default = "default_spanned")]
    rdma: Spanned<Rdma>,
    #[serde(default)]
    server: Vec<Spanned<Server>>,
    #[serde(default)]
    node: Vec<Spanned<Node>>,
}

pub(super) struct Check<'a> {
    pub(super) path: &'a Path,
    pub(super) text: &'a str,
}

impl Check<'_> {
    /// Refuses unless `good`; the line is that of `key` inside the table at `span`, or the table's own.
    pub(super) fn that(
        &self,
        good: bool,
        span: std::ops::Range<usize>,
        key: &str,
        why: impl FnOnce() -> String,
    ) -> Result<()> {
        if good {
            return Ok(());
        }
        // The span of a table may be no more than its header, so look on to the next header.
        let rest = self.text.get(span.start..).unwrap_or("");
        let inside = rest.get(..rest.find("\n[").unwrap_or(rest.len())).unwrap_or("");
        let offset = inside
            .lines()
            .scan(0, |at, line| {
                let start = *at;
                *at += line.len() + 1;
                Some((start, line))
            })
            .find(|(_, line)| {
                line.trim_start().strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with('='))
            })
            .map_or(0, |(start, _)| start);
        Err(invalid(self.path, self.text, span.start + offset, &format!("`{key}`: {}", why())))
    }

    pub(super) fn range<T: PartialOrd + std::fmt::Display + Copy>(
        &self,
        span: std::ops::Range<usize>,
        key: &str,
        value: T,
        low: T,
        high: T,
    ) -> Result<()> {
        self.that(low <= value && value <= high, span, key, || {
            format!("{value} is not within {low} to {high}")
        })
    }

    /// Where the table of this name stands, if it has a header of its own; else the one that it is in.
    pub(super) fn table(&self, name: &str, outer: &std::ops::Range<usize>) -> std::ops::Range<usize> {
        let header = format!("[{name}]");
        let lines = self.text.split_inclusive('\n').scan(0, |at, line| {
            let start = *at;
            *at += line.len();
            Some((start, line))
        });
        let at = lines.into_iter().find(|(_, line)| line.trim_start().starts_with(&header));
        at.map_or(outer.clone(), |(start, line)| start..start + line.len())
    }

    fn name(&self, span: std::ops::Range<usize>, name: &str) -> Result<()> {
        let good = !name.is_empty()
            && name.len() <= limits::NAME_BYTES_MAX
            && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        self.that(good, span, "name", || {
            format!("\"{name}\" is not 1 to {} characters of a-z, 0-9 and -", limits::NAME_BYTES_MAX)
        })
    }
}

impl Check<'_> {
    /// With certificates, a name is a part of a DNS name.
    fn label(&self, span: std::ops::Range<usize>, name: &str) -> Result<()> {
        self.that(!name.starts_with('-') && !name.ends_with('-'), span, "name", || {
            format!("\"{name}\" begins or ends with -, which a certificate's name cannot")
        })
    }

    /// An address at which one listens and to which the others connect.
    fn host_address(
        &self,
        span: std::ops::Range<usize>,
        address: Option<SocketAddr>,
        servers: &[Server],
    ) -> Result<()> {
        let Some(address) = address else { return Ok(()) };
        let usable = !address.ip().is_unspecified() && address.port() != 0;
        self.that(usable, span.clone(), "control", || {
            format!("other hosts cannot connect to {address}: name the address and port that they reach")
        })?;
        let shared = servers.iter().find(|other| other.control == Some(address));
        self.that(shared.is_none(), span, "control", || {
            let name = shared.map_or("", |server| &server.name);
            format!("server \"{name}\" listens on {address}, too")
        })
    }
}

impl File {
    pub(super) fn check(self, check: &Check<'_>) -> Result<Config> {
        let cluster_span = self.cluster.span();
        let cluster = checked_cluster(self.cluster, check)?;
        let session = checked_session(self.session, check)?;
        let timing = checked_timing(self.timing, check)?;
        let memory = checked_memory(self.memory, &session, check)?;
        let rdma = checked_rdma(self.rdma, check)?;
        Director::check(&self.director, check)?;
        let director_control = (self.director.span(), self.director.as_ref().control.is_some());
        let servers = checked_servers(self.server, self.tls.is_some(), check)?;
        let nodes = checked_nodes(self.node, self.tls.is_some(), check)?;
        let director_span = self.director.span();
        check.range(director_span.clone(), "server", servers.len(), 1, limits::SERVERS_MAX)?;
        check.range(director_span, "node", nodes.len(), 1, limits::NODES_MAX)?;
        check.that(self.tls.is_some() || !director_control.1, director_control.0, "control", needs_tls)?;
        check.host_address(self.director.span(), self.director.as_ref().control, &servers)?;
        if self.tls.is_some() {
            check.label(cluster_span, &cluster.name)?;
        }
        let tls = self.tls.map(|tls| checked_tls(tls, check)).transpose()?;
        Ok(Config {
            path: check.path.to_owned(),
            cluster,
            director: self.director.into_inner(),
            session,
            timing,
            memory,
            tls,
            rdma,
            servers,
            nodes,
        })
    }
}

fn checked_cluster(table: Spanned<Cluster>, check: &Check<'_>) -> Result<Cluster> {
    let span = table.span();
    let cluster = table.into_inner();
    check.name(span.clone(), &cluster.name)?;
    check.range(span.clone(), "copies", cluster.copies, 1, limits::COPIES_MAX as u32)?;
    check
        .that(cluster.run_dir.is_absolute(), span.clone(), "run_dir", || "must be an absolute path".into())?;
    // A Unix socket's path holds 107 bytes; the longest name of ours is "server-<name>.sock".
    let run_dir_max = 107 - "/server-.sock".len() - limits::NAME_BYTES_MAX;
    check.range(span.clone(), "run_dir", cluster.run_dir.as_os_str().len(), 1, run_dir_max)?;
    Ok(cluster)
}

fn checked_session(table: Spanned<Session>, check: &Check<'_>) -> Result<Session> {
    let span = table.span();
    let session = table.into_inner();
    let cookie_name_good = !session.cookie_name.is_empty()
        && session
            .cookie_name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-');
    check.that(cookie_name_good, span.clone(), "cookie_name", || {
        "must be made of letters, digits, _ and -".into()
    })?;
    check.that(
        !session.cookie_name.starts_with("__Host-") || session.cookie_secure,
        span.clone(),
        "cookie_name",
        || "a name with __Host- needs cookie_secure = true".into(),
    )?;
    check.range(span.clone(), "idle_s", session.idle_s, 1, 10 * 365 * 86_400)?;
    check.range(span.clone(), "absolute_s", session.absolute_s, session.idle_s, 10 * 365 * 86_400)?;
    check.range(span.clone(), "touch_share", session.touch_share, 0.0, 0.9)?;
    let unit = limits::BLOCK_UNIT_BYTES;
    check.range(
        span.clone(),
        "archive_bytes_max",
        session.archive_bytes_max,
        unit,
        limits::ARCHIVE_BYTES_MAX,
    )?;
    check.range(span.clone(), "waiters_max", session.waiters_max, 1, 1024)?;
    check.range(span.clone(), "wait_ms", session.wait_ms, 1, 600_000)?;
    check.range(span.clone(), "lock_hold_ms", session.lock_hold_ms, 100, 3_600_000)?;
    check.range(span.clone(), "clock_skew_ms", session.clock_skew_ms, 0, 3_600_000)?;
    let grace_max = limits::REGENERATE_GRACE_MAX.as_millis() as u64;
    check.range(span, "regenerate_grace_ms", session.regenerate_grace_ms, 0, grace_max)?;
    Ok(session)
}

fn checked_timing(table: Spanned<Timing>, check: &Check<'_>) -> Result<Timing> {
    let span = table.span();
    let timing = table.into_inner();
    check.range(span.clone(), "heartbeat_ms", timing.heartbeat_ms, 1, 60_000)?;
    check.range(span.clone(), "mandate_ms", timing.mandate_ms, 3 * timing.heartbeat_ms, 600_000)?;
    check.range(span, "silence_ms", timing.silence_ms, timing.mandate_ms + 1, 600_000)?;
    Ok(timing)
}

fn checked_memory(table: Spanned<Memory>, session: &Session, check: &Check<'_>) -> Result<Memory> {
    let span = table.span();
    let memory = table.into_inner();
    check.range(span.clone(), "sessions_max", memory.sessions_max, 16, limits::SLOTS_MAX)?;
    let heap_min = 4 * limits::CHUNK_BYTES_MIN.max(session.archive_bytes_max) as u64;
    check.range(span.clone(), "cache_bytes", memory.cache_bytes, heap_min, 1 << 40)?;
    check.range(span, "lease_bytes", memory.lease_bytes, heap_min, 1 << 40)?;
    Ok(memory)
}

fn checked_tls(table: Spanned<Tls>, check: &Check<'_>) -> Result<Tls> {
    let span = table.span();
    let tls = table.into_inner();
    check.that(tls.dir.is_absolute(), span, "dir", || "must be an absolute path".into())?;
    Ok(tls)
}

fn checked_rdma(table: Spanned<Rdma>, check: &Check<'_>) -> Result<Rdma> {
    let span = table.span();
    let rdma = table.into_inner();
    check.range(span.clone(), "service_level", rdma.service_level, 0, 15)?;
    check.range(span.clone(), "ack_timeout", rdma.ack_timeout, 1, 20)?;
    check.range(span.clone(), "retry_count", rdma.retry_count, 1, 6)?;
    check.range(span.clone(), "port", rdma.port.unwrap_or(1), 1, u8::MAX)?;
    check.range(span, "queue_depth", rdma.queue_depth, 1, 4096)?;
    Ok(rdma)
}

fn needs_tls() -> String {
    "an address for other hosts needs certificates: add [tls] with dir, and make them with `selvage ca`"
        .into()
}

fn checked_servers(tables: Vec<Spanned<Server>>, has_tls: bool, check: &Check<'_>) -> Result<Vec<Server>> {
    let mut servers = Vec::new();
    for server in tables {
        let span = server.span();
        let server = server.into_inner();
        check.name(span.clone(), &server.name)?;
        check.range(span.clone(), "weight", server.weight, 1, 1000)?;
        check.that(has_tls || server.control.is_none(), span.clone(), "control", needs_tls)?;
        check.host_address(span.clone(), server.control, &servers)?;
        if has_tls {
            check.label(span.clone(), &server.name)?;
        }
        let twice = servers.iter().any(|other: &Server| other.name == server.name);
        check.that(!twice, span, "name", || format!("two servers are named \"{}\"", server.name))?;
        servers.push(server);
    }
    servers.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(servers)
}

fn checked_nodes(tables: Vec<Spanned<Node>>, has_tls: bool, check: &Check<'_>) -> Result<Vec<Node>> {
    let mut nodes = Vec::new();
    for node in tables {
        let span = node.span();
        let node = node.into_inner();
        check.name(span.clone(), &node.name)?;
        if has_tls {
            check.label(span.clone(), &node.name)?;
        }
        check.range(span.clone(), "weight", node.weight, 0, limits::NODE_WEIGHT_MAX)?;
        check.range(span.clone(), "maxconn", node.maxconn, 0, limits::REQUESTS_MAX)?;
        let twice = nodes.iter().any(|other: &Node| other.name == node.name);
        check.that(!twice, span.clone(), "name", || format!("two nodes are named \"{}\"", node.name))?;
        let shared = nodes.iter().any(|other: &Node| other.address == node.address);
        check.that(!shared, span, "address", || format!("two nodes listen on {}", node.address))?;
        nodes.push(node);
    }
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(nodes)
}

pub(super) fn invalid(path: &Path, text: &str, at: usize, why: &str) -> Error {
    let line = text.get(..at).unwrap_or(text).matches('\n').count() + 1;
    Error::new(ErrorKind::Invalid, Origin::Config, format!("{}:{line}: {why}", path.display()))
}

fn default_spanned<T: Default>() -> Spanned<T> {
    Spanned::new(0..0, T::default())
}
