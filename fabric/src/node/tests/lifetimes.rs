//! How long sessions last: idle and absolute lifetimes, what reading costs, and the grace of an id that was
//! given up.

use super::world::{World, change, create, number, open};
use crate::archive::{Value, ValueRef};
use crate::cache::{self, EntryState};
use crate::error::ErrorKind;
use crate::ident::{Cookie, Incarnation};
use crate::lease::{Cell, CellState};
use crate::node::host::Host;
use crate::node::open::{self, Found, OpenSession};
use crate::node::{Ack, OpenMode};
use crate::numbers::NodeCounter;
use std::sync::Arc;
use std::time::{Duration, Instant};

const MODES: [OpenMode; 3] = [OpenMode::Exclusive, OpenMode::ReadOnly, OpenMode::Unlocked];
/// A session of 100 s idle and 1000 s absolute lifetime; a touch moves the expiry by 10 s or more.
const SHORT: &str = "wait_ms = 2000\nidle_s = 100\nabsolute_s = 1000\ntouch_share = 0.1";

fn find(host: &Arc<Host>, cookie: &Cookie, mode: OpenMode) -> Option<OpenSession> {
    match open::blocking(host, cookie, mode, Instant::now() + Duration::from_secs(5)).unwrap() {
        Found::Session(session) => Some(session),
        Found::Missing => None,
        Found::Elsewhere(node) => panic!("elsewhere: {node:?}"),
    }
}

fn count(host: &Host, counter: NodeCounter) -> u64 {
    host.cache.counters()[counter as usize]
}

/// The newest cell that a server's memory has of a session.
fn cell(world: &World, server: &str, node: Incarnation, cookie: &Cookie) -> Cell {
    let cells = world.on_server(server, |server| server.cells(node)).into_iter();
    cells.filter(|cell| cell.id == cookie.id).max_by_key(|cell| cell.version).unwrap()
}

#[test]
fn ten_thousand_reading_requests_push_touches_at_the_configured_rate_and_no_archive() {
    let world = World::with(2, 1, 2, SHORT);
    let hosts = [world.host("n1"), world.add_process("n1")];
    let (cookie, _) = create(&hosts[0], 7);
    let node = hosts[0].incarnation();
    let before = ["s1", "s2"].map(|server| cell(&world, server, node, &cookie));
    let (began_ms, commits) = (world.clock.ms(), count(&hosts[0], NodeCounter::Commits));
    for request in 0..10_000 {
        // Without an end in sight that would shorten the steps: 900 s in all.
        world.clock.advance_ms(90);
        world.mandate("n1");
        let mut session = find(&hosts[request % 2], &cookie, MODES[request % 3]).unwrap();
        assert_eq!(session.get("n"), Some(ValueRef::I64(7)));
        if session.mode != OpenMode::ReadOnly && request % 7 == 0 {
            assert_eq!(session.commit(Ack::All).unwrap().copies, 2);
        }
    }
    let passed_ms = world.clock.ms() - began_ms;
    let most = passed_ms / hosts[0].touch_step_ms();
    let touches = count(&hosts[0], NodeCounter::Touches);
    assert!((most / 2..=most).contains(&touches), "{touches} touches in {passed_ms} ms, {most} may be");
    let counted = (count(&hosts[0], NodeCounter::Commits), count(&hosts[0], NodeCounter::Recopies));
    assert_eq!(counted, (commits, 0));
    // And in the servers' memory: so many cells, and each names the block that was written at the creation.
    for (server, before) in ["s1", "s2"].iter().zip(before) {
        let now = cell(&world, server, node, &cookie);
        assert_eq!(u64::from(now.sequence.0 - before.sequence.0), touches, "cells at {server}");
        assert_eq!((now.block, now.archive_bytes), (before.block, before.archive_bytes));
        assert!(now.expiry_ms > before.expiry_ms && now.version.counter == before.version.counter + touches);
    }
}

