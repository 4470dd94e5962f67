//! Links whose pushes end later, as over RDMA.

use super::slow::Slowness;
use super::world::{World, change, create, find, number, open};
use crate::archive::ValueRef;
use crate::error::ErrorKind;
use crate::ident::Cookie;
use crate::node::commit::Commit;
use crate::node::finisher::{self, Finisher};
use crate::node::host::{Host, LinkState};
use crate::node::links::LinkKeeper;
use crate::node::open::Found;
use crate::node::operations::Ended;
use crate::node::{OpId, Short};
use std::sync::Arc;
use std::time::{Duration, Instant};

const FAST: Slowness = Slowness { latency: Duration::ZERO, held: false, depth: usize::MAX };
const HELD: Slowness = Slowness { held: true, ..FAST };

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn latency(latency: Duration) -> Slowness {
    Slowness { latency, ..FAST }
}

fn copies(host: &Arc<Host>, cookie: &Cookie, number: i64) -> u32 {
    change(host, cookie, number).unwrap().copies
}

fn timed(work: impl FnOnce()) -> Duration {
    let began = Instant::now();
    work();
    began.elapsed()
}

#[test]
fn sessions_survive_their_host_over_links_that_ack_later() {
    let mut world = World::slow(2, 2, 2, 2000, latency(Duration::from_micros(200)));
    let n1 = world.host("n1");
    let cookies: Vec<_> = (0..20).map(|number| create(&n1, number).0).collect();
    for (number, cookie) in (100..).zip(&cookies) {
        assert_eq!(copies(&n1, cookie, number), 2);
    }
    open(&n1, &cookies[0]).destroy().unwrap();
    let dead = world.end_node("n1");
    let n2 = world.host("n2");
    assert!(matches!(find(&n2, &cookies[0]), Ok(Found::Missing)));
    let mut adopted = world.adopt("n2", dead);
    while !adopted.complete {
        adopted = world.adopt("n2", dead);
    }
    for (expected, cookie) in (101..).zip(&cookies[1..]) {
        assert_eq!((number(&n2, cookie), open(&n2, cookie).facts.copies), (Ok(expected), 2));
    }
}

#[test]
fn both_copies_are_under_way_at_once() {
    let world = World::slow(2, 1, 2, 2000, FAST);
    let host = world.host("n1");
    let (cookie, _) = create(&host, 1);
    for server in ["s1", "s2"] {
        world.wire(server).set(latency(ms(40)));
    }
    // The machine may be busy: the best of some tries shows what is possible.
    let best = |work: &mut dyn FnMut()| (0..5).map(|_| timed(&mut *work)).min().unwrap();
    let took = best(&mut || assert_eq!(copies(&host, &cookie, 2), 2));
    assert!(took >= ms(40) && took < ms(70), "two pushes of 40 ms took {took:?}");
    let mut cookies: Vec<_> = (0..5).map(|number| create(&host, number).0).collect();
    let took = best(&mut || open(&host, &cookies.pop().unwrap()).destroy().unwrap());
    assert!(took >= ms(40) && took < ms(70), "two tombstones of 40 ms took {took:?}");
}

#[test]
fn copies_again_keep_many_pushes_under_way() {
    let mut world = World::slow(1, 1, 1, 2000, FAST);
    let host = world.host("n1");
    let count = 300;
    for number in 0..count {
        create(&host, number);
    }
    let delay = ms(10);
    world.slowness = Some(latency(delay));
    let one_by_one = delay * count as u32;
    let mut best = Duration::MAX;
    for (old, new) in [("s1", "s2"), ("s2", "s3"), ("s3", "s1")] {
        world.drop_server(old);
        world.add_server(new);
        world.publish();
        let began = Instant::now();
        let swept = world.sweep("n1");
        best = best.min(began.elapsed());
        assert_eq!((swept.copied, swept.complete), (count as u64, true));
        assert_eq!(world.wire(new).most_at_once(), 32, "a quarter of what a link takes");
    }
    println!("{count} sessions over a link of {delay:?}: {best:?}, one by one {one_by_one:?}");
    assert!(best < one_by_one / 4, "{best:?}");
}

