//! What a worker does with the lives of sessions beside their values: new ids, and the end of their time.

use crate::book::{Mark, Record, State};
use crate::worker::{Violation, Worker, number, unix_ms};
use selvage_fabric::ident::{Cookie, Version};
use selvage_fabric::node::{OpenMode, Opened, Session};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// A session that nobody has used for so long is over, s; the configuration says the same.
pub const IDLE_S: u64 = 12;
/// An id that was given up can be read for so long; the configuration says the same.
pub const GRACE_MS: u64 = 200;
/// Who waited for a session's lock before it was left alone, or was stopped at that, may lengthen its time
/// so often.
const EXTENSIONS: u64 = 3;
/// Sessions whose time is over are asked for at once, or so much later, ms: when a sweep has found them.
const LATER_MS: u64 = 2000;

impl Worker<'_> {
    /// Gives a session a new id. The old one must be gone then, and what was acked is under the new one.
    pub fn renew(&mut self, record: Record, mark: Mark) -> Result<(), Violation> {
        let mode = self.any_lock();
        let Some(mut session) = self.open(record, mark, mode)? else { return Ok(()) };
        let renewed = Mark { state: State::Renewed, ..self.taken(mark) };
        if !record.pass(mark, renewed) {
            return Ok(());
        }
        let (old, page) = (session.cookie(), record.page(mark.life));
        if let Err(error) = session.regenerate() {
            self.failed(&error);
            self.book.note_orphan(page);
            record.set_cookie(&session.cookie());
            record.pass(renewed, Mark { state: State::Doubt, ..renewed });
            return Ok(());
        }
        let (number, new) = (number(&session, page), session.cookie());
        drop(session);
        let number = number.map_err(|why| format!("session {}, which was {}: {why}", new.id, old.id))?;
        let (acked, sent) = (record.acked(mark.life), record.sent(mark.life));
        if new.id == old.id || number < acked || number > sent {
            let what = format!(
                "session {} has the id {} now, and says {number}; {acked} was acked and {sent} sent",
                old.id, new.id
            );
            self.unless_over(new.host, what)?;
        }
        record.set_cookie(&new);
        self.is_gone(page, &old, &new)?;
        self.book.renewed().fetch_add(1, Ordering::Relaxed);
        record.pass(renewed, Mark { state: State::Live, turn: mark.turn + 1, ..renewed });
        Ok(())
    }

    /// Nothing is under the old id, but for a moment what was there before, which nobody can change.
    fn is_gone(&mut self, page: u64, old: &Cookie, new: &Cookie) -> Result<(), Violation> {
        let until_ms = unix_ms() + GRACE_MS;
        if self.below(8) == 0 {
            std::thread::sleep(Duration::from_millis(GRACE_MS + 1));
        }
        let asked_ms = unix_ms();
        match self.node.open(old, OpenMode::Exclusive) {
            Ok(Opened::Session(session)) if session.is_read_only() && asked_ms <= until_ms => {
                number(&session, page).map_err(|why| format!("session {}, of old: {why}", old.id))?;
                Ok(())
            }
            Ok(Opened::Session(session)) => {
                let version = session.version();
                drop(session);
                let what = format!("session {} is there at {version}; it has the id {} now", old.id, new.id);
                self.unless_over(new.host, what)
            }
            Ok(Opened::Missing | Opened::Elsewhere(_)) => Ok(()),
            Err(error) => {
                self.failed(&error);
                Ok(())
            }
        }
    }

    /// A session that is left alone lives as long as was promised, and no longer. Returns whether there was
    /// anything to do.
    pub fn look_after(&mut self, record: Record, mark: Mark) -> Result<bool, Violation> {
        let (now_ms, expiry_ms) = (unix_ms(), record.expiry_ms());
        let due_ms = expiry_ms + (record.index() as u64 % 3) * LATER_MS;
        let touchable = expiry_ms - IDLE_S * 600..expiry_ms - IDLE_S * 300;
        let used = record.extensions().load(Ordering::SeqCst);
        if touchable.contains(&now_ms) && used == 0 && self.below(50) == 0 {
            return self.touch(record, mark).map(|()| true);
        }
        let taken = self.taken(mark);
        if now_ms < due_ms || !record.pass(mark, taken) {
            return Ok(false);
        }
        let mode = if self.below(2) == 0 { OpenMode::ReadOnly } else { OpenMode::Exclusive };
        let state = match self.node.open(&record.cookie(), mode) {
            Ok(Opened::Missing) => {
                self.note_end(record, 4, Version::default());
                self.book.expired().fetch_add(1, Ordering::Relaxed);
                State::Gone
            }
            Ok(Opened::Session(session)) => {
                self.outlives(record, session, expiry_ms)?;
                State::Left
            }
            Ok(Opened::Elsewhere(_)) => State::Left,
            Err(error) => {
                self.failed(&error);
                State::Left
            }
        };
        record.pass(taken, Mark { state, ..taken });
        Ok(true)
    }

    /// Uses a session that is left alone, so that its time is longer.
    fn touch(&mut self, record: Record, mark: Mark) -> Result<(), Violation> {
        if let Some(session) = self.open(record, mark, OpenMode::Exclusive)? {
            record.extensions().fetch_add(1, Ordering::SeqCst);
            if session.copies() >= 2 {
                record.expires_at(session.expiry_ms());
            }
        }
        Ok(())
    }

    /// Its time is longer than the book knows: somebody came late, but that ends.
    fn outlives(&self, record: Record, session: Session, expiry_ms: u64) -> Result<(), Violation> {
        let (id, host, longer_ms) = (session.id(), session.cookie().host, session.expiry_ms());
        drop(session);
        record.expires_at(longer_ms);
        if record.extensions().fetch_add(1, Ordering::SeqCst) > EXTENSIONS {
            let what = format!("session {id} is there at {}, which should end at {expiry_ms}", longer_ms);
            return self.unless_over(host, what);
        }
        Ok(())
    }
}
