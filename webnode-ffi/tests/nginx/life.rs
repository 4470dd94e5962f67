//! Workers that die, configurations that are read again, and a binary that is replaced: with requests all the
//! while.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::app::App;
use crate::support::Tool;
use crate::support::cluster::Cluster;
use crate::support::http::Browser;
use crate::web::{Web, until};

fn signal(name: &str, pid: u32) {
    Tool::find("kill", "apt-get install procps").args([format!("-{name}"), pid.to_string()]).succeed();
}

/// An application that takes its time for `/slow`, and says with each answer that it counts.
fn counter() -> App {
    App::start(|asked, write| {
        if asked.path.starts_with("/slow") {
            std::thread::sleep(Duration::from_millis(300));
        }
        write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nSelvage-Incr: n\r\n\r\nok");
    })
}

fn locations(app: &App) -> String {
    format!(
        "selvage_session create;
        location /session {{ selvage_api; }}
        location /pid {{ selvage_session off; add_header Pid $pid; empty_gif; }}
        location /seen {{ if ($selvage_attr_n) {{ set $seen $selvage_attr_n; }}
            add_header Seen $seen; add_header Node $selvage_node; empty_gif; }}
        location /count {{ proxy_pass {app}; }}
        location /slow {{ selvage_lock on; proxy_pass {app}; }}
        location /held {{ selvage_lock on; proxy_pass {app}; }}",
        app = app.url()
    )
}

/// Requests without a pause, each on a connection of its own, until `done`; how many were counted. Every one
/// must succeed.
fn load(address: SocketAddr, done: &AtomicBool) -> u64 {
    let mut browser = Browser::at(address);
    browser.get("/session");
    let mut sent = 0;
    while !done.load(Ordering::Acquire) {
        let path = if sent % 8 == 7 { "/slow" } else { "/count" };
        let mut one = browser.go_to(address);
        let head = one.head("GET", path, "Connection: close\r\n");
        one.write(head.as_bytes());
        let answer = one.answer(false);
        assert_eq!((answer.status, answer.header("selvage-copies")), (200, Some("2")), "{answer:?}");
        sent += 1;
    }
    let counted: u64 = browser.go_to(address).get("/session/n").text().parse().expect("a number");
    assert_eq!(sent, counted, "each once");
    sent
}

/// Requests on connections that are kept, with hardly a pause, until `done`; how many connections the web
/// server closed. Each time it must have said so with its last answer.
fn keep(address: SocketAddr, done: &AtomicBool) -> usize {
    let mut closed = 0;
    loop {
        let mut one = Browser::at(address);
        loop {
            if done.load(Ordering::Acquire) {
                return closed;
            }
            if one.get("/pid").header("connection") == Some("close") {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        closed += 1;
    }
}

/// Does something at its end, also when a test fails.
struct Defer<F: FnMut()>(F);

impl<F: FnMut()> Drop for Defer<F> {
    fn drop(&mut self) {
        self.0();
    }
}

/// Does something while requests run, three at a time.
fn under_load(address: SocketAddr, act: impl FnOnce()) {
    let done = AtomicBool::new(false);
    let done = &done;
    std::thread::scope(|scope| {
        let loads: Vec<_> = (0..3).map(|_| scope.spawn(|| load(address, done))).collect();
        let end = Defer(|| done.store(true, Ordering::Release));
        act();
        std::thread::sleep(Duration::from_millis(400));
        drop(end);
        for load in loads {
            assert!(load.join().expect("no failed request") > 0);
        }
    });
}

#[test]
fn a_killed_worker_loses_nothing_that_was_acked() {
    let app = counter();
    let mut web = Web::new();
    let mut browser = web.serve("n1", &locations(&app));
    browser.get("/session");
    let master = web.cluster.last_pid();
    let (mut acked, mut killed) = (0_u32, 0);
    for round in 0..6 {
        // Both workers work on the session, so that the one that is killed may hold its lock.
        let (mut one, mut two) = (browser.go_to(browser.address()), browser.go_to(browser.address()));
        for _ in 0..10 {
            one.write(one.head("POST", "/session/n/incr", "").as_bytes());
            two.write(two.head("GET", "/count", "").as_bytes());
            acked +=
                [one.answer(false), two.answer(false)].iter().filter(|answer| answer.status == 200).count()
                    as u32;
        }
        let mut workers = Web::children(master);
        until("there are two workers again", || {
            workers = Web::children(master);
            workers.len() == 2 && !workers.contains(&killed)
        });
        let worker = workers[round % 2];
        one.write(one.head("POST", "/session/n/incr", "").as_bytes());
        signal("KILL", worker);
        killed = worker;
        let count: u32 =
            browser.go_to(browser.address()).until_answered("/session/n").text().parse().expect("a number");
        assert!(count == acked || count == acked + 1, "{count} counted, {acked} acked");
        acked = count;
    }
}

#[test]
fn a_lock_dies_with_its_worker_and_the_other_worker_goes_on() {
    let go = Arc::new(AtomicBool::new(false));
    let gate = Arc::clone(&go);
    let app = App::start(move |asked, write| {
        while asked.path == "/held" && !gate.load(Ordering::Acquire) {
            std::thread::sleep(Duration::from_millis(5));
        }
        write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nSelvage-Incr: n\r\n\r\nok");
    });
    // Whoever waits may wait long: only the holder's death lets it go on so soon.
    let mut web = Web::of(Cluster::start_sessions("wait_ms = 60000"));
    let mut browser = web.serve("n1", &locations(&app));
    browser.get("/session");

    let worker = |browser: &mut Browser| -> u32 {
        browser.get("/pid").header("pid").expect("a header").parse().expect("a process id")
    };
    let mut holder = browser.go_to(browser.address());
    let killed = worker(&mut holder);
    let head = holder.head("GET", "/held", "");
    holder.write(head.as_bytes());
    until("the application is asked with the lock held", || !app.asked().is_empty());
    let mut other = browser.go_to(browser.address());
    while worker(&mut other) == killed {
        other = browser.go_to(browser.address());
    }
    let head = other.head("GET", "/slow", "");
    other.write(head.as_bytes());
    assert!(other.is_silent(Duration::from_millis(200)), "it waits for the lock");

    signal("KILL", killed);
    let start = Instant::now();
    let answer = other.answer(false);
    assert_eq!((answer.status, answer.header("selvage-copies")), (200, Some("2")), "{answer:?}");
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    go.store(true, Ordering::Release);
    assert_eq!(other.get("/session/n").text(), "1", "what the dead worker had not committed is not there");
    let line = format!("{killed} exited on signal 9");
    until("the master has noticed", || web.log("n1").contains(&line));
}

#[test]
pub fn a_reload_fails_no_request_and_a_graceful_stop_leaves_nothing() {
    let app = counter();
    let mut web = Web::new();
    let mut browser = web.serve("n1", &locations(&app));
    assert_eq!(browser.send("POST", "/session/n/incr", None).text(), "1\n");
    let (address, master) = (browser.address(), web.cluster.last_pid());
    let reload = || {
        let before = Web::children(master);
        signal("HUP", master);
        until("all workers are new ones", || {
            let now = Web::children(master);
            now.len() == 2 && now.iter().all(|pid| !before.contains(pid))
        });
    };
    under_load(address, || (0..3).for_each(|_| reload()));
    let done = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        let kept = scope.spawn(|| keep(address, done));
        let end = Defer(|| done.store(true, Ordering::Release));
        (0..3).for_each(|_| reload());
        drop(end);
        assert!(kept.join().expect("no failed request") >= 3);
    });
    assert_eq!(browser.go_to(address).send("POST", "/session/n/incr", None).text(), "2\n");
    stop(web, master);
}

