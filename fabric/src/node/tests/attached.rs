//! Whole attachments: agent, join, segment on the host, asynchronous operations, fork. The director is a
//! thread that gives incarnations and mandates; there are no session servers, so commits reach no copy.

use crate::archive::Value;
use crate::cache::CacheSpec;
use crate::config::Config;
use crate::control::message::{Errand, ErrandOutcome, FromDirector, Refusal, Role, ToDirector};
use crate::control::stream::Stream;
use crate::error::ErrorKind;
use crate::ident::{Cookie, Epoch, Incarnation};
use crate::node::{Ack, AttachOptions, Completion, Node, OpenMode, Opened, Outcome, Session, Started};
use crate::view::{NodeEntry, NodeState, View};
use rustix::event::{PollFd, PollFlags, poll};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const BOUND: Duration = Duration::from_secs(10);
/// How often processes leave together.
const ROUNDS: u64 = 100;

/// What the director of a test does and has seen.
#[derive(Default)]
struct Director {
    stop: AtomicBool,
    registrations: AtomicU64,
    resumes: AtomicU64,
    /// Sent to every connection at its next heartbeat.
    order: Mutex<Option<FromDirector>>,
    /// Errands that have ended.
    ended: Mutex<Vec<(u64, ErrandOutcome)>>,
    /// What applications asked.
    asked: Mutex<Vec<String>>,
}

pub(super) struct TestCluster {
    dir: tempfile::TempDir,
    director: Arc<Director>,
    thread: Option<JoinHandle<()>>,
}

impl TestCluster {
    pub fn new() -> Self {
        Self::with("wait_ms = 5000")
    }

    /// With these lines in `[session]`.
    pub fn with(session: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let text = format!(
            "[cluster]\nname = \"t\"\nrun_dir = \"{}\"\ncookie_keys = [\"{}\"]\n[director]\n\
             [session]\narchive_bytes_max = 65536\n{session}\n\
             [memory]\nsessions_max = 256\ncache_bytes = 4194304\nlease_bytes = 4194304\n\
             [[server]]\nname = \"s1\"\n[[node]]\nname = \"n1\"\naddress = \"127.0.0.1:1\"\n",
            dir.path().display(),
            "ab".repeat(32)
        );
        std::fs::write(dir.path().join("t.toml"), text).unwrap();
        let director = Arc::new(Director::default());
        let thread = Some(director.start(dir.path()));
        Self { dir, director, thread }
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("t.toml")
    }

    pub fn attach(&self) -> Node {
        Node::attach(Some(&self.path()), None, AttachOptions { wait: BOUND }).unwrap()
    }

    /// The director's process ends, and a new one takes its place after a pause.
    fn restart_director(&mut self, pause: Duration) {
        self.director.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
        std::fs::remove_file(self.dir.path().join("director.sock")).unwrap();
        std::thread::sleep(pause);
        self.director.stop.store(false, Ordering::Relaxed);
        self.thread = Some(self.director.start(self.dir.path()));
    }

    fn order(&self, message: FromDirector) {
        *self.director.order.lock().unwrap() = Some(message);
    }
}

impl Drop for TestCluster {
    fn drop(&mut self) {
        self.director.stop.store(true, Ordering::Relaxed);
        let joined = self.thread.take().unwrap().join();
        assert!(joined.is_ok() || std::thread::panicking());
    }
}

