//! The command `selvage`: what operators type. Talks to the admin API; `check-config` reads a file, and `ca`
//! makes certificates.
//!
//! Invariants: results go to standard output, everything else to standard error; with `--json` both are JSON;
//! nothing is coloured unless a person sees it and has not said `NO_COLOR`; the exit code says what kind of
//! failure it was (`Code`).

mod ca;
mod call;
mod check;
mod nodes;
mod sessions;
mod status;
mod table;
mod top;

use clap::{Args, CommandFactory, Parser, Subcommand};
use selvage_fabric::config::{Config, DEFAULT_PATH};
use selvage_fabric::error::{Error, ErrorKind, Origin, Result};
use serde::Serialize;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  selvage status                          nodes, servers, and how well sessions are protected
  selvage top                             the same, live, with rates
  selvage sessions list --owner ann       the sessions of a user
  selvage sessions kill --owner ann       log a user out everywhere
  selvage drain n1 && systemctl restart nginx && selvage undrain n1
  selvage --admin http://10.0.0.1:8081 --json status | jq .protection

Exit codes: 0 done; 1 failed; 2 wrong usage; 3 the director cannot be reached or does not answer;
4 a list that is not complete: what is missing stands below it.";

/// Exit codes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Code {
    /// It was refused, is not certain, or is not good.
    Failed = 1,
    /// What was typed makes no sense; clap exits with the same one.
    Usage = 2,
    /// No director answers.
    Unreachable = 3,
    /// What was printed is not all that was asked for, and says so.
    Incomplete = 4,
}

/// What is to be printed.
struct Said {
    text: String,
    /// It is all that was asked for.
    is_whole: bool,
}

impl Said {
    fn whole(text: String) -> Self {
        Self { text, is_whole: true }
    }
}

/// Arguments of `selvage`.
#[derive(Parser, Debug)]
#[command(name = "selvage", version, about = "Looks after a Selvage cluster", after_help = EXAMPLES)]
pub struct Arguments {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

/// What every command takes.
#[derive(Args, Debug)]
struct Common {
    /// The admin API, like http://127.0.0.1:8081.
    #[arg(long, global = true, value_name = "URL")]
    admin: Option<String>,
    /// The configuration file that names the admin API; else SELVAGE_CONFIG, else /etc/selvage/selvage.toml.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON, errors too.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Show nodes, servers, the ways between them and how well sessions are protected.
    Status,
    /// The same, live, with rates. Keys: q quits, p pauses.
    Top(top::Arguments),
    /// List, show and destroy sessions.
    #[command(subcommand)]
    Sessions(sessions::Command),
    /// Hand the sessions of a node over to the others and keep it out, with no failed request.
    Drain(nodes::Leaving),
    /// Let a drained node come back.
    Undrain(nodes::Node),
    /// As drain, for a longer time: says so in the state, and stays over health checks.
    Maintenance(nodes::Leaving),
    /// End drain or maintenance.
    Ready(nodes::Node),
    /// Set a node's share of new sessions.
    Weight(nodes::Weight),
    /// Check a configuration file, and show what each daemon makes of it.
    CheckConfig {
        /// The file.
        file: PathBuf,
        /// Say, too, what a reload of the running director would change.
        #[arg(long)]
        against_running: bool,
    },
    /// Print the completions of a shell: selvage completions bash > /etc/bash_completion.d/selvage
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Make the certificates of a cluster over several hosts: those that are missing in the folder of
    /// `[tls]`.
    Ca(ca::Arguments),
}

impl Common {
    fn url(&self) -> Result<String> {
        if let Some(url) = &self.admin {
            return Ok(url.trim_end_matches('/').to_owned());
        }
        let path = Config::resolve_path(self.config.as_deref());
        let default = path.as_os_str() == DEFAULT_PATH && !path.exists();
        let address = match default {
            // Nothing was said and nothing is installed: where a director listens unless told otherwise.
            true => "127.0.0.1:8081".to_owned(),
            false => Config::load(&path)?.director.admin_listen.to_string(),
        };
        Ok(format!("http://{address}"))
    }

    /// A result as it was asked for.
    fn say(&self, value: &impl Serialize, text: impl FnOnce() -> String) -> Result<String> {
        if !self.json {
            return Ok(text());
        }
        let page = serde_json::to_string_pretty(value).map_err(|why| {
            Error::new(ErrorKind::Invalid, Origin::Director, "this cannot be said in JSON").with_source(why)
        })?;
        Ok(page + "\n")
    }
}

/// The whole command line, for completions and manual pages.
pub fn command() -> clap::Command {
    Arguments::command()
}

/// Does what the arguments say and prints what comes of it.
pub fn run(arguments: &Arguments) -> ExitCode {
    let printed = execute(arguments).and_then(|said| {
        let mut out = std::io::stdout().lock();
        match out.write_all(said.text.as_bytes()).and_then(|()| out.flush()) {
            // Whoever reads has seen enough.
            Err(why) if why.kind() == std::io::ErrorKind::BrokenPipe => Ok(said.is_whole),
            written => written
                .map(|()| said.is_whole)
                .map_err(|why| Error::os(Origin::Director, "cannot print", why)),
        }
    });
    let error = match printed {
        Ok(true) => return ExitCode::SUCCESS,
        Ok(false) => return ExitCode::from(Code::Incomplete as u8),
        Err(error) => error,
    };
    let code = match error.kind {
        ErrorKind::Unreachable | ErrorKind::Timeout => Code::Unreachable,
        ErrorKind::Invalid if error.origin == Origin::Director => Code::Usage,
        _ => Code::Failed,
    };
    // The director passes on what nodes say.
    let line = match arguments.common.json {
        true => serde_json::json!({ "error": error.to_string() }).to_string(),
        false => format!("selvage: {}", table::plain(&error.to_string())),
    };
    // If nobody hears it, the code still says that it failed.
    let _ = writeln!(std::io::stderr(), "{line}");
    ExitCode::from(code as u8)
}

fn execute(arguments: &Arguments) -> Result<Said> {
    let common = &arguments.common;
    let text = match &arguments.command {
        Command::Status => status::run(common),
        Command::Top(top) => top::run(common, top),
        Command::Sessions(command) => return sessions::run(common, command),
        Command::Drain(node) => nodes::take_out(common, node, "drain"),
        Command::Undrain(node) => nodes::take_back(common, node, "undrain"),
        Command::Maintenance(node) => nodes::take_out(common, node, "maintenance"),
        Command::Ready(node) => nodes::take_back(common, node, "ready"),
        Command::Weight(weight) => nodes::weigh(common, weight),
        Command::CheckConfig { file, against_running } => check::run(common, file, *against_running),
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(*shell, &mut command(), "selvage", &mut text);
            Ok(String::from_utf8_lossy(&text).into_owned())
        }
        Command::Ca(arguments) => ca::run(common, arguments),
    };
    text.map(Said::whole)
}

/// A mistake of who typed it.
fn usage(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Invalid, Origin::Director, what)
}
