//! The protocol rules that a server upholds. Each test shows that it would notice if its rule were taken out.

use super::*;
use selvage_fabric::rules::assert_teeth;

#[test]
fn r1_the_first_claimant_wins_as_long_as_it_lives() {
    assert_teeth(Rule::R1Claim, || {
        let mut world = World::with_dead(&[live(id(1), version(1, 5))]);
        ensure!(world.claim_one(B, id(1))?, granted(version(1, 5), true));
        ensure!(world.claim_one(B, id(1))?, granted(version(1, 5), true));
        ensure!(world.claim_one(C, id(1))?, ClaimAnswer::Elsewhere(B));
        // The set is released; the claim stays, for browsers still come with the old cookie.
        world.set_view(&[B, C], &[]);
        ensure!(world.claim_one(C, id(1))?, ClaimAnswer::Elsewhere(B));
        // Only the claimant's end ends it.
        world.set_view(&[C], &[(B, false)]);
        world.set_view(&[C], &[(B, true)]);
        ensure!(world.claim_one(C, id(1))?, ClaimAnswer::Granted(None));
        Ok(())
    });
}

#[test]
fn r1_a_server_that_joins_waits_for_the_claims_of_living_nodes() {
    assert_teeth(Rule::R1Claim, || {
        let mut world = World::new();
        world.set_view(&[B, C], &[]);
        ensure!(matches!(world.claim(C, &[id(1)]), FromServer::Refused(Refusal::NotYet(_))), true);
        let epoch = world.server.carried_out;
        let registered = ToServer::RegisterClaims { epoch, ids: vec![id(1)], last: true };
        ensure!(world.ask_node(B, registered), FromServer::Done);
        ensure!(matches!(world.claim(C, &[id(1)]), FromServer::Refused(Refusal::NotYet(_))), true);
        world.join(&[C]);
        ensure!(world.claim_one(C, id(1))?, ClaimAnswer::Elsewhere(B));
        // A node that comes later held no claims, and nobody waits for it.
        world.set_view(&[B, C, D], &[]);
        ensure!(world.claim_one(D, id(2))?, ClaimAnswer::Granted(None));
        Ok(())
    });
}

#[test]
fn r1_a_node_that_dies_is_not_waited_for() {
    let mut world = World::new();
    world.set_view(&[B, C], &[]);
    world.join(&[C]);
    world.set_view(&[C], &[]);
    assert_eq!(world.claim_one(C, id(1)), Ok(ClaimAnswer::Granted(None)));
}

#[test]
fn r1_a_claimant_with_a_newer_view_waits() {
    assert_teeth(Rule::R1Claim, || {
        let mut world = World::with_dead(&[live(id(1), version(1, 5))]);
        let epoch = Epoch { term: 1, number: world.number + 1 };
        let answer = world.ask_node(B, ToServer::Claim { epoch, ids: vec![id(1)] });
        ensure!(matches!(answer, FromServer::Refused(Refusal::NotYet(_))), true);
        Ok(())
    });
}

#[test]
fn r1_a_claimant_with_an_older_view_begins_again_by_the_newest() {
    assert_teeth(Rule::R1Claim, || {
        let mut world = World::with_dead(&[live(id(1), version(1, 5))]);
        let epoch = world.server.carried_out;
        world.set_view(&[B, C], &[(A, true)]);
        let answer = world.ask_node(B, ToServer::Claim { epoch, ids: vec![id(1)] });
        ensure!(matches!(answer, FromServer::Refused(Refusal::NotYet(_))), true);
        ensure!(world.claim_one(B, id(1))?, granted(version(1, 5), true));
        Ok(())
    });
}

