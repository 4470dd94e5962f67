//! The framing check in front of hyper: what does not say in exactly one way where a request ends is refused,
//! before anybody acts on it.
//!
//! hyper forgives: it takes an LF for a line's end, lets `Transfer-Encoding` win over a `Content-Length` and
//! drops that one silently, and reads some heads that others read differently. A chain of readers that
//! forgive differently lets one request hide in another. So the bytes of a browser's HTTP/1 connection pass
//! this check first ([`Checked`]), which follows them with a machine of its own ([`Framing`]).
//!
//! Invariants:
//!
//! 1. hyper gets a request's head only whole and found good; until then it is held, at most
//!    `header_bytes_max` bytes of it.
//! 2. A body is passed on as it comes. Of a chunk-size line or a trailer that turns out bad, hyper may have
//!    got the beginning, and then gets an error: nobody ever has the whole request.
//! 3. After the first bad byte nothing of the connection is passed on any more. In the place of a bad head
//!    hyper gets a request that was not sent, [`REFUSED`], so that it is answered in its turn behind requests
//!    before it; the phases know it by its number ([`Browser::begin`]) and answer the fault.
//! 4. What is passed does not depend on how the bytes were cut in pieces.
//! 5. Behind a request that asks for another protocol nothing is passed before it is answered: with `101`
//!    everything after it passes unchecked, as it is no HTTP; with anything else it is checked as the next
//!    request.
//! 6. Memory is bounded: a head, and what one read of hyper's brings.
//!
//! The times of a connection are kept here, too, because only here is it known whether it waits for a
//! request, for the rest of a head, or for an answer.
//!
//! [`Browser::begin`]: crate::proxy::browser::Browser::begin

mod checked;
mod fault;
mod machine;
#[cfg(test)]
mod tests;

pub use checked::{Checked, REFUSED, REFUSED_HEAD};
pub use fault::Fault;
pub use machine::{Bounds, Event, Framing, Taken};
