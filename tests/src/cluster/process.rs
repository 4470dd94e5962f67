//! One member of a cluster: a process group with its log, and a record on disk by which a later launcher
//! recognises it.

use super::folder::Folder;
use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, WaitOptions};
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// A killed process is gone after this time, or something is wrong with the machine.
const GONE_WAIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(1);

/// A running member: the process that was started and all that it started.
#[derive(Debug)]
pub struct Process {
    /// Its name in the cluster.
    pub name: String,
    /// Where its output goes.
    pub log: PathBuf,
    child: Child,
    group: Pid,
    /// The process that has taken the started one's place, if one has.
    successor: Option<Pid>,
    record: PathBuf,
}

/// When a member was killed.
#[derive(Debug, Clone, Copy)]
pub struct Kill {
    /// Just before the signal was sent.
    pub sent: Instant,
    /// No process of it was left.
    pub gone: Instant,
}

impl Process {
    /// Starts a member in a process group of its own, so that a terminal's Ctrl-C reaches only the launcher,
    /// with the run folder as its working folder, which is half of the proof that a left-over process is
    /// ours. `input` is what it reads from.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(folder: &Folder, name: &str, command: &mut Command, input: Stdio) -> Result<Self> {
        let log = folder.log(name);
        let output = fs::OpenOptions::new().create(true).append(true).open(&log)?;
        use std::os::unix::process::CommandExt;
        let child = command
            .current_dir(folder.path())
            .stdin(input)
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {name} ({})", command.get_program().display()))?;
        let group = Pid::from_child(&child);
        let record = folder.pid_record(name);
        let started = Stat::of(child.id()).map_or(0, |stat| stat.start_ticks);
        fs::write(&record, format!("{} {started}\n", child.id()))?;
        Ok(Self { name: name.to_owned(), log, child, group, successor: None, record })
    }

    /// The pid of the process that was started; also the number of its group.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Every living process of the member.
    pub fn pids(&self) -> Vec<u32> {
        pids_of_group(self.pid())
    }

    /// How the started process, or its successor, ended, if it did.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        let started = self.child.try_wait().ok().flatten()?;
        let Some(successor) = self.successor else { return Some(started) };
        // It is the launcher's child since its own parent, the started one, has ended.
        let ended = rustix::process::waitpid(Some(successor), WaitOptions::NOHANG).ok().flatten();
        ended.map(|(_, status)| ExitStatus::from_raw(status.as_raw()))
    }

    /// The process that stands for the member: the started one, or its successor.
    pub fn main(&self) -> u32 {
        self.successor.unwrap_or(self.group).as_raw_nonzero().get().cast_unsigned()
    }

    /// Waits until the process that stands for the member has ended and another one of its group, a child of
    /// it, stands in its place.
    ///
    /// # Errors
    /// That does not happen within the time.
    pub fn await_successor(&mut self, wait: Duration) -> Result<()> {
        let (old, deadline) = (self.main(), Instant::now() + wait);
        let mut heir = None;
        loop {
            let of_old = |pid: &u32| Stat::of(*pid).is_some_and(|stat| stat.parent == old);
            heir = heir.or_else(|| self.pids().into_iter().find(of_old));
            if self.ended().is_some() {
                let heir = heir.and_then(|pid| Pid::from_raw(pid.cast_signed()));
                self.successor = Some(heir.with_context(|| format!("{} ended without a heir", self.name))?);
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{} (process {old}) does not end for another", self.name);
            std::thread::sleep(POLL);
        }
    }

    /// Sends a signal to the process that stands for the member.
    pub fn signal_main(&self, signal: Signal) {
        let _ = rustix::process::kill_process(self.successor.unwrap_or(self.group), signal);
    }

    /// Sends a signal to every process of the member.
    pub fn signal(&self, signal: Signal) {
        // The group may be gone already; then there is nothing to tell.
        let _ = rustix::process::kill_process_group(self.group, signal);
    }

    /// Asks the started process to end, waits, and kills the whole group when the time is over.
    /// Returns whether it ended by itself.
    ///
    /// # Errors
    /// Even the kill did not end it.
    pub fn stop(mut self, signal: Signal, wait: Duration) -> Result<bool> {
        self.signal_main(signal);
        let deadline = Instant::now() + wait;
        while !self.reap() {
            if Instant::now() > deadline {
                self.kill()?;
                return Ok(false);
            }
            std::thread::sleep(POLL);
        }
        self.forget();
        Ok(true)
    }

    /// Kills every process of the member with SIGKILL and waits until none is left.
    ///
    /// # Errors
    /// A process is still there after a long time.
    pub fn kill(mut self) -> Result<Kill> {
        let sent = Instant::now();
        self.signal(Signal::KILL);
        while !self.reap() {
            if sent.elapsed() > GONE_WAIT {
                bail!("{} (process group {}) cannot be killed", self.name, self.pid());
            }
            std::thread::sleep(POLL);
        }
        self.forget();
        Ok(Kill { sent, gone: Instant::now() })
    }

    /// Collects what has ended; whether nothing of the group is left. The launcher is the reaper of the
    /// workers whose master has died (see `Cluster::start`), so that none stays as a zombie.
    fn reap(&mut self) -> bool {
        if self.ended().is_none() {
            return false;
        }
        while let Ok(Some(_)) = rustix::process::waitpgid(self.group, WaitOptions::NOHANG) {}
        rustix::process::test_kill_process_group(self.group).is_err()
    }

    fn forget(&self) {
        let _ = fs::remove_file(&self.record);
    }
}

