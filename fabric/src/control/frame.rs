//! Frames: a little-endian `u32` length and that many bytes, one postcard message. Pure; the director uses it
//! with tokio.

use crate::error::{Error, ErrorKind, Origin, Result};
use crate::limits::MESSAGE_BYTES_MAX;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes of the length before each message.
pub const PREFIX_BYTES: usize = 4;

/// Appends a frame to `out`.
///
/// # Errors
/// `TooLarge` over `MESSAGE_BYTES_MAX`; `out` is then as it was.
pub fn encode(message: &impl Serialize, out: &mut Vec<u8>) -> Result<()> {
    let begin = out.len();
    out.extend_from_slice(&[0; PREFIX_BYTES]);
    let appended = postcard::to_extend(message, Appender(out)).map(|_| ());
    let bytes = out.len() - begin - PREFIX_BYTES;
    if let Err(error) = appended {
        out.truncate(begin);
        let what = "a control message cannot be encoded";
        return Err(Error::new(ErrorKind::Invalid, Origin::Control, what).with_source(error));
    }
    if bytes > MESSAGE_BYTES_MAX {
        out.truncate(begin);
        let what = format!("a control message has {bytes} bytes; the limit is {MESSAGE_BYTES_MAX}");
        return Err(Error::new(ErrorKind::TooLarge, Origin::Control, what));
    }
    // The limit is far below u32::MAX.
    out[begin..begin + PREFIX_BYTES].copy_from_slice(&(bytes as u32).to_le_bytes());
    Ok(())
}

/// Length of the message that a prefix announces.
///
/// # Errors
/// `Corrupt` if it is 0 or over `MESSAGE_BYTES_MAX`: the peer must be cut off.
pub fn body_bytes(prefix: [u8; PREFIX_BYTES]) -> Result<usize> {
    body_bytes_within(prefix, MESSAGE_BYTES_MAX)
}

/// As [`body_bytes`], with a lower limit: for peers that have not said hello.
///
/// # Errors
/// As [`body_bytes`].
pub fn body_bytes_within(prefix: [u8; PREFIX_BYTES], limit: usize) -> Result<usize> {
    let bytes = u32::from_le_bytes(prefix) as usize;
    if bytes == 0 || bytes > limit {
        let what = format!("a peer announced a control message of {bytes} bytes; 1 to {limit} are allowed");
        return Err(Error::new(ErrorKind::Corrupt, Origin::Control, what));
    }
    Ok(bytes)
}

/// The message in a frame's body.
///
/// # Errors
/// `Corrupt` if the bytes are not exactly one message: the peer must be cut off.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T> {
    let corrupt = |what: &str| {
        let what = format!("{} bytes from a peer are no {}: {what}", body.len(), std::any::type_name::<T>());
        Error::new(ErrorKind::Corrupt, Origin::Control, what)
    };
    match postcard::take_from_bytes(body) {
        Ok((message, [])) => Ok(message),
        Ok((_, rest)) => Err(corrupt(&format!("{} bytes are left over", rest.len()))),
        Err(error) => Err(corrupt("it cannot be decoded").with_source(error)),
    }
}

/// Lets postcard append to a vector that it does not own.
struct Appender<'a>(&'a mut Vec<u8>);

impl Extend<u8> for Appender<'_> {
    fn extend<I: IntoIterator<Item = u8>>(&mut self, bytes: I) {
        self.0.extend(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::message::{FromServer, Refusal, ToServer};
    use crate::ident::SessionId;

    #[test]
    fn frames_round_trip_and_append() {
        let mut out = vec![9];
        let message = ToServer::Fetch { ids: vec![SessionId([1; 16]), SessionId([2; 16])] };
        encode(&message, &mut out).unwrap();
        assert_eq!(out[0], 9);
        let (prefix, body) = out[1..].split_first_chunk::<PREFIX_BYTES>().unwrap();
        assert_eq!(body_bytes(*prefix).unwrap(), body.len());
        assert_eq!(decode::<ToServer>(body).unwrap(), message);
    }

    #[test]
    fn lengths_out_of_bounds_are_named() {
        for bad in [0_u32, MESSAGE_BYTES_MAX as u32 + 1, u32::MAX] {
            let error = body_bytes(bad.to_le_bytes()).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Corrupt);
            assert!(error.context.contains(&bad.to_string()), "{error}");
        }
        assert_eq!(body_bytes(1_u32.to_le_bytes()).unwrap(), 1);
        assert_eq!(body_bytes((MESSAGE_BYTES_MAX as u32).to_le_bytes()).unwrap(), MESSAGE_BYTES_MAX);
    }

    #[test]
    fn a_message_over_the_limit_is_not_sent() {
        let mut out = vec![1, 2, 3];
        let message = Refusal::Bad("x".repeat(MESSAGE_BYTES_MAX));
        let error = encode(&message, &mut out).unwrap_err();
        assert_eq!((error.kind, out), (ErrorKind::TooLarge, vec![1, 2, 3]));
    }

    #[test]
    fn left_over_bytes_are_refused() {
        let mut out = Vec::new();
        encode(&FromServer::Done, &mut out).unwrap();
        out.push(0);
        assert_eq!(decode::<FromServer>(&out[PREFIX_BYTES..]).unwrap_err().kind, ErrorKind::Corrupt);
    }

    #[test]
    fn hostile_bodies_are_errors_or_messages() {
        let mut rng = crate::archive::testing::Rng(42);
        let mut refused = 0;
        for _ in 0..20_000 {
            let mut body = vec![0; rng.below(64) as usize];
            body.iter_mut().for_each(|byte| *byte = rng.next() as u8);
            match decode::<ToServer>(&body) {
                Err(error) => {
                    assert_eq!(error.kind, ErrorKind::Corrupt);
                    refused += 1;
                }
                Ok(message) => drop(message),
            }
            let _ = decode::<FromServer>(&body);
        }
        assert!(refused > 10_000, "{refused}");
    }
}
