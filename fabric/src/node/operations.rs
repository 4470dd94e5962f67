//! Operations that go on in the background, and their completions.
//!
//! Waits for locks are kept by one thread that looks at all of them whenever the process's doorbell rings, so
//! that any number can wait; what must block (a fetch, the opening of a link, tombstones of a server that
//! does not answer) goes to a few worker threads. A worker never waits for a session's lock: its holder might
//! need a worker to let go.

use super::attachment::Attachment;
use super::commit::{Commit, UnderWay};
use super::finisher::{self, Finisher};
use super::host::Host;
use super::open::{self, Found, OpenSession, Step, lock_lost, timed_out};
use super::session::{Ack, Committed};
use super::{OpId, OpenMode, commit, fetch};
use crate::cache::{Hold, HoldState};
use crate::error::{Error, Origin, Result};
use crate::ident::Cookie;
use crate::limits::LIVENESS_POLL;
use rustix::event::{EventfdFlags, eventfd};
use std::collections::{HashSet, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Threads for what must block.
const WORKERS: usize = 4;

/// How an operation ended, without the [`super::Node`] that public handles keep: what waits here must not
/// keep it alive.
pub(super) enum Ended {
    Opened(Result<Found>),
    Committed(OpenSession, Result<Committed>),
    Destroyed(Result<()>),
    Regenerated(OpenSession, Result<()>),
}

/// What became of an operation that was begun.
#[allow(clippy::large_enum_variant, reason = "boxing would allocate for every request that need not wait")]
pub(super) enum Begun {
    Now(Ended),
    Pending(OpId),
}

type Job = Box<dyn FnOnce(&Arc<Attachment>) + Send>;

/// The operations of one attachment.
pub(super) struct Operations {
    eventfd: OwnedFd,
    next: AtomicU64,
    stopped: AtomicBool,
    completions: Mutex<VecDeque<(OpId, u64, Ended)>>,
    /// Operations under way that were not cancelled.
    open: Mutex<HashSet<OpId>>,
    jobs: Mutex<Jobs>,
    jobs_changed: Condvar,
    waits: Mutex<Waits>,
    waits_changed: Condvar,
    finisher: Finisher,
}

#[derive(Default)]
struct Jobs {
    queue: VecDeque<Job>,
    workers: usize,
    idle: usize,
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

/// An open in the queue for its session's lock.
struct Wait {
    opening: Opening,
    host: Arc<Host>,
    hold: Hold,
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
            jobs: Mutex::default(),
            jobs_changed: Condvar::new(),
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
        let jobs = std::mem::take(&mut lock(&self.jobs).queue);
        let waits = std::mem::take(&mut lock(&self.waits).list);
        let completions = std::mem::take(&mut *lock(&self.completions));
        drop((jobs, waits, completions));
        self.jobs_changed.notify_all();
        self.waits_changed.notify_all();
        self.finisher.stop(crate::limits::WAIT);
        // Each job is bounded; sessions inside them must be gone before the process leaves its segment.
        let bound = Instant::now() + crate::limits::WAIT;
        while Instant::now() < bound {
            let jobs = lock(&self.jobs);
            if jobs.workers == 0 && !lock(&self.waits).running {
                break;
            }
            drop(self.jobs_changed.wait_timeout(jobs, LIVENESS_POLL));
        }
        drop(std::mem::take(&mut *lock(&self.completions)));
    }

    fn begin(&self) -> OpId {
        let op = OpId(self.next.fetch_add(1, Ordering::Relaxed));
        lock(&self.open).insert(op);
        op
    }

    /// Puts a completion up, unless the operation was cancelled; then the session in it is closed here.
    fn complete(&self, op: OpId, user_data: u64, ended: Ended) {
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
        let mut jobs = lock(&self.jobs);
        if self.stopped.load(Ordering::Acquire) {
            return;
        }
        jobs.queue.push_back(job);
        if jobs.idle == 0 && jobs.workers < WORKERS {
            let attachment = attachment.clone();
            let worker = std::thread::Builder::new()
                .name("selvage-worker".into())
                .spawn(move || attachment.operations.work(&attachment));
            match worker {
                Ok(_) => jobs.workers += 1,
                Err(error) => tracing::error!(%error, "cannot start a worker thread"),
            }
        }
        self.jobs_changed.notify_one();
    }

    /// Body of a worker thread.
    fn work(&self, attachment: &Arc<Attachment>) {
        let mut jobs = lock(&self.jobs);
        while !self.stopped.load(Ordering::Acquire) {
            match jobs.queue.pop_front() {
                Some(job) => {
                    drop(jobs);
                    job(attachment);
                    jobs = lock(&self.jobs);
                }
                None => {
                    jobs.idle += 1;
                    jobs = self.jobs_changed.wait(jobs).unwrap_or_else(PoisonError::into_inner);
                    jobs.idle -= 1;
                }
            }
        }
        jobs.workers -= 1;
        self.jobs_changed.notify_all();
    }

    /// Puts an open into the care of the waiting thread.
    fn wait(&self, attachment: &Arc<Attachment>, wait: Wait) {
        let mut waits = lock(&self.waits);
        if self.stopped.load(Ordering::Acquire) {
            return;
        }
        wait.host.cache.ring_doorbell();
        waits.list.push(wait);
        if !waits.running {
            let attachment = attachment.clone();
            let waiter = std::thread::Builder::new()
                .name("selvage-waiter".into())
                .spawn(move || attachment.operations.tend(&attachment));
            match waiter {
                Ok(_) => waits.running = true,
                Err(error) => tracing::error!(%error, "cannot start the waiting thread"),
            }
        }
        self.waits_changed.notify_one();
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
        let Wait { opening, host, hold } = wait;
        if self.is_cancelled(opening.op) {
            return None;
        }
        let found = match hold.tend() {
            Ok(HoldState::Waiting) if Instant::now() < opening.deadline => {
                return Some(Wait { opening, host, hold });
            }
            Ok(HoldState::Waiting) => Err(timed_out(&host, "the session's lock")),
            Ok(HoldState::Revoked) => Err(lock_lost()),
            Ok(HoldState::Granted) if open::must_block(&host, &hold).unwrap_or(false) => {
                self.submit_granted(attachment, opening, host, hold);
                return None;
            }
            Ok(HoldState::Granted) => {
                match open::granted(&host, &opening.cookie, opening.mode, hold, false) {
                    Ok(Some(found)) => Ok(found),
                    Ok(None) => {
                        self.submit_open(attachment, opening);
                        return None;
                    }
                    Err(error) => Err(error),
                }
            }
            Err(error) => Err(error),
        };
        self.complete(opening.op, opening.user_data, Ended::Opened(found));
        None
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
                Step::Wait(hold) => return self.wait(attachment, Wait { opening, host, hold }),
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
                self.wait(attachment, Wait { opening: opening(op), host, hold });
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

    /// Begins a commit: pending while a link or the first mandate is missing, or while its pushes are under
    /// way.
    pub fn commit(
        &self,
        attachment: &Arc<Attachment>,
        mut session: OpenSession,
        ack: Ack,
        user_data: u64,
    ) -> Begun {
        if !commit::must_wait(&session.host, session.facts.id, ack) {
            return match session.commit_now() {
                Ok(Commit::UnderWay(under_way)) => self.finish(attachment, session, under_way, user_data),
                Ok(Commit::Ended(committed)) => Begun::Now(Ended::Committed(session, Ok(committed))),
                Err(error) => Begun::Now(Ended::Committed(session, Err(error))),
            };
        }
        self.run(attachment, user_data, move || {
            let committed = session.commit(ack);
            Ended::Committed(session, committed)
        })
    }

    /// Leaves a commit to the finishing thread.
    fn finish(
        &self,
        attachment: &Arc<Attachment>,
        session: OpenSession,
        under_way: UnderWay,
        user_data: u64,
    ) -> Begun {
        let op = self.begin();
        let start = || {
            let attachment = attachment.clone();
            let finisher = std::thread::Builder::new().name("selvage-finisher".into()).spawn(move || {
                let operations = &attachment.operations;
                operations.finisher.run(|op, user_data, ended| operations.complete(op, user_data, ended));
            });
            finisher.inspect_err(|error| tracing::error!(%error, "cannot start the finishing thread")).is_ok()
        };
        match self.finisher.take(finisher::Commit { op, user_data, under_way, session }, start) {
            None => Begun::Pending(op),
            Some(commit) => {
                // There is no thread to be had: wait here.
                self.cancel(op);
                let (_, _, ended) = commit.end();
                Begun::Now(ended)
            }
        }
    }

    /// Begins to destroy a session: pending if a server must be talked to or waited for.
    pub fn destroy(&self, attachment: &Arc<Attachment>, session: OpenSession, user_data: u64) -> Begun {
        if session.can_end_at_once() {
            return Begun::Now(Ended::Destroyed(session.destroy()));
        }
        self.run(attachment, user_data, move || Ended::Destroyed(session.destroy()))
    }

    /// Begins to give a session a new id: pending as [`Self::destroy`].
    pub fn regenerate(
        &self,
        attachment: &Arc<Attachment>,
        mut session: OpenSession,
        user_data: u64,
    ) -> Begun {
        if session.can_end_at_once() {
            let regenerated = session.regenerate();
            return Begun::Now(Ended::Regenerated(session, regenerated));
        }
        self.run(attachment, user_data, move || {
            let regenerated = session.regenerate();
            Ended::Regenerated(session, regenerated)
        })
    }

    fn run(
        &self,
        attachment: &Arc<Attachment>,
        user_data: u64,
        work: impl FnOnce() -> Ended + Send + 'static,
    ) -> Begun {
        let op = self.begin();
        let job = move |attachment: &Arc<Attachment>| attachment.operations.complete(op, user_data, work());
        self.submit(attachment, Box::new(job));
        Begun::Pending(op)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
