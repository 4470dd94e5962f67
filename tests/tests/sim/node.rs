//! A web node: its processes, each with the agent that joins and works as steward, and its requests. All
//! that it does to sessions, leases and claims is production code over [`SimServers`] and [`SimLink`]; what
//! is written here is what `agent`, `join` and `links` do with threads.

use crate::director;
use crate::link::{LinkId, SimLink};
use crate::mutant::{self, Broken};
use crate::net::{self, ConnId, Host, Message, Party};
use crate::schedule::{self, FiberId, MS, Pid, Time};
use crate::server;
use crate::world::{World, cover, world};
use selvage_fabric::cache::{Cache, CacheSpec};
use selvage_fabric::control::message::{
    ClaimAnswer, Endpoint, FromDirector, FromServer, LinkReport, Role, ToDirector, ToServer,
};
use selvage_fabric::control::stream::{Stream, refusal_error};
use selvage_fabric::error::{Error, ErrorKind, Origin, Result};
use selvage_fabric::ident::Incarnation;
use selvage_fabric::node::inside::{self, Clock, Lifeline, LinkState, OpenedLink, Servers};
use selvage_fabric::node::steward::{Effect, Event, Steward, StewardTiming};
use selvage_fabric::transport::Region;
use selvage_fabric::view::{ServerEntry, View};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::io::Read;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::{Arc, Condvar, MutexGuard};
use std::time::Duration;

pub use crate::request::{Reply, Request, Sent, send};

/// A configured node.
pub struct Node {
    pub name: String,
    pub host: Host,
    pub processes: BTreeMap<Pid, Process>,
    /// How many it shall have.
    pub wanted: usize,
    /// How many incarnations it has begun.
    lives: u32,
    /// Who has the creation lock.
    joining: Option<Pid>,
    stewards: BTreeMap<Incarnation, Pid>,
}

/// A process of a node. It holds what others of the node and the world must reach.
#[derive(Default)]
pub struct Process {
    /// What it is attached to; also while it is stopped.
    pub cache: Option<Cache>,
    pub host: Option<Arc<inside::Host>>,
    notes: VecDeque<Note>,
    agent: Option<FiberId>,
}

impl Node {
    pub fn new(name: String, host: Host, wanted: usize) -> Self {
        Self {
            name,
            host,
            processes: BTreeMap::new(),
            wanted,
            lives: 0,
            joining: None,
            stewards: BTreeMap::new(),
        }
    }
}

const POLL: Time = 20 * MS;

/// Time as a process sees it.
struct SimClock(Pid);

impl Clock for SimClock {
    fn monotonic_ns(&self) -> u64 {
        schedule::clock_of(Some(self.0), false)
    }

    fn unix_ms(&self) -> u64 {
        schedule::clock_of(Some(self.0), true) / 1_000_000
    }

    fn sleep(&self, time: Duration) {
        schedule::sleep(time.as_nanos() as u64);
    }

    fn wait(&self, _changed: &Condvar, guard: MutexGuard<'_, ()>, timeout: Duration) {
        // The guard goes first: nobody sleeps with a lock.
        drop(guard);
        schedule::sleep(timeout.as_nanos() as u64);
    }
}

/// Starts a process of a node.
pub fn start(index: usize) -> Pid {
    let pid = world(|world| {
        let pid = world.new_process(world.nodes[index].host);
        world.trace(format!("a process of {} starts: {}", world.nodes[index].name, pid.0));
        world.nodes[index].processes.insert(pid, Process::default());
        pid
    });
    let agent = schedule::spawn(pid, move || agent(index, pid));
    world(|world| {
        if let Some(process) = world.nodes[index].processes.get_mut(&pid) {
            process.agent = Some(agent);
        }
    });
    pid
}

/// Kills a process. What it has in the cache stays as it is.
pub fn kill(index: usize, pid: Pid) {
    let Some(process) = world(|world| world.nodes[index].processes.remove(&pid)) else { return };
    world(|world| {
        world.trace(format!("process {} of {} is killed", pid.0, world.nodes[index].name));
        let node = &mut world.nodes[index];
        node.joining = node.joining.filter(|joining| *joining != pid);
    });
    if let Some(cache) = process.cache.clone() {
        cache.kill();
    }
    schedule::kill(pid);
    net::close_all_of(pid);
    drop(process);
}