#[test]
fn r1_only_the_claimant_fetches_settles_and_destroys() {
    assert_teeth(Rule::R1Claim, || {
        let mut world = World::with_dead(&[live(id(1), version(1, 5))]);
        world.claim_one(B, id(1))?;
        ensure!(world.fetch_one(C, id(1))?.archive, Vec::<u8>::new());
        let sessions = vec![(id(1), version(9, 0))];
        for foreign in [ToServer::Settle { sessions: sessions.clone() }, ToServer::Destroyed { sessions }] {
            let answer = world.ask_node(C, foreign);
            ensure!(matches!(answer, FromServer::Refused(Refusal::Denied(_))), true);
        }
        ensure!(world.report().leases[0].unsettled, 1);
        ensure!(world.fetch_one(B, id(1))?.archive, name_of(A).into_bytes());
        Ok(())
    });
}

#[test]
fn r2_nothing_is_served_before_everything_dead_is_sealed_everywhere() {
    assert_teeth(Rule::R2SealByView, || {
        let mut world = World::new();
        world.set_view(&[A, B], &[]);
        world.join(&[A, B]);
        world.lease(A, &[live(id(1), version(1, 5))]);
        world.set_view(&[B], &[(A, false)]);
        let epoch = world.server.carried_out;
        for early in [
            ToServer::Claim { epoch, ids: vec![id(1)] },
            ToServer::Fetch { ids: vec![id(1)] },
            ToServer::ListSealed { incarnation: A, cursor: 0 },
        ] {
            let answer = world.ask_node(B, early);
            ensure!(matches!(answer, FromServer::Refused(Refusal::NotYet(_))), true);
        }
        world.set_view(&[B], &[(A, true)]);
        ensure!(world.claim_one(B, id(1))?, granted(version(1, 5), true));
        Ok(())
    });
}

#[test]
fn r2_only_a_view_seals() {
    let mut world = World::new();
    world.set_view(&[A, B], &[]);
    world.lease(A, &[live(id(1), version(1, 5))]);
    let connection = world.node(A);
    world.feed(Event::Closed { connection });
    for _ in 0..100 {
        world.now_ms += 60_000;
        world.feed(Event::Tick);
    }
    assert!(!world.report().leases[0].sealed, "silence and a lost connection seal nothing");
    let report = world.set_view(&[B], &[(A, false)]);
    assert!(report.leases[0].sealed);
}

#[test]
fn r4_a_process_that_may_write_is_gone_only_when_it_is_gone() {
    assert_teeth(Rule::R4FreshSlot, || {
        let mut world = World::new();
        world.set_view(&[A], &[]);
        let worker = world.open_node(A, 42);
        world.ask(worker, ToServer::Lease);
        ensure!(world.ask_node(A, ToServer::ProcessGone { pid: 42, link: None }), FromServer::Gone(false));
        // Its connection alone is not its life: it could be stopped in the middle of a push.
        world.feed(Event::Closed { connection: worker });
        ensure!(world.watched, vec![(A, 42)]);
        ensure!(world.ask_node(A, ToServer::ProcessGone { pid: 42, link: None }), FromServer::Gone(false));
        world.feed(Event::ProcessGone { incarnation: A, pid: 42 });
        ensure!(world.ask_node(A, ToServer::ProcessGone { pid: 42, link: None }), FromServer::Gone(true));
        Ok(())
    });
}

#[test]
fn r5_the_newest_copy_of_all_sealed_leases_is_the_answer() {
    assert_teeth(Rule::R5FetchAsksAll, || {
        let mut world = World::new();
        world.set_view(&[A, B, C], &[]);
        world.join(&[A, B, C]);
        world.lease(A, &[live(id(1), version(1, 500))]);
        world.lease(B, &[live(id(1), version(2, 1))]);
        world.set_view(&[C], &[(A, false), (B, false)]);
        world.set_view(&[C], &[(A, true), (B, true)]);
        ensure!(world.claim_one(C, id(1))?, granted(version(2, 1), true));
        ensure!(world.fetch_one(C, id(1))?.archive, name_of(B).into_bytes());
        Ok(())
    });
}

