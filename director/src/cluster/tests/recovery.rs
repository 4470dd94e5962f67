//! The director's restart.

use super::*;

fn resume(world: &mut World, name: &str, incarnation: Incarnation, epoch: Epoch) -> Link {
    let link = world.open(name, incarnation);
    world.step(Event::NodeMessage { link, message: ToDirector::Resume { epoch } });
    world.beating.insert(name.to_owned(), (link, NodeBeat::default()));
    link
}

#[test]
fn a_restart_keeps_everybody() {
    let old = World::up(&["n1", "n2"], &["s1", "s2"]);
    let view = (*old.view()).clone();
    let mut world = World::silent(&["n1", "n2"], &["s1", "s2"]);
    world.cluster.settings.term_min += 60;
    // A node is first; it gets its answer when the servers have reported.
    let n1 = old.node("n1").unwrap();
    let link = resume(&mut world, "n1", n1, view.epoch);
    assert!(world.published.is_empty() && world.told(link).is_none());
    world.server_up_with("s1", 1, Some(view.clone()));
    assert!(world.published.is_empty(), "s2 may know more");
    world.server_up_with("s2", 2, Some(view.clone()));
    assert!(matches!(world.told(link), Some(FromDirector::View(_))));
    resume(&mut world, "n2", old.node("n2").unwrap(), view.epoch);
    world.advance(2000);
    let new = world.view();
    assert_eq!((&new.nodes, &new.servers), (&view.nodes, &view.servers));
    assert!(new.epoch > view.epoch && new.epoch.number > view.epoch.number);
}

#[test]
fn who_does_not_come_back_after_a_restart_dies() {
    let old = World::up(&["n1", "n2"], &["s1", "s2"]);
    let view = (*old.view()).clone();
    let mut world = World::silent(&["n1", "n2"], &["s1", "s2"]);
    world.server_up_with("s1", 1, Some(view.clone()));
    world.step(Event::ServerAbsent { name: "s2".into() });
    world.servers.get_mut("s1").unwrap().unsettled.insert(old.node("n2").unwrap(), 3);
    resume(&mut world, "n1", old.node("n1").unwrap(), view.epoch);
    world.advance(700);
    assert_eq!(world.view().nodes.len(), 1);
    assert_eq!(world.dead("n2").map(|dead| dead.incarnation), old.node("n2"));
    assert!(world.server("s2").is_none());
}

#[test]
fn a_server_that_the_newest_view_dropped_stays_out() {
    let mut old = World::up(&["n1"], &["s1", "s2"]);
    let stale = (*old.view()).clone();
    old.server_killed("s2");
    let newest = (*old.view()).clone();
    assert!(newest.epoch > stale.epoch);

    let mut world = World::silent(&["n1"], &["s1", "s2"]);
    world.server_up_with("s2", 2, Some(stale));
    world.server_up_with("s1", 1, Some(newest));
    assert_eq!(world.server("s1"), Some(Incarnation(1)));
    assert_eq!(world.server("s2"), None);
    assert!(world.servers["s2"].view.as_ref().unwrap().server(Incarnation(2)).is_none(), "it was told");
}

#[test]
fn a_dropped_server_that_comes_late_stays_out() {
    let mut old = World::up(&["n1"], &["s1", "s2"]);
    let stale = (*old.view()).clone();
    old.server_killed("s2");
    let newest = (*old.view()).clone();
    let mut world = World::silent(&["n1"], &["s1", "s2"]);
    world.server_up_with("s1", 1, Some(newest));
    world.advance(1000);
    world.server_up_with("s2", 2, Some(stale));
    world.advance(100);
    assert_eq!(world.server("s2"), None);
    assert!(world.servers["s2"].view.as_ref().unwrap().server(Incarnation(2)).is_none(), "it was told");
}

#[test]
fn nobody_there_is_no_reason_to_wait_for_ever() {
    let mut world = World::silent(&["n1"], &["s1"]);
    let link = world.open("n1", Incarnation::NONE);
    world.step(Event::NodeMessage { link, message: ToDirector::Register });
    world.advance(590);
    assert_eq!(world.registered(link), None);
    world.advance(20);
    assert!(world.registered(link).is_some());
}

