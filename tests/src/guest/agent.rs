//! A test's side of an agent.

use super::wire::{self, Ask, Output, Start, Tell};
use super::{address, agent_address};
use anyhow::{Context, Result, bail};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// Time to reach an agent, and to get an answer beyond what the request itself may take.
const ANSWER_MAX: Duration = Duration::from_secs(20);
const CONNECT_MAX: Duration = Duration::from_secs(2);

/// The agent of one guest. It holds no connection: every request makes one, so that a guest that was killed
/// and started again is reached through the same value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agent {
    guest: u8,
    at: SocketAddr,
}

impl Agent {
    /// The agent of this guest; guest 0 has one, too.
    pub fn of(guest: u8) -> Self {
        Self { guest, at: agent_address(guest).into() }
    }

    #[cfg(test)]
    pub(super) fn at(at: SocketAddr) -> Self {
        Self { guest: 0, at }
    }

    /// The guest's number.
    pub fn guest(&self) -> u8 {
        self.guest
    }

    /// The guest's address, which is that of its soft-RoCE device, too.
    pub fn address(&self) -> Ipv4Addr {
        address(self.guest)
    }

    /// Waits until the guest is up.
    ///
    /// # Errors
    /// It is not, after `limit`.
    pub fn ready(&self, limit: Duration) -> Result<()> {
        let began = Instant::now();
        loop {
            match TcpStream::connect_timeout(&self.at, CONNECT_MAX) {
                Ok(_) => return Ok(()),
                Err(error) if began.elapsed() > limit => {
                    return Err(error).with_context(|| format!("guest {} is not up", self.guest));
                }
                Err(_) => thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// Writes a file, and makes the folders above it.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn put_file(&self, path: impl AsRef<Path>, bytes: &[u8], mode: u32) -> Result<()> {
        let ask = Ask::Put { path: path.as_ref().to_owned(), mode, owner: None };
        self.ask(&ask, bytes, Duration::ZERO).map(drop)
    }

    /// Writes a file that belongs to this user and group.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn put_file_of(
        &self,
        path: impl AsRef<Path>,
        bytes: &[u8],
        mode: u32,
        (uid, gid): (u32, u32),
    ) -> Result<()> {
        let ask = Ask::Put { path: path.as_ref().to_owned(), mode, owner: Some((uid, gid)) };
        self.ask(&ask, bytes, Duration::ZERO).map(drop)
    }

    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn file(&self, path: impl AsRef<Path>) -> Result<Vec<u8>> {
        let ask = Ask::Get { path: path.as_ref().to_owned() };
        Ok(self.ask(&ask, &[], Duration::ZERO)?.1)
    }

    /// Starts a process that goes on by itself, as the leader of a new process group.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(&self, start: &Start) -> Result<i32> {
        match self.ask(&Ask::Spawn(start.clone()), &[], Duration::ZERO)?.0 {
            Tell::Process(pid) => Ok(pid),
            other => bail!("guest {} answered {other:?}", self.guest),
        }
    }

    /// Runs a program to its end.
    ///
    /// # Errors
    /// It cannot be started, or has not ended after `limit`.
    pub fn run(&self, start: &Start, limit: Duration) -> Result<Output> {
        let ask = Ask::Run { start: start.clone(), limit_ms: milliseconds(limit) };
        match self.ask(&ask, &[], limit)?.0 {
            Tell::Output(output) => Ok(output),
            other => bail!("guest {} answered {other:?}", self.guest),
        }
    }

    /// Runs a line of shell that must succeed, and answers with what it wrote: for `tc`, `ip link` and such.
    ///
    /// # Errors
    /// It fails, or takes longer than 20 s.
    pub fn shell(&self, line: &str) -> Result<String> {
        let output = self.run(&Start::new("bash").arg("-c").arg(line), ANSWER_MAX)?;
        if output.code != 0 {
            bail!("guest {}: {line}: status {}: {}{}", self.guest, output.code, output.stdout, output.stderr);
        }
        Ok(output.stdout)
    }

    /// Kills a spawned process and its group, as `kill -9` does. That it is gone already is no error.
    ///
    /// # Errors
    /// The guest does not answer.
    pub fn kill(&self, pid: i32) -> Result<()> {
        self.signal(pid, rustix::process::Signal::KILL.as_raw())
    }

    /// Sends a signal to a spawned process and its group.
    ///
    /// # Errors
    /// The guest does not answer, or there is no such signal.
    pub fn signal(&self, pid: i32, signal: i32) -> Result<()> {
        self.ask(&Ask::Signal { pid, signal }, &[], Duration::ZERO).map(drop)
    }

    /// Waits for a spawned process: its status (128 and the signal, if one ended it), or none after `limit`.
    ///
    /// # Errors
    /// The guest does not answer, or has not spawned it.
    pub fn wait(&self, pid: i32, limit: Duration) -> Result<Option<i32>> {
        match self.ask(&Ask::Wait { pid, limit_ms: milliseconds(limit) }, &[], limit)?.0 {
            Tell::End(status) => Ok(status),
            other => bail!("guest {} answered {other:?}", self.guest),
        }
    }

    fn ask(&self, ask: &Ask, bytes: &[u8], takes: Duration) -> Result<(Tell, Vec<u8>)> {
        let answer = self.converse(ask, bytes, takes);
        let (tell, bytes) = answer.with_context(|| format!("guest {} does not answer", self.guest))?;
        match tell {
            Tell::Failed(why) => bail!("guest {}: {why}", self.guest),
            tell => Ok((tell, bytes)),
        }
    }

    fn converse(&self, ask: &Ask, bytes: &[u8], takes: Duration) -> Result<(Tell, Vec<u8>)> {
        let stream = TcpStream::connect_timeout(&self.at, CONNECT_MAX)?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(ANSWER_MAX))?;
        stream.set_read_timeout(Some(takes + ANSWER_MAX))?;
        wire::send(&stream, ask, bytes)?;
        wire::receive(&stream)?.context("it broke off")
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