impl Director {
    fn start(self: &Arc<Self>, dir: &Path) -> JoinHandle<()> {
        let listener = UnixListener::bind(dir.join("director.sock")).unwrap();
        listener.set_nonblocking(true).unwrap();
        let shared = self.clone();
        std::thread::spawn(move || {
            let mut connections = Vec::new();
            while !shared.stop.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        stream.set_nonblocking(false).unwrap();
                        let shared = shared.clone();
                        connections.push(std::thread::spawn(move || shared.serve(stream)));
                    }
                    Err(_) => std::thread::sleep(Duration::from_millis(1)),
                }
            }
            connections.into_iter().for_each(|connection| connection.join().unwrap());
        })
    }

    fn serve(&self, stream: std::os::unix::net::UnixStream) {
        let mut stream = Stream::accepted(stream).unwrap();
        let Ok((hello, _)) = stream.server_hello("t", Incarnation::NONE, |_, _| Ok(()), BOUND) else {
            return;
        };
        match &hello.role {
            Role::Node { name, .. } | Role::Application { name, .. } => assert_eq!(name, "n1"),
            other => panic!("{other:?}"),
        }
        while !self.stop.load(Ordering::Relaxed) {
            let message = match stream.recv::<ToDirector>(Duration::from_millis(20)) {
                Ok((message, _)) => message,
                Err(error) if error.kind == ErrorKind::Timeout => continue,
                Err(_) => return,
            };
            let answer = match message {
                ToDirector::Register => {
                    let number = self.registrations.fetch_add(1, Ordering::Relaxed) + 1;
                    let incarnation = Incarnation(0x100 + number);
                    let node = NodeEntry {
                        name: "n1".into(),
                        incarnation,
                        state: NodeState::Up,
                        address: String::new(),
                    };
                    let view = View {
                        epoch: Epoch { term: 1, number: number as u32 },
                        copies: 1,
                        nodes: vec![node],
                        ..View::default()
                    };
                    FromDirector::Registered { incarnation, view }
                }
                ToDirector::Beat(beat) => {
                    if let Some(order) = self.order.lock().unwrap().take()
                        && stream.send(&order, None, BOUND).is_err()
                    {
                        return;
                    }
                    FromDirector::Mandate { sent_ns: beat.sent_ns }
                }
                ToDirector::Resume { .. } => {
                    self.resumes.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                ToDirector::Drained => continue,
                ToDirector::ErrandEnded { number, outcome } => {
                    self.ended.lock().unwrap().push((number, outcome));
                    continue;
                }
                ToDirector::DestroyOwner { owner, .. } => {
                    assert!(matches!(hello.role, Role::Application { .. }));
                    self.asked.lock().unwrap().push(owner.clone());
                    match owner.as_str() {
                        "ann" => FromDirector::OwnerDestroyed { sessions: 3 },
                        // The director goes.
                        "eve" if self.asked.lock().unwrap().len() < 4 => return,
                        "eve" => FromDirector::OwnerDestroyed { sessions: 0 },
                        _ => FromDirector::Refused(Refusal::NotYet("n2 is being adopted".to_owned())),
                    }
                }
            };
            if stream.send(&answer, None, BOUND).is_err() {
                return;
            }
        }
    }
}

