//! The reference history: what was committed, where it was acked, what was told to whom, and the checks of
//! the guarantees (DESIGN.md section 3) against it.
//!
//! Every commit writes a value of its own, so a value that is read tells which commit it is from. Commits of
//! a session are ordered by their beginning, which its lock makes one order. A commit is *supported* as long
//! as something must still have it: a life that made or adopted it, while the view has that as up; or a lease
//! of an up server where it was acked, until that lease is released or a later ack there says "moved". A read
//! that began after a supported commit ended, or was seen, must not find an earlier one (guarantees 1, 2 and
//! 4, and, since reads and writes go through the director, that sessions are linearizable).

use crate::request::short;
use crate::schedule::{self, Time};
use crate::world::world;
use selvage_fabric::archive::{OwnedArchive, ValueRef};
use selvage_fabric::ident::{Epoch, Incarnation, SessionId, Version};
use selvage_fabric::lease::{Cell, CellState};
use selvage_fabric::transport::Push;
use selvage_fabric::view::View;
use std::collections::{BTreeMap, BTreeSet};

/// A value that only one commit writes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Value(pub u64);

/// A lease: server's life, node's life.
type LeaseId = (Incarnation, Incarnation);

#[derive(Default)]
struct Session {
    commits: Vec<Commit>,
    /// Versions that were posted, and their values.
    versions: BTreeMap<Version, Value>,
    support: BTreeMap<Value, BTreeSet<LeaseId>>,
    /// Where a value was ever acked, also where it is no more.
    acks: BTreeMap<Value, BTreeSet<LeaseId>>,
    /// Which nodes' lives have had a value in their cache: those that have pushed it.
    cached: BTreeMap<Value, BTreeSet<Incarnation>>,
    /// Somebody tries to end it: it may be gone.
    ending: bool,
    gone: Option<Time>,
    /// What can still be read of it for a moment, because it has another id.
    grace: Option<Value>,
    /// The last expiry that a browser was told, Unix ms.
    expiry_ms: u64,
    /// The expiry in the last acked cell of each lease.
    pushed_ms: BTreeMap<LeaseId, u64>,
}

struct Commit {
    value: Value,
    /// How many changes the session has seen with this one: each adds one to what was there when it had the
    /// lock.
    sum: i64,
    host: Incarnation,
    /// When it ended well at its host.
    done: Option<Time>,
}

/// All sessions.
#[derive(Default)]
pub struct History {
    sessions: BTreeMap<SessionId, Session>,
    nodes: BTreeSet<Incarnation>,
    servers: BTreeSet<Incarnation>,
    /// Incarnations of nodes that a view has ended.
    ended: BTreeSet<Incarnation>,
    /// The newest view of every life of a node or server.
    epochs: BTreeMap<Incarnation, Epoch>,
    pub checks: u64,
    pub acks: u64,
    pub commits: u64,
    failures: Vec<(&'static str, String)>,
}

/// What goes beside a value into the session, so that a mix shows: its length and bytes follow from it.
pub fn blob(value: Value, (from, to): (u64, u64)) -> Vec<u8> {
    let length = from + (value.0.wrapping_mul(2_654_435_761) >> 7) % (to - from + 1);
    (0..length).map(|at| (value.0 as u8).wrapping_add((at as u8).wrapping_mul(31))).collect()
}

/// A push is about to be posted by this life of a node: which value does its version have?
pub fn posted(push: &Push<'_>, node: Incarnation) {
    let Some((_, bytes)) = push.block else { return };
    let Ok(archive) = OwnedArchive::copy_of(bytes, &crate::world::archive_limits()) else {
        return world(|world| world.fail("whole versions", "a node posts an archive that is none"));
    };
    if let Some(ValueRef::I64(value)) = archive.session().get("n") {
        let (id, version) = (archive.session().id(), archive.session().version());
        world(|world| {
            let session = world.history.sessions.entry(id).or_default();
            session.versions.insert(version, Value(value as u64));
            session.cached.entry(Value(value as u64)).or_default().insert(node);
        });
    }
}

impl Session {
    /// Whether it may be gone.
    fn is_excused(&self, latest_ms: u64) -> bool {
        // A touch that reached no server is no promise.
        let pushed_ms = self.pushed_ms.values().copied().max().unwrap_or(u64::MAX);
        self.ending || self.gone.is_some() || self.expiry_ms.min(pushed_ms) <= latest_ms
    }
}

impl History {
    fn fail(&mut self, check: &'static str, what: String) {
        self.failures.push((check, what));
    }

    /// What was found wrong since the last look.
    pub fn take_failures(&mut self) -> Vec<(&'static str, String)> {
        std::mem::take(&mut self.failures)
    }

    /// A view was published.
    pub fn viewed(&mut self, view: &View) {
        self.nodes = view.nodes.iter().map(|node| node.incarnation).collect();
        self.servers = view.servers.iter().map(|server| server.incarnation).collect();
        self.ended.extend(view.dead.iter().map(|dead| dead.incarnation));
        if let Some(node) = view.nodes.iter().find(|node| self.ended.contains(&node.incarnation)) {
            let what = format!("{:x} is up in view {}, and was ended before", node.incarnation.0, view.epoch);
            self.fail("one owner", what);
        }
    }

