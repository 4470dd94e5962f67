//! Joining: into the living segment of the node if there is one, else as a new incarnation; and leaving.

use super::attachment::Attachment;
use super::clock::SystemClock;
use super::host::Host;
use super::servers::ControlServers;
use crate::cache::{Cache, CacheSpec};
use crate::control::message::{FromDirector, ToDirector};
use crate::control::stream::{Stream, refusal_error};
use crate::error::{Error, ErrorKind, Origin, Result};
use crate::ident::Incarnation;
use crate::view::View;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Longest wait for the creation lock; whoever has it waits for the director itself.
const CREATION_WAIT: Duration = Duration::from_millis(200);

/// A process that belongs to an incarnation.
pub(super) struct Joined {
    pub host: Arc<Host>,
    /// The connection on which the incarnation was given, if this process registered it.
    pub director: Option<Stream>,
}

/// Joins the node's living incarnation, or registers and begins a new one.
///
/// # Errors
/// What keeps it from joining now; try again later.
pub(super) fn join(attachment: &Attachment) -> Result<Joined> {
    let _creation = attachment.lock_file.lock_creation(CREATION_WAIT)?;
    if let Some(cache) = attach_living(attachment) {
        return Ok(Joined { host: Arc::new(host_of(attachment, cache)), director: None });
    }
    let config = &attachment.config;
    let segments = format!("{}{}", config.segment_prefix(), attachment.name);
    // No process of an older life is left, or its cache is poisoned by this: only then the director may be
    // asked (R3).
    kill_point!("start.locked");
    Cache::remove_stale(&segments, None)?;
    let (director, incarnation, view) = register(attachment)?;
    kill_point!("start.registered");
    let spec = CacheSpec::from_config(config, &attachment.name, incarnation);
    let name = CacheSpec::segment_name(config, &attachment.name, incarnation);
    let host = host_of(attachment, Cache::create(&spec, &name, attachment.lock_file.clone())?);
    host.publish(&view)?;
    kill_point!("start.created");
    write_current(attachment, &name)?;
    kill_point!("start.current");
    tracing::info!(node = attachment.name, incarnation = incarnation.tag(), "joined as a new incarnation");
    Ok(Joined { host: Arc::new(host), director: Some(director) })
}

fn host_of(attachment: &Attachment, cache: Cache) -> Host {
    let config = &attachment.config;
    let servers = ControlServers::new(config, Arc::clone(&attachment.ways), cache.incarnation());
    Host::new(cache, config.clone(), &attachment.name, Arc::new(SystemClock), Arc::new(servers))
}

/// The segment that `current` names, if another process of the node still lives in it.
fn attach_living(attachment: &Attachment) -> Option<Cache> {
    let name = std::fs::read_to_string(current_path(attachment)).ok()?;
    let cache = match Cache::attach(name.trim(), attachment.lock_file.clone()) {
        Ok(cache) => cache,
        Err(error) => {
            tracing::debug!(%error, "the node's last segment cannot be joined");
            return None;
        }
    };
    let us = cache.process();
    let living = cache.processes().iter().any(|process| process.id != us && process.alive);
    (living && !cache.is_poisoned()).then_some(cache)
}

/// Asks the director for a new incarnation.
fn register(attachment: &Attachment) -> Result<(Stream, Incarnation, View)> {
    let config = &attachment.config;
    let timeout = config.timing.silence();
    let mut stream = connect_director(attachment, Incarnation::NONE)?;
    stream.send(&ToDirector::Register, None, timeout)?;
    match stream.recv::<FromDirector>(timeout)?.0 {
        FromDirector::Registered { incarnation, view } => Ok((stream, incarnation, view)),
        FromDirector::Over { .. } => {
            let context = format!("node {} is drained; undrain it at the director", attachment.name);
            Err(Error::new(ErrorKind::NotYet, Origin::Node, context))
        }
        FromDirector::Refused(refusal) => Err(refusal_error(&refusal)),
        _ => {
            Err(Error::new(ErrorKind::Corrupt, Origin::Node, "the director did not answer the registration"))
        }
    }
}

/// A connection to the director, after the hello.
pub(super) fn connect_director(attachment: &Attachment, incarnation: Incarnation) -> Result<Stream> {
    attachment.ways.to_director(incarnation, attachment.config.timing.silence())
}

fn current_path(attachment: &Attachment) -> PathBuf {
    attachment.config.node_dir(&attachment.name).join("current")
}

fn write_current(attachment: &Attachment, name: &str) -> Result<()> {
    let path = current_path(attachment);
    let new = path.with_extension("new");
    std::fs::write(&new, name)
        .and_then(|()| std::fs::rename(&new, &path))
        .map_err(|error| Error::os(Origin::Node, format!("cannot write {}", path.display()), error))
}

/// Leaves: the last process out ends the incarnation and removes what it left on the host.
pub(super) fn leave(attachment: &Attachment, host: Arc<Host>) -> Result<()> {
    let _creation = attachment.lock_file.lock_creation(attachment.config.timing.silence())?;
    let ended = end_if_last(attachment, &host);
    // Still under the lock: who leaves next must not take this process for one that stays.
    drop(host);
    ended
}

fn end_if_last(attachment: &Attachment, host: &Host) -> Result<()> {
    let us = host.cache.process();
    let others = host.cache.processes().iter().any(|process| process.id != us && process.alive);
    if others {
        return Ok(());
    }
    host.cache.poison();
    kill_point!("leave.poisoned");
    let name = CacheSpec::segment_name(&attachment.config, &attachment.name, host.incarnation());
    Cache::unlink(&name)?;
    kill_point!("leave.unlinked");
    if std::fs::read_to_string(current_path(attachment)).is_ok_and(|current| current.trim() == name) {
        // Missing is fine: that is what is wanted.
        let _ = std::fs::remove_file(current_path(attachment));
    }
    Ok(())
}
