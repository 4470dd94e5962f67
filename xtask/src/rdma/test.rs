//! `cargo x rdma-test`: the transport over two devices, and the claims over several hosts.

use super::{Place, build, line, site};
use crate::guest::{End, Ground, Work};
use crate::setup;
use crate::test::summary;
use anyhow::{Context, Result, bail};
use selvage_tests::cluster::LOG_VARIABLE;
use selvage_tests::guest::COUNT_VARIABLE;
use selvage_tests::product::{PRODUCT_DIR_VARIABLE, Product, find_program};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Hosts beside the one of director and clients: one web node dies, one takes over, one has the copies.
const HOSTS: u8 = 3;
/// The bounds of the parts, of which the last begins with four guests booting at once.
const DEVICES_MAX: Duration = Duration::from_secs(600);
const SERVER_MAX: Duration = Duration::from_secs(240);
const HOSTS_MAX: Duration = Duration::from_secs(900);

/// Options of `cargo x rdma-test`.
#[derive(clap::Args, Default)]
pub struct Arguments {
    /// Run only tests whose names contain this
    pub filter: Option<String>,
    /// Run one part only
    #[arg(long, value_enum)]
    pub only: Option<Part>,
    /// Say what the guests' consoles said
    #[arg(long)]
    pub console: bool,
}

/// A part of the tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Two devices that reach each other: conformance, fence, isolation, faults, a session server
    Devices,
    /// Several guests as the hosts of a cluster: the claims, and deaths of hosts
    Hosts,
}

/// Runs the command.
///
/// # Errors
/// Something does not build, or cannot run; failed tests are told by the status.
pub fn main(arguments: &Arguments) -> Result<ExitCode> {
    let began = Instant::now();
    setup::ensure(&[setup::RUN, setup::BUILD, setup::RDMA])?;
    let mut ends = Vec::new();
    if arguments.only != Some(Part::Hosts) {
        devices(arguments, &mut ends).context("the tests over two devices could not run")?;
    }
    if arguments.only != Some(Part::Devices) {
        ends.push(hosts(arguments).context("the tests over several hosts could not run")?);
    }
    let (passed, failed) = ends.iter().fold((0, 0), |sum, (_, end)| {
        let (passed, failed) = count(&end.stdout);
        (sum.0 + passed, sum.1 + failed)
    });
    println!("rdma-test: {passed} passed, {failed} failed, in {} s", began.elapsed().as_secs());
    for (name, end) in &ends {
        let (ran, failed) = count(&end.stdout);
        if end.code != 0 {
            eprintln!("rdma-test: {name}: {failed} failed, status {}", end.code);
            return Ok(ExitCode::from(end.code));
        }
        // A filter may leave nothing for one part, but not for all.
        if ran == 0 && (arguments.filter.is_none() || passed == 0) {
            bail!("{name}: no test ran");
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The tests over two devices; over the host's own only those that disturb no network and name no device.
fn devices(arguments: &Arguments, ends: &mut Vec<(String, End)>) -> Result<()> {
    let test = build(&[
        "test",
        "--package",
        "selvage-fabric",
        "--features",
        "rdma-tests,mutants",
        "--test",
        "verbs",
        "--no-run",
    ])?;
    let mut run = |place: &Place, module: Option<&str>| {
        let name = format!("two devices, in {}", place.description());
        println!("rdma-test: {name}");
        let mut command = command(&test[0], arguments);
        command.extend(module.filter(|_| arguments.filter.is_none()).map(OsString::from));
        let began = Instant::now();
        let end = place.run(&Work { command, ..Work::default() }, DEVICES_MAX)?;
        told(&name, &end, began);
        ends.push((name, end));
        anyhow::Ok(())
    };
    if let Some(place) = Place::devices() {
        run(&place, Some("conformance"))?;
    }
    let soft = Place::soft()?;
    run(&soft, None)?;
    server(arguments, &soft, ends)
}

/// A real session server on one of two devices.
fn server(arguments: &Arguments, place: &Place, ends: &mut Vec<(String, End)>) -> Result<()> {
    let built = build(&[
        "test",
        "--package",
        "selvage-session-server",
        "--features",
        "rdma-tests",
        "--test",
        "server_rdma",
        "--no-run",
    ])?;
    // The server that the test starts is built along with it.
    let is_test = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("server_rdma-"))
    };
    let (tests, programs): (Vec<PathBuf>, Vec<PathBuf>) = built.into_iter().partition(is_test);
    let test = tests.first().context("no test")?;
    let name = format!("a session server, in {}", place.description());
    println!("rdma-test: {name}");
    let began = Instant::now();
    let work = Work { command: command(test, arguments), with: programs, ..Work::default() };
    let end = place.run(&work, SERVER_MAX)?;
    told(&name, &end, began);
    ends.push((name, end));
    Ok(())
}

/// The tests over several hosts.
fn hosts(arguments: &Arguments) -> Result<(String, End)> {
    let product = Product::ready()?;
    let agent = build(&["build", "--package", "selvage-tests", "--bin", "selvage-guest-agent"])?;
    let test = build(&["test", "--package", "selvage-tests", "--test", "rdma", "--no-run"])?;
    let ground = Ground::ready()?;
    let name = format!("{} hosts, in guests: {}", HOSTS + 1, ground.description());
    println!("rdma-test: {name}");
    let began = Instant::now();
    let mut with = vec![
        product.server(),
        product.director(),
        product.operator_tool(),
        product.library(),
        product.nginx_module(),
    ];
    for program in ["nginx", "ib_write_lat"] {
        with.push(find_program(program).with_context(|| format!("{program} is missing"))?);
    }
    // Whatever cargo built along with the test is no test: the last program is.
    let test = test.last().context("no test")?;
    let work = Work {
        command: command(test, arguments),
        with,
        environment: [
            format!("{COUNT_VARIABLE}={HOSTS}"),
            format!("{PRODUCT_DIR_VARIABLE}={}", product.dir.display()),
        ]
        .into_iter()
        .chain(std::env::var(LOG_VARIABLE).map(|log| format!("{LOG_VARIABLE}={log}")))
        .collect(),
        agent: agent.into_iter().next(),
        hosts: HOSTS,
        ..Work::default()
    };
    let mut site = site(Some(HOSTS), HOSTS_MAX);
    site.shows_consoles = arguments.console;
    let end = site.run(&ground, &work)?;
    told(&name, &end, began);
    Ok((name, end))
}

fn command(test: &Path, arguments: &Arguments) -> Vec<OsString> {
    let mut command = line(test, &["--test-threads=1", "--nocapture"]);
    command.extend(arguments.filter.iter().map(OsString::from));
    command
}

fn told(name: &str, end: &End, began: Instant) {
    let (passed, failed) = count(&end.stdout);
    println!(
        "rdma-test: {name}: {passed} passed, {failed} failed; {:.1} s to come up, {:.1} s in all",
        end.boot.as_secs_f64(),
        began.elapsed().as_secs_f64()
    );
}

/// Passed and failed, of all summaries in what a test program said.
fn count(said: &str) -> (u64, u64) {
    said.lines().filter_map(summary).fold((0, 0), |sum, more| (sum.0 + more.passed, sum.1 + more.failed))
}
