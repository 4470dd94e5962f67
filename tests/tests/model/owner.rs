//! A host's part: `fabric/src/node`: commit, push, sweep and destroy.
//!
//! A push is three steps: begun, arrived (the cell is written and the seal word looked at), and, once all
//! have ended, judged under the mandate (`push.rs`, `judge`). One that is given up may still arrive.

use crate::setting::{Part, Setting, Sight};
use crate::state::*;

impl State {
    /// Whether a server is known to have the node's newest version, by its own books (R6).
    pub fn is_acked(&self, set: &Setting, life: Life, at: usize) -> bool {
        let node = self.node(life);
        let place = node.places[at];
        let same = place.server == node.view.servers[at] || !set.holds(Part::AckOfLife);
        node.view.servers[at] != 0 && place.acked == node.version && same
    }

    /// Whether every server of the placement has it.
    pub fn is_safe(&self, set: &Setting, life: Life) -> bool {
        set.placed(&self.node(life).view.servers).iter().all(|at| self.is_acked(set, life, at))
    }

    /// Whether there is a link to the server of the node's view, or can be: `host.rs`, `try_open`.
    fn has_lane(&self, life: Life, at: usize) -> bool {
        let node = self.node(life);
        let server = &self.servers[at];
        let wanted = node.view.servers[at];
        if wanted == 0 || server.life != wanted || server.run == Run::Over || self.is_cut(life, at) {
            return false;
        }
        match server.leases[usize::from(life) - 1].state {
            LeaseState::Open => true,
            _ if node.places[at].server == wanted => true,
            LeaseState::None => server.run == Run::Up && self.knows(at, life),
            LeaseState::Sealed => false,
        }
    }

    /// Begins a push of the newest version. False: there is no way.
    fn push(&mut self, set: &Setting, life: Life, at: usize) -> bool {
        if !self.has_lane(life, at) || self.node(life).places[at].pushing != Version::NONE {
            return false;
        }
        let node = self.node_mut(life);
        let (server, version) = (node.view.servers[at], node.version);
        let place = &mut node.places[at];
        if place.server != server {
            let acked = if set.holds(Part::AckOfLife) { Version::NONE } else { place.acked };
            *place = Place { server, acked, ..Place::default() };
        }
        place.pushing = version;
        let lease = &mut self.servers[at].leases[usize::from(life) - 1];
        if lease.state == LeaseState::None && self.servers[at].view.has_node(life) {
            lease.state = LeaseState::Open;
        }
        true
    }

    /// `commit.rs`: a change, pushed to the placement.
    pub fn commit(&mut self, set: &Setting, life: Life) -> bool {
        let node = self.node_mut(life);
        node.version = node.version.next();
        node.wish = Wish::Commit;
        let servers = node.view.servers;
        self.commits += 1;
        for at in set.placed(&servers).iter() {
            self.push(set, life, at);
        }
        true
    }

    /// `sweep.rs`: pushes what servers of the placement lack.
    pub fn copy(&mut self, set: &Setting, life: Life) -> bool {
        let placed = set.placed(&self.node(life).view.servers);
        let mut any = false;
        for at in placed.iter() {
            if !self.is_acked(set, life, at) {
                any |= self.push(set, life, at);
            }
        }
        any
    }

    /// A push arrives and looks at the seal word.
    pub fn land(&mut self, set: &Setting, life: Life, at: usize) -> bool {
        let node = *self.node(life);
        let place = node.places[at];
        let server = &mut self.servers[at];
        let lease = &mut server.leases[usize::from(life) - 1];
        if lease.state == LeaseState::Open {
            let cell = Cell { version: place.pushing, gone: node.entry == Entry::Gone };
            lease.cell = lease.cell.or_newer(cell);
        } else if set.holds(Part::SealWord) {
            if node.woken {
                set.saw(Sight::ZombieFoundSeal);
            }
            if set.holds(Part::OneSealEndsAll) {
                self.poison(life);
            } else {
                self.node_mut(life).places[at] = Place { server: place.server, ..Place::default() };
            }
            return true;
        }
        let held = server.life;
        let place = &mut self.node_mut(life).places[at];
        place.acked = std::mem::take(&mut place.pushing);
        place.doubt &= place.late != Cell::default();
        if node.entry == Entry::Live && self.truth.owner == life && node.version >= self.truth.told {
            self.truth.told_at[at] = held;
        }
        if node.wish == Wish::None {
            set.saw(Sight::Recopied);
        }
        true
    }

