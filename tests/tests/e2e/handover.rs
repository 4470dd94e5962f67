//! The director hands over to another one, while browsers count in their sessions.

use rustix::process::Signal;
use selvage_tests::cluster::DIRECTOR;
use selvage_tests::load::{Load, Plan};
use selvage_tests::stage::Stage;
use std::time::Duration;

const SESSIONS: usize = 40;
const CONNECTIONS: usize = 4;

#[tokio::test(flavor = "multi_thread")]
async fn no_session_notices_that_another_director_takes_over() {
    let stage = Stage::new(2, 2, 2).await;
    let plan = Plan { sessions: SESSIONS, connections: CONNECTIONS, think: Duration::from_millis(2) };
    let load = Load::start(stage.address(), plan).await.unwrap();
    let before = stage.until_protected(SESSIONS, 2).await;
    for _ in 0..3 {
        let term = stage.admin().view().await.unwrap().epoch.term;
        // To all directors of the group: those that have handed over take no notice.
        stage.signal(DIRECTOR, Signal::USR2).unwrap();
        stage.until("another director", |view| view.epoch.term > term).await;
        stage.until_protected(SESSIONS, 2).await;
    }
    let counted = load.requests();
    let ledger = load.stop().await.unwrap();
    assert!(ledger.failures.is_empty(), "{} of {counted}: {:?}", ledger.failures.len(), ledger.failures);
    let verdict = ledger.verify(stage.address(), CONNECTIONS).await.unwrap();
    assert!(verdict.is_clean() && verdict.sessions == SESSIONS as u64, "{verdict:?}");
    let after = stage.until_protected(SESSIONS, 2).await;
    for node in stage.nodes() {
        assert_eq!(after.incarnation(&node), before.incarnation(&node), "{node} has lived on");
    }
    // The last one is not the process that was started.
    stage.signal(DIRECTOR, Signal::TERM).unwrap();
    stage.end();
}
