//! The control protocol: what nodes, servers and directors tell each other, over Unix sockets on one host and
//! over TCP with TLS between hosts.
//!
//! A frame is a little-endian `u32` length and that many bytes: one postcard-encoded message. A connection
//! begins with [`message::Hello`] and [`message::HelloReply`]; then either side sends its messages. Encoding
//! and checking are pure; the blocking socket is in [`stream`]. Who a peer is, the kernel says on one host
//! ([`stream::Peer`]) and a certificate between hosts ([`member`], [`tls`]); `ca` makes certificates.

#[cfg(any(test, feature = "ca"))]
pub mod ca;
mod channel;
pub mod frame;
pub mod member;
pub mod message;
mod secure;
pub mod stream;
#[cfg(test)]
pub(crate) mod testing;
pub mod tls;
