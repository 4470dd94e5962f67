//! A lease as its server has it: made, sealed, scanned and read here, however nodes write to it.

use super::mapping::Mapping;
use crate::archive::ArchiveLimits;
use crate::error::{Error, ErrorKind, Origin, Result};
use crate::lease::{
    self, BadCells, LeaseHeader, LeaseIndex, LeaseMemory, NODE_BEAT_OFFSET, NODE_SESSIONS_OFFSET,
    SEAL_OFFSET, SEALED, SERVER_BEAT_OFFSET, ScanReport, SessionCopy, Words,
};
use crate::sync::words::{AtomicU64, fence_full};
use crate::transport::{Region, ServerEnd};
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use xxhash_rust::xxh3::Xxh3;

/// Bytes of the huge pages that are asked for.
pub const HUGE_PAGE_BYTES: u64 = 2 << 20;
/// Memory of the host that a lease must leave free, bytes.
const HOST_RESERVE_BYTES: u64 = 64 << 20;
/// A lease can neither shrink (an access would be a SIGBUS) nor grow, and stays so.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

/// The server's end of a lease in a memfd: it makes, seals, scans and reads it. Safe for any thread.
pub struct ServerLease {
    fd: OwnedFd,
    mapping: Arc<Mapping>,
    header: LeaseHeader,
    bytes: u64,
    huge_pages_refused: Option<String>,
    sealed: AtomicBool,
}

/// Makes a lease: fully allocated, sealed against shrinking and growing, huge pages if asked for and
/// available.
///
/// # Errors
/// `Full` with what was needed if the host has not the memory; `Invalid` for a bad geometry; `Os`.
pub fn create(header: &LeaseHeader, huge_pages: bool) -> Result<ServerLease> {
    header.geometry.check()?;
    let needed = header.geometry.total_bytes();
    let mut refused = None;
    let mut made = None;
    if huge_pages {
        match allocate(needed.next_multiple_of(HUGE_PAGE_BYTES), MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB) {
            Ok(memory) => made = Some(memory),
            Err(error) => refused = Some(error.to_string()),
        }
    }
    let (fd, mapping, bytes) = match made {
        Some(made) => made,
        None => {
            require_memory(needed)?;
            let made = allocate(needed, MemfdFlags::empty())?;
            if huge_pages {
                made.1.advise_huge();
            }
            made
        }
    };
    header.write(&mapping)?;
    Ok(ServerLease {
        fd,
        mapping: Arc::new(mapping),
        header: header.clone(),
        bytes,
        huge_pages_refused: refused,
        sealed: AtomicBool::new(false),
    })
}

impl ServerLease {
    /// The descriptor to pass to the node's processes.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// What it was made with.
    pub fn header(&self) -> &LeaseHeader {
        &self.header
    }

    /// Its memory, for transports that let a card write there. Kept mapped by whoever holds it.
    pub fn region(&self) -> Arc<dyn Region> {
        self.mapping.clone()
    }

    /// Bytes of memory that it takes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Why it has no huge pages although they were asked for, if so.
    pub fn huge_pages_refused(&self) -> Option<&str> {
        self.huge_pages_refused.as_deref()
    }

    /// Seals it: seal word, full fence. A node that has written its cell before is seen by a scan from now
    /// on; one that writes later sees the seal and does not ack (R2). Final.
    pub fn seal(&self) {
        // The offset is inside every lease. The node could clear the word again: that would only deceive
        // itself, since what the scan has read counts and nothing else.
        let _ = self.mapping.store_u64(SEAL_OFFSET, SEALED);
        fence_full();
        self.sealed.store(true, Ordering::Release);
    }

    /// Whether [`Self::seal`] was called. The word in memory, which the node could write, is not asked.
    pub fn is_sealed(&self) -> bool {
        // Acquire: pairs with the Release in `seal`, so that a scan by another thread comes after its fence.
        self.sealed.load(Ordering::Acquire)
    }

