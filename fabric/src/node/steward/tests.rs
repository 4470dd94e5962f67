use super::*;
use crate::view::{DeadEntry, NodeEntry, NodeState, ServerEntry};

const MS: u64 = 1_000_000;
const US: Incarnation = Incarnation(10);
const TIMING: StewardTiming = StewardTiming { heartbeat_ns: 50 * MS, mandate_ns: 250 * MS };

fn node(name: &str, incarnation: Incarnation) -> NodeEntry {
    NodeEntry { name: name.into(), incarnation, state: NodeState::Up, address: String::new() }
}

fn server(name: &str, incarnation: u64) -> ServerEntry {
    ServerEntry {
        name: name.into(),
        incarnation: Incarnation(incarnation),
        weight: 1,
        socket: String::new(),
        control: None,
    }
}

fn view(number: u32) -> View {
    View {
        epoch: Epoch { term: 1, number },
        copies: 2,
        nodes: vec![node("n1", US), node("n2", Incarnation(11))],
        servers: vec![server("s1", 100), server("s2", 200)],
        dead: Vec::new(),
    }
}

fn dead(sealed: bool) -> DeadEntry {
    DeadEntry { name: "n3".into(), incarnation: Incarnation(12), sealed }
}

#[test]
fn a_sweep_that_took_long_is_repeated_soon_enough() {
    let mut steward = steward();
    let took_ns = 60_000 * MS;
    let epoch = Epoch { term: 1, number: 1 };
    steward.handle(Event::SweepEnded { epoch, complete: true, took_ns }, MS);
    let swept =
        |now_ns: u64, steward: &mut Steward| steward.handle(Event::Tick, now_ns).contains(&Effect::Sweep);
    assert!(!swept(4_999 * MS, &mut steward), "it costs a lot");
    assert!(swept(5_001 * MS, &mut steward), "but nothing waits for minutes");
}

fn sweep_ended(number: u32, complete: bool) -> Event {
    Event::SweepEnded { epoch: Epoch { term: 1, number }, complete, took_ns: MS }
}

/// A connected steward that has begun its first work.
fn steward() -> Steward {
    let mut steward = Steward::new(US, TIMING, view(1), true, 0);
    let effects = steward.handle(Event::Tick, 0);
    assert_eq!(
        effects,
        [
            Effect::Beat { epoch: Epoch { term: 1, number: 1 }, settled: vec![] },
            Effect::RegisterClaims { server: Incarnation(100) },
            Effect::RegisterClaims { server: Incarnation(200) },
            Effect::Sweep,
        ]
    );
    steward
}

fn receive(steward: &mut Steward, message: FromDirector, now_ns: u64) -> Vec<Effect> {
    steward.handle(Event::Received(message), now_ns)
}

#[test]
fn it_beats_at_its_interval_and_reconnects_with_a_pause() {
    let mut steward = steward();
    assert_eq!(steward.deadline_ns(), 50 * MS);
    assert!(steward.handle(Event::Tick, 49 * MS).is_empty());
    assert!(matches!(steward.handle(Event::Tick, 50 * MS)[..], [Effect::Beat { .. }]));
    // A long pause is followed by one heartbeat, not by those that were missed.
    assert_eq!(steward.handle(Event::Tick, 900 * MS).len(), 1);
    assert!(steward.handle(Event::Tick, 901 * MS).is_empty());

    assert!(steward.handle(Event::Disconnected, 910 * MS).is_empty());
    assert_eq!(steward.deadline_ns(), 960 * MS);
    assert_eq!(steward.handle(Event::Tick, 960 * MS), [Effect::Connect]);
    assert!(steward.handle(Event::Tick, 2000 * MS).is_empty(), "one attempt at a time");
    assert_eq!(steward.handle(Event::Connected, 2000 * MS)[0], {
        Effect::Send(ToDirector::Resume { epoch: Epoch { term: 1, number: 1 } })
    });
}

#[test]
fn mandates_count_from_the_sending_of_their_heartbeat_and_never_shrink() {
    let mut steward = steward();
    let effects = receive(&mut steward, FromDirector::Mandate { sent_ns: 5 * MS }, 40 * MS);
    assert_eq!(effects, [Effect::StoreMandate { until_ns: 255 * MS }]);
    assert!(receive(&mut steward, FromDirector::Mandate { sent_ns: 4 * MS }, 41 * MS).is_empty());
    assert!(receive(&mut steward, FromDirector::Mandate { sent_ns: 43 * MS }, 42 * MS).is_empty());
}

