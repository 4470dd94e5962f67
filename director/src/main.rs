//! `selvage-director --config FILE`: see the library.

#![forbid(unsafe_code)]

use clap::{CommandFactory, Parser};
use selvage_director::{daemon, manual};
use selvage_fabric::config::Config;
use selvage_fabric::log;
use std::path::PathBuf;
use std::process::ExitCode;

/// The director of a Selvage cluster: routes browsers to the web nodes that host their sessions.
#[derive(Parser)]
#[command(
    name = "selvage-director",
    version,
    after_help = "Exit status: 0 stopped by a signal or relieved by another director, 1 the system refused,\n\
        2 wrong arguments or configuration, 3 another director or program has its place or its port."
)]
struct Arguments {
    /// The configuration file; else SELVAGE_CONFIG, else /etc/selvage/selvage.toml.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// For directors that start another to take over from them.
    #[arg(long, hide = true)]
    take_over: bool,
    /// How the log looks: text or json [default: $SELVAGE_LOG_FORMAT, else text].
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<log::Format>,
}

fn main() -> ExitCode {
    if let Some(written) = manual::asked_for(Arguments::command(), "8") {
        return written;
    }
    let arguments = Arguments::parse();
    log::begin(arguments.log_format);
    let path = Config::resolve_path(arguments.config.as_deref());
    match daemon::run(&path, arguments.take_over) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("selvage-director: {error}");
            ExitCode::from(daemon::exit_status(&error))
        }
    }
}
