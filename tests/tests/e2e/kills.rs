//! Kills under load: what was acked is kept, and no request fails that was not under way at the kill.

use selvage_tests::cluster::Kill;
use selvage_tests::load::{Load, Plan, Verdict};
use selvage_tests::stage::{SOON, Stage, all_find_all, customers, number};
use std::time::{Duration, Instant};

const SESSIONS: usize = 400;
const CONNECTIONS: usize = 24;

async fn load(stage: &Stage) -> Load {
    // The pause leaves the processors some room: the tests measure the product, not a full machine.
    let plan = Plan { sessions: SESSIONS, connections: CONNECTIONS, think: Duration::from_millis(10) };
    let load = Load::start(stage.address(), plan).await.unwrap();
    a_while().await;
    load
}

async fn a_while() {
    tokio::time::sleep(Duration::from_millis(700)).await;
}

/// Ends the load; nothing acked is lost, and whatever failed was under way at the kill.
async fn all_is_kept(stage: &Stage, load: Load, kill: Kill) -> Verdict {
    a_while().await;
    let ledger = load.stop().await.unwrap();
    let strange = ledger.failures_outside(kill.sent, kill.gone);
    assert!(strange.is_empty(), "{} requests failed that were not under way: {strange:?}", strange.len());
    let verdict = ledger.verify(stage.address(), CONNECTIONS).await.unwrap();
    assert!(verdict.is_clean(), "{verdict:?}");
    assert_eq!(verdict.sessions, SESSIONS as u64);
    assert!(ledger.requests > 2 * SESSIONS as u64, "only {} requests", ledger.requests);
    println!(
        "{} requests, {} failed under way, {} without a copy",
        ledger.requests,
        ledger.failures.len(),
        ledger.unprotected
    );
    verdict
}

