//! [`Volley`]: pushes of one session, posted together and awaited afterwards.
//!
//! Links either end a push at once (shared memory) or leave it pending (RDMA). Nothing here waits but
//! [`Volley::land`]; between posting and landing a volley can be kept beside others, or handed to another
//! thread. A push that is given up loses its link (R4): that ends the doubt about everything posted to it.

use super::host::{Host, Lane};
use super::push::Stamp;
use super::session::Short;
use crate::cache::{self, Hold, PushKind};
use crate::error::{Error, ErrorKind, Origin, Result};
use crate::lease::{ArchiveChecksum, Cell, CellState};
use crate::limits::{LIVENESS_POLL, PLACES_MAX};
use crate::numbers::NodeCounter;
use crate::rules::{Rule, holds};
use crate::transport::{self, ChecksumKind, FailKind, Link, Outcome, Posted};
use std::borrow::Borrow;
use std::sync::Arc;
use std::time::{Duration, Instant};
use xxhash_rust::xxh3::xxh3_64;

/// How one push ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// It counts.
    Acked,
    /// The lease has no room for it; nothing was written.
    Full,
    /// It may or may not have arrived: its slot is in quarantine (R4).
    Failed,
}

/// How long a waiter asks again and again before it sleeps. A push takes 2 to 10 us over hardware and 40 us
/// over soft-RoCE; going to sleep and being woken costs about 10 us of its own. So nearly every push ends
/// within this time, and one that does not has lost a packet or its server, for which a processor must not
/// spin.
const POLLING: Duration = Duration::from_micros(50);

/// One push that was begun.
struct Open<L> {
    lane: L,
    push: cache::Push,
    state: CellState,
    posted: Posted,
    /// When it was begun, if it is timed and has not ended at once.
    since_ns: Option<u64>,
}

impl<L: Borrow<Arc<Lane>>> Open<L> {
    fn is_pending(&self) -> bool {
        matches!(self.posted, Posted::Pending(_)) || self.was_not_taken()
    }

    /// Whether the link was full: it is worth trying again.
    fn was_not_taken(&self) -> bool {
        let not_taken = Posted::Done(Outcome::Failed(FailKind::NotPosted));
        self.posted == not_taken && !self.lane.borrow().link.is_broken()
    }

    /// How it ended, if it has. Never waits.
    fn poll(&mut self, hold: &Hold, stamp: &Stamp) -> Option<Outcome> {
        let link = &self.lane.borrow().link;
        if self.was_not_taken() {
            self.posted = post(hold, &**link, &self.push, self.state, stamp);
        }
        if let Posted::Pending(id) = self.posted
            && let Some(outcome) = link.poll(id)
        {
            self.posted = Posted::Done(outcome);
        }
        match self.posted {
            Posted::Done(outcome) if !self.was_not_taken() => Some(outcome),
            _ => None,
        }
    }

    /// Waits for the end: asks as long as that is cheaper than sleeping, then sleeps. `None`: it was given
    /// up, and may still arrive.
    fn wait(
        &mut self,
        host: &Host,
        hold: &Hold,
        stamp: &Stamp,
        deadline: Option<Instant>,
    ) -> Option<Outcome> {
        let began = Instant::now();
        loop {
            if let Some(outcome) = self.poll(hold, stamp) {
                return Some(outcome);
            }
            if began.elapsed() < POLLING {
                std::hint::spin_loop();
                continue;
            }
            let lane: &Arc<Lane> = self.lane.borrow();
            match self.posted {
                Posted::Pending(id) if is_hopeless(host, lane, deadline) => {
                    lane.link.forget(id);
                    return None;
                }
                Posted::Pending(id) => lane.link.wait(id, rest(deadline)),
                Posted::Done(outcome) if is_hopeless(host, lane, deadline) => return Some(outcome),
                // The link is full: others' pushes have to end first.
                Posted::Done(_) => host.clock.sleep(POLLING),
            }
        }
    }
}

