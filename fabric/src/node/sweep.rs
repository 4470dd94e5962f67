//! The steward's rounds over all sessions: copies where the placement wants them (C9), the end of those whose
//! time is over (R14), tombstones that could not be acked at once, and slots that dead writers left in
//! quarantine (R4).

use super::destroy::{Burial, bury, expire};
use super::host::{Counter, Host, Plan};
use super::open::{facts_of, is_expired};
use super::push::{Cargo, Stamp, protect, push_bare};
use crate::cache::{self, BookState, EntryInfo, EntryState, Hold, Opened, PlaceInfo, Quarantined};
use crate::control::message::{FromServer, ToServer};
use crate::error::{ErrorKind, Result};
use crate::ident::{Epoch, Incarnation};
use crate::lease::{ArchiveChecksum, Cell, CellState};
use crate::limits::{COPIES_MAX, PLACES_MAX};
use crate::rules::{Rule, holds};
use crate::transport::{self, Outcome, Posted};
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Keeps background work at its configured rate, and ends it when its process leaves.
pub(super) struct Pace<'a> {
    per_s: u64,
    began: Instant,
    done: u64,
    stop: &'a AtomicBool,
}

impl<'a> Pace<'a> {
    /// So many sessions per second; 0 is no limit.
    pub fn new(per_s: u64, stop: &'a AtomicBool) -> Self {
        Self { per_s, began: Instant::now(), done: 0, stop }
    }

    /// Counts work done, sleeps if it went too fast. False: stop.
    pub fn step(&mut self, sessions: u64) -> bool {
        self.done += sessions;
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return false;
            }
            let due_us = (self.done * 1_000_000).checked_div(self.per_s).unwrap_or(0);
            let ahead = Duration::from_micros(due_us).saturating_sub(self.began.elapsed());
            // Short sleeps are left to add up: they cost more than they hold back.
            if ahead < Duration::from_millis(1) {
                return true;
            }
            std::thread::sleep(ahead.min(Duration::from_millis(20)));
        }
    }
}

/// What a sweep found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Swept {
    /// The view it went by.
    pub epoch: Epoch,
    /// Every session has its copies, nothing was skipped, and no lock was held nor push open.
    pub complete: bool,
    /// Sessions that were given copies.
    pub copied: u64,
}

/// Looks at every session once. Sessions whose lock is held are skipped: their holder may be about to push,
/// and the next sweep comes soon.
pub(super) fn sweep(host: &Host, pace: &mut Pace<'_>) -> Result<Swept> {
    let plan = host.plan().clone();
    let mut swept = Swept { epoch: plan.view.epoch, complete: true, copied: 0 };
    // Books that still have places after this round cannot be given to another server.
    let mut used_books: HashSet<Incarnation> = HashSet::new();
    for index in 0..host.cache.spec().sessions_max {
        let Some(info) = host.cache.entry(index)? else { continue };
        let done = match needs(host, &plan, &info) {
            Need::Nothing => !info.locked,
            Need::Wait => false,
            need => {
                let done = attend(host, &plan, &info, need)?;
                swept.copied += u64::from(done && need == Need::Copies);
                if !pace.step(1) {
                    return Ok(Swept { complete: false, ..swept });
                }
                done
            }
        };
        swept.complete &= done;
        let gone = |place: &&PlaceInfo| plan.view.server(place.server).is_none();
        if !done {
            used_books.extend(info.places.iter().filter(gone).map(|place| place.server));
        }
    }
    swept.complete &= release_quarantine(host, &plan)?;
    if swept.epoch == host.plan().view.epoch {
        for book in host.cache.books() {
            if book.state == BookState::Retiring && !used_books.contains(&book.incarnation) {
                host.cache.reset_book(book.index);
            }
        }
    } else {
        swept.complete = false;
    }
    Ok(swept)
}

/// What a session needs of the sweep.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Need {
    Nothing,
    /// Somebody is about to finish it.
    Wait,
    /// Its time is over.
    End,
    /// It is a tombstone on its way out.
    Burial,
    /// Copies are missing, or some are where they should not be any more.
    Copies,
}

fn needs(host: &Host, plan: &Plan, info: &EntryInfo) -> Need {
    match info.state {
        EntryState::Adopting => Need::Wait,
        EntryState::Gone => Need::Burial,
        EntryState::Live if is_expired(host, info) => Need::End,
        EntryState::Live => {
            // The placement once: it is most of what a session without need costs.
            let mut wanted = [Incarnation::NONE; COPIES_MAX];
            for (wanted, (server, _)) in wanted.iter_mut().zip(plan.places_of(info.id)) {
                *wanted = server.incarnation;
            }
            let placed = |server| wanted.contains(&server);
            let current = |place: &&PlaceInfo| place.acked == Some(info.version) && place.block.is_some();
            let good = info.places.iter().filter(current).filter(|place| placed(place.server)).count();
            let stray = info.places.iter().any(|place| !placed(place.server) && is_stray(plan, info, place));
            if good < plan.copies_possible() as usize || stray { Need::Copies } else { Need::Nothing }
        }
    }
}

/// Whether a place that the placement does not name has to be dealt with. One that says "moved" is kept while
/// sealed copies may exist (R10).
fn is_stray(plan: &Plan, info: &EntryInfo, place: &PlaceInfo) -> bool {
    let moved = place.block.is_none() && place.acked.is_some();
    !(moved && must_keep(plan, info)) || plan.view.server(place.server).is_none()
}

