//! Segments as named objects: creation, errors from raw bytes, stale ones.

use super::*;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// A name of its own in /dev/shm; removed when dropped.
struct Name(String);

impl Name {
    fn new(what: &str) -> Self {
        Self(format!("selvage-test-{}-{what}-0123456789abcdef", std::process::id()))
    }

    fn path(&self) -> PathBuf {
        PathBuf::from("/dev/shm").join(&self.0)
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        Cache::unlink(&self.0).unwrap();
        assert!(!self.path().exists());
    }
}

fn lock_file() -> (tempfile::TempDir, Arc<LockFile>) {
    let dir = tempfile::tempdir().unwrap();
    let file = LockFile::open(&dir.path().join("lock")).unwrap();
    (dir, Arc::new(file))
}

#[test]
fn created_attached_and_gone() {
    let (_dir, lock) = lock_file();
    let name = Name::new("life");
    assert_eq!(Cache::attach(&name.0, lock.clone()).err().unwrap().kind, ErrorKind::Os);
    let cache = Cache::create(&spec(), &name.0, lock.clone()).unwrap();
    let file = std::fs::metadata(name.path()).unwrap();
    assert_eq!(file.permissions().mode() & 0o777, 0o600);
    use std::os::unix::fs::MetadataExt;
    assert_eq!(file.len(), spec().segment_bytes().unwrap());
    assert!(file.blocks() * 512 >= file.len(), "every page is taken before the first use");
    assert_eq!(Cache::create(&spec(), &name.0, lock.clone()).err().unwrap().kind, ErrorKind::Conflict);
    insert(&cache, 1, 5, 100).release();

    let other = Cache::attach(&name.0, lock.clone()).unwrap();
    assert_ne!(other.process().slot, cache.process().slot);
    assert_eq!(other.open_read(&id(1)).unwrap().unwrap().bytes(), [5; 100]);
    other.poison();
    assert_eq!(Cache::attach(&name.0, lock).err().unwrap().kind, ErrorKind::OwnershipLost);
}

/// What attaching says of a segment whose bytes were changed in this way.
fn attach_error(what: &str, change: impl FnOnce(&mut Vec<u8>)) -> ErrorKind {
    let (_dir, lock) = lock_file();
    let name = Name::new(what);
    drop(Cache::create(&spec(), &name.0, lock.clone()).unwrap());
    let mut bytes = std::fs::read(name.path()).unwrap();
    change(&mut bytes);
    std::fs::write(name.path(), &bytes).unwrap();
    Cache::attach(&name.0, lock).err().unwrap().kind
}

#[test]
fn raw_bytes_that_are_no_segment_have_errors_of_their_own() {
    let version = 8..12;
    assert_eq!(attach_error("a", |bytes| bytes[version].fill(0)), ErrorKind::NotReady);
    assert_eq!(attach_error("b", |bytes| bytes.clear()), ErrorKind::NotReady);
    assert_eq!(attach_error("c", |bytes| bytes[8] = 77), ErrorKind::VersionMismatch);
    assert_eq!(attach_error("d", |bytes| bytes.truncate(100)), ErrorKind::TooSmall);
    assert_eq!(attach_error("e", |bytes| bytes.truncate(8192)), ErrorKind::TooSmall);
    assert_eq!(attach_error("f", |bytes| bytes[0] ^= 1), ErrorKind::Corrupt);
    // Every byte of the fixed words counts.
    for offset in (16..112).step_by(7) {
        assert_eq!(attach_error("g", |bytes| bytes[offset] ^= 0x10), ErrorKind::Corrupt, "byte {offset}");
    }
}

#[test]
fn a_segment_that_others_could_write_is_refused() {
    let (_dir, lock) = lock_file();
    let name = Name::new("mode");
    drop(Cache::create(&spec(), &name.0, lock.clone()).unwrap());
    std::fs::set_permissions(name.path(), std::fs::Permissions::from_mode(0o666)).unwrap();
    let error = Cache::attach(&name.0, lock).err().unwrap();
    assert_eq!(error.kind, ErrorKind::Denied);
    assert!(error.to_string().contains("666"));
}

