//! The guests themselves: what all other tests here rely on.

use selvage_tests::guest::{Agent, Hypervisor, Start, count};
use std::time::{Duration, Instant};

const UP: Duration = Duration::from_secs(90);

/// A write over RDMA from guest 0 into the memory of `agent`'s guest, by perftest.
fn rdma_write(agent: Agent) -> anyhow::Result<()> {
    let flags = ["-d", "rxe0", "-x", "1", "-n", "50", "-s", "4096"];
    let server = agent.spawn(&Start::new("ib_write_lat").args(flags).log("/tmp/ib_write_lat"))?;
    let here = Agent::of(0);
    let client = Start::new("ib_write_lat").args(flags).arg(agent.address().to_string());
    let began = Instant::now();
    let output = loop {
        // The server needs a moment to listen.
        let output = here.run(&client, Duration::from_secs(30))?;
        if output.code == 0 || began.elapsed() > Duration::from_secs(10) {
            break output;
        }
    };
    anyhow::ensure!(output.code == 0, "ib_write_lat: {}{}", output.stdout, output.stderr);
    anyhow::ensure!(
        agent.wait(server, Duration::from_secs(10))? == Some(0),
        "the other end did not end well"
    );
    Ok(())
}

/// The guest's clock minus this one's, in seconds, and how long it took to ask.
fn clock_ahead(agent: Agent) -> (f64, f64) {
    let unix = || std::time::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
    let before = unix();
    let there: f64 = agent.shell("echo $EPOCHREALTIME").unwrap().trim().parse().unwrap();
    let after = unix();
    (there - before.midpoint(after), after - before)
}

#[test]
fn clocks_run_at_one_speed() {
    for guest in 1..=count().unwrap() {
        let agent = Agent::of(guest);
        agent.ready(UP).unwrap();
        let (first, asking) = clock_ahead(agent);
        std::thread::sleep(Duration::from_secs(3));
        let (second, asking_again) = clock_ahead(agent);
        let (drift, bound) = (second - first, 0.03 + asking + asking_again);
        println!("guest {guest}: {first:.2} s ahead, {drift:.3} s more after 3 s");
        assert!(drift.abs() < bound, "clocks drift apart by {drift} s in 3 s");
        // Each has read a clock of whole seconds at its boot.
        assert!(first.abs() < 2.0 + asking, "clocks are {first} s apart");
    }
}

#[test]
fn hosts_write_to_each_other_and_lose_cables_and_power() {
    let hypervisor = Hypervisor::of_this_guest().unwrap();
    let last = Agent::of(count().unwrap());
    last.ready(UP).unwrap();
    rdma_write(last).unwrap();

    let reaches = || Agent::of(0).shell(&format!("ping -c 1 -W 2 {}", last.address())).is_ok();
    assert!(reaches());
    hypervisor.cut(last.guest()).unwrap();
    assert!(!reaches());
    hypervisor.join(last.guest()).unwrap();
    assert!(reaches());
    hypervisor.pause(last.guest()).unwrap();
    assert!(!reaches());
    hypervisor.resume(last.guest()).unwrap();
    assert!(reaches());

    last.put_file("/tmp/trace", b"of the first life", 0o600).unwrap();
    hypervisor.kill(last.guest()).unwrap();
    assert!(!reaches());
    assert!(hypervisor.kill(last.guest()).unwrap_err().to_string().contains("is off"));
    let began = Instant::now();
    hypervisor.start(last.guest()).unwrap();
    last.ready(UP).unwrap();
    println!("guest {} was up again after {:.1} s", last.guest(), began.elapsed().as_secs_f64());
    assert!(last.file("/tmp/trace").is_err(), "a host that lost its power has kept its memory");
    rdma_write(last).unwrap();
    assert!(hypervisor.kill(0).unwrap_err().to_string().contains("guest 0"));
}
