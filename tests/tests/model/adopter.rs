//! An adopter's part: `fabric/src/node`: fetch, claims and adopt.
//!
//! A request and the background take a session over in the same steps, and the background of any live node
//! may do it (`adopt.rs`, `STALLED`); so any node may begin, as soon as its view says that the first host is
//! over.

use crate::setting::{Part, Setting, Sight};
use crate::state::*;

impl State {
    /// `fetch.rs`, `fetch`: takes the cache entry.
    pub fn open(&mut self, set: &Setting, life: Life) -> bool {
        let node = self.node_mut(life);
        if !node.view.all_sealed() && set.holds(Part::SealedEverywhere) {
            return false;
        }
        (node.entry, node.adoption) = (Entry::Adopting, Adoption { plan: node.view, ..Adoption::default() });
        true
    }

    /// Begins again by a newer view.
    pub fn open_again(&mut self, set: &Setting, life: Life) -> bool {
        self.node(life).adoption.plan != self.node(life).view && self.open(set, life)
    }

    /// The next server to claim at (R1).
    pub fn next_to_claim(&self, set: &Setting, life: Life) -> Option<usize> {
        let Adoption { plan, asked, .. } = self.node(life).adoption;
        if !asked.is_empty() && !set.holds(Part::ClaimEverywhere) {
            return None;
        }
        plan.up().find(|at| !asked.has(*at))
    }

    /// `claims.rs`, `claim`, at one server. `lost`: the answer does not arrive.
    pub fn claim(&mut self, set: &Setting, life: Life, at: usize, lost: bool) -> bool {
        let plan = self.node(life).adoption.plan;
        if !self.can_ask(life, at, plan.servers[at]) {
            return false;
        }
        let answer = self.grant(set, at, life, plan.epoch);
        match answer {
            None => false,
            Some(_) if lost => true,
            Some(Err(other)) if plan.has_node(other) => {
                set.saw(Sight::ClaimElsewhere);
                self.give_up(life)
            }
            // Its claim ends when its leases are sealed.
            Some(Err(_)) => false,
            Some(Ok(cell)) => {
                let adoption = &mut self.node_mut(life).adoption;
                adoption.asked.add(at);
                let first = adoption.found == Cell::default();
                if cell == Cell::default() {
                } else if cell == adoption.found {
                    adoption.at.add(at);
                } else if first || (cell.beats(adoption.found) && set.holds(Part::FetchHighest)) {
                    (adoption.found, adoption.at) = (cell, Set(1 << at));
                }
                true
            }
        }
    }

    /// Claims are given back where they can be, and the entry, too.
    pub fn give_up(&mut self, life: Life) -> bool {
        let plan = self.node(life).adoption.plan;
        for at in 0..SERVERS {
            if self.can_ask(life, at, plan.servers[at]) {
                self.drop_claim(at, life);
            }
        }
        let node = self.node_mut(life);
        (node.entry, node.adoption) = (Entry::None, Adoption::default());
        true
    }

    /// All servers have answered: `fetch.rs`, `try_fetch`.
    pub fn conclude(&mut self, set: &Setting, life: Life) -> bool {
        let Adoption { plan, found, at, .. } = self.node(life).adoption;
        if found == Cell::default() {
            // R5: where no server is up, nobody can say that another node has not adopted it.
            let alone = plan.nodes.iter().all(|other| *other == 0 || *other == life);
            if plan.up().count() == 0 && !alone && set.holds(Part::MissingNeedsServers) {
                return false;
            }
            self.tell_missing(set, life, &plan);
            return self.give_up(life);
        }
        if found.gone {
            let all = plan.up().all(|at| self.can_ask(life, at, plan.servers[at]) && self.knows(at, life));
            if !all || !plan.up().all(|at| self.take_gone(at, life, found.version)) {
                return false;
            }
            set.saw(Sight::TombstoneFound);
            if self.director.view.has_node(life) {
                self.truth.gone = true;
            }
            let node = self.node_mut(life);
            (node.entry, node.adoption) = (Entry::None, Adoption::default());
            return true;
        }
        let gives = |at: usize| {
            let server = &self.servers[at];
            self.can_ask(life, at, plan.servers[at])
                && self.knows(at, life)
                && self.is_sealed_open(set, at)
                && (server.claim == life || !set.holds(Part::FirstClaimWins))
                && server.best().is_live()
                && server.best().version >= found.version
        };
        if !at.iter().any(gives) {
            return false;
        }
        self.admit_session(set, life, &plan, found.version)
    }

