//! The network of a session server's host loses, delays, reorders and swallows packets, and goes down:
//! nothing acked is lost, and browsers are served from the caches meanwhile.

use crate::setting::{SESSIONS, all_is_kept, goes_on, load, options, report};
use selvage_tests::guest::{Agent, Hypervisor, Start};
use selvage_tests::load::Load;
use selvage_tests::stage::Stage;
use std::time::{Duration, Instant};

/// The session server's host.
const SERVER_HOST: u8 = 2;
/// How long a fault lasts that does not end by itself.
const FAULT: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread")]
async fn the_network_fails_and_browsers_are_served() {
    let places = [("n1", 1), ("s1", SERVER_HOST), ("n2", 3), ("s2", 3)];
    let mut stage = Stage::with(options(2, 2, 1, &places)).await;
    receiving_costs_the_server_nothing(&stage).await;
    let load = load(&stage).await;
    let agent = Agent::of(SERVER_HOST);
    for (name, rule) in [("2 % loss", "loss 2%"), ("1 ms delay, 25 % reordered", "delay 1ms reorder 25% 50%")]
    {
        let fault = Fault::begins(name, &load);
        agent.shell(&format!("tc qdisc add dev eth0 root netem {rule}")).unwrap();
        tokio::time::sleep(FAULT).await;
        agent.shell("tc qdisc del dev eth0 root").unwrap();
        fault.ends(&stage, &load).await;
    }

    // These cut the agent off, too: it has to be told beforehand when they end.
    for (name, begin, end) in [
        ("a black hole of 1 s", "tc qdisc add dev eth0 root netem loss 100%", "tc qdisc del dev eth0 root"),
        ("link down for 1 s", "ip link set eth0 down", "ip link set eth0 up"),
    ] {
        let fault = Fault::begins(name, &load);
        let line = format!("{begin}; sleep 1; {end}");
        agent.spawn(&Start::new("bash").arg("-c").arg(line)).unwrap();
        tokio::time::sleep(FAULT).await;
        fault.ends(&stage, &load).await;
    }

    let fault = Fault::begins("a black hole for ever", &load);
    let hypervisor = Hypervisor::of_this_guest().unwrap();
    let life = stage.admin().view().await.unwrap().server("s1").unwrap().incarnation;
    hypervisor.cut(SERVER_HOST).unwrap();
    stage.until("s1's end is seen", |view| view.server_is("s1", "down")).await;
    report("a black hole for ever: to declared down", fault.began);
    stage.until("all copies are on s2", |view| view.protects(SESSIONS as u64, 1)).await;
    report("a black hole for ever: to all sessions safe", fault.began);
    goes_on(&load, fault.requests, fault.failed, fault.began);
    hypervisor.join(SERVER_HOST).unwrap();
    let back = stage.until("s1 is back", |view| view.server_is("s1", "up")).await;
    assert_ne!(back.server("s1").unwrap().incarnation, life, "it comes back as a new life");
    fault.ends(&stage, &load).await;

    all_is_kept(&stage, load, &[]).await;
    stage.wait_up().await.unwrap();
    stage.end();
}

/// A fault and what the load had done when it began.
struct Fault {
    name: &'static str,
    began: Instant,
    requests: u64,
    failed: usize,
}

impl Fault {
    fn begins(name: &'static str, load: &Load) -> Self {
        println!("{name}");
        Self { name, began: Instant::now(), requests: load.requests(), failed: load.failed() }
    }

    /// No request has failed, and everything is safe and connected again.
    async fn ends(self, stage: &Stage, load: &Load) {
        goes_on(load, self.requests, self.failed, self.began);
        stage.until_connected().await;
        stage.until_protected(SESSIONS, 1).await;
        report(&format!("{}: whole again", self.name), self.began);
        assert_eq!(load.failed(), self.failed, "requests failed");
    }
}

/// No thread of the server wakes because copies pour in, and its processor time is that of its timers.
/// Measured up to three times: the processors here are emulated, and what the machine takes away from one of
/// them counts as time of whoever ran there; so does what the soft card does in interrupts. The bound on time
/// is wide for that reason, and that on wakes narrow: nothing of that wakes a thread.
async fn receiving_costs_the_server_nothing(stage: &Stage) {
    let window = Duration::from_secs(2);
    let used = || {
        let server = stage.process("s1").unwrap();
        (server.cpu_time().unwrap(), server.wakes().unwrap())
    };
    let mut measured = Vec::new();
    while measured.len() < 3 {
        let before = used();
        tokio::time::sleep(window).await;
        let after = used();
        let idle = (after.0 - before.0, after.1 - before.1);
        let load = load(stage).await;
        let (before, requests) = (used(), load.requests());
        tokio::time::sleep(window).await;
        let (after, requests) = (used(), load.requests() - requests);
        let busy = (after.0 - before.0, after.1 - before.1);
        println!("s1 in {window:?}, time and wakes: idle {idle:?}, with {requests} commits {busy:?}");
        assert!(requests > 40, "no load: {requests} commits");
        all_is_kept(stage, load, &[]).await;
        if busy.0 <= idle.0 + Duration::from_millis(200) && busy.1 <= idle.1 + requests / 4 {
            return;
        }
        measured.push((idle, busy));
    }
    panic!("idle and with commits, {} times: {measured:?}", measured.len());
}
