//! The Prometheus page: what the director counts itself, what nodes and servers report, and its own process.
//!
//! Names are `selvage_<part>_<what>_<unit>`, with `_total` for counters; units are seconds and bytes. Labels
//! take values from the configuration and from the lists of this code only, so their number is bounded.
//! `docs/metrics.md` has a line for each, which a test holds against a live page.

mod families;
mod process;
mod snapshot;

use crate::access_log::Notes;
use crate::cluster::status::Status;
use hyper::StatusCode;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use selvage_fabric::error::ErrorKind;
use snapshot::Snapshot;
use std::sync::Arc;
use std::time::Instant;

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
    /// The browser has gone before there was an answer, or within its request.
    BrowserGone,
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
struct ByKind {
    kind: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct BySuccess {
    result: &'static str,
}

impl BySuccess {
    fn of(good: bool) -> Self {
        Self { result: if good { "good" } else { "failed" } }
    }
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct ByAnswer {
    result: Outcome,
    class: &'static str,
}

/// Upper bounds of the durations of requests that are told apart, s.
const REQUEST_BOUNDS_S: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// What the director counts and times itself, since its start.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<ByOutcome, Counter>,
    durations: Family<ByAnswer, Histogram, fn() -> Histogram>,
    /// Requests that were sent once more.
    pub retries: Counter,
    /// "Elsewhere" answers of nodes.
    pub elsewhere: Counter,
    /// Requests whose session cookie nobody here has signed.
    pub forged_cookies: Counter,
    /// Connections of browsers that are open.
    pub connections: Gauge,
    queued: Gauge,
    /// TLS handshakes of browsers that failed.
    pub tls_failures: Counter,
    /// Lines of the access log that were not written.
    pub access_log_lost: Counter,
    reloads: Family<BySuccess, Counter>,
    upgrades: Family<BySuccess, Counter>,
    health_checks: Family<BySuccess, Counter>,
    cut_peers: Family<ByReason, Counter>,
    errors: Family<ByKind, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("selvage_director");
        let requests = Family::<ByOutcome, Counter>::default();
        registry.register("requests", "Requests by how they ended", requests.clone());
        let durations = Family::new_with_constructor(request_times as fn() -> Histogram);
        let help = "Time from the head of a request to the head of its answer";
        registry.register_with_unit("request_duration", help, Unit::Seconds, durations.clone());
        let retries = Counter::default();
        registry.register("request_retries", "Requests that were sent once more", retries.clone());
        let elsewhere = Counter::default();
        let help = "Answers of nodes that the session is elsewhere";
        registry.register("elsewhere_answers", help, elsewhere.clone());
        let forged_cookies = Counter::default();
        let help = "Requests whose session cookie nobody here has signed";
        registry.register("forged_cookies", help, forged_cookies.clone());
        let connections = Gauge::default();
        registry.register("connections", "Connections of browsers that are open", connections.clone());
        let queued = Gauge::default();
        let help = "Requests that wait for a place at a node that has its maxconn under way";
        registry.register("queued_requests", help, queued.clone());
        let tls_failures = Counter::default();
        registry.register("tls_failures", "TLS handshakes of browsers that failed", tls_failures.clone());
        let access_log_lost = Counter::default();
        let help = "Lines of the access log that were not written";
        registry.register("access_log_lost", help, access_log_lost.clone());
        let mut results = |name: &str, help: &str| {
            let family = Family::<BySuccess, Counter>::default();
            registry.register(name, help, family.clone());
            for good in [true, false] {
                drop(family.get_or_create(&BySuccess::of(good)));
            }
            family
        };
        let reloads = results("reloads", "Times that the configuration was read again");
        let upgrades = results("upgrades", "Times that another director was to take over");
        let health_checks = results("health_checks", "Health checks of web servers");
        let cut_peers = Family::<ByReason, Counter>::default();
        let help = "Control peers refused or cut off, by reason";
        registry.register("control_peers_cut", help, cut_peers.clone());
        let errors = Family::<ByKind, Counter>::default();
        let help = "Conversations with servers and nodes that ended with an error, by its kind";
        registry.register("errors", help, errors.clone());
        // Families show what was counted once; these shall be there from the start.
        ErrorKind::ALL.iter().for_each(|kind| drop(errors.get_or_create(&ByKind { kind: kind.name() })));
        Cut::ALL.iter().for_each(|reason| drop(cut_peers.get_or_create(&ByReason { reason: *reason })));
        Outcome::ALL.iter().for_each(|result| drop(requests.get_or_create(&ByOutcome { result: *result })));
        Self {
            registry,
            requests,
            durations,
            retries,
            elsewhere,
            forged_cookies,
            connections,
            queued,
            tls_failures,
            access_log_lost,
            reloads,
            upgrades,
            health_checks,
            cut_peers,
            errors,
        }
    }
}

