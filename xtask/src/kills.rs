//! `cargo x kills`: real processes die or stop at each named step (tests/tests/kills).

use crate::test;
use anyhow::Result;

/// Kills of a run in CI.
const KILLS: u64 = 300;

/// Options of `cargo x kills`.
#[derive(clap::Args)]
pub struct Arguments {
    /// How many processes are killed, at least
    #[arg(long, default_value_t = KILLS)]
    pub kills: u64,
    /// Decides the order of events; printed by each run
    #[arg(long)]
    pub seed: Option<u64>,
}

impl Default for Arguments {
    fn default() -> Self {
        Self { kills: KILLS, seed: None }
    }
}

/// Runs the command.
///
/// # Errors
/// Something was lost, leaked or came back, or a step was never reached.
pub fn main(arguments: &Arguments) -> Result<()> {
    let mut command = test::cargo();
    command.args(["test", "--package", "selvage-tests", "--test", "kills", "--", "--nocapture"]);
    command.env("SELVAGE_KILLS", arguments.kills.to_string());
    if let Some(seed) = arguments.seed {
        command.env("SELVAGE_SEED", seed.to_string());
    }
    test::all_pass("kills", &mut command)
}
