//! A connection whose bytes pass the framing check, and its times.

use super::fault::Fault;
use super::machine::{Event, Framing};
use crate::limits;
use crate::proxy::browser::{Browser, Upgrade};
use crate::proxy::settings::Live;
use bytes::{Buf, BytesMut};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// What hyper gets in the place of a bad request.
pub const REFUSED: &[u8] = b"GET / HTTP/1.1\r\nhost: refused.invalid\r\n\r\n";
/// The same for a HEAD, whose answer has no body.
pub const REFUSED_HEAD: &[u8] = b"HEAD / HTTP/1.1\r\nhost: refused.invalid\r\n\r\n";

/// A stream whose incoming bytes are checked.
#[derive(Debug)]
pub struct Checked<S> {
    stream: S,
    browser: Browser,
    settings: Live,
    framing: Framing,
    /// Bytes that were read and not passed on: `ready` found good, `scanned` looked at.
    held: BytesMut,
    ready: usize,
    scanned: usize,
    mode: Mode,
    waiting: Timer<Waiting>,
    stalled: Timer<()>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    Checking,
    /// A request asks for another protocol.
    Deciding,
    /// It is no HTTP any more.
    Through,
    /// Nothing passes any more: a head was bad.
    Refused,
    /// Nothing passes any more: a body was bad.
    Broken(Fault),
}

/// What is waited for, each with its own time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Waiting {
    First,
    Head,
    Next,
    /// An answer, or a body: others look at the time.
    Other,
}

/// What a look at bytes has found.
struct Scan {
    /// Bytes that may be passed on.
    good: usize,
    /// Bytes that were looked at.
    scanned: usize,
    mode: Mode,
    fault: Option<Fault>,
}

impl<S> Checked<S> {
    /// A browser's stream from its first byte on.
    pub fn new(stream: S, browser: Browser, settings: Live) -> Self {
        let framing = Framing::new(settings.load().head);
        Self {
            stream,
            browser,
            settings,
            framing,
            held: BytesMut::new(),
            ready: 0,
            scanned: 0,
            mode: Mode::Checking,
            waiting: Timer::default(),
            stalled: Timer::default(),
        }
    }

    /// Follows bytes as far as they may be looked at.
    fn scan(&mut self, bytes: &[u8]) -> Scan {
        let mut scan = Scan { good: 0, scanned: 0, mode: Mode::Checking, fault: None };
        while scan.scanned < bytes.len() && scan.mode == Mode::Checking {
            if self.framing.is_between() {
                self.framing.bound(self.settings.load().head);
            }
            let was_in_head = self.framing.is_in_head();
            match self.framing.advance(bytes.get(scan.scanned..).unwrap_or_default()) {
                Ok(taken) => {
                    scan.scanned += taken.bytes;
                    if let Some(Event::Head { asks_upgrade, .. }) = taken.event {
                        self.browser.pass();
                        if asks_upgrade {
                            self.browser.ask_upgrade();
                            scan.mode = Mode::Deciding;
                        }
                    }
                    if taken.event.is_some() || !self.framing.is_in_head() {
                        scan.good = scan.scanned;
                    }
                }
                Err(fault) => {
                    scan.fault = Some(fault);
                    scan.mode = if was_in_head { Mode::Refused } else { Mode::Broken(fault) };
                }
            }
        }
        scan
    }

    /// Looks at held bytes that were not looked at.
    fn scan_held(&mut self) {
        let held = std::mem::take(&mut self.held);
        let scan = self.scan(held.get(self.scanned..).unwrap_or_default());
        self.held = held;
        if scan.good > 0 {
            self.ready = self.scanned + scan.good;
        }
        self.scanned += scan.scanned;
        self.settle(&scan);
    }

    /// Looks at bytes that came straight into the reader's buffer, and leaves there what may pass.
    fn scan_read(&mut self, buf: &mut ReadBuf<'_>, before: usize) {
        let new = buf.filled().get(before..).unwrap_or_default();
        if !self.held.is_empty() {
            self.held.extend_from_slice(new);
            buf.set_filled(before);
            return;
        }
        let scan = self.scan(new);
        self.held.extend_from_slice(new.get(scan.good..).unwrap_or_default());
        self.scanned = scan.scanned - scan.good;
        buf.set_filled(before + scan.good);
        self.settle(&scan);
    }

    /// What a look means for the bytes to come.
    fn settle(&mut self, scan: &Scan) {
        self.mode = scan.mode;
        match (scan.mode, scan.fault) {
            (Mode::Refused, Some(fault)) => self.refuse(fault),
            (Mode::Broken(_), Some(fault)) => {
                self.held.truncate(self.ready);
                self.browser.reject(fault);
            }
            _ => {}
        }
    }

