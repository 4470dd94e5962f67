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
//! | `listen` | the browsers' side: doors, connections, their end |
//! | `http2` | connections that speak HTTP/2 |
//! | `logged` | an answer on its way to the browser |
//! | `pace` | whether the browser takes it, in HTTP/2 |
//! | `visits` | the requests of a connection |
//! | `client` | who asks, over what, and through whom |
//! | `settings` | what of the configuration counts for a request |
//! | `framing` | the check of a connection's bytes before hyper reads them, and its times |
//! | `browser` | what the parts know of a browser's connection |
//! | `asked` | a request's body on its way in: limits, and what went wrong with it |
//! | `expect` | bodies that wait until a node wants them |
//! | `tunnel` | upgraded connections |
//! | `redirect` | browsers that shall come with TLS |
//! | `failure` | what a browser is told instead of a node's answer |
//! | `linger` | the end of a browser's connection that is still talking |
//!
//! Held: a request that is not idempotent is sent at most once (a send that certainly did not begin does not
//! count); an answer of an incarnation that is over reaches nobody, because its connections are cut when its
//! view ends.

pub mod asked;
pub mod body;
pub mod browser;
pub mod client;
pub mod expect;
pub mod failure;
pub mod framing;
pub mod headers;
pub mod http2;
pub mod linger;
pub mod listen;
pub mod logged;
pub mod pace;
pub mod phases;
pub mod redirect;
pub mod routes;
pub mod settings;
#[cfg(test)]
mod tests;
pub mod tunnel;
pub mod upstream;
pub mod visits;
