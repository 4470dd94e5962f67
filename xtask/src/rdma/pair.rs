//! Two soft-RoCE devices on this host.

use anyhow::{Context, Result, ensure};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};

/// The pair, `rxe0` and `rxe1`; dropping it, or the end of this process in any way, takes it down.
pub struct Pair {
    child: Child,
    /// Its end is the sign to clean up.
    hold: Option<ChildStdin>,
}

impl Pair {
    /// Makes the pair.
    ///
    /// # Errors
    /// Why this host cannot have it.
    pub fn make() -> Result<Self> {
        let mut command = Command::new("bash");
        // In a group of its own: Ctrl-C must not keep it from cleaning up.
        command.arg("-c").arg(include_str!("pair.sh")).process_group(0);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("no bash")?;
        let hold = child.stdin.take();
        let mut said = String::new();
        BufReader::new(child.stdout.take().context("no pipe")?).read_line(&mut said)?;
        let pair = Self { child, hold };
        ensure!(said.trim() == "ready", "{}", said.trim());
        Ok(pair)
    }

    /// One line about it.
    pub fn description(&self) -> String {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        format!("this host, soft-RoCE of kernel {}", release.trim())
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        if let Some(mut hold) = self.hold.take() {
            let _ = hold.flush();
        }
        let _ = self.child.wait();
    }
}
