//! One test per claim of the design. (There is no C5.)

use crate::harness::{Stage, all_find_all, copies_by_server, guests, options, visit_all};
use selvage_tests::cluster::Options;
use std::collections::BTreeMap;

/// Several web servers host sessions; requests go to their host; one session server has copies of everything.
#[tokio::test(flavor = "multi_thread")]
async fn c1_requests_reach_their_host_and_a_remote_server_has_everything() {
    let mut stage = Stage::new(3, 1, 1).await;
    let guests = guests(&stage, 150, 1).await;
    let view = stage.until_protected(guests.len(), 1).await;
    let mut hosted: BTreeMap<String, u64> = BTreeMap::new();
    for guest in &guests {
        *hosted.entry(view.host(guest.cookie.host).unwrap().to_owned()).or_default() += 1;
    }
    assert_eq!(hosted.len(), 3, "every node hosts some: {hosted:?}");
    for node in &view.nodes {
        assert_eq!(node.sessions, hosted[&node.name], "{}", node.name);
    }
    for visit in visit_all(&stage, &guests).await {
        assert!(visit.whole);
        assert_eq!(Some(visit.node.as_str()), view.host(visit.guest.cookie.host), "served by its host");
    }
    stage.until("all copies on the one server", |view| view.copies() == 150).await;
    // The server has it all: it alone is left, and everything comes back from it.
    stage.kill_together(&["n1", "n2", "n3"]).unwrap();
    stage.restart(&["n1", "n2", "n3"]).await;
    all_find_all(&stage, &guests).await;
    stage.end();
}

/// Each web server has a cache with the data of all sessions that it hosts: it needs no server to read them.
#[tokio::test(flavor = "multi_thread")]
async fn c2_each_node_caches_all_data_of_its_sessions() {
    let mut stage = Stage::new(2, 2, 2).await;
    let guests = guests(&stage, 120, 2).await;
    stage.kill_together(&["s1", "s2"]).unwrap();
    stage.until("no server is up", |view| view.servers.iter().all(|server| server.state == "down")).await;
    for (visit, guest) in visit_all(&stage, &guests).await.iter().zip(&guests) {
        assert!(visit.whole);
        assert_eq!(visit.guest.cookie.host, guest.cookie.host, "still at its host");
        assert_eq!(visit.copies, 0, "and honest about its copies");
    }
    stage.end();
}

/// There can be several session servers, each with copies of a subset.
#[tokio::test(flavor = "multi_thread")]
async fn c3_each_server_has_a_copy_of_a_subset() {
    let mut stage = Stage::new(2, 2, 1).await;
    let guests = guests(&stage, 160, 1).await;
    let placed = stage.placed(&guests);
    assert!(placed.values().all(|count| *count > 0), "both have some: {placed:?}");
    stage.until("the copies are where they shall be", |view| copies_by_server(view) == placed).await;
    // One server and no host is left: its subset comes back from it, whole.
    stage.kill_together(&["n1", "n2", "s1"]).unwrap();
    stage.restart(&["n1", "n2"]).await;
    let visits = visit_all(&stage, &guests).await;
    let subset =
        |name: &str| guests.iter().filter(|guest| stage.placement_of(&guest.cookie) == [name]).count();
    assert_eq!(visits.iter().filter(|visit| visit.whole).count(), subset("s2"));
    stage.end();
}

/// With one copy the subsets are disjoint.
#[tokio::test(flavor = "multi_thread")]
async fn c4_with_one_copy_the_subsets_are_disjoint() {
    let mut stage = Stage::new(2, 3, 1).await;
    let guests = guests(&stage, 150, 1).await;
    let view = stage.until("one copy of each session", |view| view.copies() == 150).await;
    assert_eq!(copies_by_server(&view), stage.placed(&guests));
    stage.kill_together(&["n1", "n2", "s2"]).unwrap();
    stage.restart(&["n1", "n2"]).await;
    // Exactly the sessions of the server that is gone are gone: nobody else had a copy of them.
    for (guest, visit) in guests.iter().zip(visit_all(&stage, &guests).await) {
        let gone = stage.placement_of(&guest.cookie) == ["s2"];
        assert_eq!(
            visit.whole,
            !gone,
            "a session whose one copy was on {:?}",
            stage.placement_of(&guest.cookie)
        );
        assert_eq!(
            visit.guest.cookie.id == guest.cookie.id,
            !gone,
            "a lost session is replaced by a new one"
        );
    }
    stage.end();
}

