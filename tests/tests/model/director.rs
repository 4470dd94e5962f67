//! The director's part: `director/src/cluster`, function by function under the same names.
//!
//! Silence is not measured: whoever is cut off, paused or dead may be declared down at any moment from then
//! on, but a node only when no mandate of it lasts (R8, `nodes.rs`). Reports are read when they arrive and
//! not queued: what the director concludes from them only grows.

use crate::setting::{Part, Setting, Sight};
use crate::state::*;

impl State {
    /// A server's report is taken in: `servers.rs`, `server_report` and `admit`.
    pub fn report(&mut self, set: &Setting, at: usize) -> bool {
        let Server { life, view, .. } = self.servers[at];
        let director = &mut self.director;
        if director.recovering {
            director.reported.add(at);
            director.reports[at] = (life, view);
            return true;
        }
        director.reported.add(at);
        if director.servers[at] == life {
            director.confirmed[at] = director.confirmed[at].max(view.epoch);
        } else {
            if director.servers[at] != 0 {
                self.server_down(at);
            }
            self.admit(set, at, life, view);
        }
        self.above(set, view.epoch);
        self.advance(set)
    }

    fn admit(&mut self, set: &Setting, at: usize, life: u8, view: View) {
        let r6 = set.holds(Part::DroppedStayOut);
        let director = &mut self.director;
        if r6 && life <= director.barred[at] {
            return;
        }
        if view.servers[at] == life {
            let alone = director.servers == [0; SERVERS];
            if !(alone && self.take_up_late(view)) && r6 {
                self.director.barred[at] = life;
                return;
            }
        }
        let director = &mut self.director;
        director.servers[at] = life;
        director.confirmed[at] = Epoch::default();
        director.changed = true;
    }

    /// A server is absent or silent: `servers.rs`, `server_down`.
    pub fn lose_server(&mut self, set: &Setting, at: usize) -> bool {
        set.saw(Sight::ServerDropped);
        self.server_down(at);
        self.advance(set)
    }

    fn server_down(&mut self, at: usize) {
        let director = &mut self.director;
        director.barred[at] = director.barred[at].max(director.servers[at]);
        director.servers[at] = 0;
        let confirmed = director.confirmed[at];
        for life in director.dead.iter() {
            let ended = director.ended[life - 1];
            if !director.sealed.has(life) && (ended == Epoch::default() || confirmed < ended) {
                director.unconfirmed.add(life);
            }
        }
        director.shrinks = true;
        director.changed = true;
    }

    /// A node is silent: `nodes.rs`, `silent_nodes`.
    pub fn lose_node(&mut self, set: &Setting, name: usize) -> bool {
        self.end(set, name);
        self.advance(set)
    }

    fn end(&mut self, set: &Setting, name: usize) {
        let director = &mut self.director;
        let life = std::mem::take(&mut director.nodes[name]);
        if life != 0 {
            director.dead.add(life.into());
            director.sealed.remove(life.into());
            director.unconfirmed.remove(life.into());
            // Its last beat told the view that it has, which nothing can change while it is not heard.
            let heard = self.nodes[usize::from(life) - 1].view.epoch;
            if (director.shrinks || heard < director.shrunk) && set.holds(Part::MandateAwaitedUnheard) {
                director.unconfirmed.add(life.into());
            }
            director.ended[usize::from(life) - 1] = Epoch::default();
            director.changed = true;
        }
    }

    /// A node's next life: `nodes.rs`, `register`; the view that follows is its answer.
    pub fn register(&mut self, set: &Setting, name: usize) -> bool {
        if usize::from(self.born) == LIVES {
            return false;
        }
        self.end(set, name);
        self.born += 1;
        let life = self.born;
        self.director.nodes[name] = life;
        self.director.changed = true;
        let born = self.director.epoch.term;
        *self.node_mut(life) = Node { name: name as u8, run: Run::Up, born, linked: true, ..Node::default() };
        self.advance(set);
        self.node_mut(life).view = self.director.view;
        true
    }

    /// A node that the director does not know as linked speaks: `nodes.rs`, `resume`; or one that has ended
    /// beats. Either it goes on, or it hears that it is over.
    pub fn hear(&mut self, set: &Setting, life: Life) -> bool {
        let node = *self.node(life);
        if self.director.recovering {
            self.node_mut(life).linked = true;
            return true;
        }
        let known = self.director.nodes[usize::from(node.name)] == life;
        if !known && (node.linked || !self.may_resume(set, &node, life)) {
            if node.woken {
                set.saw(Sight::ZombieRefused);
            }
            self.poison(life);
            return true;
        }
        self.resume(set, life);
        self.advance(set);
        // What it missed while it was not linked is not sent again, only the newest view.
        let view = self.director.view;
        if view.epoch > node.view.epoch {
            crate::cluster::Cluster::node_takes(self, set, life, view);
        }
        true
    }

