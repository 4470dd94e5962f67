//! [`Attachment`]: one process's membership in its node, over all incarnations.
//!
//! A process opens its node's lock file once and never closes it while attached, so attaching twice gives the
//! same attachment; the registry here finds it. The agent thread joins, keeps joining after the end of an
//! incarnation, and leaves.

use super::AttachOptions;
use super::agent;
use super::host::Host;
use super::operations::Operations;
use super::process_mark::process_mark;
use super::ways::Ways;
use crate::config::Config;
use crate::error::{Error, ErrorKind, Origin, Result};
use crate::sync::LockFile;
use arc_swap::ArcSwapOption;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// One process's membership in its node.
pub(super) struct Attachment {
    /// The process that attached.
    pub mark: u32,
    pub config: Arc<Config>,
    pub name: String,
    pub lock_file: Arc<LockFile>,
    pub operations: Operations,
    /// To director and servers.
    pub ways: Arc<Ways>,
    /// The incarnation that the process belongs to now.
    host: ArcSwapOption<Host>,
    /// Why joining did not work the last time.
    trouble: Mutex<Option<Error>>,
    changed: Condvar,
    /// Wakes the agent while it is steward.
    bell: Mutex<Option<Bell>>,
    stop: AtomicBool,
}

/// Wakes somebody. Never blocks.
type Bell = Box<dyn Fn() + Send>;

/// Owns the threads of an attachment: dropping it leaves the node.
pub(super) struct Handle {
    pub attachment: Arc<Attachment>,
    agent: Mutex<Option<JoinHandle<()>>>,
}

/// The attachments of this process, by their lock files.
static REGISTRY: Mutex<Vec<(PathBuf, Weak<Handle>)>> = Mutex::new(Vec::new());

/// Attaches, or finds the attachment that there is.
pub(super) fn attach(
    config_path: Option<&Path>,
    node_name: Option<&str>,
    options: AttachOptions,
) -> Result<Arc<Handle>> {
    let config = Arc::new(Config::load(&Config::resolve_path(config_path))?);
    let name = resolve_name(&config, node_name)?;
    let lock_path = config.node_dir(&name).join("lock");
    let handle = {
        let mut registry = REGISTRY.lock().unwrap_or_else(PoisonError::into_inner);
        registry.retain(|(_, handle)| handle.upgrade().is_some_and(|handle| !handle.attachment.is_forked()));
        match registry.iter().find(|(path, _)| *path == lock_path).and_then(|(_, handle)| handle.upgrade()) {
            Some(handle) => handle,
            None => {
                let handle = Arc::new(Handle::new(config, name, &lock_path)?);
                registry.push((lock_path, Arc::downgrade(&handle)));
                handle
            }
        }
    };
    if !options.wait.is_zero() {
        handle.attachment.wait_ready(Instant::now() + options.wait)?;
    }
    Ok(handle)
}

fn resolve_name(config: &Config, node_name: Option<&str>) -> Result<String> {
    let from_environment = || std::env::var("SELVAGE_NODE").ok().filter(|name| !name.is_empty());
    let name = match node_name.map(str::to_owned).or_else(from_environment) {
        Some(name) => name,
        None if config.nodes.len() == 1 => config.nodes[0].name.clone(),
        None => {
            let context = format!(
                "{}: which of {} nodes is this? Give a node name or set SELVAGE_NODE",
                config.path.display(),
                config.nodes.len()
            );
            return Err(Error::new(ErrorKind::Invalid, Origin::Node, context));
        }
    };
    if config.node(&name).is_none() {
        let context = format!("{}: there is no [[node]] named \"{name}\"", config.path.display());
        return Err(Error::new(ErrorKind::Invalid, Origin::Node, context));
    }
    Ok(name)
}

