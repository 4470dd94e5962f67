//! The book: what each session was promised, in memory that outlives every process.
//!
//! A session is a record. Who wants to create, destroy or examine it takes the record by one compare-and-swap
//! that names its worker, so that the test knows what a dead worker leaves in doubt. Changes need no taking:
//! the session's own lock orders them, and the numbers in the record only rise.
//!
//! A session names its page, so that one whose id nobody knows can be told from one that came back: only a
//! process that dies while it gives a session a new id leaves such an orphan, and that is noted.

use selvage_fabric::ident::{Cookie, Incarnation, SessionId};
use selvage_fabric::kill::Board;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// Sessions.
pub const RECORDS: usize = 220;
/// Workers.
pub const WORKERS: usize = 6;
/// Threads of each.
pub const THREADS: usize = 2;
const HEAD: usize = 64;
const WORDS: usize = 13;
/// Bits of a number; above them is the life of the record.
const LIFE_SHIFT: u32 = 32;
/// Bits of a record's life in the name of its page.
const PAGE_SHIFT: u32 = 32;
/// Ends in doubt of sessions that were about to get a new id, the newest of which are remembered.
const ORPHANS: usize = 4096;
/// Sessions about which the test may ask at once, and the words of each.
pub const QUESTIONS: usize = 16;
const QUESTION_WORDS: usize = 4;

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
    /// Nobody uses it until its time is over.
    Left,
    /// A worker gives it a new id.
    Renewed,
}

/// What stands in a place for questions about sessions of which the book does not know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    Free,
    /// Its node shall look.
    Asked,
    /// It was one that may be there, and is gone now.
    Settled,
}

/// A question, and in whose name it can be answered: several workers of a node see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Question {
    pub stage: Stage,
    pub node: usize,
    pub id: SessionId,
    /// Rises with each stage of each question in its place.
    word: u64,
}

/// A record's state, who has it, which life of it this is, and which id of that life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mark {
    pub state: State,
    pub worker: u64,
    pub turn: u64,
    pub life: u64,
}

impl Mark {
    fn word(self) -> u64 {
        self.life << 24 | (self.turn & 0xff) << 16 | self.worker << 8 | self.state as u64
    }

    fn of(word: u64) -> Self {
        let states =
            [State::Empty, State::Taken, State::Live, State::Doubt, State::Gone, State::Left, State::Renewed];
        let (worker, turn) = (word >> 8 & 0xff, word >> 16 & 0xff);
        Self { state: states[(word & 0xff) as usize], worker, turn, life: word >> 24 }
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
    /// Destroy what is in doubt or left alone.
    Settle = 4,
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
    index: usize,
}

impl Book {
    pub fn open(path: &Path) -> Self {
        let own = HEAD + RECORDS * WORDS + ORPHANS + QUESTIONS * QUESTION_WORDS;
        let board = Board::open(path, own).unwrap();
        let words = board.own();
        Self { board, words }
    }

    pub fn record(&self, at: usize) -> Record {
        let from = HEAD + at * WORDS;
        Record { words: &self.words[from..from + WORDS], index: at }
    }

    pub fn records(&self) -> impl Iterator<Item = Record> {
        (0..RECORDS).map(|at| self.record(at))
    }

    /// What a worker shall do; each wish has a number, so that it is known who has seen it.
    pub fn wish(&self, worker: usize) -> (Wish, u64) {
        let word = self.words[2 + worker].load(Ordering::SeqCst);
        let wishes = [Wish::Work, Wish::Rest, Wish::Leave, Wish::Audit, Wish::Settle];
        let wish = wishes[(word & 7) as usize];
        (wish, word)
    }

    pub fn set_wish(&self, worker: usize, wish: Wish) {
        let word = self.words[2 + worker].load(Ordering::SeqCst);
        self.words[2 + worker].store((word | 7) + 1 + wish as u64, Ordering::SeqCst);
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

    pub fn expired(&self) -> &AtomicU64 {
        &self.words[44]
    }

    pub fn renewed(&self) -> &AtomicU64 {
        &self.words[45]
    }

    /// After the death of a worker: what it had taken is in doubt.
    pub fn doubt(&self, worker: usize) {
        for record in self.records() {
            let mark = record.mark();
            let taken = matches!(mark.state, State::Taken | State::Renewed);
            if taken && mark.worker == worker as u64 {
                if mark.state == State::Renewed {
                    self.note_orphan(record.page(mark.life));
                }
                assert!(record.pass(mark, Mark { state: State::Doubt, ..mark }));
            }
        }
    }

    /// There may be a session of this page under an id that nobody knows.
    pub fn note_orphan(&self, page: u64) {
        let at = self.words[46].fetch_add(1, Ordering::SeqCst) as usize % ORPHANS;
        self.orphans()[at].store(page, Ordering::SeqCst);
    }

    pub fn may_be_orphan(&self, page: u64) -> bool {
        self.orphans().iter().any(|orphan| orphan.load(Ordering::SeqCst) == page)
    }

    fn orphans(&self) -> &'static [AtomicU64] {
        &self.words[HEAD + RECORDS * WORDS..][..ORPHANS]
    }