/// What comes to the agent.
enum Note {
    Event(Event),
    Connected(ConnId),
    Disconnected,
}

fn note(index: usize, pid: Pid, note: Note) {
    let agent = world(|world| {
        let process = world.nodes[index].processes.get_mut(&pid)?;
        process.notes.push_back(note);
        process.agent
    });
    agent.into_iter().for_each(schedule::wake);
}

/// Body of the agent: one incarnation after another.
fn agent(index: usize, pid: Pid) {
    let heartbeat = world(|world| world.config.timing.heartbeat_ms * MS);
    loop {
        match join(index, pid) {
            Some((host, director)) => {
                live(index, pid, &host, director);
                cover("state: incarnation over for a process");
                let left = world(|world| {
                    let incarnation = host.incarnation();
                    world.nodes[index].stewards.retain(|life, at| *life != incarnation || *at != pid);
                    let process = world.nodes[index].processes.get_mut(&pid)?;
                    Some((process.host.take(), process.cache.take()))
                });
                // Their ends close connections, so they go outside.
                drop(left);
            }
            None => schedule::sleep(heartbeat),
        }
    }
}

fn host_of(world: &World, index: usize, pid: Pid, cache: Cache) -> Arc<inside::Host> {
    let servers = SimServers {
        node: world.nodes[index].name.clone(),
        host: world.nodes[index].host,
        pid,
        incarnation: cache.incarnation(),
        idle: Default::default(),
        rdma: world.swarm.rdma,
    };
    let clock = Arc::new(SimClock(pid));
    Arc::new(inside::Host::new(cache, world.config.clone(), &servers.node.clone(), clock, Arc::new(servers)))
}

/// Joins the living incarnation, or begins a new one.
fn join(index: usize, pid: Pid) -> Option<(Arc<inside::Host>, Option<ConnId>)> {
    let entered = world(|world| {
        let node = &mut world.nodes[index];
        match node.joining {
            Some(_) => false,
            None => {
                node.joining = Some(pid);
                true
            }
        }
    });
    if !entered {
        return None;
    }
    let joined = join_locked(index, pid);
    world(|world| {
        world.nodes[index].joining = None;
        if let Some((host, _)) = &joined
            && let Some(process) = world.nodes[index].processes.get_mut(&pid)
        {
            process.cache = Some(host.cache.clone());
            process.host = Some(host.clone());
            process.notes.clear();
        }
    });
    joined
}

fn join_locked(index: usize, pid: Pid) -> Option<(Arc<inside::Host>, Option<ConnId>)> {
    let caches: Vec<Cache> = world(|world| {
        world.nodes[index].processes.values().filter_map(|process| process.cache.clone()).collect()
    });
    if let Some(living) = caches.iter().find(|cache| !cache.is_poisoned()) {
        cover("state: process joined a living incarnation");
        let cache = living.sibling().ok()?;
        return Some((world(|world| host_of(world, index, pid, cache)), None));
    }
    // No process of an older life is left, or its cache is poisoned (R3).
    let silence = world(|world| world.config.timing.silence_ms * MS);
    let conn = connect_director(index, pid, Incarnation::NONE, silence)?;
    net::send(conn, 0, Message::ToDirector(ToDirector::Register));
    let deadline = schedule::now() + silence;
    let registered = match net::receive(conn, 0, deadline) {
        Ok(Some(Message::FromDirector(FromDirector::Registered { incarnation, view }))) => {
            Some((incarnation, view))
        }
        Ok(Some(Message::FromDirector(FromDirector::Over { .. }))) => {
            cover("state: drained node refused");
            None
        }
        _ => None,
    };
    let Some((incarnation, view)) = registered else {
        net::close(conn, 0);
        return None;
    };
    let (config, name) = world(|world| (world.config.clone(), world.nodes[index].name.clone()));
    let mut spec = CacheSpec::from_config(&config, &name, incarnation);
    spec.processes_max = 8;
    let cache = Cache::anonymous(&spec).expect("memory for a cache");
    let host = world(|world| {
        world.nodes[index].lives += 1;
        if world.hosts_of_lives.insert(incarnation, world.nodes[index].host).is_some() {
            world.fail("lives are new", &format!("{:x} was given a second time", incarnation.0));
        }
        world.trace(format!("{name} joins as {:x} (process {})", incarnation.0, pid.0));
        host_of(world, index, pid, cache)
    });
    host.publish(&view).ok()?;
    Some((host, Some(conn)))
}

