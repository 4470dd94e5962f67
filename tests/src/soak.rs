//! A cluster under load for a long time, while everything happens to it, again and again: nothing acked may
//! be lost, no planned restart may cost a request, and nothing may grow.
//!
//! Used by `cargo x soak`. All kinds of [`Strike`] come in turn, in an order that a seed decides; after each
//! the cluster must be whole again, and then its processes are weighed: private memory, descriptors, shared
//! memory. What is not as it must be is a panic.

use crate::admin::AdminView;
use crate::cluster::{DIRECTOR, Options, segments};
use crate::load::{Load, Plan};
use crate::stage::{Stage, options};
use crate::strikes::{Dice, Strike};
use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

const NODES: u32 = 3;
const SERVERS: u32 = 3;
const WORKERS: u32 = 2;
const SESSIONS: usize = 300;
const CONNECTIONS: usize = 16;
const COPIES: u32 = 2;
/// A machine that is busy with other things leaves a process without a processor for longer than the default
/// silence now and then: that would be a death that nobody has planned.
const TIMING: &str = "[timing]\nmandate_ms = 800\nsilence_ms = 1000\n";
/// Growth of all processes together that is none: allocators and caches fill up, and connections come and go.
const SLACK_BYTES: u64 = 24 << 20;
/// Ends of TCP connections: of each browser's at the director, of as many to each node on both sides, and a
/// few of operators. How many of them are open is chance.
const TCP_MAX: u64 = CONNECTIONS as u64 * (1 + 2 * NODES as u64) + 32;
/// Ends of connections on this host: of each worker's to each server, which are its lifeline and at most four
/// that it keeps for the next calls; and those of director, members and nginx's masters.
const UNIX_MAX: u64 = 2 * (NODES * WORKERS * SERVERS) as u64 * (1 + 4) + 48;
/// Turns that are run in any case.
const TURNS_MIN: usize = 2;
/// Looks of which the one with the fewest descriptors counts.
const LOOKS: u32 = 5;
/// Requests that were under way when something planned began have ended after this time.
const SETTLED: Duration = Duration::from_millis(200);

/// What the cluster weighs at rest.
#[derive(Debug, Clone, Copy, Default)]
struct Weight {
    processes: u64,
    /// Memory that belongs to one process alone.
    private_bytes: u64,
    /// Descriptors that are no sockets.
    files: u64,
    /// Ends of TCP connections.
    tcp: u64,
    /// Other sockets.
    unix: u64,
    /// Cache segments.
    segments: u64,
    segment_bytes: u64,
    /// Leases, as the servers say.
    lease_bytes: u64,
}

/// One kind of event, over the whole run.
#[derive(Debug, Default)]
struct Line {
    times: u64,
    /// Times of something planned when somebody was silent by itself.
    spoilt: u64,
    failed: u64,
    slowest: Duration,
}

/// Runs for so long, and at least until everything has happened twice. Prints as it goes, and a table at the
/// end.
///
/// # Panics
/// If something is lost, fails or grows.
pub async fn run(time: Duration, seed: u64) {
    println!("seed {seed}, {} s; 3 nodes, 3 servers, {SESSIONS} sessions", time.as_secs());
    let mut dice = Dice(seed);
    let base = options();
    let options = Options {
        nodes: NODES,
        servers: SERVERS,
        workers: WORKERS,
        copies: COPIES,
        hold_socket: true,
        tables: format!("{}{TIMING}", base.tables),
        ..base
    };
    let mut stage = Stage::with(options).await;
    let plan = Plan { sessions: SESSIONS, connections: CONNECTIONS, think: Duration::from_millis(5) };
    let load = Load::start(stage.address(), plan).await.unwrap();
    let began = Instant::now();
    let mut lines: BTreeMap<String, Line> = BTreeMap::new();
    // By turns: each ends with the same kinds of events behind it.
    let mut weights: Vec<Weight> = Vec::new();
    'turns: loop {
        let mut turn = Strike::ALL;
        dice.shuffle(&mut turn);
        for strike in turn {
            if began.elapsed() >= time && weights.len() >= TURNS_MIN {
                break 'turns;
            }
            one(&mut stage, &mut dice, &load, strike, began, &mut lines).await;
        }
        weights.push(lightest(&stage).await);
        println!("turn {}: {:?}", weights.len(), weights[weights.len() - 1]);
    }
    weights.push(lightest(&stage).await);
    let ledger = load.stop().await.unwrap();
    let verdict = ledger.verify(stage.address(), CONNECTIONS).await.unwrap();
    println!("{:20} {:>6} {:>7} {:>7} {:>12}", "what", "times", "spoilt", "failed", "slowest, ms");
    for (what, line) in &lines {
        let slowest = line.slowest.as_millis();
        println!("{what:20} {:6} {:7} {:7} {slowest:12}", line.times, line.spoilt, line.failed);
    }
    assert!(lines.values().all(|line| line.spoilt * 2 <= line.times), "the machine is too busy for this");
    println!("{} requests, {} failed, {verdict:?}", ledger.requests, ledger.failures.len());
    assert!(verdict.is_clean(), "seed {seed}: {verdict:?}");
    assert_eq!(verdict.sessions, SESSIONS as u64);
    check(&weights);
    let view = rest(&stage).await;
    assert_eq!(view.sessions(), SESSIONS as u64, "no session is hosted twice, and none is forgotten");
    stage.end();
}

