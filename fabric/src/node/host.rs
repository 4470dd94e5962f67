//! [`Host`]: one process's part in one incarnation of its node; what every operation works on.
//!
//! It joins the cache segment, the newest view and this process's links in a [`Plan`] that is replaced as a
//! whole, so that an operation sees one consistent picture. Everything that touches the world (clock,
//! servers) is passed in.

use super::clock::Clock;
use super::servers::{Lifeline, OpenedLink, Servers};
use crate::archive::ArchiveLimits;
use crate::cache::{BookIndex, BookState, Cache, WAYS_PER_SERVER};
use crate::config::Config;
use crate::control::message::ToServer;
use crate::error::{Error, ErrorKind, Origin, Result};
use crate::ident::{Incarnation, SessionId};
use crate::numbers::{NodeCounter, NodeTime, SAMPLE};
use crate::placement;
use crate::rules::{Rule, holds};
use crate::transport::{Link, TransportKind};
use crate::view::{ServerEntry, View};
use arc_swap::ArcSwap;
use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// What operations go by: the newest view and, beside each of its servers, this process's link.
pub struct Plan {
    /// The view.
    pub view: View,
    sequence: u64,
    links: Vec<LinkState>,
    /// The newest life of a node that this process has seen in any view.
    pub newest: Incarnation,
}

/// This process's link to a server of the view.
#[derive(Clone)]
pub enum LinkState {
    /// Not opened yet.
    Closed,
    /// Could not be opened, or has broken: why. It will be tried again.
    Failed(Arc<str>),
    /// Open.
    Open(Arc<Lane>),
}

/// An open link, and the book of its lease.
pub struct Lane {
    /// The server's life (R6).
    pub server: Incarnation,
    /// The lease's book.
    pub book: BookIndex,
    /// The link.
    pub link: Arc<dyn Link>,
    /// The link's number at the server, if its end can be asked for (R4).
    pub number: Option<u64>,
    /// The control connection that the link lives by, if it does.
    pub lifeline: Option<Arc<Lifeline>>,
    /// Which server by which transport, for the numbers of pushes.
    pub way: u32,
}

impl Lane {
    /// Whether pushes over it end only later, so that who must not block hands them over.
    pub fn is_slow(&self) -> bool {
        self.link.kind() != TransportKind::Shm
    }
}

impl Plan {
    /// Where a session's copies shall be: the server and this process's link there, best first.
    pub fn places_of(&self, id: SessionId) -> impl Iterator<Item = (&ServerEntry, &LinkState)> {
        let placement = placement::servers_for(id, &self.view.servers, self.view.copies);
        (0..placement.len()).filter_map(move |rank| {
            let index = usize::from(placement[rank]);
            Some((self.view.servers.get(index)?, self.links.get(index)?))
        })
    }

    /// Copies that a session can have by this view.
    pub fn copies_possible(&self) -> u32 {
        self.view.copies.min(self.view.servers.len() as u32)
    }

    /// The open link to a server's life.
    pub fn lane(&self, server: Incarnation) -> Option<&Arc<Lane>> {
        self.links.iter().find_map(|link| match link {
            LinkState::Open(lane) if lane.server == server => Some(lane),
            _ => None,
        })
    }

    /// Whether every link is open.
    pub fn is_linked(&self) -> bool {
        self.links.iter().all(|link| matches!(link, LinkState::Open(_)))
    }

    /// Whether pushes to a server of this plan may end later than at once.
    pub fn is_slow(&self) -> bool {
        self.links.iter().any(|link| matches!(link, LinkState::Open(lane) if lane.is_slow()))
    }

    /// Each server of the view and this process's link there.
    pub fn links(&self) -> impl Iterator<Item = (&ServerEntry, &LinkState)> {
        self.view.servers.iter().zip(&self.links)
    }

    /// Whether a link that was never tried may be missing for a session.
    pub fn may_wait_for(&self, id: SessionId) -> bool {
        self.places_of(id).any(|(_, link)| matches!(link, LinkState::Closed))
    }

    /// Whether the leases of a dead incarnation, and with them copies in sealed leases, may still exist
    /// (R10).
    pub fn sealed_copies_exist(&self) -> bool {
        !self.view.dead.is_empty()
    }
}