    /// A push is given up: its slot is in quarantine, and what was sent may still arrive (R4). `alive`: the
    /// memory is still there.
    pub fn give_push_up(&mut self, life: Life, at: usize, alive: bool) -> bool {
        let node = self.node_mut(life);
        let gone = node.entry == Entry::Gone;
        let place = &mut node.places[at];
        let version = std::mem::take(&mut place.pushing);
        place.acked = Version::NONE;
        if alive {
            place.late = Cell { version, gone };
            place.doubt = true;
        }
        true
    }

    /// What was given up arrives: in a slot of its own, or over what was pushed since.
    pub fn land_late(&mut self, set: &Setting, life: Life, at: usize) -> bool {
        let late = self.node(life).places[at].late;
        let lease = &mut self.servers[at].leases[usize::from(life) - 1];
        set.saw(Sight::LateArrived);
        lease.cell = if set.holds(Part::FreshSlot) { lease.cell.or_newer(late) } else { late };
        self.end_late(life, at)
    }

    /// The server confirms that the link is destroyed.
    pub fn end_late(&mut self, life: Life, at: usize) -> bool {
        let node = self.node_mut(life);
        let version = node.version;
        let place = &mut node.places[at];
        place.late = Cell::default();
        place.doubt &= place.acked != version;
        true
    }

    /// All pushes of a commit have ended: `push.rs`, `judge`.
    pub fn end_commit(&mut self, set: &Setting, life: Life) -> bool {
        self.node_mut(life).wish = Wish::None;
        let node = *self.node(life);
        let placed = set.placed(&node.view.servers);
        let acked: Vec<usize> = placed.iter().filter(|at| self.is_acked(set, life, *at)).collect();
        if acked.is_empty() || (!node.mandate && set.holds(Part::MandateChecked)) {
            return true;
        }
        set.saw(Sight::AckTold);
        if self.truth.gone {
            self.go_wrong(Wrong::StrangerAcked);
        }
        if self.truth.owner != life {
            // What the owner has found was acked in time, even if the user hears it late.
            if node.version > self.truth.base {
                self.go_wrong(Wrong::StrangerAcked);
            }
            return true;
        }
        if node.version > self.truth.told {
            (self.truth.told, self.truth.told_at) = (node.version, [0; SERVERS]);
        }
        for at in acked.into_iter().filter(|_| node.version == self.truth.told) {
            self.truth.told_at[at] = node.view.servers[at];
        }
        true
    }

    /// `sweep.rs`: "moved" over a slot that the placement no longer names (R11).
    pub fn moves(&self, set: &Setting, life: Life, at: usize) -> bool {
        let node = self.node(life);
        let placed = set.placed(&node.view.servers);
        node.places[at].acked != Version::NONE
            && !placed.has(at)
            && self.has_lane(life, at)
            && (self.is_safe(set, life) || !set.holds(Part::MovedWhenAcked))
    }

    pub fn move_away(&mut self, set: &Setting, life: Life, at: usize) -> bool {
        let lease = &mut self.servers[at].leases[usize::from(life) - 1];
        if lease.state != LeaseState::Open {
            return self.poison(life);
        }
        set.saw(Sight::Moved);
        lease.cell = Cell::default();
        self.node_mut(life).places[at] = Place::default();
        self.lose_copy(at);
        true
    }

