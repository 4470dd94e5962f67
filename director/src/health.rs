//! Asks web servers whether they answer, beside the heartbeats of their stewards: a steward may beat in a
//! process that is well while those that serve browsers are not.
//!
//! Off unless a path is configured. All nodes are asked at once in each round, each by a connection of its
//! own, as a new browser would come. What changes is told to the proxy, which sends no new sessions to a
//! failing node, and to the state machine, which hands its sessions over (`crate::cluster::out`). Nodes in
//! maintenance are not asked. Caller: [`crate::daemon`].

use crate::cluster::{Checked, Event, Out};
use crate::driver::Handle;
use crate::metrics::Metrics;
use crate::proxy::routes::Routes;
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST, USER_AGENT};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use selvage_fabric::config::{Config, Health};
use selvage_fabric::ident::Incarnation;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::debug;

/// What checks need.
#[derive(Debug)]
pub struct Checks {
    /// The present configuration.
    pub config: watch::Receiver<Arc<Config>>,
    /// The state machine.
    pub handle: Handle,
    /// Where new sessions go.
    pub routes: Arc<Routes>,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

/// What has been found of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Found {
    /// Its life when it was checked last.
    life: Incarnation,
    failing: bool,
    /// Checks of this life in a row that were like the last one.
    row: u32,
    /// The last one.
    good: bool,
}

impl Found {
    /// One check more, of this life. True: it is to be told.
    fn take(&mut self, good: bool, life: Incarnation, health: &Health) -> bool {
        let goes_on = good == self.good && life == self.life;
        let row = if goes_on { self.row.saturating_add(1) } else { 1 };
        let was_failing = self.failing;
        let is_enough = row >= if good { health.rise } else { health.fall };
        if is_enough {
            self.failing = !good;
        }
        (self.life, self.row, self.good) = (life, row, good);
        // What fails on is told again, as it may be another life that does so.
        self.failing != was_failing || (!good && is_enough)
    }
}

impl Checks {
    /// Checks until the director stops, or its control side begins again.
    pub async fn run(mut self) {
        let mut found: HashMap<String, Found> = HashMap::new();
        // The proxy remembers what the control side before this one had found.
        let config = Arc::clone(&self.config.borrow());
        let mut news = Vec::new();
        for node in &config.nodes {
            let failing = self.routes.standing(&node.name).failing;
            found.insert(node.name.clone(), Found { failing, ..Found::default() });
            if failing {
                news.push(Checked { name: node.name.clone(), life: Incarnation::NONE, failing });
            }
        }
        self.tell(news).await;
        loop {
            let begun = Instant::now();
            let config = Arc::clone(&self.config.borrow_and_update());
            let health = Arc::new(config.director.health.clone());
            let Some(status) = self.handle.status().await else { return };
            let mut news = Vec::new();
            let mut asked = JoinSet::new();
            for node in &config.nodes {
                let is = status.nodes.iter().find(|is| is.name == node.name);
                let life = is.map_or(Incarnation::NONE, |is| Incarnation(is.incarnation));
                let state = found.entry(node.name.clone()).or_default();
                let name = node.name.clone();
                if health.path.is_none() || is.is_some_and(|is| is.state == Out::Maintenance.name()) {
                    if std::mem::take(state).failing {
                        news.push(Checked { name, life, failing: false });
                    }
                    continue;
                }
                let (address, health) = (node.address, Arc::clone(&health));
                asked.spawn(async move { (name, life, ask(address, &health).await) });
            }
            while let Some(Ok((name, life, good))) = asked.join_next().await {
                self.metrics.health_check(good);
                let Some(state) = found.get_mut(&name) else { continue };
                if state.take(good, life, &health) {
                    news.push(Checked { name, life, failing: state.failing });
                }
            }
            self.tell(news).await;
            tokio::select! {
                () = tokio::time::sleep_until(begun + health.interval()) => {}
                // Another configuration counts at once.
                changed = self.config.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Tells what a round has found, all of it at once: whether all fail decides what is done.
    async fn tell(&self, found: Vec<Checked>) {
        if found.is_empty() {
            return;
        }
        found.iter().for_each(|found| self.routes.checked(&found.name, found.failing));
        self.handle.tell(Event::Checked { found }).await;
    }
}

/// Whether a web server answers as it should.
async fn ask(address: SocketAddr, health: &Health) -> bool {
    let Some(path) = &health.path else { return true };
    let host = health.host.clone().unwrap_or_else(|| address.to_string());
    match tokio::time::timeout(health.timeout(), answer(address, path, &host)).await {
        Ok(Ok(status)) if health.expect.contains(&status.as_u16()) => true,
        Ok(Ok(status)) => {
            debug!("{address} answers a health check with {status}");
            false
        }
        Ok(Err(error)) => {
            debug!("{address} answers no health check: {error}");
            false
        }
        Err(_) => {
            debug!("{address} answers no health check in time");
            false
        }
    }
}

async fn answer(
    address: SocketAddr,
    path: &str,
    host: &str,
) -> Result<StatusCode, Box<dyn std::error::Error + Send + Sync>> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(path)
        .header(HOST, host)
        .header(USER_AGENT, concat!("selvage-director/", env!("CARGO_PKG_VERSION")))
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())?;
    // Polled here, so that nothing of it outlives the check. What it ends with the request says, too.
    let driving = async {
        let _ = connection.await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        answer = sender.send_request(request) => Ok(answer?.status()),
        () = driving => Err("the connection ended".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is told after each of these checks.
    fn told(found: &mut Found, life: u64, checks: &[bool]) -> Vec<Option<bool>> {
        let health = Health { fall: 3, rise: 2, ..Health::default() };
        let take = |good: &bool| found.take(*good, Incarnation(life), &health).then_some(found.failing);
        checks.iter().map(take).collect()
    }

    #[test]
    fn it_takes_several_checks_in_a_row() {
        let mut found = Found::default();
        let checks = [false, false, true, false, false, false, false, true, false, true, true, true];
        let mut expected = [None; 12];
        (expected[5], expected[6], expected[10]) = (Some(true), Some(true), Some(false));
        assert_eq!(told(&mut found, 1, &checks), expected);
        assert!(!found.failing);
    }

    #[test]
    fn a_new_life_is_found_failing_by_its_own_checks() {
        let mut found = Found::default();
        assert_eq!(told(&mut found, 0, &[false; 3]), [None, None, Some(true)]);
        // Still failing, and yet not known to be so by itself.
        assert_eq!(told(&mut found, 1, &[false; 4]), [None, None, Some(true), Some(true)]);
        assert_eq!(told(&mut found, 2, &[false, true, true]), [None, None, Some(false)]);
    }
}
