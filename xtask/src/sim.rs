//! `cargo x sim`: the simulation of a whole cluster, over many seeds (tests/tests/sim).

use crate::test;
use anyhow::Result;

/// Options of `cargo x sim`.
#[derive(clap::Args)]
pub struct Arguments {
    /// How many seeds
    #[arg(long, default_value_t = 200)]
    pub seeds: u64,
    /// The first of them
    #[arg(long, default_value_t = 1)]
    pub from: u64,
    /// Only this seed, with its trace
    #[arg(long)]
    pub seed: Option<u64>,
    /// Go on after a seed that fails
    #[arg(long)]
    pub go_on: bool,
    /// Break each protocol rule in turn, and other things, and tell which seeds and checks notice
    #[arg(long)]
    pub mutants: bool,
    /// Only mutants whose names contain this; with --seed, the one of this name
    #[arg(long)]
    pub mutant: Option<String>,
    /// With --seed and --mutant: a cluster as that mutant's, with nothing broken
    #[arg(long)]
    pub whole: bool,
}

impl Default for Arguments {
    fn default() -> Self {
        let (seed, go_on, mutants, mutant, whole) = (None, false, false, None, false);
        Self { seeds: 200, from: 1, seed, go_on, mutants, mutant, whole }
    }
}

/// Runs the command.
///
/// # Errors
/// A seed failed, or a kind of fault or state was never reached.
pub fn main(arguments: &Arguments) -> Result<()> {
    let mut command = test::cargo();
    command.args(["test", "--quiet", "--release", "--package", "selvage-tests", "--test", "sim", "--"]);
    match arguments.seed {
        Some(seed) => drop(command.args(["--seed", &seed.to_string()])),
        None if arguments.mutants => {}
        None => drop(command.args([
            "--seeds",
            &arguments.seeds.to_string(),
            "--from",
            &arguments.from.to_string(),
        ])),
    };
    command.args(arguments.go_on.then_some("--go-on"));
    command.args(arguments.mutants.then_some("--mutants"));
    command.args(arguments.whole.then_some("--whole"));
    command.args(arguments.mutant.iter().flat_map(|name| ["--mutant", name]));
    test::all_pass("simulation", &mut command)
}
