//! The node library: what a web server's processes call. Attach, create, open, read, change, commit, destroy,
//! regenerate.
//!
//! [`Node`] is one process's attachment to its node. It can be cloned and used from any thread. The processes
//! of a node share the cache segment; one of them is steward (see [`steward`]).
//!
//! Every call that can wait has a form that ends in `_start`: it either ends at once ([`Started::Now`]) or
//! goes on in the background, and its [`Completion`] is fetched with [`Node::next_completion`] when
//! [`Node::completion_fd`] is readable.
//!
//! Invariant: a handle works only on its own incarnation and in its own process (R3); after the end of an
//! incarnation the process joins the next one by itself, and old handles answer `OwnershipLost`.

mod adopt;
mod agent;
mod attachment;
mod attend;
mod claims;
mod clock;
mod commit;
mod cookie;
mod destroy;
mod errand;
mod fetch;
mod finisher;
mod host;
#[cfg(feature = "sim")]
pub mod inside;
mod jobs;
mod join;
mod lifeline;
mod links;
mod open;
mod opener;
mod operations;
mod owners;
mod process_mark;
mod push;
mod regenerate;
mod report;
mod servers;
mod session;
pub mod steward;
mod sweep;
mod unlocked;
mod volley;
mod ways;
mod work;

pub use session::{Ack, Committed, Session, Short};

use crate::config::Config;
use crate::error::{Error, ErrorKind, Origin, Result};
use crate::ident::{Cookie, Incarnation};
use attachment::{Attachment, Handle};
use open::Found;
use operations::{Begun, Ended};
use std::fmt;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How to attach.
#[derive(Clone, Copy, Debug, Default)]
pub struct AttachOptions {
    /// How long to wait until the node is part of the cluster. Zero: return at once; the process joins in the
    /// background, and calls wait for that, each within its own bound.
    pub wait: Duration,
}

/// What a session is opened for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenMode {
    /// Reading and changing: the session's lock is held until the handle is closed. Waits for its turn.
    Exclusive,
    /// Reading: the handle keeps the version that was current when it was opened. Never waits for a lock.
    ReadOnly,
    /// Reading and changing without the lock: the handle keeps the version that was current when it was
    /// opened, and a commit takes the lock for itself and applies what was changed (set, removed, added, the
    /// owner) to the version that is current then. Opening never waits for a lock; committing, destroying and
    /// regenerating do.
    Unlocked,
}

/// What an open found.
#[derive(Debug)]
pub enum Opened {
    /// The session, hosted here.
    Session(Session),
    /// There is no such session (any more).
    Missing,
    /// That live node incarnation hosts it: the request belongs there.
    Elsewhere(Incarnation),
}

/// Names an operation that is under way. Never 0.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct OpId(pub u64);

/// How an operation ended.
#[derive(Debug)]
pub enum Outcome {
    /// Of [`Node::open_start`] and [`Node::create_start`].
    Opened(Result<Opened>),
    /// Of [`Session::commit_start`]; the session comes back.
    Committed(Session, Result<Committed>),
    /// Of [`Session::destroy_start`].
    Destroyed(Result<()>),
    /// Of [`Node::destroy_owner_start`]: how many sessions were destroyed.
    OwnerDestroyed(Result<u64>),
    /// Of [`Session::regenerate_start`]; the session comes back, under its new id if that went well.
    Regenerated(Session, Result<()>),
}

/// What became of an operation that was begun.
#[allow(clippy::large_enum_variant, reason = "boxing would allocate for every request that need not wait")]
#[derive(Debug)]
pub enum Started {
    /// It has ended; there will be no completion.
    Now(Outcome),
    /// It is under way; there will be exactly one completion, unless it is cancelled.
    Pending(OpId),
}

/// The end of an operation that was pending.
#[derive(Debug)]
pub struct Completion {
    /// Which operation.
    pub op: OpId,
    /// What the caller gave when it began the operation.
    pub user_data: u64,
    /// How it ended.
    pub outcome: Outcome,
}

/// One process's attachment to its node. Clones are the same attachment; dropping the last one detaches.
#[derive(Clone)]
pub struct Node {
    handle: Arc<Handle>,
}