/// A connection to the director, after the hello.
fn connect_director(index: usize, pid: Pid, incarnation: Incarnation, timeout: Time) -> Option<ConnId> {
    let deadline = schedule::now() + timeout;
    let (name, host) = world(|world| (world.nodes[index].name.clone(), world.nodes[index].host));
    schedule::sleep(world(|world| world.delay(host, director::HOST)));
    loop {
        let there = world(|world| {
            let reaches = world.net.reaches(host, director::HOST) && world.net.reaches(director::HOST, host);
            let life = world.director.life.as_ref().map(|life| life.pid);
            reaches.then_some(life)
        });
        match there {
            Some(None) => return None,
            Some(Some(at)) if !schedule::is_paused(at) => {
                let ends = [(pid, host, Party::Fiber), (at, director::HOST, Party::Director)];
                let conn = net::connect(ends);
                director::steward_came(conn, name, incarnation);
                return Some(conn);
            }
            _ if schedule::now() >= deadline => return None,
            _ => schedule::sleep(10 * MS),
        }
    }
}

/// One incarnation, until it is over.
fn live(index: usize, pid: Pid, host: &Arc<inside::Host>, mut director: Option<ConnId>) {
    let mut links = Links::default();
    while !host.cache.is_poisoned() {
        let is_steward = world(|world| {
            let steward = world.nodes[index].stewards.entry(host.incarnation()).or_insert(pid);
            if !schedule::is_alive(*steward) {
                *steward = pid;
                world.cover("state: steward handed over");
            }
            world.nodes[index].stewards[&host.incarnation()] == pid
        });
        match is_steward {
            true => Agent::new(index, pid, host, &mut links, director.take()).run(),
            false => {
                if let Some(conn) = director.take() {
                    net::close(conn, 0);
                }
                links.tend(pid, host, false);
                schedule::sleep(POLL);
            }
        }
    }
}

/// Opens the links that are missing, each in a fiber of its own.
#[derive(Default)]
struct Links {
    attempts: BTreeMap<Incarnation, Rc<RefCell<Attempt>>>,
    asked: Option<Rc<RefCell<Attempt>>>,
    beats: BTreeMap<Incarnation, (u64, Option<u64>)>,
}

struct Attempt {
    began: Time,
    pause: Time,
    over: bool,
}

impl Links {
    fn tend(&mut self, pid: Pid, host: &Arc<inside::Host>, steward: bool) {
        host.watch_links();
        let plan = host.plan().clone();
        if !steward && plan.is_slow() && !host.has_mandate() {
            self.ask(pid, host);
        }
        for (server, link) in plan.links() {
            let last = self.attempts.get(&server.incarnation);
            let pause = match last.map(|last| last.borrow()) {
                _ if matches!(link, LinkState::Open(_)) => continue,
                _ if !steward && !host.has_book(server.incarnation) => continue,
                None => POLL,
                Some(last) if !last.over || schedule::now() - last.began < last.pause => continue,
                Some(last) if matches!(link, LinkState::Failed(_)) => (2 * last.pause).min(1000 * MS),
                Some(_) => POLL,
            };
            let attempt = Rc::new(RefCell::new(Attempt { began: schedule::now(), pause, over: false }));
            self.attempts.insert(server.incarnation, attempt.clone());
            let (host, entry) = (host.clone(), server.clone());
            schedule::spawn(pid, move || {
                host.open_link(&entry, steward);
                attempt.borrow_mut().over = true;
            });
        }
    }

    fn ask(&mut self, pid: Pid, host: &Arc<inside::Host>) {
        let is_early = |asked: &Attempt| !asked.over || schedule::now() - asked.began < asked.pause;
        if self.asked.as_ref().is_some_and(|asked| is_early(&asked.borrow())) {
            return;
        }
        cover("state: process asks whether it is over");
        let pause = host.config.timing.silence_ms * MS;
        let attempt = Rc::new(RefCell::new(Attempt { began: schedule::now(), pause, over: false }));
        self.asked = Some(attempt.clone());
        let host = host.clone();
        schedule::spawn(pid, move || {
            host.ask_whether_over();
            attempt.borrow_mut().over = true;
        });
    }

