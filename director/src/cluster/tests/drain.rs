//! Drain and undrain.

use super::*;

fn ask(world: &mut World, name: &str, ticket: u64) -> Ticket {
    world.step(Event::Drain { name: name.to_owned(), ticket: Ticket(ticket) });
    Ticket(ticket)
}

fn why(world: &World, ticket: Ticket) -> &str {
    match &world.outcomes[&ticket] {
        DrainOutcome::Refused(why) => why,
        other => panic!("not refused: {other:?}"),
    }
}

/// Up to the point where the node was told to prepare.
fn prepared(world: &mut World, name: &str) -> (Ticket, Incarnation, Link) {
    let ticket = ask(world, name, 1);
    world.advance(100);
    let life = world.node(name).unwrap();
    assert_eq!(world.awaited, [(life, 1)]);
    world.step(Event::Idle { incarnation: life, hold: 1 });
    let link = world.beating[name].0;
    assert!(world.to_nodes.contains(&(link, FromDirector::PrepareDrain)));
    (ticket, life, link)
}

#[test]
fn a_drain_holds_hands_over_and_keeps_out() {
    let mut world = World::up(&["n1", "n2"], &["s1"]);
    world.beating.get_mut("n1").unwrap().1.safe = [1, 0, 0];
    let life = world.node("n1").unwrap();
    world.servers.get_mut("s1").unwrap().unsettled.insert(life, 4);
    let ticket = ask(&mut world, "n1", 1);
    assert_eq!(world.view().node(life).unwrap().state, NodeState::Draining);
    world.advance(200);
    assert!(world.held().is_empty(), "an unprotected session: its requests are still served");
    world.beating.get_mut("n1").unwrap().1.safe = [0, 1, 0];
    world.advance(50);
    assert_eq!((world.held(), &world.awaited), (vec![life], &vec![(life, 1)]));
    let link = world.beating["n1"].0;
    assert!(!world.to_nodes.contains(&(link, FromDirector::PrepareDrain)), "requests are under way");
    world.step(Event::Idle { incarnation: life, hold: 1 });
    assert!(world.to_nodes.contains(&(link, FromDirector::PrepareDrain)));
    world.step(Event::NodeMessage { link, message: ToDirector::Drained });
    assert_eq!(world.told(link), Some(&FromDirector::Over { drained: true }));
    assert!(world.dead("n1").unwrap().sealed && world.node("n1").is_none());
    assert!(!world.outcomes.contains_key(&ticket), "not handed over yet");
    world.servers.get_mut("s1").unwrap().unsettled.clear();
    world.advance(100);
    assert_eq!(world.outcomes[&ticket], DrainOutcome::HandedOver);
    assert_eq!(world.cluster.status().nodes[0].state, "drained");
    assert_eq!(world.drained, [("n1".to_owned(), Out::Drained)]);

    // It stays out until it is undrained.
    let link = world.open("n1", Incarnation::NONE);
    world.step(Event::NodeMessage { link, message: ToDirector::Register });
    assert_eq!(world.told(link), Some(&FromDirector::Over { drained: true }));
    let again = ask(&mut world, "n1", 2);
    assert_eq!(world.outcomes[&again], DrainOutcome::HandedOver);
    world.step(Event::Undrain { name: "n1".into() });
    assert!(world.drained.is_empty());
    world.step(Event::NodeMessage { link, message: ToDirector::Register });
    assert!(world.registered(link).is_some());
}

#[test]
fn a_drain_that_would_lose_sessions_is_refused() {
    let mut world = World::up(&["n1"], &["s1"]);
    let ticket = ask(&mut world, "n1", 1);
    assert!(why(&world, ticket).contains("no other node"));
    let mut world = World::up(&["n1", "n2"], &["s1"]);
    world.server_killed("s1");
    let ticket = ask(&mut world, "n1", 1);
    assert!(why(&world, ticket).contains("no session server"));
    let mut world = World::up(&["n1", "n2"], &["s1"]);
    world.beating.remove("n2");
    world.advance(400);
    let ticket = ask(&mut world, "n2", 2);
    assert!(why(&world, ticket).contains("not up"));
}

#[test]
fn an_unprotected_node_goes_back_to_work() {
    let mut world = World::up(&["n1", "n2"], &["s1"]);
    world.beating.get_mut("n1").unwrap().1.safe = [7, 0, 0];
    let ticket = ask(&mut world, "n1", 1);
    world.advance(5100);
    assert!(why(&world, ticket).contains("7 of its sessions have no safe copy"));
    let life = world.node("n1").unwrap();
    assert_eq!(world.view().node(life).unwrap().state, NodeState::Up);
}

