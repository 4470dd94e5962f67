//! What must block, on a few threads, which begin when they are needed.
//!
//! A job may be patient: it can take long and helps nobody else, so that some threads are always left to the
//! others. Caller: [`super::operations`].

use super::attachment::Attachment;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Threads for what must block.
const WORKERS: usize = 4;
/// Of these, threads for patient jobs.
const PATIENT: usize = 2;

/// Something to do. It takes the attachment, because what waits here must not keep that alive.
pub(super) type Job<C = Arc<Attachment>> = Box<dyn FnOnce(&C) + Send>;

/// The jobs of one attachment (`C`).
pub(super) struct Jobs<C = Arc<Attachment>> {
    state: Mutex<State<C>>,
    changed: Condvar,
}

struct State<C> {
    queue: VecDeque<Job<C>>,
    patient: VecDeque<Job<C>>,
    /// Threads that are at a patient job.
    patient_running: usize,
    workers: usize,
    /// Threads that wait for a job. One that was woken for a job counts until it has taken it, as the job is
    /// queued until then.
    idle: usize,
    stopped: bool,
}

impl<C> Default for Jobs<C> {
    fn default() -> Self {
        let (queue, patient) = (VecDeque::new(), VecDeque::new());
        let state = State { queue, patient, patient_running: 0, workers: 0, idle: 0, stopped: false };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }
}

impl<C> Jobs<C> {
    /// Leaves a job to a thread; after [`Self::stop`] it is dropped. `start` is called if one more thread is
    /// to be started, and says whether it was. If there is none at all, the job comes back.
    #[must_use]
    pub fn submit(&self, job: Job<C>, start: impl FnOnce() -> bool) -> Option<Job<C>> {
        self.push(job, |state| &mut state.queue, start)
    }

    /// The same of a patient one.
    #[must_use]
    pub fn submit_patient(&self, job: Job<C>, start: impl FnOnce() -> bool) -> Option<Job<C>> {
        self.push(job, |state| &mut state.patient, start)
    }

    fn push(
        &self,
        job: Job<C>,
        queue: impl Fn(&mut State<C>) -> &mut VecDeque<Job<C>>,
        start: impl FnOnce() -> bool,
    ) -> Option<Job<C>> {
        let mut state = self.lock();
        if state.stopped {
            return None;
        }
        queue(&mut state).push_back(job);
        if state.ready() > state.idle && state.workers < WORKERS && start() {
            state.workers += 1;
        }
        if state.workers == 0 {
            return queue(&mut state).pop_back();
        }
        self.changed.notify_one();
        None
    }

    /// Body of a worker thread.
    pub fn work(&self, attachment: &C) {
        let mut state = self.lock();
        while !state.stopped {
            match state.next() {
                Some((job, patient)) => {
                    drop(state);
                    job(attachment);
                    state = self.lock();
                    state.patient_running -= usize::from(patient);
                }
                None => {
                    state.idle += 1;
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                    state.idle -= 1;
                }
            }
        }
        state.workers -= 1;
        self.changed.notify_all();
    }

    /// No further job begins; those that wait are dropped.
    pub fn stop(&self) {
        let waiting = {
            let mut state = self.lock();
            state.stopped = true;
            (std::mem::take(&mut state.queue), std::mem::take(&mut state.patient))
        };
        drop(waiting);
        self.changed.notify_all();
    }

    /// Whether no thread is at work any more; waits for that, at most so long.
    pub fn has_ended(&self, wait: Duration) -> bool {
        let state = self.lock();
        if state.workers == 0 {
            return true;
        }
        drop(self.changed.wait_timeout(state, wait));
        false
    }

    fn lock(&self) -> MutexGuard<'_, State<C>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<C> State<C> {
    /// Jobs that a thread would begin now.
    fn ready(&self) -> usize {
        self.queue.len() + self.patient.len().min(PATIENT - self.patient_running)
    }