#[test]
fn readers_never_wait_for_a_writer() {
    let world = World::with(1, 1, 1, "wait_ms = 60000");
    let host = world.host("n1");
    let (cookie, _) = create(&host, 0);
    let mut writer = open(&host, &cookie);
    // With the lock held all the time, from threads that would wait for a minute each.
    std::thread::scope(|scope| {
        for mode in [OpenMode::ReadOnly, OpenMode::Unlocked].into_iter().cycle().take(4) {
            let host = &host;
            scope.spawn(move || {
                let mut seen = 0;
                for _ in 0..2500 {
                    let session = find(host, &cookie, mode).unwrap();
                    let Some(ValueRef::I64(number)) = session.get("n") else { panic!() };
                    assert!(number >= seen, "a reader goes back in time");
                    seen = number;
                }
            });
        }
        for number in 1..=200 {
            writer.set("n", Value::I64(number)).unwrap();
            writer.commit(Ack::All).unwrap();
        }
    });
}

/// Uses a session once a second in one mode after the other, until it is gone; gives the time that took.
fn use_up(world: &World, host: &Arc<Host>, cookie: &Cookie, node: &str) -> u64 {
    for second in 0..2000 {
        world.clock.advance_ms(1000);
        world.mandate(node);
        match find(host, cookie, MODES[second % 3]) {
            Some(mut session) if session.mode != OpenMode::ReadOnly && second % 5 == 0 => {
                session.incr("uses", 1).unwrap();
                session.commit(Ack::All).unwrap();
            }
            Some(_) => {}
            None => return second as u64 + 1,
        }
    }
    panic!("it lives for ever");
}

#[test]
fn a_session_that_is_used_all_the_time_ends_at_its_absolute_age() {
    let mut world = World::with(2, 2, 2, SHORT);
    let n1 = world.host("n1");
    let (cookie, _) = create(&n1, 1);
    assert_eq!(use_up(&world, &n1, &cookie, "n1"), 1000);
    for server in ["s1", "s2"] {
        assert!(
            world
                .on_server(server, |server| server.cells(n1.incarnation()))
                .iter()
                .any(|cell| { cell.id == cookie.id && cell.state == CellState::Tombstone })
        );
    }
    world.end_node("n1");
    assert_eq!(number(&world.host("n2"), &cookie), Err("missing".into()));
}

#[test]
fn neither_a_new_id_nor_a_new_host_makes_a_session_live_longer() {
    for unlocked in [false, true] {
        let mut world = World::with(2, 2, 2, SHORT);
        let n1 = world.host("n1");
        let (old, _) = create(&n1, 1);
        world.clock.advance_ms(60_000);
        world.mandate("n1");
        let mode = if unlocked { OpenMode::Unlocked } else { OpenMode::Exclusive };
        let mut session = find(&n1, &old, mode).unwrap();
        session.regenerate().unwrap();
        let new = Cookie { id: session.facts.id, host: n1.incarnation() };
        drop(session);
        for _ in 0..4 {
            world.clock.advance_ms(60_000);
            world.mandate("n1");
            change(&n1, &new, 2).unwrap();
        }
        // 300 s old.
        world.end_node("n1");
        world.mandate("n2");
        let n2 = world.host("n2");
        assert_eq!(number(&n2, &new), Ok(2));
        assert_eq!(use_up(&world, &n2, &new, "n2"), 700);
        for server in ["s1", "s2"] {
            let cell = cell(&world, server, n2.incarnation(), &new);
            assert_eq!(cell.state, CellState::Tombstone, "at {server}");
        }
    }
}