#[test]
fn a_drain_that_does_not_get_on_is_given_up_before_held_requests_fail() {
    let mut world = World::up(&["n1", "n2"], &["s1"]);
    let (ticket, life, _) = prepared(&mut world, "n1");
    assert_eq!(world.held(), [life]);
    world.advance(2600);
    assert!(why(&world, ticket).contains("in time"));
    assert!(world.held().is_empty());
    assert_eq!(world.view().node(life).unwrap().state, NodeState::Up);
}

#[test]
fn a_shorter_hold_counts_for_the_next_drain() {
    let mut world = World::up(&["n1", "n2"], &["s1"]);
    world.step(Event::Hold { hold: Duration::from_secs(1) });
    let ticket = ask(&mut world, "n1", 1);
    world.advance(400);
    assert!(!world.held().is_empty() && !world.outcomes.contains_key(&ticket));
    world.advance(300);
    assert!(world.held().is_empty(), "half of it is over: requests that wait go on");
    assert!(matches!(world.outcomes[&ticket], DrainOutcome::Refused(_)));
}

#[test]
fn the_last_servers_death_stops_a_drain() {
    let mut world = World::up(&["n1", "n2"], &["s1"]);
    let (ticket, life, link) = prepared(&mut world, "n1");
    world.server_killed("s1");
    world.step(Event::NodeMessage { link, message: ToDirector::Drained });
    assert!(why(&world, ticket).contains("no session server"));
    assert_eq!(world.node("n1"), Some(life));
    assert!(world.held().is_empty());
}

#[test]
fn a_node_that_dies_while_it_is_drained_is_drained() {
    let mut world = World::up(&["n1", "n2"], &["s1"]);
    let (ticket, _, _) = prepared(&mut world, "n1");
    world.beating.remove("n1");
    world.advance(500);
    assert_eq!(world.outcomes[&ticket], DrainOutcome::HandedOver);
    assert_eq!(world.cluster.status().nodes[0].state, "drained");
}

#[test]
fn a_drain_survives_a_change_of_stewards() {
    let mut world = World::up(&["n1", "n2"], &["s1"]);
    let (ticket, life, old) = prepared(&mut world, "n1");
    world.step(Event::NodeClosed { link: old });
    let link = world.open("n1", life);
    let epoch = world.view().epoch;
    world.step(Event::NodeMessage { link, message: ToDirector::Resume { epoch } });
    assert_eq!(world.told(link), Some(&FromDirector::PrepareDrain));
    world.step(Event::NodeMessage { link, message: ToDirector::Drained });
    assert_eq!(world.outcomes[&ticket], DrainOutcome::HandedOver);
}

#[test]
fn undrain_stops_a_drain() {
    let mut world = World::up(&["n1", "n2"], &["s1"]);
    let (ticket, life, link) = prepared(&mut world, "n1");
    world.step(Event::Undrain { name: "n1".into() });
    assert!(why(&world, ticket).contains("undrained"));
    // A late "drained" of the node changes nothing.
    world.step(Event::NodeMessage { link, message: ToDirector::Drained });
    assert_eq!(world.view().node(life).unwrap().state, NodeState::Up);
}

#[test]
fn adoption_that_takes_long_is_said_so() {
    let mut world = World::up(&["n1", "n2"], &["s1"]);
    let (ticket, life, link) = prepared(&mut world, "n1");
    world.servers.get_mut("s1").unwrap().unsettled.insert(life, 4);
    world.step(Event::NodeMessage { link, message: ToDirector::Drained });
    world.advance(29_000);
    assert!(!world.outcomes.contains_key(&ticket));
    world.advance(1_500);
    assert_eq!(world.outcomes[&ticket], DrainOutcome::Adopting);
}

#[test]
fn an_answer_to_an_earlier_hold_says_nothing() {
    let mut world = World::up(&["n1", "n2"], &["s1"]);
    let life = world.node("n1").unwrap();
    ask(&mut world, "n1", 1);
    world.advance(100);
    world.step(Event::Undrain { name: "n1".into() });
    ask(&mut world, "n1", 2);
    world.advance(100);
    assert_eq!(world.awaited, [(life, 1), (life, 2)]);
    world.step(Event::Idle { incarnation: life, hold: 1 });
    let link = world.beating["n1"].0;
    assert!(!world.to_nodes.contains(&(link, FromDirector::PrepareDrain)));
    world.step(Event::Idle { incarnation: life, hold: 2 });
    assert!(world.to_nodes.contains(&(link, FromDirector::PrepareDrain)));
}
