//! `selvage-server`: the session server's command line.

#![forbid(unsafe_code)]

use clap::{CommandFactory, Parser};
use selvage_fabric::config::Config;
use selvage_fabric::log;
use selvage_session_server::daemon;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The session server: its memory holds copies of the sessions that web nodes host.
#[derive(Parser)]
#[command(
    name = "selvage-server",
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
    /// How the log looks: text or json [default: $SELVAGE_LOG_FORMAT, else text].
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<log::Format>,
}

fn main() -> ExitCode {
    if let Some(folder) = manual_folder() {
        return match write_manual(&folder) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("cannot write the manual to {}: {error}", folder.display());
                ExitCode::FAILURE
            }
        };
    }
    let arguments = Arguments::parse();
    log::begin(arguments.log_format);
    let path = Config::resolve_path(arguments.config.as_deref());
    match Config::load(&path).and_then(|config| daemon::run(&config, &arguments.name)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("selvage-server: {error}");
            ExitCode::from(daemon::exit_status(&error))
        }
    }
}

/// Where `--manual FOLDER` wants the manual page, which is all that such a call does. For `cargo x install`
/// only, so it is in no help text.
fn manual_folder() -> Option<PathBuf> {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let [first, folder] = &arguments[..] else { return None };
    (first == "--manual").then(|| folder.into())
}

fn write_manual(folder: &Path) -> std::io::Result<()> {
    clap_mangen::Man::new(Arguments::command()).section("8").generate_to(folder).map(drop)
}
