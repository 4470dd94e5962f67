//! A node incarnation as the proxy sees it: pooled connections that can all be cut at once, its load, and its
//! places (`maxconn`) with the queue before them.

use crate::proxy::body::OutBody;
use crate::{limits, remote};
use arc_swap::ArcSwap;
use hyper::Uri;
use hyper::http::uri::Authority;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use selvage_fabric::ident::Incarnation;
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tower_service::Service;

/// A node incarnation.
#[derive(Debug)]
pub struct Upstream {
    /// Its name in the configuration.
    pub name: String,
    /// Its life.
    pub incarnation: Incarnation,
    /// Where it serves.
    authority: ArcSwap<Authority>,
    connect_wait: Arc<ArcSwap<Duration>>,
    /// Its connections.
    pub client: Client<Connector, OutBody>,
    /// Sessions that it hosts: what it last reported, and those that were sent to it since.
    pub sessions: AtomicU64,
    cut: CancellationToken,
    line: Mutex<Line>,
    idle: Notify,
}

/// Who is under way at the node, and who waits for that, in their order.
#[derive(Debug, Default)]
struct Line {
    /// Places in all; no limit without it.
    places_max: Option<usize>,
    under_way: usize,
    /// Some may have given up.
    waiting: VecDeque<oneshot::Sender<Place>>,
}

/// A request's place at a node; the node is not idle before it is dropped. Then it is the next one's who
/// waits.
#[derive(Debug)]
pub struct Place(Option<Arc<Upstream>>);

/// What a request gets that asks for a place.
#[derive(Debug)]
pub enum Entry {
    /// A place.
    Now(Place),
    /// A place in the queue: it gives the place. Dropping it gives up.
    Later(oneshot::Receiver<Place>),
    /// Too many wait already.
    Full,
}

impl Upstream {
    /// A node that has come up. Connecting to it may take `connect_wait`.
    pub fn new(
        name: &str,
        incarnation: Incarnation,
        authority: Authority,
        connect_wait: Duration,
    ) -> Arc<Self> {
        let cut = CancellationToken::new();
        let connect_wait = Arc::new(ArcSwap::from_pointee(connect_wait));
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(limits::POOL_IDLE)
            .build(Connector { cut: cut.clone(), wait: Arc::clone(&connect_wait) });
        Arc::new(Self {
            name: name.to_owned(),
            incarnation,
            authority: ArcSwap::from_pointee(authority),
            connect_wait,
            client,
            sessions: AtomicU64::new(0),
            cut,
            line: Mutex::default(),
            idle: Notify::new(),
        })
    }

    /// Where it serves now.
    pub fn authority(&self) -> Authority {
        (**self.authority.load()).clone()
    }

    /// From now on it serves there. What is under way where it served before goes on; connections without a
    /// request are not used any more, as they are pooled by their address.
    pub fn moved(&self, authority: Authority) {
        if **self.authority.load() != authority {
            self.authority.store(Arc::new(authority));
        }
    }

    /// Takes a place, or one of at most `queue_max` places in the queue.
    pub fn enter(self: &Arc<Self>, queue_max: usize) -> Entry {
        let mut line = self.line();
        self.advance(&mut line);
        if line.has_room() {
            line.under_way += 1;
            return Entry::Now(Place(Some(Arc::clone(self))));
        }
        if line.waiting.len() >= queue_max {
            line.waiting.retain(|waiting| !waiting.is_closed());
        }
        if line.waiting.len() >= queue_max {
            return Entry::Full;
        }
        let (sender, receiver) = oneshot::channel();
        line.waiting.push_back(sender);
        Entry::Later(receiver)
    }

    /// From now on it has so many places, no limit without it, and connecting to it may take `connect_wait`.
    pub fn configure(self: &Arc<Self>, places_max: Option<usize>, connect_wait: Duration) {
        self.connect_wait.store(Arc::new(connect_wait));
        let mut line = self.line();
        line.places_max = places_max;
        self.advance(&mut line);
    }

    /// Whether a request would get a place at once.
    pub fn has_room(&self) -> bool {
        self.line().has_room()
    }

    /// Sessions, and requests under way or waiting: what counts for new sessions.
    pub fn load(&self) -> u64 {
        let line = self.line();
        let requests = line.under_way + line.waiting.len();
        drop(line);
        self.sessions.load(Ordering::Relaxed).saturating_add(requests as u64)
    }

    /// Cuts every connection, for ever.
    pub fn cut(&self) {
        self.cut.cancel();
    }

    /// Whether its connections were cut.
    pub fn is_cut(&self) -> bool {
        self.cut.is_cancelled()
    }

    /// Waits until no request is under way.
    pub async fn idle(&self) {
        loop {
            let notified = self.idle.notified();
            if self.is_idle() {
                return;
            }
            notified.await;
        }
    }

    /// Whether no request is under way.
    pub fn is_idle(&self) -> bool {
        self.line().under_way == 0
    }

    /// Gives places that are free to those who wait.
    fn advance(self: &Arc<Self>, line: &mut Line) {
        while line.has_room() {
            let Some(next) = line.waiting.pop_front() else { return };
            match next.send(Place(Some(Arc::clone(self)))) {
                Ok(()) => line.under_way += 1,
                // It has given up; the place was never counted.
                Err(mut place) => place.0 = None,
            }
        }
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    fn has_room(&self) -> bool {
        self.places_max.is_none_or(|places_max| self.under_way < places_max)
    }
}

impl Place {
    /// The life of the node where it is.
    pub fn incarnation(&self) -> Incarnation {
        self.0.as_ref().map_or(Incarnation::NONE, |upstream| upstream.incarnation)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(upstream) = self.0.take() else { return };
        let mut line = upstream.line();
        line.under_way -= 1;
        upstream.advance(&mut line);
        if line.under_way == 0 {
            upstream.idle.notify_waiters();
        }
    }
}

/// Opens connections to a node that end when the node is cut.
#[derive(Clone, Debug)]
pub struct Connector {
    cut: CancellationToken,
    wait: Arc<ArcSwap<Duration>>,
}

impl Service<Uri> for Connector {
    type Response = CutStream;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<CutStream>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        // Each connection has a token of its own, so that looking at it disturbs no other.
        let (cut, wait) = (self.cut.child_token(), **self.wait.load());
        Box::pin(async move {
            let authority = uri.authority().ok_or(io::ErrorKind::InvalidInput)?;
            let connecting = TcpStream::connect(authority.as_str());
            let stream = tokio::select! {
                () = cut.cancelled() => return Err(over()),
                stream = tokio::time::timeout(wait, connecting) => {
                    stream.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??
                }
            };
            remote::prepare(&stream, limits::UPSTREAM_VANISHED)?;
            Ok(CutStream { stream: TokioIo::new(stream), cut: Box::pin(cut.cancelled_owned()) })
        })
    }
}

/// A connection that fails, in both directions, as soon as its node is cut.
pub struct CutStream {
    stream: TokioIo<TcpStream>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl CutStream {
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.cut.as_mut().poll(cx) {
            Poll::Ready(()) => Err(over()),
            Poll::Pending => Ok(()),
        }
    }
}

fn over() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the node's incarnation is over")
}

impl Read for CutStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl Write for CutStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
}

impl Connection for CutStream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}
