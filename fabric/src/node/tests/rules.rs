//! The node's part of the protocol rules: each scenario passes with its rule and fails without it.

use super::slow::{Slowness, Wire};
use super::world::{World, change, create, find, number, open};
use crate::cache::{EntryState, Opened, PushKind};
use crate::error::ErrorKind;
use crate::ident::{Cookie, SessionId};
use crate::node::claims::register_claims;
use crate::node::host::Host;
use crate::node::open::Found;
use crate::rules::{Rule, assert_teeth};
use std::sync::Arc;

fn expect<T: PartialEq + std::fmt::Debug>(got: T, want: T) -> Result<(), String> {
    if got == want { Ok(()) } else { Err(format!("{got:?} instead of {want:?}")) }
}

fn is_missing(host: &Arc<Host>, cookie: &Cookie) -> Result<(), String> {
    match find(host, cookie) {
        Ok(Found::Missing) => Ok(()),
        Ok(_) => Err("found".into()),
        Err(error) => Err(error.to_string()),
    }
}

/// A session with one copy, at s1, whose placement then is s2: version 1 stays at s1, as no sweep runs.
fn one_copy_whose_placement_changes(world: &mut World) -> Cookie {
    let host = world.host("n1");
    let at_s1 = |cookie: &Cookie| {
        let plan = host.plan();
        let first = plan.places_of(cookie.id).next().unwrap().0.name.clone();
        first == "s1"
    };
    let cookie = (0..200).map(|_| create(&host, 1).0).find(at_s1).unwrap();
    for server in &mut world.view.servers {
        server.weight = if server.name == "s1" { 1 } else { 1000 };
    }
    world.publish();
    assert!(!at_s1(&cookie), "one in a thousand stays; run again");
    cookie
}

/// The weights above leave some sessions where they are: tries until one moves.
fn moved_world() -> (World, Cookie) {
    loop {
        let made = std::panic::catch_unwind(|| {
            let mut world = World::new(2, 2, 1);
            let cookie = one_copy_whose_placement_changes(&mut world);
            (world, cookie)
        });
        if let Ok(made) = made {
            return made;
        }
    }
}

#[test]
fn r1_two_nodes_never_adopt_one_session() {
    assert_teeth(Rule::R1Claim, || {
        let mut world = World::new(2, 3, 2);
        let (cookie, _) = create(&world.host("n1"), 1);
        world.end_node("n1");
        expect(number(&world.host("n2"), &cookie), Ok(1))?;
        // A server that knows the claim goes; the other one must know it, too.
        world.drop_server("s1");
        world.publish();
        let owner = world.host("n2").incarnation();
        expect(number(&world.host("n3"), &cookie), Err(format!("elsewhere: {owner:?}")))
    });
}

#[test]
fn r1_a_new_server_learns_the_claims_that_there_are() {
    assert_teeth(Rule::R1Claim, || {
        let mut world = World::new(2, 3, 2);
        let (cookie, _) = create(&world.host("n1"), 1);
        world.end_node("n1");
        let n2 = world.host("n2");
        expect(number(&n2, &cookie), Ok(1))?;
        let s3 = world.add_server("s3");
        world.publish();
        register_claims(&n2, s3).map_err(|error| error.to_string())?;
        world.drop_server("s1");
        world.drop_server("s2");
        world.publish();
        expect(number(&world.host("n3"), &cookie), Err(format!("elsewhere: {:?}", n2.incarnation())))
    });
}

#[test]
fn r2_one_sealed_lease_ends_all_acks() {
    assert_teeth(Rule::R2SealByView, || {
        let world = World::new(2, 1, 2);
        let host = world.host("n1");
        let (cookie, _) = create(&host, 1);
        world.on_server("s2", |server| server.set_seal_word(host.incarnation()));
        match change(&host, &cookie, 2) {
            Err(error) => expect(error.kind, ErrorKind::OwnershipLost)?,
            Ok(committed) => return Err(format!("{committed:?}")),
        }
        expect(host.cache.is_poisoned(), true)
    });
}

