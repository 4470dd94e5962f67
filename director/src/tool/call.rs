//! Calls of the admin API.

use crate::limits::REQUEST_WAIT;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::header::{HOST, HeaderValue};
use hyper::{Method, Request, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use selvage_fabric::error::{Error, ErrorKind, Origin, Result};
use serde::de::DeserializeOwned;
use std::time::Duration;
use tokio::runtime::Runtime;

/// Longest wait for an answer that the director gives at once, or in the time that it takes itself for a
/// request whose time was not said.
const WAIT: Duration = Duration::from_secs(60);
/// How much longer than the time that the director was given its answer is waited for.
const MARGIN: Duration = Duration::from_secs(5);
/// Largest answer, bytes.
const ANSWER_BYTES_MAX: usize = 16 << 20;

const _: () = assert!(REQUEST_WAIT.as_secs() + MARGIN.as_secs() < WAIT.as_secs());

/// A client of one director.
pub(super) struct Caller {
    url: String,
    wait: Duration,
    runtime: Runtime,
    client: Client<HttpConnector, Empty<Bytes>>,
}

impl Caller {
    /// For the admin API at this URL.
    ///
    /// # Errors
    /// `Invalid` if it is none.
    pub fn new(url: String) -> Result<Self> {
        let parsed: hyper::Uri =
            url.parse().map_err(|why| super::usage(format!("\"{url}\" is no URL: {why}")))?;
        if parsed.scheme_str() != Some("http") || parsed.authority().is_none() {
            return Err(super::usage(format!("\"{url}\" is no http:// URL")));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|why| Error::os(Origin::Director, "cannot start the runtime", why))?;
        Ok(Self { url, wait: WAIT, runtime, client: Client::builder(TokioExecutor::new()).build_http() })
    }

    /// The same, for a request that the director may take so long for.
    pub fn patient(self, within: Duration) -> Self {
        Self { wait: within + MARGIN, ..self }
    }

    /// Calls and reads the answer's JSON.
    ///
    /// # Errors
    /// `Unreachable`, `Timeout`; `Invalid`, `Conflict`, `NotYet` or `Gone` with what the director says;
    /// `Corrupt` if it is another answer than expected.
    pub fn json<T: DeserializeOwned>(&self, method: Method, path: &str) -> Result<T> {
        self.parse(&self.text(method, path)?)
    }

    /// The JSON of an answer.
    ///
    /// # Errors
    /// `Corrupt` if it is another answer than expected.
    pub fn parse<T: DeserializeOwned>(&self, text: &str) -> Result<T> {
        serde_json::from_str(text).map_err(|why| {
            let what = format!("{} answers otherwise than a director of this version", self.url);
            Error::new(ErrorKind::Corrupt, Origin::Director, what).with_source(why)
        })
    }

    /// Calls and returns the answer's text.
    ///
    /// # Errors
    /// As [`Self::json`].
    pub fn text(&self, method: Method, path: &str) -> Result<String> {
        let late = || {
            let what =
                format!("the director at {} does not answer within {} s", self.url, self.wait.as_secs());
            Error::new(ErrorKind::Timeout, Origin::Director, what)
        };
        let exchange = self.exchange(method, path);
        self.runtime.block_on(async { tokio::time::timeout(self.wait, exchange).await.map_err(|_| late())? })
    }

    async fn exchange(&self, method: Method, path: &str) -> Result<String> {
        let error = |kind, why: String| Error::new(kind, Origin::Director, why);
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url))
            // Names are what foreign pages come by: see the admin API.
            .header(HOST, HeaderValue::from_static("localhost"))
            .body(Empty::<Bytes>::new())
            .map_err(|why| super::usage(format!("\"{path}\" cannot be asked for: {why}")))?;
        let answer = self.client.request(request).await.map_err(|why| {
            let text = format!(
                "no director answers at {}; is it running, and is this its admin_listen? (--admin URL or \
                 --config FILE say where it is)",
                self.url
            );
            error(ErrorKind::Unreachable, text).with_source(why)
        })?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body =
            body.map_err(|why| error(ErrorKind::Unreachable, format!("the answer broke off: {why}")))?;
        let text = String::from_utf8_lossy(&body.to_bytes()).into_owned();
        if status.is_success() {
            return Ok(text);
        }
        let said: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        let said =
            said["error"].as_str().map_or_else(|| format!("the director answered {status}"), str::to_owned);
        let kind = match status {
            StatusCode::BAD_REQUEST => ErrorKind::Invalid,
            StatusCode::NOT_FOUND => ErrorKind::Gone,
            StatusCode::SERVICE_UNAVAILABLE => ErrorKind::NotYet,
            _ => ErrorKind::Conflict,
        };
        Err(error(kind, said))
    }
}
