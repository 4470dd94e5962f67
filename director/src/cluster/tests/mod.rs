//! Tests of the state machine, in a small world: scripted servers and nodes, a clock that the test moves.

mod doom;
mod drain;
mod evidence;
mod life;
mod out;
mod recovery;
mod rules;

use super::*;
use selvage_fabric::control::message::{LeaseReport, LinkReport, NodeBeat};
use selvage_fabric::view::DeadEntry;

pub(super) const UNIX_S: u32 = 1_700_000_000;

/// A session server as the director sees it.
pub(super) struct FakeServer {
    pub(super) link: Link,
    pub(super) incarnation: Incarnation,
    /// Answers at all.
    pub(super) answers: bool,
    /// Carries views out.
    pub(super) obeys: bool,
    pub(super) view: Option<View>,
    /// Unsettled sessions of an ended incarnation, told once it is sealed.
    pub(super) unsettled: HashMap<Incarnation, u64>,
}

/// The state machine and what it has said.
pub(super) struct World {
    pub(super) cluster: Cluster,
    pub(super) now: Moment,
    link_next: u64,
    pub(super) servers: BTreeMap<String, FakeServer>,
    /// Nodes that beat: link and what they report.
    pub(super) beating: BTreeMap<String, (Link, NodeBeat)>,
    pub(super) published: Vec<(Arc<View>, Vec<Incarnation>)>,
    pub(super) to_nodes: Vec<(Link, FromDirector)>,
    pub(super) to_servers: Vec<(Link, ToServer)>,
    pub(super) awaited: Vec<(Incarnation, u64)>,
    pub(super) outcomes: HashMap<Ticket, DrainOutcome>,
    pub(super) answers: HashMap<Ticket, ErrandAnswer>,
    pub(super) dooms: HashMap<Ticket, DoomOutcome>,
    /// What is kept for the next director.
    pub(super) drained: Vec<(String, Out)>,
    /// Lives whose one-sided beats go on, and when each was last seen to move.
    pub(super) pulses: BTreeMap<Incarnation, Moment>,
    /// Those among them that have stopped.
    pub(super) stopped: Vec<Incarnation>,
}

pub(super) fn settings(nodes: &[&str], servers: &[&str]) -> Settings {
    Settings {
        heartbeat: Duration::from_millis(50),
        mandate: Duration::from_millis(250),
        silence: Duration::from_millis(300),
        hold: Duration::from_secs(5),
        tick: Duration::from_millis(10),
        copies: 2,
        nodes: (1..).zip(nodes).map(|(at, name)| (name.to_string(), format!("127.0.0.1:{at}"))).collect(),
        servers: servers
            .iter()
            .map(|name| ServerSettings {
                name: name.to_string(),
                weight: 1,
                socket: format!("/s/{name}"),
                control: None,
            })
            .collect(),
        drained: Vec::new(),
        term_min: UNIX_S,
        kept: None,
    }
}

impl World {
    /// Nobody has spoken yet.
    pub(super) fn silent(nodes: &[&str], servers: &[&str]) -> Self {
        Self {
            cluster: Cluster::new(settings(nodes, servers), Duration::ZERO),
            now: Duration::ZERO,
            link_next: 1,
            servers: BTreeMap::new(),
            beating: BTreeMap::new(),
            published: Vec::new(),
            to_nodes: Vec::new(),
            to_servers: Vec::new(),
            awaited: Vec::new(),
            outcomes: HashMap::new(),
            answers: HashMap::new(),
            dooms: HashMap::new(),
            drained: Vec::new(),
            pulses: BTreeMap::new(),
            stopped: Vec::new(),
        }
    }

    /// All servers and nodes are up and beat.
    pub(super) fn up(nodes: &[&str], servers: &[&str]) -> Self {
        let mut world = Self::silent(nodes, servers);
        for (at, name) in (1..).zip(servers) {
            world.server_up(name, at);
        }
        for name in nodes {
            world.node_up(name);
        }
        world.advance(100);
        assert_eq!(world.view().nodes.len(), nodes.len());
        assert_eq!(world.view().servers.len(), servers.len());
        world
    }

    pub(super) fn link(&mut self) -> Link {
        self.link_next += 1;
        Link(self.link_next)
    }

    pub(super) fn view(&self) -> Arc<View> {
        Arc::clone(self.cluster.view())
    }

    pub(super) fn held(&self) -> Vec<Incarnation> {
        self.published.last().map(|(_, held)| held.clone()).unwrap_or_default()
    }

    pub(super) fn dead(&self, name: &str) -> Option<DeadEntry> {
        self.view().dead.iter().find(|dead| dead.name == name).cloned()
    }

    pub(super) fn node(&self, name: &str) -> Option<Incarnation> {
        self.view().nodes.iter().find(|node| node.name == name).map(|node| node.incarnation)
    }

    pub(super) fn server(&self, name: &str) -> Option<Incarnation> {
        self.view().servers.iter().find(|server| server.name == name).map(|server| server.incarnation)
    }

    /// One event, and the servers' answers to what follows from it.
    pub(super) fn step(&mut self, event: Event) {
        let effects = self.cluster.step(event, self.now);
        for effect in effects {
            match effect {
                Effect::Publish { view, held } => self.published.push((view, held)),
                Effect::ToNode { link, message } => self.to_nodes.push((link, message)),
                Effect::ToServer { link, message } => self.to_servers.push((link, message)),
                Effect::AwaitIdle { incarnation, hold } => self.awaited.push((incarnation, hold)),
                Effect::Answer { ticket, outcome } => {
                    assert!(self.outcomes.insert(ticket, outcome).is_none(), "answered twice");
                }
                Effect::ErrandAnswer { ticket, answer } => {
                    assert!(self.answers.insert(ticket, answer).is_none(), "answered twice");
                }
                Effect::DoomAnswer { ticket, outcome } => {
                    assert!(self.dooms.insert(ticket, outcome).is_none(), "answered twice");
                }
                Effect::Drained(names) => self.drained = names,
                Effect::Load { .. } | Effect::CloseNode { .. } | Effect::Keep(_) | Effect::Log(_) => {}
            }
        }
        self.answer_servers();
    }

