//! The node's lock file: POSIX record locks of one byte each, which the kernel releases when their process
//! dies.
//!
//! Byte 0: creation and attach. Byte 16 + s: process slot s lives. Beyond 2^30: the steward of one life of
//! the node each, so that a stopped steward keeps nobody from the role in the next life. The kernel drops the
//! locks after the last thread of a dying process has left user code, so a free byte proves that nobody
//! writes in its name any more.

use crate::error::{Error, ErrorKind, Origin, Result};
use rustix::fs::{Mode, OFlags};
use std::collections::BTreeSet;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

const CREATION_BYTE: u32 = 0;
const PROCESS_BYTE: u32 = 16;
/// First of the stewards' bytes.
const STEWARD_BYTES: u32 = 1 << 30;
/// Pause between two tries for the creation lock.
const CREATION_POLL: Duration = Duration::from_millis(1);

/// The node's lock file, opened once per process and never closed while attached: closing any descriptor of
/// it would drop all locks of the process. Locks are the process's; they are not inherited over fork.
#[derive(Debug)]
pub struct LockFile {
    file: OwnedFd,
    path: PathBuf,
    /// The bytes that this process has: the kernel does not tell a process about its own locks.
    own: Mutex<BTreeSet<u32>>,
}

/// The creation lock; released when dropped.
#[must_use]
pub struct CreationLock<'a> {
    file: &'a LockFile,
}

impl Drop for CreationLock<'_> {
    fn drop(&mut self) {
        // Unlocking a byte that this process has locked does not fail; if it did, the lock would end with the
        // process.
        let _ = self.file.release(CREATION_BYTE);
    }
}

impl LockFile {
    /// Opens (or creates, mode 0600) the file.
    ///
    /// # Errors
    /// `Os` with the path.
    pub fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR).map_err(|error| {
            Error::os(Origin::Cache, format!("cannot open the lock file {}", path.display()), error)
        })?;
        Ok(Self { file, path: path.to_owned(), own: Mutex::default() })
    }

    /// Takes byte 0, waiting at most so long, also for other threads of this process.
    ///
    /// # Errors
    /// `Timeout`, `Os`.
    pub fn lock_creation(&self, timeout: Duration) -> Result<CreationLock<'_>> {
        let deadline = Instant::now() + timeout;
        while !self.take(CREATION_BYTE)? {
            if Instant::now() >= deadline {
                return Err(Error::new(
                    ErrorKind::Timeout,
                    Origin::Cache,
                    format!(
                        "another process has held the creation lock {} for {} ms",
                        self.path.display(),
                        timeout.as_millis()
                    ),
                ));
            }
            std::thread::sleep(CREATION_POLL);
        }
        Ok(CreationLock { file: self })
    }

    /// Tries to become steward of this life of the node (its incarnation's number). True also if this process
    /// is that already.
    ///
    /// # Errors
    /// `Os`.
    pub fn try_steward(&self, life: u64) -> Result<bool> {
        let byte = steward_byte(life);
        Ok(self.owned().contains(&byte) || self.take(byte)?)
    }

    /// Gives the role of this life's steward up.
    ///
    /// # Errors
    /// `Os`.
    pub fn release_steward(&self, life: u64) -> Result<()> {
        self.release(steward_byte(life))
    }

    /// Takes byte 16 + slot; false if anybody has it, this process included.
    ///
    /// # Errors
    /// `Os`.
    pub fn try_process(&self, slot: u32) -> Result<bool> {
        self.take(PROCESS_BYTE + slot)
    }

    /// Gives the byte back.
    ///
    /// # Errors
    /// `Os`.
    pub fn release_process(&self, slot: u32) -> Result<()> {
        self.release(PROCESS_BYTE + slot)
    }

    /// Whether some process, this one included, has byte 16 + slot.
    ///
    /// # Errors
    /// `Os`.
    pub fn process_alive(&self, slot: u32) -> Result<bool> {
        let byte = PROCESS_BYTE + slot;
        if self.owned().contains(&byte) {
            return Ok(true);
        }
        let mut lock = record(libc::F_WRLCK, byte);
        self.fcntl(libc::F_GETLK, &mut lock).map_err(|error| self.os("cannot ask for a lock of", error))?;
        Ok(lock.l_type != libc::F_UNLCK as libc::c_short)
    }

    fn take(&self, byte: u32) -> Result<bool> {
        let mut own = self.owned();
        if own.contains(&byte) {
            return Ok(false);
        }
        match self.fcntl(libc::F_SETLK, &mut record(libc::F_WRLCK, byte)) {
            Ok(()) => {
                own.insert(byte);
                Ok(true)
            }
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
            Err(error) => Err(self.os("cannot lock", error)),
        }
    }

    fn release(&self, byte: u32) -> Result<()> {
        let mut own = self.owned();
        if own.remove(&byte) {
            self.fcntl(libc::F_SETLK, &mut record(libc::F_UNLCK, byte))
                .map_err(|error| self.os("cannot unlock", error))?;
        }
        Ok(())
    }

    fn owned(&self) -> MutexGuard<'_, BTreeSet<u32>> {
        // The set is whole after every statement, so a panic elsewhere cannot have broken it.
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn os(&self, what: &str, error: std::io::Error) -> Error {
        Error::os(Origin::Cache, format!("{what} {}", self.path.display()), error)
    }

    fn fcntl(&self, command: libc::c_int, lock: &mut libc::flock) -> std::io::Result<()> {
        // SAFETY: the descriptor is open as long as `self`, the commands used here (F_SETLK, F_GETLK) take a
        // pointer to one `flock`, and `lock` is one that lives over the call.
        let result = unsafe { libc::fcntl(self.file.as_raw_fd(), command, std::ptr::from_mut(lock)) };
        if result == -1 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// Two lives with the same byte would only wait for each other; they would have to be far apart, or of
/// unlucky terms.
fn steward_byte(life: u64) -> u32 {
    let mixed = life ^ (life >> 32);
    STEWARD_BYTES + (mixed as u32 & (STEWARD_BYTES - 1))
}

fn record(kind: libc::c_int, byte: u32) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: libc::off_t::from(byte),
        l_len: 1,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_takes_a_byte_once() {
        let dir = tempfile::tempdir().unwrap();
        let file = LockFile::open(&dir.path().join("lock")).unwrap();
        assert!(!file.process_alive(3).unwrap());
        assert!(file.try_process(3).unwrap());
        assert!(!file.try_process(3).unwrap());
        assert!(file.process_alive(3).unwrap());
        file.release_process(3).unwrap();
        assert!(!file.process_alive(3).unwrap());
        assert!(file.try_steward(7).unwrap());
        assert!(file.try_steward(7).unwrap());
        assert_ne!(steward_byte(7), steward_byte(8));
        assert_eq!(steward_byte(u64::MAX) & STEWARD_BYTES, STEWARD_BYTES);
        let creation = file.lock_creation(Duration::ZERO).unwrap();
        let error = file.lock_creation(Duration::from_millis(5)).err().unwrap();
        assert_eq!(error.kind, ErrorKind::Timeout);
        drop(creation);
        assert!(file.lock_creation(Duration::ZERO).is_ok());
    }
}
