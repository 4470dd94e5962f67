//! `maxconn` and the queue before it.

use super::*;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::Semaphore;

/// A node that answers a request as soon as the test lets it, and knows how many were there at once.
struct Slow {
    node: FakeNode,
    let_go: Arc<Semaphore>,
    most: Arc<AtomicUsize>,
}

impl Slow {
    async fn start() -> Self {
        let (let_go, most, now) =
            (Arc::new(Semaphore::new(0)), Arc::default(), Arc::<AtomicUsize>::default());
        let (lets, peak) = (Arc::clone(&let_go), Arc::<AtomicUsize>::clone(&most));
        let node = FakeNode::start(1, move |_| {
            let (lets, peak, now) = (Arc::clone(&lets), Arc::clone(&peak), Arc::clone(&now));
            async move {
                peak.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                lets.acquire().await.unwrap().forget();
                now.fetch_sub(1, Ordering::SeqCst);
                text("1")
            }
        })
        .await;
        Self { node, let_go, most }
    }
}

/// A director before such a node, and its answers to so many requests with a session there.
async fn crowded(extra: &str, maxconn: usize) -> (Arc<Bench>, Slow) {
    let bench = Bench::with(2000, extra, &format!("maxconn = {maxconn}")).await;
    let slow = Slow::start().await;
    bench.publish(view(1, &[&slow.node]));
    (Arc::new(bench), slow)
}

fn begin(bench: &Arc<Bench>, path: &str) -> tokio::task::JoinHandle<Seen> {
    let (bench, path) = (Arc::clone(bench), path.to_owned());
    tokio::spawn(async move {
        let cookie = bench.cookie(1, 1);
        bench.send(bench.request(Method::POST, &path, &cookie, "")).await
    })
}

#[test]
fn no_more_requests_are_there_than_it_has_places_and_the_others_wait_in_order() {
    run(async {
        let (bench, slow) = crowded("", 2).await;
        let mut asked = Vec::new();
        for number in 0..7 {
            asked.push(begin(&bench, &format!("/{number}")));
            // Each is in the queue before the next one asks.
            pause(30).await;
        }
        slow.node.has_got(2).await;
        for done in 1..=7 {
            slow.let_go.add_permits(1);
            slow.node.has_got((done + 2).min(7)).await;
        }
        for asked in asked {
            assert_eq!(asked.await.unwrap().status, StatusCode::OK);
        }
        assert_eq!(slow.most.load(Ordering::SeqCst), 2);
        let paths: Vec<String> = slow.node.got().into_iter().map(|got| got.path).collect();
        assert_eq!(paths[2..], ["/2", "/3", "/4", "/5", "/6"]);
    });
}

