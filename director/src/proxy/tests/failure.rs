//! Nodes that die, hang or refuse. No request that is not idempotent is ever sent twice.

use super::*;
use std::time::Instant;

/// A node that reads a request and closes the connection without a word; counts the requests.
async fn closing(incarnation: u64) -> (Incarnation, SocketAddr, Arc<Mutex<usize>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let count = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut bytes = [0; 4096];
            if stream.read(&mut bytes).await.is_ok_and(|read| read > 0) {
                *counted.lock().unwrap() += 1;
            }
        }
    });
    (Incarnation(incarnation), address, count)
}

#[test]
fn a_post_is_never_sent_twice() {
    run(async {
        let bench = Bench::start(2000, "").await;
        let two = FakeNode::plain(2).await;
        let (incarnation, address, count) = closing(1).await;
        let mut both = view(1, &[&two]);
        both.nodes.insert(0, entry(incarnation, address));
        bench.publish(both);
        for _ in 0..3 {
            let answer = bench.post(&bench.cookie(1, 1), "x").await;
            assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
            assert!(answer.body.contains("not repeated"), "{}", answer.body);
        }
        assert_eq!(*count.lock().unwrap(), 3, "one send each");
        assert_eq!(two.got().len(), 0);
    });
}

#[test]
fn a_get_is_repeated_where_the_session_goes() {
    run(async {
        let bench = Arc::new(Bench::start(5000, "").await);
        let two = FakeNode::plain(2).await;
        let (incarnation, address, count) = closing(1).await;
        let mut both = view(1, &[&two]);
        both.nodes.insert(0, entry(incarnation, address));
        bench.publish(both);
        let waiting = bench.begin(Method::GET, &bench.cookie(1, 1));
        pause(60).await;
        let mut next = view(2, &[&two]);
        next.dead.push(dead(1, true));
        bench.publish(next);
        assert_eq!(waiting.await.unwrap().body, "2");
        assert!(*count.lock().unwrap() >= 1);
        assert!(bench.metrics.retries.get() >= 1);
    });
}

#[test]
fn a_get_that_always_fails_ends_in_502() {
    run(async {
        let bench = Bench::start(5000, "").await;
        let (incarnation, address, count) = closing(1).await;
        let mut only = view(1, &[]);
        only.nodes.push(entry(incarnation, address));
        bench.publish(only);
        assert_eq!(bench.get(&bench.cookie(1, 1)).await.status, StatusCode::BAD_GATEWAY);
        assert_eq!(*count.lock().unwrap(), crate::limits::SENDS_MAX as usize);
    });
}

#[test]
fn a_refused_connection_waits_for_the_view_with_any_method_and_body() {
    run(async {
        let bench = Arc::new(Bench::start(5000, "resend_body_bytes = 10").await);
        let two = FakeNode::plain(2).await;
        let closed = ClosedPort::new();
        let mut both = view(1, &[&two]);
        both.nodes.insert(0, entry(Incarnation(1), closed.address()));
        bench.publish(both);
        let waiting = bench.begin(Method::POST, &bench.cookie(1, 1));
        // This one is too large to be kept, but nothing of it was sent.
        let large = bench.request(Method::POST, "/", &bench.cookie(1, 1), vec![b'x'; 100_000]);
        let large = tokio::spawn({
            let bench = Arc::clone(&bench);
            async move { bench.send(large).await }
        });
        pause(200).await;
        assert!(!waiting.is_finished() && !large.is_finished());
        let mut next = view(2, &[&two]);
        next.dead.push(dead(1, true));
        bench.publish(next);
        assert_eq!(waiting.await.unwrap().body, "2");
        assert_eq!(large.await.unwrap().body, "2");
        let mut bytes: Vec<usize> = two.got().iter().map(|got| got.body.len()).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, [4, 100_000], "each once and whole");
    });
}

#[test]
fn a_new_session_avoids_a_node_that_refuses() {
    run(async {
        let bench = Bench::start(2000, "").await;
        let two = FakeNode::plain(2).await;
        let closed = ClosedPort::new();
        let mut both = view(1, &[&two]);
        both.nodes.insert(0, entry(Incarnation(1), closed.address()));
        bench.publish(both);
        bench.routes.load(two.incarnation, 1000);
        for _ in 0..5 {
            assert_eq!(bench.post("", "x").await.body, "2");
        }
    });
}

