//! A web node's worker: works on the book's sessions as fast as it can, and compares all that it sees with
//! the book. What contradicts it ends the process with an error.

use crate::book::{Book, Mark, QUESTIONS, RECORDS, Record, Stage, State, THREADS, Wish};
use crate::field::Field;
use selvage_fabric::archive::{Value, ValueRef};
use selvage_fabric::error::{Error, ErrorKind};
use selvage_fabric::ident::{Cookie, Incarnation, Version};
use selvage_fabric::kill::BOARD_VARIABLE;
use selvage_fabric::node::{Ack, AttachOptions, Committed, Node, OpenMode, Opened, Session};
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Live sessions that all workers together want.
const LIVE: usize = 120;
/// Sessions that are left alone at the same time.
const LEFT: usize = 30;
const PAUSE: Duration = Duration::from_micros(200);

/// A node whose incarnation is over knows it after this time.
const FIND_OUT: Duration = Duration::from_secs(4);

/// Exit status of a worker that has seen something that must not be.
pub const VIOLATION: u8 = 3;

pub fn main(config: &Path, node: &str, index: usize) -> ExitCode {
    // Whoever starts us may be killed, too.
    let parent = rustix::process::getppid();
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).unwrap();
    if rustix::process::getppid() != parent {
        return ExitCode::FAILURE;
    }
    let book = Book::open(Path::new(&std::env::var_os(BOARD_VARIABLE).unwrap()));
    let node = Node::attach(Some(config), Some(node), AttachOptions { wait: Duration::ZERO }).unwrap();
    let says = std::env::var_os("SELVAGE_LOG").is_some();
    let leave = AtomicBool::new(false);
    let bad = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (book, node, leave, bad) = (&book, &node, &leave, &bad);
            scope.spawn(move || {
                let seed = u64::from(std::process::id()) << 8 | thread as u64;
                let mut worker = Worker { book, node, index, thread, dice: seed, leave, audited: 0, says };
                if let Err(violation) = worker.run() {
                    eprintln!("VIOLATION: {violation}");
                    bad.store(true, Ordering::SeqCst);
                    // The others would go on; the test must know at once.
                    std::process::exit(i32::from(VIOLATION));
                }
            });
        }
    });
    match node.detach() {
        Ok(()) if !bad.into_inner() => ExitCode::SUCCESS,
        other => {
            eprintln!("cannot leave: {other:?}");
            ExitCode::FAILURE
        }
    }
}

pub struct Worker<'a> {
    pub book: &'a Book,
    pub node: &'a Node,
    index: usize,
    thread: usize,
    dice: u64,
    leave: &'a AtomicBool,
    /// The last audit that it has done.
    audited: u64,
    /// Whether errors are written to the log.
    says: bool,
}

/// What must not be, in words.
pub type Violation = String;

