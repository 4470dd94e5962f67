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
pub(super) type Job = Box<dyn FnOnce(&Arc<Attachment>) + Send>;

/// The jobs of one attachment.
#[derive(Default)]
pub(super) struct Jobs {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    patient: VecDeque<Job>,
    /// Threads that are at a patient job.
    patient_running: usize,
    workers: usize,
    idle: usize,
    stopped: bool,
}

impl Jobs {
    /// Leaves a job to a thread; after [`Self::stop`] it is dropped.
    pub fn submit(&self, attachment: &Arc<Attachment>, job: Job) {
        self.push(attachment, |state| state.queue.push_back(job));
    }

    /// The same of a patient one.
    pub fn submit_patient(&self, attachment: &Arc<Attachment>, job: Job) {
        self.push(attachment, |state| state.patient.push_back(job));
    }

    fn push(&self, attachment: &Arc<Attachment>, push: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        if state.stopped {
            return;
        }
        push(&mut state);
        if state.idle == 0 && state.workers < WORKERS {
            let attachment = attachment.clone();
            let worker = std::thread::Builder::new()
                .name("selvage-worker".into())
                .spawn(move || attachment.operations.jobs.work(&attachment));
            match worker {
                Ok(_) => state.workers += 1,
                Err(error) => tracing::error!(%error, "cannot start a worker thread"),
            }
        }
        self.changed.notify_one();
    }

    /// Body of a worker thread.
    fn work(&self, attachment: &Arc<Attachment>) {
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

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The next job, and whether it is a patient one.
    fn next(&mut self) -> Option<(Job, bool)> {
        if let Some(job) = self.queue.pop_front() {
            return Some((job, false));
        }
        let job = if self.patient_running < PATIENT { self.patient.pop_front() } else { None }?;
        self.patient_running += 1;
        Some((job, true))
    }
}
