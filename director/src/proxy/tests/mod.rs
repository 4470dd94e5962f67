//! Tests of the proxy against small web servers in the same process. Each test has a runtime on its own
//! thread, so that a rule can be taken out for it.

mod failure;
mod http2;
mod linger;
mod pass;
mod queue;
mod route;
mod stream;
mod tunnel;

use crate::access_log::AccessLog;
use crate::metrics::{Metrics, Outcome};
use crate::proxy::listen::{Door, Front, Stop};
use crate::proxy::phases::Proxy;
use crate::proxy::routes::Routes;
use crate::tls::Keys;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo};
use selvage_fabric::config::Config;
use selvage_fabric::ident::{Cookie, Epoch, Incarnation, SessionId};
use selvage_fabric::view::{DeadEntry, NodeEntry, NodeState, View};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_util::sync::CancellationToken;

/// Longest time for anything that happens at once.
const WAIT: Duration = Duration::from_secs(10);

/// What a node got.
#[derive(Clone, Debug)]
struct Got {
    method: Method,
    path: String,
    headers: hyper::HeaderMap,
    body: Bytes,
}

/// A web server that stands for a node.
struct FakeNode {
    incarnation: Incarnation,
    address: SocketAddr,
    got: Arc<Mutex<Vec<Got>>>,
    stop: CancellationToken,
}

impl FakeNode {
    /// A node that answers as `handler` says, after it has noted the whole request.
    async fn start<F, R>(incarnation: u64, handler: F) -> Self
    where
        F: Fn(Got) -> R + Send + Sync + 'static,
        R: Future<Output = Response<Full<Bytes>>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let got = Arc::new(Mutex::new(Vec::new()));
        let stop = CancellationToken::new();
        let (handler, notes, stopped) = (Arc::new(handler), Arc::clone(&got), stop.clone());
        tokio::spawn(async move {
            loop {
                let stream = tokio::select! {
                    () = stopped.cancelled() => return,
                    accepted = listener.accept() => accepted.unwrap().0,
                };
                let (handler, notes, stopped) = (Arc::clone(&handler), Arc::clone(&notes), stopped.clone());
                let service = service_fn(move |request: Request<Incoming>| {
                    let (handler, notes) = (Arc::clone(&handler), Arc::clone(&notes));
                    async move {
                        let (head, body) = request.into_parts();
                        let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
                        let path = head.uri.to_string();
                        let got = Got { method: head.method, path, headers: head.headers, body };
                        notes.lock().unwrap().push(got.clone());
                        Ok::<_, Infallible>(handler(got).await)
                    }
                });
                tokio::spawn(async move {
                    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                    tokio::select! {
                        () = stopped.cancelled() => {}
                        _ = connection => {}
                    }
                });
            }
        });
        Self { incarnation: Incarnation(incarnation), address, got, stop }
    }

    /// A node that answers with its own incarnation.
    async fn plain(incarnation: u64) -> Self {
        Self::start(incarnation, move |_| async move { text(&incarnation.to_string()) }).await
    }

    /// A node that says "elsewhere".
    async fn elsewhere(incarnation: u64, host: u64) -> Self {
        Self::start(incarnation, move |_| async move {
            let mut answer = text("elsewhere");
            *answer.status_mut() = StatusCode::MISDIRECTED_REQUEST;
            answer.headers_mut().insert("selvage-elsewhere", Incarnation(host).tag().parse().unwrap());
            answer
        })
        .await
    }

    /// A node that takes a request and never answers.
    async fn hanging(incarnation: u64) -> Self {
        Self::start(incarnation, |_| std::future::pending()).await
    }

    fn got(&self) -> Vec<Got> {
        self.got.lock().unwrap().clone()
    }

    /// Waits until the node has got so many requests.
    async fn has_got(&self, requests: usize) {
        for _ in 0..500 {
            if self.got.lock().unwrap().len() >= requests {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the node got {} requests instead of {requests}", self.got().len());
    }
}

impl Drop for FakeNode {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn text(body: &str) -> Response<Full<Bytes>> {
    Response::new(Full::new(Bytes::from(body.to_owned())))
}

/// A port where nobody listens, and nobody else can while this lives.
struct ClosedPort(TcpSocket);

impl ClosedPort {
    fn new() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        Self(socket)
    }

    fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }
}

