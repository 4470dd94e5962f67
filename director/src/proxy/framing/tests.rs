//! The machine, cut at every byte; the stream around it, with pieces of every length.

use super::*;
use crate::limits;
use crate::proxy::browser::{Browser, Upgrade};
use crate::proxy::settings::{Live, Settings};
use arc_swap::ArcSwap;
use selvage_fabric::config::Config;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

const BOUNDS: Bounds = Bounds { head_bytes_max: 300, headers_max: 8, target_bytes_max: 60 };

/// What became of bytes: requests that ended, bytes understood, and the fault.
type Followed = (usize, usize, Option<Fault>);

/// Feeds pieces.
fn follow<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Followed {
    let mut framing = Framing::new(BOUNDS);
    let (mut ended, mut understood) = (0, 0);
    for piece in pieces {
        let mut at = 0;
        while at < piece.len() {
            match framing.advance(&piece[at..]) {
                Ok(Taken { bytes, event }) => {
                    assert!(bytes > 0);
                    at += bytes;
                    understood += bytes;
                    ended +=
                        usize::from(matches!(event, Some(Event::End | Event::Head { has_body: false, .. })));
                }
                Err(fault) => return (ended, understood, Some(fault)),
            }
        }
    }
    (ended, understood, None)
}

/// Feeds bytes whole, byte by byte, and in two pieces cut anywhere: all must find the same.
fn check(text: &str) -> (usize, Option<Fault>) {
    let bytes = text.as_bytes();
    let (ended, _, fault) = follow([bytes]);
    let bytewise = follow(bytes.chunks(1));
    assert_eq!((bytewise.0, bytewise.2), (ended, fault), "{text:?}");
    for at in 0..bytes.len() {
        let cut = follow([&bytes[..at], &bytes[at..]]);
        assert_eq!((cut.0, cut.2), (ended, fault), "{text:?}, cut at {at}");
    }
    (ended, fault)
}

fn good(text: &str, requests: usize) {
    assert_eq!(check(text), (requests, None), "{text:?}");
}

fn bad(text: &str, fault: Fault) {
    assert_eq!(check(text), (0, Some(fault)), "{text:?}");
    // Behind a good one it is as bad.
    assert_eq!(check(&format!("GET / HTTP/1.1\r\nhost: a\r\n\r\n{text}")), (1, Some(fault)), "{text:?}");
}

#[test]
fn good_requests_pass() {
    good("GET / HTTP/1.1\r\nhost: a\r\n\r\n", 1);
    good("GET / HTTP/1.0\r\n\r\n", 1);
    good("\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n", 1);
    good("OPTIONS * HTTP/1.1\r\nhost:a\r\nx:\r\ny:\t b\tc \r\n\r\n", 1);
    good("GET http://a:80/?q={1}|2 HTTP/1.1\r\nhost: a\r\nx-\u{e4}: 1".split('\u{e4}').next().unwrap(), 0);
    good("POST / HTTP/1.1\r\ncontent-length: 5\r\n\r\nhelloGET / HTTP/1.1\r\n\r\n", 2);
    good("POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\nGET / HTTP/1.1\r\n\r\n", 2);
    good(
        "POST / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        2,
    );
    good(
        "POST / HTTP/1.1\r\ntransfer-encoding:chunked\r\n\r\n0005;a=b;c=\"d e\"\r\nhello\r\n\
         A \t;x\r\n0123456789\r\n\
          0\r\nx-t: 1\r\ny: \r\n\r\n",
        1,
    );
    // A body may have anything in it.
    good("POST / HTTP/1.1\r\ncontent-length: 6\r\n\r\n\r\n\n\0\r\n", 1);
    good("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n4\r\n\0\n\r\r\r\n0\r\n\r\n", 1);
}

