//! RDMA links: who gets one, when it ends, and what bad input does.

use super::*;
use selvage_fabric::error::ErrorKind;
use selvage_fabric::numbers::ServerCounter;
use selvage_fabric::rules::{Rule, assert_teeth};

/// What a RoCE port offers.
fn offer() -> Endpoint {
    let mut gid = [0; 16];
    gid[10..].copy_from_slice(&[0xff, 0xff, 10, 0, 0, 1]);
    Endpoint {
        qp_number: 17,
        packet_sequence: 5,
        gid,
        ethernet: true,
        mtu: 3,
        reads_max: 16,
        ..Endpoint::default()
    }
}

fn connect(world: &mut World, connection: ConnectionId) -> Result<u64, Refusal> {
    match world.ask(connection, ToServer::Connect { offer: offer() }) {
        Some(FromServer::Connected { link, endpoint, memory, server, .. }) => {
            assert_eq!((endpoint, memory), (server_end(LinkNumber(link)), LEASE_MEMORY));
            assert_eq!(server, world.server.incarnation());
            Ok(link)
        }
        Some(FromServer::Refused(refusal)) => Err(refusal),
        other => panic!("neither connected nor refused: {other:?}"),
    }
}

fn is_gone(world: &mut World, pid: u32, link: Option<u64>) -> FromServer {
    world.ask_node(A, ToServer::ProcessGone { pid, link })
}

fn counter(world: &mut World, counter: ServerCounter) -> u64 {
    let report = world.report();
    report.counters[counter as usize]
}

fn rdma_links(world: &mut World) -> u64 {
    world.report().rdma_links
}

#[test]
fn a_process_of_another_host_gets_a_link_into_its_nodes_lease() {
    let mut world = World::new();
    let remote = world.open_remote(A, 42);
    assert!(matches!(connect(&mut world, remote), Err(Refusal::NotYet(_))), "no view yet");
    world.set_view(&[A, B], &[]);
    assert_eq!(connect(&mut world, remote), Ok(1));
    assert_eq!(world.report().leases.len(), 1, "the lease is made at the first call");
    let second = world.open_remote(A, 43);
    assert_eq!(connect(&mut world, second), Ok(2));
    assert_eq!(world.report().leases.len(), 1, "its processes share it");
    assert_eq!((counter(&mut world, ServerCounter::RdmaConnects), rdma_links(&mut world)), (2, 2));
    // Memory is passed within a host only.
    let answer = world.ask(second, ToServer::Lease);
    assert!(matches!(answer, Some(FromServer::Refused(Refusal::Denied(_)))), "{answer:?}");
    assert_eq!(world.cut, []);
}

#[test]
fn processes_that_wait_for_one_lease_are_all_connected() {
    let mut world = World::new();
    world.set_view(&[A], &[]);
    world.slow = true;
    let (first, second, third) = (world.open_remote(A, 1), world.open_remote(A, 2), world.open_remote(A, 3));
    for connection in [first, second, third] {
        assert_eq!(world.ask(connection, ToServer::Connect { offer: offer() }), None);
    }
    world.feed(Event::Closed { connection: third });
    world.let_go();
    for connection in [first, second] {
        let sent = &world.sent[&connection];
        assert!(matches!(sent[..], [FromServer::Connected { .. }]), "{sent:?}");
    }
    assert_eq!(world.queue_pairs.len(), 2, "none for the one that went away meanwhile");
}

#[test]
fn r4_a_link_is_gone_only_when_its_queue_pair_is_destroyed() {
    assert_teeth(Rule::R4FreshSlot, || {
        let mut world = World::new();
        world.set_view(&[A], &[]);
        let worker = world.open_remote(A, 42);
        let link = connect(&mut world, worker).map_err(|refusal| format!("{refusal:?}"))?;
        ensure!(is_gone(&mut world, 42, Some(link)), FromServer::Gone(false));
        // Its connection has ended, and its queue pair may still have packets on their way.
        world.slow = true;
        world.feed(Event::Closed { connection: worker });
        ensure!(is_gone(&mut world, 42, Some(link)), FromServer::Gone(false));
        ensure!(is_gone(&mut world, 42, None), FromServer::Gone(false));
        world.let_go();
        ensure!(world.queue_pairs.len(), 0);
        ensure!(is_gone(&mut world, 42, Some(link)), FromServer::Gone(true));
        ensure!(is_gone(&mut world, 42, None), FromServer::Gone(true));
        // The process of another host is nothing that this host's kernel knows.
        ensure!(world.watched, vec![]);
        Ok(())
    });
}

#[test]
fn r4_an_older_link_of_a_living_process_is_gone_when_it_is_destroyed() {
    let mut world = World::new();
    world.set_view(&[A], &[]);
    let (old, new) = (world.open_remote(A, 42), world.open_remote(A, 42));
    let older = connect(&mut world, old).unwrap();
    let newer = connect(&mut world, new).unwrap();
    world.feed(Event::Closed { connection: old });
    assert_eq!(is_gone(&mut world, 42, Some(older)), FromServer::Gone(true));
    assert_eq!(is_gone(&mut world, 42, Some(newer)), FromServer::Gone(false));
    assert_eq!(is_gone(&mut world, 42, None), FromServer::Gone(false));
    assert_eq!(is_gone(&mut world, 42, Some(0)), FromServer::Gone(true), "there is no such link");
}

