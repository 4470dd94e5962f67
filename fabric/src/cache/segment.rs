//! A segment: its windows, and how it is created, found and checked.

use super::CacheSpec;
use super::book::Book;
use super::heap::{Heap, HeapSize};
use super::layout::{
    BookRecord, Entry, Geometry, HEADER_BYTES, Header, HeapPieces, HoldRecord, LAYOUT_VERSION, MAGIC, Piece,
    Shard, Tally, Timing, ViewBuffer, Word, segment_state,
};
use super::memory::{Array, Memory};
use super::owner::OwnerTable;
use super::process::{Liveness, ProcessTable};
use crate::error::{Error, ErrorKind, Origin, Result};
use crate::ident::Incarnation;
use crate::limits::{BLOCK_UNIT_BYTES, NAME_BYTES_MAX};
use crate::sync::words::{AtomicU32, Ordering};
use rustix::fs::{FallocateFlags, Mode};
use rustix::shm;
use shared_memory::{ShmemConf, ShmemError};
use std::sync::Arc;

/// Where POSIX shared memory lives on Linux.
const SHM_DIR: &str = "/dev/shm";

/// The windows into one segment. Who looks through them is `Inner`'s affair.
pub struct Segment {
    pub memory: Arc<Memory>,
    pub spec: CacheSpec,
    pub geometry: Geometry,
    header: Array<Header>,
    pub views: Array<ViewBuffer>,
    pub processes: ProcessTable,
    pub tallies: Array<Tally>,
    pub push_times: Array<Timing>,
    pub hold_owners: OwnerTable,
    pub holds: Array<HoldRecord>,
    pub shards: Array<Shard>,
    pub heads: Array<AtomicU32>,
    pub entry_owners: OwnerTable,
    pub entries: Array<Entry>,
    pub heap: Heap,
    pub heap_size: HeapSize,
    pub books: Vec<Book>,
}

impl Segment {
    /// A new segment on private memory.
    pub fn anonymous(spec: &CacheSpec, liveness: Arc<dyn Liveness>) -> Result<Self> {
        let geometry = Geometry::new(spec)?;
        let memory = Arc::new(Memory::private(geometry.total_bytes)?);
        initialise(&memory, spec, &geometry)?;
        Self::over(memory, liveness)
    }

    /// Creates the shared object `name`, fully allocated.
    pub fn create(spec: &CacheSpec, name: &str, liveness: Arc<dyn Liveness>) -> Result<Self> {
        let geometry = Geometry::new(spec)?;
        let path = shm_path(name);
        let mapping = ShmemConf::new().os_id(&path).size(geometry.total_bytes).create();
        let mut mapping = mapping.map_err(|error| match error {
            ShmemError::MappingIdExists => Error::new(
                ErrorKind::Conflict,
                Origin::Cache,
                format!("the cache segment {name} exists already; another process of this node has made it"),
            ),
            other => shm_error(format!("cannot create the cache segment {name}"), other),
        })?;
        // From here on, dropping `mapping` on an error removes the name again.
        allocate(&path, geometry.total_bytes)?;
        mapping.set_owner(false);
        let memory = Arc::new(Memory::shared(mapping)?);
        let made = initialise(&memory, spec, &geometry).and_then(|()| Self::over(memory, liveness));
        if made.is_err() {
            unlink(name)?;
        }
        made
    }

    /// Attaches to the shared object `name`.
    pub fn attach(name: &str, liveness: Arc<dyn Liveness>) -> Result<Self> {
        Self::over(Arc::new(map(name)?), liveness)
    }

    /// Checks what the memory says it is, and opens the windows.
    pub fn over(memory: Arc<Memory>, liveness: Arc<dyn Liveness>) -> Result<Self> {
        let spec = checked_spec(&memory)?;
        let geometry = Geometry::new(&spec).map_err(|error| corrupt("its sizes").with_source(error))?;
        if geometry.total_bytes > memory.bytes() {
            return Err(too_small(memory.bytes(), geometry.total_bytes));
        }
        let records = memory.array::<BookRecord>(geometry.book_records)?;
        let books = (0..spec.books)
            .map(|index| Book::new(&memory, &records, index, geometry.books[index as usize]))
            .collect::<Result<Vec<_>>>()?;
        let chunk_units = (geometry.chunk_bytes / BLOCK_UNIT_BYTES as u64) as u32;
        let heap_size = HeapSize { chunks: geometry.cache.chunks.count as u32, chunk_units };
        Ok(Self {
            header: memory.array(HEADER)?,
            views: memory.array(geometry.views)?,
            processes: ProcessTable::new(memory.array(geometry.processes)?, liveness),
            tallies: memory.array(geometry.tallies)?,
            push_times: memory.array(geometry.push_times)?,
            hold_owners: owners(&memory, geometry.hold_owners, geometry.hold_groups)?,
            holds: memory.array(geometry.holds)?,
            shards: memory.array(geometry.shards)?,
            heads: memory.array(geometry.heads)?,
            entry_owners: owners(&memory, geometry.entry_owners, geometry.entry_groups)?,
            entries: memory.array(geometry.entries)?,
            heap: heap(&memory, geometry.cache)?,
            heap_size,
            books,
            geometry,
            spec,
            memory,
        })
    }

