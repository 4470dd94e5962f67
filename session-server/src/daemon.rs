//! The daemon: takes its name, accepts peers, beats, and stops on a signal without residue.

use crate::connection::serve;
use crate::decide::{ConnectionId, Event, Params};
use crate::door::{Access, Door, Incoming, Porch};
use crate::execute::Executor;
use crate::leases::Leases;
use crate::place::Place;
use crate::placement::Placement;
use crate::rdma;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use selvage_fabric::archive::ArchiveLimits;
use selvage_fabric::config::Config;
use selvage_fabric::control::stream::Closer;
use selvage_fabric::error::{Error, ErrorKind, Origin, Result};
use selvage_fabric::ident::{Incarnation, SessionId};
use selvage_fabric::lease::LeaseGeometry;
use selvage_fabric::limits::{BLOCK_UNIT_BYTES, CHUNK_BYTES_MIN, CONNECTIONS_MAX};
use std::io::ErrorKind as IoErrorKind;
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Bounds of the only timer's interval, which is a third of the silence that declares a server down: the
/// server's heartbeat, which nodes read, moves at each.
const TICK_MAX: Duration = Duration::from_millis(100);
const TICK_MIN: Duration = Duration::from_millis(10);
/// How long a stopping server waits for its connections' threads; they are few instructions from their end.
const STOP_WAIT: Duration = Duration::from_secs(2);
/// Pause after a connection could not be taken, so that a full descriptor table does not make a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// How long the porch stays full at least, as far as the accepting thread knows.
const FULL_PAUSE: Duration = Duration::from_millis(5);
/// Stack of a connection's thread. Thousands may exist, and none goes deep.
const STACK_BYTES: usize = 256 << 10;

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
    let door = Arc::new(Door { access: Access::new(config, name)?, porch: Porch::default() });
    let place = Place::take(config, name)?;
    selvage_fabric::kill_point!("start.server");
    let executor = Arc::new(executor(config, name)?);
    let incarnation = executor.incarnation();
    let control = place.hosts().and_then(|listener| listener.local_addr().ok());
    let control = control.map_or_else(String::new, |address| address.to_string());
    let socket = place.socket().display();
    let rdma = executor.rdma();
    tracing::info!(name, incarnation = incarnation.tag(), %socket, control, rdma, "serving");
    let tick = (config.timing.silence() / 3).clamp(TICK_MIN, TICK_MAX);
    let result = accept_until_signal(&place, &signals, &executor, &door, tick);
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

fn accept_until_signal(
    place: &Place,
    signals: &UnixStream,
    executor: &Arc<Executor>,
    door: &Arc<Door>,
    tick: Duration,
) -> Result<()> {
    let threads = Arc::new(AtomicUsize::new(0));
    let mut accepting = Accepting { executor, door, threads: &threads, connections: 0 };
    let mut beat = 0;
    let mut tick_at = Instant::now();
    loop {
        let now = Instant::now();
        if now >= tick_at {
            beat += 1;
            executor.tick(beat);
            tick_at = now + tick;
        }
        if door.porch.make_room(now) {
            tracing::warn!("cut a peer off that was slow to say who it is, for others to be heard");
            executor.handle(Event::BadPeer);
        }
        let hosts = place.hosts().filter(|_| door.porch.has_room());
        let wait = tick_at.saturating_duration_since(Instant::now());
        // Nobody tells when there is room again.
        let wait = if hosts.is_none() && place.hosts().is_some() { wait.min(FULL_PAUSE) } else { wait };
        let wait = Timespec { tv_sec: 0, tv_nsec: i64::from(wait.subsec_nanos()) };
        let mut ready =
            vec![PollFd::new(signals, PollFlags::IN), PollFd::new(place.listener(), PollFlags::IN)];
        ready.extend(hosts.map(|listener| PollFd::new(listener, PollFlags::IN)));
        match poll(&mut ready, Some(&wait)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(Error::os(Origin::Server, "cannot wait for peers", error)),
        }
        let is_ready = |at: usize| ready.get(at).is_some_and(|fd| !fd.revents().is_empty());
        if is_ready(0) {
            break;
        }
        if is_ready(1) {
            accepting.take(place.listener().accept().map(|(socket, _)| (Incoming::Unix(socket), None)));
        }
        if let Some(listener) = hosts.filter(|_| is_ready(2)) {
            let accepted = listener.accept();
            accepting.take(accepted.map(|(socket, peer)| (Incoming::Host(socket), Some(peer.ip()))));
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

/// What every connection gets.
struct Accepting<'a> {
    executor: &'a Arc<Executor>,
    door: &'a Arc<Door>,
    threads: &'a Arc<AtomicUsize>,
    connections: u64,
}

impl Accepting<'_> {
    /// Gives an accepted connection a thread; one from another host begins on the porch.
    fn take(&mut self, accepted: std::io::Result<(Incoming, Option<IpAddr>)>) {
        let (incoming, host) = match accepted {
            Ok(accepted) => accepted,
            Err(error) if error.kind() == IoErrorKind::WouldBlock => return,
            Err(error) => {
                tracing::warn!("cannot accept a connection: {error}");
                thread::sleep(ACCEPT_PAUSE);
                return;
            }
        };
        if self.threads.load(Ordering::Relaxed) >= CONNECTIONS_MAX {
            tracing::warn!(limit = CONNECTIONS_MAX, "refused a connection over the limit");
            self.executor.handle(Event::BadPeer);
            return;
        }
        self.connections += 1;
        let connection = ConnectionId(self.connections);
        if let Err(error) = self.spawn(connection, incoming, host) {
            self.door.porch.leave(connection);
            tracing::warn!("cannot serve a connection: {error}");
            thread::sleep(ACCEPT_PAUSE);
        }
    }

    fn spawn(&self, connection: ConnectionId, incoming: Incoming, host: Option<IpAddr>) -> Result<()> {
        if let Some(host) = host {
            self.door.porch.enter(connection, host, Closer::new(&incoming)?);
        }
        let count = ThreadCount::new(self.threads);
        let (executor, door) = (Arc::clone(self.executor), Arc::clone(self.door));
        let work = move || {
            serve(&executor, &door, connection, incoming);
            drop(count);
        };
        let spawned = thread::Builder::new().name("peer".into()).stack_size(STACK_BYTES).spawn(work);
        spawned.map(drop).map_err(|error| Error::os(Origin::Server, "cannot make a thread", error))
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
    tell_if_tight(config, &geometry);
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
    let rdma = rdma::of_this_build(config, name);
    let placement = match config.memory.numa {
        true => Placement::near(rdma.device().as_deref()),
        false => Placement::anywhere(),
    };
    // This thread begins all others.
    placement.pin_thread();
    let leases = Leases::new(geometry, config.memory.huge_pages, limits, placement, rdma);
    Ok(Executor::new(params, leases))
}

/// A node that dies leaves a lease that stays until its sessions have copies in others. Where these find no
/// room, they wait for each other.
fn tell_if_tight(config: &Config, geometry: &LeaseGeometry) {
    let (most, lease_bytes) = (config.memory.server_bytes_max, geometry.total_bytes());
    let (room, nodes) = (most / lease_bytes, config.nodes.len() as u64);
    if most > 0 && room < 2 * nodes {
        tracing::warn!(
            "server_bytes_max = {most} has room for {room} leases of {lease_bytes} bytes; {nodes} nodes that \
             come back at the same time need {}, and with fewer some get no copies here until this server is \
             restarted with more",
            2 * nodes
        );
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
