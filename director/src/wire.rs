//! Control frames over tokio's Unix sockets. Bytes that arrive are bounded before they are kept and checked
//! before use.

use crate::limits;
use selvage_fabric::control::frame;
use selvage_fabric::error::{Error, ErrorKind, Origin, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

/// Memory is taken for an announced message only as its bytes arrive, this many at a time.
const PIECE_BYTES: usize = 64 << 10;

/// Receives one message of at most `bytes_max` bytes.
///
/// # Errors
/// `Unreachable` when the peer has closed, `Corrupt` for bytes that are no message: drop the connection.
pub async fn receive<T: DeserializeOwned>(from: &mut OwnedReadHalf, bytes_max: usize) -> Result<T> {
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
pub async fn send(to: &mut OwnedWriteHalf, message: &impl Serialize) -> Result<()> {
    let mut bytes = Vec::new();
    frame::encode(message, &mut bytes)?;
    match tokio::time::timeout(limits::SEND_WAIT, to.write_all(&bytes)).await {
        Ok(sent) => sent.map_err(closed),
        Err(_) => Err(Error::new(ErrorKind::Timeout, Origin::Control, "the peer does not read")),
    }
}

fn closed(error: std::io::Error) -> Error {
    Error::new(ErrorKind::Unreachable, Origin::Control, "the connection is gone").with_source(error)
}
