//! What the parts of the proxy know of a browser's connection: the framing check and the lingering end around
//! its stream, the body of its request, the phases, the answer.
//!
//! Requests of a connection are counted where their heads pass the framing check, where the phases take them
//! up, and where their answers have ended; hyper keeps their order. So the phases know which request a
//! refusal is for, and the check knows when the connection is idle. An HTTP/2 connection has no framing
//! check, and of all this only the end of a request matters there.

use crate::proxy::framing::Fault;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::Waker;

/// One browser's connection.
#[derive(Clone, Debug, Default)]
pub struct Browser(Arc<State>);

#[derive(Debug, Default)]
struct State {
    /// Bytes have come since the last request that was read to its end.
    unread: AtomicBool,
    /// A request was answered that has not been read to its end, and will not be of use.
    refused: AtomicBool,
    /// Requests whose heads passed the framing check.
    passed: AtomicU64,
    /// Requests that the phases took up.
    begun: AtomicU64,
    /// Requests whose answers have ended.
    answered: AtomicU64,
    /// The request that is no good, by its number from 1, and why.
    verdict: OnceLock<(u64, Fault)>,
    upgrade: AtomicU8,
    /// The request that has asked for it, by its number. Others may be under way before it.
    asked: AtomicU64,
    /// Who waits for an answer's end, or for the decision about an upgrade.
    waker: Mutex<Option<Waker>>,
}

/// Whether the connection goes on with another protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Upgrade {
    /// Nobody has asked, or it was declined.
    No = 0,
    /// A request has asked and is not answered yet.
    Asked = 1,
    /// From now on what passes is not HTTP.
    Yes = 2,
}

/// An answer that has not ended, and the number of its request.
#[derive(Debug)]
pub struct Answering(Browser, u64);

impl Browser {
    /// Whether a request was begun that has not been read to its end.
    pub fn is_unread(&self) -> bool {
        self.0.unread.load(Ordering::Relaxed)
    }

    /// Bytes have come.
    pub fn heard(&self) {
        self.0.unread.store(true, Ordering::Relaxed);
    }

    /// The request has been read to its end.
    pub fn read(&self) {
        self.0.unread.store(false, Ordering::Relaxed);
    }

    /// The request is answered and the rest of it is of no use: it is waited for no longer than
    /// [`crate::limits::LINGER_MAX`].
    pub fn refuse(&self) {
        self.0.refused.store(true, Ordering::Relaxed);
    }

    /// Whether [`refuse`](Self::refuse) was called.
    pub fn is_refused(&self) -> bool {
        self.0.refused.load(Ordering::Relaxed)
    }

    /// A request's head has passed the framing check.
    pub fn pass(&self) {
        self.0.passed.fetch_add(1, Ordering::Relaxed);
    }

    /// The next request is no good; what stands for it among the requests is to be answered so.
    pub fn reject_next(&self, fault: Fault) {
        self.pass();
        self.reject(fault);
    }

    /// The request whose body is being read is no good.
    pub fn reject(&self, fault: Fault) {
        // The first verdict is the last word: nothing is read any more after it.
        let _ = self.0.verdict.set((self.0.passed.load(Ordering::Relaxed), fault));
    }

    /// The phases take the next request up: its answer, and what was wrong with it.
    pub fn begin(&self) -> (Answering, Option<Fault>) {
        let number = self.0.begun.fetch_add(1, Ordering::Relaxed) + 1;
        (Answering(self.clone(), number), self.verdict(number))
    }

    /// What was wrong with the body of the newest request that the phases took up.
    pub fn fault(&self) -> Option<Fault> {
        self.verdict(self.0.begun.load(Ordering::Relaxed))
    }

    fn verdict(&self, number: u64) -> Option<Fault> {
        self.0.verdict.get().filter(|(rejected, _)| *rejected == number).map(|(_, fault)| *fault)
    }

    /// Whether requests are under way.
    pub fn is_busy(&self) -> bool {
        self.0.passed.load(Ordering::Relaxed) > self.0.answered.load(Ordering::Acquire)
    }

    /// Whether it has sent no request yet.
    pub fn is_new(&self) -> bool {
        self.0.passed.load(Ordering::Relaxed) == 0
    }

    /// Where it is with another protocol.
    pub fn upgrade(&self) -> Upgrade {
        match self.0.upgrade.load(Ordering::Acquire) {
            1 => Upgrade::Asked,
            2 => Upgrade::Yes,
            _ => Upgrade::No,
        }
    }

    /// The request whose head has passed last asks for another protocol.
    pub fn ask_upgrade(&self) {
        self.0.asked.store(self.0.passed.load(Ordering::Relaxed), Ordering::Relaxed);
        self.0.upgrade.store(Upgrade::Asked as u8, Ordering::Release);
    }

    /// Wakes when an answer ends or an upgrade is decided. Who calls this looks afterwards whether that has
    /// happened meanwhile.
    pub fn on_change(&self, waker: &Waker) {
        self.0.waker.lock().unwrap_or_else(PoisonError::into_inner).replace(waker.clone());
    }

    fn wake(&self) {
        let waker = self.0.waker.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Answering {
    /// The request is answered: decides about the other protocol, if it was this one that has asked.
    pub fn decide_upgrade(&self, upgrade: Upgrade) {
        let Self(browser, number) = self;
        let is_asked = browser.upgrade() == Upgrade::Asked;
        if is_asked && browser.0.asked.load(Ordering::Relaxed) == *number {
            browser.0.upgrade.store(upgrade as u8, Ordering::Release);
            browser.wake();
        }
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.0.answered.fetch_add(1, Ordering::Release);
        self.0.wake();
    }
}