#[test]
fn bad_lines_are_found() {
    bad("GET / HTTP/1.1\nhost: a\r\n\r\n", Fault::BareLf);
    bad("GET / HTTP/1.1\r\nhost: a\n\n", Fault::BareLf);
    bad("GET / HTTP/1.1\r\nhost: a\r\n\n", Fault::BareLf);
    bad("GET / HTTP/1.1\rhost: a\r\n\r\n", Fault::BareCr);
    bad("GET / HTTP/1.1\r\nhost: a\r\r\n\r\n", Fault::BareCr);
    bad("GET / HTTP/1.1\r\nhost: a\0b\r\n\r\n", Fault::Control(0));
    bad("GET / HTTP/1.1\r\nhost: a\x0bb\r\n\r\n", Fault::Control(0x0b));
    bad("GET / HTTP/1.1\r\nhost: \x7f\r\n\r\n", Fault::Control(0x7f));
    bad("GET / HTTP/1.1\r\nx: a\r\n b\r\n\r\n", Fault::Fold);
    bad("GET / HTTP/1.1\r\n\tx: a\r\n\r\n", Fault::Fold);
    bad("GET / HTTP/1.1\r\nhost : a\r\n\r\n", Fault::SpaceBeforeColon);
    bad("GET / HTTP/1.1\r\ncontent-length\t: 4\r\n\r\n", Fault::SpaceBeforeColon);
    bad("GET / HTTP/1.1\r\nhost\r\n\r\n", Fault::HeaderLine);
    bad("GET / HTTP/1.1\r\n: a\r\n\r\n", Fault::HeaderLine);
    bad("GET / HTTP/1.1\r\nho st: a\r\n\r\n", Fault::HeaderLine);
    bad("GET / HTTP/1.1\r\nhost\u{e4}: a\r\n\r\n", Fault::HeaderLine);
}

#[test]
fn bad_request_lines_are_found() {
    for line in [
        "GET /",
        "GET  / HTTP/1.1",
        "GET / HTTP/1.1 ",
        " GET / HTTP/1.1",
        "GET / a HTTP/1.1",
        "GET\t/\tHTTP/1.1",
        "G@T / HTTP/1.1",
        "GET /\u{e4} HTTP/1.1",
        "GET /a#b HTTP/1.1",
        "GET / http/1.1",
        "GET / HTTP/1.11",
        "GET / HTTP/1,1",
        "GET / HTTP/.1",
        "ABCDEFGHIJKLMNOPQRSTUVWXYZABCDEFG / HTTP/1.1",
    ] {
        bad(&format!("{line}\r\n"), Fault::RequestLine);
    }
    for version in ["0.9", "1.2", "2.0", "3.0"] {
        bad(&format!("GET / HTTP/{version}\r\n"), Fault::Version);
    }
    bad(&"\r\n".repeat(limits::EMPTY_LINES_MAX + 1), Fault::RequestLine);
}

#[test]
fn lengths_that_could_be_read_in_two_ways_are_found() {
    let head = "POST / HTTP/1.1\r\n";
    for value in ["", "+5", "-5", "5, 5", "5,5", "5 5", "0x5", "5a", "\u{b2}", "9999999999999999", "1e1"] {
        bad(&format!("{head}content-length: {value}\r\n\r\n"), Fault::Length);
    }
    bad(&format!("{head}content-length: 5\r\ncontent-length: 5\r\n\r\nhello"), Fault::Lengths);
    bad(&format!("{head}content-length: 5\r\nContent-Length: 6\r\n\r\nhello"), Fault::Lengths);
    for pair in [
        "content-length: 5\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ncontent-length: 5",
        "transfer-encoding: chunked\r\ncontent-length: 0",
    ] {
        bad(&format!("{head}{pair}\r\n\r\n0\r\n\r\n"), Fault::LengthAndCoding);
    }
    for value in ["gzip", "identity", "xchunked", "gzip, chunked", "chunked;q=1", "\"chunked\"", "chunke"] {
        bad(&format!("{head}transfer-encoding: {value}\r\n\r\n"), Fault::UnknownCoding);
    }
    for value in ["", "chunked, chunked", "chunked, identity", "chunked,", ", chunked"] {
        bad(&format!("{head}transfer-encoding: {value}\r\n\r\n"), Fault::Coding);
    }
    bad(&format!("{head}transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n"), Fault::Coding);
    bad("POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n", Fault::CodingInOldVersion);
}

