//! What a heartbeat tells of the node: its sessions, its processes, its numbers.
//!
//! Everything but the numbers comes with each heartbeat. These come once a second, and how full the leases
//! are is counted still less often where leases are large, so that counting stays below a thousandth of the
//! steward's time.

use super::host::{Host, LinkState};
use crate::cache::{CacheNumbers, WAYS_PER_SERVER};
use crate::config::TransportKind;
use crate::control::message::{LeaseUse, NodeBeat, NodeNumbers, PushNumbers};
use crate::ident::{Epoch, Incarnation};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Time from one report of the numbers to the next.
const EVERY: Duration = Duration::from_secs(1);
/// Units of leases that are looked at in a second, on average.
const UNITS_PER_SECOND: u64 = 1 << 18;

/// A heartbeat, but for the links, the numbers and the time of its sending.
pub(super) fn beat_of(host: &Host, epoch: Epoch, settled: Vec<Incarnation>) -> NodeBeat {
    let cache = &host.cache;
    let stats = cache.stats().unwrap_or_default();
    let living = cache.processes().into_iter().filter(|process| process.alive);
    NodeBeat {
        sent_ns: 0,
        epoch,
        sessions: stats.sessions,
        safe: stats.safe,
        settled,
        pids: living.map(|process| process.pid).collect(),
        cache_bytes: (stats.bytes_used, stats.bytes_total),
        counters: cache.counters(),
        links: Vec::new(),
        numbers: None,
    }
}

/// When the numbers were reported last, and what is not counted anew each time.
#[derive(Default)]
pub(super) struct Reporter {
    reported: Option<Instant>,
    /// Of each server's lease: how full it was, and when that was counted.
    leases: HashMap<Incarnation, (LeaseUse, Instant)>,
}

impl Reporter {
    /// The numbers, if it is time for them.
    pub fn numbers(&mut self, host: &Host) -> Option<Box<NodeNumbers>> {
        if self.reported.is_some_and(|at| at.elapsed() < EVERY) {
            return None;
        }
        self.reported = Some(Instant::now());
        let CacheNumbers { errors, times, pushes, .. } = host.cache.numbers();
        let ways = pushes.into_iter().enumerate().filter(|(_, (time, failed))| time.sum_ns + failed > 0);
        let pushes = ways.filter_map(|(way, (time, failed))| {
            let (server, transport) = server_of(host, way as u32)?;
            Some(PushNumbers { server, transport, time, failed })
        });
        Some(Box::new(NodeNumbers { errors, times, pushes: pushes.collect(), leases: self.leases(host) }))
    }

    fn leases(&mut self, host: &Host) -> Vec<LeaseUse> {
        let plan = host.plan().clone();
        self.leases.retain(|server, _| plan.view.server(*server).is_some());
        for (server, link) in plan.links() {
            let LinkState::Open(lane) = link else { continue };
            let (slots, bytes) = host.cache.lease_size(lane.book);
            let pause =
                EVERY * (1 + bytes / crate::limits::BLOCK_UNIT_BYTES as u64 / UNITS_PER_SECOND) as u32;
            let counted = self.leases.get(&lane.server);
            if counted.is_some_and(|(_, at)| at.elapsed() < pause) {
                continue;
            }
            let (slots_used, bytes_used) =
                (host.cache.places_at(lane.book), host.cache.lease_bytes(lane.book));
            let server = server.name.clone();
            let lease = LeaseUse { server, slots: (slots_used, slots), bytes: (bytes_used, bytes) };
            self.leases.insert(lane.server, (lease, Instant::now()));
        }
        self.leases.values().map(|(lease, _)| lease.clone()).collect()
    }
}

/// The server and the transport that a way's number stands for, the reverse of [`Host::way_of`].
fn server_of(host: &Host, way: u32) -> Option<(String, TransportKind)> {
    let server = host.config.servers.get((way / WAYS_PER_SERVER) as usize)?;
    let transport = match way % WAYS_PER_SERVER {
        0 => TransportKind::Shm,
        _ => TransportKind::Verbs,
    };
    Some((server.name.clone(), transport))
}
