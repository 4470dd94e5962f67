//! A browser's connection that does not end while the browser is still talking.
//!
//! A node may refuse a body before all of it has come, and so may the director. If the connection were closed
//! then, the kernel would answer the rest of the body with a reset, and a reset throws away what the browser
//! has not read yet: the refusal. So the director closes its own side only, and reads and drops what still
//! comes, for a bounded time; and it says `Connection: close`, so that the browser need not send the rest. So
//! it is with the next request of a browser that does not wait for answers, behind the last one that is
//! answered.

use crate::limits;
use crate::proxy::browser::{Browser, Upgrade};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// Bytes that are dropped at once.
const DROP_BYTES: usize = 16 << 10;

/// A connection that lingers at its end if the browser may still be sending.
#[derive(Debug)]
pub struct Lingering<S> {
    stream: S,
    browser: Browser,
    /// Since a request was refused, or since our side was closed.
    end: Option<Instant>,
    /// The next time to look at: the end, or when the browser has been silent for too long.
    timer: Option<Pin<Box<Sleep>>>,
    closed: bool,
}

impl<S> Lingering<S> {
    /// A connection, and what is known of it.
    pub fn new(stream: S, browser: Browser) -> Self {
        Self { stream, browser, end: None, timer: None, closed: false }
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
        if self.browser.is_refused() && self.is_over(limits::LINGER_MAX, cx) {
            // To the reader the browser has gone.
            return Poll::Ready(Ok(()));
        }
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        if buf.filled().len() > before {
            self.browser.heard();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Lingering<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.browser.is_refused() {
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
        // At the other end of a tunnel it is up to the two how it ends.
        if self.browser.upgrade() == Upgrade::Yes {
            return Poll::Ready(Ok(()));
        }
        loop {
            if self.browser.is_unread() && self.is_over(limits::LINGER_SILENCE, cx) {
                return Poll::Ready(Ok(()));
            }
            let mut dropped = [0; DROP_BYTES];
            let mut buf = ReadBuf::new(&mut dropped);
            let read = match Pin::new(&mut self.stream).poll_read(cx, &mut buf) {
                // Whatever it has sent was read.
                Poll::Pending if !self.browser.is_unread() => return Poll::Ready(Ok(())),
                read => ready!(read),
            };
            // The browser has closed its side, or is gone: there is nobody to wait for.
            if read.is_err() || buf.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.browser.heard();
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
        if self.browser.is_refused() {
            self.is_over(limits::LINGER_MAX, cx);
        }
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
}
