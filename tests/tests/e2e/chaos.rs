//! Many deaths one after the other, in an order that a seed decides, under load: whatever happens, nothing
//! acked is lost, and the cluster always comes back to full protection by itself.
//!
//! `SELVAGE_SEED=<number> SELVAGE_ROUNDS=<number> cargo nextest run -p selvage-tests chaos` repeats a run and
//! makes it longer.

use selvage_tests::load::{Load, Plan};
use selvage_tests::stage::Stage;
use selvage_tests::strikes::{Dice, Strike};
use std::time::{Duration, Instant};

const ROUNDS: u64 = 8;
const SESSIONS: usize = 300;
const CONNECTIONS: usize = 16;

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
        let strike = *dice.one_of(&Strike::SUDDEN);
        let what = strike.happen(&mut stage, &mut dice, SESSIONS).await;
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
