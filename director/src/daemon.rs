//! The running director: two runtimes, signals, reload, hand-over, an orderly end.
//!
//! | signal | does |
//! |---|---|
//! | SIGTERM, SIGINT | ends in an orderly way |
//! | SIGHUP | reads the configuration again, and opens the access log anew |
//! | SIGUSR1 | opens the access log anew |
//! | SIGUSR2 | hands over to this program, started again |

use crate::access_log::AccessLog;
use crate::admin::Ask;
use crate::control_side::{ControlSide, Ground};
use crate::handover::{Predecessor, Successor};
use crate::inherited::Inherited;
use crate::limits;
use crate::metrics::Metrics;
use crate::place::{self, Place, Sockets};
use crate::proxy::listen::{Door, Front, Stop};
use crate::proxy::phases::Proxy;
use crate::proxy::routes::{Elder, Routes};
use crate::reload::{Changes, Loaded};
use crate::tls::{Certificates, Keys};
use crate::weights::Weights;
use sd_notify::NotifyState;
use selvage_fabric::config::Config;
use selvage_fabric::error::{Error, ErrorKind, Origin, Result};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Runs the director until SIGTERM or SIGINT, or until another has taken over. With `take_over` it takes over
/// itself, from the one that has started it.
///
/// # Errors
/// If it cannot start: one line that says what and what to do.
pub fn run(path: &Path, take_over: bool) -> Result<()> {
    let loaded = Loaded::read(path)?;
    // Before there are other threads: it changes the environment.
    let inherited = Inherited::take()?;
    let mut predecessor = take_over.then(Predecessor::meet).transpose()?;
    let proxy_runtime = runtime(Builder::new_multi_thread().enable_all().thread_name("proxy"))?;
    // Before anything is there that an untimely signal could leave behind.
    let signals = proxy_runtime.block_on(async { Signals::listen() })?;
    let metrics = Arc::new(Metrics::default());
    // What can go wrong with a configuration goes wrong before anything is taken over.
    let log = AccessLog::new(&loaded.config.director, metrics.access_log_lost.clone())?;
    let keys = match &loaded.config.director.tls {
        Some(tls) => Some(Arc::new(Keys::new(Certificates::load(tls)?))),
        None => None,
    };
    ControlSide::check(&loaded.config)?;
    let inherited = match &mut predecessor {
        Some(predecessor) => predecessor.inherit()?,
        None => inherited,
    };
    // Lives to the end: the lock and the socket go last.
    let (place, sockets) = Place::take(&loaded.config, inherited)?;
    selvage_fabric::kill_point!("start.director");
    loaded.config.warnings().iter().for_each(|warning| warn!("{warning}"));
    let routes = Arc::new(Routes::default());
    // Before there is a control side, which must not overlook it.
    let predecessor = predecessor.map(|predecessor| (predecessor, routes.elder()));
    let weights = Arc::new(Weights::load(&loaded.config, Arc::clone(&routes)));
    let proxy = Proxy::new(&loaded.config, Arc::clone(&routes), Arc::clone(&metrics));
    let (config, config_told) = watch::channel(Arc::new(loaded.config.clone()));
    let (asks, asked) = mpsc::channel(limits::ASKS_MAX);
    let ground = Arc::new(Ground { routes, metrics, weights, config: config_told, asks });
    let control = ControlSide::begin(&ground, &sockets)?;
    let front = Front::new(proxy, log, Stop::default());
    let (control, served) = (Some(control), CancellationToken::new());
    let director = Director { loaded, config, place, sockets, ground, front, keys, control, served };
    proxy_runtime.block_on(director.live(predecessor, signals, asked))
}

/// The process's exit status for an error of [`run`]. Service managers go by it: 2 does not pass by itself.
pub fn exit_status(error: &Error) -> u8 {
    match error.kind {
        ErrorKind::Invalid => 2,
        ErrorKind::Conflict => 3,
        _ => 1,
    }
}

/// A director that serves.
struct Director {
    loaded: Loaded,
    config: watch::Sender<Arc<Config>>,
    place: Place,
    sockets: Sockets,
    ground: Arc<Ground>,
    front: Arc<Front>,
    /// If browsers may come with TLS.
    keys: Option<Arc<Keys>>,
    /// None only while it is exchanged.
    control: Option<ControlSide>,
    /// It has served browsers, and nobody can take anything back from it.
    served: CancellationToken,
}

/// Why a director ends.
enum End {
    Told,
    ControlGone,
    HandedOver(Successor),
}

