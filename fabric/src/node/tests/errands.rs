//! Errands of operators and applications.

use super::world::{World, create, find, open};
use crate::archive::Value;
use crate::cache::{EntryInit, Inserted};
use crate::control::message::{
    AttributeKind, AttributeValue, Doomed, Errand, ErrandOutcome, SessionDetail, SessionFacts,
};
use crate::error::ErrorKind;
use crate::ident::{Cookie, SessionId};
use crate::limits::{SHOWN_BYTES_MAX, SHOWN_VALUE_BYTES_MAX};
use crate::node::claims::{Claimed, Wanted, admit, claim, fetch_archives};
use crate::node::host::Host;
use crate::node::open::{self as opening, Found};
use crate::node::{Ack, OpenMode, errand};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

fn run(host: &Host, errand: Errand, within_ms: u64) -> ErrandOutcome {
    errand::run(host, &errand, Duration::from_millis(within_ms), &AtomicBool::new(false))
}

/// A committed session of an owner.
fn owned(host: &Arc<Host>, owner: &str) -> Cookie {
    let (cookie, _) = create(host, 1);
    let mut session = open(host, &cookie);
    session.set_owner(Some(owner)).unwrap();
    session.commit(Ack::All).unwrap();
    cookie
}

fn list(host: &Host, owner: Option<&str>, cursor: u32, limit: u32) -> (Vec<SessionFacts>, Option<u32>) {
    let owner = owner.map(str::to_owned);
    match run(host, Errand::List { owner, cursor, limit }, 1000) {
        ErrandOutcome::Listed { sessions, next } => (sessions, next),
        other => panic!("{other:?}"),
    }
}

fn show(host: &Host, id: SessionId, values: bool) -> Option<SessionDetail> {
    match run(host, Errand::Show { id, values }, 1000) {
        ErrandOutcome::Shown(detail) => detail.map(|detail| *detail),
        other => panic!("{other:?}"),
    }
}

/// Destroys all of ann's: how many, and what was left.
fn destroy(host: &Host, within_ms: u64) -> (u64, Option<String>) {
    match run(host, Errand::Destroy(Doomed::Owner("ann".to_owned())), within_ms) {
        ErrandOutcome::Destroyed { sessions, left } => (sessions, left),
        other => panic!("{other:?}"),
    }
}

fn is_missing(host: &Arc<Host>, cookie: &Cookie) -> bool {
    matches!(find(host, cookie), Ok(Found::Missing))
}

#[test]
fn sessions_are_listed_in_pieces_and_by_their_owner() {
    let world = World::new(2, 1, 2);
    let host = world.host("n1");
    let mut all: Vec<SessionId> = (0..7).map(|_| owned(&host, "ann").id).collect();
    let bob = owned(&host, "bob").id;
    let _being_made = crate::node::open::create(&host, Some("ann")).unwrap();
    let (mut listed, mut cursor, mut pieces) = (Vec::new(), Some(0), 0);
    while let Some(at) = cursor {
        let (sessions, next) = list(&host, Some("ann"), at, 3);
        assert!(sessions.len() <= 3);
        listed.extend(sessions);
        (cursor, pieces) = (next, pieces + 1);
    }
    assert!(pieces >= 3);
    assert!(listed.iter().all(|facts| facts.copies == 2 && facts.owner.as_deref() == Some("ann")));
    let mut ids: Vec<SessionId> = listed.iter().map(|facts| facts.id).collect();
    ids.sort();
    all.sort();
    assert_eq!(ids, all);
    let (everything, next) = list(&host, None, 0, 100);
    assert_eq!((everything.len(), next), (8, None));
    let facts = everything.iter().find(|facts| facts.id == bob).unwrap();
    assert!(facts.owner.as_deref() == Some("bob") && facts.bytes > 0 && !facts.locked);
    world.clock.advance_ms(3_000_000);
    assert!(list(&host, None, 0, 100).0.is_empty(), "their time is over");
}

#[test]
fn a_session_is_shown_without_its_values_unless_these_are_asked_for() {
    let world = World::new(1, 1, 1);
    let host = world.host("n1");
    let cookie = owned(&host, "ann");
    let long = "\u{fc}".repeat(SHOWN_VALUE_BYTES_MAX);
    let mut session = open(&host, &cookie);
    session.set("b", Value::Bytes(vec![0, 255])).unwrap();
    session.set("t", Value::Text(long.clone())).unwrap();
    session.commit(Ack::All).unwrap();
    drop(session);
    let shown = show(&host, cookie.id, false).unwrap();
    assert_eq!((shown.facts.id, shown.facts.owner.as_deref()), (cookie.id, Some("ann")));
    let names: Vec<(&str, AttributeKind, u32)> =
        shown.attributes.iter().map(|it| (it.name.as_str(), it.kind, it.bytes)).collect();
    let kinds = (AttributeKind::Bytes, AttributeKind::I64, AttributeKind::Text);
    assert_eq!(names, [("b", kinds.0, 2), ("n", kinds.1, 8), ("t", kinds.2, long.len() as u32)]);
    assert!(shown.attributes.iter().all(|attribute| attribute.value.is_none()));
    let shown = show(&host, cookie.id, true).unwrap();
    let values: Vec<AttributeValue> = shown.attributes.into_iter().filter_map(|it| it.value).collect();
    let cut = long[..SHOWN_VALUE_BYTES_MAX].to_owned();
    assert_eq!(
        values,
        [AttributeValue::Bytes(vec![0, 255]), AttributeValue::I64(1), AttributeValue::Text(cut)]
    );
    assert_eq!(show(&host, SessionId([7; 16]), true), None);
}

