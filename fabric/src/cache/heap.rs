//! The chunked heap: blocks of size classes over owner words, for the cache's own heap and for the node's
//! leases.
//!
//! The heap is cut into chunks; each chunk is given to one size class, and its blocks lie on a grid. The word
//! of a block's first 256-byte unit is its owner, 0 = free. Nothing else is truth: hints only say where to
//! look first.
//!
//! An empty chunk may pass to another class while somebody tries to take a block of the old one. So the
//! changer first marks the chunk as changing and then looks whether all units are free; the taker first takes
//! its unit and then looks whether the chunk is still what it was. Both in sequential consistency, so one of
//! them sees the other and steps back.

use super::layout::{CLASSES_MAX, Chunk, Word};
use super::memory::Array;
use crate::lease::BlockOffset;
use crate::sync::words::{AtomicU32, Ordering};

/// Bits of a chunk's word: class + 1, a mark while the class changes, and a version that makes each change a
/// new word.
const CLASS_MASK: u32 = 0xff;
const CHANGING: u32 = 0x100;
const VERSION_STEP: u32 = 0x200;

/// The size class for blocks of so many units.
pub fn class_of(units: u32) -> u32 {
    if units <= 4 {
        return units.max(1) - 1;
    }
    let exponent = (units - 1).ilog2();
    let step = 1 << (exponent - 2);
    (exponent - 2) * 4 + units.div_ceil(step) - 1
}

/// Units of a block of a class: 1, 2, 3, 4, then four classes per doubling.
pub fn class_units(class: u32) -> u32 {
    if class < 4 { class + 1 } else { (class % 4 + 5) << (class / 4 - 1) }
}

/// How much of the heap's tables is in use: leases can be smaller than their books.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HeapSize {
    /// Number of chunks.
    pub chunks: u32,
    /// Units of a chunk.
    pub chunk_units: u32,
}

/// The allocator of one heap; it never touches the heap's bytes. Used by many processes at once.
pub struct Heap {
    /// Chunk + 1 in which a class was last taken from.
    hints: Array<AtomicU32>,
    chunks: Array<Chunk>,
    units: Array<AtomicU32>,
}

impl Heap {
    /// A heap over its tables.
    pub fn new(hints: Array<AtomicU32>, chunks: Array<Chunk>, units: Array<AtomicU32>) -> Self {
        debug_assert_eq!(hints.len() as usize, CLASSES_MAX);
        Self { hints, chunks, units }
    }

    /// Units and chunks that the tables have room for.
    pub fn capacity(&self) -> (u32, u32) {
        (self.units.len(), self.chunks.len())
    }

    /// Takes a block of at least so many units; `None` if there is none. `intent` is set to the block + 1
    /// before each try.
    pub fn take(&self, size: HeapSize, units: u32, owner: u32, intent: &AtomicU32) -> Option<BlockOffset> {
        if units > size.chunk_units {
            return None;
        }
        let class = class_of(units);
        let want = Want { size, units, owner, intent };
        self.take_of_class(class, &want)
            .or_else(|| self.take_reclaimed(class, &want))
            .or_else(|| self.take_larger(class, &want))
    }

    /// Who owns the block that begins at this unit; 0 if nobody.
    #[inline]
    pub fn owner(&self, block: BlockOffset) -> u32 {
        self.units[block.0].read()
    }

    /// Passes a block from one owner to another.
    pub fn pass(&self, block: BlockOffset, from: u32, to: u32) -> bool {
        let passed =
            self.units[block.0].compare_exchange(from, to, Ordering::SeqCst, Ordering::Relaxed).is_ok();
        #[cfg(test)]
        super::crash::point();
        passed
    }

    /// Gives a block back if `owner` has it.
    pub fn give(&self, size: HeapSize, block: BlockOffset, owner: u32) -> bool {
        let given = self.pass(block, owner, 0);
        let chunk = &self.chunks[block.0 / size.chunk_units];
        if given && chunk.full.load(Ordering::SeqCst) != 0 {
            if let Some(class) = word_class(chunk.word.read()) {
                chunk.cursor.store(block.0 % size.chunk_units / class_units(class), Ordering::Relaxed);
            }
            chunk.full.store(0, Ordering::SeqCst);
        }
        given
    }