/// A port of a host that has vanished: whoever connects gets no answer, because the queue of those who wait
/// to be accepted is full.
struct SilentPort {
    listener: TcpListener,
    _waiting: Vec<TcpStream>,
}

impl SilentPort {
    async fn new() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(0).unwrap();
        let mut waiting = Vec::new();
        for _ in 0..64 {
            let connecting = TcpStream::connect(listener.local_addr().unwrap());
            match tokio::time::timeout(Duration::from_millis(100), connecting).await {
                Ok(stream) => waiting.push(stream.unwrap()),
                Err(_) => return Self { listener, _waiting: waiting },
            }
        }
        panic!("the queue takes everybody");
    }

    fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }
}

/// A running proxy and a client of it.
struct Bench {
    config: Config,
    proxy: Arc<Proxy>,
    routes: Arc<Routes>,
    metrics: Arc<Metrics>,
    front: Arc<Front>,
    address: SocketAddr,
    client: Client<hyper_util::client::legacy::connect::HttpConnector, Full<Bytes>>,
    stop: CancellationToken,
}

/// An answer, whole.
#[derive(Debug)]
struct Seen {
    status: StatusCode,
    headers: hyper::HeaderMap,
    body: String,
}

impl Bench {
    async fn start(hold_ms: u64, extra: &str) -> Self {
        Self::with(hold_ms, extra, "").await
    }

    /// `extra` belongs to `[director]`, `of_node` to the `[[node]]` n1.
    async fn with(hold_ms: u64, extra: &str, of_node: &str) -> Self {
        Self::behind(hold_ms, extra, of_node, None).await
    }

    /// Its only door is one with TLS, if there are certificates.
    async fn behind(hold_ms: u64, extra: &str, of_node: &str, keys: Option<Arc<Keys>>) -> Self {
        let key = "11".repeat(32);
        let config = format!(
            "[cluster]\nname = \"t\"\nrun_dir = \"/run/t\"\ncookie_keys = [\"{key}\"]\n\
             [director]\nhold_ms = {hold_ms}\n{extra}\n\
             [[server]]\nname = \"s1\"\n[[node]]\nname = \"n1\"\naddress = \"127.0.0.1:1\"\n{of_node}\n"
        );
        let config = Config::parse(Path::new("t.toml"), &config).unwrap();
        let (routes, metrics) = (Arc::new(Routes::default()), Arc::new(Metrics::default()));
        let stop = CancellationToken::new();
        let proxy = Proxy::new(&config, Arc::clone(&routes), Arc::clone(&metrics));
        let serving = Arc::clone(&proxy);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let front = Front::new(serving, AccessLog::off(), Stop { leave: stop.clone(), hurry: stop.clone() });
        let door = match keys {
            Some(keys) => Door::Tls(listener, keys),
            None => Door::Plain(listener),
        };
        tokio::spawn(Arc::clone(&front).serve(vec![door]));
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self { config, proxy, routes, metrics, front, address, client, stop }
    }

    fn publish(&self, view: View) {
        self.routes.publish(&Arc::new(view), &[]);
    }