#[test]
fn a_new_view_is_published_once_and_closes_and_opens_what_it_must() {
    let mut steward = steward();
    steward.handle(Event::ClaimsEnded { server: Incarnation(100), done: true }, MS);
    steward.handle(Event::ClaimsEnded { server: Incarnation(200), done: true }, MS);
    steward.handle(sweep_ended(1, true), MS);
    let mut next = view(2);
    next.servers = vec![server("s1", 100), server("s2", 201)];
    let effects = receive(&mut steward, FromDirector::View(next.clone()), 2 * MS);
    assert_eq!(
        effects,
        [
            Effect::Publish(next.clone()),
            Effect::RetireBook(Incarnation(200)),
            Effect::RegisterClaims { server: Incarnation(201) },
            Effect::Sweep,
        ]
    );
    assert!(receive(&mut steward, FromDirector::View(next), 3 * MS).is_empty());
    // Registration that failed is tried again.
    assert!(steward.handle(Event::ClaimsEnded { server: Incarnation(201), done: false }, 4 * MS).is_empty());
    let effects = steward.handle(Event::Tick, 54 * MS);
    assert!(effects.contains(&Effect::RegisterClaims { server: Incarnation(201) }));
}

#[cfg(feature = "mutants")]
#[test]
fn r12_an_older_view_changes_nothing() {
    crate::rules::assert_teeth(Rule::R12Epochs, || {
        let mut steward = Steward::new(US, TIMING, view(5), true, 0);
        let mut old = view(4);
        old.servers.pop();
        receive(&mut steward, FromDirector::View(old), MS);
        if steward.view().epoch.number == 5 { Ok(()) } else { Err("went back".into()) }
    });
}

#[cfg(feature = "mutants")]
#[test]
fn r2_nothing_is_adopted_before_all_servers_have_sealed() {
    crate::rules::assert_teeth(Rule::R2SealByView, || {
        let mut steward = Steward::new(US, TIMING, view(1), true, 0);
        let mut next = view(2);
        next.dead = vec![dead(false)];
        let effects = receive(&mut steward, FromDirector::View(next), MS);
        if effects.iter().any(|effect| matches!(effect, Effect::Adopt { .. })) {
            return Err("adopts from an unsealed lease".into());
        }
        let mut next = view(3);
        next.dead = vec![dead(true)];
        let effects = receive(&mut steward, FromDirector::View(next), 2 * MS);
        assert!(effects.contains(&Effect::Adopt { dead: Incarnation(12) }));
        Ok(())
    });
}

#[test]
fn an_adoption_is_reported_as_settled_only_by_the_view_that_holds() {
    let mut steward = steward();
    let mut next = view(2);
    next.dead = vec![dead(true)];
    receive(&mut steward, FromDirector::View(next.clone()), MS);
    let ended = |number| Event::AdoptionEnded {
        dead: Incarnation(12),
        epoch: Epoch { term: 1, number },
        complete: true,
    };
    // Ended by an older view: done again at once, and not settled.
    let effects = steward.handle(ended(1), 2 * MS);
    assert!(effects.contains(&Effect::Adopt { dead: Incarnation(12) }));
    steward.handle(ended(2), 3 * MS);
    let settled = |effects: Vec<Effect>| {
        effects.into_iter().find_map(|effect| match effect {
            Effect::Beat { settled, .. } => Some(settled),
            _ => None,
        })
    };
    assert_eq!(settled(steward.handle(Event::Tick, 60 * MS)), Some(vec![Incarnation(12)]));
    // Another live node went: its part may fall to us.
    next.epoch.number = 3;
    next.nodes.truncate(1);
    let effects = receive(&mut steward, FromDirector::View(next.clone()), 61 * MS);
    assert!(effects.contains(&Effect::Adopt { dead: Incarnation(12) }));
    assert_eq!(settled(steward.handle(Event::Tick, 120 * MS)), Some(vec![]));
    // Released.
    next.epoch.number = 4;
    next.dead.clear();
    receive(&mut steward, FromDirector::View(next), 121 * MS);
    assert!(steward.handle(ended(3), 130 * MS).is_empty());
}

