//! Pushing a session to its places: the one way that commit, touch, re-copy, adoption and destroy write into
//! leases.
//!
//! The caller has the session's lock. Rules: an ack belongs to the server incarnation of its link (R6); a
//! lease found sealed ends this incarnation, and no ack counts from then on (R2); acks are reported under a
//! valid mandate only (R8); what may still be written is never superseded in its slot (R4); the previous
//! block is freed by the ack of the next (R7), which is [`Hold::end_push`]'s part.

use super::host::{Counter, Host, Lane, LinkState, Plan};
use super::session::Short;
use crate::cache::{self, Hold, PushKind};
use crate::error::{ErrorKind, Result};
use crate::ident::{SessionId, Version};
use crate::lease::{ArchiveChecksum, Cell, CellState};
use crate::limits::COPIES_MAX;
use crate::rules::{Rule, holds};
use crate::transport::{self, ChecksumKind, FailKind, Outcome, Posted};
use std::sync::Arc;
use std::time::Instant;
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
enum End {
    Acked,
    Full,
    Failed,
}

struct Open<'a> {
    lane: &'a Arc<Lane>,
    push: cache::Push,
    posted: Posted,
}

/// Brings the session's copies at the servers of its placement to `stamp`.
///
/// # Errors
/// `OwnershipLost` if the incarnation is over, `LockLost` if the session's lock was revoked.
pub fn protect(host: &Host, hold: &mut Hold, plan: &Plan, stamp: &Stamp, cargo: Cargo) -> Result<Reach> {
    let mut reach = Reach::default();
    let mut open: [Option<Open<'_>>; COPIES_MAX] = [const { None }; COPIES_MAX];
    let mut retry = false;
    for ((_, link), open) in plan.places_of(stamp.id).zip(&mut open) {
        let LinkState::Open(lane) = link else {
            reach.short = Some(match link {
                LinkState::Closed => Short::NotAwaited,
                _ => Short::Servers,
            });
            retry = true;
            continue;
        };
        let kind = match cargo {
            Cargo::Archive => PushKind::Archive(hold.bytes().len() as u32),
            Cargo::Missing { same_since } => match hold.place_at(lane.server)? {
                Some(place) if place.acked == Some(stamp.version) && place.block.is_some() => {
                    reach.copies += 1;
                    continue;
                }
                Some(place) if same_since.is_some() && place.acked == same_since && place.block.is_some() => {
                    PushKind::Touch
                }
                _ => PushKind::Archive(hold.bytes().len() as u32),
            },
        };
        match begin(hold, lane, kind, CellState::Live, stamp) {
            Ok(begun) => *open = Some(begun),
            Err(error) => {
                let short = short_of(host, error)?;
                // Room in a lease does not come by trying again at once.
                retry |= short != Short::LeaseFull;
                reach.short = Some(short);
            }
        }
    }
    let deadline = host.deadline();
    for open in open.into_iter().flatten() {
        reach.pushes += 1;
        match finish(host, hold, open, stamp, deadline)? {
            End::Acked => reach.copies += 1,
            End::Full => reach.short = Some(Short::LeaseFull),
            End::Failed => {
                retry = true;
                reach.short = Some(Short::Servers);
            }
        }
    }
    if retry {
        host.count(Counter::Unprotected, 1);
    }
    if reach.copies < plan.view.copies && reach.short.is_none() {
        reach.short = Some(Short::Servers);
    }
    judge(host, reach)
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

/// Writes a cell without a block to one place: a tombstone, or "moved". Returns whether it is acked.
///
/// # Errors
/// As [`protect`].
pub fn push_bare(
    host: &Host,
    hold: &mut Hold,
    lane: &Arc<Lane>,
    state: CellState,
    stamp: &Stamp,
) -> Result<bool> {
    let open = match begin(hold, lane, PushKind::Bare, state, stamp) {
        Ok(open) => open,
        Err(error) => {
            short_of(host, error)?;
            return Ok(false);
        }
    };
    Ok(matches!(finish(host, hold, open, stamp, host.deadline())?, End::Acked))
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

fn begin<'a>(
    hold: &mut Hold,
    lane: &'a Arc<Lane>,
    kind: PushKind,
    state: CellState,
    stamp: &Stamp,
) -> Result<Open<'a>> {
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
    Ok(Open { lane, push, posted })
}

fn finish(host: &Host, hold: &mut Hold, open: Open<'_>, stamp: &Stamp, deadline: Instant) -> Result<End> {
    let outcome = match open.posted {
        Posted::Done(outcome) => Some(outcome),
        Posted::Pending(id) => loop {
            if let Some(outcome) = open.lane.link.poll(id) {
                break Some(outcome);
            }
            if Instant::now() >= deadline {
                break None;
            }
            std::thread::yield_now();
        },
    };
    match outcome {
        Some(Outcome::Acked) => {
            hold.end_push(&open.push, stamp.version, stamp.expiry_ms)?;
            Ok(End::Acked)
        }
        Some(Outcome::Sealed) => {
            if holds(Rule::R2SealByView) {
                // Only a view seals: this incarnation is over, whatever else was acked.
                host.cache.poison();
                return Err(host.ownership_lost());
            }
            hold.end_push(&open.push, stamp.version, stamp.expiry_ms)?;
            Ok(End::Acked)
        }
        Some(Outcome::Failed(FailKind::Bounds)) => {
            hold.cancel_push(&open.push)?;
            Ok(End::Full)
        }
        Some(Outcome::Failed(FailKind::NotPosted)) => {
            hold.cancel_push(&open.push)?;
            Ok(End::Failed)
        }
        Some(Outcome::Failed(FailKind::Disconnected | FailKind::Revoked)) | None => {
            if holds(Rule::R4FreshSlot) {
                hold.abandon_push(&open.push)?;
            } else {
                hold.cancel_push(&open.push)?;
            }
            Ok(End::Failed)
        }
    }
}
