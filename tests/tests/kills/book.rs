//! The book: what each session was promised, in memory that outlives every process.
//!
//! A session is a record. Who wants to create, destroy or examine it takes the record by one compare-and-swap
//! that names its worker, so that the test knows what a dead worker leaves in doubt. Changes need no taking:
//! the session's own lock orders them, and the numbers in the record only rise.

use selvage_fabric::ident::{Cookie, Incarnation, SessionId};
use selvage_fabric::kill::Board;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// Sessions.
pub const RECORDS: usize = 160;
/// Workers.
pub const WORKERS: usize = 6;
/// Threads of each.
pub const THREADS: usize = 2;
const HEAD: usize = 64;
const WORDS: usize = 9;
/// Bits of a number; above them is the life of the record.
const LIFE_SHIFT: u32 = 32;

/// What a record is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// There is no session.
    Empty,
    /// A worker creates it, destroys it, or looks what became of it.
    Taken,
    /// There is one, and whoever opens it must find it.
    Live,
    /// A worker died while it had the record: there may be a session, or part of it.
    Doubt,
    /// It was destroyed: whoever opens it must not find it.
    Gone,
}

/// A record's state, who has it, and which life of it this is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mark {
    pub state: State,
    pub worker: u64,
    pub life: u64,
}

impl Mark {
    fn word(self) -> u64 {
        self.life << 16 | self.worker << 8 | self.state as u64
    }

    fn of(word: u64) -> Self {
        let states = [State::Empty, State::Taken, State::Live, State::Doubt, State::Gone];
        Self { state: states[(word & 0xff) as usize], worker: word >> 8 & 0xff, life: word >> 16 }
    }
}

/// What the test tells the workers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum Wish {
    Work = 0,
    /// Finish what is under way, and wait.
    Rest = 1,
    /// Leave the node in order and end.
    Leave = 2,
    /// Open every session, and enter that it was found here.
    Audit = 3,
}

/// The whole book.
pub struct Book {
    pub board: Board,
    words: &'static [AtomicU64],
}

/// One session's page.
#[derive(Clone, Copy)]
pub struct Record {
    words: &'static [AtomicU64],
}

impl Book {
    pub fn open(path: &Path) -> Self {
        let board = Board::open(path, HEAD + RECORDS * WORDS).unwrap();
        let words = board.own();
        Self { board, words }
    }

    pub fn record(&self, at: usize) -> Record {
        let from = HEAD + at * WORDS;
        Record { words: &self.words[from..from + WORDS] }
    }

    pub fn records(&self) -> impl Iterator<Item = Record> {
        (0..RECORDS).map(|at| self.record(at))
    }

    /// What a worker shall do; each wish has a number, so that it is known who has seen it.
    pub fn wish(&self, worker: usize) -> (Wish, u64) {
        let word = self.words[2 + worker].load(Ordering::SeqCst);
        let wish = [Wish::Work, Wish::Rest, Wish::Leave, Wish::Audit][(word & 3) as usize];
        (wish, word)
    }

    pub fn set_wish(&self, worker: usize, wish: Wish) {
        let word = self.words[2 + worker].load(Ordering::SeqCst);
        self.words[2 + worker].store((word | 3) + 1 + wish as u64, Ordering::SeqCst);
    }

    /// A thread of a worker has done what was wished for, or waits because of it.
    pub fn confirm(&self, worker: usize, thread: usize, wish: u64) {
        self.words[16 + worker * THREADS + thread].store(wish, Ordering::SeqCst);
    }

    pub fn has_confirmed(&self, worker: usize) -> bool {
        let (_, wish) = self.wish(worker);
        let mut threads = self.words[16 + worker * THREADS..][..THREADS].iter();
        threads.all(|seen| seen.load(Ordering::SeqCst) == wish)
    }

    /// How many copies a change needs to count as acked.
    pub fn copies_that_count(&self) -> &AtomicU64 {
        &self.words[0]
    }

    /// Operations that went well.
    pub fn operations(&self) -> &AtomicU64 {
        &self.words[1]
    }

    /// Operations that failed, by the kind of their errors, in a few classes.
    pub fn failures(&self) -> &AtomicU64 {
        &self.words[40]
    }

    pub fn acks(&self) -> &AtomicU64 {
        &self.words[41]
    }

    pub fn destroyed(&self) -> &AtomicU64 {
        &self.words[42]
    }

    pub fn adopted(&self) -> &AtomicU64 {
        &self.words[43]
    }

    /// After the death of a worker: what it had taken is in doubt.
    pub fn doubt(&self, worker: usize) {
        for record in self.records() {
            let mark = record.mark();
            if mark.state == State::Taken && mark.worker == worker as u64 {
                assert!(record.pass(mark, Mark { state: State::Doubt, ..mark }));
            }
        }
    }
}

impl Record {
    pub fn mark(&self) -> Mark {
        Mark::of(self.words[0].load(Ordering::SeqCst))
    }

    /// From one mark to the next, unless somebody else was faster.
    pub fn pass(&self, from: Mark, to: Mark) -> bool {
        self.words[0].compare_exchange(from.word(), to.word(), Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    pub fn cookie(&self) -> Cookie {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.words[1].load(Ordering::SeqCst).to_le_bytes());
        id[8..].copy_from_slice(&self.words[2].load(Ordering::SeqCst).to_le_bytes());
        Cookie { id: SessionId(id), host: Incarnation(self.words[3].load(Ordering::SeqCst)) }
    }

    pub fn set_cookie(&self, cookie: &Cookie) {
        let word = |from: usize| u64::from_le_bytes(cookie.id.0[from..from + 8].try_into().unwrap());
        self.words[1].store(word(0), Ordering::SeqCst);
        self.words[2].store(word(8), Ordering::SeqCst);
        self.set_host(cookie.host);
    }

    pub fn set_host(&self, host: Incarnation) {
        self.words[3].store(host.0, Ordering::SeqCst);
    }

    /// A new session begins in the record.
    pub fn begin(&self, life: u64) {
        self.words[4].store(life << LIFE_SHIFT, Ordering::SeqCst);
        self.words[5].store(life << LIFE_SHIFT, Ordering::SeqCst);
    }

    /// The highest number that anybody tried to write in a life of the record.
    pub fn sent(&self, life: u64) -> u64 {
        number_of(&self.words[4], life)
    }

    /// Somebody tries to write a number. What comes too late, for an earlier life, changes nothing.
    pub fn send(&self, life: u64, number: u64) {
        self.words[4].fetch_max(life << LIFE_SHIFT | number, Ordering::SeqCst);
    }

    /// The highest number that was acked.
    pub fn acked(&self, life: u64) -> u64 {
        number_of(&self.words[5], life)
    }

    /// A number was acked.
    pub fn ack(&self, life: u64, number: u64) {
        self.words[5].fetch_max(life << LIFE_SHIFT | number, Ordering::SeqCst);
    }

    /// How it ended, and in which life of a node, for people.
    pub fn ended(&self) -> &AtomicU64 {
        &self.words[7]
    }

    pub fn ended_at(&self) -> &AtomicU64 {
        &self.words[8]
    }

    /// Nodes that have found it in an audit.
    pub fn found(&self) -> &AtomicU64 {
        &self.words[6]
    }
}

/// The number in a word, if the word is of that life.
fn number_of(word: &AtomicU64, life: u64) -> u64 {
    let word = word.load(Ordering::SeqCst);
    if word >> LIFE_SHIFT == life { word & ((1 << LIFE_SHIFT) - 1) } else { 0 }
}
