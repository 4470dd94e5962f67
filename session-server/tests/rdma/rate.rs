//! Nodes that push at full rate: what it costs the daemon, and what garbage does to it and to others.

use crate::host::*;
use crate::rave::rave;
use crate::segment::Segment;
use crate::{Process, SMALL, end_of, until};
use selvage_fabric::archive::{ArchiveLimits, validate};
use selvage_fabric::control::message::{FromServer, RemoteMemory, ToServer};
use selvage_fabric::ident::SessionId;
use selvage_fabric::lease::{ArchiveChecksum, Cell, SlotIndex};
use selvage_fabric::numbers::ServerCounter;
use selvage_fabric::transport::verbs::VerbsLink;
use selvage_fabric::transport::{Link, Outcome, Push};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Sessions of the node that is served meanwhile.
const GOOD: u32 = 40;
/// How long processor time is measured.
const WINDOW: Duration = Duration::from_secs(2);
/// What the processor time of two windows may differ by: an emulated processor that is taken away from a
/// timer in the middle of its work counts on.
const NOISE: Duration = Duration::from_millis(15);
/// Measurements, of which one must be within the noise. What receiving costs, it costs every time.
const TRIES: u32 = 3;

/// Stops the writers, however a test ends.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Time on a processor of all threads of the daemon, by the scheduler's own clock, which misses nothing
/// between ticks.
fn scheduled(daemon: &Daemon) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
    let ns = tasks.map(|task| {
        // A thread that has ended meanwhile has no file.
        let line = std::fs::read_to_string(task.unwrap().path().join("schedstat")).unwrap_or_default();
        line.split(' ').next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0)
    });
    Duration::from_nanos(ns.sum())
}

/// The daemon uses no more processor time while pushes come in at full rate than while none comes.
#[test]
fn receiving_at_full_rate_costs_the_daemon_nothing_beyond_its_timers() {
    let host = Host::new(SMALL);
    let daemon = host.start("s1");
    let mut director = host.director();
    director.set_view(view(1, director.server, &[1], &[]));
    let noise = Segment::new();
    let process = Process::of(noise.region.clone());
    let node = process.connect(&host, 1);
    for try_number in 1..=TRIES {
        let (stop, written) = (AtomicBool::new(false), AtomicU64::new(0));
        let before = scheduled(&daemon);
        std::thread::sleep(WINDOW);
        let idle = scheduled(&daemon) - before;
        assert!(before > Duration::ZERO, "the kernel does not tell how long a process ran");
        let busy = std::thread::scope(|scope| {
            let _stop = Stop(&stop);
            scope.spawn(|| rave(&node.link, &noise, &stop, &written, 0x5eed_5eed));
            until("pushes arrive", || written.load(Ordering::Relaxed) > 0);
            let before = scheduled(&daemon);
            std::thread::sleep(WINDOW);
            scheduled(&daemon) - before
        });
        let pushes = written.into_inner();
        println!("processor time of the daemon in {WINDOW:?}: idle {idle:?}, with {pushes} pushes {busy:?}");
        assert!(!node.link.is_broken(), "{}", node.link.detail());
        assert!(pushes > 500, "no full rate: {pushes} pushes");
        if busy <= idle + NOISE {
            return;
        }
        assert!(try_number < TRIES, "receiving costs the daemon processor time in all of {TRIES} tries");
    }
}

/// Pushes a live session, and waits for its ack.
fn commit(link: &VerbsLink, segment: &Segment, slot: u32, sequence: u32) -> Vec<u8> {
    let (id, version) = (id(slot.into()), version(sequence.into()));
    let bytes = archive(id, version, &vec![slot as u8; 700 + 30 * slot as usize]);
    let placed = segment.place(&bytes);
    // The two blocks take turns (R7).
    let block = (slot * 2 + sequence % 2) * 16;
    let checksum = ArchiveChecksum::xxh3(placed);
    let cell = Cell { checksum, ..cell(id, version, sequence, block, placed.len()) };
    let block = Some((cell.block, placed));
    let push = Push { slot: SlotIndex(slot), sequence: cell.sequence, cell: &cell.encode(), block };
    assert_eq!(end_of(link, link.post(&push)), Outcome::Acked, "{}", link.detail());
    bytes
}

/// All of a node's own lease, which it may read.
fn all_of(link: &VerbsLink, memory: RemoteMemory) -> Vec<u8> {
    const PIECE: u64 = 1 << 20;
    let pieces = (0..memory.bytes).step_by(PIECE as usize).map(|at| RemoteMemory {
        address: memory.address + at,
        bytes: PIECE.min(memory.bytes - at),
        ..memory
    });
    pieces.flat_map(|piece| link.read_bulk(piece).unwrap()).collect()
}