#[test]
fn r6_a_server_that_a_view_drops_serves_nothing_of_its_old_life() {
    assert_teeth(Rule::R6AckIncarnation, || {
        let mut world = World::with_dead(&[live(id(1), version(1, 5))]);
        world.lease(B, &[]);
        let before = world.server.incarnation();
        let node = world.node(B);
        let mut dropped = world.view(&[B, C], &[(A, true)]);
        dropped.servers.clear();
        let report = world.ask_director(ToServer::SetView(dropped));
        let Some(FromServer::Report(report)) = report else { return Err(format!("no report: {report:?}")) };
        ensure!(report.incarnation > before, true);
        ensure!(report.leases, Vec::new());
        ensure!(report.bytes, 0);
        ensure!(world.cut.contains(&node), true);
        ensure!(world.released.len(), 2);
        // It comes back as a new one, and is new to the nodes.
        world.set_view(&[B, C], &[(A, true)]);
        ensure!(matches!(world.claim(B, &[id(1)]), FromServer::Refused(Refusal::NotYet(_))), true);
        world.join(&[B, C]);
        ensure!(world.claim_one(B, id(1))?, ClaimAnswer::Granted(None));
        Ok(())
    });
}

/// The director has dropped the life that was in it, and takes only another in.
#[test]
fn r6_a_server_begins_a_new_life_if_a_view_that_it_missed_may_have_had_it() {
    let mut world = World::new();
    world.set_view(&[A], &[]);
    let mut without = |missed: u32| {
        let known = world.server.report().epoch;
        let mut view = world.view(&[A], &[]);
        view.servers.clear();
        view.epoch.number = known.number + 1 + missed;
        let before = world.server.incarnation();
        let report = world.ask_director(ToServer::SetView(view));
        let Some(FromServer::Report(report)) = report else { panic!("no report: {report:?}") };
        (before, report.incarnation)
    };
    // The life in which it was in a view ends with that.
    let (first, second) = without(0);
    assert!(second > first);
    let (before, after) = without(0);
    assert_eq!((before, after), (second, second), "it missed none");
    let (before, after) = without(1);
    assert!(before == second && after > second);
}

#[test]
fn r9_a_tombstone_beats_sealed_copies() {
    assert_teeth(Rule::R9Destroy, || {
        let mut world = World::with_dead(&[live(id(1), version(1, 5)), live(id(2), version(1, 1))]);
        world.claim_one(B, id(1))?;
        let sessions = vec![(id(1), version(2, 3))];
        ensure!(world.ask_node(B, ToServer::Destroyed { sessions }), FromServer::Done);
        let ClaimAnswer::Granted(Some(copy)) = world.claim_one(C, id(1))? else {
            return Err("the tombstone is not told".into());
        };
        ensure!((copy.version, copy.live), (version(2, 3), false));
        ensure!(world.fetch_one(C, id(1))?.archive, Vec::<u8>::new());
        ensure!(world.report().leases[0].unsettled, 1);
        Ok(())
    });
}

#[test]
fn r9_a_tombstone_that_comes_before_the_seal_is_not_lost() {
    assert_teeth(Rule::R9Destroy, || {
        let mut world = World::new();
        world.set_view(&[A, B, C], &[]);
        world.join(&[A, B, C]);
        world.lease(A, &[live(id(1), version(1, 5)), live(id(2), version(9, 9))]);
        let sessions = vec![(id(1), version(2, 1)), (id(2), version(2, 1))];
        ensure!(world.ask_node(B, ToServer::Destroyed { sessions }), FromServer::Done);
        world.set_view(&[B, C], &[(A, false)]);
        let report = world.set_view(&[B, C], &[(A, true)]);
        ensure!(report.leases[0].unsettled, 1);
        let ClaimAnswer::Granted(Some(copy)) = world.claim_one(C, id(1))? else {
            return Err("the tombstone is not told".into());
        };
        ensure!((copy.version, copy.live), (version(2, 1), false));
        // A copy that is newer than the tombstone is of a later life.
        ensure!(world.claim_one(C, id(2))?, granted(version(9, 9), true));
        Ok(())
    });
}

