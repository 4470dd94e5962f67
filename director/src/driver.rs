//! Runs the cluster's state machine: gives it events and the time, carries its effects out.
//!
//! One task owns the machine. Connections, the proxy and the admin API talk to it through [`Handle`]. What is
//! queued is handled before deadlines are looked at, so that a heartbeat that has arrived always counts.

use crate::cluster::doom::DoomOutcome;
use crate::cluster::errands::ErrandAnswer;
use crate::cluster::status::Status;
use crate::cluster::{Cluster, DrainOutcome, Effect, Event, Link, Out, Settings, Ticket};
use crate::limits;
use crate::place::Memory;
use crate::proxy::routes::{Routes, Took};
use selvage_fabric::control::message::{Doomed, Errand, FromDirector, ToServer};
use selvage_fabric::ident::Incarnation;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// What the driver is told.
#[derive(Debug)]
enum Input {
    Event(Event),
    OpenNode { link: Link, outbox: mpsc::Sender<FromDirector>, event: Event },
    OpenServer { link: Link, outbox: mpsc::Sender<ToServer>, event: Event },
    Status(oneshot::Sender<Status>),
    Drain { name: String, how: Out, answer: oneshot::Sender<DrainOutcome> },
    Ask { node: String, errand: Errand, within: Duration, answer: oneshot::Sender<ErrandAnswer> },
    Doom { doomed: Doomed, within: Duration, answer: oneshot::Sender<DoomOutcome> },
}

/// Somebody who waits for an answer of the state machine.
#[derive(Debug)]
enum Waiter {
    Drain(oneshot::Sender<DrainOutcome>),
    Errand(oneshot::Sender<ErrandAnswer>),
    Doom(oneshot::Sender<DoomOutcome>),
}

/// The way to the driver, for connections and the admin API.
#[derive(Clone, Debug)]
pub struct Handle {
    inputs: mpsc::Sender<Input>,
    links: Arc<AtomicU64>,
}

impl Handle {
    /// A name for a new connection.
    pub fn next_link(&self) -> Link {
        Link(self.links.fetch_add(1, Ordering::Relaxed))
    }

    /// Tells an event. False: the director stops.
    pub async fn tell(&self, event: Event) -> bool {
        self.inputs.send(Input::Event(event)).await.is_ok()
    }

    /// Tells of a new steward; returns what shall be sent to it. The connection ends when that ends.
    pub async fn open_node(
        &self,
        link: Link,
        name: String,
        incarnation: Incarnation,
    ) -> mpsc::Receiver<FromDirector> {
        let (outbox, messages) = mpsc::channel(limits::OUTBOX_MAX);
        let event = Event::NodeOpened { link, name, incarnation };
        // If the driver is gone, so is the sender, and the receiver says so.
        let _ = self.inputs.send(Input::OpenNode { link, outbox, event }).await;
        messages
    }

    /// Tells of a new connection to a server; returns what shall be sent to it.
    pub async fn open_server(
        &self,
        link: Link,
        name: String,
        incarnation: Incarnation,
    ) -> mpsc::Receiver<ToServer> {
        let (outbox, messages) = mpsc::channel(limits::OUTBOX_MAX);
        let event = Event::ServerOpened { link, name, incarnation };
        let _ = self.inputs.send(Input::OpenServer { link, outbox, event }).await;
        messages
    }

    /// A snapshot; `None` when the director stops.
    pub async fn status(&self) -> Option<Status> {
        let (answer, status) = oneshot::channel();
        self.inputs.send(Input::Status(answer)).await.ok()?;
        status.await.ok()
    }

    /// Drains a node, for good or for maintenance, and waits for the hand-over; `None` when the director
    /// stops.
    pub async fn drain(&self, name: &str, how: Out) -> Option<DrainOutcome> {
        let (answer, outcome) = oneshot::channel();
        self.inputs.send(Input::Drain { name: name.to_owned(), how, answer }).await.ok()?;
        outcome.await.ok()
    }

    /// Asks something of a node; `None` when the director stops.
    pub async fn ask(&self, node: &str, errand: Errand, within: Duration) -> Option<ErrandAnswer> {
        let (answer, outcome) = oneshot::channel();
        self.inputs.send(Input::Ask { node: node.to_owned(), errand, within, answer }).await.ok()?;
        outcome.await.ok()
    }

    /// Destroys sessions, wherever they are; `None` when the director stops.
    pub async fn doom(&self, doomed: Doomed, within: Duration) -> Option<DoomOutcome> {
        let (answer, outcome) = oneshot::channel();
        self.inputs.send(Input::Doom { doomed, within, answer }).await.ok()?;
        outcome.await.ok()
    }

    /// Lets a drained node come back, or stops its drain.
    pub async fn undrain(&self, name: &str) -> bool {
        self.tell(Event::Undrain { name: name.to_owned() }).await
    }
}

/// The task that owns the state machine.
#[derive(Debug)]
pub struct Driver {
    cluster: Cluster,
    tick: Duration,
    started: Instant,
    handle: Handle,
    inputs: mpsc::Receiver<Input>,
    routes: Arc<Routes>,
    nodes: HashMap<Link, mpsc::Sender<FromDirector>>,
    servers: HashMap<Link, mpsc::Sender<ToServer>>,
    waiters: HashMap<Ticket, Waiter>,
    ticket_next: u64,
    /// What is kept for the next director.
    memory: Memory,
}

