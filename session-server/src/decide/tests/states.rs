//! States and bounds that are no protocol rule of their own.

use super::*;

#[test]
fn leases_are_granted_to_lives_of_the_view_only() {
    let mut world = World::new();
    let stranger = world.open_node(A, 1);
    assert!(matches!(world.ask(stranger, ToServer::Lease), Some(FromServer::Refused(Refusal::NotYet(_)))));
    world.set_view(&[A], &[]);
    let first = world.ask(stranger, ToServer::Lease);
    let Some(FromServer::Lease { lease, server, .. }) = first else { panic!("{first:?}") };
    assert_eq!((lease, server), (1, SERVER));
    // Another process of the node gets the same one.
    let second = world.open_node(A, 2);
    assert_eq!(world.ask(second, ToServer::Lease), first);
    // Another node's name with this life is an imposter.
    let imposter = world.open(Role::Node { name: "n9".into(), incarnation: A, pid: 0 }, 3);
    assert!(matches!(world.ask(imposter, ToServer::Lease), Some(FromServer::Refused(Refusal::Denied(_)))));
    // A node without a life must get one first; one whose life the view does not know yet waits.
    let unborn = world.open(Role::Node { name: "n1".into(), incarnation: Incarnation::NONE, pid: 0 }, 4);
    assert!(matches!(world.ask(unborn, ToServer::Lease), Some(FromServer::Refused(Refusal::Denied(_)))));
    assert!(matches!(world.ask_node(B, ToServer::Lease), FromServer::Refused(Refusal::NotYet(_))));
    world.set_view(&[B], &[(A, false)]);
    assert_eq!(world.ask(stranger, ToServer::Lease), Some(FromServer::Refused(Refusal::Over)));
    world.set_view(&[B], &[]);
    assert_eq!(world.ask(stranger, ToServer::Lease), Some(FromServer::Refused(Refusal::Over)));
}

#[test]
fn the_bound_of_memory_says_what_is_needed_and_left() {
    let mut world = World::with_bytes_max(2 * LEASE_BYTES + 1);
    world.set_view(&[A, B, C], &[]);
    world.lease(A, &[]);
    world.lease(B, &[]);
    let full = Refusal::Full { needed: LEASE_BYTES, left: 1 };
    assert_eq!(world.ask_node(C, ToServer::Lease), FromServer::Refused(full));
    assert_eq!(world.report().bytes, 2 * LEASE_BYTES);
    // A sealed lease takes its memory until it is released.
    world.set_view(&[B, C], &[(A, true)]);
    assert!(matches!(world.ask_node(C, ToServer::Lease), FromServer::Refused(Refusal::Full { .. })));
    world.set_view(&[B, C], &[]);
    assert!(matches!(world.ask_node(C, ToServer::Lease), FromServer::Lease { .. }));
}

#[test]
fn a_lease_whose_node_ends_while_it_is_made_is_never_handed_out() {
    let mut world = World::new();
    world.set_view(&[A, B], &[]);
    world.slow = true;
    let first = world.node(A);
    assert_eq!(world.ask(first, ToServer::Lease), None);
    let second = world.open_node(A, 2);
    assert_eq!(world.ask(second, ToServer::Lease), None);
    // Nobody else waits meanwhile, and the view need not wait for memory that no one could write.
    assert_eq!(world.set_view(&[B], &[(A, false)]).leases.len(), 1);
    world.let_go();
    for connection in [first, second] {
        assert_eq!(world.sent[&connection], [FromServer::Refused(Refusal::Over)]);
    }
    assert_eq!(world.report().leases, []);
    assert_eq!(world.released.len(), 1);
}

#[test]
fn memory_that_cannot_be_had_is_full() {
    let mut world = World::new();
    world.set_view(&[A], &[]);
    world.slow = true;
    let node = world.node(A);
    world.ask(node, ToServer::Lease);
    world.held.clear();
    let error =
        Error::new(selvage_fabric::error::ErrorKind::Full, selvage_fabric::error::Origin::Transport, "");
    world.feed(Event::LeaseMade { lease: LeaseNumber(1), result: Err(error) });
    let full = FromServer::Refused(Refusal::Full { needed: LEASE_BYTES, left: 0 });
    assert_eq!(world.sent[&node], [full]);
    assert_eq!(world.report().bytes, 0);
}