    /// A node or server has carried a view out (R12).
    pub fn has_view(&mut self, life: Incarnation, epoch: Epoch) {
        let last = self.epochs.entry(life).or_insert(epoch);
        let (before, falls) = (*last, epoch.number < last.number || epoch.term < last.term);
        *last = epoch;
        if falls {
            self.fail("epochs rise", format!("the view of {:x} falls from {before} to {epoch}", life.0));
        }
    }

    /// A commit begins.
    pub fn began(&mut self, id: SessionId, sum: i64, value: Value, host: Incarnation) {
        self.commits += 1;
        self.sessions.entry(id).or_default().commits.push(Commit { value, sum, host, done: None });
    }

    /// The sum that belongs to a value.
    pub fn sum(&self, id: SessionId, value: Option<Value>) -> i64 {
        let commits = self.sessions.get(&id).map_or(&[][..], |session| &session.commits);
        commits.iter().find(|commit| Some(commit.value) == value).map_or(0, |commit| commit.sum)
    }

    /// Somebody finds this value and this sum: no change may be missing, and none may count twice.
    pub fn counted(&mut self, id: SessionId, value: Value, sum: i64) {
        self.checks += 1;
        let expected = self.sum(id, Some(value));
        if sum != expected {
            let what = format!("session {} with value {} has sum {sum}, not {expected}", short(id), value.0);
            self.fail("no update is lost", what);
        }
    }

    /// It ended well.
    pub fn committed(&mut self, id: SessionId, value: Value, version: Version) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.versions.insert(version, value);
        if let Some(commit) = session.commits.iter_mut().find(|commit| commit.value == value) {
            commit.done = Some(schedule::now());
        }
    }

    /// The node tells so many copies.
    pub fn reported(&mut self, id: SessionId, value: Value, copies: u32, host: Incarnation) {
        self.checks += 1;
        let Some(session) = self.sessions.get(&id) else { return };
        // A server that acked may have left since: its node hears of that a little later.
        let acked = session.acks.get(&value);
        let servers: BTreeSet<Incarnation> = acked
            .into_iter()
            .flatten()
            .filter(|(_, node)| *node == host)
            .map(|(server, _)| *server)
            .collect();
        if (servers.len() as u32) < copies {
            let what = format!(
                "session {} tells {copies} copies of value {}, servers have acked {}",
                short(id),
                value.0,
                servers.len()
            );
            return self.fail("acks are true", what);
        }
        // Its mandate was over before it was ended (R8), and it serves nothing after that.
        if copies > 0 && self.ended.contains(&host) {
            let what = format!("{:x} was ended and tells {copies} copies of session {}", host.0, short(id));
            self.fail("acks are true", what);
        }
    }

    /// A server's memory has this cell, and the node was told.
    pub fn acked(&mut self, cell: &Cell, lease: LeaseId) {
        self.acks += 1;
        let Some(session) = self.sessions.get_mut(&cell.id) else { return };
        match cell.state {
            CellState::Live => {
                session.pushed_ms.insert(lease, cell.expiry_ms);
                if let Some((_, value)) = session.versions.range(..=cell.version).next_back() {
                    session.support.entry(*value).or_default().insert(lease);
                    session.acks.entry(*value).or_default().insert(lease);
                }
            }
            // Without a version it only closes a slot of the quarantine.
            CellState::Moved if cell.version == Version::default() => {}
            CellState::Moved => {
                for leases in session.support.values_mut() {
                    leases.remove(&lease);
                }
            }
            CellState::Tombstone => session.ending = true,
        }
    }

    /// A lease is released by a view: nothing that only it has may be needed any more (R10). Sessions whose
    /// time may be over by `latest_ms` are nobody's loss.
    pub fn released(&mut self, lease: LeaseId, latest_ms: u64) {
        let (server, node) = lease;
        if self.servers.contains(&server) && !self.nodes.contains(&node) {
            self.checks += 1;
            if let Some(what) = self.sessions.iter().find_map(|(id, session)| {
                let (value, _) = session.support.iter().find(|(_, leases)| leases.contains(&lease))?;
                let lost = !session.is_excused(latest_ms) && !self.is_kept(session, *value, node);
                lost.then(|| {
                    format!(
                        "the lease of {:x} at {:x} is released, and nobody else has session {} with value \
                         {}: {:x?}",
                        node.0,
                        server.0,
                        short(*id),
                        value.0,
                        session.support
                    )
                })
            }) {
                self.fail("released when settled", what);
            }
        }
        self.dropped(lease);
    }

    /// A lease is gone.
    pub fn dropped(&mut self, lease: LeaseId) {
        for session in self.sessions.values_mut() {
            for leases in session.support.values_mut() {
                leases.remove(&lease);
            }
        }
    }