#[test]
fn a_sweep_that_loses_one_session_goes_on_with_the_others() {
    let mut world = World::slow_with(1, 1, 1, "wait_ms = 5000\nlock_hold_ms = 100", FAST);
    let host = world.host("n1");
    let cookies: Vec<_> = (0..20).map(|number| create(&host, number).0).collect();
    world.slowness = Some(HELD);
    world.drop_server("s1");
    world.add_server("s2");
    world.publish();
    let wire = world.wire("s2");
    let swept = std::thread::scope(|scope| {
        let sweeping = scope.spawn(|| world.sweep("n1"));
        while wire.most_at_once() < cookies.len() {
            std::thread::sleep(ms(1));
        }
        // A request waits for one of them until its lock is overdue, and takes it from the sweep.
        drop(open(&host, &cookies[3]));
        wire.set(FAST);
        sweeping.join().unwrap()
    });
    assert_eq!((swept.copied, swept.complete), (cookies.len() as u64 - 1, false));
    let gone = host.cache.quarantined();
    assert_eq!(gone.len(), 1, "what was posted for it may still arrive: {gone:?}");
}

#[test]
fn an_adoption_that_finds_sessions_without_copies_has_them_copied() {
    let mut world = World::slow(1, 2, 1, 100, FAST);
    let (n1, n2) = (world.host("n1"), world.host("n2"));
    create(&n1, 1);
    let dead = world.end_node("n1");
    world.wire("s1").cut();
    n2.watch_links();
    assert!(!world.adopt("n2", dead).complete, "there is no link for its copy");
    let unprotected = || n2.cache.unprotected();
    // The sweep that was due then may have been before the session came into the cache.
    let before = unprotected();
    assert!(!world.adopt("n2", dead).complete);
    assert!(unprotected() > before, "only a sweep makes its copies, and somebody must ask for it");
}

#[test]
fn a_link_that_is_full_is_waited_for() {
    let world = World::slow(1, 1, 1, 5000, FAST);
    let host = world.host("n1");
    let cookies: Vec<_> = (0..4).map(|number| create(&host, number).0).collect();
    world.wire("s1").set(Slowness { latency: ms(5), depth: 1, ..FAST });
    std::thread::scope(|scope| {
        for cookie in &cookies {
            scope.spawn(|| assert_eq!(copies(&host, cookie, 9), 1));
        }
    });
    assert!(host.cache.quarantined().is_empty());
    assert_eq!(world.wire("s1").most_at_once(), 1);
}

#[test]
fn a_server_that_leaves_the_view_is_not_waited_for() {
    let mut world = World::slow(2, 1, 2, 20_000, FAST);
    let host = world.host("n1");
    let (cookie, _) = create(&host, 1);
    world.wire("s1").set(HELD);
    let began = Instant::now();
    let committed = std::thread::scope(|scope| {
        let commit = scope.spawn(|| change(&host, &cookie, 2).unwrap());
        std::thread::sleep(ms(50));
        world.drop_server("s1");
        world.publish();
        commit.join().unwrap()
    });
    assert_eq!(committed.copies, 1);
    assert!(began.elapsed() < ms(1000), "{:?}", began.elapsed());
}

