//! A node that is stopped longer than every timeout and wakes up: what it writes is not served, and it acks
//! nothing.

use http::Method;
use rustix::process::Signal;
use selvage_tests::client::{Browser, Connection};
use selvage_tests::load::{Load, Plan};
use selvage_tests::stage::{Stage, all_find_all, customers, number};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_node_wakes_up_and_nothing_it_does_counts() {
    let stage = Stage::new(2, 2, 2).await;
    let customers = customers(&stage, 60, 2).await;
    let zombie = stage.incarnation("n1").await;
    let customer =
        customers.iter().find(|customer| customer.cookie.host == zombie).expect("one on each node");
    let cookie = format!("selvage={}", customer.cookie.text);

    // A request goes straight to the node, past the director, and lies there while the node is stopped.
    let mut direct = Connection::to(stage.node_address("n1").unwrap());
    let first = direct.send(Method::POST, "/session/n/incr", Some(&cookie), "").await.unwrap();
    let before = number(&first);
    stage.signal("n1", Signal::STOP).unwrap();
    let behind =
        tokio::spawn(async move { direct.send(Method::POST, "/session/n/incr", Some(&cookie), "").await });

    // Meanwhile the session lives on elsewhere.
    stage.until_taken_over(zombie, customers.len(), 2).await;
    let mut browser = Browser::with_cookie(stage.address(), customer.cookie.clone());
    let moved = browser.post("/session/n/incr").await.unwrap();
    assert_eq!((number(&moved), moved.copies()), (before + 1, Some(2)));
    assert_ne!(moved.cookie().unwrap().host, zombie);
    tokio::time::sleep(Duration::from_secs(1)).await;

    stage.signal("n1", Signal::CONT).unwrap();
    if let Ok(answer) = behind.await.unwrap() {
        let acked = answer.status.is_success() && answer.copies().is_none_or(|copies| copies > 0);
        assert!(!acked, "a zombie acked: {} {:?} {}", answer.status, answer.copies(), answer.text());
    }
    stage
        .until("it is back with a new life", |view| {
            view.node_is("n1", "up") && view.incarnation("n1").is_some_and(|now| now > zombie)
        })
        .await;
    let after = browser.get("/session/n").await.unwrap();
    assert_eq!(number(&after), before + 1, "what the zombie did is not served");
    let others: Vec<_> =
        customers.iter().filter(|other| other.cookie.id != customer.cookie.id).cloned().collect();
    all_find_all(&stage, &others).await;
    stage.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_stopped_under_load_and_nothing_acked_is_lost() {
    let stage = Stage::new(3, 2, 1).await;
    let plan = Plan { sessions: 300, connections: 16, think: Duration::from_millis(10) };
    let load = Load::start(stage.address(), plan).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let zombie = stage.incarnation("n2").await;
    stage.signal("n2", Signal::STOP).unwrap();
    stage.until_taken_over(zombie, plan.sessions, 1).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    stage.signal("n2", Signal::CONT).unwrap();
    stage.until("back", |view| view.node_is("n2", "up") && view.incarnation("n2") != Some(zombie)).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let ledger = load.stop().await.unwrap();
    let verdict = ledger.verify(stage.address(), plan.connections).await.unwrap();
    assert!(verdict.is_clean(), "{verdict:?}");
    let of_the_zombie = ledger.failures.iter().all(|failure| failure.host == zombie);
    assert!(of_the_zombie, "a request failed that was not the stopped node's: {:?}", ledger.failures);
    stage.end();
}

/// One process of a node is stopped, and it may be the steward: the others go on, in a new life if need be.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_goes_on_while_one_of_its_processes_is_stopped() {
    let stage = Stage::new(2, 2, 2).await;
    let customers = customers(&stage, 40, 2).await;
    let workers = stage.admin().view().await.unwrap().node("n1").unwrap().pids.clone();
    assert_eq!(workers.len(), 2, "two workers each");
    let mut lives = vec![stage.incarnation("n1").await];
    for worker in workers {
        let pid = rustix::process::Pid::from_raw(worker as i32).unwrap();
        rustix::process::kill_process(pid, Signal::STOP).unwrap();
        // Longer than the time after which a silent steward's node is declared down.
        tokio::time::sleep(Duration::from_millis(1000)).await;
        stage.until("n1 is up beside a stopped process", |view| view.node_is("n1", "up")).await;
        stage.until_protected(customers.len(), 2).await;
        lives.push(stage.incarnation("n1").await);
        rustix::process::kill_process(pid, Signal::CONT).unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    lives.dedup();
    assert!(lives.len() > 1, "neither of the two was the steward");
    all_find_all(&stage, &customers).await;
    stage.end();
}

/// A session server that is stopped for long is declared down and never comes back as the one that it was
/// (R6).
#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_server_comes_back_as_a_new_one() {
    let stage = Stage::new(2, 2, 1).await;
    let customers = customers(&stage, 60, 1).await;
    let view = stage.until_protected(customers.len(), 1).await;
    stage.signal("s1", Signal::STOP).unwrap();
    stage.until("s1 is down", |now| now.server_is("s1", "down") && now.protects(60, 1)).await;
    stage.signal("s1", Signal::CONT).unwrap();
    // The same process takes a new life by itself.
    let back = stage.until("s1 is back", |now| now.server_is("s1", "up")).await;
    assert_eq!(back.server("s1").unwrap().pid, view.server("s1").unwrap().pid);
    assert_ne!(back.server("s1").unwrap().incarnation, view.server("s1").unwrap().incarnation);
    stage.until_protected(customers.len(), 1).await;
    all_find_all(&stage, &customers).await;
    stage.end();
}
