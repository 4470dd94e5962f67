//! What can happen next, and what must hold.

use crate::setting::{Part, Setting};
use crate::state::*;
use stateright::{Model, Property};

/// One step. Node lives and servers are named by their numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// The director finds a server absent, or silent for too long.
    LoseServer(usize),
    /// The director finds a node silent for too long.
    LoseNode(usize),
    /// Its recovery ends.
    Recover,
    /// Its time of grace for unknown nodes ends.
    EndGrace,
    /// A node's life speaks, and goes on or hears that it is over.
    Hear(Life),
    /// A node's next life registers.
    Register(usize),
    /// A mandate runs out.
    MandateOut(Life),
    /// A server takes the next view.
    ServerView(usize),
    /// A node takes the next view.
    NodeView(Life),
    /// A server tells a node's life that it is over.
    ServerSaysOver(Life, usize),
    Commit(Life),
    /// The background pushes what is missing: copies, or tombstones.
    Copy(Life),
    /// A push arrives.
    Land(Life, usize),
    /// A push fails: its server is dead, or cut off.
    Fail(Life, usize),
    /// A push that was given up arrives.
    LandLate(Life, usize),
    /// It never will.
    EndLate(Life, usize),
    EndCommit(Life),
    Move(Life, usize),
    Destroy(Life),
    Declare(Life, usize),
    TellGone(Life),
    Free(Life),
    Open(Life),
    OpenAgain(Life),
    Claim(Life, usize),
    GiveUp(Life),
    Conclude(Life),
    ClaimAtNewcomer(Life),
    Register1(Life, usize),
    KillNode(Life),
    PauseNode(Life),
    WakeNode(Life),
    KillServer(usize),
    PauseServer(usize),
    WakeServer(usize),
    StartServer(usize),
    /// The director dies and begins anew; until its recovery ends it is as good as dead.
    KillDirector,
    /// A connection is cut.
    Cut(usize),
    Heal(usize),
    /// A push hangs and is given up.
    Delay(Life, usize),
    /// The answer to a claim is lost.
    LoseAnswer(Life, usize),
    /// A next life of a node registers while the last one still runs.
    Twin(usize),
}

/// A kind of fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    KillNode,
    PauseNode,
    Twin,
    KillServer,
    PauseServer,
    KillDirector,
    CutNode,
    CutServer,
    CutPush,
    Delay,
    LoseAnswer,
}

impl Kind {
    pub const ALL: [Self; 11] = [
        Self::KillNode,
        Self::PauseNode,
        Self::Twin,
        Self::KillServer,
        Self::PauseServer,
        Self::KillDirector,
        Self::CutNode,
        Self::CutServer,
        Self::CutPush,
        Self::Delay,
        Self::LoseAnswer,
    ];

    fn of(fault: Step) -> Self {
        match fault {
            Step::KillNode(_) => Self::KillNode,
            Step::PauseNode(_) => Self::PauseNode,
            Step::Twin(_) => Self::Twin,
            Step::KillServer(_) => Self::KillServer,
            Step::PauseServer(_) => Self::PauseServer,
            Step::Delay(..) => Self::Delay,
            Step::LoseAnswer(..) => Self::LoseAnswer,
            Step::Cut(link) if link < NODES => Self::CutNode,
            Step::Cut(link) if link < NODES + SERVERS => Self::CutServer,
            Step::Cut(_) => Self::CutPush,
            _ => Self::KillDirector,
        }
    }
}

/// The model.
pub struct Cluster(pub Setting);

