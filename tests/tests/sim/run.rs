//! Runs seeds, and says what came of them.

use crate::mutant::{self, Mutant, What};
use crate::{browser, director, fault, rest, schedule, world};
use schedule::{S, Time};
use selvage_fabric::rules::without;
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// How long faults go on, when browsers stop, and when all must be well: a sweep that nobody asks for comes
/// after five seconds at most.
const FAULTS: Time = 50 * S;
const ASKED: Time = 55 * S;
const WELL: Time = 62 * S;
/// When a cluster ends.
const END: Time = 67 * S;

/// What came of a seed.
pub struct Outcome {
    pub seed: u64,
    pub failure: Option<(String, String)>,
    lines: Vec<String>,
    coverage: BTreeMap<String, u64>,
    steps: u64,
    answered: u64,
    refused: u64,
    checks: u64,
    digest: u64,
    swarm: String,
}

/// Runs one seed on a thread of its own: what hash maps do depends on the thread's random keys.
pub fn run(seed: u64, verbose: bool, mutant: Option<&Mutant>) -> Outcome {
    let mutant = mutant.cloned();
    let whole = move || match &mutant {
        Some(Mutant { what: What::Rule(rule), is_broken: true, .. }) => {
            without(*rule, || simulate(seed, verbose, mutant.as_ref()))
        }
        _ => simulate(seed, verbose, mutant.as_ref()),
    };
    let body = move || match verbose {
        false => whole(),
        true => {
            let log = tracing_subscriber::fmt().without_time().with_target(false).with_ansi(false);
            let log = log.with_max_level(tracing::Level::DEBUG).with_writer(std::io::stdout).finish();
            tracing::subscriber::with_default(log, whole)
        }
    };
    let ran = std::thread::Builder::new().name(format!("seed {seed}")).spawn(body);
    ran.expect("a thread").join().expect("the simulation itself does not panic")
}

fn simulate(seed: u64, verbose: bool, mutant: Option<&Mutant>) -> Outcome {
    schedule::begin(seed);
    world::begin(seed, verbose, mutant);
    let played = std::panic::catch_unwind(AssertUnwindSafe(play));
    if let Err(panic) = played {
        let what = panic.downcast_ref::<String>().cloned();
        let what = what.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        world::world(|world| world.fail("no panic", &what.unwrap_or_default()));
    }
    let steps = schedule::steps();
    // Everybody dies first, while there is a world to die in.
    let ended = std::panic::catch_unwind(AssertUnwindSafe(|| {
        (0..world::world(|world| world.nodes.len())).for_each(fault::end_node);
        schedule::end();
    }));
    if ended.is_err() {
        world::world(|world| world.fail("ends", "a panic while everything ended"));
    }
    let world = world::end();
    let digest = world
        .lines
        .iter()
        .flat_map(|line| line.bytes())
        .fold(steps, |digest, byte| (digest ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    Outcome {
        seed,
        failure: world.failure.clone(),
        lines: world.lines.iter().cloned().collect(),
        coverage: world.coverage.clone(),
        steps,
        answered: world.answered,
        refused: world.refused,
        checks: world.history.checks,
        digest,
        swarm: format!("{:?}", world.swarm),
    }
}

/// One cluster's hour: it starts, suffers, is mended, and rests.
fn play() {
    let has_failed = || world::world(|world| world.failure.is_some());
    let (servers, nodes, late, quiet) = world::world(|world| {
        let late = world.servers.len().checked_sub(1).filter(|last| *last > 0 && world.swarm.late_server);
        (world.servers.len(), world.nodes.len(), late, world.swarm.quiet)
    });
    director::start();
    if let Some(late) = late {
        let at = world::world(|world| {
            world.servers[late].removed = true;
            world.random.between(3 * S, FAULTS)
        });
        schedule::after(at, move || fault::add_server(late));
    }
    (0..servers).for_each(fault::refill_server);
    (0..nodes).for_each(fault::refill_node);
    schedule::run(2 * S, has_failed);
    if !rest::is_settled() {
        world::world(|world| world.fail("starts", "the cluster is not up after two seconds"));
    }
    browser::start();
    fault::begin(FAULTS);
    schedule::run(FAULTS, has_failed);
    if quiet {
        browser::stop();
    }
    fault::mend();
    schedule::run(ASKED, has_failed);
    browser::stop();
    schedule::after(2 * S, || rest::look(WELL));
    schedule::run(WELL + S, has_failed);
    if !has_failed() {
        rest::read_all();
        schedule::run(END, has_failed);
    }
}

/// The program.
pub fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1)?.parse::<u64>().ok()
    };
    let has = |name: &str| arguments.iter().any(|argument| argument == name);
    if has("--list") {
        // What nextest asks of a program with its own main function.
        if !has("--ignored") {
            println!("sim: test");
        }
        return ExitCode::SUCCESS;
    }
    let text = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1).cloned()
    };
    if let Some(seed) = number("--seed") {
        let mutant = text("--mutant").map(|name| mutant::named(&name, !has("--whole")));
        let outcome = run(seed, true, mutant.as_ref());
        println!("{}", outcome.swarm);
        return report(&[outcome]);
    }
    if has("--mutants") {
        return mutant::table(number("--seeds").unwrap_or(100), text("--mutant").as_deref());
    }
    let seeds = number("--seeds").unwrap_or(10);
    let first = number("--from").unwrap_or(1);
    let began = Instant::now();
    let range = first..first + seeds;
    let kept = FAILED_ONCE.into_iter().filter(|seed| !range.contains(seed) && seeds >= SEEDS_FOR_ALL as u64);
    let outcomes = run_all(&range.clone().chain(kept).collect::<Vec<u64>>(), has("--go-on"));
    println!("{} seeds in {:.1} s", outcomes.len(), began.elapsed().as_secs_f64());
    report(&outcomes)
}

