//! Pushes by another process, which is killed or stopped in the middle of one.

use super::tests::{NODE, SERVER, archive, header, live};
use super::*;
use crate::archive::{ArchiveLimits, restamp};
use crate::control::message::FromServer;
use crate::control::stream::Stream;
use crate::ident::{SessionId, Version};
use crate::lease::{BlockOffset, LeaseIndex, Sequence, SlotIndex};
use crate::transport::memory::{ServerLease, create};
use crate::transport::{Link, Outcome, Posted, Push};
use rustix::process::{Pid, Signal, kill_process};
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

const SOCKET: &str = "SELVAGE_TEST_LEASE_SOCKET";
const WAIT: Duration = Duration::from_secs(20);
/// What the child answers when it has seen the seal.
const SAW_THE_SEAL: i32 = 42;
const SESSION: SessionId = SessionId([9; 16]);

/// Not a test of its own: the pushing process. It tells its last acked counter by the node's heartbeat word.
#[test]
fn child_that_pushes() {
    let Some(path) = std::env::var_os(SOCKET) else { return };
    let mut stream = Stream::connect(path.as_ref(), WAIT).unwrap();
    let (_, fd) = stream.recv::<FromServer>(WAIT).unwrap();
    let link = map(fd.unwrap(), NODE, SERVER).unwrap();
    let begin = Instant::now();
    // Made before, so that nearly all the time goes into pushes.
    let mut archives: Vec<_> = (0..7).map(template).collect();
    let mut counter = 0_u64;
    while begin.elapsed() < WAIT {
        counter += 1;
        let archive = &mut archives[(counter % 7) as usize];
        restamp(archive, Version { epoch: 1, counter }).unwrap();
        let block = block_of(counter);
        let cell = live(SESSION, counter as u32, counter, block.0, archive.len());
        let push = Push {
            slot: SlotIndex(0),
            sequence: Sequence(counter as u32),
            cell: &cell.encode(),
            block: Some((block, archive)),
        };
        match link.post(&push) {
            Posted::Done(Outcome::Acked) => link.beat(counter, 1),
            _ => std::process::exit(SAW_THE_SEAL),
        }
    }
}

/// Archives of different lengths and contents, so that what is mixed would be noticed.
fn archive_of(counter: u64) -> Vec<u8> {
    let mut archive = template(counter % 7);
    restamp(&mut archive, Version { epoch: 1, counter }).unwrap();
    archive
}

fn template(kind: u64) -> Vec<u8> {
    archive(SESSION, Version { epoch: 1, counter: kind }, 60_000 + kind as usize * 20_000)
}

/// Two blocks in turn: the one that no cell names any more is free, because there is one push at a time.
fn block_of(counter: u64) -> BlockOffset {
    BlockOffset((counter & 1) as u32 * 1024)
}

struct Pusher {
    child: Child,
    lease: ServerLease,
}

impl Drop for Pusher {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Pusher {
    /// A lease and a process that pushes into it, at work.
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "transport::shm::process_tests::child_that_pushes"])
            .env(SOCKET, &path)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let pusher = Self { child, lease: create(&header(), false).unwrap() };
        listener.set_nonblocking(true).unwrap();
        let begin = Instant::now();
        let accepted = loop {
            match listener.accept() {
                Ok((accepted, _)) => break accepted,
                Err(_) => assert!(begin.elapsed() < WAIT, "the child did not come"),
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        let mut stream = Stream::accepted(accepted).unwrap();
        stream.send(&FromServer::Done, Some(pusher.lease.fd()), WAIT).unwrap();
        while pusher.lease.node_beat() < 20 {
            assert!(begin.elapsed() < WAIT, "the child does not push");
            std::thread::yield_now();
        }
        pusher
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn wait(&mut self) -> ExitStatus {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(begin.elapsed() < WAIT, "the child does not end");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Seals; the counter that a new host would get, whole.
    fn recovered(&self) -> u64 {
        self.lease.seal();
        let limits = ArchiveLimits::default();
        let index = LeaseIndex::new(&self.lease.scan(&limits).unwrap());
        let copy = index.find(&SESSION).expect("no copy");
        let counter = copy.version.counter;
        assert!(
            self.lease.fetch(copy, &limits).unwrap() == archive_of(counter),
            "version {counter} is mixed"
        );
        counter
    }
}

/// Guarantees 1 and 4: whatever a process was doing when it was killed, the last acked version or a newer one
/// is whole.
#[test]
fn a_process_killed_while_it_pushes_loses_nothing() {
    for round in 0..12_u64 {
        let mut pusher = Pusher::start();
        std::thread::sleep(Duration::from_micros(round * 137));
        pusher.signal(Signal::KILL);
        pusher.wait();
        let acked = pusher.lease.node_beat();
        let found = pusher.recovered();
        assert!((acked..=acked + 1).contains(&found), "acked {acked}, found {found}");
    }
}

/// Guarantee 2: a process that was stopped in a push and goes on after the seal gets no ack for anything that
/// was not found.
#[test]
fn r2_a_process_stopped_over_the_seal_acks_nothing_new() {
    for round in 0..12_u64 {
        let mut pusher = Pusher::start();
        std::thread::sleep(Duration::from_micros(round * 119));
        pusher.signal(Signal::STOP);
        // The signal takes effect at some time; the seal does not depend on it.
        let found = pusher.recovered();
        pusher.signal(Signal::CONT);
        assert_eq!(pusher.wait().code(), Some(SAW_THE_SEAL));
        let acked = pusher.lease.node_beat();
        assert!(acked <= found, "acked {acked}, found {found}");
    }
}