fn request_times() -> Histogram {
    Histogram::new(REQUEST_BOUNDS_S)
}

/// The class of a status: `2xx`.
fn class(status: StatusCode) -> &'static str {
    match status.as_u16() / 100 {
        1 => "1xx",
        2 => "2xx",
        3 => "3xx",
        4 => "4xx",
        _ => "5xx",
    }
}

impl Cut {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Certificate,
        Self::Denied,
        Self::Version,
        Self::Garbage,
        Self::Slow,
        Self::Vanished,
        Self::Crowded,
    ];
}

impl Outcome {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Served,
        Self::NodeError,
        Self::Refused,
        Self::BadRequest,
        Self::Unrouted,
        Self::Lost,
        Self::BrowserGone,
    ];

    /// Of a request that a node answered.
    pub fn of(status: StatusCode) -> Self {
        if status.is_server_error() { Self::NodeError } else { Self::Served }
    }
}

impl EncodeLabelValue for Outcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.name().encode(encoder)
    }
}

impl Outcome {
    /// As it stands in metrics and the access log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Served => "served",
            Self::NodeError => "node_error",
            Self::Refused => "refused",
            Self::BadRequest => "bad_request",
            Self::Unrouted => "unrouted",
            Self::Lost => "lost",
            Self::BrowserGone => "browser_gone",
        }
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

/// A request's time in a queue; it is counted there until this is dropped.
#[derive(Debug)]
pub struct Queued(Gauge);

impl Drop for Queued {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// A request that is under way. It is counted when it ends; dropped before that, its browser has gone.
#[derive(Debug)]
pub struct UnderWay<'a> {
    metrics: &'a Metrics,
    /// For the access log.
    notes: Option<Arc<Notes>>,
    began: Instant,
    ended: bool,
}

impl UnderWay<'_> {
    /// Counts it, and how long it took to this status.
    pub fn end(mut self, result: Outcome, status: StatusCode) {
        self.ended = true;
        self.count(result, class(status));
    }

    fn count(&self, result: Outcome, class: &'static str) {
        self.metrics.requests.get_or_create(&ByOutcome { result }).inc();
        let took = self.began.elapsed().as_secs_f64();
        self.metrics.durations.get_or_create(&ByAnswer { result, class }).observe(took);
        self.notes.iter().for_each(|notes| notes.ended(result));
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if !self.ended {
            // 499, as the access log says.
            self.count(Outcome::BrowserGone, "4xx");
        }
    }
}

impl Metrics {
    /// Counts a request that waits in a node's queue.
    pub fn queued(&self) -> Queued {
        self.queued.inc();
        Queued(self.queued.clone())
    }

    /// Counts a control peer that was refused or cut off.
    pub fn cut_peer(&self, reason: Cut) {
        self.cut_peers.get_or_create(&ByReason { reason }).inc();
    }

    /// Counts an error of a conversation with a server or node.
    pub fn error(&self, kind: ErrorKind) {
        self.errors.get_or_create(&ByKind { kind: kind.name() }).inc();
    }

    /// Counts a reload.
    pub fn reload(&self, good: bool) {
        self.reloads.get_or_create(&BySuccess::of(good)).inc();
    }

    /// Counts an attempt to hand over.
    pub fn upgrade(&self, good: bool) {
        self.upgrades.get_or_create(&BySuccess::of(good)).inc();
    }

    /// Counts a health check.
    pub fn health_check(&self, good: bool) {
        self.health_checks.get_or_create(&BySuccess::of(good)).inc();
    }

    /// A request begins.
    pub fn begin(&self, notes: Option<Arc<Notes>>) -> UnderWay<'_> {
        UnderWay { metrics: self, notes, began: Instant::now(), ended: false }
    }

    /// Requests that ended so.
    pub fn requests(&self, result: Outcome) -> u64 {
        self.requests.get_or_create(&ByOutcome { result }).get()
    }

    /// The page: OpenMetrics text.
    ///
    /// # Errors
    /// Never in practice: writing into a string cannot fail.
    pub fn page(&self, status: Status) -> Result<String, std::fmt::Error> {
        let mut members = Registry::default();
        members.register_collector(Box::new(process::Process));
        members.register_collector(Box::new(Snapshot(status)));
        let mut page = String::new();
        encode_registry(&mut page, &self.registry)?;
        encode_registry(&mut page, &members)?;
        encode_eof(&mut page)?;
        Ok(page)
    }
}
