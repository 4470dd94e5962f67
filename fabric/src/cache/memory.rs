//! The memory behind a segment, and typed windows into it. The only place of the cache that deals in
//! addresses.

use super::layout::Piece;
use crate::error::{Error, ErrorKind, Origin, Result};
use crate::transport::Region;
use rustix::mm::{MapFlags, ProtFlags};
use shared_memory::Shmem;
use std::ops::Index;
use std::ptr::NonNull;
use std::sync::Arc;

/// Types that may lie in shared memory and be seen through `&T` while other processes change them.
///
/// # Safety
/// `repr(C)`, nothing but atomics inside, every bit pattern valid.
pub unsafe trait Words {}

/// A mapped segment: shared between processes, or private to this one. Zeroed when new. Unmapped when
/// dropped.
pub struct Memory {
    base: NonNull<u8>,
    bytes: usize,
    backing: Backing,
}

enum Backing {
    /// Unmaps itself.
    Shared(#[allow(dead_code, reason = "kept for its drop, which unmaps")] Shmem),
    Private,
}

// SAFETY: both backings stay mapped, readable and writable, until they are dropped with the `Memory`; neither
// field is ever changed.
unsafe impl Region for Memory {
    fn address(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    fn bytes(&self) -> usize {
        self.bytes
    }
}

// SAFETY: a `Memory` is an address range and its owner. All access goes through atomics, or through ranges
// that the cache's protocol gives to one party at a time (invariants 2 and 7), so it does not matter which
// thread has it.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// Takes a shared mapping over.
    pub fn shared(mapping: Shmem) -> Result<Self> {
        let base = NonNull::new(mapping.as_ptr())
            .ok_or_else(|| Error::new(ErrorKind::Os, Origin::Cache, "the segment was mapped nowhere"))?;
        Ok(Self { base, bytes: mapping.len(), backing: Backing::Shared(mapping) })
    }

    /// Private zeroed memory.
    pub fn private(bytes: usize) -> Result<Self> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no existing memory.
        let base = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), bytes, protection, flags) }
            .map_err(|error| Error::os(Origin::Cache, format!("cannot map {bytes} bytes"), error))?;
        let base = NonNull::new(base.cast())
            .ok_or_else(|| Error::new(ErrorKind::Os, Origin::Cache, "memory was mapped nowhere"))?;
        Ok(Self { base, bytes, backing: Backing::Private })
    }

    /// Bytes that are mapped.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// A typed window.
    ///
    /// # Errors
    /// `TooSmall` if the piece does not lie inside.
    pub fn array<T: Words>(self: &Arc<Self>, piece: Piece) -> Result<Array<T>> {
        let bytes = piece.count.checked_mul(size_of::<T>());
        let end = bytes.and_then(|bytes| piece.offset.checked_add(bytes));
        if end.is_none_or(|end| end > self.bytes) || !piece.offset.is_multiple_of(align_of::<T>()) {
            return Err(Error::new(
                ErrorKind::TooSmall,
                Origin::Cache,
                format!("the segment has {} bytes, fewer than its layout needs", self.bytes),
            ));
        }
        // SAFETY: the offset lies inside the mapping (checked above), so the sum stays in one allocation.
        let start = unsafe { self.base.add(piece.offset) };
        Ok(Array { start: start.cast(), count: piece.count, memory: self.clone() })
    }

    /// The address of `bytes` bytes at `offset`, for the heap.
    ///
    /// # Panics
    /// If they do not lie inside: the caller goes by the layout that was checked at attach.
    pub fn range(&self, offset: usize, bytes: usize) -> NonNull<[u8]> {
        assert!(offset <= self.bytes && bytes <= self.bytes - offset, "a block outside its segment");
        // SAFETY: the offset lies inside the mapping (asserted above).
        let start = unsafe { self.base.add(offset) };
        NonNull::slice_from_raw_parts(start, bytes)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Backing::Private = self.backing {
            // SAFETY: the range was mapped by `private` with this length, nobody else unmaps it, and every
            // window into it keeps the `Memory` alive, so none is left.
            let result = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.bytes) };
            debug_assert!(result.is_ok());
        }
    }
}

/// A window of `T`s in a segment; keeps the mapping alive.
pub struct Array<T> {
    start: NonNull<T>,
    count: usize,
    memory: Arc<Memory>,
}

// SAFETY: `T: Words` holds atomics only, and the memory behind is `Send` and `Sync`.
unsafe impl<T: Words> Send for Array<T> {}
// SAFETY: as above.
unsafe impl<T: Words> Sync for Array<T> {}

impl<T> Clone for Array<T> {
    fn clone(&self) -> Self {
        Self { start: self.start, count: self.count, memory: self.memory.clone() }
    }
}

impl<T: Words> Array<T> {
    /// Number of elements.
    pub fn len(&self) -> u32 {
        self.count as u32
    }

    /// All elements.
    #[inline]
    pub fn as_slice(&self) -> &[T] {
        debug_assert!(self.memory.bytes >= self.count * size_of::<T>());
        // SAFETY: `Memory::array` checked bounds and alignment; the mapping lives as long as `self.memory`;
        // `T: Words` makes every bit pattern valid and shared change allowed (invariant 10).
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.count) }
    }
}

impl<T: Words> Index<u32> for Array<T> {
    type Output = T;

    /// # Panics
    /// If out of bounds. Indices come from words that only this node's processes write (invariant 7), so that
    /// is a programmer's error.
    #[inline]
    fn index(&self, index: u32) -> &T {
        &self.as_slice()[index as usize]
    }
}
