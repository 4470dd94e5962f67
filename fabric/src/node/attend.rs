//! What the sweep does with one session: steps that post and steps that land, so that the pushes of many
//! sessions are under way at once. Between the two the session stays locked.

use super::destroy::{Burial, Burying, begin_burial, begin_expiry};
use super::host::{Host, Lane, Plan};
use super::open::is_expired;
use super::push::{Cargo, Flight, Stamp, launch};
use super::sweep::{Need, must_keep};
use super::volley::{End, Volley};
use crate::cache::{EntryInfo, EntryState, Hold, Opened, PlaceIndex, PushKind};
use crate::error::{ErrorKind, Result};
use crate::ident::Incarnation;
use crate::lease::CellState;
use crate::limits::PLACES_MAX;
use crate::numbers::NodeCounter;
use crate::rules::{Rule, holds};
use std::sync::Arc;
use std::time::Instant;

/// One session, locked and attended to.
pub(super) struct Task<'a> {
    hold: Hold,
    info: EntryInfo,
    stage: Stage<'a>,
}

#[allow(clippy::large_enum_variant, reason = "boxing would allocate for every session")]
enum Stage<'a> {
    /// It is given the copies that it lacks.
    Copies(Flight<&'a Arc<Lane>>),
    /// It has them, and leaves the places where it no longer belongs (R11).
    Leaving(Leaving<'a>),
    /// Its tombstones are under way; sealed copies are to be declared gone, too.
    Burial(Box<Burying>, bool),
}

/// Where a session stands.
#[allow(clippy::large_enum_variant, reason = "boxing would allocate for every session")]
pub(super) enum Step<'a> {
    /// Pushes are under way.
    UnderWay(Task<'a>),
    /// As far as it goes now; whether all that it needed was done.
    Ended(bool),
}

impl<'a> Task<'a> {
    /// Begins what a session needs. Never waits.
    pub fn begin(host: &Host, plan: &'a Plan, info: &EntryInfo, need: Need) -> Result<Step<'a>> {
        // R9: re-copy, adoption and destroy exclude each other by the session's lock.
        let Opened::Granted(mut hold) = host.cache.try_exclusive(&info.id)? else {
            return Ok(Step::Ended(false));
        };
        // Who had it before may have gone by a newer view, and then has places at servers that joined after
        // this plan was made: their copies count.
        if host.plan().view.epoch != plan.view.epoch {
            return Ok(Step::Ended(false));
        }
        let begun = Stage::begin(host, plan, &mut hold, need);
        Ok(match unless_lost(begun)?.flatten() {
            Some((info, stage)) => Step::UnderWay(Self { hold, info, stage }),
            None => Step::Ended(false),
        })
    }

    /// Whether [`Self::go_on`] would not wait.
    pub fn is_over(&mut self) -> bool {
        match &mut self.stage {
            Stage::Copies(flight) => flight.volley().is_over(&self.hold),
            Stage::Leaving(leaving) => leaving.moves.is_over(&self.hold),
            Stage::Burial(burying, _) => burying.volley().is_over(&self.hold),
        }
    }

    /// Waits for what is under way, and begins what comes after it.
    pub fn go_on(self, host: &Host, plan: &'a Plan) -> Result<Step<'a>> {
        let Self { mut hold, info, stage } = self;
        let landed = match stage {
            Stage::Copies(flight) => copied(host, plan, &mut hold, &info, flight),
            Stage::Leaving(leaving) => leaving.land(host, &mut hold).map(Next::Ended),
            Stage::Burial(burying, declare) => {
                let burial = burying.land(host, &mut hold, declare);
                if declare {
                    kill_point!("expire.buried");
                }
                burial.map(|burial| Next::Ended(burial != Burial::Open))
            }
        };
        Ok(match unless_lost(landed)? {
            Some(Next::Leave(leaving)) => Step::UnderWay(Self { hold, info, stage: Stage::Leaving(leaving) }),
            Some(Next::Ended(done)) => Step::Ended(done),
            None => Step::Ended(false),
        })
    }

    /// What the session was when it was locked.
    pub fn info(&self) -> &EntryInfo {
        &self.info
    }

    /// The life of every server where the session has, or had, a place.
    pub fn servers(&self) -> impl Iterator<Item = Incarnation> {
        self.info.places.iter().map(|place| place.server)
    }
}

/// A session that somebody else took over meanwhile is that one's business, and trouble with one session is
/// no reason to leave the others: only the end of the incarnation ends a sweep or an adoption.
pub(super) fn unless_lost<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind == ErrorKind::OwnershipLost => Err(error),
        Err(error) => {
            tracing::debug!(%error, "a session is left to the next round");
            Ok(None)
        }
    }
}

impl<'a> Stage<'a> {
    fn begin(host: &Host, plan: &'a Plan, hold: &mut Hold, need: Need) -> Result<Option<(EntryInfo, Self)>> {
        let info = hold.info()?;
        let stage = match info.state {
            EntryState::Adopting => return Ok(None),
            EntryState::Gone => Self::Burial(Box::new(begin_burial(host, hold, Instant::now())?), false),
            EntryState::Live if need == Need::End && is_expired(host, &info) => {
                if !holds(Rule::R14Expiry) {
                    return Ok(None);
                }
                Self::Burial(Box::new(begin_expiry(host, hold, &info)?), true)
            }
            EntryState::Live => Self::Copies(recopy(host, plan, hold, &info)?),
        };
        Ok(Some((info, stage)))
    }
}

/// Begins to give a session the copies that it lacks.
fn recopy<'a>(
    host: &Host,
    plan: &'a Plan,
    hold: &mut Hold,
    info: &EntryInfo,
) -> Result<Flight<&'a Arc<Lane>>> {
    // Places at servers that left the view hold nothing that counts (R6), and their number is bounded: free
    // them first.
    for place in info.places.iter().filter(|place| plan.view.server(place.server).is_none()) {
        hold.free_place(place.index)?;
    }
    if !holds(Rule::R11Moved) {
        Leaving::begin(host, plan, hold, info)?.land(host, hold)?;
    }
    kill_point!("recopy.begun");
    let flight = launch(host, hold, plan, &stamp_of(info), Cargo::Missing { same_since: None })?;
    kill_point!("recopy.posted");
    Ok(flight)
}

