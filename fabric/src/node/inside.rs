//! The node library without its threads: what a simulation of a whole cluster drives in place of an
//! attachment. Only with the feature `sim`.
//!
//! Everything here is the code that attachment, agent and operations run; only who runs it, and by whose
//! clock, is the caller's business. Its seams are [`Clock`], [`Servers`], [`crate::transport::Link`] and the
//! pure [`super::steward`]. What waits in the product sleeps here, too, by the clock, so whoever gives
//! that owns the time, if `Instant::now` follows.

pub use super::clock::Clock;
pub use super::host::{Host, Lane, LinkState, Plan};
pub use super::servers::{Lifeline, OpenedLink, Servers};

use super::open::{self, OpenSession, Step};
use super::session::{Ack, Committed};
use super::sweep::{Pace, sweep as sweep_all};
use super::unlocked::Locking;
use super::{OpenMode, adopt as adoption, claims, errand as errands, fetch};
use crate::archive::{Value, ValueRef};
use crate::cache::{Hold, HoldState};
use crate::control::message::{Errand, ErrandOutcome, NodeBeat};
use crate::error::Result;
use crate::ident::{Cookie, Epoch, Incarnation, SessionId, Version};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// An open session.
pub struct Handle(OpenSession);

/// What an open found.
#[allow(clippy::large_enum_variant, reason = "boxing would allocate for every request")]
pub enum Found {
    /// The session.
    Session(Handle),
    /// There is none.
    Missing,
    /// That incarnation hosts it.
    Elsewhere(Incarnation),
}

/// What a round of background work left.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    /// The view it went by.
    pub epoch: Epoch,
    /// Nothing is left to do.
    pub complete: bool,
    /// Sessions copied or adopted.
    pub sessions: u64,
}

/// As `Node::create`.
///
/// # Errors
/// As `Node::create`.
pub fn create(host: &Arc<Host>, owner: Option<&str>) -> Result<Handle> {
    open::create(host, owner).map(Handle)
}

/// As `Node::open`, in the steps of its asynchronous form: while it waits for the lock it looks at each
/// `look`.
///
/// # Errors
/// As `Node::open`.
pub fn open(
    host: &Arc<Host>,
    cookie: &Cookie,
    mode: OpenMode,
    deadline: Instant,
    look: Duration,
) -> Result<Found> {
    loop {
        let found = match open::begin(host, cookie, mode, true)? {
            Step::Found(found) => Some(found),
            Step::Wait(hold) => {
                wait(host, &hold, deadline, look)?;
                open::granted(host, cookie, mode, hold, true)?
            }
            Step::Slow => match fetch::fetch(host, cookie, deadline)? {
                fetch::Fetched::Hosted => None,
                fetch::Fetched::Missing => return Ok(Found::Missing),
                fetch::Fetched::Elsewhere(node) => return Ok(Found::Elsewhere(node)),
            },
        };
        match found {
            Some(open::Found::Session(session)) => return Ok(Found::Session(Handle(session))),
            Some(open::Found::Missing) => return Ok(Found::Missing),
            Some(open::Found::Elsewhere(node)) => return Ok(Found::Elsewhere(node)),
            None if Instant::now() >= deadline => return Err(open::timed_out(host, "the session")),
            None => {}
        }
    }
}

/// Waits for a lock.
fn wait(host: &Host, hold: &Hold, deadline: Instant, look: Duration) -> Result<()> {
    while hold.tend()? == HoldState::Waiting {
        if Instant::now() >= deadline {
            return Err(open::timed_out(host, "the session's lock"));
        }
        host.clock.sleep(look);
    }
    if hold.tend()? == HoldState::Revoked { Err(open::lock_lost()) } else { Ok(()) }
}

impl Handle {
    /// Takes the lock that an unlocked handle needs for a commit, an end or a new id; waits as [`open`] does.
    ///
    /// # Errors
    /// As `Session::commit`.
    pub fn lock(&mut self, deadline: Instant, look: Duration) -> Result<()> {
        if !self.0.must_lock() {
            return Ok(());
        }
        let hold = match self.0.begin_lock()? {
            Locking::Granted(hold) => hold,
            Locking::Waiting(hold) => {
                wait(&self.0.host, &hold, deadline, look)?;
                hold
            }
        };
        self.0.catch_up(hold, true).map(drop)
    }

