//! Views: what a new one seals, releases and ends (R2, R6, R10, R12).

use super::leases::LeaseState;
use super::{ConnectionId, Effect, Server};
use selvage_fabric::control::message::{FromServer, Refusal, Role};
use selvage_fabric::ident::{Epoch, Incarnation};
use selvage_fabric::limits::{NODES_MAX, SERVERS_MAX};
use selvage_fabric::numbers::ServerCounter;
use selvage_fabric::rules::{Rule, holds};
use selvage_fabric::view::View;

impl Server {
    pub(super) fn set_view(&mut self, connection: ConnectionId, view: View) -> Vec<Effect> {
        if let Err(refusal) = self.check_view(&view) {
            return self.refuse(connection, refusal);
        }
        self.view_waiters.push(connection);
        if self.view.as_ref() == Some(&view) {
            return self.view_carried_out();
        }
        self.count(ServerCounter::Views, 1);
        let old = self.view.replace(view.clone()).unwrap_or_default();
        let mut effects = Vec::new();
        let missed = view.epoch.number > old.epoch.number.saturating_add(1);
        match (old.server(self.incarnation), view.server(self.incarnation)) {
            (Some(_), None) if holds(Rule::R6AckIncarnation) => effects.extend(self.begin_new_life()),
            // A view that never came may have had this life: then it is dropped, and none takes it in again.
            (None, None) if missed => effects.extend(self.begin_new_life()),
            (None, Some(_)) => self.unregistered = view.nodes.iter().map(|node| node.incarnation).collect(),
            _ => {}
        }
        effects.extend(self.end_lives(&old, &view));
        effects.extend(self.seal_and_release(&view));
        effects.extend(self.view_carried_out());
        effects
    }

    /// Epochs only rise (R12): the term must not be older, and the number, which orders ownership over all
    /// terms, must be higher; only the same view may come again.
    fn check_view(&self, view: &View) -> Result<(), Refusal> {
        let lengths = [
            ("nodes", view.nodes.len(), NODES_MAX),
            ("servers", view.servers.len(), SERVERS_MAX),
            // A node that dies again and again before its leases are released leaves an entry each time.
            ("ended nodes", view.dead.len(), 16 * NODES_MAX),
        ];
        for (what, length, most) in lengths {
            if length > most {
                return Err(Refusal::Bad(format!("a view with {length} {what} is over the limit of {most}")));
            }
        }
        let Some(known) = &self.view else { return Ok(()) };
        let newer = view.epoch.term >= known.epoch.term && view.epoch.number > known.epoch.number;
        if newer || view == known || !holds(Rule::R12Epochs) {
            return Ok(());
        }
        Err(Refusal::OldTerm(known.epoch))
    }

    /// Once nothing is being sealed any more, the view is carried out: answers those who wait for that.
    pub(super) fn view_carried_out(&mut self) -> Vec<Effect> {
        if self.is_sealing() || self.view_waiters.is_empty() {
            return Vec::new();
        }
        self.carried_out = self.view.as_ref().map_or(Epoch::default(), |view| view.epoch);
        let message = FromServer::Report(self.report());
        let waiters = std::mem::take(&mut self.view_waiters);
        waiters.into_iter().map(|connection| Effect::Reply { connection, message: message.clone() }).collect()
    }

    /// A view dropped this server: the fabric has given its copies up, so they must never be served again
    /// (R6).
    fn begin_new_life(&mut self) -> Vec<Effect> {
        self.incarnation = Incarnation(self.incarnation.0 + 1);
        self.claims.clear();
        self.claim_counts.clear();
        self.graves.prune(&[]);
        self.unregistered.clear();
        let mut effects: Vec<Effect> = self
            .processes
            .drain()
            .map(|((incarnation, pid), _)| Effect::ForgetProcess { incarnation, pid })
            .collect();
        // Their queue pairs go with the leases below.
        self.links.clear();
        let nodes: Vec<ConnectionId> = self
            .peers
            .iter()
            .filter(|(_, peer)| matches!(peer.role, Role::Node { .. }))
            .map(|(connection, _)| *connection)
            .collect();
        for connection in nodes {
            self.peers.remove(&connection);
            effects.push(Effect::Cut { connection });
        }
        let leases: Vec<_> = self.leases.keys().copied().collect();
        for lease in leases {
            effects.extend(self.release(lease));
        }
        effects
    }

    /// Forgets what belonged to node incarnations that the view has no more: claims end here and only here
    /// (R1).
    fn end_lives(&mut self, old: &View, view: &View) -> Vec<Effect> {
        let dropped = old.nodes.iter().map(|node| (&node.name, node.incarnation));
        let dead = view.dead.iter().map(|dead| (&dead.name, dead.incarnation));
        for (name, incarnation) in dropped.chain(dead) {
            if view.node(incarnation).is_none() {
                let ended = self.ended.entry(name.clone()).or_default();
                *ended = incarnation.max(*ended);
            }
        }
        let lives = |incarnation: &Incarnation| view.node(*incarnation).is_some();
        self.unregistered.retain(lives);
        let claimants = self.claim_counts.len();
        self.claim_counts.retain(|claimant, _| lives(claimant));
        if self.claim_counts.len() < claimants {
            self.claims.retain(|_, claimant| lives(claimant));
        }
        let mut effects = Vec::new();
        self.processes.retain(|(incarnation, pid), process| {
            let keep = process.connections > 0 || lives(incarnation);
            if !keep {
                effects.push(Effect::ForgetProcess { incarnation: *incarnation, pid: *pid });
            }
            keep
        });
        effects
    }

    /// Seals the leases of incarnations that do not live in the view, and releases those that were sealed and
    /// have left the list of the dead as well. One that was neither sealed nor in that list is sealed first,
    /// and stays until the next view: its sessions show as unsettled in the report, so nothing is lost by a
    /// director that forgot it.
    fn seal_and_release(&mut self, view: &View) -> Vec<Effect> {
        let mut effects = Vec::new();
        let mut released = Vec::new();
        for (number, lease) in &mut self.leases {
            if view.node(lease.incarnation).is_some() {
                continue;
            }
            let kept = view.dead.iter().any(|dead| dead.incarnation == lease.incarnation);
            match &mut lease.state {
                LeaseState::Making { ended, .. } => *ended = true,
                LeaseState::Open => {
                    lease.state = LeaseState::Sealing;
                    effects.push(Effect::Seal { lease: *number });
                }
                LeaseState::Sealed if !kept => released.push(*number),
                LeaseState::Sealing | LeaseState::Sealed => {}
            }
        }
        for number in released {
            effects.extend(self.release(number));
        }
        effects
    }
}
