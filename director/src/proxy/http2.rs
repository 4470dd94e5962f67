//! A browser's connection that speaks HTTP/2: bounds of what one browser can take.
//!
//! A stream is a request like any other; what is of a connection in HTTP/1.1 (the framing check, lingering)
//! is a stream's or the protocol's own here. hyper has no time limit for a connection without streams, so
//! [`crate::proxy::listen`] ends those, and none for a stream that the browser does not take, so
//! [`crate::proxy::pace`] ends that.

use crate::limits;
use crate::proxy::framing::{Bounds, Fault};
use crate::proxy::pace::Streams;
use hyper::body::{Body, Bytes, Incoming};
use hyper::http::request::Parts;
use hyper::server::conn::http2;
use hyper::service::HttpService;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;
use std::error::Error as StdError;
use std::future::Future;
use tokio::io::{AsyncRead, AsyncWrite};

/// What the framing check finds of a head in HTTP/1: hyper bounds the whole of it, not its parts.
pub fn check(head: &Parts, bounds: &Bounds) -> Option<Fault> {
    let target = head.uri.path_and_query().map_or(0, |target| target.as_str().len());
    if target > bounds.target_bytes_max {
        return Some(Fault::Target);
    }
    (head.headers.len() > bounds.headers_max).then_some(Fault::HeaderCount)
}

/// Serves a browser on its connection; a request's head may have so many bytes.
pub fn connection<IO, S, B>(
    stream: IO,
    head_bytes_max: usize,
    service: S,
) -> impl GracefulConnection<Error = hyper::Error> + Send
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: HttpService<Incoming, ResBody = B> + Send + 'static,
    S::Error: Into<Box<dyn StdError + Send + Sync>>,
    S::Future: Future + Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    http2::Builder::new(Streams)
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits::STREAMS_MAX)
        .max_header_list_size(u32::try_from(head_bytes_max).unwrap_or(u32::MAX))
        .initial_stream_window_size(limits::STREAM_WINDOW_BYTES)
        .initial_connection_window_size(limits::CONNECTION_WINDOW_BYTES)
        .max_frame_size(limits::FRAME_BYTES_MAX)
        .max_send_buf_size(limits::SEND_BUFFER_BYTES)
        // Floods of streams that are reset as soon as they begin, by them or by us, end the connection.
        .max_pending_accept_reset_streams(limits::RESETS_PENDING_MAX)
        .max_local_error_reset_streams(limits::RESETS_LOCAL_MAX)
        .keep_alive_interval(limits::PING_PAUSE)
        .keep_alive_timeout(limits::PING_WAIT)
        .serve_connection(TokioIo::new(stream), service)
}
