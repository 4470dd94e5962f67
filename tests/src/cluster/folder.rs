//! The run folder: everything that a cluster leaves on disk is in it, and whoever holds its lock owns the
//! cluster.

use super::process;
use anyhow::{Context, Result, bail, ensure};
use rustix::fs::FlockOperation;
use selvage_fabric::config::Config;
use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

const LOCK: &str = "launcher.lock";
const CONFIG: &str = "selvage.toml";

/// A run folder that this process owns.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    _lock: File,
}

impl Folder {
    /// Takes `path` as the run folder. What a crashed run left there is ended and removed first.
    ///
    /// # Errors
    /// A living launcher owns it; it is not a folder of this user; the system refuses.
    pub fn take(path: &Path) -> Result<Self> {
        for _ in 0..3 {
            match DirBuilder::new().mode(0o700).create(path) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                    return Err(error).with_context(|| format!("cannot make the folder {}", path.display()));
                }
                _ => {}
            }
            check_ours(path)?;
            let Ok(lock) = File::options().create(true).append(true).open(path.join(LOCK)) else { continue };
            if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
                let owner = fs::read_to_string(path.join(LOCK)).unwrap_or_default();
                let owner = owner.lines().last().unwrap_or("unknown");
                bail!("{} belongs to a cluster that is running (launcher's pid {owner})", path.display());
            }
            // Between opening and locking, another launcher may have removed the folder as a crashed run's.
            let same = fs::metadata(path.join(LOCK)).is_ok_and(|now| {
                lock.metadata().is_ok_and(|held| (held.dev(), held.ino()) == (now.dev(), now.ino()))
            });
            if !same {
                continue;
            }
            let folder = Self { path: path.to_owned(), _lock: lock };
            folder.empty()?;
            fs::write(path.join(LOCK), format!("{}\n", std::process::id()))?;
            for sub in ["logs", "pids"] {
                fs::create_dir(path.join(sub))?;
            }
            return Ok(folder);
        }
        bail!("{} comes and goes: is another launcher starting there?", path.display())
    }

    /// Removes what crashed launchers left in folders whose names start with `prefix`; living ones are left
    /// alone.
    pub fn sweep(parent: &Path, prefix: &str) {
        let Ok(entries) = fs::read_dir(parent) else { return };
        for entry in entries.flatten() {
            if entry.file_name().to_string_lossy().starts_with(prefix)
                && entry.path().join(CONFIG).exists()
                && let Ok(folder) = Self::take(&entry.path())
            {
                let _ = folder.remove();
            }
        }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The configuration file.
    pub fn config(&self) -> PathBuf {
        self.path.join(CONFIG)
    }

    /// The log of a member.
    pub fn log(&self, name: &str) -> PathBuf {
        self.path.join("logs").join(format!("{name}.log"))
    }

    /// The file that records a member's process.
    pub fn pid_record(&self, name: &str) -> PathBuf {
        self.path.join("pids").join(name)
    }

    /// Lets the group read and enter the folder: the web servers' processes have another user when we are
    /// root.
    ///
    /// # Errors
    /// The system refuses.
    pub fn share_with(&self, gid: u32) -> Result<()> {
        share(&self.path, gid, 0o750)?;
        share(&self.path.join("logs"), gid, 0o750)
    }

    /// Removes the folder and the shared memory of its cluster. Nothing of it may run any more.
    ///
    /// # Errors
    /// Something cannot be removed.
    pub fn remove(self) -> Result<()> {
        self.empty()?;
        fs::remove_file(self.path.join(LOCK))?;
        fs::remove_dir(&self.path)?;
        Ok(())
    }

    /// Ends recorded processes, removes shared memory and every file but the lock.
    fn empty(&self) -> Result<()> {
        process::kill_recorded(&self.path, &self.path.join("pids"));
        for segment in self.segments() {
            let _ = fs::remove_file(segment);
        }
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            if entry.file_name() == LOCK {
                continue;
            }
            let is_dir = entry.file_type()?.is_dir();
            let path = entry.path();
            if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }
                .with_context(|| format!("cannot remove {}", path.display()))?;
        }
        Ok(())
    }

    /// The shared-memory segments of the folder's cluster, as files.
    pub fn segments(&self) -> Vec<PathBuf> {
        Config::load(&self.config()).map(|config| segments(&config.segment_prefix())).unwrap_or_default()
    }
}

/// The shared-memory segments whose names start with `prefix`, as files.
pub fn segments(prefix: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir("/dev/shm") else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path())
        .collect()
}

/// Gives a file or folder to a group, with a mode.
pub fn share(path: &Path, gid: u32, mode: u32) -> Result<()> {
    std::os::unix::fs::chown(path, None, Some(gid))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    Ok(())
}

/// Refuses a folder that somebody else could have prepared: the temporary folder is open to all.
fn check_ours(path: &Path) -> Result<()> {
    let meta = fs::symlink_metadata(path)?;
    ensure!(
        meta.is_dir() && meta.uid() == rustix::process::geteuid().as_raw(),
        "{} is not a folder of this user: remove it, or choose another port",
        path.display()
    );
    ensure!(
        meta.mode() & 0o022 == 0,
        "{} can be written by others: remove it, or choose another port",
        path.display()
    );
    Ok(())
}