#[test]
fn a_session_that_nobody_uses_ends_at_its_host_and_in_its_copies() {
    let mut world = World::with(2, 2, 2, SHORT);
    let n1 = world.host("n1");
    let (used, _) = create(&n1, 1);
    let (unused, _) = create(&n1, 2);
    world.clock.advance_ms(99_000);
    world.mandate("n1");
    assert!(find(&n1, &used, OpenMode::Unlocked).is_some());
    world.clock.advance_ms(1000);
    world.mandate("n1");
    // By the sweep, without a request: its copies have tombstones.
    assert!(world.sweep("n1").complete);
    for server in ["s1", "s2"] {
        let state = |cookie| cell(&world, server, n1.incarnation(), cookie).state;
        assert_eq!(state(&unused), CellState::Tombstone, "at {server}");
        assert_eq!(state(&used), CellState::Live, "at {server}");
    }
    assert!(n1.cache.find(&unused.id).unwrap().is_none());
    // The other one ends in its copies, where no host ends it.
    world.clock.advance_ms(99_000);
    world.end_node("n1");
    world.mandate("n2");
    assert_eq!(number(&world.host("n2"), &used), Err("missing".into()));
}

/// 1000 ms of grace.
const GRACE: &str = "wait_ms = 2000\nregenerate_grace_ms = 1000";

/// A session whose id was given up: the old cookie, and the session under its new id, changed and committed.
fn regenerated(world: &World, mode: OpenMode) -> (Cookie, OpenSession) {
    let host = world.host("n1");
    let (old, _) = create(&host, 1);
    let mut session = find(&host, &old, mode).unwrap();
    session.set("privilege", Value::Bool(true)).unwrap();
    session.regenerate().unwrap();
    session.set("n", Value::I64(2)).unwrap();
    session.commit(Ack::All).unwrap();
    (old, session)
}

#[test]
fn during_the_grace_the_old_id_shows_what_was_before_and_nothing_else() {
    for mode in [OpenMode::Exclusive, OpenMode::Unlocked] {
        let world = World::with(2, 1, 2, GRACE);
        let (old, session) = regenerated(&world, mode);
        // Its copies are ended as ever: that is what keeps it from reviving.
        for server in ["s1", "s2"] {
            let cell = cell(&world, server, old.host, &old);
            assert_eq!(cell.state, CellState::Tombstone, "at {server}");
        }
        for host in [world.host("n1"), world.add_process("n1")] {
            for mode in MODES {
                let mut before = find(&host, &old, mode).unwrap();
                assert!(before.is_read_only() && !before.needs_cookie);
                assert_eq!((before.facts.id, before.facts.copies), (old.id, 0));
                assert_eq!((before.get("n"), before.get("privilege")), (Some(ValueRef::I64(1)), None));
                assert_eq!(before.set("n", Value::I64(3)).unwrap_err().kind, ErrorKind::Invalid);
                assert_eq!(before.commit(Ack::All).unwrap_err().kind, ErrorKind::Invalid);
                assert_eq!(before.regenerate().unwrap_err().kind, ErrorKind::Invalid);
                assert_eq!(before.destroy().unwrap_err().kind, ErrorKind::Invalid);
            }
        }
        // A sweep leaves it alone until its time is over.
        world.sweep("n1");
        world.clock.advance_ms(999);
        world.mandate("n1");
        let host = world.host("n1");
        let reader = find(&host, &old, OpenMode::ReadOnly).unwrap();
        world.clock.advance_ms(1);
        world.mandate("n1");
        world.sweep("n1");
        assert_eq!(host.cache.find(&old.id).unwrap().unwrap().grace_until_ms, None, "the sweep ends it");
        assert!(MODES.iter().all(|mode| find(&host, &old, *mode).is_none()));
        assert_eq!(reader.get("n"), Some(ValueRef::I64(1)), "who has it open goes on reading");
        drop((reader, session));
        assert!(host.cache.find(&old.id).unwrap().is_none());
        assert_eq!(host.cache.verify().unwrap(), [""; 0]);
    }
}