/// A server of the old id's that dies after the new id was acked: the session has its new id, and says so.
#[test]
fn a_new_id_is_in_force_although_the_old_ones_tombstone_is_late() {
    let world = World::slow(3, 1, 2, 50, FAST);
    let host = world.host("n1");
    let at_s1 = |id| host.plan().places_of(id).any(|(server, _)| server.name == "s1");
    let old = (0..200).map(|_| create(&host, 1).0).find(|cookie| at_s1(cookie.id)).unwrap();
    let mut session = open(&host, &old);
    let wire = world.wire("s1");
    wire.set(HELD);
    // A new id that falls to s1 cannot be made safe, and the old one stays, until one falls to the others.
    for _ in 0..60 {
        assert_eq!(session.regenerate().unwrap_err().kind, ErrorKind::Timeout);
        assert_eq!(session.needs_cookie, session.facts.id != old.id);
        if session.needs_cookie {
            break;
        }
    }
    assert!(session.needs_cookie && !at_s1(session.facts.id));
    let new = Cookie { id: session.facts.id, host: host.incarnation() };
    assert_eq!((session.facts.copies, session.get("n")), (2, Some(ValueRef::I64(1))));
    drop(session);
    assert_eq!(number(&host, &new), Ok(1));
    wire.set(FAST);
    assert!(host.open_links(true));
    assert_eq!(number(&host, &old), Err("missing".into()));
}

#[test]
fn a_lost_link_leaves_the_plan_says_why_and_comes_back() {
    let world = World::slow(1, 1, 1, 5000, FAST);
    let host = world.host("n1");
    let (cookie, _) = create(&host, 1);
    let mut keeper = LinkKeeper::default();
    let report = |keeper: &mut LinkKeeper| keeper.report(&host.plan(), 0).remove(0);
    assert_eq!(report(&mut keeper).detail, "a slow wire");
    let wire = world.wire("s1");
    wire.set(HELD);
    let began = Instant::now();
    let committed = std::thread::scope(|scope| {
        let commit = scope.spawn(|| change(&host, &cookie, 2).unwrap());
        std::thread::sleep(ms(20));
        wire.cut();
        commit.join().unwrap()
    });
    assert_eq!((committed.copies, committed.short), (0, Some(Short::Servers)));
    assert!(began.elapsed() < ms(1000), "{:?}", began.elapsed());
    let lost = report(&mut keeper);
    assert_eq!((lost.transport, lost.detail.as_str()), (None, "the connection has failed"));
    assert!(wire.is_abandoned(), "the server is not told to destroy its end");
    // Nobody waits for it, and no slot is spent on it.
    assert_eq!(copies(&host, &cookie, 3), 0);
    assert_eq!(host.cache.quarantined().len(), 1);
    assert!(host.open_links(true));
    let swept = world.sweep("n1");
    assert_eq!((swept.copied, open(&host, &cookie).facts.copies), (1, 1));
    // The process lives on; the server has destroyed that link, and its slot is free again.
    assert_eq!(host.cache.quarantined().len(), 0);
}

#[test]
fn a_link_that_breaks_while_nobody_uses_it_is_noticed() {
    let world = World::slow(2, 1, 2, 5000, FAST);
    let host = world.host("n1");
    let failed = |server: &str| {
        let plan = host.plan();
        let (_, link) = plan.links().find(|(entry, _)| entry.name == server).unwrap();
        matches!(link, LinkState::Failed(_))
    };
    world.wire("s1").cut();
    host.watch_links();
    assert!(failed("s1") && !failed("s2"));
    // A server process that dies takes its end of the lifeline with it.
    world.wire("s2").hang_up();
    host.watch_links();
    assert!(failed("s2"));
    assert!(host.open_links(true));
}

/// The zombie learns it by asking: within milliseconds, and from no hardware's word.
#[test]
fn a_revoked_node_asks_and_stops_acking() {
    let mut fastest = Duration::MAX;
    for _ in 0..5 {
        let world = World::slow(2, 1, 2, 5000, FAST);
        let host = world.host("n1");
        let (cookie, _) = create(&host, 1);
        // Its view does not know yet that this incarnation is over; one server has sealed by it.
        let mut keeper = LinkKeeper::default();
        let (bell, rung) = std::sync::mpsc::channel();
        host.set_alarm(move || {
            let _ = bell.send(());
        });
        world.on_server("s1", |server| server.seal(host.incarnation()));
        let began = Instant::now();
        let committed = change(&host, &cookie, 2).unwrap();
        assert_eq!(committed.copies, 1, "the other server's ack counts: its seal finds it");
        rung.recv_timeout(ms(1000)).unwrap();
        keeper.tend(&host, true);
        while !host.cache.is_poisoned() {
            assert!(began.elapsed() < ms(1000), "the node does not notice");
            std::thread::yield_now();
        }
        fastest = fastest.min(began.elapsed());
        keeper.join();
        assert_eq!(find(&host, &cookie).map(|_| ()).unwrap_err().kind, ErrorKind::OwnershipLost);
    }
    println!("from the zombie's commit to the end of its acks: {fastest:?}");
    assert!(fastest < ms(20), "{fastest:?}");
}

