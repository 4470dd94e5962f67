//! Faults, each of a kind, drawn by the seed; every one ends by itself or is mended before the rest.

use crate::net::Host;
use crate::schedule::{self, MS, Pid};
use crate::world::{World, cover, world};
use crate::{director, node, server};

/// A kind of fault: its name, and what it does.
pub const KINDS: [(&str, fn()); 15] = [
    ("fault: process of a node killed", kill_process),
    ("fault: node killed", kill_node),
    ("fault: server killed, comes back empty", kill_server),
    ("fault: director killed", kill_director),
    ("fault: node stopped", stop_node),
    ("fault: process of a node stopped", stop_process),
    ("fault: server stopped", stop_server),
    ("fault: director stopped", stop_director),
    ("fault: network cut on one side", cut_one_side),
    ("fault: network cut on both sides", cut_both_sides),
    ("fault: clock jumped", jump_clock),
    ("fault: node drained", drain_node),
    ("fault: server removed or added", change_servers),
    ("fault: worker removed or added", change_workers),
    ("fault: everything killed at once", cut_power),
];

/// Which of them are jumps of clocks.
pub const JUMPS: usize = 10;

/// The kinds of these names.
pub fn named(names: &[&str]) -> Vec<usize> {
    let index = |name: &&str| {
        let found = KINDS.iter().position(|(kind, _)| kind.strip_prefix("fault: ") == Some(name));
        found.unwrap_or_else(|| panic!("no kind of fault is {name}"))
    };
    names.iter().map(index).collect()
}

/// How far a clock may be off after a jump.
pub const JUMP_MS: u64 = 2000;

/// Draws the next fault, and so on until `end`.
pub fn begin(end: schedule::Time) {
    let every = world(|world| world.swarm.fault_every);
    if every == 0 || world(|world| world.swarm.faults.is_empty()) {
        return;
    }
    let wait = world(|world| world.random.below(2 * every) + MS);
    schedule::after(wait, move || {
        if schedule::now() >= end {
            return;
        }
        strike();
        if world(|world| world.random.chance(world.swarm.twin_per_mille)) {
            cover("fault: several at once");
            strike();
        }
        begin(end);
    });
}

fn strike() {
    let kind = world(|world| {
        let at = world.random.below(world.swarm.faults.len() as u64) as usize;
        world.swarm.faults[at]
    });
    KINDS[kind].1();
}

fn draw(low_ms: u64, high_ms: u64) -> schedule::Time {
    world(|world| world.random.between(low_ms, high_ms)) * MS
}

fn pick(count: usize) -> usize {
    world(|world| world.random.below(count as u64)) as usize
}

fn hit(kind: &str, what: String) {
    cover(kind);
    world(|world| world.trace(format!("{kind}: {what}")));
}

fn some_process() -> Option<(usize, Pid)> {
    let index = pick(world(|world| world.nodes.len()));
    let pids: Vec<Pid> = world(|world| world.nodes[index].processes.keys().copied().collect());
    pids.get(pick(pids.len().max(1))).map(|pid| (index, *pid))
}

fn kill_process() {
    let Some((index, pid)) = some_process() else { return };
    hit(KINDS[0].0, format!("{}", pid.0));
    node::kill(index, pid);
    let back = draw(5, 2000);
    schedule::after(back, move || refill_node(index));
}

fn kill_node() {
    let index = pick(world(|world| world.nodes.len()));
    hit(KINDS[1].0, format!("n{}", index + 1));
    end_node(index);
    let back = draw(5, 5000);
    schedule::after(back, move || refill_node(index));
}

/// Kills all processes of a node.
pub fn end_node(index: usize) {
    let pids: Vec<Pid> = world(|world| world.nodes[index].processes.keys().copied().collect());
    pids.into_iter().for_each(|pid| node::kill(index, pid));
}

/// Starts the processes that a node lacks.
pub fn refill_node(index: usize) {
    let missing = world(|world| {
        let node = &world.nodes[index];
        node.wanted.saturating_sub(node.processes.len())
    });
    for _ in 0..missing {
        node::start(index);
    }
}

fn kill_server() {
    let index = pick(world(|world| world.servers.len()));
    hit(KINDS[2].0, format!("s{}", index + 1));
    server::kill(index);
    let back = draw(1, 5000);
    schedule::after(back, move || refill_server(index));
}

/// Starts a server that does not run, unless it was removed.
pub fn refill_server(index: usize) {
    if world(|world| world.servers[index].life.is_none() && !world.servers[index].removed) {
        server::start(index);
    }
}

fn kill_director() {
    hit(KINDS[3].0, String::new());
    director::kill();
    let back = draw(1, 3000);
    schedule::after(back, refill_director);
}

/// Starts the director if it does not run.
pub fn refill_director() {
    if world(|world| world.director.life.is_none()) {
        director::start();
    }
}

fn stop(pids: Vec<Pid>) {
    let time = draw(50, 4000);
    pids.iter().for_each(|pid| schedule::pause(*pid));
    schedule::after(time, move || pids.into_iter().for_each(schedule::resume));
}

fn stop_node() {
    let index = pick(world(|world| world.nodes.len()));
    hit(KINDS[4].0, format!("n{}", index + 1));
    stop(world(|world| world.nodes[index].processes.keys().copied().collect()));
}

fn stop_process() {
    let Some((_, pid)) = some_process() else { return };
    hit(KINDS[5].0, format!("{}", pid.0));
    stop(vec![pid]);
}

fn stop_server() {
    let index = pick(world(|world| world.servers.len()));
    let Some(pid) = world(|world| world.servers[index].life.as_ref().map(|life| life.pid)) else { return };
    hit(KINDS[6].0, format!("s{}", index + 1));
    stop(vec![pid]);
}

