//! Control frames over tokio's sockets, Unix or TLS. Bytes that arrive are bounded before they are kept and
//! checked before use.

use crate::limits;
use selvage_fabric::control::frame;
use selvage_fabric::control::tls::io_failed;
use selvage_fabric::error::{Error, ErrorKind, Origin, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;

/// Memory is taken for an announced message only as its bytes arrive, this many at a time.
const PIECE_BYTES: usize = 64 << 10;

/// The half of a connection that receives.
pub type From = Box<dyn AsyncRead + Send + Unpin>;
/// The half of a connection that sends.
pub type To = Box<dyn AsyncWrite + Send + Unpin>;

/// The halves of a connection on this host.
pub fn halves_of_unix(stream: UnixStream) -> (From, To) {
    let (from, to) = stream.into_split();
    (Box::new(from), Box::new(to))
}

/// Receives one message of at most `bytes_max` bytes.
///
/// # Errors
/// `Unreachable` when the peer has closed, `Timeout` when its host has vanished, `Corrupt` for bytes that are
/// no message: drop the connection.
pub async fn receive<T: DeserializeOwned>(from: &mut From, bytes_max: usize) -> Result<T> {
    let mut prefix = [0; frame::PREFIX_BYTES];
    from.read_exact(&mut prefix).await.map_err(closed)?;
    let bytes = frame::body_bytes(prefix)?;
    if bytes > bytes_max {
        let why = format!("a message of {bytes} bytes was announced; the limit here is {bytes_max}");
        return Err(Error::new(ErrorKind::Corrupt, Origin::Control, why));
    }
    let mut body = Vec::with_capacity(bytes.min(PIECE_BYTES));
    while body.len() < bytes {
        let start = body.len();
        body.resize(bytes.min(start + PIECE_BYTES), 0);
        from.read_exact(&mut body[start..]).await.map_err(closed)?;
    }
    frame::decode(&body)
}

/// Sends one message, bounded by [`limits::SEND_WAIT`].
///
/// # Errors
/// `TooLarge`, `Timeout`, `Unreachable`: drop the connection.
pub async fn send(to: &mut To, message: &impl Serialize) -> Result<()> {
    let mut bytes = Vec::new();
    frame::encode(message, &mut bytes)?;
    let sending = async {
        to.write_all(&bytes).await?;
        // TLS keeps what the socket did not take at once.
        to.flush().await
    };
    match tokio::time::timeout(limits::SEND_WAIT, sending).await {
        Ok(sent) => sent.map_err(closed),
        Err(_) => Err(Error::new(ErrorKind::Timeout, Origin::Control, "the peer does not read")),
    }
}

fn closed(error: std::io::Error) -> Error {
    match error.kind() {
        std::io::ErrorKind::TimedOut => {
            Error::new(ErrorKind::Timeout, Origin::Control, "the peer's host has vanished").with_source(error)
        }
        // With TLS a peer that does not accept our certificate says so only now.
        _ => io_failed(error),
    }
}
