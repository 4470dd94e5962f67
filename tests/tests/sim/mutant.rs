//! Breaking one thing in turn, to see that the checks notice: each protocol rule, by the product's own gates,
//! and what surrounds the rules, by the simulation's.
//!
//! A mutant may name what its clusters favour: faults and sizes by which what is broken matters more often. A
//! seed that notices a mutant is run again with nothing broken, and must find nothing then: so it is the
//! mutant that was noticed.

use crate::fault::named as faults;
use crate::run::{Outcome, run};
use crate::schedule::MS;
use crate::world::{Swarm, world};
use selvage_fabric::rules::Rule;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// What is broken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    /// A protocol rule.
    Rule(Rule),
    /// Something around them.
    Other(Broken),
}

/// What can be broken beside the rules.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Broken {
    /// A seal scans, but takes the memory away from nobody.
    SealWithoutFence,
    /// A push over shared memory does not look at the seal word.
    PushIgnoresSeal,
    /// A push is acked before it has arrived.
    AckTooEarly,
    /// A commit that some servers have acked tells that all have.
    AckBeforeQuorum,
    /// Blocks never arrive, only cells.
    BlockLost,
    /// Tombstones never arrive.
    TombstoneLost,
    /// Cells go into the wrong half of their pair.
    SequenceIgnored,
    /// A server that starts anew is the same life.
    ServerLifeRepeats,
    /// A director that starts anew has no view of the last one.
    KeptViewLost,
    /// A director that starts anew has neither that nor the last term.
    DirectorForgets,
    /// A mandate lasts ten times as long.
    MandateTooLong,
    /// Answers of nodes that were cut reach browsers.
    ZombieAnswers,
    /// Sweeps do nothing.
    NoSweep,
    /// Lists of sealed sessions are empty.
    NothingListed,
    /// Servers grant every claim.
    ClaimsGranted,
    /// Nodes see another weight of a server than the view has.
    WrongPlacement,
    /// The same, but only nodes that have joined before.
    WrongPlacementAfterRejoin,
    /// Nobody repairs after a dead process.
    NoRepair,
    /// Servers never give a lease's memory back.
    LeaseKept,
    /// Now and then a request ends and keeps its session's lock.
    LockKept,
    /// Nodes count copies that are not there.
    MetricsWrong,
}

/// Changes what a seed has drawn.
type Favour = fn(&mut Swarm);

/// One thing that is broken, and where that shows.
#[derive(Clone)]
pub struct Mutant {
    /// What is broken.
    pub what: What,
    /// In which clusters.
    pub favour: Favour,
    /// False: a cluster as the mutant's, and nothing is broken.
    pub is_broken: bool,
}

/// Nothing is favoured.
fn any(_: &mut Swarm) {}

/// Nodes stop for longer than all timeouts, some in the middle of a push over shared memory.
fn zombies(swarm: &mut Swarm) {
    swarm.rdma = false;
    (swarm.torn_per_mille, swarm.stall_per_mille, swarm.stall_ms) = (600, 200, 3000);
    (swarm.faults, swarm.fault_every) = (faults(&["node stopped"]), 700 * MS);
}

/// The same over RDMA, with pushes that are long under way.
fn late_pushes(swarm: &mut Swarm) {
    swarm.rdma = true;
    (swarm.torn_per_mille, swarm.jitter) = (600, 20 * MS);
    (swarm.faults, swarm.fault_every) = (faults(&["node stopped", "node killed"]), 700 * MS);
}

/// Links that fail with pushes on their way, and sessions that are soon changed again.
fn broken_links(swarm: &mut Swarm) {
    (swarm.rdma, swarm.processes, swarm.servers) = (true, 2, 2);
    (swarm.torn_per_mille, swarm.jitter, swarm.sessions) = (600, 20 * MS, 6);
    (swarm.changes, swarm.pause_between, swarm.browsers) = (80, 20 * MS, 6);
    let kinds = ["network cut on one side", "network cut on both sides", "process of a node killed"];
    (swarm.faults, swarm.fault_every) = (faults(&kinds), 400 * MS);
}

/// Servers that are given up and come back with what they had.
fn lost_servers(swarm: &mut Swarm) {
    (swarm.servers, swarm.copies) = (3, 2);
    let kinds = ["server stopped", "network cut on both sides", "node killed"];
    (swarm.faults, swarm.fault_every) = (faults(&kinds), 700 * MS);
}

fn deaths(swarm: &mut Swarm) {
    swarm.nodes = 3;
    (swarm.faults, swarm.fault_every) = (faults(&["node killed", "node stopped"]), 800 * MS);
}

