//! The machines around the guests: power and cables, asked of the process on the host that runs them.

use super::CONTROL_DEVICE;
use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Everything that is asked is done at once.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// The way to the host. There is one per process, because a port can be opened once.
#[derive(Debug)]
pub struct Hypervisor {
    port: Mutex<File>,
}

impl Hypervisor {
    /// The hypervisor of this guest, which must be guest 0.
    ///
    /// # Errors
    /// This is no guest, or another process talks to the hypervisor.
    pub fn of_this_guest() -> Result<&'static Self> {
        static HYPERVISOR: OnceLock<Result<Hypervisor, String>> = OnceLock::new();
        let opened = HYPERVISOR.get_or_init(|| {
            let port = OpenOptions::new().read(true).write(true).open(CONTROL_DEVICE);
            let port = port.map_err(|error| format!("{CONTROL_DEVICE}: {error}"))?;
            Ok(Self { port: Mutex::new(port) })
        });
        opened.as_ref().map_err(|error| anyhow::anyhow!("no hypervisor: {error}"))
    }

    /// Ends a guest as a power cut does: when this returns, the machine is no more.
    ///
    /// # Errors
    /// The guest is off, or is guest 0, or the host does not answer.
    pub fn kill(&self, guest: u8) -> Result<()> {
        self.ask("kill", guest)
    }

    /// Starts a guest that is off. It is up when its agent is ready.
    ///
    /// # Errors
    /// The guest is on, or cannot be started, or the host does not answer.
    pub fn start(&self, guest: u8) -> Result<()> {
        self.ask("start", guest)
    }

    /// Pulls a guest's cable: it sees a link that is up, over which nothing goes.
    ///
    /// # Errors
    /// There is no such guest, or the host does not answer.
    pub fn cut(&self, guest: u8) -> Result<()> {
        self.ask("cut", guest)
    }

    /// Puts a guest's cable back.
    ///
    /// # Errors
    /// There is no such guest, or the host does not answer.
    pub fn join(&self, guest: u8) -> Result<()> {
        self.ask("join", guest)
    }

    /// Stops a guest's processors: a host that is frozen, and comes back as a zombie.
    ///
    /// # Errors
    /// The guest is off, or is guest 0, or the host does not answer.
    pub fn pause(&self, guest: u8) -> Result<()> {
        self.ask("pause", guest)
    }

    /// Lets a paused guest go on.
    ///
    /// # Errors
    /// The guest is off, or the host does not answer.
    pub fn resume(&self, guest: u8) -> Result<()> {
        self.ask("resume", guest)
    }

    fn ask(&self, what: &str, guest: u8) -> Result<()> {
        let mut port = self.port.lock().unwrap_or_else(PoisonError::into_inner);
        port.write_all(format!("{what} {guest}\n").as_bytes())?;
        let answer = line(&mut port).with_context(|| format!("{what} {guest}"))?;
        match answer.as_str() {
            "ok" => Ok(()),
            other => bail!("{what} {guest}: {other}"),
        }
    }
}

/// One line, read byte by byte: the port has no use for read-ahead, and answers are short.
fn line(port: &mut File) -> Result<String> {
    let began = Instant::now();
    let mut line = Vec::new();
    loop {
        let left = ANSWER_MAX.saturating_sub(began.elapsed());
        let left = Timespec::try_from(left).context("a time too long")?;
        let ready = poll(&mut [PollFd::new(&*port, PollFlags::IN)], Some(&left))?;
        ensure!(ready > 0, "the host does not answer");
        let mut byte = [0];
        ensure!(port.read(&mut byte)? == 1, "the host is gone");
        if byte == *b"\n" {
            return Ok(String::from_utf8_lossy(&line).into_owned());
        }
        line.push(byte[0]);
    }
}
