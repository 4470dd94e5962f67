//! A host without RDMA: everything works, and whoever asks is told why there is none.

use selvage_tests::cluster::{Cluster, Options};
use selvage_tests::product::Product;
use selvage_tests::stage::{Stage, customers, options};
use std::process::Command;
use std::time::Duration;

/// What the status says of a server's RDMA: its device, or why there is none and what to do.
#[tokio::test(flavor = "multi_thread")]
async fn the_status_says_which_way_sessions_go_and_why_there_is_no_rdma() {
    let stage = Stage::new(1, 1, 1).await;
    customers(&stage, 3, 1).await;
    let view = stage.until_connected().await;
    assert_eq!(view.link("n1", "s1").unwrap().transport, "shm");
    let rdma = &view.server("s1").unwrap().rdma;
    println!("{rdma}");
    assert!(rdma.contains("RDMA") || rdma.contains(" port "), "says nothing of RDMA: {rdma}");
    let mut status = Command::new(stage.product().operator_tool());
    status.args(["status", "--config"]).arg(stage.folder().unwrap().config());
    let said = String::from_utf8(status.output().unwrap().stdout).unwrap();
    assert!(said.contains(rdma.as_str()) && said.contains("shm"), "no {rdma} in: {said}");
    stage.end();
}

/// RDMA is forced where there is none: the way stays closed and says why, and sessions are served without a
/// copy.
#[tokio::test(flavor = "multi_thread")]
async fn forced_rdma_without_a_device_is_named_and_requests_are_served() {
    let cluster = "transport = \"verbs\"\n".into();
    let tables = format!("[rdma]\nenabled = false\n{}", options().tables);
    let forced = Options { nodes: 1, servers: 1, copies: 1, cluster, tables, ..options() };
    let mut cluster = Cluster::prepare(Product::ready().unwrap(), forced).unwrap();
    for member in cluster.member_names() {
        cluster.start_member(&member).unwrap();
    }
    let why = "n1 says why it has no way to s1";
    let mut admin = cluster.admin();
    let view = admin.until(why, Duration::from_secs(20), |view| {
        view.node_is("n1", "up") && view.link("n1", "s1").is_some_and(|link| link.detail.contains("RDMA"))
    });
    let view = view.await.unwrap();
    let link = view.link("n1", "s1").unwrap();
    println!("{}", link.detail);
    assert_eq!(link.transport, "", "no way is open");
    assert!(link.detail.contains("[rdma]"), "names the cause: {}", link.detail);
    let answer = cluster.browser().post("/session/n/incr").await.unwrap();
    assert!(answer.status.is_success(), "{}: {}", answer.status, answer.text());
    assert_eq!(answer.copies(), Some(0), "served, and honest about its copies");
    cluster.stop().unwrap();
}
