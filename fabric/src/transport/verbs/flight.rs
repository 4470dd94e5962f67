//! What is under way on one link: a fixed table of atomic words, one per request that will be completed.
//!
//! A word is generation, state and how it ended. The id that travels with a work request (and that the caller
//! of `post` gets) is generation and index, so that a late completion, or a caller that asks twice, can never
//! be taken for the entry's next use.
//!
//! An entry is also the right to as many places in the send queue as one push needs: it is free again only
//! after its completion was fetched, which is when the card has given those places back. So the send queue
//! can never be overrun, and no other counter exists.
//!
//! ```text
//! free ──take──► posted ──end──► ended ──ask──► free (next generation)
//!                  └──forget──► forgotten ──end──► free
//! ```

use crate::sync::words::{AtomicU32, AtomicU64, Ordering};

/// Marks the id of a request that is not the last of its chain: it only completes if it fails.
const PART: u64 = 1 << 31;
const INDEX: u64 = PART - 1;

const FREE: u64 = 0;
const POSTED: u64 = 1;
const FORGOTTEN: u64 = 2;
const ACKED: u64 = 3;
const FAILED: u64 = 4;
const STATE: u64 = 0xff;

/// One use of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Ticket(u64);

/// How a request ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    /// The card says that it is complete at the other end.
    Done,
    /// It failed or was flushed.
    Failed,
}

/// The table.
pub(super) struct Flight {
    entries: Box<[AtomicU64]>,
    shared: u32,
    hint: AtomicU32,
}

impl Ticket {
    /// As the caller of `post` and the card know it.
    pub(super) fn id(self) -> u64 {
        self.0
    }

    /// Of a caller's number, which may be anything.
    pub(super) fn of_push(id: u64) -> Self {
        Self(id & !PART)
    }

    /// The id for the requests of the chain before the last.
    pub(super) fn part_id(self) -> u64 {
        self.0 | PART
    }

    /// Of a completion's id; `None` for a part.
    pub(super) fn of_completion(id: u64) -> Option<Self> {
        (id & PART == 0).then_some(Self(id))
    }

    /// Its entry.
    pub(super) fn index(self) -> u32 {
        (self.0 & INDEX) as u32
    }

    fn word(self, state: u64) -> u64 {
        (self.0 & !(PART | INDEX)) | state
    }
}

impl Flight {
    /// A table with `shared` entries for [`Self::take`] and `own` behind them for [`Self::take_at`].
    pub(super) fn new(shared: u32, own: u32) -> Self {
        let entries = (0..shared + own).map(|_| AtomicU64::new(FREE)).collect();
        Self { entries, shared, hint: AtomicU32::new(0) }
    }

    /// Takes any free shared entry.
    pub(super) fn take(&self) -> Option<Ticket> {
        let begin = self.hint.fetch_add(1, Ordering::Relaxed) % self.shared;
        (begin..self.shared).chain(0..begin).find_map(|index| self.take_at(index))
    }