impl Cluster {
    fn begin(&self) -> State {
        let epoch = Epoch { term: 1, number: 1 };
        let view = View { epoch, nodes: [1, 2], servers: [1; SERVERS], ..View::default() };
        let mut state = State { born: 2, ..State::default() };
        state.director = Director {
            run: Run::Up,
            epoch,
            view,
            nodes: view.nodes,
            servers: view.servers,
            confirmed: [epoch; SERVERS],
            reported: Set((1 << SERVERS) - 1),
            based: true,
            born: 1,
            ..Director::default()
        };
        for life in [1, 2] {
            let node = Node {
                name: life - 1,
                run: Run::Up,
                born: 1,
                linked: true,
                mandate: true,
                view,
                ..Node::default()
            };
            *state.node_mut(life) = node;
        }
        state.servers = [Server { run: Run::Up, life: 1, view, ..Server::default() }; SERVERS];
        let version = Version { epoch: 1, counter: 1 };
        let host = state.node_mut(1);
        (host.entry, host.version) = (Entry::Live, version);
        state.truth =
            Truth { owner: 1, first: 1, base: version, told: version, top: epoch, ..Truth::default() };
        for at in self.0.placed(&view.servers).iter() {
            state.nodes[0].places[at] = Place { server: 1, acked: version, ..Place::default() };
            let cell = Cell { version, gone: false };
            state.servers[at].leases[0] = Lease { state: LeaseState::Open, cell, settled: false };
            state.truth.told_at[at] = 1;
        }
        state
    }

    fn director_steps(&self, state: &State, steps: &mut Vec<Step>) {
        let director = &state.director;
        let unheard = |at: usize| state.servers[at].run != Run::Up || state.cut.has(director_server(at));
        for at in 0..SERVERS {
            let server = &state.servers[at];
            let other = director.servers[at] != server.life;
            if !director.recovering && director.servers[at] != 0 && (unheard(at) || other) {
                steps.push(Step::LoseServer(at));
            }
        }
        if director.recovering {
            let known = |at: usize| director.reported.has(at) || unheard(at);
            if (0..SERVERS).all(known) || !self.0.holds(Part::RecoveryWaits) {
                steps.push(Step::Recover);
            }
            return;
        }
        for name in 0..NODES {
            let life = director.nodes[name];
            let runs = |life: &Life| {
                usize::from(state.node(*life).name) == name && state.node(*life).run != Run::Over
            };
            if !state.lives().any(|life| runs(&life))
                && usize::from(state.born) < LIVES
                && !state.cut.has(director_node(name))
            {
                steps.push(Step::Register(name));
            }
            if life == 0 {
                continue;
            }
            let node = state.node(life);
            let silent = node.run != Run::Up || state.cut.has(director_node(name));
            if silent && (!node.mandate || !self.0.holds(Part::MandateShorter)) {
                steps.push(Step::LoseNode(name));
            }
        }
        let speaks = |life: &Life| state.hears_director(*life) && !state.node(*life).linked;
        if director.grace && !state.lives().any(|life| speaks(&life)) {
            // Those that come too late.
            steps.push(Step::EndGrace);
        }
    }

    /// The next view on its way to who has this one. A new director's first is the newest that there is.
    fn next_view(state: &State, have: Epoch) -> Option<View> {
        let newest = Some(state.director.view).filter(|view| view.epoch > have);
        state.queue.iter().copied().find(|view| view.epoch > have).or(newest)
    }

    fn server_steps(&self, state: &State, at: usize, steps: &mut Vec<Step>) {
        let server = &state.servers[at];
        match server.run {
            Run::Over => return steps.push(Step::StartServer(at)),
            Run::Paused => return steps.push(Step::WakeServer(at)),
            Run::Up => {}
        }
        let sends = state.director.reported.has(at) || !self.0.holds(Part::ReportFirst);
        if state.hears_server(at) && sends && !state.director.recovering {
            steps.extend(Self::next_view(state, server.view.epoch).map(|_| Step::ServerView(at)));
        }
    }

