//! [`Session`]: a handle to one open session.
//!
//! Unsafe code: a handle must go away without its destructor in a forked child, and come apart in its own
//! process.

use super::open::OpenSession;
use super::work::Work;
use super::{Node, Started};
use crate::archive::{Value, ValueRef};
use crate::error::Result;
use crate::ident::{Cookie, SessionId, Version};
use std::fmt;
use std::mem::ManuallyDrop;

/// What a commit waits for. Whatever is asked, pushes over RDMA that have begun are waited for, since a
/// session can have only one under way per server.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Ack {
    /// Every server of the placement that is up.
    #[default]
    All,
    /// One of them.
    One,
    /// Nothing: copies are made as far as that needs no waiting, and later in the background.
    None,
}

/// Why a commit reached fewer copies than configured. The session is whole in the cache, and copies follow by
/// themselves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Short {
    /// The node has no valid mandate: no director was reached lately (R8). No copy is reported.
    NoMandate,
    /// Fewer servers are up or reachable.
    Servers,
    /// A lease has no room for this session.
    LeaseFull,
    /// Not waited for, by the caller's wish.
    NotAwaited,
}

/// What a commit reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Committed {
    /// The session's version now.
    pub version: Version,
    /// Distinct servers that have acked it.
    pub copies: u32,
    /// Why these are fewer than configured, if they are.
    pub short: Option<Short>,
}

/// An open session. Exclusive handles hold its lock until they are closed (dropped); read-only ones keep the
/// version that they opened. Changes are seen only through this handle until they are committed; closing
/// forgets them. It can move between threads; it cannot be used in a forked child.
pub struct Session {
    /// Dropped before `node`, which keeps the process in its segment; not at all in a forked child, where the
    /// lock and the place in the segment are the parent's.
    open: ManuallyDrop<OpenSession>,
    node: Node,
}

impl Session {
    pub(super) fn new(node: Node, open: OpenSession) -> Self {
        Self { open: ManuallyDrop::new(open), node }
    }

    /// Its id.
    pub fn id(&self) -> SessionId {
        self.open.facts.id
    }

    /// The version that this handle sees; changes to come are not counted.
    pub fn version(&self) -> Version {
        self.open.facts.version
    }

    /// Distinct up servers that have acked the version.
    pub fn copies(&self) -> u32 {
        self.open.facts.copies
    }

    /// The user it belongs to.
    pub fn owner(&self) -> Option<&str> {
        self.open.owner()
    }

    /// When it was created, Unix ms.
    pub fn created_ms(&self) -> u64 {
        self.open.facts.created_ms
    }

    /// When it expires unless it is used, Unix ms.
    pub fn expiry_ms(&self) -> u64 {
        self.open.facts.expiry_ms
    }

    /// Opened read-only.
    pub fn is_read_only(&self) -> bool {
        self.open.is_read_only()
    }

    /// The browser must be given a cookie: the session is new, was adopted, or has a new id.
    pub fn needs_cookie(&self) -> bool {
        self.open.needs_cookie
    }

    /// The cookie that names it on this host.
    pub fn cookie(&self) -> Cookie {
        Cookie { id: self.id(), host: self.open.host.incarnation() }
    }

