//! Equal but for names: numbers that are only compared with each other are counted anew from the lowest.
//!
//! Nothing in the protocol depends on how large an epoch or an incarnation is, only on which is newer and
//! which is the same. So states that differ in that alone are one state: lives that nobody remembers are
//! forgotten, the others closed up; numbers keep their order, and whether one follows directly on another
//! (an adopter's epoch is one above what it found).

use crate::setting::Setting;
use crate::state::*;

impl State {
    /// Gives the state the names that all states like it have.
    pub fn rename(&mut self, set: &Setting) {
        self.forget(set);
        self.rename_nodes();
        self.rename_lives();
        for at in 0..SERVERS {
            let mut lives = Values::default();
            self.server_lives(at, &mut |life| lives.note(*life));
            let names = lives.names(1);
            self.server_lives(at, &mut |life| *life = names[usize::from(*life)]);
        }
        let mut numbers = Values::default();
        self.numbers(&mut |number| numbers.note(*number));
        let names = numbers.names(2);
        self.numbers(&mut |number| *number = names[usize::from(*number)]);
        let mut terms = Values::default();
        self.terms(&mut |term| terms.note(*term));
        let names = terms.names(1);
        self.terms(&mut |term| *term = names[usize::from(*term)]);
        let mut counters: [Values; 32] = Default::default();
        self.versions(&mut |version| counters[usize::from(version.epoch)].note(version.counter));
        let names = counters.map(|counters| counters.names(1));
        self.versions(&mut |version| {
            version.counter = names[usize::from(version.epoch)][usize::from(version.counter)];
        });
    }

    /// The owner's node is the first.
    fn rename_nodes(&mut self) {
        let owner = self.truth.owner;
        if owner == 0 || self.node(owner).name == 0 {
            return;
        }
        self.views(&mut |view| view.nodes.swap(0, 1));
        self.director.nodes.swap(0, 1);
        self.nodes[..usize::from(self.born)].iter_mut().for_each(|node| node.name ^= 1);
        let mut cut = Set(self.cut.0 & 0b1100);
        for name in 0..NODES {
            if self.cut.has(director_node(name)) {
                cut.add(director_node(name ^ 1));
            }
            for at in (0..SERVERS).filter(|at| self.cut.has(node_server(name, *at))) {
                cut.add(node_server(name ^ 1, at));
            }
        }
        self.cut = cut;
    }

    /// What nobody looks at any more.
    fn forget(&mut self, set: &Setting) {
        for life in self.lives() {
            let at_life = usize::from(life) - 1;
            for at in 0..SERVERS {
                let server = &self.servers[at];
                let place = &mut self.nodes[at_life].places[at];
                if server.life != place.server || server.leases[at_life].state != LeaseState::Open {
                    place.late = Cell::default();
                }
                place.doubt &= set.destroys;
            }
        }
        let hosts = self.lives().filter(|life| self.node(*life).entry == Entry::Live);
        if hosts.filter(|life| *life != self.truth.owner).count() == 0 {
            self.truth.base = Version::NONE;
        }
        for at in 0..SERVERS {
            let life = self.servers[at].life;
            let director = &mut self.director;
            if director.servers[at] == 0 {
                director.confirmed[at] = Epoch::default();
            }
            if director.barred[at] < life {
                director.barred[at] = 0;
            }
            if self.truth.told_at[at] != life {
                self.truth.told_at[at] = 0;
            }
        }
        // Once every living node has that view, nobody will be waited for.
        let (shrunk, nodes) = (self.director.shrunk, self.director.nodes);
        if nodes.into_iter().all(|life| life == 0 || self.node(life).view.epoch >= shrunk) {
            self.director.shrunk = Epoch::default();
        }
        if !self.director.grace {
            self.director.floor = Epoch::default();
        }
    }

