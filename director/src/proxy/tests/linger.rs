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

const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";

/// Two requests, the second while the first is under way, and what comes of them.
async fn two_at_once(bench: &Bench, one: &str, two: &str) -> String {
    let mut stream = TcpStream::connect(bench.address).await.unwrap();
    stream.write_all(one.as_bytes()).await.unwrap();
    pause(50).await;
    stream.write_all(two.as_bytes()).await.unwrap();
    let mut answers = Vec::new();
    timeout(WAIT, stream.read_to_end(&mut answers)).await.expect("an end").expect("and no reset");
    String::from_utf8(answers).unwrap()
}

/// The statuses of answers.
fn statuses(answers: &str) -> Vec<&str> {
    answers.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect()
}

const LAST: &str = "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";

#[test]
fn the_next_request_is_no_unread_body_of_a_refused_one() {
    run(async {
        let bench = Bench::start(150, "").await;
        bench.publish(view(1, &[]));
        let answers = two_at_once(&bench, GET, LAST).await;
        assert_eq!(statuses(&answers), ["503", "503"], "refused by the director: {answers}");
        assert_eq!(answers.matches("connection: close").count(), 1, "{answers}");
        for status in [StatusCode::NOT_FOUND, StatusCode::PAYLOAD_TOO_LARGE, StatusCode::SERVICE_UNAVAILABLE]
        {
            let node = FakeNode::start(1, move |_| async move {
                pause(150).await;
                let mut answer = text("no");
                *answer.status_mut() = status;
                answer
            })
            .await;
            bench.publish(view(2, &[&node]));
            // A body that has come whole is no unread one, either.
            let post = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody";
            for one in [GET, post] {
                let answers = two_at_once(&bench, one, LAST).await;
                assert_eq!(statuses(&answers), [status.as_str(); 2], "refused by the node: {answers}");
                assert_eq!(answers.matches("connection: close").count(), 1, "{answers}");
            }
        }
    });
}

#[test]
fn an_unread_body_is_no_request() {
    run(async {
        let bench = Bench::start(100, "").await;
        let (incarnation, address) = refusing().await;
        let nodes = vec![entry(incarnation, address)];
        bench.publish(View { epoch: Epoch { term: 1, number: 1 }, copies: 1, nodes, ..View::default() });
        let long = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9000000\r\n\r\n";
        let answers = two_at_once(&bench, long, &GET.repeat(100)).await;
        assert_eq!(statuses(&answers), ["413"], "{answers}");
        assert!(answers.contains("connection: close"), "{answers}");
    });
}

#[test]
fn what_comes_behind_the_last_request_does_not_reset_its_answer() {
    run(async {
        let bench = Bench::start(2000, "").await;
        let node = FakeNode::start(1, |_| async {
            pause(150).await;
            text("1")
        })
        .await;
        bench.publish(view(1, &[&node]));
        let mut stream = TcpStream::connect(bench.address).await.unwrap();
        // One comes with it, and the others when nobody reads any more.
        stream.write_all(format!("{LAST}{GET}").as_bytes()).await.unwrap();
        pause(50).await;
        stream.write_all(GET.repeat(1000).as_bytes()).await.unwrap();
        let mut answers = Vec::new();
        timeout(WAIT, stream.read_to_end(&mut answers)).await.expect("an end").expect("and no reset");
        assert_eq!(statuses(&String::from_utf8(answers).unwrap()), ["200"]);
        // Nobody answers it any more, and nobody resets the connection for it.
        pause(50).await;
        stream.write_all(GET.as_bytes()).await.expect("it is taken");
        pause(50).await;
        stream.write_all(GET.as_bytes()).await.expect("it is taken");
    });
}
