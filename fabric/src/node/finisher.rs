//! [`Finisher`]: asynchronous commits whose pushes are still under way. One thread looks at all of them, so
//! that any number can be under way at once, and none keeps the caller's event loop.

use super::commit::UnderWay;
use super::open::OpenSession;
use super::{OpId, operations::Ended};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long the thread sleeps at most before it looks at all commits again. It sleeps for the oldest, whose
/// end usually comes first; this bounds what others lose where it does not, because its server is dying.
const REST: Duration = Duration::from_micros(200);

/// A commit whose pushes are under way. Fields are dropped in order: the pushes are forgotten before the hold
/// that they belong to goes.
pub(super) struct Commit {
    pub op: OpId,
    pub user_data: u64,
    pub under_way: UnderWay,
    pub session: OpenSession,
}

impl Commit {
    fn is_over(&mut self) -> bool {
        let volley = self.under_way.flight.volley();
        match self.session.hold() {
            Ok(hold) => volley.is_over(hold) || volley.is_hopeless(&self.session.host),
            Err(_) => true,
        }
    }

    /// Waits for the rest.
    pub fn end(mut self) -> (OpId, u64, Ended) {
        let committed = self.session.commit_later(self.under_way);
        (self.op, self.user_data, Ended::Committed(self.session, committed))
    }
}

/// Commits under way.
#[derive(Default)]
pub(super) struct Finisher {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    commits: Vec<Commit>,
    running: bool,
    stopped: bool,
}

impl Finisher {
    /// Takes a commit; `start` is called if the thread is to be started, and says whether it was. If not, the
    /// commit comes back.
    pub fn take(&self, commit: Commit, start: impl FnOnce() -> bool) -> Option<Commit> {
        let mut state = self.lock();
        if !state.running {
            state.running = !state.stopped && start();
        }
        if !state.running || state.stopped {
            return Some(commit);
        }
        state.commits.push(commit);
        self.changed.notify_all();
        None
    }

    /// Body of the thread. `complete` takes what has ended.
    pub fn run(&self, complete: impl Fn(OpId, u64, Ended)) {
        let mut under_way: Vec<Commit> = Vec::new();
        loop {
            {
                let mut state = self.lock();
                while state.commits.is_empty() && under_way.is_empty() && !state.stopped {
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                if state.stopped {
                    drop(std::mem::take(&mut under_way));
                    state.running = false;
                    self.changed.notify_all();
                    return;
                }
                under_way.append(&mut state.commits);
            }
            let mut at = 0;
            while at < under_way.len() {
                if under_way[at].is_over() {
                    let (op, user_data, ended) = under_way.remove(at).end();
                    complete(op, user_data, ended);
                } else {
                    at += 1;
                }
            }
            if let Some(oldest) = under_way.first_mut() {
                oldest.under_way.flight.volley().rest(REST);
            }
        }
    }

    /// Ends the thread: what is under way is given up. Waits for it, at most so long.
    pub fn stop(&self, bound: Duration) {
        let mut state = self.lock();
        state.stopped = true;
        let commits = std::mem::take(&mut state.commits);
        self.changed.notify_all();
        let waited = self.changed.wait_timeout_while(state, bound, |state| state.running);
        drop(waited);
        drop(commits);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
