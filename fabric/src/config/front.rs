//! The director's front: TLS for browsers, whom it believes about them, its access log, health checks of
//! nodes.

use super::check::Check;
use crate::error::Result;
use ipnet::IpNet;
use serde::Deserialize;
use serde::de::Error as _;
use std::net::{IpAddr, SocketAddr};
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Director;

/// TLS for browsers.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FrontTls {
    /// Where browsers connect with TLS.
    pub listen: SocketAddr,
    /// Certificates, by the names that they are for; the first is also for everybody else.
    pub certificates: Vec<Certificate>,
    /// Whether requests without TLS are sent to the same page with TLS.
    #[serde(default)]
    pub redirect: bool,
}

/// A certificate for browsers.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// PEM file of the certificate and those between it and a root that browsers know, absolute.
    pub certificate: PathBuf,
    /// PEM file of its key, absolute.
    pub key: PathBuf,
}

/// Form of the access log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccessLogFormat {
    /// The "combined" form that every tool reads.
    #[default]
    Combined,
    /// One JSON object a line, with all that is known.
    Json,
}

/// Requests by which the director asks web servers whether they answer.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Health {
    /// What is asked for; nothing is asked without it.
    pub path: Option<String>,
    /// The `Host` that is asked for; the node's address without it.
    pub host: Option<String>,
    /// Pause between two checks of a node, ms.
    pub interval_ms: u64,
    /// Longest time for a check, ms.
    pub timeout_ms: u64,
    /// Failed checks in a row after which a node is failing.
    pub fall: u32,
    /// Good checks in a row after which it is well again.
    pub rise: u32,
    /// Statuses that are good.
    #[serde(deserialize_with = "statuses")]
    pub expect: RangeInclusive<u16>,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            path: None,
            host: None,
            interval_ms: 2000,
            timeout_ms: 1000,
            fall: 3,
            rise: 2,
            expect: 200..=399,
        }
    }
}

impl Health {
    /// Pause between two checks of a node.
    pub fn interval(&self) -> Duration {
        Duration::from_millis(self.interval_ms)
    }

    /// Longest time for a check.
    pub fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }
}

/// Checks what of `[director]` is the front's.
pub(super) fn checked(director: &Director, span: &Range<usize>, check: &Check<'_>) -> Result<()> {
    if let Some(log) = &director.access_log {
        let good = log.is_absolute() || log == Path::new("-");
        check.that(good, span.clone(), "access_log", || "must be an absolute path, or \"-\"".into())?;
    }
    if let Some(tls) = &director.tls {
        checked_tls(tls, director, check.table("director.tls", span), check)?;
    }
    checked_health(&director.health, check.table("director.health", span), check)
}

fn checked_tls(tls: &FrontTls, director: &Director, span: Range<usize>, check: &Check<'_>) -> Result<()> {
    check.that(!tls.certificates.is_empty(), span.clone(), "certificates", || {
        "at least one certificate is needed".into()
    })?;
    for certificate in &tls.certificates {
        let good = certificate.certificate.is_absolute() && certificate.key.is_absolute();
        check.that(good, span.clone(), "certificates", || {
            "`certificate` and `key` must be absolute paths".into()
        })?;
    }
    let taken = [director.listen, director.admin_listen].contains(&tls.listen)
        || director.control == Some(tls.listen);
    check
        .that(!taken, span, "listen", || format!("{} is another address of the director already", tls.listen))
}

fn checked_health(health: &Health, span: Range<usize>, check: &Check<'_>) -> Result<()> {
    let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
    let path = health.path.as_deref().unwrap_or("/");
    check.that(path.starts_with('/') && plain(path), span.clone(), "path", || {
        "must begin with / and have no spaces or control characters".into()
    })?;
    let host = health.host.as_deref().unwrap_or("host");
    check.that(!host.is_empty() && plain(host), span.clone(), "host", || {
        "must be a host, with a port or without".into()
    })?;
    check.range(span.clone(), "interval_ms", health.interval_ms, 10, 3_600_000)?;
    check.range(span.clone(), "timeout_ms", health.timeout_ms, 1, 600_000)?;
    check.range(span.clone(), "fall", health.fall, 1, 1000)?;
    check.range(span, "rise", health.rise, 1, 1000)
}

/// Networks, such as `10.0.0.0/8`, or single addresses.
pub(super) fn networks<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    let network = |text: &String| {
        text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).map_err(|_| {
            D::Error::custom(format!("\"{text}\" is no network such as 10.0.0.0/8, and no address"))
        })
    };
    texts.iter().map(network).collect()
}

/// `200-399`, or one status.
fn statuses<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<RangeInclusive<u16>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let (first, last) = text.split_once('-').unwrap_or((&text, &text));
    match (first.trim().parse::<u16>(), last.trim().parse::<u16>()) {
        (Ok(first), Ok(last)) if (100..=599).contains(&first) && (first..=599).contains(&last) => {
            Ok(first..=last)
        }
        _ => Err(D::Error::custom(format!("\"{text}\" is no status or range of them, such as 200-399"))),
    }
}
