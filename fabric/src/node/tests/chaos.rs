//! The node's production code over a card that obeys only what RDMA promises: for all that such a card may
//! do, the scan of a sealed lease yields the last acked version of a session or a newer whole one, and of a
//! destroyed one nothing that lives.

use super::world::{World, change, create, number};
use crate::archive::Value;
use crate::cache::EntryState;
use crate::ident::{Cookie, Incarnation, SessionId};
use crate::node::host::Host;
use crate::node::open::{self, Found};
use crate::node::{Ack, OpenMode};
#[cfg(feature = "mutants")]
use crate::rules::{Rule, assert_teeth};
#[cfg(feature = "mutants")]
use crate::transport::ChecksumKind;
use crate::transport::chaos::explore::{Explored, explore};
use crate::transport::chaos::{Manner, Step};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The session; the same in all scripts, so that those with a common beginning have the same pushes.
const ID: SessionId = SessionId([7; 16]);
/// Smallest blocks in a chunk of a heap, which is as many as are taken before one is taken again.
#[cfg(feature = "mutants")]
const BLOCKS: i64 = 4096;
/// How long destroying waits for tombstones that do not come.
const WAIT_MS: u64 = 10;

/// What the node does. `false`: its first push fails, and the link with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(not(feature = "mutants"), allow(dead_code, reason = "some serve the rules' tests only"))]
enum Act {
    Change(bool),
    Touch(bool),
    Destroy(bool),
    Sweep(bool),
    /// While a request has the session's lock.
    SweepLocked,
    /// Another session commits so often, so that the lease's blocks come round.
    Others(i64),
}

impl Act {
    fn fails(self) -> bool {
        matches!(self, Self::Change(false) | Self::Touch(false) | Self::Destroy(false) | Self::Sweep(false))
    }
}

/// Every sequence of `pushes` acts on the session that begins with a change, with a sweep between them and
/// after them wherever it would find something, until the session is destroyed.
fn scripts(pushes: usize, acts: &[Act], sweeps: &[Act]) -> Vec<Vec<Act>> {
    let mut found = Vec::new();
    let mut open = vec![(Vec::new(), 0)];
    while let Some((script, count)) = open.pop() {
        let destroyed = script.iter().any(|act| matches!(act, Act::Destroy(_)));
        if count == pushes || destroyed {
            found.push(script);
            continue;
        }
        for act in acts.iter().filter(|act| count > 0 || matches!(act, Act::Change(_))) {
            let mut next = script.clone();
            next.push(*act);
            open.push((next.clone(), count + 1));
            if next.iter().any(|act| act.fails()) {
                open.extend(sweeps.iter().map(|sweep| ([&next[..], &[*sweep]].concat(), count + 1)));
            }
        }
    }
    found
}

/// Runs a script and tells what node, card and user saw.
fn run(script: &[Act], manner: Manner) -> Vec<Step> {
    let world = World::chaotic(1, 1, WAIT_MS, Manner { scripted: true, ..manner });
    let host = world.host("n1");
    let card = world.card("s1", "n1");
    let cookie = Cookie { id: ID, host: host.incarnation() };
    for (value, act) in (1..).zip(script) {
        if act.fails() {
            card.answer(false);
        }
        match act {
            Act::Change(_) if value == 1 => {
                let mut session = open::create_as(&host, ID, None).unwrap();
                session.set("n", Value::I64(value)).unwrap();
                session.commit(Ack::All).unwrap();
            }
            Act::Change(_) => drop(change(&host, &cookie, value).unwrap()),
            Act::Touch(_) => {
                world.clock.advance_ms(2 * host.touch_step_ms());
                world.mandate("n1");
                drop(found(&host, &cookie));
            }
            Act::Destroy(_) => {
                if let Found::Session(session) = found(&host, &cookie)
                    && session.destroy().is_ok()
                {
                    card.note(Step::Destroyed);
                }
            }
            Act::Sweep(_) => drop(world.sweep("n1")),
            Act::Others(count) => {
                card.look_away(true);
                let (other, _) = create(&host, 0);
                for value in 1..*count {
                    change(&host, &other, value).unwrap();
                }
                card.look_away(false);
            }
            Act::SweepLocked => {
                let session = found(&host, &cookie);
                world.sweep("n1");
                drop(session);
            }
        }
        // What a sweep had not to push it cannot fail at.
        card.take_answers();
        assert!(host.open_links(true));
    }
    card.steps()
}

