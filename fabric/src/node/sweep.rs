//! The steward's rounds over all sessions: copies where the placement wants them (C9), the end of those whose
//! time is over (R14), tombstones that could not be acked at once, and slots that dead writers left in
//! quarantine (R4).

use super::attend::{Step, Task};
use super::clock::Clock;
use super::host::{Host, Plan};
use super::open::{facts_of, is_expired};
use super::push::window;
use super::volley::{push_bare, why_lost};
use crate::cache::{self, BookState, EntryInfo, EntryState, PlaceInfo, ProcessInfo, Quarantined};
use crate::control::message::{FromServer, ToServer};
use crate::error::Result;
use crate::ident::{Epoch, Incarnation};
use crate::lease::{ArchiveChecksum, Cell, CellState};
use crate::limits::{COPIES_MAX, PLACES_MAX};
use crate::numbers::NodeCounter;
use crate::rules::{Rule, holds};
use crate::transport::{self, FailKind, Outcome};
use std::collections::{HashMap, HashSet, VecDeque};
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
    pub fn step(&mut self, clock: &dyn Clock, sessions: u64) -> bool {
        self.done += sessions;
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return false;
            }
            let ahead = self.ahead(0);
            if ahead < Self::REST {
                return true;
            }
            clock.sleep(ahead.min(Duration::from_millis(20)));
        }
    }

    /// Whether [`Self::step`] would sleep.
    pub fn is_early(&self, sessions: u64) -> bool {
        self.per_s != 0 && self.ahead(sessions) >= Self::REST
    }

    /// Shorter sleeps are left to add up: they cost more than they hold back.
    const REST: Duration = Duration::from_millis(1);

    /// By how much the work, and so many sessions more, are ahead of their time.
    fn ahead(&self, sessions: u64) -> Duration {
        let due_us = ((self.done + sessions) * 1_000_000).checked_div(self.per_s).unwrap_or(0);
        Duration::from_micros(due_us).saturating_sub(self.began.elapsed())
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
    let swept = Swept { epoch: plan.view.epoch, complete: true, copied: 0 };
    let mut round = Round { host, plan: &plan, tasks: VecDeque::new(), swept, used_books: HashSet::new() };
    for index in 0..host.cache.spec().sessions_max {
        let Some(info) = host.cache.entry(index)? else { continue };
        if info.grace_until_ms.is_some_and(|until_ms| until_ms <= host.clock.unix_ms()) {
            host.cache.end_grace(&info.id)?;
            if info.places.is_empty() {
                continue;
            }
        }
        match needs(host, &plan, &info) {
            Need::Nothing => round.ended(&info, !info.locked),
            Need::Wait => round.ended(&info, false),
            need => {
                round.begin(&info, need)?;
                // Nothing is kept locked over a pause.
                round.run(if pace.is_early(1) { 0 } else { window(host) - 1 })?;
                if !pace.step(&*host.clock, 1) {
                    round.run(0)?;
                    return Ok(Swept { complete: false, ..round.swept });
                }
            }
        }
    }
    round.run(0)?;
    let Round { mut swept, used_books, .. } = round;
    swept.complete &= release_quarantine(host)?;
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

/// A sweep under way.
struct Round<'a> {
    host: &'a Host,
    plan: &'a Plan,
    /// Sessions whose pushes are under way, the oldest first.
    tasks: VecDeque<(Task<'a>, Need)>,
    swept: Swept,
    /// Books that still have places after this round cannot be given to another server.
    used_books: HashSet<Incarnation>,
}

impl<'a> Round<'a> {
    fn begin(&mut self, info: &EntryInfo, need: Need) -> Result<()> {
        match Task::begin(self.host, self.plan, info, need)? {
            Step::UnderWay(task) => self.tasks.push_back((task, need)),
            Step::Ended(done) => self.ended(info, done),
        }
        Ok(())
    }

    /// Goes on with what has ended, in order, and waits as long as more than `most` are under way.
    fn run(&mut self, most: usize) -> Result<()> {
        loop {
            let count = self.tasks.len();
            let Some((mut task, need)) = self.tasks.pop_front() else { return Ok(()) };
            if count <= most && !task.is_over() {
                self.tasks.push_front((task, need));
                return Ok(());
            }
            let gone: Vec<Incarnation> =
                task.servers().filter(|server| self.plan.view.server(*server).is_none()).collect();
            let info = task.info().clone();
            match task.go_on(self.host, self.plan)? {
                Step::UnderWay(task) => self.tasks.push_back((task, need)),
                Step::Ended(done) => {
                    self.swept.complete &= done;
                    self.swept.copied += u64::from(done && need == Need::Copies);
                    if !done {
                        left(&info);
                        self.used_books.extend(gone);
                    }
                }
            }
        }
    }

    fn ended(&mut self, info: &EntryInfo, done: bool) {
        self.swept.complete &= done;
        if !done {
            left(info);
            let gone = |place: &&PlaceInfo| self.plan.view.server(place.server).is_none();
            self.used_books.extend(info.places.iter().filter(gone).map(|place| place.server));
        }
    }
}

/// For who looks why a sweep is never complete.
fn left(info: &EntryInfo) {
    let EntryInfo { id, state, version, locked, places, .. } = info;
    tracing::trace!(session = %id, ?state, ?version, locked, ?places, "left to the next sweep");
}

/// What a session needs of the sweep.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Need {
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
pub(super) fn must_keep(plan: &Plan, info: &EntryInfo) -> bool {
    let room = info.places.len() < PLACES_MAX;
    info.adopted && plan.sealed_copies_exist() && room && holds(Rule::R10ReleaseAsSet)
}

/// Gives back slots whose writer is known to be gone (R4). The slot says "moved" first: what the writer left
/// there must not revive a session that is destroyed later (R9).
fn release_quarantine(host: &Host) -> Result<bool> {
    let mut all = true;
    let (slots, processes) = (host.cache.quarantined(), host.cache.processes());
    // Loaded after the list: a server of a slot in it that this plan does not know has left the view.
    let plan = host.plan().clone();
    // Many slots have the same writer: each is asked for once.
    let mut answers: HashMap<(Incarnation, u32, Option<u64>), bool> = HashMap::new();
    for slot in slots {
        let Some(server) = plan.view.server(slot.server) else {
            host.cache.release_quarantined(&slot);
            continue;
        };
        let gone = *answers.entry((slot.server, slot.pid, slot.link)).or_insert_with(|| {
            let request = ToServer::ProcessGone { pid: slot.pid, link: slot.link };
            matches!(host.servers.call(server, &request), Ok(FromServer::Gone(true)))
        });
        kill_point!("quarantine.asked");
        // A process that lives may copy into shared memory at any time; one whose queue pair is destroyed can
        // do nothing with that any more.
        let is_writer = |process: &ProcessInfo| process.id == slot.process && process.alive;
        let may_write = !gone || (slot.link.is_none() && processes.iter().any(is_writer));
        if (may_write && holds(Rule::R4FreshSlot))
            || is_needed(host, &plan, &slot)?
            || !supersede(host, &plan, &slot)?
        {
            all = false;
            continue;
        }
        kill_point!("quarantine.superseded");
        host.cache.release_quarantined(&slot);
        host.count(NodeCounter::Quarantines, 1);
    }
    Ok(all)
}

/// Whether a slot in quarantine may hold the last acked copy of a session that lives: one that was not copied
/// again since, because its lock was held or there was no room. "Moved" is written only when the copy has
/// moved (R11): the same server has acked a newer one, or the whole placement the current version.
fn is_needed(host: &Host, plan: &Plan, slot: &Quarantined) -> Result<bool> {
    let Some(info) = host.cache.find(&slot.id)? else { return Ok(false) };
    if info.state != EntryState::Live || !holds(Rule::R11Moved) {
        return Ok(false);
    }
    let here = info.places.iter().filter(|place| place.server == slot.server);
    let has_newer = here.filter(|place| place.acked.is_some() && place.block.is_some()).count() > 0;
    Ok(!has_newer && facts_of(plan, &info).copies < plan.copies_possible())
}

fn supersede(host: &Host, plan: &Plan, slot: &Quarantined) -> Result<bool> {
    let Some(lane) = plan.lane(slot.server).filter(|lane| !lane.link.is_broken()) else { return Ok(false) };
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
    // From here on it is this link whose end ends the doubt.
    host.cache.take_over_quarantined(slot, lane.number);
    let cell = cell.encode();
    let push = transport::Push { slot: slot.slot, sequence: slot.sequence, cell: &cell, block: None };
    let outcome = push_bare(host, lane, &push);
    match outcome {
        Some(Outcome::Acked) => Ok(true),
        Some(Outcome::Sealed) => {
            host.cache.poison();
            Err(host.ownership_lost())
        }
        Some(Outcome::Failed(FailKind::Bounds | FailKind::NotPosted)) => Ok(false),
        Some(Outcome::Failed(_)) | None => {
            host.lose_link(lane, why_lost(outcome));
            Ok(false)
        }
    }
}

/// The copies of a session by this view, as its handles would see them.
pub(super) fn copies_of(plan: &Plan, info: &cache::EntryInfo) -> u32 {
    facts_of(plan, info).copies
}
