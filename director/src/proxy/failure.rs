//! Why a request ends without a node's answer, and what the browser is told.

use crate::metrics::Outcome;
use crate::proxy::asked::Spoil;
use crate::proxy::body::InBody;
use crate::proxy::framing::Fault;
use crate::proxy::phases::Answer;
use hyper::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};

/// Why a request ends without a node's answer.
#[derive(Debug)]
pub enum Failure {
    /// Over the limit of requests under way.
    TooMany,
    /// Its framing is wrong.
    Framing(Fault),
    /// It is for no web server.
    NotForward,
    /// It expects what nobody knows.
    Expectation,
    /// Its body is of no use.
    Body(Spoil),
    /// No node could take it in time.
    Unrouted(&'static str),
    /// Too many wait for a place at its node.
    QueueFull,
    /// It has waited for a place at its node for too long.
    QueueLate,
    /// It would have to be sent again, and its body is gone.
    NotRepeatable,
    /// Nodes send it to and fro.
    TooManyElsewhere,
    /// The node has not answered in time.
    NodeLate,
    /// The node was lost with it.
    Lost(String),
}

impl Failure {
    /// How it is counted.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::TooMany | Self::QueueFull | Self::QueueLate => Outcome::Refused,
            Self::Body(Spoil::Broken) => Outcome::BrowserGone,
            Self::Framing(_) | Self::NotForward | Self::Expectation | Self::Body(_) => Outcome::BadRequest,
            Self::Unrouted(_) | Self::NotRepeatable | Self::TooManyElsewhere => Outcome::Unrouted,
            Self::NodeLate | Self::Lost(_) => Outcome::Lost,
        }
    }

    /// What the browser is told.
    pub fn answer(self) -> Answer {
        let mut answer = Response::new(InBody::own(format!("selvage: {}\n", self.text())));
        *answer.status_mut() = self.status();
        answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        if self.status() == StatusCode::SERVICE_UNAVAILABLE {
            answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        answer
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::Framing(fault) | Self::Body(Spoil::Bad(fault)) => fault.status(),
            Self::NotForward | Self::Body(Spoil::Broken) => StatusCode::BAD_REQUEST,
            Self::Expectation => StatusCode::EXPECTATION_FAILED,
            Self::Body(Spoil::Late) => StatusCode::REQUEST_TIMEOUT,
            Self::Body(Spoil::TooLong) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooMany
            | Self::Unrouted(_)
            | Self::QueueFull
            | Self::QueueLate
            | Self::NotRepeatable
            | Self::TooManyElsewhere => StatusCode::SERVICE_UNAVAILABLE,
            Self::NodeLate => StatusCode::GATEWAY_TIMEOUT,
            Self::Lost(_) => StatusCode::BAD_GATEWAY,
        }
    }

    fn text(&self) -> String {
        let text = match self {
            Self::Framing(fault) => return format!("the request cannot be read: {fault}"),
            Self::Body(spoil) => return spoil.to_string(),
            Self::Unrouted(why) => {
                return format!("no web node can take the request now ({why}); try again");
            }
            Self::Lost(why) => {
                return format!(
                    "the web node was lost after it may have begun the request, which is not repeated ({why})"
                );
            }
            Self::TooMany => "too many requests are under way; try again",
            Self::NotForward => "this is no request that a proxy for web servers can pass on",
            Self::Expectation => "nobody here knows what the request expects",
            Self::QueueFull => "too many requests wait for the web node; try again",
            Self::QueueLate => "the web node has had no place for the request in time; try again",
            Self::NotRepeatable => {
                "the session has moved and the request body is too large to be kept for sending it again; \
                 send a request without a large body first"
            }
            Self::TooManyElsewhere => "the session is being moved; try again",
            Self::NodeLate => "the web node did not answer in time",
        };
        text.to_owned()
    }
}

impl From<Spoil> for Failure {
    fn from(spoil: Spoil) -> Self {
        Self::Body(spoil)
    }
}