#[test]
fn the_grace_ends_without_a_sweep_with_the_new_session_and_with_the_host() {
    let mut world = World::with(2, 2, 2, GRACE);
    let host = world.host("n1");
    let (late, session) = regenerated(&world, OpenMode::Exclusive);
    drop(session);
    world.clock.advance_ms(1000);
    world.mandate("n1");
    assert!(find(&host, &late, OpenMode::Exclusive).is_none());
    assert!(host.cache.find(&late.id).unwrap().is_none());
    // The end of the new session ends all ids that it had, also one before the last.
    let (first, mut session) = regenerated(&world, OpenMode::Unlocked);
    let second = Cookie { id: session.facts.id, host: host.incarnation() };
    session.regenerate().unwrap();
    assert_eq!(find(&host, &first, OpenMode::Unlocked).unwrap().get("n"), Some(ValueRef::I64(1)));
    assert_eq!(find(&host, &second, OpenMode::Unlocked).unwrap().get("n"), Some(ValueRef::I64(2)));
    session.destroy().unwrap();
    for cookie in [&first, &second] {
        assert!(MODES.iter().all(|mode| find(&host, cookie, *mode).is_none()));
        assert!(host.cache.find(&cookie.id).unwrap().is_none());
    }
    // Also if the grace of one between them was ended by itself, as when an operator kills that id.
    let (first, mut session) = regenerated(&world, OpenMode::Unlocked);
    let second = session.facts.id;
    session.regenerate().unwrap();
    host.cache.end_grace(&second).unwrap();
    session.destroy().unwrap();
    assert!(MODES.iter().all(|mode| find(&host, &first, *mode).is_none()));
    // Also when it expires.
    let (old, session) = regenerated(&world, OpenMode::Exclusive);
    let new = Cookie { id: session.facts.id, host: host.incarnation() };
    drop(session);
    let info = host.cache.find(&new.id).unwrap().unwrap();
    assert_eq!(info.state, EntryState::Live);
    let cache::Opened::Granted(mut hold) = host.cache.open_exclusive(&new.id).unwrap() else { panic!() };
    crate::node::destroy::expire(&host, &mut hold, &info).unwrap();
    drop(hold);
    assert!(find(&host, &old, OpenMode::ReadOnly).is_none());
    // Elsewhere there is no grace, and no copy to revive it from.
    let (old, _session) = regenerated(&world, OpenMode::Exclusive);
    assert!(find(&host, &old, OpenMode::ReadOnly).is_some());
    world.end_node("n1");
    assert_eq!(number(&world.host("n2"), &old), Err("missing".into()));
    assert_eq!(host.cache.verify().unwrap(), [""; 0]);
    host.cache.poison();
    let ended = open::blocking(&host, &old, OpenMode::ReadOnly, Instant::now());
    assert_eq!(ended.err().map(|error| error.kind), Some(ErrorKind::OwnershipLost));
}

#[test]
fn a_grace_ends_with_the_session_whose_id_it_was() {
    let world = World::with(1, 1, 1, &format!("{GRACE}\nidle_s = 100\nabsolute_s = 100"));
    let host = world.host("n1");
    let (old, _) = create(&host, 1);
    let end_ms = host.cache.find(&old.id).unwrap().unwrap().absolute_ms;
    world.clock.advance_ms(end_ms - world.clock.ms() - 400);
    world.mandate("n1");
    find(&host, &old, OpenMode::Exclusive).unwrap().regenerate().unwrap();
    assert_eq!(host.cache.find(&old.id).unwrap().unwrap().grace_until_ms, Some(end_ms));
    assert!(find(&host, &old, OpenMode::ReadOnly).is_some());
    world.clock.advance_ms(400);
    world.mandate("n1");
    assert!(find(&host, &old, OpenMode::ReadOnly).is_none());
}

#[test]
fn without_grace_the_old_id_is_dead_at_once() {
    let world = World::new(2, 1, 2);
    let (old, _session) = regenerated(&world, OpenMode::Exclusive);
    assert!(MODES.iter().all(|mode| find(&world.host("n1"), &old, *mode).is_none()));
}
