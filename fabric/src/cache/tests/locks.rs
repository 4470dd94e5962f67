//! Session locks: order, bound, release by death, revocation.

use super::*;
use crate::limits;

#[test]
fn the_lock_goes_round_in_order_and_the_queue_is_bounded() {
    let cache = Cache::anonymous(&spec()).unwrap();
    let other = cache.sibling().unwrap();
    let first = insert(&cache, 1, 1, 10);
    assert!(matches!(cache.try_exclusive(&id(1)).unwrap(), Opened::Busy));
    let mut queue = vec![
        waiting(other.open_exclusive(&id(1)).unwrap()),
        waiting(cache.open_exclusive(&id(1)).unwrap()),
        waiting(other.open_exclusive(&id(1)).unwrap()),
    ];
    assert!(matches!(cache.open_exclusive(&id(1)).unwrap(), Opened::Busy), "waiters_max is 3");
    let bell = other.doorbell();
    drop(first);
    assert_ne!(other.doorbell(), bell);
    // One in the middle gives up.
    assert_eq!(queue[1].wait(Instant::now()).unwrap(), Waited::Timeout);
    drop(queue.remove(1));
    while !queue.is_empty() {
        let states: Vec<_> = queue.iter().map(Hold::state).collect();
        assert_eq!(states[0], HoldState::Granted);
        assert!(states[1..].iter().all(|state| *state == HoldState::Waiting));
        assert!(matches!(cache.try_exclusive(&id(1)).unwrap(), Opened::Busy));
        drop(queue.remove(0));
    }
    drop(granted(cache.try_exclusive(&id(1)).unwrap()));
    sound(&cache);
}

#[test]
fn threads_change_one_session_one_after_the_other() {
    let cache = Cache::anonymous(&CacheSpec { waiters_max: 8, ..spec() }).unwrap();
    insert(&cache, 1, 0, 8).release();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let cache = cache.sibling().unwrap();
            scope.spawn(move || {
                for _ in 0..500 {
                    let mut hold = match cache.open_exclusive(&id(1)).unwrap() {
                        Opened::Granted(hold) => hold,
                        Opened::Waiting(hold) => {
                            let deadline = Instant::now() + Duration::from_secs(30);
                            assert_eq!(hold.wait(deadline).unwrap(), Waited::Granted);
                            hold
                        }
                        _ => panic!("four threads fit into the queue"),
                    };
                    let value = u64::from_le_bytes(hold.bytes().try_into().unwrap()) + 1;
                    hold.stage(8).unwrap().copy_from_slice(&value.to_le_bytes());
                    hold.publish(version(value), value).unwrap();
                }
            });
        }
    });
    let pin = cache.open_read(&id(1)).unwrap().unwrap();
    assert_eq!(pin.bytes(), 2000u64.to_le_bytes());
    drop(pin);
    sound(&cache);
}

#[test]
fn a_holder_that_dies_is_followed_within_100_ms() {
    let cache = Cache::anonymous(&spec()).unwrap();
    let victim = cache.sibling().unwrap();
    insert(&cache, 1, 1, 10).release();
    let mut hold = granted(victim.open_exclusive(&id(1)).unwrap());
    hold.stage(500).unwrap();
    let dead_waiter_hold = waiting(victim.open_exclusive(&id(1)).unwrap());
    let pin = victim.open_read(&id(1)).unwrap().unwrap();
    let next = waiting(cache.open_exclusive(&id(1)).unwrap());
    let (waited, took) = std::thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            let start = Instant::now();
            (next.wait(start + Duration::from_secs(10)).unwrap(), start.elapsed())
        });
        std::thread::sleep(Duration::from_millis(5));
        victim.clone().kill();
        drop((hold, dead_waiter_hold, pin));
        waiter.join().unwrap()
    });
    assert_eq!(waited, Waited::Granted);
    assert!(took < Duration::from_millis(105), "{took:?}");
    drop(next);
    sound(&cache);
    assert_eq!(cache.processes().len(), 1);
}

#[test]
fn a_dead_shard_holder_is_taken_over() {
    let cache = Cache::anonymous(&spec()).unwrap();
    insert(&cache, 1, 1, 10).release();
    let victim = cache.sibling().unwrap();
    let guard = victim.inner.lock_shard(super::super::shard::shard_of(&id(1))).unwrap();
    // It died in the middle of something: the chain is gone.
    victim.inner.segment.heads.as_slice().iter().for_each(|head| head.write(0));
    std::mem::forget(guard);
    victim.clone().kill();
    assert!(cache.open_read(&id(1)).unwrap().is_some(), "found again after repair");
    sound(&cache);
}

