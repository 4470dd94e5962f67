//! Upgraded connections (WebSocket and others): after a node's `101` the director passes bytes both ways.
//!
//! A tunnel is a request under way: it keeps its place at the node and among all requests. It ends when
//! either side ends it, when both are silent for `tunnel_timeout_ms`, when the node's incarnation ends (its
//! connections are cut), when the director stops, or a part of the hold after the node's requests were held,
//! so that a drain need not wait for a browser that stays connected for hours.
//!
//! Not every protocol is let through. An upgrade to HTTP/2 would carry requests past the director that belong
//! to other sessions, and be framed as nobody here checks.

use crate::limits;
use crate::proxy::headers;
use crate::proxy::phases::Admitted;
use crate::proxy::routes::{Routes, Table};
use crate::proxy::settings::Live;
use crate::proxy::upstream::Place;
use hyper::header::{CONNECTION, CONTENT_LENGTH, HeaderValue, TE, TRANSFER_ENCODING, UPGRADE};
use hyper::http::request::Parts;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper::{HeaderMap, Version};
use hyper_util::rt::TokioIo;
use selvage_fabric::ident::Incarnation;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// A browser's wish for another protocol.
#[derive(Debug)]
pub struct Asked {
    protocol: HeaderValue,
    browser: OnUpgrade,
}

impl Asked {
    /// The wish of a request, before its headers are made fit for a node; only a request without a body can
    /// have one, so that it is clear where the other protocol begins.
    pub fn of(head: &mut Parts) -> Option<Self> {
        let has_body = [CONTENT_LENGTH, TRANSFER_ENCODING].iter().any(|name| head.headers.contains_key(name));
        if head.version != Version::HTTP_11 || has_body || !says_upgrade(&head.headers) {
            return None;
        }
        let protocols = head.headers.get_all(UPGRADE).iter();
        let values: Vec<&[u8]> = protocols.map(HeaderValue::as_bytes).collect();
        let protocol = HeaderValue::from_bytes(&values.join(&b", "[..])).ok().filter(is_let_through)?;
        let browser = head.extensions.remove::<OnUpgrade>()?;
        Some(Self { protocol, browser })
    }

    /// Puts the wish into the headers for a node.
    pub fn put(&self, headers: &mut HeaderMap) {
        say_upgrade(headers, &self.protocol);
    }

    /// Whether a node's `101` is for what was asked.
    pub fn is_granted(&self, headers: &HeaderMap) -> bool {
        let mut asked = list(&self.protocol);
        let granted: Vec<&HeaderValue> = headers.get_all(UPGRADE).iter().collect();
        let [granted] = *granted else { return false };
        asked.any(|asked| asked.eq_ignore_ascii_case(granted.as_bytes().trim_ascii()))
    }
}

/// Makes the headers of a node's `101` fit for the browser.
pub fn for_browser(headers: &mut HeaderMap, version: Version) {
    let protocol = headers.get(UPGRADE).cloned();
    headers::for_browser(headers, version);
    headers.remove(CONTENT_LENGTH);
    if let Some(protocol) = protocol {
        say_upgrade(headers, &protocol);
    }
}

fn say_upgrade(headers: &mut HeaderMap, protocol: &HeaderValue) {
    // It would have to be named in `Connection`, too, and what comes has no trailers.
    headers.remove(TE);
    headers.insert(UPGRADE, protocol.clone());
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
}

fn says_upgrade(headers: &HeaderMap) -> bool {
    headers.contains_key(UPGRADE)
        && headers.get_all(CONNECTION).iter().flat_map(list).any(|name| name.eq_ignore_ascii_case(b"upgrade"))
}

fn is_let_through(protocols: &HeaderValue) -> bool {
    let is_http = |protocol: &[u8]| {
        protocol.eq_ignore_ascii_case(b"h2c")
            || protocol.get(..4).is_some_and(|name| name.eq_ignore_ascii_case(b"http"))
    };
    !list(protocols).any(|protocol| protocol.is_empty() || is_http(protocol))
}

fn list(value: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

/// What a tunnel takes and goes by.
pub struct Tunnel {
    /// Its place at the node.
    pub place: Place,
    /// Its place among the requests under way.
    pub admitted: Admitted,
    /// Tells when the node's requests are held.
    pub routes: Arc<Routes>,
    /// Times.
    pub settings: Live,
    /// The director stops.
    pub stop: CancellationToken,
}

impl Tunnel {
    /// Passes bytes between browser and node until one of the ends that the module's head names.
    pub async fn run(self, asked: Asked, node: OnUpgrade) {
        let incarnation = self.place.incarnation();
        let settings = self.settings.load_full();
        // Both have said yes; what is left is that the browser gets to know it.
        let joined =
            tokio::time::timeout(settings.idle_timeout, async { tokio::try_join!(asked.browser, node) });
        let Ok(Ok((browser, node))) = joined.await else {
            debug!("an upgraded connection was gone before it began");
            return;
        };
        let mut browser = TokioIo::new(browser);
        let last = Arc::new(Mutex::new(Instant::now()));
        let mut node = Noting { stream: TokioIo::new(node), last: Arc::clone(&last) };
        tokio::select! {
            ended = tokio::io::copy_bidirectional(&mut browser, &mut node) => {
                debug!("an upgraded connection ended: {:?}", ended.err());
            }
            () = silent(&last, settings.tunnel_timeout) => debug!("an upgraded connection has fallen silent"),
            () = handed_over(&self.routes, incarnation, settings.hold) => {
                debug!("an upgraded connection is cut: its node hands its sessions over");
            }
            () = self.stop.cancelled() => {}
        }
    }
}

/// Waits until nothing has passed for so long.
async fn silent(last: &Mutex<Instant>, silence: Duration) {
    loop {
        let end = *last.lock().unwrap_or_else(PoisonError::into_inner) + silence;
        if Instant::now() >= end {
            return;
        }
        tokio::time::sleep_until(end).await;
    }
}

/// Waits until the node's requests have been held for a part of the hold.
async fn handed_over(routes: &Routes, incarnation: Incarnation, hold: Duration) {
    let mut watch = routes.watch();
    let takes = |table: &Arc<Table>| table.takes(incarnation);
    loop {
        // The sender is in `routes`.
        let _ = watch.wait_for(|table| !takes(table)).await;
        let taken_again = tokio::time::timeout(hold / limits::TUNNEL_HOLD_SHARE, watch.wait_for(takes)).await;
        if taken_again.is_err() {
            return;
        }
    }
}

/// The node's end, which notes when something has passed: both directions go through it.
struct Noting {
    stream: TokioIo<Upgraded>,
    last: Arc<Mutex<Instant>>,
}

impl Noting {
    fn note(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }
}

impl AsyncRead for Noting {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.stream).poll_read(cx, buf);
        if poll.is_ready() {
            self.note();
        }
        poll
    }
}

impl AsyncWrite for Noting {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(cx, buf);
        if poll.is_ready() {
            self.note();
        }
        poll
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
