//! Everything that one simulation has, and what its seed decides.

use crate::director::Director;
use crate::fault;
use crate::history::History;
use crate::link::{LinkId, Wire};
use crate::mutant::{Mutant, What};
use crate::net::{Conn, ConnId, Host, Net};
use crate::node::Node;
use crate::schedule::{self, Clock, MS, Pid, Random, Time, US};
use crate::server::Server;
use selvage_fabric::archive::ArchiveLimits;
use selvage_fabric::config::Config;
use selvage_fabric::ident::{Incarnation, SessionId};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::Arc;

/// What a seed decides: sizes, speeds and which faults there are (swarm testing).
#[derive(Clone, Debug)]
pub struct Swarm {
    pub nodes: usize,
    pub processes: usize,
    pub servers: usize,
    pub copies: u32,
    pub rdma: bool,
    pub browsers: usize,
    pub sessions_max: u32,
    pub idle_s: u64,
    pub latency: Time,
    pub jitter: Time,
    pub think: Time,
    pub pause_between: Time,
    pub torn_per_mille: u64,
    pub loss_per_mille: u64,
    pub break_per_mille: u64,
    pub no_memory_per_mille: u64,
    /// In leases.
    pub server_bytes_max: u64,
    pub skew_ms: i64,
    /// Of pushes over shared memory that are cut, how many stand still for long, and for how long at most.
    pub stall_per_mille: u64,
    pub stall_ms: u64,
    /// Of pushes over RDMA, how many land twice.
    pub twice_per_mille: u64,
    /// How long a server takes to seal at most.
    pub seal_time: Time,
    /// What goes beside a value into a session: from, to.
    pub blob_bytes: (u64, u64),
    pub lease_bytes: u64,
    /// Sessions that browsers keep at most.
    pub sessions: usize,
    /// Of requests to a session, how many change it, in a hundred.
    pub changes: u64,
    /// Of requests that could do without the lock, how many open the session unlocked, in a hundred.
    pub unlocked: u64,
    /// How long an id that was given up can be read, ms.
    pub grace_ms: u64,
    /// Of faults, how many come in twos, at the same time.
    pub twin_per_mille: u64,
    /// One server is added later.
    pub late_server: bool,
    /// Browsers ask for nothing any more once the faults are over.
    pub quiet: bool,
    /// Mean time between two faults; 0: none.
    pub fault_every: Time,
    /// Which kinds of faults, by their index.
    pub faults: Vec<usize>,
}

impl Swarm {
    fn draw(random: &mut Random, fault_kinds: usize) -> Self {
        let rdma = random.chance(600);
        let faults = (0..fault_kinds).filter(|_| random.chance(400)).collect();
        Self {
            nodes: random.between(2, 3) as usize,
            processes: random.between(1, 3) as usize,
            servers: random.between(1, 3) as usize,
            copies: random.between(1, 2) as u32,
            rdma,
            browsers: random.between(2, 5) as usize,
            sessions_max: if random.chance(150) { 16 } else { 64 },
            idle_s: if random.chance(250) { random.between(4, 12) } else { 1800 },
            latency: random.between(20, 400) * US,
            jitter: if random.chance(300) { random.between(1, 20) * MS } else { 100 * US },
            think: random.between(0, 20) * MS,
            pause_between: random.between(10, 200) * MS,
            torn_per_mille: if random.chance(500) { random.between(10, 500) } else { 0 },
            loss_per_mille: if random.chance(300) { random.between(1, 40) } else { 0 },
            break_per_mille: if random.chance(300) { random.between(5, 100) } else { 0 },
            no_memory_per_mille: if random.chance(150) { 200 } else { 0 },
            server_bytes_max: if random.chance(100) { random.between(2, 4) } else { 0 },
            skew_ms: if random.chance(300) { random.between(100, 2000) as i64 } else { 0 },
            stall_per_mille: 30,
            stall_ms: 1500,
            twice_per_mille: if random.chance(300) { random.between(10, 300) } else { 0 },
            seal_time: if random.chance(300) { random.between(1, 150) * MS } else { 0 },
            blob_bytes: (1, 900),
            // A chunk of 1 MiB for each size class that such archives have.
            lease_bytes: 5 << 20,
            sessions: 24,
            changes: if random.chance(250) { random.between(3, 20) } else { 50 },
            unlocked: if random.chance(300) { 80 } else { random.between(0, 40) },
            grace_ms: if random.chance(300) { random.between(100, 3000) } else { 0 },
            twin_per_mille: if random.chance(300) { 300 } else { 0 },
            late_server: random.chance(100),
            quiet: random.chance(200),
            fault_every: if random.chance(900) { random.between(300, 6000) * MS } else { 0 },
            faults,
        }
    }
}

