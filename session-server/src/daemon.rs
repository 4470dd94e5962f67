//! The daemon: takes its name, accepts peers, beats, and stops on a signal without residue.

use crate::connection::serve;
use crate::decide::{ConnectionId, Event, Params};
use crate::execute::Executor;
use crate::leases::Leases;
use crate::place::Place;
use crate::rdma;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use selvage_fabric::archive::ArchiveLimits;
use selvage_fabric::config::Config;
use selvage_fabric::control::message::{Refusal, Role};
use selvage_fabric::error::{Error, ErrorKind, Origin, Result};
use selvage_fabric::ident::{Incarnation, SessionId};
use selvage_fabric::lease::LeaseGeometry;
use selvage_fabric::limits::{BLOCK_UNIT_BYTES, CHUNK_BYTES_MIN, CONNECTIONS_MAX};
use std::collections::HashMap;
use std::io::ErrorKind as IoErrorKind;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Interval of the only timer.
const TICK: Duration = Duration::from_millis(100);
/// How long a stopping server waits for its connections' threads; they are few instructions from their end.
const STOP_WAIT: Duration = Duration::from_secs(2);
/// Pause after a connection could not be taken, so that a full descriptor table does not make a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// Stack of a connection's thread. Thousands may exist, and none goes deep.
const STACK_BYTES: usize = 256 << 10;

/// Who may do what, by user.
pub(crate) struct Access {
    /// The cluster's name.
    pub(crate) cluster: String,
    own_uid: u32,
    operator_uids: Vec<u32>,
    node_uids: HashMap<String, Vec<u32>>,
}

/// Runs the session server of this name until SIGTERM or SIGINT.
///
/// # Errors
/// `Invalid` if the configuration does not fit, `Conflict` if the name is taken, `Os` if the system refuses.
pub fn run(config: &Config, name: &str) -> Result<()> {
    if config.server(name).is_none() {
        let names: Vec<&str> = config.servers.iter().map(|server| server.name.as_str()).collect();
        let why = format!(
            "{} has no [[server]] named \"{name}\": use one of {}, or add it",
            config.path.display(),
            names.join(", ")
        );
        return Err(Error::new(ErrorKind::Invalid, Origin::Server, why));
    }
    // Signals first: one that comes while the server starts must not leave a socket behind.
    let signals = signals()?;
    raise_descriptor_limit();
    let executor = Arc::new(executor(config, name)?);
    let access = Arc::new(access(config));
    let place = Place::take(config, name)?;
    let incarnation = executor.incarnation();
    tracing::info!(name, incarnation = incarnation.tag(), socket = %place.socket().display(), "serving");
    let result = accept_until_signal(&place, &signals, &executor, &access);
    drop(place);
    tracing::info!(name, "stopped");
    result
}

/// The process's exit status for an error of [`run`] or of loading the configuration.
pub fn exit_status(error: &Error) -> u8 {
    match error.kind {
        ErrorKind::Invalid => 2,
        ErrorKind::Conflict => 3,
        _ => 1,
    }
}

impl Access {
    /// Whether a user may come in this role.
    pub(crate) fn check(&self, role: &Role, uid: u32) -> Result<(), Refusal> {
        match role {
            Role::Director | Role::Operator => {
                if uid == 0 || uid == self.own_uid || self.operator_uids.contains(&uid) {
                    return Ok(());
                }
                Err(Refusal::Denied(format!(
                    "user {uid} is no operator: run as user {} or add the user to cluster.operator_uids",
                    self.own_uid
                )))
            }
            Role::Node { name, .. } => {
                let Some(uids) = self.node_uids.get(name) else {
                    return Err(Refusal::Denied(format!("no node \"{name}\" is configured")));
                };
                if uids.contains(&uid) || (uids.is_empty() && uid == self.own_uid) {
                    return Ok(());
                }
                Err(Refusal::Denied(format!(
                    "user {uid} may not act for node \"{name}\": add the user to uids of that node"
                )))
            }
        }
    }
}

