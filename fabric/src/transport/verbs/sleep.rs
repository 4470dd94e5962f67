//! Sleeping until a push has ended, by several threads over one completion channel.
//!
//! One sleeper leads: it arms the completion queue and sleeps on the channel. The others sleep on a word that
//! whoever fetches completions raises. No wake-up is lost: a sleeper counts itself first and looks at its own
//! push then; who ends a push does that first and looks for sleepers then; both in the one order of SeqCst.
//! Only the leader can miss an end, of a completion that another thread had fetched before it armed and notes
//! afterwards; so it sleeps in short pieces.

use super::engine::Engine;
use super::flight::Ticket;
use super::requests::Wire;
use crate::limits::LIVENESS_POLL;
use crate::sync::futex;
use crate::sync::words::{AtomicU32, Ordering};
use crate::transport::PushId;
use std::time::Duration;

/// Who sleeps on one link.
#[derive(Default)]
pub(super) struct Sleepers {
    count: AtomicU32,
    led: AtomicU32,
    ends: AtomicU32,
}

impl Sleepers {
    /// Wakes those who do not lead, if there are any.
    #[inline]
    pub(super) fn wake(&self) {
        if self.count.load(Ordering::SeqCst) > 0 {
            self.ends.fetch_add(1, Ordering::SeqCst);
            futex::wake(&self.ends, u32::MAX);
        }
    }
}

impl<W: Wire> Engine<W> {
    /// See [`crate::transport::Link::wait`].
    pub fn wait(&self, push: PushId, timeout: Duration) {
        self.sleep(Ticket::of_push(push.0), timeout);
    }

    /// Sleeps until this request may have ended.
    pub(super) fn sleep(&self, ticket: Ticket, timeout: Duration) {
        let sleepers = &self.sleepers;
        sleepers.count.fetch_add(1, Ordering::SeqCst);
        let seen = sleepers.ends.load(Ordering::SeqCst);
        if sleepers.led.compare_exchange(0, 1, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
            self.wire.arm();
            self.drain();
            if self.flight.is_pending(ticket) {
                self.wire.sleep(timeout.min(LIVENESS_POLL));
                self.drain();
            }
            sleepers.led.store(0, Ordering::SeqCst);
            sleepers.count.fetch_sub(1, Ordering::SeqCst);
            // One of the others has to lead now.
            sleepers.wake();
        } else {
            if self.flight.is_pending(ticket) {
                futex::wait(&sleepers.ends, seen, timeout);
            }
            sleepers.count.fetch_sub(1, Ordering::SeqCst);
        }
        // Sleepers are the ones who have time to look at the device.
        if self.flight.is_pending(ticket) && self.wire.is_lost() {
            self.lose();
        }
    }
}
