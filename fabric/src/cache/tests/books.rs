//! Lease books, pushes and the quarantine.

use super::*;
use crate::lease::{Sequence, SlotIndex};

const SERVER: Incarnation = Incarnation(70);

fn with_book() -> (Cache, BookIndex) {
    let cache = Cache::anonymous(&spec()).unwrap();
    let book = cache.activate_book("s1", SERVER, 4, geometry()).unwrap();
    (cache, book)
}

fn push(hold: &mut Hold, book: BookIndex, kind: PushKind, counter: u64) -> Push {
    let push = hold.begin_push(book, kind).unwrap();
    hold.end_push(&push, version(counter), 1000 + counter).unwrap();
    push
}

fn blocks(cache: &Cache, book: BookIndex) -> usize {
    let book = cache.inner.book(book);
    book.heap.iter(book.heap_size()).count()
}

#[test]
fn pushes_keep_the_acked_block_until_the_next_ack() {
    let (cache, book) = with_book();
    let mut hold = insert(&cache, 1, 1, 700);
    let first = hold.begin_push(book, PushKind::Archive(700)).unwrap();
    assert_eq!((first.sequence, first.fresh, first.server), (Sequence(1), true, SERVER));
    assert_eq!(hold.begin_push(book, PushKind::Archive(700)).unwrap_err().kind, ErrorKind::Busy);
    assert_eq!(cache.stats().unwrap().safe, [1, 0, 0]);
    hold.end_push(&first, version(1), 1001).unwrap();
    assert_eq!(cache.stats().unwrap().safe, [0, 1, 0]);
    assert_eq!(hold.info().unwrap().pushed_expiry_ms, 1001);
    assert_eq!(hold.end_push(&first, version(1), 1001).unwrap_err().kind, ErrorKind::Invalid);

    write(&mut hold, 2, 2, 700);
    assert_eq!(cache.stats().unwrap().safe, [1, 0, 0]);
    let second = hold.begin_push(book, PushKind::Archive(700)).unwrap();
    assert_eq!((second.slot, second.sequence), (first.slot, Sequence(2)));
    assert_ne!(second.block, first.block);
    let place = hold.place_at(SERVER).unwrap().unwrap();
    assert_eq!((place.state, place.block, place.acked), (PlaceState::Pushing, first.block, Some(version(1))));
    assert_eq!(blocks(&cache, book), 2);
    hold.cancel_push(&second).unwrap();
    assert_eq!(blocks(&cache, book), 1);
    let second = push(&mut hold, book, PushKind::Archive(700), 2);
    assert_eq!(second.sequence, Sequence(2), "nothing was written with it");
    assert_eq!(blocks(&cache, book), 1);

    hold.touch(version(3), 9000).unwrap();
    let touch = push(&mut hold, book, PushKind::Touch, 3);
    assert_eq!((touch.block, touch.fresh, touch.sequence), (second.block, false, Sequence(3)));
    assert_eq!(hold.place_at(SERVER).unwrap().unwrap().block, second.block);
    assert_eq!(cache.stats().unwrap().safe, [0, 1, 0]);

    hold.remove(version(4)).unwrap();
    let bare = push(&mut hold, book, PushKind::Bare, 4);
    assert_eq!((bare.block, bare.sequence, blocks(&cache, book)), (None, Sequence(4), 0));
    hold.free_place(bare.place).unwrap();
    drop(hold);
    assert!(cache.find(&id(1)).unwrap().is_none());
    sound(&cache);
    let mut next = insert(&cache, 2, 1, 10);
    let again = push(&mut next, book, PushKind::Archive(10), 1);
    if again.slot == bare.slot {
        assert_eq!(again.sequence, Sequence(5), "sequences belong to the slot");
    }
}

