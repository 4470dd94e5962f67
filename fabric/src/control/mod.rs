//! The control protocol: what nodes, servers and directors tell each other over Unix sockets (and later TCP
//! with TLS).
//!
//! A frame is a little-endian `u32` length and that many bytes: one postcard-encoded message. A connection
//! begins with [`message::Hello`] and [`message::HelloReply`]; then either side sends its messages. Encoding
//! and checking are pure; the blocking socket is in [`stream`].

pub mod frame;
pub mod member;
pub mod message;
pub mod stream;
pub mod tls;
