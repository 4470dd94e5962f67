//! One call of the admin API.

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Method, Request};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use selvage_fabric::error::{Error, ErrorKind, Origin, Result};
use std::time::Duration;

/// Longest wait for an answer; a drain waits for the adoption.
const WAIT: Duration = Duration::from_secs(60);
/// Largest answer, bytes.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// Calls and returns the answer's text.
///
/// # Errors
/// `Unreachable`, `Timeout`, or `Conflict` with what the director says.
pub(super) fn call(method: Method, url: &str) -> Result<String> {
    let error = |kind, why: String| Error::new(kind, Origin::Director, why);
    let request = Request::builder().method(method).uri(url).body(Empty::<Bytes>::new());
    let request = request.map_err(|why| error(ErrorKind::Invalid, format!("\"{url}\" is no URL: {why}")))?;
    if request.uri().scheme_str() != Some("http") || request.uri().authority().is_none() {
        return Err(error(ErrorKind::Invalid, format!("\"{url}\" is no http:// URL")));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|why| Error::os(Origin::Director, "cannot start the runtime", why))?;
    let exchange = async {
        let client = Client::builder(TokioExecutor::new()).build_http();
        let answer = client.request(request).await.map_err(|why| {
            let text = format!("no director answers at {url}; is it running?");
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
        Err(error(ErrorKind::Conflict, said))
    };
    let late = || error(ErrorKind::Timeout, format!("no answer within {} s", WAIT.as_secs()));
    runtime.block_on(async { tokio::time::timeout(WAIT, exchange).await.map_err(|_| late())? })
}
