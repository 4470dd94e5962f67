//! The table that the view makes, and the choice of a node for a request.

use crate::limits;
use crate::proxy::upstream::Upstream;
use arc_swap::ArcSwap;
use hyper::http::uri::Authority;
use selvage_fabric::config::Config;
use selvage_fabric::ident::{Cookie, Epoch, Incarnation};
use selvage_fabric::limits::NODE_WEIGHT;
use selvage_fabric::placement;
use selvage_fabric::rules::{Rule, holds};
use selvage_fabric::view::{NodeState, View};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tracing::warn;

/// What requests are routed by at one instant.
#[derive(Debug, Default)]
pub struct Table {
    /// Counts the tables of this process.
    number: u64,
    view: Arc<View>,
    /// In the view's order.
    upstreams: Vec<Arc<Upstream>>,
    held: Vec<Incarnation>,
}

/// The present table; whoever waits is told of the next.
#[derive(Debug)]
pub struct Routes {
    table: watch::Sender<Arc<Table>>,
    /// Turns among equals.
    turn: AtomicUsize,
    limits: ArcSwap<Limits>,
    /// The director that has handed over to this one, while it still has requests under way: what it, and any
    /// before it, has carried out.
    elder: watch::Sender<Option<Took>>,
    /// By the nodes' names; one that is not named takes new sessions like any other.
    standings: ArcSwap<HashMap<String, Standing>>,
}

/// What the configuration says of connections to nodes.
#[derive(Debug)]
struct Limits {
    connect_wait: Duration,
    /// Requests under way at once, by a node's name; 0: no limit.
    places: HashMap<String, usize>,
}

/// What a director that has handed over has carried out of its successor's tables.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Took {
    /// The newest table.
    pub number: u64,
    /// Its view.
    pub epoch: Epoch,
    /// Nodes with requests under way there, after it was carried out.
    pub busy: Vec<Incarnation>,
}

/// See [`Routes::elder`].
#[derive(Debug)]
pub struct Elder(Arc<Routes>);

impl Elder {
    /// It has said what it has carried out.
    pub fn took(&self, took: Took) {
        self.0.elder.send_replace(Some(took));
    }

    /// Whether it has not carried out the present table yet.
    pub fn is_behind(&self) -> bool {
        !self.0.is_taken(self.0.table.borrow().number)
    }
}

impl Drop for Elder {
    fn drop(&mut self) {
        self.0.elder.send_replace(None);
    }
}

/// How a node stands in the choice for new sessions, whatever the view says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Standing {
    /// Its share; none with 0.
    pub weight: u32,
    /// It fails its health checks: it gets some only if all do.
    pub failing: bool,
}

impl Default for Standing {
    fn default() -> Self {
        Self { weight: NODE_WEIGHT, failing: false }
    }
}

/// Where a request goes.
#[derive(Debug)]
pub enum Choice {
    /// To this node.
    Go(Arc<Upstream>),
    /// Nowhere before the view changes, and why.
    Wait(&'static str),
}

impl Default for Routes {
    /// No view yet, no configuration.
    fn default() -> Self {
        let limits = Limits { connect_wait: limits::CONNECT_WAIT, places: HashMap::new() };
        Self {
            table: watch::Sender::new(Arc::default()),
            turn: AtomicUsize::new(0),
            limits: ArcSwap::from_pointee(limits),
            elder: watch::Sender::new(None),
            standings: ArcSwap::default(),
        }
    }
}

impl Routes {
    /// Takes another configuration, which counts at once.
    pub fn configure(&self, config: &Config) {
        let places = config.nodes.iter().map(|node| (node.name.clone(), node.maxconn)).collect();
        let connect_wait = config.director.connect_timeout();
        self.limits.store(Arc::new(Limits { connect_wait, places }));
        for upstream in &self.now().upstreams {
            self.configure_upstream(upstream);
        }
    }

    fn configure_upstream(&self, upstream: &Arc<Upstream>) {
        let limits = self.limits.load();
        let places = limits.places.get(&upstream.name).copied().filter(|places| *places > 0);
        upstream.configure(places, limits.connect_wait);
    }

