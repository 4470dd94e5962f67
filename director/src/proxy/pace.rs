//! Whether a browser takes its answer, for the streams of an HTTP/2 connection.
//!
//! hyper asks an answer's body for its next frame only when the last one has gone into the browser's window,
//! and waits for that without a time limit. A browser that never opens its window would keep a place at the
//! node and one among the requests under way for ever, so each stream has a time limit of its own here: what
//! is too slow is dropped with all that it holds, which resets that stream and no other. In HTTP/1 the
//! connection's writes stall then, and the framing check sees it. Callers: [`crate::proxy::http2`], which
//! starts the streams, and [`crate::proxy::logged`], which is the body that is asked.

use hyper::rt::Executor;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

tokio::task_local! {
    /// Of the stream whose task runs.
    static PACE: Pace;
}

/// When the browser must have taken what it was given of an answer; no such time while it is the node's turn.
#[derive(Clone, Debug, Default)]
pub struct Pace(Arc<Mutex<Option<Instant>>>);

impl Pace {
    /// Of the stream whose task runs; of nobody if it is none.
    pub fn present() -> Self {
        PACE.try_with(Self::clone).unwrap_or_default()
    }

    /// It is the browser's turn, for so long.
    pub fn give(&self, time: Duration) {
        self.set(Some(Instant::now() + time));
    }

    /// The browser has taken everything.
    pub fn taken(&self) {
        self.set(None);
    }

    fn set(&self, due: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = due;
    }

    fn due(&self) -> Option<Instant> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs a connection's streams, each until its end or until its browser is too slow.
#[derive(Clone, Copy, Debug)]
pub struct Streams;

impl<F> Executor<F> for Streams
where
    F: Future + Send + 'static,
{
    fn execute(&self, stream: F) {
        tokio::spawn(async move {
            let mut stream = std::pin::pin!(stream);
            let (pace, mut timer) = (Pace::default(), None);
            std::future::poll_fn(|cx| {
                let polled = PACE.sync_scope(pace.clone(), || stream.as_mut().poll(cx));
                if polled.is_ready() { Poll::Ready(()) } else { late(&pace, &mut timer, cx) }
            })
            .await;
        });
    }
}

/// Waits until the browser is too slow. The timer is moved only when it goes off, not with every frame.
fn late(pace: &Pace, timer: &mut Option<Pin<Box<Sleep>>>, cx: &mut Context<'_>) -> Poll<()> {
    loop {
        // Without one the stream will be polled again before there can be one.
        let Some(due) = pace.due() else { return Poll::Pending };
        let timer = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        ready!(timer.as_mut().poll(cx));
        if due <= Instant::now() {
            return Poll::Ready(());
        }
        timer.as_mut().reset(due);
    }
}