impl Node {
    /// Attaches this process to the node `node_name` of the configuration at `config_path`. `None` stands for
    /// `SELVAGE_CONFIG`, or else the default path, and for `SELVAGE_NODE`, or else the only node of the
    /// configuration. Attaching again in one process gives the same attachment. After `fork` the child
    /// attaches anew.
    ///
    /// # Errors
    /// `Invalid` for the configuration; `Os` if the node's folder or lock file cannot be used; `Timeout`,
    /// with what kept it from joining, if `options.wait` has passed.
    pub fn attach(
        config_path: Option<&Path>,
        node_name: Option<&str>,
        options: AttachOptions,
    ) -> Result<Self> {
        Ok(Self { handle: attachment::attach(config_path, node_name, options)? })
    }

    /// Detaches: waits (bounded) until operations under way have ended, and leaves. The last process out
    /// removes the segment. The same as dropping the last clone, but says if that was not the last.
    ///
    /// # Errors
    /// `Conflict` if clones or sessions are still in use; `Forked`.
    pub fn detach(self) -> Result<()> {
        self.check_process()?;
        match Arc::try_unwrap(self.handle) {
            Ok(handle) => {
                drop(handle);
                Ok(())
            }
            Err(_) => {
                let context = "the node is still in use by sessions or other handles of this process";
                Err(Error::new(ErrorKind::Conflict, Origin::Node, context))
            }
        }
    }

    /// The node's configured name.
    pub fn name(&self) -> &str {
        &self.attachment().name
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.attachment().config
    }

    /// The incarnation that this process belongs to now; `None` while it joins.
    pub fn incarnation(&self) -> Option<Incarnation> {
        self.attachment().host().map(|host| host.incarnation())
    }

    /// Opens the session that a valid cookie names: from the cache, or from the session servers if its host
    /// is over. Waits for the lock, a fetch or the join, at most `session.wait_ms`.
    ///
    /// # Errors
    /// `Busy` if too many wait for this session; `Timeout`; `NotYet` if the servers could not all answer in
    /// time; `Full`; `Corrupt` if the only copies fail their checks; `Forked`.
    pub fn open(&self, cookie: &Cookie, mode: OpenMode) -> Result<Opened> {
        let deadline = self.deadline();
        let host = self.wait_host(deadline)?;
        let found = open::blocking(&host, cookie, mode, deadline);
        Ok(self.opened(found.inspect_err(|error| host.count_error(error))?))
    }

    /// As [`Node::open`], without waiting.
    ///
    /// # Errors
    /// `Forked`; everything else is in the outcome.
    pub fn open_start(&self, cookie: &Cookie, mode: OpenMode, user_data: u64) -> Result<Started> {
        self.check_process()?;
        let attachment = self.attachment();
        Ok(self.started(attachment.operations.open(attachment, cookie, mode, user_data)))
    }

    /// A new session with a new id, hosted here, locked, and not yet committed: nobody else sees it before
    /// its first commit, and closing it uncommitted leaves nothing.
    ///
    /// # Errors
    /// `TooLarge` for the owner; `Full`; `Timeout` while joining; `Forked`.
    pub fn create(&self, owner: Option<&str>) -> Result<Session> {
        let host = self.wait_host(self.deadline())?;
        let created = open::create(&host, owner).inspect_err(|error| host.count_error(error))?;
        Ok(Session::new(self.clone(), created))
    }

    /// As [`Node::create`], without waiting.
    ///
    /// # Errors
    /// `Forked`; everything else is in the outcome.
    pub fn create_start(&self, owner: Option<&str>, user_data: u64) -> Result<Started> {
        self.check_process()?;
        let attachment = self.attachment();
        Ok(self.started(attachment.operations.create(attachment, owner, user_data)))
    }