    /// Takes a new view. Nodes that are not in it are cut before anyone sees it. Returns the table's number.
    pub fn publish(&self, view: &Arc<View>, held: &[Incarnation]) -> u64 {
        let old = self.table.borrow().clone();
        let mut upstreams = Vec::with_capacity(view.nodes.len());
        for node in &view.nodes {
            let known = old.upstreams.iter().find(|upstream| upstream.incarnation == node.incarnation);
            match (known, node.address.parse::<Authority>()) {
                (Some(known), address) => {
                    // Configured anew: the same life, elsewhere.
                    address.into_iter().for_each(|authority| known.moved(authority));
                    upstreams.push(Arc::clone(known));
                }
                (None, Ok(authority)) => {
                    let wait = self.limits.load().connect_wait;
                    upstreams.push(Upstream::new(&node.name, node.incarnation, authority, wait));
                }
                (None, Err(_)) => warn!("node {} has no usable address: {}", node.name, node.address),
            }
        }
        for upstream in &old.upstreams {
            if view.node(upstream.incarnation).is_none() {
                upstream.cut();
            }
        }
        let number = old.number + 1;
        let table = Table { number, view: Arc::clone(view), upstreams, held: held.to_vec() };
        self.table.send_replace(Arc::new(table));
        // After it is seen, so that a configuration that comes meanwhile is not missed by both.
        for upstream in &self.now().upstreams {
            self.configure_upstream(upstream);
        }
        number
    }

    /// Sets a node's share of new sessions.
    pub fn weigh(&self, name: &str, weight: u32) {
        self.stand(name, |standing| standing.weight = weight);
    }

    /// Notes what health checks have found.
    pub fn checked(&self, name: &str, failing: bool) {
        self.stand(name, |standing| standing.failing = failing);
    }

    fn stand(&self, name: &str, change: impl Fn(&mut Standing)) {
        self.standings.rcu(|standings| {
            let mut standings = HashMap::clone(standings);
            change(standings.entry(name.to_owned()).or_default());
            standings
        });
    }

    /// Takes a node's number of sessions.
    pub fn load(&self, incarnation: Incarnation, sessions: u64) {
        if let Some(upstream) = self.table.borrow().upstream(incarnation) {
            upstream.sessions.store(sessions, Ordering::Relaxed);
        }
    }

    /// The director that hands over, until this is dropped. It has carried nothing out yet.
    pub fn elder(self: &Arc<Self>) -> Elder {
        let elder = Elder(Arc::clone(self));
        elder.took(Took::default());
        elder
    }

    /// Whether this director is the only one with requests under way.
    pub fn is_alone(&self) -> bool {
        self.elder.borrow().is_none()
    }

    /// Whether no other director goes by a table from before this one.
    pub fn is_taken(&self, number: u64) -> bool {
        self.elder.borrow().as_ref().is_none_or(|took| took.number >= number)
    }

    /// A way to wait for what the director that has handed over says; `None` when there is none, or no more.
    pub fn watch_elder(&self) -> watch::Receiver<Option<Took>> {
        self.elder.subscribe()
    }

    /// Nodes with requests under way, here or at a director that has handed over.
    pub fn busy(&self) -> Vec<Incarnation> {
        let table = self.now();
        let here = table.upstreams.iter().filter(|upstream| !upstream.is_idle());
        let mut busy: Vec<Incarnation> = here.map(|upstream| upstream.incarnation).collect();
        busy.extend(self.elder.borrow().iter().flat_map(|took| &took.busy));
        busy.sort_unstable();
        busy.dedup();
        busy
    }

    /// How a node stands in the choice for new sessions.
    pub fn standing(&self, name: &str) -> Standing {
        self.standings.load().get(name).copied().unwrap_or_default()
    }

    /// Waits until a node whose requests the present table holds has none under way, here or at a director
    /// that has handed over; at once if it is gone.
    pub async fn idle(&self, incarnation: Incarnation) {
        let table = self.now();
        let Some(upstream) = table.upstream(incarnation) else { return };
        upstream.idle().await;
        // What the other said before it held them, too, says nothing.
        let is_idle = |elder: &Option<Took>| {
            elder.as_ref().is_none_or(|took| took.number >= table.number && !took.busy.contains(&incarnation))
        };
        // Fails only without a sender, which is here.
        let _ = self.watch_elder().wait_for(is_idle).await;
    }

    /// Waits for the first view: before it nobody knows where a session is.
    pub async fn recovered(&self) {
        // Fails only without a sender, which is here.
        let _ = self.watch().wait_for(|table| table.view.epoch != Epoch::default()).await;
    }

    /// A way to wait for the next table.
    pub fn watch(&self) -> watch::Receiver<Arc<Table>> {
        self.table.subscribe()
    }

