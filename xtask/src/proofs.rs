//! `cargo x loom` and `cargo x model`: what a model checker tries exhaustively.

use crate::figures;
use crate::test::summary;
use anyhow::{Context, Result, ensure};
use selvage_tests::product::cargo;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Instant;

/// The shared words of pushes, seals, locks, allocators, index and pins, under loom.
///
/// # Errors
/// A model failed, could not be built, or none ran.
pub fn loom() -> Result<()> {
    let models = ["--package", "selvage-fabric", "--features", "loom", "--lib", "--", "models::"];
    let passed = run("loom", &[&["test"][..], &models].concat())?;
    figures::keep(&format!("figure: loom.models {passed}"));
    Ok(())
}

/// What a network card may do to a lease, and what may befall a cluster: all states, in release.
///
/// # Errors
/// A property does not hold, or nothing was checked.
pub fn model() -> Result<()> {
    let card = ["--package", "selvage-fabric", "--features", "mutants", "--lib", "--", "chaos::"];
    run("card", &[&["test", "--release"][..], &card].concat())?;
    // One at a time, each with two threads.
    let takeover = ["--package", "selvage-tests", "--test", "model", "--", "--test-threads", "1"];
    run("takeover", &[&["test", "--release"][..], &takeover].concat()).map(drop)
}

/// Runs tests, shows what they print, and says how many ran, at least one.
fn run(name: &str, arguments: &[&str]) -> Result<u64> {
    let began = Instant::now();
    let mut command = cargo();
    command.args(arguments).arg("--nocapture");
    command.env("CARGO_TERM_COLOR", "never").stdout(Stdio::piped());
    let mut child = command.spawn().context("cannot start cargo")?;
    let mut passed = 0;
    for line in BufReader::new(child.stdout.take().context("the output is piped")?).lines() {
        let line = line?;
        println!("{line}");
        figures::keep(&line);
        passed += summary(&line).map_or(0, |count| count.passed);
    }
    let status = child.wait()?;
    ensure!(status.success(), "{name} ended with {status}");
    ensure!(passed > 0, "{name} ran nothing");
    println!("{name}: {passed} checked, {} s", began.elapsed().as_secs());
    Ok(passed)
}
