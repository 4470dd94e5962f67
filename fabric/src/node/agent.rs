//! The agent: the thread of each process that joins, tries to become steward, and then carries out what the
//! steward decides.
//!
//! Heartbeats must not wait for anything: connections, control calls to servers, sweeps and adoptions run on
//! short-lived threads of their own and come back as events. At most one of each kind runs
//! ([`super::steward`] sees to that).

use super::adopt;
use super::attachment::Attachment;
use super::claims::register_claims;
use super::clock::{Clock, SystemClock};
use super::errand;
use super::host::{Host, LinkState};
use super::join::{Joined, connect_director, join, leave};
use super::links::LinkKeeper;
use super::report::{Reporter, beat_of};
use super::steward::{Effect, Event, Steward, StewardTiming};
use super::sweep::{Pace, sweep};
use crate::cache::BookIndex;
use crate::control::message::{Errand, ErrandOutcome, FromDirector, ToDirector};
use crate::control::stream::{Sender as ControlSender, Stream};
use crate::error::ErrorKind;
use crate::ident::{Epoch, Incarnation};
use crate::limits::STEWARD_POLL;
use crate::numbers::NodeCounter;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Slots of one lease that are counted per heartbeat, on average.
const SLOTS_PER_COUNT: u64 = 65_536;

/// Body of the agent thread: one incarnation after another until the process leaves.
pub(super) fn run(attachment: &Arc<Attachment>) {
    while !attachment.is_stopping() {
        match join(attachment) {
            Ok(Joined { host, director }) => {
                attachment.set_host(Some(host.clone()));
                live(attachment, &host, director);
                attachment.set_host(None);
                let incarnation = host.incarnation();
                let left = if attachment.is_stopping() { leave(attachment, host) } else { Ok(()) };
                // Another process may become steward now.
                if let Err(error) = left.and(attachment.lock_file.release_steward(incarnation.0)) {
                    tracing::warn!(%error, node = attachment.name, "leaving was not clean");
                }
            }
            Err(error) => {
                tracing::debug!(%error, node = attachment.name, "cannot join yet");
                attachment.set_trouble(error);
                attachment.pause(attachment.config.timing.heartbeat());
            }
        }
    }
}

/// One incarnation, until it is over or the process leaves.
fn live(attachment: &Arc<Attachment>, host: &Arc<Host>, mut director: Option<Stream>) {
    let mut links = LinkKeeper::default();
    let bell = Arc::downgrade(attachment);
    host.set_alarm(move || {
        if let Some(attachment) = bell.upgrade() {
            attachment.ring();
        }
    });
    while !attachment.is_stopping() && !host.cache.is_poisoned() {
        match attachment.lock_file.try_steward(host.incarnation().0) {
            Ok(true) => {
                kill_point!("steward.taken");
                let mut agent = Agent::new(attachment, host, &mut links, director.take());
                agent.run();
                agent.join_jobs();
            }
            Ok(false) => {
                director = None;
                // A steward that is stopped cannot tell that this incarnation is over; the leases do.
                links.tend(host, false);
                attachment.pause(STEWARD_POLL);
            }
            Err(error) => {
                tracing::warn!(%error, "cannot try for the steward's role");
                attachment.pause(STEWARD_POLL);
            }
        }
    }
    links.join();
}

/// What comes to the agent.
enum Note {
    Event(Event),
    /// A connection to the director, its number, and the way to send on it.
    Connected(u64, ControlSender),
    /// From the connection of that number; an older one's end is no news.
    Message(u64, FromDirector),
    Disconnected(u64),
    /// A link was lost.
    Alarm,
}

/// The steward's hands.
struct Agent<'a> {
    attachment: &'a Arc<Attachment>,
    host: &'a Arc<Host>,
    clock: SystemClock,
    steward: Steward,
    notes: Sender<Note>,
    inbox: Receiver<Note>,
    connection: u64,
    director: Option<ControlSender>,
    jobs: Vec<JoinHandle<()>>,
    links: &'a mut LinkKeeper,
    unprotected_seen: u64,
    beats: u64,
    /// Copies in each server's lease at the last count.
    copies: HashMap<Incarnation, u64>,
    reporter: Reporter,
}

