//! Reading an attribute of a cached session does not allocate, copy, or enter the kernel.
//!
//! Allocations are counted; a value's address is looked up in the process's mappings; and the kernel itself
//! is asked to kill the reader at any system call (seccomp's strict mode), in a child process that is
//! attached to the same node.

use rustix::thread::SecureComputingMode;
use selvage_bench::cluster::{BenchCluster, NODE, Shape, open, product_for_tests};
use selvage_bench::sample;
use selvage_fabric::archive::{Value, ValueRef};
use selvage_fabric::node::{AttachOptions, Node, OpenMode, Session};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::hint::black_box;
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Reads of each kind.
const READS: u64 = 100_000;
const CHILD_WAIT: Duration = Duration::from_secs(30);
/// What a child is told: the configuration, the cookie as a header, and whether it shall break the rule.
const CHILD_VARIABLES: [&str; 3] = ["SELVAGE_READS_CONFIG", "SELVAGE_READS_COOKIE", "SELVAGE_READS_SIN"];
/// Verdicts of a child on its standard error.
const CLEAN: &str = "verdict: clean";
const CLEAN_LINE: &[u8] = b"verdict: clean\n";
const KILLED: &str = "verdict: killed";

thread_local! {
    /// Allocations of this thread. Constant and without a destructor, so that counting never allocates.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

// SAFETY: every call goes on to the system's allocator unchanged, which keeps the contract of `GlobalAlloc`.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller keeps `alloc`'s contract, and this is the same call.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` came from `alloc` above with this layout, that is from the system's allocator.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[test]
fn cached_attribute_read_does_not_allocate_copy_or_enter_the_kernel() {
    if std::env::var_os(CHILD_VARIABLES[0]).is_some() {
        child();
    }
    let mut cluster = BenchCluster::start(product_for_tests().unwrap(), &Shape::default()).unwrap();
    let attributes = sample::attributes(sample::ARCHIVE_BYTES).unwrap();
    let cookie = cluster.session(&attributes, 2).unwrap();
    for mode in [OpenMode::ReadOnly, OpenMode::Exclusive] {
        let session = open(cluster.node().unwrap(), &cookie, mode).unwrap();
        reads_do_not_allocate(&session);
        values_are_in_the_cache(&session, &attributes, &cluster.cluster().unwrap().config().segment_prefix());
    }
    let session = open(cluster.node().unwrap(), &cookie, OpenMode::ReadOnly).unwrap();
    let header = cluster.node().unwrap().set_cookie(&session);
    let header = header.split(';').next().unwrap().to_owned();
    drop(session);
    let config = cluster.cluster().unwrap().folder().unwrap().config();
    assert_eq!(verdict_of_child(&config, &header, false), CLEAN);
    assert_eq!(verdict_of_child(&config, &header, true), KILLED, "a system call must be noticed");
    cluster.stop().unwrap();
}

fn read_all(session: &Session) {
    for name in sample::READ {
        assert!(black_box(session.get(black_box(name))).is_some());
    }
}

fn reads_do_not_allocate(session: &Session) {
    let allocations = |work: &dyn Fn()| {
        let before = ALLOCATIONS.get();
        work();
        ALLOCATIONS.get() - before
    };
    assert_eq!(allocations(&|| drop(black_box(Box::new(1)))), 1, "an allocation must be noticed");
    let reads = || (0..READS).for_each(|_| read_all(session));
    assert_eq!(allocations(&reads), 0);
}

fn values_are_in_the_cache(session: &Session, attributes: &[(&str, Value)], segment_prefix: &str) {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let segments: Vec<(usize, usize)> = maps
        .lines()
        .filter(|line| line.contains(&format!("/dev/shm/{segment_prefix}")))
        .map(|line| {
            let (start, end) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
            (usize::from_str_radix(start, 16).unwrap(), usize::from_str_radix(end, 16).unwrap())
        })
        .collect();
    assert!(!segments.is_empty(), "the cache's segment is not mapped:\n{maps}");
    let mut seen = 0;
    for (name, expected) in attributes {
        let value = session.get(name).unwrap();
        assert_eq!(value, expected.as_ref());
        let bytes = match value {
            ValueRef::Bytes(bytes) => bytes,
            ValueRef::Text(text) => text.as_bytes(),
            // Numbers and truth values are passed in registers.
            _ => continue,
        };
        if bytes.is_empty() {
            continue;
        }
        let (from, to) = (bytes.as_ptr().addr(), bytes.as_ptr().addr() + bytes.len());
        assert!(segments.iter().any(|(start, end)| *start <= from && to <= *end), "{name} is a copy");
        seen += 1;
    }
    assert!(seen >= 5);
}

/// Runs this test again as a process that reads under seccomp, and returns its verdict.
fn verdict_of_child(config: &Path, cookie: &str, sin: bool) -> &'static str {
    struct Killed(Child);
    impl Drop for Killed {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "--nocapture"]);
    command.arg("cached_attribute_read_does_not_allocate_copy_or_enter_the_kernel");
    command.env(CHILD_VARIABLES[0], config).env(CHILD_VARIABLES[1], cookie);
    if sin {
        command.env(CHILD_VARIABLES[2], "1");
    }
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut child = Killed(child);
    let output = BufReader::new(child.0.stderr.take().unwrap());
    // The child ends by itself after its own, equal wait, which ends these lines.
    let mut lines = Vec::new();
    for line in output.lines().map_while(Result::ok) {
        if let Some(verdict) = [CLEAN, KILLED].into_iter().find(|verdict| line.contains(verdict)) {
            return verdict;
        }
        lines.push(line);
    }
    panic!("the child gave no verdict:\n{}", lines.join("\n"));
}

/// The child: attaches, lets one thread read under seccomp, and tells what became of it.
fn child() -> ! {
    let [config, cookie, sin] = CHILD_VARIABLES.map(|name| std::env::var(name).ok());
    let options = AttachOptions { wait: Duration::from_secs(10) };
    let node = Node::attach(config.as_deref().map(Path::new), Some(NODE), options).unwrap();
    let cookie = node.decode_cookie_header(&cookie.unwrap()).unwrap();
    let session = open(&node, &cookie, OpenMode::ReadOnly).unwrap();
    let (told, tid) = mpsc::channel();
    std::thread::spawn(move || {
        told.send(rustix::thread::gettid()).unwrap();
        reader(&session, sin.is_some())
    });
    let task = format!("/proc/self/task/{}", tid.recv().unwrap().as_raw_nonzero());
    let deadline = Instant::now() + CHILD_WAIT;
    while Path::new(&task).exists() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    // The reader never ends by itself.
    if !Path::new(&task).exists() {
        eprintln!("{KILLED}");
    }
    std::process::exit(1);
}

/// Reads where only read, write, exit and sigreturn are allowed, writes the verdict, and spins until the
/// process is killed.
fn reader(session: &Session, sin: bool) -> ! {
    rustix::thread::set_secure_computing_mode(SecureComputingMode::Strict).unwrap();
    for _ in 0..READS {
        read_all(session);
    }
    if sin {
        black_box(rustix::process::getpid());
    }
    let _ = rustix::io::write(std::io::stderr().as_fd(), CLEAN_LINE);
    loop {
        std::hint::spin_loop();
    }
}
