//! Pushes arrive in a session server's memory without waking a processor there.

use selvage_bench::cluster::{BenchCluster, Shape, open, product_for_tests};
use selvage_bench::sample;
use selvage_fabric::archive::Value;
use selvage_fabric::node::{Ack, OpenMode};
use std::fs;
use std::time::{Duration, Instant};

const COPIES: u32 = 2;
/// Each server receives a million pushes.
const COMMITS: i64 = 1_000_000;
const IDLE: Duration = Duration::from_secs(2);
/// Beside what its timers take, a server may take this for all pushes together: 10 ns for each would be seen.
/// The timers' own work costs more in time when another process keeps the processor's caches full, hence the
/// factor.
const MARGIN: Duration = Duration::from_millis(10);
const TIMERS_FACTOR: f64 = 2.0;

/// Time on a processor, user and system, of all threads of a process so far.
fn cpu(pid: u32) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let ns = tasks.map(|task| {
        let line = fs::read_to_string(task.unwrap().path().join("schedstat")).unwrap();
        line.split(' ').next().unwrap().parse::<u64>().unwrap()
    });
    Duration::from_nanos(ns.sum())
}

#[test]
fn session_server_uses_no_cpu_while_a_million_pushes_arrive() {
    let shape = Shape { servers: COPIES, copies: COPIES, ..Shape::default() };
    let mut cluster = BenchCluster::start(product_for_tests().unwrap(), &shape).unwrap();
    let cookie = cluster.session(&sample::attributes(sample::ARCHIVE_BYTES).unwrap(), COPIES).unwrap();
    let pids = ["s1", "s2"].map(|name| cluster.cluster().unwrap().process(name).unwrap().pid());

    let before = pids.map(cpu);
    std::thread::sleep(IDLE);
    let idle = [0, 1].map(|at| cpu(pids[at]) - before[at]);

    let mut session = open(cluster.node().unwrap(), &cookie, OpenMode::Exclusive).unwrap();
    let before = pids.map(cpu);
    let begin = Instant::now();
    for visits in 0..COMMITS {
        session.set(sample::CHANGED, Value::I64(visits)).unwrap();
        assert_eq!(session.commit(Ack::All).unwrap().copies, COPIES);
    }
    let wall = begin.elapsed();
    let busy = [0, 1].map(|at| cpu(pids[at]) - before[at]);

    for (idle, busy) in idle.into_iter().zip(busy) {
        let timers = idle.mul_f64(TIMERS_FACTOR * wall.as_secs_f64() / IDLE.as_secs_f64());
        println!("{COMMITS} pushes in {wall:?} took {busy:?}; idle {IDLE:?} took {idle:?}");
        assert!(
            busy <= timers + MARGIN,
            "{COMMITS} pushes took {busy:?}; timers {timers:?} and {MARGIN:?} were allowed"
        );
    }
    drop(session);
    cluster.stop().unwrap();
}
