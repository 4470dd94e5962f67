//! Carries out what the state machine decides: memory, answers, processes. Callers: every connection's thread
//! and the timer.
//!
//! Invariant: the state's lock is held only for a step; leases are made, scanned, read and freed outside it,
//! by the thread whose event asked for it, so that a lease of a gigabyte keeps nobody else waiting.

use crate::decide::{ConnectionId, Effect, Event, LeaseNumber, Params, Server};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use selvage_fabric::archive::ArchiveLimits;
use selvage_fabric::control::message::{FetchedArchive, FromServer, ServerReport};
use selvage_fabric::control::stream::Closer;
use selvage_fabric::error::{Error, ErrorKind, Origin};
use selvage_fabric::ident::Incarnation;
use selvage_fabric::lease::{
    BadCells, LAYOUT_VERSION, LeaseGeometry, LeaseHeader, LeaseIndex, ScanReport, SessionCopy,
};
use selvage_fabric::limits::FETCH_BATCH_BYTES;
use selvage_fabric::transport::memory::{self, ServerLease};
use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// What a connection's thread is to send.
pub(crate) enum Answer {
    /// A message.
    Message(FromServer),
    /// A message with the lease's descriptor.
    Lease(FromServer, Arc<ServerLease>),
    /// Nothing more: end the connection.
    Cut,
}

/// How to reach a connection's thread.
struct Outbox {
    answers: Sender<Answer>,
    closer: Closer,
}

/// A process of a node, held by its pidfd so that its number cannot come to mean another one (R4).
struct Watched {
    pidfd: OwnedFd,
    /// It has no connection any more; tell when it is gone.
    lingers: bool,
}

/// The state and everything that effects act on.
pub(crate) struct Executor {
    server: Mutex<Server>,
    leases: Mutex<HashMap<LeaseNumber, Arc<ServerLease>>>,
    outboxes: Mutex<HashMap<ConnectionId, Outbox>>,
    processes: Mutex<HashMap<(Incarnation, u32), Watched>>,
    geometry: LeaseGeometry,
    huge_pages: bool,
    archive_limits: ArchiveLimits,
}

impl Executor {
    pub(crate) fn new(
        params: Params,
        geometry: LeaseGeometry,
        huge_pages: bool,
        archive_limits: ArchiveLimits,
    ) -> Self {
        Self {
            server: Mutex::new(Server::new(params)),
            leases: Mutex::default(),
            outboxes: Mutex::default(),
            processes: Mutex::default(),
            geometry,
            huge_pages,
            archive_limits,
        }
    }

    /// The server's present life.
    pub(crate) fn incarnation(&self) -> Incarnation {
        lock(&self.server).incarnation()
    }

    /// Takes an event and carries out everything that follows from it.
    pub(crate) fn handle(&self, event: Event) {
        let mut effects = VecDeque::from(self.step(event));
        while let Some(effect) = effects.pop_front() {
            if let Some(event) = self.execute(effect) {
                effects.extend(self.step(event));
            }
        }
    }

    /// Registers a connection's thread, so that it can be answered and cut off.
    pub(crate) fn connect(&self, connection: ConnectionId, answers: Sender<Answer>, closer: Closer) {
        lock(&self.outboxes).insert(connection, Outbox { answers, closer });
    }

    /// Forgets a connection.
    pub(crate) fn disconnect(&self, connection: ConnectionId) {
        lock(&self.outboxes).remove(&connection);
    }

    /// The timer: heartbeats for the nodes to see, processes that are gone, expired sessions.
    pub(crate) fn tick(&self, beat: u64) {
        for lease in lock(&self.leases).values() {
            lease.beat(beat);
        }
        let gone: Vec<(Incarnation, u32)> = lock(&self.processes)
            .iter()
            .filter(|(_, watched)| watched.lingers && is_gone(&watched.pidfd))
            .map(|(key, _)| *key)
            .collect();
        for (incarnation, pid) in gone {
            lock(&self.processes).remove(&(incarnation, pid));
            self.handle(Event::ProcessGone { incarnation, pid });
        }
        self.handle(Event::Tick);
    }

    /// Ends every connection; their threads end by themselves.
    pub(crate) fn cut_all(&self) {
        for (_, outbox) in lock(&self.outboxes).drain() {
            outbox.closer.close();
        }
    }

    fn step(&self, event: Event) -> Vec<Effect> {
        let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        lock(&self.server).step(event, now_ms)
    }

    fn execute(&self, effect: Effect) -> Option<Event> {
        match effect {
            Effect::Reply { connection, mut message } => {
                if let FromServer::Report(report) = &mut message {
                    self.add_session_counts(report);
                }
                self.answer(connection, Answer::Message(message));
                None
            }
            Effect::SendLease { connection, incarnation, pid, lease, server } => {
                self.hold_process(incarnation, pid);
                self.send_lease(connection, lease, server);
                None
            }
            Effect::Cut { connection } => {
                if let Some(outbox) = lock(&self.outboxes).get(&connection) {
                    // The thread may wait for its answer or for a request: the one ends it as well as the
                    // other. What it still has to send goes out first. It fails only if the thread has ended.
                    let _ = outbox.answers.send(Answer::Cut);
                    outbox.closer.close_receiving();
                }
                None
            }
            Effect::MakeLease { lease, node, incarnation, server } => {
                let result = self.make_lease(lease, node, incarnation, server);
                Some(Event::LeaseMade { lease, result })
            }
            Effect::Seal { lease } => Some(self.seal(lease)),
            Effect::Release { lease, index } => {
                // Two statements, so that the memory is freed after the lock is let go.
                let memory = lock(&self.leases).remove(&lease);
                drop((memory, index));
                None
            }
            Effect::Fetch { connection, copies, answered } => {
                Some(Event::Fetched { connection, archives: self.fetch(&copies, answered) })
            }
            Effect::WatchProcess { incarnation, pid } => {
                match lock(&self.processes).get_mut(&(incarnation, pid)) {
                    Some(watched) => {
                        watched.lingers = true;
                        None
                    }
                    None => Some(Event::ProcessGone { incarnation, pid }),
                }
            }
            Effect::ForgetProcess { incarnation, pid } => {
                lock(&self.processes).remove(&(incarnation, pid));
                None
            }
        }
    }

