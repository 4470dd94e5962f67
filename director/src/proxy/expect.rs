//! `Expect: 100-continue`: the browser keeps its body until somebody wants it, and who wants it is the node.
//!
//! The director does not read such a body ahead. It sends the head on, the expectation with it, and asks the
//! browser for the body (hyper says `100 Continue` at the first read) when the node says `100`, or after
//! [`limits::CONTINUE_WAIT`] of silence, as RFC 9110 (10.1.1) has it for nodes that know no expectations. A
//! final answer instead goes to the browser, whose body is not read any more. So a node can refuse a large
//! body, or say that the session is elsewhere, before it was sent.

use crate::limits;
use crate::proxy::body::BodyError;
use hyper::header::EXPECT;
use hyper::{HeaderMap, StatusCode, Version};
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::sync::watch;

/// What a request's headers expect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expected {
    /// Nothing, or nothing that counts in its version.
    Nothing,
    /// `100-continue`.
    Continue,
    /// Something that nobody knows.
    Unknown,
}

/// What is known of a node's wish for the body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wanted {
    Unknown,
    Yes,
    /// It has answered without it.
    Answered,
}

/// The side of the node's answer; the body ends when the last of these is gone.
#[derive(Clone, Debug)]
pub struct Wish(Arc<watch::Sender<Wanted>>);

/// What the body waits for.
pub struct Gate(Pin<Box<dyn Future<Output = Result<(), BodyError>> + Send + Sync>>);

/// What these headers expect.
pub fn expected(headers: &HeaderMap, version: Version) -> Expected {
    let mut values = headers.get_all(EXPECT).iter();
    match (values.next(), values.next()) {
        (None, _) => Expected::Nothing,
        // HTTP/1.0 knows no interim answers.
        (Some(_), _) if version < Version::HTTP_11 => Expected::Nothing,
        (Some(value), None) if value.as_bytes().eq_ignore_ascii_case(b"100-continue") => Expected::Continue,
        _ => Expected::Unknown,
    }
}

/// The two sides of one send.
pub fn pair() -> (Wish, Gate) {
    let (sender, mut receiver) = watch::channel(Wanted::Unknown);
    let opens = async move {
        let silence = tokio::time::sleep(limits::CONTINUE_WAIT);
        tokio::pin!(silence);
        let mut may_be_silent = true;
        loop {
            match *receiver.borrow_and_update() {
                Wanted::Yes => return Ok(()),
                Wanted::Answered => may_be_silent = false,
                Wanted::Unknown => {}
            }
            tokio::select! {
                changed = receiver.changed() => {
                    changed.map_err(|_| BodyError::from("the request is answered without its body"))?;
                }
                () = &mut silence, if may_be_silent => return Ok(()),
            }
        }
    };
    (Wish(Arc::new(sender)), Gate(Box::pin(opens)))
}

impl Wish {
    /// The node has sent an interim answer.
    pub fn interim(&self, status: StatusCode) {
        if status == StatusCode::CONTINUE {
            self.0.send_replace(Wanted::Yes);
        }
    }

    /// The node has answered: who has not asked for the body by now does not want it.
    pub fn answered(&self) {
        self.0.send_if_modified(|wanted| {
            let is_unknown = *wanted == Wanted::Unknown;
            if is_unknown {
                *wanted = Wanted::Answered;
            }
            is_unknown
        });
    }
}

impl Gate {
    /// Whether the body may be read.
    ///
    /// # Errors
    /// If it never may.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        self.0.as_mut().poll(cx)
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gate")
    }
}