    /// The next job, and whether it is a patient one.
    fn next(&mut self) -> Option<(Job<C>, bool)> {
        if let Some(job) = self.queue.pop_front() {
            return Some((job, false));
        }
        let job = if self.patient_running < PATIENT { self.patient.pop_front() } else { None }?;
        self.patient_running += 1;
        Some((job, true))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::WAIT;
    use std::sync::mpsc::{Receiver, channel};
    use std::thread;
    use std::time::Instant;

    fn start(jobs: &Arc<Jobs<()>>) -> bool {
        let jobs = Arc::clone(jobs);
        thread::spawn(move || jobs.work(&()));
        true
    }

    fn until(jobs: &Jobs<()>, holds: impl Fn(&State<()>) -> bool) {
        let end = Instant::now() + WAIT;
        while !holds(&jobs.lock()) {
            assert!(Instant::now() < end);
            thread::yield_now();
        }
    }

    /// A job that says that it has begun and ends when it is told to.
    fn blocking() -> (Job<()>, Receiver<()>, std::sync::mpsc::Sender<()>) {
        let ((says, began), (end, told)) = (channel(), channel());
        let job = move |(): &()| {
            says.send(()).unwrap();
            let _ = told.recv();
        };
        (Box::new(job), began, end)
    }

    #[test]
    fn jobs_that_block_do_not_wait_for_each_other_while_there_may_be_threads() {
        for _ in 0..100 {
            let jobs = Arc::new(Jobs::<()>::default());
            let mut ends = Vec::new();
            // One thread is idle; then so many come at once that it cannot have woken up.
            assert!(jobs.submit(Box::new(|()| {}), || start(&jobs)).is_none());
            until(&jobs, |state| state.idle == 1);
            let began: Vec<_> = (0..WORKERS)
                .map(|_| {
                    let (job, began, end) = blocking();
                    ends.push(end);
                    assert!(jobs.submit(job, || start(&jobs)).is_none());
                    began
                })
                .collect();
            began.iter().for_each(|began| began.recv_timeout(WAIT).expect("each has a thread"));
            // No more threads than there may be, and none for a patient job too many.
            let (job, late, end) = blocking();
            assert!(jobs.submit(job, || panic!("too many")).is_none());
            assert!(late.try_recv().is_err());
            drop((ends, end));
            late.recv_timeout(WAIT).expect("its turn");
            until(&jobs, |state| state.idle == WORKERS);
            jobs.stop();
            until(&jobs, |state| state.workers == 0);
        }
    }

    #[test]
    fn patient_jobs_leave_threads_to_the_others() {
        let jobs = Arc::new(Jobs::<()>::default());
        let (waiting, ends): (Vec<_>, Vec<_>) = (0..=PATIENT)
            .map(|_| {
                let (job, began, end) = blocking();
                assert!(jobs.submit_patient(job, || start(&jobs)).is_none());
                (began, end)
            })
            .unzip();
        waiting[..PATIENT].iter().for_each(|began| began.recv_timeout(WAIT).expect("a thread"));
        let (job, began, _end) = blocking();
        assert!(jobs.submit(job, || start(&jobs)).is_none());
        began.recv_timeout(WAIT).expect("a thread that is no patient job's");
        assert!(waiting[PATIENT].try_recv().is_err());
        drop(ends);
        waiting[PATIENT].recv_timeout(WAIT).expect("its turn");
        jobs.stop();
    }

    #[test]
    fn without_any_thread_a_job_comes_back() {
        let jobs = Arc::new(Jobs::<()>::default());
        let (job, began, _end) = blocking();
        assert!(jobs.submit(job, || false).is_some());
        let (job, _, _) = blocking();
        assert!(jobs.submit_patient(job, || false).is_some());
        assert_eq!(jobs.lock().ready(), 0);
        drop(began);
        // With one that has something to do it waits for that one.
        let (first, began, end) = blocking();
        assert!(jobs.submit(first, || start(&jobs)).is_none());
        began.recv_timeout(WAIT).unwrap();
        let (second, began, _end) = blocking();
        assert!(jobs.submit(second, || false).is_none());
        drop(end);
        began.recv_timeout(WAIT).expect("its turn");
        jobs.stop();
    }
}