impl Driver {
    /// The driver and the way to it.
    pub fn new(settings: Settings, routes: Arc<Routes>, memory: Memory) -> (Self, Handle) {
        let (sender, inputs) = mpsc::channel(limits::EVENTS_MAX);
        let handle = Handle { inputs: sender, links: Arc::new(AtomicU64::new(1)) };
        let tick = settings.tick;
        let driver = Self {
            cluster: Cluster::new(settings, Duration::ZERO),
            tick,
            started: Instant::now(),
            handle: handle.clone(),
            inputs,
            routes,
            nodes: HashMap::new(),
            servers: HashMap::new(),
            waiters: HashMap::new(),
            ticket_next: 0,
            memory,
        };
        (driver, handle)
    }

    /// Runs until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut elder = self.routes.watch_elder();
        // Before anything is decided without it.
        let taken = |elder: &Option<Took>| elder.as_ref().map(|took| took.epoch);
        let first = Event::Elder { taken: taken(&elder.borrow_and_update()) };
        self.step(first);
        let mut ticker = tokio::time::interval(self.tick);
        ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                Some(input) = self.inputs.recv() => self.take(input),
                // Its sender is in `routes`.
                Ok(()) = elder.changed() => {
                    let event = Event::Elder { taken: taken(&elder.borrow_and_update()) };
                    self.step(event);
                }
                _ = ticker.tick() => {
                    for _ in 0..limits::EVENTS_PER_TURN {
                        let Ok(input) = self.inputs.try_recv() else { break };
                        self.take(input);
                    }
                    self.step(Event::Tick);
                }
            }
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Event(event) => {
                if let Event::NodeClosed { link } = event {
                    self.nodes.remove(&link);
                } else if let Event::ServerClosed { link } = event {
                    self.servers.remove(&link);
                }
                self.step(event);
            }
            Input::OpenNode { link, outbox, event } => {
                self.nodes.insert(link, outbox);
                self.step(event);
            }
            Input::OpenServer { link, outbox, event } => {
                self.servers.insert(link, outbox);
                self.step(event);
            }
            Input::Status(answer) => {
                // Nobody waits any more if this fails.
                let _ = answer.send(self.cluster.status());
            }
            Input::Drain { name, how, answer } => {
                let ticket = self.wait(Waiter::Drain(answer));
                self.step(match how {
                    Out::Maintenance => Event::Maintain { name, ticket },
                    Out::Drained | Out::Failing => Event::Drain { name, ticket },
                });
            }
            Input::Ask { node, errand, within, answer } => {
                let ticket = self.wait(Waiter::Errand(answer));
                self.step(Event::Ask { node, errand, ticket, within });
            }
            Input::Doom { doomed, within, answer } => {
                let ticket = self.wait(Waiter::Doom(answer));
                self.step(Event::Doom { doomed, ticket, within });
            }
        }
    }

    fn wait(&mut self, waiter: Waiter) -> Ticket {
        let ticket = Ticket(self.ticket_next);
        self.ticket_next += 1;
        self.waiters.insert(ticket, waiter);
        ticket
    }

    fn step(&mut self, event: Event) {
        let effects = self.cluster.step(event, self.started.elapsed());
        for effect in effects {
            self.carry_out(effect);
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Publish { view, held } => {
                self.routes.publish(&view, &held);
            }
            Effect::Load { incarnation, sessions } => self.routes.load(incarnation, sessions),
            Effect::ToNode { link, message } => {
                if self.nodes.get(&link).is_some_and(|outbox| outbox.try_send(message).is_err()) {
                    warn!("a steward does not read its messages; its connection is cut");
                    self.nodes.remove(&link);
                }
            }
            Effect::CloseNode { link } => {
                self.nodes.remove(&link);
            }
            Effect::ToServer { link, message } => {
                if matches!(message, ToServer::SetView(_)) {
                    selvage_fabric::kill_point!("seal.view");
                }
                if self.servers.get(&link).is_some_and(|outbox| outbox.try_send(message).is_err()) {
                    warn!("a server does not read its messages; its connection is cut");
                    self.servers.remove(&link);
                }
            }
            Effect::AwaitIdle { incarnation, hold } => {
                let (routes, handle) = (Arc::clone(&self.routes), self.handle.clone());
                tokio::spawn(async move {
                    routes.idle(incarnation).await;
                    handle.tell(Event::Idle { incarnation, hold }).await;
                });
            }
            Effect::Answer { ticket, outcome } => {
                if let Some(Waiter::Drain(answer)) = self.waiters.remove(&ticket) {
                    let _ = answer.send(outcome);
                }
            }
            Effect::ErrandAnswer { ticket, answer: outcome } => {
                if let Some(Waiter::Errand(answer)) = self.waiters.remove(&ticket) {
                    let _ = answer.send(outcome);
                }
            }
            Effect::DoomAnswer { ticket, outcome } => {
                if let Some(Waiter::Doom(answer)) = self.waiters.remove(&ticket) {
                    let _ = answer.send(outcome);
                }
            }
            Effect::Drained(names) => {
                if let Err(error) = self.memory.keep_drained(&names) {
                    warn!("drained nodes will not be remembered: {error}");
                }
            }
            Effect::Keep(view) => {
                if let Err(error) = self.memory.keep_view(&view) {
                    warn!("the view will not be remembered: {error}");
                }
            }
            Effect::Log(text) => info!("{text}"),
        }
    }
}
