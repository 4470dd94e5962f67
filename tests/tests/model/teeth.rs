//! Without a part of a rule something goes wrong, and the model notices.
//!
//! Not here are parts that are second lines of defence within two faults, because others close the same
//! holes: that servers refuse older views (here views come in order), that a restarted director waits for
//! reports and sends no view before the first. Nor those whose shortest way takes too long to find.

use crate::cluster::{Cluster, Kind};
use crate::setting::{Part, Setting};
use stateright::{Checker, HasDiscoveries, Model};
use std::time::{Duration, Instant};

/// What the search for one counterexample may take.
const LONG: Duration = Duration::from_secs(120);

const DIRECTOR: &[Kind] = &[Kind::KillDirector];
const NODE: &[Kind] = &[Kind::KillNode];
const BOTH: &[Kind] = &[Kind::KillNode, Kind::KillServer];

/// The shortest way to something wrong, with this many commits and faults of these kinds; none is a failure.
fn noticed(part: Part, scene: Setting, commits: u8, faults: u8, kinds: &[Kind]) {
    let began = Instant::now();
    let setting = Setting { commits, faults, kinds: kinds.to_vec(), without: Some(part), ..scene };
    let checker = Cluster(setting).checker().threads(2).timeout(LONG);
    let checker = checker.finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let wrong = |name: &&'static str| crate::is_counterexample(checker.discovery_classification(name));
    let found = checker.discoveries().into_iter().find(|(name, _)| wrong(name));
    let (states, took) = (checker.unique_state_count(), began.elapsed().as_millis());
    let Some((name, path)) = found else { panic!("without {part:?} nothing goes wrong in {states} states") };
    let steps = path.into_actions();
    println!(
        "model: without {part:?}: not \"{name}\" after {} steps, {states} states, {took} ms",
        steps.len()
    );
}

fn one_copy() -> Setting {
    Setting::new(1)
}

fn two_copies() -> Setting {
    Setting::new(2)
}

fn destroyed(scene: Setting) -> Setting {
    Setting { destroys: true, ..scene }
}

/// One test for each part: its name, the part, the scene, commits, faults and their kinds.
macro_rules! noticed {
    ($($name:ident: $part:ident, $scene:expr, $commits:expr, $faults:expr, $kinds:expr;)*) => {
        $(#[test]
        fn $name() {
            noticed(Part::$part, $scene, $commits, $faults, $kinds);
        })*
    };
}

noticed! {
    r1_claim_everywhere: ClaimEverywhere, two_copies(), 0, 2, BOTH;
    r1_first_claim_wins: FirstClaimWins, two_copies(), 0, 1, NODE;
    r1_claim_by_newest: ClaimByNewest, destroyed(two_copies()), 0, 2, &[Kind::KillNode, Kind::CutServer];
    r1_claims_registered: ClaimsRegistered, two_copies(), 0, 3, BOTH;
    r2_sealed_everywhere: SealedEverywhere, two_copies(), 0, 1, NODE;
    r2_seal_word: SealWord, two_copies(), 1, 1, &[Kind::Twin];
    r2_one_seal_ends_all: OneSealEndsAll, two_copies(), 1, 2, &[Kind::Twin, Kind::CutServer];
    r4_fresh_slot: FreshSlot, one_copy(), 2, 2, &[Kind::Delay, Kind::KillNode];
    r5_fetch_highest: FetchHighest, two_copies(), 1, 2, &[Kind::CutPush, Kind::KillNode];
    r5_missing_needs_servers: MissingNeedsServers, two_copies(), 0, 3, BOTH;
    r6_ack_of_life: AckOfLife, one_copy(), 1, 2, BOTH;
    r8_mandate_checked: MandateChecked, one_copy(), 1, 2, &[Kind::CutServer, Kind::CutNode];
    r8_mandate_awaited: MandateAwaited, two_copies(), 0, 2, &[Kind::Twin, Kind::CutServer];
    r8_mandate_awaited_unheard: MandateAwaitedUnheard, two_copies(), 0, 2, &[Kind::Twin, Kind::CutServer];
    r9_tombstones_everywhere: TombstonesEverywhere, destroyed(one_copy()), 0, 2, BOTH;
    r9_gone_declared: GoneDeclared, destroyed(two_copies()), 0, 2, NODE;
    r10_released_when_settled: ReleasedWhenSettled, two_copies(), 0, 1, NODE;
    r10_settled_when_acked: SettledWhenAcked, two_copies(), 0, 2, NODE;
    r11_moved_when_acked: MovedWhenAcked, one_copy(), 0, 2, BOTH;
    r12_ownership_rises: OwnershipRises, two_copies(), 0, 1, NODE;
    r12_above_reported: AboveReported, two_copies(), 0, 1, DIRECTOR;
    r12_term_rises: TermRises, two_copies(), 0, 2, &[Kind::KillDirector, Kind::KillNode];
    resume_only_newest: ResumeOnlyNewest, two_copies(), 0, 2, &[Kind::KillDirector, Kind::PauseNode];
}
