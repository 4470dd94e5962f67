//! An answer on its way to the browser, whose end the access log and the connection wait for.

use crate::access_log::Entry;
use crate::proxy::pace::Pace;
use crate::proxy::visits::Visit;
use hyper::body::{Body, Bytes, Frame, SizeHint};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

/// The body of an answer; the request is over when it is dropped.
#[derive(Debug)]
pub struct Logged<B> {
    body: B,
    entry: Option<Entry>,
    pace: Pace,
    /// Longest time for a browser to take what it was given.
    patience: Duration,
    _visit: Visit,
}

impl<B: Body> Logged<B> {
    /// The answer to the request of `entry`, which knows its status already.
    pub fn new(body: B, entry: Option<Entry>, visit: Visit, patience: Duration) -> Self {
        let mut logged = Self { body, entry, pace: Pace::present(), patience, _visit: visit };
        logged.look();
        logged
    }

    /// Notes the body's end: nobody asks for more after the last frame.
    fn look(&mut self) {
        if self.body.is_end_stream()
            && let Some(entry) = &mut self.entry
        {
            entry.whole = true;
        }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Logged<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        // Who asks for more has taken what there was.
        self.pace.taken();
        let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else { return Poll::Pending };
        self.pace.give(self.patience);
        if let Some(entry) = &mut self.entry {
            match &frame {
                Some(Ok(frame)) => entry.bytes += frame.data_ref().map_or(0, |data| data.len() as u64),
                Some(Err(_)) => {}
                None => entry.whole = true,
            }
        }
        self.look();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