#[test]
fn an_answer_with_many_values_is_bounded() {
    let world = World::new(1, 1, 1);
    let host = world.host("n1");
    let (cookie, _) = create(&host, 1);
    let mut session = open(&host, &cookie);
    let value = |at: usize| Value::Bytes(vec![at as u8; 1500]);
    (0..40).for_each(|at| session.set(&format!("a{at:03}"), value(at)).unwrap());
    session.commit(Ack::All).unwrap();
    drop(session);
    let shown = show(&host, cookie.id, true).unwrap();
    assert_eq!(shown.attributes.len(), 41);
    let mut room = 3000;
    let described =
        ["x", "y", "z"].map(|name| errand::describe(name, Value::Bytes(vec![0; 1500]).as_ref(), &mut room));
    assert_eq!(described.map(|attribute| attribute.value.is_some()), [true, true, false]);
    const { assert!(SHOWN_BYTES_MAX > SHOWN_VALUE_BYTES_MAX) };
}

#[test]
fn all_of_an_owner_are_destroyed_at_all_servers_and_no_others() {
    let mut world = World::new(2, 2, 2);
    let host = world.host("n1");
    let anns: Vec<Cookie> = (0..20).map(|_| owned(&host, "ann")).collect();
    let bob = owned(&host, "bob");
    let (nobody, _) = create(&host, 3);
    assert_eq!(destroy(&host, 5000), (20, None));
    assert!(anns.iter().all(|cookie| is_missing(&host, cookie)));
    assert_eq!(destroy(&host, 5000), (0, None));
    let dead = world.end_node("n1");
    let n2 = world.host("n2");
    assert!(anns.iter().all(|cookie| is_missing(&n2, cookie)), "no copy brings it back");
    while !world.adopt("n2", dead).complete {}
    assert!(matches!(find(&n2, &bob), Ok(Found::Session(_))));
    assert!(matches!(find(&n2, &nobody), Ok(Found::Session(_))));
    assert_eq!(destroy(&n2, 5000), (0, None));
}

#[test]
fn a_session_whose_lock_is_held_is_waited_for_or_told() {
    let world = World::new(2, 1, 2);
    let host = world.host("n1");
    let cookies = [owned(&host, "ann"), owned(&host, "ann")];
    let held = open(&host, &cookies[0]);
    let (destroyed, left) = destroy(&host, 50);
    let left = left.expect("it is held");
    assert!(destroyed == 1 && left.contains(&cookies[0].id.to_string()), "{destroyed}: {left}");
    let other = world.add_process("n1");
    let ended = std::thread::spawn(move || destroy(&other, 20_000));
    std::thread::sleep(Duration::from_millis(30));
    assert!(!ended.is_finished());
    drop(held);
    assert_eq!(ended.join().unwrap(), (1, None));
    assert!(is_missing(&host, &cookies[0]));
}

#[test]
fn one_session_is_destroyed_by_its_id() {
    let world = World::new(2, 1, 2);
    let host = world.host("n1");
    let (one, other) = (owned(&host, "ann"), owned(&host, "ann"));
    let kill = || run(&host, Errand::Destroy(Doomed::Session(one.id)), 1000);
    assert_eq!(kill(), ErrandOutcome::Destroyed { sessions: 1, left: None });
    assert_eq!(kill(), ErrandOutcome::Destroyed { sessions: 0, left: None });
    assert!(is_missing(&host, &one) && !is_missing(&host, &other));
}

#[test]
fn a_session_that_keeps_changing_its_id_does_not_pass_by() {
    let world = World::new(1, 1, 1);
    let host = world.host("n1");
    let others: Vec<Cookie> = (0..200).map(|_| create(&host, 1).0).collect();
    for round in 0..10 {
        let (mut cookie, runner) = (owned(&host, "ann"), world.add_process("n1"));
        let is_done = Arc::new(AtomicBool::new(false));
        let done = is_done.clone();
        let regenerator = std::thread::spawn(move || {
            let mut after = 0;
            while after < 2 {
                after += u32::from(done.load(Ordering::Acquire));
                let Ok(Found::Session(mut session)) = find(&runner, &cookie) else { return true };
                session.regenerate().unwrap();
                cookie.id = session.facts.id;
            }
            false
        });
        let (destroyed, left) = destroy(&host, 20_000);
        is_done.store(true, Ordering::Release);
        assert_eq!((destroyed, left), (1, None), "round {round}");
        assert!(regenerator.join().unwrap(), "round {round}: it lives on under another id");
    }
    assert!(others.iter().all(|cookie| !is_missing(&host, cookie)));
}