#[test]
fn a_node_that_comes_back_in_the_same_view_is_found() {
    run(async {
        let bench = Arc::new(Bench::start(5000, "").await);
        let closed = ClosedPort::new();
        let mut only = view(1, &[]);
        only.nodes.push(entry(Incarnation(1), closed.address()));
        bench.publish(only);
        let waiting = bench.begin(Method::POST, &bench.cookie(1, 1));
        pause(150).await;
        let listener = closed.0.listen(1).unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut bytes = [0; 4096];
        let _ = stream.read(&mut bytes).await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nback").await.unwrap();
        assert_eq!(waiting.await.unwrap().body, "back");
    });
}

#[test]
fn death_cuts_what_is_under_way() {
    run(async {
        let bench = Arc::new(Bench::start(5000, "").await);
        let (one, two) = (FakeNode::hanging(1).await, FakeNode::plain(2).await);
        bench.publish(view(1, &[&one, &two]));
        let get = bench.begin(Method::GET, &bench.cookie(1, 1));
        let post = bench.begin(Method::POST, &bench.cookie(1, 1));
        one.has_got(2).await;
        let mut next = view(2, &[&two]);
        next.dead.push(dead(1, true));
        bench.publish(next);
        let cut = tokio::time::timeout(Duration::from_secs(2), async { (get.await, post.await) });
        let (get, post) = cut.await.expect("cut at once");
        assert_eq!(get.unwrap().body, "2");
        assert_eq!(post.unwrap().status, StatusCode::BAD_GATEWAY);
        assert_eq!((one.got().len(), two.got().len()), (2, 1));
    });
}

#[test]
fn a_zombies_answer_goes_nowhere() {
    run(async {
        let bench = Arc::new(Bench::start(5000, "").await);
        let two = FakeNode::plain(2).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut both = view(1, &[&two]);
        both.nodes.insert(0, entry(Incarnation(1), listener.local_addr().unwrap()));
        bench.publish(both);
        let waiting = bench.begin(Method::POST, &bench.cookie(1, 1));
        let (mut zombie, _) = listener.accept().await.unwrap();
        let mut bytes = [0; 4096];
        let _ = zombie.read(&mut bytes).await.unwrap();
        // Half an answer is here when the node's life ends; the rest comes later.
        zombie.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n").await.unwrap();
        pause(50).await;
        bench.publish(view(2, &[&two]));
        // The connection may be gone already.
        let _ = zombie.write_all(b"\r\nzombie").await;
        let answer = waiting.await.unwrap();
        assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
        assert!(!answer.body.contains("zombie"));
    });
}

#[test]
fn a_large_body_streams_but_is_not_sent_twice() {
    run(async {
        let bench = Bench::start(2000, "resend_body_bytes = 1000").await;
        let (one, two) = (FakeNode::plain(1).await, FakeNode::elsewhere(2, 1).await);
        bench.publish(view(1, &[&one, &two]));
        let large = vec![b'x'; 3 << 20];
        let answer = bench.post(&bench.cookie(1, 1), large.clone()).await;
        assert_eq!(answer.body, "1");
        assert_eq!(one.got()[0].body.len(), large.len());
        let answer = bench.post(&bench.cookie(1, 2), large).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(answer.body.contains("too large"), "{}", answer.body);
        assert_eq!((one.got().len(), two.got().len()), (1, 1));
    });
}

#[test]
fn a_request_to_a_vanished_host_goes_on_as_soon_as_the_view_says_so() {
    run(async {
        let bench = Arc::new(Bench::start(5000, "resend_body_bytes = 10").await);
        let two = FakeNode::plain(2).await;
        let vanished = SilentPort::new().await;
        let mut both = view(1, &[&two]);
        both.nodes.insert(0, entry(Incarnation(1), vanished.address()));
        bench.publish(both);
        // Nothing of them can have been sent, so that even these may go elsewhere.
        let post = bench.begin(Method::POST, &bench.cookie(1, 1));
        let large = bench.request(Method::POST, "/", &bench.cookie(1, 1), vec![b'x'; 100_000]);
        let large = tokio::spawn({
            let bench = Arc::clone(&bench);
            async move { bench.send(large).await }
        });
        pause(200).await;
        assert!(!post.is_finished() && !large.is_finished());
        let mut next = view(2, &[&two]);
        next.dead.push(dead(1, true));
        bench.publish(next);
        // Sooner than the attempt to connect would have ended by itself.
        let both = tokio::time::timeout(Duration::from_millis(600), async { (post.await, large.await) });
        let (post, large) = both.await.expect("at once");
        assert_eq!((&*post.unwrap().body, &*large.unwrap().body), ("2", "2"));
    });
}

