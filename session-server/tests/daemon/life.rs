//! What a real server does for nodes and directors over its socket and its memory.

use crate::host::*;
use selvage_fabric::control::message::{ClaimAnswer, Endpoint, FromServer, Refusal, ToServer};
use selvage_fabric::numbers::ServerCounter;
use selvage_fabric::transport::{Link, Outcome};
use std::time::{Duration, Instant};

const SMALL: &str = "sessions_max = 1024\nlease_bytes = 4194304\n";

#[test]
fn granted_pushed_sealed_claimed_fetched_settled_released() {
    let host = Host::new(SMALL);
    let _daemon = host.start("s1");
    let mut director = host.director();
    let server = director.server;
    director.set_view(view(1, server, &[1, 2], &[]));
    let (mut node, mut heir) = (host.node(1), host.node(2));
    node.register(1);
    heir.register(1);

    let link = node.lease(1);
    let archives: Vec<Vec<u8>> =
        (0..100).map(|at| archive(id(at), version(at), &vec![at as u8; 100 + 5 * at as usize])).collect();
    for (at, archive) in archives.iter().enumerate() {
        let slot = at as u32;
        let cell = cell(id(slot.into()), version(slot.into()), 1, slot * 8, archive.len());
        assert_eq!(push(&link, slot, &cell, Some(archive)), Outcome::Acked);
    }
    link.beat(1, 100);
    let report = director.report();
    assert_eq!((report.leases[0].sessions, report.leases[0].sealed), (100, false));
    assert!(report.bytes > 4 << 20);

    let report = director.set_view(view(2, server, &[2], &[(1, false)]));
    assert!(link.is_sealed());
    let lease = &report.leases[0];
    assert_eq!((lease.sealed, lease.sessions, lease.unsettled), (true, 100, 100));
    let early = heir.ask(&ToServer::Claim { epoch: view(2, server, &[], &[]).epoch, ids: vec![id(3)] });
    assert!(matches!(early, FromServer::Refused(Refusal::NotYet(_))), "{early:?}");

    director.set_view(view(3, server, &[2], &[(1, true)]));
    let ids: Vec<_> = (0..101).map(id).collect();
    let answers = heir.claim(3, &ids);
    let (last, found) = answers.split_last().unwrap();
    assert_eq!(*last, ClaimAnswer::Granted(None));
    assert!(found.iter().enumerate().all(|(at, answer)| *answer == granted(at as u64)));
    let fetched = heir.fetch(&ids[..100]);
    assert_eq!(fetched.len(), 100);
    for (at, fetched) in fetched.iter().enumerate() {
        assert_eq!((fetched.id, fetched.version, &fetched.error), (id(at as u64), version(at as u64), &None));
        assert_eq!(fetched.archive, archives[at]);
    }

    let sessions = ids[..100].iter().map(|id| (*id, version(200))).collect();
    assert_eq!(heir.ask(&ToServer::Settle { sessions }), FromServer::Done);
    assert_eq!(director.report().leases[0].unsettled, 0);
    let report = director.set_view(view(4, server, &[2], &[]));
    assert_eq!((report.leases.len(), report.bytes), (0, 0));
}

#[test]
fn large_fetches_come_in_pieces() {
    let host = Host::new("sessions_max = 64\nlease_bytes = 16777216\n");
    let _daemon = host.start("s1");
    let mut director = host.director();
    let server = director.server;
    director.set_view(view(1, server, &[1, 2], &[]));
    let (mut node, mut heir) = (host.node(1), host.node(2));
    node.register(1);
    heir.register(1);
    let link = node.lease(1);
    let value = vec![9; 700_000];
    for slot in 0..8 {
        let archive = archive(id(slot.into()), version(1), &value);
        let cell = cell(id(slot.into()), version(1), 1, slot * 4096, archive.len());
        assert_eq!(push(&link, slot, &cell, Some(&archive)), Outcome::Acked);
    }
    director.set_view(view(2, server, &[2], &[(1, true)]));
    let mut left: Vec<_> = (0..8).map(id).collect();
    heir.claim(2, &left);
    let mut pieces = 0;
    while !left.is_empty() {
        let fetched = heir.fetch(&left);
        assert!(!fetched.is_empty() && fetched.iter().all(|archive| archive.error.is_none()));
        left.retain(|id| fetched.iter().all(|archive| archive.id != *id));
        pieces += 1;
    }
    assert_eq!(pieces, 4, "two archives fill a piece");
}

