//! What stands at both ends of a director: a web server with its steward, browsers that never stop, and a
//! certificate that they believe.

use crate::site::{Site, WAIT, until};
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use selvage_fabric::control::message::{FromDirector, NodeBeat, ToDirector};
use selvage_fabric::error::ErrorKind;
use selvage_fabric::ident::{Epoch, Incarnation};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// A web server with keep-alive that says what it was asked, and in `x-status` what it is to answer.
pub(crate) struct Web {
    /// What it answers instead of 200 to `/health`.
    pub(crate) health: Arc<AtomicUsize>,
}

impl Web {
    pub(crate) fn start(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let health = Arc::new(AtomicUsize::new(200));
        let status = Arc::clone(&health);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, status) = (stream.unwrap(), Arc::clone(&status));
                std::thread::spawn(move || answer_all(stream, &status));
            }
        });
        Self { health }
    }
}

fn answer_all(mut stream: TcpStream, health: &AtomicUsize) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    loop {
        let head: Vec<String> =
            lines.by_ref().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
        let Some(first) = head.first() else { return };
        let status = match first.starts_with("GET /health ") {
            true => health.load(Ordering::Relaxed),
            false => 200,
        };
        let mut body = head.join("\n").to_ascii_lowercase();
        if first.starts_with("GET /slow ") {
            std::thread::sleep(Duration::from_secs(2));
            body = "slept".to_owned();
        }
        let answer = format!("HTTP/1.1 {status} Said\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        if stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

/// A steward that beats whatever becomes of the director, until it is dropped; its life must never be over.
pub(crate) struct Steward {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Steward {
    pub(crate) fn start(site: &Site, name: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, socket, name) = (Arc::clone(&stop), site.socket(), name.to_owned());
        let thread = std::thread::spawn(move || {
            let (mut life, mut epoch) = (Incarnation::NONE, Epoch::default());
            while !stopped.load(Ordering::Relaxed) {
                let _ = beat(&socket, &name, &mut life, &mut epoch, &stopped);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let steward = Self { stop, thread: Some(thread) };
        until("the node is up", || site.view()["nodes"][0]["state"] == "up");
        steward
    }
}

impl Drop for Steward {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking());
    }
}

fn beat(
    socket: &Path,
    name: &str,
    life: &mut Incarnation,
    epoch: &mut Epoch,
    stop: &AtomicBool,
) -> selvage_fabric::error::Result<()> {
    use selvage_fabric::control::message::Role;
    let mut stream = selvage_fabric::control::stream::Stream::connect(socket, WAIT)?;
    stream.client_hello("t", Role::Node { name: name.to_owned(), incarnation: *life, pid: 0 }, WAIT)?;
    let first = match *life == Incarnation::NONE {
        true => ToDirector::Register,
        false => ToDirector::Resume { epoch: *epoch },
    };
    stream.send(&first, None, WAIT)?;
    while !stop.load(Ordering::Relaxed) {
        match stream.recv(Duration::from_millis(40)) {
            Ok((FromDirector::Registered { incarnation, view }, _)) => {
                (*life, *epoch) = (incarnation, view.epoch);
            }
            Ok((FromDirector::View(view), _)) => *epoch = view.epoch,
            Ok((FromDirector::Over { drained }, _)) if *life != Incarnation::NONE => {
                panic!("the life of {name} is over, drained: {drained}")
            }
            Ok(_) => continue,
            Err(error) if error.kind == ErrorKind::Timeout => {}
            Err(error) => return Err(error),
        }
        if *life != Incarnation::NONE {
            let beat = NodeBeat { safe: [0, 5, 0], epoch: *epoch, ..NodeBeat::default() };
            stream.send(&ToDirector::Beat(beat), None, WAIT)?;
        }
    }
    Ok(())
}

/// Makes a certificate for these names; the paths of it and of its key.
pub(crate) fn certificate(folder: &Path, name: &str, names: &[&str]) -> (PathBuf, PathBuf) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    let paths = (folder.join(format!("{name}.pem")), folder.join(format!("{name}.key")));
    std::fs::write(&paths.0, made.cert.pem()).unwrap();
    std::fs::write(&paths.1, made.signing_key.serialize_pem()).unwrap();
    std::fs::set_permissions(&paths.1, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    paths
}

/// Browsers that ask as fast as they are answered, each in its own way, until they are asked how it went.
pub(crate) struct Crowd {
    stop: Arc<AtomicBool>,
    faults: Arc<Mutex<Vec<String>>>,
    threads: Vec<std::thread::JoinHandle<usize>>,
}

impl Crowd {
    /// HTTP/1.1 with keep-alive, a connection for each request, and HTTP/2 over TLS.
    pub(crate) fn start(plain: SocketAddr, tls: SocketAddr, certificate: &Path) -> Self {
        let (stop, faults) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let mut crowd = Self { stop, faults, threads: Vec::new() };
        crowd.join("keep-alive", move |browser| {
            let mut open = None;
            browser.each(|| ask_on(&mut open, plain));
        });
        crowd.join("one by one", move |browser| browser.each(|| ask_on(&mut None, plain)));
        let certificate = certificate.to_owned();
        crowd.join("HTTP/2", move |browser| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let mut open = None;
            browser.each(|| runtime.block_on(ask_by_http2(&mut open, tls, &certificate)));
        });
        crowd
    }

    fn join(&mut self, kind: &'static str, run: impl FnOnce(&mut Browser) + Send + 'static) {
        let (stop, faults) = (Arc::clone(&self.stop), Arc::clone(&self.faults));
        self.threads.push(std::thread::spawn(move || {
            let mut browser = Browser { kind, stop, faults, answers: 0 };
            run(&mut browser);
            browser.answers
        }));
    }

    /// Ends them; how many answers each kind has got, none of which was a fault.
    pub(crate) fn end(self) -> Vec<usize> {
        self.stop.store(true, Ordering::Relaxed);
        let answers: Vec<usize> = self.threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        let faults = self.faults.lock().unwrap();
        assert!(faults.is_empty(), "{} of {answers:?} failed: {:#?}", faults.len(), *faults);
        answers
    }
}

struct Browser {
    kind: &'static str,
    stop: Arc<AtomicBool>,
    faults: Arc<Mutex<Vec<String>>>,
    answers: usize,
}

impl Browser {
    fn each(&mut self, mut ask: impl FnMut() -> Result<(), String>) {
        while !self.stop.load(Ordering::Relaxed) {
            match ask() {
                Ok(()) => self.answers += 1,
                Err(why) => {
                    self.faults.lock().unwrap().push(format!("{}, after {}: {why}", self.kind, self.answers));
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// One request on an open connection, or a new one; no second try.
fn ask_on(open: &mut Option<BufReader<TcpStream>>, address: SocketAddr) -> Result<(), String> {
    let said = |what: &str, error: std::io::Error| format!("{what}: {error}");
    let mut stream = match open.take() {
        Some(stream) => stream,
        None => {
            let stream = TcpStream::connect(address).map_err(|error| said("connect", error))?;
            stream.set_read_timeout(Some(WAIT)).unwrap();
            BufReader::new(stream)
        }
    };
    let sent = stream.get_mut().write_all(b"GET /x HTTP/1.1\r\nhost: a\r\n\r\n");
    sent.map_err(|error| said("send", error))?;
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        match stream.read_line(&mut head) {
            Ok(0) => return Err(format!("closed after {head:?}")),
            Ok(_) => {}
            Err(error) => return Err(said("head", error)),
        }
    }
    let lower = head.to_ascii_lowercase();
    let length = lower.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.ok_or_else(|| head.clone())?];
    stream.read_exact(&mut body).map_err(|error| said("body", error))?;
    if !head.starts_with("HTTP/1.1 200 ") {
        return Err(head);
    }
    if !lower.contains("connection: close") {
        *open = Some(stream);
    }
    Ok(())
}

type Sender = http2::SendRequest<Empty<Bytes>>;

/// One request by HTTP/2. A connection that has said that it ends is left for a new one before.
async fn ask_by_http2(
    open: &mut Option<Sender>,
    address: SocketAddr,
    certificate: &Path,
) -> Result<(), String> {
    let said = |what: &str, error: &dyn std::fmt::Debug| format!("{what}: {error:?}");
    let mut ready = open.take();
    if let Some(sender) = &mut ready
        && sender.ready().await.is_err()
    {
        ready = None;
    }
    let mut sender = match ready {
        Some(sender) => sender,
        None => {
            let stream = shaken(address, certificate, "localhost").await?;
            let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .map_err(|error| said("HTTP/2", &error))?;
            tokio::spawn(connection);
            sender
        }
    };
    let request = hyper::Request::get("https://localhost/x").body(Empty::new()).unwrap();
    let asking = tokio::time::timeout(WAIT, sender.send_request(request)).await;
    let answer = asking.map_err(|_| "no answer".to_owned())?.map_err(|error| said("request", &error))?;
    let status = answer.status();
    let body = answer.into_body().collect().await.map_err(|error| said("body", &error))?.to_bytes();
    if status != hyper::StatusCode::OK || !body.starts_with(b"get /x") {
        return Err(format!("{status}"));
    }
    *open = Some(sender);
    Ok(())
}

/// A connection with TLS that wants HTTP/2 from whom this certificate is.
pub(crate) async fn shaken(
    address: SocketAddr,
    certificate: &Path,
    name: &str,
) -> Result<tokio_rustls::client::TlsStream<tokio::net::TcpStream>, String> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificate).unwrap()).unwrap();
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream =
        tokio::net::TcpStream::connect(address).await.map_err(|error| format!("connect: {error}"))?;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let shaking = TlsConnector::from(Arc::new(config)).connect(name, stream);
    shaking.await.map_err(|error| format!("handshake: {error}"))
}