    /// Takes this entry, if it is free.
    pub(super) fn take_at(&self, index: u32) -> Option<Ticket> {
        let entry = self.entries.get(index as usize)?;
        let seen = entry.load(Ordering::Relaxed);
        if seen & STATE != FREE {
            return None;
        }
        let ticket = Ticket((seen & !(PART | INDEX)).wrapping_add(1 << 32) | u64::from(index));
        // Acquire pairs with the Release that made it free: what belongs to the entry (a landing buffer) is
        // ours from here on.
        entry
            .compare_exchange(seen, ticket.word(POSTED), Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
            .then_some(ticket)
    }

    /// Gives an entry back whose request was never posted, or whose end needs no telling.
    pub(super) fn give_back(&self, ticket: Ticket) {
        self.change(ticket, &[(POSTED, FREE), (FORGOTTEN, FREE)]);
    }

    /// Takes note of a completion. Each request has one.
    pub(super) fn end(&self, ticket: Ticket, end: End) {
        let ended = if end == End::Done { ACKED } else { FAILED };
        self.change(ticket, &[(POSTED, ended), (FORGOTTEN, FREE)]);
    }

    /// How it ended, if it has; told once.
    pub(super) fn ask(&self, ticket: Ticket) -> Option<End> {
        match self.change(ticket, &[(ACKED, FREE), (FAILED, FREE)])? {
            ACKED => Some(End::Done),
            _ => Some(End::Failed),
        }
    }

    /// Whether it is still under way.
    pub(super) fn is_pending(&self, ticket: Ticket) -> bool {
        // In one order with `end` and with the count of sleepers (see `sleep`).
        self.entry(ticket).is_some_and(|entry| entry.load(Ordering::SeqCst) == ticket.word(POSTED))
    }

    /// Nobody will ask: the entry is free as soon as the request has ended.
    pub(super) fn forget(&self, ticket: Ticket) {
        self.change(ticket, &[(POSTED, FORGOTTEN), (ACKED, FREE), (FAILED, FREE)]);
    }

    /// Requests under way or not yet asked for.
    #[cfg(test)]
    pub(super) fn in_use(&self) -> usize {
        self.entries.iter().filter(|entry| entry.load(Ordering::Relaxed) & STATE != FREE).count()
    }

    fn entry(&self, ticket: Ticket) -> Option<&AtomicU64> {
        self.entries.get(ticket.index() as usize)
    }

    /// Takes an entry of this ticket from one of the states to the one beside it; tells which it was in.
    /// Anything else is another use of the entry, and is left alone.
    fn change(&self, ticket: Ticket, steps: &[(u64, u64)]) -> Option<u64> {
        let entry = self.entry(ticket)?;
        let mut seen = entry.load(Ordering::Acquire);
        loop {
            let (from, to) = steps.iter().find(|(from, _)| ticket.word(*from) == seen)?;
            // SeqCst for the sleepers' sake (see `is_pending`); Release so that whoever takes the entry next
            // comes after all use of what belongs to it.
            match entry.compare_exchange(seen, ticket.word(*to), Ordering::SeqCst, Ordering::Acquire) {
                Ok(_) => return Some(*from),
                Err(now) => seen = now,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_told_once_and_only_to_its_own_generation() {
        let flight = Flight::new(1, 0);
        let first = flight.take().unwrap();
        assert_eq!(flight.take(), None, "one entry, one request");
        assert_eq!(flight.ask(first), None);
        assert!(flight.is_pending(first));
        flight.end(first, End::Done);
        assert!(!flight.is_pending(first));
        flight.end(first, End::Failed);
        assert_eq!(flight.ask(first), Some(End::Done), "the first completion counts");
        assert_eq!(flight.ask(first), None);
        let second = flight.take().unwrap();
        assert_ne!(first, second);
        flight.end(first, End::Done);
        flight.forget(first);
        assert_eq!((flight.ask(first), flight.ask(second)), (None, None), "a late end is nobody's");
        flight.end(second, End::Failed);
        assert_eq!(flight.ask(second), Some(End::Failed));
        assert_eq!(flight.in_use(), 0);
    }

    #[test]
    fn what_was_given_up_keeps_its_entry_until_it_ends() {
        let flight = Flight::new(1, 0);
        let ticket = flight.take().unwrap();
        flight.forget(ticket);
        assert_eq!(flight.take(), None, "its requests are in the send queue still");
        flight.end(ticket, End::Done);
        assert_eq!(flight.ask(ticket), None);
        let ticket = flight.take().unwrap();
        flight.end(ticket, End::Done);
        flight.forget(ticket);
        assert!(flight.take().is_some(), "what has ended is free as soon as it is given up");
    }

    #[test]
    fn parts_and_strange_numbers_name_no_entry() {
        let flight = Flight::new(2, 1);
        let ticket = flight.take_at(2).unwrap();
        assert_eq!(Ticket::of_completion(ticket.part_id()), None);
        assert_eq!(Ticket::of_completion(ticket.id()), Some(ticket));
        for id in [0, 7, u64::MAX, PART, ticket.id() + 1, ticket.id() + (1 << 32)] {
            let strange = Ticket::of_push(id);
            flight.end(strange, End::Done);
            flight.forget(strange);
            assert_eq!(flight.ask(strange), None, "{id:#x}");
        }
        assert!(flight.is_pending(ticket));
        assert_eq!(flight.take().map(Ticket::index), Some(0), "own entries are nobody else's");
        assert_eq!(flight.take().map(Ticket::index), Some(1));
        assert_eq!(flight.take(), None);
    }

    #[test]
    fn generations_wrap() {
        let flight = Flight::new(1, 0);
        flight.entries[0].store(u64::from(u32::MAX) << 32, Ordering::Relaxed);
        let ticket = flight.take().unwrap();
        assert_eq!(ticket.id() >> 32, 0);
        flight.end(ticket, End::Done);
        assert_eq!(flight.ask(ticket), Some(End::Done));
    }

    /// Threads take, and one thread "completes" what they took: every end is told to its taker, once.
    #[test]
    fn threads_get_their_own_ends() {
        const THREADS: u64 = 4;
        const ROUNDS: u64 = 20_000;
        let flight = Flight::new(3, 0);
        let (send, receive) = std::sync::mpsc::channel::<Ticket>();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for (count, ticket) in receive.into_iter().enumerate() {
                    flight.end(ticket, if count % 3 == 0 { End::Failed } else { End::Done });
                }
            });
            for _ in 0..THREADS {
                let (send, flight) = (send.clone(), &flight);
                scope.spawn(move || {
                    let mut rounds = 0;
                    while rounds < ROUNDS {
                        let Some(ticket) = flight.take() else {
                            std::thread::yield_now();
                            continue;
                        };
                        rounds += 1;
                        send.send(ticket).unwrap();
                        if rounds % 5 == 0 {
                            flight.forget(ticket);
                            continue;
                        }
                        while flight.ask(ticket).is_none() {
                            std::thread::yield_now();
                        }
                        assert_eq!(flight.ask(ticket), None);
                    }
                });
            }
            drop(send);
        });
        assert_eq!(flight.in_use(), 0);
    }
}
