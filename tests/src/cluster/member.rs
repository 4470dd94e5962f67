//! A running member of a cluster, on whatever host.

use super::process::{self, Kill, Process};
use crate::guest::{Agent, Start};
use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// A process on another host is gone after this time, or something is wrong there.
const GONE_WAIT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(10);
/// What members log; it goes on to other hosts.
pub const LOG_VARIABLE: &str = "SELVAGE_LOG";

/// The process that was started for a member, and all that it started.
pub trait Member: std::fmt::Debug + Send + Sync {
    /// The pid of the process that was started; also the number of its group.
    fn pid(&self) -> u32;

    /// Every living process of the member.
    fn pids(&self) -> Vec<u32>;

    /// Processor time that all of them have used.
    ///
    /// # Errors
    /// It cannot be found out.
    fn cpu_time(&self) -> Result<Duration>;

    /// How often a thread of the process that was started has gone to sleep: it was woken as often.
    ///
    /// # Errors
    /// It cannot be found out.
    fn wakes(&self) -> Result<u64>;

    /// How the started process ended, if it did.
    fn ended(&mut self) -> Option<String>;

    /// Sends a signal to every process of the member.
    fn signal(&self, signal: Signal);

    /// Sends a signal to the process that was started, or to the one that has taken its place.
    fn signal_main(&self, signal: Signal);

    /// Waits until the process that was started has ended for one that takes its place.
    ///
    /// # Errors
    /// That does not happen within the time.
    fn await_successor(&mut self, wait: Duration) -> Result<()>;

    /// Asks the member to end, waits, and kills every process of it when the time is over.
    /// Returns whether it ended by itself.
    ///
    /// # Errors
    /// Even the kill did not end it.
    fn stop(self: Box<Self>, signal: Signal, wait: Duration) -> Result<bool>;

    /// Kills every process of the member with SIGKILL and waits until none is left.
    ///
    /// # Errors
    /// A process is still there after a long time.
    fn kill(self: Box<Self>) -> Result<Kill>;

    /// The last lines of its log.
    fn tail(&self, lines: usize) -> String;
}

/// A member on another host.
#[derive(Debug)]
pub struct Remote {
    name: String,
    agent: Agent,
    pid: i32,
    log: PathBuf,
}

impl Remote {
    /// Starts a member on the agent's host; it works in `directory`, and its output goes to `log` there.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(
        agent: Agent,
        name: &str,
        command: &Command,
        directory: &Path,
        log: PathBuf,
    ) -> Result<Self> {
        let text = |part: &OsStr| part.to_str().map(str::to_owned).context("a command that is no text");
        let arguments = command.get_args().map(text).collect::<Result<Vec<_>>>()?;
        let mut start = Start::new(command.get_program()).args(arguments).directory(directory).log(&log);
        if let Ok(filter) = std::env::var(LOG_VARIABLE) {
            start = start.env(LOG_VARIABLE, filter);
        }
        let pid = agent.spawn(&start).with_context(|| format!("cannot start {name}"))?;
        Ok(Self { name: name.to_owned(), agent, pid, log })
    }

    /// What `/proc/<pid>/stat` says of each process of the member.
    fn stats(&self) -> Result<Vec<process::Stat>> {
        // One process less for each that ends between the list and the reading.
        let text = self.agent.shell("cat /proc/[0-9]*/stat 2>/dev/null; true")?;
        let stats = text.lines().filter_map(process::Stat::parse);
        Ok(stats.filter(|stat| stat.group == self.pid() && stat.state != 'Z').collect())
    }

    fn is_gone(&self) -> bool {
        self.stats().is_ok_and(|stats| stats.is_empty())
    }
}

impl Member for Remote {
    fn pid(&self) -> u32 {
        self.pid.cast_unsigned()
    }

    fn pids(&self) -> Vec<u32> {
        self.stats().unwrap_or_default().iter().map(|stat| stat.pid).collect()
    }

    fn cpu_time(&self) -> Result<Duration> {
        Ok(self.stats()?.iter().map(process::Stat::cpu_time).sum())
    }

    fn wakes(&self) -> Result<u64> {
        Ok(process::wakes(&self.agent.shell(&format!("cat /proc/{}/task/*/status", self.pid))?))
    }

    fn ended(&mut self) -> Option<String> {
        // A host that does not answer is no end of a process.
        let status = self.agent.wait(self.pid, Duration::ZERO).ok().flatten()?;
        Some(format!("status {status}"))
    }

    fn signal(&self, signal: Signal) {
        // The group may be gone already; then there is nothing to tell.
        let _ = self.agent.signal(self.pid, signal.as_raw());
    }

    fn signal_main(&self, signal: Signal) {
        let _ = self.agent.shell(&format!("kill -{} {}", signal.as_raw(), self.pid));
    }

    fn await_successor(&mut self, _wait: Duration) -> Result<()> {
        bail!("{} is on another host, where successors are not followed", self.name)
    }

    fn stop(self: Box<Self>, signal: Signal, wait: Duration) -> Result<bool> {
        self.signal(signal);
        let deadline = Instant::now() + wait;
        while !self.is_gone() {
            if Instant::now() > deadline {
                self.kill()?;
                return Ok(false);
            }
            std::thread::sleep(POLL);
        }
        Ok(true)
    }

    fn kill(self: Box<Self>) -> Result<Kill> {
        let sent = Instant::now();
        self.agent.kill(self.pid)?;
        while !self.is_gone() {
            if sent.elapsed() > GONE_WAIT {
                bail!("{} (process group {} of {:?}) cannot be killed", self.name, self.pid, self.agent);
            }
            std::thread::sleep(POLL);
        }
        Ok(Kill { sent, gone: Instant::now() })
    }

    fn tail(&self, lines: usize) -> String {
        let line = format!("tail -n {lines} {}", self.log.display());
        self.agent.shell(&line).unwrap_or_else(|error| format!("{error:#}"))
    }
}

impl Member for Process {
    fn pid(&self) -> u32 {
        self.pid()
    }

    fn pids(&self) -> Vec<u32> {
        process::pids_of_group(self.pid())
    }

    fn cpu_time(&self) -> Result<Duration> {
        let stats = self.pids().into_iter().filter_map(process::Stat::of);
        Ok(stats.map(|stat| stat.cpu_time()).sum())
    }

    fn wakes(&self) -> Result<u64> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid()))?;
        // A thread may end between the list and the reading.
        let statuses =
            tasks.flatten().filter_map(|task| std::fs::read_to_string(task.path().join("status")).ok());
        Ok(statuses.map(|status| process::wakes(&status)).sum())
    }

    fn ended(&mut self) -> Option<String> {
        self.ended().map(|status| status.to_string())
    }

    fn signal(&self, signal: Signal) {
        self.signal(signal);
    }

    fn signal_main(&self, signal: Signal) {
        self.signal_main(signal);
    }

    fn await_successor(&mut self, wait: Duration) -> Result<()> {
        self.await_successor(wait)
    }

    fn stop(self: Box<Self>, signal: Signal, wait: Duration) -> Result<bool> {
        (*self).stop(signal, wait)
    }

    fn kill(self: Box<Self>) -> Result<Kill> {
        (*self).kill()
    }

    fn tail(&self, lines: usize) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}