#[allow(clippy::large_enum_variant, reason = "boxing would allocate for every session")]
enum Next<'a> {
    Leave(Leaving<'a>),
    Ended(bool),
}

/// The copies are made, or not: only after all are acked it leaves elsewhere (R11).
fn copied<'a>(
    host: &Host,
    plan: &'a Plan,
    hold: &mut Hold,
    info: &EntryInfo,
    mut flight: Flight<&Arc<Lane>>,
) -> Result<Next<'a>> {
    let reach = flight.land(host, hold)?;
    kill_point!("recopy.landed");
    host.count(NodeCounter::Recopies, u64::from(reach.pushes));
    if reach.copies < plan.copies_possible() {
        return Ok(Next::Ended(false));
    }
    Leaving::begin(host, plan, hold, info).map(Next::Leave)
}

/// "Moved", on its way to the places at servers of the view that the placement does not name.
struct Leaving<'a> {
    moves: Volley<&'a Arc<Lane>>,
    /// The places that it goes to, in order.
    places: [Option<PlaceIndex>; PLACES_MAX],
    /// Whether they are given back when it is acked.
    free: bool,
    done: bool,
}

impl<'a> Leaving<'a> {
    fn begin(host: &Host, plan: &'a Plan, hold: &mut Hold, info: &EntryInfo) -> Result<Self> {
        let mut leaving = Self {
            moves: Volley::new(&stamp_of(info)),
            places: [None; PLACES_MAX],
            free: !must_keep(plan, info),
            done: true,
        };
        let placed = |server| plan.places_of(info.id).any(|(entry, _)| entry.incarnation == server);
        let mut posted = 0;
        for place in info.places.iter().filter(|place| !placed(place.server)) {
            let Some(lane) = plan.lane(place.server) else {
                leaving.done &= plan.view.server(place.server).is_none();
                continue;
            };
            let moved = place.block.is_none() && place.acked.is_some();
            if moved && leaving.free {
                hold.free_place(place.index)?;
            } else if !moved {
                match leaving.moves.post(host, hold, lane, PushKind::Bare, CellState::Moved)? {
                    Some(_) => leaving.done = false,
                    None => {
                        kill_point!("recopy.moving");
                        leaving.places[posted] = Some(place.index);
                        posted += 1;
                    }
                }
            }
        }
        Ok(leaving)
    }

    fn land(self, host: &Host, hold: &mut Hold) -> Result<bool> {
        let Self { mut moves, mut places, free, mut done } = self;
        let mut posted = places.iter_mut();
        moves.land(host, hold, |end| {
            if let Some(place) = posted.next().filter(|_| end != End::Acked) {
                *place = None;
                done = false;
            }
        })?;
        for place in places.into_iter().flatten().filter(|_| free) {
            kill_point!("recopy.moved");
            hold.free_place(place)?;
        }
        Ok(done)
    }
}

fn stamp_of(info: &EntryInfo) -> Stamp {
    Stamp { id: info.id, version: info.version, expiry_ms: info.expiry_ms }
}
