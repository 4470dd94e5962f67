//! A model of ownership, epochs and takeover, and all of its states (`cargo x model`).
//!
//! Two nodes, two session servers, one director, one session, and any two faults at any moment: a death of
//! anybody (with or without a return), a pause that outlasts every limit, a cut connection (control or push;
//! healed or not), a push that hangs and arrives late, a lost answer, a node's second life beside its first.
//! Everything else happens in any order, too: views arrive late, mandates run out, servers come back empty.
//!
//! It is written anew, with small numbers, because the production's state machines have too many states that
//! differ in nothing that matters here. Each step names the function of the production that it stands for;
//! comparing epochs and versions and choosing places is the production's own code.
//!
//! | file | stands for |
//! |---|---|
//! | `director` | `director/src/cluster` |
//! | `server` | `session-server/src/decide`: views, claims, leases |
//! | `owner` | `fabric/src/node`: commit, push, sweep, destroy, steward |
//! | `adopter` | `fabric/src/node`: fetch, claims, adopt |
//! | `cluster` | what may happen when, and the properties |
//! | `canon` | states that differ in names only are one |
//! | `setting` | how many faults, and the parts of rules that can be left out |
//! | `teeth` | that the model notices when one is left out |
//!
//! Not in it: time as a number (a limit may pass at any moment at which it could), expiry, drains, sessions
//! beside each other, and what lies below a push (`transport/chaos` and loom are about that).

mod adopter;
mod canon;
mod cluster;
mod director;
mod owner;
mod server;
mod setting;
mod state;
mod teeth;

use cluster::{Cluster, Kind};
use setting::{Setting, Sight};
use stateright::{Checker, DiscoveryClassification, Model};
use std::time::{Duration, Instant};

/// What a check may take; one that is cut off there has not seen everything, and fails.
const LONG: Duration = Duration::from_secs(1200);

/// Reaches all states; what was seen.
fn check(name: &str, setting: Setting) -> Setting {
    let began = Instant::now();
    let checker = Cluster(setting.clone()).checker().threads(2).timeout(LONG).spawn_bfs().join();
    let took = began.elapsed();
    println!(
        "model: {name}: 2 nodes, 2 servers, 1 director, {} faults: {} states, {} unique, {} deep, {:.1} s",
        setting.faults,
        checker.state_count(),
        checker.unique_state_count(),
        checker.max_depth(),
        took.as_secs_f64()
    );
    let times = Sight::ALL.map(|sight| format!("{sight:?} {}", setting.times(sight)));
    println!("model: {name}: {}", times.join(", "));
    for (property, path) in checker.discoveries() {
        if is_counterexample(checker.discovery_classification(property)) {
            panic!("{property}: {:?}\n{:#?}", path.clone().into_actions(), path.last_state());
        }
    }
    assert!(took < LONG, "not all states were reached in time");
    if setting.kinds == Kind::ALL {
        let figure = if setting.destroys { "model.ends" } else { "model.states" };
        println!("figure: {figure} {}", checker.unique_state_count());
        checker.assert_properties();
    }
    setting
}

fn is_counterexample(kind: DiscoveryClassification) -> bool {
    matches!(kind, DiscoveryClassification::Counterexample)
}

fn saw(setting: &Setting, sights: &[Sight]) {
    let missed: Vec<&Sight> = sights.iter().filter(|sight| setting.times(**sight) == 0).collect();
    assert!(missed.is_empty(), "never seen: {missed:?}");
}

#[test]
fn commits_with_two_copies() {
    let seen = check("a commit, two copies", Setting::new(2));
    let always = [Sight::TakenOver, Sight::AckTold, Sight::ZombieFoundSeal, Sight::ZombieRefused];
    saw(&seen, &always);
    saw(
        &seen,
        &[Sight::ClaimElsewhere, Sight::LateArrived, Sight::Recopied, Sight::Settled, Sight::Released],
    );
    saw(&seen, &[Sight::ServerDropped, Sight::WaitedForMandate, Sight::Recovered, Sight::ResumedUnknown]);
    saw(&seen, &[Sight::RecoveredAmidTakeover, Sight::ClaimsTold]);
}

#[test]
fn destroys_with_two_copies() {
    let setting = Setting { commits: 0, destroys: true, ..Setting::new(2) };
    let seen = check("an end, two copies", setting);
    saw(&seen, &[Sight::TakenOver, Sight::GoneTold, Sight::TombstoneFound]);
}

#[test]
fn commits_with_one_copy() {
    let kinds = vec![Kind::KillNode, Kind::KillServer];
    let seen = check("a commit, one copy, deaths", Setting { kinds, ..Setting::new(1) });
    saw(&seen, &[Sight::TakenOver, Sight::AckTold, Sight::Moved, Sight::MissingTold]);
}
