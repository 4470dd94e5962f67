//! Request bodies that can be sent again, and response bodies that keep their places until they have ended.

use crate::proxy::asked::{Asked, Spoil};
use crate::proxy::browser::Answering;
use crate::proxy::expect::{Gate, Wish};
use crate::proxy::headers;
use crate::proxy::upstream::Place;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::HeaderMap;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::Sleep;

/// Error of a body: the peer's, or that a body that can be read once was read already.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// A request's body as the proxy holds it.
#[derive(Debug)]
pub enum Kept {
    /// All of it: it can be sent any number of times.
    Whole(Bytes, Option<HeaderMap>),
    /// Too much to keep, or not asked for yet: it can be sent again only while nobody has read from it.
    Once(Arc<Mutex<Option<Streamed>>>),
}

/// A body that is passed on as it comes: what was read already, then the rest.
#[derive(Debug)]
pub struct Streamed {
    first: VecDeque<Bytes>,
    rest: Asked,
}

impl Kept {
    /// Reads the body if it has at most `bytes_max` bytes, which may take `time`, and otherwise keeps the way
    /// to it.
    ///
    /// # Errors
    /// If the browser is too slow, or gone, or sends what it may not.
    pub async fn take(body: Asked, bytes_max: usize, time: Duration) -> Result<Self, Spoil> {
        if body.is_end_stream() {
            return Ok(Self::Whole(Bytes::new(), None));
        }
        if body.size_hint().lower() > bytes_max as u64 {
            return Ok(Self::unread(body));
        }
        tokio::time::timeout(time, Self::read(body, bytes_max)).await.unwrap_or(Err(Spoil::Late))
    }

    /// A body that nobody reads before a node wants it.
    pub fn unread(body: Asked) -> Self {
        Self::once(VecDeque::new(), body)
    }

    async fn read(mut body: Asked, bytes_max: usize) -> Result<Self, Spoil> {
        let mut pieces = VecDeque::new();
        let mut bytes = 0;
        let mut trailers = None;
        while let Some(frame) = body.frame().await {
            match frame?.into_data() {
                Ok(piece) => {
                    bytes += piece.len();
                    pieces.push_back(piece);
                    if bytes > bytes_max {
                        return Ok(Self::once(pieces, body));
                    }
                }
                Err(frame) => trailers = frame.into_trailers().ok().filter(|trailers| !trailers.is_empty()),
            }
        }
        if pieces.len() == 1 {
            return Ok(Self::Whole(pieces.pop_front().unwrap_or_default(), trailers));
        }
        let mut whole = BytesMut::with_capacity(bytes);
        pieces.iter().for_each(|piece| whole.extend_from_slice(piece));
        Ok(Self::Whole(whole.freeze(), trailers))
    }

    fn once(first: VecDeque<Bytes>, rest: Asked) -> Self {
        Self::Once(Arc::new(Mutex::new(Some(Streamed { first, rest }))))
    }

    /// A body to send; `None` if it was read from already and cannot be had again.
    pub fn again(&self) -> Option<OutBody> {
        match self {
            Self::Whole(bytes, None) if bytes.is_empty() => Some(OutBody::Whole(None, None)),
            Self::Whole(bytes, trailers) => Some(OutBody::Whole(Some(bytes.clone()), trailers.clone())),
            Self::Once(shared) => {
                let hint = match &*shared.lock().unwrap_or_else(PoisonError::into_inner) {
                    Some(streamed) => streamed.size_hint(),
                    None => return None,
                };
                Some(OutBody::Shared { shared: Arc::clone(shared), hint, gate: None })
            }
        }
    }

    /// Trailers that have come already.
    pub fn trailers(&self) -> Option<&HeaderMap> {
        match self {
            Self::Whole(_, trailers) => trailers.as_ref(),
            Self::Once(_) => None,
        }
    }
}