    /// `destroy.rs`, `due_servers`: where a tombstone is still to be acked (R9).
    fn is_due(&self, set: &Setting, life: Life, at: usize) -> bool {
        let node = self.node(life);
        let place = node.places[at];
        let placed = set.placed(&node.view.servers).has(at);
        node.view.servers[at] != 0
            && place.server == node.view.servers[at]
            && (place.acked != Version::NONE || place.doubt)
            && place.acked != node.version
            && (placed || set.holds(Part::TombstonesEverywhere))
    }

    /// `destroy.rs`, `entomb`.
    pub fn destroy(&mut self, set: &Setting, life: Life) -> bool {
        let node = self.node_mut(life);
        (node.entry, node.version, node.wish) = (Entry::Gone, node.version.next(), Wish::Destroy);
        node.declared = Set::default();
        self.destroyed = true;
        self.bury(set, life);
        true
    }

    /// Pushes the tombstones that are missing: `destroy.rs`, `bury`.
    pub fn bury(&mut self, set: &Setting, life: Life) -> bool {
        let mut any = false;
        for at in 0..SERVERS {
            if self.is_due(set, life, at) {
                any |= self.push(set, life, at);
            }
        }
        any
    }

    /// Whether sealed copies are still to be declared gone at a server: `destroy.rs`, `declare_gone`.
    pub fn declares(&self, set: &Setting, life: Life, at: usize) -> bool {
        let node = self.node(life);
        set.holds(Part::GoneDeclared)
            && node.entry == Entry::Gone
            && node.adopted
            && !node.declared.has(at)
            && self.can_ask(life, at, node.view.servers[at])
            && self.knows(at, life)
    }

    pub fn declare(&mut self, life: Life, at: usize) -> bool {
        let version = self.node(life).version;
        if !self.take_gone(at, life, version) {
            return false;
        }
        self.node_mut(life).declared.add(at);
        true
    }

    /// Whether nothing is left to do for a destroyed session but to forget it.
    pub fn is_buried(&self, set: &Setting, life: Life) -> bool {
        let node = self.node(life);
        let acked = (0..SERVERS).all(|at| !self.is_due(set, life, at)) && !node.is_pushing();
        let declares = node.adopted && set.holds(Part::GoneDeclared);
        acked && (!declares || node.view.up().all(|at| node.declared.has(at)))
    }

    /// The user is told that the session is gone.
    pub fn tell_gone(&mut self, set: &Setting, life: Life) -> bool {
        self.node_mut(life).wish = Wish::None;
        if self.director.view.has_node(life) {
            set.saw(Sight::GoneTold);
            self.truth.gone = true;
        }
        true
    }

    /// The tombstones' slots are given back: `destroy.rs`, `land`.
    pub fn frees(&self, set: &Setting, life: Life) -> bool {
        let node = self.node(life);
        let kept = node.adopted && !node.view.dead.is_empty() && set.holds(Part::SlotsKept);
        node.entry == Entry::Gone
            && node.wish == Wish::None
            && !kept
            && node.places.iter().all(|place| !place.doubt)
            && self.is_buried(set, life)
    }

    pub fn free(&mut self, life: Life) -> bool {
        for at in 0..SERVERS {
            let server = &mut self.servers[at];
            if self.nodes[usize::from(life) - 1].places[at].server == server.life {
                server.leases[usize::from(life) - 1].cell = Cell::default();
            }
        }
        let node = self.node_mut(life);
        (node.entry, node.version, node.adopted) = (Entry::None, Version::NONE, false);
        (node.places, node.declared) = Default::default();
        true
    }

    /// The life is over, for all its processes (R3): what it knew is of no more use to anybody.
    pub fn poison(&mut self, life: Life) -> bool {
        let node = self.node_mut(life);
        *node = Node { name: node.name, born: node.born, ..Node::default() };
        true
    }
}