fn stop_director() {
    let Some(pid) = world(|world| world.director.life.as_ref().map(|life| life.pid)) else { return };
    hit(KINDS[7].0, String::new());
    stop(vec![pid]);
}

fn hosts(world: &World) -> Vec<Host> {
    let mut hosts: Vec<Host> = world.servers.iter().map(|server| server.host).collect();
    hosts.extend(world.nodes.iter().map(|node| node.host));
    hosts.push(director::HOST);
    hosts.sort_unstable();
    hosts.dedup();
    hosts
}

fn cut(both: bool) -> Option<(Host, Host)> {
    let hosts = world(|world| hosts(world));
    let (from, to) = (hosts[pick(hosts.len())], hosts[pick(hosts.len())]);
    if from == to {
        return None;
    }
    let time = draw(50, 4000);
    world(|world| {
        world.net.cut(from, to);
        if both {
            world.net.cut(to, from);
        }
    });
    schedule::after(time, move || {
        world(|world| {
            world.net.join(from, to);
            if both {
                world.net.join(to, from);
            }
        });
    });
    Some((from, to))
}

fn cut_one_side() {
    if let Some(hosts) = cut(false) {
        hit(KINDS[8].0, format!("{hosts:?}"));
    }
}

fn cut_both_sides() {
    if let Some(hosts) = cut(true) {
        hit(KINDS[9].0, format!("{hosts:?}"));
    }
}

fn jump_clock() {
    let Some((_, pid)) = some_process() else { return };
    let by = world(|world| world.random.below(2 * JUMP_MS) as i64 - JUMP_MS as i64);
    hit(KINDS[10].0, format!("{} by {by} ms", pid.0));
    // No further from the truth than the configuration allows.
    schedule::set_clock(pid, |clock| clock.unix_ns = by * MS as i64);
}

fn drain_node() {
    let name = world(|world| {
        let at = world.random.below(world.nodes.len() as u64) as usize;
        world.nodes[at].name.clone()
    });
    hit(KINDS[11].0, name.clone());
    director::drain(&name);
    let back = draw(500, 5000);
    schedule::after(back, move || director::undrain(&name));
}

/// A server leaves the cluster for good, unless it is the last one; or one that left, or was never there,
/// comes.
fn change_servers() {
    let (there, away): (Vec<usize>, Vec<usize>) =
        world(|world| (0..world.servers.len()).partition(|index| !world.servers[*index].removed));
    let add = !away.is_empty() && (there.len() == 1 || world(|world| world.random.chance(500)));
    if add {
        return add_server(away[pick(away.len())]);
    }
    if there.len() > 1 {
        let index = there[pick(there.len())];
        hit(KINDS[12].0, format!("s{}", index + 1));
        cover("state: server removed");
        world(|world| world.servers[index].removed = true);
        server::kill(index);
    }
}

/// A server that was not there comes.
pub fn add_server(index: usize) {
    hit(KINDS[12].0, format!("s{}", index + 1));
    cover("state: server added");
    world(|world| world.servers[index].removed = false);
    refill_server(index);
}

/// A node goes on with one process less, or more.
fn change_workers() {
    let index = pick(world(|world| world.nodes.len()));
    let wanted = world(|world| world.nodes[index].wanted);
    let less = wanted > 1 && (wanted == WORKERS_MAX || world(|world| world.random.chance(500)));
    hit(KINDS[13].0, format!("n{}", index + 1));
    world(|world| world.nodes[index].wanted = if less { wanted - 1 } else { wanted + 1 });
    if !less {
        return refill_node(index);
    }
    let pids: Vec<Pid> = world(|world| world.nodes[index].processes.keys().copied().collect());
    if pids.len() >= wanted {
        node::kill(index, pids[pick(pids.len())]);
    }
}

/// Processes of a node at most; its cache has room for twice as many.
const WORKERS_MAX: usize = 4;

/// All hosts lose their power, and come back one after the other.
fn cut_power() {
    hit(KINDS[14].0, String::new());
    director::kill();
    let (servers, nodes) = world(|world| (world.servers.len(), world.nodes.len()));
    (0..servers).for_each(server::kill);
    (0..nodes).for_each(end_node);
    schedule::after(draw(1, 3000), refill_director);
    (0..servers).for_each(|index| schedule::after(draw(1, 3000), move || refill_server(index)));
    (0..nodes).for_each(|index| schedule::after(draw(1, 3000), move || refill_node(index)));
}

/// Everything runs and reaches everything.
pub fn mend() {
    world(|world| {
        world.net.heal();
        world.swarm.break_per_mille = 0;
        world.swarm.no_memory_per_mille = 0;
    });
    // A server that had too little memory gets more by a restart, one after the other.
    if world(|world| std::mem::take(&mut world.swarm.server_bytes_max)) > 0 {
        for index in 0..world(|world| world.servers.len()) {
            schedule::after((1 + index as u64) * 1200 * MS, move || {
                server::kill(index);
                refill_server(index);
            });
        }
    }
    refill_director();
    let names = world(|world| world.nodes.iter().map(|node| node.name.clone()).collect::<Vec<_>>());
    names.iter().for_each(|name| director::undrain(name));
    for index in 0..world(|world| world.servers.len()) {
        refill_server(index);
    }
    for index in 0..world(|world| world.nodes.len()) {
        refill_node(index);
    }
    let pids = world(|world| {
        let nodes = world.nodes.iter().flat_map(|node| node.processes.keys().copied());
        let servers = world.servers.iter().filter_map(|server| server.life.as_ref().map(|life| life.pid));
        let director = world.director.life.as_ref().map(|life| life.pid);
        nodes.chain(servers).chain(director).collect::<Vec<_>>()
    });
    pids.into_iter().for_each(schedule::resume);
}
