//! The running director: two runtimes, signals, an orderly end.
//!
//! The control side (state machine, control sockets, admin API) has a thread and a runtime of its own, so
//! that a flood of requests in the proxy cannot delay heartbeats.

use crate::admin::Admin;
use crate::cluster::Settings;
use crate::control::{Control, Door};
use crate::driver::{Driver, Handle};
use crate::inherited::Inherited;
use crate::limits;
use crate::lobby::Complaints;
use crate::metrics::Metrics;
use crate::place::{self, Place};
use crate::proxy::listen::listen;
use crate::proxy::phases::Proxy;
use crate::proxy::routes::Routes;
use crate::server_link::ServerLink;
use selvage_fabric::config::Config;
use selvage_fabric::control::member::Member;
use selvage_fabric::control::tls::Keyring;
use selvage_fabric::error::{Error, ErrorKind, Origin, Result};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;

/// Runs the director until SIGTERM or SIGINT.
///
/// # Errors
/// If it cannot start: one line that says what and what to do.
pub fn run(config: Config) -> Result<()> {
    // Before there are other threads: it changes the environment.
    let inherited = Inherited::take()?;
    let proxy_runtime = runtime(Builder::new_multi_thread().enable_all().thread_name("proxy"))?;
    // Before anything is there that an untimely signal could leave behind.
    let signals = proxy_runtime.block_on(async { Signals::listen() })?;
    let keyring = keyring(&config)?;
    // Lives to the end: the lock and the socket go last.
    let (_place, start) = Place::take(&config, inherited)?;
    selvage_fabric::kill_point!("start.director");
    let config = Arc::new(config);
    let connect_wait = limits::CONNECT_WAIT.min(Duration::from_millis(config.director.hold_ms));
    let routes = Arc::new(Routes::new(connect_wait));
    let metrics = Arc::new(Metrics::default());
    let settings = Settings::new(&config, start.term_min, start.drained, start.kept);
    let (driver, handle) = Driver::new(settings, Arc::clone(&routes), start.memory);
    let control = ControlSide {
        control: start.control,
        remote: start.remote,
        keyring,
        admin: start.admin,
        config: Arc::clone(&config),
        handle,
        metrics: Arc::clone(&metrics),
    };
    let (stop_control, stop_proxy) = (CancellationToken::new(), CancellationToken::new());
    let mut builder = Builder::new_current_thread();
    let control_runtime = runtime(builder.enable_all().event_interval(limits::CONTROL_TURN))?;
    let (stop, gone) = (stop_control.clone(), stop_proxy.clone().drop_guard());
    let control_thread = std::thread::Builder::new()
        .name("control".to_owned())
        .spawn(move || {
            // However this ends: without it the proxy would route by a view that nobody keeps true.
            let _gone = gone;
            control_runtime.block_on(control.run(driver, stop))
        })
        .map_err(|error| Error::os(Origin::Director, "cannot start a thread", error))?;

    let proxy = Proxy::new(&config, routes, metrics);
    let served = proxy_runtime.block_on(serve(proxy, start.browsers, &config, signals, stop_proxy));
    stop_control.cancel();
    let controlled = control_thread.join().unwrap_or_else(|_| {
        Err(Error::new(ErrorKind::Os, Origin::Director, "the control thread has panicked"))
    });
    info!("stopped");
    served.and(controlled)
}

async fn serve(
    proxy: Arc<Proxy>,
    browsers: TcpListener,
    config: &Config,
    mut signals: Signals,
    stop: CancellationToken,
) -> Result<()> {
    let sockets = |error| Error::os(Origin::Director, "cannot serve browsers", error);
    let listener = tokio::net::TcpListener::from_std(browsers).map_err(sockets)?;
    let serving = tokio::spawn(listen(proxy, listener, config.director.requests_max, stop.clone()));
    info!(
        "serving browsers on http://{}, the admin API on http://{}",
        config.director.listen, config.director.admin_listen
    );
    tokio::select! {
        _ = signals.terminate.recv() => {}
        _ = signals.interrupt.recv() => {}
        () = stop.cancelled() => {}
    }
    info!("stopping");
    stop.cancel();
    // Bounded inside.
    let _ = serving.await;
    Ok(())
}

/// The signals that end the director.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> Result<Self> {
        let listen = |kind| {
            signal(kind).map_err(|error| Error::os(Origin::Director, "cannot listen for signals", error))
        };
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }
}

/// What runs on the control thread.
struct ControlSide {
    control: UnixListener,
    remote: Option<TcpListener>,
    keyring: Option<Arc<Keyring>>,
    admin: TcpListener,
    config: Arc<Config>,
    handle: Handle,
    metrics: Arc<Metrics>,
}

impl ControlSide {
    async fn run(self, driver: Driver, stop: CancellationToken) -> Result<()> {
        for server in &self.config.servers {
            let link = ServerLink {
                name: server.name.clone(),
                socket: self.config.server_socket(&server.name),
                remote: server.control.zip(self.keyring.clone()),
                metrics: Arc::clone(&self.metrics),
                cluster: self.config.cluster.name.clone(),
                handle: self.handle.clone(),
            };
            tokio::spawn(link.run());
        }
        let sockets = |error| Error::os(Origin::Director, "cannot use the control sockets", error);
        let control = tokio::net::UnixListener::from_std(self.control).map_err(sockets)?;
        let remote = self.remote.map(tokio::net::TcpListener::from_std).transpose().map_err(sockets)?;
        let admin = tokio::net::TcpListener::from_std(self.admin).map_err(sockets)?;
        let (config, handle, metrics) = (self.config, self.handle, self.metrics);
        let stewards = Arc::new(Control {
            config: Arc::clone(&config),
            handle: handle.clone(),
            metrics: Arc::clone(&metrics),
            own_uid: place::uid(),
            complaints: Complaints::default(),
            crowds: Arc::default(),
        });
        if let Some((remote, keyring)) = remote.zip(self.keyring) {
            tokio::spawn(Arc::clone(&stewards).listen(Door::Remote(remote, keyring), stop.clone()));
        }
        tokio::spawn(stewards.listen(Door::Local(control), stop.clone()));
        tokio::spawn(Arc::new(Admin { config, handle, metrics }).listen(admin, stop.clone()));
        driver.run(stop).await;
        Ok(())
    }
}

/// The director's certificate, if anything is to be reached over TCP.
fn keyring(config: &Config) -> Result<Option<Arc<Keyring>>> {
    let remote = config.director.control.is_some() || config.servers.iter().any(|it| it.control.is_some());
    remote.then(|| Keyring::new(config, Member::Director).map(Arc::new)).transpose()
}

fn runtime(builder: &mut Builder) -> Result<Runtime> {
    builder.build().map_err(|error| Error::os(Origin::Director, "cannot start the runtime", error))
}