/// What `/proc/<pid>/stat` says.
pub(super) struct Stat {
    pub(super) pid: u32,
    pub(super) state: char,
    pub(super) group: u32,
    parent: u32,
    cpu_ticks: u64,
    start_ticks: u64,
}

impl Stat {
    /// Ticks in a second, on every Linux since 2.6.
    const TICKS_PER_S: u64 = 100;

    pub(super) fn of(pid: u32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        // The second field is the program's name in parentheses and may hold anything, spaces and parentheses
        // too.
        let (before, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
        Some(Self {
            pid: before.split_once(' ')?.0.parse().ok()?,
            state: fields.first()?.chars().next()?,
            group: fields.get(2)?.parse().ok()?,
            parent: fields.get(1)?.parse().ok()?,
            cpu_ticks: number(11)? + number(12)?,
            start_ticks: number(19)?,
        })
    }

    /// Processor time of the process, in the kernel and outside.
    pub(super) fn cpu_time(&self) -> Duration {
        Duration::from_millis(self.cpu_ticks * 1000 / Self::TICKS_PER_S)
    }
}

/// The times that threads have gone to sleep, of `/proc/<pid>/task/<tid>/status`, one or several.
pub(super) fn wakes(statuses: &str) -> u64 {
    let lines = statuses.lines().filter_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    lines.filter_map(|count| count.trim().parse::<u64>().ok()).sum()
}

/// The living processes, zombies not counted, for which `keep` holds.
fn living(keep: impl Fn(u32, &Stat) -> bool) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let mut pids: Vec<u32> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| Stat::of(*pid).is_some_and(|stat| !is_over(*pid, &stat) && keep(*pid, &stat)))
        .collect();
    pids.sort_unstable();
    pids
}

/// Whether nothing of the process can act any more. When its first thread has ended it is a zombie, but as
/// long as others have not, its sockets are open.
fn is_over(pid: u32, stat: &Stat) -> bool {
    stat.state == 'Z' && fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count) <= 1
}

/// The living processes of a process group.
pub fn pids_of_group(group: u32) -> Vec<u32> {
    living(|_, stat| stat.group == group)
}

/// The living processes whose working folder is `folder`, or was before it was removed.
pub fn pids_working_in(folder: &Path) -> Vec<u32> {
    living(|pid, _| works_in(pid, folder))
}

fn works_in(pid: u32, folder: &Path) -> bool {
    let Ok(cwd) = fs::read_link(format!("/proc/{pid}/cwd")) else { return false };
    cwd == folder
        || cwd.to_str().and_then(|cwd| cwd.strip_suffix(" (deleted)")).map(Path::new) == Some(folder)
}

/// Kills the processes that a crashed launcher left behind, as far as its records prove that they are its
/// own: of the recorded process group, not older than the record says, and working in its run folder.
pub fn kill_recorded(folder: &Path, records: &Path) {
    let Ok(entries) = fs::read_dir(records) else { return };
    for entry in entries.flatten() {
        let Ok(text) = fs::read_to_string(entry.path()) else { continue };
        let mut fields = text.split_ascii_whitespace().map(str::parse::<u64>);
        let (Some(Ok(group)), Some(Ok(started))) = (fields.next(), fields.next()) else { continue };
        let ours = |pid: u32, stat: &Stat| {
            u64::from(stat.group) == group && stat.start_ticks >= started && works_in(pid, folder)
        };
        let deadline = Instant::now() + GONE_WAIT;
        loop {
            let left = living(ours);
            if left.is_empty() || Instant::now() > deadline {
                break;
            }
            for pid in left.into_iter().filter_map(|pid| Pid::from_raw(pid.cast_signed())) {
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
            std::thread::sleep(POLL);
        }
    }
}