#[test]
fn bad_chunks_and_trailers_are_found() {
    let head = "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n";
    for line in ["", " 5", "5 ", "5 x", "0x5", "-5", "+5", "g", "5:a", ";a", "1234567890abcdef"] {
        bad(&format!("{head}{line}\r\nhello\r\n0\r\n\r\n"), Fault::ChunkSize);
    }
    bad(&format!("{head}5;{}\r\n", "a".repeat(limits::CHUNK_LINE_BYTES_MAX)), Fault::ChunkSize);
    bad(&format!("{head}5\nhello\r\n0\r\n\r\n"), Fault::BareLf);
    bad(&format!("{head}5;a\nb\r\nhello\r\n0\r\n\r\n"), Fault::BareLf);
    bad(&format!("{head}5;a\rb\r\nhello\r\n0\r\n\r\n"), Fault::BareCr);
    bad(&format!("{head}5\r\nhello!\r\n0\r\n\r\n"), Fault::ChunkEnd);
    bad(&format!("{head}5\r\nhello0\r\n\r\n"), Fault::ChunkEnd);
    bad(&format!("{head}5\r\nhello\n0\r\n\r\n"), Fault::BareLf);
    bad(&format!("{head}0\r\nx\r\n\r\n"), Fault::HeaderLine);
    bad(&format!("{head}0\r\nx: a\r\n b\r\n\r\n"), Fault::Fold);
    bad(&format!("{head}0\r\nx: a\n\r\n"), Fault::BareLf);
    let many = format!("1;{}\r\na\r\n", "x".repeat(200)).repeat(limits::EXTENSION_BYTES_MAX / 200 + 1);
    assert_eq!(follow([format!("{head}{many}").as_bytes()]).2, Some(Fault::Extensions));
}

#[test]
fn everything_has_a_bound() {
    bad(&format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(60)), Fault::Target);
    good(&format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(59)), 1);
    // Also without an end of the line.
    bad(&"a".repeat(200), Fault::Target);
    bad(&format!("GET / HTTP/1.1\r\nx: {}", "a".repeat(300)), Fault::HeadBytes);
    bad(&format!("GET / HTTP/1.1\r\n{}", "x: a\r\n".repeat(9)), Fault::HeaderCount);
    good(&format!("GET / HTTP/1.1\r\n{}\r\n", "x: a\r\n".repeat(8)), 1);
    bad(&format!("GET / HTTP/1.1\r\n{}", format!("x: {}\r\n", "a".repeat(90)).repeat(3)), Fault::HeadBytes);
    let head = "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n";
    bad(&format!("{head}{}", "x: a\r\n".repeat(9)), Fault::HeaderCount);
    bad(&format!("{head}x: {}", "a".repeat(300)), Fault::HeadBytes);
}

#[test]
fn who_may_leave_http_is_known() {
    let asks = |text: &str| {
        let Ok(Taken { event: Some(Event::Head { asks_upgrade, .. }), .. }) = text
            .split_inclusive('\n')
            .fold((Framing::new(BOUNDS), None), |(mut framing, _), line| {
                let taken = framing.advance(line.as_bytes());
                (framing, Some(taken))
            })
            .1
            .unwrap()
        else {
            panic!("no head: {text:?}")
        };
        asks_upgrade
    };
    let both = "connection: keep-alive, Upgrade\r\nupgrade: websocket\r\n";
    assert!(asks(&format!("GET / HTTP/1.1\r\n{both}\r\n")));
    assert!(!asks(&format!("GET / HTTP/1.0\r\n{both}\r\n")));
    assert!(!asks(&format!("GET / HTTP/1.1\r\n{both}content-length: 1\r\n\r\n")));
    assert!(!asks("GET / HTTP/1.1\r\nupgrade: websocket\r\n\r\n"));
    assert!(!asks("GET / HTTP/1.1\r\nconnection: upgrade\r\n\r\n"));
}