    fn question_words(&self, at: usize) -> &'static [AtomicU64] {
        &self.words[HEAD + RECORDS * WORDS + ORPHANS + at * QUESTION_WORDS..][..QUESTION_WORDS]
    }

    /// Asks the workers of a node about a session, in a place that is free.
    pub fn ask(&self, at: usize, node: usize, id: SessionId) {
        let words = self.question_words(at);
        for (word, value) in words.iter().zip(id_words(id)) {
            word.store(value, Ordering::SeqCst);
        }
        words[2].store(node as u64, Ordering::SeqCst);
        self.answer(at, self.question(at), Stage::Asked);
    }

    /// What stands in a place.
    pub fn question(&self, at: usize) -> Question {
        let words = self.question_words(at);
        let load = |at: usize| words[at].load(Ordering::SeqCst);
        let word = load(3);
        let stage = [Stage::Free, Stage::Asked, Stage::Settled][(word & 3) as usize];
        Question { stage, node: load(2) as usize, id: id_of([load(0), load(1)]), word }
    }

    /// The next stage of a question, unless somebody else was faster: an answer that comes late is not taken
    /// for one to the next question in that place.
    pub fn answer(&self, at: usize, question: Question, stage: Stage) {
        let next = (question.word | 3) + 1 + stage as u64;
        let word = &self.question_words(at)[3];
        let _ = word.compare_exchange(question.word, next, Ordering::SeqCst, Ordering::SeqCst);
    }
}

fn id_words(id: SessionId) -> [u64; 2] {
    [0, 8].map(|from| u64::from_le_bytes(id.0[from..from + 8].try_into().unwrap()))
}

fn id_of(words: [u64; 2]) -> SessionId {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&words[0].to_le_bytes());
    id[8..].copy_from_slice(&words[1].to_le_bytes());
    SessionId(id)
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
        let [low, high, host] = [1, 2, 3].map(|at| self.words[at].load(Ordering::SeqCst));
        Cookie { id: id_of([low, high]), host: Incarnation(host) }
    }

    pub fn set_cookie(&self, cookie: &Cookie) {
        let [low, high] = id_words(cookie.id);
        self.words[1].store(low, Ordering::SeqCst);
        self.words[2].store(high, Ordering::SeqCst);
        self.words[3].store(cookie.host.0, Ordering::SeqCst);
    }

    /// The session has moved, unless the record is another session's by now.
    pub fn set_host(&self, from: Incarnation, to: Incarnation) {
        let _ = self.words[3].compare_exchange(from.0, to.0, Ordering::SeqCst, Ordering::SeqCst);
    }

    /// What a session of that life of the record says where it belongs.
    pub fn page(&self, life: u64) -> u64 {
        (self.index as u64) << PAGE_SHIFT | life
    }

    /// Its number among the records.
    pub fn index(&self) -> usize {
        self.index
    }

    /// A new session begins in the record.
    pub fn begin(&self, life: u64) {
        self.words[4].store(life << LIFE_SHIFT, Ordering::SeqCst);
        self.words[5].store(life << LIFE_SHIFT, Ordering::SeqCst);
        self.words[9].store(0, Ordering::SeqCst);
        self.words[10].store(0, Ordering::SeqCst);
        self.words[11].store(life << LIFE_SHIFT, Ordering::SeqCst);
        self.words[12].store(life << LIFE_SHIFT, Ordering::SeqCst);
    }

    /// How often anybody tried to count in a life of the record, without the session's lock.
    pub fn counts_sent(&self, life: u64) -> u64 {
        number_of(&self.words[11], life)
    }

    /// Somebody tries to.
    pub fn send_count(&self, life: u64) {
        one_more(&self.words[11], life);
    }

    /// How often that was acked.
    pub fn counts_acked(&self, life: u64) -> u64 {
        number_of(&self.words[12], life)
    }

    /// It was.
    pub fn ack_count(&self, life: u64) {
        one_more(&self.words[12], life);
    }

    /// Before this time, Unix ms, it must not expire: every copy has acked it.
    pub fn expiry_ms(&self) -> u64 {
        self.words[9].load(Ordering::SeqCst)
    }

    pub fn expires_at(&self, expiry_ms: u64) {
        self.words[9].fetch_max(expiry_ms, Ordering::SeqCst);
    }

    /// How often its time was found longer than known since it was left alone.
    pub fn extensions(&self) -> &AtomicU64 {
        &self.words[10]
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

/// Adds to the number in a word, if the word is of that life.
fn one_more(word: &AtomicU64, life: u64) {
    let more = |word| (word >> LIFE_SHIFT == life).then_some(word + 1);
    let _ = word.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more);
}

/// The number in a word, if the word is of that life.
fn number_of(word: &AtomicU64, life: u64) -> u64 {
    let word = word.load(Ordering::SeqCst);
    if word >> LIFE_SHIFT == life { word & ((1 << LIFE_SHIFT) - 1) } else { 0 }
}