    /// An attribute, changes included. A pointer into the cache: no copy, no allocation, no system call.
    pub fn get(&self, name: &str) -> Option<ValueRef<'_>> {
        self.open.get(name)
    }

    /// All attributes, changes included, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, ValueRef<'_>)> {
        self.open.changes.over(self.open.archive())
    }

    /// Sets an attribute.
    ///
    /// # Errors
    /// `TooLarge`, with size and limit, for the name or the value; `Invalid` for an empty name or a read-only
    /// handle.
    pub fn set(&mut self, name: &str, value: Value) -> Result<()> {
        self.open.set(name, value)
    }

    /// Removes an attribute; returns whether there was one.
    ///
    /// # Errors
    /// `Invalid` for a read-only handle.
    pub fn remove(&mut self, name: &str) -> Result<bool> {
        self.open.remove(name)
    }

    /// Adds to a whole number, a missing one counting as 0, and returns the new one.
    ///
    /// # Errors
    /// `Invalid` if the attribute is something else, would overflow, or the handle is read-only; `TooLarge`
    /// for the name.
    pub fn incr(&mut self, name: &str, by: i64) -> Result<i64> {
        self.open.incr(name, by)
    }

    /// Says which user it belongs to.
    ///
    /// # Errors
    /// `TooLarge` for the name; `Invalid` for a read-only handle.
    pub fn set_owner(&mut self, owner: Option<&str>) -> Result<()> {
        self.open.set_owner(owner)
    }

    /// Makes the changes the session's new version, in the cache and in its copies. Without changes only a
    /// touch is written, if one is due. The handle stays open.
    ///
    /// # Errors
    /// `TooLarge`, `Full`: nothing was changed, and the changes are still there. `OwnershipLost`, `LockLost`,
    /// `Gone`: nobody will see the changes. `Invalid` for a read-only handle; `Forked`.
    pub fn commit(&mut self, ack: Ack) -> Result<Committed> {
        self.node.check_process()?;
        self.open.commit(ack).inspect_err(|error| self.open.host.count_error(error))
    }

    /// As [`Session::commit`], without waiting. The session comes back with the outcome.
    ///
    /// # Errors
    /// `Forked`; everything else is in the outcome.
    pub fn commit_start(self, ack: Ack, user_data: u64) -> Result<Started> {
        let (node, open) = self.into_parts()?;
        let attachment = node.attachment();
        let begun = attachment.operations.carry_out(attachment, open, Work::Commit(ack), user_data);
        Ok(node.started(begun))
    }

    /// Ends the session for ever: returns when every server that ever had a copy has its tombstone or is out
    /// of the view.
    ///
    /// # Errors
    /// `OwnershipLost`, `LockLost`; `Timeout`: it is gone here, and its tombstones follow in the background;
    /// `Invalid` for a read-only handle; `Forked`.
    pub fn destroy(self) -> Result<()> {
        let (_node, open) = self.into_parts()?;
        let host = open.host.clone();
        open.destroy().inspect_err(|error| host.count_error(error))
    }

    /// As [`Session::destroy`], without waiting.
    ///
    /// # Errors
    /// `Forked`; everything else is in the outcome.
    pub fn destroy_start(self, user_data: u64) -> Result<Started> {
        let (node, open) = self.into_parts()?;
        let attachment = node.attachment();
        let begun = attachment.operations.carry_out(attachment, open, Work::Destroy, user_data);
        Ok(node.started(begun))
    }

    /// Gives the session a new id, for a change of privilege: the copy under the new id and the tombstone of
    /// the old one are acked by every server that is up when this returns (R15). Uncommitted changes stay
    /// uncommitted and go with the new id.
    ///
    /// # Errors
    /// As [`Session::commit`]. The session then has its old id, or (`Timeout`, `OwnershipLost`, `LockLost`)
    /// already its new one, while the tombstone of the old one follows in the background:
    /// [`Session::needs_cookie`] says so, and the browser must be told.
    pub fn regenerate(&mut self) -> Result<()> {
        self.node.check_process()?;
        self.open.regenerate().inspect_err(|error| self.open.host.count_error(error))
    }

    /// As [`Session::regenerate`], without waiting. The session comes back with the outcome.
    ///
    /// # Errors
    /// `Forked`; everything else is in the outcome.
    pub fn regenerate_start(self, user_data: u64) -> Result<Started> {
        let (node, open) = self.into_parts()?;
        let attachment = node.attachment();
        let begun = attachment.operations.carry_out(attachment, open, Work::Regenerate, user_data);
        Ok(node.started(begun))
    }

    /// Takes the handle apart; in a forked child it only goes away.
    fn into_parts(self) -> Result<(Node, OpenSession)> {
        self.node.check_process()?;
        let node = self.node.clone();
        let mut this = ManuallyDrop::new(self);
        // SAFETY: `this` is not dropped and not used again, so `open` is taken exactly once.
        let open = unsafe { ManuallyDrop::take(&mut this.open) };
        // SAFETY: as above; `node` was cloned before, and this drops the one in the handle that goes away.
        unsafe { std::ptr::drop_in_place(&mut this.node) };
        Ok((node, open))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.node.check_process().is_ok() {
            // SAFETY: `open` is dropped nowhere else: `into_parts` does not let a handle come here.
            unsafe { ManuallyDrop::drop(&mut self.open) };
        }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("facts", &self.open.facts).finish_non_exhaustive()
    }
}
