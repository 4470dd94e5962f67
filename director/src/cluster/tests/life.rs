//! Registration, heartbeats, silence.

use super::*;
use selvage_fabric::control::message::Refusal;

#[test]
fn a_node_registers_and_beats() {
    let mut world = World::up(&["n1", "n2"], &["s1"]);
    let n1 = world.node("n1").unwrap();
    assert_eq!(n1.0 >> 32, u64::from(UNIX_S), "incarnations carry the term");
    assert_ne!(Some(n1), world.node("n2"));
    let link = world.beating["n1"].0;
    world.beat("n1");
    let sent_ns = world.now.as_nanos() as u64;
    assert_eq!(world.told(link), Some(&FromDirector::Mandate { sent_ns }));
    world.advance(3000);
    assert_eq!(world.node("n1"), Some(n1), "who beats stays");
}

#[test]
fn silence_ends_a_node_and_the_next_life_is_another() {
    let mut world = World::up(&["n1", "n2"], &["s1"]);
    let old = world.node("n1").unwrap();
    let (link, _) = world.beating.remove("n1").unwrap();
    world.advance(250);
    assert_eq!(world.node("n1"), Some(old), "not before the silence limit");
    world.servers.get_mut("s1").unwrap().unsettled.insert(old, 1);
    world.advance(100);
    assert_eq!(world.node("n1"), None);
    assert_eq!(world.dead("n1").unwrap().incarnation, old);
    // The zombie wakes up: no mandate, and it is told that it is over.
    let message = ToDirector::Beat(NodeBeat::default());
    world.step(Event::NodeMessage { link, message });
    assert_eq!(world.told(link), Some(&FromDirector::Over { drained: false }));
    let link = world.open("n1", old);
    let epoch = world.view().epoch;
    world.step(Event::NodeMessage { link, message: ToDirector::Resume { epoch } });
    assert_eq!(world.told(link), Some(&FromDirector::Over { drained: false }));
    assert!(world.node_up("n1") > old);
}

#[test]
fn a_new_life_ends_the_older_one_at_once() {
    let mut world = World::up(&["n1", "n2"], &["s1"]);
    let old = world.node("n1").unwrap();
    world.servers.get_mut("s1").unwrap().unsettled.insert(old, 1);
    let old_link = world.beating["n1"].0;
    let new = world.node_up("n1");
    assert_eq!(world.node("n1"), Some(new));
    assert_eq!(world.dead("n1").unwrap().incarnation, old);
    assert!(world.to_nodes.contains(&(old_link, FromDirector::Over { drained: false })));
    // The proxy learned of it before any server did: cutting comes first.
    assert!(world.published.iter().any(|(view, _)| view.node(old).is_none() && view.node(new).is_some()));
}

#[test]
fn a_connection_registers_once() {
    let mut world = World::up(&["n1"], &["s1"]);
    let (link, life) = (world.beating["n1"].0, world.node("n1"));
    world.step(Event::NodeMessage { link, message: ToDirector::Register });
    assert!(matches!(world.told(link), Some(FromDirector::Refused(Refusal::Bad(_)))));
    assert_eq!(world.node("n1"), life);
}

#[test]
fn another_steward_takes_over() {
    let mut world = World::up(&["n1"], &["s1"]);
    let life = world.node("n1").unwrap();
    let old = world.beating["n1"].0;
    world.step(Event::NodeClosed { link: old });
    let link = world.open("n1", life);
    let epoch = world.view().epoch;
    world.step(Event::NodeMessage { link, message: ToDirector::Resume { epoch } });
    assert!(matches!(world.told(link), Some(FromDirector::View(_))));
    world.beating.insert("n1".into(), (link, NodeBeat::default()));
    world.advance(1000);
    assert_eq!(world.node("n1"), Some(life));
    // The old steward's connection gets no mandate any more.
    world.step(Event::NodeMessage { link: old, message: ToDirector::Beat(NodeBeat::default()) });
    assert!(!matches!(world.told(old), Some(FromDirector::Mandate { sent_ns: 0 })));
}