    /// The header.
    #[inline]
    pub fn header(&self) -> &Header {
        &self.header[0]
    }

    /// Ends the segment's incarnation.
    pub fn poison(&self) {
        self.header().state.write(segment_state::POISONED);
    }
}

const HEADER: Piece = Piece { offset: 0, count: 1 };

pub(super) fn owners(memory: &Arc<Memory>, words: Piece, groups: Piece) -> Result<OwnerTable> {
    Ok(OwnerTable::new(memory.array(words)?, memory.array(groups)?))
}

pub(super) fn heap(memory: &Arc<Memory>, pieces: HeapPieces) -> Result<Heap> {
    Ok(Heap::new(memory.array(pieces.hints)?, memory.array(pieces.chunks)?, memory.array(pieces.units)?))
}

/// Removes the name; who is attached keeps the memory.
pub fn unlink(name: &str) -> Result<()> {
    match shm::unlink(shm_path(name)) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(Error::os(Origin::Cache, format!("cannot remove the cache segment {name}"), error)),
    }
}

/// Poisons and removes every segment named `<prefix><16 hex digits>` but `keep`; returns how many.
pub fn remove_stale(prefix: &str, keep: Option<&str>) -> Result<u32> {
    let folder = std::fs::read_dir(SHM_DIR)
        .map_err(|error| Error::os(Origin::Cache, format!("cannot read {SHM_DIR}"), error))?;
    let mut removed = 0;
    for file in folder.flatten() {
        let Ok(name) = file.file_name().into_string() else { continue };
        let is_ours = name
            .strip_prefix(prefix)
            .is_some_and(|hex| hex.len() == 16 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
        if !is_ours || keep == Some(name.as_str()) {
            continue;
        }
        // One that cannot be mapped or checked has never been used, or not by this version: removing its name
        // is enough.
        if let Ok(memory) = map(&name).map(Arc::new)
            && checked_spec(&memory).is_ok()
        {
            memory.array::<Header>(HEADER)?[0].state.write(segment_state::POISONED);
        }
        unlink(&name)?;
        removed += 1;
    }
    Ok(removed)
}

fn map(name: &str) -> Result<Memory> {
    let path = shm_path(name);
    let file = shm::open(&path, shm::OFlags::RDWR, Mode::empty())
        .map_err(|error| Error::os(Origin::Cache, format!("cannot open the cache segment {name}"), error))?;
    let stat = rustix::fs::fstat(&file)
        .map_err(|error| Error::os(Origin::Cache, format!("cannot look at the segment {name}"), error))?;
    let me = rustix::process::geteuid().as_raw();
    if stat.st_uid != me || stat.st_mode & 0o777 != 0o600 {
        return Err(Error::new(
            ErrorKind::Denied,
            Origin::Cache,
            format!(
                "the segment {name} belongs to user {} with mode {:o}; it must be user {me}'s with mode 600",
                stat.st_uid,
                stat.st_mode & 0o777
            ),
        ));
    }
    // An empty mapping is refused by the kernel; say what it means.
    if stat.st_size == 0 {
        return Err(not_ready());
    }
    let mapping = ShmemConf::new()
        .os_id(&path)
        .open()
        .map_err(|error| shm_error(format!("cannot map the cache segment {name}"), error))?;
    Memory::shared(mapping)
}

/// Takes every page now, so that a small /dev/shm or a full host is an error here and never a SIGBUS later.
fn allocate(path: &str, bytes: usize) -> Result<()> {
    let file = shm::open(path, shm::OFlags::RDWR, Mode::empty())
        .map_err(|error| Error::os(Origin::Cache, format!("cannot open the new segment {path}"), error))?;
    loop {
        match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes as u64) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error @ (rustix::io::Errno::NOSPC | rustix::io::Errno::NOMEM)) => {
                return Err(no_space(bytes).with_source(std::io::Error::from(error)));
            }
            Err(error) => {
                return Err(Error::os(Origin::Cache, format!("cannot allocate {bytes} bytes"), error));
            }
        }
    }
}

fn no_space(bytes: usize) -> Error {
    let sizes = rustix::fs::statvfs(SHM_DIR).map_or_else(
        |_| String::new(),
        |fs| {
            let mib = |blocks: u64| (blocks * fs.f_frsize) >> 20;
            format!(" ({SHM_DIR} has {} MiB, {} MiB free)", mib(fs.f_blocks), mib(fs.f_bavail))
        },
    );
    Error::new(
        ErrorKind::Full,
        Origin::Cache,
        format!(
            "no room for a cache segment of {} MiB{sizes}: lower `cache_bytes`, `lease_bytes` or \
             `sessions_max` in [memory], or enlarge {SHM_DIR} (mount -o remount,size=..., \
             docker run --shm-size=...)",
            bytes.div_ceil(1 << 20)
        ),
    )
}