#[test]
fn a_revoked_link_of_a_dying_server_ends_nothing() {
    let world = World::slow(2, 1, 2, 5000, FAST);
    let host = world.host("n1");
    let (cookie, _) = create(&host, 1);
    world.on_server("s1", |server| {
        server.set_seal_word(host.incarnation());
        server.is_down = true;
    });
    assert_eq!(copies(&host, &cookie, 2), 1);
    assert!(!host.open_links(true));
    assert!(!host.cache.is_poisoned());
    assert_eq!(copies(&host, &cookie, 3), 1);
}

struct StopAtEnd<'a>(&'a Finisher);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.stop(ms(1000));
    }
}

#[test]
fn a_commit_that_must_not_wait_is_finished_by_the_thread_that_does() {
    let world = World::slow(2, 1, 2, 5000, FAST);
    let host = world.host("n1");
    let cookies: Vec<_> = (0..50).map(|number| create(&host, number).0).collect();
    for server in ["s1", "s2"] {
        world.wire(server).set(latency(ms(200)));
    }
    let finisher = Finisher::default();
    let (done, ended) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        // Also when an assertion fails: the scope waits for the finisher's thread.
        let _stop = StopAtEnd(&finisher);
        let began = Instant::now();
        for (op, cookie) in (1..).zip(&cookies) {
            let mut session = open(&host, cookie);
            session.incr("n", 1000).unwrap();
            let before = Instant::now();
            let Commit::UnderWay(under_way) = session.commit_now().unwrap() else {
                panic!("200 ms have not passed yet")
            };
            assert!(before.elapsed() < ms(100), "the caller was kept {:?}", before.elapsed());
            let commit = finisher::Commit { op: OpId(op), user_data: op * 2, under_way, session };
            let start = || {
                let (finisher, done) = (&finisher, done.clone());
                scope.spawn(move || finisher.run(|op, data, end| drop(done.send((op, data, end)))));
                true
            };
            assert!(finisher.take(commit, start).is_none());
        }
        let mut ops: Vec<u64> = Vec::new();
        for _ in &cookies {
            let (op, user_data, end) = ended.recv_timeout(ms(5000)).unwrap();
            let Ended::Committed(_, committed) = end else { panic!("not a commit's end") };
            assert_eq!((committed.unwrap().copies, user_data), (2, op.0 * 2));
            ops.push(op.0);
        }
        let took = began.elapsed();
        assert!(took < ms(200) * cookies.len() as u32 / 4, "one after the other: {took:?}");
        ops.sort_unstable();
        assert_eq!(ops, (1..=50).collect::<Vec<_>>());
    });
    for (expected, cookie) in (1000..).zip(&cookies) {
        assert_eq!(number(&host, cookie), Ok(expected));
    }
}

#[test]
fn commits_under_way_are_given_up_when_the_process_leaves() {
    let world = World::slow(1, 1, 1, 20_000, FAST);
    let host = world.host("n1");
    let (cookie, _) = create(&host, 1);
    world.wire("s1").set(HELD);
    let finisher = Finisher::default();
    std::thread::scope(|scope| {
        let mut session = open(&host, &cookie);
        session.incr("n", 1).unwrap();
        let Commit::UnderWay(under_way) = session.commit_now().unwrap() else { panic!("nothing acks") };
        let commit = finisher::Commit { op: OpId(1), user_data: 0, under_way, session };
        let start = || {
            scope.spawn(|| finisher.run(|_, _, _| panic!("nothing has ended")));
            true
        };
        assert!(finisher.take(commit, start).is_none());
        let began = Instant::now();
        finisher.stop(ms(5000));
        assert!(began.elapsed() < ms(1000), "{:?}", began.elapsed());
    });
    // What it left open is in quarantine, and the session is free.
    assert_eq!(host.cache.quarantined().len(), 1);
    assert_eq!(number(&host, &cookie), Ok(2));
}

