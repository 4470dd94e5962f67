//! One test per claim of the design. (There is no C5.)

use selvage_tests::claims;
use selvage_tests::cluster::Options;
use selvage_tests::stage::{Stage, options};

#[tokio::test(flavor = "multi_thread")]
async fn c1_requests_reach_their_host_and_a_remote_server_has_everything() {
    let mut stage = Stage::new(3, 1, 1).await;
    claims::c1_requests_reach_their_host_and_a_remote_server_has_everything(&mut stage, 150).await;
    stage.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn c2_each_node_caches_all_data_of_its_sessions() {
    let mut stage = Stage::new(2, 2, 2).await;
    claims::c2_each_node_caches_all_data_of_its_sessions(&mut stage, 120).await;
    stage.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn c3_each_server_has_a_copy_of_a_subset() {
    let mut stage = Stage::new(2, 2, 1).await;
    claims::c3_each_server_has_a_copy_of_a_subset(&mut stage, 160).await;
    stage.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn c4_with_one_copy_the_subsets_are_disjoint() {
    let mut stage = Stage::new(2, 3, 1).await;
    claims::c4_with_one_copy_the_subsets_are_disjoint(&mut stage, 150).await;
    stage.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn c6_every_cached_session_is_copied() {
    let mut stage = Stage::new(2, 2, 1).await;
    claims::c6_every_cached_session_is_copied(&mut stage, 100).await;
    stage.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn c7_sessions_of_a_dead_node_move_with_their_data() {
    let mut stage = Stage::new(3, 2, 1).await;
    claims::c7_sessions_of_a_dead_node_move_with_their_data(&mut stage, 150).await;
    stage.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn c8_placement_selects_the_server() {
    let weighted = Options { nodes: 2, servers: 3, copies: 1, weights: vec![1, 2, 5], ..options() };
    let mut stage = Stage::with(weighted).await;
    claims::c8_placement_selects_the_server(&mut stage, 240).await;
    stage.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn c9_copies_of_a_dead_server_are_made_again() {
    let mut stage = Stage::new(2, 2, 1).await;
    claims::c9_copies_of_a_dead_server_are_made_again(&mut stage, 150).await;
    stage.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn c10_each_session_is_on_two_servers() {
    let mut stage = Stage::new(2, 3, 2).await;
    claims::c10_each_session_is_on_two_servers(&mut stage, 150).await;
    stage.end();
}