fn live(extra: &str) -> Live {
    let key = "11".repeat(32);
    let text = format!(
        "[cluster]\nname = \"t\"\nrun_dir = \"/run/t\"\ncookie_keys = [\"{key}\"]\n[director]\n{extra}\n\
         [[server]]\nname = \"s1\"\n[[node]]\nname = \"n1\"\naddress = \"127.0.0.1:1\"\n"
    );
    let config = Config::parse(Path::new("t.toml"), &text).unwrap();
    Arc::new(ArcSwap::from_pointee(Settings::new(&config)))
}

/// What a reader behind the check gets of bytes that come in pieces of `piece` bytes, read in pieces of
/// `read`; and the error at the end.
async fn read(bytes: &[u8], piece: usize, read: usize) -> (Vec<u8>, Option<std::io::Error>, Browser) {
    let (mut sender, stream) = tokio::io::duplex(piece);
    let browser = Browser::default();
    let mut checked = Checked::new(stream, browser.clone(), live(""));
    let sending = async {
        let _ = sender.write_all(bytes).await;
        let _ = sender.shutdown().await;
    };
    let reading = async {
        let mut got = Vec::new();
        let mut some = vec![0; read];
        loop {
            // Behind a refused request nothing ever comes.
            if got.ends_with(REFUSED) {
                let more = tokio::time::timeout(Duration::from_millis(1), checked.read(&mut some)).await;
                assert!(more.is_err());
                return (got, None);
            }
            match checked.read(&mut some).await {
                Ok(0) => return (got, None),
                Ok(read) => got.extend_from_slice(&some[..read]),
                Err(error) => return (got, Some(error)),
            }
        }
    };
    tokio::select! {
        // A refused sender may wait for ever.
        (got, error) = reading => (got, error, browser),
        () = async { sending.await; std::future::pending().await } => unreachable!(),
    }
}

fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test)
}

#[test]
fn good_bytes_pass_as_they_are_whatever_the_pieces() {
    let text = "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n\
                5;x=y\r\nhello\r\n0\r\nt: 1\r\n\r\n\
                GET /b HTTP/1.1\r\nhost: a\r\n\r\nPUT /c HTTP/1.1\r\ncontent-length: 3\r\n\r\nabc";
    run(async {
        for piece in 1..80 {
            for size in [1, 3, 50, 4096] {
                let (got, error, browser) = read(text.as_bytes(), piece, size).await;
                assert!(error.is_none() && browser.is_busy());
                assert_eq!(String::from_utf8_lossy(&got), text, "in pieces of {piece}, read by {size}");
            }
        }
    });
}

#[test]
fn nothing_of_a_bad_head_passes() {
    let before = "GET /b HTTP/1.1\r\nhost: a\r\n\r\n";
    run(async {
        for piece in 1..80 {
            for size in [1, 7, 4096] {
                let text =
                    format!("{before}POST /c HTTP/1.1\r\nhost: a\r\nx : y\r\n\r\nGET /d HTTP/1.1\r\n\r\n");
                let (got, error, browser) = read(text.as_bytes(), piece, size).await;
                assert!(error.is_none());
                assert_eq!(
                    got,
                    [before.as_bytes(), REFUSED].concat(),
                    "in pieces of {piece}, read by {size}"
                );
                let (_one, fault) = browser.begin();
                assert_eq!(fault, None);
                let (_two, fault) = browser.begin();
                assert_eq!(fault, Some(Fault::SpaceBeforeColon));
            }
        }
    });
}

#[test]
fn a_bad_body_breaks_off_before_the_bad_byte() {
    let head = "POST /c HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello";
    run(async {
        for piece in 1..80 {
            let text = format!("{head}GET /d HTTP/1.1\r\n\r\n");
            let (got, error, browser) = read(text.as_bytes(), piece, 4096).await;
            assert_eq!(error.map(|error| error.kind()), Some(std::io::ErrorKind::InvalidData));
            // What may come is the beginning of a chunk's end, which is none.
            assert!(
                got.starts_with(head.as_bytes()) && got.len() <= head.len() + 2,
                "{}",
                got.escape_ascii()
            );
            assert_eq!(browser.begin().1, Some(Fault::ChunkEnd));
        }
    });
}

