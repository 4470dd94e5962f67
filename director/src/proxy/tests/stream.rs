//! Bodies in both directions: as they come, within bounds, with trailers, and only when they are wanted.

use super::*;

const CHUNKED: &str = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";

/// A director with one node whose connections the test holds.
async fn one(extra: &str) -> (Bench, RawNode) {
    let bench = Bench::start(2000, extra).await;
    let node = RawNode::start(1).await;
    let mut only = view(1, &[]);
    only.nodes.push(node.entry());
    bench.publish(only);
    (bench, node)
}

#[test]
fn an_answer_passes_as_it_comes() {
    run(async {
        let (bench, node) = one("").await;
        let mut browser = RawStream::browser(&bench).await;
        browser.say("GET /events HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let mut stream = node.accept().await;
        stream.hear("\r\n\r\n").await;
        stream.say("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n").await;
        let head = browser.hear("\r\n\r\n").await;
        assert!(head.contains("transfer-encoding: chunked"), "{head}");
        for event in ["data: one\n\n", "data: two\n\n"] {
            stream.say(event).await;
            browser.hear(event).await;
        }
        drop(stream);
        browser.hear("0\r\n\r\n").await;
    });
}

#[test]
fn a_body_passes_as_it_comes_beyond_what_is_kept() {
    run(async {
        let (bench, node) = one("resend_body_bytes = 4").await;
        let mut browser = RawStream::browser(&bench).await;
        browser.say(CHUNKED).await;
        browser.say("3\r\nabc\r\n").await;
        let early = tokio::time::timeout(Duration::from_millis(100), node.accept()).await;
        assert!(early.is_err(), "what can be kept is kept");
        browser.say("3\r\ndef\r\n").await;
        let mut stream = node.accept().await;
        stream.hear("def").await;
        browser.say("4\r\nwxyz\r\n").await;
        stream.hear("wxyz").await;
        browser.say("0\r\n\r\n").await;
        stream.hear("0\r\n\r\n").await;
        stream.say("HTTP/1.1 204 No Content\r\n\r\n").await;
        browser.hear("204 No Content").await;
    });
}

#[test]
fn trailers_pass_both_ways_without_those_that_decide() {
    run(async {
        for kept in [0, 1000] {
            let (bench, node) = one(&format!("resend_body_bytes = {kept}")).await;
            let mut browser = RawStream::browser(&bench).await;
            browser
                .say(
                    "POST / HTTP/1.1\r\nhost: a\r\nte: trailers\r\nconnection: te\r\n\
                     transfer-encoding: chunked\r\n\
                     trailer: x-sum\r\ntrailer: cookie\r\n\r\n5\r\nhello\r\n0\r\nx-sum: 7\r\ncookie: a\r\n\
                     content-length: 9\r\nhost: b\r\nselvage-elsewhere: c\r\n\r\n",
                )
                .await;
            let mut stream = node.accept().await;
            let head = stream.hear("\r\n\r\n").await;
            assert!(head.contains("te: trailers") && head.contains("x-sum"), "{head}");
            let rest = stream.hear("7\r\n\r\n").await;
            assert!(rest.ends_with("hello\r\n0\r\nx-sum: 7\r\n\r\n"), "{rest}");
            stream
                .say(
                    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-end\r\n\r\n2\r\nhi\r\n0\r\n\
                     x-end: 8\r\nset-cookie: evil\r\n\r\n",
                )
                .await;
            let answer = browser.hear("8\r\n\r\n").await;
            assert!(answer.contains("trailer: x-end"), "{answer}");
            assert!(answer.ends_with("hi\r\n0\r\nx-end: 8\r\n\r\n"), "{answer}");
        }
    });
}

const EXPECTING: &str = "POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-Continue\r\ncontent-length: 5\r\n\r\n";

#[test]
fn the_node_says_whether_it_wants_an_awaited_body() {
    run(async {
        let (bench, node) = one("").await;
        let mut browser = RawStream::browser(&bench).await;
        browser.say(EXPECTING).await;
        let mut stream = node.accept().await;
        let head = stream.hear("\r\n\r\n").await;
        assert!(head.contains("expect: 100-continue"), "{head}");
        browser.hears_nothing().await;
        stream.say("HTTP/1.1 100 Continue\r\n\r\n").await;
        assert_eq!(browser.hear("\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
        browser.say("hello").await;
        stream.hear("hello").await;
        stream.say("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        assert!(browser.hear("ok").await.starts_with("HTTP/1.1 200 OK"));
    });
}

#[test]
fn a_node_can_refuse_an_awaited_body() {
    run(async {
        let (bench, node) = one("").await;
        let mut browser = RawStream::browser(&bench).await;
        browser.say(EXPECTING).await;
        let mut stream = node.accept().await;
        stream.hear("\r\n\r\n").await;
        stream.say("HTTP/1.1 413 Payload Too Large\r\ncontent-length: 3\r\n\r\n").await;
        // Longer than the director would wait for a word of the node.
        pause(crate::limits::CONTINUE_WAIT.as_millis() as u64 + 200).await;
        stream.say("big").await;
        let answer = browser.hear("big").await;
        assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
        assert!(!answer.contains("100 Continue"), "{answer}");
        // Nobody waits for the body any more, on neither side.
        assert_eq!(stream.hear_out().await, "");
        assert_eq!(browser.hear_out().await, "");
    });
}

#[test]
fn an_awaited_body_goes_where_the_session_is() {
    run(async {
        let bench = Bench::start(2000, "").await;
        let (one, two) = (RawNode::start(1).await, FakeNode::plain(2).await);
        let mut both = view(1, &[&two]);
        both.nodes.push(one.entry());
        bench.publish(both);
        let mut browser = RawStream::browser(&bench).await;
        let cookie = bench.cookie(1, 1);
        browser.say(&EXPECTING.replace("\r\n\r\n", &format!("\r\ncookie: {cookie}\r\n\r\n"))).await;
        let mut stream = one.accept().await;
        stream.hear("\r\n\r\n").await;
        let tag = Incarnation(2).tag();
        stream
            .say(&format!("HTTP/1.1 421 Elsewhere\r\nselvage-elsewhere: {tag}\r\ncontent-length: 0\r\n\r\n"))
            .await;
        browser.hear("100 Continue\r\n\r\n").await;
        browser.say("hello").await;
        assert!(browser.hear("\r\n\r\n2").await.starts_with("HTTP/1.1 200 OK"));
        assert_eq!(two.got()[0].body, "hello");
    });
}

#[test]
fn a_node_that_knows_no_expectations_gets_the_body_all_the_same() {
    run(async {
        let (bench, node) = one("").await;
        let mut browser = RawStream::browser(&bench).await;
        browser.say(EXPECTING).await;
        let mut stream = node.accept().await;
        stream.hear("\r\n\r\n").await;
        browser.hear("100 Continue\r\n\r\n").await;
        browser.say("hello").await;
        stream.hear("hello").await;
        stream.say("HTTP/1.1 204 No Content\r\n\r\n").await;
        browser.hear("204 No Content").await;
        // Anything else that is expected is not known to anybody.
        let mut browser = RawStream::browser(&bench).await;
        browser.say("GET / HTTP/1.1\r\nhost: a\r\nexpect: tea\r\n\r\n").await;
        browser.hear("417 Expectation Failed").await;
    });
}

#[test]
fn a_body_that_is_too_long_is_refused() {
    run(async {
        let (bench, node) = one("body_bytes_max = 10\nresend_body_bytes = 4").await;
        let mut browser = RawStream::browser(&bench).await;
        browser.say("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 11\r\n\r\n").await;
        let answer = browser.hear("too long").await;
        assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("connection: close"), "{answer}");
        // In chunks it is noticed late, and the node never gets all of it.
        let mut browser = RawStream::browser(&bench).await;
        browser.say(CHUNKED).await;
        browser.say("8\r\n01234567\r\n").await;
        let mut stream = node.accept().await;
        stream.hear("01234567").await;
        browser.say("3\r\nabc\r\n0\r\n\r\n").await;
        assert!(browser.hear("too long").await.starts_with("HTTP/1.1 413 "));
        let rest = stream.hear_out().await;
        assert!(!rest.contains("0\r\n\r\n"), "{rest}");
    });
}

#[test]
fn a_body_that_turns_out_bad_is_never_whole() {
    run(async {
        let (bench, node) = one("resend_body_bytes = 4").await;
        let mut browser = RawStream::browser(&bench).await;
        browser.say(CHUNKED).await;
        browser.say("8\r\n01234567\r\n").await;
        let mut stream = node.accept().await;
        stream.hear("01234567").await;
        browser.say("3\r\nabcGET /hidden HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let answer = browser.hear("chunk does not end").await;
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("connection: close"), "{answer}");
        let rest = stream.hear_out().await;
        assert!(!rest.contains("0\r\n\r\n") && !rest.contains("hidden"), "{rest}");
    });
}

#[test]
fn a_browser_that_stops_within_its_body_is_told_so() {
    run(async {
        let (bench, node) = one("resend_body_bytes = 4\nbody_timeout_ms = 150").await;
        for first in ["", "8\r\n01234567\r\n"] {
            let mut browser = RawStream::browser(&bench).await;
            browser.say(CHUNKED).await;
            browser.say(first).await;
            let answer = browser.hear("did not come in time").await;
            assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("connection: close"), "{answer}");
        }
        // Only the one that began to stream has come here, and it was never whole.
        let rest = node.accept().await.hear_out().await;
        assert!(rest.contains("01234567") && !rest.contains("0\r\n\r\n"), "{rest}");
    });
}

#[test]
fn a_node_that_falls_silent_is_given_up() {
    run(async {
        let (bench, node) = one("idle_timeout_ms = 150\nresponse_timeout_ms = 300").await;
        let mut browser = RawStream::browser(&bench).await;
        browser.say("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let mut stream = node.accept().await;
        stream.hear("\r\n\r\n").await;
        stream.say("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").await;
        assert!(browser.hear_out().await.ends_with("half"));
        assert_eq!(stream.hear_out().await, "");
        let mut browser = RawStream::browser(&bench).await;
        browser.say("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let mut stream = node.accept().await;
        assert!(browser.hear("did not answer in time").await.starts_with("HTTP/1.1 504 "));
        stream.hear_out().await;
    });
}

#[test]
fn a_node_is_not_late_while_the_body_is_on_its_way() {
    run(async {
        let (bench, node) = one("resend_body_bytes = 1\nresponse_timeout_ms = 400").await;
        let mut browser = RawStream::browser(&bench).await;
        browser.say(CHUNKED).await;
        browser.say("2\r\nab\r\n").await;
        let mut stream = node.accept().await;
        for _ in 0..8 {
            browser.say("1\r\nx\r\n").await;
            stream.hear("x").await;
            pause(100).await;
        }
        browser.say("0\r\n\r\n").await;
        stream.hear("0\r\n\r\n").await;
        stream.say("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        browser.hear("ok").await;
    });
}

#[test]
fn bounds_of_a_head_have_their_statuses_and_can_be_replaced() {
    run(async {
        let bench = Bench::start(2000, "uri_bytes_max = 20\nheaders_max = 2\nheader_bytes_max = 1024").await;
        let node = FakeNode::plain(1).await;
        bench.publish(view(1, &[&node]));
        let status = async |request: &str| {
            let mut browser = RawStream::browser(&bench).await;
            browser.say(request).await;
            browser.hear("\r\n").await[9..12].to_owned()
        };
        let long = format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "a".repeat(20));
        let many = "GET / HTTP/1.1\r\nhost: a\r\na: 1\r\nb: 2\r\n\r\n";
        let large = format!("GET / HTTP/1.1\r\nhost: a\r\na: {}\r\n\r\n", "1".repeat(1024));
        assert_eq!(status("GET / HTTP/1.1\r\nhost: a\r\na: 1\r\n\r\n").await, "200");
        assert_eq!(status(&long).await, "414");
        assert_eq!(status(many).await, "431");
        assert_eq!(status(&large).await, "431");
        let mut browser = RawStream::browser(&bench).await;
        browser.say(&long.replace("GET", "HEAD")).await;
        let answer = browser.hear_out().await;
        assert!(answer.starts_with("HTTP/1.1 414 ") && answer.ends_with("\r\n\r\n"), "no body: {answer}");
        let mut config = bench.config.clone();
        (config.director.uri_bytes_max, config.director.headers_max) = (100, 3);
        bench.proxy.configure(&config);
        assert_eq!(status(&long).await, "200");
        assert_eq!(status(many).await, "200");
        assert_eq!(status(&large).await, "431");
    });
}

#[test]
fn an_idle_connection_ends_without_a_word_and_half_a_head_with_one() {
    run(async {
        let bench = Bench::start(2000, "head_timeout_ms = 150\nkeepalive_timeout_ms = 150").await;
        let node = FakeNode::plain(1).await;
        bench.publish(view(1, &[&node]));
        for (said, heard) in [
            ("", ""),
            ("GET / HTTP/1.1\r\nhost:", "408"),
            ("GET / HTTP/1.1\r\nhost: a\r\n\r\n", "200"),
            ("\r\n", ""),
        ] {
            let mut browser = RawStream::browser(&bench).await;
            browser.say(said).await;
            let answer = browser.hear_out().await;
            assert_eq!(answer.get(9..12).unwrap_or_default(), heard, "{said:?}: {answer}");
        }
    });
}