    /// In the place of the request that began behind the bytes that are ready.
    fn refuse(&mut self, fault: Fault) {
        self.mode = Mode::Refused;
        self.held.truncate(self.ready);
        self.held.extend_from_slice(if self.framing.is_head_method() { REFUSED_HEAD } else { REFUSED });
        self.ready = self.held.len();
        self.browser.reject_next(fault);
    }

    /// Passes on what is ready.
    fn pass(&mut self, buf: &mut ReadBuf<'_>) {
        let bytes = self.ready.min(buf.remaining());
        buf.put_slice(self.held.get(..bytes).unwrap_or_default());
        self.held.advance(bytes);
        self.ready -= bytes;
        self.scanned = self.scanned.saturating_sub(bytes);
    }

    /// Nothing has come: looks at the time. `true`: it is over.
    fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        if self.browser.is_busy() {
            // The end of the answer is where the time begins; nobody else would look then.
            self.browser.on_change(cx.waker());
        }
        let settings = self.settings.load();
        let (waiting, time) = match () {
            () if self.browser.is_busy() || !self.framing.is_in_head() => (Waiting::Other, None),
            () if !self.framing.is_between() => (Waiting::Head, Some(settings.head_timeout)),
            () if self.browser.is_new() => (Waiting::First, Some(settings.head_timeout)),
            () => (Waiting::Next, Some(settings.keepalive_timeout)),
        };
        self.waiting.is_over(waiting, time, cx)
    }

    /// A write that has, or has not, got on.
    fn written<T>(&mut self, poll: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if poll.is_ready() || self.mode == Mode::Through {
            self.stalled.stop();
            return poll;
        }
        let time = self.settings.load().idle_timeout;
        match self.stalled.is_over((), Some(time), cx) {
            true => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            false => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> Checked<S> {
    /// Waits for the decision about another protocol; holds what comes meanwhile, so that it is noticed if
    /// the browser goes away.
    fn poll_decision(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.browser.on_change(cx.waker());
        // It may have been made between the look at it and the line above.
        if self.browser.upgrade() != Upgrade::Asked {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let mut piece = [0; 1024];
        while self.held.len() < limits::UPGRADE_HELD_BYTES {
            let mut buf = ReadBuf::new(&mut piece);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buf))?;
            if buf.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.held.extend_from_slice(buf.filled());
        }
        Poll::Pending
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Checked<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let it = self.get_mut();
        while buf.remaining() > 0 {
            if it.ready > 0 {
                it.pass(buf);
                break;
            }
            match it.mode {
                Mode::Checking if it.scanned < it.held.len() => {
                    it.scan_held();
                    continue;
                }
                Mode::Checking => {}
                Mode::Deciding => match it.browser.upgrade() {
                    Upgrade::Asked => return it.poll_decision(cx),
                    Upgrade::No => {
                        it.mode = Mode::Checking;
                        continue;
                    }
                    Upgrade::Yes => {
                        it.mode = Mode::Through;
                        it.ready = it.held.len();
                        continue;
                    }
                },
                Mode::Through => return Pin::new(&mut it.stream).poll_read(cx, buf),
                Mode::Refused => return Poll::Pending,
                Mode::Broken(fault) => {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, fault)));
                }
            }
            let before = buf.filled().len();
            if Pin::new(&mut it.stream).poll_read(cx, buf)?.is_pending() {
                if !it.is_over(cx) {
                    return Poll::Pending;
                }
                if it.framing.is_between() {
                    // To hyper the browser has gone.
                    break;
                }
                it.refuse(Fault::Late);
                continue;
            }
            if buf.filled().len() == before {
                break;
            }
            it.scan_read(buf, before);
            if buf.filled().len() > before {
                break;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Checked<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.written(written, cx)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.written(flushed, cx)
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
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.written(written, cx)
    }
}

/// A time that begins anew whenever something else is waited for.
#[derive(Debug)]
struct Timer<W> {
    sleep: Option<Pin<Box<Sleep>>>,
    /// What is waited for now; nothing without it.
    waiting: Option<W>,
}

impl<W> Default for Timer<W> {
    fn default() -> Self {
        Self { sleep: None, waiting: None }
    }
}

impl<W: Copy + PartialEq> Timer<W> {
    /// Whether the time for what is waited for is over; the reader is woken then.
    fn is_over(&mut self, waiting: W, time: Option<Duration>, cx: &mut Context<'_>) -> bool {
        let Some(time) = time else {
            self.stop();
            return false;
        };
        let is_new = self.waiting.replace(waiting) != Some(waiting);
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep(time)));
        if is_new {
            sleep.as_mut().reset(Instant::now() + time);
        }
        sleep.as_mut().poll(cx).is_ready()
    }

    fn stop(&mut self) {
        self.waiting = None;
    }
}