impl Streamed {
    fn size_hint(&self) -> SizeHint {
        let read: u64 = self.first.iter().map(|piece| piece.len() as u64).sum();
        match self.rest.size_hint().exact() {
            Some(rest) => SizeHint::with_exact(read + rest),
            None => SizeHint::default(),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(piece) = self.first.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        Pin::new(&mut self.rest).poll_frame(cx).map_err(Into::into)
    }
}

/// A request body on its way to a node.
#[derive(Debug)]
pub enum OutBody {
    /// Bytes, and trailers.
    Whole(Option<Bytes>, Option<HeaderMap>),
    /// A streamed body that nobody has read from yet.
    Shared {
        /// Where it is taken from at the first read.
        shared: Arc<Mutex<Option<Streamed>>>,
        /// Its size.
        hint: SizeHint,
        /// What the first read waits for.
        gate: Option<Gate>,
    },
    /// A streamed body that is this one's now.
    Taken(Streamed),
}

impl OutBody {
    /// Nothing of a streamed body is read before the gate opens.
    pub fn wait_for(&mut self, opens: Gate) {
        if let Self::Shared { gate, .. } = self {
            *gate = Some(opens);
        }
    }
}

impl Body for OutBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Self::Shared { shared, gate, .. } = &mut *self {
            if let Some(gate) = gate {
                ready!(gate.poll(cx))?;
            }
            let taken = shared.lock().unwrap_or_else(PoisonError::into_inner).take();
            match taken {
                Some(streamed) => *self = Self::Taken(streamed),
                None => return Poll::Ready(Some(Err("the body was read by an earlier try".into()))),
            }
        }
        match &mut *self {
            Self::Whole(bytes, trailers) => {
                Poll::Ready(match bytes.take().filter(|bytes| !bytes.is_empty()) {
                    Some(bytes) => Some(Ok(Frame::data(bytes))),
                    None => trailers.take().map(|trailers| Ok(Frame::trailers(trailers))),
                })
            }
            Self::Taken(streamed) => streamed.poll(cx),
            Self::Shared { .. } => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None, None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            // Only a body in chunks can have trailers.
            Self::Whole(_, Some(_)) => SizeHint::default(),
            Self::Whole(bytes, None) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::Shared { hint, .. } => *hint,
            Self::Taken(streamed) => streamed.size_hint(),
        }
    }
}

/// A response body on its way to a browser.
#[derive(Debug)]
pub struct InBody<P> {
    from: From<P>,
    /// The answer has not ended while this is here.
    answering: Option<Answering>,
}

#[derive(Debug)]
enum From<P> {
    /// The director's own words.
    Own(Option<Bytes>),
    /// A node's, and the time of its silence.
    Node(Box<FromNode<P>>, Option<Pin<Box<Sleep>>>),
}

/// A node's body, with what the request takes until it has ended.
#[derive(Debug)]
pub struct FromNode<P> {
    /// The body.
    pub body: Incoming,
    /// Its place at the node.
    pub place: Place,
    /// Its place among the requests under way.
    pub admitted: P,
    /// The word that the request's body is, or was, wanted: without it that body ends, too.
    pub wish: Option<Wish>,
    /// Longest silence.
    pub silence: Duration,
}

impl<P> InBody<P> {
    /// The director's own words.
    pub fn own(text: String) -> Self {
        let bytes = Some(Bytes::from(text)).filter(|bytes| !bytes.is_empty());
        Self { from: From::Own(bytes), answering: None }
    }

    /// A node's body.
    pub fn node(node: FromNode<P>) -> Self {
        Self { from: From::Node(Box::new(node), None), answering: None }
    }

    /// The answer ends with this.
    pub fn answer(&mut self, answering: Answering) {
        self.answering = Some(answering);
    }
}

impl<P: Unpin> Body for InBody<P> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let (node, timer) = match &mut self.from {
            From::Own(bytes) => return Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            From::Node(node, timer) => (node, timer),
        };
        if let Poll::Ready(frame) = Pin::new(&mut node.body).poll_frame(cx) {
            *timer = None;
            let frame = frame.map(|frame| frame.map(headers::without_bad_trailers).map_err(Into::into));
            return Poll::Ready(frame);
        }
        let silence = node.silence;
        let timer = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(silence)));
        timer.as_mut().poll(cx).map(|()| Some(Err("the web node has fallen silent".into())))
    }

    fn is_end_stream(&self) -> bool {
        match &self.from {
            From::Own(bytes) => bytes.is_none(),
            From::Node(node, _) => node.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.from {
            From::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            From::Node(node, _) => node.body.size_hint(),
        }
    }
}