    fn answer_servers(&mut self) {
        for (link, message) in std::mem::take(&mut self.to_servers) {
            let found = self.servers.iter_mut().find(|(_, server)| server.link == link);
            let Some((name, server)) = found else { continue };
            if let ToServer::SetView(view) = message
                && server.obeys
                && server.answers
            {
                server.view = Some(view);
            }
            if server.answers {
                let name = name.clone();
                self.report(&name);
            }
        }
    }

    /// A server reports what it has.
    pub(super) fn report(&mut self, name: &str) {
        let server = &self.servers[name];
        let dead = server.view.iter().flat_map(|view| &view.dead);
        let leases = dead.map(|dead| LeaseReport {
            node: dead.name.clone(),
            incarnation: dead.incarnation,
            sealed: true,
            sessions: 9,
            unsettled: server.unsettled.get(&dead.incarnation).copied().unwrap_or_default(),
            beat_age_ms: None,
        });
        let open = server.view.iter().flat_map(|view| &view.nodes).map(|node| LeaseReport {
            node: node.name.clone(),
            incarnation: node.incarnation,
            sealed: false,
            sessions: 0,
            unsettled: 0,
            beat_age_ms: self.pulse_age_ms(node.incarnation),
        });
        let leases = leases.chain(open);
        let report = ServerReport {
            name: name.to_owned(),
            incarnation: server.incarnation,
            epoch: server.view.as_ref().map(|view| view.epoch).unwrap_or_default(),
            view: server.view.clone(),
            leases: leases.collect(),
            ..ServerReport::default()
        };
        self.step(Event::ServerReport { link: server.link, report: Box::new(report) });
    }

    /// A server connects and answers everything from now on.
    pub(super) fn server_up(&mut self, name: &str, incarnation: u64) {
        self.server_up_with(name, incarnation, None);
    }

    /// A server that has carried out a view of an earlier director.
    pub(super) fn server_up_with(&mut self, name: &str, incarnation: u64, view: Option<View>) {
        let (link, incarnation) = (self.link(), Incarnation(incarnation));
        let server =
            FakeServer { link, incarnation, answers: true, obeys: true, view, unsettled: HashMap::new() };
        self.servers.insert(name.to_owned(), server);
        self.step(Event::ServerOpened { name: name.to_owned(), link, incarnation });
    }

    /// The server's process dies: its connection breaks and nobody listens.
    pub(super) fn server_killed(&mut self, name: &str) {
        let link = self.servers.remove(name).unwrap().link;
        self.step(Event::ServerClosed { link });
        self.step(Event::ServerAbsent { name: name.to_owned() });
    }

    /// A node's new life registers and beats from now on.
    pub(super) fn node_up(&mut self, name: &str) -> Incarnation {
        let link = self.open(name, Incarnation::NONE);
        self.step(Event::NodeMessage { link, message: ToDirector::Register });
        self.beating.insert(name.to_owned(), (link, NodeBeat::default()));
        self.registered(link).expect("registered")
    }

    pub(super) fn registered(&self, link: Link) -> Option<Incarnation> {
        self.to_nodes.iter().rev().find_map(|(to, message)| match message {
            FromDirector::Registered { incarnation, .. } if *to == link => Some(*incarnation),
            _ => None,
        })
    }

    pub(super) fn open(&mut self, name: &str, incarnation: Incarnation) -> Link {
        let link = self.link();
        self.step(Event::NodeOpened { link, name: name.to_owned(), incarnation });
        link
    }

    pub(super) fn beat(&mut self, name: &str) {
        let (link, mut beat) = self.beating[name].clone();
        beat.sent_ns = self.now.as_nanos() as u64;
        beat.epoch = self.view().epoch;
        if !self.pulses.is_empty() {
            let links = self.view().servers.iter().map(|server| server.incarnation).collect::<Vec<_>>();
            beat.links = links
                .into_iter()
                .map(|server| LinkReport {
                    server,
                    transport: None,
                    detail: String::new(),
                    beat_age_ms: self.pulse_age_ms(server),
                })
                .collect();
        }
        self.step(Event::NodeMessage { link, message: ToDirector::Beat(beat) });
    }

    fn pulse_age_ms(&self, incarnation: Incarnation) -> Option<u32> {
        self.pulses.get(&incarnation).map(|at| (self.now - *at).as_millis() as u32)
    }

    /// The last thing that this connection was told.
    pub(super) fn told(&self, link: Link) -> Option<&FromDirector> {
        self.to_nodes.iter().rev().find(|(to, _)| *to == link).map(|(_, message)| message)
    }

    /// Time passes: ticks, and the heartbeats of nodes that beat.
    pub(super) fn advance(&mut self, ms: u64) {
        for _ in 0..ms / 10 {
            self.now += Duration::from_millis(10);
            if self.now.as_millis().is_multiple_of(50) {
                let beating = self.pulses.iter_mut().filter(|(life, _)| !self.stopped.contains(life));
                beating.for_each(|(_, at)| *at = self.now);
                let names: Vec<String> = self.beating.keys().cloned().collect();
                names.iter().for_each(|name| self.beat(name));
            }
            self.step(Event::Tick);
        }
    }
}

/// For scenarios that must be able to fail without a panic.
pub(super) fn ensure(good: bool, why: &str) -> Result<(), String> {
    if good { Ok(()) } else { Err(why.to_owned()) }
}