/// Large archives in leases with little room: what is freed is soon used again, often while the push that
/// freed it stands still.
fn little_room(swarm: &mut Swarm) {
    (swarm.rdma, swarm.no_memory_per_mille, swarm.server_bytes_max) = (false, 0, 0);
    (swarm.sessions_max, swarm.sessions, swarm.browsers) = (128, 40, 6);
    (swarm.blob_bytes, swarm.pause_between, swarm.changes) = ((20_000, 23_000), 10 * MS, 90);
    swarm.lease_bytes = 4 << 20;
    (swarm.torn_per_mille, swarm.stall_per_mille, swarm.stall_ms) = (100, 500, 1500);
    (swarm.faults, swarm.fault_every) = (faults(&["node killed"]), 1500 * MS);
}

fn restarts(swarm: &mut Swarm) {
    let kinds = ["director killed", "node killed", "server killed, comes back empty", "node stopped"];
    (swarm.faults, swarm.fault_every) = (faults(&kinds), 500 * MS);
}

/// Sessions that are mostly read, and are soon over if nobody does.
fn readers(swarm: &mut Swarm) {
    (swarm.idle_s, swarm.changes, swarm.skew_ms) = (10, 5, 0);
    (swarm.faults, swarm.fault_every) = (faults(&["node killed"]), 2000 * MS);
}

fn short_lives(swarm: &mut Swarm) {
    (swarm.idle_s, swarm.skew_ms, swarm.pause_between) = (4, 2000, 400 * MS);
    (swarm.faults, swarm.fault_every) = (faults(&["node killed", "clock jumped"]), 1500 * MS);
}

/// Nodes and servers that do not reach each other.
fn cuts(swarm: &mut Swarm) {
    (swarm.rdma, swarm.servers, swarm.copies, swarm.nodes) = (true, 3, 2, 3);
    let kinds = ["network cut on one side", "network cut on both sides", "node killed", "node stopped"];
    (swarm.faults, swarm.fault_every) = (faults(&kinds), 500 * MS);
}

fn power_cuts(swarm: &mut Swarm) {
    (swarm.faults, swarm.fault_every) = (faults(&["everything killed at once"]), 5000 * MS);
}

/// Director, servers and nodes come and go so that nobody is left who knows the last view.
fn forgetful(swarm: &mut Swarm) {
    (swarm.servers, swarm.copies, swarm.nodes) = (1, 1, 3);
    let kinds = ["director killed", "server killed, comes back empty", "node stopped"];
    (swarm.faults, swarm.fault_every, swarm.twin_per_mille) = (faults(&kinds), 300 * MS, 500);
}

/// Workers die with locks in their hands, and nobody comes in their place or asks for what they held.
fn fewer_workers(swarm: &mut Swarm) {
    (swarm.processes, swarm.think, swarm.pause_between, swarm.quiet) = (4, 20 * MS, 10 * MS, true);
    (swarm.faults, swarm.fault_every) = (faults(&["worker removed or added"]), 250 * MS);
}

/// Many requests at once to few sessions, and most of them without the lock.
fn crowds(swarm: &mut Swarm) {
    (swarm.sessions, swarm.browsers, swarm.unlocked, swarm.changes) = (3, 6, 80, 80);
    (swarm.think, swarm.pause_between) = (50 * MS, 10 * MS);
}

const RULES: [(Rule, Favour); 16] = [
    (Rule::R1Claim, deaths),
    (Rule::R2SealByView, zombies),
    (Rule::R3Incarnation, zombies),
    (Rule::R4FreshSlot, broken_links),
    (Rule::R5FetchAsksAll, cuts),
    (Rule::R6AckIncarnation, lost_servers),
    (Rule::R7Blocks, little_room),
    (Rule::R8Mandate, cuts),
    (Rule::R9Destroy, deaths),
    (Rule::R10ReleaseAsSet, deaths),
    (Rule::R11Moved, restarts),
    (Rule::R12Epochs, restarts),
    (Rule::R13Touch, readers),
    (Rule::R14Expiry, short_lives),
    (Rule::R15Regenerate, any),
    (Rule::R16Merge, crowds),
];

