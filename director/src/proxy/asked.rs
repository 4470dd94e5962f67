//! A request's body on its way in: its limits, and a note of where it ended or what went wrong with it.
//!
//! What goes wrong is found by whoever reads the body, which may be the connection to a node; the phases
//! look at the note ([`Progress`]), so that the browser is told its own mistake and not that a node was lost,
//! and a node is not late while the body is still on its way.

use crate::proxy::browser::Browser;
use crate::proxy::framing::Fault;
use crate::proxy::headers;
use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

/// What is known of a body while somebody else reads it.
#[derive(Debug, Default)]
pub struct Progress {
    spoil: OnceLock<Spoil>,
    heard: Mutex<Option<Instant>>,
    whole: AtomicBool,
}

impl Progress {
    /// What was wrong with it.
    pub fn spoil(&self) -> Option<Spoil> {
        self.spoil.get().copied()
    }

    /// Whether it has been read to its end. What the connection has got since then is of another request.
    pub fn is_whole(&self) -> bool {
        self.whole.load(Ordering::Relaxed)
    }

    /// When a piece of it has come last.
    pub fn heard(&self) -> Option<Instant> {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a body is of no use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Spoil {
    /// The browser did not send it in time.
    Late,
    /// The browser's connection broke.
    Broken,
    /// It is longer than is allowed.
    TooLong,
    /// Its framing is wrong.
    Bad(Fault),
}

/// A request's body.
#[derive(Debug)]
pub struct Asked {
    body: Incoming,
    browser: Browser,
    /// Bytes that may still come; no limit without it.
    left: Option<u64>,
    silence: Option<Duration>,
    timer: Option<Pin<Box<Sleep>>>,
    progress: Arc<Progress>,
}

impl Asked {
    /// The body of a request that came over the connection of `browser`.
    pub fn new(body: Incoming, browser: Browser) -> Self {
        let is_whole = body.is_end_stream();
        let asked = Self { body, browser, left: None, silence: None, timer: None, progress: Arc::default() };
        if is_whole {
            asked.read();
        }
        asked
    }

    /// From now on no more than `bytes_max` in all are taken, and no longer silence than `silence` is waited
    /// for.
    ///
    /// # Errors
    /// If it says that it has more.
    pub fn bound(&mut self, bytes_max: Option<u64>, silence: Duration) -> Result<(), Spoil> {
        (self.left, self.silence) = (bytes_max, Some(silence));
        match bytes_max {
            Some(bytes_max) if self.body.size_hint().lower() > bytes_max => Err(Spoil::TooLong),
            _ => Ok(()),
        }
    }

    /// What is known of its connection.
    pub fn browser(&self) -> Browser {
        self.browser.clone()
    }

    /// What is noted of it.
    pub fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.progress)
    }

    /// It has been read to its end.
    fn read(&self) {
        self.progress.whole.store(true, Ordering::Relaxed);
        self.browser.read();
    }

    fn spoil(&self, spoil: Spoil) -> Poll<Option<Result<Frame<Bytes>, Spoil>>> {
        Poll::Ready(Some(Err(*self.progress.spoil.get_or_init(|| spoil))))
    }

    fn is_late(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(silence) = self.silence else { return false };
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(silence)));
        timer.as_mut().poll(cx).is_ready()
    }

    fn heard(&mut self) {
        *self.progress.heard.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        if let (Some(timer), Some(silence)) = (&mut self.timer, self.silence) {
            timer.as_mut().reset(Instant::now() + silence);
        }
    }
}

impl Body for Asked {
    type Data = Bytes;
    type Error = Spoil;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Spoil>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
            return if self.is_late(cx) { self.spoil(Spoil::Late) } else { Poll::Pending };
        };
        self.heard();
        let Some(frame) = frame else {
            self.read();
            return Poll::Ready(None);
        };
        let Ok(frame) = frame else {
            let fault = self.browser.fault();
            return self.spoil(fault.map_or(Spoil::Broken, Spoil::Bad));
        };
        if self.body.is_end_stream() {
            self.read();
        }
        if let (Some(data), Some(left)) = (frame.data_ref(), self.left) {
            match left.checked_sub(data.len() as u64) {
                Some(left) => self.left = Some(left),
                None => return self.spoil(Spoil::TooLong),
            }
        }
        Poll::Ready(Some(Ok(headers::without_bad_trailers(frame))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl fmt::Display for Spoil {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Late => f.write_str("the request body did not come in time"),
            Self::Broken => f.write_str("the request body broke off"),
            Self::TooLong => f.write_str("the request body is too long"),
            Self::Bad(fault) => write!(f, "the request body cannot be read: {fault}"),
        }
    }
}

impl std::error::Error for Spoil {}