fn wait_until(what: &str, ready: impl Fn() -> bool) {
    let began = Instant::now();
    while !ready() {
        assert!(began.elapsed() < BOUND, "not within {BOUND:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub(super) fn completion(node: &Node) -> Completion {
    let fd = node.completion_fd().unwrap();
    let began = Instant::now();
    loop {
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        let timeout = rustix::time::Timespec { tv_sec: 1, tv_nsec: 0 };
        let ready = poll(&mut fds, Some(&timeout)).unwrap();
        if ready > 0
            && let Some(completion) = node.next_completion()
        {
            return completion;
        }
        assert!(began.elapsed() < BOUND, "no completion");
    }
}

pub(super) fn new_session(node: &Node) -> Cookie {
    let mut session = node.create(None).unwrap();
    session.set("n", Value::I64(1)).unwrap();
    session.commit(Ack::All).unwrap();
    session.cookie()
}

pub(super) fn opened(outcome: Outcome) -> Session {
    match outcome {
        Outcome::Opened(Ok(Opened::Session(session))) => session,
        other => panic!("{other:?}"),
    }
}

#[test]
fn attaching_twice_is_one_attachment_and_the_last_out_leaves_nothing() {
    let cluster = TestCluster::new();
    let node = cluster.attach();
    let again = cluster.attach();
    assert_eq!(node.incarnation(), Some(Incarnation(0x101)));
    assert_eq!(cluster.director.registrations.load(Ordering::Relaxed), 1);
    let segment = CacheSpec::segment_name(node.config(), "n1", Incarnation(0x101));
    let segment = PathBuf::from("/dev/shm").join(segment);
    assert!(segment.exists());
    let cookie = new_session(&again);
    assert_eq!(again.detach().unwrap_err().kind, ErrorKind::Conflict);
    let Opened::Session(session) = node.open(&cookie, OpenMode::ReadOnly).unwrap() else { panic!() };
    assert!(!session.needs_cookie() && session.is_read_only());
    // The session keeps the node attached.
    assert_eq!(node.detach().unwrap_err().kind, ErrorKind::Conflict);
    assert!(segment.exists());
    drop(session);
    assert!(!segment.exists());
    assert!(!cluster.dir.path().join("node-n1/current").exists());
    // And it can come back, as another life.
    let node = cluster.attach();
    assert_eq!(node.incarnation(), Some(Incarnation(0x102)));
    assert!(matches!(node.open(&cookie, OpenMode::Exclusive).unwrap(), Opened::Missing));
    node.detach().unwrap();
}

const LEAVER: &str = "SELVAGE_TEST_LEAVER";

/// A process that attaches and leaves as often as it is told to.
#[test]
#[ignore = "started by the other tests as a process of its own"]
fn child_that_leaves() {
    let path = std::env::var_os(LEAVER).expect("who starts it names the configuration");
    let mut tells = std::io::stdin().lines();
    while let Some(Ok(_)) = tells.next() {
        let node = Node::attach(Some(path.as_ref()), None, AttachOptions { wait: BOUND }).unwrap();
        println!("attached as {}", node.incarnation().unwrap().0);
        tells.next().unwrap().unwrap();
        node.detach().unwrap();
        println!("left");
    }
}

struct Leaver {
    child: std::process::Child,
    says: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Leaver {
    fn start(cluster: &TestCluster) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "node::tests::attached::child_that_leaves", "--nocapture"])
            .env(LEAVER, cluster.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let says = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, says }
    }

    fn tell(&mut self) {
        self.child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    }

    /// What it says next that begins like this.
    fn says(&mut self, begin: &str) -> String {
        let mut lines = self.says.by_ref().map(Result::unwrap);
        lines.find(|line| line.starts_with(begin)).expect("it is alive")
    }
}

impl Drop for Leaver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn of_those_who_leave_together_the_last_out_leaves_nothing() {
    let cluster = TestCluster::new();
    let config = Config::load(&cluster.path()).unwrap();
    let mut leavers = [0; 3].map(|_| Leaver::start(&cluster));
    for round in 1..=ROUNDS {
        leavers.iter_mut().for_each(Leaver::tell);
        let incarnation = Incarnation(0x100 + round);
        for leaver in &mut leavers {
            assert_eq!(leaver.says("attached"), format!("attached as {}", incarnation.0));
        }
        leavers.iter_mut().for_each(Leaver::tell);
        leavers.iter_mut().for_each(|leaver| assert_eq!(leaver.says("left"), "left"));
        let segment = Path::new("/dev/shm").join(CacheSpec::segment_name(&config, "n1", incarnation));
        assert!(!segment.exists(), "round {round} has left {}", segment.display());
        assert!(!config.node_dir("n1").join("current").exists(), "round {round}");
    }
}

#[test]
fn r3_after_the_end_of_an_incarnation_the_process_joins_the_next() {
    let cluster = TestCluster::new();
    let node = cluster.attach();
    let cookie = new_session(&node);
    let Opened::Session(mut session) = node.open(&cookie, OpenMode::Exclusive).unwrap() else { panic!() };
    cluster.order(FromDirector::Over { drained: false });
    wait_until("a new incarnation", || node.incarnation() == Some(Incarnation(0x102)));
    session.set("n", Value::I64(2)).unwrap();
    assert_eq!(session.commit(Ack::All).unwrap_err().kind, ErrorKind::OwnershipLost);
    // What it read stays readable.
    assert!(session.get("n").is_some());
    let new = new_session(&node);
    assert_eq!(new.host, Incarnation(0x102));
    assert!(matches!(node.open(&cookie, OpenMode::Exclusive).unwrap(), Opened::Missing));
    drop(session);
    node.detach().unwrap();
    let left = std::fs::read_dir("/dev/shm").unwrap().flatten();
    let prefix = crate::config::Config::load(&cluster.path()).unwrap().segment_prefix();
    assert!(!left.into_iter().any(|file| file.file_name().to_string_lossy().starts_with(&prefix)));
}

