//! Upgraded connections: WebSocket by a client of its own, and what ends them.

use super::*;
use futures_util::{SinkExt, StreamExt};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, accept_async, client_async};

const ASKS: &str = "GET /any HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: any/1\r\n\r\n";
const GRANTED: &str = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: any/1\r\n\r\n";

async fn one(extra: &str) -> (Bench, RawNode) {
    let bench = Bench::start(1000, extra).await;
    let node = RawNode::start(1).await;
    let mut only = view(1, &[]);
    only.nodes.push(node.entry());
    bench.publish(only);
    (bench, node)
}

/// A tunnel: the browser's end and the node's.
async fn tunnel(bench: &Bench, node: &RawNode) -> (RawStream, RawStream) {
    let mut browser = RawStream::browser(bench).await;
    browser.say(ASKS).await;
    let mut stream = node.accept().await;
    let head = stream.hear("\r\n\r\n").await;
    assert!(head.contains("upgrade: any/1") && head.contains("connection: upgrade"), "{head}");
    stream.say(GRANTED).await;
    let head = browser.hear("\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 101 ") && head.contains("upgrade: any/1"), "{head}");
    (browser, stream)
}

async fn next(socket: &mut WebSocketStream<TcpStream>) -> Message {
    let next = tokio::time::timeout(WAIT, socket.next()).await.expect("a message");
    next.expect("not the end").expect("a good one")
}

async fn send(socket: &mut WebSocketStream<TcpStream>, message: Message) {
    tokio::time::timeout(WAIT, socket.send(message)).await.expect("in time").expect("sent");
}

#[test]
fn a_websocket_passes() {
    run(async {
        let (bench, node) = one("").await;
        let serving = async {
            let accepted = node.listener.accept().await.unwrap().0;
            let mut socket = accept_async(accepted).await.unwrap();
            // The library answers the closing message, and then there is no next one.
            while let Some(Ok(message)) = tokio::time::timeout(WAIT, socket.next()).await.unwrap() {
                if !message.is_close() {
                    send(&mut socket, message).await;
                }
            }
        };
        let browsing = async {
            let stream = TcpStream::connect(bench.address).await.unwrap();
            let (mut socket, answer) = client_async("ws://shop.example/chat", stream).await.unwrap();
            assert_eq!(answer.status(), StatusCode::SWITCHING_PROTOCOLS);
            for message in
                [Message::text("hello"), Message::binary(vec![7_u8; 1 << 20]), Message::text("bye")]
            {
                send(&mut socket, message.clone()).await;
                assert!(next(&mut socket).await == message);
            }
            socket.close(None).await.unwrap();
            while !matches!(next(&mut socket).await, Message::Close(_)) {}
        };
        tokio::join!(serving, browsing);
        // Its place is free again.
        tokio::time::timeout(WAIT, bench.routes.idle(Incarnation(1))).await.expect("idle");
    });
}

#[test]
fn bytes_behind_the_wish_pass_after_the_answer_and_are_no_http() {
    run(async {
        let (bench, node) = one("").await;
        let mut browser = RawStream::browser(&bench).await;
        browser.say(&format!("{ASKS}\n\0 no HTTP")).await;
        let mut stream = node.accept().await;
        stream.hear("\r\n\r\n").await;
        stream.hears_nothing().await;
        stream.say(GRANTED).await;
        stream.hear("\n\0 no HTTP").await;
        browser.hear("\r\n\r\n").await;
        stream.say("nor this").await;
        browser.hear("nor this").await;
        // One side's end is only that side's.
        stream.stream.shutdown().await.unwrap();
        assert_eq!(browser.hear_out().await, "");
        browser.say("last words").await;
        browser.stream.shutdown().await.unwrap();
        assert_eq!(stream.hear_out().await, "last words");
        tokio::time::timeout(WAIT, bench.routes.idle(Incarnation(1))).await.expect("idle");
    });
}

