//! What processes count and time: sums over all of them, which outlive each.

use super::*;
use crate::numbers::{BUCKETS, NodeCounter, NodeTime, bucket_of};

#[test]
fn numbers_are_summed_over_processes_and_survive_them() {
    let cache = Cache::anonymous(&spec()).unwrap();
    let (killed, gone) = (cache.sibling().unwrap(), cache.sibling().unwrap());
    for (process, times) in [(&cache, 1), (&killed, 2), (&gone, 4)] {
        for _ in 0..times {
            process.count(NodeCounter::Commits, 3);
            process.count_error(ErrorKind::Full);
            process.observe(NodeTime::LockWait, 1000);
            process.observe_push(1, 500_000);
            process.count_failed_push(3);
        }
    }
    // A way that the segment has no room for counts nowhere.
    cache.observe_push(spec().ways(), 1);
    cache.count_failed_push(u32::MAX);
    let sums = cache.numbers();
    assert_eq!(sums.counters[NodeCounter::Commits as usize], 21);
    assert_eq!((sums.errors[ErrorKind::Full as usize], sums.errors.iter().sum()), (7, 7));
    let waits = &sums.times[NodeTime::LockWait as usize];
    assert_eq!((waits.counts[bucket_of(1000)], waits.count(), waits.sum_ns), (7, 7, 7000));
    let (pushes, failed) = &sums.pushes[1];
    assert_eq!((pushes.count(), pushes.sum_ns, *failed), (7, 3_500_000, 0));
    assert_eq!((sums.pushes.len(), sums.pushes[3].1), (spec().ways() as usize, 7));

    // One is killed, one leaves, and others come into their places: nothing falls, and they add to it.
    killed.kill();
    drop(gone);
    assert_eq!(cache.repair_dead().unwrap().len(), 1);
    assert_eq!(cache.numbers(), sums);
    let later: Vec<Cache> = (0..3).map(|_| cache.sibling().unwrap()).collect();
    assert_eq!(cache.numbers(), sums);
    assert_eq!(later[0].counted_here(NodeCounter::Commits), 6, "it goes on in the killed one's place");
    later.iter().for_each(|process| process.count(NodeCounter::Commits, 1));
    assert_eq!(cache.counters()[NodeCounter::Commits as usize], 24);
    sound(&cache);
}

#[test]
fn threads_of_one_process_lose_no_count() {
    let cache = Cache::anonymous(&spec()).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for ns in 0..10_000 {
                    cache.count(NodeCounter::Commits, 1);
                    cache.observe(NodeTime::Commit, ns * ns);
                }
            });
        }
    });
    let numbers = cache.numbers();
    let commits = &numbers.times[NodeTime::Commit as usize];
    assert_eq!((numbers.counters[NodeCounter::Commits as usize], commits.count()), (40_000, 40_000));
    assert_eq!(commits.sum_ns, 4 * (0..10_000_u64).map(|ns| ns * ns).sum::<u64>());
    sound(&cache);
}

/// A kill between the sum and the count leaves a sum that is too large; the other way round cannot be.
#[test]
fn verification_tells_numbers_that_cannot_be() {
    let complaints = |spoil: &dyn Fn(&Cache)| {
        let cache = Cache::anonymous(&spec()).unwrap();
        cache.observe(NodeTime::Fetch, 5000);
        spoil(&cache);
        cache.verify().unwrap().len()
    };
    fn words(cache: &Cache) -> &super::super::layout::Tally {
        &cache.inner.segment.tallies[0]
    }
    assert_eq!(complaints(&|_| ()), 0);
    assert_eq!(complaints(&|cache| words(cache).times[1].sum_ns.write(6000)), 0);
    assert_eq!(complaints(&|cache| words(cache).times[1].sum_ns.write(4000)), 1);
    assert_eq!(complaints(&|cache| words(cache).times[0].counts[BUCKETS - 1].write(1)), 1);
    assert_eq!(complaints(&|cache| words(cache).times[2].reserved[0].write(1)), 1);
    assert_eq!(complaints(&|cache| words(cache).errors[31].write(1)), 1);
    assert_eq!(
        complaints(&|cache| cache.inner.segment.tallies[5].counters[0].write(1)),
        1,
        "nobody was there"
    );
    assert_eq!(complaints(&|cache| cache.inner.segment.push_times[20].failed.write(1)), 1);
}

#[test]
fn the_use_of_a_lease_is_counted() {
    let cache = Cache::anonymous(&spec()).unwrap();
    let book = cache.activate_book("s1", Incarnation(9), 1, geometry()).unwrap();
    assert_eq!((cache.lease_size(book), cache.lease_bytes(book)), ((300, 2 << 20), 0));
    let mut hold = insert(&cache, 1, 7, 1000);
    let push = hold.begin_push(book, PushKind::Archive(1000)).unwrap();
    hold.end_push(&push, version(1), 1001).unwrap();
    assert_eq!((cache.places_at(book), cache.lease_bytes(book)), (1, 1024));
    let named: u32 = {
        let book = cache.inner.book(book);
        book.heap
            .iter(book.heap_size())
            .map(|(block, _, _)| book.heap.block_units(book.heap_size(), block))
            .sum()
    };
    assert_eq!(u64::from(named) * 256, cache.lease_bytes(book));
}
