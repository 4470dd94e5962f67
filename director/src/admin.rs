//! The admin API, on its own port: the view, states and weights of nodes, sessions, metrics. Errors are JSON:
//! `{"error": "..."}`.

mod sessions;

use crate::cluster::status::Status;
use crate::cluster::{DrainOutcome, Out};
use crate::driver::Handle;
use crate::limits;
use crate::metrics::Metrics;
use crate::reload::{Changes, Pending};
use crate::weights::Weights;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue, ORIGIN};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use selvage_fabric::config::Config;
use selvage_fabric::error::Result;
use selvage_fabric::limits::NODE_WEIGHT_MAX;
use serde_json::json;
use std::convert::Infallible;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// Connections to the admin API at once.
const CONNECTIONS_MAX: usize = 256;

/// What an operator asks of the daemon.
#[derive(Debug)]
pub enum Ask {
    /// What a reload would change.
    Changes(oneshot::Sender<Result<Changes>>),
    /// Read the configuration again.
    Reload(oneshot::Sender<Result<Changes>>),
}

/// What the admin API needs.
#[derive(Debug)]
pub struct Admin {
    /// The configuration.
    pub config: Arc<Config>,
    /// The state machine.
    pub handle: Handle,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Shares of new sessions.
    pub weights: Arc<Weights>,
    /// The way to the daemon.
    pub asks: mpsc::Sender<Ask>,
}

/// What can be done to a node.
const CHANGES: [&str; 5] = ["ready", "drain", "undrain", "maintenance", "weight"];

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
                .header_read_timeout(limits::ADMIN_HEAD_WAIT)
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
        if let Some(answer) = self.sessions(&parts, request).await {
            return answer;
        }
        let (allowed, answer) = match (parts.as_slice(), request.method()) {
            (["healthz"], &Method::GET) => return text("text/plain", "ok\n".to_owned()),
            (["metrics"], &Method::GET) => return self.metrics_page().await,
            (["admin", "view"], &Method::GET) => return self.view().await,
            (["admin", "reload"], &Method::GET) => return self.reload(Ask::Changes).await,
            (["admin", "reload"], &Method::POST) if is_of_page(request) => return of_page(),
            (["admin", "reload"], &Method::POST) => return self.reload(Ask::Reload).await,
            (["admin", "nodes", name, what], &Method::POST) if CHANGES.contains(what) => {
                if is_of_page(request) {
                    return of_page();
                }
                return self.node(name, what, request.uri().query()).await;
            }
            (["admin", "reload"], _) => ("GET, POST", StatusCode::METHOD_NOT_ALLOWED),
            (["healthz"] | ["metrics"] | ["admin", "view"], _) => ("GET", StatusCode::METHOD_NOT_ALLOWED),
            (["admin", "nodes", _, what], _) if CHANGES.contains(what) => {
                ("POST", StatusCode::METHOD_NOT_ALLOWED)
            }
            _ => {
                return error(
                    StatusCode::NOT_FOUND,
                    "no such page; there are /admin/view, .../sessions, .../reload, /metrics and /healthz",
                );
            }
        };
        let mut answer = error(answer, &format!("use {allowed}"));
        answer.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
        answer
    }

    async fn status(&self) -> Option<Status> {
        let mut status = self.handle.status().await?;
        for node in &mut status.nodes {
            node.weight = self.weights.of(&node.name);
        }
        Some(status)
    }

    /// The configuration file, read again or only looked at.
    async fn reload(&self, ask: impl FnOnce(oneshot::Sender<Result<Changes>>) -> Ask) -> Answer {
        let (answer, answered) = oneshot::channel();
        if self.asks.send(ask(answer)).await.is_err() {
            return stopping();
        }
        let file = self.config.path.clone();
        match answered.await.map(|found| found.map(|changes| json!(Pending { file, changes }))) {
            Ok(Ok(changes)) => self::answer(StatusCode::OK, &changes),
            Ok(Err(why)) => error(StatusCode::CONFLICT, &why.to_string()),
            Err(_) => stopping(),
        }
    }

    async fn view(&self) -> Answer {
        let Some(status) = self.status().await else { return stopping() };
        match serde_json::to_string_pretty(&status) {
            Ok(page) => text("application/json", page + "\n"),
            Err(why) => error(StatusCode::INTERNAL_SERVER_ERROR, &why.to_string()),
        }
    }

    async fn metrics_page(&self) -> Answer {
        let Some(status) = self.status().await else { return stopping() };
        let metrics = Arc::clone(&self.metrics);
        // It reads /proc, where a process with many descriptors or a machine with many processors takes its
        // time, and heartbeats wait for this thread.
        match spawn_blocking(move || metrics.page(status)).await {
            Ok(Ok(page)) => text("application/openmetrics-text; version=1.0.0; charset=utf-8", page),
            Ok(Err(why)) => error(StatusCode::INTERNAL_SERVER_ERROR, &why.to_string()),
            Err(why) => error(StatusCode::INTERNAL_SERVER_ERROR, &why.to_string()),
        }
    }

    async fn node(&self, name: &str, what: &str, query: Option<&str>) -> Answer {
        if self.config.node(name).is_none() {
            return error(StatusCode::NOT_FOUND, &format!("no node \"{name}\" is configured"));
        }
        let how = match what {
            "weight" => return self.weigh(name, query),
            "ready" | "undrain" => {
                let result = if what == "ready" { "ready" } else { "undrained" };
                return match self.handle.undrain(name).await {
                    true => answer(StatusCode::OK, &json!({ "node": name, "result": result })),
                    false => stopping(),
                };
            }
            "maintenance" => Out::Maintenance,
            _ => Out::Drained,
        };
        let result = if how == Out::Drained { "drained" } else { "in maintenance" };
        match self.handle.drain(name, how).await {
            None => stopping(),
            Some(DrainOutcome::HandedOver) => {
                answer(StatusCode::OK, &json!({ "node": name, "result": result }))
            }
            Some(DrainOutcome::Adopting) => {
                let result = format!("{result}, adoption goes on");
                answer(StatusCode::ACCEPTED, &json!({ "node": name, "result": result }))
            }
            Some(DrainOutcome::Refused(why)) => error(StatusCode::CONFLICT, &why),
        }
    }

    /// `?weight=NUMBER`, or `?weight=default` for what is configured.
    fn weigh(&self, name: &str, query: Option<&str>) -> Answer {
        let told = query.and_then(|query| query.strip_prefix("weight="));
        let number = told.and_then(|told| told.parse::<u32>().ok()).filter(|told| *told <= NODE_WEIGHT_MAX);
        let weight = match told {
            Some("default") => None,
            _ if number.is_some() => number,
            _ => {
                let why = format!("say ?weight=0 to ?weight={NODE_WEIGHT_MAX}, or ?weight=default");
                return error(StatusCode::BAD_REQUEST, &why);
            }
        };
        match self.weights.set(name, weight) {
            Ok(()) => {
                let weight = self.weights.of(name);
                let result = format!("weight {weight}");
                answer(StatusCode::OK, &json!({ "node": name, "weight": weight, "result": result }))
            }
            Err(why) => error(StatusCode::INTERNAL_SERVER_ERROR, &why.to_string()),
        }
    }
}

/// Whether a page in the operator's browser, which may be foreign, has sent this.
fn is_of_page(request: &Request<Incoming>) -> bool {
    request.headers().contains_key(ORIGIN)
}

fn of_page() -> Answer {
    error(StatusCode::FORBIDDEN, "requests of web pages are not taken here")
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
