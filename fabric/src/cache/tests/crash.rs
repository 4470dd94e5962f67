//! `kill -9` between any two stores of everything that a process does with sessions, and of the repair after
//! it.

use super::super::crash;
use super::*;
use std::cell::Cell;

const SERVER: Incarnation = Incarnation(70);

fn small() -> CacheSpec {
    CacheSpec { sessions_max: 16, books: 2, cache_bytes: 2 << 20, ..spec() }
}

/// What the victim has done for sure when it dies.
#[derive(Default)]
struct Progress {
    /// Newest version of session 1 whose publication has returned; and whether its removal has.
    version: Cell<u64>,
    removed: Cell<bool>,
    /// Version of session 1 whose push has returned.
    acked: Cell<u64>,
    /// Whether session 2 was published.
    second: Cell<bool>,
    /// Whether session 4 is gone for session 5, and whether that one is gone, too.
    passed: Cell<bool>,
    ended: Cell<bool>,
}

fn change(hold: &mut Hold, book: BookIndex, counter: u64, progress: &Progress) {
    // Bytes and length say the version.
    write(hold, counter, counter as u8, 600 + counter as usize);
    progress.version.set(counter);
    let push = hold.begin_push(book, PushKind::Archive(600 + counter as u32)).unwrap();
    hold.end_push(&push, version(counter), counter).unwrap();
    progress.acked.set(counter);
}

/// The victim's whole life with session 1 (which exists at version 1) and 2. `meanwhile` is what others do.
fn life(victim: &Cache, book: BookIndex, progress: &Progress, meanwhile: impl FnOnce()) {
    let mut hold = granted(victim.open_exclusive(&id(1)).unwrap());
    meanwhile();
    let first = victim.open_read(&id(1)).unwrap().unwrap();
    change(&mut hold, book, 2, progress);
    let second = victim.open_read(&id(1)).unwrap().unwrap();
    change(&mut hold, book, 3, progress);
    assert_eq!((first.bytes().len(), second.bytes().len()), (601, 602));
    drop(first);
    drop(second);
    hold.touch(version(4), 4).unwrap();
    let touch = hold.begin_push(book, PushKind::Touch).unwrap();
    hold.end_push(&touch, version(4), 4).unwrap();
    progress.acked.set(4);

    let Inserted::Granted(mut other) = victim.insert(&id(2), EntryInit::default()).unwrap() else { panic!() };
    change(&mut other, book, 2, &Progress::default());
    progress.second.set(true);
    other.stage(5000).unwrap();
    let open = other.begin_push(book, PushKind::Archive(5000)).unwrap();
    other.cancel_push(&open).unwrap();
    let open = other.begin_push(book, PushKind::Archive(5000)).unwrap();
    other.abandon_push(&open, None).unwrap();
    drop(other);

    hold.remove(version(5)).unwrap();
    progress.removed.set(true);
    let bare = hold.begin_push(book, PushKind::Bare).unwrap();
    hold.end_push(&bare, version(5), 5).unwrap();
    hold.free_place(bare.place).unwrap();
    drop(hold);
    let Inserted::Granted(unpublished) = victim.insert(&id(3), EntryInit::default()).unwrap() else {
        panic!()
    };
    drop(unpublished);
}

/// The victim's life with session 4, which is given the id of session 5, and with that one.
fn passing(victim: &Cache, progress: &Progress) {
    let (mut old, mut new) = (insert(victim, 4, 4, 10), insert(victim, 5, 5, 20));
    old.remove_graced(version(2), &mut new, 99).unwrap();
    progress.passed.set(true);
    let reader = victim.open_graced(&id(4)).unwrap().unwrap();
    assert_eq!((reader.bytes(), reader.expiry_ms()), (&[4; 10][..], 99));
    // Neither has its lock any more, and both go on reading.
    new.demote().unwrap();
    old.demote().unwrap();
    let mut changed = granted(victim.open_exclusive(&id(5)).unwrap());
    write(&mut changed, 2, 6, 30);
    assert_eq!((new.bytes(), old.bytes()), (&[5; 20][..], &[4; 10][..]));
    drop((new, old));
    changed.remove(version(3)).unwrap();
    progress.ended.set(true);
    assert!(victim.open_graced(&id(4)).unwrap().is_none());
    drop((changed, reader));
}

struct World {
    cache: Cache,
    book: BookIndex,
    victim: Cache,
    progress: Progress,
    waiter: Cell<Option<Hold>>,
}

impl World {
    fn new() -> Self {
        let cache = Cache::anonymous(&small()).unwrap();
        let book = cache.activate_book("s1", SERVER, 1, geometry()).unwrap();
        let mut hold = insert(&cache, 1, 1, 601);
        let push = hold.begin_push(book, PushKind::Archive(601)).unwrap();
        hold.end_push(&push, version(1), 1).unwrap();
        drop(hold);
        let victim = cache.sibling().unwrap();
        let progress = Progress::default();
        progress.version.set(1);
        progress.acked.set(1);
        Self { cache, book, victim, progress, waiter: Cell::new(None) }
    }

    /// The victim lives, and dies at a point; false if it died before its end.
    fn live(&self, after: u32) -> bool {
        let meanwhile = || {
            let queue = || self.waiter.set(Some(waiting(self.cache.open_exclusive(&id(1)).unwrap())));
            crash::spared(queue);
        };
        let done = crash::run(after, || life(&self.victim, self.book, &self.progress, meanwhile));
        self.victim.clone().kill();
        done
    }

