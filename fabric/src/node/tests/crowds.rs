//! Many at one session: bounds and fairness of the queue, asynchronous work on unlocked handles, and workers
//! that are killed with the lock in their hands.

use super::attached::{TestCluster, completion, new_session, opened};
use crate::archive::Value;
use crate::error::ErrorKind;
use crate::ident::{Cookie, SessionId};
use crate::limits::WAITERS_MAX;
use crate::node::{Ack, AttachOptions, Completion, Node, OpenMode, Opened, Outcome, Session, Started};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

fn open(node: &Node, cookie: &Cookie, mode: OpenMode) -> Session {
    match node.open(cookie, mode).unwrap() {
        Opened::Session(session) => session,
        other => panic!("{other:?}"),
    }
}

fn number(session: &Session, name: &str) -> Option<Value> {
    session.get(name).map(|value| value.to_owned())
}

/// How long a request with a commit takes at the median.
fn latency(node: &Node, cookie: &Cookie) -> Duration {
    let mut times: Vec<_> = (0..100)
        .map(|_| {
            let began = Instant::now();
            let mut session = open(node, cookie, OpenMode::Exclusive);
            session.incr("n", 1).unwrap();
            session.commit(Ack::All).unwrap();
            began.elapsed()
        })
        .collect();
    times.sort();
    times[times.len() / 2]
}

#[test]
fn of_a_thousand_requests_for_one_session_few_wait_in_order_and_other_sessions_do_not_notice() {
    let cluster = TestCluster::new();
    let node = cluster.attach();
    let (cookie, other) = (new_session(&node), new_session(&node));
    let before = latency(&node, &other);
    let first = open(&node, &cookie, OpenMode::Exclusive);
    let (mut pending, mut busy) = (0, 0);
    for user_data in 0..1000 {
        // Those without the lock are served meanwhile.
        drop(open(&node, &cookie, OpenMode::ReadOnly));
        match node.open_start(&cookie, OpenMode::Exclusive, user_data).unwrap() {
            Started::Pending(_) => pending += 1,
            Started::Now(Outcome::Opened(Err(error))) if error.kind == ErrorKind::Busy => busy += 1,
            Started::Now(outcome) => panic!("{outcome:?}"),
        }
    }
    assert_eq!((pending, busy), (WAITERS_MAX, 1000 - WAITERS_MAX));
    // The commit of an unlocked handle waits in the same queue.
    let mut unlocked = open(&node, &cookie, OpenMode::Unlocked);
    unlocked.incr("n", 1).unwrap();
    assert_eq!(unlocked.commit(Ack::All).unwrap_err().kind, ErrorKind::Busy);
    let during = latency(&node, &other);
    assert!(during < 4 * before + Duration::from_millis(5), "{before:?} alone, {during:?} beside the crowd");
    drop(first);
    for expected in 0..u64::from(WAITERS_MAX) {
        let Completion { user_data, outcome, .. } = completion(&node);
        assert_eq!(user_data, expected, "first come, first served");
        drop(opened(outcome));
    }
    // And those that were refused find room now.
    unlocked.commit(Ack::All).unwrap();
    assert_eq!(number(&unlocked, "n"), Some(Value::I64(2)));
    drop(unlocked);
    node.detach().unwrap();
}

#[test]
fn a_thousand_threads_are_served_or_refused_at_once() {
    let cluster = TestCluster::new();
    let node = cluster.attach();
    let cookie = new_session(&node);
    let first = open(&node, &cookie, OpenMode::Exclusive);
    let (served, busy) = (AtomicU32::new(0), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for _ in 0..1000 {
            let serve = || match node.open(&cookie, OpenMode::Exclusive) {
                Ok(Opened::Session(mut session)) => {
                    session.incr("n", 1).unwrap();
                    session.commit(Ack::All).unwrap();
                    served.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) if error.kind == ErrorKind::Busy => {
                    busy.fetch_add(1, Ordering::Relaxed);
                }
                other => panic!("{other:?}"),
            };
            std::thread::Builder::new().stack_size(256 << 10).spawn_scoped(scope, serve).unwrap();
        }
        let bound = Instant::now() + Duration::from_secs(10);
        while busy.load(Ordering::Relaxed) < 1000 - WAITERS_MAX {
            assert!(Instant::now() < bound, "those who find the queue full are not refused at once");
            std::thread::sleep(Duration::from_millis(1));
        }
        drop(first);
    });
    assert_eq!(
        (served.load(Ordering::Relaxed), busy.load(Ordering::Relaxed)),
        (WAITERS_MAX, 1000 - WAITERS_MAX)
    );
    let session = open(&node, &cookie, OpenMode::Exclusive);
    assert_eq!(number(&session, "n"), Some(Value::I64(1 + i64::from(WAITERS_MAX))));
    drop(session);
    node.detach().unwrap();
}

fn committed(outcome: Outcome) -> (Session, Option<ErrorKind>) {
    match outcome {
        Outcome::Committed(session, committed) => (session, committed.err().map(|error| error.kind)),
        other => panic!("{other:?}"),
    }
}

