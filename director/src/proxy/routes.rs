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
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tracing::warn;

/// What requests are routed by at one instant.
#[derive(Debug, Default)]
pub struct Table {
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
    /// Directors that have handed over to this one and still have requests under way.
    elders: watch::Sender<usize>,
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

/// See [`Routes::elder`].
#[derive(Debug)]
pub struct Elder(Arc<Routes>);

impl Drop for Elder {
    fn drop(&mut self) {
        self.0.elders.send_modify(|elders| *elders = elders.saturating_sub(1));
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
            elders: watch::Sender::new(0),
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

    /// Takes a new view. Nodes that are not in it are cut before anyone sees it.
    pub fn publish(&self, view: &Arc<View>, held: &[Incarnation]) {
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
        self.table.send_replace(Arc::new(Table { view: Arc::clone(view), upstreams, held: held.to_vec() }));
        // After it is seen, so that a configuration that comes meanwhile is not missed by both.
        for upstream in &self.now().upstreams {
            self.configure_upstream(upstream);
        }
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

    /// A director that has handed over, until this is dropped.
    pub fn elder(self: &Arc<Self>) -> Elder {
        self.elders.send_modify(|elders| *elders += 1);
        Elder(Arc::clone(self))
    }

    /// Whether this director is the only one with requests under way.
    pub fn is_alone(&self) -> bool {
        *self.elders.borrow() == 0
    }

    /// How a node stands in the choice for new sessions.
    pub fn standing(&self, name: &str) -> Standing {
        self.standings.load().get(name).copied().unwrap_or_default()
    }

    /// Waits until a node has no request under way, here or at a director that has handed over; at once if
    /// it is gone.
    pub async fn idle(&self, incarnation: Incarnation) {
        let upstream = self.table.borrow().upstream(incarnation).cloned();
        if let Some(upstream) = upstream {
            upstream.idle().await;
            // Fails only without a sender, which is here.
            let _ = self.elders.subscribe().wait_for(|elders| *elders == 0).await;
        }
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
    /// What it was made from.
    pub fn told(&self) -> (View, Vec<Incarnation>) {
        ((*self.view).clone(), self.held.clone())
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
