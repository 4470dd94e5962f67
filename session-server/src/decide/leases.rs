//! Leases: granted to incarnations that are up, made once each, sealed and released by views only (R2, R10).

use super::{Asker, ConnectionId, Effect, LeaseNumber, SWEEP_EVERY_MS, Server};
use selvage_fabric::control::message::{Endpoint, LeaseReport, Refusal};
use selvage_fabric::error::{Error, ErrorKind};
use selvage_fabric::ident::Incarnation;
use selvage_fabric::lease::LeaseIndex;
use selvage_fabric::numbers::ServerCounter;
use selvage_fabric::rules::{Rule, holds};

/// A lease.
#[derive(Debug)]
pub(super) struct Lease {
    /// The node's name.
    pub(super) node: String,
    /// The node's life.
    pub(super) incarnation: Incarnation,
    /// What has become of it.
    pub(super) state: LeaseState,
}

/// States of a lease, in order.
#[derive(Debug)]
pub(super) enum LeaseState {
    /// Its memory is being made.
    Making {
        /// Processes that wait for it.
        waiters: Vec<Waiter>,
        /// A view has ended the incarnation meanwhile.
        ended: bool,
    },
    /// Its node may write.
    Open,
    /// It is being sealed and indexed.
    Sealing,
    /// Its index is in the sealed index.
    Sealed,
}

/// A process that waits for a lease.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiter {
    pub(super) connection: ConnectionId,
    pub(super) pid: u32,
    wanted: Wanted,
}

/// How a process will write into its lease.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wanted {
    /// It maps the memory, which is on its own host.
    Memory,
    /// By RDMA; this is its end.
    Link(Endpoint),
}

impl Server {
    /// Whether the asker lives in the view: the first check of everything that a node asks.
    pub(super) fn check_lives(&self, asker: &Asker) -> Result<(), Refusal> {
        if asker.incarnation == Incarnation::NONE {
            return Err(Refusal::Denied("a node without an incarnation may not ask this".into()));
        }
        let Some(view) = &self.view else { return Err(not_yet("this server has no view yet")) };
        match view.node(asker.incarnation) {
            Some(node) if node.name == asker.name => {}
            Some(_) => return Err(Refusal::Denied("this incarnation is another node's".into())),
            None if self.ended.get(&asker.name).is_some_and(|ended| *ended >= asker.incarnation) => {
                return Err(Refusal::Over);
            }
            None => return Err(not_yet("the view does not know this incarnation")),
        }
        if view.server(self.incarnation).is_none() {
            return Err(not_yet("this server is not in its view"));
        }
        Ok(())
    }

    pub(super) fn lease_wanted(&mut self, asker: &Asker, wanted: Wanted) -> Vec<Effect> {
        let connection = asker.connection;
        if matches!(wanted, Wanted::Memory) && !asker.local {
            let why = "a lease's memory is passed within one host only; connect to it by RDMA";
            return self.refuse(connection, Refusal::Denied(why.into()));
        }
        if let Err(refusal) = self.check_lives(asker) {
            return self.refuse(connection, refusal);
        }
        let waiter = Waiter { connection, pid: asker.pid, wanted };
        let known = self.leases.iter_mut().find(|(_, lease)| lease.incarnation == asker.incarnation);
        match known.map(|(number, lease)| (*number, &mut lease.state)) {
            Some((_, LeaseState::Making { waiters, .. })) => {
                waiters.push(waiter);
                Vec::new()
            }
            Some((number, LeaseState::Open)) => self.grant(number, asker.incarnation, waiter),
            // A view that raises the dead is wrong; the lease stays sealed (R2).
            Some(_) => self.refuse(connection, Refusal::Over),
            None => self.make_lease(asker, waiter),
        }
    }

    fn make_lease(&mut self, asker: &Asker, waiter: Waiter) -> Vec<Effect> {
        let needed = self.params.lease_bytes;
        let left = self.params.bytes_max.saturating_sub(self.bytes());
        if self.params.bytes_max > 0 && needed > left {
            self.count(ServerCounter::LeasesFull, 1);
            return self.refuse(waiter.connection, Refusal::Full { needed, left });
        }
        let number = LeaseNumber(self.lease_next);
        self.lease_next += 1;
        let state = LeaseState::Making { waiters: vec![waiter], ended: false };
        let (node, incarnation) = (asker.name.clone(), asker.incarnation);
        self.leases.insert(number, Lease { node: node.clone(), incarnation, state });
        vec![Effect::MakeLease { lease: number, node, incarnation, server: self.incarnation }]
    }

    fn grant(&mut self, lease: LeaseNumber, incarnation: Incarnation, waiter: Waiter) -> Vec<Effect> {
        // The process may have gone while the lease was made; then it has no connection, and gets no lease.
        if !self.peers.contains_key(&waiter.connection) {
            return Vec::new();
        }
        match waiter.wanted {
            Wanted::Memory => {
                let Waiter { connection, pid, .. } = waiter;
                self.processes.entry((incarnation, pid)).or_default().mapped = true;
                vec![Effect::SendLease { connection, incarnation, pid, lease, server: self.incarnation }]
            }
            Wanted::Link(offer) => self.begin_link(lease, incarnation, waiter, offer),
        }
    }

