//! `cargo x soak`: a cluster under load, with deaths, pauses, drains and planned restarts of everything in
//! turn.

use crate::run::runtime;
use crate::setup;
use anyhow::Result;
use selvage_tests::product::Product;
use selvage_tests::soak;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long a run in CI is.
const MINUTES: u64 = 3;

/// Options of `cargo x soak`.
#[derive(clap::Args)]
pub struct Arguments {
    /// How long, minutes; the turn that is under way then is ended
    #[arg(long, default_value_t = MINUTES)]
    pub minutes: u64,
    /// Decides the order of events; printed by each run
    #[arg(long)]
    pub seed: Option<u64>,
}

impl Default for Arguments {
    fn default() -> Self {
        Self { minutes: MINUTES, seed: None }
    }
}

/// Runs the command.
///
/// # Errors
/// The product cannot be built.
///
/// # Panics
/// If something was lost, failed or grew.
pub fn main(arguments: &Arguments) -> Result<()> {
    setup::ensure(&[setup::BUILD, setup::RUN])?;
    Product::ready()?;
    let clock = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let seed = arguments.seed.unwrap_or(clock.as_millis() as u64);
    runtime()?.block_on(soak::run(Duration::from_secs(60 * arguments.minutes), seed));
    Ok(())
}
