//! Pushing a session to its places: the one way that commit, touch, re-copy, adoption and destroy write into
//! leases.
//!
//! The caller has the session's lock. Rules: an ack belongs to the server incarnation of its link (R6); a
//! lease found sealed ends this incarnation, and no ack counts from then on (R2); acks are reported under a
//! valid mandate only (R8); what may still be written is never superseded in its slot (R4); the previous
//! block is freed by the ack of the next (R7), which is [`Hold::end_push`]'s part.
//!
//! Links either end a push at once (shared memory) or leave it pending (RDMA). So pushes are posted together as
//! a [`Volley`], and awaited afterwards: by the caller ([`protect`]), or by whoever the volley is handed to.

use super::host::{Counter, Host, Lane, LinkState, Plan};
use super::session::Short;
use crate::cache::{self, Hold, PushKind};
use crate::error::{Error, ErrorKind, Origin, Result};
use crate::ident::{SessionId, Version};
use crate::lease::{ArchiveChecksum, Cell, CellState};
use crate::limits::{LIVENESS_POLL, PLACES_MAX};
use crate::rules::{Rule, holds};
use crate::transport::{self, ChecksumKind, FailKind, Outcome, Posted, PushId};
use std::borrow::Borrow;
use std::sync::Arc;
use std::time::{Duration, Instant};
use xxhash_rust::xxh3::xxh3_64;

/// What a session is now, as its cells shall say.
#[derive(Clone, Copy, Debug)]
pub struct Stamp {
    /// The session.
    pub id: SessionId,
    /// Its version.
    pub version: Version,
    /// Unix ms.
    pub expiry_ms: u64,
}

/// What to write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cargo {
    /// The archive and its cell, everywhere.
    Archive,
    /// What each place lacks: nothing where the version is acked; only a cell where this earlier version with
    /// the same archive is acked (R13); the archive elsewhere.
    Missing {
        /// The earlier version, if the archive has not changed since.
        same_since: Option<Version>,
    },
}

/// What pushes reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Reach {
    /// Distinct servers of the placement that have acked the version.
    pub copies: u32,
    /// Why these are fewer than the view asks for.
    pub short: Option<Short>,
    /// Pushes made.
    pub pushes: u32,
}

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

/// How long a waiter asks again and again before it sleeps. A push takes 2 to 10 us over hardware and 40 us over
/// soft-RoCE; going to sleep and being woken costs about 10 us of its own. So nearly every push ends within this
/// time, and one that does not has lost a packet or its server, for which a processor must not spin.
const POLLING: Duration = Duration::from_micros(50);

/// One push that was posted.
struct Open<L> {
    lane: L,
    push: cache::Push,
    posted: Posted,
}

/// Pushes of one session to different servers, all of them posted before any is awaited. `L` is `&Arc<Lane>`,
/// or `Arc<Lane>` where they outlive the plan that they go by.
///
/// Until they have landed the caller keeps the session's hold, and with it the archive, which some links send
/// from where it lies (invariant 11). If a volley is dropped, its open pushes are left to the hold, whose drop
/// puts them into quarantine.
pub struct Volley<L: Borrow<Arc<Lane>>> {
    open: [Option<Open<L>>; PLACES_MAX],
    stamp: Stamp,
    /// Until when they are waited for; set by the first one that has not ended at once.
    deadline: Option<Instant>,
}

impl<L: Borrow<Arc<Lane>>> Volley<L> {
    /// For pushes whose cells say `stamp`.
    pub fn new(stamp: &Stamp) -> Self {
        Self { open: [const { None }; PLACES_MAX], stamp: *stamp, deadline: None }
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
        let (push, posted) = match begin(hold, lane.borrow(), kind, state, &self.stamp) {
            Ok(begun) => begun,
            Err(error) => return short_of(host, error).map(Some),
        };
        if matches!(posted, Posted::Pending(_)) && self.deadline.is_none() {
            self.deadline = Some(host.deadline());
        }
        *free = Some(Open { lane, push, posted });
        Ok(None)
    }

    /// Whether all have ended. Never waits.
    pub fn is_over(&mut self) -> bool {
        self.open.iter_mut().flatten().all(|open| {
            if let Posted::Pending(id) = open.posted
                && let Some(outcome) = open.lane.borrow().link.poll(id)
            {
                open.posted = Posted::Done(outcome);
            }
            matches!(open.posted, Posted::Done(_))
        })
    }

    /// The same, but asks for as long as asking is cheaper than sleeping.
    pub fn is_over_soon(&mut self) -> bool {
        if self.is_over() {
            return true;
        }
        let began = Instant::now();
        while began.elapsed() < POLLING {
            std::hint::spin_loop();
            if self.is_over() {
                return true;
            }
        }
        false
    }