/// Stops a node's nginx gracefully; the last worker out leaves nothing behind.
fn stop(web: Web, master: u32) {
    signal("QUIT", master);
    until("nothing is left in /dev/shm", || web.cluster.segments().is_empty());
    let log = web.log("n1");
    assert!(!log.contains("[alert]") && !log.contains("[emerg]") && !log.contains("[crit]"), "{log}");
}

#[test]
fn a_new_binary_takes_over_without_a_failed_request() {
    let app = counter();
    let mut web = Web::new();
    let (mut browser, old) = web.serve_daemon("n1", &locations(&app));
    assert_eq!(browser.send("POST", "/session/n/incr", None).text(), "1\n");
    let address = browser.address();
    under_load(address, || {
        signal("USR2", old);
        until("the new master has written its pid", || web.pid("n1").is_some_and(|now| now != old));
        let new = web.pid("n1").expect("a process id");
        until("it has workers", || Web::children(new).len() == 2);
        signal("WINCH", old);
        until("the old workers have gone", || Web::children(old) == [new]);
        signal("QUIT", old);
    });
    assert_eq!(browser.go_to(address).send("POST", "/session/n/incr", None).text(), "2\n");
    let new = web.pid("n1").expect("a process id");
    assert_ne!(new, old);
    stop(web, new);
}

#[test]
fn what_an_application_has_stored_survives_its_web_server() {
    let app = counter();
    let mut web = Web::of(Cluster::start());
    for node in ["n1", "n2"] {
        web.serve(node, &locations(&app));
    }
    let mut browser = Browser::at(web.cluster.director());
    let first = browser.get("/count");
    assert_eq!((first.status, first.header("selvage-copies")), (200, Some("2")), "{first:?}");
    let mut count = 1;
    for _ in 0..5 {
        assert_eq!(browser.get("/count").status, 200);
        count += 1;
    }
    let host = first.header("selvage-node").expect("a node").to_owned();
    let asked = app.asked().len();
    // All processes of the node at once: its nginx leads a group.
    let group = format!("-{}", web.pid(&host).expect("a process id"));
    Tool::find("kill", "apt-get install procps").args(["-KILL", "--", &group]).succeed();
    let end = Instant::now() + Duration::from_secs(20);
    let after = loop {
        assert!(Instant::now() < end, "{}", web.cluster.logs());
        let mut again = browser.go_to(browser.address());
        // The look fetches the session from the session servers, and its variables decide.
        let answer = again.get("/seen");
        if answer.status == 200 {
            browser = again;
            break answer;
        }
    };
    assert!(after.header("node").is_some_and(|node| node != host), "{after:?}");
    assert_eq!(after.header("seen"), Some(&*format!("{count}")), "what was acked is kept");
    assert!(after.header("set-cookie").is_some(), "the session has a new host: {after:?}");
    let answer = browser.go_to(browser.address()).get("/count");
    assert_eq!((answer.status, answer.header("selvage-copies")), (200, Some("2")), "{answer:?}");
    assert_eq!(app.asked().len(), asked + 1);
}
