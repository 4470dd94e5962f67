//! What must be true when all faults are mended and nothing happens any more: everyone is up, every session
//! has its copies, by the truth of the servers' memory, nothing is left over, and what is told to people is
//! what is.

use crate::browser;
use crate::director;
use crate::node::Node;
use crate::request::{Request, short};
use crate::schedule::{self, MS, Time};
use crate::server;
use crate::world::{archive_limits, world};
use selvage_fabric::cache::EntryState;
use selvage_fabric::ident::{Incarnation, SessionId, Version};
use selvage_fabric::lease::{Cell, CellState, LeaseGeometry, SessionCopy, SlotIndex, fetch, scan};
use selvage_fabric::node::OpenMode;
use selvage_fabric::node::inside;
use selvage_fabric::placement;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::Arc;

/// The view is whole: everyone is up and nobody is dead.
pub fn is_settled() -> bool {
    world(|world| {
        let view = &world.director.view;
        view.nodes.len() == world.nodes.len()
            && view.servers.len() == world.servers.iter().filter(|server| !server.removed).count()
            && view.dead.is_empty()
    })
}

/// Reads every session that a browser knows, in a fiber.
pub fn read_all() {
    let pid = world(|world| world.new_process(director::HOST));
    schedule::spawn(pid, move || {
        for cookie in browser::cookies() {
            let request = Request::Read { mode: OpenMode::Exclusive };
            if !browser::ask(&request, Some(cookie)) {
                world(|world| world.fail("served at rest", "a request failed though nothing is wrong"));
            }
        }
        world(|world| world.cover("state: all read at rest"));
    });
}

/// Looks again and again until all is as it must be, at most until `end`; then what is wrong is a failure.
pub fn look(end: Time) {
    let wrong = complaints();
    match wrong.first() {
        None => world(|world| world.cover("state: at rest")),
        Some((check, what)) if schedule::now() >= end => {
            let more = wrong.len() - 1;
            world(|world| world.fail(check, &format!("{what} (and {more} more)")));
        }
        Some(_) => schedule::after(100 * MS, move || look(end)),
    }
}

/// A live cell in an open lease.
type LiveCell = (SlotIndex, Version, SessionCopy);

fn complaints() -> Vec<(&'static str, String)> {
    let mut wrong = Vec::new();
    if !is_settled() {
        wrong.push(("heals", "members are missing long after all faults".to_owned()));
        return wrong;
    }
    let hosts: Vec<Arc<inside::Host>> = world(|world| {
        let hosts =
            world.nodes.iter().map(|node| node.processes.values().find_map(|process| process.host.clone()));
        hosts.flatten().collect()
    });
    let cells = live_cells(&mut wrong);
    let mut safe = [0; 3];
    let mut owners: BTreeMap<SessionId, Incarnation> = BTreeMap::new();
    for host in &hosts {
        check_cache(host, &mut wrong);
        let mut known = BTreeSet::new();
        for index in 0..host.cache.spec().sessions_max {
            let Ok(Some(info)) = host.cache.entry(index) else { continue };
            let id = info.id;
            if info.state != EntryState::Live || info.locked {
                wrong.push((
                    "nothing leaks",
                    format!("session {} is {:?}, locked: {}", short(id), info.state, info.locked),
                ));
                continue;
            }
            if let Some(other) = owners.insert(id, host.incarnation()) {
                wrong.push(("one owner", format!("session {} is at {other:?}, too", short(id))));
            }
            if world(|world| world.history.is_gone(id)) {
                wrong.push(("gone is gone", format!("session {} is cached at {}", short(id), host.name)));
            }
            known.insert(id);
            safe[check_copies(host, id, info.version, &cells, &mut wrong).min(2)] += 1;
        }
        for ((server, node, id), cells) in &cells {
            if *node == host.incarnation() && !known.contains(id) {
                let what = format!(
                    "{} live cells of session {} at {server:?}, which its node has not",
                    cells.len(),
                    short(*id)
                );
                wrong.push(("nothing leaks", what));
            }
        }
    }
    check_status(safe, &hosts, &mut wrong);
    wrong
}