#[test]
fn an_answer_to_an_earlier_request_decides_nothing_about_the_wish() {
    run(async {
        let (bench, node) = one("").await;
        let mut browser = RawStream::browser(&bench).await;
        browser.say(&format!("GET /first HTTP/1.1\r\nhost: a\r\n\r\n{ASKS}\n\0 no HTTP")).await;
        let mut stream = node.accept().await;
        assert!(stream.hear("\r\n\r\n").await.starts_with("GET /first "));
        stream.say("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        browser.hear("ok").await;
        assert!(stream.hear("\r\n\r\n").await.starts_with("GET /any "));
        stream.hears_nothing().await;
        stream.say(GRANTED).await;
        assert!(browser.hear("\r\n\r\n").await.starts_with("HTTP/1.1 101 "));
        stream.hear("\n\0 no HTTP").await;
        browser.say("nor this\n").await;
        assert_eq!(stream.hear("\n").await, "nor this\n");
    });
}

#[test]
fn a_node_may_decline_and_the_connection_goes_on() {
    run(async {
        let (bench, node) = one("").await;
        let mut browser = RawStream::browser(&bench).await;
        browser.say(&format!("{ASKS}GET /second HTTP/1.1\r\nhost: a\r\n\r\n")).await;
        let mut stream = node.accept().await;
        stream.hear("\r\n\r\n").await;
        stream.say("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno").await;
        browser.hear("no").await;
        assert!(stream.hear("\r\n\r\n").await.starts_with("GET /second "));
        stream.say("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        browser.hear("ok").await;
        // Behind a wish that was declined requests are checked like any others.
        browser.say(&format!("{ASKS}GET /bad HTTP/1.1\nhost: a\r\n\r\n")).await;
        stream.hear("\r\n\r\n").await;
        stream.say("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno").await;
        browser.hear("no").await;
        assert!(browser.hear_out().await.starts_with("HTTP/1.1 400 "));
        stream.hears_nothing().await;
    });
}

#[test]
fn what_is_no_good_wish_is_none() {
    run(async {
        let (bench, node) = one("").await;
        for wish in [
            "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\n\
             http2-settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket, H2C\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: HTTP/2.0\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\n\r\n",
            "GET / HTTP/1.0\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
            "POST / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
             content-length: 2\r\n\r\nhi",
        ] {
            let mut browser = RawStream::browser(&bench).await;
            browser.say(wish).await;
            let mut stream = node.accept().await;
            let head = stream.hear("\r\n\r\n").await;
            assert!(!head.contains("\r\nupgrade:") && !head.contains("settings"), "{wish}: {head}");
            // A node that switches all the same is not believed.
            stream.say(GRANTED).await;
            browser.hear("502 Bad Gateway").await;
        }
        // Nor one that switches to something else.
        let mut browser = RawStream::browser(&bench).await;
        browser.say(ASKS).await;
        let mut stream = node.accept().await;
        stream.hear("\r\n\r\n").await;
        stream.say(&GRANTED.replace("any/1", "other")).await;
        browser.hear("502 Bad Gateway").await;
    });
}

#[test]
fn a_tunnel_is_cut_with_its_node() {
    run(async {
        let (bench, node) = one("").await;
        let (mut browser, mut stream) = tunnel(&bench, &node).await;
        bench.publish(view(2, &[]));
        assert_eq!(browser.hear_out().await, "");
        assert_eq!(stream.hear_out().await, "");
    });
}

#[test]
fn a_tunnel_is_under_way_until_its_node_hands_its_sessions_over() {
    run(async {
        let (bench, node) = one("").await;
        let (mut browser, mut stream) = tunnel(&bench, &node).await;
        let early = tokio::time::timeout(Duration::from_millis(100), bench.routes.idle(Incarnation(1))).await;
        assert!(early.is_err(), "it is under way");
        let mut only = view(2, &[]);
        only.nodes.push(node.entry());
        let only = Arc::new(only);
        // A hold that is taken back in time costs it nothing.
        bench.routes.publish(&only, &[Incarnation(1)]);
        pause(50).await;
        bench.routes.publish(&only, &[]);
        pause(400).await;
        stream.say("still here").await;
        browser.hear("still here").await;
        let begun = std::time::Instant::now();
        bench.routes.publish(&only, &[Incarnation(1)]);
        tokio::time::timeout(WAIT, bench.routes.idle(Incarnation(1))).await.expect("idle");
        assert!(begun.elapsed() >= Duration::from_millis(1000) / crate::limits::TUNNEL_HOLD_SHARE);
        assert_eq!(browser.hear_out().await, "");
        assert_eq!(stream.hear_out().await, "");
    });
}

#[test]
fn a_silent_tunnel_ends() {
    run(async {
        let (bench, node) = one("tunnel_timeout_ms = 300").await;
        let (mut browser, mut stream) = tunnel(&bench, &node).await;
        for _ in 0..4 {
            pause(100).await;
            browser.say("x").await;
            stream.hear("x").await;
        }
        let begun = std::time::Instant::now();
        assert_eq!(browser.hear_out().await, "");
        assert_eq!(stream.hear_out().await, "");
        assert!(begun.elapsed() >= Duration::from_millis(200), "{:?}", begun.elapsed());
    });
}