    fn resume(&mut self, set: &Setting, life: Life) {
        let node = *self.node(life);
        self.above(set, node.view.epoch);
        if self.director.nodes[usize::from(node.name)] == 0 {
            set.saw(Sight::ResumedUnknown);
            self.director.based |= set.holds(Part::DroppedStayOut);
            self.director.nodes[usize::from(node.name)] = life;
            self.director.changed = true;
        }
        self.node_mut(life).linked = true;
    }

    /// `recover.rs`, `may_resume`.
    fn may_resume(&self, set: &Setting, node: &Node, life: Life) -> bool {
        let director = &self.director;
        let newest = node.view.epoch >= director.floor || !set.holds(Part::ResumeOnlyNewest);
        director.nodes[usize::from(node.name)] == 0
            && director.grace
            && !director.dead.has(life.into())
            && newest
            && node.born < director.born
    }

    /// A director's life begins: `mod.rs`, `Cluster::new`. Its term is above the last one's, which is kept.
    pub fn start_director(&mut self, set: &Setting) -> bool {
        let born = self.director.born + u8::from(set.holds(Part::TermRises));
        // Nobody is connected yet, and what the last one sent has arrived or never will.
        self.queue.clear();
        for life in self.lives() {
            self.node_mut(life).linked = false;
        }
        self.director = Director { run: Run::Up, recovering: true, born, ..Director::default() };
        true
    }

    /// Recovery ends: `recover.rs`, `try_recover`.
    pub fn recover(&mut self, set: &Setting) -> bool {
        let reports: Vec<(usize, u8, View)> = (0..SERVERS)
            .filter(|at| self.director.reported.has(*at))
            .map(|at| (at, self.director.reports[at].0, self.director.reports[at].1))
            .collect();
        let views = reports.iter().map(|(.., view)| *view).filter(|view| view.epoch != Epoch::default());
        let base = views.max_by_key(|view| view.epoch);
        let waiting: Vec<Life> = self.lives().filter(|life| self.node(*life).linked).collect();
        let resumes = waiting.iter().map(|life| self.node(*life).view.epoch);
        let seen: Vec<Epoch> = reports.iter().map(|(.., view)| view.epoch).chain(resumes).collect();
        let director = &mut self.director;
        director.recovering = false;
        director.reports = Default::default();
        director.floor = seen.iter().copied().max().unwrap_or_default();
        director.epoch = Epoch { term: director.born, number: 0 };
        if set.holds(Part::AboveReported) {
            director.epoch.number = seen.iter().map(|epoch| epoch.number).max().unwrap_or_default();
        }
        director.grace = true;
        director.based = base.is_some();
        director.changed = true;
        director.shrinks = true;
        set.saw(if base.is_some() { Sight::Recovered } else { Sight::RecoveredUnheard });
        if let Some(base) = base {
            if !base.dead.is_empty() && !base.all_sealed() {
                set.saw(Sight::RecoveredAmidTakeover);
            }
            self.take_up(base);
        }
        self.admit_reported(set, &reports, base);
        for life in waiting {
            let node = *self.node(life);
            self.node_mut(life).linked = false;
            let known = self.director.nodes[usize::from(node.name)] == life;
            if known || self.may_resume(set, &node, life) {
                self.resume(set, life);
            }
        }
        self.advance(set);
        true
    }

    /// `recover.rs`, `take_up`.
    fn take_up(&mut self, base: View) {
        let director = &mut self.director;
        for (name, life) in base.nodes.into_iter().enumerate().filter(|(_, life)| *life != 0) {
            if director.nodes[name] == 0 {
                director.nodes[name] = life;
            } else if director.nodes[name] != life {
                director.dead.add(life.into());
            }
        }
        for life in base.dead.iter() {
            director.dead.add(life);
            director.unconfirmed.add(life);
            if base.sealed.has(life) {
                director.sealed.add(life);
            }
        }
        for (at, life) in base.servers.into_iter().enumerate() {
            if director.servers[at] == 0 && life != 0 {
                director.servers[at] = life;
            }
        }
    }

    fn take_up_late(&mut self, old: View) -> bool {
        if std::mem::replace(&mut self.director.based, true) {
            return false;
        }
        self.take_up(old);
        true
    }