#[test]
fn waits_for_a_lock_end_in_order_and_can_be_cancelled() {
    let cluster = TestCluster::new();
    let node = cluster.attach();
    let cookie = new_session(&node);
    let Started::Now(first) = node.open_start(&cookie, OpenMode::Exclusive, 1).unwrap() else { panic!() };
    let first = opened(first);
    let mut pending = Vec::new();
    for user_data in 2..5 {
        match node.open_start(&cookie, OpenMode::Exclusive, user_data).unwrap() {
            Started::Pending(op) => pending.push(op),
            Started::Now(outcome) => panic!("{outcome:?}"),
        }
    }
    assert!(node.next_completion().is_none());
    assert!(node.cancel(pending[1]) && !node.cancel(pending[1]));
    // A reader does not wait.
    assert!(matches!(node.open(&cookie, OpenMode::ReadOnly).unwrap(), Opened::Session(_)));
    drop(first);
    for expected in [2, 4] {
        let Completion { user_data, outcome, .. } = completion(&node);
        assert_eq!(user_data, expected);
        let mut session = opened(outcome);
        session.incr("n", 1).unwrap();
        match session.commit_start(Ack::All, 9).unwrap() {
            Started::Now(Outcome::Committed(session, committed)) => {
                assert_eq!(committed.unwrap().copies, 0);
                drop(session);
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(node.next_completion().is_none());
    assert!(!node.cancel(pending[0]));
    let Opened::Session(session) = node.open(&cookie, OpenMode::Exclusive).unwrap() else { panic!() };
    assert_eq!(session.get("n").map(|value| value.to_owned()), Some(Value::I64(3)));
    // Waits and unfetched completions do not keep the node attached.
    assert!(matches!(node.open_start(&cookie, OpenMode::Exclusive, 7).unwrap(), Started::Pending(_)));
    drop(session);
    wait_until("the lock goes on", || {
        matches!(node.open_start(&cookie, OpenMode::Exclusive, 8).unwrap(), Started::Pending(_))
    });
    node.detach().unwrap();
}

#[test]
fn calls_before_the_join_are_pending() {
    let cluster = TestCluster::new();
    let socket = cluster.dir.path().join("director.sock");
    let hidden = cluster.dir.path().join("hidden");
    std::fs::rename(&socket, &hidden).unwrap();
    let node = Node::attach(Some(&cluster.path()), Some("n1"), AttachOptions::default()).unwrap();
    assert_eq!(node.incarnation(), None);
    let Started::Pending(op) = node.create_start(Some("eve"), 5).unwrap() else { panic!() };
    let error =
        Node::attach(Some(&cluster.path()), Some("n1"), AttachOptions { wait: Duration::from_millis(200) });
    let error = error.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Timeout);
    assert!(error.context.contains("director.sock"), "{error}");
    std::fs::rename(&hidden, &socket).unwrap();
    let completion = completion(&node);
    assert_eq!((completion.op, completion.user_data), (op, 5));
    let session = opened(completion.outcome);
    assert_eq!(session.owner(), Some("eve"));
    assert!(session.needs_cookie());
    let header = format!("x=y; {}", node.set_cookie(&session));
    assert_eq!(node.decode_cookie_header(&header), Some(session.cookie()));
    drop(session);
    node.detach().unwrap();
}

#[test]
fn wrong_names_are_said() {
    let cluster = TestCluster::new();
    let options = AttachOptions::default();
    let error = Node::attach(Some(&cluster.path()), Some("n7"), options).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Invalid);
    assert!(error.context.contains("[[node]]") && error.context.contains("n7"), "{error}");
    let error = Node::attach(Some(&cluster.dir.path().join("none.toml")), None, options).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Os);
}

