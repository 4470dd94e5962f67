//! The requests of a browser's connection, counted for the times at which it may be ended: not while one is
//! under way, and not before the first has come.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::Notify;

/// The requests of a connection.
#[derive(Clone, Debug, Default)]
pub struct Visits(Arc<State>);

#[derive(Debug, Default)]
struct State {
    open: AtomicUsize,
    any: AtomicBool,
    changed: Notify,
}

/// A request that is not over; dropped when it is.
#[derive(Debug)]
pub struct Visit(Visits);

impl Visits {
    /// A request begins.
    pub fn begin(&self) -> Visit {
        self.0.open.fetch_add(1, Ordering::Relaxed);
        self.0.any.store(true, Ordering::Relaxed);
        self.0.changed.notify_waiters();
        Visit(self.clone())
    }

    /// Waits until there was no request for so long.
    pub async fn silent_for(&self, pause: Duration) {
        loop {
            let changed = self.0.changed.notified();
            match self.0.open.load(Ordering::Relaxed) {
                0 => match tokio::time::timeout(pause, changed).await {
                    Ok(()) => {}
                    Err(_) => return,
                },
                _ => changed.await,
            }
        }
    }

    /// Whether there was none yet.
    pub fn is_new(&self) -> bool {
        !self.0.any.load(Ordering::Relaxed)
    }

    /// Waits for the first request.
    pub async fn first(&self) {
        loop {
            let changed = self.0.changed.notified();
            if !self.is_new() {
                return;
            }
            changed.await;
        }
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.0.0.open.fetch_sub(1, Ordering::Relaxed);
        self.0.0.changed.notify_waiters();
    }
}