impl Worker<'_> {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.dice = self.dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.dice >> 33) % bound
    }

    fn run(&mut self) -> Result<(), Violation> {
        loop {
            let (wish, number) = self.book.wish(self.index);
            match wish {
                Wish::Work => self.work()?,
                Wish::Rest => {
                    self.book.confirm(self.index, self.thread, number);
                    if self.thread == 0 {
                        self.answer()?;
                    }
                    std::thread::sleep(PAUSE);
                }
                Wish::Settle => {
                    if self.settle() {
                        self.book.confirm(self.index, self.thread, number);
                    }
                    std::thread::sleep(PAUSE);
                }
                Wish::Leave => {
                    self.leave.store(true, Ordering::SeqCst);
                    return Ok(());
                }
                Wish::Audit => {
                    if self.thread == 0 && self.audited != number {
                        self.audit(number)?;
                        self.audited = number;
                    }
                    self.book.confirm(self.index, self.thread, number);
                    std::thread::sleep(PAUSE);
                }
            }
        }
    }

    fn work(&mut self) -> Result<(), Violation> {
        let record = self.book.record(self.below(RECORDS as u64) as usize);
        let mark = record.mark();
        match mark.state {
            State::Taken | State::Renewed => return Ok(()),
            State::Empty if self.live() < LIVE => self.create(record, mark),
            State::Empty => return Ok(()),
            State::Doubt => self.resolve(record, mark),
            State::Gone => self.look_for_ghosts(record, mark)?,
            State::Left => {
                if !self.look_after(record, mark)? {
                    return Ok(());
                }
            }
            State::Live => match self.below(40) {
                0 => self.destroy(record, mark)?,
                1..10 => self.read(record, mark)?,
                10 => self.renew(record, mark)?,
                11..20 => self.add(record, mark)?,
                _ => self.change(record, mark)?,
            },
        }
        self.book.operations().fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn live(&self) -> usize {
        self.count(State::Live)
    }

    fn count(&self, state: State) -> usize {
        self.book.records().filter(|record| record.mark().state == state).count()
    }

    pub fn taken(&self, mark: Mark) -> Mark {
        Mark { state: State::Taken, worker: self.index as u64, ..mark }
    }

    /// An error of an operation: nothing that must not be, but counted.
    pub fn failed(&self, error: &Error) {
        if self.says {
            eprintln!("failed: {error}");
        }
        self.book.failures().fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(PAUSE);
    }

    fn create(&mut self, record: Record, mark: Mark) {
        let taken = self.taken(mark);
        if !record.pass(mark, taken) {
            return;
        }
        let created = self.node.create(None).and_then(|mut session| {
            record.set_cookie(&session.cookie());
            record.begin(mark.life + 1);
            record.send(mark.life + 1, 1);
            session.set("page", Value::I64(record.page(mark.life + 1).cast_signed()))?;
            write(&mut session, 1)?;
            let committed = session.commit(Ack::All)?;
            Ok((committed, session.expiry_ms()))
        });
        let state = match created {
            Ok((committed, expiry_ms)) => {
                self.enter(record, mark.life + 1, committed, 1, expiry_ms);
                State::Live
            }
            Err(error) => {
                self.failed(&error);
                State::Doubt
            }
        };
        record.pass(taken, Mark { state, life: mark.life + 1, ..taken });
    }

    fn enter(&self, record: Record, life: u64, committed: Committed, number: u64, expiry_ms: u64) {
        if committed.short.is_none() {
            record.expires_at(expiry_ms);
        }
        if u64::from(committed.copies) >= self.book.copies_that_count().load(Ordering::SeqCst).max(1) {
            record.ack(life, number);
            self.book.acks().fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Opens a session that must be there. `None`: not here, or not now.
    pub fn open(&self, record: Record, mark: Mark, mode: OpenMode) -> Result<Option<Session>, Violation> {
        let (cookie, acked) = (record.cookie(), record.acked(mark.life));
        let counts_acked = record.counts_acked(mark.life);
        let is_same = || record.mark() == mark;
        let here = self.node.incarnation();
        if !is_same() {
            return Ok(None);
        }
        match self.node.open(&cookie, mode) {
            Ok(Opened::Session(session)) => {
                let (number, sent) = (number(&session, record.page(mark.life)), record.sent(mark.life));
                if !is_same() {
                    return Ok(None);
                }
                let number = number.map_err(|why| format!("session {}: {why}", cookie.id))?;
                if number < acked || number > sent {
                    let (version, host) = (session.version(), session.cookie().host);
                    drop(session);
                    let what = format!("{number}, but {acked} was acked and {sent} sent");
                    let what = format!("session {} says {what}, at {version} in {}", cookie.id, host.tag());
                    return self.unless_over(host, what).map(|()| None);
                }
                let (counted, sent) = (counted(&session), record.counts_sent(mark.life));
                if is_same() && (counted < counts_acked || counted > sent) {
                    let host = session.cookie().host;
                    drop(session);
                    let what = format!("has counted {counted}, but {counts_acked} was acked and {sent} sent");
                    let what = format!("session {} {what}, in {}", cookie.id, host.tag());
                    return self.unless_over(host, what).map(|()| None);
                }
                if session.cookie().host != cookie.host {
                    self.book.adopted().fetch_add(1, Ordering::Relaxed);
                    record.set_host(cookie.host, session.cookie().host);
                }
                Ok(Some(session))
            }
            // The cookie stays as it is: only the new host gives another.
            Ok(Opened::Elsewhere(_)) => Ok(None),
            Ok(Opened::Missing) if is_same() && acked > 0 && unix_ms() < record.expiry_ms() => {
                let what = format!("session {} is lost: {acked} was acked", cookie.id);
                self.unless_over(here.unwrap_or(Incarnation::NONE), what).map(|()| None)
            }
            Ok(Opened::Missing) => {
                record.pass(mark, Mark { state: State::Doubt, ..mark });
                Ok(None)
            }
            Err(error) if error.kind == ErrorKind::Corrupt => {
                Err(format!("session {} is corrupt: {error}", cookie.id))
            }
            Err(error) => {
                self.failed(&error);
                Ok(None)
            }
        }
    }

    /// A node that is over may not know it yet, and then says what was true before. Behind a director nobody
    /// hears it: its connections are cut. Here it is given the time to find out.
    pub fn unless_over(&self, host: Incarnation, what: Violation) -> Result<(), Violation> {
        let deadline = Instant::now() + FIND_OUT;
        while Instant::now() < deadline {
            if self.node.incarnation() != Some(host) {
                return Ok(());
            }
            std::thread::sleep(PAUSE);
        }
        Err(what)
    }

    fn read(&mut self, record: Record, mark: Mark) -> Result<(), Violation> {
        let mode = if self.below(2) == 0 { OpenMode::ReadOnly } else { OpenMode::Unlocked };
        self.open(record, mark, mode).map(drop)
    }

    /// The session's lock from the beginning, or only when it is needed.
    pub fn any_lock(&mut self) -> OpenMode {
        if self.below(3) == 0 { OpenMode::Unlocked } else { OpenMode::Exclusive }
    }

    /// Counts without the session's lock, beside those who change something else.
    fn add(&mut self, record: Record, mark: Mark) -> Result<(), Violation> {
        let Some(mut session) = self.open(record, mark, OpenMode::Unlocked)? else { return Ok(()) };
        record.send_count(mark.life);
        match session.incr("count", 1).and_then(|_| session.commit(Ack::All)) {
            Ok(committed) => {
                if u64::from(committed.copies) >= self.book.copies_that_count().load(Ordering::SeqCst).max(1)
                {
                    record.ack_count(mark.life);
                    self.book.acks().fetch_add(1, Ordering::Relaxed);
                }
            }
            Err(error) => self.failed(&error),
        }
        Ok(())
    }

    fn change(&mut self, record: Record, mark: Mark) -> Result<(), Violation> {
        let Some(mut session) = self.open(record, mark, OpenMode::Exclusive)? else { return Ok(()) };
        let next = number(&session, record.page(mark.life))? + 1;
        record.send(mark.life, next);
        match write(&mut session, next).and_then(|()| session.commit(Ack::All)) {
            Ok(committed) => {
                self.enter(record, mark.life, committed, next, session.expiry_ms());
                if committed.short.is_none() && self.below(40) == 0 && self.count(State::Left) < LEFT {
                    // Under the session's lock: whoever opens it now sees the mark afterwards.
                    record.pass(mark, Mark { state: State::Left, ..mark });
                }
            }
            Err(error) => self.failed(&error),
        }
        Ok(())
    }

    fn destroy(&mut self, record: Record, mark: Mark) -> Result<(), Violation> {
        let mode = self.any_lock();
        let Some(session) = self.open(record, mark, mode)? else { return Ok(()) };
        let taken = self.taken(mark);
        if !record.pass(mark, taken) {
            return Ok(());
        }
        let version = session.version();
        let state = match session.destroy() {
            Ok(()) => {
                self.note_end(record, 1, version);
                self.book.destroyed().fetch_add(1, Ordering::Relaxed);
                State::Gone
            }
            Err(error) => {
                self.failed(&error);
                State::Doubt
            }
        };
        record.pass(taken, Mark { state, ..taken });
        Ok(())
    }

    /// How a session ended, for whoever finds it again: destroyed (1), destroyed in doubt (2), not found (3),
    /// its time was over (4).
    pub fn note_end(&self, record: Record, how: u64, version: Version) {
        let word = how << 60 | u64::from(version.epoch) << 32 | version.counter;
        record.ended().store(word, Ordering::SeqCst);
        let here = self.node.incarnation().unwrap_or(Incarnation::NONE);
        record.ended_at().store(here.0, Ordering::SeqCst);
    }

    /// What is in doubt is destroyed.
    fn resolve(&mut self, record: Record, mark: Mark) {
        let taken = self.taken(mark);
        if !record.pass(mark, taken) {
            return;
        }
        let destroyed = match self.node.open(&record.cookie(), OpenMode::Exclusive) {
            Ok(Opened::Session(session)) => {
                let version = session.version();
                session.destroy().map(|()| self.note_end(record, 2, version)).map(|()| true)
            }
            Ok(Opened::Missing) => {
                self.note_end(record, 3, Version::default());
                Ok(true)
            }
            Ok(Opened::Elsewhere(_)) => Ok(false),
            Err(error) => Err(error),
        };
        let state = match destroyed {
            Ok(true) => State::Gone,
            Ok(false) => State::Doubt,
            Err(error) => {
                self.failed(&error);
                State::Doubt
            }
        };
        record.pass(taken, Mark { state, ..taken });
    }

    /// Destroys what is in doubt or was left alone; whether nothing of that is left.
    fn settle(&mut self) -> bool {
        let mut settled = true;
        for record in self.book.records() {
            let mark = record.mark();
            match mark.state {
                State::Doubt => self.resolve(record, mark),
                State::Left => drop(record.pass(mark, Mark { state: State::Doubt, ..mark })),
                State::Taken | State::Renewed => {}
                State::Empty | State::Live | State::Gone => continue,
            }
            settled = false;
        }
        settled
    }

    /// Tells the test about sessions that no page names: only what died while it got a new id may be there,
    /// and then it is destroyed.
    fn answer(&mut self) -> Result<(), Violation> {
        for at in 0..QUESTIONS {
            let question = self.book.question(at);
            if question.stage != Stage::Asked || question.node != Field::node_of(self.index) {
                continue;
            }
            let id = question.id;
            let Some(here) = self.node.incarnation() else { continue };
            let settled = match self.node.open(&Cookie { id, host: here }, OpenMode::Exclusive) {
                // It has another id by now, which is known.
                Ok(Opened::Session(session)) if session.is_read_only() => Ok(Stage::Free),
                Ok(Opened::Session(session)) => {
                    let page = page(&session);
                    if !page.is_some_and(|page| self.book.may_be_orphan(page)) {
                        let version = session.version();
                        let what =
                            format!("session {id} is there, at {version}, of page {page:x?}: who made it?");
                        drop(session);
                        return self.unless_over(here, what);
                    }
                    session.destroy().map(|()| Stage::Settled)
                }
                // Not any more, or not yet: the test looks again.
                Ok(Opened::Missing | Opened::Elsewhere(_)) => Ok(Stage::Free),
                Err(error) => Err(error),
            };
            match settled {
                Ok(stage) => self.book.answer(at, question, stage),
                Err(error) => self.failed(&error),
            }
        }
        Ok(())
    }

    /// Gone is gone, whoever is asked; then the page can be used again.
    fn look_for_ghosts(&mut self, record: Record, mark: Mark) -> Result<(), Violation> {
        let taken = self.taken(mark);
        if !record.pass(mark, taken) {
            return Ok(());
        }
        let cookie = record.cookie();
        let state = match self.node.open(&cookie, OpenMode::ReadOnly) {
            Ok(Opened::Session(session)) => {
                let (ended, host) = (record.ended().load(Ordering::SeqCst), session.cookie().host);
                let version = session.version();
                drop(session);
                let what = format!(
                    "session {} is back at version {}, opened as of {} at {}; its end was {} at {}.{}, in {}",
                    cookie.id,
                    version,
                    cookie.host.tag(),
                    host.tag(),
                    ended >> 60,
                    ended >> 32 & 0xff_ffff,
                    ended & 0xffff_ffff,
                    Incarnation(record.ended_at().load(Ordering::SeqCst)).tag(),
                );
                self.unless_over(host, what)?;
                State::Gone
            }
            Ok(Opened::Missing) if self.below(4) == 0 => State::Empty,
            Ok(Opened::Missing) => State::Gone,
            Ok(Opened::Elsewhere(_)) => State::Gone,
            Err(error) => {
                self.failed(&error);
                State::Gone
            }
        };
        record.pass(taken, Mark { state, ..taken });
        Ok(())
    }

    /// Opens every session that must be there, and says of those that are here that they were found.
    fn audit(&mut self, wish: u64) -> Result<(), Violation> {
        for record in self.book.records() {
            while record.mark().state == State::Live && self.book.wish(self.index).1 == wish {
                let mark = record.mark();
                let cookie: Cookie = record.cookie();
                match self.node.open(&cookie, OpenMode::ReadOnly) {
                    Ok(Opened::Elsewhere(_)) => break,
                    _ => {
                        if self.open(record, mark, OpenMode::ReadOnly)?.is_some() {
                            record.found().fetch_add(1, Ordering::SeqCst);
                            break;
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

/// The text that belongs to a number: of different lengths, and wrong if one byte is another's.
fn text(number: u64) -> String {
    format!("{number};").repeat(1 + (number * 7919 % 90) as usize)
}

fn write(session: &mut Session, number: u64) -> selvage_fabric::error::Result<()> {
    session.set("n", Value::I64(number.cast_signed()))?;
    session.set("text", Value::Text(text(number)))
}

/// The number of a session whose attributes fit together, and to the page.
pub fn number(session: &Session, wanted: u64) -> Result<u64, Violation> {
    let Some(ValueRef::I64(number)) = session.get("n") else { return Err("it has no number".into()) };
    let number = number.cast_unsigned();
    match session.get("text") {
        Some(ValueRef::Text(found)) if found == text(number) => {}
        other => return Err(format!("it says {number}, and its text is another version's: {other:?}")),
    }
    match page(session) {
        Some(page) if page == wanted => Ok(number),
        other => Err(format!("it is of page {other:x?} instead of {wanted:x}")),
    }
}

/// How often was counted in a session.
fn counted(session: &Session) -> u64 {
    match session.get("count") {
        Some(ValueRef::I64(counted)) => counted.cast_unsigned(),
        _ => 0,
    }
}

/// The page that a session says it is of.
fn page(session: &Session) -> Option<u64> {
    match session.get("page") {
        Some(ValueRef::I64(page)) => Some(page.cast_unsigned()),
        _ => None,
    }
}

/// The clock that sessions expire by.
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}
