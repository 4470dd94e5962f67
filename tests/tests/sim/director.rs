//! The director: the production's state machine and table of routes; around them its connections, and the
//! proxy's way of a request.

use crate::mutant::{self, Broken, What};
use crate::net::{self, ConnId, Host, Message, Party};
use crate::node::{self, Reply, Request};
use crate::schedule::{self, MS, Pid, S, Time};
use crate::server;
use crate::world::{World, cover, world};
use selvage_director::cluster::{Cluster, DrainOutcome, Effect, Event, Link, Out, Settings, Ticket};
use selvage_director::limits;
use selvage_director::proxy::routes::{Choice, Routes};
use selvage_fabric::control::message::{FromServer, Refusal, Role, ToDirector};
use selvage_fabric::ident::{Cookie, Incarnation};
use selvage_fabric::limits::ELSEWHERE_MAX;
use selvage_fabric::view::View;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

pub const HOST: Host = Host(0);

/// The director's host.
#[derive(Default)]
pub struct Director {
    pub life: Option<Life>,
    /// The files that outlast its process.
    term_last: u32,
    drained: Vec<(String, Out)>,
    kept: Option<View>,
    boots: u32,
    /// The newest view that any life has published.
    pub view: Arc<View>,
    ticket_last: u64,
}

/// A director's process.
pub struct Life {
    pub pid: Pid,
    began: Time,
    cluster: Cluster,
    routes: Arc<Routes>,
    servers: BTreeMap<usize, ConnId>,
    /// Requests under way at each node's life.
    under_way: BTreeMap<Incarnation, u64>,
    awaits: Vec<(Incarnation, u64)>,
    tick: Duration,
    table: u64,
}

/// Starts the director's process.
pub fn start() {
    let (pid, tick, servers) = world(|world| {
        let pid = world.new_process(HOST);
        let director = &mut world.director;
        director.boots += 1;
        let term = match world.mutant {
            Some(What::Other(Broken::DirectorForgets)) => 1_800_000_000,
            _ => (1_800_000_000 + (schedule::now() / S) as u32).max(director.term_last + 1),
        };
        director.term_last = term;
        let kept = match world.mutant {
            Some(What::Other(Broken::KeptViewLost | Broken::DirectorForgets)) => None,
            _ => director.kept.clone(),
        };
        let settings = Settings::new(&world.config, term, director.drained.clone(), kept);
        let tick = settings.tick;
        director.life = Some(Life {
            pid,
            began: schedule::now(),
            cluster: Cluster::new(settings, Duration::ZERO),
            routes: Arc::new(Routes::default()),
            servers: BTreeMap::new(),
            under_way: BTreeMap::new(),
            awaits: Vec::new(),
            tick,
            table: 0,
        });
        world.trace(format!("the director starts, term {term}"));
        (pid, tick, world.servers.len())
    });
    schedule::after(tick.as_nanos() as u64, move || ticks(pid));
    for index in 0..servers {
        schedule::after(MS, move || reach_server(pid, index));
    }
}

/// Kills the director's process.
pub fn kill() {
    let Some(life) = world(|world| world.director.life.take()) else { return };
    world(|world| world.trace("the director is killed".into()));
    schedule::kill(life.pid);
    net::close_all_of(life.pid);
}

fn is_life(pid: Pid) -> bool {
    world(|world| world.director.life.as_ref().is_some_and(|life| life.pid == pid))
}

fn ticks(pid: Pid) {
    if !is_life(pid) {
        return;
    }
    let tick = world(|world| world.director.life.as_ref().map_or(Duration::ZERO, |life| life.tick));
    schedule::after(tick.as_nanos() as u64, move || ticks(pid));
    if !schedule::is_paused(pid) {
        step(Event::Tick);
    }
}

