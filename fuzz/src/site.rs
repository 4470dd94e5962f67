//! A director's proxy with one browser and one node, in one thread. The browser's connection is a pipe in
//! memory; the node's is a real one over loopback, because the proxy makes it itself.

use crate::wire::{self, Answer, End, Headers, Request};
use selvage_director::access_log::AccessLog;
use selvage_director::metrics::Metrics;
use selvage_director::proxy::client::Client;
use selvage_director::proxy::listen::{Front, Stop, connection};
use selvage_director::proxy::phases::Proxy;
use selvage_director::proxy::routes::Routes;
use selvage_director::proxy::visits::Visits;
use selvage_fabric::config::Config;
use selvage_fabric::ident::{Epoch, Incarnation};
use selvage_fabric::view::{NodeEntry, NodeState, View};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

/// Longest time for anything here; no input can make the director need it.
const WAIT: Duration = Duration::from_secs(5);
/// Room of a browser's pipe: more than any input has.
const PIPE_BYTES: usize = 1 << 20;
/// Bodies that are longer are streamed to the node; short, so that inputs get there.
const RESEND_BODY_BYTES: usize = 32;

/// A director between a browser and a node.
pub struct Site {
    pub runtime: Runtime,
    front: Arc<Front>,
    node: Arc<Mutex<Node>>,
}

/// What the node does and what it has seen.
#[derive(Default)]
pub struct Node {
    /// Written as it is after a request, and then the connection is closed; else a good answer.
    pub answer: Option<Vec<u8>>,
    /// Whole requests.
    pub seen: Vec<Request>,
    /// What was no request.
    pub faults: Vec<wire::Fault>,
}

impl Site {
    pub fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let node = Arc::default();
        let front = runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let address = listener.local_addr().expect("an address");
            tokio::spawn(serve(listener, Arc::clone(&node)));
            Front::new(proxy(address), AccessLog::off(), Stop::default())
        });
        Self { runtime, front, node }
    }

    /// What the node has seen; the next look begins anew, and it answers `answer` from now on.
    pub fn node(&self, answer: Option<Vec<u8>>) -> Node {
        std::mem::replace(&mut *lock(&self.node), Node { answer, ..Node::default() })
    }

    /// Sends bytes as a browser, until so many final answers to `methods` have come or the director has
    /// closed; then ends the browser's side. Returns what has come.
    pub async fn browse(&self, bytes: &[u8], methods: &[String], answers: usize) -> Vec<u8> {
        let (mut browser, stream) = tokio::io::duplex(PIPE_BYTES);
        let (client, visits) = (Client::new(BROWSER, None), Visits::default());
        let serving = tokio::spawn(connection(&self.front, stream, client, &visits));
        // It may close while we send.
        let _ = browser.write_all(bytes).await;
        let mut got = Vec::new();
        let talking = async {
            let mut is_open = true;
            while is_open && !is_answered(&got, methods, answers) {
                is_open = browser.read_buf(&mut got).await.is_ok_and(|bytes| bytes > 0);
            }
            let _ = browser.shutdown().await;
            while is_open {
                is_open = browser.read_buf(&mut got).await.is_ok_and(|bytes| bytes > 0);
            }
        };
        let talked = tokio::time::timeout(WAIT, talking).await;
        assert!(talked.is_ok(), "of {answers} answers only {} came", got.escape_ascii());
        drop(browser);
        let served = tokio::time::timeout(WAIT, serving).await;
        assert!(served.is_ok_and(|served| served.is_ok()), "the director does not let the connection go");
        got
    }
}

fn is_answered(got: &[u8], methods: &[String], answers: usize) -> bool {
    let found = wire::answers(got, methods).unwrap_or_else(|fault| panic!("no answer: {fault}"));
    found.iter().filter(|(_, end)| *end != End::Open).count() >= answers
}

fn lock(node: &Mutex<Node>) -> MutexGuard<'_, Node> {
    node.lock().unwrap_or_else(PoisonError::into_inner)
}