/// Pushes of one session to different servers, all of them posted before any is awaited. `L` is `&Arc<Lane>`,
/// or `Arc<Lane>` where they outlive the plan that they go by.
///
/// Until they have landed the caller keeps the session's hold, and with it the archive, which some links send
/// from where it lies (invariant 18). If a volley is dropped, its open pushes are left to the hold, whose
/// drop puts them into quarantine.
pub struct Volley<L: Borrow<Arc<Lane>>, const N: usize = PLACES_MAX> {
    open: [Option<Open<L>>; N],
    stamp: Stamp,
    /// Until when they are waited for; set by the first one that has not ended at once.
    deadline: Option<Instant>,
    /// Whether each is timed.
    timed: bool,
}

impl<L: Borrow<Arc<Lane>>, const N: usize> Volley<L, N> {
    /// For pushes whose cells say `stamp`.
    pub fn new(stamp: &Stamp) -> Self {
        Self { open: [const { None }; N], stamp: *stamp, deadline: None, timed: false }
    }

    /// Whether its pushes shall be timed.
    pub fn time_if(&mut self, timed: bool) {
        self.timed = timed;
    }

    /// What its cells say.
    pub fn stamp(&self) -> &Stamp {
        &self.stamp
    }

    /// Posts one. `Some`: it could not begin, and nothing was written.
    ///
    /// # Errors
    /// `OwnershipLost` if the incarnation is over, `LockLost` if the session's lock was revoked.
    pub fn post(
        &mut self,
        host: &Host,
        hold: &mut Hold,
        lane: L,
        kind: PushKind,
        state: CellState,
    ) -> Result<Option<Short>> {
        // A session has no more places than this, so there is always one free.
        let Some(free) = self.open.iter_mut().find(|open| open.is_none()) else {
            return Ok(Some(Short::Servers));
        };
        let mut since_ns = self.timed.then(|| host.clock.monotonic_ns());
        let (push, posted) = match begin(hold, lane.borrow(), kind, state, &self.stamp) {
            Ok(begun) => begun,
            Err(error) => return short_of(host, error).map(Some),
        };
        if posted == Posted::Done(Outcome::Acked) {
            observe(host, lane.borrow(), since_ns.take());
        }
        let open = free.insert(Open { lane, push, state, posted, since_ns });
        if self.deadline.is_none() && open.is_pending() {
            self.deadline = Some(host.deadline());
        }
        Ok(None)
    }

    /// Whether all have ended. Never waits.
    pub fn is_over(&mut self, hold: &Hold) -> bool {
        self.open.iter_mut().flatten().fold(true, |all, open| open.poll(hold, &self.stamp).is_some() & all)
    }

    /// The same, but asks for as long as asking is cheaper than sleeping.
    pub fn is_over_soon(&mut self, hold: &Hold) -> bool {
        if self.is_over(hold) {
            return true;
        }
        let began = Instant::now();
        while began.elapsed() < POLLING {
            std::hint::spin_loop();
            if self.is_over(hold) {
                return true;
            }
        }
        false
    }

    /// Whether it is worth no more waiting: [`Self::land`] then gives up at once what has not ended.
    pub fn is_hopeless(&self, host: &Host) -> bool {
        let pending = |open: &&Open<L>| open.is_pending();
        self.open
            .iter()
            .flatten()
            .filter(pending)
            .all(|open| is_hopeless(host, open.lane.borrow(), self.deadline))
    }

    /// Sleeps until the first one that has not ended may have, `timeout` at most.
    pub fn rest(&self, timeout: Duration) {
        let pending = |open: &Open<L>| match open.posted {
            Posted::Pending(id) => Some((open.lane.borrow().clone(), id)),
            Posted::Done(_) => None,
        };
        match self.open.iter().flatten().find_map(pending) {
            Some((lane, id)) => lane.link.wait(id, timeout),
            None => std::thread::sleep(timeout.min(POLLING)),
        }
    }

