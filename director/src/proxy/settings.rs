//! What of the configuration counts for a request. Replaced as a whole by a reload: a request goes by one of
//! them from its beginning to its end.

use crate::proxy::framing::Bounds;
use arc_swap::ArcSwap;
use ipnet::IpNet;
use selvage_fabric::config::Config;
use selvage_fabric::ident::CookieKey;
use std::sync::Arc;
use std::time::Duration;

/// Settings that can be replaced.
pub type Live = Arc<ArcSwap<Settings>>;

/// Settings of the proxy.
#[derive(Debug)]
pub struct Settings {
    /// Name of the session's cookie.
    pub cookie_name: String,
    /// Keys of its mac.
    pub keys: Vec<CookieKey>,
    /// Longest wait for a node.
    pub hold: Duration,
    /// Most bytes of a body that are kept for sending it again.
    pub resend_body_bytes: usize,
    /// Requests under way at once.
    pub requests_max: usize,
    /// Networks of proxies whose word about browsers counts.
    pub trusted: Vec<IpNet>,
    /// Where requests without TLS are sent: the port of TLS.
    pub redirect: Option<u16>,
    /// Bounds of a request's head.
    pub head: Bounds,
    /// Largest body of a request; no limit without it.
    pub body_bytes_max: Option<u64>,
    /// Longest time for a request's head to come whole.
    pub head_timeout: Duration,
    /// Longest silence within a request's body, and longest time for the part that is kept.
    pub body_timeout: Duration,
    /// Longest time of a browser's connection without a request.
    pub keepalive_timeout: Duration,
    /// Longest wait for the head of a node's answer.
    pub response_timeout: Duration,
    /// Longest silence within an answer.
    pub idle_timeout: Duration,
    /// Longest silence of an upgraded connection.
    pub tunnel_timeout: Duration,
    /// Requests that may wait for a place at one node.
    pub queue_max: usize,
    /// Longest wait for a place at a node.
    pub queue_timeout: Duration,
}

impl Settings {
    /// From the configuration.
    pub fn new(config: &Config) -> Self {
        let it = &config.director;
        let tls = it.tls.as_ref();
        let ms = Duration::from_millis;
        Self {
            cookie_name: config.session.cookie_name.clone(),
            keys: config.cluster.cookie_keys.clone(),
            hold: ms(it.hold_ms),
            resend_body_bytes: it.resend_body_bytes,
            requests_max: it.requests_max,
            trusted: it.trusted_proxies.clone(),
            redirect: tls.filter(|tls| tls.redirect).map(|tls| tls.listen.port()),
            head: Bounds {
                head_bytes_max: it.header_bytes_max,
                headers_max: it.headers_max,
                target_bytes_max: it.uri_bytes_max,
            },
            body_bytes_max: (it.body_bytes_max > 0).then_some(it.body_bytes_max),
            head_timeout: ms(it.head_timeout_ms),
            body_timeout: ms(it.body_timeout_ms),
            keepalive_timeout: ms(it.keepalive_timeout_ms),
            response_timeout: ms(it.response_timeout_ms),
            idle_timeout: ms(it.idle_timeout_ms),
            tunnel_timeout: ms(it.tunnel_timeout_ms),
            queue_max: it.queue_max,
            queue_timeout: ms(it.queue_timeout_ms),
        }
    }
}
