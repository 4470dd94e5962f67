//! The director and a hostile browser. Whatever bytes come over a browser's connection:
//!
//! - the node is sent nothing but strictly formed requests, each with one host and one opinion about its
//!   length;
//! - they are those that hyper's own server makes of the same bytes, in their order, as far as a reader that
//!   knows no leniency finds nothing wrong: nothing is smuggled, nothing passes that could be read in two
//!   ways, and nothing is swallowed unless it was refused or came after a refusal;
//! - headers pass whole, but for those of one hop, which end here, and those that the director makes;
//! - the browser gets strictly formed answers, and its connection ends.

use crate::site::{BROWSER, Site, end_to_end, headers_of};
use crate::wire::{self, Request};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::http::uri::PathAndQuery;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Response, StatusCode, Version};
use hyper_util::rt::TokioIo;
use selvage_director::limits::HEADERS_CEILING;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Headers that the director makes or takes away by itself.
const OWN: [&str; 13] = [
    "cookie",
    "expect",
    "forwarded",
    "host",
    "http2-settings",
    "selvage-elsewhere",
    "te",
    "upgrade",
    "via",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-proto",
];
/// Headers that `Connection` cannot take away.
const KEPT: [&str; 1] = ["content-length"];

/// What hyper's server makes of a request.
struct Expected {
    request: Request,
    /// Its body came to its end.
    is_whole: bool,
    /// The director has to refuse it.
    is_refused: bool,
    is_http_11: bool,
}

pub fn run(bytes: &[u8]) {
    thread_local! {
        static SITE: Site = Site::new();
    }
    SITE.with(|site| site.runtime.block_on(one(site, bytes)));
}

async fn one(site: &Site, bytes: &[u8]) {
    let (expected, alone) = alone(bytes).await;
    let mut methods: Vec<String> = expected.iter().map(|expected| expected.request.method.clone()).collect();
    let answers = wire::answers(&alone, &methods).expect("hyper's answers").len();
    // Those that are answered without an end of the browser's side, and before a refusal that may be the
    // last.
    let passes = |expected: &&Expected| expected.is_whole && !expected.is_refused;
    let (strict, verdict) = wire::followed(bytes);
    // hyper may have read a method where the director reads nothing at all, and answers with words.
    methods.truncate(strict);
    let good = expected.iter().take(strict).take_while(passes).count();
    site.node(None);
    let got = site.browse(bytes, &methods, good).await;
    let node = site.node(None);
    assert!(node.faults.is_empty(), "{:?}", node.faults);
    let got = wire::answers(&got, &methods).expect("strictly formed answers");
    assert!(
        (good..=answers.max(strict + 1)).contains(&got.len()),
        "{} answers, not {good} to {answers}",
        got.len()
    );
    assert!(got.iter().take(good).all(|(answer, _)| answer.status == 200), "{got:?}");

    assert!(node.seen.len() <= strict, "more than the strict reader finds ({verdict:?}): {:?}", node.seen);
    let mut passing = expected.iter().filter(passes);
    for seen in &node.seen {
        let expected = passing.next().unwrap_or_else(|| panic!("smuggled: {seen:?}"));
        compare(seen, expected);
    }
    let is_all_good = verdict.is_ok() && expected.iter().all(|expected| passes(&expected));
    if let Some(swallowed) = passing.next() {
        assert!(!is_all_good, "swallowed: {:?}", swallowed.request);
    }
}