#[test]
fn r4_a_connection_that_ends_while_its_queue_pair_is_made_leaves_none() {
    let mut world = World::new();
    world.set_view(&[A], &[]);
    let (first, worker) = (world.open_remote(A, 41), world.open_remote(A, 42));
    connect(&mut world, first).unwrap();
    world.slow = true;
    assert_eq!(world.ask(worker, ToServer::Connect { offer: offer() }), None);
    world.feed(Event::Closed { connection: worker });
    assert_eq!(is_gone(&mut world, 42, None), FromServer::Gone(false), "its queue pair is being made");
    world.let_go();
    assert_eq!(world.queue_pairs.len(), 1);
    assert_eq!(is_gone(&mut world, 42, None), FromServer::Gone(true));
    assert!(!world.sent.contains_key(&worker));
}

#[test]
fn r4_a_queue_pair_that_cannot_be_destroyed_is_never_called_gone_and_tried_again() {
    let mut world = World::new();
    world.set_view(&[A], &[]);
    let worker = world.open_remote(A, 42);
    let link = connect(&mut world, worker).unwrap();
    world.device_fails = Some(ErrorKind::Unreachable);
    world.feed(Event::Closed { connection: worker });
    assert_eq!(is_gone(&mut world, 42, Some(link)), FromServer::Gone(false));
    assert_eq!(counter(&mut world, ServerCounter::RdmaLinksStuck), 1);
    world.device_fails = None;
    world.now_ms += 60_000;
    world.feed(Event::Tick);
    assert_eq!(is_gone(&mut world, 42, Some(link)), FromServer::Gone(true));
}

#[test]
fn a_local_process_with_a_descriptor_and_a_link_is_gone_when_both_are() {
    let mut world = World::new();
    world.set_view(&[A], &[]);
    let worker = world.open_node(A, 42);
    world.ask(worker, ToServer::Lease);
    connect(&mut world, worker).unwrap();
    world.slow = true;
    world.feed(Event::Closed { connection: worker });
    assert_eq!(world.watched, [(A, 42)]);
    world.feed(Event::ProcessGone { incarnation: A, pid: 42 });
    assert_eq!(is_gone(&mut world, 42, None), FromServer::Gone(false), "its queue pair is left");
    world.let_go();
    assert_eq!(is_gone(&mut world, 42, None), FromServer::Gone(true));
}

#[test]
fn r2_a_sealed_lease_lets_nobody_in_and_has_no_links_left() {
    let mut world = World::new();
    world.set_view(&[A, B], &[]);
    let (worker, late) = (world.open_remote(A, 42), world.open_remote(A, 43));
    connect(&mut world, worker).unwrap();
    // This one's queue pair is being made when the view comes.
    world.slow = true;
    assert_eq!(world.ask(late, ToServer::Connect { offer: offer() }), None);
    let view = world.view(&[B], &[(A, false)]);
    assert_eq!(world.ask_director(ToServer::SetView(view)), None, "the seal is not done");
    world.let_go();
    assert_eq!(world.sent[&late], [FromServer::Refused(Refusal::Over)]);
    assert_eq!(rdma_links(&mut world), 0);
    assert_eq!(connect(&mut world, worker), Err(Refusal::Over));
    assert_eq!(connect(&mut world, late), Err(Refusal::Over));
    // Their connections end later; there is nothing left to destroy.
    world.feed(Event::Closed { connection: worker });
    world.feed(Event::Closed { connection: late });
    assert_eq!(rdma_links(&mut world), 0);
}

#[test]
fn r6_a_view_that_drops_the_server_ends_its_links_with_their_leases() {
    assert_teeth(Rule::R6AckIncarnation, || {
        let mut world = World::new();
        world.set_view(&[A], &[]);
        let worker = world.open_remote(A, 42);
        connect(&mut world, worker).map_err(|refusal| format!("{refusal:?}"))?;
        let mut dropped = world.view(&[A], &[]);
        dropped.servers.clear();
        world.ask_director(ToServer::SetView(dropped));
        ensure!(world.cut, vec![worker]);
        // The lease's memory and registration go, and with them every queue pair.
        ensure!(world.released.len(), 1);
        ensure!(rdma_links(&mut world), 0);
        world.feed(Event::Closed { connection: worker });
        world.set_view(&[A], &[]);
        let again = world.open_remote(A, 42);
        let link = connect(&mut world, again).map_err(|refusal| format!("{refusal:?}"))?;
        ensure!(link, 2);
        Ok(())
    });
}

