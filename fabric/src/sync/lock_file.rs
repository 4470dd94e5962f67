//! The node's lock file: POSIX record locks of one byte each, which the kernel releases when their process dies.

#![allow(unused_variables, dead_code, clippy::unimplemented)]

use crate::error::Result;
use std::path::Path;
use std::time::Duration;

/// The node's lock file, opened once per process and never closed while attached: closing any descriptor of it would
/// drop all locks of the process. Locks are the process's; they are not inherited over fork.
#[derive(Debug)]
pub struct LockFile {}

/// The creation lock; released when dropped. Not exclusive between threads of one process.
pub struct CreationLock<'a> {
    file: &'a LockFile,
}

impl LockFile {
    /// Opens (or creates, mode 0600) the file.
    pub fn open(path: &Path) -> Result<Self> {
        unimplemented!()
    }
    /// Takes byte 0, waiting at most so long; `Timeout` otherwise.
    pub fn lock_creation(&self, timeout: Duration) -> Result<CreationLock<'_>> {
        unimplemented!()
    }
    /// Tries to become steward (byte 1). True also if this process is steward already.
    pub fn try_steward(&self) -> Result<bool> {
        unimplemented!()
    }
    /// Gives the role of steward up.
    pub fn release_steward(&self) -> Result<()> {
        unimplemented!()
    }
    /// Takes byte 16 + slot; false if another process has it.
    pub fn try_process(&self, slot: u32) -> Result<bool> {
        unimplemented!()
    }
    /// Gives the byte back.
    pub fn release_process(&self, slot: u32) -> Result<()> {
        unimplemented!()
    }
    /// Whether another process has byte 16 + slot.
    pub fn process_alive(&self, slot: u32) -> Result<bool> {
        unimplemented!()
    }
}