/// Keeps the connection to a server up, as `server_link` does.
fn reach_server(pid: Pid, index: usize) {
    if !is_life(pid) {
        return;
    }
    let again = limits::RECONNECT_PAUSE.as_nanos() as u64;
    schedule::after(again, move || reach_server(pid, index));
    let linked = world(|world| {
        let life = world.director.life.as_ref()?;
        life.servers.get(&index).copied()
    });
    if schedule::is_paused(pid) || linked.is_some() {
        return;
    }
    let (name, host) = world(|world| (world.servers[index].name.clone(), world.servers[index].host));
    let reaches = world(|world| world.net.reaches(HOST, host) && world.net.reaches(host, HOST));
    if !reaches {
        return;
    }
    let Some((server_pid, host, party)) = server::party(index) else {
        cover("state: server absent");
        return step(Event::ServerAbsent { name });
    };
    if schedule::is_paused(server_pid) {
        return;
    }
    let Some(greeted) = world(|world| world.servers[index].incarnation()) else { return };
    let conn = net::connect([(pid, HOST, Party::DirectorOf(index)), (server_pid, host, party)]);
    world(|world| {
        if let Some(life) = world.director.life.as_mut() {
            life.servers.insert(index, conn);
        }
    });
    server::opened(index, conn, Role::Director, pid.0, false, greeted);
    step(Event::ServerOpened { name, link: Link(conn.0), incarnation: greeted });
}

/// A steward's hello has come.
pub fn steward_came(conn: ConnId, name: String, incarnation: Incarnation) {
    step(Event::NodeOpened { link: Link(conn.0), name, incarnation });
}

pub fn steward_said(conn: ConnId, message: ToDirector) {
    step(Event::NodeMessage { link: Link(conn.0), message });
}

pub fn steward_left(conn: ConnId) {
    step(Event::NodeClosed { link: Link(conn.0) });
}

pub fn server_said(index: usize, conn: ConnId, message: FromServer) {
    match message {
        FromServer::Report(report) => {
            world(|world| {
                world.history.has_view(report.incarnation, report.epoch);
                world.look_at_history();
            });
            step(Event::ServerReport { link: Link(conn.0), report: Box::new(report) })
        }
        FromServer::Refused(Refusal::OldTerm(epoch)) => {
            cover("state: old term refused");
            step(Event::ServerOldTerm { link: Link(conn.0), epoch });
        }
        other => {
            world(|world| world.trace(format!("the director is answered {other:?}")));
            net::close(conn, 0);
            server_left(index, conn);
        }
    }
}

pub fn server_left(index: usize, conn: ConnId) {
    world(|world| {
        if let Some(life) = world.director.life.as_mut() {
            life.servers.retain(|at, known| *at != index || *known != conn);
        }
    });
    step(Event::ServerClosed { link: Link(conn.0) });
}

/// The operator drains a node; the answer is in the trace.
pub fn drain(name: &str) {
    let ticket = world(|world| {
        world.director.ticket_last += 1;
        world.director.ticket_last
    });
    step(Event::Drain { name: name.into(), ticket: Ticket(ticket) });
}

pub fn undrain(name: &str) {
    step(Event::Undrain { name: name.into() });
}

/// Gives the state machine an event, and carries out what follows, as `driver` does.
fn step(event: Event) {
    let mut events = VecDeque::from([event]);
    while let Some(event) = events.pop_front() {
        let effects = world(|world| {
            let life = world.director.life.as_mut()?;
            let now = Duration::from_nanos(schedule::now() - life.began);
            Some(life.cluster.step(event, now))
        });
        for effect in effects.unwrap_or_default() {
            carry_out(effect);
        }
        events.extend(idle());
    }
}