    fn node_steps(&self, state: &State, life: Life, steps: &mut Vec<Step>) {
        let node = state.node(life);
        if node.mandate && !Self::is_renewed(state, life) {
            steps.push(Step::MandateOut(life));
        }
        if node.run == Run::Paused {
            steps.push(Step::WakeNode(life));
        }
        for at in 0..SERVERS {
            let place = &node.places[at];
            if place.late != Cell::default() && node.run != Run::Over {
                let server = &state.servers[at];
                let open = server.leases[usize::from(life) - 1].state == LeaseState::Open;
                if server.life == place.server && server.run != Run::Over && open {
                    steps.push(Step::LandLate(life, at));
                }
                // A destroyed session's tombstones wait for it; otherwise it makes no difference.
                if node.entry == Entry::Gone {
                    steps.push(Step::EndLate(life, at));
                }
            }
        }
        if node.run != Run::Up {
            return;
        }
        let known = state.director.nodes[usize::from(node.name)] == life;
        if state.hears_director(life) {
            let recovering = state.director.recovering;
            if !node.linked || (!known && !recovering) {
                steps.push(Step::Hear(life));
            } else if known && !recovering {
                steps.extend(Self::next_view(state, node.view.epoch).map(|_| Step::NodeView(life)));
            }
        }
        for at in 0..SERVERS {
            if state.can_ask(life, at, node.view.servers[at]) {
                let server = &state.servers[at].view;
                if !server.has_node(life) && server.epoch > node.view.epoch {
                    steps.push(Step::ServerSaysOver(life, at));
                }
                if state.registers(life, at) {
                    steps.push(Step::Register1(life, at));
                }
            }
        }
        self.host_steps(state, life, steps);
        self.adopter_steps(state, life, steps);
    }

    fn host_steps(&self, state: &State, life: Life, steps: &mut Vec<Step>) {
        let set = &self.0;
        let node = state.node(life);
        for at in 0..SERVERS {
            let place = &node.places[at];
            if place.pushing != Version::NONE {
                let server = &state.servers[at];
                let lost = server.life != place.server || server.run == Run::Over;
                let cut = state.is_cut(life, at);
                steps.push(if lost || cut { Step::Fail(life, at) } else { Step::Land(life, at) });
            }
        }
        if node.is_pushing() {
            return;
        }
        match node.entry {
            Entry::Live if node.wish == Wish::Commit => steps.push(Step::EndCommit(life)),
            Entry::Live => {
                if state.commits < set.commits && !node.adopted {
                    steps.push(Step::Commit(life));
                }
                if set.destroys && !state.destroyed {
                    steps.push(Step::Destroy(life));
                }
                if !state.is_safe(set, life) {
                    steps.push(Step::Copy(life));
                }
                for at in 0..SERVERS {
                    if state.moves(set, life, at) {
                        steps.push(Step::Move(life, at));
                    }
                }
            }
            Entry::Gone => {
                steps.push(Step::Copy(life));
                steps.extend(
                    (0..SERVERS)
                        .filter(|at| state.declares(set, life, *at))
                        .map(|at| Step::Declare(life, at)),
                );
                if node.wish == Wish::Destroy && state.is_buried(set, life) {
                    steps.push(Step::TellGone(life));
                }
                if state.frees(set, life) {
                    steps.push(Step::Free(life));
                }
            }
            Entry::None | Entry::Adopting => {}
        }
    }

    fn adopter_steps(&self, state: &State, life: Life, steps: &mut Vec<Step>) {
        let set = &self.0;
        let node = state.node(life);
        match node.entry {
            // The cookie names the first host; every node that does not know it as live may be asked.
            Entry::None if state.truth.first == 0 || !node.view.has_node(state.truth.first) => {
                steps.push(Step::Open(life))
            }
            Entry::Adopting => {
                let next = match state.next_to_claim(set, life) {
                    Some(at) => Step::Claim(life, at),
                    None => Step::Conclude(life),
                };
                if self.take(&mut state.clone(), next) {
                    steps.push(next);
                } else {
                    // It waits, and looks at the newest view, or its user's time is over.
                    if node.adoption.plan != node.view {
                        steps.push(Step::OpenAgain(life));
                    }
                    if !node.adoption.asked.is_empty() {
                        steps.push(Step::GiveUp(life));
                    }
                }
            }
            Entry::Live => {
                if node.adoption != Adoption::default() {
                    steps.push(Step::ClaimAtNewcomer(life));
                }
            }
            Entry::None | Entry::Gone => {}
        }
    }