#[test]
fn what_a_zombie_writes_after_the_seal_is_not_served() {
    let host = Host::new(SMALL);
    let _daemon = host.start("s1");
    let mut director = host.director();
    let server = director.server;
    director.set_view(view(1, server, &[1, 2], &[]));
    let (mut node, mut heir) = (host.node(1), host.node(2));
    node.register(1);
    heir.register(1);
    let link = node.lease(1);
    let before = archive(id(1), version(1), b"before");
    let after = archive(id(1), version(2), b"after");
    let first = cell(id(1), version(1), 1, 0, before.len());
    assert_eq!(push(&link, 0, &first, Some(&before)), Outcome::Acked);
    director.set_view(view(2, server, &[2], &[(1, false)]));

    // The zombie wakes up: its mapping still works, but it gets no ack, and what it writes is not read.
    let second = cell(id(1), version(2), 2, 8, after.len());
    assert_eq!(push(&link, 0, &second, Some(&after)), Outcome::Sealed);
    let other = cell(id(2), version(1), 1, 16, after.len());
    assert_eq!(push(&link, 1, &other, Some(&after)), Outcome::Sealed);
    assert_eq!(node.ask(&ToServer::Lease), FromServer::Refused(Refusal::Over));

    director.set_view(view(3, server, &[2], &[(1, true)]));
    assert_eq!(heir.claim(3, &[id(1), id(2)]), [granted(1), ClaimAnswer::Granted(None)]);
    assert_eq!(heir.fetch(&[id(1)])[0].archive, before);

    // Even an acked block that it overwrites now is not served as something else: the archive must fit its
    // cell (R7).
    assert_eq!(push(&link, 2, &cell(id(3), version(1), 1, 0, after.len()), Some(&after)), Outcome::Sealed);
    let fetched = &heir.fetch(&[id(1)])[0];
    assert!(fetched.archive.is_empty() && fetched.error.is_some(), "{fetched:?}");
    assert_eq!(director.counter(ServerCounter::FetchErrors), 1);
}

#[test]
fn hostile_cells_are_counted_and_harm_nobody() {
    let host = Host::new(SMALL);
    let _daemon = host.start("s1");
    let mut director = host.director();
    let server = director.server;
    director.set_view(view(1, server, &[1, 2, 3], &[]));
    let (mut node, mut other, mut heir) = (host.node(1), host.node(2), host.node(3));
    for node in [&mut node, &mut other, &mut heir] {
        node.register(1);
    }
    let (link, honest) = (node.lease(1), other.lease(2));
    let good = archive(id(1), version(1), b"good");
    push(&honest, 0, &cell(id(1), version(1), 1, 0, good.len()), Some(&good));
    // A block far outside the heap, and an archive that is not there.
    push(&link, 0, &cell(id(2), version(1), 1, u32::MAX, 100), None);
    push(&link, 1, &cell(id(3), version(1), 1, 0, 100), None);
    let report = director.set_view(view(2, server, &[3], &[(1, true), (2, true)]));
    assert_eq!(report.leases.iter().map(|lease| lease.sessions).sum::<u64>(), 2);
    assert_eq!(director.counter(ServerCounter::CellsBad), 1);
    assert_eq!(heir.claim(2, &[id(1), id(2), id(3)])[1], ClaimAnswer::Granted(None));
    let fetched = heir.fetch(&[id(1), id(3)]);
    assert_eq!(fetched[0].archive, good);
    assert!(fetched[1].error.is_some());
}