#[test]
fn with_every_server_dead_a_living_node_goes_on() {
    let old = World::up(&["n1", "n2"], &["s1"]);
    let (n1, n2, epoch) = (old.node("n1").unwrap(), old.node("n2").unwrap(), old.view().epoch);
    let mut world = World::silent(&["n1", "n2"], &["s1"]);
    world.cluster.settings.term_min += 60;
    let first = resume(&mut world, "n1", n1, epoch);
    // This one has missed views: it may have been ended in them.
    let second = resume(&mut world, "n2", n2, Epoch { number: epoch.number - 1, ..epoch });
    world.step(Event::ServerAbsent { name: "s1".into() });
    assert_eq!(world.node("n1"), Some(n1));
    assert!(matches!(world.told(first), Some(FromDirector::View(_))));
    assert_eq!(world.node("n2"), None);
    assert_eq!(world.told(second), Some(&FromDirector::Over { drained: false }));
}

#[test]
fn two_nodes_do_not_go_on_as_one_life() {
    let old = World::up(&["n1", "n2"], &["s1"]);
    let (n1, epoch) = (old.node("n1").unwrap(), old.view().epoch);
    let mut world = World::silent(&["n1", "n2"], &["s1"]);
    world.cluster.settings.term_min += 60;
    resume(&mut world, "n1", n1, epoch);
    let liar = resume(&mut world, "n2", n1, epoch);
    world.step(Event::ServerAbsent { name: "s1".into() });
    assert_eq!((world.node("n1"), world.node("n2")), (Some(n1), None));
    assert_eq!(world.told(liar), Some(&FromDirector::Over { drained: false }));
}

#[test]
fn servers_that_are_heard_late_still_tell_what_was() {
    let old = World::up(&["n1", "n2"], &["s1", "s2"]);
    let view = (*old.view()).clone();
    let mut world = World::silent(&["n1", "n2"], &["s1", "s2"]);
    world.advance(700);
    assert_eq!(world.view().servers.len(), 0, "went on without them");
    world.server_up_with("s1", 1, Some(view.clone()));
    world.server_up_with("s2", 2, Some(view.clone()));
    assert_eq!(world.view().servers, view.servers, "no view told them to begin anew");
    assert_eq!(world.view().nodes, view.nodes, "the nodes have their period of grace");
    world.advance(1000);
    assert_eq!(world.view().nodes.len(), 0);
    assert_eq!(world.servers["s1"].view.as_ref().unwrap().servers, view.servers);
}

/// Found by the simulation (seed 118): the node had given the old life's lease book up, and made another one
/// over the same lease.
#[test]
fn servers_that_are_heard_after_a_node_went_on_begin_anew() {
    let old = World::up(&["n1"], &["s1"]);
    let (n1, view) = (old.node("n1").unwrap(), (*old.view()).clone());
    let mut world = World::silent(&["n1"], &["s1"]);
    world.cluster.settings.term_min += 60;
    resume(&mut world, "n1", n1, view.epoch);
    world.advance(700);
    assert_eq!((world.node("n1"), world.view().servers.len()), (Some(n1), 0), "went on without it");
    world.server_up_with("s1", 1, Some(view));
    world.advance(100);
    assert!(world.server("s1").is_none_or(|life| life != Incarnation(1)), "that life was dropped");
    assert!(world.servers["s1"].view.as_ref().unwrap().server(Incarnation(1)).is_none(), "it was told");
}

/// Found by the simulation (seed 215): n1 slept through a term in which it was ended, and was the first to be
/// heard in the next.
#[test]
fn without_any_server_those_go_on_whom_the_kept_view_has() {
    let mut old = World::up(&["n1", "n2"], &["s1"]);
    let (n1, n2, stale) = (old.node("n1").unwrap(), old.node("n2").unwrap(), old.view().epoch);
    old.beating.remove("n1");
    old.advance(1000);
    let kept = (*old.view()).clone();
    assert!(kept.node(n1).is_none() && kept.node(n2).is_some());
    let mut world = World::silent(&["n1", "n2"], &["s1"]);
    world.cluster.settings.term_min += 60;
    world.cluster.settings.kept = Some(kept.clone());
    let first = resume(&mut world, "n1", n1, stale);
    world.step(Event::ServerAbsent { name: "s1".into() });
    assert_eq!(world.told(first), Some(&FromDirector::Over { drained: false }));
    // It has missed views, too, but no view has ended it.
    resume(&mut world, "n2", n2, stale);
    assert_eq!((world.node("n1"), world.node("n2")), (None, Some(n2)));
    assert!(world.view().epoch > kept.epoch && world.view().epoch.number > kept.epoch.number);
}