async fn one(
    stage: &mut Stage,
    dice: &mut Dice,
    load: &Load,
    strike: Strike,
    began: Instant,
    lines: &mut BTreeMap<String, Line>,
) {
    rest(stage).await;
    tokio::time::sleep(SETTLED).await;
    let (start, failed, before) = (Instant::now(), load.failed(), silences(stage));
    let what = strike.happen(stage, dice, SESSIONS).await;
    rest(stage).await;
    let took = start.elapsed();
    tokio::time::sleep(SETTLED).await;
    let failed = load.failed() - failed;
    println!(
        "{:4} s: {what}: whole after {} ms, {failed} failed",
        began.elapsed().as_secs(),
        took.as_millis()
    );
    let line = lines.entry(format!("{strike:?}")).or_default();
    let starved = silences(stage) > before;
    if strike.spares_all_requests() && starved {
        println!("somebody was silent by itself meanwhile: this time does not count as planned");
        line.spoilt += 1;
    } else {
        let newest = || load.newest_failure();
        assert!(failed == 0 || !strike.spares_all_requests(), "{what}: {failed} failed: {:?}", newest());
    }
    line.times += 1;
    line.failed += failed as u64;
    line.slowest = line.slowest.max(took);
}

/// How often the director has declared somebody dead for silence. Nothing planned is silent: a process that
/// gets no processor for so long is, on a machine that is busy with other things.
fn silences(stage: &Stage) -> usize {
    stage.log(DIRECTOR).lines().filter(|line| line.contains(": it is silent")).count()
}

/// Waits until everybody is up, every session has its copies, and nothing of the dead is kept.
async fn rest(stage: &Stage) -> AdminView {
    let members = stage.nodes().len() as u64;
    let lease = stage.config().memory.lease_bytes;
    let leases = members * lease..(members + 1) * lease;
    let good = |view: &AdminView| {
        view.protects(SESSIONS as u64, COPIES)
            && view.nodes.iter().all(|node| node.state == "up")
            && view.servers.iter().all(|server| server.state == "up")
            // One lease of each node, and none of the dead.
            && view.servers.iter().all(|server| leases.contains(&server.bytes))
    };
    stage.until("whole and at rest", good).await
}

/// What it weighs when all that was under way has ended: the least of some looks. A leak is in all of them.
async fn lightest(stage: &Stage) -> Weight {
    let mut lightest: Option<Weight> = None;
    for _ in 0..LOOKS {
        tokio::time::sleep(SETTLED).await;
        let view = rest(stage).await;
        let weight = weigh(stage, &view);
        if lightest.is_none_or(|before| weight.files + weight.unix < before.files + before.unix) {
            lightest = Some(weight);
        }
    }
    lightest.unwrap_or_default()
}

fn weigh(stage: &Stage, view: &AdminView) -> Weight {
    let tcp = tcp_sockets();
    let files = segments(&stage.config().segment_prefix());
    let mut weight = Weight {
        segments: files.len() as u64,
        segment_bytes: files.iter().filter_map(|file| file.metadata().ok()).map(|meta| meta.len()).sum(),
        lease_bytes: view.servers.iter().map(|server| server.bytes).sum(),
        ..Weight::default()
    };
    for name in stage.member_names() {
        for pid in stage.process(&name).unwrap().pids() {
            weight.processes += 1;
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let private = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
            let private = private.and_then(|text| text.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
            weight.private_bytes += private.unwrap_or(0) * 1024;
            let Ok(descriptors) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
            for target in descriptors.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok()) {
                let target = target.to_string_lossy();
                let kind = match target.starts_with("socket:") {
                    false => &mut weight.files,
                    true if tcp.contains(&*target) => &mut weight.tcp,
                    true => &mut weight.unix,
                };
                *kind += 1;
            }
        }
    }
    weight
}

/// The TCP sockets of this host that are not listening, as descriptors name them.
fn tcp_sockets() -> HashSet<String> {
    const LISTENING: &str = "0A";
    let text = std::fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let sockets = text.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let state = fields.nth(3)?;
        (state != LISTENING).then(|| fields.nth(5).map(|inode| format!("socket:[{inode}]")))?
    });
    sockets.collect()
}

/// The first turn warms up. After it nothing grows, however often all that came again.
fn check(weights: &[Weight]) {
    let (Some(first), Some(last)) = (weights.first(), weights.last()) else { panic!("no turn has ended") };
    assert_eq!(last.processes, first.processes, "processes");
    assert_eq!((last.segments, last.segment_bytes), (3, first.segment_bytes), "cache segments");
    assert_eq!(last.lease_bytes, first.lease_bytes, "leases");
    let (bytes, most) = (last.private_bytes, first.private_bytes + SLACK_BYTES);
    assert!(bytes <= most, "private memory has grown: {first:?} to {last:?}");
    assert_eq!(last.files, first.files, "descriptors have grown: {first:?} to {last:?}");
    assert!(last.tcp <= TCP_MAX && last.unix <= UNIX_MAX, "connections stay open: {last:?}");
}
