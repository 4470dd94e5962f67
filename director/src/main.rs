//! `selvage-director --config FILE`: see the library.

#![forbid(unsafe_code)]

use clap::Parser;
use selvage_director::daemon;
use selvage_fabric::config::Config;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// The director of a Selvage cluster: routes browsers to the web nodes that host their sessions.
#[derive(Parser)]
#[command(name = "selvage-director", version)]
struct Arguments {
    /// The configuration file; else SELVAGE_CONFIG, else /etc/selvage/selvage.toml.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_env("SELVAGE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    let path = Config::resolve_path(arguments.config.as_deref());
    match Config::load(&path).and_then(daemon::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("selvage-director: {error}");
            ExitCode::FAILURE
        }
    }
}