fn accept_until_signal(
    place: &Place,
    signals: &UnixStream,
    executor: &Arc<Executor>,
    access: &Arc<Access>,
) -> Result<()> {
    let threads = Arc::new(AtomicUsize::new(0));
    let mut connections = 0;
    let mut beat = 0;
    let mut tick_at = Instant::now();
    loop {
        let now = Instant::now();
        if now >= tick_at {
            beat += 1;
            executor.tick(beat);
            tick_at = now + TICK;
        }
        let wait = tick_at.saturating_duration_since(Instant::now());
        let wait = Timespec { tv_sec: 0, tv_nsec: i64::from(wait.subsec_nanos()) };
        let mut ready = [PollFd::new(signals, PollFlags::IN), PollFd::new(place.listener(), PollFlags::IN)];
        match poll(&mut ready, Some(&wait)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(Error::os(Origin::Server, "cannot wait for peers", error)),
        }
        let [signalled, incoming] = ready.map(|fd| !fd.revents().is_empty());
        if signalled {
            break;
        }
        if incoming {
            connections += 1;
            accept(place, executor, access, &threads, ConnectionId(connections));
        }
    }
    executor.cut_all();
    let give_up_at = Instant::now() + STOP_WAIT;
    while threads.load(Ordering::Acquire) > 0 && Instant::now() < give_up_at {
        // A thread that was in its first instructions at the first cut is met by a later one.
        executor.cut_all();
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn accept(
    place: &Place,
    executor: &Arc<Executor>,
    access: &Arc<Access>,
    threads: &Arc<AtomicUsize>,
    connection: ConnectionId,
) {
    let socket = match place.listener().accept() {
        Ok((socket, _)) => socket,
        Err(error) if error.kind() == IoErrorKind::WouldBlock => return,
        Err(error) => {
            tracing::warn!("cannot accept a connection: {error}");
            thread::sleep(ACCEPT_PAUSE);
            return;
        }
    };
    if threads.load(Ordering::Relaxed) >= CONNECTIONS_MAX {
        tracing::warn!(limit = CONNECTIONS_MAX, "refused a connection over the limit");
        executor.handle(Event::BadPeer);
        return;
    }
    let count = ThreadCount::new(threads);
    let (executor, access) = (Arc::clone(executor), Arc::clone(access));
    let spawned = thread::Builder::new().name("peer".into()).stack_size(STACK_BYTES).spawn(move || {
        serve(&executor, &access, connection, socket);
        drop(count);
    });
    if let Err(error) = spawned {
        tracing::warn!("cannot serve a connection: {error}");
        thread::sleep(ACCEPT_PAUSE);
    }
}

/// Counts a thread while it lives, and also if it panics.
struct ThreadCount(Arc<AtomicUsize>);

impl ThreadCount {
    fn new(threads: &Arc<AtomicUsize>) -> Self {
        threads.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(threads))
    }
}

impl Drop for ThreadCount {
    fn drop(&mut self) {
        // Release: pairs with the Acquire of the stopping main thread.
        self.0.fetch_sub(1, Ordering::Release);
    }
}

fn executor(config: &Config, name: &str) -> Result<Executor> {
    let chunk_bytes = chunk_bytes(config.session.archive_bytes_max) as u64;
    let geometry = LeaseGeometry {
        slot_count: config.memory.sessions_max,
        heap_bytes: config.memory.lease_bytes / chunk_bytes * chunk_bytes,
        chunk_bytes,
    };
    geometry.check()?;
    let params = Params {
        name: name.into(),
        incarnation: new_incarnation()?,
        pid: std::process::id(),
        slot_count: geometry.slot_count,
        heap_bytes: geometry.heap_bytes,
        lease_bytes: geometry.total_bytes(),
        bytes_max: config.memory.server_bytes_max,
        clock_skew_ms: config.session.clock_skew_ms,
    };
    let limits =
        ArchiveLimits { archive_bytes_max: config.session.archive_bytes_max, ..ArchiveLimits::default() };
    let leases = Leases::new(geometry, config.memory.huge_pages, limits, rdma::of_this_build(config));
    Ok(Executor::new(params, leases))
}

fn access(config: &Config) -> Access {
    Access {
        cluster: config.cluster.name.clone(),
        own_uid: rustix::process::geteuid().as_raw(),
        operator_uids: config.cluster.operator_uids.clone(),
        node_uids: config.nodes.iter().map(|node| (node.name.clone(), node.uids.clone())).collect(),
    }
}

/// A chunk holds the largest archive's block, whose size class is a quarter of a doubling at most above it.
fn chunk_bytes(archive_bytes_max: usize) -> usize {
    let doubling = archive_bytes_max.next_power_of_two() / 2;
    let step = (doubling / 4).max(BLOCK_UNIT_BYTES);
    archive_bytes_max.next_multiple_of(step).max(CHUNK_BYTES_MIN)
}

/// A life that never comes back: the second of its start, and 32 random bits for starts within one second.
fn new_incarnation() -> Result<Incarnation> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let random = SessionId::random()?.hash64() & 0xffff_ffff;
    Ok(Incarnation((seconds << 32) | random | 1))
}

/// A socket that becomes readable at SIGTERM or SIGINT.
fn signals() -> Result<UnixStream> {
    let failed = |error| Error::os(Origin::Server, "cannot listen for signals", error);
    let (reader, writer) = UnixStream::pair().map_err(failed)?;
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        let writer = writer.try_clone().map_err(failed)?;
        signal_hook::low_level::pipe::register(signal, writer).map_err(failed)?;
    }
    Ok(reader)
}

/// Every connection is up to three descriptors; the usual soft limit of 1,024 is for programs that use
/// `select`.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!("cannot raise the limit of open files: {error}");
    }
}
