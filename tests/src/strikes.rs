//! What can happen to a cluster, in an order that a seed decides: deaths, pauses, drains and planned
//! restarts, and what an operator does about them.
//!
//! Used by the end-to-end test `chaos` and by `cargo x soak`. As in [`crate::stage`], what is not as it must
//! be is a panic.

use crate::admin::AdminView;
use crate::cluster::DIRECTOR;
use crate::stage::{SOON, Stage};
use rustix::process::{Pid, Signal};
use std::time::{Duration, Instant};

/// SplitMix64: a whole sequence of well mixed numbers from any seed.
#[derive(Debug)]
pub struct Dice(pub u64);

impl Dice {
    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    /// One of them.
    pub fn one_of<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len() as u64) as usize]
    }

    /// Another order.
    pub fn shuffle<T>(&mut self, of: &mut [T]) {
        for at in (1..of.len()).rev() {
            of.swap(at, self.below(at as u64 + 1) as usize);
        }
    }

    /// Waits, for `most_ms` at most.
    pub async fn pause(&mut self, most_ms: u64) {
        tokio::time::sleep(Duration::from_millis(self.below(most_ms))).await;
    }
}

/// One thing that happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strike {
    /// A node is killed.
    KillNode,
    /// A server is killed.
    KillServer,
    /// A server and a node are killed together.
    KillBoth,
    /// All nodes are killed together.
    KillNodes,
    /// One worker of a node is killed.
    KillWorker,
    /// The director is killed.
    KillDirector,
    /// A node stops for a while, and goes on.
    PauseNode,
    /// A server stops for a while, and goes on.
    PauseServer,
    /// A node is drained and taken back.
    Drain,
    /// Planned: each node in turn is drained, restarted and taken back. No request may fail.
    RollNodes,
    /// Planned: each server in turn is restarted. No request may fail.
    RollServers,
    /// Planned: the director is restarted. No request may fail if somebody holds its socket.
    RestartDirector,
    /// Planned: each web server in turn reads its configuration again: new workers, old ones finish.
    ReloadNodes,
    /// Planned: the director reads its configuration again.
    ReloadDirector,
    /// Planned: the director starts its program anew and hands its sockets over. No request may fail.
    UpgradeDirector,
}

impl Strike {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::KillNode,
        Self::KillServer,
        Self::KillBoth,
        Self::KillNodes,
        Self::KillWorker,
        Self::KillDirector,
        Self::PauseNode,
        Self::PauseServer,
        Self::Drain,
        Self::RollNodes,
        Self::RollServers,
        Self::RestartDirector,
        Self::ReloadNodes,
        Self::ReloadDirector,
        Self::UpgradeDirector,
    ];

    /// Those that are not planned.
    pub const SUDDEN: [Self; 9] = [
        Self::KillNode,
        Self::KillServer,
        Self::KillBoth,
        Self::KillNodes,
        Self::KillWorker,
        Self::KillDirector,
        Self::PauseNode,
        Self::PauseServer,
        Self::Drain,
    ];

    /// Whether no request may fail because of it, if all sessions were protected before.
    pub fn spares_all_requests(self) -> bool {
        !Self::SUDDEN.contains(&self) || self == Self::Drain
    }

    /// Lets it happen, and repairs what a person would repair. Returns what it was.
    pub async fn happen(self, stage: &mut Stage, dice: &mut Dice, sessions: usize) -> String {
        let (nodes, servers) = (stage.nodes(), stage.servers());
        let (node, server) = (dice.one_of(&nodes).as_str(), dice.one_of(&servers).as_str());
        match self {
            Self::KillNode => kill(stage, dice, &[node]).await,
            Self::KillServer => kill(stage, dice, &[server]).await,
            Self::KillBoth => kill(stage, dice, &[server, node]).await,
            Self::KillNodes => {
                let all: Vec<&str> = nodes.iter().map(String::as_str).collect();
                kill(stage, dice, &all).await
            }
            Self::KillWorker => {
                let master = stage.process(node).unwrap().pid();
                let worker = stage.process(node).unwrap().pids().into_iter().find(|pid| *pid != master);
                let worker = worker.expect("a worker");
                let pid = Pid::from_raw(worker.cast_signed()).expect("a pid");
                rustix::process::kill_process(pid, Signal::KILL).unwrap();
                // On a busy machine dying takes a while, and what is under way fails only then.
                let deadline = Instant::now() + SOON;
                while stage.process(node).unwrap().pids().contains(&worker) {
                    assert!(Instant::now() < deadline, "worker {worker} of {node} does not die");
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                format!("killed a worker of {node}")
            }
            Self::KillDirector => {
                stage.kill(DIRECTOR).unwrap();
                dice.pause(600).await;
                stage.restart(&[DIRECTOR]).await;
                "killed the director".into()
            }
            Self::PauseNode => {
                pause(stage, dice, node).await;
                stage.until("back", |view| view.node_is(node, "up")).await;
                format!("stopped {node} for a while")
            }
            Self::PauseServer => {
                pause(stage, dice, server).await;
                stage.until("back", |view| view.server_is(server, "up")).await;
                format!("stopped {server} for a while")
            }
            Self::Drain => {
                stage.admin().drain(node).await.unwrap();
                dice.pause(300).await;
                stage.admin().undrain(node).await.unwrap();
                stage.until("back", |view| view.node_is(node, "up")).await;
                format!("drained {node}")
            }
            Self::RollNodes => roll_nodes(stage, sessions).await,
            Self::RollServers => roll_servers(stage, sessions).await,
            Self::RestartDirector => {
                assert!(stage.stop_member(DIRECTOR).unwrap(), "the director does not end when asked");
                stage.restart(&[DIRECTOR]).await;
                "restarted the director".into()
            }
            Self::ReloadNodes => reload_nodes(stage, sessions).await,
            Self::ReloadDirector => {
                stage.reload(DIRECTOR).unwrap();
                "let the director read its configuration again".into()
            }
            Self::UpgradeDirector => {
                stage.upgrade(DIRECTOR).unwrap();
                "let the director start its program anew".into()
            }
        }
    }
}

