//! The cache under loom: allocators, the pool of holds, and the index with locks and pins, by the production
//! code on a private segment.

use super::heap::{Heap, HeapSize};
use super::layout::{CLASSES_MAX, Piece};
use super::memory::Memory;
use super::owner::OwnerTable;
use super::pool::HoldPool;
use super::tests::{granted, id, insert, spec, version, write};
use super::*;
use crate::sync::checked::{check, outside, spawn, watch};
use crate::sync::words::AtomicU32;

/// Small windows into private memory, which is watched.
fn memory() -> Arc<Memory> {
    let memory = Arc::new(Memory::private(1 << 16).unwrap());
    watch(memory.address() as usize, 1 << 16);
    memory
}

fn piece(offset: usize, count: usize) -> Piece {
    Piece { offset, count }
}

#[test]
fn nothing_is_owned_twice_and_nothing_free_is_hidden() {
    let checked = check(3, || {
        let memory = memory();
        let words = memory.array(piece(0, 2)).unwrap();
        let table = Arc::new(OwnerTable::new(words, memory.array(piece(4096, 1)).unwrap()));
        let intent = AtomicU32::new(0);
        assert_eq!(table.take(2, 1, &intent), Some(0));
        let workers = [2, 3].map(|owner| {
            let table = table.clone();
            spawn(move || {
                let intent = AtomicU32::new(0);
                let taken = table.take(2, owner, &intent);
                if owner == 2 {
                    // The one that was taken at first, while the other may find the table full.
                    assert!(table.give(0, 1));
                }
                taken
            })
        });
        let taken = workers.map(|worker| worker.join().unwrap());
        assert!(taken[0].is_none() || taken[0] != taken[1], "{taken:?}");
        let owned = taken.iter().flatten().count();
        let free = (0..2).filter(|index| table.owner(*index) == 0).count();
        assert_eq!(owned + free, 2);
        let found = (0..2).filter(|_| table.take(2, 4, &intent).is_some()).count();
        assert_eq!(found, free, "what is free is found");
    });
    println!("{:?}", checked.unwrap());
}

/// A taker and one that changes the class of the chunk: one of them steps back.
#[test]
fn a_chunk_that_changes_its_class_is_nobodys() {
    let checked = check(3, || {
        const SIZE: HeapSize = HeapSize { chunks: 1, chunk_units: 4 };
        let memory = memory();
        let heap = Arc::new(Heap::new(
            memory.array(piece(0, CLASSES_MAX)).unwrap(),
            memory.array(piece(4096, 1)).unwrap(),
            memory.array(piece(8192, 4)).unwrap(),
        ));
        let intent = AtomicU32::new(0);
        let first = heap.take(SIZE, 1, 9, &intent).unwrap();
        heap.give(SIZE, first, 9);
        let takers = [1, 3].map(|units| {
            let heap = heap.clone();
            spawn(move || {
                let intent = AtomicU32::new(0);
                heap.take(SIZE, units, units, &intent).map(|block| (block.0, heap.block_units(SIZE, block)))
            })
        });
        let [one, three] = takers.map(|taker| taker.join().unwrap());
        if let (Some((one, _)), Some((three, units))) = (one, three) {
            assert!(units >= 3 && !(three..three + 3).contains(&one), "{one} lies in {three}..+{units}");
        }
        assert!(three.is_none_or(|(_, units)| units >= 3), "{three:?}");
    });
    println!("{:?}", checked.unwrap());
}

#[test]
fn the_pool_gives_a_hold_to_one_only() {
    let checked = check(3, || {
        let memory = memory();
        let owners =
            OwnerTable::new(memory.array(piece(0, 1)).unwrap(), memory.array(piece(4096, 1)).unwrap());
        let pool = Arc::new(HoldPool::new(64));
        let (all, owners) = (pool.clone(), Arc::new(owners));
        // All but two are out.
        let held: Vec<u32> = (0..62).map(|_| all.pop(&owners, 1).unwrap()).collect();
        pool.watch();
        let users = [0, 1].map(|_| {
            let (pool, owners) = (pool.clone(), owners.clone());
            spawn(move || {
                let hold = pool.pop(&owners, 1).unwrap();
                pool.push(hold);
                pool.pop(&owners, 1).unwrap()
            })
        });
        let [one, other] = users.map(|user| user.join().unwrap());
        assert!(one != other && !held.contains(&one) && !held.contains(&other), "{one} {other}");
    });
    println!("{:?}", checked.unwrap());
}

/// A segment with one session of version 1, and two processes in it.
fn segment() -> (Cache, Cache) {
    let (cache, sibling) = outside(|| {
        let spec = CacheSpec { sessions_max: 4, cache_bytes: 1 << 20, lease_bytes: 1 << 20, ..spec() };
        let cache = Cache::anonymous(&spec).unwrap();
        insert(&cache, 1, 1, 100).release();
        let sibling = cache.sibling().unwrap();
        (cache, sibling)
    });
    let region = cache.region();
    watch(region.address() as usize, region.bytes());
    (cache, sibling)
}

/// A reader pins what it reads, and whoever changes the session meanwhile frees no pinned block.
#[test]
fn a_pinned_block_stays_while_the_session_changes() {
    let checked = check(2, || {
        let (cache, sibling) = segment();
        let reader = spawn(move || {
            let pin = sibling.open_read(&id(1)).unwrap().unwrap();
            let fill = pin.version().counter as u8;
            assert_eq!(pin.bytes(), [fill; 100]);
            drop(pin);
            sibling
        });
        let mut hold = granted(cache.open_exclusive(&id(1)).unwrap());
        write(&mut hold, 2, 2, 100);
        hold.release();
        let sibling = reader.join().unwrap();
        outside(|| {
            assert_eq!(cache.verify().unwrap(), Vec::<String>::new());
            assert_eq!(cache.find(&id(1)).unwrap().unwrap().version, version(2));
            drop(sibling);
        });
        std::mem::forget(cache);
    });
    println!("{:?}", checked.unwrap());
}

/// Two processes change one session: both changes are made, one after the other.
#[test]
fn a_sessions_lock_lets_in_one_at_a_time() {
    let checked = check(2, || {
        let (cache, sibling) = segment();
        let change = |cache: &Cache| {
            let mut hold = match cache.open_exclusive(&id(1)).unwrap() {
                Opened::Granted(hold) => hold,
                Opened::Waiting(hold) => {
                    while hold.state() != HoldState::Granted {
                        crate::sync::words::spin();
                    }
                    hold
                }
                _ => panic!("neither granted nor queued"),
            };
            let counter = hold.info().unwrap().version.counter + 1;
            write(&mut hold, counter, counter as u8, 100);
            hold.release();
        };
        let other = spawn(move || {
            change(&sibling);
            sibling
        });
        change(&cache);
        let sibling = other.join().unwrap();
        outside(|| {
            assert_eq!(cache.verify().unwrap(), Vec::<String>::new());
            assert_eq!(cache.find(&id(1)).unwrap().unwrap().version, version(3));
            drop(sibling);
        });
        std::mem::forget(cache);
    });
    println!("{:?}", checked.unwrap());
}
