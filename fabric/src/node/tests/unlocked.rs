//! Handles without the lock: what they see, what their commits merge, and how they end.

use super::world::{World, change, create, number, open};
use crate::archive::{Value, ValueRef};
use crate::error::{ErrorKind, Result};
use crate::ident::Cookie;
use crate::node::host::Host;
use crate::node::open::{self, Found, OpenSession};
use crate::node::{Ack, OpenMode, Short};
use crate::numbers::NodeCounter;
use std::sync::Arc;
use std::time::{Duration, Instant};

fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(5)
}

fn unlocked(host: &Arc<Host>, cookie: &Cookie) -> OpenSession {
    match open::blocking(host, cookie, OpenMode::Unlocked, deadline()).unwrap() {
        Found::Session(session) => session,
        Found::Missing => panic!("missing"),
        Found::Elsewhere(node) => panic!("elsewhere: {node:?}"),
    }
}

fn kind<T>(result: Result<T>) -> Option<ErrorKind> {
    result.err().map(|error| error.kind)
}

fn commits(host: &Host) -> u64 {
    host.cache.counters()[NodeCounter::Commits as usize]
}

#[test]
fn changes_of_two_attributes_and_all_increments_are_kept() {
    let mut world = World::new(2, 2, 2);
    let host = world.host("n1");
    let (cookie, _) = create(&host, 10);
    let (mut one, mut two) = (unlocked(&host, &cookie), unlocked(&host, &cookie));
    one.set("one", Value::Bool(true)).unwrap();
    two.set("two", Value::Text("x".into())).unwrap();
    assert_eq!((one.incr("n", 1).unwrap(), two.incr("n", 2).unwrap()), (11, 12));
    assert_eq!((one.incr("n", 1).unwrap(), two.incr("new", 5).unwrap()), (12, 5));
    one.set_owner(Some("eve")).unwrap();
    let first = one.commit(Ack::All).unwrap();
    assert_eq!((first.copies, first.short), (2, None));
    assert_eq!((one.get("n"), one.get("two")), (Some(ValueRef::I64(12)), None));
    // Neither has the lock now: a third request gets it at once.
    assert_eq!(change(&host, &cookie, 100).unwrap().copies, 2);
    let second = two.commit(Ack::All).unwrap();
    assert!(second.version > first.version);
    // It sees what the others did, beside its own.
    assert_eq!((two.get("n"), two.get("one")), (Some(ValueRef::I64(102)), Some(ValueRef::Bool(true))));
    assert_eq!((two.owner(), two.facts.version), (Some("eve"), second.version));
    // And goes on from there.
    assert_eq!(two.incr("n", 1).unwrap(), 103);
    two.commit(Ack::All).unwrap();
    drop((one, two));
    world.end_node("n1");
    let session = open(&world.host("n2"), &cookie);
    assert_eq!((session.get("n"), session.get("new")), (Some(ValueRef::I64(103)), Some(ValueRef::I64(5))));
    assert_eq!(
        (session.get("one"), session.get("two")),
        (Some(ValueRef::Bool(true)), Some(ValueRef::Text("x")))
    );
}

#[test]
fn an_unlocked_handle_reads_and_changes_while_another_has_the_lock() {
    let world = World::new(1, 1, 1);
    let host = world.host("n1");
    let (cookie, _) = create(&host, 1);
    let mut locked = open(&host, &cookie);
    let mut session = unlocked(&host, &cookie);
    assert_eq!(session.get("n"), Some(ValueRef::I64(1)));
    session.incr("n", 1).unwrap();
    // The lock is not to be had in time: nothing is changed, and the changes are still there.
    assert_eq!(kind(session.commit(Ack::All)), Some(ErrorKind::Timeout));
    assert_eq!(session.get("n"), Some(ValueRef::I64(2)));
    locked.set("n", Value::I64(50)).unwrap();
    locked.commit(Ack::All).unwrap();
    assert_eq!(session.get("n"), Some(ValueRef::I64(2)), "it sees its own version until it commits");
    drop(locked);
    session.commit(Ack::All).unwrap();
    assert_eq!(session.get("n"), Some(ValueRef::I64(51)));
    assert_eq!(number(&host, &cookie), Ok(51));
}

