//! Which node a request goes to.

use super::*;
use selvage_fabric::limits::ELSEWHERE_MAX;
use selvage_fabric::placement;
use selvage_fabric::rules::{Rule, assert_teeth};

#[test]
fn a_session_goes_to_its_host_and_a_bad_cookie_is_none() {
    run(async {
        let bench = Bench::start(2000, "").await;
        let (one, two) = (FakeNode::plain(1).await, FakeNode::plain(2).await);
        bench.publish(view(1, &[&one, &two]));
        for id in 0..10 {
            assert_eq!(bench.get(&bench.cookie(id, 1)).await.body, "1");
            assert_eq!(bench.get(&bench.cookie(id, 2)).await.body, "2");
        }
        // Among several of the name, the first valid one counts.
        let cookies = format!("selvage=nonsense; other=1; {}; {}", bench.cookie(1, 2), bench.cookie(1, 1));
        assert_eq!(bench.get(&cookies).await.body, "2");
        let forged = bench.cookie(1, 1).replace('-', "_");
        assert_eq!(bench.get(&forged).await.status, StatusCode::OK);
    });
}

#[test]
fn new_sessions_go_to_the_least_loaded() {
    run(async {
        let bench = Bench::start(2000, "").await;
        let (one, two) = (FakeNode::plain(1).await, FakeNode::plain(2).await);
        bench.publish(view(1, &[&one, &two]));
        bench.routes.load(one.incarnation, 100);
        for _ in 0..20 {
            assert_eq!(bench.get("").await.body, "2");
        }
        bench.routes.load(one.incarnation, 0);
        bench.routes.load(two.incarnation, 0);
        let mut served = [0, 0];
        for _ in 0..20 {
            served[usize::from(bench.get("").await.body == "2")] += 1;
        }
        assert_eq!(served, [10, 10], "between heartbeats the proxy counts what it has sent");
    });
}

#[test]
fn a_draining_node_keeps_its_sessions_and_gets_no_new_ones() {
    run(async {
        let bench = Bench::start(2000, "").await;
        let (one, two) = (FakeNode::plain(1).await, FakeNode::plain(2).await);
        let mut draining = view(1, &[&one, &two]);
        draining.nodes[0].state = NodeState::Draining;
        bench.publish(draining);
        for id in 0..5 {
            assert_eq!(bench.get("").await.body, "2");
            assert_eq!(bench.get(&bench.cookie(id, 1)).await.body, "1");
        }
    });
}

#[test]
fn r2_a_dead_tag_waits_for_the_seal_and_goes_to_the_adopter() {
    assert_teeth(Rule::R2SealByView, || {
        run(async {
            let bench = Arc::new(Bench::start(5000, "").await);
            let (one, two) = (FakeNode::plain(1).await, FakeNode::plain(2).await);
            let mut unsealed = view(1, &[&one, &two]);
            unsealed.dead.push(dead(9, false));
            bench.publish(unsealed.clone());
            // The tag of the dead, and one that nobody remembers: its session may have moved to the dead.
            let requests = [(1, 9), (2, 9), (3, 4), (4, 4)];
            let waiting = requests.map(|(id, tag)| bench.begin(Method::POST, &bench.cookie(id, tag)));
            pause(200).await;
            if !one.got().is_empty() || !two.got().is_empty() {
                return Err("sent on before the leases of the dead are sealed".to_owned());
            }
            unsealed.dead[0].sealed = true;
            unsealed.epoch.number = 2;
            bench.publish(unsealed.clone());
            for ((id, _), answer) in requests.into_iter().zip(waiting) {
                let adopter = placement::adopter_of(SessionId([id; 16]), &unsealed.nodes).unwrap();
                assert_eq!(answer.await.unwrap().body, adopter.incarnation.0.to_string());
            }
            Ok(())
        })
    });
}

#[test]
fn nobody_up_is_a_clear_503_after_the_hold() {
    run(async {
        let bench = Bench::start(150, "").await;
        bench.publish(view(1, &[]));
        let answer = bench.get("").await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(answer.headers.contains_key("retry-after"));
        assert!(answer.body.contains("no web node"), "{}", answer.body);
    });
}

