//! The browsers' side: accepts connections, with TLS and without, serves requests on them, ends in an orderly
//! way.
//!
//! A planned restart costs no request if somebody else holds the listening socket (`crate::inherited`) or
//! takes it over (`crate::handover`): who comes meanwhile waits in the kernel's queue, and nobody is accepted
//! before there is a view to route by. At the end every request that is on its way is answered, with
//! `Connection: close` or a GOAWAY; only then connections without one are closed.

use crate::access_log::AccessLog;
use crate::limits;
use crate::proxy::asked::Asked;
use crate::proxy::body::{BodyError, InBody};
use crate::proxy::browser::Browser;
use crate::proxy::client::Client;
use crate::proxy::framing::Checked;
use crate::proxy::http2;
use crate::proxy::linger::Lingering;
use crate::proxy::logged::Logged;
use crate::proxy::phases::{Admitted, Proxy};
use crate::proxy::visits::Visits;
use crate::tls::Keys;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulConnection;
use selvage_fabric::config::Config;
use std::convert::Infallible;
use std::fmt::Display;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::task::Poll;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// What serves browsers.
#[derive(Debug)]
pub struct Front {
    /// The phases of a request.
    pub proxy: Arc<Proxy>,
    /// What is written of each.
    pub log: Arc<AccessLog>,
    /// How it ends.
    pub stop: Stop,
    /// Which of the doors was looked at last.
    turn: AtomicUsize,
    /// Connections end as soon as nothing is under way on them.
    closing: CancellationToken,
    /// For connections: so many in all.
    places: Arc<Semaphore>,
    places_max: AtomicU32,
}

/// Where browsers come in.
#[derive(Debug)]
pub enum Door {
    /// Without TLS.
    Plain(TcpListener),
    /// With TLS.
    Tls(TcpListener, Arc<Keys>),
}

/// How the front is told to end.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    /// Nobody is accepted any more, and what is under way may end.
    pub leave: CancellationToken,
    /// It must end soon.
    pub hurry: CancellationToken,
}

impl Stop {
    /// An end within seconds.
    pub fn now(&self) {
        self.hurry.cancel();
        self.leave.cancel();
    }
}

impl Door {
    fn listener(&self) -> &TcpListener {
        match self {
            Self::Plain(listener) | Self::Tls(listener, _) => listener,
        }
    }
}

/// An answer on a browser's connection.
type Answer = Response<Logged<InBody<Admitted>>>;

impl Front {
    /// Nobody is served before [`serve`](Self::serve), and then not more connections at once than the proxy's
    /// settings allow.
    pub fn new(proxy: Arc<Proxy>, log: Arc<AccessLog>, stop: Stop) -> Arc<Self> {
        let places_max = places_max(&proxy);
        Arc::new(Self {
            proxy,
            log,
            stop,
            turn: AtomicUsize::new(0),
            closing: CancellationToken::new(),
            places: Arc::new(Semaphore::new(places_max as usize)),
            places_max: AtomicU32::new(places_max),
        })
    }

    /// Takes another configuration. If there are more connections than it allows, none is closed, and no more
    /// than one is accepted before enough have ended. Needs a runtime.
    pub fn configure(&self, config: &Config) {
        self.proxy.configure(config);
        let now = places_max(&self.proxy);
        let before = self.places_max.swap(now, Ordering::Relaxed);
        if now >= before {
            return self.places.add_permits((now - before) as usize);
        }
        let surplus = (before - now) as usize - self.places.forget_permits((before - now) as usize);
        let places = Arc::clone(&self.places);
        // Those who want more wait behind this.
        tokio::spawn(async move {
            if let Ok(gone) = places.acquire_many_owned(u32::try_from(surplus).unwrap_or(u32::MAX)).await {
                gone.forget();
            }
        });
    }