/// Keeping "moved" places must not take the room that copies need.
fn must_keep(plan: &Plan, info: &EntryInfo) -> bool {
    let room = info.places.len() < PLACES_MAX;
    info.adopted && plan.sealed_copies_exist() && room && holds(Rule::R10ReleaseAsSet)
}

/// Does what a session needs. False: not all of it could be done now.
fn attend(host: &Host, plan: &Plan, info: &EntryInfo, need: Need) -> Result<bool> {
    // R9: re-copy, adoption and destroy exclude each other by the session's lock.
    let Opened::Granted(mut hold) = host.cache.try_exclusive(&info.id)? else { return Ok(false) };
    let info = hold.info()?;
    let ended = match (info.state, need) {
        (EntryState::Gone, _) => {
            bury(host, &mut hold, Instant::now(), false).map(|burial| burial != Burial::Open)
        }
        (EntryState::Live, Need::End) if is_expired(host, &info) => expire(host, hold, &info).map(|()| true),
        (EntryState::Live, _) => recopy(host, plan, &mut hold, &info),
        (EntryState::Adopting, _) => Ok(false),
    };
    match ended {
        Err(error) if matches!(error.kind, ErrorKind::LockLost | ErrorKind::Timeout) => Ok(false),
        ended => ended,
    }
}

/// Gives a session the copies that it lacks, then takes it out of the places where it no longer belongs
/// (R11).
fn recopy(host: &Host, plan: &Plan, hold: &mut Hold, info: &EntryInfo) -> Result<bool> {
    // Places at servers that left the view hold nothing that counts (R6), and their number is bounded: free
    // them first.
    for place in info.places.iter().filter(|place| plan.view.server(place.server).is_none()) {
        hold.free_place(place.index)?;
    }
    if !holds(Rule::R11Moved) {
        leave(host, plan, hold, info)?;
    }
    let stamp = Stamp { id: info.id, version: info.version, expiry_ms: info.expiry_ms };
    let reach = protect(host, hold, plan, &stamp, Cargo::Missing { same_since: None })?;
    host.count(Counter::Recopies, u64::from(reach.pushes));
    if reach.copies < plan.copies_possible() {
        return Ok(false);
    }
    leave(host, plan, hold, info)
}

/// Writes "moved" to the places at servers of the view that the placement does not name, and gives their
/// slots back.
fn leave(host: &Host, plan: &Plan, hold: &mut Hold, info: &EntryInfo) -> Result<bool> {
    let stamp = Stamp { id: info.id, version: info.version, expiry_ms: info.expiry_ms };
    let placed = |server| plan.places_of(info.id).any(|(entry, _)| entry.incarnation == server);
    let mut done = true;
    for place in info.places.iter().filter(|place| !placed(place.server)) {
        let Some(lane) = plan.lane(place.server) else {
            done &= plan.view.server(place.server).is_none();
            continue;
        };
        let moved = place.block.is_none() && place.acked.is_some();
        if !moved && !push_bare(host, hold, lane, CellState::Moved, &stamp)? {
            done = false;
        } else if !must_keep(plan, info) {
            hold.free_place(place.index)?;
        }
    }
    Ok(done)
}

/// Gives back slots whose writer is known to be gone (R4). The slot says "moved" first: what the writer left
/// there must not revive a session that is destroyed later (R9).
fn release_quarantine(host: &Host, plan: &Plan) -> Result<bool> {
    let mut all = true;
    for slot in host.cache.quarantined() {
        let Some(server) = plan.view.server(slot.server) else {
            host.cache.release_quarantined(&slot);
            continue;
        };
        let asked = host.servers.call(server, &ToServer::ProcessGone { pid: slot.pid, link: None });
        let gone = matches!(asked, Ok(FromServer::Gone(true))) || !holds(Rule::R4FreshSlot);
        let alive = host.cache.processes().iter().any(|process| process.id == slot.process && process.alive);
        if !gone || alive || !supersede(host, plan, &slot)? {
            all = false;
            continue;
        }
        host.cache.release_quarantined(&slot);
        host.count(Counter::Quarantines, 1);
    }
    Ok(all)
}

fn supersede(host: &Host, plan: &Plan, slot: &Quarantined) -> Result<bool> {
    let Some(lane) = plan.lane(slot.server) else { return Ok(false) };
    let cell = Cell {
        id: slot.id,
        sequence: slot.sequence,
        version: Default::default(),
        state: CellState::Moved,
        block: Default::default(),
        archive_bytes: 0,
        expiry_ms: 0,
        checksum: ArchiveChecksum::None,
    };
    let posted = lane.link.post(&transport::Push {
        slot: slot.slot,
        sequence: slot.sequence,
        cell: &cell.encode(),
        block: None,
    });
    let outcome = match posted {
        Posted::Done(outcome) => Some(outcome),
        Posted::Pending(push) => {
            let deadline = host.deadline();
            loop {
                match lane.link.poll(push) {
                    Some(outcome) => break Some(outcome),
                    None if Instant::now() >= deadline => break None,
                    None => std::thread::yield_now(),
                }
            }
        }
    };
    if outcome == Some(Outcome::Sealed) {
        host.cache.poison();
        return Err(host.ownership_lost());
    }
    Ok(outcome == Some(Outcome::Acked))
}

/// The copies of a session by this view, as its handles would see them.
pub(super) fn copies_of(plan: &Plan, info: &cache::EntryInfo) -> u32 {
    facts_of(plan, info).copies
}
