//! Frames: a little-endian `u32` length and that many bytes, one postcard message. Pure; the director uses it with tokio.

use crate::error::Result;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes of the length before each message.
pub const PREFIX_BYTES: usize = 4;

/// Appends a frame to `out`.
///
/// # Errors
/// `TooLarge` over `MESSAGE_BYTES_MAX`; `out` is then as it was.
pub fn encode(_message: &impl Serialize, _out: &mut Vec<u8>) -> Result<()> {
    unimplemented!()
}

/// Length of the message that a prefix announces.
///
/// # Errors
/// `Corrupt` if it is 0 or over `MESSAGE_BYTES_MAX`: the peer must be cut off.
pub fn body_bytes(_prefix: [u8; PREFIX_BYTES]) -> Result<usize> {
    unimplemented!()
}

/// The message in a frame's body.
///
/// # Errors
/// `Corrupt` if the bytes are not exactly one message: the peer must be cut off.
pub fn decode<T: DeserializeOwned>(_body: &[u8]) -> Result<T> {
    unimplemented!()
}