fn proxy(node: SocketAddr) -> Arc<Proxy> {
    let key = "11".repeat(32);
    let text = format!(
        "[cluster]\nname = \"t\"\nrun_dir = \"/run/t\"\ncookie_keys = [\"{key}\"]\n\
         [director]\nhold_ms = 1\nheaders_max = 1000\nresend_body_bytes = {RESEND_BODY_BYTES}\n\
         [[server]]\nname = \"s1\"\n[[node]]\nname = \"n1\"\naddress = \"{node}\"\n"
    );
    let config = Config::parse(Path::new("t.toml"), &text).expect("a good configuration");
    let routes = Arc::new(Routes::default());
    let entry = NodeEntry {
        name: "n1".into(),
        incarnation: Incarnation(1),
        state: NodeState::Up,
        address: node.to_string(),
    };
    let epoch = Epoch { term: 1, number: 1 };
    routes.publish(&Arc::new(View { epoch, copies: 1, nodes: vec![entry], ..View::default() }), &[]);
    Proxy::new(&config, routes, Arc::new(Metrics::default()))
}

async fn serve(listener: TcpListener, node: Arc<Mutex<Node>>) {
    while let Ok((stream, _)) = listener.accept().await {
        let node = Arc::clone(&node);
        tokio::spawn(async move {
            // The director may cut the connection at any time.
            let _ = converse(stream, &node).await;
        });
    }
}

async fn converse(mut stream: TcpStream, node: &Mutex<Node>) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut bytes = Vec::new();
    let mut is_asked_for = false;
    while stream.read_buf(&mut bytes).await? > 0 {
        loop {
            let (request, at) = match wire::request(&bytes) {
                Ok((Some(request), End::At(at))) => (request, at),
                Ok((Some(request), End::Open)) => {
                    // It is a node that wants every body.
                    if request.headers.contains_key("expect") && !is_asked_for {
                        is_asked_for = true;
                        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
                    }
                    break;
                }
                Ok(_) => break,
                Err(fault) => {
                    lock(node).faults.push(fault);
                    return Ok(());
                }
            };
            bytes.drain(..at);
            is_asked_for = false;
            let is_head = request.method == "HEAD";
            let answer = {
                let mut node = lock(node);
                node.seen.push(request);
                node.answer.clone()
            };
            if let Some(answer) = answer {
                stream.write_all(&answer).await?;
                stream.shutdown().await?;
                return Ok(());
            }
            let body = if is_head { "" } else { "ok" };
            stream
                .write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{body}").as_bytes())
                .await?;
        }
    }
    Ok(())
}

/// Headers that mean the same at both ends of the director: without those of one hop, those that `Connection`
/// names, those that frame the message, and `own`, which the director makes itself.
pub fn end_to_end(headers: &Headers, own: &[&str], kept: &[&str]) -> Headers {
    let connection = headers.get("connection").map_or(&[][..], Vec::as_slice);
    let named: Vec<Vec<u8>> = connection
        .iter()
        .flat_map(|value| value.split(|byte| *byte == b','))
        .map(|name| name.trim_ascii().to_ascii_lowercase())
        .collect();
    let is_named = |name: &str| named.iter().any(|named| named == name.as_bytes()) && !kept.contains(&name);
    let mut left = headers.clone();
    left.retain(|name, _| !wire::HOP_BY_HOP.contains(&&**name) && !own.contains(&&**name) && !is_named(name));
    left
}

/// Headers as hyper has them.
pub fn headers_of(headers: &hyper::HeaderMap) -> Headers {
    let mut all = Headers::new();
    for (name, value) in headers {
        all.entry(name.as_str().to_owned()).or_default().push(value.as_bytes().trim_ascii().to_vec());
    }
    all
}

/// The director's own word instead of a node's; without a body its headers must tell.
pub fn is_own(answer: &Answer, method: &str) -> bool {
    let is_plain =
        answer.headers.get("content-type").is_some_and(|types| *types == [b"text/plain; charset=utf-8"]);
    let is_ours = if method == "HEAD" { is_plain } else { answer.body.starts_with(b"selvage: ") };
    answer.status >= 400 && is_ours
}

/// The address that browsers come from here.
pub const BROWSER: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
