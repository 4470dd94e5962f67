//! A browser's connection that does not end while the browser is still talking.
//!
//! A node may refuse a body before all of it has come, and so may the director. If the connection were closed
//! then, the kernel would answer the rest of the body with a reset, and a reset throws away what the browser
//! has not read yet: the refusal. So the director closes its own side only, and reads and drops what still
//! comes, for a bounded time; and it says `Connection: close`, so that the browser need not send the rest.

use crate::limits;
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// Bytes that are dropped at once.
const DROP_BYTES: usize = 16 << 10;

/// What the parts of the proxy know of a connection: its stream, the body of its request, the answer.
#[derive(Clone, Debug, Default)]
pub struct Unread(Arc<State>);

#[derive(Debug, Default)]
struct State {
    /// Bytes have come since the last request that was read to its end.
    any: AtomicBool,
    /// A request was answered that has not been read to its end, and will not be of use.
    refused: AtomicBool,
}

impl Unread {
    /// Whether a request was begun that has not been read to its end.
    pub fn any(&self) -> bool {
        self.0.any.load(Ordering::Relaxed)
    }

    /// The request is answered and the rest of it is of no use: it is waited for no longer than
    /// [`limits::LINGER_MAX`].
    pub fn refuse(&self) {
        self.0.refused.store(true, Ordering::Relaxed);
    }

    fn begun(&self) {
        self.0.any.store(true, Ordering::Relaxed);
    }

    fn ended(&self) {
        self.0.any.store(false, Ordering::Relaxed);
    }

    fn refused(&self) -> bool {
        self.0.refused.load(Ordering::Relaxed)
    }
}

/// A request's body that notes when it was read to its end.
#[derive(Debug)]
pub struct Asked {
    body: Incoming,
    unread: Unread,
}

impl Asked {
    /// The body of a request that came over the connection of `unread`.
    pub fn new(body: Incoming, unread: Unread) -> Self {
        if body.is_end_stream() {
            unread.ended();
        }
        Self { body, unread }
    }

    /// What is known of its connection.
    pub fn unread(&self) -> Unread {
        self.unread.clone()
    }
}

impl Body for Asked {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let is_last = match &frame {
            None => true,
            Some(Ok(_)) => self.body.is_end_stream(),
            Some(Err(_)) => false,
        };
        if is_last {
            self.unread.ended();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A connection that lingers at its end if the browser may still be sending.
#[derive(Debug)]
pub struct Lingering<S> {
    stream: S,
    unread: Unread,
    /// Since a request was refused, or since our side was closed.
    end: Option<Instant>,
    /// The next time to look at: the end, or when the browser has been silent for too long.
    timer: Option<Pin<Box<Sleep>>>,
    closed: bool,
}

impl<S> Lingering<S> {
    /// A connection, and what is known of it.
    pub fn new(stream: S, unread: Unread) -> Self {
        Self { stream, unread, end: None, timer: None, closed: false }
    }

    /// Whether the time after a refusal is over; arms the timer at the first call after it.
    fn is_over(&mut self, silence: Duration, cx: &mut Context<'_>) -> bool {
        let now = Instant::now();
        let end = *self.end.get_or_insert(now + limits::LINGER_MAX);
        let until = end.min(now + silence);
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        timer.as_mut().poll(cx).is_ready()
    }

    /// The browser was heard: its silence begins anew.
    fn heard(&mut self, silence: Duration) {
        if let (Some(timer), Some(end)) = (&mut self.timer, self.end) {
            timer.as_mut().reset(end.min(Instant::now() + silence));
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Lingering<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        if self.unread.refused() && self.is_over(limits::LINGER_MAX, cx) {
            // To the reader the browser has gone.
            return Poll::Ready(Ok(()));
        }
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        if buf.filled().len() > before {
            self.unread.begun();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Lingering<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.unread.refused() {
            // Arms the timer: a silent browser wakes nobody.
            self.is_over(limits::LINGER_MAX, cx);
        }
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.closed {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
            self.closed = true;
            // From now on its silence counts, too.
            self.timer = None;
        }
        if !self.unread.any() {
            return Poll::Ready(Ok(()));
        }
        loop {
            if self.is_over(limits::LINGER_SILENCE, cx) {
                return Poll::Ready(Ok(()));
            }
            let mut dropped = [0; DROP_BYTES];
            let mut buf = ReadBuf::new(&mut dropped);
            let read = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buf));
            // The browser has closed its side, or is gone: there is nobody to wait for.
            if read.is_err() || buf.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.heard(limits::LINGER_SILENCE);
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.unread.refused() {
            self.is_over(limits::LINGER_MAX, cx);
        }
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
}
