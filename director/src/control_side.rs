//! The control side: state machine, control sockets, admin API, health checks, on a thread and a runtime of
//! its own, so that a flood of requests in the proxy cannot delay heartbeats.
//!
//! It can end and begin again while the proxy goes on by the last view: for members that come or go with a
//! reload, and when a successor did not take over what it was given. That is a planned restart of the
//! director as far as nodes and servers can tell. Caller: [`crate::daemon`].

use crate::admin::{Admin, Ask};
use crate::cluster::{Event, Settings};
use crate::control::{Control, Door};
use crate::driver::{Driver, Handle};
use crate::health::Checks;
use crate::limits;
use crate::lobby::{Complaints, Crowds};
use crate::metrics::Metrics;
use crate::place::{self, Sockets, Start};
use crate::proxy::routes::Routes;
use crate::server_link::ServerLink;
use crate::weights::Weights;
use selvage_fabric::config::Config;
use selvage_fabric::control::member::Member;
use selvage_fabric::control::tls::Keyring;
use selvage_fabric::error::{Error, ErrorKind, Origin, Result};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::runtime::Builder;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// What outlasts a control side.
#[derive(Debug)]
pub struct Ground {
    /// Where requests go.
    pub routes: Arc<Routes>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Shares of new sessions.
    pub weights: Arc<Weights>,
    /// The present configuration.
    pub config: watch::Receiver<Arc<Config>>,
    /// What operators ask of the daemon.
    pub asks: mpsc::Sender<Ask>,
}

/// A running control side.
#[derive(Debug)]
pub struct ControlSide {
    stop: CancellationToken,
    /// It has ended, whatever the reason: nobody keeps the view true.
    pub gone: CancellationToken,
    thread: JoinHandle<Result<()>>,
}

/// What runs on the thread.
struct Side {
    control: UnixListener,
    remote: Option<TcpListener>,
    admin: TcpListener,
    keyring: Option<Arc<Keyring>>,
    config: Arc<Config>,
    handle: Handle,
    ground: Arc<Ground>,
}

impl ControlSide {
    /// Whether there are the certificates that one needs by this configuration.
    ///
    /// # Errors
    /// What they have against them.
    pub fn check(config: &Config) -> Result<()> {
        keyring(config).map(drop)
    }

    /// Begins where the last one has stopped.
    ///
    /// # Errors
    /// `Os`; what a certificate has against it.
    pub fn begin(ground: &Arc<Ground>, sockets: &Sockets) -> Result<Self> {
        let config = Arc::clone(&ground.config.borrow());
        let keyring = keyring(&config)?;
        let sockets_failed = |error| Error::os(Origin::Director, "cannot use the control sockets", error);
        let control = sockets.control.try_clone().map_err(sockets_failed)?;
        let admin = sockets.admin.listener.try_clone().map_err(sockets_failed)?;
        let remote = sockets.remote.as_ref().map(|remote| remote.listener.try_clone());
        let remote = remote.transpose().map_err(sockets_failed)?;
        let start = Start::read(&config)?;
        let settings = Settings::new(&config, start.term_min, start.drained, start.kept);
        let (driver, handle) = Driver::new(settings, Arc::clone(&ground.routes), start.memory);
        let side = Side { control, remote, admin, keyring, config, handle, ground: Arc::clone(ground) };
        let runtime = Builder::new_current_thread()
            .enable_all()
            .event_interval(limits::CONTROL_TURN)
            .build()
            .map_err(|error| Error::os(Origin::Director, "cannot start the runtime", error))?;
        let (stop, gone) = (CancellationToken::new(), CancellationToken::new());
        let (stopped, going) = (stop.clone(), gone.clone().drop_guard());
        let thread = std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || {
                // However this ends: without it the proxy would route by a view that nobody keeps true.
                let _going = going;
                runtime.block_on(side.run(driver, stopped))
            })
            .map_err(|error| Error::os(Origin::Director, "cannot start a thread", error))?;
        Ok(Self { stop, gone, thread })
    }

    /// Ends it, with all its connections. Blocks for a moment.
    ///
    /// # Errors
    /// What it has ended with.
    pub fn end(self) -> Result<()> {
        self.stop.cancel();
        self.thread.join().unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::Os, Origin::Director, "the control thread has panicked"))
        })
    }
}

impl Side {
    async fn run(self, driver: Driver, stop: CancellationToken) -> Result<()> {
        let Self { control, remote, admin, keyring, config, handle, ground } = self;
        let metrics = Arc::clone(&ground.metrics);
        for server in &config.servers {
            let link = ServerLink {
                name: server.name.clone(),
                socket: config.server_socket(&server.name),
                remote: server.control.zip(keyring.clone()),
                metrics: Arc::clone(&metrics),
                cluster: config.cluster.name.clone(),
                handle: handle.clone(),
            };
            tokio::spawn(link.run());
        }
        let sockets = |error| Error::os(Origin::Director, "cannot use the control sockets", error);
        let control = tokio::net::UnixListener::from_std(control).map_err(sockets)?;
        let remote = remote.map(tokio::net::TcpListener::from_std).transpose().map_err(sockets)?;
        let admin = tokio::net::TcpListener::from_std(admin).map_err(sockets)?;
        let stewards = Arc::new(Control {
            config: Arc::clone(&config),
            handle: handle.clone(),
            metrics: Arc::clone(&metrics),
            own_uid: place::uid(),
            complaints: Complaints::default(),
            stewards: Crowds::new(limits::CONNECTIONS_PER_NODE),
            applications: Crowds::new(limits::APPLICATIONS_PER_NODE),
        });
        if let Some((remote, keyring)) = remote.zip(keyring) {
            tokio::spawn(Arc::clone(&stewards).listen(Door::Remote(remote, keyring), stop.clone()));
        }
        tokio::spawn(stewards.listen(Door::Local(control), stop.clone()));
        let checks = Checks {
            config: ground.config.clone(),
            handle: handle.clone(),
            routes: Arc::clone(&ground.routes),
            metrics: Arc::clone(&metrics),
        };
        tokio::spawn(checks.run());
        tokio::spawn(tell_hold(ground.config.clone(), handle.clone()));
        let (weights, asks) = (Arc::clone(&ground.weights), ground.asks.clone());
        tokio::spawn(Arc::new(Admin { config, handle, metrics, weights, asks }).listen(admin, stop.clone()));
        driver.run(stop).await;
        Ok(())
    }
}

/// Tells the state machine what counts for it without a new beginning.
async fn tell_hold(mut config: watch::Receiver<Arc<Config>>, handle: Handle) {
    while config.changed().await.is_ok() {
        let hold = Duration::from_millis(config.borrow_and_update().director.hold_ms);
        if !handle.tell(Event::Hold { hold }).await {
            return;
        }
    }
}

/// The director's certificate, if anything is to be reached over TCP.
fn keyring(config: &Config) -> Result<Option<Arc<Keyring>>> {
    let remote = config.director.control.is_some() || config.servers.iter().any(|it| it.control.is_some());
    remote.then(|| Keyring::new(config, Member::Director).map(Arc::new)).transpose()
}
