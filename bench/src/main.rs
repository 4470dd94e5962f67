//! `selvage-bench`: Selvage and Redis side by side. Exits with 1 if a requirement was missed, with 2 if it
//! could not run.

use clap::Parser;
use selvage_bench::machine::Machine;
use selvage_bench::report::Report;
use selvage_bench::sample;
use selvage_bench::side_by_side::{Length, run};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

/// Measures Selvage's commits, requests and reads beside Redis in one run.
#[derive(Parser)]
struct Arguments {
    /// A short run for a look.
    #[arg(long)]
    quick: bool,
    /// Writes the raw results to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    match measure(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("selvage-bench: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn measure(arguments: &Arguments) -> anyhow::Result<bool> {
    if cfg!(debug_assertions) {
        eprintln!("selvage-bench: this is a debug build; its numbers mean nothing (use --release)");
    }
    let length = if arguments.quick { Length::QUICK } else { Length::FULL };
    let unix_s = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let machine = Machine::this()?;
    let rows = run(length)?;
    let report = Report { unix_s, machine, length, archive_bytes: sample::ARCHIVE_BYTES, rows };
    print!("{}", report.text());
    if let Some(file) = &arguments.json {
        report.write_json(file)?;
    }
    Ok(report.good())
}