#[test]
fn a_full_lease_is_an_error_and_changes_nothing() {
    let (cache, book) = with_book();
    let mut hold = insert(&cache, 1, 1, 1 << 20);
    push(&mut hold, book, PushKind::Archive(1 << 20), 1);
    let mut other = insert(&cache, 2, 1, 1 << 20);
    push(&mut other, book, PushKind::Archive(1 << 20), 1);
    let error = hold.begin_push(book, PushKind::Archive(1 << 20)).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Full);
    assert!(error.to_string().contains("s1"));
    assert_eq!(hold.place_at(SERVER).unwrap().unwrap().state, PlaceState::Acked);
    let mut third = insert(&cache, 3, 1, 10);
    assert_eq!(third.begin_push(book, PushKind::Archive(10)).unwrap_err().kind, ErrorKind::Full);
    assert!(third.info().unwrap().places.is_empty());
    drop((hold, other, third));
    sound(&cache);
}

#[test]
fn a_lease_with_fewer_slots_than_the_cache_has_sessions() {
    let cache = Cache::anonymous(&spec()).unwrap();
    let small = LeaseGeometry { slot_count: 2, heap_bytes: 1 << 20, chunk_bytes: 1 << 20 };
    let book = cache.activate_book("s1", SERVER, 4, small).unwrap();
    for number in 0..2 {
        let push = push(&mut insert(&cache, number, 1, 10), book, PushKind::Archive(10), 1);
        assert!(push.slot.0 < 2);
    }
    let mut hold = insert(&cache, 2, 1, 10);
    assert_eq!(hold.begin_push(book, PushKind::Archive(10)).unwrap_err().kind, ErrorKind::Full);
    drop(hold);
    sound(&cache);
}

/// The writer of an open push dies (or loses the lock); the next push must not touch its slot or blocks.
fn fresh_slot_after(end: impl Fn(Cache, Hold)) -> Result<(), String> {
    let (cache, book) = with_book();
    let writer = cache.sibling().unwrap();
    let mut hold = insert(&writer, 1, 1, 700);
    let acked = push(&mut hold, book, PushKind::Archive(700), 1);
    write(&mut hold, 2, 2, 700);
    let open = hold.begin_push(book, PushKind::Archive(700)).unwrap();
    end(writer, hold);
    cache.repair_dead().unwrap();
    let mut hold = granted(cache.open_exclusive(&id(1)).unwrap());
    let next = hold.begin_push(book, PushKind::Archive(700)).unwrap();
    if next.slot == open.slot || next.block == open.block || next.block == acked.block {
        return Err("a slot or block that its writer may still write was used again".into());
    }
    hold.end_push(&next, version(2), 1002).unwrap();
    sound(&cache);

    let quarantined = cache.quarantined();
    assert_eq!(quarantined.len(), 1);
    assert_eq!((quarantined[0].slot, quarantined[0].id, quarantined[0].server), (open.slot, id(1), SERVER));
    assert!(quarantined[0].sequence.is_newer_than(open.sequence));
    assert_eq!(quarantined[0].pid, std::process::id());
    assert_eq!(blocks(&cache, book), 3);
    cache.release_quarantined(&quarantined[0]);
    cache.release_quarantined(&quarantined[0]);
    assert_eq!((cache.quarantined().len(), blocks(&cache, book)), (0, 1));
    drop(hold);
    sound(&cache);
    Ok(())
}

fn teeth(rule: Rule, scenario: impl Fn() -> Result<(), String>) {
    #[cfg(feature = "mutants")]
    rules::assert_teeth(rule, scenario);
    #[cfg(not(feature = "mutants"))]
    {
        let _ = rule;
        scenario().unwrap();
    }
}

#[test]
fn r4_the_slot_of_a_dead_writer_is_quarantined() {
    teeth(Rule::R4FreshSlot, || {
        fresh_slot_after(|writer, hold| {
            writer.kill();
            drop(hold);
        })
    });
}

#[test]
fn r4_the_slot_of_a_hold_that_is_dropped_while_it_pushes_is_quarantined() {
    teeth(Rule::R4FreshSlot, || fresh_slot_after(|_, hold| drop(hold)));
}