    /// Holds a process that is about to be given a lease. Its connection is open, so its number still means
    /// it.
    fn hold_process(&self, incarnation: Incarnation, pid: u32) {
        let known = i32::try_from(pid).ok().and_then(Pid::from_raw);
        // Without a descriptor the process counts as gone with its last connection, which is all that can be
        // known.
        if let Some(Ok(pidfd)) = known.map(|pid| pidfd_open(pid, PidfdFlags::empty())) {
            lock(&self.processes).insert((incarnation, pid), Watched { pidfd, lingers: false });
        }
    }

    fn answer(&self, connection: ConnectionId, answer: Answer) {
        if let Some(outbox) = lock(&self.outboxes).get(&connection) {
            // Fails only if the thread has ended: then nobody waits for the answer.
            let _ = outbox.answers.send(answer);
        }
    }

    fn send_lease(&self, connection: ConnectionId, lease: LeaseNumber, server: Incarnation) {
        let Some(memory) = lock(&self.leases).get(&lease).cloned() else {
            // Released since it was decided: the node will be told that it is over when it asks again.
            self.answer(connection, Answer::Cut);
            return;
        };
        let message = FromServer::Lease {
            lease: lease.0,
            server,
            layout: LAYOUT_VERSION,
            slot_count: self.geometry.slot_count,
            heap_bytes: self.geometry.heap_bytes,
        };
        self.answer(connection, Answer::Lease(message, memory));
    }

    fn make_lease(
        &self,
        lease: LeaseNumber,
        node: String,
        node_incarnation: Incarnation,
        server_incarnation: Incarnation,
    ) -> Result<(), Error> {
        let started = Instant::now();
        let header = LeaseHeader { geometry: self.geometry, node, node_incarnation, server_incarnation };
        let memory = memory::create(&header, self.huge_pages).inspect_err(|error| {
            tracing::error!(node = header.node, "cannot make a lease: {error}");
        })?;
        tracing::info!(
            node = header.node,
            incarnation = node_incarnation.tag(),
            bytes = memory.bytes(),
            took_ms = started.elapsed().as_millis() as u64,
            huge_pages_refused = memory.huge_pages_refused(),
            "made a lease"
        );
        lock(&self.leases).insert(lease, Arc::new(memory));
        Ok(())
    }

    fn seal(&self, lease: LeaseNumber) -> Event {
        let started = Instant::now();
        let memory = lock(&self.leases).get(&lease).cloned();
        let indexed = match &memory {
            Some(memory) => {
                memory.seal();
                memory.index(&self.archive_limits)
            }
            None => Err(Error::new(ErrorKind::Gone, Origin::Server, "the lease has no memory")),
        };
        let (index, bad) = indexed.unwrap_or_else(|error| {
            tracing::error!(lease = lease.0, "cannot read a sealed lease: {error}");
            (LeaseIndex::new(&ScanReport::default()), BadCells::default())
        });
        let cells_bad = bad.checksum + bad.meaning + bad.misplaced + bad.bounds + bad.archive;
        if let Some(memory) = memory {
            tracing::info!(
                node = memory.header().node,
                incarnation = memory.header().node_incarnation.tag(),
                sessions = index.live(),
                cells_bad,
                took_ms = started.elapsed().as_millis() as u64,
                "sealed and indexed a lease"
            );
        }
        Event::Sealed { lease, index, cells_bad }
    }

    /// Reads archives until a reply is full; the caller asks again for the rest.
    fn fetch(
        &self,
        copies: &[(LeaseNumber, SessionCopy)],
        mut archives: Vec<FetchedArchive>,
    ) -> Vec<FetchedArchive> {
        let mut bytes = 0;
        for (lease, copy) in copies {
            let memory = lock(&self.leases).get(lease).cloned();
            let result = match memory {
                Some(memory) => memory.fetch(copy, &self.archive_limits),
                None => Err(Error::new(ErrorKind::Gone, Origin::Server, "its lease is released")),
            };
            let (archive, error) = match result {
                Ok(archive) => (archive, None),
                Err(error) => {
                    tracing::warn!(session = %copy.id, lease = lease.0, "cannot serve a copy: {error}");
                    (Vec::new(), Some(error.to_string()))
                }
            };
            bytes += archive.len();
            let SessionCopy { id, version, expiry_ms, .. } = *copy;
            archives.push(FetchedArchive { id, version, expiry_ms, archive, error });
            if bytes >= FETCH_BATCH_BYTES {
                break;
            }
        }
        archives
    }

    /// Adds what the nodes say of their open leases, for display.
    fn add_session_counts(&self, report: &mut ServerReport) {
        for memory in lock(&self.leases).values() {
            let incarnation = memory.header().node_incarnation;
            let open =
                report.leases.iter_mut().find(|lease| !lease.sealed && lease.incarnation == incarnation);
            if let Some(lease) = open {
                lease.sessions = memory.node_sessions();
            }
        }
    }
}

/// Locks. A thread that panicked in a step has been reported; the others go on.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a process has ended: its pidfd is readable then.
fn is_gone(pidfd: &OwnedFd) -> bool {
    let mut ready = [PollFd::new(pidfd, PollFlags::IN)];
    poll(&mut ready, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|count| count > 0)
}
