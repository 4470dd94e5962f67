//! The director's parts of the protocol rules; each test fails when its rule is taken out.

use super::*;
use selvage_fabric::rules::assert_teeth;

#[test]
fn r2_adoption_waits_until_every_server_has_sealed() {
    assert_teeth(Rule::R2SealByView, || {
        let mut world = World::up(&["n1", "n2"], &["s1", "s2"]);
        let life = world.node("n1").unwrap();
        world.servers.get_mut("s1").unwrap().unsettled.insert(life, 5);
        world.servers.get_mut("s2").unwrap().obeys = false;
        world.beating.remove("n1");
        world.advance(400);
        let dead = world.dead("n1").ok_or("n1 should be dead")?;
        ensure(!dead.sealed, "sealed although s2 has not carried out the view that ends n1")?;
        ensure(world.server("s2").is_some(), "the scenario needs s2 in the view")?;

        let newest = world.view();
        let s2 = world.servers.get_mut("s2").unwrap();
        s2.obeys = true;
        s2.view = Some((*newest).clone());
        world.report("s2");
        ensure(world.dead("n1").is_some_and(|dead| dead.sealed), "all have sealed, yet no adoption")
    });
}

#[test]
fn adoption_waits_until_a_director_that_has_handed_over_has_cut_the_dead() {
    for ended in [false, true] {
        let mut world = World::up(&["n1", "n2"], &["s1"]);
        let life = world.node("n1").unwrap();
        world.servers.get_mut("s1").unwrap().unsettled.insert(life, 5);
        let before = world.view().epoch;
        world.step(Event::Elder { taken: Some(before) });
        world.beating.remove("n1");
        world.advance(1000);
        assert!(!world.dead("n1").unwrap().sealed, "sealed while answers of the dead may be passed on");
        let taken = if ended { None } else { Some(world.view().epoch) };
        world.step(Event::Elder { taken });
        assert!(world.dead("n1").unwrap().sealed, "nobody gets its answers, yet no adoption");
    }
}

#[test]
fn r6_a_server_life_that_was_declared_down_never_comes_back() {
    assert_teeth(Rule::R6AckIncarnation, || {
        let mut world = World::up(&["n1"], &["s1", "s2"]);
        let life = world.server("s1").unwrap();
        // Stopped for longer than any limit, it wakes up and answers again.
        let s1 = world.servers.get_mut("s1").unwrap();
        (s1.answers, s1.obeys) = (false, false);
        world.advance(500);
        ensure(world.server("s1").is_none(), "s1 should be down")?;
        world.servers.get_mut("s1").unwrap().answers = true;
        world.report("s1");
        ensure(world.server("s1") != Some(life), "the life that was declared down is back in the view")?;
        // Nor does it come back over a new connection.
        world.server_up_with("s1", life.0, None);
        world.advance(100);
        ensure(world.server("s1") != Some(life), "reconnected, the life is back in the view")?;
        // It was sent the view that drops it, so it begins a new life, which may enter.
        let told = world.servers["s1"].view.as_ref().ok_or("s1 was not told that it is dropped")?;
        ensure(told.server(life).is_none(), "the view that it was sent does not drop it")?;
        world.servers.get_mut("s1").unwrap().incarnation = Incarnation(777);
        world.report("s1");
        ensure(world.server("s1") == Some(Incarnation(777)), "the new life is kept out")
    });
}

#[test]
fn r8_adoption_waits_for_the_mandate_where_a_server_cannot_confirm() {
    assert_teeth(Rule::R8Mandate, || {
        let mut world = World::up(&["n1", "n2"], &["s1", "s2"]);
        let life = world.node("n1").unwrap();
        world.servers.get_mut("s1").unwrap().unsettled.insert(life, 5);
        world.beat("n1");
        world.servers.get_mut("s2").unwrap().answers = false;
        // A new life ends the old one at once; the old one's mandate has most of its time left.
        world.node_up("n1");
        world.server_killed("s2");
        let dead = world.dead("n1").ok_or("the old life should be dead")?;
        ensure(!dead.sealed, "sealed while the dead may still report acks of s2")?;
        world.advance(240);
        ensure(!world.dead("n1").unwrap().sealed, "sealed before the mandate has run out")?;
        world.advance(30);
        ensure(world.dead("n1").unwrap().sealed, "the mandate is over, yet no adoption")
    });
}

