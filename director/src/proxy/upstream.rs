//! A node incarnation as the proxy sees it: pooled connections that can all be cut at once, and its load.

use crate::proxy::body::OutBody;
use crate::{limits, remote};
use hyper::Uri;
use hyper::http::uri::Authority;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use selvage_fabric::ident::Incarnation;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tower_service::Service;

/// A node incarnation.
#[derive(Debug)]
pub struct Upstream {
    /// Its life.
    pub incarnation: Incarnation,
    /// Where it serves.
    pub authority: Authority,
    /// Its connections.
    pub client: Client<Connector, OutBody>,
    /// Sessions that it hosts: what it last reported, and those that were sent to it since.
    pub sessions: AtomicU64,
    cut: CancellationToken,
    in_flight: AtomicUsize,
    idle: Notify,
}

/// A request's place at a node; the node is not idle before it is dropped.
#[derive(Debug)]
pub struct Place(Arc<Upstream>);

impl Upstream {
    /// A node that has come up. Connecting to it may take `connect_wait`.
    pub fn new(incarnation: Incarnation, authority: Authority, connect_wait: Duration) -> Arc<Self> {
        let cut = CancellationToken::new();
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(limits::POOL_IDLE)
            .build(Connector { cut: cut.clone(), wait: connect_wait });
        Arc::new(Self {
            incarnation,
            authority,
            client,
            sessions: AtomicU64::new(0),
            cut,
            in_flight: AtomicUsize::new(0),
            idle: Notify::new(),
        })
    }

    /// Takes a place.
    pub fn enter(self: &Arc<Self>) -> Place {
        self.in_flight.fetch_add(1, Ordering::SeqCst);
        Place(Arc::clone(self))
    }

    /// Sessions and requests under way: what counts for new sessions.
    pub fn load(&self) -> u64 {
        let in_flight = self.in_flight.load(Ordering::Relaxed) as u64;
        self.sessions.load(Ordering::Relaxed).saturating_add(in_flight)
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
            if self.in_flight.load(Ordering::SeqCst) == 0 {
                return;
            }
            notified.await;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.0.in_flight.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}

/// Opens connections to a node that end when the node is cut.
#[derive(Clone, Debug)]
pub struct Connector {
    cut: CancellationToken,
    wait: Duration,
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
        let (cut, wait) = (self.cut.child_token(), self.wait);
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