    /// `claims.rs`, `admit`: the session is the node's own from here on.
    fn admit_session(&mut self, set: &Setting, life: Life, plan: &View, found: Version) -> bool {
        let risen = Version { epoch: plan.epoch.number.max(found.epoch + 1), counter: found.counter + 1 };
        let version = if set.holds(Part::OwnershipRises) { risen } else { found };
        set.saw(Sight::TakenOver);
        if self.truth.gone {
            self.go_wrong(Wrong::CameBack);
        }
        let seen = |at: usize| {
            let server = &self.servers[at];
            let same = server.life == plan.servers[at] && server.run != Run::Over;
            same && server.leases.iter().any(|lease| lease.cell.version.epoch >= version.epoch)
        };
        if (0..SERVERS).any(seen) {
            self.go_wrong(Wrong::EpochReused);
        }
        if found < self.truth.told {
            if self.is_supported(plan) {
                self.go_wrong(Wrong::AckedLost);
            }
            // More servers have died than had acked it.
            (self.truth.told, self.truth.told_at) = (found, [0; SERVERS]);
        }
        (self.truth.owner, self.truth.base) = (life, found);
        let node = self.node_mut(life);
        (node.entry, node.version, node.adopted) = (Entry::Live, version, true);
        (node.places, node.declared) = Default::default();
        if !Self::has_newcomers(node) {
            node.adoption = Adoption::default();
        } else {
            node.adoption = Adoption { plan: *plan, ..Adoption::default() };
        }
        true
    }

    fn has_newcomers(node: &Node) -> bool {
        (0..SERVERS).any(|at| {
            let life = node.view.servers[at];
            life != 0 && life != node.adoption.plan.servers[at]
        })
    }

    /// `claims.rs`, `claim_at_newcomers`, at one server.
    pub fn claim_at_newcomer(&mut self, set: &Setting, life: Life) -> bool {
        let Node { view, adoption: Adoption { plan, .. }, .. } = *self.node(life);
        let new = (0..SERVERS).find(|at| view.servers[*at] != 0 && view.servers[*at] != plan.servers[*at]);
        let Some(at) = new else {
            self.node_mut(life).adoption = Adoption::default();
            return true;
        };
        if !self.can_ask(life, at, view.servers[at]) {
            return false;
        }
        match self.grant(set, at, life, view.epoch) {
            None => return false,
            Some(Ok(_)) => self.node_mut(life).adoption.plan.servers[at] = view.servers[at],
            // It stays in the cache; the steward tells the claim.
            Some(Err(_)) => self.node_mut(life).adoption = Adoption::default(),
        }
        true
    }

    /// A server that is up by this view has what was told.
    fn is_supported(&self, plan: &View) -> bool {
        (0..SERVERS).any(|at| {
            let server = &self.servers[at];
            let held = self.truth.told_at[at];
            held != 0 && held == server.life && held == plan.servers[at] && server.run != Run::Over
        })
    }

    /// A user is told that there is no such session; through the director, so only by who is in its view.
    fn tell_missing(&mut self, set: &Setting, life: Life, plan: &View) {
        if !self.director.view.has_node(life) {
            return;
        }
        set.saw(Sight::MissingTold);
        // Unless its user has asked for its end, and the tombstones are settled and released.
        if self.is_supported(plan) && !self.truth.gone && !self.destroyed {
            self.go_wrong(Wrong::AckedLost);
        }
        self.truth.gone = true;
    }

    /// Whether a server has something to settle for this owner: `adopt.rs`, `report`.
    pub fn settles(&self, set: &Setting, life: Life, at: usize) -> bool {
        let node = self.node(life);
        let server = &self.servers[at];
        let open = |lease: &Lease| {
            lease.state == LeaseState::Sealed
                && lease.cell.is_live()
                && !lease.settled
                && lease.cell.version <= node.version
        };
        node.entry == Entry::Live
            && node.adopted
            && (self.is_safe(set, life) || !set.holds(Part::SettledWhenAcked))
            && self.can_ask(life, at, node.view.servers[at])
            && self.knows(at, life)
            && server.claim == life
            && server.leases.iter().any(open)
    }

    pub fn settle_at(&mut self, set: &Setting, life: Life, at: usize) -> bool {
        set.saw(Sight::Settled);
        let version = self.node(life).version;
        self.settle(at, version);
        true
    }

    /// Whether a server waits for this node's claims: `claims.rs`, `register_claims`.
    pub fn registers(&self, life: Life, at: usize) -> bool {
        let node = self.node(life);
        self.can_ask(life, at, node.view.servers[at])
            && self.servers[at].unregistered.has(life.into())
            && self.knows(at, life)
            && node.view.epoch <= self.servers[at].view.epoch
    }

    pub fn register_at(&mut self, set: &Setting, life: Life, at: usize) -> bool {
        let node = self.node(life);
        let holds = node.adopted && matches!(node.entry, Entry::Live | Entry::Gone);
        self.register_claim(set, at, life, holds);
        true
    }
}