#[test]
fn a_stopped_shard_holder_is_an_error_in_bounded_time_and_releases_are_made_up_for() {
    let cache = Cache::anonymous(&spec()).unwrap();
    let hold = insert(&cache, 1, 1, 10);
    let stopped = cache.sibling().unwrap();
    let guard = stopped.inner.lock_shard(super::super::shard::shard_of(&id(1))).unwrap();
    let start = Instant::now();
    let error = cache.find(&id(1)).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Timeout);
    assert!(start.elapsed() < limits::SHARD_WAIT + Duration::from_secs(2));
    assert!(error.to_string().contains(&std::process::id().to_string()));
    drop(hold);
    drop(guard);
    assert!(cache.find(&id(1)).unwrap().unwrap().locked, "the release is still to come");
    // The next release of anything makes up for it.
    insert(&cache, 2, 1, 10).release();
    assert!(!cache.find(&id(1)).unwrap().unwrap().locked);
    sound(&cache);
}

#[test]
fn a_lock_held_too_long_is_revoked_when_somebody_waits() {
    let cache = Cache::anonymous(&CacheSpec { lock_hold_ms: 30, ..spec() }).unwrap();
    let mut slow = insert(&cache, 1, 1, 10);
    std::thread::sleep(Duration::from_millis(60));
    write(&mut slow, 2, 2, 10);
    assert_eq!(slow.state(), HoldState::Granted, "nobody waits, so nobody minds");
    let mut next = waiting(cache.open_exclusive(&id(1)).unwrap());
    assert_eq!(next.wait(Instant::now() + Duration::from_secs(5)).unwrap(), Waited::Granted);
    assert_eq!(slow.state(), HoldState::Revoked);
    let before = slow.bytes().as_ptr();
    write(&mut next, 3, 3, 10);
    assert_eq!((slow.bytes(), slow.bytes().as_ptr()), (&[2; 10][..], before), "what it reads stays");
    assert_eq!(slow.check().unwrap_err().kind, ErrorKind::LockLost);
    assert_eq!(slow.stage(10).unwrap_err().kind, ErrorKind::LockLost);
    assert_eq!(slow.publish(version(9), 9).unwrap_err().kind, ErrorKind::LockLost);
    drop(slow);
    assert_eq!(next.state(), HoldState::Granted);
    assert_eq!(next.bytes(), [3; 10]);
    drop(next);
    sound(&cache);
}

#[test]
fn a_lock_that_is_given_back_goes_to_the_next_and_leaves_what_was_seen() {
    let cache = Cache::anonymous(&CacheSpec { lock_hold_ms: 30, ..spec() }).unwrap();
    let mut first = insert(&cache, 1, 1, 10);
    let next = waiting(cache.open_exclusive(&id(1)).unwrap());
    first.stage(500).unwrap();
    first.demote().unwrap();
    assert_eq!((first.state(), next.state()), (HoldState::Pinned, HoldState::Granted));
    assert_eq!(first.check().unwrap_err().kind, ErrorKind::Invalid);
    assert_eq!(first.publish(version(9), 9).unwrap_err().kind, ErrorKind::LockLost);
    // It is nobody to be waited for, and nobody to be revoked.
    let mut next = next;
    write(&mut next, 2, 2, 10);
    assert_eq!((first.bytes(), next.bytes()), (&[1; 10][..], &[2; 10][..]));
    // A lock that was revoked is a view for reading as well.
    std::thread::sleep(Duration::from_millis(60));
    let last = waiting(cache.open_exclusive(&id(1)).unwrap());
    assert_eq!(last.wait(Instant::now() + Duration::from_secs(5)).unwrap(), Waited::Granted);
    next.demote().unwrap();
    assert_eq!((next.state(), next.bytes()), (HoldState::Pinned, &[2; 10][..]));
    assert!(matches!(cache.try_exclusive(&id(1)).unwrap(), Opened::Busy));
    drop(last);
    drop(granted(cache.try_exclusive(&id(1)).unwrap()));
    drop((first, next));
    sound(&cache);
}

#[test]
fn process_slots_are_bounded_and_come_back() {
    let cache = Cache::anonymous(&spec()).unwrap();
    let others: Vec<_> = (1..8).map(|_| cache.sibling().unwrap()).collect();
    assert_eq!(cache.sibling().err().unwrap().kind, ErrorKind::Busy);
    let victim = others.last().unwrap();
    let before = victim.process();
    std::mem::forget(insert(victim, 5, 1, 10));
    victim.clone().kill();
    // The next process in the slot repairs after the one before.
    let heir = cache.sibling().unwrap();
    assert_eq!(heir.process().slot, before.slot);
    assert_ne!(heir.process().generation, before.generation);
    assert!(!cache.find(&id(5)).unwrap().unwrap().locked);
    drop(others);
    drop(heir);
    assert_eq!(cache.processes().len(), 1);
    sound(&cache);
}

#[test]
fn a_process_cannot_open_more_than_its_share() {
    let cache = Cache::anonymous(&spec()).unwrap();
    insert(&cache, 1, 1, 10).release();
    let mut pins: Vec<_> =
        (0..limits::HOLDS_PER_PROCESS).map(|_| cache.open_read(&id(1)).unwrap().unwrap()).collect();
    assert_eq!(cache.open_read(&id(1)).err().unwrap().kind, ErrorKind::Busy);
    pins.pop();
    drop(cache.open_read(&id(1)).unwrap().unwrap());
    drop(pins);
    sound(&cache);
}