fn compare(seen: &Request, Expected { request, is_http_11, .. }: &Expected) {
    let head = |request: &Request| (request.method.clone(), request.target.clone());
    assert_eq!(head(seen), head(request));
    assert_eq!(seen.body.escape_ascii().to_string(), request.body.escape_ascii().to_string());
    assert_eq!(
        end_to_end(&seen.headers, &OWN, &KEPT),
        end_to_end(&request.headers, &OWN, &KEPT),
        "headers of {seen:?}"
    );
    for gone in ["keep-alive", "proxy-connection", "http2-settings"] {
        assert!(!seen.headers.contains_key(gone), "{gone} in {seen:?}");
    }
    let hop = seen.headers.get("connection").map_or(&[][..], Vec::as_slice);
    assert!(matches!(hop, [] | [_]) && hop.iter().all(|it| it == b"te" || it == b"upgrade"), "{seen:?}");
    let cookies = request.headers.get("cookie").map(|lines| lines.join(&b"; "[..]));
    assert_eq!(seen.headers.get("cookie").map(|lines| lines.join(&b"\n"[..])), cookies, "{seen:?}");
    assert!(!seen.headers.contains_key("selvage-elsewhere"), "{seen:?}");
    assert_eq!(seen.headers["x-forwarded-proto"], [b"http"]);
    let [chain] = &seen.headers["x-forwarded-for"][..] else { panic!("two chains: {seen:?}") };
    assert_eq!(chain, BROWSER.to_string().as_bytes(), "{seen:?}");
    let [via] = &seen.headers["via"][..] else { panic!("two chains: {seen:?}") };
    assert!(via.ends_with(b" selvage"), "{seen:?}");
    if *is_http_11 || request.headers.contains_key("host") {
        assert_eq!(seen.headers["host"], request.headers["host"]);
        assert_eq!(seen.headers["x-forwarded-host"], request.headers["host"]);
    }
}

/// What hyper's server makes of the same bytes, and what it answers.
async fn alone(bytes: &[u8]) -> (Vec<Expected>, Vec<u8>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (mut browser, stream) = tokio::io::duplex(1 << 20);
    let service = service_fn(|request: hyper::Request<Incoming>| {
        let seen = Arc::clone(&seen);
        async move {
            let expected = note(request).await;
            let mut answer = Response::new(Full::new(Bytes::from_static(b"ok")));
            if expected.is_refused {
                *answer.status_mut() = StatusCode::BAD_REQUEST;
            }
            seen.lock().unwrap_or_else(PoisonError::into_inner).push(expected);
            Ok::<_, Infallible>(answer)
        }
    });
    // The browser's end comes right behind its bytes here, and is no reason to drop what it has asked for.
    let serving = http1::Builder::new()
        .half_close(true)
        .max_headers(HEADERS_CEILING)
        .serve_connection(TokioIo::new(stream), service);
    let mut answers = Vec::new();
    let talking = async {
        let _ = browser.write_all(bytes).await;
        let _ = browser.shutdown().await;
        let _ = browser.read_to_end(&mut answers).await;
    };
    let _ = tokio::join!(serving, talking);
    let seen = std::mem::take(&mut *seen.lock().unwrap_or_else(PoisonError::into_inner));
    (seen, answers)
}

async fn note(request: hyper::Request<Incoming>) -> Expected {
    let (head, mut rest) = request.into_parts();
    let mut headers = headers_of(&head.headers);
    let path = head.uri.path_and_query();
    let hosts = headers.get("host").map_or(&[][..], Vec::as_slice);
    let is_http_11 = head.version == Version::HTTP_11;
    let names_one = match hosts {
        [] => !is_http_11,
        [host] => is_host(host),
        _ => false,
    };
    let authority = head.uri.authority().map(|authority| authority.as_str().as_bytes().to_vec());
    let expects = headers.get("expect").map_or(&[][..], Vec::as_slice);
    let is_strange = match expects {
        [] => false,
        [expects] => is_http_11 && !expects.eq_ignore_ascii_case(b"100-continue"),
        _ => is_http_11,
    };
    let is_refused = head.method == Method::CONNECT
        || is_strange
        || path.is_none()
        || !names_one
        || authority.as_ref().is_some_and(|authority| !is_host(authority));
    if let Some(authority) = authority {
        headers.insert("host".to_owned(), vec![authority]);
    }
    let mut body = Vec::new();
    let mut is_whole = true;
    while let Some(frame) = rest.frame().await {
        match frame {
            Ok(frame) => body.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data)),
            Err(_) => {
                is_whole = false;
                break;
            }
        }
    }
    let request = Request {
        method: head.method.to_string(),
        target: path.map_or(String::new(), origin_form),
        headers,
        body,
    };
    Expected { request, is_whole, is_refused, is_http_11 }
}

