//! One-sided beats: who is silent on the control connection and beats is spared, for a time; who is dead is
//! noticed as fast as without them.

use super::*;
use selvage_fabric::rules::assert_teeth;

const SILENCE: u64 = 300;
const HEARTBEAT: u64 = 50;

/// All members are up, and their one-sided beats are seen by the others.
fn beating(nodes: &[&str], servers: &[&str]) -> World {
    let mut world = World::up(nodes, servers);
    let view = world.view();
    let nodes = view.nodes.iter().map(|node| node.incarnation);
    let servers = view.servers.iter().map(|server| server.incarnation);
    world.pulses = nodes.chain(servers).map(|life| (life, world.now)).collect();
    world.advance(100);
    world
}

impl World {
    /// The node's control connection carries nothing any more; its beats go on. Returns its life.
    fn mute_node(&mut self, name: &str) -> Incarnation {
        self.beating.remove(name).expect("it beats");
        self.node(name).expect("it is up")
    }

    /// As [`World::mute_node`].
    fn mute_server(&mut self, name: &str) -> Incarnation {
        self.servers.get_mut(name).expect("it is there").answers = false;
        self.server(name).expect("it is up")
    }

    /// The whole host is gone: no beat of any kind.
    fn kill_node_host(&mut self, name: &str) {
        let life = self.mute_node(name);
        self.stopped.push(life);
    }

    fn kill_server_host(&mut self, name: &str) {
        let life = self.mute_server(name);
        self.stopped.push(life);
    }

    /// Milliseconds until something is so; at most 5000.
    fn until(&mut self, is_so: impl Fn(&World) -> bool) -> u64 {
        let begun = self.now;
        while !is_so(self) && self.now < begun + Duration::from_secs(5) {
            self.advance(10);
        }
        (self.now - begun).as_millis() as u64
    }

    fn spared(&self) -> u64 {
        self.cluster.status().spared
    }
}

#[test]
fn a_node_that_is_not_heard_and_beats_is_spared_for_a_time() {
    let mut world = beating(&["n1", "n2"], &["s1", "s2"]);
    let life = world.mute_node("n1");
    world.advance(2 * SILENCE);
    assert_eq!(world.node("n1"), Some(life), "its beats are fresh");
    assert_eq!(world.spared(), 1, "counted once for one silence");
    let more = world.until(|world| world.node("n1").is_none());
    assert!((SILENCE - 20..=SILENCE + 20).contains(&more), "dead anyway after three silences, not {more}");
}

#[test]
fn a_server_that_is_not_heard_and_beats_is_spared_for_a_time() {
    let mut world = beating(&["n1", "n2"], &["s1", "s2"]);
    let life = world.mute_server("s1");
    world.advance(2 * SILENCE);
    assert_eq!(world.server("s1"), Some(life), "its beats are fresh");
    assert_eq!(world.spared(), 1);
    let more = world.until(|world| world.server("s1").is_none());
    assert!((SILENCE - 20..=SILENCE + 20).contains(&more), "down anyway after three silences, not {more}");
}

#[test]
fn control_connections_that_stall_again_and_again_cost_nobody_his_place() {
    let mut world = beating(&["n1", "n2"], &["s1", "s2"]);
    let before = world.view();
    for _ in 0..10 {
        // Both are silent for two retransmission timeouts; then what was sent comes at once.
        let node = world.beating.remove("n1").unwrap();
        world.mute_server("s2");
        world.advance(600);
        world.beating.insert("n1".to_owned(), node);
        world.servers.get_mut("s2").unwrap().answers = true;
        world.report("s2");
        world.advance(HEARTBEAT);
    }
    assert_eq!(world.view(), before, "nobody died");
    assert_eq!(world.spared(), 20, "and each stall was counted");
}

#[test]
fn a_dead_host_is_noticed_as_fast_as_without_beats() {
    for alone in [true, false] {
        let mut world = beating(&["n1", "n2"], &["s1", "s2"]);
        world.kill_node_host("n1");
        if !alone {
            world.kill_server_host("s1");
        }
        let node = world.until(|world| world.node("n1").is_none());
        assert!(node <= SILENCE + 2 * HEARTBEAT, "{node} ms");
        assert!(node > SILENCE - HEARTBEAT, "{node} ms");
        let mut world = beating(&["n1", "n2"], &["s1", "s2"]);
        world.kill_server_host("s1");
        if !alone {
            world.kill_node_host("n1");
        }
        let server = world.until(|world| world.server("s1").is_none());
        assert!(server <= SILENCE + 2 * HEARTBEAT, "{server} ms");
    }
}