    fn report(&mut self, host: &inside::Host, now_ns: u64) -> Vec<LinkReport> {
        let plan = host.plan().clone();
        let report = |(server, link): (&ServerEntry, &LinkState)| {
            let LinkState::Open(lane) = link else { return None };
            let beat = lane.link.peer_beat();
            let seen = self.beats.entry(server.incarnation).or_insert((beat, None));
            if seen.0 != beat {
                *seen = (beat, Some(now_ns));
            }
            let age = seen.1.map(|at| (now_ns.saturating_sub(at) / 1_000_000) as u32);
            let (transport, detail) = (Some(lane.link.kind()), String::new());
            Some(LinkReport { server: server.incarnation, transport, detail, beat_age_ms: age })
        };
        plan.links().filter_map(report).collect()
    }
}

/// The steward's hands.
struct Agent<'a> {
    index: usize,
    pid: Pid,
    host: &'a Arc<inside::Host>,
    links: &'a mut Links,
    steward: Steward,
    director: Option<ConnId>,
    connecting: bool,
    unprotected_seen: u64,
    beats: u64,
}

impl<'a> Agent<'a> {
    fn new(
        index: usize,
        pid: Pid,
        host: &'a Arc<inside::Host>,
        links: &'a mut Links,
        director: Option<ConnId>,
    ) -> Self {
        let timing = &host.config.timing;
        let timing = StewardTiming {
            heartbeat_ns: timing.heartbeat().as_nanos() as u64,
            mandate_ns: timing.mandate().as_nanos() as u64
                * if mutant::is(Broken::MandateTooLong) { 10 } else { 1 },
        };
        let view = host.plan().view.clone();
        let now_ns = host.clock.monotonic_ns();
        let steward = Steward::new(host.incarnation(), timing, view, director.is_some(), now_ns);
        Self { index, pid, host, links, steward, director, connecting: false, unprotected_seen: 0, beats: 0 }
    }

    fn run(&mut self) {
        self.handle(Event::Tick);
        let mut polled = 0;
        while !self.host.cache.is_poisoned() && !self.steward.is_over() {
            let left = self.steward.deadline_ns().saturating_sub(self.host.clock.monotonic_ns());
            net_waiting(self.director, true);
            if self.is_quiet() {
                schedule::park(left.min(POLL));
            }
            net_waiting(self.director, false);
            self.take_notes();
            self.handle(Event::Tick);
            if schedule::now() >= polled + POLL {
                polled = schedule::now();
                self.poll();
            }
        }
        if let Some(conn) = self.director.take() {
            net::close(conn, 0);
        }
    }

    fn is_quiet(&self) -> bool {
        let (index, pid) = (self.index, self.pid);
        world(|world| world.nodes[index].processes.get(&pid).is_none_or(|process| process.notes.is_empty()))
    }

    fn take_notes(&mut self) {
        let (index, pid) = (self.index, self.pid);
        let take = || world(|world| world.nodes[index].processes.get_mut(&pid)?.notes.pop_front());
        while let Some(note) = take() {
            match note {
                Note::Event(event) => self.handle(event),
                Note::Connected(conn) => {
                    self.connecting = false;
                    self.director = Some(conn);
                    self.handle(Event::Connected);
                }
                Note::Disconnected => {
                    self.connecting = false;
                    self.handle(Event::Disconnected);
                }
            }
        }
        while let Some(conn) = self.director {
            match net::take(conn, 0) {
                Ok(Some(Message::FromDirector(message))) => self.handle(Event::Received(message)),
                Ok(_) => break,
                Err(()) => {
                    self.director = None;
                    self.handle(Event::Disconnected);
                }
            }
        }
    }

    fn poll(&mut self) {
        if !mutant::is(Broken::NoRepair) && self.host.cache.repair_dead().is_ok_and(|died| !died.is_empty()) {
            cover("state: repaired after a dead process");
            self.handle(Event::Unprotected);
        }
        let unprotected = self.host.cache.unprotected();
        if unprotected != self.unprotected_seen {
            self.unprotected_seen = unprotected;
            self.handle(Event::Unprotected);
        }
        self.links.tend(self.pid, self.host, true);
    }