#[test]
fn a_view_is_answered_when_all_its_seals_are_done() {
    let mut world = World::new();
    world.set_view(&[A, B, C], &[]);
    world.join(&[A, B, C]);
    world.lease(A, &[live(id(1), version(1, 1))]);
    world.lease(B, &[live(id(2), version(1, 1))]);
    let before = world.report().epoch;
    world.slow = true;
    let view = world.view(&[C], &[(A, false), (B, false)]);
    assert_eq!(world.ask_director(ToServer::SetView(view.clone())), None);
    assert_eq!(world.report().epoch, before, "not carried out yet");
    let seal = world.held.remove(0);
    world.feed(seal);
    assert!(world.sent.is_empty());
    world.let_go();
    let sent: Vec<FromServer> = world.sent.drain().flat_map(|(_, sent)| sent).collect();
    let [FromServer::Report(report)] = &sent[..] else { panic!("{sent:?}") };
    assert_eq!(report.epoch, view.epoch);
    assert!(report.leases.iter().all(|lease| lease.sealed && lease.unsettled == 1));
}

#[test]
fn a_lease_that_a_view_forgot_is_sealed_and_reported_before_it_goes() {
    let mut world = World::new();
    world.set_view(&[A, B], &[]);
    world.join(&[A, B]);
    world.lease(A, &[live(id(1), version(1, 1))]);
    let report = world.set_view(&[B], &[]);
    assert_eq!((report.leases[0].sealed, report.leases[0].unsettled), (true, 1));
    assert_eq!(world.set_view(&[B], &[]).leases, []);
}

#[test]
fn the_list_of_sealed_sessions_leaves_out_what_is_done() {
    let cells: Vec<_> = (1..=5).map(|number| live(id(number), version(1, u64::from(number)))).collect();
    let mut world = World::with_dead(&cells);
    world.claim(B, &[id(1), id(2)]);
    world.ask_node(B, ToServer::Settle { sessions: vec![(id(1), version(2, 1))] });
    world.ask_node(B, ToServer::Destroyed { sessions: vec![(id(2), version(2, 1))] });
    let list = ToServer::ListSealed { incarnation: A, cursor: 0 };
    let FromServer::Sealed { mut sessions, next } = world.ask_node(C, list) else { panic!("no list") };
    sessions.sort();
    let expiry_ms = START_MS + 60_000;
    let left: Vec<_> = (3..=5).map(|number| (id(number), version(1, u64::from(number)), expiry_ms)).collect();
    assert_eq!((sessions, next), (left, None));
    for (incarnation, cursor) in [(A, u64::MAX), (D, 0)] {
        let list = ToServer::ListSealed { incarnation, cursor };
        assert_eq!(world.ask_node(C, list), FromServer::Sealed { sessions: Vec::new(), next: None });
    }
}

#[test]
fn every_fetched_id_is_answered_so_that_asking_for_the_rest_ends() {
    let mut world = World::with_dead(&[live(id(1), version(1, 5))]);
    world.claim(B, &[id(1), id(2)]);
    let ids = vec![id(1), id(2), id(3)];
    let FromServer::Archives(archives) = world.ask_node(B, ToServer::Fetch { ids }) else {
        panic!("no archives")
    };
    let errors: Vec<_> = archives.iter().map(|archive| (archive.id, archive.error.is_some())).collect();
    assert_eq!(errors, [(id(2), true), (id(3), true), (id(1), false)]);
}