    fn fault_steps(&self, state: &State, steps: &mut Vec<Step>) {
        steps.extend(state.cut.iter().map(Step::Heal));
        if state.faults == self.0.faults {
            return;
        }
        let mut faults = Vec::new();
        let up = |life: &Life| state.node(*life).run == Run::Up;
        for life in state.lives().filter(up) {
            faults.extend([Step::KillNode(life), Step::PauseNode(life)]);
            let node = state.node(life);
            for at in 0..SERVERS {
                if node.places[at].pushing != Version::NONE {
                    faults.push(Step::Delay(life, at));
                }
            }
            if node.entry == Entry::Adopting
                && let Some(at) = state.next_to_claim(&self.0, life)
            {
                faults.push(Step::LoseAnswer(life, at));
            }
            let name = usize::from(node.name);
            if state.director.nodes[name] == life && !state.director.recovering {
                faults.push(Step::Twin(name));
            }
        }
        for at in (0..SERVERS).filter(|at| state.servers[*at].run == Run::Up) {
            faults.extend([Step::KillServer(at), Step::PauseServer(at)]);
        }
        faults.push(Step::KillDirector);
        let links = 0..NODES + SERVERS + NODES * SERVERS;
        faults.extend(links.filter(|link| !state.cut.has(*link)).map(Step::Cut));
        steps.extend(faults.into_iter().filter(|fault| self.0.kinds.contains(&Kind::of(*fault))));
    }

    fn is_renewed(state: &State, life: Life) -> bool {
        let node = state.node(life);
        let known = state.director.nodes[usize::from(node.name)] == life;
        state.hears_director(life) && !state.director.recovering && node.linked && known
    }

    fn take(&self, state: &mut State, step: Step) -> bool {
        let set = &self.0;
        match step {
            Step::LoseServer(at) => state.lose_server(set, at),
            Step::LoseNode(name) => state.lose_node(set, name),
            Step::Recover => state.recover(set),
            Step::EndGrace => state.end_grace(),
            Step::Hear(life) => state.hear(set, life),
            Step::Register(name) => state.register(set, name),
            Step::MandateOut(life) => {
                state.node_mut(life).mandate = false;
                true
            }
            Step::ServerView(at) => {
                let next = Self::next_view(state, state.servers[at].view.epoch);
                next.is_some_and(|view| state.server_takes(set, at, view))
            }
            Step::NodeView(life) => {
                let next = Self::next_view(state, state.node(life).view.epoch);
                next.is_some_and(|view| Self::node_takes(state, set, life, view))
            }
            Step::ServerSaysOver(life, _) => state.poison(life),
            Step::Commit(life) => state.commit(set, life),
            Step::Copy(life) if state.node(life).entry == Entry::Gone => state.bury(set, life),
            Step::Copy(life) => state.copy(set, life),
            Step::Land(life, at) => state.land(set, life, at),
            Step::Fail(life, at) => {
                let server = &state.servers[at];
                let alive = server.run != Run::Over && server.life == state.node(life).places[at].server;
                state.give_push_up(life, at, alive)
            }
            Step::LandLate(life, at) => state.land_late(set, life, at),
            Step::EndLate(life, at) => state.end_late(life, at),
            Step::EndCommit(life) => state.end_commit(set, life),
            Step::Move(life, at) => state.move_away(set, life, at),
            Step::Destroy(life) => state.destroy(set, life),
            Step::Declare(life, at) => state.declare(life, at),
            Step::TellGone(life) => state.tell_gone(set, life),
            Step::Free(life) => state.free(life),
            Step::Open(life) => state.open(set, life),
            Step::OpenAgain(life) => state.open_again(set, life),
            Step::Claim(life, at) => state.claim(set, life, at, false),
            Step::GiveUp(life) => state.give_up(life),
            Step::Conclude(life) => state.conclude(set, life),
            Step::ClaimAtNewcomer(life) => state.claim_at_newcomer(set, life),
            Step::Register1(life, at) => state.register_at(set, life, at),
            Step::WakeNode(life) => {
                let over = !state.director.nodes.contains(&life);
                let node = state.node_mut(life);
                (node.run, node.woken) = (Run::Up, over);
                true
            }
            Step::WakeServer(at) => {
                state.servers[at].run = Run::Up;
                true
            }
            Step::StartServer(at) => {
                let life = state.servers[at].life + 1;
                state.servers[at] = Server { run: Run::Up, life, ..Server::default() };
                state.director.reported.remove(at);
                true
            }
            Step::Heal(link) => {
                state.cut.remove(link);
                true
            }
            fault => {
                state.faults += 1;
                self.fail(state, fault)
            }
        }
    }