/// Whatever form it came in, and as the node reads it: byte by byte.
fn origin_form(path: &PathAndQuery) -> String {
    let slash = if path.as_str().starts_with('?') { "/" } else { "" };
    format!("{slash}{}", path.as_str()).bytes().map(char::from).collect()
}

/// A host as the director takes it.
fn is_host(host: &[u8]) -> bool {
    let text = std::str::from_utf8(host).ok();
    text.is_some_and(|text| !text.contains('@') && text.parse::<hyper::http::uri::Authority>().is_ok())
}

pub fn seeds() -> Vec<Vec<u8>> {
    let post = "POST /session/a HTTP/1.1\r\nhost: shop.example\r\n";
    let mut seeds: Vec<String> = [
        "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET /old HTTP/1.0\r\n\r\n",
        "GET /old HTTP/1.0\r\nconnection: keep-alive\r\n\r\nGET /2 HTTP/1.0\r\n\r\n",
        "GET http://real.example:80/p?q HTTP/1.1\r\nhost: other\r\nconnection: close\r\n\r\n",
        "GET http://user@real.example/ HTTP/1.1\r\nhost: other\r\n\r\n",
        "GET http://real.example?q HTTP/1.1\r\nhost: other\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n",
        "CONNECT a:443 HTTP/1.1\r\nhost: a\r\n\r\n",
        "HEAD /a%20b?c=d&e#f HTTP/1.1\r\nHost: a\r\nX-A: 1\r\nX-A: 2\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a, b\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: [::1]:80\r\nconnection: upgrade, x-mine\r\nupgrade: websocket\r\n\
         x-mine: 1\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nconnection: close, cookie, host\r\nte: trailers\r\nkeep-alive: 5\r\n\
         proxy-connection: x\r\nproxy-authorization: y\r\ncookie: selvage=x\r\nselvage-elsewhere: z\r\n\
         x-forwarded-for: 10.0.0.1\r\nx-forwarded-proto: https\r\nx-forwarded-host: evil\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "GET / HTTP/1.1\nhost: a\n\n",
        "GET / HTTP/1.1\r\nhost: a\r\nx: a\r\n b\r\n\r\n",
        "\r\n\r\nGET / HTTP/1.1\r\nhost:a\r\n\r\nGET /2 HTTP/1.1\r\nhost:a\r\n\r\n",
    ]
    .map(str::to_owned)
    .to_vec();
    for framing in [
        "content-length: 5\r\n\r\nhello",
        "content-length: 5\r\n\r\nhelloGET /2 HTTP/1.1\r\nhost: b\r\n\r\n",
        "content-length: 5\r\ncontent-length: 5\r\n\r\nhello",
        "content-length: 5, 5\r\n\r\nhello",
        "content-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
        "content-length: +5\r\n\r\nhello",
        "content-length: 100\r\n\r\nshort",
        "expect: 100-continue\r\ncontent-length: 5\r\n\r\nhello",
        "transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "transfer-encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nx-t: 1\r\n\r\n\
         GET /2 HTTP/1.1\r\nhost: b\r\n\r\n",
        "transfer-encoding: chunked\r\ntrailer: x-t\r\n\r\n\
         28\r\n0123456789012345678901234567890123456789\r\n0\r\nx-t: 1\r\n\r\n",
        "content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\nGET /2 HTTP/1.1\r\nhost: b\r\n\r\n",
        "transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "transfer-encoding: xchunked\r\ncontent-length: 5\r\n\r\nhello",
        "transfer-encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "connection: transfer-encoding\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "connection: content-length\r\ncontent-length: 40\r\n\r\n0123456789012345678901234567890123456789",
    ] {
        seeds.push(format!("{post}{framing}"));
    }
    seeds.into_iter().map(String::into_bytes).collect()
}