#[test]
fn claims_are_given_up_and_bounded() {
    let mut world = World::with_dead(&[]);
    world.claim(B, &[id(1)]);
    world.ask_node(C, ToServer::Unclaim { ids: vec![id(1)] });
    assert_eq!(world.claim_one(C, id(1)), Ok(ClaimAnswer::Elsewhere(B)), "only its holder gives it up");
    world.ask_node(B, ToServer::Unclaim { ids: vec![id(1)] });
    assert_eq!(world.claim_one(C, id(1)), Ok(ClaimAnswer::Granted(None)));

    let many = |start: u32, count: u32| -> Vec<SessionId> {
        let number = |number: u32| SessionId((u128::from(number) << 64).to_le_bytes());
        (start..start + count).map(number).collect()
    };
    let most = BATCH_SESSIONS_MAX as u32;
    assert!(matches!(world.claim(B, &many(1, most)), FromServer::Claims(_)));
    let full = world.claim(B, &many(1 + most, 200));
    assert!(matches!(full, FromServer::Refused(Refusal::Full { needed: 6400, left: 4096 })), "{full:?}");
    assert!(matches!(world.claim(B, &many(1, most)), FromServer::Claims(_)), "those it has are free");
    let too_many = world.claim(B, &many(1, most + 1));
    assert!(matches!(too_many, FromServer::Refused(Refusal::Bad(_))), "{too_many:?}");
    assert_eq!(world.cut.len(), 1, "who asks nonsense is cut off");
}

#[test]
fn graves_are_bounded_and_end_with_the_leases_that_they_are_for() {
    let mut world = World::new();
    world.set_view(&[A, B], &[]);
    world.lease(A, &[]);
    let number = |number: u32| SessionId((u128::from(number) << 64).to_le_bytes());
    for batch in 0..3 {
        let sessions = (0..4096).map(|at| (number(batch * 4096 + at), version(1, 1))).collect();
        assert_eq!(world.ask_node(B, ToServer::Destroyed { sessions }), FromServer::Done);
    }
    assert_eq!(world.server.graves.iter().count(), 4096);
    assert_eq!(world.server.graves.version(&number(0)), None, "the oldest go first");
    world.set_view(&[B], &[(A, false)]);
    assert_eq!(world.server.graves.iter().count(), 0);
    // Nothing is kept when no lease could contradict it.
    world.ask_node(B, ToServer::Destroyed { sessions: vec![(number(1), version(1, 1))] });
    assert_eq!(world.server.graves.iter().count(), 0);
}

#[test]
fn roles_are_kept_apart() {
    let mut world = World::new();
    let view = world.view(&[A], &[]);
    world.set_view(&[A], &[]);
    let operator = world.open(Role::Operator, 1);
    assert!(matches!(world.ask(operator, ToServer::Beat), Some(FromServer::Report(_))));
    for (connection, message) in [
        (operator, ToServer::SetView(view.clone())),
        (operator, ToServer::Lease),
        (world.node(A), ToServer::SetView(view)),
        (world.node(A), ToServer::Beat),
        (world.director, ToServer::Lease),
    ] {
        let answer = world.ask(connection, message);
        assert!(matches!(answer, Some(FromServer::Refused(Refusal::Denied(_)))), "{answer:?}");
    }
}

#[test]
fn a_peer_that_was_greeted_by_an_older_life_is_cut() {
    let mut world = World::new();
    world.feed(Event::Opened {
        connection: ConnectionId(50),
        role: Role::Operator,
        pid: 1,
        local: true,
        greeted: Incarnation(SERVER.0 - 1),
    });
    assert_eq!(world.cut, [ConnectionId(50)]);
    assert_eq!(world.ask(ConnectionId(50), ToServer::Beat), None);
}

#[test]
fn views_over_their_limits_are_refused() {
    let mut world = World::new();
    let mut view = world.view(&[A], &[]);
    let node = view.nodes[0].clone();
    view.nodes = vec![node; selvage_fabric::limits::NODES_MAX + 1];
    let answer = world.ask_director(ToServer::SetView(view));
    assert!(matches!(answer, Some(FromServer::Refused(Refusal::Bad(_)))), "{answer:?}");
}