    /// The same with the other life.
    fn live_passing(&self, after: u32) -> bool {
        let done = crash::run(after, || passing(&self.victim, &self.progress));
        self.victim.clone().kill();
        done
    }

    /// What must hold after the repair.
    fn check(&self) {
        let cache = &self.cache;
        if let Some(waiter) = self.waiter.take() {
            assert_eq!(waiter.wait(Instant::now()).unwrap(), Waited::Granted, "the next one has the lock");
        }
        sound(cache);
        let progress = &self.progress;
        match cache.find(&id(1)).unwrap() {
            Some(info) if info.state == EntryState::Live => {
                assert!(!progress.removed.get(), "gone is gone");
                assert!(info.version.counter >= progress.version.get(), "published is published");
                let pin = cache.open_read(&id(1)).unwrap().unwrap();
                let data = info.version.counter.min(3);
                assert_eq!(pin.bytes(), vec![data as u8; 600 + data as usize], "one whole version");
                let acked = info.places.iter().filter_map(|place| place.acked).max();
                let quarantined = cache.quarantined().iter().any(|slot| slot.id == id(1));
                assert!(
                    quarantined || acked.is_some_and(|acked| acked.counter >= progress.acked.get()),
                    "{info:?}"
                );
            }
            Some(info) => assert_eq!((info.state, info.version), (EntryState::Gone, version(5))),
            None => assert!(progress.removed.get()),
        }
        let second = cache.open_read(&id(2)).unwrap();
        assert!(second.is_some() || !progress.second.get());
        assert!(second.is_none_or(|pin| pin.bytes() == [2; 602]));
        assert!(cache.find(&id(3)).unwrap().is_none());
        // Before its tombstone stands session 4 is as it was, and with it until when it lives.
        if let Some(info) = cache.find(&id(4)).unwrap() {
            let ends = (info.absolute_ms, if info.state == EntryState::Live { 1001 } else { 99 });
            assert_eq!((EntryInit::default().absolute_ms, info.expiry_ms), ends, "{info:?}");
        }
        let graced = cache.open_graced(&id(4)).unwrap();
        assert!(graced.as_ref().is_none_or(|pin| pin.bytes() == [4; 10]));
        assert!(!progress.ended.get() || (graced.is_none() && cache.find(&id(5)).unwrap().is_none()));
        if progress.passed.get() {
            assert!(cache.open_read(&id(4)).unwrap().is_none(), "gone is gone");
            // Whoever ends the new session ends the grace first.
            let lives = cache.open_read(&id(5)).unwrap().is_some();
            assert!(graced.is_none() || lives);
        }
        drop(graced);
        self.empty();
    }

    /// All that is left can be removed, and then nothing is owned by anybody.
    fn empty(&self) {
        let cache = &self.cache;
        cache.quarantined().iter().for_each(|slot| cache.release_quarantined(slot));
        for number in (1..=5).rev() {
            let mut hold = match cache.open_exclusive(&id(number)).unwrap() {
                Opened::Missing => continue,
                opened => granted(opened),
            };
            hold.remove(version(9)).unwrap();
            for place in &hold.info().unwrap().places {
                hold.free_place(place.index).unwrap();
            }
        }
        sound(cache);
        let segment = &cache.inner.segment;
        assert_eq!(segment.heap.iter(segment.heap_size).count(), 0);
        assert_eq!(segment.entry_owners.iter(16, |owner| owner != 0).count(), 0);
        let book = cache.inner.book(self.book);
        assert_eq!(book.heap.iter(book.heap_size()).count(), 0);
        assert_eq!(book.slots.iter(300, |owner| owner != 0).count(), 0);
        assert_eq!(cache.processes().len(), 1);
    }
}

#[test]
fn a_process_may_die_at_any_point() {
    let mut points = 0;
    loop {
        let world = World::new();
        let done = world.live(points);
        world.cache.repair_dead().unwrap();
        world.check();
        if done {
            break;
        }
        points += 1;
    }
    assert!(points > 300, "only {points} points: the life above is not what it was");
}

#[test]
fn a_process_may_die_at_any_point_of_giving_a_session_another_id() {
    let mut points = 0;
    loop {
        let world = World::new();
        let done = world.live_passing(points);
        world.cache.repair_dead().unwrap();
        world.check();
        if done {
            break;
        }
        points += 1;
    }
    assert!(points > 100, "only {points} points: the life above is not what it was");
}

#[test]
fn a_process_may_die_at_any_point_of_the_repair_after_another() {
    let mut kills = 0;
    // Prime steps, so that the pairs differ from round to round.
    for first in (0..).step_by(5) {
        let world = World::new();
        if world.live(first) {
            break;
        }
        drop(world);
        for second in (first % 11..).step_by(17) {
            let world = World::new();
            // Attached before, so that it is not in the victim's slot.
            let repairer = world.cache.sibling().unwrap();
            world.live(first);
            let done = crash::run(second, || drop(repairer.repair_dead().unwrap()));
            repairer.clone().kill();
            world.cache.repair_dead().unwrap();
            world.check();
            if done {
                break;
            }
            kills += 1;
        }
    }
    assert!(kills > 150, "only {kills} repairs were cut off");
}