#[test]
fn what_is_just_being_fetched_is_waited_for() {
    let world = World::new(1, 1, 1);
    let host = world.host("n1");
    let id = SessionId::random().unwrap();
    let Ok(Inserted::Granted(fetching)) = host.cache.insert(&id, EntryInit::default()) else { panic!() };
    let (_, left) = destroy(&host, 30);
    assert!(left.is_some_and(|left| left.contains(&id.to_string())));
    drop(fetching);
    assert_eq!(destroy(&host, 5000), (0, None));
    // One that is being made has no owner by a commit that has returned.
    let _making = crate::node::open::create(&host, Some("ann")).unwrap();
    assert_eq!(destroy(&host, 5000), (0, None));
}

#[test]
fn a_burial_that_was_left_open_is_finished() {
    let world = World::new(2, 1, 2);
    let host = world.host("n1");
    let cookie = owned(&host, "ann");
    // The server vanishes for the one who destroys, and not from the view.
    for server in ["s1", "s2"] {
        world.on_server(server, |server| server.is_down = true);
    }
    let plan = host.plan().clone();
    for (_, link) in plan.links() {
        if let crate::node::host::LinkState::Open(lane) = link {
            host.lose_link(lane, "for the test");
        }
    }
    let (_, left) = destroy(&host, 50);
    assert!(left.is_some_and(|left| left.contains("tombstones")), "they are not acked");
    for server in ["s1", "s2"] {
        world.on_server(server, |server| server.is_down = false);
    }
    assert!(host.open_links(true));
    assert_eq!(destroy(&host, 5000), (0, None));
    let info = host.cache.find(&cookie.id).unwrap();
    assert!(info.is_none(), "{info:?}");
}

#[test]
fn nothing_is_admitted_from_leases_that_were_released_meanwhile() {
    let mut world = World::new(1, 2, 1);
    let cookie = owned(&world.host("n1"), "ann");
    let dead = world.end_node("n1");
    let n2 = world.host("n2");
    let plan = n2.plan().clone();
    let Ok(Inserted::Granted(mut hold)) = n2.cache.insert(&cookie.id, EntryInit::default()) else { panic!() };
    let Some(Claimed::Ours(Some((copy, at)))) = claim(&n2, &plan, &[cookie.id]).unwrap().pop() else {
        panic!()
    };
    let wanted = Wanted { id: cookie.id, copy, at };
    let archive = fetch_archives(&n2, &plan, std::slice::from_ref(&wanted)).pop().unwrap().unwrap();
    // A server that is cut off from the director only would make this possible.
    world.view.dead.retain(|entry| entry.incarnation != dead);
    world.publish();
    let error = admit(&n2, &plan, &mut hold, &wanted, archive).unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotYet);
    drop(hold);
    assert_eq!(destroy(&n2, 1000), (0, None));
}

#[test]
fn ids_in_their_grace_end_with_their_owner() {
    let world = World::with(1, 1, 1, "wait_ms = 2000\nregenerate_grace_ms = 60000");
    let host = world.host("n1");
    let read = |cookie: &Cookie| {
        let deadline = std::time::Instant::now() + Duration::from_secs(5);
        let found = opening::blocking(&host, cookie, OpenMode::ReadOnly, deadline);
        matches!(found, Ok(Found::Session(_)))
    };
    let olds = [owned(&host, "ann"), owned(&host, "ann"), owned(&host, "bob")];
    let news = olds.map(|old| {
        let mut session = open(&host, &old);
        session.regenerate().unwrap();
        Cookie { id: session.facts.id, ..old }
    });
    // The second is somebody else's under its new id.
    let mut session = open(&host, &news[1]);
    session.set_owner(Some("carl")).unwrap();
    session.commit(Ack::All).unwrap();
    drop(session);
    assert_eq!(olds.map(|old| read(&old)), [true; 3]);
    assert_eq!(destroy(&host, 5000), (1, None));
    assert_eq!(olds.map(|old| read(&old)), [false, false, true]);
    assert_eq!(news.map(|new| read(&new)), [false, true, true]);
    let kill = Errand::Destroy(Doomed::Session(olds[2].id));
    assert_eq!(run(&host, kill, 1000), ErrandOutcome::Destroyed { sessions: 0, left: None });
    assert!(!read(&olds[2]) && read(&news[2]));
}

#[test]
fn an_errand_ends_when_the_process_leaves() {
    let world = World::new(1, 1, 1);
    let host = world.host("n1");
    let cookie = owned(&host, "ann");
    let _held = open(&host, &cookie);
    let stop = AtomicBool::new(true);
    let errand = Errand::Destroy(Doomed::Owner("ann".to_owned()));
    let began = std::time::Instant::now();
    let outcome = errand::run(&host, &errand, Duration::from_secs(20), &stop);
    assert!(matches!(outcome, ErrandOutcome::Destroyed { left: Some(_), .. }), "{outcome:?}");
    assert!(began.elapsed() < Duration::from_secs(10));
}