impl Director {
    async fn live(
        mut self,
        predecessor: Option<(Predecessor, Elder)>,
        mut signals: Signals,
        asked: mpsc::Receiver<Ask>,
    ) -> Result<()> {
        let director = &self.loaded.config.director;
        let doors = self.doors()?;
        let serving = tokio::spawn(Arc::clone(&self.front).serve(doors));
        info!(
            "serving browsers on http://{}{}, the admin API on http://{}",
            director.listen,
            director.tls.as_ref().map(|tls| format!(" and https://{}", tls.listen)).unwrap_or_default(),
            director.admin_listen
        );
        let (routes, served) = (Arc::clone(&self.ground.routes), self.served.clone());
        let ready = tokio::spawn(async move {
            if let Some((predecessor, elder)) = predecessor
                && let Err(error) = predecessor.relieve(Arc::clone(&routes), elder).await
            {
                warn!("the director before this one cannot be told that it is relieved: {error}");
            }
            routes.recovered().await;
            notify(&[NotifyState::Ready, NotifyState::MainPid(std::process::id())]);
            served.cancel();
        });
        let end = self.attend(&mut signals, asked).await;
        ready.abort();
        let is_lost = matches!(end, End::ControlGone);
        self.leave(end, signals)?;
        // Bounded inside.
        let _ = serving.await;
        let ended = match self.control.take() {
            Some(control) => control.end(),
            None => Ok(()),
        };
        let ended = match (ended, is_lost) {
            (Ok(()), true) => Err(Error::new(ErrorKind::Os, Origin::Director, "the control side has ended")),
            (ended, _) => ended,
        };
        self.front.log.close();
        info!("stopped");
        ended
    }

    /// Tells everybody that it ends, and how long it may take.
    fn leave(&mut self, end: End, mut signals: Signals) -> Result<()> {
        let stop = self.front.stop.clone();
        match end {
            End::HandedOver(successor) => {
                info!("process {} has taken over; ending when nothing is under way", successor.pid());
                notify(&[NotifyState::MainPid(successor.pid())]);
                self.place.hand_over();
                successor.follow(Arc::clone(&self.ground.routes))?;
                stop.leave.cancel();
                let hurry = stop.hurry;
                tokio::spawn(async move {
                    signals.end().await;
                    hurry.cancel();
                });
            }
            End::Told | End::ControlGone => {
                info!("stopping");
                if self.served.is_cancelled() {
                    self.place.keep();
                }
                notify(&[NotifyState::Stopping]);
                stop.now();
            }
        }
        Ok(())
    }

    /// Does what signals and operators say, until it is to end.
    async fn attend(&mut self, signals: &mut Signals, mut asked: mpsc::Receiver<Ask>) -> End {
        loop {
            // It could not begin again: then nobody keeps the view true.
            let Some(gone) = self.control.as_ref().map(|control| control.gone.clone()) else {
                return End::ControlGone;
            };
            tokio::select! {
                _ = signals.terminate.recv() => return End::Told,
                _ = signals.interrupt.recv() => return End::Told,
                () = gone.cancelled() => return End::ControlGone,
                _ = signals.reload.recv() => {
                    notify_reloading();
                    if let Err(error) = self.reload().await {
                        warn!("the configuration could not be reloaded: {error}");
                    }
                    notify(&[NotifyState::Ready]);
                }
                _ = signals.reopen.recv() => {
                    if let Err(error) = self.front.log.reopen() {
                        warn!("the access log is written on in the old file: {error}");
                    }
                }
                _ = signals.hand_over.recv() => match self.hand_over().await {
                    Ok(successor) => return End::HandedOver(successor),
                    Err(error) => {
                        self.ground.metrics.upgrade(false);
                        warn!("no other director has taken over: {error}");
                    }
                },
                Some(ask) = asked.recv() => self.answer(ask).await,
            }
        }
    }

    async fn answer(&mut self, ask: Ask) {
        match ask {
            Ask::Changes(answer) => {
                let found = Loaded::read(&self.loaded.config.path).map(|next| self.loaded.changes(next).0);
                // Nobody waits any more if this fails.
                let _ = answer.send(found);
            }
            Ask::Reload(answer) => {
                let applied = self.apply();
                let begins_again = applied.as_ref().is_ok_and(|changes| !changes.control.is_empty());
                let _ = answer.send(applied);
                if begins_again {
                    // The answer goes out by the admin API, which ends with the control side.
                    tokio::time::sleep(limits::ANSWER_WAIT).await;
                    if let Err(error) = self.begin_control_again().await {
                        warn!("the control side cannot begin again: {error}");
                    }
                }
            }
        }
    }

