//! Carries out what the state machine decides: memory, answers, processes. Callers: every connection's thread
//! and the timer.
//!
//! Invariant: the state's lock is held only for a step; leases are made, scanned, read and freed outside it,
//! by the thread whose event asked for it, so that a lease of a gigabyte keeps nobody else waiting.

use crate::decide::{ConnectionId, Effect, Event, LeaseNumber, LinkNumber, Params, Server};
use crate::leases::{Held, Leases};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use selvage_fabric::control::message::{Endpoint, FromServer, RemoteMemory};
use selvage_fabric::control::stream::{Closer, refusal_error};
use selvage_fabric::ident::Incarnation;
use selvage_fabric::lease::LAYOUT_VERSION;
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// Ticks from one look at the RDMA devices to the next.
const TICKS_PER_TENDING: u64 = 10;

/// What a connection's thread is to send.
pub(crate) enum Answer {
    /// A message.
    Message(FromServer),
    /// A message with the lease's descriptor.
    Lease(FromServer, Arc<Held>),
    /// Nothing more: end the connection.
    Cut,
}

/// How to reach a connection's thread.
struct Outbox {
    answers: Sender<Answer>,
    closer: Closer,
    /// This host's address of it, if the peer is on another.
    local: Option<IpAddr>,
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
    leases: Leases,
    outboxes: Mutex<HashMap<ConnectionId, Outbox>>,
    processes: Mutex<HashMap<(Incarnation, u32), Watched>>,
}

impl Executor {
    pub(crate) fn new(params: Params, leases: Leases) -> Self {
        Self {
            server: Mutex::new(Server::new(params)),
            leases,
            outboxes: Mutex::default(),
            processes: Mutex::default(),
        }
    }

    /// The server's present life.
    pub(crate) fn incarnation(&self) -> Incarnation {
        lock(&self.server).incarnation()
    }

    /// What RDMA there is, for people.
    pub(crate) fn rdma(&self) -> String {
        self.leases.rdma()
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
    /// `local` is this host's address of a connection from another host.
    pub(crate) fn connect(
        &self,
        connection: ConnectionId,
        answers: Sender<Answer>,
        closer: Closer,
        local: Option<IpAddr>,
    ) {
        lock(&self.outboxes).insert(connection, Outbox { answers, closer, local });
    }

    /// Forgets a connection.
    pub(crate) fn disconnect(&self, connection: ConnectionId) {
        lock(&self.outboxes).remove(&connection);
    }

    /// The timer: heartbeats for the nodes to see, processes that are gone, expired sessions.
    pub(crate) fn tick(&self, beat: u64) {
        self.leases.beat(beat);
        if beat.is_multiple_of(TICKS_PER_TENDING) {
            self.leases.tend_doors();
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
                match &mut message {
                    FromServer::Report(report) => {
                        self.leases.complete(report);
                        selvage_fabric::kill_point!("seal.reported");
                    }
                    FromServer::Refused(refusal) => self.leases.tally().error(refusal_error(refusal).kind),
                    _ => {}
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
                let result = self.leases.make(lease, node, incarnation, server);
                Some(Event::LeaseMade { lease, result })
            }
            Effect::Connect { link, connection, lease, offer } => {
                let local = lock(&self.outboxes).get(&connection).and_then(|outbox| outbox.local);
                Some(Event::LinkMade { link, result: self.leases.connect(lease, link, &offer, local) })
            }
            Effect::SendLink { connection, link, lease, server, endpoint, memory } => {
                self.send_link(connection, link, (lease, server), endpoint, memory);
                None
            }
            Effect::Disconnect { link, lease } => {
                let result = self.leases.disconnect(lease, link);
                let result = result.inspect_err(|error| self.leases.tally().error(error.kind));
                Some(Event::LinkClosed { link, result })
            }
            Effect::Seal { lease } => {
                let (index, cells_bad) = self.leases.seal(lease);
                Some(Event::Sealed { lease, index, cells_bad })
            }
            Effect::Release { lease, index } => {
                self.leases.release(lease);
                drop(index);
                None
            }
            Effect::Fetch { connection, batch } => {
                Some(Event::Fetched { connection, archives: self.leases.fetch(batch) })
            }
            Effect::Stage { connection, link, lease, batch } => {
                let result = self.leases.stage(lease, link, batch);
                Some(Event::Staged { connection, result })
            }
            Effect::WatchProcess { incarnation, pid } => self.watch_process(incarnation, pid),
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

    /// A process that cannot be watched is gone for all that can be known.
    fn watch_process(&self, incarnation: Incarnation, pid: u32) -> Option<Event> {
        match lock(&self.processes).get_mut(&(incarnation, pid)) {
            Some(watched) => {
                watched.lingers = true;
                None
            }
            None => Some(Event::ProcessGone { incarnation, pid }),
        }
    }

    fn answer(&self, connection: ConnectionId, answer: Answer) {
        if let Some(outbox) = lock(&self.outboxes).get(&connection) {
            // Fails only if the thread has ended: then nobody waits for the answer.
            let _ = outbox.answers.send(answer);
        }
    }

    fn send_link(
        &self,
        connection: ConnectionId,
        link: LinkNumber,
        (lease, server): (LeaseNumber, Incarnation),
        endpoint: Endpoint,
        memory: RemoteMemory,
    ) {
        let geometry = self.leases.geometry();
        let message = FromServer::Connected {
            link: link.0,
            lease: lease.0,
            server,
            layout: LAYOUT_VERSION,
            slot_count: geometry.slot_count,
            heap_bytes: geometry.heap_bytes,
            chunk_bytes: geometry.chunk_bytes,
            endpoint,
            memory,
        };
        self.answer(connection, Answer::Message(message));
    }

    fn send_lease(&self, connection: ConnectionId, lease: LeaseNumber, server: Incarnation) {
        let Some(held) = self.leases.find(lease) else {
            // Released since it was decided: the node will be told that it is over when it asks again.
            self.answer(connection, Answer::Cut);
            return;
        };
        let geometry = self.leases.geometry();
        let message = FromServer::Lease {
            lease: lease.0,
            server,
            layout: LAYOUT_VERSION,
            slot_count: geometry.slot_count,
            heap_bytes: geometry.heap_bytes,
        };
        self.answer(connection, Answer::Lease(message, held));
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
