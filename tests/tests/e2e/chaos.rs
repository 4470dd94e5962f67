//! Many deaths one after the other, in an order that a seed decides, under load: whatever happens, nothing
//! acked is lost, and the cluster always comes back to full protection by itself.
//!
//! `SELVAGE_SEED=<number> SELVAGE_ROUNDS=<number> cargo nextest run -p selvage-tests chaos` repeats a run and
//! makes it longer.

use rustix::process::{Pid, Signal};
use selvage_tests::load::{Load, Plan};
use selvage_tests::stage::Stage;
use std::time::{Duration, Instant};

const ROUNDS: u64 = 8;
const SESSIONS: usize = 300;
const CONNECTIONS: usize = 16;
const NODES: [&str; 3] = ["n1", "n2", "n3"];
const SERVERS: [&str; 3] = ["s1", "s2", "s3"];

/// SplitMix64: a whole sequence of well mixed numbers from any seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    fn one_of<'a>(&mut self, names: &[&'a str]) -> &'a str {
        names[self.below(names.len() as u64) as usize]
    }

    async fn pause(&mut self, most_ms: u64) {
        tokio::time::sleep(Duration::from_millis(self.below(most_ms))).await;
    }
}

fn number_of(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn chaos_loses_nothing_that_was_acked() {
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let seed = number_of("SELVAGE_SEED").unwrap_or(clock.as_nanos() as u64);
    let rounds = number_of("SELVAGE_ROUNDS").unwrap_or(ROUNDS);
    println!("again: SELVAGE_SEED={seed} SELVAGE_ROUNDS={rounds} cargo nextest run -p selvage-tests chaos");
    let mut dice = Dice(seed);
    let mut stage = Stage::new(3, 3, 2).await;
    let plan = Plan { sessions: SESSIONS, connections: CONNECTIONS, think: Duration::from_millis(5) };
    let load = Load::start(stage.address(), plan).await.unwrap();
    for round in 0..rounds {
        let began = Instant::now();
        let what = strike(&mut stage, &mut dice).await;
        stage.until_protected(SESSIONS, 2).await;
        println!("{round}: {what}: safe after {} ms", began.elapsed().as_millis());
        dice.pause(300).await;
    }
    let ledger = load.stop().await.unwrap();
    let verdict = ledger.verify(stage.address(), CONNECTIONS).await.unwrap();
    println!("{} requests, {} failed, {verdict:?}", ledger.requests, ledger.failures.len());
    assert!(verdict.is_clean(), "seed {seed}: {verdict:?}");
    assert_eq!(verdict.sessions, SESSIONS as u64);
    let view = stage.until_protected(SESSIONS, 2).await;
    assert_eq!(view.sessions(), SESSIONS as u64, "no session is hosted twice, and none is forgotten");
    stage.end();
}

/// Does one bad thing and repairs what a person would repair.
async fn strike(stage: &mut Stage, dice: &mut Dice) -> String {
    let (node, server) = (dice.one_of(&NODES), dice.one_of(&SERVERS));
    match dice.below(9) {
        0 => kill(stage, dice, &[node]).await,
        1 => kill(stage, dice, &[server]).await,
        2 => kill(stage, dice, &[server, node]).await,
        3 => {
            stage.signal(node, Signal::STOP).unwrap();
            dice.pause(1200).await;
            stage.signal(node, Signal::CONT).unwrap();
            stage.until("back", |view| view.node_is(node, "up")).await;
            format!("stopped {node} for a while")
        }
        4 => {
            stage.signal(server, Signal::STOP).unwrap();
            dice.pause(1200).await;
            stage.signal(server, Signal::CONT).unwrap();
            stage.until("back", |view| view.server_is(server, "up")).await;
            format!("stopped {server} for a while")
        }
        5 => {
            stage.admin().drain(node).await.unwrap();
            dice.pause(300).await;
            stage.admin().undrain(node).await.unwrap();
            stage.until("back", |view| view.node_is(node, "up")).await;
            format!("drained {node}")
        }
        6 => {
            let master = stage.process(node).unwrap().pid();
            let worker = stage.process(node).unwrap().pids().into_iter().find(|pid| *pid != master);
            let pid = worker.and_then(|pid| Pid::from_raw(pid.cast_signed())).expect("a worker");
            rustix::process::kill_process(pid, Signal::KILL).unwrap();
            format!("killed a worker of {node}")
        }
        7 => {
            stage.kill("director").unwrap();
            dice.pause(600).await;
            stage.restart(&["director"]).await;
            "killed the director".into()
        }
        _ => kill(stage, dice, &NODES).await,
    }
}

/// Kills members together and starts them again, sooner or later: also before anybody has noticed their
/// death.
async fn kill(stage: &mut Stage, dice: &mut Dice, names: &[&str]) -> String {
    let before = stage.admin().view().await.unwrap();
    let lives: Vec<_> = names.iter().filter_map(|name| before.incarnation(name)).collect();
    stage.kill_together(names).unwrap();
    dice.pause(800).await;
    stage.restart(names).await;
    stage.until("the old lives are over", |view| lives.iter().all(|life| view.host(*life).is_none())).await;
    format!("killed {}", names.join(" and "))
}
