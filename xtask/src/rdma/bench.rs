//! `cargo x rdma-bench`: the push engine against a raw-verbs loop over two devices, and perftest beside it.

use super::{Place, build, line};
use crate::guest::Work;
use crate::setup;
use anyhow::{Context, Result, ensure};
use selvage_tests::product::find_program;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(300);
const PERFTEST_MAX: Duration = Duration::from_secs(120);
/// Where the raw results are put, wherever it runs.
const RESULTS: &str = "/tmp/selvage-rdma-results.json";

/// Options of `cargo x rdma-bench`.
#[derive(clap::Args, Default)]
pub struct Arguments {
    /// A short run for a look
    #[arg(long)]
    pub quick: bool,
    /// Write the results and a description of where they come from into this folder
    #[arg(long, value_name = "FOLDER")]
    pub out: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// Something does not build, or cannot run; a missed requirement is told by the status.
pub fn main(arguments: &Arguments) -> Result<ExitCode> {
    setup::ensure(&[setup::BUILD, setup::RDMA])?;
    let began = Instant::now();
    let bench = build(&["build", "--release", "--package", "selvage-bench", "--bin", "selvage-bench"])?;
    // Two copies against one are measured with a delay between devices: only soft-RoCE's network has that.
    let place = Place::soft()?;
    let description = place.description();
    println!("rdma-bench: in {description}");
    let mut words = vec!["rdma", "--json", RESULTS];
    if arguments.quick {
        words.push("--quick");
    }
    let work = Work {
        command: line(bench.first().context("no benchmark")?, &words),
        results: Some(RESULTS.into()),
        ..Work::default()
    };
    let end = place.run(&work, LIMIT)?;
    let said = perftest(&place)?;
    println!("rdma-bench: status {}, {} s in all", end.code, began.elapsed().as_secs());
    if let Some(out) = &arguments.out {
        fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
        let write = |name: &str, bytes: &[u8]| {
            let file = out.join(name);
            fs::write(&file, bytes).with_context(|| format!("cannot write {}", file.display()))
        };
        write("rdma.txt", end.stdout.as_bytes())?;
        write("rdma.json", &end.results)?;
        write("perftest.txt", said.as_bytes())?;
        write("guest.txt", format!("{description}\n").as_bytes())?;
    }
    Ok(ExitCode::from(end.code))
}

/// What perftest says of the same devices, as information.
fn perftest(place: &Place) -> Result<String> {
    let mut with = Vec::new();
    for program in ["ib_write_lat", "ib_write_bw"] {
        with.push(find_program(program).with_context(|| format!("{program} is missing"))?);
    }
    let command = line("bash".as_ref(), &["-c", include_str!("perftest.sh")]);
    let end = place.run(&Work { command, with, ..Work::default() }, PERFTEST_MAX)?;
    ensure!(end.code == 0, "perftest ended with status {}", end.code);
    Ok(end.stdout)
}