    fn cookie(&self, id: u8, host: u64) -> String {
        let cookie = Cookie { id: SessionId([id; 16]), host: Incarnation(host) };
        format!("selvage={}", cookie.encode(&self.config.cluster.cookie_keys))
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        cookie: &str,
        body: impl Into<Bytes>,
    ) -> Request<Full<Bytes>> {
        let uri = format!("http://{}{path}", self.address);
        let request = Request::builder().method(method).uri(uri);
        let request = if cookie.is_empty() { request } else { request.header("cookie", cookie) };
        request.body(Full::new(body.into())).unwrap()
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Seen {
        let answer = tokio::time::timeout(Duration::from_secs(20), self.client.request(request)).await;
        let (head, body) = answer.expect("answered in time").expect("answered").into_parts();
        let body = body.collect().await.expect("a whole body").to_bytes();
        let body = String::from_utf8(body.to_vec()).unwrap();
        Seen { status: head.status, headers: head.headers, body }
    }

    async fn get(&self, cookie: &str) -> Seen {
        self.send(self.request(Method::GET, "/", cookie, "")).await
    }

    async fn post(&self, cookie: &str, body: impl Into<Bytes>) -> Seen {
        self.send(self.request(Method::POST, "/", cookie, body)).await
    }

    /// Sends in the background.
    fn begin(self: &Arc<Self>, method: Method, cookie: &str) -> tokio::task::JoinHandle<Seen> {
        let (bench, request) = (Arc::clone(self), self.request(method, "/", cookie, "body"));
        tokio::spawn(async move { bench.send(request).await })
    }
}

/// A node whose connections the test holds itself.
struct RawNode {
    incarnation: Incarnation,
    listener: TcpListener,
}

/// One of them, or a browser's.
struct RawStream {
    stream: TcpStream,
    got: Vec<u8>,
}

impl RawNode {
    async fn start(incarnation: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self { incarnation: Incarnation(incarnation), listener }
    }

    fn entry(&self) -> NodeEntry {
        entry(self.incarnation, self.listener.local_addr().unwrap())
    }

    /// The next connection of the director.
    async fn accept(&self) -> RawStream {
        let accepted = tokio::time::timeout(WAIT, self.listener.accept()).await;
        RawStream { stream: accepted.expect("the director connects").unwrap().0, got: Vec::new() }
    }
}

impl RawStream {
    /// A browser.
    async fn browser(bench: &Bench) -> Self {
        Self { stream: TcpStream::connect(bench.address).await.unwrap(), got: Vec::new() }
    }

    async fn say(&mut self, text: &str) {
        tokio::time::timeout(WAIT, self.stream.write_all(text.as_bytes())).await.expect("in time").unwrap();
    }

    /// Reads until `text` has come, and returns all that came before and with it.
    async fn hear(&mut self, text: &str) -> String {
        loop {
            let found = self.got.windows(text.len()).position(|window| window == text.as_bytes());
            if let Some(at) = found {
                return String::from_utf8(self.got.drain(..at + text.len()).collect()).unwrap();
            }
            let read = tokio::time::timeout(WAIT, self.stream.read_buf(&mut self.got)).await;
            let read =
                read.unwrap_or_else(|_| panic!("{text:?} does not come, but {}", self.got.escape_ascii()));
            assert!(read.unwrap() > 0, "it ended before {text:?}: {}", self.got.escape_ascii());
        }
    }

    /// Reads to the end, which may be a reset, and returns the rest.
    async fn hear_out(&mut self) -> String {
        let read = tokio::time::timeout(WAIT, self.stream.read_to_end(&mut self.got)).await;
        let _ = read.expect("it ends");
        String::from_utf8(std::mem::take(&mut self.got)).unwrap()
    }

    /// Nothing comes.
    async fn hears_nothing(&mut self) {
        let read =
            tokio::time::timeout(Duration::from_millis(100), self.stream.read_buf(&mut self.got)).await;
        assert!(read.is_err() && self.got.is_empty(), "{}", self.got.escape_ascii());
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn entry(incarnation: Incarnation, address: SocketAddr) -> NodeEntry {
    let name = format!("n{}", incarnation.0);
    NodeEntry { name, incarnation, state: NodeState::Up, address: address.to_string() }
}

fn view(number: u32, nodes: &[&FakeNode]) -> View {
    let nodes = nodes.iter().map(|node| entry(node.incarnation, node.address)).collect();
    View { epoch: Epoch { term: 1, number }, copies: 1, nodes, ..View::default() }
}

fn dead(incarnation: u64, sealed: bool) -> DeadEntry {
    DeadEntry { name: format!("n{incarnation}"), incarnation: Incarnation(incarnation), sealed }
}

/// Runs a test on this thread alone.
fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test)
}

async fn pause(ms: u64) {
    tokio::time::sleep(Duration::from_millis(ms)).await;
}
