//! What cluster to start.

use super::{Hosts, LOG_VARIABLE, WebServer};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

/// What cluster to start.
#[derive(Debug, Clone)]
pub struct Options {
    /// Name of the cluster.
    pub name: String,
    /// Web nodes; they are called n1, n2, …
    pub nodes: u32,
    /// Session servers; they are called s1, s2, …
    pub servers: u32,
    /// Copies of each session.
    pub copies: u32,
    /// Processes of each web node that is an nginx.
    pub workers: u32,
    /// What each web node is; nginx for those not named.
    pub web_servers: BTreeMap<String, WebServer>,
    /// The director's port; a free one if not given.
    pub port: Option<u16>,
    /// The admin API's port; a free one if not given.
    pub admin_port: Option<u16>,
    /// Weights of the servers; 1 for those not named.
    pub weights: Vec<u32>,
    /// More lines for `[cluster]`.
    pub cluster: String,
    /// More lines for `[director]`.
    pub director: String,
    /// More tables of the configuration.
    pub tables: String,
    /// The run folder; one of its own below the temporary folder if not given.
    pub folder: Option<PathBuf>,
    /// Members that are configured, but started only later by [`super::Cluster::start_member`].
    pub later: Vec<String>,
    /// The hosts, if there are several.
    pub hosts: Option<Hosts>,
    /// How many times longer everything may take than on an ordinary machine.
    pub patience: u32,
    /// The launcher holds the socket where browsers connect, as a service manager would, so that connections
    /// wait while the director restarts.
    pub hold_socket: bool,
    /// What the members write into their logs, as `SELVAGE_LOG` has it; empty: what the launcher's own
    /// environment says.
    pub log: String,
    /// The web nodes' processes have the launcher's own user, even if it is root: for programs that are a
    /// node themselves.
    pub nodes_are_launchers: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            name: "selvage".into(),
            nodes: 3,
            servers: 2,
            copies: 2,
            workers: 2,
            web_servers: BTreeMap::new(),
            port: None,
            admin_port: None,
            weights: Vec::new(),
            cluster: String::new(),
            director: String::new(),
            // Every segment is allocated whole at its start, so a cluster on one host takes no more than it
            // needs.
            tables: "[memory]\nsessions_max = 16384\ncache_bytes = 33554432\nlease_bytes = 33554432\n".into(),
            folder: None,
            later: Vec::new(),
            hosts: None,
            patience: 1,
            hold_socket: false,
            log: String::new(),
            nodes_are_launchers: false,
        }
    }
}

impl Options {
    /// Names of the web nodes.
    pub fn node_names(&self) -> impl Iterator<Item = String> + use<> {
        (1..=self.nodes).map(|number| format!("n{number}"))
    }

    /// What a web node is.
    pub fn web_server(&self, node: &str) -> WebServer {
        self.web_servers.get(node).copied().unwrap_or_default()
    }

    pub(super) fn ask_for_log(&self, command: &mut Command) {
        if !self.log.is_empty() {
            command.env(LOG_VARIABLE, &self.log);
        }
    }

    /// Names of the session servers.
    pub fn server_names(&self) -> impl Iterator<Item = String> + use<> {
        (1..=self.servers).map(|number| format!("s{number}"))
    }
}