#[test]
fn r2_a_request_waits_until_all_leases_of_the_dead_are_sealed() {
    assert_teeth(Rule::R2SealByView, || {
        let mut world = World::new(2, 2, 2);
        let (cookie, _) = create(&world.host("n1"), 1);
        world.lose_node("n1");
        let n2 = world.host("n2");
        match find(&n2, &cookie) {
            Err(error) => expect(error.kind, ErrorKind::Timeout)?,
            Ok(_) => return Err("answered before the leases were sealed".into()),
        }
        world.seal_node(cookie.host);
        expect(number(&n2, &cookie), Ok(1))
    });
}

#[test]
fn r3_a_handle_of_an_ended_incarnation_commits_nothing() {
    assert_teeth(Rule::R3Incarnation, || {
        let world = World::new(1, 1, 1);
        let host = world.host("n1");
        let (cookie, before) = create(&host, 1);
        let mut session = open(&host, &cookie);
        session.incr("n", 1).unwrap();
        host.cache.poison();
        match session.commit(crate::node::Ack::All) {
            Err(error) => expect(error.kind, ErrorKind::OwnershipLost)?,
            Ok(committed) => return Err(format!("{committed:?}")),
        }
        // Not even the ended cache was changed.
        expect(session.facts.version, before.version)
    })
}

#[test]
fn r4_the_slot_of_a_killed_writer_is_not_written_before_it_is_gone() {
    assert_teeth(Rule::R4FreshSlot, || {
        let world = World::new(1, 1, 1);
        let host = world.host("n1");
        let (cookie, _) = create(&host, 1);
        let victim = world.add_process("n1");
        let Opened::Granted(mut hold) = victim.cache.open_exclusive(&cookie.id).unwrap() else {
            return Err("not free".into());
        };
        let book = victim.plan().lane(world.view.servers[0].incarnation).unwrap().book;
        let push = hold.begin_push(book, PushKind::Archive(100)).unwrap();
        victim.cache.clone().kill();
        std::mem::forget(hold);
        expect(host.cache.repair_dead().unwrap().len(), 1)?;
        expect(change(&host, &cookie, 2).map(|committed| committed.copies).ok(), Some(1))?;
        let place = host.cache.find(&cookie.id).unwrap().unwrap().places[0];
        if place.slot == push.slot {
            return Err("the killed writer may still overwrite the acked cell".into());
        }
        // The server says that the writer is gone: the slot comes back.
        expect(host.cache.quarantined().len(), 1)?;
        world.sweep("n1");
        expect(host.cache.quarantined().len(), 0)?;
        expect(number(&host, &cookie), Ok(2))
    });
}

#[test]
fn r5_a_fetch_takes_the_highest_version_of_all_servers() {
    assert_teeth(Rule::R5FetchAsksAll, || {
        let (mut world, cookie) = moved_world();
        expect(change(&world.host("n1"), &cookie, 2).map(|committed| committed.copies).ok(), Some(1))?;
        world.end_node("n1");
        expect(number(&world.host("n2"), &cookie), Ok(2))
    });
}

#[test]
fn r6_acks_of_a_servers_last_life_count_for_nothing() {
    assert_teeth(Rule::R6AckIncarnation, || {
        let mut world = World::new(1, 1, 1);
        let host = world.host("n1");
        let (cookie, _) = create(&host, 1);
        world.on_server("s1", |server| server.is_down = true);
        world.add_server("s1");
        world.publish();
        expect(open(&host, &cookie).facts.copies, 0)?;
        expect(world.sweep("n1").copied, 1)?;
        expect(open(&host, &cookie).facts.copies, 1)
    });
}

