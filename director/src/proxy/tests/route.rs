//! Which node a request goes to.

use super::*;
use crate::proxy::routes::Took;
use selvage_fabric::ident::CookieKey;
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
fn a_node_that_is_configured_anew_is_asked_at_its_new_address() {
    run(async {
        let bench = Arc::new(Bench::start(2000, "").await);
        let (ask, answered) = tokio::sync::watch::channel(false);
        let old = FakeNode::start(1, move |_| {
            let mut answered = answered.clone();
            async move {
                let _ = answered.wait_for(|answered| *answered).await;
                text("old")
            }
        })
        .await;
        bench.publish(view(1, &[&old]));
        let under_way = bench.begin(Method::POST, &bench.cookie(1, 1));
        old.has_got(1).await;
        let new = FakeNode::start(1, |_| async { text("new") }).await;
        bench.publish(view(2, &[&new]));
        assert_eq!(bench.get(&bench.cookie(1, 1)).await.body, "new");
        // What is under way at the old one is the node's still.
        let early = tokio::time::timeout(Duration::from_millis(50), bench.routes.idle(Incarnation(1))).await;
        assert!(early.is_err(), "it is under way");
        ask.send_replace(true);
        assert_eq!(under_way.await.unwrap().body, "old");
        tokio::time::timeout(WAIT, bench.routes.idle(Incarnation(1))).await.expect("idle");
        assert_eq!(bench.get(&bench.cookie(1, 1)).await.body, "new");
    });
}

#[test]
fn a_forged_cookie_selects_neither_a_node_nor_a_session() {
    run(async {
        let bench = Bench::start(2000, "").await;
        let (one, two) = (FakeNode::plain(1).await, FakeNode::plain(2).await);
        // By its load nobody would be sent to the first; the sessions of a third are still being secured.
        let mut both = view(1, &[&one, &two]);
        both.dead.push(dead(5, false));
        bench.publish(both);
        bench.routes.load(one.incarnation, 1_000_000);
        let good = bench.cookie(1, 1);
        let value = |cookie: &str| cookie.strip_prefix("selvage=").unwrap().to_owned();
        let part = |cookie: &str, number: usize| value(cookie).split('-').nth(number).unwrap().to_owned();
        let spliced = |id: &str, tag: &str, mac: &str| {
            format!("selvage={}-{}-{}", part(id, 0), part(tag, 1), part(mac, 2))
        };
        let (another, hers, lost) = (bench.cookie(1, 2), bench.cookie(2, 1), bench.cookie(1, 5));
        let foreign =
            Cookie { id: SessionId([1; 16]), host: Incarnation(1) }.encode(&[CookieKey(vec![7; 32])]);
        let mut forged = vec![
            format!("selvage={foreign}"),
            // The right parts, wrongly put together.
            spliced(&good, &good, &another),
            spliced(&good, &good, &hers),
            spliced(&hers, &good, &good),
            // Believed, it would have to wait for a node that is gone.
            spliced(&good, &lost, &good),
            spliced(&lost, &lost, &good),
            "selvage=".to_owned(),
            format!("selvage=; selvage={foreign}"),
            format!("other={}; selvage=x", value(&good)),
        ];
        for at in "selvage=".len()..good.len() {
            let mut bytes = good.clone().into_bytes();
            bytes[at] = if bytes[at] == b'a' { b'b' } else { b'a' };
            forged.push(String::from_utf8(bytes).unwrap());
        }
        let begun = std::time::Instant::now();
        for cookie in &forged {
            assert_eq!(bench.get(cookie).await.body, "2", "{cookie}");
        }
        assert!(begun.elapsed() < Duration::from_secs(2 * forged.len() as u64), "nobody waits for it");
        assert_eq!(bench.metrics.forged_cookies.get(), forged.len() as u64);
        // Signed, each goes where it says, and no cookie of another name is anything.
        assert_eq!(bench.get(&good).await.body, "1");
        assert_eq!(bench.get(&another).await.body, "2");
        assert_eq!(bench.get(&format!("{}; {good}", forged[0])).await.body, "1");
        assert_eq!(bench.get("selvage2=x; other=selvage").await.body, "2");
        assert_eq!(bench.metrics.forged_cookies.get(), forged.len() as u64);
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
fn new_sessions_go_by_weight_and_not_to_nodes_that_fail() {
    run(async {
        let bench = Bench::start(200, "").await;
        let (one, two) = (FakeNode::plain(1).await, FakeNode::plain(2).await);
        bench.publish(view(1, &[&one, &two]));
        bench.routes.weigh("n2", 300);
        let mut served = [0, 0];
        for _ in 0..40 {
            served[usize::from(bench.get("").await.body == "2")] += 1;
        }
        assert_eq!(served, [10, 30]);
        bench.routes.weigh("n2", 0);
        assert_eq!(bench.get("").await.body, "1");
        assert_eq!(bench.get(&bench.cookie(7, 2)).await.body, "2", "its sessions stay");
        bench.routes.checked("n1", true);
        assert_eq!(bench.get("").await.body, "1", "there is nobody else");
        bench.routes.weigh("n2", 1);
        for _ in 0..10 {
            assert_eq!(bench.get("").await.body, "2");
        }
        bench.routes.weigh("n1", 0);
        bench.routes.weigh("n2", 0);
        assert_eq!(bench.get("").await.status, StatusCode::SERVICE_UNAVAILABLE);
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

#[test]
fn a_node_is_idle_when_a_director_that_has_handed_over_has_nothing_under_way_there() {
    run(async {
        let bench = Bench::start(2000, "").await;
        let (one, two) = (FakeNode::plain(1).await, FakeNode::plain(2).await);
        let elder = bench.routes.elder();
        let before = bench.routes.publish(&Arc::new(view(1, &[&one, &two])), &[]);
        let said = |number, busy: &[&FakeNode]| {
            let busy = busy.iter().map(|node| node.incarnation).collect();
            elder.took(Took { number, epoch: Epoch::default(), busy });
        };
        said(before, &[]);
        assert!(!elder.is_behind());
        let held = bench.routes.publish(&Arc::new(view(1, &[&one, &two])), &[one.incarnation]);
        assert!(elder.is_behind());
        let (routes, incarnation) = (Arc::clone(&bench.routes), one.incarnation);
        let idle = tokio::spawn(async move { routes.idle(incarnation).await });
        pause(50).await;
        assert!(!idle.is_finished(), "it may still send there what it said nothing of");
        said(held, &[&one, &two]);
        pause(50).await;
        assert!(!idle.is_finished(), "a request is under way there");
        said(held, &[&two]);
        tokio::time::timeout(Duration::from_secs(5), idle).await.expect("idle now").unwrap();
        assert_eq!(bench.routes.busy(), [two.incarnation]);
        // It has not ended, so this one waits for it.
        assert!(!bench.routes.is_alone() && !bench.proxy.is_idle());
        drop(elder);
        assert!(bench.routes.is_alone() && bench.proxy.is_idle() && bench.routes.busy().is_empty());
    });
}

#[test]
fn a_node_is_idle_when_a_director_that_has_handed_over_has_ended() {
    run(async {
        let bench = Bench::start(2000, "").await;
        let one = FakeNode::plain(1).await;
        bench.publish(view(1, &[&one]));
        let elder = bench.routes.elder();
        let (routes, incarnation) = (Arc::clone(&bench.routes), one.incarnation);
        let idle = tokio::spawn(async move { routes.idle(incarnation).await });
        pause(50).await;
        assert!(!idle.is_finished());
        drop(elder);
        tokio::time::timeout(Duration::from_secs(5), idle).await.expect("idle now").unwrap();
    });
}