#[test]
fn r4_the_slot_of_a_writer_that_lost_the_lock_is_quarantined() {
    teeth(Rule::R4FreshSlot, || {
        let cache = Cache::anonymous(&CacheSpec { lock_hold_ms: 1, ..spec() }).unwrap();
        let book = cache.activate_book("s1", SERVER, 4, geometry()).unwrap();
        let mut slow = insert(&cache, 1, 1, 700);
        let open = slow.begin_push(book, PushKind::Archive(700)).unwrap();
        let mut next = waiting(cache.open_exclusive(&id(1)).unwrap());
        assert_eq!(next.wait(Instant::now() + Duration::from_secs(5)).unwrap(), Waited::Granted);
        if next.begin_push(book, PushKind::Archive(700)).unwrap().slot == open.slot {
            return Err("the slot was used again".into());
        }
        let late = slow.end_push(&open, version(1), 1).unwrap_err();
        assert_eq!(late.kind, ErrorKind::LockLost);
        Ok(())
    });
}

#[test]
fn r6_copies_at_a_servers_former_life_do_not_count() {
    teeth(Rule::R6AckIncarnation, || {
        let (cache, book) = with_book();
        let mut hold = insert(&cache, 1, 1, 700);
        push(&mut hold, book, PushKind::Archive(700), 1);
        cache.retire_book(book);
        cache.reset_book(book);
        assert_eq!(cache.activate_book("s1", Incarnation(71), 1, geometry()).unwrap(), book);
        cache.recount().unwrap();
        match cache.stats().unwrap().safe {
            [1, 0, 0] => Ok(()),
            other => Err(format!("a copy that died with its server counts: {other:?}")),
        }
    });
}

#[test]
fn r7_a_named_block_is_not_reused_before_a_later_ack() {
    teeth(Rule::R7Blocks, || {
        let (cache, book) = with_book();
        // Large, so that the lease is soon full.
        let kind = PushKind::Archive(100 << 10);
        let mut hold = insert(&cache, 1, 1, 10);
        let acked = push(&mut hold, book, kind, 1).block;
        hold.begin_push(book, kind).unwrap();
        // The lease is filled up: nobody may get the block that the acked cell names.
        for number in 2..40 {
            let mut other = insert(&cache, number, 1, 10);
            match other.begin_push(book, kind) {
                Ok(push) if push.block == acked => return Err("an acked block was given to another".into()),
                Ok(push) => other.end_push(&push, version(1), 1).unwrap(),
                Err(error) => assert_eq!(error.kind, ErrorKind::Full),
            }
        }
        Ok(())
    });
}

#[test]
fn r13_a_touch_frees_nothing() {
    teeth(Rule::R13Touch, || {
        let (cache, book) = with_book();
        let mut hold = insert(&cache, 1, 1, 700);
        let acked = push(&mut hold, book, PushKind::Archive(700), 1).block;
        hold.touch(version(2), 5000).unwrap();
        push(&mut hold, book, PushKind::Touch, 2);
        match hold.place_at(SERVER).unwrap().unwrap().block {
            block if block == acked && blocks(&cache, book) == 1 => Ok(()),
            other => Err(format!("the touched archive's block is {other:?}, was {acked:?}")),
        }
    });
}

#[test]
fn r9_a_tombstone_stays_while_a_stale_cell_is_in_quarantine() {
    teeth(Rule::R9Destroy, || {
        let (cache, book) = with_book();
        let mut hold = insert(&cache, 1, 1, 700);
        let open = hold.begin_push(book, PushKind::Archive(700)).unwrap();
        hold.abandon_push(&open, None).unwrap();
        push(&mut hold, book, PushKind::Archive(700), 1);
        hold.remove(version(2)).unwrap();
        let tombstone = push(&mut hold, book, PushKind::Bare, 2);
        match hold.free_place(tombstone.place) {
            Err(error) if error.kind == ErrorKind::NotYet => {}
            other => return Err(format!("the tombstone's slot is free for others: {other:?}")),
        }
        cache.release_quarantined(&cache.quarantined()[0]);
        hold.free_place(tombstone.place).unwrap();
        drop(hold);
        assert!(cache.find(&id(1)).unwrap().is_none());
        sound(&cache);
        Ok(())
    });
}