const OTHERS: [(Broken, Favour); 21] = [
    (Broken::SealWithoutFence, late_pushes),
    (Broken::PushIgnoresSeal, zombies),
    (Broken::AckTooEarly, any),
    (Broken::AckBeforeQuorum, cuts),
    (Broken::BlockLost, any),
    (Broken::TombstoneLost, any),
    (Broken::SequenceIgnored, any),
    (Broken::ServerLifeRepeats, any),
    (Broken::KeptViewLost, forgetful),
    (Broken::DirectorForgets, power_cuts),
    (Broken::MandateTooLong, cuts),
    (Broken::ZombieAnswers, deaths),
    (Broken::NoSweep, any),
    (Broken::NothingListed, deaths),
    (Broken::ClaimsGranted, deaths),
    (Broken::WrongPlacement, any),
    (Broken::WrongPlacementAfterRejoin, deaths),
    (Broken::NoRepair, fewer_workers),
    (Broken::LeaseKept, any),
    (Broken::LockKept, any),
    (Broken::MetricsWrong, any),
];

/// Whether this is what is broken now.
pub fn is(broken: Broken) -> bool {
    world(|world| world.mutant == Some(What::Other(broken)))
}

fn all() -> Vec<Mutant> {
    let rules = RULES.map(|(rule, favour)| (What::Rule(rule), favour));
    let others = OTHERS.map(|(broken, favour)| (What::Other(broken), favour));
    let of = |(what, favour)| Mutant { what, favour, is_broken: true };
    rules.into_iter().chain(others).map(of).collect()
}

impl Mutant {
    fn name(&self) -> String {
        match self.what {
            What::Rule(rule) => format!("{rule:?}"),
            What::Other(broken) => format!("{broken:?}"),
        }
    }
}

/// The mutant of this name, or its cluster with nothing broken.
pub fn named(name: &str, is_broken: bool) -> Mutant {
    let found = all().into_iter().find(|mutant| mutant.name() == name);
    Mutant { is_broken, ..found.unwrap_or_else(|| panic!("no mutant is named {name}")) }
}

/// How a mutant fared.
struct Row {
    name: String,
    /// How many seeds it took, and the check that fired.
    caught: Option<(u64, String)>,
    /// A seed that fails with nothing broken: seed and check.
    whole_fails: Option<(u64, String)>,
}

/// Runs every mutant until a seed notices, `seeds` at most, and prints the table.
pub fn table(seeds: u64, only: Option<&str>) -> ExitCode {
    let began = Instant::now();
    let mutants: Vec<Mutant> =
        all().into_iter().filter(|mutant| only.is_none_or(|only| mutant.name().contains(only))).collect();
    let (next, rows) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    println!("{:<28} {:>6}  check that fired", "mutant", "seeds");
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(mutant) = mutants.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let row = judge(mutant, seeds);
                    row.tell(seeds);
                    rows.lock().unwrap_or_else(PoisonError::into_inner).push(row);
                }
            });
        }
    });
    let rows = rows.into_inner().unwrap_or_else(PoisonError::into_inner);
    let unnoticed: Vec<&str> =
        rows.iter().filter(|row| row.caught.is_none()).map(|row| row.name.as_str()).collect();
    let bad = rows.iter().filter(|row| row.whole_fails.is_some()).count();
    println!(
        "{} mutants, {} unnoticed {unnoticed:?}, {bad} failures with nothing broken, {:.1} s",
        rows.len(),
        unnoticed.len(),
        began.elapsed().as_secs_f64()
    );
    if only.is_none() {
        println!("figure: sim.mutants {}", rows.len() - unnoticed.len());
    }
    let is_good = !rows.is_empty() && unnoticed.is_empty() && bad == 0;
    // In libtest's words, for who counts tests.
    let (word, failed) = (if is_good { "ok" } else { "FAILED" }, unnoticed.len() + bad);
    println!("test result: {word}. {} passed; {failed} failed; 0 ignored", rows.len() - unnoticed.len());
    if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

impl Row {
    fn tell(&self, seeds: u64) {
        let Self { name, caught, whole_fails } = self;
        match caught {
            Some((seed, check)) => println!("{name:<28} {seed:>6}  {check}"),
            None => println!("{name:<28} {:>6}  none", format!(">{seeds}")),
        }
        if let Some((seed, check)) = whole_fails {
            println!("  seed {seed} fails with nothing broken: {check}");
            println!("  replay: cargo x sim --seed {seed} --mutant {name} --whole");
        }
    }
}

fn judge(mutant: &Mutant, seeds: u64) -> Row {
    let mut row = Row { name: mutant.name(), caught: None, whole_fails: None };
    let whole = Mutant { is_broken: false, ..mutant.clone() };
    for seed in 1..=seeds {
        let Outcome { failure, .. } = run(seed, false, Some(mutant));
        let Some((check, _)) = failure else { continue };
        match run(seed, false, Some(&whole)).failure {
            None => {
                row.caught = Some((seed, check));
                break;
            }
            Some((check, _)) => row.whole_fails = row.whole_fails.or(Some((seed, check))),
        }
    }
    row
}