    async fn reload(&mut self) -> Result<()> {
        match self.apply()?.control.is_empty() {
            true => Ok(()),
            false => self.begin_control_again().await,
        }
    }

    /// Reads the configuration again and takes what can be taken; all of it or nothing. What concerns the
    /// control side is only noted for when it begins again.
    fn apply(&mut self) -> Result<Changes> {
        let applied = self.try_apply();
        self.ground.metrics.reload(applied.is_ok());
        let changes = applied?;
        info!("the configuration was read again; {}", changes.said());
        Ok(changes)
    }

    fn try_apply(&mut self) -> Result<Changes> {
        let next = Loaded::read(&self.loaded.config.path)?;
        let (changes, next) = self.loaded.changes(next);
        let director = &next.config.director;
        // Also if its text is the same: renewed files have the same names.
        let certificates = director.tls.as_ref().map(Certificates::load).transpose()?;
        ControlSide::check(&next.config)?;
        for node in &next.config.nodes {
            place::make_own_node_dir(&next.config, node)?;
        }
        self.front.log.configure(director)?;
        // From here on nothing fails.
        if let Some((keys, certificates)) = self.keys.as_ref().zip(certificates) {
            keys.replace(certificates);
        }
        self.front.configure(&next.config);
        self.ground.weights.configure(&next.config);
        next.config.warnings().iter().for_each(|warning| warn!("{warning}"));
        self.config.send_replace(Arc::new(next.config.clone()));
        self.loaded = next;
        Ok(changes)
    }

    async fn end_control(&mut self) -> Result<()> {
        match self.control.take() {
            Some(control) => spawn_blocking(|| control.end()).await.unwrap_or_else(|_| Err(panicked())),
            None => Ok(()),
        }
    }

    async fn begin_control_again(&mut self) -> Result<()> {
        self.end_control().await?;
        self.control = Some(ControlSide::begin(&self.ground, &self.sockets)?);
        Ok(())
    }

    /// Starts another director and gives it everything; if it does not take it, everything is as before.
    async fn hand_over(&mut self) -> Result<Successor> {
        // Its own predecessor, if it has one, must not take back what is given on.
        self.served.cancelled().await;
        info!("starting another director to take over");
        let mut successor = spawn_blocking(Successor::start).await.unwrap_or_else(|_| Err(panicked()))?;
        self.end_control().await?;
        // It serves when it knows the cluster.
        let silence = self.loaded.config.timing.silence();
        let wait = limits::TAKE_OVER_WAIT + silence * limits::RECOVERY_FACTOR * 2;
        // Blocks this task alone: the proxy's other threads serve on.
        let given = tokio::task::block_in_place(|| successor.give(&self.place, &self.sockets, wait));
        if let Err(error) = given {
            self.place.take_back(&self.loaded.config)?;
            self.control = Some(ControlSide::begin(&self.ground, &self.sockets)?);
            return Err(error);
        }
        self.ground.metrics.upgrade(true);
        Ok(successor)
    }

    /// Where browsers come in. The sockets themselves are kept, for a successor.
    fn doors(&self) -> Result<Vec<Door>> {
        let listener = |socket: &TcpListener| {
            let listener = socket.try_clone().and_then(tokio::net::TcpListener::from_std);
            listener.map_err(|error| Error::os(Origin::Director, "cannot serve browsers", error))
        };
        let mut doors = vec![Door::Plain(listener(&self.sockets.browsers.listener)?)];
        if let Some((tls, keys)) = self.sockets.tls.as_ref().zip(self.keys.as_ref()) {
            doors.push(Door::Tls(listener(&tls.listener)?, Arc::clone(keys)));
        }
        Ok(doors)
    }
}

/// The signals that the director goes by.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    reload: Signal,
    reopen: Signal,
    hand_over: Signal,
}

impl Signals {
    fn listen() -> Result<Self> {
        let listen = |kind| {
            signal(kind).map_err(|error| Error::os(Origin::Director, "cannot listen for signals", error))
        };
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            reload: listen(SignalKind::hangup())?,
            reopen: listen(SignalKind::user_defined1())?,
            hand_over: listen(SignalKind::user_defined2())?,
        })
    }

    async fn end(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Tells the service manager, if there is one that listens.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        warn!("the service manager cannot be told: {error}");
    }
}

fn notify_reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => warn!("the service manager cannot be told: {error}"),
    }
}

fn panicked() -> Error {
    Error::new(ErrorKind::Os, Origin::Director, "a thread has panicked")
}

fn runtime(builder: &mut Builder) -> Result<Runtime> {
    builder.build().map_err(|error| Error::os(Origin::Director, "cannot start the runtime", error))
}
