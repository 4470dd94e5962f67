//! Whole hosts die, by a cut of their power, under load: nothing acked is lost, and they come back.

use crate::setting::{Death, SESSIONS, all_is_kept, goes_on, load, options, report};
use selvage_tests::stage::Stage;
use std::time::Instant;

/// One copy: the host of a web node dies, then the host of a session server.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_dies_with_one_copy() {
    let places = [("n1", 1), ("s1", 2), ("n2", 3), ("s2", 3)];
    let mut stage = Stage::with(options(2, 2, 1, &places)).await;
    let load = load(&stage).await;

    let dead = stage.incarnation("n1").await;
    let kill = stage.kill_host(1).unwrap();
    stage.until("n1's end is seen", |view| view.host(dead).is_none()).await;
    let deaths = [Death { node: dead, cut: kill.sent, seen: Instant::now() }];
    report("the web node's host: power cut to declared down", kill.sent);
    stage.until_taken_over(dead, SESSIONS, 1).await;
    report("the web node's host: power cut to all sessions elsewhere, safe", kill.sent);
    let moved = load.first_moved(dead, kill.sent).expect("its sessions are served elsewhere");
    println!("the web node's host: power cut to first served elsewhere: {} ms", moved.as_millis());
    comes_back(&mut stage, 1).await;

    let (before, failed, since) = (load.requests(), load.failed(), Instant::now());
    let cut = stage.kill_host(2).unwrap();
    stage.until("s1's end is seen", |view| view.server_is("s1", "down")).await;
    report("the session server's host: power cut to declared down", cut.sent);
    stage.until("all copies are on s2", |view| view.protects(SESSIONS as u64, 1)).await;
    report("the session server's host: power cut to all sessions safe", cut.sent);
    goes_on(&load, before, failed, since);
    comes_back(&mut stage, 2).await;
    goes_on(&load, before, failed, since);
    all_is_kept(&stage, load, &deaths).await;
    stage.end();
}

/// Two copies: a host with a web node and a session server. A third node has both its copies elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_with_node_and_server_dies_with_two_copies() {
    let places = [("n1", 1), ("s1", 1), ("n2", 2), ("s2", 2), ("n3", 3)];
    let mut stage = Stage::with(options(3, 2, 2, &places)).await;
    let load = load(&stage).await;
    let dead = stage.incarnation("n1").await;
    let kill = stage.kill_host(1).unwrap();
    stage.until("the node's end is seen", |view| view.host(dead).is_none()).await;
    let deaths = [Death { node: dead, cut: kill.sent, seen: Instant::now() }];
    stage.until_taken_over(dead, SESSIONS, 1).await;
    report("node and server at once: power cut to all sessions elsewhere, with the one copy left", kill.sent);
    comes_back(&mut stage, 1).await;
    all_is_kept(&stage, load, &deaths).await;
    stage.end();
}

/// The host is started again: its members join, and each session has all its copies.
async fn comes_back(stage: &mut Stage, guest: u8) {
    let began = Instant::now();
    stage.start_host(guest).unwrap();
    report("host started, with its members", began);
    stage.wait_up().await.unwrap();
    stage.until_connected().await;
    stage.until_protected(SESSIONS, stage.copies()).await;
    report("host started to whole cluster, safe", began);
}