/// One process's part in one incarnation of its node.
pub struct Host {
    /// The segment.
    pub cache: Cache,
    /// The configuration.
    pub config: Arc<Config>,
    /// The node's name.
    pub name: String,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// The session servers.
    pub servers: Arc<dyn Servers>,
    plan: ArcSwap<Plan>,
    /// Held while the plan is replaced; waiters for a new plan sleep on `replaced`.
    replacing: Mutex<()>,
    replaced: Condvar,
    /// Tells this process's agent that a link was lost.
    alarm: OnceLock<Box<dyn Fn() + Send + Sync>>,
    /// Of dead incarnations: how many sessions were left to other nodes at the last pass of adoption, and for
    /// how many passes their number has been the same.
    left: Mutex<HashMap<Incarnation, (usize, u32)>>,
}

impl Host {
    /// A process's part in the incarnation of `cache`.
    pub fn new(
        cache: Cache,
        config: Arc<Config>,
        name: &str,
        clock: Arc<dyn Clock>,
        servers: Arc<dyn Servers>,
    ) -> Self {
        let plan =
            Plan { view: View::default(), sequence: 0, links: Vec::new(), newest: Incarnation::default() };
        Self {
            cache,
            config,
            name: name.to_owned(),
            clock,
            servers,
            plan: ArcSwap::from_pointee(plan),
            replacing: Mutex::new(()),
            replaced: Condvar::new(),
            alarm: OnceLock::new(),
            left: Mutex::default(),
        }
    }

    /// Notes how many sessions of a dead incarnation a pass of adoption leaves to other nodes; how many
    /// passes in a row before it have left as many.
    pub fn leave_to_others(&self, dead: Incarnation, sessions: usize) -> u32 {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let plan = self.plan();
        left.retain(|incarnation, _| plan.view.dead.iter().any(|dead| dead.incarnation == *incarnation));
        let (before, passes) = left.entry(dead).or_default();
        *passes = if *before == sessions && sessions > 0 { *passes + 1 } else { 0 };
        *before = sessions;
        *passes
    }

    /// `alarm` is called when a link was lost, by whoever noticed; it must not block. The first one counts.
    pub fn set_alarm(&self, alarm: impl Fn() + Send + Sync + 'static) {
        let _ = self.alarm.set(Box::new(alarm));
    }

    /// The node's life.
    pub fn incarnation(&self) -> Incarnation {
        self.cache.incarnation()
    }

    /// The newest plan: one atomic load when the view has not changed.
    pub fn plan(&self) -> arc_swap::Guard<Arc<Plan>> {
        let plan = self.plan.load();
        if plan.sequence == self.cache.view_sequence() {
            return plan;
        }
        self.follow_view();
        self.plan.load()
    }

    fn follow_view(&self) {
        let _replacing = self.lock_replacing();
        let old = self.plan.load_full();
        // Read before the view: a view that changes in between only leads to another look.
        let sequence = self.cache.view_sequence();
        if old.sequence == sequence {
            return;
        }
        let Some((_, bytes)) = self.cache.view() else { return };
        // Written by this node's steward (invariant 7); bytes that are no view leave the old plan in force.
        let Ok(view) = postcard::from_bytes::<View>(&bytes) else { return };
        let links = view.servers.iter().map(|server| {
            let before = old.links().find(|(entry, _)| entry.incarnation == server.incarnation);
            before.map_or(LinkState::Closed, |(_, link)| link.clone())
        });
        let lives = view.nodes.iter().map(|node| node.incarnation);
        let lives = lives.chain(view.dead.iter().map(|dead| dead.incarnation));
        let newest = lives.fold(old.newest, Incarnation::max);
        let plan = Plan { links: links.collect(), view, sequence, newest };
        self.servers.retain(&plan.view);
        self.plan.store(Arc::new(plan));
        self.replaced.notify_all();
    }

    /// Stores a newer view for all processes; steward only.
    pub fn publish(&self, view: &View) -> Result<()> {
        let bytes = postcard::to_stdvec(view).map_err(|error| {
            Error::new(ErrorKind::Corrupt, Origin::Node, "a view cannot be encoded").with_source(error)
        })?;
        self.cache.set_view(view.epoch, &bytes)?;
        self.plan();
        Ok(())
    }

    /// Opens the links that are missing, one after the other. Returns whether all are open.
    #[cfg(test)]
    pub fn open_links(&self, steward: bool) -> bool {
        let plan = self.plan().clone();
        let missing = plan.links().filter(|(_, link)| !matches!(link, LinkState::Open(_)));
        missing.fold(true, |all, (server, _)| all & self.open_link(server, steward))
    }