pub struct World {
    pub random: Random,
    pub swarm: Swarm,
    pub config: Arc<Config>,
    pub net: Net,
    pub director: Director,
    pub servers: Vec<Server>,
    pub nodes: Vec<Node>,
    pub conns: BTreeMap<ConnId, Conn>,
    pub conn_last: u64,
    pub wires: BTreeMap<LinkId, Wire>,
    pub wires_by_lifeline: BTreeMap<ConnId, LinkId>,
    pub wire_last: u64,
    pub hosts_of_lives: BTreeMap<Incarnation, Host>,
    pub history: History,
    pub coverage: BTreeMap<String, u64>,
    pub lines: VecDeque<String>,
    /// Requests under way, by session.
    pub asked: BTreeMap<SessionId, u32>,
    pub verbose: bool,
    /// What is broken.
    pub mutant: Option<What>,
    pub failure: Option<(String, String)>,
    pub answered: u64,
    pub refused: u64,
    pid_last: u32,
}

thread_local! {
    static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
}

/// Works on this thread's world. Nothing inside may sleep, or call this again.
pub fn world<T>(work: impl FnOnce(&mut World) -> T) -> T {
    WORLD.with_borrow_mut(|world| work(world.as_mut().expect("a simulation runs on this thread")))
}

/// Notes that a kind of fault or a state of the protocol was reached.
pub fn cover(what: &str) {
    world(|world| world.cover(what));
}

/// Bounds of archives here.
pub fn archive_limits() -> ArchiveLimits {
    ArchiveLimits { archive_bytes_max: 65_536, ..ArchiveLimits::default() }
}

/// Makes this thread's world.
pub fn begin(seed: u64, verbose: bool, mutant: Option<&Mutant>) {
    let mut random = Random::new(seed);
    let mut swarm = Swarm::draw(&mut random, fault::KINDS.len());
    if let Some(mutant) = mutant {
        (mutant.favour)(&mut swarm);
    }
    let mutant = mutant.filter(|mutant| mutant.is_broken).map(|mutant| mutant.what);
    let config = Arc::new(config(&swarm));
    // In shared memory all are on one host but the director.
    let server_host = |index: usize| Host(if swarm.rdma { 1 + index } else { 1 });
    let node_host = |index: usize| Host(if swarm.rdma { 101 + index } else { 1 });
    let servers = (0..swarm.servers).map(|index| Server::new(format!("s{}", index + 1), server_host(index)));
    let nodes =
        (0..swarm.nodes).map(|index| Node::new(format!("n{}", index + 1), node_host(index), swarm.processes));
    let world = World {
        net: Net::new(swarm.latency, swarm.jitter, swarm.loss_per_mille),
        director: Director::default(),
        servers: servers.collect(),
        nodes: nodes.collect(),
        random,
        config,
        conns: BTreeMap::new(),
        conn_last: 0,
        wires: BTreeMap::new(),
        wires_by_lifeline: BTreeMap::new(),
        wire_last: 0,
        hosts_of_lives: BTreeMap::new(),
        history: History::default(),
        coverage: BTreeMap::new(),
        lines: VecDeque::new(),
        asked: BTreeMap::new(),
        verbose,
        mutant,
        failure: None,
        answered: 0,
        refused: 0,
        pid_last: 1000,
        swarm,
    };
    WORLD.set(Some(world));
}

