//! Memory that holds a lease, seen from the side that reads it.

use crate::error::{Error, ErrorKind, Origin, Result};
use crate::sync::words::{AtomicU64, Ordering};

/// Memory of a lease. All accesses are copies or atomic words; no plain reference into it is ever made
/// (invariant 10). Words are 8 bytes, aligned, little-endian.
pub trait LeaseMemory: Send + Sync {
    /// Its size.
    fn bytes(&self) -> u64;
    /// Copies a range out, by relaxed words.
    ///
    /// # Errors
    /// `Corrupt` if it lies outside.
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()>;
    /// Copies into a range, by relaxed words. The caller is the only writer of the words that the range
    /// touches.
    ///
    /// # Errors
    /// `Corrupt` if it lies outside.
    fn write(&self, offset: u64, data: &[u8]) -> Result<()>;
    /// Loads a word with Acquire.
    ///
    /// # Errors
    /// `Corrupt` if it lies outside or is not aligned.
    fn load_u64(&self, offset: u64) -> Result<u64>;
    /// Stores a word with Release.
    ///
    /// # Errors
    /// `Corrupt` if it lies outside or is not aligned.
    fn store_u64(&self, offset: u64, value: u64) -> Result<()>;
}

/// Words that can be read and written as a lease: whatever gives a slice of atomic words is a
/// [`LeaseMemory`].
pub trait Words: Send + Sync {
    /// The words.
    fn words(&self) -> &[AtomicU64];
}

const WORD: usize = size_of::<u64>();

impl<W: Words> LeaseMemory for W {
    fn bytes(&self) -> u64 {
        (self.words().len() * WORD) as u64
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let (words, skip) = range(self.words(), offset, out.len())?;
        let head = out.len().min((WORD - skip) % WORD);
        let (first, rest) = out.split_at_mut(head);
        let mut words = words.iter();
        if !first.is_empty()
            && let Some(word) = words.next()
        {
            first.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes()[skip..skip + head]);
        }
        let (whole, last) = rest.as_chunks_mut::<WORD>();
        for (bytes, word) in whole.iter_mut().zip(&mut words) {
            *bytes = word.load(Ordering::Relaxed).to_ne_bytes();
        }
        if let Some(word) = words.next() {
            last.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes()[..last.len()]);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        let (words, skip) = range(self.words(), offset, data.len())?;
        let (first, rest) = data.split_at(data.len().min((WORD - skip) % WORD));
        let mut words = words.iter();
        if !first.is_empty()
            && let Some(word) = words.next()
        {
            merge(word, skip, first);
        }
        let (whole, last) = rest.as_chunks::<WORD>();
        for (bytes, word) in whole.iter().zip(&mut words) {
            word.store(u64::from_ne_bytes(*bytes), Ordering::Relaxed);
        }
        if let Some(word) = words.next() {
            merge(word, 0, last);
        }
        Ok(())
    }

    fn load_u64(&self, offset: u64) -> Result<u64> {
        Ok(word(self.words(), offset)?.load(Ordering::Acquire))
    }

    fn store_u64(&self, offset: u64, value: u64) -> Result<()> {
        word(self.words(), offset)?.store(value, Ordering::Release);
        Ok(())
    }
}

/// Writes a part of a word; its other bytes stay.
fn merge(word: &AtomicU64, at: usize, bytes: &[u8]) {
    let mut value = word.load(Ordering::Relaxed).to_ne_bytes();
    value[at..at + bytes.len()].copy_from_slice(bytes);
    word.store(u64::from_ne_bytes(value), Ordering::Relaxed);
}

/// The words that a byte range touches, and the bytes before it in the first one.
fn range(words: &[AtomicU64], offset: u64, len: usize) -> Result<(&[AtomicU64], usize)> {
    let found = usize::try_from(offset).ok().and_then(|begin| {
        let end = begin.checked_add(len)?;
        Some((words.get(begin / WORD..end.div_ceil(WORD).max(begin / WORD))?, begin % WORD))
    });
    found.ok_or_else(|| outside(offset, len, words.len()))
}

fn word(words: &[AtomicU64], offset: u64) -> Result<&AtomicU64> {
    let found = usize::try_from(offset)
        .ok()
        .filter(|offset| offset.is_multiple_of(WORD))
        .and_then(|offset| words.get(offset / WORD));
    found.ok_or_else(|| outside(offset, WORD, words.len()))
}

#[cold]
fn outside(offset: u64, len: usize, words: usize) -> Error {
    let what = format!("{len} bytes at {offset} lie outside a lease's {} bytes", words * WORD);
    Error::new(ErrorKind::Corrupt, Origin::Lease, what)
}

/// A lease in private memory, for tests and simulation.
pub struct HeapMemory {
    words: Box<[AtomicU64]>,
}

impl HeapMemory {
    /// Zeroed memory, rounded up to whole words.
    pub fn new(bytes: u64) -> Self {
        let words = usize::try_from(bytes.div_ceil(WORD as u64)).unwrap_or(usize::MAX);
        Self { words: std::iter::repeat_with(|| AtomicU64::new(0)).take(words).collect() }
    }
}

impl Words for HeapMemory {
    fn words(&self) -> &[AtomicU64] {
        &self.words
    }
}