#[test]
fn an_asynchronous_open_leaves_a_touch_to_a_thread_that_may_wait() {
    use crate::node::OpenMode;
    use crate::node::open::{Step, begin, granted, must_block};
    let world = World::slow(1, 1, 1, 5000, FAST);
    let host = world.host("n1");
    let (cookie, _) = create(&host, 1);
    let found = |step| matches!(step, Ok(Step::Found(Found::Session(_))));
    for mode in [OpenMode::Exclusive, OpenMode::ReadOnly] {
        assert!(found(begin(&host, &cookie, mode, false)));
    }
    world.clock.advance_ms(host.touch_step_ms() + 1000);
    world.mandate("n1");
    for mode in [OpenMode::Exclusive, OpenMode::ReadOnly] {
        assert!(matches!(begin(&host, &cookie, mode, false), Ok(Step::Slow)), "{mode:?}");
    }
    let crate::cache::Opened::Granted(hold) = host.cache.open_exclusive(&cookie.id).unwrap() else {
        panic!("nobody else has it")
    };
    assert!(must_block(&host, &hold).unwrap());
    let touched = granted(&host, &cookie, OpenMode::Exclusive, hold, true).unwrap();
    let Some(Found::Session(session)) = touched else { panic!("it lives") };
    assert_eq!((session.facts.version.counter, session.facts.copies), (2, 1));
}

/// The steward is stopped, its node was declared dead, and nobody commits.
#[test]
fn a_process_that_is_not_steward_learns_the_end_by_asking_when_the_mandate_has_run_out() {
    let world = World::slow(2, 1, 2, 1000, FAST);
    let (steward, process) = (world.host("n1"), world.add_process("n1"));
    create(&steward, 1);
    let mut keeper = LinkKeeper::default();
    for server in ["s1", "s2"] {
        world.on_server(server, |server| server.log.clear());
    }
    keeper.tend(&process, false);
    world.clock.advance_ms(world.config.timing.mandate_ms);
    keeper.tend(&process, false);
    keeper.join();
    assert!(!process.cache.is_poisoned(), "the director may be away, that ends nothing");
    let asked = |server| world.on_server(server, |server| server.log.len());
    assert_eq!((asked("s1"), asked("s2")), (1, 0), "one answer is enough, and only without a mandate");
    world.on_server("s1", |server| server.is_down = true);
    world.on_server("s2", |server| server.seal(process.incarnation()));
    let mut keeper = LinkKeeper::default();
    keeper.tend(&process, false);
    keeper.join();
    assert!(process.cache.is_poisoned());
}

#[test]
fn a_server_that_cannot_be_reached_is_tried_at_once_and_then_less_and_less() {
    let world = World::slow(1, 1, 1, 1000, FAST);
    let host = world.host("n1");
    world.on_server("s1", |server| (server.is_down, server.openings) = (true, 0));
    world.wire("s1").cut();
    let mut keeper = LinkKeeper::default();
    let began = Instant::now();
    while began.elapsed() < ms(400) {
        keeper.tend(&host, true);
        std::thread::sleep(ms(1));
    }
    // At 0, 20, 60, 140 and 300 ms, or later.
    let openings = world.on_server("s1", |server| server.openings);
    assert!((2..=5).contains(&openings), "{openings}");
    world.on_server("s1", |server| server.is_down = false);
    let began = Instant::now();
    while !host.plan().is_linked() {
        keeper.tend(&host, true);
        assert!(began.elapsed() < ms(5000), "it is not opened again");
        std::thread::sleep(ms(1));
    }
    keeper.join();
}