fn pending(started: Started) {
    assert!(matches!(started, Started::Pending(_)), "{started:?}");
}

#[test]
fn work_on_unlocked_handles_waits_for_the_lock_in_the_background() {
    let cluster = TestCluster::new();
    let node = cluster.attach();
    let cookie = new_session(&node);
    let mut handles: Vec<_> = (0..4).map(|_| open(&node, &cookie, OpenMode::Unlocked)).collect();
    handles.iter_mut().for_each(|session| assert_eq!(session.incr("n", 1).unwrap(), 2));
    let mut locked = open(&node, &cookie, OpenMode::Exclusive);
    let (cancelled, regenerated) = (handles.pop().unwrap(), handles.pop().unwrap());
    for (user_data, session) in handles.into_iter().enumerate() {
        pending(session.commit_start(Ack::All, user_data as u64).unwrap());
    }
    let Started::Pending(op) = cancelled.commit_start(Ack::All, 9).unwrap() else { panic!() };
    pending(regenerated.regenerate_start(2).unwrap());
    assert!(node.next_completion().is_none());
    assert!(node.cancel(op));
    locked.incr("n", 10).unwrap();
    locked.commit(Ack::All).unwrap();
    drop(locked);
    for (user_data, sum) in [(0, 12), (1, 13)] {
        let completion = completion(&node);
        assert_eq!(completion.user_data, user_data);
        let (session, error) = committed(completion.outcome);
        assert_eq!((number(&session, "n"), error), (Some(Value::I64(sum)), None));
    }
    let Completion { user_data: 2, outcome: Outcome::Regenerated(session, Ok(())), .. } = completion(&node)
    else {
        panic!()
    };
    assert_eq!(number(&session, "n"), Some(Value::I64(14)));
    let new = session.cookie();
    assert_ne!(new.id, cookie.id);
    // What waits for a session that ends is told so.
    let mut waiting = open(&node, &new, OpenMode::Unlocked);
    waiting.incr("n", 1).unwrap();
    let locked = open(&node, &new, OpenMode::Exclusive);
    pending(waiting.commit_start(Ack::All, 3).unwrap());
    pending(session.destroy_start(4).unwrap());
    locked.destroy().unwrap();
    let (session, error) = committed(completion(&node).outcome);
    assert_eq!((number(&session, "n"), error), (Some(Value::I64(14)), Some(ErrorKind::Gone)));
    let Outcome::Destroyed(Err(error)) = completion(&node).outcome else { panic!() };
    assert_eq!(error.kind, ErrorKind::Gone);
    assert!(matches!(node.open(&new, OpenMode::Unlocked).unwrap(), Opened::Missing));
    drop(session);
    // The lock is free at once: the work ends where it began.
    let cookie = new_session(&node);
    let mut session = open(&node, &cookie, OpenMode::Unlocked);
    session.incr("n", 1).unwrap();
    let Started::Now(outcome) = session.commit_start(Ack::All, 5).unwrap() else { panic!() };
    let (session, error) = committed(outcome);
    assert_eq!(error, None);
    let Started::Now(Outcome::Destroyed(Ok(()))) = session.destroy_start(6).unwrap() else { panic!() };
    assert!(node.next_completion().is_none());
    node.detach().unwrap();
}

#[test]
fn a_wait_for_the_lock_of_an_unlocked_handle_is_bounded() {
    let cluster = TestCluster::with("wait_ms = 300");
    let node = cluster.attach();
    let cookie = new_session(&node);
    let mut session = open(&node, &cookie, OpenMode::Unlocked);
    session.incr("n", 1).unwrap();
    let locked = open(&node, &cookie, OpenMode::Exclusive);
    pending(session.commit_start(Ack::All, 1).unwrap());
    let (mut session, error) = committed(completion(&node).outcome);
    assert_eq!(error, Some(ErrorKind::Timeout));
    drop(locked);
    session.commit(Ack::All).unwrap();
    assert_eq!(number(&session, "n"), Some(Value::I64(2)));
    // Leaving with work in the queue waits for nobody, and leaves nothing locked.
    session.incr("n", 1).unwrap();
    let locked = open(&node, &cookie, OpenMode::Exclusive);
    pending(session.commit_start(Ack::All, 2).unwrap());
    drop(locked);
    node.detach().unwrap();
}

const HOLDER: &str = "SELVAGE_TEST_HOLDER";
const KILLS: i64 = 15;

/// A worker that takes a session's lock, changes the session without committing, and does not let go.
#[test]
#[ignore = "started by the other tests as a process of its own"]
fn child_that_holds() {
    let path = std::env::var_os(HOLDER).expect("who starts it names the configuration");
    let node =
        Node::attach(Some(path.as_ref()), None, AttachOptions { wait: Duration::from_secs(10) }).unwrap();
    let id: SessionId = SessionId::parse(&std::env::var("SELVAGE_TEST_SESSION").unwrap()).unwrap();
    let cookie = Cookie { id, host: node.incarnation().unwrap() };
    let mut session = open(&node, &cookie, OpenMode::Exclusive);
    session.set("never", Value::Bool(true)).unwrap();
    println!("holds");
    // Until its parent has gone, who kills it.
    let _ = std::io::stdin().read_line(&mut String::new());
}

