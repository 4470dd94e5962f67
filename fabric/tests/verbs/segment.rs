//! Memory to push from: as good as a cache segment. The one place of these tests with unsafe code.

use super::support::lease_of;
use selvage_fabric::transport::Region;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A region and a place in it that goes round.
pub struct Segment {
    pub region: Arc<dyn Region>,
    next: AtomicUsize,
}

impl Segment {
    pub fn new() -> Self {
        Self::of(16 << 20)
    }

    pub fn of(bytes: u64) -> Self {
        Self { region: lease_of("segment", bytes).region(), next: AtomicUsize::new(0) }
    }

    /// Copies bytes in. They stay until as much as a quarter of the region was placed after them, which is
    /// far more than these tests have under way at once.
    pub fn place(&self, bytes: &[u8]) -> &[u8] {
        let room = self.region.bytes();
        assert!(bytes.len() <= room / 4, "{} bytes", bytes.len());
        let taken = bytes.len().next_multiple_of(64);
        let begin = self.next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| {
            Some(if next % room + taken > room { taken } else { next % room + taken })
        });
        let begin = begin.map_or(0, |next| if next % room + taken > room { 0 } else { next % room });
        // SAFETY: `begin + taken` is inside the region (above), which is mapped as long as `self`.
        let target = unsafe { self.region.address().add(begin) };
        // SAFETY: mapped and writable; `bytes` is other memory, since callers pass what they have made on the
        // heap; nobody else uses this piece: it comes round again only after many others (contract above).
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), target, bytes.len()) };
        // SAFETY: initialised above, and not written while it is in use (contract above).
        unsafe { std::slice::from_raw_parts(target, bytes.len()) }
    }
}
