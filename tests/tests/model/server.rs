//! A session server's part: `session-server/src/decide`, and the sealing that it asks for.
//!
//! Sealing a lease and indexing it is one step with the view that asks for it: a cell that arrives between
//! the two is in the index, as if it had come before, and the pusher finds the seal, as if it came later.

use crate::setting::{Part, Setting, Sight};
use crate::state::*;

impl State {
    /// A view arrives: `views.rs`, `set_view`.
    pub fn server_takes(&mut self, set: &Setting, at: usize, view: View) -> bool {
        let server = &mut self.servers[at];
        let old = std::mem::replace(&mut server.view, view);
        let newer = view.epoch.term >= old.epoch.term && view.epoch.number > old.epoch.number;
        if old.epoch != Epoch::default() && !newer && view != old && set.holds(Part::RefuseOlder) {
            server.view = old;
            // The refusal tells the director what is known here.
            return self.report(set, at);
        }
        let (was, is) = (old.servers[at] == server.life, view.servers[at] == server.life);
        if was && !is && set.holds(Part::DroppedStayOut) {
            *server = Server { run: server.run, life: server.life + 1, view, ..Server::default() };
        } else if !was && is && set.holds(Part::ClaimsRegistered) {
            server.unregistered = Set::default();
            view.nodes
                .iter()
                .filter(|life| **life != 0)
                .for_each(|life| server.unregistered.add((*life).into()));
        }
        for life in server.unregistered.iter() {
            if !view.has_node(life as Life) {
                server.unregistered.remove(life);
            }
        }
        if !view.has_node(server.claim) {
            server.claim = 0;
        }
        self.seal_and_release(at, &view);
        true
    }

    /// `views.rs`, `seal_and_release`.
    fn seal_and_release(&mut self, at: usize, view: &View) {
        for life in 1..=LIVES {
            let lease = &mut self.servers[at].leases[life - 1];
            match lease.state {
                _ if view.has_node(life as Life) => {}
                LeaseState::Open => lease.state = LeaseState::Sealed,
                LeaseState::Sealed if !view.dead.has(life) => {
                    *lease = Lease::default();
                    self.lose_copy(at);
                }
                LeaseState::Sealed | LeaseState::None => {}
            }
        }
    }

    /// A copy at a server may go once another server has what was told; otherwise it should still be there.
    pub fn lose_copy(&mut self, at: usize) {
        let Truth { told, told_at, .. } = self.truth;
        let server = &self.servers[at];
        let kept = server.leases.iter().any(|lease| lease.cell.version >= told);
        let elsewhere = (0..SERVERS).any(|other| {
            let server = &self.servers[other];
            other != at && told_at[other] == server.life && server.run != Run::Over
        });
        if !kept && elsewhere {
            self.truth.told_at[at] = 0;
        }
    }

    /// `leases.rs`, `check_lives`.
    pub fn knows(&self, at: usize, life: Life) -> bool {
        let server = &self.servers[at];
        server.view.has_node(life) && server.view.servers[at] == server.life
    }

    /// `claims.rs`, `claim`: the best copy, or who has claimed it; `None` if it cannot be said yet.
    pub fn grant(
        &mut self,
        set: &Setting,
        at: usize,
        life: Life,
        epoch: Epoch,
    ) -> Option<Result<Cell, Life>> {
        let ahead = epoch > self.servers[at].view.epoch && set.holds(Part::SealedEverywhere);
        let behind = epoch < self.servers[at].view.epoch && set.holds(Part::ClaimByNewest);
        if !self.knows(at, life) || ahead || behind || !self.is_sealed_open(set, at) {
            return None;
        }
        let server = &mut self.servers[at];
        if server.claim != 0 && server.claim != life && set.holds(Part::FirstClaimWins) {
            return Some(Err(server.claim));
        }
        server.claim = life;
        Some(Ok(server.best()))
    }

    /// `claims.rs`, `check_sealed_open`.
    pub fn is_sealed_open(&self, set: &Setting, at: usize) -> bool {
        let server = &self.servers[at];
        (server.view.all_sealed() || !set.holds(Part::SealedEverywhere)) && server.unregistered.is_empty()
    }

    /// `claims.rs`, `unclaim`.
    pub fn drop_claim(&mut self, at: usize, life: Life) {
        if self.servers[at].claim == life && self.knows(at, life) {
            self.servers[at].claim = 0;
        }
    }

    /// `claims.rs`, `register`.
    pub fn register_claim(&mut self, set: &Setting, at: usize, life: Life, holds: bool) {
        let server = &mut self.servers[at];
        if holds {
            set.saw(Sight::ClaimsTold);
            if server.claim == 0 {
                server.claim = life;
            }
        }
        server.unregistered.remove(life.into());
    }

    /// `claims.rs`, `settle`: copies up to this version.
    pub fn settle(&mut self, at: usize, version: Version) {
        for lease in &mut self.servers[at].leases {
            lease.settled |= lease.state == LeaseState::Sealed && lease.cell.version <= version;
        }
    }

    /// `claims.rs`, `destroyed`. False: refused.
    pub fn take_gone(&mut self, at: usize, life: Life, version: Version) -> bool {
        let server = &mut self.servers[at];
        if server.claim != 0 && server.claim != life {
            return false;
        }
        for lease in server.leases.iter_mut().filter(|lease| lease.state == LeaseState::Sealed) {
            if lease.cell.version != Version::NONE && lease.cell.version <= version {
                *lease = Lease { cell: Cell { version, gone: true }, settled: true, ..*lease };
            }
        }
        if !server.best().is_live() && server.claim == life {
            server.claim = 0;
        }
        true
    }
}