/// As `a_server_that_the_newest_view_dropped_stays_out`, but nobody who is heard has seen that view.
#[test]
fn a_server_that_the_kept_view_dropped_stays_out() {
    let mut old = World::up(&["n1"], &["s1", "s2"]);
    let stale = (*old.view()).clone();
    old.server_killed("s2");
    let kept = (*old.view()).clone();
    for late in [false, true] {
        let mut world = World::silent(&["n1"], &["s1", "s2"]);
        world.cluster.settings.kept = Some(kept.clone());
        if late {
            world.advance(700);
        }
        world.server_up_with("s2", 2, Some(stale.clone()));
        world.server_up_with("s1", 1, Some(stale.clone()));
        world.advance(100);
        assert_eq!((world.server("s1"), world.server("s2")), (Some(Incarnation(1)), None), "late: {late}");
        let told = world.servers["s2"].view.as_ref().unwrap();
        assert!(told.server(Incarnation(2)).is_none(), "it was told");
    }
}

/// Found by fuzzing: a node that lies about what it has seen came back as the life that it had left, once
/// that was released.
#[test]
fn nobody_goes_on_twice() {
    let old = World::up(&["n1", "n2"], &["s1"]);
    let n1 = old.node("n1").unwrap();
    let mut world = World::silent(&["n1", "n2"], &["s1"]);
    world.cluster.settings.term_min += 60;
    resume(&mut world, "n1", n1, old.view().epoch);
    world.step(Event::ServerAbsent { name: "s1".into() });
    assert_eq!(world.node("n1"), Some(n1));
    world.server_up("s1", 7);
    let link = world.open("n1", Incarnation::NONE);
    world.step(Event::NodeMessage { link, message: ToDirector::Register });
    let next = world.node("n1");
    assert_ne!(next, Some(n1));
    world.advance(300);
    assert_eq!(world.view().dead, [], "released");
    let seen = world.view().epoch;
    resume(&mut world, "n2", n1, seen);
    assert_eq!((world.node("n1"), world.node("n2")), (next, None));
    // Its new life's end changes nothing.
    let link = world.open("n1", Incarnation::NONE);
    world.step(Event::NodeMessage { link, message: ToDirector::Register });
    let seen = world.view().epoch;
    resume(&mut world, "n2", n1, seen);
    assert_eq!(world.node("n2"), None);
}

/// Found by the simulation: until n1 was heard its cookies were taken for a dead node's, and the new server
/// knew nothing of its sessions.
#[test]
fn whom_the_kept_view_has_is_a_member_before_it_is_heard() {
    let old = World::up(&["n1", "n2"], &["s1"]);
    let kept = (*old.view()).clone();
    let mut world = World::silent(&["n1", "n2"], &["s1"]);
    world.cluster.settings.kept = Some(kept.clone());
    world.server_up("s1", 7);
    assert_eq!((&world.view().nodes, world.server("s1")), (&kept.nodes, Some(Incarnation(7))));
    resume(&mut world, "n2", old.node("n2").unwrap(), kept.epoch);
    world.advance(1000);
    assert_eq!((world.node("n1"), world.node("n2")), (None, old.node("n2")), "n1 had its time");
}

#[test]
fn a_director_that_hears_nobody_ends_nobody() {
    let old = World::up(&["n1", "n2"], &["s1"]);
    let kept = (*old.view()).clone();
    let mut world = World::silent(&["n1", "n2"], &["s1"]);
    world.cluster.settings.kept = Some(kept.clone());
    world.advance(20_000);
    assert_eq!((&world.view().nodes, &world.view().servers), (&kept.nodes, &kept.servers));
    world.server_up_with("s1", 1, Some(kept.clone()));
    resume(&mut world, "n1", old.node("n1").unwrap(), kept.epoch);
    world.advance(1000);
    assert_eq!((world.node("n1"), world.node("n2")), (old.node("n1"), None));
    assert_eq!(world.view().servers, kept.servers);
}

#[test]
fn no_mandate_before_it_is_known_who_lives() {
    let old = World::up(&["n1"], &["s1"]);
    let (n1, epoch) = (old.node("n1").unwrap(), old.view().epoch);
    let mut world = World::silent(&["n1"], &["s1"]);
    let link = resume(&mut world, "n1", n1, epoch);
    world.beat("n1");
    assert_eq!(world.told(link), None);
}

#[test]
fn a_drained_node_stays_out_over_a_restart() {
    let mut settings = settings(&["n1", "n2"], &["s1"]);
    settings.drained = vec![("n1".to_owned(), Out::Drained)];
    let mut world = World::silent(&["n1", "n2"], &["s1"]);
    world.cluster = Cluster::new(settings, Duration::ZERO);
    world.server_up("s1", 1);
    let link = world.open("n1", Incarnation::NONE);
    world.step(Event::NodeMessage { link, message: ToDirector::Register });
    assert_eq!(world.told(link), Some(&FromDirector::Over { drained: true }));
}
