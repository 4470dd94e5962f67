//! The admin API, on its own port: the view, drain and undrain, metrics. Errors are JSON: `{"error": "..."}`.

use crate::cluster::DrainOutcome;
use crate::driver::Handle;
use crate::limits;
use crate::metrics::Metrics;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue, ORIGIN};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use selvage_fabric::config::Config;
use serde_json::json;
use std::convert::Infallible;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// Connections to the admin API at once.
const CONNECTIONS_MAX: usize = 256;

/// What the admin API needs.
#[derive(Debug)]
pub struct Admin {
    /// The configuration.
    pub config: Arc<Config>,
    /// The state machine.
    pub handle: Handle,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

type Answer = Response<Full<Bytes>>;

impl Admin {
    /// Serves until `stop`.
    pub async fn listen(self: Arc<Self>, listener: TcpListener, stop: CancellationToken) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = async {
                    let place = Arc::clone(&places).acquire_owned().await;
                    (place, listener.accept().await)
                } => accepted,
            };
            let (place, Ok((stream, _))) = accepted else {
                warn!("cannot accept an admin connection");
                tokio::time::sleep(limits::ACCEPT_PAUSE).await;
                continue;
            };
            let admin = Arc::clone(&self);
            let service = service_fn(move |request| {
                let admin = Arc::clone(&admin);
                async move { Ok::<_, Infallible>(admin.serve(&request).await) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(limits::HEAD_WAIT)
                .serve_connection(TokioIo::new(stream), service);
            tokio::spawn(async move {
                if let Err(error) = connection.await {
                    debug!("an admin connection ended: {error}");
                }
                drop(place);
            });
        }
    }

    async fn serve(&self, request: &Request<Incoming>) -> Answer {
        let parts: Vec<&str> = request.uri().path().trim_matches('/').split('/').collect();
        let (allowed, answer) = match (parts.as_slice(), request.method()) {
            (["healthz"], &Method::GET) => return text("text/plain", "ok\n".to_owned()),
            (["metrics"], &Method::GET) => return self.metrics_page().await,
            (["admin", "view"], &Method::GET) => return self.view().await,
            (["admin", "nodes", name, what @ ("drain" | "undrain")], &Method::POST) => {
                if request.headers().contains_key(ORIGIN) {
                    // A foreign page in the operator's browser could send this.
                    return error(StatusCode::FORBIDDEN, "requests of web pages are not taken here");
                }
                return self.node(name, what).await;
            }
            (["healthz"] | ["metrics"] | ["admin", "view"], _) => ("GET", StatusCode::METHOD_NOT_ALLOWED),
            (["admin", "nodes", _, "drain" | "undrain"], _) => ("POST", StatusCode::METHOD_NOT_ALLOWED),
            _ => {
                return error(
                    StatusCode::NOT_FOUND,
                    "no such page; there are /admin/view, /metrics and /healthz",
                );
            }
        };
        let mut answer = error(answer, &format!("use {allowed}"));
        answer.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
        answer
    }

    async fn view(&self) -> Answer {
        let Some(status) = self.handle.status().await else { return stopping() };
        match serde_json::to_string_pretty(&status) {
            Ok(page) => text("application/json", page + "\n"),
            Err(why) => error(StatusCode::INTERNAL_SERVER_ERROR, &why.to_string()),
        }
    }

    async fn metrics_page(&self) -> Answer {
        let Some(status) = self.handle.status().await else { return stopping() };
        match self.metrics.page(&status) {
            Ok(page) => text("application/openmetrics-text; version=1.0.0; charset=utf-8", page),
            Err(why) => error(StatusCode::INTERNAL_SERVER_ERROR, &why.to_string()),
        }
    }

    async fn node(&self, name: &str, what: &str) -> Answer {
        if self.config.node(name).is_none() {
            return error(StatusCode::NOT_FOUND, &format!("no node \"{name}\" is configured"));
        }
        if what == "undrain" {
            return match self.handle.undrain(name).await {
                true => answer(StatusCode::OK, &json!({ "node": name, "result": "undrained" })),
                false => stopping(),
            };
        }
        match self.handle.drain(name).await {
            None => stopping(),
            Some(DrainOutcome::HandedOver) => {
                answer(StatusCode::OK, &json!({ "node": name, "result": "drained" }))
            }
            Some(DrainOutcome::Adopting) => {
                answer(StatusCode::ACCEPTED, &json!({ "node": name, "result": "drained, adoption goes on" }))
            }
            Some(DrainOutcome::Refused(why)) => error(StatusCode::CONFLICT, &why),
        }
    }
}

fn stopping() -> Answer {
    error(StatusCode::SERVICE_UNAVAILABLE, "the director is stopping")
}

fn error(status: StatusCode, why: &str) -> Answer {
    answer(status, &json!({ "error": why }))
}

fn answer(status: StatusCode, body: &serde_json::Value) -> Answer {
    let mut answer = text("application/json", format!("{body}\n"));
    *answer.status_mut() = status;
    answer
}

fn text(kind: &'static str, body: String) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}