#[test]
fn a_worker_that_is_killed_with_the_lock_delays_the_next_request_by_less_than_100_ms() {
    let cluster = TestCluster::new();
    let node = cluster.attach();
    let cookie = new_session(&node);
    let mut delays = Vec::new();
    for round in 0..KILLS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "node::tests::crowds::child_that_holds", "--nocapture"])
            .env(HOLDER, cluster.path())
            .env("SELVAGE_TEST_SESSION", cookie.id.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut says = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        assert!(says.any(|line| line.ends_with("holds")), "it is alive");
        // A request that waits already, or one that comes only afterwards, while the dead worker is a zombie.
        let waits = round % 2 == 0;
        if waits {
            pending(node.open_start(&cookie, OpenMode::Exclusive, 1).unwrap());
        }
        let killed = Instant::now();
        child.kill().unwrap();
        let mut session = match waits {
            true => opened(completion(&node).outcome),
            false => open(&node, &cookie, OpenMode::Exclusive),
        };
        assert_eq!(number(&session, "never"), None);
        session.incr("n", 1).unwrap();
        session.commit(Ack::All).unwrap();
        delays.push(killed.elapsed());
        child.wait().unwrap();
    }
    let session = open(&node, &cookie, OpenMode::ReadOnly);
    assert_eq!(number(&session, "n"), Some(Value::I64(1 + KILLS)));
    drop(session);
    delays.sort();
    println!("from the kill to the next request's commit: {delays:?}");
    // The median stands for the mechanism; the worst also has what the machine does meanwhile.
    assert!(delays[delays.len() / 2] < Duration::from_millis(100), "{delays:?}");
    assert!(delays.iter().all(|delay| *delay < Duration::from_secs(2)), "{delays:?}");
    node.detach().unwrap();
}

/// A process of the node that cannot start threads any more, for want of address space for their stacks.
#[test]
#[ignore = "started by the other tests as a process of its own"]
fn child_without_threads() {
    let path = std::env::var_os(HOLDER).expect("who starts it names the configuration");
    let node =
        Node::attach(Some(path.as_ref()), None, AttachOptions { wait: Duration::from_secs(10) }).unwrap();
    let id: SessionId = SessionId::parse(&std::env::var("SELVAGE_TEST_SESSION").unwrap()).unwrap();
    let cookie = Cookie { id, host: node.incarnation().unwrap() };
    let mut unlocked = open(&node, &cookie, OpenMode::Unlocked);
    unlocked.incr("n", 1).unwrap();
    let before = getrlimit(Resource::As);
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")?.strip_suffix("kB")).unwrap();
    let size: u64 = size.trim().parse().unwrap();
    let now = Rlimit { current: Some(size * 1024), ..before };
    setrlimit(Resource::As, now).unwrap();
    assert!(std::thread::Builder::new().spawn(|| {}).is_err());
    // Somebody else has the lock: there is nobody to wait for it.
    pending(node.open_start(&cookie, OpenMode::Exclusive, 1).unwrap());
    let Outcome::Opened(Err(error)) = completion(&node).outcome else { panic!("it cannot wait") };
    assert_eq!(error.kind, ErrorKind::Os);
    pending(unlocked.commit_start(Ack::All, 2).unwrap());
    let Outcome::Committed(mut unlocked, Err(error)) = completion(&node).outcome else { panic!() };
    assert_eq!(error.kind, ErrorKind::Os);
    // A job is done by its caller.
    pending(node.destroy_owner_start("", 3).unwrap());
    let Outcome::OwnerDestroyed(Err(error)) = completion(&node).outcome else { panic!() };
    assert_eq!(error.kind, ErrorKind::Invalid);
    // With threads all is as ever.
    setrlimit(Resource::As, before).unwrap();
    pending(node.open_start(&cookie, OpenMode::Exclusive, 4).unwrap());
    println!("waits");
    drop(opened(completion(&node).outcome));
    unlocked.commit(Ack::All).unwrap();
    println!("committed");
}

#[test]
fn without_threads_no_operation_is_forgotten() {
    let cluster = TestCluster::new();
    let node = cluster.attach();
    let cookie = new_session(&node);
    let held = open(&node, &cookie, OpenMode::Exclusive);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "node::tests::crowds::child_without_threads", "--nocapture"])
        .env(HOLDER, cluster.path())
        .env("SELVAGE_TEST_SESSION", cookie.id.to_string())
        // Or the stacks of threads that have ended are used again.
        .env("GLIBC_TUNABLES", "glibc.pthread.stack_cache_size=0")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut says = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(says.any(|line| line.ends_with("waits")), "it fails what it cannot do");
    drop(held);
    assert!(says.any(|line| line.ends_with("committed")));
    assert!(child.wait().unwrap().success());
    assert_eq!(number(&open(&node, &cookie, OpenMode::ReadOnly), "n"), Some(Value::I64(2)));
}
