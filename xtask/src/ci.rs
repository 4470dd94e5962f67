//! `cargo x ci`: everything that a change must pass, cheapest first.

use crate::{demo, figures, fuzz, kills, proofs, rdma, setup, sim, soak, test, tidy};
use anyhow::{Context, Result, ensure};
use selvage_tests::product;
use std::process::ExitCode;
use std::time::Instant;

/// Runs the command.
///
/// # Errors
/// A stage failed.
pub fn main() -> Result<()> {
    setup::ensure_components()?;
    setup::ensure(setup::EVERYTHING)?;
    stage("format", || {
        cargo(&["fmt", "--all", "--check"], &[])?;
        cargo(&["fmt", "--check", "--manifest-path", "fuzz/Cargo.toml"], &[])
    })?;
    stage("tidy", tidy::main)?;
    let features = "selvage-fabric/rdma-tests,selvage-session-server/rdma-tests";
    let clippy = |targets: &[&str]| {
        let of = ["clippy", "--workspace", "--features", features];
        cargo(&[&of[..], targets, &["--", "-D", "warnings"]].concat(), &[])
    };
    stage("clippy", || {
        clippy(&["--all-targets"])?;
        // What is a test and is not run as one is no target of all.
        clippy(&["--test", "kills", "--test", "model", "--test", "rdma"])
    })?;
    stage("doc", || cargo(&["doc", "--workspace", "--no-deps"], &[("RUSTDOCFLAGS", "-D warnings")]))?;
    stage("test", || test::main(&test::Arguments::default()))?;
    stage("loom", proofs::loom)?;
    stage("model", proofs::model)?;
    stage("sim", || sim::main(&sim::Arguments::default()))?;
    stage("mutants", || sim::main(&sim::Arguments { mutants: true, ..sim::Arguments::default() }))?;
    stage("fuzz", || fuzz::main(&fuzz::Arguments { seconds: 5, ..fuzz::Arguments::default() }))?;
    stage("kills", || kills::main(&kills::Arguments::default()))?;
    stage("soak", || soak::main(&soak::Arguments::default()))?;
    stage("demo", || demo::main(&demo::Arguments { sessions: 2000, connections: 64, pause_ms: 500 }))?;
    stage("rdma-test", || good(rdma::test::main(&rdma::test::Arguments::default())?))?;
    stage("rdma-bench", || {
        let arguments = rdma::bench::Arguments { quick: true, ..rdma::bench::Arguments::default() };
        good(rdma::bench::main(&arguments)?)
    })?;
    // In release, unlike the stage "test": their bounds are the product's. One at a time, so that none
    // disturbs another.
    let measured =
        ["test", "--release", "--package", "selvage-bench", "--tests", "--", "--test-threads", "1"];
    stage("measured", || cargo(&measured, &[]))?;
    stage("bench", || cargo(&["run", "--release", "--package", "selvage-bench", "--", "--quick"], &[]))?;
    stage("figures", figures::check_all)
}

/// A command that says by its status how it went: whether that is good. None of them skips anything.
fn good(status: ExitCode) -> Result<()> {
    ensure!(status == ExitCode::SUCCESS, "ended with {status:?}");
    Ok(())
}

fn stage(name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    println!("=== {name}");
    let began = Instant::now();
    work().and_then(|()| figures::check()).with_context(|| format!("{name} failed"))?;
    println!("=== {name}: good, {} s", began.elapsed().as_secs());
    Ok(())
}

fn cargo(arguments: &[&str], variables: &[(&str, &str)]) -> Result<()> {
    let mut command = product::cargo();
    command.args(arguments).envs(variables.iter().copied());
    let status = command.status().context("cannot start cargo")?;
    ensure!(status.success(), "cargo {} ended with {status}", arguments.join(" "));
    Ok(())
}