#[test]
fn sweeps_never_overlap_and_a_change_during_one_begins_another() {
    let mut steward = steward();
    assert!(steward.handle(Event::Tick, MS).is_empty());
    receive(&mut steward, FromDirector::View(view(2)), 2 * MS);
    assert!(steward.handle(sweep_ended(1, true), 3 * MS).contains(&Effect::Sweep));
    assert!(!steward.handle(sweep_ended(2, false), 4 * MS).contains(&Effect::Sweep));
    assert!(steward.handle(Event::Tick, 17 * MS).contains(&Effect::Sweep), "unfinished work goes on soon");
    steward.handle(sweep_ended(2, true), 18 * MS);
    assert!(!steward.handle(Event::Tick, 217 * MS).contains(&Effect::Sweep));
    assert!(steward.handle(Event::Tick, 218 * MS).contains(&Effect::Sweep));
    steward.handle(sweep_ended(2, true), 219 * MS);
    // Sessions that were left short do not wait for the next round.
    steward.handle(Event::Unprotected, 220 * MS);
    assert!(steward.handle(Event::Tick, 245 * MS).contains(&Effect::Sweep));
    steward.handle(Event::Unprotected, 246 * MS);
    assert!(!steward.handle(sweep_ended(2, true), 247 * MS).contains(&Effect::Sweep));
    assert!(steward.handle(Event::Tick, 272 * MS).contains(&Effect::Sweep));
}

#[test]
fn drained_is_said_once_after_a_complete_sweep_that_began_later() {
    let mut steward = steward();
    // The first sweep still runs: it does not count.
    receive(&mut steward, FromDirector::PrepareDrain, MS);
    let drained = Effect::Send(ToDirector::Drained);
    assert!(!steward.handle(sweep_ended(1, true), 2 * MS).contains(&drained));
    assert!(!steward.handle(sweep_ended(1, false), 3 * MS).contains(&drained));
    steward.handle(Event::Tick, 30 * MS);
    let effects = steward.handle(sweep_ended(1, true), 31 * MS);
    let told = effects.iter().position(|effect| *effect == drained).expect("the sweep was whole");
    let beat = effects.iter().position(|effect| matches!(effect, Effect::Beat { .. }));
    assert!(beat.is_some_and(|beat| beat < told), "with the numbers after the sweep: {effects:?}");
    steward.handle(Event::Tick, 300 * MS);
    assert!(!steward.handle(sweep_ended(1, true), 301 * MS).contains(&drained));
    assert_eq!(
        receive(&mut steward, FromDirector::Over { drained: true }, 400 * MS),
        [Effect::End { drained: true }]
    );
}

#[test]
fn errands_are_bounded_and_each_is_answered_once() {
    let mut steward = steward();
    let errand = Errand::Show { id: Default::default(), values: false };
    let ask = |number| FromDirector::Errand { number, errand: errand.clone(), within_ms: 9 };
    let end = |number, why: &str| {
        let outcome = ErrandOutcome::Failed(why.to_owned());
        Effect::Send(ToDirector::ErrandEnded { number, outcome })
    };
    for number in 0..ERRANDS_MAX as u64 {
        let begun = Effect::Errand { number, errand: errand.clone(), within_ms: 9 };
        assert!(receive(&mut steward, ask(number), 1).contains(&begun));
    }
    let refused = receive(&mut steward, ask(77), 2);
    assert!(refused.contains(&end(77, &format!("it has {ERRANDS_MAX} errands already"))), "{refused:?}");
    let outcome = ErrandOutcome::Failed("no".to_owned());
    assert!(steward.handle(Event::ErrandEnded { number: 3, outcome }, 3).contains(&end(3, "no")));
    let begun = Effect::Errand { number: 78, errand: errand.clone(), within_ms: 9 };
    assert!(receive(&mut steward, ask(78), 4).contains(&begun), "there is room again");
}

#[test]
fn an_ended_steward_does_nothing_more() {
    for message in [FromDirector::Over { drained: false }, FromDirector::Refused(Refusal::Over), {
        let mut without_us = view(2);
        without_us.nodes.remove(0);
        FromDirector::View(without_us)
    }] {
        let mut steward = steward();
        assert_eq!(receive(&mut steward, message, MS), [Effect::End { drained: false }]);
        assert!(steward.is_over());
        assert!(steward.handle(Event::Tick, 900 * MS).is_empty());
        assert!(receive(&mut steward, FromDirector::Mandate { sent_ns: 0 }, 900 * MS).is_empty());
    }
}