#[test]
fn the_last_one_who_sets_or_removes_wins_by_attribute() {
    let world = World::new(1, 1, 1);
    let host = world.host("n1");
    let (cookie, _) = create(&host, 1);
    let (mut one, mut two) = (unlocked(&host, &cookie), unlocked(&host, &cookie));
    one.set("a", Value::I64(1)).unwrap();
    one.set("b", Value::I64(1)).unwrap();
    two.set("a", Value::I64(2)).unwrap();
    // It is not there yet in what this one sees, and yet it shall be gone.
    assert!(!two.remove("b").unwrap());
    // Removed and added to: a new number, whatever there is.
    assert!(two.remove("n").unwrap());
    assert_eq!(two.incr("n", 7).unwrap(), 7);
    one.incr("n", 100).unwrap();
    one.commit(Ack::All).unwrap();
    two.commit(Ack::All).unwrap();
    assert_eq!((two.get("a"), two.get("b")), (Some(ValueRef::I64(2)), None));
    assert_eq!(number(&host, &cookie), Ok(7));
}

#[test]
fn what_another_has_set_meanwhile_is_removed_although_this_handle_never_saw_it() {
    let world = World::new(1, 1, 1);
    let host = world.host("n1");
    let (cookie, _) = create(&host, 1);
    let (mut one, mut two) = (unlocked(&host, &cookie), unlocked(&host, &cookie));
    two.set("token", Value::Bool(true)).unwrap();
    let set = two.commit(Ack::All).unwrap();
    assert!(!one.remove("token").unwrap(), "it is not there yet in what this one sees");
    // Nothing else is changed, so that the removal alone must make it go on from the newest version.
    let removed = one.commit(Ack::All).unwrap();
    assert!(removed.version > set.version);
    assert_eq!(open(&host, &cookie).get("token"), None);
    assert_eq!(number(&host, &cookie), Ok(1));
}

#[test]
fn what_does_not_fit_to_the_newest_version_changes_nothing() {
    let world = World::new(1, 1, 1);
    let host = world.host("n1");
    let (cookie, _) = create(&host, 1);
    let (mut one, mut two) = (unlocked(&host, &cookie), unlocked(&host, &cookie));
    one.incr("n", 1).unwrap();
    one.set("other", Value::Bool(true)).unwrap();
    two.set("n", Value::Text("many".into())).unwrap();
    let text = two.commit(Ack::All).unwrap();
    assert_eq!(kind(one.commit(Ack::All)), Some(ErrorKind::WrongType));
    assert_eq!(one.get("n"), Some(ValueRef::I64(2)), "the handle is as it was");
    two.set("n", Value::I64(i64::MAX)).unwrap();
    let most = two.commit(Ack::All).unwrap();
    assert!(most.version > text.version);
    assert_eq!(kind(one.commit(Ack::All)), Some(ErrorKind::Invalid));
    // Limits are those of the merged session.
    let (mut left, mut right) = (unlocked(&host, &cookie), unlocked(&host, &cookie));
    left.set("left", Value::Bytes(vec![1; 40_000])).unwrap();
    right.set("right", Value::Bytes(vec![2; 40_000])).unwrap();
    left.commit(Ack::All).unwrap();
    assert_eq!(kind(right.commit(Ack::All)), Some(ErrorKind::TooLarge));
    assert!(right.get("left").is_some() && right.get("right").is_some(), "it sees what is in the way");
    assert!(right.remove("left").unwrap());
    right.commit(Ack::All).unwrap();
    let session = open(&host, &cookie);
    assert!(session.get("left").is_none() && session.get("right").is_some());
    assert_eq!((session.get("n"), session.get("other")), (Some(ValueRef::I64(i64::MAX)), None));
}

#[test]
fn without_changes_a_commit_waits_for_nobody_and_pushes_nothing() {
    let world = World::new(2, 1, 2);
    let host = world.host("n1");
    let (cookie, committed) = create(&host, 1);
    let mut session = unlocked(&host, &cookie);
    let locked = open(&host, &cookie);
    let before = commits(&host);
    assert!(!session.remove("nothing").unwrap());
    let nothing = session.commit(Ack::All).unwrap();
    assert_eq!((nothing.version, nothing.copies, nothing.short), (committed.version, 2, None));
    drop(locked);
    change(&host, &cookie, 2).unwrap();
    // What it sees is not current any more, so nobody keeps copies of that.
    let nothing = session.commit(Ack::All).unwrap();
    assert_eq!((nothing.version, nothing.copies), (committed.version, 0));
    assert_eq!(nothing.short, Some(Short::NotAwaited));
    assert_eq!(commits(&host), before + 1);
}

