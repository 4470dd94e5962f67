//! The director's state machine, with members that say anything at any time. The first byte decides whether
//! servers lie, too (they are trusted with what the cluster was before); nodes always do:
//!
//! - views only rise (R12), and what they name is configured, sorted, each name once;
//! - no life is in a view twice, as up and dead, or under two names;
//! - unless servers lie, a life that has left the view's nodes or servers never comes back (R3, R6);
//! - effects are for connections that are open, and one step has a bounded number of them.

use arbitrary::{Result, Unstructured};
use selvage_director::cluster::{Cluster, Effect, Event, Link, Settings, Ticket};
use selvage_fabric::config::Config;
use selvage_fabric::control::message::{
    ErrandOutcome, FromDirector, LeaseReport, LinkReport, NodeBeat, ServerReport, ToDirector,
};
use selvage_fabric::ident::{Epoch, Incarnation};
use selvage_fabric::view::{DeadEntry, NodeEntry, NodeState, ServerEntry, View};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

const NODES: [&str; 3] = ["n1", "n2", "n3"];
const SERVERS: [&str; 2] = ["s1", "s2"];
const STEPS_MAX: usize = 200;
/// Views that one step may publish, and what each sends to everybody.
const EFFECTS_MAX: usize = 400;

/// A connection, who is at its other end, and which life it says it is.
type Open = (Link, &'static str, Incarnation);

struct World {
    servers_lie: bool,
    cluster: Cluster,
    now: Duration,
    link_last: u64,
    nodes: Vec<Open>,
    servers: Vec<Open>,
    holds: Vec<(Incarnation, u64)>,
    /// Lives that were given or seen.
    lives: Vec<Incarnation>,
    epoch: Epoch,
    /// Lives in the newest view, and those that have left it: whether of a node, and which.
    here: BTreeSet<(bool, Incarnation)>,
    gone: BTreeSet<(bool, Incarnation)>,
}

pub fn run(bytes: &[u8]) {
    let mut input = Unstructured::new(bytes);
    let Ok(servers_lie) = input.arbitrary() else { return };
    let mut world = World::new(servers_lie);
    for _ in 0..STEPS_MAX {
        // An input that is used up ends the events.
        let Some(event) = (!input.is_empty()).then(|| world.event(&mut input).ok()).flatten() else { return };
        world.step(event);
    }
}

impl World {
    fn new(servers_lie: bool) -> Self {
        let mut text = format!(
            "[cluster]\nname = \"t\"\nrun_dir = \"/run/t\"\ncookie_keys = [\"{}\"]\n[director]\n",
            "11".repeat(32)
        );
        for (at, name) in NODES.iter().enumerate() {
            text += &format!("[[node]]\nname = \"{name}\"\naddress = \"127.0.0.1:{}\"\n", 9001 + at);
        }
        SERVERS.iter().for_each(|name| text += &format!("[[server]]\nname = \"{name}\"\n"));
        let config = Config::parse(Path::new("t.toml"), &text).expect("a good configuration");
        let now = Duration::from_secs(1);
        Self {
            servers_lie,
            cluster: Cluster::new(Settings::new(&config, 1000, Vec::new(), None), now),
            now,
            link_last: 0,
            nodes: Vec::new(),
            servers: Vec::new(),
            holds: Vec::new(),
            lives: vec![Incarnation::NONE],
            epoch: Epoch::default(),
            here: BTreeSet::new(),
            gone: BTreeSet::new(),
        }
    }

    fn step(&mut self, event: Event) {
        let effects = self.cluster.step(event, self.now);
        assert!(effects.len() <= EFFECTS_MAX, "{} effects", effects.len());
        for effect in effects {
            match effect {
                Effect::Publish { view, held } => {
                    self.view(&view);
                    assert!(held.iter().all(|held| view.node(*held).is_some()), "{held:?} held of {view:?}");
                }
                Effect::ToNode { link, message } => {
                    assert!(self.nodes.iter().any(|open| open.0 == link), "to nobody: {message:?}");
                    if let FromDirector::Registered { incarnation, view } = message {
                        assert!(view.node(incarnation).is_some(), "registered and not there");
                        self.lives.push(incarnation);
                    }
                }
                Effect::ToServer { link, message } => {
                    assert!(self.servers.iter().any(|open| open.0 == link), "to nobody: {message:?}");
                }
                Effect::AwaitIdle { incarnation, hold } => self.holds.push((incarnation, hold)),
                // Until its end is told, what had come before it may still be told.
                Effect::CloseNode { link } => assert!(self.nodes.iter().any(|open| open.0 == link)),
                _ => {}
            }
        }
    }

    fn view(&mut self, view: &View) {
        assert!(view.epoch >= self.epoch, "R12: {} after {}", view.epoch, self.epoch);
        assert!(view.epoch.number >= self.epoch.number, "R12: {} after {}", view.epoch, self.epoch);
        self.epoch = view.epoch;
        assert!(view.nodes.is_sorted_by(|a, b| a.name < b.name), "{view:?}");
        assert!(view.servers.is_sorted_by(|a, b| a.name < b.name), "{view:?}");
        assert!(view.nodes.iter().all(|node| NODES.contains(&&*node.name)), "{view:?}");
        assert!(view.servers.iter().all(|server| SERVERS.contains(&&*server.name)), "{view:?}");
        if self.servers_lie {
            return;
        }
        let nodes = view.nodes.iter().map(|node| node.incarnation);
        let dead = view.dead.iter().map(|dead| dead.incarnation);
        let servers = view.servers.iter().map(|server| server.incarnation);
        let all: BTreeSet<Incarnation> = nodes.clone().chain(dead).collect();
        assert_eq!(all.len(), view.nodes.len() + view.dead.len(), "a life twice: {view:?}");
        let here = nodes.map(|life| (true, life)).chain(servers.map(|life| (false, life))).collect();
        self.gone.extend(self.here.difference(&here));
        assert!(here.is_disjoint(&self.gone), "R3, R6: back again: {view:?}, gone are {:?}", self.gone);
        self.here = here;
    }

    fn event(&mut self, input: &mut Unstructured<'_>) -> Result<Event> {
        Ok(match input.int_in_range(0..=15)? {
            0..=2 => {
                let pause = *input.choose(&[1, 10, 49, 50, 251, 301, 5000])?;
                self.now += Duration::from_millis(pause);
                Event::Tick
            }
            3 | 4 => {
                let (name, incarnation) = (*input.choose(&NODES)?, self.life(input)?);
                let link = self.link();
                self.nodes.push((link, name, incarnation));
                Event::NodeOpened { link, name: name.to_owned(), incarnation }
            }
            5..=8 if !self.nodes.is_empty() => {
                let link = input.choose(&self.nodes)?.0;
                Event::NodeMessage { link, message: self.to_director(input)? }
            }
            9 if !self.nodes.is_empty() => {
                let at = input.choose_index(self.nodes.len())?;
                Event::NodeClosed { link: self.nodes.swap_remove(at).0 }
            }
            10 => {
                let at = input.choose_index(SERVERS.len())?;
                let name = SERVERS[at];
                // One connection for each: the director makes it itself.
                if let Some(open) = self.servers.iter().position(|open| open.1 == name) {
                    return Ok(Event::ServerClosed { link: self.servers.swap_remove(open).0 });
                }
                if input.ratio(1, 4)? {
                    return Ok(Event::ServerAbsent { name: name.to_owned() });
                }
                let incarnation = Incarnation((at as u64 + 1) << 40 | input.int_in_range(1..=6_u64)?);
                let link = self.link();
                self.servers.push((link, name, incarnation));
                self.lives.push(incarnation);
                Event::ServerOpened { name: name.to_owned(), link, incarnation }
            }
            11 | 12 if !self.servers.is_empty() => {
                let (link, name, incarnation) = *input.choose(&self.servers)?;
                let report = Box::new(self.report(name, incarnation, input)?);
                Event::ServerReport { link, report }
            }
            13 if !self.servers.is_empty() => {
                let at = input.choose_index(self.servers.len())?;
                Event::ServerClosed { link: self.servers.swap_remove(at).0 }
            }
            14 => {
                let (name, ticket) = ((*input.choose(&NODES)?).to_owned(), Ticket(input.arbitrary()?));
                match input.arbitrary()? {
                    true => Event::Drain { name, ticket },
                    false => Event::Undrain { name },
                }
            }
            15 if !self.holds.is_empty() => {
                let at = input.choose_index(self.holds.len())?;
                let (incarnation, hold) = self.holds.swap_remove(at);
                Event::Idle { incarnation, hold }
            }
            _ => Event::Tick,
        })
    }

    fn link(&mut self) -> Link {
        self.link_last += 1;
        Link(self.link_last)
    }

    fn life(&self, input: &mut Unstructured<'_>) -> Result<Incarnation> {
        let known = *input.choose(&self.lives)?;
        Ok(if input.ratio(1, 8)? { Incarnation(input.arbitrary()?) } else { known })
    }

    fn epoch(&self, input: &mut Unstructured<'_>) -> Result<Epoch> {
        if input.ratio(1, 8)? {
            return Ok(Epoch { term: input.arbitrary()?, number: input.arbitrary()? });
        }
        let back = input.int_in_range(0..=2)?;
        Ok(Epoch { term: self.epoch.term, number: self.epoch.number.saturating_sub(back) })
    }

    fn to_director(&self, input: &mut Unstructured<'_>) -> Result<ToDirector> {
        Ok(match input.int_in_range(0..=8)? {
            0 | 1 => ToDirector::Register,
            8 => ToDirector::ErrandEnded {
                number: input.arbitrary()?,
                outcome: ErrandOutcome::Destroyed { sessions: input.arbitrary()?, left: None },
            },
            2 => ToDirector::Resume { epoch: self.epoch(input)? },
            3 => ToDirector::Drained,
            _ => ToDirector::Beat(NodeBeat {
                sent_ns: input.arbitrary()?,
                epoch: self.epoch(input)?,
                sessions: input.arbitrary()?,
                safe: input.arbitrary()?,
                settled: (0..input.int_in_range(0..=3)?).map(|_| self.life(input)).collect::<Result<_>>()?,
                links: vec![LinkReport {
                    server: self.life(input)?,
                    transport: None,
                    detail: String::new(),
                    beat_age_ms: input.arbitrary()?,
                }],
                ..NodeBeat::default()
            }),
        })
    }

    fn report(
        &self,
        name: &str,
        incarnation: Incarnation,
        input: &mut Unstructured<'_>,
    ) -> Result<ServerReport> {
        let lease = |input: &mut Unstructured<'_>| -> Result<LeaseReport> {
            Ok(LeaseReport {
                node: (*input.choose(&NODES)?).to_owned(),
                incarnation: self.life(input)?,
                sealed: input.arbitrary()?,
                sessions: input.arbitrary()?,
                unsettled: input.int_in_range(0..=1)?,
                beat_age_ms: input.arbitrary()?,
            })
        };
        let mut report = ServerReport { name: name.to_owned(), incarnation, ..ServerReport::default() };
        report.leases = (0..input.int_in_range(0..=3)?).map(|_| lease(input)).collect::<Result<_>>()?;
        if self.servers_lie {
            report.incarnation = self.life(input)?;
            report.epoch = self.epoch(input)?;
            report.view = input.arbitrary::<bool>()?.then(|| self.any_view(input)).transpose()?;
        } else {
            // It has carried out some view that it was sent.
            let back = input.int_in_range(0..=2)?;
            report.epoch = Epoch { term: self.epoch.term, number: self.epoch.number.saturating_sub(back) };
        }
        Ok(report)
    }

    fn any_view(&self, input: &mut Unstructured<'_>) -> Result<View> {
        let mut view = View { epoch: self.epoch(input)?, copies: input.arbitrary()?, ..View::default() };
        for _ in 0..input.int_in_range(0..=4)? {
            let (name, incarnation) =
                ((*input.choose(&["n1", "n2", "s1", "s2", "x"])?).to_owned(), self.life(input)?);
            match input.int_in_range(0..=2)? {
                0 => view.nodes.push(NodeEntry {
                    name,
                    incarnation,
                    state: if input.arbitrary()? { NodeState::Up } else { NodeState::Draining },
                    address: "127.0.0.1:1".to_owned(),
                }),
                1 => view.servers.push(ServerEntry {
                    name,
                    incarnation,
                    weight: input.arbitrary()?,
                    socket: String::new(),
                    control: None,
                }),
                _ => view.dead.push(DeadEntry { name, incarnation, sealed: input.arbitrary()? }),
            }
        }
        Ok(view)
    }
}

/// Any bytes are events; these choose each kind, many times over.
pub fn seeds() -> Vec<Vec<u8>> {
    crate::lease::seeds()
}