    /// Whether it is worth no more waiting: [`Self::land`] then gives up at once what has not ended.
    pub fn is_hopeless(&self, host: &Host) -> bool {
        let pending = |open: &&Open<L>| matches!(open.posted, Posted::Pending(_));
        self.open
            .iter()
            .flatten()
            .filter(pending)
            .all(|open| is_hopeless(host, open.lane.borrow(), self.deadline))
    }

    /// The way of the first one that has not ended.
    pub fn awaited(&self) -> Option<&Arc<Lane>> {
        let pending = |open: &&Open<L>| matches!(open.posted, Posted::Pending(_));
        self.open.iter().flatten().find(pending).map(|open| open.lane.borrow())
    }

    /// Waits until all have ended, writes down in the cache how, and tells it, too. After an error the rest is
    /// given up.
    ///
    /// # Errors
    /// As [`Self::post`].
    pub fn land(mut self, host: &Host, hold: &mut Hold, mut ended: impl FnMut(End)) -> Result<()> {
        let mut landed = Ok(());
        for at in 0..self.open.len() {
            let Some(open) = self.open[at].take() else { continue };
            let lane = open.lane.borrow();
            let outcome = match open.posted {
                Posted::Done(outcome) => Some(outcome),
                Posted::Pending(id) if landed.is_ok() => wait_for(host, lane, id, self.deadline),
                Posted::Pending(id) => {
                    lane.link.forget(id);
                    None
                }
            };
            match settle(host, hold, lane, &open.push, &self.stamp, outcome) {
                Ok(end) => ended(end),
                Err(error) => landed = landed.and(Err(error)),
            }
        }
        landed
    }

    /// Waits no more: what has not ended is left to the quarantine.
    fn give_up(mut self, host: &Host, hold: &mut Hold) {
        self.deadline = Some(Instant::now());
        // The caller has an error already, and the hold's drop finds what could not be written down.
        let _ = self.land(host, hold, |_| ());
    }
}

impl Volley<&Arc<Lane>> {
    /// Lets it outlive its plan.
    fn keep(mut self) -> Volley<Arc<Lane>> {
        let mut kept = Volley::new(&self.stamp);
        kept.deadline = self.deadline;
        for (to, from) in kept.open.iter_mut().zip(&mut self.open) {
            *to = from.take().map(|open| Open {
                lane: open.lane.clone(),
                push: open.push,
                posted: open.posted,
            });
        }
        kept
    }
}

impl<L: Borrow<Arc<Lane>>> Drop for Volley<L> {
    fn drop(&mut self) {
        for open in self.open.iter().flatten() {
            if let Posted::Pending(id) = open.posted {
                open.lane.borrow().link.forget(id);
            }
        }
    }
}

/// The pushes that bring a session's copies to a version, under way.
pub struct Flight<L: Borrow<Arc<Lane>>> {
    volley: Volley<L>,
    reach: Reach,
    /// Whether a sweep may reach more than this.
    retry: bool,
    copies_wanted: u32,
}

/// Begins to bring the session's copies at the servers of its placement to `stamp`. Never waits.
///
/// # Errors
/// `OwnershipLost` if the incarnation is over, `LockLost` if the session's lock was revoked.
pub fn launch<'a>(
    host: &Host,
    hold: &mut Hold,
    plan: &'a Plan,
    stamp: &Stamp,
    cargo: Cargo,
) -> Result<Flight<&'a Arc<Lane>>> {
    let volley = Volley::new(stamp);
    let mut flight =
        Flight { volley, reach: Reach::default(), retry: false, copies_wanted: plan.view.copies };
    for (_, link) in plan.places_of(stamp.id) {
        if let Err(error) = flight.post(host, hold, link, cargo) {
            flight.volley.give_up(host, hold);
            return Err(error);
        }
    }
    Ok(flight)
}

