//! `cargo x rdma-test` and `cargo x rdma-bench`: RDMA on whatever this host has.
//!
//! Where this host has a device with an active port, it is used. Faults need devices whose network can be
//! disturbed, so two soft-RoCE devices are made, too: on this host, if its kernel has soft-RoCE and this is
//! root, and else in a guest. There is no further case: what cannot run is an error.

pub mod bench;
mod devices;
mod pair;
pub mod test;

use crate::guest::{End, Ground, Site, Work};
use anyhow::{Context, Result, ensure};
use pair::Pair;
use selvage_tests::product::cargo;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Names two devices that reach each other, when they are not `rxe0` and `rxe1`: `first,second`.
const DEVICES_VARIABLE: &str = "SELVAGE_RDMA_DEVICES";

/// Where two devices are that reach each other.
pub enum Place {
    /// Here: those that the host has, or one of them twice.
    Devices(String, String),
    /// Here, for as long as this lives.
    Host(Pair),
    /// In a guest.
    Guest(Ground),
}

impl Place {
    /// The host's own devices, if it has some that work.
    pub fn devices() -> Option<Self> {
        let active = devices::active(Path::new(devices::SYSFS));
        devices::pair(&active).map(|(first, second)| Self::Devices(first.to_owned(), second.to_owned()))
    }

    /// The best place for soft-RoCE.
    ///
    /// # Errors
    /// Neither this host nor a guest can have it.
    pub fn soft() -> Result<Self> {
        match Pair::make() {
            Ok(pair) => Ok(Self::Host(pair)),
            Err(why) => {
                eprintln!("no soft-RoCE on this host ({why:#}): guests have it");
                Ok(Self::Guest(Ground::ready()?))
            }
        }
    }

    /// One line about it.
    pub fn description(&self) -> String {
        match self {
            Self::Devices(first, second) => format!("this host, devices {first} and {second}"),
            Self::Host(pair) => pair.description(),
            Self::Guest(ground) => format!("a guest: {}", ground.description()),
        }
    }

    /// Runs a program there, and shows what it says.
    ///
    /// # Errors
    /// It could not be run.
    pub fn run(&self, work: &Work, limit: Duration) -> Result<End> {
        match self {
            Self::Devices(first, second) => {
                let variable = (DEVICES_VARIABLE, format!("{first},{second}"));
                here(work, limit, &[variable])
            }
            Self::Host(_) => here(work, limit, &[]),
            Self::Guest(ground) => site(None, limit).run(ground, work),
        }
    }
}

/// One guest, or several as hosts.
fn site(hosts: Option<u8>, limit: Duration) -> Site {
    Site { hosts, memory_mib: 1024, processors: 2, limit, shows_consoles: false }
}

/// Runs a program on this host.
fn here(work: &Work, limit: Duration, variables: &[(&str, String)]) -> Result<End> {
    let (program, arguments) = work.command.split_first().context("no program")?;
    // `timeout` ends the whole group, and with the status that guests are ended with.
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", &limit.as_secs().to_string()]).arg(program).args(arguments);
    command.envs(work.environment.iter().filter_map(|variable| variable.split_once('=')));
    command.envs(variables.iter().map(|(name, value)| (name, value)));
    if work.directory.is_dir() {
        command.current_dir(&work.directory);
    }
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let mut stdout = String::new();
    for line in BufReader::new(child.stdout.take().context("no pipe")?).lines() {
        let line = line?;
        let _ = writeln!(std::io::stdout(), "{line}");
        stdout.push_str(&line);
        stdout.push('\n');
    }
    let status = child.wait()?;
    let results = work.results.as_ref().and_then(|path| std::fs::read(path).ok()).unwrap_or_default();
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX);
    Ok(End { code, stdout, results, boot: Duration::ZERO })
}

/// Builds with cargo, and answers with the programs that came of it.
///
/// # Errors
/// It does not build, or nothing came of it.
fn build(arguments: &[&str]) -> Result<Vec<PathBuf>> {
    let mut command = cargo();
    command.args(arguments).arg("--message-format=json-render-diagnostics");
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot start cargo")?;
    let lines = BufReader::new(child.stdout.take().context("no pipe")?).lines();
    let built: Vec<PathBuf> = lines.map_while(Result::ok).filter_map(|line| executable(&line)).collect();
    let status = child.wait()?;
    ensure!(status.success(), "cargo {} ended with {status}", arguments.join(" "));
    ensure!(!built.is_empty(), "cargo {} built no program", arguments.join(" "));
    Ok(built)
}

/// The program that one of cargo's messages tells of.
fn executable(line: &str) -> Option<PathBuf> {
    let message: serde_json::Value = serde_json::from_str(line).ok()?;
    Some(PathBuf::from(message.get("executable")?.as_str()?))
}

/// A command line of a built program.
fn line(program: &Path, arguments: &[&str]) -> Vec<OsString> {
    let mut line = vec![program.as_os_str().to_owned()];
    line.extend(arguments.iter().map(OsString::from));
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_in_what_cargo_says() {
        let artifact = r#"{"reason":"compiler-artifact","executable":"/t/deps/verbs-1"}"#;
        assert_eq!(executable(artifact), Some(PathBuf::from("/t/deps/verbs-1")));
        assert_eq!(executable(r#"{"reason":"compiler-artifact","executable":null}"#), None);
        assert_eq!(executable("warning: no JSON"), None);
    }

    #[test]
    fn a_program_here_has_a_limit_and_a_status() {
        let work = |script: &str| Work { command: line("sh".as_ref(), &["-c", script]), ..Work::default() };
        let variables = [("SAID", "words".to_owned())];
        let end = here(&work("echo $SAID; exit 3"), Duration::from_secs(20), &variables).unwrap();
        assert_eq!((end.code, end.stdout.as_str()), (3, "words\n"));
        let end = here(&work("sleep 60"), Duration::from_secs(1), &[]).unwrap();
        assert_eq!(end.code, 124);
    }
}