fn found(host: &Arc<Host>, cookie: &Cookie) -> Found {
    try_find(host, cookie).unwrap()
}

/// An error if the session's time is over and its tombstones are not acked in time.
fn try_find(host: &Arc<Host>, cookie: &Cookie) -> crate::error::Result<Found> {
    let deadline = Instant::now() + Duration::from_millis(200);
    open::blocking(host, cookie, OpenMode::Exclusive, deadline)
}

const SWEEPS: [Act; 3] = [Act::Sweep(true), Act::SweepLocked, Act::Sweep(false)];
const ACTS: [Act; 6] = [
    Act::Change(true),
    Act::Change(false),
    Act::Touch(true),
    Act::Touch(false),
    Act::Destroy(true),
    Act::Destroy(false),
];

fn explored(scripts: &[Vec<Act>], archive_pieces: usize, manner: Manner) -> Result<Explored, String> {
    let began = Instant::now();
    let steps: Vec<Vec<Step>> = scripts.iter().map(|script| run(script, manner)).collect();
    let ran = began.elapsed();
    let explored = explore(&steps, ID, archive_pieces)?;
    println!(
        "{} scripts, archives in {archive_pieces} pieces: {} steps, {} states, {} contents of memory, {} ms \
         after {} ms",
        scripts.len(),
        explored.steps,
        explored.states,
        explored.memories,
        (began.elapsed() - ran).as_millis(),
        ran.as_millis()
    );
    Ok(explored)
}

/// Two pushes of one slot with all that may befall them, and three with all that may befall their links.
#[test]
fn whatever_lands_a_scan_yields_the_last_acked_version_or_a_newer_whole_one() {
    let run = |scripts: &[Vec<Act>], archive_pieces| {
        explored(scripts, archive_pieces, Manner::default()).unwrap_or_else(|why| panic!("{why}")).states
    };
    assert!(run(&scripts(2, &ACTS, &SWEEPS), 1) > 10_000);
    assert!(run(&scripts(2, &ACTS[..1], &[]), 4) > 1_000);
    assert!(run(&scripts(3, &ACTS[..1], &[]), 3) > 1_000);
}

/// Three pushes of one slot with all that may befall them. Too much where the compiler does not optimise:
/// `cargo x model` runs it where it does.
#[test]
#[cfg_attr(debug_assertions, ignore = "run by `cargo x model`, in release")]
fn three_pushes_of_every_kind() {
    let explored = explored(&scripts(3, &ACTS, &SWEEPS[..2]), 1, Manner::default())
        .unwrap_or_else(|why| panic!("{why}"));
    // For the table in docs/testing.md, which `cargo x ci` holds against it.
    println!("figure: card.states {}", explored.states);
    assert!(explored.states > 100_000, "{explored:?}");
}

#[cfg(feature = "mutants")]
#[test]
fn the_card_finds_what_breaks_a_rule() {
    use Act::{Change, Destroy, Others, SweepLocked};
    let teeth = |rule: Rule, script: &[Act]| {
        assert_teeth(rule, || explored(&[script.to_vec()], 1, Manner::default()).map(drop));
    };
    teeth(Rule::R2SealByView, &[Change(true)]);
    teeth(Rule::R4FreshSlot, &[Change(true), Change(false), Change(true)]);
    teeth(Rule::R7Blocks, &[Change(true), Others(BLOCKS - 2), Change(false), Change(true)]);
    teeth(Rule::R9Destroy, &[Change(true), Change(false), Destroy(true)]);
    teeth(Rule::R11Moved, &[Change(true), Change(false), SweepLocked]);
    let manner = Manner { checksum: ChecksumKind::None, ..Manner::default() };
    explored(&[vec![Change(true)]], 1, manner).expect_err("without its checksum a torn archive is served");
}

