//! Owner tables: allocators whose only truth is one word per thing, 0 = free, else its owner.
//!
//! Taking is a compare-and-swap of 0 to the owner; giving back, of the owner to 0. There are no lists. Before
//! each try the caller's *intent* word is set to the thing + 1, so that after a kill the intent names the
//! only thing that can have been taken without being named elsewhere.

use super::layout::{OWNER_GROUP, Word};
use super::memory::Array;
use crate::sync::words::{AtomicU32, Ordering};

/// Entries, lease slots, or chunks of holds. Used by many processes at once.
pub struct OwnerTable {
    words: Array<AtomicU32>,
    /// One per [`OWNER_GROUP`] words: 1 = none was free at the last look.
    full: Array<AtomicU32>,
    /// Where this process looks first.
    hint: AtomicU32,
}

impl OwnerTable {
    /// A table over its words and their hints.
    pub fn new(words: Array<AtomicU32>, full: Array<AtomicU32>) -> Self {
        Self { words, full, hint: AtomicU32::new(0) }
    }

    /// Number of things.
    pub fn len(&self) -> u32 {
        self.words.len()
    }

    /// The owner of a thing, 0 if it is free.
    #[inline]
    pub fn owner(&self, index: u32) -> u32 {
        self.words[index].read()
    }

    /// Takes a free thing among the first `limit`; `None` if there is none.
    pub fn take(&self, limit: u32, owner: u32, intent: &AtomicU32) -> Option<u32> {
        let limit = limit.min(self.len());
        let groups = limit.div_ceil(OWNER_GROUP);
        let hint = self.hint.load(Ordering::Relaxed);
        let first = if hint < limit { hint / OWNER_GROUP } else { 0 };
        let taken = (0..groups).find_map(|step| {
            let group = (first + step) % groups;
            let from = if step == 0 && hint < limit { hint % OWNER_GROUP } else { 0 };
            self.take_in(group, from, limit, owner, intent)
        })?;
        self.hint.store(taken + 1, Ordering::Relaxed);
        Some(taken)
    }

    fn take_in(&self, group: u32, from: u32, limit: u32, owner: u32, intent: &AtomicU32) -> Option<u32> {
        let full = &self.full[group];
        if full.read() != 0 {
            return None;
        }
        let start = group * OWNER_GROUP;
        let count = OWNER_GROUP.min(limit - start);
        let scan = |from: u32| {
            (start + from..start + count).chain(start..start + from).find(|index| {
                let word = &self.words[*index];
                // SeqCst here, in `give` and on `full`: see below.
                if word.load(Ordering::SeqCst) != 0 {
                    return false;
                }
                intent.write(index + 1);
                let taken = word.compare_exchange(0, owner, Ordering::SeqCst, Ordering::Relaxed).is_ok();
                kill_point!("allocate.taken");
                #[cfg(test)]
                super::crash::point();
                taken
            })
        };
        scan(from).or_else(|| {
            // The hint is set before a second look, and `give` looks at it after it has freed a word: one of
            // the two sees the other, so a free word never stays behind a "full" hint. (A kill in between is
            // healed by `clear_hints`.)
            full.store(1, Ordering::SeqCst);
            let taken = scan(0);
            if taken.is_some() {
                full.store(0, Ordering::SeqCst);
            }
            taken
        })
    }

    /// Gives a thing back if `owner` has it.
    pub fn give(&self, index: u32, owner: u32) -> bool {
        let given = self.words[index].compare_exchange(owner, 0, Ordering::SeqCst, Ordering::Relaxed).is_ok();
        #[cfg(test)]
        super::crash::point();
        let full = &self.full[index / OWNER_GROUP];
        if given && full.load(Ordering::SeqCst) != 0 {
            full.store(0, Ordering::SeqCst);
        }
        given
    }

    /// Passes a thing from one owner to another.
    pub fn pass(&self, index: u32, from: u32, to: u32) -> bool {
        let passed =
            self.words[index].compare_exchange(from, to, Ordering::SeqCst, Ordering::Relaxed).is_ok();
        #[cfg(test)]
        super::crash::point();
        passed
    }

    /// The things among the first `limit` whose owner `wanted` accepts.
    pub fn iter(&self, limit: u32, wanted: impl Fn(u32) -> bool) -> impl Iterator<Item = u32> {
        (0..limit.min(self.len())).filter(move |index| wanted(self.owner(*index)))
    }

    /// Forgets the hints; after a process died, which may have left one wrong.
    pub fn clear_hints(&self) {
        self.full.as_slice().iter().for_each(|full| full.store(0, Ordering::SeqCst));
    }

    /// Frees everything. The caller knows that nobody takes at the same time.
    pub fn reset(&self) {
        self.words.as_slice().iter().for_each(|word| word.store(0, Ordering::SeqCst));
        self.clear_hints();
    }
}
