//! `[director]`: where it listens, and every limit and time of a request's way through it.

use super::check::Check;
use super::front::{self, AccessLogFormat, FrontTls, Health};
use super::{limits, ms};
use crate::error::Result;
use ipnet::IpNet;
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use toml::Spanned;

/// The director.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Director {
    /// Where browsers connect.
    pub listen: SocketAddr,
    /// Where the admin API listens.
    pub admin_listen: SocketAddr,
    /// Longest time that a request may wait for a node that can take it, ms.
    pub hold_ms: u64,
    /// Requests that may be under way at once; the next one is answered 503.
    pub requests_max: usize,
    /// Most bytes of a request body that are kept so that it can be sent again.
    pub resend_body_bytes: usize,
    /// Where it listens for nodes of other hosts; on this host's socket only without it.
    pub control: Option<SocketAddr>,
    /// Longest head of a request, all its lines together, and longest trailer section, bytes.
    pub header_bytes_max: usize,
    /// Most header lines of a request.
    pub headers_max: usize,
    /// Longest target of a request, bytes.
    pub uri_bytes_max: usize,
    /// Largest body of a request, bytes; 0: no limit.
    pub body_bytes_max: u64,
    /// Longest time for a request's head to come whole, ms.
    pub head_timeout_ms: u64,
    /// Longest silence within a request's body, and longest time for the part of it that is kept, ms.
    pub body_timeout_ms: u64,
    /// Longest time that a browser's connection stays open without a request, ms.
    pub keepalive_timeout_ms: u64,
    /// Longest time to connect to a node, ms; `hold_ms` bounds it, too.
    pub connect_timeout_ms: u64,
    /// Longest wait for the head of a node's answer, ms.
    pub response_timeout_ms: u64,
    /// Longest silence of a node within its answer, and of a browser that does not take it, ms.
    pub idle_timeout_ms: u64,
    /// Longest silence of both sides of an upgraded connection, ms.
    pub tunnel_timeout_ms: u64,
    /// Requests that may wait for a place at one node that has `maxconn` under way.
    pub queue_max: usize,
    /// Longest time that a request may wait for such a place, ms.
    pub queue_timeout_ms: u64,
    /// TLS for browsers, beside `listen`; none without it.
    pub tls: Option<FrontTls>,
    /// Networks of proxies whose word about browsers counts.
    #[serde(deserialize_with = "front::networks")]
    pub trusted_proxies: Vec<IpNet>,
    /// File of the access log, absolute; `-` is standard output; none without it.
    pub access_log: Option<PathBuf>,
    /// Form of the access log.
    pub access_log_format: AccessLogFormat,
    /// Health checks of web servers.
    pub health: Health,
}

impl Default for Director {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            admin_listen: SocketAddr::from(([127, 0, 0, 1], 8081)),
            hold_ms: ms(limits::WAIT),
            requests_max: 10_000,
            resend_body_bytes: limits::RESEND_BODY_BYTES,
            control: None,
            header_bytes_max: 32 << 10,
            headers_max: 100,
            uri_bytes_max: 8 << 10,
            body_bytes_max: 0,
            head_timeout_ms: 30_000,
            body_timeout_ms: 30_000,
            keepalive_timeout_ms: 60_000,
            connect_timeout_ms: 1_000,
            response_timeout_ms: 300_000,
            idle_timeout_ms: 300_000,
            tunnel_timeout_ms: 3_600_000,
            queue_max: 1_024,
            queue_timeout_ms: 5_000,
            tls: None,
            trusted_proxies: Vec::new(),
            access_log: None,
            access_log_format: AccessLogFormat::default(),
            health: Health::default(),
        }
    }
}

impl Director {
    /// Longest time to connect to a node: no longer than a request may be held.
    pub fn connect_timeout(&self) -> Duration {
        Duration::from_millis(self.connect_timeout_ms.min(self.hold_ms))
    }

    pub(super) fn check(table: &Spanned<Self>, check: &Check<'_>) -> Result<()> {
        let (span, it) = (table.span(), table.as_ref());
        let range = |key, value, low, high| check.range(span.clone(), key, value, low, high);
        let requests = limits::REQUESTS_MAX as u64;
        range("hold_ms", it.hold_ms, 1, 600_000)?;
        range("requests_max", it.requests_max as u64, 1, requests)?;
        range("resend_body_bytes", it.resend_body_bytes as u64, 0, limits::ARCHIVE_BYTES_MAX as u64)?;
        range("header_bytes_max", it.header_bytes_max as u64, 1 << 10, 256 << 10)?;
        range("headers_max", it.headers_max as u64, 1, 1_000)?;
        range("uri_bytes_max", it.uri_bytes_max as u64, 16, 60_000)?;
        check.that(it.uri_bytes_max < it.header_bytes_max, span.clone(), "uri_bytes_max", || {
            format!("{} does not fit into header_bytes_max, {}", it.uri_bytes_max, it.header_bytes_max)
        })?;
        let day_ms = 86_400_000;
        for (key, value) in [
            ("head_timeout_ms", it.head_timeout_ms),
            ("body_timeout_ms", it.body_timeout_ms),
            ("keepalive_timeout_ms", it.keepalive_timeout_ms),
            ("connect_timeout_ms", it.connect_timeout_ms),
            ("response_timeout_ms", it.response_timeout_ms),
            ("idle_timeout_ms", it.idle_timeout_ms),
        ] {
            range(key, value, 1, day_ms)?;
        }
        range("tunnel_timeout_ms", it.tunnel_timeout_ms, 1, 30 * day_ms)?;
        range("queue_max", it.queue_max as u64, 0, requests)?;
        range("queue_timeout_ms", it.queue_timeout_ms, 1, 600_000)?;
        front::checked(it, &span, check)
    }
}
