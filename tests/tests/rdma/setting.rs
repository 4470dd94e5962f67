//! What all of these tests share: where members run, how slow guests are, what is seen of a fault.

use selvage_fabric::ident::Incarnation;
use selvage_tests::cluster::{Hosts, Options};
use selvage_tests::load::{Failure, Load, Plan};
use selvage_tests::stage::Stage;
use std::time::{Duration, Instant};

/// Times for hosts whose processors are emulated, several on one: pauses of half a second are usual there.
const TIMING: &str = "[timing]\nheartbeat_ms = 150\nmandate_ms = 1000\nsilence_ms = 1500\n\n";
/// Where no time is measured: nobody is taken for dead because its processor stood still for a while.
const CALM: &str = "[timing]\nheartbeat_ms = 300\nmandate_ms = 3000\nsilence_ms = 4000\n\n";
const MEMORY: &str = "[memory]\nsessions_max = 2048\ncache_bytes = 8388608\nlease_bytes = 8388608\n";
/// Browsers at work at the same time.
const CONNECTIONS: usize = 6;
/// Their sessions.
pub const SESSIONS: usize = 90;

/// A cluster whose members run on these hosts; the others run here.
pub fn options(nodes: u32, servers: u32, copies: u32, places: &[(&str, u8)]) -> Options {
    let places = places.iter().map(|(member, guest)| ((*member).to_owned(), *guest)).collect();
    Options {
        nodes,
        servers,
        copies,
        workers: 2,
        tables: format!("{TIMING}{MEMORY}"),
        hosts: Some(Hosts { places }),
        patience: 4,
        ..Options::default()
    }
}

/// The same with times for tests that are not about them.
pub fn calm(options: Options) -> Options {
    Options { tables: format!("{CALM}{MEMORY}"), ..options }
}

/// Says how long something took, for whoever reads the run.
pub fn report(what: &str, since: Instant) {
    println!("{what}: {} ms", since.elapsed().as_millis());
}

/// Browsers that count up without end.
pub async fn load(stage: &Stage) -> Load {
    let plan = Plan { sessions: SESSIONS, connections: CONNECTIONS, think: Duration::from_millis(20) };
    let load = Load::start(stage.address(), plan).await.unwrap();
    stage.until_protected(SESSIONS, stage.copies()).await;
    load
}

/// The death of a web node's host, and when it was seen. Until then requests are sent to it: nobody answers
/// that there is nobody. They fail in the end, for they may have begun, and are not sent twice.
pub struct Death {
    /// The node's life.
    pub node: Incarnation,
    /// When the power was cut.
    pub cut: Instant,
    /// When it was declared down.
    pub seen: Instant,
}

/// Ends the load: nothing acked is lost, and whatever failed was on its way to a node whose death was not yet
/// seen.
pub async fn all_is_kept(stage: &Stage, load: Load, deaths: &[Death]) {
    let ledger = load.stop().await.unwrap();
    let verdict = ledger.verify(stage.address(), CONNECTIONS).await.unwrap();
    println!(
        "{} requests, {} failed, {} without a copy, {} sessions moved: {verdict:?}",
        ledger.requests,
        ledger.failures.len(),
        ledger.unprotected,
        ledger.moves.len()
    );
    assert!(verdict.is_clean(), "{verdict:?}");
    assert_eq!(verdict.sessions, SESSIONS as u64);
    assert!(ledger.requests > 2 * SESSIONS as u64, "only {} requests", ledger.requests);
    let excused = |failure: &Failure| {
        deaths.iter().any(|death| {
            failure.host == death.node && failure.started <= death.seen && failure.ended >= death.cut
        })
    };
    let strange: Vec<_> = ledger.failures.iter().filter(|failure| !excused(failure)).collect();
    assert!(strange.is_empty(), "{} requests failed that were not under way: {strange:?}", strange.len());
}

/// Requests go on: at least one for every second of the load's life since then, and none has failed.
pub fn goes_on(load: &Load, before: u64, failed_before: usize, since: Instant) {
    let (done, failed) = (load.requests() - before, load.failed() - failed_before);
    println!("{done} requests meanwhile, {failed} failed");
    assert!(done > since.elapsed().as_secs(), "requests stand still: {done} in {:?}", since.elapsed());
    assert_eq!(failed, 0, "requests failed");
}