    /// Opens the link to one server; only the steward gives books. Returns whether it is open.
    pub fn open_link(&self, server: &ServerEntry, steward: bool) -> bool {
        match self.try_open(server, steward) {
            Ok(Some(lane)) => {
                self.replace_link(server.incarnation, LinkState::Open(lane));
                return true;
            }
            // The steward has not made the book yet: it stays closed, and who needs it waits.
            Ok(None) => {}
            // R2: by a server's word, and no other, this incarnation is over.
            Err(error) if error.kind == ErrorKind::OwnershipLost => {
                tracing::warn!(server = server.name, "a server says that this incarnation is over");
                self.cache.poison();
            }
            Err(error) => {
                tracing::debug!(server = server.name, %error, "the link cannot be opened yet");
                // A server that has not heard of this incarnation will in a moment: who needs the link waits
                // for it.
                if error.kind != ErrorKind::NotYet {
                    let why = error.to_string().into();
                    self.replace_link(server.incarnation, LinkState::Failed(why));
                }
            }
        }
        false
    }

    /// Asks the servers of the view, one after the other until one answers, whether this incarnation is over.
    pub fn ask_whether_over(&self) {
        // It changes nothing, and who is not in the server's view is refused.
        let request = ToServer::Unclaim { ids: Vec::new() };
        for server in &self.plan().view.servers.clone() {
            match self.servers.call(server, &request) {
                Ok(_) => return,
                Err(error) if error.kind == ErrorKind::OwnershipLost => {
                    tracing::warn!(server = server.name, "a server says that this incarnation is over");
                    return self.cache.poison();
                }
                Err(error) => tracing::debug!(server = server.name, %error, "no answer"),
            }
        }
    }

    /// Takes a link that is of no more use out of the plan, and has the agent ask its server what is the
    /// matter. Closing its lifeline makes the server destroy its end, which ends every doubt about its pushes
    /// (R4).
    pub fn lose_link(&self, lane: &Arc<Lane>, why: &str) {
        if let Some(lifeline) = &lane.lifeline {
            lifeline.close();
        }
        let is_this = |link: &LinkState| matches!(link, LinkState::Open(open) if Arc::ptr_eq(open, lane));
        let lost = self.change_links(|_, link| {
            let lost = is_this(link);
            if lost {
                *link = LinkState::Failed(why.into());
            }
            lost
        });
        if lost {
            tracing::warn!(server = lane.server.tag(), why, detail = lane.link.detail(), "a link is lost");
            self.count(NodeCounter::LinkLosses, 1);
            self.unprotected();
            if let Some(alarm) = self.alarm.get() {
                alarm();
            }
        }
    }

    /// What is to be looked at again and again: links that broke while nobody used them; and the end of this
    /// incarnation, which one sealed lease proves (R2: a server seals by the view only).
    pub fn watch_links(&self) {
        let plan = self.plan().clone();
        for (_, link) in plan.links() {
            let LinkState::Open(lane) = link else { continue };
            if lane.link.is_sealed() {
                self.cache.poison();
            } else if lane.link.is_broken() {
                self.lose_link(lane, "the connection has failed");
            } else if lane.lifeline.as_ref().is_some_and(|lifeline| lifeline.has_ended()) {
                self.lose_link(lane, "the server has closed it");
            }
        }
    }

    fn try_open(&self, server: &ServerEntry, steward: bool) -> Result<Option<Arc<Lane>>> {
        if !steward && !self.has_book(server.incarnation) {
            return Ok(None);
        }
        let OpenedLink { link, lease, number, lifeline } =
            self.servers.open_link(server, &self.cache.region())?;
        let book = match self.active_book(server.incarnation) {
            Some(book) => book,
            None if steward => {
                self.cache.activate_book(&server.name, server.incarnation, lease, link.geometry())?
            }
            None => return Ok(None),
        };
        let way = self.way_of(&server.name, link.kind());
        Ok(Some(Arc::new(Lane { server: server.incarnation, book, link, number, lifeline, way })))
    }

    /// The number under which pushes to a server by a transport are timed: by the order of the configuration.
    fn way_of(&self, server: &str, transport: TransportKind) -> u32 {
        let servers = &self.config.servers;
        let index = servers.iter().position(|it| it.name == server).unwrap_or(servers.len());
        index as u32 * WAYS_PER_SERVER + u32::from(transport == TransportKind::Verbs)
    }

    /// Whether the steward has made the book of a server's lease.
    pub fn has_book(&self, server: Incarnation) -> bool {
        self.active_book(server).is_some()
    }

