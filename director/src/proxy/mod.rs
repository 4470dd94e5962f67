//! The proxy: from a browser's request to the answer of the node that hosts its session.
//!
//! ```text
//!  request ─► admit ─► identify ─► keep_body ─► choose ◄──────────────┐
//!             (limit)  (cookie)    (to re-send)  │  ▲ waits for the view│
//!                                                ▼  │                   │
//!                                              send to the node         │
//!                                                │                      │
//!                                              judge ──elsewhere, unsent, lost and repeatable
//!                                                │
//!                                                ▼
//!                                              answer ─► response, streamed
//! ```
//!
//! | file | phase |
//! |---|---|
//! | `phases` | the phases, in this order |
//! | `routes` | the table that the view makes, and the choice of a node |
//! | `upstream` | a node incarnation: its connections, which can be cut, and its load |
//! | `body` | request bodies that can be sent again, response bodies that keep their place |
//! | `headers` | what may pass and what may not |
//! | `listen` | the browsers' side |
//! | `linger` | the end of a browser's connection that is still talking |
//!
//! Held: a request that is not idempotent is sent at most once (a send that certainly did not begin does not
//! count); an answer of an incarnation that is over reaches nobody, because its connections are cut when its
//! view ends.

pub mod body;
pub mod headers;
pub mod linger;
pub mod listen;
pub mod phases;
pub mod routes;
#[cfg(test)]
mod tests;
pub mod upstream;