    /// Units of the class that the block's chunk has.
    pub fn block_units(&self, size: HeapSize, block: BlockOffset) -> u32 {
        word_class(self.chunks[block.0 / size.chunk_units].word.read()).map_or(0, class_units)
    }

    /// The blocks that are owned: block, owner, whether it lies on its chunk's grid.
    pub fn iter(&self, size: HeapSize) -> impl Iterator<Item = (BlockOffset, u32, bool)> {
        (0..size.chunks * size.chunk_units).filter_map(move |unit| {
            let owner = self.units[unit].read();
            let class = word_class(self.chunks[unit / size.chunk_units].word.read());
            let whole = class.is_some_and(|class| {
                let (at, units) = (unit % size.chunk_units, class_units(class));
                at.is_multiple_of(units) && at + units <= size.chunk_units
            });
            (owner != 0).then_some((BlockOffset(unit), owner, whole))
        })
    }

    /// Units of the blocks that are owned.
    pub fn used_units(&self, size: HeapSize) -> u64 {
        let used_in = |chunk: u32| {
            let Some(class) = word_class(self.chunks[chunk].word.read()) else { return 0 };
            let units = class_units(class);
            let first = chunk * size.chunk_units;
            let blocks =
                (0..size.chunk_units / units).filter(|block| self.units[first + block * units].read() != 0);
            blocks.count() as u64 * u64::from(units)
        };
        (0..size.chunks).map(used_in).sum()
    }

    /// Forgets the hints; after a process died, which may have left one wrong.
    pub fn clear_hints(&self) {
        self.chunks.as_slice().iter().for_each(|chunk| chunk.full.store(0, Ordering::SeqCst));
    }

    /// Frees everything. The caller knows that nobody takes at the same time.
    pub fn reset(&self) {
        self.units.as_slice().iter().for_each(|unit| unit.store(0, Ordering::SeqCst));
        for chunk in self.chunks.as_slice() {
            let word = chunk.word.read();
            chunk.word.store((word & !(CLASS_MASK | CHANGING)).wrapping_add(VERSION_STEP), Ordering::SeqCst);
        }
        self.clear_hints();
    }

    fn take_of_class(&self, class: u32, want: &Want<'_>) -> Option<BlockOffset> {
        let hint = self.hints[class].load(Ordering::Relaxed);
        let first = hint.checked_sub(1).filter(|first| *first < want.size.chunks).unwrap_or(0);
        let mut unassigned = None;
        for index in (first..want.size.chunks).chain(0..first) {
            match word_class(self.chunks[index].word.read()) {
                Some(has) if has == class => {
                    if let Some(block) = self.take_in(index, want) {
                        if index + 1 != hint {
                            self.hints[class].store(index + 1, Ordering::Relaxed);
                        }
                        return Some(block);
                    }
                }
                None if unassigned.is_none() => unassigned = Some(index),
                _ => {}
            }
        }
        let index = unassigned?;
        (index..want.size.chunks).chain(0..index).find_map(|index| {
            let chunk = &self.chunks[index];
            let word = chunk.word.read();
            if word & (CLASS_MASK | CHANGING) != 0 {
                return None;
            }
            let assigned = word.wrapping_add(VERSION_STEP) | (class + 1);
            chunk.word.compare_exchange(word, assigned, Ordering::SeqCst, Ordering::Relaxed).ok()?;
            chunk.full.store(0, Ordering::SeqCst);
            self.hints[class].store(index + 1, Ordering::Relaxed);
            self.take_in(index, want)
        })
    }