#[test]
fn r10_sets_go_only_by_the_view() {
    assert_teeth(Rule::R10ReleaseAsSet, || {
        let mut world = World::with_dead(&[live(id(1), version(1, 5)), live(id(2), version(1, 6))]);
        world.claim(B, &[id(1), id(2)]);
        // Older than what was found: not settled.
        world.ask_node(B, ToServer::Settle { sessions: vec![(id(1), version(1, 4))] });
        ensure!(world.report().leases[0].unsettled, 2);
        let sessions = vec![(id(1), version(2, 1)), (id(2), version(2, 1))];
        world.ask_node(B, ToServer::Settle { sessions });
        let report = world.report();
        ensure!(report.leases.len(), 1);
        ensure!((report.leases[0].unsettled, report.leases[0].sessions), (0, 2));
        // Other servers are not done: B dies, and what it had found is still needed.
        world.set_view(&[C], &[(A, true), (B, false)]);
        world.set_view(&[C], &[(A, true), (B, true)]);
        ensure!(world.claim_one(C, id(1))?, granted(version(1, 5), true));
        let report = world.set_view(&[C], &[(B, true)]);
        ensure!(report.leases, Vec::new());
        ensure!(world.released.len(), 1);
        Ok(())
    });
}

#[test]
fn r11_moved_is_not_here() {
    assert_teeth(Rule::R11Moved, || {
        let mut world = World::with_dead(&[cell(id(1), version(1, 5), CellState::Moved)]);
        ensure!(world.report().leases[0].unsettled, 0);
        ensure!(world.claim_one(B, id(1))?, ClaimAnswer::Granted(None));
        Ok(())
    });
}

#[test]
fn r12_epochs_only_rise() {
    assert_teeth(Rule::R12Epochs, || {
        let mut world = World::new();
        let mut newer = world.view(&[A, B], &[]);
        newer.epoch = Epoch { term: 3, number: 10 };
        let report = world.ask_director(ToServer::SetView(newer.clone()));
        ensure!(matches!(report, Some(FromServer::Report(_))), true);
        for epoch in [
            Epoch { term: 2, number: 50 },
            Epoch { term: 3, number: 9 },
            Epoch { term: 3, number: 10 },
            Epoch { term: 4, number: 10 },
        ] {
            let mut older = world.view(&[B], &[]);
            older.epoch = epoch;
            let answer = world.ask_director(ToServer::SetView(older));
            ensure!(answer, Some(FromServer::Refused(Refusal::OldTerm(newer.epoch))));
        }
        // The same view again is no harm, and the next one is taken.
        ensure!(
            matches!(world.ask_director(ToServer::SetView(newer.clone())), Some(FromServer::Report(_))),
            true
        );
        newer.epoch = Epoch { term: 4, number: 11 };
        ensure!(matches!(world.ask_director(ToServer::SetView(newer)), Some(FromServer::Report(_))), true);
        Ok(())
    });
}

#[test]
fn r14_expired_copies_are_swept_past_the_allowance_and_leave_their_version() {
    assert_teeth(Rule::R14Expiry, || {
        let mut world = World::with_dead(&[live(id(1), version(1, 5))]);
        world.now_ms = START_MS + 60_000 + SKEW_MS;
        world.feed(Event::Tick);
        ensure!(world.report().leases[0].unsettled, 1);
        world.now_ms += SWEEP_EVERY_MS + 1;
        world.feed(Event::Tick);
        ensure!(world.report().leases[0].unsettled, 0);
        ensure!(world.claim_one(B, id(1))?, granted(version(1, 5), false));
        ensure!(world.fetch_one(B, id(1))?.archive, Vec::<u8>::new());
        Ok(())
    });
}