    pub(super) fn lease_made(&mut self, number: LeaseNumber, result: Result<(), Error>) -> Vec<Effect> {
        let Some(lease) = self.leases.get_mut(&number) else {
            // The server has begun a new life meanwhile.
            return vec![Effect::Release { lease: number, index: None }];
        };
        let incarnation = lease.incarnation;
        let LeaseState::Making { waiters, ended } = std::mem::replace(&mut lease.state, LeaseState::Open)
        else {
            return Vec::new();
        };
        let refusal = match result {
            Ok(()) if !ended => {
                self.count(ServerCounter::LeasesMade, 1);
                return waiters
                    .into_iter()
                    .flat_map(|waiter| self.grant(number, incarnation, waiter))
                    .collect();
            }
            Ok(()) => Refusal::Over,
            Err(error) if error.kind == ErrorKind::Full => {
                self.count(ServerCounter::LeasesFull, 1);
                Refusal::Full { needed: self.params.lease_bytes, left: 0 }
            }
            Err(error) => not_yet(&error.to_string()),
        };
        let mut effects = self.release(number);
        for waiter in waiters {
            effects.extend(self.refuse(waiter.connection, refusal.clone()));
        }
        effects
    }

    pub(super) fn lease_sealed(
        &mut self,
        number: LeaseNumber,
        index: LeaseIndex,
        cells_bad: u64,
    ) -> Vec<Effect> {
        let Some(lease) = self.leases.get_mut(&number) else { return Vec::new() };
        lease.state = LeaseState::Sealed;
        self.forget_links_of(number);
        self.sealed.insert(number.0, index);
        self.count(ServerCounter::LeasesSealed, 1);
        self.count(ServerCounter::CellsBad, cells_bad);
        if holds(Rule::R9Destroy) {
            for (id, version) in self.graves.iter() {
                self.sealed.destroy(&id, version);
            }
        }
        self.prune_graves();
        self.view_carried_out()
    }

    /// Takes a lease off the books.
    pub(super) fn release(&mut self, number: LeaseNumber) -> Vec<Effect> {
        self.leases.remove(&number);
        self.forget_links_of(number);
        let index = self.sealed.remove(number.0);
        if index.is_some() {
            self.count(ServerCounter::LeasesReleased, 1);
        }
        self.prune_graves();
        vec![Effect::Release { lease: number, index }]
    }

    /// What a server without R10 would do: let each set go when it is settled here. Nothing while the rule
    /// holds.
    pub(super) fn release_without_r10(&mut self) -> Vec<Effect> {
        if holds(Rule::R10ReleaseAsSet) {
            return Vec::new();
        }
        let settled: Vec<LeaseNumber> = self
            .leases
            .keys()
            .copied()
            .filter(|number| self.sealed.lease(number.0).is_some_and(|index| index.unsettled() == 0))
            .collect();
        settled.into_iter().flat_map(|number| self.release(number)).collect()
    }

    pub(super) fn is_sealing(&self) -> bool {
        self.leases.values().any(|lease| matches!(lease.state, LeaseState::Sealing))
    }

    /// Bytes of all leases, those being made included.
    pub(super) fn bytes(&self) -> u64 {
        self.leases.len() as u64 * self.params.lease_bytes
    }

    pub(super) fn lease_reports(&self) -> Vec<LeaseReport> {
        let reports = self.leases.iter().map(|(number, lease)| {
            let index = self.sealed.lease(number.0);
            LeaseReport {
                node: lease.node.clone(),
                incarnation: lease.incarnation,
                sealed: index.is_some(),
                sessions: index.map_or(0, LeaseIndex::live),
                unsettled: index.map_or(0, LeaseIndex::unsettled),
                beat_age_ms: None,
            }
        });
        reports.collect()
    }

    /// Sweeps expired sealed sessions, past the allowance for clock skew only (R14).
    pub(super) fn sweep(&mut self, now_ms: u64) -> Vec<Effect> {
        if now_ms < self.sweep_next_ms {
            return Vec::new();
        }
        self.sweep_next_ms = now_ms + SWEEP_EVERY_MS;
        let allowance_ms = if holds(Rule::R14Expiry) { self.params.clock_skew_ms } else { 0 };
        let swept = self.sealed.sweep(now_ms.saturating_sub(allowance_ms));
        self.count(ServerCounter::Swept, swept);
        let mut effects = self.close_stuck_links();
        effects.extend(self.release_without_r10());
        effects
    }

    /// Whether a session could be in a lease that cannot be looked into yet.
    pub(super) fn has_open_lease_of_others(&self, incarnation: Incarnation) -> bool {
        self.open_leases().any(|(_, holder)| holder != incarnation)
    }

    fn open_leases(&self) -> impl Iterator<Item = (u64, Incarnation)> {
        let open = self.leases.iter().filter(|(_, lease)| !matches!(lease.state, LeaseState::Sealed));
        open.map(|(number, lease)| (number.0, lease.incarnation))
    }

    fn prune_graves(&mut self) {
        let open: Vec<(u64, Incarnation)> = self.open_leases().collect();
        self.graves.prune(&open);
    }
}

/// The refusal that asks for patience.
pub(super) fn not_yet(why: &str) -> Refusal {
    Refusal::NotYet(why.into())
}