#[test]
fn a_place_in_a_book_that_passed_to_another_life_is_void() {
    let (cache, book) = with_book();
    let mut hold = insert(&cache, 1, 1, 700);
    push(&mut hold, book, PushKind::Archive(700), 1);
    assert_eq!(cache.activate_book("s1", SERVER, 4, geometry()).unwrap(), book, "asking again is harmless");
    let conflict = cache.activate_book("s1", SERVER, 5, geometry()).unwrap_err();
    assert_eq!(conflict.kind, ErrorKind::Conflict);
    cache.retire_book(book);
    cache.recount().unwrap();
    assert_eq!(cache.stats().unwrap().safe, [1, 0, 0], "a retired book's copies are not safe");
    assert_eq!(hold.begin_push(book, PushKind::Archive(700)).unwrap_err().kind, ErrorKind::Unreachable);
    cache.reset_book(book);
    assert_eq!(cache.book_of(SERVER), None);
    let again = cache.activate_book("s1", Incarnation(71), 1, geometry()).unwrap();
    assert_eq!(again, book);
    assert!(hold.place_at(Incarnation(71)).unwrap().is_none(), "the old place is another life's");
    let new = push(&mut hold, book, PushKind::Archive(700), 1);
    assert_eq!(new.sequence, Sequence(1), "a new lease begins anew");
    let old = hold.place_at(SERVER).unwrap().unwrap();
    hold.free_place(old.index).unwrap();
    assert_eq!(blocks(&cache, book), 1, "freeing the void place did not touch the new one");
    assert_eq!(cache.inner.book(book).slots.owner(new.slot.0), hold.entry + 1);
    drop(hold);
    sound(&cache);
}

/// The steward opens its links on a thread each.
#[test]
fn servers_that_are_linked_at_once_have_books_of_their_own() {
    for _ in 0..200 {
        let cache = Cache::anonymous(&spec()).unwrap();
        let ready = std::sync::Barrier::new(4);
        let opened: Vec<_> = std::thread::scope(|scope| {
            let open = |server: u64| {
                let (cache, ready) = (&cache, &ready);
                scope.spawn(move || {
                    ready.wait();
                    (server, cache.activate_book("s", Incarnation(server), 1, geometry()).unwrap())
                })
            };
            let opening: Vec<_> = (1..=4).map(open).collect();
            opening.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for (server, book) in opened {
            assert_eq!(cache.book(book).incarnation, Incarnation(server), "{:?}", cache.books());
        }
    }
}

#[test]
fn books_run_out_with_an_error() {
    let cache = Cache::anonymous(&spec()).unwrap();
    for server in 1..=4 {
        cache.activate_book("s1", Incarnation(server), 1, geometry()).unwrap();
    }
    assert_eq!(cache.books().len(), 4);
    assert_eq!(cache.book(BookIndex(2)).server, "s1");
    let error = cache.activate_book("s1", Incarnation(5), 1, geometry()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Full);
    let odd = LeaseGeometry { chunk_bytes: 100, ..geometry() };
    assert_eq!(cache.activate_book("s2", Incarnation(6), 1, odd).unwrap_err().kind, ErrorKind::Invalid);
}

#[test]
fn a_session_has_four_places() {
    let cache = Cache::anonymous(&CacheSpec { books: 5, ..spec() }).unwrap();
    let mut hold = insert(&cache, 1, 1, 10);
    for server in 1..=4 {
        let book = cache.activate_book("s", Incarnation(server), 1, geometry()).unwrap();
        push(&mut hold, book, PushKind::Archive(10), 1);
    }
    assert_eq!(hold.info().unwrap().places.len(), 4);
    assert_eq!(cache.stats().unwrap().safe, [0, 0, 1], "more than two copies count as two");
    let book = cache.activate_book("s", Incarnation(5), 1, geometry()).unwrap();
    assert_eq!(hold.begin_push(book, PushKind::Archive(10)).unwrap_err().kind, ErrorKind::Busy);
    hold.free_place(PlaceIndex(0)).unwrap();
    assert_eq!(hold.begin_push(book, PushKind::Archive(10)).unwrap().place, PlaceIndex(0));
    let _ = SlotIndex(0);
}