#[test]
fn a_queue_has_a_length_and_a_time() {
    run(async {
        let (bench, slow) = crowded("queue_max = 1\nqueue_timeout_ms = 300", 1).await;
        let first = begin(&bench, "/1");
        slow.node.has_got(1).await;
        let second = begin(&bench, "/2");
        pause(50).await;
        let third = begin(&bench, "/3").await.unwrap();
        assert_eq!(third.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(third.body.contains("too many requests wait"), "{}", third.body);
        assert_eq!(third.headers["retry-after"], "1");
        let second = second.await.unwrap();
        assert_eq!(second.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(second.body.contains("no place for the request in time"), "{}", second.body);
        assert_eq!(second.headers["retry-after"], "1");
        // Who has given up is in nobody's way.
        let fourth = begin(&bench, "/4");
        pause(50).await;
        slow.let_go.add_permits(2);
        assert_eq!(first.await.unwrap().status, StatusCode::OK);
        assert_eq!(fourth.await.unwrap().status, StatusCode::OK);
        assert_eq!(slow.node.got().len(), 2);
    });
}

#[test]
fn new_sessions_go_where_there_is_room() {
    run(async {
        let (bench, slow) = crowded("", 1).await;
        let two = FakeNode::plain(2).await;
        bench.publish(view(2, &[&slow.node, &two]));
        // By their loads alone it would be the first one's turn.
        bench.routes.load(Incarnation(2), 1000);
        let first = begin(&bench, "/");
        slow.node.has_got(1).await;
        for _ in 0..3 {
            assert_eq!(bench.post("", "").await.body, "2");
        }
        slow.let_go.add_permits(2);
        assert_eq!(first.await.unwrap().body, "1");
        assert_eq!(bench.post("", "").await.body, "1");
    });
}

#[test]
fn more_places_are_used_at_once() {
    run(async {
        let (bench, slow) = crowded("", 1).await;
        let asked: Vec<_> = (0..3).map(|_| begin(&bench, "/")).collect();
        slow.node.has_got(1).await;
        pause(100).await;
        assert_eq!(slow.node.got().len(), 1);
        let mut config = bench.config.clone();
        config.nodes[0].maxconn = 0;
        bench.proxy.configure(&config);
        slow.node.has_got(3).await;
        slow.let_go.add_permits(3);
        for asked in asked {
            assert_eq!(asked.await.unwrap().status, StatusCode::OK);
        }
    });
}

#[test]
fn a_reload_changes_how_many_connections_there_may_be() {
    run(async {
        let bench = Bench::start(1000, "requests_max = 1").await;
        let node = FakeNode::plain(1).await;
        bench.publish(view(1, &[&node]));
        let get = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
        let mut browsers = Vec::new();
        let with = |requests_max: usize| {
            let mut config = bench.config.clone();
            config.director.requests_max = requests_max;
            config
        };
        for served in [2, 6, 4] {
            bench.front.configure(&with(served / 2));
            while browsers.len() < served {
                let mut browser = RawStream::browser(&bench).await;
                browser.say(get).await;
                browser.hear("\r\n\r\n1").await;
                browsers.push(browser);
            }
            let mut next = RawStream::browser(&bench).await;
            next.say(get).await;
            next.hears_nothing().await;
            drop(next);
        }
        // There are two more than may be now: the next one waits for three ends.
        let mut next = RawStream::browser(&bench).await;
        next.say(get).await;
        browsers.truncate(4);
        next.hears_nothing().await;
        browsers.truncate(3);
        next.hear("\r\n\r\n1").await;
    });
}

#[test]
fn who_waits_at_a_node_that_dies_goes_to_the_sessions_new_host() {
    run(async {
        let (bench, slow) = crowded("", 1).await;
        let two = FakeNode::plain(2).await;
        bench.publish(view(2, &[&slow.node, &two]));
        let under_way = begin(&bench, "/1");
        slow.node.has_got(1).await;
        let waiting = begin(&bench, "/2");
        pause(100).await;
        let mut next = view(3, &[&two]);
        next.dead.push(dead(1, true));
        bench.publish(next);
        assert_eq!(under_way.await.unwrap().status, StatusCode::BAD_GATEWAY);
        assert_eq!(waiting.await.unwrap().body, "2");
    });
}

#[test]
fn who_goes_away_while_waiting_takes_no_place() {
    run(async {
        let (bench, slow) = crowded("", 1).await;
        let first = begin(&bench, "/1");
        slow.node.has_got(1).await;
        let gone = begin(&bench, "/gone");
        pause(50).await;
        let third = begin(&bench, "/3");
        pause(50).await;
        gone.abort();
        let _ = gone.await;
        pause(50).await;
        slow.let_go.add_permits(2);
        assert_eq!(first.await.unwrap().status, StatusCode::OK);
        assert_eq!(third.await.unwrap().status, StatusCode::OK);
        assert!(slow.node.got().iter().all(|got| got.path != "/gone"));
        assert_eq!(bench.metrics.requests(Outcome::BrowserGone), 1);
        assert_eq!(bench.metrics.requests(Outcome::Served), 2);
        // A drain waits for nobody who is gone.
        tokio::time::timeout(WAIT, bench.routes.idle(Incarnation(1))).await.expect("idle");
    });
}