#[test]
fn the_directors_own_pause_is_nobodys_silence() {
    let mut world = World::up(&["n1", "n2"], &["s1", "s2"]);
    let before = world.view();
    world.now += Duration::from_secs(20);
    world.step(Event::Tick);
    assert_eq!(world.view(), before, "nobody dies because the director slept");
    // But whoever stays silent afterwards is noticed in the usual time.
    world.beating.remove("n1");
    world.servers.get_mut("s2").unwrap().answers = false;
    world.advance(400);
    assert!(world.node("n1").is_none() && world.node("n2").is_some());
    assert!(world.server("s2").is_none() && world.server("s1").is_some());
}

#[test]
fn a_killed_server_is_down_at_once_and_its_next_life_enters() {
    let mut world = World::up(&["n1"], &["s1", "s2"]);
    world.server_killed("s1");
    assert_eq!(world.server("s1"), None);
    world.server_up("s1", 50);
    assert_eq!(world.server("s1"), Some(Incarnation(50)));
}

#[test]
fn a_broken_connection_alone_is_no_death() {
    let mut world = World::up(&["n1"], &["s1", "s2"]);
    let life = world.server("s1").unwrap();
    let link = world.servers["s1"].link;
    world.step(Event::ServerClosed { link });
    world.advance(100);
    let view = world.servers["s1"].view.clone();
    world.server_up_with("s1", life.0, view);
    world.advance(1000);
    assert_eq!(world.server("s1"), Some(life));
}

#[test]
fn a_server_that_beats_but_carries_out_nothing_is_down_in_the_end() {
    let mut world = World::up(&["n1", "n2"], &["s1", "s2"]);
    world.servers.get_mut("s2").unwrap().obeys = false;
    world.beating.remove("n1");
    world.advance(1000);
    assert!(world.server("s2").is_some());
    world.advance(3000);
    assert!(world.server("s2").is_none());
    assert!(world.dead("n1").is_none(), "without it the dead are sealed and settled");
}

#[test]
fn a_slow_seal_is_no_silence() {
    let mut world = World::up(&["n1", "n2"], &["s1", "s2"]);
    world.beating.remove("n1");
    world.advance(330);
    // From here on s2 works on the view that ends n1, and answers nothing meanwhile.
    world.servers.get_mut("s2").unwrap().answers = false;
    world.node_up("n1");
    world.advance(600);
    assert!(world.server("s2").is_some());
    world.advance(400);
    assert!(world.server("s2").is_none());
}

#[test]
fn all_servers_down_leaves_nodes_up() {
    let mut world = World::up(&["n1", "n2"], &["s1", "s2"]);
    world.server_killed("s1");
    world.server_killed("s2");
    world.advance(1000);
    assert_eq!((world.view().nodes.len(), world.view().servers.len()), (2, 0));
}

#[test]
fn the_status_shows_who_is_absent() {
    let mut world = World::up(&["n1", "n2"], &["s1", "s2"]);
    world.beating.get_mut("n2").unwrap().1.safe = [1, 2, 3];
    world.beating.remove("n1");
    world.server_killed("s1");
    world.advance(400);
    let status = world.cluster.status();
    let states: Vec<(&str, &str)> = status.nodes.iter().map(|node| (&*node.name, &*node.state)).collect();
    assert_eq!(states, [("n1", "down"), ("n2", "up")]);
    let states: Vec<&str> = status.servers.iter().map(|server| &*server.state).collect();
    assert_eq!(states, ["down", "up"]);
    let json = serde_json::to_value(&status).unwrap();
    assert_eq!(json["protection"], serde_json::json!({ "0": 1, "1": 2, "2": 3 }));
    assert_eq!(json["epoch"]["term"], UNIX_S);
}