#[test]
fn nonsense_is_refused_by_name_and_cut_off() {
    type Spoil = fn(&mut Endpoint);
    let wrong: [(&str, Spoil); 9] = [
        ("MTU 0", |offer| offer.mtu = 0),
        ("MTU 9", |offer| offer.mtu = 9),
        ("queue pair 16777216", |offer| offer.qp_number = 1 << 24),
        ("queue pair 1", |offer| offer.qp_number = 1),
        ("packet sequence", |offer| offer.packet_sequence = u32::MAX),
        ("service level 16", |offer| offer.service_level = 16),
        ("no GID", |offer| offer.gid = [0; 16]),
        ("no GID", |offer| offer.gid[0] = 0xff),
        ("LID 0", |offer| offer.ethernet = false),
    ];
    let mut world = World::new();
    world.set_view(&[A], &[]);
    for (words, spoil) in wrong {
        let mut offer = offer();
        spoil(&mut offer);
        let connection = world.open_remote(A, 42);
        let answer = world.ask(connection, ToServer::Connect { offer });
        let Some(FromServer::Refused(Refusal::Bad(why))) = answer else { panic!("{words}: {answer:?}") };
        assert!(why.contains(words), "{why}");
        assert_eq!(world.cut.pop(), Some(connection));
        world.feed(Event::Closed { connection });
    }
    assert_eq!(counter(&mut world, ServerCounter::RdmaRefused), 9);
    assert_eq!(counter(&mut world, ServerCounter::RefusedBad), 9);
    assert_eq!(world.report().leases, [], "nothing was made");
}

#[test]
fn who_may_not_connect_is_told_why_and_changes_nothing() {
    let mut world = World::new();
    world.set_view(&[A], &[]);
    let director = world.open(Role::Director, 1);
    assert!(matches!(connect(&mut world, director), Err(Refusal::Denied(_))));
    let staging = world.ask(director, ToServer::FetchStaged { ids: Vec::new() });
    assert!(matches!(staging, Some(FromServer::Refused(Refusal::Denied(_)))), "{staging:?}");
    // Twice on one connection: the link that it has stays.
    let worker = world.open_remote(A, 42);
    let link = connect(&mut world, worker).unwrap();
    let Err(Refusal::Denied(why)) = connect(&mut world, worker) else { panic!("a second link") };
    assert!(why.contains("already"), "{why}");
    assert_eq!(is_gone(&mut world, 42, Some(link)), FromServer::Gone(false));
    assert_eq!((world.cut.len(), world.queue_pairs.len()), (0, 1));
}

#[test]
fn a_device_that_refuses_costs_one_answer_and_heals() {
    let mut world = World::new();
    world.set_view(&[A], &[]);
    let worker = world.open_remote(A, 42);
    world.device_fails = Some(ErrorKind::Unreachable);
    assert!(matches!(connect(&mut world, worker), Err(Refusal::NotYet(_))));
    world.device_fails = Some(ErrorKind::Invalid);
    assert!(matches!(connect(&mut world, worker), Err(Refusal::Denied(_))));
    assert_eq!((counter(&mut world, ServerCounter::RdmaRefused), rdma_links(&mut world)), (2, 0));
    world.device_fails = None;
    assert_eq!(connect(&mut world, worker), Ok(3));
    world.feed(Event::Closed { connection: worker });
    assert_eq!(is_gone(&mut world, 42, None), FromServer::Gone(true));
}

#[test]
fn archives_are_staged_for_claimants_on_a_link() {
    let mut world = World::with_dead(&[live(id(1), version(1, 5))]);
    world.claim(B, &[id(1)]);
    let ids = vec![id(2), id(1)];
    let local = world.node(B);
    let answer = world.ask(local, ToServer::FetchStaged { ids: ids.clone() });
    let Some(FromServer::Refused(Refusal::Denied(why))) = answer else { panic!("{answer:?}") };
    assert!(why.contains("no RDMA link"), "{why}");
    let worker = world.open_remote(B, 42);
    connect(&mut world, worker).unwrap();
    let answer = world.ask(worker, ToServer::FetchStaged { ids: ids.clone() });
    let Some(FromServer::Staged { memory, archives }) = answer else { panic!("{answer:?}") };
    let told: Vec<_> = archives.iter().map(|it| (it.id, it.bytes, it.error.as_deref())).collect();
    assert_eq!(told, [(id(2), 0, Some("not claimed by the asker")), (id(1), 100, None)]);
    assert_eq!(memory.bytes, 100);
    let counted = [ServerCounter::StagedBytes, ServerCounter::Fetched, ServerCounter::FetchErrors]
        .map(|it| counter(&mut world, it));
    assert_eq!(counted, [100, 1, 1]);
    world.device_fails = Some(ErrorKind::Unreachable);
    let answer = world.ask(worker, ToServer::FetchStaged { ids });
    assert!(matches!(answer, Some(FromServer::Refused(Refusal::NotYet(_)))), "{answer:?}");
    let too_many = world.ask(worker, ToServer::FetchStaged { ids: vec![id(1); BATCH_SESSIONS_MAX + 1] });
    assert!(matches!(too_many, Some(FromServer::Refused(Refusal::Bad(_)))), "{too_many:?}");
}
