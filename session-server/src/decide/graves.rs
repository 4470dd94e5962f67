//! Destroyed sessions whose lease may not be sealed here yet (R9).
//!
//! A node says `Destroyed` after its own tombstones are acked. Sealed sets take it at once. A lease that
//! another incarnation still holds open here cannot be looked into, so the version is kept until every lease
//! that was open then (but the sender's own, which has the tombstone) is sealed, and is applied to each as it
//! is sealed.
//!
//! The number of graves is bounded, the oldest go first. That loses nothing while R1 and R2 hold: a session
//! changes its owner only after all leases of the old one are sealed everywhere, so a grave is a second line
//! of defence.

use selvage_fabric::ident::{Incarnation, SessionId, Version};
use std::collections::{HashMap, VecDeque};

#[derive(Debug, Clone, Copy)]
struct Grave {
    version: Version,
    /// Leases with lower numbers were there when the session was destroyed.
    below: u64,
    /// Who said it.
    sender: Incarnation,
}

/// The destroyed sessions.
#[derive(Debug)]
pub(super) struct Graves {
    graves: HashMap<SessionId, Grave>,
    order: VecDeque<SessionId>,
    most: usize,
}

impl Graves {
    /// None yet; at most `most`.
    pub(super) fn new(most: usize) -> Self {
        Self { graves: HashMap::new(), order: VecDeque::new(), most }
    }

    /// Keeps the tombstone's version for the open leases with numbers lower than `below`.
    pub(super) fn dig(&mut self, id: SessionId, version: Version, below: u64, sender: Incarnation) {
        if let Some(grave) = self.graves.get_mut(&id) {
            if grave.version <= version {
                *grave = Grave { version, below, sender };
            }
            return;
        }
        if self.graves.len() >= self.most
            && let Some(oldest) = self.order.pop_front()
        {
            self.graves.remove(&oldest);
        }
        self.graves.insert(id, Grave { version, below, sender });
        self.order.push_back(id);
    }

    /// The version of the tombstone of a session.
    pub(super) fn version(&self, id: &SessionId) -> Option<Version> {
        Some(self.graves.get(id)?.version)
    }

    /// All, oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = (SessionId, Version)> {
        self.order.iter().filter_map(|id| Some((*id, self.graves.get(id)?.version)))
    }

    /// Forgets those that no open lease can contradict any more. `open`: numbers and holders of the open
    /// leases.
    pub(super) fn prune(&mut self, open: &[(u64, Incarnation)]) {
        self.graves.retain(|_, grave| {
            open.iter().any(|(number, holder)| *number < grave.below && *holder != grave.sender)
        });
        let graves = &self.graves;
        self.order.retain(|id| graves.contains_key(id));
    }
}