    fn handle(&mut self, event: Event) {
        for effect in self.steward.handle(event, self.host.clock.monotonic_ns()) {
            self.carry_out(effect);
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        let (index, pid, host) = (self.index, self.pid, self.host.clone());
        let epoch = self.steward.view().epoch;
        let per_s = host.config.timing.recopy_per_s;
        match effect {
            Effect::Connect => {
                self.connecting = true;
                schedule::spawn(pid, move || {
                    let silence = host.config.timing.silence_ms * MS;
                    let came = connect_director(index, pid, host.incarnation(), silence);
                    note(index, pid, came.map_or(Note::Disconnected, Note::Connected));
                });
            }
            Effect::Send(message) => self.send(message),
            Effect::Beat { epoch, settled } => {
                let mut beat = inside::beat(&host, epoch, settled);
                self.beats += 1;
                for (_, link) in host.plan().clone().links() {
                    if let LinkState::Open(lane) = link {
                        lane.link.beat(self.beats, host.cache.places_at(lane.book));
                    }
                }
                beat.links = self.links.report(&host, host.clock.monotonic_ns());
                if mutant::is(Broken::MetricsWrong) {
                    beat.safe = [beat.safe[0] + beat.safe[2], beat.safe[1], 0];
                }
                beat.sent_ns = host.clock.monotonic_ns();
                self.send(ToDirector::Beat(beat));
            }
            Effect::StoreMandate { until_ns } => host.cache.set_mandate_until_ns(until_ns),
            Effect::Publish(mut view) => {
                let again = world(|world| world.nodes[index].lives > 1);
                world(|world| {
                    world.history.has_view(host.incarnation(), view.epoch);
                    world.look_at_history();
                });
                let wrong = mutant::is(Broken::WrongPlacement)
                    || (again && mutant::is(Broken::WrongPlacementAfterRejoin));
                if wrong && let Some(server) = view.servers.first_mut() {
                    server.weight = 1000;
                }
                if let Err(error) = host.publish(&view) {
                    world(|world| world.trace(format!("a view cannot be published: {error}")));
                }
                self.links.tend(pid, self.host, true);
            }
            Effect::RetireBook(server) => {
                if let Some(book) = host.cache.book_of(server) {
                    host.cache.retire_book(book.index);
                }
            }
            Effect::RegisterClaims { server } => {
                schedule::spawn(pid, move || {
                    let done = inside::register_claims(&host, server).is_ok();
                    note(index, pid, Note::Event(Event::ClaimsEnded { server, done }));
                });
            }
            Effect::Sweep => {
                schedule::spawn(pid, move || {
                    let began = schedule::now();
                    let nothing = inside::Round { epoch, complete: true, sessions: 0 };
                    let swept = match mutant::is(Broken::NoSweep) {
                        true => Ok(nothing),
                        false => inside::sweep(&host, per_s),
                    };
                    let took_ns = schedule::now() - began;
                    let (epoch, complete) =
                        swept.map_or((epoch, false), |swept| (swept.epoch, swept.complete));
                    note(index, pid, Note::Event(Event::SweepEnded { epoch, complete, took_ns }));
                });
            }
            Effect::Adopt { dead } => {
                cover("state: adoption");
                schedule::spawn(pid, move || {
                    let adopted = inside::adopt(&host, dead, per_s);
                    let (epoch, complete) =
                        adopted.map_or((epoch, false), |adopted| (adopted.epoch, adopted.complete));
                    note(index, pid, Note::Event(Event::AdoptionEnded { dead, epoch, complete }));
                });
            }
            Effect::Errand { number, errand, within_ms } => {
                schedule::spawn(pid, move || {
                    let within = Duration::from_millis(within_ms.into());
                    let outcome = inside::errand(&host, &errand, within);
                    note(index, pid, Note::Event(Event::ErrandEnded { number, outcome }));
                });
            }
            Effect::End { drained } => {
                cover(if drained {
                    "state: node drained"
                } else {
                    "state: incarnation ended by the director"
                });
                host.cache.poison();
            }
        }
    }

    fn send(&mut self, message: ToDirector) {
        if let Some(conn) = self.director {
            net::send(conn, 0, Message::ToDirector(message));
        }
    }
}

fn net_waiting(conn: Option<ConnId>, wait: bool) {
    if let Some(conn) = conn {
        net::set_waiting(conn, 0, schedule::current().filter(|_| wait));
    }
}

/// The servers as one process reaches them: what `ControlServers` does over sockets.
struct SimServers {
    node: String,
    host: Host,
    pid: Pid,
    incarnation: Incarnation,
    idle: std::sync::Mutex<BTreeMap<Incarnation, Vec<ConnId>>>,
    rdma: bool,
}

impl SimServers {
    fn connect(&self, entry: &ServerEntry) -> Result<ConnId> {
        let unreachable = |what: &str| Error::new(ErrorKind::Unreachable, Origin::Control, what);
        let (index, host) = world(|world| {
            let index = world.servers.iter().position(|server| server.name == entry.name);
            index.map(|index| (index, world.servers[index].host))
        })
        .ok_or_else(|| unreachable("no such server"))?;
        let deadline = schedule::now() + self.timeout();
        schedule::sleep(world(|world| world.delay(self.host, host)));
        loop {
            let reaches =
                world(|world| world.net.reaches(self.host, host) && world.net.reaches(host, self.host));
            match server::party(index) {
                None if reaches => return Err(unreachable("nobody listens")),
                Some(party) if reaches && !schedule::is_paused(party.0) => {
                    let greeted = world(|world| world.servers[index].incarnation());
                    let Some(greeted) = greeted else { return Err(unreachable("it is gone")) };
                    let conn = net::connect([(self.pid, self.host, Party::Fiber), party]);
                    let role = Role::Node {
                        name: self.node.clone(),
                        incarnation: self.incarnation,
                        pid: self.pid.0,
                    };
                    server::opened(index, conn, role, self.pid.0, !self.rdma, greeted);
                    schedule::sleep(world(|world| world.delay(host, self.host)));
                    if greeted != entry.incarnation {
                        net::close(conn, 0);
                        return Err(unreachable("another incarnation than the view's"));
                    }
                    return Ok(conn);
                }
                _ if schedule::now() >= deadline => {
                    return Err(Error::new(ErrorKind::Timeout, Origin::Control, "no connection in time"));
                }
                _ => schedule::sleep(5 * MS),
            }
        }
    }

