//! The claims, with the web nodes on one host and the session servers on another: every copy goes over RDMA.

use crate::setting::{calm, options, report};
use selvage_tests::claims;
use selvage_tests::cluster::Options;
use selvage_tests::stage::Stage;
use std::time::Instant;

/// Sessions of each claim.
const SESSIONS: usize = 45;

/// Runs a claim on the cluster as it stands after the last one: with no session, all members up, and every
/// node connected with every server by RDMA, before and after.
macro_rules! show {
    ($stage:ident, $claim:ident) => {{
        let began = Instant::now();
        by_rdma_alone(&$stage).await;
        let customers = claims::$claim(&mut $stage, SESSIONS).await;
        by_rdma_alone(&$stage).await;
        report(stringify!($claim), began);
        $stage.clear(customers).await;
        report("and cleared up", began);
    }};
}

/// Every node has its way to every server, and each is one between hosts.
async fn by_rdma_alone(stage: &Stage) {
    let view = stage.until_connected().await;
    let up = |state: &str| state == "up";
    let (nodes, servers) = (
        view.nodes.iter().filter(|node| up(&node.state)).count(),
        view.servers.iter().filter(|server| up(&server.state)).count(),
    );
    let verbs = view.nodes.iter().filter(|node| up(&node.state)).flat_map(|node| &node.links);
    let verbs = verbs.filter(|link| link.transport == "verbs").count();
    assert!(verbs >= nodes * servers, "{verbs} links by RDMA, {nodes} nodes, {servers} servers: {view:?}");
    let shm = view.nodes.iter().flat_map(|node| &node.links).any(|link| link.transport == "shm");
    assert!(!shm, "a copy stays on its host: {view:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_claims_of_one_copy() {
    let began = Instant::now();
    let places = [("n1", 1), ("n2", 1), ("n3", 1), ("s1", 2), ("s2", 2), ("s3", 2)];
    let later = vec!["s2".to_owned(), "s3".to_owned()];
    let options = Options { later, weights: vec![1, 2, 5], ..options(3, 3, 1, &places) };
    let mut stage = Stage::with(calm(options)).await;
    report("start", began);
    show!(stage, c1_requests_reach_their_host_and_a_remote_server_has_everything);
    stage.restart(&["s2", "s3"]).await;
    show!(stage, c3_each_server_has_a_copy_of_a_subset);
    show!(stage, c4_with_one_copy_the_subsets_are_disjoint);
    show!(stage, c6_every_cached_session_is_copied);
    show!(stage, c7_sessions_of_a_dead_node_move_with_their_data);
    show!(stage, c8_placement_selects_the_server);
    show!(stage, c9_copies_of_a_dead_server_are_made_again);
    stage.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_claims_of_two_copies() {
    let places = [("n1", 1), ("n2", 1), ("s1", 2), ("s2", 2), ("s3", 2)];
    let mut stage = Stage::with(calm(options(2, 3, 2, &places))).await;
    show!(stage, c2_each_node_caches_all_data_of_its_sessions);
    show!(stage, c10_each_session_is_on_two_servers);
    stage.end();
}
