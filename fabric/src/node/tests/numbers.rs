//! What operations count and time.

use super::world::{World, create, open};
use crate::archive::Value;
use crate::error::ErrorKind;
use crate::node::Ack;
use crate::numbers::{NodeCounter, NodeTime, SAMPLE};

#[test]
fn every_commit_is_counted_and_one_in_sixteen_is_timed_with_its_pushes() {
    let world = World::new(2, 1, 2);
    let host = world.host("n1");
    let (cookie, _) = create(&host, 1);
    let mut session = open(&host, &cookie);
    let commits = 2 * SAMPLE;
    for number in 1..commits {
        session.set("n", Value::I64(number as i64)).unwrap();
        session.commit(Ack::All).unwrap();
        // Without a change there is nothing to commit, to count or to time.
        session.commit(Ack::All).unwrap();
    }
    let numbers = host.cache.numbers();
    assert_eq!(numbers.counters[NodeCounter::Commits as usize], commits);
    assert_eq!(numbers.counters[NodeCounter::PayloadPushes as usize], 2 * commits);
    assert_eq!(numbers.counters[NodeCounter::ShortCommits as usize], 0);
    assert_eq!(numbers.times[NodeTime::Commit as usize].count(), 2);
    let pushes: u64 = numbers.pushes.iter().map(|(times, _)| times.count()).sum();
    assert_eq!(pushes, 4, "two commits, each to two servers: {:?}", numbers.pushes);
    assert_eq!(numbers.times[NodeTime::LockWait as usize].count(), 0, "nobody had to wait");
}

#[test]
fn fetches_claims_and_lost_links_are_counted() {
    let mut world = World::new(2, 2, 2);
    let cookie = create(&world.host("n1"), 7).0;
    world.end_node("n1");
    let n2 = world.host("n2");
    drop(open(&n2, &cookie));
    let numbers = n2.cache.numbers();
    assert_eq!(numbers.times[NodeTime::Fetch as usize].count(), 1);
    assert_eq!(numbers.counters[NodeCounter::Claims as usize], 1);
    assert_eq!(numbers.counters[NodeCounter::Adoptions as usize], 1);
    n2.count_error(&crate::error::Error::new(ErrorKind::Busy, crate::error::Origin::Node, "x"));
    assert_eq!(n2.cache.numbers().errors[ErrorKind::Busy as usize], 1);
}
