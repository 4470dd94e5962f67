//! The table that the view makes, and the choice of a node for a request.

use crate::limits;
use crate::proxy::upstream::Upstream;
use hyper::http::uri::Authority;
use selvage_fabric::ident::{Cookie, Epoch, Incarnation};
use selvage_fabric::placement;
use selvage_fabric::rules::{Rule, holds};
use selvage_fabric::view::{NodeState, View};
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
    connect_wait: Duration,
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
    fn default() -> Self {
        Self::new(limits::CONNECT_WAIT)
    }
}

impl Routes {
    /// No view yet. Connecting to a node may take `connect_wait`.
    pub fn new(connect_wait: Duration) -> Self {
        Self { table: watch::Sender::new(Arc::default()), turn: AtomicUsize::new(0), connect_wait }
    }

    /// Takes a new view. Nodes that are not in it are cut before anyone sees it.
    pub fn publish(&self, view: &Arc<View>, held: &[Incarnation]) {
        let old = self.table.borrow().clone();
        let mut upstreams = Vec::with_capacity(view.nodes.len());
        for node in &view.nodes {
            let known = old.upstreams.iter().find(|upstream| upstream.incarnation == node.incarnation);
            match (known, node.address.parse::<Authority>()) {
                (Some(known), _) => upstreams.push(Arc::clone(known)),
                (None, Ok(authority)) => {
                    upstreams.push(Upstream::new(node.incarnation, authority, self.connect_wait));
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
    }

    /// Takes a node's number of sessions.
    pub fn load(&self, incarnation: Incarnation, sessions: u64) {
        if let Some(upstream) = self.table.borrow().upstream(incarnation) {
            upstream.sessions.store(sessions, Ordering::Relaxed);
        }
    }

    /// Waits until a node has no request under way; at once if it is gone.
    pub async fn idle(&self, incarnation: Incarnation) {
        let upstream = self.table.borrow().upstream(incarnation).cloned();
        if let Some(upstream) = upstream {
            upstream.idle().await;
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
        let up: Vec<&Arc<Upstream>> = table.open().filter(|up| !refused.contains(&up.incarnation)).collect();
        let Some(least) = up.iter().map(|upstream| upstream.load()).min() else {
            return Choice::Wait("no web node that takes new sessions is up");
        };
        let equal: Vec<&Arc<Upstream>> = up.into_iter().filter(|upstream| upstream.load() <= least).collect();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        match equal.get(turn.checked_rem(equal.len()).unwrap_or_default()) {
            Some(upstream) => {
                // It probably begins a session; the next heartbeat says the truth.
                upstream.sessions.fetch_add(1, Ordering::Relaxed);
                Choice::Go(Arc::clone(upstream))
            }
            // Loads grew between the two looks; anyone will do.
            None => {
                table.open().next().map_or(Choice::Wait("no web node is up"), |up| Choice::Go(Arc::clone(up)))
            }
        }
    }
}

impl Table {
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

    /// Nodes that take new sessions.
    fn open(&self) -> impl Iterator<Item = &Arc<Upstream>> {
        let up = self.view.nodes.iter().filter(|node| node.state == NodeState::Up);
        up.filter_map(|node| self.upstream(node.incarnation))
            .filter(|up| !self.held.contains(&up.incarnation))
    }
}