    /// Destroys every session of an owner at all nodes ("log me out everywhere"): each that had this owner by
    /// a commit that returned before this call. Returns how many were destroyed, as far as nodes could tell;
    /// after that none of them comes back, whatever dies. Waits for the locks of these sessions, at most
    /// `session.wait_ms`, so the caller must not have one of them open for changes: destroy or close it
    /// first.
    ///
    /// # Errors
    /// `Invalid` and `TooLarge` for the owner; `NotYet`, with what is not certain: some sessions may be left,
    /// ask again; `Unreachable` or `Timeout` without a director; `Forked`.
    pub fn destroy_owner(&self, owner: &str) -> Result<u64> {
        self.check_process()?;
        owners::destroy_owner(self.attachment(), owner, self.deadline())
    }

    /// As [`Node::destroy_owner`], without waiting.
    ///
    /// # Errors
    /// `Forked`; everything else is in the outcome.
    pub fn destroy_owner_start(&self, owner: &str, user_data: u64) -> Result<Started> {
        self.check_process()?;
        let attachment = self.attachment();
        Ok(self.started(owners::begin(attachment, owner, self.deadline(), user_data)))
    }

    /// A descriptor that is readable while completions wait: an eventfd of this process; do not read or close
    /// it.
    ///
    /// # Errors
    /// `Forked`.
    pub fn completion_fd(&self) -> Result<BorrowedFd<'_>> {
        self.check_process()?;
        Ok(self.attachment().operations.fd())
    }

    /// The next completion, if any. Never waits. After `None` the descriptor is not readable until another
    /// one comes.
    pub fn next_completion(&self) -> Option<Completion> {
        if self.check_process().is_err() {
            return None;
        }
        let (op, user_data, ended) = self.attachment().operations.next_completion()?;
        Some(Completion { op, user_data, outcome: self.outcome(ended) })
    }

    /// Gives an operation up: there will be no completion for it. Returns false if it has ended already (its
    /// completion is waiting or was fetched). What it has begun at the servers may still happen; a session
    /// that it held is closed.
    pub fn cancel(&self, op: OpId) -> bool {
        self.check_process().is_ok() && self.attachment().operations.cancel(op)
    }

    /// The valid session cookie in the value of a `Cookie` header, if any; the first one that a key has
    /// signed.
    pub fn decode_cookie_header(&self, header: &str) -> Option<Cookie> {
        cookie::decode_header(header, self.config())
    }

    /// The value of the `Set-Cookie` header for a session.
    pub fn set_cookie(&self, session: &Session) -> String {
        cookie::set(&session.cookie(), self.config())
    }

    /// The value of the `Set-Cookie` header that removes the cookie.
    pub fn clear_cookie(&self) -> String {
        cookie::clear(self.config())
    }

    fn attachment(&self) -> &Arc<Attachment> {
        &self.handle.attachment
    }

    fn check_process(&self) -> Result<()> {
        self.attachment().check_process()
    }

    fn deadline(&self) -> Instant {
        Instant::now() + Duration::from_millis(self.config().session.wait_ms)
    }

    fn wait_host(&self, deadline: Instant) -> Result<Arc<host::Host>> {
        self.check_process()?;
        self.attachment().wait_host(deadline)
    }

    fn opened(&self, found: Found) -> Opened {
        match found {
            Found::Session(open) => Opened::Session(Session::new(self.clone(), open)),
            Found::Missing => Opened::Missing,
            Found::Elsewhere(node) => Opened::Elsewhere(node),
        }
    }

    fn outcome(&self, ended: Ended) -> Outcome {
        if let Some(error) = ended.error()
            && let Some(host) = self.attachment().host()
        {
            host.count_error(error);
        }
        let session = |open| Session::new(self.clone(), open);
        match ended {
            Ended::Opened(found) => Outcome::Opened(found.map(|found| self.opened(found))),
            Ended::Committed(open, committed) => Outcome::Committed(session(open), committed),
            Ended::Destroyed(destroyed) => Outcome::Destroyed(destroyed),
            Ended::OwnerDestroyed(destroyed) => Outcome::OwnerDestroyed(destroyed),
            Ended::Regenerated(open, regenerated) => Outcome::Regenerated(session(open), regenerated),
        }
    }

    fn started(&self, begun: Begun) -> Started {
        match begun {
            Begun::Now(ended) => Started::Now(self.outcome(ended)),
            Begun::Pending(op) => Started::Pending(op),
        }
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("name", &self.name()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