#[test]
fn a_host_that_dies_while_it_is_spared_is_noticed_as_fast() {
    let mut world = beating(&["n1", "n2"], &["s1", "s2"]);
    let life = world.mute_node("n1");
    world.advance(350);
    assert_eq!(world.node("n1"), Some(life));
    world.stopped.push(life);
    let more = world.until(|world| world.node("n1").is_none());
    assert!(more <= SILENCE + 2 * HEARTBEAT, "{more} ms");
}

#[test]
fn those_who_fall_silent_together_do_not_vouch_for_each_other() {
    // The last that n1 told says that s1 beats, the last that s1 told says that n1 beats. Both go on to see
    // each other, but nobody hears it.
    let mut world = beating(&["n1", "n2"], &["s1", "s2"]);
    let node = world.mute_node("n1");
    world.mute_server("s1");
    // The rest of the cluster sees neither.
    world.kill_server_host("s2");
    let ms = world.until(|world| world.node("n1").is_none());
    assert!(ms <= SILENCE + 2 * HEARTBEAT, "{ms} ms");
    assert_ne!(world.node("n1"), Some(node));

    // The only node and the only server.
    let mut world = beating(&["n1"], &["s1"]);
    world.mute_node("n1");
    world.mute_server("s1");
    let ms = world.until(|world| world.node("n1").is_none() && world.server("s1").is_none());
    assert!(ms <= SILENCE + 2 * HEARTBEAT, "{ms} ms");
}

#[test]
fn everybody_silent_is_everybody_dead() {
    let mut world = beating(&["n1", "n2"], &["s1", "s2"]);
    for name in ["n1", "n2"] {
        world.mute_node(name);
    }
    for name in ["s1", "s2"] {
        world.mute_server(name);
    }
    let ms = world.until(|world| world.view().nodes.is_empty() && world.view().servers.is_empty());
    assert!(ms <= SILENCE + 2 * HEARTBEAT, "{ms} ms");
}

/// A report of s1 that says that it sees this life beat.
fn tell(world: &mut World, server: u64, lease: LeaseReport) {
    let link = world.servers["s1"].link;
    let epoch = world.view().epoch;
    let report = ServerReport {
        name: "s1".to_owned(),
        incarnation: Incarnation(server),
        epoch,
        leases: vec![lease],
        ..ServerReport::default()
    };
    world.step(Event::ServerReport { link, report: Box::new(report) });
}

/// How long n1 lives on when only the reports that `tell` makes each 50 ms speak for it.
fn lives_on(tell: impl Fn(&mut World, Incarnation)) -> u64 {
    let mut world = World::up(&["n1", "n2"], &["s1", "s2"]);
    let life = world.mute_node("n1");
    let mut ms = 0;
    while world.node("n1").is_some() && ms < 5000 {
        tell(&mut world, life);
        world.advance(HEARTBEAT);
        ms += HEARTBEAT;
    }
    ms
}

fn lease(incarnation: Incarnation, beat_age_ms: Option<u32>) -> LeaseReport {
    LeaseReport { node: "n1".to_owned(), incarnation, sealed: false, sessions: 0, unsettled: 0, beat_age_ms }
}

#[test]
fn only_fresh_beats_of_this_very_life_at_a_server_of_the_view_count() {
    let alone = lives_on(|_, _| {});
    assert!(alone <= SILENCE + HEARTBEAT, "{alone} ms");
    let good = lives_on(|world, life| tell(world, 1, lease(life, Some(10))));
    assert!(good >= 3 * SILENCE, "{good} ms");
    type Teller = dyn Fn(&mut World, Incarnation);
    let no_better: [(&str, &Teller); 5] = [
        ("another life of the node", &|world, life| tell(world, 1, lease(Incarnation(life.0 + 1), Some(10)))),
        ("a beat as old as the silence", &|world, life| tell(world, 1, lease(life, Some(301)))),
        ("no beat was ever seen", &|world, life| tell(world, 1, lease(life, None))),
        ("a sealed lease", &|world, life| {
            tell(world, 1, LeaseReport { sealed: true, ..lease(life, Some(10)) });
        }),
        ("older than the director", &|world, life| tell(world, 1, lease(life, Some(u32::MAX)))),
    ];
    for (what, told) in no_better {
        let ms = lives_on(told);
        assert!(ms <= alone, "{what}: {ms} ms");
    }
}