#[test]
fn what_follows_a_wish_for_another_protocol_waits() {
    let asks = "GET /ws HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n";
    for (decision, rest, passes) in [
        (Upgrade::Yes, "\n no HTTP at all", "\n no HTTP at all".as_bytes()),
        (Upgrade::No, "\n no HTTP at all", REFUSED),
        (Upgrade::No, "GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"),
    ] {
        run(async {
            let (mut sender, stream) = tokio::io::duplex(4096);
            let browser = Browser::default();
            let mut checked = Checked::new(stream, browser.clone(), live(""));
            sender.write_all(format!("{asks}{rest}").as_bytes()).await.unwrap();
            let mut got = vec![0; 4096];
            let read = checked.read(&mut got).await.unwrap();
            assert_eq!(got[..read], *asks.as_bytes());
            let more = checked.read(&mut got);
            tokio::pin!(more);
            let early = tokio::time::timeout(Duration::from_millis(20), &mut more).await;
            assert!(early.is_err(), "nothing comes before it is answered");
            browser.begin().0.decide_upgrade(decision);
            let read = more.await.unwrap();
            assert_eq!(got[..read], *passes, "{rest:?} after {decision:?}");
        });
    }
}

#[test]
fn times_are_kept() {
    let ask = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    let settings = live("head_timeout_ms = 200\nkeepalive_timeout_ms = 400");
    // No sooner; later only because the machine has more to do.
    let took = |begun: Instant, ms: u64| {
        let took = begun.elapsed();
        assert!((ms..ms + 5_000).contains(&(took.as_millis() as u64)), "{took:?}, not {ms} ms");
    };
    run(async {
        // Nobody says anything.
        let (_sender, stream) = tokio::io::duplex(4096);
        let mut checked = Checked::new(stream, Browser::default(), Arc::clone(&settings));
        let begun = Instant::now();
        assert_eq!(checked.read(&mut [0; 64]).await.unwrap(), 0);
        took(begun, 200);

        // Half a head, and then byte by byte: no byte gives more time.
        let (mut sender, stream) = tokio::io::duplex(4096);
        let browser = Browser::default();
        let mut checked = Checked::new(stream, browser.clone(), Arc::clone(&settings));
        let begun = Instant::now();
        let drips = async {
            for byte in ask.as_bytes() {
                sender.write_all(&[*byte]).await.unwrap();
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let mut got = [0; 64];
        let read = tokio::select! {
            read = checked.read(&mut got) => read.unwrap(),
            () = drips => panic!("it took all day"),
        };
        assert_eq!((&got[..read], browser.begin().1), (REFUSED, Some(Fault::Late)));
        took(begun, 200);

        // Between two requests; but not while the first is being answered.
        let (mut sender, stream) = tokio::io::duplex(4096);
        let browser = Browser::default();
        let mut checked = Checked::new(stream, browser.clone(), Arc::clone(&settings));
        sender.write_all(ask.as_bytes()).await.unwrap();
        let read = checked.read(&mut got).await.unwrap();
        assert_eq!(got[..read], *ask.as_bytes());
        let (answering, _) = browser.begin();
        let early = tokio::time::timeout(Duration::from_millis(1000), checked.read(&mut got)).await;
        assert!(early.is_err(), "the answer may take its time");
        drop(answering);
        let begun = Instant::now();
        assert_eq!(checked.read(&mut got).await.unwrap(), 0);
        took(begun, 400);
    });
}

#[test]
fn a_browser_that_takes_nothing_is_given_up() {
    run(async {
        let (_reader, stream) = tokio::io::duplex(16);
        let mut checked = Checked::new(stream, Browser::default(), live("idle_timeout_ms = 200"));
        let begun = Instant::now();
        let error = checked.write_all(&[b'x'; 100]).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
        assert!(begun.elapsed() >= Duration::from_millis(200));
    });
}
