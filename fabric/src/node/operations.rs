//! Operations that go on in the background, and their completions.
//!
//! Waits for locks are kept by one thread that looks at all of them whenever the process's doorbell rings, so
//! that any number can wait; what must block (a fetch, the opening of a link, tombstones of a server that
//! does not answer) goes to a few worker threads. A worker never waits for a session's lock: its holder might
//! need a worker to let go.

use super::attachment::Attachment;
use super::commit::UnderWay;
use super::finisher::{self, Finisher};
use super::host::Host;
use super::jobs::{Job, Jobs};
use super::open::{self, Found, OpenSession, Step, lock_lost, timed_out};
use super::session::Committed;
use super::work::{self, Came, Work};
use super::{OpId, OpenMode, fetch};
use crate::cache::{Hold, HoldState};
use crate::error::{Error, Origin, Result};
use crate::ident::Cookie;
use crate::limits::LIVENESS_POLL;
use crate::numbers::NodeTime;
use rustix::event::{EventfdFlags, eventfd};
use std::collections::{HashSet, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// How an operation ended, without the [`super::Node`] that public handles keep: what waits here must not
/// keep it alive.
pub(super) enum Ended {
    Opened(Result<Found>),
    Committed(OpenSession, Result<Committed>),
    Destroyed(Result<()>),
    OwnerDestroyed(Result<u64>),
    Regenerated(OpenSession, Result<()>),
}

impl Ended {
    /// The error that it ended with.
    pub fn error(&self) -> Option<&Error> {
        match self {
            Self::Opened(result) => result.as_ref().err(),
            Self::Committed(_, result) => result.as_ref().err(),
            Self::OwnerDestroyed(result) => result.as_ref().err(),
            Self::Destroyed(result) | Self::Regenerated(_, result) => result.as_ref().err(),
        }
    }
}

/// What became of an operation that was begun.
#[allow(clippy::large_enum_variant, reason = "boxing would allocate for every request that need not wait")]
pub(super) enum Begun {
    Now(Ended),
    Pending(OpId),
}

/// The operations of one attachment.
pub(super) struct Operations {
    eventfd: OwnedFd,
    next: AtomicU64,
    stopped: AtomicBool,
    completions: Mutex<VecDeque<(OpId, u64, Ended)>>,
    /// Operations under way that were not cancelled.
    open: Mutex<HashSet<OpId>>,
    pub jobs: Jobs,
    waits: Mutex<Waits>,
    waits_changed: Condvar,
    finisher: Finisher,
}

#[derive(Default)]
struct Waits {
    list: Vec<Wait>,
    running: bool,
}

/// What an open needs to go on.
#[derive(Clone)]
struct Opening {
    op: OpId,
    user_data: u64,
    cookie: Cookie,
    mode: OpenMode,
    deadline: Instant,
}

/// Work on an open session that is under way.
#[derive(Clone, Copy)]
struct Working {
    /// `None` while it may still end at once.
    op: Option<OpId>,
    user_data: u64,
    work: Work,
    /// Until when it waits for the lock.
    deadline: Option<Instant>,
}

/// Somebody in the queue for a session's lock.
struct Wait {
    purpose: Purpose,
    host: Arc<Host>,
    hold: Hold,
    since_ns: u64,
}

impl Wait {
    /// From now on.
    fn begin(purpose: Purpose, host: Arc<Host>, hold: Hold) -> Self {
        let since_ns = host.clock.monotonic_ns();
        Self { purpose, host, hold, since_ns }
    }
}

/// What the lock is wanted for.
#[allow(clippy::large_enum_variant, reason = "boxing would allocate for every request that has to wait")]
enum Purpose {
    Open(Opening),
    Work(Working, OpenSession),
}

impl Purpose {
    fn op(&self) -> Option<OpId> {
        match self {
            Self::Open(opening) => Some(opening.op),
            Self::Work(working, _) => working.op,
        }
    }

    fn deadline(&self) -> Option<Instant> {
        match self {
            Self::Open(opening) => Some(opening.deadline),
            Self::Work(working, _) => working.deadline,
        }
    }
}

impl Operations {
    pub fn new() -> Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self {
            eventfd: eventfd(0, flags)
                .map_err(|error| Error::os(Origin::Node, "cannot make an eventfd", error))?,
            next: AtomicU64::new(1),
            stopped: AtomicBool::new(false),
            completions: Mutex::default(),
            open: Mutex::default(),
            jobs: Jobs::default(),
            waits: Mutex::default(),
            waits_changed: Condvar::new(),
            finisher: Finisher::default(),
        })
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.eventfd.as_fd()
    }

    /// The next completion. The eventfd is emptied before the queue is found empty, so none is overlooked.
    pub fn next_completion(&self) -> Option<(OpId, u64, Ended)> {
        let mut completions = lock(&self.completions);
        let next = completions.pop_front();
        if completions.is_empty() {
            let mut word = [0; 8];
            // Nothing to read means that it is empty already.
            let _ = rustix::io::read(&self.eventfd, &mut word);
        }
        next
    }

    pub fn cancel(&self, op: OpId) -> bool {
        lock(&self.open).remove(&op)
    }

    /// Ends everything: jobs that have not begun are dropped, and waits give their place up.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        lock(&self.open).clear();
        self.jobs.stop();
        let waits = std::mem::take(&mut lock(&self.waits).list);
        let completions = std::mem::take(&mut *lock(&self.completions));
        drop((waits, completions));
        self.waits_changed.notify_all();
        self.finisher.stop(crate::limits::WAIT);
        // Each job is bounded; sessions inside them must be gone before the process leaves its segment.
        let bound = Instant::now() + crate::limits::WAIT;
        while Instant::now() < bound {
            if self.jobs.has_ended(LIVENESS_POLL) {
                if !lock(&self.waits).running {
                    break;
                }
                std::thread::sleep(LIVENESS_POLL);
            }
        }
        drop(std::mem::take(&mut *lock(&self.completions)));
    }

    pub fn begin(&self) -> OpId {
        let op = OpId(self.next.fetch_add(1, Ordering::Relaxed));
        lock(&self.open).insert(op);
        op
    }

    /// Puts a completion up, unless the operation was cancelled; then the session in it is closed here.
    pub fn complete(&self, op: OpId, user_data: u64, ended: Ended) {
        if !lock(&self.open).remove(&op) {
            return;
        }
        lock(&self.completions).push_back((op, user_data, ended));
        // The counter cannot overflow: one step per operation.
        let _ = rustix::io::write(&self.eventfd, &1_u64.to_ne_bytes());
    }

    fn is_cancelled(&self, op: OpId) -> bool {
        !lock(&self.open).contains(&op)
    }

    fn submit(&self, attachment: &Arc<Attachment>, job: Job) {
        if let Some(job) = self.jobs.submit(job, || start_worker(attachment)) {
            // There is no thread to be had: its caller waits here, and is not forgotten.
            job(attachment);
        }
    }

    /// Leaves a job to a thread that can take long and helps nobody else.
    pub fn submit_patient(&self, attachment: &Arc<Attachment>, job: Job) {
        if let Some(job) = self.jobs.submit_patient(job, || start_worker(attachment)) {
            job(attachment);
        }
    }

    /// Puts a wait into the care of the waiting thread.
    fn wait(&self, attachment: &Arc<Attachment>, wait: Wait) {
        let mut waits = lock(&self.waits);
        if self.stopped.load(Ordering::Acquire) {
            return;
        }
        if !waits.running {
            let attachment = attachment.clone();
            let waiter = std::thread::Builder::new()
                .name("selvage-waiter".into())
                .spawn(move || attachment.operations.tend(&attachment));
            if let Err(error) = waiter {
                drop(waits);
                return self.refuse(wait, Error::os(Origin::Node, "cannot start the waiting thread", error));
            }
            waits.running = true;
        }
        wait.host.cache.ring_doorbell();
        waits.list.push(wait);
        self.waits_changed.notify_one();
    }

    /// Ends a wait that nobody can take care of.
    fn refuse(&self, wait: Wait, error: Error) {
        tracing::error!(%error, "an operation fails");
        let Some(op) = wait.purpose.op() else { return };
        let (user_data, ended) = match wait.purpose {
            Purpose::Open(opening) => (opening.user_data, Ended::Opened(Err(error))),
            Purpose::Work(working, session) => (working.user_data, working.work.failed(session, error)),
        };
        self.complete(op, user_data, ended);
    }

    /// Body of the waiting thread.
    fn tend(&self, attachment: &Arc<Attachment>) {
        let mut bell: Option<(Arc<Host>, u32)> = None;
        loop {
            let mut waits = lock(&self.waits);
            while waits.list.is_empty() && !self.stopped.load(Ordering::Acquire) {
                bell = None;
                waits = self.waits_changed.wait(waits).unwrap_or_else(PoisonError::into_inner);
            }
            if self.stopped.load(Ordering::Acquire) {
                waits.running = false;
                return;
            }
            // The doorbell of one segment; waits of another incarnation are looked at every `LIVENESS_POLL`.
            let host = waits.list[waits.list.len() - 1].host.clone();
            let seen = match &bell {
                Some((rung, seen)) if Arc::ptr_eq(rung, &host) => *seen,
                _ => host.cache.doorbell(),
            };
            let list = std::mem::take(&mut waits.list);
            drop(waits);
            let left: Vec<Wait> = list.into_iter().filter_map(|wait| self.look(attachment, wait)).collect();
            lock(&self.waits).list.extend(left);
            let rung = host.cache.wait_doorbell(seen, LIVENESS_POLL);
            bell = Some((host, rung));
        }
    }

    /// Looks at one wait; gives it back if it goes on.
    fn look(&self, attachment: &Arc<Attachment>, wait: Wait) -> Option<Wait> {
        if wait.purpose.op().is_none_or(|op| self.is_cancelled(op)) {
            return None;
        }
        let tended = wait.hold.tend();
        let is_early = wait.purpose.deadline().is_none_or(|deadline| Instant::now() < deadline);
        if matches!(tended, Ok(HoldState::Waiting)) && is_early {
            return Some(wait);
        }
        let Wait { purpose, host, hold, since_ns } = wait;
        host.observe_since(NodeTime::LockWait, since_ns);
        let granted = match tended {
            Ok(HoldState::Waiting) => Err(timed_out(&host, "the session's lock")),
            Ok(HoldState::Revoked | HoldState::Pinned) => Err(lock_lost()),
            Ok(HoldState::Granted) => Ok(hold),
            Err(error) => Err(error),
        };
        match purpose {
            Purpose::Open(opening) => self.look_open(attachment, opening, host, granted),
            Purpose::Work(working, session) => self.look_work(attachment, session, working, granted),
        }
        None
    }

    /// Goes on with an open that waited for a lock.
    fn look_open(
        &self,
        attachment: &Arc<Attachment>,
        opening: Opening,
        host: Arc<Host>,
        granted: Result<Hold>,
    ) {
        let found = match granted {
            Ok(hold) if open::must_block(&host, &hold).unwrap_or(false) => {
                return self.submit_granted(attachment, opening, host, hold);
            }
            Ok(hold) => match open::granted(&host, &opening.cookie, opening.mode, hold, false) {
                Ok(Some(found)) => Ok(found),
                Ok(None) => return self.submit_open(attachment, opening),
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        };
        self.complete(opening.op, opening.user_data, Ended::Opened(found));
    }

    /// Goes on with work that waited for a lock.
    fn look_work(
        &self,
        attachment: &Arc<Attachment>,
        mut session: OpenSession,
        working: Working,
        granted: Result<Hold>,
    ) {
        let begun = granted.and_then(|hold| Work::granted(&mut session, hold));
        if let (Begun::Now(ended), Some(op)) = (self.go_on(attachment, session, working, begun), working.op) {
            self.complete(op, working.user_data, ended);
        }
    }

    fn submit_open(&self, attachment: &Arc<Attachment>, opening: Opening) {
        self.submit(
            attachment,
            Box::new(move |attachment| attachment.operations.open_slowly(attachment, opening)),
        );
    }

    /// Goes on with an open whose lock was granted, on a thread that may block.
    fn submit_granted(&self, attachment: &Arc<Attachment>, opening: Opening, host: Arc<Host>, hold: Hold) {
        let job = move |attachment: &Arc<Attachment>| {
            let operations = &attachment.operations;
            if operations.is_cancelled(opening.op) {
                return;
            }
            match open::granted(&host, &opening.cookie, opening.mode, hold, true) {
                Ok(None) => operations.open_slowly(attachment, opening),
                found => {
                    let found = found.map(|found| found.unwrap_or(Found::Missing));
                    operations.complete(opening.op, opening.user_data, Ended::Opened(found));
                }
            }
        };
        self.submit(attachment, Box::new(job));
    }

    /// An open on a worker thread: joins, fetches, ends expired sessions, but leaves waits for locks to the
    /// waiting thread.
    fn open_slowly(&self, attachment: &Arc<Attachment>, opening: Opening) {
        let found = loop {
            if self.is_cancelled(opening.op) {
                return;
            }
            let step = attachment.wait_host(opening.deadline).and_then(|host| {
                let step = open::begin(&host, &opening.cookie, opening.mode, true)?;
                Ok((host, step))
            });
            let (host, step) = match step {
                Ok(found) => found,
                Err(error) => break Err(error),
            };
            match step {
                Step::Found(found) => break Ok(found),
                Step::Wait(hold) => {
                    return self.wait(attachment, Wait::begin(Purpose::Open(opening), host, hold));
                }
                Step::Slow => match fetch::fetch(&host, &opening.cookie, opening.deadline) {
                    Ok(fetch::Fetched::Missing) => break Ok(Found::Missing),
                    Ok(fetch::Fetched::Elsewhere(node)) => break Ok(Found::Elsewhere(node)),
                    Ok(fetch::Fetched::Hosted) => {}
                    Err(error) => break Err(error),
                },
            }
            if Instant::now() >= opening.deadline {
                break Err(timed_out(&host, "the session"));
            }
        };
        self.complete(opening.op, opening.user_data, Ended::Opened(found));
    }

    /// Begins an open.
    pub fn open(
        &self,
        attachment: &Arc<Attachment>,
        cookie: &Cookie,
        mode: OpenMode,
        user_data: u64,
    ) -> Begun {
        let wait = std::time::Duration::from_millis(attachment.config.session.wait_ms);
        let deadline = Instant::now() + wait;
        let opening = |op| Opening { op, user_data, cookie: *cookie, mode, deadline };
        let Some(host) = attachment.host() else {
            let op = self.begin();
            self.submit_open(attachment, opening(op));
            return Begun::Pending(op);
        };
        match open::begin(&host, cookie, mode, false) {
            Ok(Step::Found(found)) => Begun::Now(Ended::Opened(Ok(found))),
            Ok(Step::Wait(hold)) => {
                let op = self.begin();
                self.wait(attachment, Wait::begin(Purpose::Open(opening(op)), host, hold));
                Begun::Pending(op)
            }
            Ok(Step::Slow) => {
                let op = self.begin();
                self.submit_open(attachment, opening(op));
                Begun::Pending(op)
            }
            Err(error) => Begun::Now(Ended::Opened(Err(error))),
        }
    }

    /// Begins a creation: pending only while the process has not joined.
    pub fn create(&self, attachment: &Arc<Attachment>, owner: Option<&str>, user_data: u64) -> Begun {
        if let Some(host) = attachment.host() {
            return Begun::Now(Ended::Opened(open::create(&host, owner).map(Found::Session)));
        }
        let op = self.begin();
        let owner = owner.map(str::to_owned);
        let wait = std::time::Duration::from_millis(attachment.config.session.wait_ms);
        let deadline = Instant::now() + wait;
        let job = move |attachment: &Arc<Attachment>| {
            let created = attachment.wait_host(deadline);
            let created = created.and_then(|host| open::create(&host, owner.as_deref()));
            attachment.operations.complete(op, user_data, Ended::Opened(created.map(Found::Session)));
        };
        self.submit(attachment, Box::new(job));
        Begun::Pending(op)
    }

    /// Begins work on an open session: pending while it waits for the session's lock (of an unlocked handle),
    /// for a link or the first mandate, for a server that must be talked to, or while its pushes are under
    /// way.
    pub fn carry_out(
        &self,
        attachment: &Arc<Attachment>,
        mut session: OpenSession,
        work: Work,
        user_data: u64,
    ) -> Begun {
        let begun = work.begin(&mut session);
        self.go_on(attachment, session, Working { op: None, user_data, work, deadline: None }, begun)
    }

    /// Goes on with work on a session from where its lock stands.
    fn go_on(
        &self,
        attachment: &Arc<Attachment>,
        session: OpenSession,
        working: Working,
        begun: Result<work::Begun>,
    ) -> Begun {
        let work = working.work;
        match begun {
            Ok(work::Begun::Ready) => match work.try_now(session) {
                Came::Ended(ended) => Begun::Now(ended),
                Came::UnderWay(session, under_way) => self.finish(attachment, session, under_way, working),
                Came::Blocks(session) => self.run(attachment, working, move || work.run(session)),
            },
            Ok(work::Begun::Committed(committed)) => Begun::Now(Ended::Committed(session, committed)),
            Ok(work::Begun::Wait(hold)) => {
                let op = self.begin();
                let deadline = Some(session.host.deadline());
                let working = Working { op: Some(op), deadline, ..working };
                let host = session.host.clone();
                self.wait(attachment, Wait::begin(Purpose::Work(working, session), host, hold));
                Begun::Pending(op)
            }
            Ok(work::Begun::Blocks(hold)) => {
                self.run(attachment, working, move || work.run_with(session, hold))
            }
            Err(error) => Begun::Now(work.failed(session, error)),
        }
    }

    /// Leaves a commit to the finishing thread.
    fn finish(
        &self,
        attachment: &Arc<Attachment>,
        session: OpenSession,
        under_way: UnderWay,
        working: Working,
    ) -> Begun {
        let op = working.op.unwrap_or_else(|| self.begin());
        let start = || {
            let attachment = attachment.clone();
            let finisher = std::thread::Builder::new().name("selvage-finisher".into()).spawn(move || {
                let operations = &attachment.operations;
                operations.finisher.run(|op, user_data, ended| operations.complete(op, user_data, ended));
            });
            finisher.inspect_err(|error| tracing::error!(%error, "cannot start the finishing thread")).is_ok()
        };
        let commit = finisher::Commit { op, user_data: working.user_data, under_way, session };
        match self.finisher.take(commit, start) {
            None => Begun::Pending(op),
            Some(commit) => {
                // There is no thread to be had: wait here.
                let (_, _, ended) = commit.end();
                if working.op.is_none() {
                    self.cancel(op);
                }
                Begun::Now(ended)
            }
        }
    }

    /// Leaves work to a thread that may block.
    fn run(
        &self,
        attachment: &Arc<Attachment>,
        working: Working,
        work: impl FnOnce() -> Ended + Send + 'static,
    ) -> Begun {
        let (op, user_data) = (working.op.unwrap_or_else(|| self.begin()), working.user_data);
        let job = move |attachment: &Arc<Attachment>| attachment.operations.complete(op, user_data, work());
        self.submit(attachment, Box::new(job));
        Begun::Pending(op)
    }
}

/// Starts a worker thread, if it can.
fn start_worker(attachment: &Arc<Attachment>) -> bool {
    let attachment = attachment.clone();
    let worker = std::thread::Builder::new()
        .name("selvage-worker".into())
        .spawn(move || attachment.operations.jobs.work(&attachment));
    worker.inspect_err(|error| tracing::error!(%error, "cannot start a worker thread")).is_ok()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