/// Kills members together and starts them again, sooner or later: also before anybody has noticed their
/// death.
async fn kill(stage: &mut Stage, dice: &mut Dice, names: &[&str]) -> String {
    stage.kill_together(names).unwrap();
    dice.pause(800).await;
    stage.restart(names).await;
    format!("killed {}", names.join(" and "))
}

async fn pause(stage: &Stage, dice: &mut Dice, member: &str) {
    stage.signal(member, Signal::STOP).unwrap();
    dice.pause(1200).await;
    stage.signal(member, Signal::CONT).unwrap();
}

async fn roll_nodes(stage: &mut Stage, sessions: usize) -> String {
    let copies = stage.copies();
    for node in stage.nodes() {
        stage.admin().drain(&node).await.unwrap();
        stage.until("drained", |view| view.node_is(&node, "drained")).await;
        assert!(stage.stop_member(&node).unwrap(), "{node} does not end when asked");
        stage.start_member(&node).unwrap();
        stage.admin().undrain(&node).await.unwrap();
        stage.until("taken back", |view| view.node_is(&node, "up")).await;
        stage.until_protected(sessions, copies).await;
    }
    "restarted all nodes in turn".into()
}

async fn roll_servers(stage: &mut Stage, sessions: usize) -> String {
    let copies = stage.copies();
    for server in stage.servers() {
        assert!(stage.stop_member(&server).unwrap(), "{server} does not end when asked");
        stage.until("it is missed", |view| view.server_is(&server, "down")).await;
        stage.until_protected(sessions, copies).await;
        stage.restart(&[&server]).await;
        stage.until_protected(sessions, copies).await;
    }
    "restarted all servers in turn".into()
}

async fn reload_nodes(stage: &mut Stage, sessions: usize) -> String {
    let copies = stage.copies();
    for node in stage.nodes() {
        let workers = |view: &AdminView| view.node(&node).map(|node| node.pids.clone()).unwrap_or_default();
        let before = workers(&stage.admin().view().await.unwrap());
        stage.reload(&node).unwrap();
        let anew = |view: &AdminView| {
            let now = workers(view);
            now.len() == before.len() && now.iter().all(|pid| !before.contains(pid))
        };
        stage.until("it has new workers only", anew).await;
        stage.until_protected(sessions, copies).await;
    }
    "let all nodes read their configuration again in turn".into()
}