    /// The present table.
    pub fn now(&self) -> Arc<Table> {
        self.table.borrow().clone()
    }

    /// The node for a request: the one it was directed to, if that lives; else by its cookie; else the least
    /// loaded. `refused` have just refused a connection and are avoided where there is a choice.
    pub fn choose(
        &self,
        table: &Table,
        session: Option<Cookie>,
        directed: Option<Incarnation>,
        refused: &[Incarnation],
    ) -> Choice {
        if let Some(upstream) = directed.and_then(|incarnation| table.upstream(incarnation)) {
            return table.unless_held(upstream);
        }
        let Some(cookie) = session else { return self.least_loaded(table, refused) };
        if let Some(upstream) = table.upstream(cookie.host) {
            return table.unless_held(upstream);
        }
        // A tag that is not live: the session may be in a lease that is being sealed, whichever tag it began
        // with (R2).
        if !table.view.all_sealed() && holds(Rule::R2SealByView) {
            return Choice::Wait("the sessions of a web node that is gone are being secured");
        }
        let adopter = placement::adopter_of(cookie.id, &table.view.nodes);
        match adopter.and_then(|node| table.upstream(node.incarnation)) {
            Some(upstream) => table.unless_held(upstream),
            None => Choice::Wait("no web node is up"),
        }
    }

    fn least_loaded(&self, table: &Table, refused: &[Incarnation]) -> Choice {
        let open = table.open().filter(|(_, up)| !refused.contains(&up.incarnation));
        let standings = self.standings.load();
        let mut up: Vec<(Standing, &Arc<Upstream>)> =
            open.map(|(name, up)| (standings.get(name).copied().unwrap_or_default(), up)).collect();
        up.retain(|(standing, _)| standing.weight > 0);
        // If all fail, it is probably the check.
        if up.iter().any(|(standing, _)| !standing.failing) {
            up.retain(|(standing, _)| !standing.failing);
        }
        // A session that begins can begin where nobody waits.
        if up.iter().any(|(_, upstream)| upstream.has_room()) {
            up.retain(|(_, upstream)| upstream.has_room());
        }
        let burdens: Vec<u128> = up.iter().map(|(standing, up)| burden(up.load(), standing.weight)).collect();
        let Some(least) = burdens.iter().min() else {
            return Choice::Wait("no web node that takes new sessions is up");
        };
        let equal = burdens.iter().zip(&up).filter(|(burden, _)| *burden == least);
        let equal: Vec<&Arc<Upstream>> = equal.map(|(_, (_, upstream))| *upstream).collect();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        match equal.get(turn.checked_rem(equal.len()).unwrap_or_default()) {
            Some(upstream) => {
                // It probably begins a session; the next heartbeat says the truth.
                upstream.sessions.fetch_add(1, Ordering::Relaxed);
                Choice::Go(Arc::clone(upstream))
            }
            None => Choice::Wait("no web node is up"),
        }
    }
}

/// What a node would have to bear with one session more, by its share.
fn burden(load: u64, weight: u32) -> u128 {
    ((u128::from(load) + 1) << 32) / u128::from(weight.max(1))
}

impl Table {
    /// Its number, and what it was made from.
    pub fn told(&self) -> (u64, View, Vec<Incarnation>) {
        (self.number, (*self.view).clone(), self.held.clone())
    }

    /// The live node with this incarnation.
    pub fn upstream(&self, incarnation: Incarnation) -> Option<&Arc<Upstream>> {
        self.upstreams.iter().find(|upstream| upstream.incarnation == incarnation)
    }

    /// Whether requests of this incarnation may be sent: it is in the view and not held.
    pub fn takes(&self, incarnation: Incarnation) -> bool {
        self.upstream(incarnation).is_some() && !self.held.contains(&incarnation)
    }

    fn unless_held(&self, upstream: &Arc<Upstream>) -> Choice {
        match self.held.contains(&upstream.incarnation) {
            true => Choice::Wait("the web node hands its sessions over"),
            false => Choice::Go(Arc::clone(upstream)),
        }
    }

    /// Nodes that take new sessions, with their names.
    fn open(&self) -> impl Iterator<Item = (&str, &Arc<Upstream>)> {
        let up = self.view.nodes.iter().filter(|node| node.state == NodeState::Up);
        up.filter_map(|node| Some((&*node.name, self.upstream(node.incarnation)?)))
            .filter(|(_, up)| !self.held.contains(&up.incarnation))
    }
}