    fn rename_lives(&mut self) {
        let mut known = Set::default();
        for life in self.lives() {
            let at = usize::from(life) - 1;
            let leases = self.servers.iter().any(|server| server.leases[at] != Lease::default());
            if self.node(life).run != Run::Over || leases {
                known.add(life.into());
            }
        }
        self.views(&mut |view| {
            view.nodes.iter().for_each(|life| known.add((*life).into()));
            known.0 |= view.dead.0 | view.sealed.0;
        });
        self.director.nodes.iter().for_each(|life| known.add((*life).into()));
        known.0 |= self.director.dead.0;
        self.servers.iter().for_each(|server| {
            known.add(server.claim.into());
            known.0 |= server.unregistered.0;
        });
        known.remove(0);
        let mut order: Vec<usize> = known.iter().collect();
        order.sort_by_key(|life| (self.node(*life as Life).name, *life));
        let count = order.len() as Life;
        if count == self.born && order.is_sorted() {
            return;
        }
        let mut names = [0; LIVES + 1];
        for (index, life) in order.into_iter().enumerate() {
            names[life] = index as Life + 1;
        }
        let old = self.clone();
        self.born = count;
        (self.nodes, self.director.ended) = Default::default();
        self.servers.iter_mut().for_each(|server| server.leases = Default::default());
        for life in known.iter() {
            let (from, to) = (life - 1, usize::from(names[life]) - 1);
            self.nodes[to] = old.nodes[from];
            self.director.ended[to] = old.director.ended[from];
            for at in 0..SERVERS {
                self.servers[at].leases[to] = old.servers[at].leases[from];
            }
        }
        let rename = |life: &mut Life| *life = names[usize::from(*life)];
        let rename_all = |set: &mut Set| {
            let mut renamed = Set::default();
            set.iter().filter(|life| names[*life] != 0).for_each(|life| renamed.add(names[life].into()));
            *set = renamed;
        };
        self.views(&mut |view| {
            view.nodes.iter_mut().for_each(rename);
            rename_all(&mut view.dead);
            rename_all(&mut view.sealed);
        });
        self.director.nodes.iter_mut().for_each(rename);
        let Director { dead, sealed, unconfirmed, .. } = &mut self.director;
        [dead, sealed, unconfirmed].into_iter().for_each(rename_all);
        for server in &mut self.servers {
            rename(&mut server.claim);
            rename_all(&mut server.unregistered);
        }
        rename(&mut self.truth.owner);
        rename(&mut self.truth.first);
    }

    /// Every view that somebody has.
    fn views(&mut self, visit: &mut impl FnMut(&mut View)) {
        visit(&mut self.director.view);
        self.director.reports.iter_mut().for_each(|(_, view)| visit(view));
        self.queue.iter_mut().for_each(&mut *visit);
        self.servers.iter_mut().for_each(|server| visit(&mut server.view));
        for node in &mut self.nodes {
            visit(&mut node.view);
            visit(&mut node.adoption.plan);
        }
    }

    fn epochs(&mut self, visit: &mut impl FnMut(&mut Epoch)) {
        self.views(&mut |view| visit(&mut view.epoch));
        let director = &mut self.director;
        visit(&mut director.epoch);
        visit(&mut director.floor);
        visit(&mut director.shrunk);
        director.confirmed.iter_mut().for_each(&mut *visit);
        director.ended.iter_mut().for_each(&mut *visit);
        visit(&mut self.truth.top);
    }

    fn versions(&mut self, visit: &mut impl FnMut(&mut Version)) {
        for node in &mut self.nodes {
            visit(&mut node.version);
            visit(&mut node.adoption.found.version);
            for place in &mut node.places {
                visit(&mut place.acked);
                visit(&mut place.pushing);
                visit(&mut place.late.version);
            }
        }
        for lease in self.servers.iter_mut().flat_map(|server| &mut server.leases) {
            visit(&mut lease.cell.version);
        }
        visit(&mut self.truth.base);
        visit(&mut self.truth.told);
    }

    /// Numbers of views, and the ownership epochs that are made of them.
    fn numbers(&mut self, visit: &mut impl FnMut(&mut u8)) {
        self.epochs(&mut |epoch| visit(&mut epoch.number));
        self.versions(&mut |version| visit(&mut version.epoch));
    }

    fn terms(&mut self, visit: &mut impl FnMut(&mut u8)) {
        self.epochs(&mut |epoch| visit(&mut epoch.term));
        self.nodes.iter_mut().for_each(|node| visit(&mut node.born));
        visit(&mut self.director.born);
    }

    fn server_lives(&mut self, at: usize, visit: &mut impl FnMut(&mut u8)) {
        self.views(&mut |view| visit(&mut view.servers[at]));
        visit(&mut self.servers[at].life);
        visit(&mut self.director.servers[at]);
        visit(&mut self.director.barred[at]);
        visit(&mut self.director.reports[at].0);
        self.nodes.iter_mut().for_each(|node| visit(&mut node.places[at].server));
        visit(&mut self.truth.told_at[at]);
    }
}

/// Which values there are.
#[derive(Default)]
struct Values(u64);

impl Values {
    fn note(&mut self, value: u8) {
        self.0 |= 1 << value;
    }

    /// New values, from 1, in order; two that are further apart than `gap` are brought so near. 0 stays.
    fn names(&self, gap: u8) -> [u8; 64] {
        let mut names = [0; 64];
        let (mut last, mut name) = (None, 0);
        let mut rest = self.0 & !1;
        while rest != 0 {
            let value = rest.trailing_zeros() as u8;
            rest &= rest - 1;
            name += last.map_or(1, |last| gap.min(value - last));
            names[usize::from(value)] = name;
            last = Some(value);
        }
        names
    }
}
