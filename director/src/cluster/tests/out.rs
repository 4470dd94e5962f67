//! Maintenance, and nodes that fail their health checks.

use super::*;

fn state(world: &World, name: &str) -> String {
    let status = world.cluster.status();
    status.nodes.into_iter().find(|node| node.name == name).unwrap().state
}

/// The node's part of a drain whose requests have ended.
fn finish(world: &mut World, name: &str) {
    let (life, hold) = *world.awaited.last().expect("its requests are held");
    assert_eq!(Some(life), world.node(name));
    world.step(Event::Idle { incarnation: life, hold });
    let link = world.beating[name].0;
    world.step(Event::NodeMessage { link, message: ToDirector::Drained });
    world.beating.remove(name);
}

/// A round of health checks.
fn found(world: &mut World, names: &[&str], failing: bool) {
    let checked = names.iter().map(|name| {
        let life = world.node(name).unwrap_or(Incarnation::NONE);
        out::Checked { name: name.to_string(), life, failing }
    });
    let found = checked.collect();
    world.step(Event::Checked { found });
}

#[test]
fn maintenance_is_a_drain_that_is_remembered_as_such() {
    let mut world = World::up(&["n1", "n2"], &["s1"]);
    world.step(Event::Maintain { name: "n1".into(), ticket: Ticket(1) });
    world.advance(100);
    finish(&mut world, "n1");
    assert_eq!(world.outcomes[&Ticket(1)], DrainOutcome::HandedOver);
    assert_eq!(state(&world, "n1"), "maintenance");
    assert_eq!(world.drained, [("n1".to_owned(), Out::Maintenance)]);
    let link = world.open("n1", Incarnation::NONE);
    world.step(Event::NodeMessage { link, message: ToDirector::Register });
    assert_eq!(world.told(link), Some(&FromDirector::Over { drained: true }));
    // The operator's newest word counts.
    world.step(Event::Drain { name: "n1".into(), ticket: Ticket(2) });
    assert_eq!((state(&world, "n1"), &world.drained[0].1), ("drained".to_owned(), &Out::Drained));
    world.step(Event::Undrain { name: "n1".into() });
    assert!(world.drained.is_empty());
    world.node_up("n1");
}

#[test]
fn a_node_that_is_down_can_be_kept_down() {
    let mut world = World::up(&["n2"], &["s1"]);
    let mut settings = settings(&["n1", "n2"], &["s1"]);
    settings.drained = vec![("n1".to_owned(), Out::Maintenance)];
    assert_eq!(Cluster::new(settings, Duration::ZERO).status().nodes[0].state, "maintenance");
    world.beating.clear();
    world.advance(500);
    assert_eq!(state(&world, "n2"), "down");
    world.step(Event::Maintain { name: "n2".into(), ticket: Ticket(1) });
    assert!(world.outcomes.contains_key(&Ticket(1)));
    assert_eq!(state(&world, "n2"), "maintenance");
}

#[test]
fn sessions_of_a_failing_node_are_handed_over_and_it_comes_back_when_it_is_well() {
    let mut world = World::up(&["n1", "n2"], &["s1"]);
    found(&mut world, &["n1"], true);
    assert!(world.cluster.status().nodes[0].failing);
    world.advance(100);
    finish(&mut world, "n1");
    assert_eq!(state(&world, "n1"), "failing");
    assert!(world.drained.is_empty(), "the next director finds out by itself");
    let link = world.open("n1", Incarnation::NONE);
    world.step(Event::NodeMessage { link, message: ToDirector::Register });
    assert_eq!(world.told(link), Some(&FromDirector::Over { drained: true }));
    found(&mut world, &["n1"], false);
    assert_eq!(state(&world, "n1"), "down");
    world.node_up("n1");
}

#[test]
fn a_node_that_was_down_is_not_out_again_for_what_was_found_before() {
    let mut world = World::up(&["n1", "n2"], &["s1"]);
    world.beating.remove("n1");
    world.advance(500);
    found(&mut world, &["n1"], true);
    let life = world.node_up("n1");
    world.advance(1000);
    assert_eq!((world.node("n1"), state(&world, "n1")), (Some(life), "up".to_owned()));
    // Its own checks count, and not those of a round that began before it.
    let old = out::Checked { name: "n1".into(), life: Incarnation::NONE, failing: true };
    world.step(Event::Checked { found: vec![old] });
    world.advance(100);
    assert_eq!(state(&world, "n1"), "up");
    found(&mut world, &["n1"], true);
    world.advance(100);
    assert_eq!(state(&world, "n1"), "draining");
}

#[test]
fn a_failing_node_whose_requests_hang_is_ended_once_its_sessions_are_safe() {
    let mut world = World::up(&["n1", "n2"], &["s1"]);
    world.beating.get_mut("n1").unwrap().1.safe = [1, 3, 0];
    let life = world.node("n1").unwrap();
    found(&mut world, &["n1"], true);
    // A session without a copy: given up, and tried again.
    world.advance(7000);
    assert_eq!(world.node("n1"), Some(life));
    world.beating.get_mut("n1").unwrap().1.safe = [0, 4, 0];
    world.advance(13_000);
    assert_eq!(world.node("n1"), None, "nobody ever said that it is idle");
    assert_eq!(state(&world, "n1"), "failing");
}

#[test]
fn nobody_is_handed_over_where_nobody_else_is_well() {
    let mut world = World::up(&["n1", "n2"], &["s1"]);
    let lives = (world.node("n1"), world.node("n2"));
    // A check that is wrong finds all of them failing.
    found(&mut world, &["n1", "n2"], true);
    world.advance(20_000);
    assert_eq!((world.node("n1"), world.node("n2")), lives);
    assert_eq!((state(&world, "n1"), state(&world, "n2")), ("up".to_owned(), "up".to_owned()));
    // An operator's word stands above the checks'.
    found(&mut world, &["n2"], false);
    world.advance(100);
    assert_eq!(state(&world, "n1"), "draining");
    world.step(Event::Maintain { name: "n1".into(), ticket: Ticket(1) });
    found(&mut world, &["n1"], false);
    finish(&mut world, "n1");
    assert_eq!(state(&world, "n1"), "maintenance");
}
