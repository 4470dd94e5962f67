//! The robust lock under loom: who has it is alone, sees what was done under it, and takes it over once.

use super::checked::{check, spawn, watch};
use super::robust_lock::{Acquired, acquire, release};
use super::words::AtomicU32;
use loom::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(3600);

struct Guarded {
    word: AtomicU32,
    /// loom finds any access that does not come after the one before.
    value: Cell<u32>,
}

fn guarded(word: u32) -> Rc<Guarded> {
    let guarded = Rc::new(Guarded { word: AtomicU32::new(word), value: Cell::new(0) });
    watch(std::ptr::from_ref(&guarded.word) as usize, 4);
    guarded
}

fn add(guarded: &Guarded) {
    guarded.value.set(guarded.value.get() + 1);
}

#[test]
fn holders_of_the_lock_come_one_after_the_other() {
    let checked = check(3, || {
        let guarded = guarded(0);
        let holders = [1, 2].map(|me| {
            let guarded = guarded.clone();
            spawn(move || {
                acquire(&guarded.word, me, LONG, |_| true).unwrap();
                add(&guarded);
                release(&guarded.word);
            })
        });
        for holder in holders {
            holder.join().unwrap();
        }
        assert_eq!(guarded.value.get(), 2);
    });
    println!("{:?}", checked.unwrap());
}

#[test]
fn a_dead_holders_lock_is_taken_over_once() {
    let checked = check(3, || {
        let guarded = guarded(7);
        let heirs = [1, 2].map(|me| {
            let guarded = guarded.clone();
            spawn(move || {
                let acquired = acquire(&guarded.word, me, LONG, |holder| holder != 7).unwrap();
                add(&guarded);
                release(&guarded.word);
                acquired == Acquired::TakenOver
            })
        });
        let taken_over = heirs.map(|heir| heir.join().unwrap());
        assert_eq!(taken_over.iter().filter(|taken_over| **taken_over).count(), 1);
    });
    println!("{:?}", checked.unwrap());
}
