//! Connections and the processes behind them: who may still write (R4).
//!
//! A process of this host that was given a lease's descriptor may write until it has ended, which its pidfd
//! tells. A process of any host that has RDMA links may write until the last of their queue pairs is
//! destroyed. Whoever has a connection may get either at any time.

use super::links::LinkNumber;
use super::{Asker, ConnectionId, Effect, Peer, Server};
use selvage_fabric::control::message::Role;
use selvage_fabric::ident::Incarnation;
use selvage_fabric::rules::{Rule, holds};

/// A process of a node. Process ids are the host's own for its peers, and names that the node gave for
/// those of other hosts: one node's processes are all on one host, so the two never mix in one incarnation.
pub(super) type ProcessKey = (Incarnation, u32);

/// What a process can write by, beside its links.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Process {
    pub(super) connections: u32,
    /// It was given the lease's descriptor, so it may write as long as it lives.
    pub(super) mapped: bool,
}

impl Server {
    pub(super) fn opened(
        &mut self,
        connection: ConnectionId,
        peer: Peer,
        greeted: Incarnation,
    ) -> Vec<Effect> {
        if greeted != self.incarnation {
            return vec![Effect::Cut { connection }];
        }
        if let Role::Node { incarnation, .. } = peer.role {
            self.processes.entry((incarnation, peer.pid)).or_default().connections += 1;
        }
        self.peers.insert(connection, peer);
        Vec::new()
    }

    pub(super) fn closed(&mut self, connection: ConnectionId) -> Vec<Effect> {
        self.view_waiters.retain(|waiter| *waiter != connection);
        let Some(Peer { role: Role::Node { incarnation, .. }, pid, .. }) = self.peers.remove(&connection)
        else {
            return Vec::new();
        };
        let mut effects = self.close_link(connection);
        let key = (incarnation, pid);
        let Some(process) = self.processes.get_mut(&key) else { return effects };
        process.connections -= 1;
        if process.connections > 0 {
            return effects;
        }
        let lives = self.view.as_ref().is_some_and(|view| view.node(incarnation).is_some());
        if process.mapped && lives {
            effects.push(Effect::WatchProcess { incarnation, pid });
            return effects;
        }
        if process.mapped {
            process.mapped = false;
            effects.push(Effect::ForgetProcess { incarnation, pid });
        }
        self.forget_if_gone(key);
        effects
    }

    /// The kernel says that a process of this host has ended.
    pub(super) fn process_ended(&mut self, key: ProcessKey) {
        if let Some(process) = self.processes.get_mut(&key)
            && process.connections == 0
        {
            process.mapped = false;
            self.forget_if_gone(key);
        }
    }

    /// Takes a process off the books when it has nothing left to write by.
    pub(super) fn forget_if_gone(&mut self, key: ProcessKey) {
        let Some(process) = self.processes.get(&key) else { return };
        if process.connections == 0 && !process.mapped && !self.has_link(key) {
            self.processes.remove(&key);
        }
    }

    /// Whether a process, or one link of it, can write no more.
    pub(super) fn is_gone(&self, asker: &Asker, pid: u32, link: Option<u64>) -> bool {
        let key = (asker.incarnation, pid);
        let gone = match link {
            Some(number) => !self.is_link_of(asker.incarnation, LinkNumber(number)),
            None => !self.processes.contains_key(&key) && !self.has_link(key),
        };
        gone || !holds(Rule::R4FreshSlot)
    }
}
