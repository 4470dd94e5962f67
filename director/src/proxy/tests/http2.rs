//! Browsers that come with TLS and HTTP/2, and mean no good.

use super::*;
use crate::tls::Certificates;
use hyper::client::conn::http2;
use selvage_fabric::config::{Certificate, FrontTls};
use std::os::unix::fs::PermissionsExt;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// A director behind TLS, and what its browsers trust.
struct Secure {
    bench: Bench,
    trust: RootCertStore,
}

impl Secure {
    async fn start(extra: &str) -> Self {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let files =
            Certificate { certificate: folder.path().join("c.pem"), key: folder.path().join("c.key") };
        std::fs::write(&files.certificate, made.cert.pem()).unwrap();
        std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
        std::fs::set_permissions(&files.key, PermissionsExt::from_mode(0o600)).unwrap();
        let listen = "127.0.0.1:0".parse().unwrap();
        let tls = FrontTls { listen, certificates: vec![files], redirect: false };
        let keys = Arc::new(Keys::new(Certificates::load(&tls).unwrap()));
        let mut trust = RootCertStore::empty();
        trust.add(CertificateDer::from(made.cert.der().to_vec())).unwrap();
        Self { bench: Bench::behind(2000, extra, "", Some(keys)).await, trust }
    }

    /// A browser after its handshake.
    async fn browser(&self) -> TlsStream<TcpStream> {
        let mut config = ClientConfig::builder_with_provider(Arc::new(
            tokio_rustls::rustls::crypto::ring::default_provider(),
        ))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(self.trust.clone())
        .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let stream = TcpStream::connect(self.bench.address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
    }
}

#[test]
fn a_browser_that_takes_no_answer_keeps_no_place() {
    run(async {
        let secure = Secure::start("idle_timeout_ms = 300\nrequests_max = 3").await;
        let node = FakeNode::start(1, |got| async move {
            text(&"x".repeat(if got.path == "/long" { 1 << 20 } else { 0 }))
        });
        let node = node.await;
        secure.bench.publish(view(1, &[&node]));
        // It never opens a window, and answers pings.
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.initial_stream_window_size(0);
        let stream = TokioIo::new(secure.browser().await);
        let (mut browser, connection) = builder.handshake::<_, Full<Bytes>>(stream).await.unwrap();
        let connection = tokio::spawn(connection);
        let get =
            |path: &str| Request::get(format!("https://localhost{path}")).body(Full::default()).unwrap();
        let mut bodies = Vec::new();
        for _ in 0..3 {
            bodies.push(browser.send_request(get("/long")).await.unwrap().into_body());
        }
        let full = browser.send_request(get("/long")).await.unwrap();
        assert_eq!(full.status(), StatusCode::SERVICE_UNAVAILABLE);
        for body in bodies {
            let end = tokio::time::timeout(WAIT, body.collect()).await.expect("it ends");
            assert!(end.is_err(), "it was never taken");
        }
        drop(full);
        let idle = async {
            while !secure.bench.proxy.is_idle() {
                pause(10).await;
            }
        };
        tokio::time::timeout(WAIT, idle).await.expect("no request is under way");
        // Those streams have ended, and not the others.
        assert_eq!(browser.send_request(get("/short")).await.unwrap().status(), StatusCode::OK);
        assert!(!connection.is_finished());
    });
}

#[test]
fn an_answer_that_is_slow_and_taken_is_not_cut() {
    run(async {
        let secure = Secure::start("idle_timeout_ms = 600").await;
        let node = RawNode::start(1).await;
        let mut only = view(1, &[]);
        only.nodes.push(node.entry());
        secure.bench.publish(only);
        let stream = TokioIo::new(secure.browser().await);
        let builder = http2::Builder::new(TokioExecutor::new());
        let (mut browser, connection) = builder.handshake::<_, Full<Bytes>>(stream).await.unwrap();
        tokio::spawn(connection);
        let request = Request::get("https://localhost/").body(Full::<Bytes>::default()).unwrap();
        let answer =
            tokio::spawn(async move { browser.send_request(request).await.unwrap().collect().await });
        let mut stream = node.accept().await;
        stream.hear("\r\n\r\n").await;
        stream.say("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n").await;
        for _ in 0..6 {
            pause(200).await;
            stream.say("x").await;
        }
        let body = tokio::time::timeout(WAIT, answer).await.expect("in time").unwrap().unwrap();
        assert_eq!(body.to_bytes(), "xxxxxx");
    });
}

#[test]
fn silent_browsers_keep_nobody_out() {
    run(async {
        let secure = Secure::start("").await;
        secure.bench.publish(view(1, &[]));
        let mut silent = Vec::new();
        for _ in 0..600 {
            silent.push(TcpStream::connect(secure.bench.address).await.unwrap());
        }
        let late = tokio::time::timeout(Duration::from_secs(5), secure.browser()).await;
        assert!(late.is_ok(), "a handshake waits for {} silent browsers", silent.len());
    });
}