    /// Looks at the slot table until two looks at it see the same, `looks_max` times at most. Whether they
    /// did: if every way into the lease is shut, they do.
    ///
    /// # Errors
    /// `Invalid` unless it is sealed.
    pub fn settle(&self, looks_max: u32) -> Result<bool> {
        self.require_sealed()?;
        let geometry = &self.header.geometry;
        let slots = (geometry.heap_offset() - geometry.slots_offset()) as usize / size_of::<u64>();
        let first = geometry.slots_offset() as usize / size_of::<u64>();
        let words = self.mapping.words().get(first..first + slots).unwrap_or_default();
        let mut before = None;
        for _ in 0..looks_max {
            let now = digest(words);
            if before.replace(now) == Some(now) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Reads all slots of a sealed lease.
    ///
    /// # Errors
    /// `Invalid` unless it is sealed.
    pub fn scan(&self, limits: &ArchiveLimits) -> Result<ScanReport> {
        self.require_sealed()?;
        lease::scan(&*self.mapping, &self.header.geometry, limits)
    }

    /// Reads all slots of a sealed lease and indexes its sessions, in one pass.
    ///
    /// # Errors
    /// `Invalid` unless it is sealed.
    pub fn index(&self, limits: &ArchiveLimits) -> Result<(LeaseIndex, BadCells)> {
        self.require_sealed()?;
        LeaseIndex::scan(&*self.mapping, &self.header.geometry, limits)
    }

    /// The archive of a sealed copy, checked (see [`crate::lease::fetch`]).
    ///
    /// # Errors
    /// As [`crate::lease::fetch`]; `Invalid` unless it is sealed.
    pub fn fetch(&self, copy: &SessionCopy, limits: &ArchiveLimits) -> Result<Vec<u8>> {
        self.require_sealed()?;
        lease::fetch(&*self.mapping, &self.header.geometry, copy, limits)
    }

    /// Writes the server's heartbeat for the node to see.
    pub fn beat(&self, beat: u64) {
        // The offset is inside every lease.
        let _ = self.mapping.store_u64(SERVER_BEAT_OFFSET, beat);
    }

    /// The node's heartbeat.
    pub fn node_beat(&self) -> u64 {
        self.mapping.load_u64(NODE_BEAT_OFFSET).unwrap_or_default()
    }

    /// The node's own count of its sessions; believe it only for display.
    pub fn node_sessions(&self) -> u64 {
        self.mapping.load_u64(NODE_SESSIONS_OFFSET).unwrap_or_default()
    }

    fn require_sealed(&self) -> Result<()> {
        if self.is_sealed() {
            return Ok(());
        }
        let what = format!("the lease of node {} is not sealed, so it cannot be read", self.header.node);
        Err(Error::new(ErrorKind::Invalid, Origin::Transport, what))
    }
}

impl ServerEnd for ServerLease {
    fn seal(&self) {
        self.seal();
    }

    fn scan(&self, limits: &ArchiveLimits) -> Result<ScanReport> {
        self.scan(limits)
    }

    fn fetch(&self, copy: &SessionCopy, limits: &ArchiveLimits) -> Result<Vec<u8>> {
        self.fetch(copy, limits)
    }

    fn beat(&self, beat: u64) {
        self.beat(beat);
    }

    fn node_beat(&self) -> u64 {
        self.node_beat()
    }

    fn node_sessions(&self) -> u64 {
        self.node_sessions()
    }
}

/// A hash of words that others may be changing.
fn digest(words: &[AtomicU64]) -> u128 {
    let mut hash = Xxh3::new();
    let mut piece = [0; 512];
    for words in words.chunks(piece.len() / size_of::<u64>()) {
        for (bytes, word) in piece.as_chunks_mut::<8>().0.iter_mut().zip(words) {
            *bytes = word.load(Ordering::Acquire).to_ne_bytes();
        }
        hash.update(&piece[..words.len() * size_of::<u64>()]);
    }
    hash.digest128()
}

/// A memfd of `bytes` bytes with all its memory, sealed and mapped.
fn allocate(bytes: u64, flags: MemfdFlags) -> Result<(OwnedFd, Mapping, u64)> {
    let flags = flags | MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let failed = |what: &str, error: Errno| {
        let what = format!("{what} a lease of {bytes} bytes");
        match error {
            Errno::NOSPC | Errno::NOMEM => {
                Error::new(ErrorKind::Full, Origin::Transport, what).with_source(error)
            }
            error => Error::os(Origin::Transport, what, error),
        }
    };
    let fd =
        rustix::fs::memfd_create("selvage-lease", flags).map_err(|error| failed("cannot make", error))?;
    rustix::fs::ftruncate(&fd, bytes).map_err(|error| failed("cannot size", error))?;
    loop {
        match rustix::fs::fallocate(&fd, FallocateFlags::empty(), 0, bytes) {
            Ok(()) => break,
            Err(Errno::INTR) => {}
            Err(error) => return Err(failed("the host has no memory for", error)),
        }
    }
    rustix::fs::fcntl_add_seals(&fd, SEALS).map_err(|error| failed("cannot seal", error))?;
    let length = usize::try_from(bytes).map_err(|_| failed("cannot map", Errno::NOMEM))?;
    let mapping = Mapping::new(fd.as_fd(), length)?;
    Ok((fd, mapping, bytes))
}

/// Refuses what the host cannot give. Allocating a memfd does not fail on a full host: it calls the
/// out-of-memory killer.
fn require_memory(bytes: u64) -> Result<()> {
    let Some(available) = memory_available() else { return Ok(()) };
    if bytes.saturating_add(HOST_RESERVE_BYTES) <= available {
        return Ok(());
    }
    let what = format!(
        "a lease needs {bytes} bytes of memory and {HOST_RESERVE_BYTES} to spare; the host has {available}: \
         lower memory.lease_bytes or memory.sessions_max"
    );
    Err(Error::new(ErrorKind::Full, Origin::Transport, what))
}

/// What the kernel thinks it could give, and the control group would allow; `None` if neither says.
fn memory_available() -> Option<u64> {
    let host = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
    });
    [host, group_memory_available()].into_iter().flatten().min()
}

/// What this process's control group (version 2) has left, if it has a limit. File pages count as left: they
/// can be dropped.
fn group_memory_available() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?.trim_matches('/');
    let read = |file: &str| std::fs::read_to_string(format!("/sys/fs/cgroup/{path}/{file}")).ok();
    let number = |text: &str| text.trim().parse::<u64>().ok();
    let (max, current) = (number(&read("memory.max")?)?, number(&read("memory.current")?)?);
    let statistics = read("memory.stat")?;
    let file_pages = ["inactive_file ", "active_file "]
        .into_iter()
        .filter_map(|key| number(statistics.lines().find_map(|line| line.strip_prefix(key))?))
        .sum();
    Some(max.saturating_sub(current.saturating_sub(file_pages)))
}
