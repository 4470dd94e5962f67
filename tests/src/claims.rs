//! The nine claims of the design, each as what must be seen of a running cluster, wherever its members are.
//! (There is no C5.)
//!
//! Called by the end-to-end tests on one host and by those over several. Each needs a cluster whose members
//! are all up and in which there is no session, fails by panicking, leaves some members dead, and answers
//! with everybody who has a session then.

use crate::client::Browser;
use crate::stage::{Customer, Stage, Visit, all_find_all, copies_by_server, customers, visit_all};
use std::collections::BTreeMap;

/// Several web servers host sessions; requests go to their host; one session server has copies of
/// everything. For one server and one copy.
pub async fn c1_requests_reach_their_host_and_a_remote_server_has_everything(
    stage: &mut Stage,
    sessions: usize,
) -> Vec<Customer> {
    let (nodes, servers) = (stage.nodes(), stage.servers());
    assert_eq!(servers.len(), 1, "C1 is shown with one server");
    let customers = customers(stage, sessions, 1).await;
    let view = stage.until_protected(customers.len(), 1).await;
    let mut hosted: BTreeMap<String, u64> = BTreeMap::new();
    for customer in &customers {
        *hosted.entry(view.host(customer.cookie.host).unwrap().to_owned()).or_default() += 1;
    }
    assert_eq!(hosted.len(), nodes.len(), "every node hosts some: {hosted:?}");
    for node in &view.nodes {
        assert_eq!(node.sessions, hosted[&node.name], "{}", node.name);
    }
    for visit in visit_all(stage, &customers).await {
        assert!(visit.whole);
        assert_eq!(Some(visit.node.as_str()), view.host(visit.customer.cookie.host), "served by its host");
    }
    stage.until("all copies on the one server", |view| view.copies() == sessions as u64).await;
    // The server has it all: it alone is left, and everything comes back from it.
    stage.kill_together(&names(&nodes)).unwrap();
    stage.restart(&names(&nodes)).await;
    all_find_all(stage, &customers).await
}

/// Each web server has a cache with the data of all sessions that it hosts: it needs no server to read them.
pub async fn c2_each_node_caches_all_data_of_its_sessions(
    stage: &mut Stage,
    sessions: usize,
) -> Vec<Customer> {
    let servers = stage.servers();
    let customers = customers(stage, sessions, stage.copies()).await;
    stage.kill_together(&names(&servers)).unwrap();
    stage.until("no server is up", |view| view.servers.iter().all(|server| server.state == "down")).await;
    let visits = visit_all(stage, &customers).await;
    for (visit, customer) in visits.iter().zip(&customers) {
        assert!(visit.whole);
        assert_eq!(visit.customer.cookie.host, customer.cookie.host, "still at its host");
        assert_eq!(visit.copies, 0, "and honest about its copies");
    }
    visitors(visits)
}

/// There can be several session servers, each with copies of a subset. For one copy.
pub async fn c3_each_server_has_a_copy_of_a_subset(stage: &mut Stage, sessions: usize) -> Vec<Customer> {
    let (nodes, servers) = (stage.nodes(), stage.servers());
    let customers = customers(stage, sessions, 1).await;
    let placed = stage.placed(&customers);
    assert!(placed.len() > 1 && placed.values().all(|count| *count > 0), "all have some: {placed:?}");
    stage.until("the copies are where they shall be", |view| copies_by_server(view) == placed).await;
    // One server and no host is left: its subset comes back from it, whole.
    let (left, gone) = servers.split_last().expect("several servers");
    let here = |customer: &&Customer| stage.placement_of(&customer.cookie) == [left.clone()];
    let subset = customers.iter().filter(here).count();
    stage.kill_together(&[names(&nodes), names(gone)].concat()).unwrap();
    stage.restart(&names(&nodes)).await;
    let visits = visit_all(stage, &customers).await;
    assert_eq!(visits.iter().filter(|visit| visit.whole).count(), subset, "{left} had {placed:?}");
    visitors(visits)
}