    /// Takes a block in a chunk, whatever its class.
    fn take_in(&self, index: u32, want: &Want<'_>) -> Option<BlockOffset> {
        let chunk = &self.chunks[index];
        let word = chunk.word.load(Ordering::SeqCst);
        if chunk.full.load(Ordering::SeqCst) != 0 || word & CHANGING != 0 {
            return None;
        }
        let units = class_units(word_class(word)?);
        if units < want.units {
            // The chunk has passed to a smaller class since the caller looked at it.
            return None;
        }
        let (start, count) = (index * want.size.chunk_units, want.size.chunk_units / units);
        let scan = |from: u32| {
            (from..count).chain(0..from.min(count)).find(|block| {
                let unit = start + block * units;
                let owner = &self.units[unit];
                if owner.load(Ordering::SeqCst) != 0 {
                    return false;
                }
                want.intent.write(unit + 1);
                let taken =
                    owner.compare_exchange(0, want.owner, Ordering::SeqCst, Ordering::Relaxed).is_ok();
                kill_point!("allocate.block");
                #[cfg(test)]
                super::crash::point();
                taken
            })
        };
        let block = scan(chunk.cursor.load(Ordering::Relaxed)).or_else(|| {
            // As in `OwnerTable::take_in`: the hint first, then a second look.
            chunk.full.store(1, Ordering::SeqCst);
            let block = scan(0);
            if block.is_some() {
                chunk.full.store(0, Ordering::SeqCst);
            }
            block
        })?;
        let unit = start + block * units;
        if chunk.word.load(Ordering::SeqCst) != word {
            self.pass(BlockOffset(unit), want.owner, 0);
            chunk.full.store(0, Ordering::SeqCst);
            return None;
        }
        chunk.cursor.store(block + 1, Ordering::Relaxed);
        Some(BlockOffset(unit))
    }

    /// Gives an empty chunk of another class to this one.
    fn take_reclaimed(&self, class: u32, want: &Want<'_>) -> Option<BlockOffset> {
        (0..want.size.chunks).find_map(|index| {
            let word = self.chunks[index].word.read();
            if word_class(word) == Some(class) || !self.is_empty(index, want.size) {
                return None;
            }
            self.change_class(index, word, class, want.size).then(|| self.take_in(index, want)).flatten()
        })
    }

    /// Changes the class of a chunk if it is empty. A changer that died leaves the mark; the next one goes on
    /// from there.
    fn change_class(&self, index: u32, word: u32, class: u32, size: HeapSize) -> bool {
        let chunk = &self.chunks[index];
        let marked = (word & !CHANGING).wrapping_add(VERSION_STEP) | CHANGING;
        if chunk.word.compare_exchange(word, marked, Ordering::SeqCst, Ordering::Relaxed).is_err() {
            return false;
        }
        #[cfg(test)]
        super::crash::point();
        let empty = self.is_empty(index, size);
        let new_class = if empty { class + 1 } else { word & CLASS_MASK };
        let new = (marked & !(CLASS_MASK | CHANGING)).wrapping_add(VERSION_STEP) | new_class;
        chunk.cursor.store(0, Ordering::Relaxed);
        chunk.full.store(0, Ordering::SeqCst);
        chunk.word.compare_exchange(marked, new, Ordering::SeqCst, Ordering::Relaxed).is_ok() && empty
    }

    /// Whether no unit of a chunk is owned. Looks first where it found one the last time.
    fn is_empty(&self, index: u32, size: HeapSize) -> bool {
        let start = index * size.chunk_units;
        let witness = &self.chunks[index].witness;
        let last = witness.load(Ordering::Relaxed).min(size.chunk_units - 1);
        if self.units[start + last].load(Ordering::SeqCst) != 0 {
            return false;
        }
        match (0..size.chunk_units).find(|unit| self.units[start + unit].load(Ordering::SeqCst) != 0) {
            Some(unit) => {
                witness.store(unit, Ordering::Relaxed);
                false
            }
            None => true,
        }
    }

    /// Takes a larger block than needed, from the nearest class that has one.
    fn take_larger(&self, class: u32, want: &Want<'_>) -> Option<BlockOffset> {
        let mut above = class;
        loop {
            let next = (0..want.size.chunks)
                .filter(|index| self.chunks[*index].full.load(Ordering::SeqCst) == 0)
                .filter_map(|index| word_class(self.chunks[index].word.read()))
                .filter(|has| *has > above)
                .min()?;
            above = next;
            for index in 0..want.size.chunks {
                if word_class(self.chunks[index].word.read()) == Some(next)
                    && let Some(block) = self.take_in(index, want)
                {
                    return Some(block);
                }
            }
        }
    }
}

/// What one call of [`Heap::take`] is about.
struct Want<'a> {
    size: HeapSize,
    units: u32,
    owner: u32,
    intent: &'a AtomicU32,
}

