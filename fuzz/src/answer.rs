//! The director and a hostile node. The first byte chooses a request; the rest is what the node answers
//! before it closes the connection. Whatever that is:
//!
//! - the browser gets one strictly formed answer (nothing is split), and its connection ends;
//! - it is what hyper's own client makes of the same bytes, or the director's own word that the node is lost;
//! - an answer that broke off at the node breaks off at the browser: it never looks whole;
//! - headers of one hop and "elsewhere" stay at the director.

use crate::site::{Site, end_to_end, headers_of, is_own};
use crate::wire::{self, Answer, End, Headers};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use selvage_fabric::ident::Incarnation;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const METHODS: [&str; 3] = ["POST", "GET", "HEAD"];
/// The director's server writes a date where there is none; the director adds itself to those on the way.
const OWN: [&str; 3] = ["date", "selvage-elsewhere", "via"];

/// What hyper's client makes of an answer.
struct Expected {
    status: u16,
    headers: Headers,
    body: Vec<u8>,
    is_whole: bool,
}

pub fn run(bytes: &[u8]) {
    thread_local! {
        static SITE: Site = Site::new();
    }
    let Some((choice, answer)) = bytes.split_first() else { return };
    let method = METHODS[usize::from(*choice) % METHODS.len()];
    SITE.with(|site| site.runtime.block_on(one(site, method, answer)));
}

async fn one(site: &Site, method: &str, bytes: &[u8]) {
    let expected = alone(method, bytes).await;
    site.node(Some(bytes.to_vec()));
    let request = format!("{method} / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    let methods = [method.to_owned()];
    let got = site.browse(request.as_bytes(), &methods, 1).await;
    let mut answers = wire::answers(&got, &methods).expect("strictly formed answers").into_iter();
    let (Some((got, end)), None) = (answers.next(), answers.next()) else {
        // An error before the first piece of the body was written may take the whole answer along.
        assert!(got.is_empty() && expected.is_some_and(|expected| !expected.is_whole), "not one answer");
        return;
    };
    let node = site.node(None);
    assert!(node.faults.is_empty(), "{:?}", node.faults);
    let is_same = expected.as_ref().is_some_and(|expected| expected.status == got.status);
    if is_own(&got, method) && !is_same {
        let is_good = expected.as_ref().is_some_and(|expected| {
            let is_elsewhere = expected.status == 421 && names_a_host(&expected.headers);
            expected.is_whole && !is_elsewhere && expected.status != 101 && has_one_length(&expected.headers)
        });
        assert!(!is_good, "a good answer of the node became {got:?}");
        return;
    }
    let Some(expected) = expected else { panic!("the node said no such thing: {got:?}") };
    compare(&got, end, &expected);
}

fn compare(got: &Answer, end: End, expected: &Expected) {
    assert_eq!(got.status, expected.status);
    let mut wanted = end_to_end(&expected.headers, &OWN, &[]);
    // A length that is said twice the director says once.
    if let Some(lengths) = wanted.get_mut("content-length") {
        lengths.truncate(1);
    }
    assert_eq!(end_to_end(&got.headers, &OWN, &[]), wanted, "headers of {got:?}");
    for gone in ["keep-alive", "proxy-authenticate", "proxy-connection", "selvage-elsewhere", "te", "upgrade"]
    {
        assert!(!got.headers.contains_key(gone), "{gone} in {got:?}");
    }
    match (expected.is_whole, end) {
        (true, End::At(_)) => assert!(got.body == expected.body, "{got:?}"),
        (true, End::Open) => panic!("a whole answer broke off: {got:?}"),
        (false, End::At(_)) => panic!("an answer that broke off looks whole: {got:?}"),
        (false, End::Open) => assert!(expected.body.starts_with(&got.body), "{got:?}"),
    }
}

fn has_one_length(headers: &Headers) -> bool {
    let lengths = headers.get("content-length").map_or(&[][..], Vec::as_slice);
    let is_number = |length: &Vec<u8>| !length.is_empty() && length.iter().all(u8::is_ascii_digit);
    lengths.iter().all(|length| is_number(length) && *length == lengths[0])
}

fn names_a_host(headers: &Headers) -> bool {
    let first = headers.get("selvage-elsewhere").and_then(|values| values.first());
    let text = first.and_then(|value| std::str::from_utf8(value).ok());
    text.and_then(Incarnation::from_tag).is_some()
}

/// What hyper's client makes of the same bytes; `None`: no answer.
async fn alone(method: &str, bytes: &[u8]) -> Option<Expected> {
    let (stream, mut node) = tokio::io::duplex(1 << 20);
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
    let running = tokio::spawn(connection);
    let answering = async {
        // The request comes first: what a client gets without having asked is no answer.
        let mut asked = Vec::new();
        while !asked.ends_with(b"\r\n\r\n") && node.read_buf(&mut asked).await.is_ok_and(|bytes| bytes > 0) {}
        let _ = node.write_all(bytes).await;
        let _ = node.shutdown().await;
    };
    let request = Request::builder().method(method).uri("/").header("host", "a");
    let request = request.body(Empty::<Bytes>::new()).expect("a request");
    let asking = async {
        let (head, mut rest) = sender.send_request(request).await.ok()?.into_parts();
        let mut expected = Expected {
            status: head.status.as_u16(),
            headers: headers_of(&head.headers),
            body: Vec::new(),
            is_whole: true,
        };
        while let Some(frame) = rest.frame().await {
            match frame {
                Ok(frame) => expected.body.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data)),
                Err(_) => {
                    expected.is_whole = false;
                    break;
                }
            }
        }
        Some(expected)
    };
    let (expected, ()) = tokio::join!(asking, answering);
    running.abort();
    expected
}

pub fn seeds() -> Vec<Vec<u8>> {
    let tag = Incarnation(1).tag();
    let elsewhere =
        format!("HTTP/1.1 421 Misdirected Request\r\nselvage-elsewhere: {tag}\r\ncontent-length: 0\r\n\r\n");
    let answers = [
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhel",
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x\r\n\r\n5\r\nhello\r\n0\r\nx: 1\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\n\r\nuntil the end",
        "HTTP/1.0 200 OK\r\nconnection: keep-alive\r\n\r\nuntil the end",
        "HTTP/1.1 200 Fine\r\nset-cookie: selvage=a; Path=/\r\nset-cookie: b=c\r\nselvage-copies: 2\r\n\r\n",
        "HTTP/1.1 204 No Content\r\n\r\n",
        "HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\nhello",
        "HTTP/1.1 304 Not Modified\r\netag: \"x\"\r\ncontent-length: 100\r\n\r\n",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nraw",
        "HTTP/1.1 200 OK\r\nconnection: close, x-hop\r\nx-hop: 1\r\nkeep-alive: timeout=5\r\n\
         content-length: 0\r\n\r\n",
        "HTTP/1.1 413 Too Large\r\ncontent-length: 1\r\nconnection: close\r\n\r\n.",
        "HTTP/1.1 421 Misdirected Request\r\nselvage-elsewhere: me\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nx: a\r\n b\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 200\r\ncontent-length: 0\r\n\r\n",
        "HTTP/2 200 OK\r\n\r\n",
        "",
    ];
    let all = answers.iter().copied().chain([&*elsewhere]);
    all.enumerate().map(|(at, answer)| [&[(at % 3) as u8][..], answer.as_bytes()].concat()).collect()
}