/// With one copy the subsets are disjoint.
pub async fn c4_with_one_copy_the_subsets_are_disjoint(stage: &mut Stage, sessions: usize) -> Vec<Customer> {
    let (nodes, servers) = (stage.nodes(), stage.servers());
    let customers = customers(stage, sessions, 1).await;
    let view = stage.until("one copy of each session", |view| view.copies() == sessions as u64).await;
    assert_eq!(copies_by_server(&view), stage.placed(&customers));
    let gone = &servers[1];
    stage.kill_together(&[names(&nodes), vec![gone]].concat()).unwrap();
    stage.restart(&names(&nodes)).await;
    // Exactly the sessions of the server that is gone are gone: nobody else had a copy of them.
    let visits = visit_all(stage, &customers).await;
    for (customer, visit) in customers.iter().zip(&visits) {
        let lost = stage.placement_of(&customer.cookie) == [gone.clone()];
        let was_on = stage.placement_of(&customer.cookie);
        assert_eq!(visit.whole, !lost, "a session whose one copy was on {was_on:?}");
        let same = visit.customer.cookie.id == customer.cookie.id;
        assert_eq!(same, !lost, "a lost session is replaced by a new one");
    }
    visitors(visits)
}

/// Sessions are connected to web servers, cached there whole, and every cached session is copied to a server:
/// through creation, change, destruction and a new id. For one copy.
pub async fn c6_every_cached_session_is_copied(stage: &mut Stage, sessions: usize) -> Vec<Customer> {
    let nodes = stage.nodes();
    let mut customers = customers(stage, sessions, 1).await;
    let kept = sessions * 7 / 10;
    for customer in customers.split_off(kept) {
        let mut browser = Browser::with_cookie(stage.address(), customer.cookie);
        let answer = browser.delete("/session").await.unwrap();
        assert!(answer.status.is_success(), "{}: {}", answer.status, answer.text());
        assert!(browser.cookie.is_none(), "the cookie is cleared");
    }
    for customer in &mut customers[..sessions / 5] {
        let mut browser = Browser::with_cookie(stage.address(), customer.cookie.clone());
        let answer = browser.post("/session/regenerate").await.unwrap();
        assert!(answer.status.is_success(), "{}: {}", answer.status, answer.text());
        let cookie = browser.cookie.unwrap();
        assert_ne!(cookie.id, customer.cookie.id, "a new id");
        customer.cookie = cookie;
    }
    let kept = kept as u64;
    let wish = "as many copies as sessions";
    let view = stage.until(wish, |view| view.sessions() == kept && view.copies() == kept).await;
    assert_eq!((view.with_copies(0), view.with_copies(1)), (0, kept));
    assert_eq!(view.nodes.iter().map(|node| node.sessions).sum::<u64>(), kept);
    stage.kill_together(&names(&nodes)).unwrap();
    stage.restart(&names(&nodes)).await;
    all_find_all(stage, &customers).await
}

/// A web server goes down: its sessions go to others, with their data copied from the server to the new host.
pub async fn c7_sessions_of_a_dead_node_move_with_their_data(
    stage: &mut Stage,
    sessions: usize,
) -> Vec<Customer> {
    let servers = stage.servers();
    let customers = customers(stage, sessions, stage.copies()).await;
    let dead = stage.incarnation("n1").await;
    stage.kill("n1").unwrap();
    // No request is sent: the others take everything over by themselves.
    let view = stage.until_taken_over(dead, customers.len(), stage.copies()).await;
    assert_eq!(view.nodes.iter().map(|node| node.sessions).sum::<u64>(), sessions as u64);
    // The data is in the caches of the new hosts: no server is needed any more to read it.
    stage.kill_together(&names(&servers)).unwrap();
    let visits = visit_all(stage, &customers).await;
    for (visit, before) in visits.iter().zip(&customers) {
        assert!(visit.whole);
        assert_ne!(visit.node, "n1");
        let moved = before.cookie.host == dead;
        let renewed = visit.customer.cookie.host != before.cookie.host;
        assert_eq!(renewed, moved, "only moved sessions get a new cookie");
        assert_eq!(Some(visit.node.as_str()), view.host(visit.customer.cookie.host));
    }
    assert!(customers.iter().any(|customer| customer.cookie.host == dead), "the dead node hosted some");
    visitors(visits)
}