fn word_class(word: u32) -> Option<u32> {
    (word & CLASS_MASK).checked_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::layout::Piece;
    use crate::cache::memory::Memory;
    use std::collections::BTreeMap;
    use std::sync::Arc;

    const SIZE: HeapSize = HeapSize { chunks: 4, chunk_units: 64 };

    fn heap() -> Heap {
        let memory = Arc::new(Memory::private(1 << 16).unwrap());
        Heap::new(
            memory.array(Piece { offset: 0, count: CLASSES_MAX }).unwrap(),
            memory.array(Piece { offset: 4096, count: 4 }).unwrap(),
            memory.array(Piece { offset: 8192, count: 256 }).unwrap(),
        )
    }

    #[test]
    fn classes_cover_all_sizes_with_little_waste() {
        for units in 1..=65_536 {
            let class = class_of(units);
            assert!(class_units(class) >= units && (class as usize) < CLASSES_MAX);
            assert!(class == 0 || class_units(class - 1) < units);
            assert!(u64::from(class_units(class)) * 4 <= u64::from(units) * 5 + 3);
        }
    }

    /// Random taking and giving; blocks never overlap, and everything comes back.
    #[test]
    fn blocks_never_overlap_and_chunks_change_class() {
        let heap = heap();
        let intent = AtomicU32::new(0);
        let mut blocks = BTreeMap::new();
        let mut random = 1u32;
        let mut full = 0;
        for _ in 0..20_000 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let units = 1 + (random >> 8) % 20;
            if random >> 31 == 0 || blocks.is_empty() {
                match heap.take(SIZE, units, 7, &intent) {
                    Some(block) => {
                        assert_eq!(intent.read(), block.0 + 1);
                        let has = heap.block_units(SIZE, block);
                        assert!(has >= units && block.0 / 64 == (block.0 + has - 1) / 64);
                        if let Some((before, units)) = blocks.range(..=block.0).next_back() {
                            assert!(before + units <= block.0);
                        }
                        if let Some((after, _)) = blocks.range(block.0..).next() {
                            assert!(block.0 + has <= *after);
                        }
                        blocks.insert(block.0, has);
                    }
                    None => full += 1,
                }
            } else {
                let at = *blocks.range(random >> 8 & 0xff..).next().or(blocks.iter().next()).unwrap().0;
                assert!(!heap.give(SIZE, BlockOffset(at), 8), "only the owner gives");
                assert!(heap.give(SIZE, BlockOffset(at), 7));
                blocks.remove(&at);
            }
        }
        assert!(full > 0 && heap.iter(SIZE).all(|(block, _, whole)| whole && blocks.contains_key(&block.0)));
        for at in blocks.into_keys() {
            assert!(heap.give(SIZE, BlockOffset(at), 7));
        }
        assert_eq!(heap.iter(SIZE).count(), 0);
        assert!((0..4).all(|_| heap.take(SIZE, 64, 7, &intent).is_some()), "four empty chunks");
        assert!(heap.take(SIZE, 1, 7, &intent).is_none() && heap.take(SIZE, 65, 7, &intent).is_none());
    }

    #[test]
    fn a_changer_that_died_does_not_lose_the_chunk() {
        let heap = heap();
        let intent = AtomicU32::new(0);
        for index in 0..4 {
            heap.chunks[index].word.write(CHANGING | VERSION_STEP | 1);
        }
        assert!(heap.take(SIZE, 9, 7, &intent).is_some());
    }

    #[test]
    fn threads_take_and_give_at_once() {
        let heap = heap();
        std::thread::scope(|scope| {
            for owner in 1..=4u32 {
                let heap = &heap;
                scope.spawn(move || {
                    let intent = AtomicU32::new(0);
                    for round in 0..4_000 {
                        let units = 1 + (round * 7 + owner) % 40;
                        if let Some(block) = heap.take(SIZE, units, owner, &intent) {
                            let has = heap.block_units(SIZE, block);
                            assert!(has >= units);
                            std::hint::spin_loop();
                            assert_eq!(
                                heap.block_units(SIZE, block),
                                has,
                                "a chunk in use changed its class"
                            );
                            assert!(heap.give(SIZE, block, owner));
                        }
                    }
                });
            }
        });
        assert_eq!(heap.iter(SIZE).count(), 0);
    }
}