#[test]
fn r7_a_fetched_archive_is_that_of_its_cell() {
    assert_teeth(Rule::R7Blocks, || {
        let mut world = World::new(1, 2, 1);
        let (cookie, _) = create(&world.host("n1"), 1);
        let (other, _) = create(&world.host("n1"), 2);
        world.end_node("n1");
        world.on_server("s1", |server| server.instead = Some((cookie.id, other.id)));
        match find(&world.host("n2"), &cookie) {
            Err(error) => expect(error.kind, ErrorKind::Corrupt),
            Ok(_) => Err("somebody else's session was served".into()),
        }
    });
}

#[test]
fn r8_without_a_mandate_no_copy_is_reported() {
    assert_teeth(Rule::R8Mandate, || {
        let world = World::new(2, 1, 2);
        let host = world.host("n1");
        let (cookie, _) = create(&host, 1);
        world.clock.advance_ms(world.config.timing.mandate_ms);
        let committed = change(&host, &cookie, 2).unwrap();
        expect((committed.copies, committed.short), (0, Some(crate::node::Short::NoMandate)))?;
        world.mandate("n1");
        expect(change(&host, &cookie, 3).unwrap().copies, 2)
    });
}

#[test]
fn r9_a_tombstone_goes_to_every_place_the_session_ever_had() {
    assert_teeth(Rule::R9Destroy, || {
        let (mut world, cookie) = moved_world();
        let host = world.host("n1");
        expect(change(&host, &cookie, 2).map(|committed| committed.copies).ok(), Some(1))?;
        open(&host, &cookie).destroy().map_err(|error| error.to_string())?;
        is_missing(&host, &cookie)?;
        // Only s1, where version 1 was, is left.
        world.drop_server("s2");
        world.end_node("n1");
        is_missing(&world.host("n2"), &cookie)
    });
}

#[test]
fn r10_slots_of_adopted_sessions_are_kept_until_the_release() {
    assert_teeth(Rule::R10ReleaseAsSet, || {
        let mut world = World::new(2, 2, 2);
        let (cookie, _) = create(&world.host("n1"), 1);
        let dead = world.end_node("n1");
        let n2 = world.host("n2");
        open(&n2, &cookie).destroy().map_err(|error| error.to_string())?;
        let entry = n2.cache.find(&cookie.id).unwrap();
        let kept = entry.filter(|entry| entry.state == EntryState::Gone).map(|entry| entry.places.len());
        expect(kept, Some(2))?;
        world.on_server("s1", |server| expect(server.live(dead), 0))?;
        world.view.dead.clear();
        world.publish();
        world.sweep("n2");
        expect(n2.cache.find(&cookie.id).unwrap(), None)
    });
}

#[test]
fn r11_a_copy_is_left_only_after_the_new_one_is_acked() {
    assert_teeth(Rule::R11Moved, || {
        let mut world = World::new(1, 2, 1);
        let host = world.host("n1");
        let cookies: Vec<Cookie> = (0..32).map(|number| create(&host, number).0).collect();
        // A new server is placed, but cannot be reached.
        world.add_server("s2");
        world.on_server("s2", |server| server.is_down = true);
        world.publish();
        expect(world.sweep("n1").complete, false)?;
        world.end_node("n1");
        world.on_server("s2", |server| server.is_down = false);
        for (expected, cookie) in cookies.iter().enumerate() {
            expect(number(&world.host("n2"), cookie), Ok(expected as i64))?;
        }
        Ok(())
    });
}

#[test]
fn r12_an_adopter_owns_by_a_higher_epoch() {
    assert_teeth(Rule::R12Epochs, || {
        let mut world = World::new(1, 2, 1);
        let (cookie, committed) = create(&world.host("n1"), 1);
        world.end_node("n1");
        let epoch = open(&world.host("n2"), &cookie).facts.version.epoch;
        if epoch > committed.version.epoch { Ok(()) } else { Err(format!("{epoch} {committed:?}")) }
    });
}