    /// Serves browsers from the first view until it is to leave, then lets the requests under way end,
    /// bounded.
    pub async fn serve(self: Arc<Self>, doors: Vec<Door>) {
        tokio::select! {
            () = self.stop.leave.cancelled() => {}
            () = self.proxy.recovered() => {}
        }
        loop {
            // Without a free place the kernel's queue holds the next connection.
            let accepted = tokio::select! {
                () = self.stop.leave.cancelled() => break,
                accepted = async {
                    let place = Arc::clone(&self.places).acquire_owned().await;
                    (place, self.accept(&doors).await)
                } => accepted,
            };
            match accepted {
                (place, (keys, Ok((stream, peer)))) => {
                    let front = Arc::clone(&self);
                    tokio::spawn(async move {
                        let connections = &front.proxy.metrics().connections;
                        connections.inc();
                        Arc::clone(&front).meet(stream, peer, keys).await;
                        connections.dec();
                        drop(place);
                    });
                }
                (_, (_, Err(error))) => {
                    warn!("cannot accept a connection: {error}");
                    tokio::time::sleep(limits::ACCEPT_PAUSE).await;
                }
            }
        }
        drop(doors);
        self.end().await;
    }

    /// The next connection at any door; they take turns at being looked at first.
    async fn accept(&self, doors: &[Door]) -> (Option<Arc<Keys>>, io::Result<(TcpStream, SocketAddr)>) {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        poll_fn(|cx| {
            for at in 0..doors.len() {
                let door = &doors[(turn.wrapping_add(at)) % doors.len()];
                if let Poll::Ready(accepted) = door.listener().poll_accept(cx) {
                    let keys = match door {
                        Door::Plain(_) => None,
                        Door::Tls(_, keys) => Some(Arc::clone(keys)),
                    };
                    return Poll::Ready((keys, accepted));
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Lets what is under way end. All permits are free when all connections have ended.
    async fn end(&self) {
        let (places, places_max) = (&self.places, self.places_max.load(Ordering::Relaxed));
        self.proxy.close_connections();
        let hurry = |wait| async move {
            self.stop.hurry.cancelled().await;
            tokio::time::sleep(wait).await;
        };
        // An idle connection that is closed at once may meet a request half-way, which nobody would answer.
        tokio::select! {
            _ = places.acquire_many(places_max) => {}
            () = hurry(limits::IDLE_WAIT) => {}
            () = tokio::time::sleep(limits::HANDOVER_IDLE_WAIT) => {}
        }
        self.closing.cancel();
        let ended = async {
            // Fails only when the semaphore is closed, which nobody does.
            let _ = places.acquire_many(places_max).await;
            // Tunnels have no place any more.
            while !self.proxy.is_idle() {
                tokio::time::sleep(limits::IDLE_LOOK).await;
            }
        };
        let mut ended = pin!(ended);
        tokio::select! {
            () = &mut ended => return,
            () = hurry(limits::STOP_WAIT) => {}
            () = tokio::time::sleep(limits::HANDOVER_WAIT) => {}
        }
        self.proxy.give_up();
        if tokio::time::timeout(limits::LAST_WAIT, ended).await.is_err() {
            warn!("requests were still under way at the end of the time for them; they are cut");
        }
    }

    /// A connection from its beginning to its end.
    async fn meet(self: Arc<Self>, stream: TcpStream, peer: SocketAddr, keys: Option<Arc<Keys>>) {
        if let Err(error) = stream.set_nodelay(true) {
            debug!("a connection was gone at once: {error}");
            return;
        }
        let visits = Visits::default();
        let Some(keys) = keys else {
            let client = Client::new(peer.ip(), None);
            return self.watch(connection(&self, stream, client, &visits), &visits, false).await;
        };
        let shaken = match keys.shake(stream).await {
            Ok(shaken) => shaken,
            Err(error) => {
                self.proxy.metrics().tls_failures.inc();
                return debug!("a browser's handshake failed: {error}");
            }
        };
        let client = Client::new(peer.ip(), Some(shaken.version));
        match shaken.is_http2 {
            false => self.watch(connection(&self, shaken.stream, client, &visits), &visits, false).await,
            true => {
                let (front, counted) = (Arc::clone(&self), visits.clone());
                let service = service_fn(move |request| {
                    // In HTTP/2 what is of a connection otherwise is each request's own.
                    Arc::clone(&front).answer(request, client, Browser::default(), counted.clone())
                });
                let head_bytes_max = self.proxy.settings().head.head_bytes_max;
                let connection = http2::connection(shaken.stream, head_bytes_max, service);
                self.watch(connection, &visits, true).await;
            }
        }
    }

    /// Serves a connection to its end: the browser's, or ours when nothing is under way on it any more. One
    /// that may be silent for ever by its protocol ends when it was for too long.
    async fn watch<C>(&self, connection: C, visits: &Visits, may_be_silent: bool)
    where
        C: GracefulConnection,
        C::Error: Display,
    {
        let mut connection = pin!(connection);
        let closing = async {
            self.closing.cancelled().await;
            // Its handshake may just be over.
            let _ = tokio::time::timeout(limits::FIRST_WAIT, visits.first()).await;
        };
        let silence = self.proxy.settings().keepalive_timeout;
        let mut ended = tokio::select! {
            ended = &mut connection => Some(ended),
            () = closing => None,
            () = visits.silent_for(silence), if may_be_silent => None,
        };
        if ended.is_none() {
            if may_be_silent && visits.is_new() {
                // It may not even have begun to speak HTTP/2, so it cannot be told.
                return;
            }
            connection.as_mut().graceful_shutdown();
            ended = tokio::select! {
                ended = &mut connection => Some(ended),
                // A browser that does not even answer that has gone, or means no good.
                () = visits.silent_for(limits::LINGER_SILENCE), if may_be_silent => None,
            };
        }
        if let Some(Err(error)) = ended {
            debug!("a browser's connection ended: {error}");
        }
    }

    /// A request and its line in the log.
    async fn answer(
        self: Arc<Self>,
        mut request: Request<Incoming>,
        client: Client,
        browser: Browser,
        visits: Visits,
    ) -> Result<Answer, Infallible> {
        let visit = visits.begin();
        let settings = self.proxy.settings();
        let known = client.behind(request.headers(), &settings.trusted);
        let mut entry = self.log.begin(&mut request, &known);
        let request = request.map(|body| Asked::new(body, browser));
        let answer = Arc::clone(&self.proxy).serve(request, client).await;
        if let Some(entry) = &mut entry {
            entry.status = answer.status().as_u16();
        }
        Ok(answer.map(|body| Logged::new(body, entry, visit, settings.idle_timeout)))
    }
}

/// Connections at once.
fn places_max(proxy: &Proxy) -> u32 {
    let connections_max = proxy.settings().requests_max.saturating_mul(limits::CONNECTIONS_PER_REQUEST);
    u32::try_from(connections_max.min(Semaphore::MAX_PERMITS)).unwrap_or(u32::MAX).max(1)
}

/// Serves a browser that speaks HTTP/1 on its connection.
pub fn connection<S>(
    front: &Arc<Front>,
    stream: S,
    client: Client,
    visits: &Visits,
) -> impl GracefulConnection<Error = BodyError> + Send + use<S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let browser = Browser::default();
    let stream = Lingering::new(stream, browser.clone());
    let stream = Checked::new(stream, browser.clone(), front.proxy.live());
    let (front, visits) = (Arc::clone(front), visits.clone());
    let service = service_fn(move |request: Request<Incoming>| {
        Arc::clone(&front).answer(request, client, browser.clone(), visits.clone())
    });
    let mut server = Builder::new(TokioExecutor::new()).http1_only();
    server
        .http1()
        .timer(TokioTimer::new())
        // Times and bounds are the framing check's; hyper's own bound is above them.
        .header_read_timeout(None)
        .max_headers(limits::HEADERS_CEILING);
    server.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned()
}