/// Writes the header; everything else is zero, which means empty. The version word is last.
fn initialise(memory: &Arc<Memory>, spec: &CacheSpec, geometry: &Geometry) -> Result<()> {
    let windows = memory.array::<Header>(HEADER)?;
    let header = &windows[0];
    header.magic.write(MAGIC);
    header.total_bytes.write(geometry.total_bytes as u64);
    header.incarnation.write(spec.incarnation.0);
    header.cache_bytes.write(spec.cache_bytes);
    header.lease_bytes.write(spec.lease_bytes);
    header.lock_hold_ms.write(spec.lock_hold_ms);
    header.sessions_max.write(spec.sessions_max);
    header.books.write(spec.books);
    header.archive_bytes_max.write(spec.archive_bytes_max);
    header.processes_max.write(spec.processes_max);
    header.waiters_max.write(spec.waiters_max);
    header.node_bytes.write(spec.node.len() as u32);
    for (to, from) in header.node.iter().zip(spec.node.bytes()) {
        to.store(from, Ordering::Relaxed);
    }
    header.state.write(segment_state::ALIVE);
    header.checksum.write(header_checksum(header));
    kill_point!("start.allocated");
    header.version.write(LAYOUT_VERSION);
    Ok(())
}

/// Reads the spec back, trusting nothing: another version, a crash or an accident may have written it.
fn checked_spec(memory: &Arc<Memory>) -> Result<CacheSpec> {
    if memory.bytes() < HEADER_BYTES {
        return Err(too_small(memory.bytes(), HEADER_BYTES));
    }
    let windows = memory.array::<Header>(HEADER)?;
    let header = &windows[0];
    let version = header.version.read();
    if version == 0 {
        return Err(not_ready());
    }
    if header.magic.read() != MAGIC {
        return Err(corrupt("its first bytes"));
    }
    if version != LAYOUT_VERSION {
        return Err(Error::new(
            ErrorKind::VersionMismatch,
            Origin::Cache,
            format!(
                "the cache segment has layout version {version}, this build knows {LAYOUT_VERSION}: let all \
                 processes of the node use the same build"
            ),
        ));
    }
    if header.checksum.read() != header_checksum(header) {
        return Err(corrupt("its header's checksum"));
    }
    let total = header.total_bytes.read() as usize;
    if total > memory.bytes() {
        return Err(too_small(memory.bytes(), total));
    }
    let length = header.node_bytes.read() as usize;
    let node: Vec<u8> = header.node.iter().take(length).map(|byte| byte.load(Ordering::Relaxed)).collect();
    let node = String::from_utf8(node).map_err(|_| corrupt("the node's name"))?;
    if length > NAME_BYTES_MAX {
        return Err(corrupt("the node's name"));
    }
    Ok(CacheSpec {
        node,
        incarnation: Incarnation(header.incarnation.read()),
        sessions_max: header.sessions_max.read(),
        cache_bytes: header.cache_bytes.read(),
        lease_bytes: header.lease_bytes.read(),
        books: header.books.read(),
        archive_bytes_max: header.archive_bytes_max.read(),
        processes_max: header.processes_max.read(),
        waiters_max: header.waiters_max.read(),
        lock_hold_ms: header.lock_hold_ms.read(),
    })
}

fn header_checksum(header: &Header) -> u32 {
    let wide = [
        header.magic.read(),
        header.total_bytes.read(),
        header.incarnation.read(),
        header.cache_bytes.read(),
        header.lease_bytes.read(),
        header.lock_hold_ms.read(),
    ];
    let narrow = [
        header.sessions_max.read(),
        header.books.read(),
        header.archive_bytes_max.read(),
        header.processes_max.read(),
        header.waiters_max.read(),
        header.node_bytes.read(),
    ];
    let mut bytes = Vec::with_capacity(128);
    wide.iter().for_each(|word| bytes.extend(word.to_le_bytes()));
    narrow.iter().for_each(|word| bytes.extend(word.to_le_bytes()));
    bytes.extend(header.node.iter().map(|byte| byte.load(Ordering::Relaxed)));
    crc32c::crc32c(&bytes)
}

fn shm_path(name: &str) -> String {
    format!("/{name}")
}

fn shm_error(what: String, error: ShmemError) -> Error {
    let source = match &error {
        ShmemError::MapCreateFailed(code)
        | ShmemError::MapOpenFailed(code)
        | ShmemError::UnknownOsError(code) => std::io::Error::from_raw_os_error(*code as i32),
        other => std::io::Error::other(other.to_string()),
    };
    Error::os(Origin::Cache, what, source)
}

fn not_ready() -> Error {
    Error::new(ErrorKind::NotReady, Origin::Cache, "the cache segment is not initialised yet")
}

fn too_small(has: usize, needs: usize) -> Error {
    let text = format!("the cache segment has {has} bytes where it needs {needs}");
    Error::new(ErrorKind::TooSmall, Origin::Cache, text)
}

fn corrupt(what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, Origin::Cache, format!("the cache segment is damaged: {what} is wrong"))
}