    fn timeout(&self) -> Time {
        world(|world| (world.config.session.wait_ms * MS).min(2000 * MS))
    }

    fn exchange(&self, conn: ConnId, request: &ToServer) -> Result<FromServer> {
        net::send(conn, 0, Message::ToServer(request.clone()));
        match net::receive(conn, 0, schedule::now() + self.timeout()) {
            Ok(Some(Message::FromServer(reply))) => Ok(reply),
            Ok(_) => {
                net::close(conn, 0);
                Err(Error::new(ErrorKind::Timeout, Origin::Control, "no reply in time"))
            }
            Err(()) => Err(Error::new(ErrorKind::Unreachable, Origin::Control, "the connection has ended")),
        }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, BTreeMap<Incarnation, Vec<ConnId>>> {
        self.idle.lock().expect("one thread")
    }

    fn request(&self, server: &ServerEntry, request: &ToServer) -> Result<FromServer> {
        let kept = self.idle().get_mut(&server.incarnation).and_then(Vec::pop);
        if let Some(conn) = kept {
            let reply = self.exchange(conn, request);
            // A connection that broke after its request was carried out: it is asked again (duplication).
            let breaks = world(|world| world.random.chance(world.swarm.break_per_mille));
            if breaks {
                cover("fault: request repeated");
                net::close(conn, 0);
            } else if let Ok(reply) = reply {
                self.idle().entry(server.incarnation).or_default().push(conn);
                return refuse(reply);
            }
        }
        let conn = self.connect(server)?;
        let reply = self.exchange(conn, request)?;
        self.idle().entry(server.incarnation).or_default().push(conn);
        refuse(reply)
    }
}

fn refuse(reply: FromServer) -> Result<FromServer> {
    match reply {
        FromServer::Refused(refusal) => Err(refusal_error(&refusal)),
        reply => Ok(reply),
    }
}

impl Servers for SimServers {
    fn call(&self, server: &ServerEntry, request: &ToServer) -> Result<FromServer> {
        let reply = self.request(server, request);
        if world(|world| world.verbose) {
            let line = format!("{} {} asks {}: {request:?}: {reply:?}", self.node, self.pid.0, server.name);
            world(|world| world.trace(line));
        }
        let mut reply = reply?;
        match &mut reply {
            FromServer::Sealed { sessions, .. } if mutant::is(Broken::NothingListed) => sessions.clear(),
            FromServer::Claims(answers) if mutant::is(Broken::ClaimsGranted) => {
                for answer in answers.iter_mut().filter(|answer| matches!(answer, ClaimAnswer::Elsewhere(_)))
                {
                    *answer = ClaimAnswer::Granted(None);
                }
            }
            _ => {}
        }
        Ok(reply)
    }

