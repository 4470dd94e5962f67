//! The director: an HTTP/1.1 reverse proxy that routes each request to the node that hosts its session, and
//! the owner of the view in a cluster with a single director.
//!
//! [`cluster`] decides, purely; [`driver`] gives it events and carries its effects out; [`control`] and
//! [`server_link`] are the connections to nodes and servers, over this host's sockets or ([`remote`]) over
//! TCP and TLS; [`proxy`] serves browsers; [`admin`] and [`metrics`] serve operators; [`place`],
//! [`inherited`] and [`daemon`] start and stop it all. [`tool`] is the command `selvage`.

#![forbid(unsafe_code)]

pub mod admin;
pub mod cluster;
pub mod control;
pub mod daemon;
pub mod driver;
pub mod inherited;
pub mod limits;
pub mod lobby;
pub mod metrics;
pub mod place;
pub mod proxy;
pub mod remote;
pub mod server_link;
pub mod tool;
pub mod wire;