/// Seeds of longer runs that have found something: a sweep by an old view forgot copies at a server that had
/// joined since; a server that missed the view that took it in, and the one that dropped it, stayed out.
const FAILED_ONCE: [u64; 2] = [226, 2071];

/// Runs seeds, as many at once as there are processors; each is alone on its thread.
fn run_all(seeds: &[u64], go_on: bool) -> Vec<Outcome> {
    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(Vec::new());
    let work = || {
        loop {
            let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed)) else { return };
            let outcome = run(*seed, false, None);
            if outcome.failure.is_some() && !go_on {
                next.store(seeds.len(), Ordering::Relaxed);
            }
            outcomes.lock().unwrap_or_else(PoisonError::into_inner).push(outcome);
        }
    };
    std::thread::scope(|scope| {
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        (0..workers).for_each(|_| drop(scope.spawn(work)));
    });
    let mut outcomes = outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
    outcomes.sort_by_key(|outcome| outcome.seed);
    outcomes
}

/// What a run of many seeds must have reached, beside every kind of fault.
const REQUIRED: [&str; 46] = [
    "answered: change",
    "answered: change without the lock",
    "answered: create",
    "answered: destroy",
    "answered: missing",
    "answered: open",
    "answered: read",
    "answered: regenerate",
    "error: Full",
    "error: OwnershipLost",
    "error: Timeout",
    "fault: clock skew",
    "fault: message lost",
    "fault: no memory for a lease",
    "fault: piece of a push landed twice",
    "fault: push in pieces",
    "fault: push landed after its link had failed",
    "fault: request repeated",
    "fault: several at once",
    "state: RDMA link open",
    "state: a seal takes its time",
    "state: adoption",
    "state: all read at rest",
    "state: answer lost",
    "state: at rest",
    "state: card gave up",
    "state: connection given up",
    "state: director went on from an earlier view",
    "state: director went on without any server",
    "state: drain handed over",
    "state: elsewhere",
    "state: incarnation ended by the director",
    "state: lease sealed",
    "state: merged into a newer version",
    "state: node drained",
    "state: process joined a living incarnation",
    "state: push found the seal",
    "state: repaired after a dead process",
    "state: request cut with its node",
    "state: request in an incarnation that is over",
    "state: requests to one session at the same time",
    "state: server added",
    "state: server removed",
    "state: shared-memory link open",
    "state: short commit, NoMandate",
    "state: steward handed over",
];

/// Fewer seeds need not reach everything.
const SEEDS_FOR_ALL: usize = 150;

fn report(outcomes: &[Outcome]) -> ExitCode {
    let mut coverage: BTreeMap<&str, u64> = BTreeMap::new();
    for outcome in outcomes {
        for (what, count) in &outcome.coverage {
            *coverage.entry(what).or_default() += count;
        }
    }
    for (what, count) in &coverage {
        println!("{count:>9} {what}");
    }
    let sum = |of: fn(&Outcome) -> u64| outcomes.iter().map(of).sum::<u64>();
    println!(
        "{} events, {} requests answered, {} refused or lost, {} checks, digest {:016x}",
        sum(|outcome| outcome.steps),
        sum(|outcome| outcome.answered),
        sum(|outcome| outcome.refused),
        sum(|outcome| outcome.checks),
        outcomes.iter().fold(0, |digest, outcome| digest ^ outcome.digest),
    );
    if outcomes.len() >= SEEDS_FOR_ALL {
        println!("figure: sim.seeds {}", outcomes.len());
        println!("figure: sim.seconds {}", END / S);
        println!("figure: sim.requests {}", sum(|outcome| outcome.answered));
        println!("figure: sim.checks {}", sum(|outcome| outcome.checks));
    }
    let faults = fault::KINDS.iter().map(|(name, _)| *name);
    let missing: Vec<&str> = match outcomes.len() < SEEDS_FOR_ALL {
        true => Vec::new(),
        false => REQUIRED.into_iter().chain(faults).filter(|name| !coverage.contains_key(name)).collect(),
    };
    println!("never reached: {missing:?}");
    let failed: Vec<&Outcome> = outcomes.iter().filter(|outcome| outcome.failure.is_some()).collect();
    for outcome in &failed {
        let Some((check, what)) = &outcome.failure else { continue };
        if failed.len() < 4 && outcomes.len() > 1 {
            outcome.lines.iter().for_each(|line| println!("{line}"));
        }
        println!("seed {} FAILED {check}: {what}", outcome.seed);
        println!("  replay: cargo x sim --seed {}", outcome.seed);
    }
    // In libtest's words, for who counts tests.
    let is_good = failed.is_empty() && missing.is_empty();
    let (word, good) = if is_good { ("ok", 1) } else { ("FAILED", 0) };
    println!("test result: {word}. {good} passed; {} failed; 0 ignored", 1 - good);
    if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