impl<'a> Flight<&'a Arc<Lane>> {
    fn post(&mut self, host: &Host, hold: &mut Hold, link: &'a LinkState, cargo: Cargo) -> Result<()> {
        let LinkState::Open(lane) = link else {
            self.reach.short = Some(match link {
                LinkState::Closed => Short::NotAwaited,
                _ => Short::Servers,
            });
            self.retry = true;
            return Ok(());
        };
        let stamp = &self.volley.stamp;
        let kind = match cargo {
            Cargo::Archive => PushKind::Archive(hold.bytes().len() as u32),
            Cargo::Missing { same_since } => match hold.place_at(lane.server)? {
                Some(place) if place.acked == Some(stamp.version) && place.block.is_some() => {
                    self.reach.copies += 1;
                    return Ok(());
                }
                Some(place) if same_since.is_some() && place.acked == same_since && place.block.is_some() => {
                    PushKind::Touch
                }
                _ => PushKind::Archive(hold.bytes().len() as u32),
            },
        };
        match self.volley.post(host, hold, lane, kind, CellState::Live)? {
            None => self.reach.pushes += 1,
            Some(short) => {
                // Room in a lease does not come by trying again at once.
                self.retry |= short != Short::LeaseFull;
                self.reach.short = Some(short);
            }
        }
        Ok(())
    }

    /// Lets it outlive its plan.
    pub fn keep(self) -> Flight<Arc<Lane>> {
        let Self { volley, reach, retry, copies_wanted } = self;
        Flight { volley: volley.keep(), reach, retry, copies_wanted }
    }
}

impl<L: Borrow<Arc<Lane>>> Flight<L> {
    /// The pushes.
    pub fn volley(&mut self) -> &mut Volley<L> {
        &mut self.volley
    }

    /// Waits for the rest, and says what was reached.
    ///
    /// # Errors
    /// As [`launch`].
    pub fn land(self, host: &Host, hold: &mut Hold) -> Result<Reach> {
        let Self { volley, mut reach, mut retry, copies_wanted } = self;
        volley.land(host, hold, |end| match end {
            End::Acked => reach.copies += 1,
            End::Full => reach.short = Some(Short::LeaseFull),
            End::Failed => {
                retry = true;
                reach.short = Some(Short::Servers);
            }
        })?;
        if retry {
            host.count(Counter::Unprotected, 1);
        }
        if reach.copies < copies_wanted && reach.short.is_none() {
            reach.short = Some(Short::Servers);
        }
        judge(host, reach)
    }
}

/// Brings the session's copies at the servers of its placement to `stamp`, and waits for it.
///
/// # Errors
/// As [`launch`].
pub fn protect(host: &Host, hold: &mut Hold, plan: &Plan, stamp: &Stamp, cargo: Cargo) -> Result<Reach> {
    launch(host, hold, plan, stamp, cargo)?.land(host, hold)
}

/// What of the acks may be reported: none after the end of the incarnation (R2), and none without a mandate,
/// looked at after the completions (R8).
fn judge(host: &Host, reach: Reach) -> Result<Reach> {
    if holds(Rule::R2SealByView) && host.cache.is_poisoned() {
        return Err(host.ownership_lost());
    }
    if host.has_mandate() {
        return Ok(reach);
    }
    Ok(Reach { copies: 0, short: Some(Short::NoMandate), ..reach })
}

/// Decides whether a push that could not begin leaves the session short or ends the operation.
fn short_of(host: &Host, error: crate::error::Error) -> Result<Short> {
    match error.kind {
        ErrorKind::Full => {
            host.count(Counter::LeaseFull, 1);
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
    let archive = if state == CellState::Live { hold.bytes() } else { &[] };
    let checksum = match lane.link.checksum_kind() {
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
    let posted = lane.link.post(&transport::Push {
        slot: push.slot,
        sequence: push.sequence,
        cell: &cell.encode(),
        block,
    });
    Ok((push, posted))
}

/// Waits for the end of a pending push: polls as long as that is cheaper than sleeping, then sleeps. `None`: it
/// was given up, and may still arrive.
pub fn wait_for(host: &Host, lane: &Lane, push: PushId, deadline: Option<Instant>) -> Option<Outcome> {
    let began = Instant::now();
    loop {
        if let Some(outcome) = lane.link.poll(push) {
            return Some(outcome);
        }
        if began.elapsed() < POLLING {
            std::hint::spin_loop();
            continue;
        }
        if is_hopeless(host, lane, deadline) {
            lane.link.forget(push);
            return None;
        }
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        lane.link.wait(left.map_or(LIVENESS_POLL, |left| left.min(LIVENESS_POLL)));
    }
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
            hold.cancel_push(&open.push)?;
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

/// Sessions of which one background task keeps pushes under way: a quarter of what a link takes, so that requests
/// find room.
pub fn window(host: &Host) -> usize {
    (host.config.rdma.queue_depth as usize / 4).clamp(1, 64)
}

/// For people: what ended a link.
pub fn why_lost(outcome: Option<Outcome>) -> &'static str {
    match outcome {
        Some(Outcome::Failed(FailKind::Revoked)) => "the server has taken its memory away",
        Some(_) => "the connection has failed",
        None => "a push was not acked in time",
    }
}