    fn fail(&self, state: &mut State, fault: Step) -> bool {
        match fault {
            Step::KillNode(life) => state.poison(life),
            Step::PauseNode(life) => {
                state.node_mut(life).run = Run::Paused;
                true
            }
            Step::KillServer(at) => {
                let life = state.servers[at].life;
                state.servers[at] = Server { life, ..Server::default() };
                true
            }
            Step::PauseServer(at) => {
                state.servers[at].run = Run::Paused;
                true
            }
            Step::KillDirector => state.start_director(&self.0),
            Step::Cut(link) => {
                state.cut.add(link);
                for life in state.lives() {
                    if director_node(usize::from(state.node(life).name)) == link {
                        state.node_mut(life).linked = false;
                    }
                }
                true
            }
            Step::Delay(life, at) => state.give_push_up(life, at, true),
            Step::LoseAnswer(life, at) => state.claim(&self.0, life, at, true),
            Step::Twin(name) => !state.director.recovering && state.register(&self.0, name),
            _ => false,
        }
    }

    /// A view arrives at a node: `steward.rs`, `take_view`.
    pub fn node_takes(state: &mut State, set: &Setting, life: Life, view: View) -> bool {
        if !view.has_node(life) {
            return state.poison(life);
        }
        let node = state.node_mut(life);
        let old = std::mem::replace(&mut node.view, view);
        for at in 0..SERVERS {
            let place = &mut node.places[at];
            // The lease's book is retired (R6).
            if place.server != view.servers[at] && set.holds(Part::AckOfLife) {
                *place = Place::default();
            }
            if view.servers[at] != old.servers[at] {
                node.declared.remove(at);
            }
        }
        true
    }

    /// What follows at once. Reports, and what the director concludes from them, are seen by others only when
    /// the next view arrives, so it makes no difference that they do not wait; settling early is worse than
    /// late; and mandates are of use to hosts only.
    fn follow(&self, state: &mut State) {
        let set = &self.0;
        for life in state.lives() {
            let node = state.node(life);
            let mandate = node.entry == Entry::Live && (node.mandate || Self::is_renewed(state, life));
            state.node_mut(life).mandate = mandate;
            for at in 0..SERVERS {
                if state.settles(set, life, at) {
                    state.settle_at(set, life, at);
                }
            }
        }
        self.hear_reports(state);
        for life in state.lives() {
            // Who hosts nothing goes by a view only when it begins to adopt, which is a step of its own.
            while state.node(life).entry == Entry::None && Self::is_renewed(state, life) {
                let Some(view) = Self::next_view(state, state.node(life).view.epoch) else { break };
                Self::node_takes(state, set, life, view);
            }
        }
        Self::tidy(state);
        state.rename(set);
    }

    fn hear_reports(&self, state: &mut State) {
        let set = &self.0;
        for at in 0..SERVERS {
            if state.hears_server(at) {
                let Server { life, view, .. } = state.servers[at];
                let director = &state.director;
                let barred = director.barred[at] >= life && set.holds(Part::DroppedStayOut);
                let news = match director.servers[at] == life {
                    true => director.confirmed[at] < view.epoch,
                    false => !barred && !director.recovering,
                };
                if news && !director.recovering || !director.reported.has(at) {
                    state.report(set, at);
                }
            }
        }
        if state.director.run == Run::Up && !state.director.recovering {
            state.advance(set);
        }
    }