#[test]
fn r13_a_read_keeps_a_session_alive_also_after_failover() {
    assert_teeth(Rule::R13Touch, || {
        let mut world = World::with(1, 2, 1, "idle_s = 100");
        let host = world.host("n1");
        let (cookie, committed) = create(&host, 1);
        world.clock.advance_ms(5_000);
        world.mandate("n1");
        let version = |host: &Arc<Host>| open(host, &cookie).facts.version;
        expect(version(&host), committed.version)?;
        world.clock.advance_ms(45_000);
        world.mandate("n1");
        if version(&host) <= committed.version {
            return Err("the touch did not raise the version".into());
        }
        world.end_node("n1");
        world.clock.advance_ms(60_000);
        expect(number(&world.host("n2"), &cookie), Ok(1))
    });
}

#[test]
fn r14_expired_is_said_after_the_tombstone_is_acked() {
    assert_teeth(Rule::R14Expiry, || {
        let mut world = World::with(1, 2, 1, "idle_s = 100");
        let host = world.host("n1");
        let (cookie, _) = create(&host, 1);
        world.clock.advance_ms(100_000);
        world.mandate("n1");
        is_missing(&host, &cookie)?;
        let dead = world.end_node("n1");
        world.on_server("s1", |server| expect(server.live(dead), 0))
    });
}

#[test]
fn r15_a_new_id_ends_the_old_one_and_keeps_the_data() {
    assert_teeth(Rule::R15Regenerate, || {
        let mut world = World::new(2, 2, 2);
        let host = world.host("n1");
        let (old, _) = create(&host, 1);
        let mut session = open(&host, &old);
        session.set("privilege", crate::archive::Value::Bool(true)).unwrap();
        session.regenerate().map_err(|error| error.to_string())?;
        expect((session.needs_cookie, session.facts.copies), (true, 2))?;
        let new = Cookie { id: session.facts.id, host: host.incarnation() };
        if new.id == old.id || new.id == SessionId::default() {
            return Err("no new id".into());
        }
        // The copy under the new id has the old data; the new privilege is committed under it only.
        expect(session.archive().unwrap().get("privilege"), None)?;
        session.commit(crate::node::Ack::All).unwrap();
        drop(session);
        is_missing(&host, &old)?;
        world.end_node("n1");
        is_missing(&world.host("n2"), &old)?;
        expect(number(&world.host("n2"), &new), Ok(1))
    });
}

/// What was acked under the old id is not buried for a new id that no server has.
#[test]
fn r15_a_new_id_without_copies_leaves_the_old_one_as_it_was() {
    assert_teeth(Rule::R15Regenerate, || {
        let mut world = World::slow(2, 2, 1, 50, Slowness::default());
        let host = world.host("n1");
        let at = |cookie: &Cookie| host.plan().places_of(cookie.id).next().unwrap().0.name.clone();
        let mut cookie = (0..200).map(|_| create(&host, 1).0).find(|cookie| at(cookie) == "s1").unwrap();
        let wire = world.on_server("s2", |server| server.wires[0].clone());
        wire.set(Slowness { held: true, ..Slowness::default() });
        // Until a new id falls to s2.
        for _ in 0..60 {
            let mut session = open(&host, &cookie);
            let renewed = session.regenerate();
            if renewed.is_err() {
                break;
            }
            expect(session.facts.copies, 1)?;
            cookie.id = session.facts.id;
        }
        world.end_node("n1");
        expect(number(&world.host("n2"), &cookie), Ok(1))
    });
}

/// Smallest blocks in a chunk of a heap, which is as many as are taken before one is taken again.
const BLOCKS: i64 = 4096;

/// A session with version 1 acked, whose version 2 was given up and may still arrive over the old link; a new
/// link to the same lease is open.
fn in_doubt() -> (World, Arc<Host>, Cookie, Arc<Wire>) {
    let world = World::slow(1, 1, 1, 50, Slowness::default());
    let host = world.host("n1");
    let (cookie, _) = create(&host, 1);
    let old = world.wire("s1");
    old.set(Slowness { held: true, ..Slowness::default() });
    assert_eq!(change(&host, &cookie, 2).unwrap().copies, 0);
    assert!(host.open_links(true));
    (world, host, cookie, old)
}