impl<'a> Agent<'a> {
    fn new(
        attachment: &'a Arc<Attachment>,
        host: &'a Arc<Host>,
        links: &'a mut LinkKeeper,
        director: Option<Stream>,
    ) -> Self {
        let clock = SystemClock;
        let timing = &attachment.config.timing;
        let timing = StewardTiming {
            heartbeat_ns: timing.heartbeat().as_nanos() as u64,
            mandate_ns: timing.mandate().as_nanos() as u64,
        };
        let (notes, inbox) = channel();
        let view = host.plan().view.clone();
        let connected = director.is_some();
        let steward = Steward::new(host.incarnation(), timing, view, connected, clock.monotonic_ns());
        let mut agent = Self {
            attachment,
            host,
            clock,
            steward,
            notes,
            inbox,
            connection: 0,
            director: None,
            jobs: Vec::new(),
            links,
            unprotected_seen: 0,
            beats: 0,
            copies: HashMap::new(),
            reporter: Reporter::default(),
        };
        if let Some(stream) = director {
            agent.take_connection(stream);
        }
        agent
    }

    fn run(&mut self) {
        tracing::info!(node = self.host.name, "this process is steward");
        let bell = self.notes.clone();
        // The agent may be gone when it rings.
        self.attachment.set_bell(Some(Box::new(move || drop(bell.send(Note::Alarm)))));
        self.handle(Event::Tick);
        let mut polled = Instant::now();
        while !self.attachment.is_stopping() && !self.host.cache.is_poisoned() && !self.steward.is_over() {
            let left_ns = self.steward.deadline_ns().saturating_sub(self.clock.monotonic_ns());
            match self.inbox.recv_timeout(Duration::from_nanos(left_ns).min(STEWARD_POLL)) {
                Ok(note) => self.take(note),
                Err(RecvTimeoutError::Timeout) => self.handle(Event::Tick),
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if polled.elapsed() >= STEWARD_POLL {
                polled = Instant::now();
                self.poll();
            }
        }
        self.attachment.set_bell(None);
    }

    /// What is looked at again and again: processes that died, sessions left without copies, links to open.
    fn poll(&mut self) {
        match self.host.cache.repair_dead() {
            Ok(died) if !died.is_empty() => {
                kill_point!("steward.repaired");
                self.host.count(NodeCounter::ProcessDeaths, died.len() as u64);
                tracing::info!(
                    node = self.host.name,
                    died = died.len(),
                    "processes died; repaired after them"
                );
                self.handle(Event::Unprotected);
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "cannot repair after dead processes"),
        }
        let unprotected = self.host.cache.unprotected();
        if unprotected != self.unprotected_seen {
            self.unprotected_seen = unprotected;
            self.handle(Event::Unprotected);
        }
        self.links.tend(self.host, true);
        self.jobs.retain(|job| !job.is_finished());
    }

    fn take(&mut self, note: Note) {
        match note {
            Note::Event(event) => self.handle(event),
            Note::Connected(connection, sender) if connection == self.connection => {
                self.director = Some(sender);
                self.handle(Event::Connected);
            }
            Note::Message(connection, message) if connection == self.connection => {
                self.handle(Event::Received(message));
            }
            Note::Disconnected(connection) if connection == self.connection => self.disconnected(),
            Note::Alarm => self.links.tend(self.host, true),
            Note::Connected(..) | Note::Message(..) | Note::Disconnected(_) => {}
        }
    }

    fn disconnected(&mut self) {
        self.director = None;
        self.connection += 1;
        self.handle(Event::Disconnected);
    }

    fn handle(&mut self, event: Event) {
        for effect in self.steward.handle(event, self.clock.monotonic_ns()) {
            self.carry_out(effect);
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Connect => self.connect(),
            Effect::Send(message) => self.send(&message),
            Effect::Beat { epoch, settled } => self.beat(epoch, settled),
            Effect::StoreMandate { until_ns } => {
                kill_point!("steward.mandate");
                self.host.cache.set_mandate_until_ns(until_ns);
            }
            Effect::Publish(view) => {
                if let Err(error) = self.host.publish(&view) {
                    tracing::error!(%error, "a view cannot be published");
                }
                kill_point!("steward.view");
                self.links.tend(self.host, true);
            }
            Effect::RetireBook(server) => {
                if let Some(book) = self.host.cache.book_of(server) {
                    self.host.cache.retire_book(book.index);
                }
            }
            Effect::RegisterClaims { server } => self.register_claims(server),
            Effect::Sweep => self.sweep(),
            Effect::Adopt { dead } => self.adopt(dead),
            Effect::Errand { number, errand, within_ms } => self.errand(number, errand, within_ms),
            Effect::End { drained } => {
                tracing::warn!(node = self.host.name, drained, "this incarnation is over");
                self.host.cache.poison();
            }
        }
    }

    /// Runs work on a thread of its own; if there is none to be had, `failed` is the news.
    fn spawn(&mut self, work: impl FnOnce() -> Note + Send + 'static, failed: Note) {
        let notes = self.notes.clone();
        let job = std::thread::Builder::new().name("selvage-job".into()).spawn(move || {
            // The agent may be gone by then.
            let _ = notes.send(work());
        });
        match job {
            Ok(job) => self.jobs.push(job),
            Err(error) => {
                tracing::warn!(%error, "cannot start a thread");
                let _ = self.notes.send(failed);
            }
        }
    }

    /// Work ends soon after the incarnation does or the process leaves: every step in it is bounded.
    fn join_jobs(&mut self) {
        self.connection += 1;
        for job in self.jobs.drain(..) {
            // A panic of a job has nothing to add here.
            let _ = job.join();
        }
    }

    fn connect(&mut self) {
        self.connection += 1;
        let connection = self.connection;
        let (attachment, host, notes) = (self.attachment.clone(), self.host.clone(), self.notes.clone());
        let work = move || {
            match connect_director(&attachment, host.incarnation()) {
                Ok(stream) => {
                    let _ = notes.send(Note::Connected(connection, stream.sender()));
                    read_director(&attachment, &host, stream, connection, &notes);
                }
                Err(error) => match error.kind {
                    // The director knows this incarnation no more.
                    ErrorKind::OwnershipLost => host.cache.poison(),
                    _ => tracing::debug!(%error, "no director"),
                },
            }
            Note::Disconnected(connection)
        };
        self.spawn(work, Note::Disconnected(connection));
    }

    /// Goes on with the connection on which the incarnation was registered.
    fn take_connection(&mut self, stream: Stream) {
        self.connection += 1;
        let connection = self.connection;
        self.director = Some(stream.sender());
        let (attachment, host, notes) = (self.attachment.clone(), self.host.clone(), self.notes.clone());
        let work = move || {
            read_director(&attachment, &host, stream, connection, &notes);
            Note::Disconnected(connection)
        };
        self.spawn(work, Note::Disconnected(connection));
    }

    fn send(&mut self, message: &ToDirector) {
        let Some(director) = &mut self.director else { return };
        if let Err(error) = director.send(message, self.attachment.config.timing.heartbeat()) {
            tracing::debug!(%error, "the director's connection is lost");
            self.disconnected();
        }
    }

    fn beat(&mut self, epoch: Epoch, settled: Vec<Incarnation>) {
        let mut beat = beat_of(self.host, epoch, settled);
        self.beats += 1;
        let plan = self.host.plan().clone();
        for (_, link) in plan.links() {
            if let LinkState::Open(lane) = link {
                let copies = self.copies_at(lane.server, lane.book);
                lane.link.beat(self.beats, copies);
            }
        }
        beat.links = self.links.report(&plan, self.clock.monotonic_ns());
        beat.numbers = self.reporter.numbers(self.host);
        // The mandate counts from here (R8): nothing that takes time comes after this.
        beat.sent_ns = self.clock.monotonic_ns();
        kill_point!("steward.beat");
        self.send(&ToDirector::Beat(beat));
    }

    /// Copies in a lease, for people to see. Counting looks at every slot, so large leases are counted less
    /// often.
    fn copies_at(&mut self, server: Incarnation, book: BookIndex) -> u64 {
        let slots = u64::from(self.host.cache.book(book).geometry.slot_count);
        let is_due = self.beats.is_multiple_of(1 + slots / SLOTS_PER_COUNT);
        if let (Some(copies), false) = (self.copies.get(&server), is_due) {
            return *copies;
        }
        let copies = self.host.cache.places_at(book);
        self.copies.insert(server, copies);
        copies
    }

    fn register_claims(&mut self, server: Incarnation) {
        let host = self.host.clone();
        let work = move || {
            let registered = register_claims(&host, server);
            if let Err(error) = &registered {
                tracing::debug!(%error, "cannot register claims yet");
            }
            Note::Event(Event::ClaimsEnded { server, done: registered.is_ok() })
        };
        self.spawn(work, Note::Event(Event::ClaimsEnded { server, done: false }));
    }

    fn sweep(&mut self) {
        let (attachment, host) = (self.attachment.clone(), self.host.clone());
        let epoch = self.steward.view().epoch;
        let work = move || {
            let mut pace = Pace::new(attachment.config.timing.recopy_per_s, attachment.stop_flag());
            let swept = sweep(&host, &mut pace);
            if let Err(error) = &swept {
                tracing::debug!(%error, "a sweep was cut short");
            }
            let swept = swept.unwrap_or_default();
            // Not the time that passed: on a busy host that may be long, and says nothing about the cost.
            let took_ns = thread_cpu_ns();
            tracing::debug!(complete = swept.complete, copied = swept.copied, took_ns, "a sweep has ended");
            Note::Event(Event::SweepEnded { epoch: swept.epoch, complete: swept.complete, took_ns })
        };
        self.spawn(work, Note::Event(Event::SweepEnded { epoch, complete: false, took_ns: 0 }));
    }

    fn adopt(&mut self, dead: Incarnation) {
        let (attachment, host) = (self.attachment.clone(), self.host.clone());
        let epoch = self.steward.view().epoch;
        let work = move || {
            let mut pace = Pace::new(attachment.config.timing.recopy_per_s, attachment.stop_flag());
            let (epoch, complete) = match adopt::adopt(&host, dead, &mut pace) {
                Ok(adopted) => {
                    let (complete, sessions) = (adopted.complete, adopted.sessions);
                    tracing::debug!(dead = dead.tag(), complete, sessions, "a pass of adoption has ended");
                    (adopted.epoch, complete)
                }
                Err(error) => {
                    tracing::debug!(%error, "a pass of adoption was cut short");
                    (epoch, false)
                }
            };
            Note::Event(Event::AdoptionEnded { dead, epoch, complete })
        };
        self.spawn(work, Note::Event(Event::AdoptionEnded { dead, epoch, complete: false }));
    }

    fn errand(&mut self, number: u64, errand: Errand, within_ms: u32) {
        let (attachment, host) = (self.attachment.clone(), self.host.clone());
        let work = move || {
            let within = Duration::from_millis(within_ms.into());
            let outcome = errand::run(&host, &errand, within, attachment.stop_flag());
            Note::Event(Event::ErrandEnded { number, outcome })
        };
        let outcome = ErrandOutcome::Failed("there is no thread for it".to_owned());
        self.spawn(work, Note::Event(Event::ErrandEnded { number, outcome }));
    }
}

/// Passes the director's messages on until the connection ends.
fn read_director(
    attachment: &Attachment,
    host: &Host,
    mut stream: Stream,
    connection: u64,
    notes: &Sender<Note>,
) {
    while !attachment.is_stopping() && !host.cache.is_poisoned() {
        match stream.recv::<FromDirector>(STEWARD_POLL) {
            Ok((message, _)) => {
                if notes.send(Note::Message(connection, message)).is_err() {
                    return;
                }
            }
            Err(error) if error.kind == ErrorKind::Timeout => {}
            Err(error) => {
                tracing::debug!(%error, "the director's connection has ended");
                return;
            }
        }
    }
}

/// Processor time of this thread so far.
fn thread_cpu_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    (time.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(time.tv_nsec as u64)
}
