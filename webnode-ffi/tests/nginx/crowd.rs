//! A thousand requests at once for one session.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::app::App;
use crate::support::cluster::Cluster;
use crate::support::http::Browser;
use crate::web::{Web, until};

const CROWD: usize = 1000;
const WAITERS: usize = 64;

#[test]
fn a_thousand_requests_for_one_session_leave_the_others_alone() {
    let go = Arc::new(AtomicBool::new(false));
    let gate = Arc::clone(&go);
    let app = App::start(move |asked, write| {
        while asked.path.starts_with("/locked?slow") && !gate.load(Ordering::Acquire) {
            std::thread::sleep(Duration::from_millis(5));
        }
        write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nSelvage-Incr: n\r\n\r\nok");
    });
    let mut web = Web::of(Cluster::start_sessions(&format!("wait_ms = 60000\nwaiters_max = {WAITERS}")));
    let mut browser = web.serve(
        "n1",
        &format!(
            "selvage_session create;
            location /session {{ selvage_api; }}
            location /locked {{ selvage_lock on; proxy_pass {app}; }}",
            app = app.url()
        ),
    );
    browser.get("/session");
    let address = browser.address();

    let mut crowd: Vec<Browser> = (0..CROWD).map(|_| browser.go_to(address)).collect();
    for one in &mut crowd {
        let head = one.head("GET", "/locked?slow", "");
        one.write(head.as_bytes());
    }
    // One is at the application with the lock, as many wait as may, and the rest are sent away at once.
    let mut waiting = Vec::new();
    let mut refused = 0;
    until("all but the waiters are answered", || {
        for mut one in std::mem::take(&mut crowd) {
            if one.is_silent(Duration::from_millis(1)) {
                waiting.push(one);
                continue;
            }
            let answer = one.answer(false);
            assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")), "{answer:?}");
            refused += 1;
        }
        crowd.append(&mut waiting);
        refused == CROWD - WAITERS - 1
    });
    assert_eq!(app.asked().len(), 1, "only who has the lock gets to the application");

    // Others do not notice, and neither does who only reads.
    for _ in 0..10 {
        let mut other = Browser::at(address);
        assert_eq!(other.get("/locked").status, 200);
        assert_eq!(other.get("/locked").status, 200);
        assert_eq!(other.get("/session/n").text(), "2");
        assert_eq!(browser.get("/session").status, 200);
    }
    assert_eq!(crowd.len(), WAITERS + 1);
    assert!(crowd.iter_mut().all(|one| one.is_silent(Duration::from_millis(1))), "they still wait");

    go.store(true, Ordering::Release);
    for one in &mut crowd {
        let answer = one.answer(false);
        assert_eq!((answer.status, answer.header("selvage-copies")), (200, Some("2")), "{answer:?}");
    }
    assert_eq!(browser.get("/session/n").text(), (WAITERS + 1).to_string(), "each once");
}

/// The number that stands in the line of wrk's report which has these words.
fn number(said: &str, words: &str) -> u64 {
    let line = said.lines().find(|line| line.contains(words)).unwrap_or_default();
    let number = line.split_whitespace().find_map(|word| word.parse().ok());
    number.unwrap_or(0)
}

/// A thousand connections for a second.
fn wrk(url: &str, cookie: &str) -> std::process::Child {
    let mut wrk = std::process::Command::new("wrk");
    wrk.args(["--threads", "2", "--connections", "1000", "--duration", "1s", "--timeout", "20s"]);
    wrk.args(["--header", &format!("Cookie: {cookie}"), url]).stdout(std::process::Stdio::piped());
    wrk.spawn().expect("wrk: apt-get install wrk")
}

#[test]
fn wrk_with_a_thousand_connections_finds_its_bounds_and_no_worker_falls() {
    let app = App::start(|_, write| {
        std::thread::sleep(Duration::from_millis(2));
        write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nSelvage-Incr: n\r\n\r\nok");
    });
    let mut web = Web::of(Cluster::start_sessions(&format!("waiters_max = {WAITERS}")));
    let mut browser = web.serve(
        "n1",
        &format!(
            "selvage_session create;
            location /session {{ selvage_api; }}
            location /locked {{ selvage_lock on; proxy_pass {app}; }}
            location /free {{ proxy_pass {app}; }}",
            app = app.url()
        ),
    );
    let address = browser.address();
    for path in ["/locked", "/free"] {
        browser = Browser::at(address);
        browser.get("/session");
        let mut other = Browser::at(address);
        let (mut served, mut asked) = (0, 0);
        // On a host that has other things to do the first second may be over before anything is served.
        while served == 0 {
            assert!(asked < 100, "{path}: nothing was served in five seconds");
            let wrk = wrk(&format!("http://{address}{path}"), browser.cookie.as_deref().expect("a cookie"));
            for _ in 0..20 {
                assert_eq!(other.get(path).status, 200, "{path}");
                asked += 1;
            }
            let said = String::from_utf8(wrk.wait_with_output().expect("wrk ends").stdout).expect("UTF-8");
            assert!(!said.contains("Socket errors"), "{path}: {said}");
            served += number(&said, " requests in ") - number(&said, "Non-2xx or 3xx responses:");
        }
        let counted: u64 = browser.get("/session/n").text().parse().expect("a number");
        // What was under way when wrk left may be counted, too.
        assert!((served..=served + 5000).contains(&counted), "{path}: {counted} counted, {served} served");
        assert_eq!(other.get("/session/n").text(), format!("{asked}"), "{path}");
    }
    let log = web.log("n1");
    assert!(!log.contains("[alert]") && !log.contains("exited on signal"), "{log}");
}

#[test]
fn parallel_requests_keep_all_their_changes() {
    let app = App::echo();
    let mut web = Web::new();
    let mut browser = web.serve(
        "n1",
        &format!(
            "selvage_session create;
            location /session {{ selvage_api; }}
            location /set {{ selvage_incr directive; proxy_pass {app}; }}
            location /app {{ proxy_pass {app}; }}",
            app = app.url()
        ),
    );
    // Text that is a number, to which the first of them adds: also that one loses nothing.
    assert_eq!(browser.send("PUT", "/session/n", Some(b"1000")).status, 204);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let browser = &browser;
            scope.spawn(move || {
                let mut one = browser.go_to(browser.address());
                for round in 0..12 {
                    let path = if round % 2 == 0 { "/app" } else { "/set" };
                    let path = format!("{path}?h=Selvage-Incr:n&h=Selvage-Set:of-{thread}-{round}=here");
                    assert_eq!(one.get(&path).status, 200);
                }
            });
        }
    });
    let attributes = browser.get("/session").json()["attributes"].clone();
    assert_eq!((&attributes["n"], &attributes["directive"]), (&1096.into(), &48.into()), "{attributes}");
    let there = |thread: usize, round: usize| attributes[format!("of-{thread}-{round}")] == "here";
    assert!((0..8).all(|thread| (0..12).all(|round| there(thread, round))), "{attributes}");
}