/// What a new host finds when this one dies now.
fn recovered(mut world: World, cookie: &Cookie) -> Result<i64, String> {
    let dead = world.end_node("n1");
    let n2 = world.add_node("n2");
    world.publish();
    assert_ne!(n2.incarnation(), dead);
    number(&n2, cookie)
}

#[test]
fn r4_a_push_that_was_given_up_may_land_late_and_changes_nothing() {
    assert_teeth(Rule::R4FreshSlot, || {
        let (world, host, cookie, old) = in_doubt();
        expect(change(&host, &cookie, 3).map(|committed| committed.copies).ok(), Some(1))?;
        expect(old.land_late(), 1)?;
        expect(recovered(world, &cookie), Ok(3))
    });
}

#[test]
fn r4_a_slot_in_doubt_is_free_when_its_link_is_destroyed_though_its_process_lives() {
    assert_teeth(Rule::R4FreshSlot, || {
        let (world, host, cookie, old) = in_doubt();
        world.on_server("s1", |server| server.notices_ends = false);
        world.sweep("n1");
        expect(host.cache.quarantined().len(), 1)?;
        expect(host.cache.quarantined()[0].link, Some(1))?;
        // Until the server says so, it may arrive.
        expect(old.land_late(), 1)?;
        world.on_server("s1", |server| server.notices_ends = true);
        world.sweep("n1");
        expect(host.cache.quarantined().len(), 0)?;
        expect(recovered(world, &cookie), Ok(2))
    });
}

#[test]
fn r4_moved_over_a_slot_in_doubt_is_itself_in_doubt_until_its_link_is_gone() {
    let (world, host, cookie, _) = in_doubt();
    let second = world.wire("s1");
    assert_eq!(change(&host, &cookie, 3).unwrap().copies, 1);
    second.set(Slowness { held: true, ..Slowness::default() });
    world.sweep("n1");
    let quarantined = host.cache.quarantined();
    assert!(quarantined.iter().all(|slot| slot.link == Some(2)), "{quarantined:?}");
    assert!(host.open_links(true));
    world.on_server("s1", |server| server.notices_ends = false);
    world.sweep("n1");
    assert!(!host.cache.quarantined().is_empty(), "the second link may still write \"moved\" there");
    world.on_server("s1", |server| server.notices_ends = true);
    world.sweep("n1");
    assert!(host.cache.quarantined().is_empty());
    assert_eq!(second.land_late(), 0);
}

/// The copy that was acked lies in the slot that is in doubt until another one is acked.
#[test]
fn r11_moved_is_not_written_over_the_last_acked_copy() {
    assert_teeth(Rule::R11Moved, || {
        let (world, host, cookie, _) = in_doubt();
        // A request has the session's lock, so the sweep cannot copy it again.
        let session = open(&host, &cookie);
        world.sweep("n1");
        drop(session);
        expect(recovered(world, &cookie), Ok(1))?;
        let (world, host, cookie, _) = in_doubt();
        world.sweep("n1");
        world.sweep("n1");
        expect(host.cache.quarantined().len(), 0)?;
        expect(recovered(world, &cookie), Ok(2))
    });
}

#[test]
fn r9_a_session_whose_only_slot_is_in_doubt_is_gone_when_destroy_returns() {
    assert_teeth(Rule::R9Destroy, || {
        let (world, host, cookie, old) = in_doubt();
        open(&host, &cookie).destroy().map_err(|error| error.to_string())?;
        expect(old.land_late(), 1)?;
        expect(recovered(world, &cookie), Err("missing".into()))?;
        let (world, host, cookie, _) = in_doubt();
        open(&host, &cookie).destroy().map_err(|error| error.to_string())?;
        world.sweep("n1");
        world.sweep("n1");
        expect(host.cache.quarantined().len(), 0)?;
        expect(host.cache.find(&cookie.id).unwrap().map(|info| info.state), None)?;
        expect(recovered(world, &cookie), Err("missing".into()))
    });
}

