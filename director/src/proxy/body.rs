//! Request bodies that can be sent again, and response bodies that keep their places until they have ended.

use crate::limits;
use crate::proxy::linger::Asked;
use crate::proxy::upstream::Place;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

/// Error of a body: the peer's, or that a body that can be read once was read already.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// A request's body as the proxy holds it.
#[derive(Debug)]
pub enum Kept {
    /// All of it: it can be sent any number of times.
    Whole(Bytes),
    /// Too much to keep: it can be sent again only while nobody has read from it.
    Once(Arc<Mutex<Option<Streamed>>>),
}

/// A body that is passed on as it comes: what was read already, then the rest.
#[derive(Debug)]
pub struct Streamed {
    first: VecDeque<Bytes>,
    rest: Asked,
}

/// Why a body could not be taken.
#[derive(Debug)]
pub enum Unkept {
    /// The client did not send it in time.
    Late,
    /// The client's connection broke.
    Broken(hyper::Error),
}

impl Kept {
    /// Reads the body if it has at most `bytes_max` bytes, and otherwise keeps the way to it.
    ///
    /// # Errors
    /// If the client is too slow, or gone.
    pub async fn take(body: Asked, bytes_max: usize) -> Result<Self, Unkept> {
        if body.is_end_stream() {
            return Ok(Self::Whole(Bytes::new()));
        }
        if body.size_hint().lower() > bytes_max as u64 {
            return Ok(Self::once(VecDeque::new(), body));
        }
        match tokio::time::timeout(limits::BODY_WAIT, Self::read(body, bytes_max)).await {
            Ok(kept) => kept.map_err(Unkept::Broken),
            Err(_) => Err(Unkept::Late),
        }
    }

    async fn read(mut body: Asked, bytes_max: usize) -> Result<Self, hyper::Error> {
        let mut pieces = VecDeque::new();
        let mut bytes = 0;
        while let Some(frame) = body.frame().await {
            // Trailers are of no use to a node.
            let Ok(piece) = frame?.into_data() else { continue };
            bytes += piece.len();
            pieces.push_back(piece);
            if bytes > bytes_max {
                return Ok(Self::once(pieces, body));
            }
        }
        if pieces.len() == 1 {
            return Ok(Self::Whole(pieces.pop_front().unwrap_or_default()));
        }
        let mut whole = BytesMut::with_capacity(bytes);
        pieces.iter().for_each(|piece| whole.extend_from_slice(piece));
        Ok(Self::Whole(whole.freeze()))
    }

    fn once(first: VecDeque<Bytes>, rest: Asked) -> Self {
        Self::Once(Arc::new(Mutex::new(Some(Streamed { first, rest }))))
    }

    /// A body to send; `None` if it was read from already and cannot be had again.
    pub fn again(&self) -> Option<OutBody> {
        match self {
            Self::Whole(bytes) if bytes.is_empty() => Some(OutBody::Whole(None)),
            Self::Whole(bytes) => Some(OutBody::Whole(Some(bytes.clone()))),
            Self::Once(shared) => {
                let hint = match &*shared.lock().unwrap_or_else(PoisonError::into_inner) {
                    Some(streamed) => streamed.size_hint(),
                    None => return None,
                };
                Some(OutBody::Shared { shared: Arc::clone(shared), hint })
            }
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
    /// Bytes.
    Whole(Option<Bytes>),
    /// A streamed body that nobody has read from yet.
    Shared {
        /// Where it is taken from at the first read.
        shared: Arc<Mutex<Option<Streamed>>>,
        /// Its size.
        hint: SizeHint,
    },
    /// A streamed body that is this one's now.
    Taken(Streamed),
}

impl Body for OutBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Self::Shared { shared, .. } = &*self {
            let taken = shared.lock().unwrap_or_else(PoisonError::into_inner).take();
            match taken {
                Some(streamed) => *self = Self::Taken(streamed),
                None => return Poll::Ready(Some(Err("the body was read by an earlier try".into()))),
            }
        }
        match &mut *self {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Taken(streamed) => streamed.poll(cx),
            Self::Shared { .. } => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Shared { hint, .. } => *hint,
            Self::Taken(streamed) => streamed.size_hint(),
        }
    }
}

/// A response body on its way to a browser.
#[derive(Debug)]
pub enum InBody<P> {
    /// The director's own words.
    Own(Option<Bytes>),
    /// A node's, with the places that the request takes until it has ended.
    Node {
        /// The body.
        body: Incoming,
        /// Its place at the node.
        place: Place,
        /// Its place among the requests under way.
        admitted: P,
    },
}

impl<P: Unpin> Body for InBody<P> {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut *self {
            Self::Own(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Node { body, .. } => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(bytes) => bytes.is_none(),
            Self::Node { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Node { body, .. } => body.size_hint(),
        }
    }
}