    /// Somebody has begun to end a session.
    pub fn ending(&mut self, id: SessionId) {
        self.sessions.entry(id).or_default().ending = true;
    }

    /// A session is about to get another id, and can be read under this one for a moment.
    pub fn graced(&mut self, id: SessionId, value: Value) {
        self.sessions.entry(id).or_default().grace = Some(value);
    }

    /// A browser was told that it is gone.
    pub fn gone(&mut self, id: SessionId) {
        let session = self.sessions.entry(id).or_default();
        session.gone = session.gone.or(Some(schedule::now()));
    }

    /// A browser was told of a session's expiry.
    pub fn expires(&mut self, id: SessionId, expiry_ms: u64) {
        self.sessions.entry(id).or_default().expiry_ms = expiry_ms;
    }

    /// A node tells that a session has so many copies and expires then: its copies must know that (R13).
    pub fn touched(&mut self, id: SessionId, copies: u32, expiry_ms: u64) {
        self.checks += 1;
        let Some(session) = self.sessions.get(&id) else { return };
        let known = session.pushed_ms.iter().filter(|(_, pushed_ms)| **pushed_ms >= expiry_ms);
        let servers: BTreeSet<Incarnation> = known.map(|((server, _), _)| *server).collect();
        if (servers.len() as u32) < copies {
            let what = format!(
                "session {} tells {copies} copies and expiry {expiry_ms}, the copies have {:?}",
                short(id),
                session.pushed_ms
            );
            self.fail("touches are pushed", what);
        }
    }

    /// Whether a session was told gone.
    pub fn is_gone(&self, id: SessionId) -> bool {
        self.sessions.get(&id).is_some_and(|session| session.gone.is_some())
    }

    /// Whether somebody else than a dead node has this value or a later one.
    fn is_kept(&self, session: &Session, value: Value, dead: Incarnation) -> bool {
        let Some(at) = session.commits.iter().position(|commit| commit.value == value) else { return true };
        session.commits[at..].iter().any(|commit| {
            let mut leases = session.support.get(&commit.value).into_iter().flatten();
            leases.any(|(server, node)| *node != dead && self.servers.contains(server))
                || self.is_cached(session, commit)
        })
    }

    /// Whether a living node has it in its cache: its own, or one that it adopted.
    fn is_cached(&self, session: &Session, commit: &Commit) -> bool {
        let mut lives = session.cached.get(&commit.value).into_iter().flatten();
        (commit.done.is_some() && self.nodes.contains(&commit.host))
            || lives.any(|life| self.nodes.contains(life))
    }

    fn is_supported(&self, session: &Session, commit: &Commit) -> bool {
        let leases = session.support.get(&commit.value).into_iter().flatten();
        let mut servers = leases.map(|(server, _)| server);
        servers.any(|server| self.servers.contains(server)) || self.is_cached(session, commit)
    }

    /// A browser was answered that a session has this value, in a request that began then.
    pub fn observed(&mut self, id: SessionId, value: Value, began: Time) {
        self.checks += 1;
        let Some(session) = self.sessions.get(&id) else { return };
        if session.gone.is_some_and(|gone| gone <= began) && session.grace != Some(value) {
            let what = format!("session {} came back with value {}", short(id), value.0);
            return self.fail("gone is gone", what);
        }
        let Some(at) = session.commits.iter().position(|commit| commit.value == value) else {
            let what = format!("session {} has value {}, which nobody wrote", short(id), value.0);
            return self.fail("whole versions", what);
        };
        let newer = session.commits[at + 1..].iter().rev();
        let mut lost = newer.filter(|commit| commit.done.is_some_and(|done| done <= began));
        if let Some(lost) = lost.find(|commit| self.is_supported(session, commit)) {
            let what = format!(
                "session {} has value {}, but value {} was committed before the request began and must still \
                 be there: leases {:x?}, host {:x}",
                short(id),
                value.0,
                lost.value.0,
                session.support.get(&lost.value),
                lost.host.0
            );
            return self.fail("acked is kept", what);
        }
        // What one has seen the next one sees, too, also of a commit that has not ended.
        let commit = self.sessions.get_mut(&id).and_then(|session| session.commits.get_mut(at));
        if let Some(commit) = commit {
            commit.done.get_or_insert(schedule::now());
        }
    }

    /// A browser was answered that there is no such session.
    pub fn missed(&mut self, id: SessionId, began: Time, latest_ms: u64) {
        self.checks += 1;
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let excused = session.is_excused(latest_ms);
        session.gone = session.gone.or(Some(schedule::now()));
        let session = &self.sessions[&id];
        let mut commits =
            session.commits.iter().filter(|commit| commit.done.is_some_and(|done| done <= began));
        if let Some(lost) = commits.find(|commit| !excused && self.is_supported(session, commit)) {
            let what = format!(
                "session {} is told missing, but value {} must still be there: leases {:x?}, host {:x}",
                short(id),
                lost.value.0,
                session.support.get(&lost.value),
                lost.host.0
            );
            self.fail("acked is kept", what);
        }
    }
}
