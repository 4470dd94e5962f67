//! The browsers' side: accepts connections, serves requests on them, ends in an orderly way.
//!
//! A planned restart costs no request if somebody else holds the listening socket (`crate::inherited`): who
//! comes meanwhile waits in the kernel's queue, and nobody is accepted before there is a view to route by. At
//! the end every request that is on its way is answered, with `Connection: close`; only then connections
//! without one are closed.

use crate::limits;
use crate::proxy::linger::{Asked, Lingering, Unread};
use crate::proxy::phases::Proxy;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulConnection, GracefulShutdown};
use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// Serves browsers from the first view until `stop`, then lets the requests under way end, bounded.
pub async fn listen(proxy: Arc<Proxy>, listener: TcpListener, requests_max: usize, stop: CancellationToken) {
    let connections_max = requests_max.saturating_mul(limits::CONNECTIONS_PER_REQUEST);
    let connections_max = u32::try_from(connections_max).unwrap_or(u32::MAX).max(1);
    let places = Arc::new(Semaphore::new((connections_max as usize).min(Semaphore::MAX_PERMITS)));
    let graceful = GracefulShutdown::new();
    tokio::select! {
        () = stop.cancelled() => {}
        () = proxy.recovered() => {}
    }
    loop {
        // Without a free place the kernel's queue holds the next connection.
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = async {
                let place = Arc::clone(&places).acquire_owned().await;
                (place, listener.accept().await)
            } => accepted,
        };
        let (place, (stream, client)) = match accepted {
            (place, Ok(accepted)) => (place, accepted),
            (_, Err(error)) => {
                warn!("cannot accept a connection: {error}");
                tokio::time::sleep(limits::ACCEPT_PAUSE).await;
                continue;
            }
        };
        if let Err(error) = stream.set_nodelay(true) {
            debug!("a connection was gone at once: {error}");
            continue;
        }
        let connection = graceful.watch(connection(Arc::clone(&proxy), stream, client.ip()));
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                debug!("a browser's connection ended: {error}");
            }
            drop(place);
        });
    }
    drop(listener);
    proxy.close_connections();
    // An idle connection that is closed at once may meet a request half-way, which nobody would answer. All
    // permits are free when all connections have ended.
    let _ = tokio::time::timeout(limits::IDLE_WAIT, places.acquire_many(connections_max)).await;
    let mut ending = pin!(graceful.shutdown());
    if tokio::time::timeout(limits::STOP_WAIT, &mut ending).await.is_ok() {
        return;
    }
    proxy.give_up();
    if tokio::time::timeout(limits::LAST_WAIT, ending).await.is_err() {
        warn!("requests were still under way {} s after the stop; they are cut", limits::STOP_WAIT.as_secs());
    }
}

/// Serves a browser on its connection.
pub fn connection<S>(
    proxy: Arc<Proxy>,
    stream: S,
    client: IpAddr,
) -> impl GracefulConnection<Error = hyper::Error> + Send
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let unread = Unread::default();
    let stream = Lingering::new(stream, unread.clone());
    let service = service_fn(move |request: Request<Incoming>| {
        let proxy = Arc::clone(&proxy);
        let request = request.map(|body| Asked::new(body, unread.clone()));
        async move { Ok::<_, Infallible>(proxy.serve(request, client).await) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits::HEAD_WAIT)
        .serve_connection(TokioIo::new(stream), service)
}
