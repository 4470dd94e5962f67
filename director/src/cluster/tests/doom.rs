//! Errands, and destroying sessions wherever they are.

use super::*;
use selvage_fabric::control::message::ErrandOutcome;
use selvage_fabric::ident::SessionId;
use selvage_fabric::limits::ERRANDS_MAX;

const TICKET: Ticket = Ticket(7);

fn owner() -> Doomed {
    Doomed::Owner("ann".to_owned())
}

/// A request to destroy, with ten seconds.
fn doom(world: &mut World, doomed: Doomed) {
    world.step(Event::Doom { doomed, ticket: TICKET, within: Duration::from_secs(10) });
}

/// Numbers of the errands that were sent over a connection.
fn sent(world: &World, link: Link) -> Vec<u64> {
    let sent = world.to_nodes.iter().filter(|(to, _)| *to == link);
    sent.filter_map(|(_, message)| match message {
        FromDirector::Errand { number, .. } => Some(*number),
        _ => None,
    })
    .collect()
}

fn link(world: &World, name: &str) -> Link {
    world.beating[name].0
}

/// A node answers the errand that it was sent last.
fn answer(world: &mut World, name: &str, sessions: u64, left: Option<&str>) {
    let link = link(world, name);
    let number = *sent(world, link).last().expect("it was asked");
    let outcome = ErrandOutcome::Destroyed { sessions, left: left.map(str::to_owned) };
    world.step(Event::NodeMessage { link, message: ToDirector::ErrandEnded { number, outcome } });
}

/// All of two nodes are up, and nobody may resume any more.
fn settled_world() -> World {
    let mut world = World::up(&["n1", "n2"], &["s1"]);
    world.advance(1000);
    world
}

fn why(world: &World) -> &str {
    match &world.dooms[&TICKET] {
        DoomOutcome::Uncertain { why, .. } => why,
        done => panic!("{done:?}"),
    }
}

#[test]
fn an_undisturbed_pass_is_enough() {
    let mut world = settled_world();
    doom(&mut world, owner());
    answer(&mut world, "n1", 3, None);
    assert!(world.dooms.is_empty(), "the other has not answered");
    answer(&mut world, "n2", 2, None);
    assert_eq!(world.dooms[&TICKET], DoomOutcome::Done { sessions: 5 });
    assert_eq!(sent(&world, link(&world, "n1")).len(), 1);
}

#[test]
fn the_sessions_of_who_dies_meanwhile_are_adopted_first() {
    let mut world = settled_world();
    let life = world.node("n2").unwrap();
    world.servers.get_mut("s1").unwrap().unsettled.insert(life, 4);
    doom(&mut world, owner());
    answer(&mut world, "n1", 3, None);
    world.beating.remove("n2");
    world.advance(2000);
    assert!(world.dead("n2").is_some() && world.dooms.is_empty(), "they may be in its sealed leases");
    assert_eq!(sent(&world, link(&world, "n1")).len(), 1, "a pass would be in vain");
    world.servers.get_mut("s1").unwrap().unsettled.clear();
    world.advance(200);
    assert_eq!(sent(&world, link(&world, "n1")).len(), 2, "they are here now");
    assert!(world.dooms.is_empty());
    answer(&mut world, "n1", 4, None);
    assert_eq!(world.dooms[&TICKET], DoomOutcome::Done { sessions: 7 });
}

#[test]
fn what_is_dead_at_the_end_of_the_time_is_told() {
    let mut world = settled_world();
    let life = world.node("n2").unwrap();
    world.servers.get_mut("s1").unwrap().unsettled.insert(life, 4);
    world.beating.remove("n2");
    world.advance(1000);
    doom(&mut world, owner());
    answer(&mut world, "n1", 3, None);
    world.advance(9900);
    assert!(world.dooms.is_empty());
    world.advance(200);
    let said = why(&world);
    assert!(said.contains("n2") && said.contains(&life.tag()) && said.contains("adopted"), "{said}");
}

#[test]
fn a_view_that_changes_spoils_the_pass() {
    let mut world = World::up(&["n1", "n2"], &["s1", "s2"]);
    world.advance(1000);
    doom(&mut world, owner());
    answer(&mut world, "n1", 3, None);
    world.server_killed("s2");
    world.advance(10);
    answer(&mut world, "n2", 2, None);
    assert!(world.dooms.is_empty(), "the answers are from two views");
    world.advance(100);
    answer(&mut world, "n1", 0, None);
    answer(&mut world, "n2", 0, None);
    assert_eq!(world.dooms[&TICKET], DoomOutcome::Done { sessions: 5 });
}

#[test]
fn what_a_node_leaves_is_asked_for_again_and_told_at_last() {
    let mut world = settled_world();
    doom(&mut world, owner());
    answer(&mut world, "n1", 1, Some("a request has the lock"));
    answer(&mut world, "n2", 0, None);
    world.advance(100);
    answer(&mut world, "n1", 0, Some("a request has the lock"));
    answer(&mut world, "n2", 0, None);
    world.advance(20_000);
    assert_eq!(
        why(&world),
        "node n1 has not answered; node n2 has not answered; node n1: a request has the lock"
    );
    let before = sent(&world, link(&world, "n1")).len();
    world.advance(1000);
    assert_eq!(sent(&world, link(&world, "n1")).len(), before, "nobody waits any more");
}