/// Takes this thread's world away.
pub fn end() -> World {
    WORLD.take().expect("a simulation ran on this thread")
}

fn config(swarm: &Swarm) -> Config {
    let mut text = format!(
        "[cluster]\nname = \"sim\"\nrun_dir = \"/nowhere\"\ncopies = {}\ncookie_keys = [\"{}\"]\n[director]\n\
         [session]\narchive_bytes_max = 65536\nwait_ms = 2000\nidle_s = {}\n\
         regenerate_grace_ms = {}\n\
         [memory]\nsessions_max = {}\ncache_bytes = {}\nlease_bytes = {}\n",
        swarm.copies,
        "ab".repeat(32),
        swarm.idle_s,
        swarm.grace_ms,
        swarm.sessions_max,
        swarm.lease_bytes,
        swarm.lease_bytes
    );
    for server in 1..=swarm.servers {
        text += &format!("[[server]]\nname = \"s{server}\"\n");
    }
    for node in 1..=swarm.nodes {
        text += &format!("[[node]]\nname = \"n{node}\"\naddress = \"127.0.0.1:{}\"\n", 8000 + node);
    }
    Config::parse(Path::new("sim.toml"), &text).expect("the simulation's configuration")
}

impl World {
    /// What expires before this, Unix ms, some clock may take for expired now: clocks differ and jump, and a
    /// touch that moves the expiry little is not pushed.
    pub fn latest_ms(&self) -> u64 {
        let jumps = self.swarm.faults.contains(&fault::JUMPS);
        let clocks = 2 * self.swarm.skew_ms as u64 + if jumps { 2 * fault::JUMP_MS } else { 0 };
        schedule::clock_of(None, true) / MS + clocks + 1000 + self.swarm.idle_s * 1000 / 5
    }

    /// A new process, with its host's clock.
    pub fn new_process(&mut self, host: Host) -> Pid {
        self.pid_last += 1;
        let pid = Pid(self.pid_last);
        let skew = self.swarm.skew_ms;
        let off = if skew == 0 { 0 } else { self.random.below(2 * skew as u64) as i64 - skew };
        let monotonic_ns = host.0 as u64 * 1_000_000_007;
        if off != 0 {
            self.cover("fault: clock skew");
        }
        schedule::add_process(pid, Clock { monotonic_ns, unix_ns: off * MS as i64 });
        pid
    }

    pub fn node_host_of(&self, life: Incarnation) -> Host {
        self.hosts_of_lives.get(&life).copied().unwrap_or(Host(0))
    }

    pub fn cover(&mut self, what: &str) {
        match self.coverage.get_mut(what) {
            Some(count) => *count += 1,
            None => drop(self.coverage.insert(what.to_owned(), 1)),
        }
    }

    /// A line of the trace.
    pub fn trace(&mut self, line: String) {
        let line = format!("{:>9.3} {line}", schedule::now() as f64 / 1e9);
        if self.verbose {
            println!("{line}");
        }
        self.lines.push_back(line);
        if self.lines.len() > 400 {
            self.lines.pop_front();
        }
    }

    /// A check has found something wrong. The first counts.
    pub fn fail(&mut self, check: &str, what: &str) {
        self.trace(format!("FAILED {check}: {what}"));
        if self.failure.is_none() {
            self.failure = Some((check.to_owned(), what.to_owned()));
        }
    }

    /// Takes over what the history found wrong.
    pub fn look_at_history(&mut self) {
        for (check, what) in self.history.take_failures() {
            self.fail(check, &what);
        }
    }
}
