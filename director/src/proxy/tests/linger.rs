//! A browser that is refused while it is still sending.

use super::*;
use crate::limits;
use std::io::ErrorKind;
use tokio::time::{Instant, timeout};

/// More than the kernel keeps for a reader that does not read.
const BODY_BYTES: usize = 16 << 20;

/// A node that refuses a body as soon as it sees the head, and closes its side, as nginx does.
async fn refusing() -> (Incarnation, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.windows(4).any(|window| window == b"\r\n\r\n") {
                assert!(stream.read_buf(&mut head).await.unwrap() > 0);
            }
            let answer =
                "HTTP/1.1 413 Payload Too Large\r\ncontent-length: 8\r\nconnection: close\r\n\r\ntoo much";
            stream.write_all(answer.as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
            // Nobody reads the body; it would not end well for the answer if the node closed at once.
            tokio::spawn(async move {
                pause(2000).await;
                drop(stream);
            });
        }
    });
    (Incarnation(1), address)
}

/// Begins a request with a large body.
async fn begin(bench: &Bench, bytes: usize) -> TcpStream {
    let mut stream = TcpStream::connect(bench.address).await.unwrap();
    let head = format!("POST /large HTTP/1.1\r\nhost: a\r\ncontent-length: {BODY_BYTES}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&vec![b'x'; bytes]).await.unwrap();
    stream
}

/// Sends the rest, which nobody wants, and only then reads.
async fn go_on(mut stream: TcpStream, sent: usize) -> String {
    let rest = vec![b'x'; BODY_BYTES - sent];
    timeout(WAIT, stream.write_all(&rest)).await.expect("the rest is taken").expect("and not reset");
    let mut answer = Vec::new();
    timeout(WAIT, stream.read_to_end(&mut answer)).await.expect("an end").expect("and no reset");
    String::from_utf8(answer).unwrap()
}

#[test]
fn a_refusal_reaches_a_browser_that_is_still_sending() {
    run(async {
        let bench = Bench::start(2000, "").await;
        let (incarnation, address) = refusing().await;
        let nodes = vec![entry(incarnation, address)];
        let epoch = Epoch { term: 1, number: 1 };
        bench.publish(View { epoch, copies: 1, nodes, ..View::default() });
        let sent = 128 << 10;
        let answer = go_on(begin(&bench, sent).await, sent).await;
        assert!(answer.starts_with("HTTP/1.1 413") && answer.ends_with("too much"), "{answer}");
        assert!(answer.contains("connection: close\r\n"), "{answer}");
    });
}

#[test]
fn the_directors_own_refusal_does_so_too() {
    run(async {
        let bench = Bench::start(100, "").await;
        bench.publish(view(1, &[]));
        let sent = 128 << 10;
        let answer = go_on(begin(&bench, sent).await, sent).await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert!(answer.contains("connection: close\r\n"), "{answer}");
        // A request that has come whole is no reason to give a connection up.
        let one = bench.get("").await;
        assert_eq!((one.status, one.headers.get("connection")), (StatusCode::SERVICE_UNAVAILABLE, None));
    });
}

#[test]
fn a_refused_browser_that_falls_silent_is_left() {
    run(async {
        let bench = Bench::start(100, "").await;
        bench.publish(view(1, &[]));
        let began = Instant::now();
        let mut answer = Vec::new();
        let mut stream = begin(&bench, 128 << 10).await;
        timeout(WAIT, stream.read_to_end(&mut answer)).await.expect("an answer").unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 503"), "{}", answer.escape_ascii());
        pause(limits::LINGER_SILENCE.as_millis() as u64 + 500).await;
        let gone = loop {
            if let Err(error) = stream.write_all(b"x").await {
                break error;
            }
            assert!(began.elapsed() < 4 * limits::LINGER_SILENCE, "it is still there");
            pause(10).await;
        };
        assert!(matches!(gone.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{gone}");
    });
}