#[test]
fn the_next_steward_is_asked_what_the_last_one_was() {
    let mut world = settled_world();
    doom(&mut world, owner());
    let (old, life) = (link(&world, "n1"), world.node("n1").unwrap());
    let number = sent(&world, old)[0];
    world.step(Event::NodeClosed { link: old });
    let new = world.open("n1", life);
    let epoch = world.view().epoch;
    world.step(Event::NodeMessage { link: new, message: ToDirector::Resume { epoch } });
    world.beating.get_mut("n1").unwrap().0 = new;
    world.advance(50);
    assert_eq!(sent(&world, new), [number]);
    answer(&mut world, "n2", 0, None);
    let outcome = ErrandOutcome::Destroyed { sessions: 9, left: None };
    world.step(Event::NodeMessage { link: old, message: ToDirector::ErrandEnded { number, outcome } });
    assert!(world.dooms.is_empty(), "not its word any more");
    answer(&mut world, "n1", 1, None);
    assert_eq!(world.dooms[&TICKET], DoomOutcome::Done { sessions: 1 });
}

#[test]
fn one_session_is_gone_when_its_node_says_so() {
    let mut world = settled_world();
    let life = world.node("n2").unwrap();
    world.servers.get_mut("s1").unwrap().unsettled.insert(life, 4);
    world.beating.remove("n2");
    world.advance(1000);
    doom(&mut world, Doomed::Session(SessionId([1; 16])));
    answer(&mut world, "n1", 1, None);
    world.advance(10);
    assert_eq!(world.dooms[&TICKET], DoomOutcome::Done { sessions: 1 });
}

#[test]
fn a_new_director_first_learns_who_is_there() {
    let mut world = World::silent(&["n1"], &["s1"]);
    doom(&mut world, owner());
    world.advance(100);
    assert!(world.to_nodes.is_empty() && world.dooms.is_empty());
    world.server_up("s1", 1);
    world.node_up("n1");
    world.advance(300);
    assert!(world.dooms.is_empty(), "another may still resume");
    world.advance(700);
    answer(&mut world, "n1", 2, None);
    assert_eq!(world.dooms[&TICKET], DoomOutcome::Done { sessions: 2 });
}

#[test]
fn without_any_node_nothing_is_left() {
    let mut world = World::silent(&["n1"], &["s1"]);
    world.server_up("s1", 1);
    world.advance(2000);
    doom(&mut world, owner());
    world.advance(10);
    assert_eq!(world.dooms[&TICKET], DoomOutcome::Done { sessions: 0 });
}

#[test]
fn requests_to_destroy_are_bounded() {
    let mut world = settled_world();
    for ticket in 0..=limits::DOOMS_MAX as u64 {
        let (ticket, within) = (Ticket(ticket), Duration::from_secs(5));
        world.step(Event::Doom { doomed: owner(), ticket, within });
    }
    let refused: Vec<&Ticket> = world.dooms.keys().collect();
    assert_eq!(refused, [&Ticket(limits::DOOMS_MAX as u64)]);
    // A steward is not flooded, and the others follow.
    let n1 = link(&world, "n1");
    assert_eq!(sent(&world, n1).len(), ERRANDS_MAX);
    answer(&mut world, "n1", 0, None);
    world.advance(10);
    assert_eq!(sent(&world, n1).len(), ERRANDS_MAX + 1);
}

#[test]
fn an_errand_ends_with_its_answer_its_node_or_its_time() {
    let mut world = settled_world();
    let ask = |world: &mut World, node: &str, ticket| {
        let errand = Errand::List { owner: None, cursor: 0, limit: 10 };
        let within = Duration::from_secs(3);
        world.step(Event::Ask { node: node.to_owned(), errand, ticket: Ticket(ticket), within });
    };
    ask(&mut world, "n9", 1);
    assert_eq!(world.answers[&Ticket(1)], Err("node n9 is not up".to_owned()));
    ask(&mut world, "n1", 2);
    let (n1, outcome) = (link(&world, "n1"), ErrandOutcome::Listed { sessions: Vec::new(), next: None });
    let number = sent(&world, n1)[0];
    let message = ToDirector::ErrandEnded { number, outcome: outcome.clone() };
    world.step(Event::NodeMessage { link: n1, message: message.clone() });
    assert_eq!(world.answers[&Ticket(2)], Ok(outcome));
    world.step(Event::NodeMessage { link: n1, message });
    ask(&mut world, "n1", 3);
    world.advance(2900);
    assert!(!world.answers.contains_key(&Ticket(3)));
    world.advance(200);
    assert_eq!(world.answers[&Ticket(3)], Err("node n1 has not answered in time".to_owned()));
    ask(&mut world, "n2", 4);
    world.beating.remove("n2");
    world.advance(1000);
    assert_eq!(world.answers[&Ticket(4)], Err("node n2 has ended meanwhile".to_owned()));
}
