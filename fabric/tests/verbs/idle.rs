//! The server's process sleeps while pushes arrive. The server is a process of its own: this program again,
//! as a child that opens a lease, connects one queue pair, and then waits for the end of its input.

use super::pushes::Story;
use super::segment::Segment;
use super::support::*;
use selvage_fabric::control::message::{Endpoint, RemoteMemory};
use selvage_fabric::transport::verbs::{Door, Opening, PeerId, Verbs};
use selvage_fabric::transport::{Link, Outcome, Posted};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const CHILD: &str = "SELVAGE_TEST_IDLE_SERVER";
/// How long pushes are sent.
const BUSY: Duration = Duration::from_secs(3);
/// Slots that are pushed to at once.
const SLOTS: u32 = 8;

/// Processor time that a process has used, user and system, by the kernel's count of ticks of 10 ms.
fn processor_time(pid: u32) -> Duration {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = text.rsplit_once(')').unwrap();
    let ticks: u64 =
        fields.split_whitespace().skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 10)
}

/// Time on a processor of all its threads, by the scheduler's own clock, which misses nothing between ticks.
fn scheduled_time(pid: u32) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let ns = tasks.map(|task| {
        let line = std::fs::read_to_string(task.unwrap().path().join("schedstat")).unwrap();
        line.split(' ').next().unwrap().parse::<u64>().unwrap()
    });
    Duration::from_nanos(ns.sum())
}

/// Not a test of its own: the server's process.
#[test]
fn child_idle_server() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let server = Verbs::new(&over(SERVER_DEVICE));
    let lease = lease_of("n1", 4 << 20);
    let door = Door::open(&server, &lease, None, ARCHIVE_BYTES_MAX).unwrap();
    let mut input = BufReader::new(std::io::stdin());
    let mut line = String::new();
    input.read_line(&mut line).unwrap();
    let offer: Endpoint = postcard::from_bytes(&unhex(line.trim())).unwrap();
    let answer = door.connect(PeerId(1), &offer).unwrap();
    eprintln!("answer {}", hex(&postcard::to_stdvec(&answer).unwrap()));
    let mut rest = Vec::new();
    input.read_to_end(&mut rest).unwrap();
}

fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

fn unhex(text: &str) -> Vec<u8> {
    data_encoding::HEXLOWER.decode(text.as_bytes()).unwrap()
}

#[test]
fn a_server_sleeps_while_pushes_arrive() {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "idle::child_idle_server", "--nocapture", "--test-threads=1"])
        .env(CHILD, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let node = Verbs::new(&over(NODE_DEVICE));
    let segment = Segment::new();
    let opening = Opening::begin(&node, &segment.region, None).unwrap();
    let mut input = child.stdin.take().unwrap();
    writeln!(input, "{}", hex(&postcard::to_stdvec(&opening.offer()).unwrap())).unwrap();
    let answer = BufReader::new(child.stderr.take().unwrap())
        .lines()
        .map(Result::unwrap)
        .find_map(|line| line.split_once("answer ").map(|(_, answer)| unhex(answer.trim())));
    let (endpoint, memory): (Endpoint, RemoteMemory) =
        postcard::from_bytes(&answer.expect("the server answers")).unwrap();
    let geometry = lease_of("n1", 4 << 20).header().geometry;
    let link = opening.finish(&endpoint, memory, geometry, SERVER).unwrap();
    let stories: Vec<_> = (0..SLOTS).map(|slot| Story::new(&segment, slot, 2, 1000)).collect();
    let before = (processor_time(child.id()), scheduled_time(child.id()));
    assert!(before.1 > Duration::ZERO, "the kernel does not tell how long a process ran");
    let (mut pushes, begin) = (0_u64, Instant::now());
    let mut open = vec![None; stories.len()];
    while begin.elapsed() < BUSY {
        for (open, story) in open.iter_mut().zip(&stories) {
            if let Some(id) = *open {
                match link.poll(id) {
                    None => continue,
                    Some(outcome) => assert_eq!(outcome, Outcome::Acked, "{}", link.detail()),
                }
                pushes += 1;
            }
            match link.post(&story.push(1 + pushes % 2).unwrap()) {
                Posted::Pending(id) => *open = Some(id),
                Posted::Done(other) => panic!("{other:?}"),
            }
        }
    }
    let after = (processor_time(child.id()), scheduled_time(child.id()));
    drop(input);
    assert!(child.wait().unwrap().success());
    let (ticks, scheduled) = (after.0 - before.0, after.1 - before.1);
    println!(
        "{pushes} pushes in {BUSY:?}: the server's process used {ticks:?} by ticks, {scheduled:?} by schedule"
    );
    assert!(pushes > 1000, "{pushes}");
    assert!(ticks <= Duration::from_millis(10) && scheduled < Duration::from_millis(5));
}
