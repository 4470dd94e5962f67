//! Pushing a session to its places: the one way that commit, touch, re-copy, adoption and destroy write into
//! leases.
//!
//! The caller has the session's lock. Rules: an ack belongs to the server incarnation of its link (R6); a
//! lease found sealed ends this incarnation, and no ack counts from then on (R2); acks are reported under a
//! valid mandate only (R8); what may still be written is never superseded in its slot (R4); the previous
//! block is freed by the ack of the next (R7), which is [`Hold::end_push`]'s part.
//!
//! All pushes are posted before any is awaited: by the caller ([`protect`]), or by whom the [`Flight`] is
//! handed to.

use super::host::{Host, Lane, LinkState, Plan};
use super::session::Short;
use super::volley::{End, Volley};
use crate::cache::{Hold, PushKind};
use crate::error::Result;
use crate::ident::{SessionId, Version};
use crate::lease::CellState;
use crate::limits::COPIES_MAX;
use crate::numbers::NodeCounter;
use crate::rules::{Rule, holds};
use std::borrow::Borrow;
use std::sync::Arc;

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
    /// Distinct servers of the placement that have acked the version, as far as it may be reported.
    pub copies: u32,
    /// The same, whether or not it may be reported.
    pub acked: u32,
    /// Why these are fewer than the view asks for.
    pub short: Option<Short>,
    /// Pushes made.
    pub pushes: u32,
    /// Those of them that carry the archive.
    pub payloads: u32,
}

/// The pushes that bring a session's copies to a version, under way.
pub struct Flight<L: Borrow<Arc<Lane>>> {
    volley: Volley<L, COPIES_MAX>,
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
    let mut flight = Flight::new(plan, stamp);
    flight.launch(host, hold, plan, cargo)?;
    Ok(flight)
}

impl<'a> Flight<&'a Arc<Lane>> {
    /// Before its launch. Who lands it at once keeps it where it is: it is large.
    pub fn new(plan: &Plan, stamp: &Stamp) -> Self {
        let volley = Volley::new(stamp);
        Self { volley, reach: Reach::default(), retry: false, copies_wanted: plan.view.copies }
    }

    /// Posts its pushes. Never waits.
    ///
    /// # Errors
    /// As [`launch`].
    pub fn launch(&mut self, host: &Host, hold: &mut Hold, plan: &'a Plan, cargo: Cargo) -> Result<()> {
        let id = self.volley.stamp().id;
        let mut places = plan.places_of(id);
        let posted = places.try_for_each(|(_, link)| self.post(host, hold, link, cargo));
        let cells = self.reach.pushes - self.reach.payloads;
        for (counter, pushes) in
            [(NodeCounter::PayloadPushes, self.reach.payloads), (NodeCounter::CellPushes, cells)]
        {
            if pushes > 0 {
                host.count(counter, u64::from(pushes));
            }
        }
        if posted.is_err() {
            self.volley.give_up(host, hold);
        }
        posted
    }

    fn post(&mut self, host: &Host, hold: &mut Hold, link: &'a LinkState, cargo: Cargo) -> Result<()> {
        let LinkState::Open(lane) = link else {
            self.reach.short = Some(match link {
                LinkState::Closed => Short::NotAwaited,
                _ => Short::Servers,
            });
            self.retry = true;
            return Ok(());
        };
        let stamp = self.volley.stamp();
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
            None => {
                self.reach.pushes += 1;
                self.reach.payloads += u32::from(matches!(kind, PushKind::Archive(_)));
            }
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
    pub fn volley(&mut self) -> &mut Volley<L, COPIES_MAX> {
        &mut self.volley
    }

    /// Waits for the rest, and says what was reached.
    ///
    /// # Errors
    /// As [`launch`].
    pub fn land(&mut self, host: &Host, hold: &mut Hold) -> Result<Reach> {
        let Self { volley, reach, retry, copies_wanted } = self;
        volley.land(host, hold, |end| match end {
            End::Acked => reach.copies += 1,
            End::Full => reach.short = Some(Short::LeaseFull),
            End::Failed => {
                *retry = true;
                reach.short = Some(Short::Servers);
            }
        })?;
        if *retry {
            host.unprotected();
        }
        if reach.copies < *copies_wanted && reach.short.is_none() {
            reach.short = Some(Short::Servers);
        }
        judge(host, *reach)
    }
}

/// Brings the session's copies at the servers of its placement to `stamp`, and waits for it.
///
/// # Errors
/// As [`launch`].
pub fn protect(host: &Host, hold: &mut Hold, plan: &Plan, stamp: &Stamp, cargo: Cargo) -> Result<Reach> {
    let mut flight = Flight::new(plan, stamp);
    flight.launch(host, hold, plan, cargo)?;
    flight.land(host, hold)
}

/// What of the acks may be reported: none after the end of the incarnation (R2), and none without a mandate,
/// looked at after the completions (R8).
fn judge(host: &Host, reach: Reach) -> Result<Reach> {
    if holds(Rule::R2SealByView) && host.cache.is_poisoned() {
        return Err(host.ownership_lost());
    }
    let reach = Reach { acked: reach.copies, ..reach };
    if host.has_mandate() {
        return Ok(reach);
    }
    Ok(Reach { copies: 0, short: Some(Short::NoMandate), ..reach })
}

/// Sessions of which one background task keeps pushes under way: a quarter of what a link takes, so that
/// requests find room.
pub fn window(host: &Host) -> usize {
    (host.config.rdma.queue_depth as usize / 4).clamp(1, 64)
}
