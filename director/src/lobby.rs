//! What keeps control peers from harming each other by coming in crowds.
//!
//! Those that have not shown who they are yet are few, and the newest matter most: when there are too many,
//! the one that came first is cut off. An honest peer needs milliseconds, so those that stay long are slow or
//! silent, and cannot keep others out by that. Those that are known share what there is by node, and what is
//! said about bad ones does not flood the log. Caller: [`crate::control`].

use crate::limits;
use selvage_fabric::error::{Error, ErrorKind, Origin, Result};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

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

/// How many connections of one sort each node has, so that no one can take all that there are.
#[derive(Debug)]
pub struct Crowds {
    most: usize,
    counts: Mutex<HashMap<String, usize>>,
}

/// One of a node's connections; given up when dropped.
#[derive(Debug)]
pub struct InCrowd {
    crowds: Arc<Crowds>,
    name: String,
}

/// Lines of the log about bad peers: not more than one in [`limits::COMPLAINT_PAUSE`].
#[derive(Debug, Default)]
pub struct Complaints {
    /// When the last one was written, and how many were not since.
    last: Mutex<(Option<Instant>, u64)>,
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

impl Crowds {
    /// At most so many of each node.
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, counts: Mutex::default() })
    }

    /// One more connection of this node.
    ///
    /// # Errors
    /// `Busy` if it has too many.
    pub fn join(self: &Arc<Self>, name: &str) -> Result<InCrowd> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(name.to_owned()).or_default();
        if *count >= self.most {
            let what = format!("node {name} has {count} connections already");
            return Err(Error::new(ErrorKind::Busy, Origin::Control, what));
        }
        *count += 1;
        Ok(InCrowd { crowds: Arc::clone(self), name: name.to_owned() })
    }
}

impl Drop for InCrowd {
    fn drop(&mut self) {
        let mut counts = self.crowds.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.name) {
            *count = count.saturating_sub(1);
        }
    }
}

impl Complaints {
    /// Says it, or counts it for the next time.
    pub fn say(&self, text: &str) {
        let now = Instant::now();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *last {
            (Some(at), unsaid) if now.duration_since(*at) < limits::COMPLAINT_PAUSE => *unsaid += 1,
            (at, unsaid) => {
                match std::mem::take(unsaid) {
                    0 => warn!("{text}"),
                    more => warn!("{text} (and {more} others before it)"),
                }
                *at = Some(now);
            }
        }
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

    #[test]
    fn complaints_do_not_flood_the_log() {
        let complaints = Complaints::default();
        (0..5).for_each(|_| complaints.say("bad"));
        assert_eq!(complaints.last.lock().unwrap().1, 4, "one was written");
    }

    #[test]
    fn one_node_cannot_take_all_connections() {
        let crowds = Crowds::new(limits::CONNECTIONS_PER_NODE);
        let all: Vec<InCrowd> =
            (0..limits::CONNECTIONS_PER_NODE).map(|_| crowds.join("n1").unwrap()).collect();
        assert_eq!(crowds.join("n1").unwrap_err().kind, ErrorKind::Busy);
        assert!(crowds.join("n2").is_ok(), "others are not concerned");
        drop(all);
        assert!(crowds.join("n1").is_ok());
    }
}
