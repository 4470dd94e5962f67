//! The board that all processes of a test share: how often each point was passed, and what to do there.
//!
//! Words, in this order: passes, order, victim of each point; then as many as the test wants for itself.
//! All are atomics in a file that outlives every process of the test.
//!
//! Unsafe code: the mapping of that file.

use super::{BOARD_VARIABLE, POINTS};
use rustix::fs::{Mode, OFlags};
use rustix::mm::{MapFlags, ProtFlags};
use rustix::process::{Signal, getpid, kill_process};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Set in an order that shall stop its process instead of killing it.
const STOP: u64 = 1 << 63;
/// Words that a point has.
const WORDS: usize = 3;
/// Pause of a stopped thread between two looks whether it may go on.
const PAUSE: Duration = Duration::from_millis(1);

/// What a process shall do that passes a point.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// The pass of this number, counted from now and from 1, kills its process.
    Kill(u32),
    /// The same, but it stops its process, until [`Board::resume`] and SIGCONT.
    Stop(u32),
}

/// The shared words.
pub struct Board {
    words: &'static [AtomicU64],
}

impl Board {
    /// The board in the file at `path`, with so many words for the test itself. Whoever comes first makes the
    /// file.
    ///
    /// # Errors
    /// The system refuses.
    pub fn open(path: &Path, own: usize) -> std::io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
        let file = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?;
        let needed = (POINTS.len() * WORDS + own) * size_of::<AtomicU64>();
        let there = rustix::fs::fstat(&file)?.st_size as usize;
        let bytes = needed.max(there);
        rustix::fs::ftruncate(&file, bytes as u64)?;
        // SAFETY: a null hint lets the kernel choose the address, so no existing mapping is touched; the file
        // has `bytes` bytes, and nobody ever makes it shorter.
        let base = unsafe {
            let protection = ProtFlags::READ | ProtFlags::WRITE;
            rustix::mm::mmap(std::ptr::null_mut(), bytes, protection, MapFlags::SHARED, &file, 0)?
        };
        let base = NonNull::new(base.cast::<AtomicU64>()).ok_or(rustix::io::Errno::NOMEM)?;
        // SAFETY: the mapping is page-aligned, `bytes` long and never unmapped, so it lives as long as the
        // process; every bit pattern is an `AtomicU64`, and others write to it by atomics only.
        let words = unsafe { std::slice::from_raw_parts(base.as_ptr(), bytes / size_of::<AtomicU64>()) };
        Ok(Self { words })
    }

    /// How often a point was passed, by all processes together.
    pub fn passes(&self, point: usize) -> u64 {
        self.words[point * WORDS].load(Ordering::Relaxed)
    }

    /// Puts an order up.
    pub fn order(&self, point: usize, order: Order) {
        self.words[point * WORDS + 2].store(0, Ordering::SeqCst);
        let word = match order {
            Order::Kill(pass) => u64::from(pass),
            Order::Stop(pass) => u64::from(pass) | STOP,
        };
        self.words[point * WORDS + 1].store(word, Ordering::SeqCst);
    }

    /// Takes an order down. A process may be about to obey it: ask [`Board::victim`] afterwards.
    pub fn withdraw(&self, point: usize) {
        self.words[point * WORDS + 1].store(0, Ordering::SeqCst);
    }

    /// The process that obeyed the last order of a point, if one has.
    pub fn victim(&self, point: usize) -> Option<u32> {
        let pid = self.words[point * WORDS + 2].load(Ordering::SeqCst) as u32;
        (pid != 0).then_some(pid)
    }

    /// Lets the thread that has stopped its process at a point go on, once the process does.
    pub fn resume(&self, point: usize) {
        self.words[point * WORDS + 2].store(0, Ordering::SeqCst);
    }

    /// The test's own words.
    pub fn own(&self) -> &'static [AtomicU64] {
        &self.words[POINTS.len() * WORDS..]
    }

    fn pass(&self, point: usize) {
        self.words[point * WORDS].fetch_add(1, Ordering::Relaxed);
        let order = &self.words[point * WORDS + 1];
        let mut seen = order.load(Ordering::Relaxed);
        while seen & !STOP != 0 {
            let last = seen & !STOP == 1;
            let next = if last { 0 } else { seen - 1 };
            match order.compare_exchange(seen, next, Ordering::SeqCst, Ordering::Relaxed) {
                Ok(_) if last => return self.obey(point, seen & STOP != 0),
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
    }

    #[cold]
    fn obey(&self, point: usize, stop: bool) {
        let victim = &self.words[point * WORDS + 2];
        victim.store(u64::from(std::process::id()), Ordering::SeqCst);
        // Nothing can be done about a refusal; the test sees that the process does not end.
        let _ = kill_process(getpid(), if stop { Signal::STOP } else { Signal::KILL });
        // A stop reaches the threads one after the other; this one goes no further in any case.
        while victim.load(Ordering::SeqCst) != 0 {
            std::thread::sleep(PAUSE);
        }
    }
}

/// A process passes a point.
pub fn pass(point: usize) {
    static BOARD: OnceLock<Option<Board>> = OnceLock::new();
    let board = BOARD.get_or_init(|| {
        let path = std::env::var_os(BOARD_VARIABLE)?;
        Board::open(Path::new(&path), 0).ok()
    });
    if let Some(board) = board {
        board.pass(point);
    }
}
