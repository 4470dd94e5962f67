//! `selvage-server`: the session server's command line.

#![forbid(unsafe_code)]

use clap::Parser;
use selvage_fabric::config::Config;
use selvage_session_server::daemon;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// The session server: its memory holds copies of the sessions that web nodes host.
#[derive(Parser)]
#[command(
    version,
    after_help = "Examples:\n  \
        selvage-server --config /etc/selvage/selvage.toml --name s1\n  \
        SELVAGE_CONFIG=./selvage.toml SELVAGE_LOG=debug selvage-server --name s2\n\n\
        SIGTERM or SIGINT stops it; its copies are gone then, and web nodes copy their sessions elsewhere.\n\
        Exit status: 0 stopped by a signal, 1 the system refused, 2 wrong arguments or configuration,\n\
        3 a server of this name runs already."
)]
struct Arguments {
    /// The configuration file [default: $SELVAGE_CONFIG, else /etc/selvage/selvage.toml].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Which of the configured servers this is.
    #[arg(long)]
    name: String,
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
    match Config::load(&path).and_then(|config| daemon::run(&config, &arguments.name)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("selvage-server: {error}");
            ExitCode::from(daemon::exit_status(&error))
        }
    }
}