/// Ends the load; not one request failed and nothing acked is lost.
async fn nothing_failed(stage: &Stage, load: Load) {
    let now = Instant::now();
    all_is_kept(stage, load, Kill { sent: now + SOON, gone: now - SOON }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_killed_with_one_copy() {
    let mut stage = Stage::new(3, 2, 1).await;
    let load = load(&stage).await;
    let dead = stage.incarnation("n1").await;
    let kill = stage.kill("n1").unwrap();
    stage.until_taken_over(dead, SESSIONS, 1).await;
    println!("safe again after {:?}", kill.sent.elapsed());
    a_while().await;
    assert!(load.first_moved(dead, kill.sent).is_some(), "its sessions are served elsewhere");
    stage.restart(&["n1"]).await;
    all_is_kept(&stage, load, kill).await;
    stage.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_and_a_server_are_killed_together_with_two_copies() {
    let mut stage = Stage::new(3, 2, 2).await;
    let load = load(&stage).await;
    let dead = stage.incarnation("n2").await;
    let kill = stage.kill_together(&["n2", "s1"]).unwrap();
    stage.until_taken_over(dead, SESSIONS, 1).await;
    stage.restart(&["s1", "n2"]).await;
    stage.until_protected(SESSIONS, 2).await;
    all_is_kept(&stage, load, kill).await;
    stage.end();
}

/// From the kill to the first request of its sessions that is served elsewhere: under 500 ms with default
/// settings.
#[tokio::test(flavor = "multi_thread")]
async fn measured_time_from_kill_to_served_elsewhere() {
    let mut stage = Stage::new(3, 2, 2).await;
    let customers = customers(&stage, 60, 2).await;
    let dead = stage.incarnation("n3").await;
    let customer = customers.iter().find(|customer| customer.cookie.host == dead).expect("one on each node");
    let mut browser = stage.browser();
    browser.cookie = Some(customer.cookie.clone());
    let kill = stage.kill("n3").unwrap();
    let answer = browser.post("/session/n/incr").await.unwrap();
    let served = kill.sent.elapsed();
    assert!(answer.status.is_success(), "{}: {}", answer.status, answer.text());
    assert_eq!(number(&answer).to_string(), (number_of(customer) + 1).to_string());
    assert_ne!(answer.cookie().unwrap().host, dead, "the cookie is issued again");
    println!("kill -9 to served elsewhere: {} ms", served.as_millis());
    assert!(served < Duration::from_millis(500), "served elsewhere only after {served:?}");
    stage.end();
}

fn number_of(customer: &selvage_tests::stage::Customer) -> i64 {
    std::str::from_utf8(&customer.attributes["n"]).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_killed_and_no_request_fails() {
    let mut stage = Stage::new(2, 3, 2).await;
    let load = load(&stage).await;
    stage.kill("s2").unwrap();
    stage
        .until("copies elsewhere", |view| view.server_is("s2", "down") && view.protects(SESSIONS as u64, 2))
        .await;
    stage.restart(&["s2"]).await;
    stage.until_protected(SESSIONS, 2).await;
    nothing_failed(&stage, load).await;
    stage.end();
}

/// With every server dead requests go on; when they return, protection returns by itself, without a request.
#[tokio::test(flavor = "multi_thread")]
async fn all_servers_are_killed_and_no_request_fails() {
    let mut stage = Stage::new(2, 2, 2).await;
    let load = load(&stage).await;
    stage.kill_together(&["s1", "s2"]).unwrap();
    stage.until("nothing is protected", |view| view.with_copies(0) == SESSIONS as u64).await;
    a_while().await;
    nothing_failed(&stage, load).await;
    // The load has ended: from here on there is no request.
    stage.restart(&["s1", "s2"]).await;
    let view = stage.until_protected(SESSIONS, 2).await;
    assert_eq!(view.sessions(), SESSIONS as u64);
    stage.end();
}

/// A worker dies; its node lives on in the others, and nobody else notices.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_is_killed_and_the_node_lives() {
    let stage = Stage::new(2, 2, 2).await;
    let load = load(&stage).await;
    for _ in 0..4 {
        let before = stage.incarnation("n1").await;
        let master = stage.process("n1").unwrap().pid();
        let workers = || stage.process("n1").unwrap().pids().into_iter().filter(move |pid| *pid != master);
        let worker = workers().next().expect("a worker");
        let pid = rustix::process::Pid::from_raw(worker.cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        stage
            .until("another worker stands in", |view| {
                let pids = &view.node("n1").unwrap().pids;
                pids.len() == 2 && !pids.contains(&worker)
            })
            .await;
        assert_eq!(stage.incarnation("n1").await, before, "the node's life goes on");
    }
    a_while().await;
    let ledger = load.stop().await.unwrap();
    let verdict = ledger.verify(stage.address(), CONNECTIONS).await.unwrap();
    assert!(verdict.is_clean(), "{verdict:?}");
    assert!(ledger.moves.is_empty(), "no session moved: {:?}", ledger.moves.first());
    stage.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_drained_under_load_and_no_request_fails() {
    let stage = Stage::new(3, 2, 2).await;
    let load = load(&stage).await;
    let drained = stage.incarnation("n1").await;
    stage.admin().drain("n1").await.unwrap();
    let view = stage.until_taken_over(drained, SESSIONS, 2).await;
    assert!(view.node_is("n1", "drained"), "{view:?}");
    a_while().await;
    assert!(load.first_moved(drained, Instant::now() - SOON).is_some(), "its sessions are served elsewhere");
    stage.admin().undrain("n1").await.unwrap();
    stage.until("taken back", |view| view.node_is("n1", "up")).await;
    nothing_failed(&stage, load).await;
    stage.end();
}

/// Nodes are drained and restarted one after the other, as at an update of the web servers.
#[tokio::test(flavor = "multi_thread")]
async fn every_node_is_drained_and_restarted_and_no_request_fails() {
    let mut stage = Stage::new(3, 2, 1).await;
    let load = load(&stage).await;
    for name in ["n1", "n2", "n3"] {
        let drained = stage.incarnation(name).await;
        stage.admin().drain(name).await.unwrap();
        stage.until_taken_over(drained, SESSIONS, 1).await;
        assert!(stage.stop_member(name).unwrap(), "{name} ends when asked");
        stage.admin().undrain(name).await.unwrap();
        stage.restart(&[name]).await;
    }
    nothing_failed(&stage, load).await;
    stage.end();
}

/// The director restarts: sessions and their hosts stay, the epoch rises.
#[tokio::test(flavor = "multi_thread")]
async fn the_director_is_killed_and_comes_back() {
    let mut stage = Stage::new(3, 2, 2).await;
    let customers = customers(&stage, 90, 2).await;
    let before = stage.until_protected(customers.len(), 2).await;
    stage.kill("director").unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    stage.restart(&["director"]).await;
    let after = stage.until_protected(customers.len(), 2).await;
    assert!(after.epoch > before.epoch, "{} > {}", after.epoch, before.epoch);
    assert!(after.epoch.term > before.epoch.term && after.epoch.number > before.epoch.number);
    assert_eq!(after.sessions(), customers.len() as u64, "no session is hosted twice");
    let later = all_find_all(&stage, &customers).await;
    let stayed = later.iter().zip(&customers).all(|(now, then)| now.cookie.host == then.cookie.host);
    assert!(stayed, "every session is still at its host");
    stage.end();
}

/// While there is no director, nobody is promised a copy; when it is back, promises are kept.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_director_mandates_run_out() {
    let mut stage = Stage::new(1, 1, 1).await;
    let address = stage.node_address("n1").unwrap();
    let mut browser = selvage_tests::client::Browser::new(address);
    let answer = browser.post("/session/n/incr").await.unwrap();
    assert_eq!((number(&answer), answer.copies()), (1, Some(1)));
    stage.kill("director").unwrap();
    tokio::time::sleep(Duration::from_millis(400)).await;
    let answer = browser.post("/session/n/incr").await.unwrap();
    assert_eq!(
        (number(&answer), answer.copies()),
        (2, Some(0)),
        "the change is made, and no copy is promised"
    );
    stage.restart(&["director"]).await;
    stage.until_protected(1, 1).await;
    let answer = browser.post("/session/n/incr").await.unwrap();
    assert_eq!((number(&answer), answer.copies()), (3, Some(1)));
    stage.end();
}
