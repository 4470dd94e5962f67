//! The director: an HTTP reverse proxy that routes each request to the node that hosts its session, and
//! the owner of the view in a cluster with a single director.
//!
//! [`cluster`] decides, purely; [`driver`] gives it events and carries its effects out; [`control`] and
//! [`server_link`] are the connections to nodes and servers, over this host's sockets or ([`remote`]) over
//! TCP and TLS; [`proxy`] serves browsers, [`tls`] lets them in; [`admin`], [`sessions`], [`metrics`] and
//! [`access_log`] serve operators; [`health`] asks web servers; [`place`], [`inherited`], [`control_side`]
//! and [`daemon`] start and stop it all, [`reload`] and [`handover`] change it while it runs. [`tool`] is
//! the command `selvage`, and [`manual`] writes the programs' manual pages.

#![forbid(unsafe_code)]

pub mod access_log;
pub mod admin;
pub mod cluster;
pub mod control;
pub mod control_side;
pub mod daemon;
pub mod driver;
pub mod handover;
pub mod health;
pub mod inherited;
pub mod limits;
pub mod lobby;
pub mod manual;
pub mod metrics;
pub mod place;
pub mod proxy;
pub mod reload;
pub mod remote;
pub mod server_link;
pub mod sessions;
pub mod tls;
pub mod tool;
pub mod weights;
pub mod wire;