#[test]
fn connecting_to_a_vanished_host_takes_no_longer_than_the_hold() {
    run(async {
        let bench = Bench::start(200, "").await;
        let vanished = SilentPort::new().await;
        let mut only = view(1, &[]);
        only.nodes.push(entry(Incarnation(1), vanished.address()));
        bench.publish(only);
        let begun = std::time::Instant::now();
        let answer = bench.post(&bench.cookie(1, 1), "x").await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(answer.body.contains("cannot be reached"), "{}", answer.body);
        assert!(begun.elapsed() < Duration::from_millis(900), "{:?}", begun.elapsed());
    });
}

#[test]
fn a_reload_changes_how_long_connecting_takes_for_living_nodes_too() {
    run(async {
        let bench = Bench::start(20_000, "connect_timeout_ms = 15000").await;
        let vanished = SilentPort::new().await;
        let mut only = view(1, &[]);
        only.nodes.push(entry(Incarnation(1), vanished.address()));
        bench.publish(only);
        let mut config = bench.config.clone();
        (config.director.connect_timeout_ms, config.director.hold_ms) = (100, 150);
        bench.front.configure(&config);
        let begun = std::time::Instant::now();
        let answer = bench.post(&bench.cookie(1, 1), "x").await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(begun.elapsed() < WAIT, "{:?}", begun.elapsed());
    });
}

#[test]
fn a_body_on_its_way_to_a_vanished_host_is_cut_with_it() {
    run(async {
        let bench = Arc::new(Bench::start(5000, "resend_body_bytes = 1000").await);
        let two = FakeNode::plain(2).await;
        // It takes the connection and a first piece; then nobody reads any more, and no word comes.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut both = view(1, &[&two]);
        both.nodes.insert(0, entry(Incarnation(1), listener.local_addr().unwrap()));
        bench.publish(both);
        let large = bench.request(Method::PUT, "/", &bench.cookie(1, 1), vec![b'x'; 32 << 20]);
        let large = tokio::spawn({
            let bench = Arc::clone(&bench);
            async move { bench.send(large).await }
        });
        let small = bench.begin(Method::PUT, &bench.cookie(1, 1));
        let mut streams = Vec::new();
        for _ in 0..2 {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 4096]).await.unwrap();
            streams.push(stream);
        }
        pause(100).await;
        let mut next = view(2, &[&two]);
        next.dead.push(dead(1, true));
        bench.publish(next);
        let both = tokio::time::timeout(Duration::from_secs(2), async { (large.await, small.await) });
        let (large, small) = both.await.expect("not hung");
        // What was kept is sent again, as a PUT may be; what was streamed cannot be.
        assert_eq!(small.unwrap().body, "2");
        assert_eq!(large.unwrap().status, StatusCode::BAD_GATEWAY);
        assert_eq!(two.got().len(), 1);
    });
}

#[test]
fn an_answer_on_its_way_from_a_vanished_host_ends() {
    run(async {
        let bench = Arc::new(Bench::start(5000, "").await);
        let two = FakeNode::plain(2).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut both = view(1, &[&two]);
        both.nodes.insert(0, entry(Incarnation(1), listener.local_addr().unwrap()));
        bench.publish(both);
        let request = bench.request(Method::GET, "/", &bench.cookie(1, 1), "");
        let head = tokio::spawn(bench.client.request(request));
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.read(&mut [0; 4096]).await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nhal").await.unwrap();
        let answer = head.await.unwrap().unwrap();
        bench.publish(view(2, &[&two]));
        let body = tokio::time::timeout(Duration::from_secs(2), answer.into_body().collect()).await;
        assert!(body.expect("not hung").is_err(), "half an answer is no answer");
    });
}

#[test]
fn a_browser_that_goes_away_is_counted_as_that() {
    run(async {
        let bench = Bench::start(2000, "").await;
        let node = FakeNode::hanging(1).await;
        bench.publish(view(1, &[&node]));
        let long = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nhalf";
        for (gone, request) in [(1, "GET / HTTP/1.1\r\nhost: a\r\n\r\n"), (2, long)] {
            let mut stream = TcpStream::connect(bench.address).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            pause(100).await;
            assert_eq!(bench.metrics.requests(Outcome::BrowserGone), gone - 1);
            drop(stream);
            let begun = Instant::now();
            while bench.metrics.requests(Outcome::BrowserGone) < gone {
                assert!(begun.elapsed() < WAIT, "{request}");
                pause(5).await;
            }
        }
        pause(50).await;
        let counted = Outcome::ALL.map(|outcome| bench.metrics.requests(outcome));
        assert_eq!(counted.iter().sum::<u64>(), 2, "and once only: {counted:?}");
    });
}