#[test]
fn a_process_is_gone_when_it_is_gone() {
    let host = Host::new(SMALL);
    let _daemon = host.start("s1");
    let mut director = host.director();
    director.set_view(view(1, director.server, &[1], &[]));
    let mut node = host.node(1);
    let mut worker = host.node(1);
    worker.lease(1);
    let pid = std::process::id();
    drop(worker);
    // This process lives, so even with no connection left of the worker it could still write.
    assert_eq!(node.ask(&ToServer::ProcessGone { pid, link: None }), FromServer::Gone(false));
    assert_eq!(node.ask(&ToServer::ProcessGone { pid: 1, link: None }), FromServer::Gone(true));
}

#[test]
fn a_large_lease_keeps_nobody_waiting() {
    let host = Host::new("sessions_max = 1024\nlease_bytes = 536870912\n");
    let _daemon = host.start("s1");
    let mut director = host.director();
    director.set_view(view(1, director.server, &[1], &[]));
    let mut node = host.node(1);
    let started = Instant::now();
    node.stream.send(&ToServer::Lease, None, WAIT).unwrap();
    let mut beats = 0;
    let mut slowest = Duration::ZERO;
    while director.report().bytes == 0 || node.stream.recv::<FromServer>(Duration::ZERO).is_err() {
        let asked = Instant::now();
        director.report();
        slowest = slowest.max(asked.elapsed());
        beats += 1;
        assert!(started.elapsed() < WAIT);
    }
    let took = started.elapsed();
    println!("a lease of 512 MiB took {took:?}; {beats} heartbeats meanwhile, the slowest {slowest:?}");
    assert!(beats >= 3 && slowest < took, "{beats} heartbeats in {took:?}, the slowest {slowest:?}");
}

#[test]
fn the_bound_of_memory_is_kept() {
    let host = Host::new(&format!("{SMALL}server_bytes_max = 6000000\n"));
    let _daemon = host.start("s1");
    let mut director = host.director();
    director.set_view(view(1, director.server, &[1, 2], &[]));
    host.node(1).lease(1);
    let answer = host.node(2).ask(&ToServer::Lease);
    let FromServer::Refused(Refusal::Full { needed, left }) = answer else { panic!("{answer:?}") };
    assert!(needed > 4 << 20 && needed + left == 6_000_000, "{needed} {left}");
}

#[test]
fn a_server_that_a_view_drops_begins_anew() {
    let host = Host::new(SMALL);
    let _daemon = host.start("s1");
    let mut director = host.director();
    let before = director.server;
    director.set_view(view(1, before, &[1], &[]));
    let mut node = host.node(1);
    node.lease(1);
    let mut dropped = view(2, before, &[1], &[]);
    dropped.servers.clear();
    let report = director.set_view(dropped);
    assert!(report.incarnation > before);
    assert_eq!((report.leases.len(), report.bytes), (0, 0));
    assert!(node.stream.recv::<FromServer>(WAIT).is_err(), "nodes of the old life are cut off");
    director.set_view(view(3, report.incarnation, &[1], &[]));
    let mut node = host.node(1);
    assert_eq!(node.server, report.incarnation);
    node.lease(1);
}