    /// Waits until all have ended, writes down in the cache how, and tells it, too. After an error the rest
    /// is given up.
    ///
    /// # Errors
    /// As [`Self::post`].
    pub fn land(&mut self, host: &Host, hold: &mut Hold, mut ended: impl FnMut(End)) -> Result<()> {
        let mut landed = Ok(());
        for place in &mut self.open {
            let Some(open) = place else { continue };
            let outcome = match open.posted {
                // Shared memory, mostly: nothing to wait for.
                Posted::Done(outcome) if outcome != Outcome::Failed(FailKind::NotPosted) => Some(outcome),
                _ => {
                    let deadline = if landed.is_ok() { self.deadline } else { Some(Instant::now()) };
                    open.wait(host, hold, &self.stamp, deadline)
                }
            };
            if outcome == Some(Outcome::Acked) {
                observe(host, open.lane.borrow(), open.since_ns);
            }
            let settled = settle(host, hold, open.lane.borrow(), &open.push, &self.stamp, outcome);
            *place = None;
            match settled {
                Ok(end) => ended(end),
                Err(error) => landed = landed.and(Err(error)),
            }
        }
        landed
    }

    /// Waits no more: what has not ended is left to the quarantine.
    pub fn give_up(&mut self, host: &Host, hold: &mut Hold) {
        self.deadline = Some(Instant::now());
        // The caller has an error already, and the hold's drop finds what could not be written down.
        let _ = self.land(host, hold, |_| ());
    }
}

impl<const N: usize> Volley<&Arc<Lane>, N> {
    /// Lets it outlive its plan.
    pub fn keep(mut self) -> Volley<Arc<Lane>, N> {
        let mut kept = Volley::new(&self.stamp);
        (kept.deadline, kept.timed) = (self.deadline, self.timed);
        for (to, from) in kept.open.iter_mut().zip(&mut self.open) {
            *to = from.take().map(|open| {
                let Open { lane, push, state, posted, since_ns } = open;
                Open { lane: lane.clone(), push, state, posted, since_ns }
            });
        }
        kept
    }
}

impl<L: Borrow<Arc<Lane>>, const N: usize> Drop for Volley<L, N> {
    fn drop(&mut self) {
        for open in self.open.iter().flatten() {
            if let Posted::Pending(id) = open.posted {
                open.lane.borrow().link.forget(id);
            }
        }
    }
}

/// Takes in how long a push took that has been acked.
#[inline]
fn observe(host: &Host, lane: &Lane, since_ns: Option<u64>) {
    if let Some(since_ns) = since_ns {
        let took_ns = host.clock.monotonic_ns().saturating_sub(since_ns);
        host.cache.observe_push(lane.way, took_ns);
    }
}

/// Decides whether a push that could not begin leaves the session short or ends the operation.
fn short_of(host: &Host, error: crate::error::Error) -> Result<Short> {
    match error.kind {
        ErrorKind::Full => {
            host.count(NodeCounter::LeaseFull, 1);
            Ok(Short::LeaseFull)
        }
        ErrorKind::Busy | ErrorKind::Unreachable => Ok(Short::Servers),
        _ => Err(error),
    }
}

fn begin(
    hold: &mut Hold,
    lane: &Lane,
    kind: PushKind,
    state: CellState,
    stamp: &Stamp,
) -> Result<(cache::Push, Posted)> {
    if lane.link.is_broken() {
        // A push that surely fails would still cost a slot in quarantine.
        return Err(Error::new(ErrorKind::Unreachable, Origin::Node, "the link is broken"));
    }
    let push = hold.begin_push(lane.book, kind)?;
    kill_point!("push.begun");
    let posted = post(hold, &*lane.link, &push, state, stamp);
    kill_point!("push.posted");
    Ok((push, posted))
}