#[test]
fn a_full_dev_shm_is_an_error_that_says_what_to_do() {
    let (_dir, lock) = lock_file();
    let name = Name::new("full");
    let huge = CacheSpec { cache_bytes: 1 << 37, ..spec() };
    let free = rustix::fs::statvfs("/dev/shm").unwrap();
    assert!(free.f_bavail * free.f_frsize < 1 << 37, "this host is larger than the test expects");
    let error = Cache::create(&huge, &name.0, lock).err().unwrap();
    assert_eq!(error.kind, ErrorKind::Full);
    let text = error.to_string();
    assert!(
        text.contains("/dev/shm has") && text.contains("cache_bytes") && text.contains("remount"),
        "{text}"
    );
    assert!(!name.path().exists());
}

#[test]
fn stale_segments_of_this_node_are_poisoned_and_removed() {
    let (_dir, lock) = lock_file();
    let prefix = format!("selvage-test-{}-stale", std::process::id());
    let name = |end: &str| Name(format!("{prefix}{end}"));
    let (old, new) = (name("-00000000000000aa"), name("-00000000000000bb"));
    let (other_node, junk) = (name("-b-00000000000000cc"), name("-00000000000000dd"));
    let stale = Cache::create(&spec(), &old.0, lock.clone()).unwrap();
    let kept = Cache::create(&spec(), &new.0, lock.clone()).unwrap();
    let other = Cache::create(&spec(), &other_node.0, lock).unwrap();
    std::fs::write(junk.path(), b"junk").unwrap();
    std::fs::set_permissions(junk.path(), std::fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(Cache::remove_stale(&prefix, Some(&new.0)).unwrap(), 2);
    assert!(stale.is_poisoned() && !kept.is_poisoned() && !other.is_poisoned());
    assert!(!old.path().exists() && !junk.path().exists());
    assert!(new.path().exists() && other_node.path().exists());
}

#[test]
fn bad_specs_are_refused() {
    let bad = [
        CacheSpec { node: String::new(), ..spec() },
        CacheSpec { sessions_max: 0, ..spec() },
        CacheSpec { books: 0, ..spec() },
        CacheSpec { processes_max: 257, ..spec() },
        CacheSpec { archive_bytes_max: 0, ..spec() },
        CacheSpec { cache_bytes: 0, ..spec() },
        CacheSpec { lease_bytes: u64::MAX, ..spec() },
    ];
    for spec in bad {
        assert_eq!(Cache::anonymous(&spec).err().unwrap().kind, ErrorKind::Invalid);
    }
}

#[test]
fn chunks_hold_the_largest_archive() {
    assert_eq!(chunk_bytes(1), 1 << 20);
    assert_eq!(chunk_bytes(1 << 20), 1 << 20);
    assert_eq!(chunk_bytes((1 << 20) + 1), 5 << 18);
    assert_eq!(chunk_bytes(16 << 20), 16 << 20);
}

/// The bytes of a new segment's first page, and where everything lies, as numbers that must not change by
/// accident.
#[test]
fn the_layout_is_what_it_was() {
    let (_dir, lock) = lock_file();
    let name = Name::new("golden");
    // Gone again, so that no pid of this run is in the first page.
    drop(Cache::create(&CacheSpec { incarnation: Incarnation(5), ..spec() }, &name.0, lock).unwrap());
    let bytes = std::fs::read(name.path()).unwrap();
    let geometry = format!("{:?}", super::super::layout::Geometry::new(&spec()).unwrap());
    let page = &bytes[..super::super::layout::HEADER_BYTES];
    let found = (crc32c::crc32c(page), crc32c::crc32c(geometry.as_bytes()), bytes.len());
    let golden = (2_991_934_121, 3_526_697_859, 9_302_016);
    assert_eq!((LAYOUT_VERSION, found), (3, golden), "a byte has moved: bump LAYOUT_VERSION");
}
