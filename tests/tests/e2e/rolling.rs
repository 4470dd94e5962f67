//! Everything that an operator does on purpose, under load, one after the other: no request may fail.

use selvage_tests::cluster::Options;
use selvage_tests::load::{Load, Plan};
use selvage_tests::stage::{Stage, options};
use selvage_tests::strikes::{Dice, Strike};
use std::time::{Duration, Instant};

const SESSIONS: usize = 200;
const CONNECTIONS: usize = 16;
/// A machine that is busy with other tests leaves a process without a processor for longer than the default
/// silence now and then: that would be a death that nobody has planned.
const TIMING: &str = "[timing]\nmandate_ms = 2500\nsilence_ms = 3000\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_of_every_part_fails_no_request() {
    let base = options();
    let tables = format!("{}{TIMING}", base.tables);
    // Three servers, so that two copies are there while one of them is restarted.
    let mut stage = Stage::with(Options { servers: 3, hold_socket: true, tables, ..base }).await;
    let plan = Plan { sessions: SESSIONS, connections: CONNECTIONS, think: Duration::from_millis(5) };
    let load = Load::start(stage.address(), plan).await.unwrap();
    let mut dice = Dice(0);
    for strike in Strike::ALL.into_iter().filter(|strike| strike.spares_all_requests()) {
        stage.until_protected(SESSIONS, 2).await;
        let began = Instant::now();
        let what = strike.happen(&mut stage, &mut dice, SESSIONS).await;
        stage.until_protected(SESSIONS, 2).await;
        println!("{what}: {} ms", began.elapsed().as_millis());
        assert_eq!(load.failed(), 0, "{what}: {:?}", load.newest_failure());
    }
    let ledger = load.stop().await.unwrap();
    let verdict = ledger.verify(stage.address(), CONNECTIONS).await.unwrap();
    println!("{} requests, {verdict:?}", ledger.requests);
    assert!(ledger.failures.is_empty(), "{:?}", ledger.failures);
    assert!(verdict.is_clean(), "{verdict:?}");
    assert_eq!(verdict.sessions, SESSIONS as u64);
    stage.end();
}