#[test]
fn a_server_that_is_down_is_no_witness() {
    let mut world = beating(&["n1", "n2"], &["s1", "s2"]);
    // Both servers' processes die; what they told last is fresh.
    let life = world.mute_node("n1");
    world.advance(200);
    for name in ["s1", "s2"] {
        world.report(name);
        world.server_killed(name);
    }
    assert_eq!(world.node("n1"), Some(life));
    let ms = world.until(|world| world.node("n1").is_none());
    assert!(ms <= SILENCE - 200 + 20, "the silence is counted from its last word: {ms} ms");
    // Nor is a life of a server that another has replaced.
    let mut world = beating(&["n1", "n2"], &["s1"]);
    let life = world.mute_node("n1");
    world.advance(250);
    world.report("s1");
    world.pulses.remove(&life);
    world.server_killed("s1");
    world.server_up("s1", 50);
    let ms = world.until(|world| world.node("n1").is_none());
    assert!(ms <= SILENCE - 250 + 20, "{ms} ms");
}

#[test]
fn a_beat_that_stopped_counts_from_when_it_moved_last() {
    let mut world = beating(&["n1", "n2"], &["s1", "s2"]);
    let life = world.node("n1").unwrap();
    // The beats stop first, as when RDMA fails; the control connection goes on.
    world.stopped.push(life);
    world.advance(1000);
    assert_eq!(world.node("n1"), Some(life), "who is heard lives");
    world.mute_node("n1");
    let ms = world.until(|world| world.node("n1").is_none());
    assert!(ms <= SILENCE + 10, "beats older than the silence spare nobody: {ms} ms");
}

#[test]
fn the_directors_own_pause_does_not_age_the_evidence() {
    let mut world = beating(&["n1", "n2"], &["s1", "s2"]);
    let life = world.mute_node("n1");
    world.advance(400);
    assert_eq!(world.node("n1"), Some(life));
    // It sleeps; what comes first afterwards is its own clock.
    world.now += Duration::from_secs(2);
    world.step(Event::Tick);
    assert_eq!(world.node("n1"), Some(life));
}

#[test]
fn r8_who_is_spared_has_no_mandate_long_before_it_is_declared_dead() {
    assert_teeth(Rule::R8Mandate, || {
        let mut world = beating(&["n1", "n2"], &["s1", "s2"]);
        let life = world.node("n1").unwrap();
        world.servers.get_mut("s1").unwrap().unsettled.insert(life, 5);
        world.beat("n1");
        let link = world.beating["n1"].0;
        let granted = world.now;
        world.mute_node("n1");
        let mandates = |world: &World| {
            let told = world.to_nodes.iter();
            told.filter(|(to, what)| *to == link && matches!(what, FromDirector::Mandate { .. })).count()
        };
        let before = mandates(&world);
        world.until(|world| world.node("n1").is_none());
        ensure(mandates(&world) == before, "a mandate was granted to one who was not heard")?;
        let over = granted + Duration::from_millis(250);
        ensure(world.now > over + Duration::from_millis(SILENCE), "declared dead while it may ack")?;
        // And where beats end it early, by a new life, the mandate is still waited for.
        let life = world.node("n2").unwrap();
        world.servers.get_mut("s1").unwrap().unsettled.insert(life, 5);
        world.beat("n2");
        world.servers.get_mut("s2").unwrap().answers = false;
        world.node_up("n2");
        world.server_killed("s2");
        let dead = |world: &World| world.view().dead.iter().find(|dead| dead.incarnation == life).cloned();
        ensure(dead(&world).is_some_and(|dead| !dead.sealed), "adopted while its mandate lasts")?;
        world.advance(270);
        ensure(dead(&world).is_some_and(|dead| dead.sealed), "the mandate is over, yet no adoption")
    });
}

#[test]
fn a_servers_address_for_other_hosts_stands_in_the_view() {
    let mut settings = settings(&["n1"], &["s1", "s2"]);
    settings.servers[0].control = Some("10.0.0.2:7420".to_owned());
    let mut world = World::silent(&["n1"], &["s1", "s2"]);
    world.cluster = Cluster::new(settings, Duration::ZERO);
    world.server_up("s1", 1);
    world.server_up("s2", 2);
    let view = world.view();
    let controls: Vec<Option<&str>> = view.servers.iter().map(|server| server.control.as_deref()).collect();
    assert_eq!(controls, [Some("10.0.0.2:7420"), None]);
}