/// Index of a whole lease. Counted in processor time, which a busy machine stretches less than the clock's.
/// An optimised build needs some 150 ms for a million slots, of which half are page faults of the index.
#[test]
fn a_full_lease_is_sealed_and_indexed_in_time() {
    let (slots, bound) = if cfg!(debug_assertions) {
        (100_000, Duration::from_secs(2))
    } else {
        (1_000_000, Duration::from_millis(600))
    };
    let host = Host::new(&format!("sessions_max = {slots}\nlease_bytes = {}\n", slots * 256 + (4 << 20)));
    let daemon = host.start("s1");
    let mut director = host.director();
    let server = director.server;
    director.set_view(view(1, server, &[1], &[]));
    let link = host.node(1).lease(1);
    for slot in 0..slots {
        let cell = cell(id(slot.into()), version(1), 1, slot, 256);
        assert_eq!(push(&link, slot, &cell, None), Outcome::Acked);
    }
    let (before, started) = (daemon.cpu(), Instant::now());
    let report = director.set_view(view(2, server, &[], &[(1, false)]));
    let (used, took) = (daemon.cpu() - before, started.elapsed());
    assert_eq!(report.leases[0].sessions, u64::from(slots));
    println!("sealed and indexed {slots} slots in {took:?}, with {used:?} of processor time");
    assert!(used < bound, "{slots} slots took {used:?} of processor time");
}

/// The server works on the control path only: a million pushes cost it nothing but its timer.
#[test]
fn a_million_pushes_cost_the_server_no_cpu() {
    let host = Host::new(SMALL);
    let daemon = host.start("s1");
    let mut director = host.director();
    director.set_view(view(1, director.server, &[1], &[]));
    let link = host.node(1).lease(1);
    let archive = archive(id(1), version(1), &[1; 100]);
    let before = daemon.cpu();
    let started = Instant::now();
    for at in 0..1_000_000_u32 {
        let (slot, round) = (at % 1024, at / 1024 + 1);
        // Two blocks per slot take turns, as the owner's allocator would have it.
        let block = (slot * 2 + round % 2) * 8;
        let cell = cell(id(slot.into()), version(round.into()), round, block, archive.len());
        assert_eq!(push(&link, slot, &cell, Some(&archive)), Outcome::Acked);
    }
    let (took, used) = (started.elapsed(), daemon.cpu() - before);
    println!("1,000,000 pushes in {took:?}; the server used {used:?}");
    // Ten timer ticks a second at some 50 us each, and the clock's own granularity of 10 ms twice.
    let bound = Duration::from_millis(30) + took / 100;
    assert!(used <= bound, "the server used {used:?} in {took:?}");
    assert!(link.peer_beat() > 0, "its timer runs");
}

#[test]
fn what_rdma_and_numa_it_has_is_said_and_links_are_refused_by_name() {
    let host = Host::new(&SMALL.replace("sessions_max", "numa = true\nsessions_max"));
    let _daemon = host.start_with("s1", &[("SELVAGE_LOG", "debug")]);
    let mut director = host.director();
    let server = director.server;
    director.set_view(view(1, server, &[1], &[]));
    let rdma = director.report().rdma;
    let log = host.log("s1");
    assert!(log.contains("leases and threads are placed"), "{log}");
    assert!(!rdma.is_empty() && log.contains(&rdma), "{rdma}: {log}");
    let none = rdma.starts_with("there is no RDMA");
    let offer = Endpoint { qp_number: 17, gid: [1; 16], ethernet: true, mtu: 9, ..Endpoint::default() };
    let nonsense = host.node(1).ask(&ToServer::Connect { offer });
    let FromServer::Refused(Refusal::Bad(why)) = nonsense else { panic!("{nonsense:?}") };
    assert!(why.contains("MTU 9"), "{why}");
    assert_eq!(director.report().leases, [], "nothing was made");
    let offer = Endpoint { mtu: 3, ..offer };
    match host.node(1).ask(&ToServer::Connect { offer }) {
        FromServer::Connected { .. } => assert!(!none, "{rdma}"),
        FromServer::Refused(Refusal::NotYet(why) | Refusal::Denied(why)) => {
            assert!(why == rdma || !none, "{why} is not {rdma}");
        }
        other => panic!("{other:?}"),
    }
    let report = director.report();
    let refused = report.counters[ServerCounter::RdmaRefused as usize];
    assert!((1..=2).contains(&refused), "{refused}");
    // Whatever the device says, nodes of this host have their lease.
    let mut node = host.node(1);
    node.register(1);
    node.lease(1);
}