#[test]
fn elsewhere_is_followed_with_the_body() {
    run(async {
        let bench = Bench::start(2000, "").await;
        let (one, two) = (FakeNode::elsewhere(1, 2).await, FakeNode::plain(2).await);
        bench.publish(view(1, &[&one, &two]));
        let answer = bench.post(&bench.cookie(1, 1), "all of it").await;
        assert_eq!((answer.status, &*answer.body), (StatusCode::OK, "2"));
        assert!(!answer.headers.contains_key("selvage-elsewhere"));
        assert_eq!((one.got().len(), two.got().len()), (1, 1));
        assert_eq!((&two.got()[0].method, &*two.got()[0].body), (&Method::POST, &b"all of it"[..]));
        assert_eq!(bench.metrics.elsewhere.get(), 1);
    });
}

#[test]
fn elsewhere_in_a_circle_ends() {
    run(async {
        let bench = Bench::start(2000, "").await;
        let (one, two) = (FakeNode::elsewhere(1, 2).await, FakeNode::elsewhere(2, 1).await);
        bench.publish(view(1, &[&one, &two]));
        let answer = bench.post(&bench.cookie(1, 1), "x").await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(!answer.headers.contains_key("selvage-elsewhere"));
        assert_eq!(one.got().len() + two.got().len(), 1 + ELSEWHERE_MAX as usize);
    });
}

#[test]
fn elsewhere_to_one_that_is_gone_is_asked_again_until_the_node_has_the_view() {
    run(async {
        let bench = Bench::start(2000, "").await;
        // More often than a circle is followed: the node learns of the view when it learns of it.
        let behind = ELSEWHERE_MAX + 3;
        let one = FakeNode::start(1, {
            let asked = std::sync::atomic::AtomicU32::new(0);
            move |_| {
                let mut answer = text("served");
                if asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed) < behind {
                    *answer.status_mut() = StatusCode::MISDIRECTED_REQUEST;
                    answer.headers_mut().insert("selvage-elsewhere", Incarnation(7).tag().parse().unwrap());
                }
                async move { answer }
            }
        })
        .await;
        bench.publish(view(1, &[&one]));
        assert_eq!(bench.post(&bench.cookie(1, 5), "x").await.body, "served");
        assert_eq!(one.got().len(), behind as usize + 1);
    });
}

#[test]
fn elsewhere_to_one_that_is_gone_does_not_go_on_for_ever() {
    run(async {
        let bench = Bench::start(200, "").await;
        let one = FakeNode::elsewhere(1, 7).await;
        bench.publish(view(1, &[&one]));
        let answer = bench.post(&bench.cookie(1, 5), "x").await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(answer.body.contains("behind"), "{}", answer.body);
    });
}

#[test]
fn requests_of_a_held_node_wait_and_it_becomes_idle() {
    run(async {
        let bench = Arc::new(Bench::start(5000, "").await);
        let gate = Arc::new(tokio::sync::Semaphore::new(0));
        let opened = Arc::clone(&gate);
        let one = FakeNode::start(1, move |_| {
            let opened = Arc::clone(&opened);
            async move {
                opened.acquire().await.unwrap().forget();
                text("1")
            }
        })
        .await;
        let two = FakeNode::plain(2).await;
        let present = Arc::new(view(1, &[&one, &two]));
        bench.routes.publish(&present, &[]);
        let cookie = bench.cookie(1, 1);
        let under_way = bench.begin(Method::POST, &cookie);
        one.has_got(1).await;
        bench.routes.publish(&present, &[one.incarnation]);
        let held = bench.begin(Method::POST, &cookie);
        let idle = {
            let bench = Arc::clone(&bench);
            tokio::spawn(async move { bench.routes.idle(Incarnation(1)).await })
        };
        pause(200).await;
        assert!(!idle.is_finished(), "a request is under way");
        assert_eq!(one.got().len(), 1, "the other waits");
        gate.add_permits(1);
        assert_eq!(under_way.await.unwrap().body, "1");
        tokio::time::timeout(Duration::from_secs(5), idle).await.expect("idle in time").unwrap();
        // The node is over and its sessions are adopted: the held request follows them.
        let mut next = view(2, &[&two]);
        next.dead.push(dead(1, true));
        bench.publish(next);
        assert_eq!(held.await.unwrap().body, "2");
        assert_eq!(one.got().len(), 1);
    });
}
