//! A lease's memfd, or memory of this process alone, mapped.
//!
//! Invariants of [`Mapping`]: `base` is the page-aligned start of a shared, readable and writable mapping of
//! `bytes` bytes (a multiple of 8) that lives until the drop; it is anonymous, or its file is sealed against
//! shrinking and was fully allocated, so no access inside can fault. Other processes and network cards may
//! write there at any time, so all access is by atomic words, but for the copy of an archive into a block
//! that is this push's alone.

use crate::error::{Error, Origin, Result};
use crate::lease::Words;
use crate::sync::words::AtomicU64;
use crate::transport::Region;
use rustix::mm::{Advice, MapFlags, ProtFlags};
use std::ffi::c_void;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

/// Shared memory, mapped into this process.
pub struct Mapping {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread; access is by atomics and by `copy_in`, whose
// contract covers several threads.
unsafe impl Send for Mapping {}
// SAFETY: as for `Send`.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the whole of a file that is sealed against shrinking and has `bytes` allocated bytes.
    pub(in crate::transport) fn new(fd: BorrowedFd<'_>, bytes: usize) -> Result<Self> {
        let bytes = bytes & !(size_of::<AtomicU64>() - 1);
        let flags = MapFlags::SHARED;
        // SAFETY: a null hint lets the kernel choose the address, so no existing mapping is touched; the
        // caller has checked that the file has `bytes` bytes and cannot shrink.
        let base = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, flags, fd, 0)
        };
        Self::mapped(base, bytes, "a lease")
    }

    /// Zeroed memory that belongs to no file. Shared, so that a forked child does not copy its pages away
    /// from under a card.
    #[cfg_attr(not(feature = "verbs"), allow(dead_code, reason = "only cards need it"))]
    pub(in crate::transport) fn anonymous(bytes: usize) -> Result<Self> {
        let bytes = bytes.next_multiple_of(size_of::<AtomicU64>());
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a null hint lets the kernel choose the address, so no existing mapping is touched.
        let base =
            unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), bytes, protection, MapFlags::SHARED) };
        Self::mapped(base, bytes, "a buffer")
    }

    fn mapped(base: rustix::io::Result<*mut c_void>, bytes: usize, what: &str) -> Result<Self> {
        base.ok().and_then(|base| NonNull::new(base.cast())).map(|base| Self { base, bytes }).ok_or_else(
            || {
                let error = base.err().unwrap_or(rustix::io::Errno::NOMEM);
                Error::os(Origin::Transport, format!("cannot map {what} of {bytes} bytes"), error)
            },
        )
    }

    /// Asks for transparent huge pages. Only a hint: without them everything works the same.
    pub(in crate::transport) fn advise_huge(&self) {
        // SAFETY: the range is exactly this mapping, and the advice does not change its contents.
        let _ = unsafe { rustix::mm::madvise(self.base.as_ptr().cast(), self.bytes, Advice::LinuxHugepage) };
    }

    /// Copies an archive into a free block. Out of bounds: false, and nothing is written.
    ///
    /// The caller owns the block: no other push writes there (invariant 5), and no cell that counts names it
    /// (invariant 4).
    pub(in crate::transport) fn copy_in(&self, offset: u64, data: &[u8]) -> bool {
        let Ok(begin) = usize::try_from(offset) else { return false };
        if begin.checked_add(data.len()).is_none_or(|end| end > self.bytes) {
            return false;
        }
        #[cfg(feature = "loom")]
        if crate::lease::LeaseMemory::write(self, offset, data).is_ok() {
            // A model checker sees words only.
            return true;
        }
        // SAFETY: `begin <= bytes` was checked above, so the pointer stays inside the mapping.
        let target = unsafe { self.base.as_ptr().add(begin) };
        // SAFETY: `data` is readable, and `target` is writable for its length (bounds checked above; struct
        // invariant). They do not overlap: no reference into a lease is ever made (invariant 10), so `data`
        // is other memory. Data race: no thread of this node touches the block meanwhile (caller's contract,
        // invariants 4 and 5); the server, another process, reads it only after it has sealed the lease, by
        // atomic words, and checks what it got (invariant 6). JUSTIFICATION: relaxed word stores instead of
        // this memcpy take 3.3 times as long for 1 KiB (40 against 12 ns), 1.8 times for 16 KiB; the copy is
        // the largest part of a push.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), target, data.len()) };
        true
    }
}

// SAFETY: `base` is mapped readable and writable for `bytes` bytes until the drop, and neither field changes
// (struct invariant).
unsafe impl Region for Mapping {
    fn address(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Words for Mapping {
    fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is page-aligned, `bytes` long and lives as long as `self` (struct invariant);
        // every bit pattern is an `AtomicU64`, and writes by other processes are what atomics allow.
        // `copy_in`'s plain writes go to blocks that no thread of this process reads meanwhile (its
        // contract).
        unsafe {
            std::slice::from_raw_parts(
                self.base.as_ptr().cast::<AtomicU64>(),
                self.bytes / size_of::<AtomicU64>(),
            )
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is exactly the mapping made in `new`, and no reference into it outlives `self`.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}