/// Invariant 18: a card that reads a block of the cache when it has passed to another session puts that
/// session's bytes under the first one's cell. The cell counts for nothing.
#[test]
fn a_block_that_is_sent_late_harms_nobody() {
    let (world, host, cookie, old) = in_doubt();
    let before = old.would_send();
    // Version 3 frees the block of version 2, and another session takes it.
    assert_eq!(change(&host, &cookie, 3).unwrap().copies, 1);
    let other = create(&host, 0).0;
    let number_of_other = (1..2 * BLOCKS).find(|number| {
        assert_eq!(change(&host, &other, *number).unwrap().copies, 1);
        old.would_send() != before
    });
    let number_of_other = number_of_other.expect("the block is not used again");
    assert_eq!(old.land_late(), 1);
    let mut world = world;
    world.end_node("n1");
    let n2 = world.add_node("n2");
    world.publish();
    assert_eq!(number(&n2, &cookie), Ok(3));
    assert_eq!(number(&n2, &other), Ok(number_of_other));
}

#[test]
fn r7_a_block_sent_late_leaves_the_last_acked_version_whole() {
    assert_teeth(Rule::R7Blocks, || {
        let (world, host, cookie, old) = in_doubt();
        // No later version is acked; what was acked is what counts, whatever others push and the card sends.
        let other = create(&host, 0).0;
        for number in 1..BLOCKS + 100 {
            expect(change(&host, &other, number).map(|committed| committed.copies).ok(), Some(1))?;
        }
        old.garble();
        expect(old.land_late(), 1)?;
        expect(recovered(world, &cookie), Ok(1))
    });
}

#[test]
fn r2_a_seal_that_shows_as_a_revoked_link_ends_no_more_than_that_link() {
    let world = World::slow(2, 1, 2, 1000, Slowness::default());
    let host = world.host("n1");
    let (cookie, _) = create(&host, 1);
    world.on_server("s2", |server| server.set_seal_word(host.incarnation()));
    assert_eq!(change(&host, &cookie, 2).unwrap().copies, 1);
    assert!(!host.cache.is_poisoned(), "hardware cannot tell a seal from a death");
    // The server's word can.
    world.on_server("s2", |server| server.seal(host.incarnation()));
    assert!(!host.open_links(true));
    assert!(host.cache.is_poisoned());
}

#[test]
fn r6_an_ack_of_a_life_that_left_the_view_counts_for_nothing() {
    assert_teeth(Rule::R6AckIncarnation, || {
        let mut world = World::slow(1, 1, 1, 1000, Slowness::default());
        let host = world.host("n1");
        let (cookie, _) = create(&host, 1);
        let old = world.wire("s1");
        world.add_server("s1");
        world.publish();
        // The old life would still ack.
        expect((open(&host, &cookie).facts.copies, old.land_late()), (0, 0))?;
        expect(world.sweep("n1").copied, 1)?;
        expect(open(&host, &cookie).facts.copies, 1)
    });
}

#[test]
fn r8_a_mandate_that_ends_while_a_push_is_under_way_takes_its_ack() {
    assert_teeth(Rule::R8Mandate, || {
        let world = World::slow(1, 1, 1, 1000, Slowness::default());
        let host = world.host("n1");
        let (cookie, _) = create(&host, 1);
        let wire = world.wire("s1");
        wire.set(Slowness { held: true, ..Slowness::default() });
        let committed = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !wire.is_busy() {
                    std::thread::yield_now();
                }
                world.clock.advance_ms(world.config.timing.mandate_ms);
                wire.set(Slowness::default());
            });
            change(&host, &cookie, 2).unwrap()
        });
        expect((committed.copies, committed.short), (0, Some(crate::node::Short::NoMandate)))
    });
}