fn carry_out(effect: Effect) {
    match effect {
        Effect::Publish { view, held } => world(|world| publish(world, view, &held)),
        Effect::Load { incarnation, sessions } => world(|world| {
            if let Some(life) = &world.director.life {
                life.routes.load(incarnation, sessions);
            }
        }),
        Effect::ToNode { link, message } => net::send(ConnId(link.0), 1, Message::FromDirector(message)),
        Effect::CloseNode { link } => {
            net::close(ConnId(link.0), 1);
            steward_left(ConnId(link.0));
        }
        Effect::ToServer { link, message } => net::send(ConnId(link.0), 0, Message::ToServer(message)),
        Effect::AwaitIdle { incarnation, hold } => world(|world| {
            if let Some(life) = world.director.life.as_mut() {
                life.awaits.push((incarnation, hold));
            }
        }),
        Effect::Answer { ticket, outcome } => world(|world| {
            world.cover(match &outcome {
                DrainOutcome::HandedOver => "state: drain handed over",
                DrainOutcome::Adopting => "state: drain still adopting",
                DrainOutcome::Refused(_) => "state: drain refused",
            });
            world.trace(format!("drain {}: {outcome:?}", ticket.0));
        }),
        Effect::ErrandAnswer { ticket, answer } => {
            world(|world| world.trace(format!("errand {}: {answer:?}", ticket.0)));
        }
        Effect::DoomAnswer { ticket, outcome } => {
            world(|world| world.trace(format!("doom {}: {outcome:?}", ticket.0)));
        }
        Effect::Drained(names) => world(|world| world.director.drained = names),
        Effect::Keep(view) => world(|world| world.director.kept = Some((*view).clone())),
        Effect::Log(text) => world(|world| {
            if text.starts_with("going on from epoch") {
                let servers = world.director.life.as_ref().map_or(0, |life| life.servers.len());
                world.cover(if servers == 0 {
                    "state: director went on without any server"
                } else {
                    "state: director went on from an earlier view"
                });
            }
            world.trace(format!("director: {text}"));
        }),
    }
}

fn publish(world: &mut World, view: Arc<View>, held: &[Incarnation]) {
    if view.epoch.number > 0 {
        let (old, new) = (world.director.view.epoch, view.epoch);
        if new.number < old.number || new.term < old.term {
            world.fail("epochs rise", &format!("the view falls from {old} to {new}"));
        }
        world.history.viewed(&view);
        world.look_at_history();
        world.director.view = Arc::clone(&view);
    }
    let nodes: Vec<String> =
        view.nodes.iter().map(|node| format!("{}={:x}", node.name, node.incarnation.0)).collect();
    let dead: Vec<String> = view
        .dead
        .iter()
        .map(|dead| format!("{:x}{}", dead.incarnation.0, if dead.sealed { "s" } else { "" }))
        .collect();
    let servers: Vec<String> =
        view.servers.iter().map(|server| format!("{}={:x}", server.name, server.incarnation.0)).collect();
    world.trace(format!(
        "view {}: nodes {nodes:?} servers {servers:?} dead {dead:?} held {}",
        view.epoch,
        held.len()
    ));
    if view.dead.iter().any(|dead| !dead.sealed) {
        world.cover("state: dead node not sealed yet");
    }
    if let Some(life) = world.director.life.as_mut() {
        life.routes.publish(&view, held);
        life.table += 1;
    }
}

/// Nodes with no request under way of which the state machine wants to know.
fn idle() -> Vec<Event> {
    world(|world| {
        let Some(life) = world.director.life.as_mut() else { return Vec::new() };
        let under_way = &life.under_way;
        let busy = |incarnation: &Incarnation| under_way.get(incarnation).is_some_and(|count| *count > 0);
        let (done, left): (Vec<_>, Vec<_>) = life.awaits.drain(..).partition(|(node, _)| !busy(node));
        life.awaits = left;
        done.into_iter().map(|(incarnation, hold)| Event::Idle { incarnation, hold }).collect()
    })
}