#[test]
fn a_session_that_has_ended_meanwhile_does_not_come_back() {
    let mut world = World::new(2, 2, 2);
    let host = world.host("n1");
    let gone = |session: &mut OpenSession| {
        session.incr("n", 1).unwrap();
        assert_eq!(kind(session.commit(Ack::All)), Some(ErrorKind::Gone));
        assert_eq!(kind(session.regenerate()), Some(ErrorKind::Gone));
        assert_eq!(session.get("n"), Some(ValueRef::I64(2)), "it can still be read");
    };
    // Destroyed by another.
    let (cookie, _) = create(&host, 1);
    let mut session = unlocked(&host, &cookie);
    open(&host, &cookie).destroy().unwrap();
    gone(&mut session);
    // By itself, and another still has it open.
    let (second, _) = create(&host, 1);
    let mut session = unlocked(&host, &second);
    unlocked(&host, &second).destroy().unwrap();
    gone(&mut session);
    assert_eq!(kind(session.destroy()), Some(ErrorKind::Gone));
    // It has another id: what was collected under the old one must not get into it (R15).
    let (old, _) = create(&host, 1);
    let mut session = unlocked(&host, &old);
    let mut other = unlocked(&host, &old);
    other.set("privilege", Value::Bool(true)).unwrap();
    other.regenerate().unwrap();
    other.commit(Ack::All).unwrap();
    let new = Cookie { id: other.facts.id, host: host.incarnation() };
    gone(&mut session);
    assert_eq!(number(&host, &new), Ok(1));
    // Its time is over.
    let (idle, _) = create(&host, 1);
    let mut session = unlocked(&host, &idle);
    world.clock.advance_ms(host.config.session.idle_s * 1000);
    gone(&mut session);
    // Its host is over.
    let (last, _) = create(&host, 1);
    let mut session = unlocked(&host, &last);
    session.incr("n", 1).unwrap();
    world.end_node("n1");
    assert_eq!(kind(session.commit(Ack::All)), Some(ErrorKind::OwnershipLost));
    let n2 = world.host("n2");
    for cookie in [cookie, second, old, idle] {
        assert_eq!(number(&n2, &cookie), Err("missing".into()));
    }
    assert_eq!(number(&n2, &last), Ok(1));
}

#[test]
fn regenerating_takes_the_newest_version_along() {
    let world = World::new(2, 1, 2);
    let host = world.host("n1");
    let (old, _) = create(&host, 1);
    let mut session = unlocked(&host, &old);
    session.incr("n", 1).unwrap();
    change(&host, &old, 10).unwrap();
    session.regenerate().unwrap();
    assert_eq!(session.get("n"), Some(ValueRef::I64(11)), "what was added is added to the newest");
    let new = Cookie { id: session.facts.id, host: host.incarnation() };
    assert_eq!(number(&host, &new), Ok(10), "uncommitted changes stay uncommitted, and the lock is free");
    session.commit(Ack::All).unwrap();
    assert_eq!(number(&host, &new), Ok(11));
    assert_eq!(number(&host, &old), Err("missing".into()));
}

#[test]
fn threads_and_processes_lose_no_update() {
    let world = World::with(2, 1, 2, "wait_ms = 20000");
    let hosts = [world.host("n1"), world.add_process("n1")];
    let (cookie, _) = create(&hosts[0], 0);
    std::thread::scope(|scope| {
        for thread in 0..6 {
            let host = &hosts[thread % 2];
            scope.spawn(move || {
                let own = format!("own{thread}");
                for round in 1..=40 {
                    let mode = if thread == 5 { OpenMode::Exclusive } else { OpenMode::Unlocked };
                    let found = open::blocking(host, &cookie, mode, deadline() + Duration::from_secs(15));
                    let Ok(Found::Session(mut session)) = found else { panic!() };
                    assert_eq!(session.incr(&own, 1).unwrap(), round);
                    session.incr("n", 1).unwrap();
                    session.commit(Ack::All).unwrap();
                }
            });
        }
    });
    let session = open(&hosts[1], &cookie);
    assert_eq!(session.get("n"), Some(ValueRef::I64(240)));
    for thread in 0..6 {
        assert_eq!(session.get(&format!("own{thread}")), Some(ValueRef::I64(40)));
    }
    drop(session);
    assert_eq!(hosts[0].cache.verify().unwrap(), Vec::<String>::new());
}