    fn open_link(&self, server: &ServerEntry, _cache: &Arc<dyn Region>) -> Result<OpenedLink> {
        let conn = self.connect(server)?;
        // Any that makes sense: the simulated card needs none.
        let (qp_number, gid) = (17, [1; 16]);
        let offer = Endpoint { qp_number, gid, ethernet: true, mtu: 3, reads_max: 16, ..Endpoint::default() };
        let request = if self.rdma { ToServer::Connect { offer } } else { ToServer::Lease };
        let reply = self.exchange(conn, &request).and_then(refuse).inspect_err(|_| net::close(conn, 0))?;
        let corrupt = |what: &str| Error::new(ErrorKind::Unreachable, Origin::Control, what);
        match reply {
            FromServer::Connected { link, lease, .. } => {
                let id = world(|world| world.wires_by_lifeline.get(&conn).copied());
                let id = id.ok_or_else(|| corrupt("the link is gone already"))?;
                let memory = world(|world| world.wires.get(&id).map(|wire| wire.lease().clone()));
                let memory = memory.ok_or_else(|| corrupt("the link is gone already"))?;
                cover("state: RDMA link open");
                let link_end = Arc::new(SimLink { id, lease: memory, rdma: true });
                let lifeline = Some(lifeline(conn)?);
                Ok(OpenedLink { link: link_end, lease, number: Some(link), lifeline })
            }
            FromServer::Lease { lease, .. } => {
                let memory = world(|world| {
                    let server = world.servers.iter().find(|known| known.name == server.name)?;
                    let life = server.life.as_ref()?;
                    let number = selvage_session_server::decide::LeaseNumber(lease);
                    life.leases.get(&number).cloned()
                });
                // The descriptor comes with the message; the server may be gone by now.
                cover("state: shared-memory link open");
                let memory = memory.filter(|memory| memory.node == self.incarnation);
                let memory = memory.ok_or_else(|| corrupt("the lease is gone already"))?;
                self.idle().entry(server.incarnation).or_default().push(conn);
                let link = Arc::new(SimLink { id: LinkId(0), lease: memory, rdma: false });
                Ok(OpenedLink { link, lease, number: None, lifeline: None })
            }
            other => Err(corrupt(&format!("it answers {other:?}"))),
        }
    }

    fn retain(&self, view: &View) {
        let gone: Vec<ConnId> = {
            let mut idle = self.idle();
            let gone = idle.iter().filter(|(life, _)| view.server(**life).is_none());
            let gone = gone.flat_map(|(_, conns)| conns.clone()).collect();
            idle.retain(|life, _| view.server(*life).is_some());
            gone
        };
        gone.into_iter().for_each(|conn| net::close(conn, 0));
    }
}

impl Drop for SimServers {
    fn drop(&mut self) {
        let conns: Vec<ConnId> = std::mem::take(&mut *self.idle()).into_values().flatten().collect();
        for conn in conns {
            net::close(conn, 0);
        }
    }
}

/// A link's lifeline is a socket pair, so that production code can close it and look whether it ended; what
/// happens to it passes between it and the simulated connection.
fn lifeline(conn: ConnId) -> Result<Arc<Lifeline>> {
    let failed = |error| Error::os(Origin::Control, "cannot make a socket pair", error);
    let (node_end, far_end) = UnixStream::pair().map_err(failed)?;
    far_end.set_nonblocking(true).map_err(failed)?;
    let lifeline = Arc::new(Lifeline::new(Stream::accepted(node_end)?)?);
    schedule::after(5 * MS, move || watch_lifeline(conn, far_end));
    Ok(lifeline)
}

fn watch_lifeline(conn: ConnId, mut far_end: UnixStream) {
    let closed = matches!(far_end.read(&mut [0]), Ok(0));
    if closed {
        return net::close(conn, 0);
    }
    if !net::is_open(conn, 0) {
        // The node's end sees this as the server's doing.
        let _ = far_end.shutdown(Shutdown::Both);
        return;
    }
    schedule::after(5 * MS, move || watch_lifeline(conn, far_end));
}