#[test]
fn the_steward_does_errands_while_it_beats() {
    let cluster = TestCluster::new();
    let node = cluster.attach();
    let cookie = new_session(&node);
    let errand = Errand::Show { id: cookie.id, values: true };
    cluster.order(FromDirector::Errand { number: 77, errand, within_ms: 5000 });
    let ended = || cluster.director.ended.lock().unwrap().clone();
    wait_until("the errand has ended", || !ended().is_empty());
    let [(77, ErrandOutcome::Shown(Some(detail)))] = &ended()[..] else { panic!("{:?}", ended()) };
    assert_eq!(detail.facts.id, cookie.id);
    node.detach().unwrap();
}

#[test]
fn owners_are_destroyed_by_the_director() {
    let cluster = TestCluster::new();
    let node = cluster.attach();
    assert_eq!(node.destroy_owner("ann").unwrap(), 3);
    let error = node.destroy_owner("bob").unwrap_err();
    assert!(error.kind == ErrorKind::NotYet && error.context.contains("n2 is being adopted"), "{error}");
    assert_eq!(node.destroy_owner("").unwrap_err().kind, ErrorKind::Invalid);
    assert_eq!(node.destroy_owner(&"x".repeat(129)).unwrap_err().kind, ErrorKind::TooLarge);
    assert_eq!(node.destroy_owner("eve").unwrap(), 0, "a connection that breaks is made anew");
    assert_eq!(*cluster.director.asked.lock().unwrap(), ["ann", "bob", "eve", "eve"]);
    let Started::Pending(op) = node.destroy_owner_start("ann", 5).unwrap() else {
        panic!("it goes elsewhere")
    };
    let Completion { op: ended, user_data: 5, outcome } = completion(&node) else { panic!("another's") };
    assert!(ended == op && matches!(outcome, Outcome::OwnerDestroyed(Ok(3))), "{outcome:?}");
}

#[test]
fn a_lost_director_is_found_again_and_the_incarnation_goes_on() {
    let mut cluster = TestCluster::new();
    let node = cluster.attach();
    let mandate = || node.attachment().host().unwrap().cache.mandate_until_ns();
    // A refusal that is no end is no harm.
    cluster.order(FromDirector::Refused(crate::control::message::Refusal::Bad("test".into())));
    cluster.restart_director(Duration::from_millis(300));
    let before = mandate();
    // Without a mandate a commit still succeeds.
    new_session(&node);
    wait_until("resumed", || cluster.director.resumes.load(Ordering::Relaxed) == 1);
    wait_until("a new mandate", || mandate() > before);
    assert_eq!(node.incarnation(), Some(Incarnation(0x101)));
    assert_eq!(cluster.director.registrations.load(Ordering::Relaxed), 1);
    node.detach().unwrap();
}

#[test]
fn a_forked_child_can_use_no_handle_and_harms_none() {
    let cluster = TestCluster::new();
    let node = cluster.attach();
    let cookie = new_session(&node);
    let Opened::Session(mut session) = node.open(&cookie, OpenMode::Exclusive).unwrap() else { panic!() };
    // SAFETY: the child calls nothing that could wait for a lock of a thread that fork left behind, and ends
    // by `_exit`.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let forked = |kind| kind == ErrorKind::Forked;
        let refused = forked(session.commit(Ack::All).unwrap_err().kind)
            && forked(node.completion_fd().unwrap_err().kind)
            && forked(node.open_start(&cookie, OpenMode::ReadOnly, 1).unwrap_err().kind);
        drop(session);
        drop(node);
        // SAFETY: ends the child at once, without the test harness's exit handlers.
        unsafe { libc::_exit(if refused { 7 } else { 8 }) };
    }
    let mut status = 0;
    // SAFETY: `child` is this process's own child, and `status` is valid for writing.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!((libc::WIFEXITED(status), libc::WEXITSTATUS(status)), (true, 7));
    // The lock, the segment and the membership are still the parent's.
    session.incr("n", 1).unwrap();
    session.commit(Ack::All).unwrap();
    assert!(matches!(node.open_start(&cookie, OpenMode::Exclusive, 1).unwrap(), Started::Pending(_)));
    drop(session);
    let second = opened(completion(&node).outcome);
    assert_eq!(second.get("n").map(|value| value.to_owned()), Some(Value::I64(2)));
    drop(second);
    node.detach().unwrap();
}