/// Where the proxy would send a request now.
enum Chosen {
    Go(Incarnation),
    Wait(&'static str),
}

fn choose(
    world: &World,
    session: Option<Cookie>,
    directed: Option<Incarnation>,
    refused: &[Incarnation],
) -> Chosen {
    let Some(life) = &world.director.life else { return Chosen::Wait("no director") };
    let table = life.routes.now();
    let directed = directed.filter(|directed| table.upstream(*directed).is_some());
    match life.routes.choose(&table, session, directed, refused) {
        Choice::Go(upstream) => Chosen::Go(upstream.incarnation),
        Choice::Wait(why) => Chosen::Wait(why),
    }
}

/// How a browser's request ended.
#[derive(Debug)]
#[allow(dead_code, reason = "why a request failed is for the trace")]
pub enum Answer {
    /// A node's answer.
    Reply(Reply),
    /// No node has begun it.
    Unsent(String),
    /// A node may have carried it out.
    Lost(String),
}

/// The way of a request through the proxy, in the browser's fiber: choose, send, judge, again.
pub fn proxy(request: &Request, cookie: Option<Cookie>) -> Answer {
    let Some((pid, hold)) = world(|world| {
        let life = world.director.life.as_ref()?;
        Some((life.pid, world.config.director.hold_ms * MS))
    }) else {
        schedule::sleep(MS);
        return Answer::Unsent("no director listens".into());
    };
    let deadline = schedule::now() + hold;
    let (mut directed, mut refused, mut elsewhere, mut sends) = (None, Vec::new(), 0, 0);
    loop {
        if !is_life(pid) {
            return if sends == 0 {
                Answer::Unsent("director died".into())
            } else {
                Answer::Lost("director died".into())
            };
        }
        if schedule::is_paused(pid) {
            schedule::sleep(5 * MS);
            continue;
        }
        let node = match world(|world| choose(world, cookie, directed, &refused)) {
            Chosen::Go(node) if !refused.contains(&node) => node,
            chosen => {
                let why = if let Chosen::Wait(why) = chosen { why } else { "the web node refuses" };
                cover("state: request held");
                if schedule::now() >= deadline {
                    return if sends == 0 { Answer::Unsent(why.into()) } else { Answer::Lost(why.into()) };
                }
                schedule::sleep(if refused.is_empty() { 5 * MS } else { 25 * MS });
                refused.clear();
                if directed.is_some_and(|node| !is_in_table(node)) {
                    directed = None;
                }
                continue;
            }
        };
        enter(node, 1);
        let reply = node::send(node, request.clone(), cookie);
        enter(node, -1);
        step_idle();
        let reply = match reply {
            node::Sent::Answered(_) if !is_life(pid) => return Answer::Lost("director died".into()),
            // A zombie's answers go nowhere.
            node::Sent::Answered(_) if !is_in_table(node) && !mutant::is(Broken::ZombieAnswers) => {
                cover("state: answer of a node that was cut");
                node::Sent::Lost
            }
            reply => reply,
        };
        match reply {
            node::Sent::Answered(Reply::Elsewhere(host)) => {
                cover("state: elsewhere");
                if !is_in_table(host) {
                    if schedule::now() >= deadline {
                        return Answer::Unsent("a node's view is behind".into());
                    }
                    schedule::sleep(5 * MS);
                    continue;
                }
                elsewhere += 1;
                if elsewhere > ELSEWHERE_MAX {
                    return Answer::Unsent("elsewhere too often".into());
                }
                directed = Some(host);
            }
            node::Sent::Answered(reply) => return Answer::Reply(reply),
            node::Sent::Unsent => refused.push(node),
            node::Sent::Lost => {
                sends += 1;
                cover("state: answer lost");
                if !request.is_repeatable() || sends >= limits::SENDS_MAX {
                    return Answer::Lost("the node is gone".into());
                }
                refused.push(node);
            }
        }
    }
}

fn is_in_table(node: Incarnation) -> bool {
    world(|world| {
        let table = world.director.life.as_ref().map(|life| life.routes.now());
        table.is_some_and(|table| table.upstream(node).is_some())
    })
}

fn enter(node: Incarnation, by: i64) {
    world(|world| {
        if let Some(life) = world.director.life.as_mut() {
            let count = life.under_way.entry(node).or_default();
            *count = count.saturating_add_signed(by);
        }
    });
}

fn step_idle() {
    for event in idle() {
        step(event);
    }
}

/// The cluster's own opinion of itself.
pub fn status() -> Option<selvage_director::cluster::status::Status> {
    world(|world| world.director.life.as_ref().map(|life| life.cluster.status()))
}