impl Handle {
    fn new(config: Arc<Config>, name: String, lock_path: &Path) -> Result<Self> {
        make_node_dir(&config.node_dir(&name))?;
        let attachment = Arc::new(Attachment {
            mark: process_mark(),
            lock_file: Arc::new(LockFile::open(lock_path)?),
            operations: Operations::new()?,
            ways: Arc::new(Ways::new(Arc::clone(&config), &name)),
            config,
            name,
            host: ArcSwapOption::empty(),
            trouble: Mutex::new(None),
            changed: Condvar::new(),
            bell: Mutex::new(None),
            stop: AtomicBool::new(false),
        });
        let for_agent = attachment.clone();
        let agent = std::thread::Builder::new()
            .name("selvage-agent".into())
            .spawn(move || agent::run(&for_agent))
            .map_err(|error| Error::os(Origin::Node, "cannot start the agent thread", error))?;
        Ok(Self { attachment, agent: Mutex::new(Some(agent)) })
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if self.attachment.is_forked() {
            // The threads, the locks and the place in the segment are the parent's.
            return;
        }
        self.attachment.operations.stop();
        self.attachment.stop.store(true, Ordering::Release);
        self.attachment.changed.notify_all();
        let agent = self.agent.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        // A panic of the agent has nothing to add here.
        let _ = agent.map(JoinHandle::join);
    }
}

/// The director makes the folder; without it the first process does, if it may.
fn make_node_dir(path: &Path) -> Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => Ok(()),
        Err(_) if path.is_dir() => Ok(()),
        Err(error) => {
            let context = format!(
                "cannot make the node's folder {}; the director makes it at its start",
                path.display()
            );
            Err(Error::os(Origin::Node, context, error))
        }
    }
}

impl Attachment {
    /// Whether this is another process than the one that attached.
    pub fn is_forked(&self) -> bool {
        process_mark() != self.mark
    }

    /// Fails in a forked child.
    pub fn check_process(&self) -> Result<()> {
        if self.is_forked() {
            let context = "this handle was inherited over fork; attach again in the child";
            return Err(Error::new(ErrorKind::Forked, Origin::Node, context));
        }
        Ok(())
    }

    /// The present incarnation, if the process belongs to one.
    pub fn host(&self) -> Option<Arc<Host>> {
        self.host.load_full().filter(|host| !host.cache.is_poisoned())
    }

    /// The present incarnation, waiting for the join until `deadline`.
    pub fn wait_host(&self, deadline: Instant) -> Result<Arc<Host>> {
        let mut trouble = self.lock_trouble();
        loop {
            if let Some(host) = self.host() {
                return Ok(host);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.is_stopping() {
                let why = trouble.as_ref().map_or_else(String::new, |error| format!(": {error}"));
                let context = format!("node {} has not joined the cluster yet{why}", self.name);
                return Err(Error::new(ErrorKind::Timeout, Origin::Node, context));
            }
            let waited = self.changed.wait_timeout(trouble, left.min(Duration::from_millis(20)));
            trouble = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until the node is part of the cluster: joined, and with a mandate.
    fn wait_ready(&self, deadline: Instant) -> Result<()> {
        loop {
            let host = self.wait_host(deadline)?;
            if host.wait_plan(deadline, |_| host.cache.mandate_until_ns() != 0) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let context = format!("node {} has joined, but its steward got no mandate yet", self.name);
                return Err(Error::new(ErrorKind::Timeout, Origin::Node, context));
            }
        }
    }

    /// The process now belongs to this incarnation, or to none.
    pub fn set_host(&self, host: Option<Arc<Host>>) {
        self.host.store(host);
        *self.lock_trouble() = None;
        self.changed.notify_all();
    }

    /// Remembers why joining does not work.
    pub fn set_trouble(&self, error: Error) {
        *self.lock_trouble() = Some(error);
        self.changed.notify_all();
    }

    /// Whether the process is leaving.
    pub fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// The flag behind [`Self::is_stopping`], for background work.
    pub fn stop_flag(&self) -> &AtomicBool {
        &self.stop
    }

    /// Sleeps, at most so long; ends early when the process is leaving.
    pub fn pause(&self, time: Duration) {
        let trouble = self.lock_trouble();
        if !self.is_stopping() {
            drop(self.changed.wait_timeout(trouble, time));
        }
    }

    /// Wakes the agent, whatever it does: a link was lost.
    pub fn ring(&self) {
        self.changed.notify_all();
        if let Some(bell) = &*self.bell.lock().unwrap_or_else(PoisonError::into_inner) {
            bell();
        }
    }

    /// What wakes the agent beside the end of a pause.
    pub fn set_bell(&self, bell: Option<Bell>) {
        *self.bell.lock().unwrap_or_else(PoisonError::into_inner) = bell;
    }

    fn lock_trouble(&self) -> MutexGuard<'_, Option<Error>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
