//! What the state machine must know of the configuration.

use super::Out;
use crate::limits;
use selvage_fabric::config::Config;
use selvage_fabric::view::View;
use std::time::Duration;

/// What the state machine must know of the configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Interval of heartbeats to servers.
    pub heartbeat: Duration,
    /// Life of a mandate.
    pub mandate: Duration,
    /// Silence after which a peer is declared down.
    pub silence: Duration,
    /// Longest time that the proxy holds a request; a drain must be much shorter.
    pub hold: Duration,
    /// Interval of ticks that the driver aims at.
    pub tick: Duration,
    /// Copies of each session.
    pub copies: u32,
    /// Name and address of each configured node.
    pub nodes: Vec<(String, String)>,
    /// Each configured server.
    pub servers: Vec<ServerSettings>,
    /// Nodes that were kept out when the last director ended, and why.
    pub drained: Vec<(String, Out)>,
    /// The least term: the Unix time at start, s, and above the term of the last director here.
    pub term_min: u32,
    /// The last view of the last director here.
    pub kept: Option<View>,
}

/// What the state machine must know of a configured server.
#[derive(Clone, Debug)]
pub struct ServerSettings {
    /// Its name.
    pub name: String,
    /// Its weight in the placement.
    pub weight: u32,
    /// Its control socket, on its own host.
    pub socket: String,
    /// Where it listens for other hosts, if it does.
    pub control: Option<String>,
}

impl Settings {
    /// From the configuration file.
    pub fn new(config: &Config, term_min: u32, drained: Vec<(String, Out)>, kept: Option<View>) -> Self {
        let timing = &config.timing;
        Self {
            heartbeat: timing.heartbeat(),
            mandate: timing.mandate(),
            silence: timing.silence(),
            hold: Duration::from_millis(config.director.hold_ms),
            tick: (timing.heartbeat() / limits::TICKS_PER_HEARTBEAT).max(limits::TICK_MIN),
            copies: config.cluster.copies,
            nodes: config.nodes.iter().map(|node| (node.name.clone(), node.address.to_string())).collect(),
            servers: config
                .servers
                .iter()
                .map(|server| ServerSettings {
                    name: server.name.clone(),
                    weight: server.weight,
                    socket: config.server_socket(&server.name).to_string_lossy().into_owned(),
                    control: server.control.map(|address| address.to_string()),
                })
                .collect(),
            drained,
            term_min,
            kept,
        }
    }
}