    fn admit_reported(&mut self, set: &Setting, reports: &[(usize, u8, View)], base: Option<View>) {
        for (at, life, view) in reports {
            let director = &mut self.director;
            let was_member = view.servers[*at] == *life;
            let is_member = base.is_some_and(|base| base.servers[*at] == *life);
            if was_member && !is_member && set.holds(Part::DroppedStayOut) {
                director.barred[*at] = *life;
                continue;
            }
            if director.servers[*at] != 0 && director.servers[*at] != *life {
                director.barred[*at] = director.servers[*at];
            }
            director.servers[*at] = *life;
        }
    }

    /// The time in which a node that no server told about may resume is over.
    pub fn end_grace(&mut self) -> bool {
        self.director.grace = false;
        true
    }

    /// `mod.rs`, `above`.
    fn above(&mut self, set: &Setting, seen: Epoch) {
        if !set.holds(Part::AboveReported) {
            return;
        }
        let director = &mut self.director;
        let ours = director.epoch;
        if seen.term > ours.term || (seen.term == ours.term && seen.number > ours.number) {
            director.epoch.term = seen.term + 1;
            director.changed = true;
        }
        if seen.number > director.epoch.number {
            director.epoch.number = seen.number;
            director.changed = true;
        }
    }

    /// Follows up: `mod.rs`, `advance`. Says whether anything has changed.
    pub fn advance(&mut self, set: &Setting) -> bool {
        let mut any = false;
        loop {
            self.review_dead(set);
            if !std::mem::take(&mut self.director.changed) {
                return any;
            }
            self.raise();
            any = true;
        }
    }

    fn raise(&mut self) {
        let director = &mut self.director;
        director.epoch.number += 1;
        if std::mem::take(&mut director.shrinks) {
            director.shrunk = director.epoch;
        }
        for life in director.dead.iter() {
            let ended = &mut director.ended[life - 1];
            if *ended == Epoch::default() {
                *ended = director.epoch;
            }
        }
        director.view = View {
            epoch: director.epoch,
            nodes: director.nodes,
            servers: director.servers,
            dead: director.dead,
            sealed: director.sealed,
        };
        let view = director.view;
        self.queue.push(view);
        // R12: above all that was ever sent, and its number above all that is known of.
        let known = |state: &Self| {
            let servers = (0..SERVERS).filter(|at| state.director.reported.has(*at));
            let servers = servers.filter(|at| state.director.servers[*at] == state.servers[*at].life);
            let nodes = state.lives().filter(|life| state.node(*life).linked && state.hears_director(*life));
            let servers = servers.map(|at| state.servers[at].view.epoch.number);
            servers.chain(nodes.map(|life| state.node(life).view.epoch.number)).max()
        };
        if view.epoch <= self.truth.top || known(self).is_some_and(|number| view.epoch.number <= number) {
            self.go_wrong(Wrong::EpochReused);
        }
        self.truth.top = self.truth.top.max(view.epoch);
    }

    /// `dead.rs`, `review_dead`.
    fn review_dead(&mut self, set: &Setting) {
        for life in self.director.dead.iter() {
            let ended = self.director.ended[life - 1];
            if ended == Epoch::default() {
                continue;
            }
            if !self.director.sealed.has(life) {
                if self.may_be_adopted(set, life, ended) {
                    self.director.sealed.add(life);
                    self.director.changed = true;
                }
            } else if self.is_settled(set, life, ended) {
                set.saw(Sight::Released);
                self.director.dead.remove(life);
                self.director.sealed.remove(life);
                self.director.unconfirmed.remove(life);
                self.director.ended[life - 1] = Epoch::default();
                self.director.changed = true;
            }
        }
    }

    fn may_be_adopted(&self, set: &Setting, life: usize, ended: Epoch) -> bool {
        let director = &self.director;
        let confirmed = (0..SERVERS).all(|at| director.servers[at] == 0 || director.confirmed[at] >= ended);
        let mandate = self.node(life as Life).mandate;
        if confirmed && director.unconfirmed.has(life) && mandate {
            set.saw(Sight::WaitedForMandate);
        }
        (confirmed || !set.holds(Part::SealedEverywhere))
            && (!director.unconfirmed.has(life) || !mandate || !set.holds(Part::MandateAwaited))
    }

    fn is_settled(&self, set: &Setting, life: usize, ended: Epoch) -> bool {
        let settled = (0..SERVERS).filter(|at| self.director.servers[*at] != 0).all(|at| {
            let server = &self.servers[at];
            let lease = server.leases[life - 1];
            self.hears_server(at)
                && server.life == self.director.servers[at]
                && self.director.confirmed[at] >= ended
                && (lease.state != LeaseState::Open)
                && (!lease.cell.is_live() || lease.settled)
        });
        settled || !set.holds(Part::ReleasedWhenSettled)
    }
}