/// What lies in the open leases, by server, node and session.
fn live_cells(
    wrong: &mut Vec<(&'static str, String)>,
) -> BTreeMap<(Incarnation, Incarnation, SessionId), Vec<LiveCell>> {
    let leases = world(|world| {
        let lives = world.servers.iter().filter_map(|server| server.life.as_ref());
        lives.flat_map(|life| life.leases.values().cloned()).collect::<Vec<_>>()
    });
    let mut cells: BTreeMap<_, Vec<LiveCell>> = BTreeMap::new();
    for lease in leases {
        if lease.is_sealed() {
            wrong.push(("nothing leaks", format!("a sealed lease of {:?} is left", lease.node)));
            continue;
        }
        let Ok(report) = scan(&lease.memory, &lease.geometry, &archive_limits()) else { continue };
        for (slot, cell) in report.cells {
            if cell.state != CellState::Live {
                continue;
            }
            let Cell { id, version, expiry_ms, block, archive_bytes, checksum, .. } = cell;
            let (live, settled) = (true, false);
            let copy = SessionCopy { id, version, expiry_ms, live, settled, block, archive_bytes, checksum };
            if let Err(error) = fetch(&lease.memory, &lease.geometry, &copy, &archive_limits()) {
                wrong.push(("copies are whole", format!("session {}: {error}", short(cell.id))));
            }
            let key = (lease.server, lease.node, cell.id);
            cells.entry(key).or_default().push((slot, cell.version, copy));
        }
    }
    cells
}

/// Whether a session has all its copies where they belong, in truth. Returns how many.
fn check_copies(
    host: &inside::Host,
    id: SessionId,
    version: Version,
    cells: &BTreeMap<(Incarnation, Incarnation, SessionId), Vec<LiveCell>>,
    wrong: &mut Vec<(&'static str, String)>,
) -> usize {
    let view = world(|world| world.director.view.clone());
    let placed = placement::servers_for(id, &view.servers, view.copies);
    let mut copies = 0;
    for rank in 0..placed.len() {
        let Some(server) = view.servers.get(usize::from(placed[rank])) else { continue };
        let at = cells.get(&(server.incarnation, host.incarnation(), id));
        match at.map(Vec::as_slice) {
            Some([(_, found, _)]) if *found == version => copies += 1,
            found => {
                let what = format!("session {} {version} is {found:?} at {}", short(id), server.name);
                wrong.push(("two copies at rest", what));
            }
        }
    }
    copies
}

/// The segment's own invariants, and that nothing is left in quarantine.
fn check_cache(host: &inside::Host, wrong: &mut Vec<(&'static str, String)>) {
    match host.cache.verify() {
        Ok(found) => {
            wrong.extend(found.into_iter().map(|what| ("cache is whole", format!("{}: {what}", host.name))))
        }
        Err(error) => wrong.push(("cache is whole", error.to_string())),
    }
    let quarantined = host.cache.quarantined();
    if let Some(slot) = quarantined.first() {
        wrong.push((
            "nothing leaks",
            format!("{}: {} slots in quarantine, {slot:?}", host.name, quarantined.len()),
        ));
    }
}

/// What the director tells people is what is.
fn check_status(safe: [u64; 3], hosts: &[Arc<inside::Host>], wrong: &mut Vec<(&'static str, String)>) {
    let Some(status) = director::status() else { return };
    let told = [status.protection.none, status.protection.one, status.protection.two];
    if told != safe {
        wrong.push(("metrics are true", format!("protection is told {told:?} and is {safe:?}")));
    }
    let mut lie = |who: &str, what: &str, told: &dyn Debug, is: &dyn Debug| {
        wrong.push(("metrics are true", format!("{who} tells {what} {told:?} and has {is:?}")));
    };
    let (servers, pids) = world(|world| {
        let pids = |node: &Node| node.processes.keys().map(|pid| pid.0).collect::<Vec<_>>();
        let pids: BTreeMap<String, Vec<u32>> =
            world.nodes.iter().map(|node| (node.name.clone(), pids(node))).collect();
        (world.director.view.servers.len(), pids)
    });
    for host in hosts {
        let Some(node) = status.nodes.iter().find(|node| node.name == host.name) else { continue };
        let sessions = (0..host.cache.spec().sessions_max).filter(
            |index| matches!(host.cache.entry(*index), Ok(Some(info)) if info.state == EntryState::Live),
        );
        let sessions = sessions.count() as u64;
        if node.sessions != sessions {
            lie(&host.name, "sessions", &node.sessions, &sessions);
        }
        if node.epoch != status.epoch {
            lie(&host.name, "a view carried out", &node.epoch, &status.epoch);
        }
        let mut told = node.pids.clone();
        told.sort_unstable();
        if told != pids[&host.name] {
            lie(&host.name, "processes", &told, &pids[&host.name]);
        }
        let open = node.links.iter().filter(|link| !link.transport.is_empty()).count();
        if open != servers {
            lie(&host.name, "open links", &open, &servers);
        }
    }
    if let Some(dead) = status.dead.first() {
        lie("the director", "a dead node", dead, &"none");
    }
    let leases = world(|world| {
        let lives = world.servers.iter().filter_map(|server| server.life.as_ref());
        let count: u64 = lives.map(|life| life.leases.len() as u64).sum();
        let geometry: LeaseGeometry = server::geometry(world);
        count * geometry.total_bytes()
    });
    let bytes: u64 = status.servers.iter().map(|server| server.bytes).sum();
    if bytes != leases {
        wrong.push(("metrics are true", format!("servers tell {bytes} bytes and have {leases}")));
    }
}