/// Found by the model of takeover (`cargo x model`).
#[test]
fn r8_adoption_waits_for_the_mandate_of_a_node_that_had_not_heard_that_a_server_left() {
    assert_teeth(Rule::R8Mandate, || {
        let mut world = World::up(&["n1", "n2"], &["s1", "s2"]);
        let life = world.node("n1").unwrap();
        world.servers.get_mut("s1").unwrap().unsettled.insert(life, 5);
        world.beat("n1");
        // First the server goes, then the node's life, whose last word is from before.
        world.server_killed("s2");
        world.node_up("n1");
        let dead = world.dead("n1").ok_or("the old life should be dead")?;
        ensure(!dead.sealed, "sealed while the dead may still report acks of s2")?;
        world.advance(240);
        ensure(!world.dead("n1").unwrap().sealed, "sealed before the mandate has run out")?;
        world.advance(30);
        ensure(world.dead("n1").unwrap().sealed, "the mandate is over, yet no adoption")
    });
}

#[test]
fn r8_adoption_does_not_wait_for_a_node_that_had_heard_that_a_server_left() {
    let mut world = World::up(&["n1", "n2"], &["s1", "s2"]);
    let life = world.node("n1").unwrap();
    world.servers.get_mut("s1").unwrap().unsettled.insert(life, 5);
    world.server_killed("s2");
    world.beat("n1");
    world.node_up("n1");
    assert!(world.dead("n1").unwrap().sealed, "nothing can be acked any more, yet adoption waits");
}

#[test]
fn r10_the_dead_leave_the_view_when_all_is_settled() {
    assert_teeth(Rule::R10ReleaseAsSet, || {
        let mut world = World::up(&["n1", "n2"], &["s1", "s2"]);
        let life = world.node("n1").unwrap();
        world.servers.get_mut("s1").unwrap().unsettled.insert(life, 5);
        world.servers.get_mut("s2").unwrap().unsettled.insert(life, 2);
        world.beating.remove("n1");
        world.advance(400);
        ensure(world.dead("n1").is_some_and(|dead| dead.sealed), "released with unsettled sessions")?;
        world.servers.get_mut("s1").unwrap().unsettled.clear();
        world.advance(100);
        ensure(world.dead("n1").is_some(), "released while s2 has unsettled sessions")?;
        world.servers.get_mut("s2").unwrap().unsettled.clear();
        world.advance(100);
        ensure(world.dead("n1").is_none(), "all is settled, yet not released")
    });
}

#[test]
fn r10_a_server_that_has_not_reported_yet_releases_nothing() {
    let mut old = World::up(&["n1", "n2"], &["s1", "s2"]);
    let life = old.node("n1").unwrap();
    for name in ["s1", "s2"] {
        old.servers.get_mut(name).unwrap().unsettled.insert(life, 5);
    }
    old.beating.remove("n1");
    old.advance(400);
    let view = (*old.view()).clone();
    assert!(view.dead[0].sealed);

    // After the director's restart s1 reports first, s2 is slow.
    let mut world = World::silent(&["n1", "n2"], &["s1", "s2"]);
    world.server_up_with("s1", 1, Some(view));
    world.advance(620);
    assert!(world.server("s2").is_some(), "s2 has its period of grace");
    assert!(world.dead("n1").is_some(), "s1's report was without unsettled sessions, but nobody knows s2's");
}

#[test]
fn r12_a_new_director_goes_above_all_epochs_seen() {
    assert_teeth(Rule::R12Epochs, || {
        let mut world = World::silent(&["n1"], &["s1", "s2"]);
        let seen = Epoch { term: UNIX_S + 1000, number: 77 };
        let node = Incarnation((u64::from(UNIX_S) << 32) | 5);
        let entry = NodeEntry {
            name: "n1".into(),
            incarnation: node,
            state: NodeState::Up,
            address: "127.0.0.1:1".into(),
        };
        let view = View { epoch: seen, copies: 2, nodes: vec![entry], ..View::default() };
        world.server_up_with("s1", 1, Some(view));
        world.server_up("s2", 2);
        let first = world.published.first().ok_or("no view")?.0.epoch;
        ensure(first > seen && first.number > seen.number, "the first view is not above what s1 has seen")?;
        // A node has seen even more.
        let more = Epoch { term: seen.term + 9, number: 99 };
        let link = world.open("n1", node);
        world.step(Event::NodeMessage { link, message: ToDirector::Resume { epoch: more } });
        let next = world.view().epoch;
        ensure(next > more && next.number > more.number, "the view is not above what n1 has seen")?;
        // A server refuses because it knows a newer term still.
        let link = world.servers["s2"].link;
        let newer = Epoch { term: next.term + 3, number: next.number + 4 };
        world.step(Event::ServerOldTerm { link, epoch: newer });
        let last = world.view().epoch;
        ensure(last > newer && last.number > newer.number, "the view is not above what s2 has seen")
    });
}

#[test]
fn r12_an_absurd_term_is_not_believed() {
    let mut world = World::up(&["n1"], &["s1"]);
    let before = world.view().epoch;
    let link = world.servers["s1"].link;
    world.step(Event::ServerOldTerm { link, epoch: Epoch { term: u32::MAX, number: u32::MAX } });
    assert_eq!(world.view().epoch, before);
}