/// What the user knows of a session.
struct Known {
    cookie: Cookie,
    acked: i64,
    tried: i64,
    destroyed: bool,
}

/// Many sessions, two servers, links that fail at any time, and the death of the host in the middle of it.
fn random_life(seed: u64) -> Result<(), String> {
    let manner = Manner { seed, fails_per_mille: 2, ..Manner::default() };
    let mut world = World::chaotic(2, 2, 20, manner);
    let host = world.host("n1");
    let mut random = crate::archive::testing::Rng(seed.wrapping_mul(0x9e37_79b9).wrapping_add(1));
    let mut sessions: Vec<Known> = Vec::new();
    for value in 1..30 + random.below(40) as i64 {
        host.open_links(true);
        world.mandate("n1");
        let at = random.below(6) as usize;
        if at >= sessions.len() {
            let id = SessionId([value as u8; 16]);
            let mut session = open::create_as(&host, id, None).map_err(|error| error.to_string())?;
            session.set("n", Value::I64(value)).unwrap();
            let copies = session.commit(Ack::All).map_err(|error| error.to_string())?.copies;
            let cookie = Cookie { id, host: Incarnation::NONE };
            let acked = if copies > 0 { value } else { 0 };
            sessions.push(Known { cookie, acked, tried: value, destroyed: false });
            continue;
        }
        let known = &mut sessions[at];
        let lives =
            host.cache.find(&known.cookie.id).unwrap().is_some_and(|info| info.state == EntryState::Live);
        match random.below(10) {
            0 => drop(world.sweep("n1")),
            1 if lives => {
                let session = try_find(&host, &known.cookie);
                world.sweep("n1");
                drop(session);
            }
            2 if lives => {
                world.clock.advance_ms(2 * host.touch_step_ms());
                world.mandate("n1");
                drop(try_find(&host, &known.cookie));
            }
            3 if lives => {
                let Ok(found) = try_find(&host, &known.cookie) else { continue };
                let Found::Session(session) = found else {
                    known.destroyed = true;
                    continue;
                };
                (known.tried, known.destroyed) = (value, session.destroy().is_ok());
            }
            _ if lives => {
                let Ok(found) = try_find(&host, &known.cookie) else { continue };
                let Found::Session(mut session) = found else {
                    // The clock was moved on past its end: gone is gone.
                    known.destroyed = true;
                    continue;
                };
                known.tried = value;
                session.set("n", Value::I64(value)).unwrap();
                if session.commit(Ack::All).map_err(|error| error.to_string())?.copies > 0 {
                    known.acked = value;
                }
            }
            _ => {}
        }
        for server in ["s1", "s2"] {
            world.card(server, "n1").work(random.below(30));
        }
    }
    world.end_node("n1");
    let heir = world.add_node("n2");
    world.publish();
    for known in &sessions {
        let was_ended =
            host.cache.find(&known.cookie.id).unwrap().is_none_or(|info| info.state != EntryState::Live);
        let found = number(&heir, &known.cookie);
        let good = match &found {
            Ok(value) => !known.destroyed && (known.acked..=known.tried).contains(value),
            Err(why) => why == "missing" && (known.acked == 0 || known.destroyed || was_ended),
        };
        if !good {
            let Known { acked, tried, destroyed, .. } = known;
            return Err(format!("found {found:?}; acked {acked}, tried {tried}, destroyed: {destroyed}"));
        }
    }
    Ok(())
}

#[test]
fn lives_over_a_card_that_keeps_few_promises() {
    // In release, many more.
    let seeds = if cfg!(debug_assertions) { 40 } else { 600 };
    for seed in 1..=seeds {
        random_life(seed).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
}
