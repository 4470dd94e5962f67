//! Real processes are killed (SIGKILL) or stopped for longer than every timeout (SIGSTOP, then SIGCONT) at
//! each named step of push, commit, lock, allocate, adopt, re-copy, seal, steward hand-over, attach and
//! start-up: `selvage_fabric::kill::POINTS` has the names.
//!
//! This program is all of them: the test, and, called with a role, one process of it: `selvage-server`,
//! `selvage-director`, or a web node's `worker`, which has no web server around it and works on sessions as
//! fast as it can. What the sessions must be stands in a book of shared memory, which outlives whoever writes
//! it.
//!
//! `SELVAGE_KILLS=5000 cargo test -p selvage-tests --test kills` makes it longer, `SELVAGE_SEED` repeats an
//! order. With `SELVAGE_WITHOUT=9` all processes do without rule R9 (any of 1 to 16), to see whether the test
//! notices: R2, R5, R9, R14 and R15 it does within a minute; R4, R7 and R13 need more luck than kills here
//! bring.

mod book;
mod field;
mod lives;
mod rounds;
mod worker;

use selvage_fabric::config::Config;
use selvage_fabric::rules;
use std::path::Path;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// The number of a protocol rule that all processes do without, to see whether the test notices.
const WITHOUT: &str = "SELVAGE_WITHOUT";
/// Kills of a run in CI.
const KILLS: u64 = 300;

fn main() -> ExitCode {
    if let Some(rule) = std::env::var(WITHOUT).ok().and_then(|rule| rule.parse().ok()) {
        rules::take_out(rule);
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match *arguments {
        ["selvage-server", "--config", config, "--name", name] => {
            daemon(|| selvage_session_server::daemon::run(&Config::load(Path::new(config))?, name))
        }
        ["selvage-director", "--config", config] => {
            daemon(|| selvage_director::daemon::run(Path::new(config), false))
        }
        ["worker", config, node, index] => {
            log();
            worker::main(Path::new(config), node, index.parse().unwrap())
        }
        _ => tests(&arguments),
    }
}

fn daemon(run: impl FnOnce() -> selvage_fabric::error::Result<()>) -> ExitCode {
    log();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn log() {
    let filter = EnvFilter::try_from_env("SELVAGE_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(std::io::stderr).init();
}

/// What a test runner asks of a program that has its own `main`.
fn tests(arguments: &[&str]) -> ExitCode {
    let name = "kills_at_every_step_lose_nothing";
    if arguments.contains(&"--list") {
        if !arguments.contains(&"--ignored") {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    let mut filters = arguments.iter().filter(|argument| !argument.starts_with('-')).peekable();
    let wanted = filters.peek().is_none() || filters.any(|filter| name.contains(filter));
    if !wanted || arguments.contains(&"--ignored") {
        println!("\ntest result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 1 filtered out");
        return ExitCode::SUCCESS;
    }
    let number = |variable: &str| std::env::var(variable).ok()?.parse::<u64>().ok();
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let seed = number("SELVAGE_SEED").unwrap_or(clock.as_nanos() as u64 % 1_000_000);
    let kills = number("SELVAGE_KILLS").unwrap_or(KILLS);
    println!("again: SELVAGE_SEED={seed} SELVAGE_KILLS={kills} cargo test -p selvage-tests --test kills");
    // A panic is the failure of the test, as everywhere.
    rounds::run(seed, kills);
    println!("\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
    ExitCode::SUCCESS
}