/// Sessions are connected to web servers, cached there whole, and every cached session is copied to a server:
/// through creation, change, destruction and a new id.
#[tokio::test(flavor = "multi_thread")]
async fn c6_every_cached_session_is_copied() {
    let mut stage = Stage::new(2, 2, 1).await;
    let mut guests = guests(&stage, 100, 1).await;
    for guest in guests.split_off(70) {
        let mut browser = selvage_tests::client::Browser::with_cookie(stage.address(), guest.cookie);
        let answer = browser.delete("/session").await.unwrap();
        assert!(answer.status.is_success(), "{}: {}", answer.status, answer.text());
        assert!(browser.cookie.is_none(), "the cookie is cleared");
    }
    for guest in &mut guests[..20] {
        let mut browser = selvage_tests::client::Browser::with_cookie(stage.address(), guest.cookie.clone());
        let answer = browser.post("/session/regenerate").await.unwrap();
        assert!(answer.status.is_success(), "{}: {}", answer.status, answer.text());
        let cookie = browser.cookie.unwrap();
        assert_ne!(cookie.id, guest.cookie.id, "a new id");
        guest.cookie = cookie;
    }
    let view =
        stage.until("as many copies as sessions", |view| view.sessions() == 70 && view.copies() == 70).await;
    assert_eq!((view.with_copies(0), view.with_copies(1)), (0, 70));
    assert_eq!(view.nodes.iter().map(|node| node.sessions).sum::<u64>(), 70);
    stage.kill_together(&["n1", "n2"]).unwrap();
    stage.restart(&["n1", "n2"]).await;
    all_find_all(&stage, &guests).await;
    stage.end();
}

/// A web server goes down: its sessions go to others, with their data copied from the server to the new host.
#[tokio::test(flavor = "multi_thread")]
async fn c7_sessions_of_a_dead_node_move_with_their_data() {
    let mut stage = Stage::new(3, 2, 1).await;
    let guests = guests(&stage, 150, 1).await;
    let dead = stage.incarnation("n1").await;
    stage.kill("n1").unwrap();
    // No request is sent: the others take everything over by themselves.
    let view = stage.until_taken_over(dead, guests.len(), 1).await;
    assert_eq!(view.nodes.iter().map(|node| node.sessions).sum::<u64>(), 150);
    // The data is in the caches of the new hosts: no server is needed any more to read it.
    stage.kill_together(&["s1", "s2"]).unwrap();
    for (visit, before) in visit_all(&stage, &guests).await.iter().zip(&guests) {
        assert!(visit.whole);
        assert_ne!(visit.node, "n1");
        let moved = before.cookie.host == dead;
        assert_eq!(
            visit.guest.cookie.host != before.cookie.host,
            moved,
            "only moved sessions get a new cookie"
        );
        assert_eq!(Some(visit.node.as_str()), view.host(visit.guest.cookie.host));
    }
    assert!(guests.iter().any(|guest| guest.cookie.host == dead), "the dead node hosted some");
    stage.end();
}

/// With several servers each session is copied to the one that its placement selects, by weight.
#[tokio::test(flavor = "multi_thread")]
async fn c8_placement_selects_the_server() {
    let mut stage =
        Stage::with(Options { nodes: 2, servers: 3, copies: 1, weights: vec![1, 2, 5], ..options() }).await;
    let guests = guests(&stage, 240, 1).await;
    let placed = stage.placed(&guests);
    assert!(placed["s1"] < placed["s2"] && placed["s2"] < placed["s3"], "weights count: {placed:?}");
    stage.until("copies are where placement says", |view| copies_by_server(view) == placed).await;
    // A server of the placement that is gone takes exactly its own with it when the hosts go, too.
    stage.kill_together(&["n1", "n2", "s3"]).unwrap();
    stage.restart(&["n1", "n2"]).await;
    for (guest, visit) in guests.iter().zip(visit_all(&stage, &guests).await) {
        assert_eq!(visit.whole, stage.placement_of(&guest.cookie) != ["s3"]);
    }
    stage.end();
}

/// A session server goes down: what it had is copied again, from the hosts to another server, without any
/// request.
#[tokio::test(flavor = "multi_thread")]
async fn c9_copies_of_a_dead_server_are_made_again() {
    let mut stage = Stage::new(2, 2, 1).await;
    let guests = guests(&stage, 150, 1).await;
    stage.until("one copy of each session", |view| view.copies() == 150).await;
    stage.kill("s1").unwrap();
    stage
        .until("s2 alone has all copies", |view| {
            view.server_is("s1", "down") && view.protects(150, 1) && copies_by_server(view)["s2"] == 150
        })
        .await;
    stage.kill_together(&["n1", "n2"]).unwrap();
    stage.restart(&["n1", "n2"]).await;
    all_find_all(&stage, &guests).await;
    stage.end();
}

/// The subsets can overlap: each session is copied to two different servers.
#[tokio::test(flavor = "multi_thread")]
async fn c10_each_session_is_on_two_servers() {
    let mut stage = Stage::new(2, 3, 2).await;
    let guests = guests(&stage, 150, 2).await;
    let placed = stage.placed(&guests);
    assert!(placed.values().all(|count| *count > 0), "{placed:?}");
    stage.until("two copies of each", |view| view.copies() == 300 && copies_by_server(view) == placed).await;
    // Whichever server goes together with all hosts, the other copy is there. s1 first, then another round
    // with s2.
    for server in ["s1", "s2"] {
        stage.kill_together(&["n1", "n2", server]).unwrap();
        stage.restart(&["n1", "n2"]).await;
        all_find_all(&stage, &guests).await;
        stage.restart(&[server]).await;
        stage.until_protected(guests.len(), 2).await;
    }
    stage.end();
}