    fn active_book(&self, server: Incarnation) -> Option<BookIndex> {
        self.cache.book_of(server).filter(|book| book.state == BookState::Active).map(|book| book.index)
    }

    fn replace_link(&self, server: Incarnation, state: LinkState) {
        self.change_links(|entry, link| {
            if entry.incarnation == server {
                *link = state.clone();
            }
            entry.incarnation == server
        });
    }

    /// Changes links of the plan; `change` says whether it did. Returns whether any was changed.
    fn change_links(&self, mut change: impl FnMut(&ServerEntry, &mut LinkState) -> bool) -> bool {
        let _replacing = self.lock_replacing();
        let old = self.plan.load_full();
        let mut links = old.links.clone();
        let changed = old
            .view
            .servers
            .iter()
            .zip(&mut links)
            .fold(false, |changed, (entry, link)| change(entry, link) | changed);
        if changed {
            let (view, sequence, newest) = (old.view.clone(), old.sequence, old.newest);
            self.plan.store(Arc::new(Plan { view, sequence, links, newest }));
            self.replaced.notify_all();
        }
        changed
    }

    /// Waits until `ready` accepts the plan. Returns whether it did before the deadline.
    pub fn wait_plan(&self, deadline: Instant, ready: impl Fn(&Plan) -> bool) -> bool {
        loop {
            if ready(&self.plan()) {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.cache.is_poisoned() {
                return false;
            }
            // The view's word changes without a wake-up in this process, so the sleep is short.
            let sleep = left.min(Duration::from_millis(2));
            self.clock.wait(&self.replaced, self.lock_replacing(), sleep);
        }
    }

    fn lock_replacing(&self) -> MutexGuard<'_, ()> {
        self.replacing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether acks may be reported now (R8).
    pub fn has_mandate(&self) -> bool {
        !holds(Rule::R8Mandate) || self.clock.monotonic_ns() < self.cache.mandate_until_ns()
    }

    /// Bounds of archives.
    pub fn archive_limits(&self) -> ArchiveLimits {
        ArchiveLimits { archive_bytes_max: self.config.session.archive_bytes_max, ..ArchiveLimits::default() }
    }

    /// When a session that is used now expires, Unix ms.
    pub fn next_expiry_ms(&self, absolute_ms: u64) -> u64 {
        (self.clock.unix_ms() + self.config.session.idle_s * 1000).min(absolute_ms)
    }

    /// By how much the expiry must move before it is pushed, ms (R13).
    pub fn touch_step_ms(&self) -> u64 {
        (self.config.session.idle_s as f64 * 1000.0 * self.config.session.touch_share) as u64
    }

    /// The time until which a request that begins now may wait.
    pub fn deadline(&self) -> Instant {
        Instant::now() + Duration::from_millis(self.config.session.wait_ms)
    }

    /// Adds to a counter.
    #[inline]
    pub fn count(&self, counter: NodeCounter, by: u64) {
        self.cache.count(counter, by);
    }

    /// Counts an error that a caller of this node is given.
    #[cold]
    pub fn count_error(&self, error: &Error) {
        self.cache.count_error(error.kind);
    }

    /// Takes in how long something took that began at `since_ns` of the monotonic clock.
    pub fn observe_since(&self, time: NodeTime, since_ns: u64) {
        self.cache.observe(time, self.clock.monotonic_ns().saturating_sub(since_ns));
    }

    /// The time on the monotonic clock if the next commit is one of those that are timed.
    #[inline]
    pub fn sample_commit(&self) -> Option<u64> {
        let due = self.cache.counted_here(NodeCounter::Commits).is_multiple_of(SAMPLE);
        due.then(|| self.clock.monotonic_ns())
    }

    /// A session was left with fewer copies than it could have: the steward sweeps.
    #[cold]
    pub fn unprotected(&self) {
        self.count(NodeCounter::Unprotected, 1);
        self.cache.raise_unprotected();
    }

    /// The error of an incarnation that is over.
    pub fn ownership_lost(&self) -> Error {
        let context = format!("incarnation {:x} of node {} is over", self.incarnation().0, self.name);
        Error::new(ErrorKind::OwnershipLost, Origin::Node, context)
    }

    /// Fails if the incarnation is over (R3).
    pub fn check(&self) -> Result<()> {
        if holds(Rule::R3Incarnation) && self.cache.is_poisoned() {
            return Err(self.ownership_lost());
        }
        Ok(())
    }
}