    /// Its id.
    pub fn id(&self) -> SessionId {
        self.0.facts.id
    }

    /// Its version.
    pub fn version(&self) -> Version {
        self.0.facts.version
    }

    /// When it expires, Unix ms.
    pub fn expiry_ms(&self) -> u64 {
        self.0.facts.expiry_ms
    }

    /// Copies of this version that count.
    pub fn copies(&self) -> u32 {
        self.0.facts.copies
    }

    /// The cookie that names it here.
    pub fn cookie(&self) -> Cookie {
        Cookie { id: self.id(), host: self.0.host.incarnation() }
    }

    /// An attribute.
    pub fn get(&self, name: &str) -> Option<ValueRef<'_>> {
        self.0.get(name)
    }

    /// An attribute of the version that the handle goes by, its changes left out.
    pub fn committed(&self, name: &str) -> Option<ValueRef<'_>> {
        self.0.archive()?.get(name)
    }

    /// As `Session::incr`.
    ///
    /// # Errors
    /// As `Session::incr`.
    pub fn incr(&mut self, name: &str, by: i64) -> Result<i64> {
        self.0.incr(name, by)
    }

    /// Changes an attribute.
    ///
    /// # Errors
    /// As `Session::set`.
    pub fn set(&mut self, name: &str, value: Value) -> Result<()> {
        self.0.set(name, value)
    }

    /// Changes the owner.
    ///
    /// # Errors
    /// As `Session::set_owner`.
    pub fn set_owner(&mut self, owner: Option<&str>) -> Result<()> {
        self.0.set_owner(owner)
    }

    /// As `Session::commit`.
    ///
    /// # Errors
    /// As `Session::commit`.
    pub fn commit(&mut self, ack: Ack) -> Result<Committed> {
        self.0.commit(ack)
    }

    /// As `Session::regenerate`.
    ///
    /// # Errors
    /// As `Session::regenerate`.
    pub fn regenerate(&mut self) -> Result<()> {
        self.0.regenerate()
    }

    /// As `Session::destroy`.
    ///
    /// # Errors
    /// As `Session::destroy`.
    pub fn destroy(self) -> Result<()> {
        self.0.destroy()
    }
}

/// One sweep over all sessions, as the steward's agent runs it.
///
/// # Errors
/// Of the end of the incarnation.
pub fn sweep(host: &Host, per_s: u64) -> Result<Round> {
    let stop = AtomicBool::new(false);
    let swept = sweep_all(host, &mut Pace::new(per_s, &stop))?;
    Ok(Round { epoch: swept.epoch, complete: swept.complete, sessions: swept.copied })
}

/// One pass of adoption, as the steward's agent runs it.
///
/// # Errors
/// If a server could not answer; the next pass goes on.
pub fn adopt(host: &Host, dead: Incarnation, per_s: u64) -> Result<Round> {
    let stop = AtomicBool::new(false);
    let adopted = adoption::adopt(host, dead, &mut Pace::new(per_s, &stop))?;
    Ok(Round { epoch: adopted.epoch, complete: adopted.complete, sessions: adopted.sessions })
}

/// Tells a server every claim of this node (R1).
///
/// # Errors
/// As the server refuses.
pub fn register_claims(host: &Host, server: Incarnation) -> Result<()> {
    claims::register_claims(host, server)
}

/// An errand, as the steward's agent does it.
pub fn errand(host: &Host, errand: &Errand, within: Duration) -> ErrandOutcome {
    errands::run(host, errand, within, &AtomicBool::new(false))
}

/// A heartbeat without its links and its time.
pub fn beat(host: &Host, epoch: Epoch, settled: Vec<Incarnation>) -> NodeBeat {
    super::report::beat_of(host, epoch, settled)
}