fn post(hold: &Hold, link: &dyn Link, push: &cache::Push, state: CellState, stamp: &Stamp) -> Posted {
    let archive = if state == CellState::Live { hold.bytes() } else { &[] };
    let checksum = match link.checksum_kind() {
        ChecksumKind::Xxh3 if state == CellState::Live => ArchiveChecksum::Xxh3(xxh3_64(archive)),
        _ => ArchiveChecksum::None,
    };
    let cell = Cell {
        id: stamp.id,
        sequence: push.sequence,
        version: stamp.version,
        state,
        block: push.block.unwrap_or_default(),
        archive_bytes: archive.len() as u32,
        expiry_ms: stamp.expiry_ms,
        checksum,
    };
    let block = if push.fresh { push.block.map(|block| (block, archive)) } else { None };
    link.post(&transport::Push { slot: push.slot, sequence: push.sequence, cell: &cell.encode(), block })
}

/// How long to sleep before the next look whether waiting has become hopeless.
fn rest(deadline: Option<Instant>) -> Duration {
    let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    left.map_or(LIVENESS_POLL, |left| left.min(LIVENESS_POLL))
}

/// Whether no ack of this link is worth waiting for: it would come too late, the incarnation is over (R2), or
/// the server has left the view (R6).
fn is_hopeless(host: &Host, lane: &Lane, deadline: Option<Instant>) -> bool {
    deadline.is_some_and(|deadline| Instant::now() >= deadline)
        || host.cache.is_poisoned()
        || host.plan().view.server(lane.server).is_none()
}

/// Writes the end of a push down.
fn settle(
    host: &Host,
    hold: &mut Hold,
    lane: &Arc<Lane>,
    push: &cache::Push,
    stamp: &Stamp,
    outcome: Option<Outcome>,
) -> Result<End> {
    if outcome != Some(Outcome::Acked) {
        host.cache.count_failed_push(lane.way);
    }
    match outcome {
        Some(Outcome::Acked) => {
            hold.end_push(push, stamp.version, stamp.expiry_ms)?;
            Ok(End::Acked)
        }
        Some(Outcome::Sealed) => {
            if holds(Rule::R2SealByView) {
                // Only a view seals: this incarnation is over, whatever else was acked.
                host.cache.poison();
                return Err(host.ownership_lost());
            }
            hold.end_push(push, stamp.version, stamp.expiry_ms)?;
            Ok(End::Acked)
        }
        Some(Outcome::Failed(FailKind::Bounds)) => {
            hold.cancel_push(push)?;
            Ok(End::Full)
        }
        Some(Outcome::Failed(FailKind::NotPosted)) => {
            if lane.link.is_broken() {
                host.lose_link(lane, why_lost(outcome));
            }
            hold.cancel_push(push)?;
            Ok(End::Failed)
        }
        Some(Outcome::Failed(FailKind::Disconnected | FailKind::Revoked)) | None => {
            // The end of its link is what ends the doubt (R4).
            host.lose_link(lane, why_lost(outcome));
            if holds(Rule::R4FreshSlot) {
                hold.abandon_push(push, lane.number)?;
            } else {
                hold.cancel_push(push)?;
            }
            Ok(End::Failed)
        }
    }
}

/// Writes a cell without a block into a slot that no session has. Returns how that ended; `None`: it may
/// still arrive.
pub fn push_bare(host: &Host, lane: &Lane, push: &transport::Push<'_>) -> Option<Outcome> {
    let deadline = host.deadline();
    let id = match lane.link.post(push) {
        Posted::Done(outcome) => return Some(outcome),
        Posted::Pending(id) => id,
    };
    loop {
        if let Some(outcome) = lane.link.poll(id) {
            return Some(outcome);
        }
        if is_hopeless(host, lane, Some(deadline)) {
            lane.link.forget(id);
            return None;
        }
        lane.link.wait(id, rest(Some(deadline)));
    }
}

/// For people: what ended a link.
pub fn why_lost(outcome: Option<Outcome>) -> &'static str {
    match outcome {
        Some(Outcome::Failed(FailKind::Revoked)) => "the server has taken its memory away",
        Some(_) => "the connection has failed",
        None => "a push was not acked in time",
    }
}