    fn tidy(state: &mut State) {
        let nodes =
            state.lives().filter(|life| state.node(*life).run != Run::Over && state.node(*life).linked);
        let nodes =
            nodes.filter(|life| state.director.nodes.contains(life)).map(|life| state.node(life).view.epoch);
        let servers =
            (0..SERVERS).filter(|at| state.director.reported.has(*at) && state.servers[*at].run != Run::Over);
        let servers = servers.map(|at| state.servers[at].view.epoch);
        let least = nodes.chain(servers).min().unwrap_or(state.director.view.epoch);
        state.queue.retain(|view| view.epoch > least);
        let newest = state.director.view;
        if state.queue.last() == Some(&newest) && state.queue.len() == 1 {
            state.queue.clear();
        }
        let unknown = |life: Life| {
            let node = state.node(life);
            node.run != Run::Over && !node.linked && state.director.nodes[usize::from(node.name)] == 0
        };
        if !state.director.recovering && !state.lives().any(unknown) {
            state.director.grace = false;
        }
        let served = |life: Life| {
            life != 0 && state.node(life).run == Run::Up && state.node(life).entry == Entry::Live
        };
        if state.truth.gone && newest.nodes.into_iter().any(served) {
            state.go_wrong(Wrong::CameBack);
        }
    }

    /// Lives whose acks could be told now: under a mandate, with a lease in reach that is not sealed.
    fn able_to_ack(state: &State) -> usize {
        let able = |life: &Life| {
            let node = state.node(*life);
            let open = (0..SERVERS).any(|at| {
                let server = &state.servers[at];
                server.run != Run::Over
                    && server.life == node.places[at].server
                    && server.leases[usize::from(*life) - 1].state == LeaseState::Open
                    && !state.is_cut(*life, at)
            });
            node.run != Run::Over && node.entry == Entry::Live && node.mandate && open
        };
        state.lives().filter(|life| able(life)).count()
    }
}

impl Model for Cluster {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![self.begin()]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        if state.truth.wrong.is_some() {
            return;
        }
        self.director_steps(state, steps);
        (0..SERVERS).for_each(|at| self.server_steps(state, at, steps));
        state.lives().for_each(|life| self.node_steps(state, life, steps));
        self.fault_steps(state, steps);
    }

    fn next_state(&self, state: &State, step: Step) -> Option<State> {
        let mut next = state.clone();
        self.take(&mut next, step).then(|| {
            self.follow(&mut next);
            next
        })
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("no stranger's commit is acked", |_, state: &State| {
                state.truth.wrong != Some(Wrong::StrangerAcked)
            }),
            Property::always("never two that can ack", |_, state: &State| Self::able_to_ack(state) < 2),
            Property::always("never two that are served from", |_, state: &State| {
                let served = |life: &&Life| **life != 0 && state.node(**life).entry == Entry::Live;
                state.director.view.nodes.iter().filter(served).count() < 2
            }),
            Property::always("what was acked is found", |_, state: &State| {
                state.truth.wrong != Some(Wrong::AckedLost)
            }),
            Property::always("gone is gone", |_, state: &State| state.truth.wrong != Some(Wrong::CameBack)),
            Property::always("no epoch is used twice", |_, state: &State| {
                state.truth.wrong != Some(Wrong::EpochReused)
            }),
            Property::sometimes("a session is taken over and its first host released", |_, state: &State| {
                state.truth.first == 0 && state.truth.owner != 0 && state.director.dead.is_empty()
            }),
            Property::sometimes("a zombie wakes beside the new host", |_, state: &State| {
                state.lives().any(|life| {
                    life != state.truth.owner
                        && state.node(life).woken
                        && state.node(life).entry == Entry::Live
                }) && state.truth.owner != state.truth.first
            }),
            Property::sometimes("a restarted server has a copy again", |_, state: &State| {
                state
                    .servers
                    .iter()
                    .any(|server| server.life > 1 && server.leases.iter().any(|lease| lease.cell.is_live()))
            }),
            Property::sometimes("a director restarts in the middle of a takeover", |_, state: &State| {
                let director = &state.director;
                director.epoch.term > 1 && director.dead != director.sealed
            }),
        ]
    }
}