/// Two processes of a node write random bytes over all of its lease, header included. Meanwhile another
/// node commits, dies, and is adopted from; and the lease of the first is sealed under its hands.
#[test]
fn garbage_over_a_whole_lease_harms_nobody_else() {
    let host = Host::new(SMALL);
    let mut daemon = host.start("s1");
    let mut director = host.director();
    let server = director.server;
    director.set_view(view(1, server, &[1, 2, 3], &[]));
    let mut heir = host.node(2);
    heir.register(1);
    let (noise, segment) = (Segment::new(), Segment::new());
    let (mad, good) = (Process::of(noise.region.clone()), Process::of(segment.region.clone()));
    let mut reader = mad.connect(&host, 1);
    reader.peer.register(1);
    let pristine = all_of(&reader.link, reader.memory);
    let honest = mad.connect(&host, 1);
    // What it takes for slots is the header.
    let before = |own: RemoteMemory| RemoteMemory { address: own.address - 4096, ..own };
    let moved = mad.aim(&host, 1, before).unwrap();
    let mut node = good.connect(&host, 3);
    node.peer.register(1);
    let (stop, written) = (AtomicBool::new(false), AtomicU64::new(0));
    let count = || written.load(Ordering::Relaxed);
    std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        for (link, seed) in [(&honest.link, 0x1234_5678_9abc), (&moved.link, 0xfeed_beef_cafe)] {
            let (noise, stop, written) = (&noise, &stop, &written);
            scope.spawn(move || rave(link, noise, stop, written, seed));
        }
        until("garbage arrives", || count() > 100);
        let (begun, garbage) = (Instant::now(), count());
        let mut archives = Vec::new();
        for sequence in 1..=3 {
            archives = (0..GOOD).map(|slot| commit(&node.link, &segment, slot, sequence)).collect();
        }
        println!("{} commits of another node in {:?}", 3 * GOOD, begun.elapsed());
        // It dies; the heir gets all that was acked, byte by byte.
        let report = director.set_view(view(2, server, &[1, 2], &[(3, false)]));
        assert!(report.leases.iter().any(|lease| lease.sealed && lease.incarnation == life(3)));
        director.set_view(view(3, server, &[1, 2], &[(3, true)]));
        let ids: Vec<SessionId> = (0..u64::from(GOOD)).map(id).collect();
        assert_eq!(heir.claim(3, &ids), vec![granted(3); ids.len()]);
        for (fetched, archive) in heir.fetch(&ids).iter().zip(&archives) {
            assert_eq!((&fetched.archive, &fetched.error), (archive, &None));
        }
        assert!(count() > garbage + 100, "garbage went on all the time: {garbage}, then {}", count());
        assert_eq!(director.counter(ServerCounter::CellsBad), 0);

        let changed = |now: &[u8]| now.iter().zip(&pristine).filter(|(now, then)| now != then).count();
        let mut now = Vec::new();
        until("more than half of the lease is garbage, and its header", || {
            now = all_of(&reader.link, reader.memory);
            changed(&now) > now.len() / 2 && now[..4096] != pristine[..4096]
        });
        println!("{} garbage pushes over {} of {} bytes", count(), changed(&now), now.len());
        let report = director.set_view(view(4, server, &[2], &[(1, false), (3, true)]));
        assert!(report.leases.iter().any(|lease| lease.sealed && lease.incarnation == life(1)));
        until("the mad node's links have ended", || honest.link.is_broken() && moved.link.is_broken());
    });
    // Nobody reads over a link that the seal has ended, not even what is the node's own.
    assert!(reader.link.read_bulk(reader.memory).is_err());
    director.set_view(view(5, server, &[2], &[(1, true), (3, true)]));
    let bad = director.counter(ServerCounter::CellsBad);
    // Whatever passed for a session can be asked for, and is either refused or a whole archive.
    let listed = match heir.ask(&ToServer::ListSealed { incarnation: life(1), cursor: 0 }) {
        FromServer::Sealed { sessions, .. } => sessions,
        other => panic!("{other:?}"),
    };
    let ids: Vec<SessionId> = listed.iter().map(|(id, ..)| *id).collect();
    for fetched in heir.fetch(&ids) {
        let is_whole = validate(&fetched.archive, &ArchiveLimits::default()).is_ok();
        assert!(is_whole || (fetched.archive.is_empty() && fetched.error.is_some()), "{:?}", fetched.error);
    }
    println!("{bad} bad cells, {} that pass for sessions", ids.len());
    assert!(bad > 0);
    assert!(daemon.ended().is_none());
}