/// With several servers each session is copied to the one that its placement selects, by weight. For one
/// copy, and servers of which the last one's weight is several times the first one's.
pub async fn c8_placement_selects_the_server(stage: &mut Stage, sessions: usize) -> Vec<Customer> {
    let (nodes, servers) = (stage.nodes(), stage.servers());
    let customers = customers(stage, sessions, 1).await;
    let placed = stage.placed(&customers);
    let (first, last) = (&servers[0], &servers[servers.len() - 1]);
    assert!(placed[first] < placed[last], "weights count: {placed:?}");
    stage.until("copies are where placement says", |view| copies_by_server(view) == placed).await;
    // A server of the placement that is gone takes exactly its own with it when the hosts go, too.
    stage.kill_together(&[names(&nodes), vec![last]].concat()).unwrap();
    stage.restart(&names(&nodes)).await;
    let visits = visit_all(stage, &customers).await;
    for (customer, visit) in customers.iter().zip(&visits) {
        assert_eq!(visit.whole, stage.placement_of(&customer.cookie) != [last.clone()]);
    }
    visitors(visits)
}

/// A session server goes down: what it had is copied again, from the hosts to another server, without any
/// request. For one copy.
pub async fn c9_copies_of_a_dead_server_are_made_again(stage: &mut Stage, sessions: usize) -> Vec<Customer> {
    let nodes = stage.nodes();
    let customers = customers(stage, sessions, 1).await;
    let all = sessions as u64;
    let view = stage.until("one copy of each session", |view| view.copies() == all).await;
    assert!(copies_by_server(&view)["s1"] > 0, "s1 has some");
    stage.kill("s1").unwrap();
    stage
        .until("the other servers have all copies", |view| {
            let others = view.copies() - copies_by_server(view)["s1"];
            view.server_is("s1", "down") && view.protects(all, 1) && others == all
        })
        .await;
    stage.kill_together(&names(&nodes)).unwrap();
    stage.restart(&names(&nodes)).await;
    all_find_all(stage, &customers).await
}

/// The subsets can overlap: each session is copied to two different servers. For two copies and at least
/// three servers.
pub async fn c10_each_session_is_on_two_servers(stage: &mut Stage, sessions: usize) -> Vec<Customer> {
    let nodes = stage.nodes();
    let mut customers = customers(stage, sessions, 2).await;
    let placed = stage.placed(&customers);
    assert!(placed.len() > 2 && placed.values().all(|count| *count > 0), "{placed:?}");
    let all = 2 * sessions as u64;
    stage.until("two copies of each", |view| view.copies() == all && copies_by_server(view) == placed).await;
    // Whichever server goes together with all hosts, the other copy is there. s1 first, then another round
    // with s2.
    for server in ["s1", "s2"] {
        stage.kill_together(&[names(&nodes), vec![server]].concat()).unwrap();
        stage.restart(&names(&nodes)).await;
        customers = all_find_all(stage, &customers).await;
        stage.restart(&[server]).await;
        stage.until_protected(customers.len(), 2).await;
    }
    customers
}

fn visitors(visits: Vec<Visit>) -> Vec<Customer> {
    visits.into_iter().map(|visit| visit.customer).collect()
}

fn names(names: &[String]) -> Vec<&str> {
    names.iter().map(String::as_str).collect()
}
