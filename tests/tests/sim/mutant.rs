//! Breaking one thing in turn, to see that the checks notice: each protocol rule, by the product's own gates,
//! and what surrounds the rules, by the simulation's.

use crate::run::{Outcome, run};
use crate::world::world;
use selvage_fabric::rules::Rule;
use std::collections::BTreeMap;

/// What is broken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mutant {
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
    /// Blocks never arrive, only cells.
    BlockLost,
    /// Cells go into the wrong half of their pair.
    SequenceIgnored,
    /// A server that starts anew is the same life.
    ServerLifeRepeats,
    /// A director that starts anew forgets its term.
    TermRepeats,
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
    /// Nobody repairs after a dead process.
    NoRepair,
}

const RULES: [Rule; 15] = [
    Rule::R1Claim,
    Rule::R2SealByView,
    Rule::R3Incarnation,
    Rule::R4FreshSlot,
    Rule::R5FetchAsksAll,
    Rule::R6AckIncarnation,
    Rule::R7Blocks,
    Rule::R8Mandate,
    Rule::R9Destroy,
    Rule::R10ReleaseAsSet,
    Rule::R11Moved,
    Rule::R12Epochs,
    Rule::R13Touch,
    Rule::R14Expiry,
    Rule::R15Regenerate,
];

const OTHERS: [Broken; 14] = [
    Broken::SealWithoutFence,
    Broken::PushIgnoresSeal,
    Broken::AckTooEarly,
    Broken::BlockLost,
    Broken::SequenceIgnored,
    Broken::ServerLifeRepeats,
    Broken::TermRepeats,
    Broken::MandateTooLong,
    Broken::ZombieAnswers,
    Broken::NoSweep,
    Broken::NothingListed,
    Broken::ClaimsGranted,
    Broken::WrongPlacement,
    Broken::NoRepair,
];

/// Whether this is what is broken now.
pub fn is(broken: Broken) -> bool {
    world(|world| world.mutant == Some(Mutant::Other(broken)))
}

/// Runs every mutant until a seed notices, `seeds` at most, and prints the table. Returns those that nobody
/// noticed.
pub fn table(seeds: u64, only: Option<&str>) -> Vec<String> {
    let rules = RULES.map(Mutant::Rule);
    let others = OTHERS.map(Mutant::Other);
    let mut unnoticed = Vec::new();
    println!("{:<28} {:>6}  checks that fired", "mutant", "seeds");
    for mutant in rules.into_iter().chain(others) {
        let name = match mutant {
            Mutant::Rule(rule) => format!("{rule:?}"),
            Mutant::Other(broken) => format!("{broken:?}"),
        };
        if only.is_some_and(|only| !name.contains(only)) {
            continue;
        }
        let mut fired: BTreeMap<String, u64> = BTreeMap::new();
        let mut needed = None;
        for seed in 1..=seeds {
            let Outcome { failure, .. } = run(seed, false, Some(mutant));
            let Some((check, _)) = failure else { continue };
            *fired.entry(check).or_default() += 1;
            needed = needed.or(Some(seed));
            if fired.values().sum::<u64>() >= 3 || only.is_none() {
                break;
            }
        }
        let fired: Vec<String> = fired.into_keys().collect();
        let seeds = needed.map_or_else(|| format!(">{seeds}"), |seed| seed.to_string());
        println!("{name:<28} {seeds:>6}  {}", fired.join(", "));
        if needed.is_none() {
            unnoticed.push(name);
        }
    }
    unnoticed
}
