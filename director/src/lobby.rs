//! Control peers that have not shown who they are yet: few, and the newest matter most.
//!
//! When there are too many, the one that came first is cut off: an honest peer needs milliseconds, so those
//! that stay long are slow or silent, and cannot keep others out by that.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use tokio_util::sync::CancellationToken;

/// The unknown peers of one listener.
#[derive(Debug)]
pub struct Lobby {
    places: usize,
    guests: Mutex<Guests>,
}

#[derive(Debug, Default)]
struct Guests {
    /// In the order in which they came.
    waiting: VecDeque<(u64, CancellationToken)>,
    /// Who comes next.
    number: u64,
}

/// One peer's place; given up when dropped.
#[derive(Debug)]
pub struct Guest {
    lobby: Arc<Lobby>,
    number: u64,
    crowded_out: CancellationToken,
}

impl Lobby {
    /// With this many places.
    pub fn new(places: usize) -> Arc<Self> {
        Arc::new(Self { places: places.max(1), guests: Mutex::default() })
    }

    /// Takes a place; whoever was first makes room if there is none.
    pub fn enter(self: &Arc<Self>) -> Guest {
        let mut guests = self.guests.lock().unwrap_or_else(PoisonError::into_inner);
        while guests.waiting.len() >= self.places {
            if let Some((_, crowded_out)) = guests.waiting.pop_front() {
                crowded_out.cancel();
            }
        }
        let number = guests.number;
        guests.number += 1;
        let crowded_out = CancellationToken::new();
        guests.waiting.push_back((number, crowded_out.clone()));
        Guest { lobby: Arc::clone(self), number, crowded_out }
    }
}

impl Guest {
    /// Waits until another peer needs the place.
    pub async fn crowded_out(&self) {
        self.crowded_out.cancelled().await;
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // One that was crowded out is not there any more.
        let mut guests = self.lobby.guests.lock().unwrap_or_else(PoisonError::into_inner);
        guests.waiting.retain(|(number, _)| *number != self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(lobby: &Lobby) -> usize {
        lobby.guests.lock().unwrap().waiting.len()
    }

    #[test]
    fn the_first_makes_room_and_who_leaves_takes_nobody_along() {
        let lobby = Lobby::new(2);
        let (first, second) = (lobby.enter(), lobby.enter());
        assert!(!first.crowded_out.is_cancelled());
        let third = lobby.enter();
        assert!(first.crowded_out.is_cancelled() && !second.crowded_out.is_cancelled());
        drop(first);
        assert_eq!(numbers(&lobby), 2);
        drop(second);
        let fourth = lobby.enter();
        assert!(!third.crowded_out.is_cancelled(), "there was room");
        drop((third, fourth));
        assert_eq!(numbers(&lobby), 0);
    }
}
