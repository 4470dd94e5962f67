//! The response's head waits for the commit, and with it the body; nothing else does.
//!
//! What makes it wait here is the session's lock, which another request holds as long as its application
//! thinks: as long as the test wants.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::app::App;
use crate::support::Tool;
use crate::support::cluster::Cluster;
use crate::support::http::Browser;
use crate::web::{Web, until};

/// An application that answers `/locked` when it is let go, and everything else at once with a large body.
struct Scene {
    web: Web,
    browser: Browser,
    app: App,
    go: Arc<AtomicBool>,
}

const SIZE: usize = 3_000_000;

fn page() -> Vec<u8> {
    (0..SIZE).map(|n| b'a' + (n / 7 % 26) as u8).collect()
}

impl Scene {
    fn set(session: &str) -> Self {
        let go = Arc::new(AtomicBool::new(false));
        let gate = Arc::clone(&go);
        let app = App::start(move |asked, write| {
            if asked.path.starts_with("/locked") {
                while !gate.load(Ordering::Acquire) {
                    std::thread::sleep(Duration::from_millis(5));
                }
                return write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nSelvage-Set: by=locked\r\n\r\nok");
            }
            let headers: String = asked.query("h").iter().map(|header| format!("{header}\r\n")).collect();
            let headers = headers.replace(':', ": ");
            if asked.path.starts_with("/endless") {
                write(format!("HTTP/1.1 200 OK\r\n{headers}\r\n").as_bytes());
                for _ in 0..200 {
                    write(b"tick\n");
                    std::thread::sleep(Duration::from_millis(50));
                }
                return;
            }
            write(format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n{headers}\r\n").as_bytes());
            if asked.method != "HEAD" {
                write(&page());
            }
        });
        let mut web = Web::of(Cluster::start_sessions(session));
        let mut browser = web.serve(
            "n1",
            &format!(
                "http2_max_concurrent_streams 8;
                ---
                listen unix:{{dir}}/h2.sock http2;
                selvage_session create;
                location /session {{ selvage_api; }}
                location /locked {{ selvage_lock on; proxy_pass {app}; }}
                location /big {{ proxy_pass {app}; }}
                location /small {{ proxy_buffers 4 4k; proxy_buffer_size 4k; proxy_busy_buffers_size 4k;
                    proxy_max_temp_file_size 0; proxy_pass {app}; }}
                location /direct {{ proxy_buffering off; proxy_pass {app}; }}
                location /gzip {{ gzip on; gzip_types *; gzip_min_length 1; proxy_pass {app}; }}
                location /endless {{ proxy_buffering off; proxy_pass {app}; }}
                location /totals {{ selvage_session off;
                    return 200 '$selvage_total_held $selvage_total_unavailable $selvage_total_conflict'; }}
                location /same {{ selvage_set user ada; proxy_pass {app}; }}
                location /incr {{ selvage_incr n; empty_gif; }}",
                app = app.url()
            ),
        );
        until("there is a session", || browser.get("/session").status == 200);
        Self { web, browser, app, go }
    }

    /// A request that has the session's lock and keeps it.
    fn lock(&self) -> Browser {
        let asked = self.count("/locked");
        let mut holder = self.browser.go_to(self.browser.address());
        let head = holder.head("GET", "/locked", "");
        holder.write(head.as_bytes());
        until("the application is asked with the lock held", || self.count("/locked") > asked);
        holder
    }

    /// A request that is sent, and whose answer has not come when its application has long given its own.
    fn held(&self, method: &str, path: &str) -> Browser {
        let asked = self.app.asked().len();
        let mut one = self.browser.go_to(self.browser.address());
        let head = one.head(method, path, "");
        one.write(head.as_bytes());
        until("the application is asked", || self.app.asked().len() > asked);
        assert!(one.is_silent(Duration::from_millis(150)), "{path}: nothing leaves before the commit");
        one
    }

    fn count(&self, path: &str) -> usize {
        self.app.asked().iter().filter(|asked| asked.path.starts_with(path)).count()
    }

    fn unlock(&self, mut holder: Browser) {
        self.go.store(true, Ordering::Release);
        assert_eq!(holder.answer(false).status, 200);
        self.go.store(false, Ordering::Release);
    }

    fn attributes(&mut self) -> serde_json::Value {
        self.browser.get("/session").json()["attributes"].clone()
    }
}

#[test]
pub fn a_head_waits_for_its_commit_and_the_body_arrives_whole() {
    let mut scene = Scene::set("");
    // A change that changes nothing waits for nobody, neither before the content nor after it.
    assert_eq!(scene.browser.get("/same").status, 200);
    let holder = scene.lock();
    assert_eq!(scene.browser.get("/same?h=Selvage-Set:user=ada&h=Selvage-Unset:nothing").status, 200);
    scene.unlock(holder);

    let paths = ["/big", "/small", "/direct", "/gzip"];
    for (round, path) in paths.iter().enumerate() {
        let holder = scene.lock();
        let mut got = scene.held("GET", &format!("{path}?h=Selvage-Incr:n"));
        let mut head = scene.held("HEAD", &format!("{path}?h=Selvage-Incr:n"));
        // Requests that only read the session, and other sessions, are not held up.
        let plain = scene.browser.get(path);
        assert!(plain.status == 200 && plain.body.len() == SIZE, "{path}");
        let mut stranger = Browser::at(scene.browser.address());
        let answer = stranger.get(&format!("{path}?h=Selvage-Incr:n"));
        assert!(answer.status == 200 && answer.body == page(), "{path}");
        scene.unlock(holder);

        let answer = got.answer(false);
        assert_eq!((answer.status, answer.header("selvage-copies")), (200, Some("2")), "{path}");
        assert!(answer.body == page(), "{path}: {} bytes", answer.body.len());
        let answer = head.answer(true);
        assert_eq!((answer.status, answer.header("selvage-copies")), (200, Some("2")), "{path}");
        // The connections go on.
        assert_eq!(got.get("/incr").status, 200);
        assert_eq!(head.get("/incr").status, 200);
        let expected = serde_json::json!({ "by": "locked", "n": 4 * (round + 1), "user": "ada" });
        assert_eq!(scene.attributes(), expected, "{path}");
    }
    assert!(!scene.web.log("n1").contains("[alert]"), "{}", scene.web.log("n1"));
}

#[test]
fn what_cannot_be_committed_is_answered_instead() {
    let scene = Scene::set("wait_ms = 400");
    let totals = |browser: &mut Browser| -> Vec<u64> {
        let text = browser.get("/totals");
        text.text().split(' ').map(|number| number.parse().expect("a number")).collect()
    };
    let before = totals(&mut scene.browser.go_to(scene.browser.address()));
    let holder = scene.lock();
    for path in ["/big", "/small", "/direct", "/endless"] {
        let mut got = scene.held("GET", &format!("{path}?h=Selvage-Incr:n"));
        let answer = got.answer(false);
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")), "{path}: {answer:?}");
        assert!(answer.text().ends_with('\n') && answer.text().lines().count() == 1, "{path}: {answer:?}");
        assert_eq!(got.get("/big").status, 200, "the same browser goes on");
    }
    let mut head = scene.held("HEAD", "/big?h=Selvage-Incr:n");
    assert_eq!(head.answer(true).status, 503);
    let after = totals(&mut head);
    assert_eq!((after[0] - before[0], after[1] - before[1], after[2]), (5, 5, 0), "held, 503 and 409");
    // An HTTP/2 stream as well.
    let socket = scene.web.dir("n1").join("h2.sock");
    let said = Tool::find("curl", "apt-get install curl")
        .args(["--silent", "--include", "--http2-prior-knowledge", "--max-time", "20", "--unix-socket"])
        .arg(&socket)
        .arg("--cookie")
        .arg(scene.browser.cookie.as_deref().expect("a cookie"))
        .arg("http://test/big?h=Selvage-Incr:n")
        .succeed();
    assert!(
        said.starts_with("HTTP/2 503") && said.contains("retry-after: 1") && !said.contains("bbb"),
        "{said}"
    );
    scene.unlock(holder);

    // The session ends while the application thinks: what it says then is not brought back to life.
    let holder = scene.lock();
    let mut end = scene.browser.go_to(scene.browser.address());
    let cookie = scene.browser.cookie.clone();
    let request = end.head("DELETE", "/session", "");
    end.write(request.as_bytes());
    assert!(end.is_silent(Duration::from_millis(100)), "it waits for the lock, before the next");
    let mut late = scene.held("GET", "/big?h=Selvage-Set:user=ada");
    scene.unlock(holder);
    assert_eq!(end.answer(false).status, 204);
    let answer = late.answer(false);
    assert_eq!(answer.status, 409, "{answer:?}");
    assert!(answer.header("set-cookie").expect("cleared").contains("Max-Age=0"), "{answer:?}");
    let mut stale = scene.browser.go_to(scene.browser.address());
    stale.cookie = cookie;
    assert_eq!(stale.get("/session").json()["attributes"], serde_json::json!({}));
    assert!(!scene.web.log("n1").contains("[alert]"), "{}", scene.web.log("n1"));
}

#[test]
pub fn clients_that_leave_while_their_head_is_held_leave_nothing_behind() {
    let mut scene = Scene::set("");
    let holder = scene.lock();
    for path in ["/big", "/direct", "/small", "/endless"] {
        drop(scene.held("GET", &format!("{path}?h=Selvage-Incr:n")));
    }
    for path in ["/incr", "/locked", "/session/n"] {
        // Waits for the lock before the content.
        let mut one = scene.browser.go_to(scene.browser.address());
        let head = one.head(if path == "/session/n" { "DELETE" } else { "GET" }, path, "");
        one.write(head.as_bytes());
        std::thread::sleep(Duration::from_millis(50));
    }
    std::thread::sleep(Duration::from_millis(200));
    scene.unlock(holder);
    // Each was made at most once, and the lock is free.
    assert_eq!(scene.browser.get("/incr").status, 200);
    let n = scene.attributes()["n"].as_i64().expect("a number");
    assert!((1..=6).contains(&n), "{n}");
    assert!(!scene.web.log("n1").contains("[alert]"), "{}", scene.web.log("n1"));
}

#[test]
fn http_2_streams_wait_each_for_itself() {
    let mut scene = Scene::set("");
    let holder = scene.lock();
    let socket = scene.web.dir("n1").join("h2.sock");
    let curl = |path: &str, cookie: Option<&str>| {
        let mut curl = std::process::Command::new("curl");
        curl.args(["--silent", "--show-error", "--http2-prior-knowledge", "--max-time", "20", "--include"]);
        curl.arg("--unix-socket").arg(&socket).arg(format!("http://test{path}"));
        if let Some(cookie) = cookie {
            curl.args(["--header", &format!("Cookie: {cookie}")]);
        }
        curl.stdout(std::process::Stdio::piped()).spawn().expect("curl: apt-get install curl")
    };
    let cookie = scene.browser.cookie.clone();
    let mut held = curl("/big?h=Selvage-Incr:n", cookie.as_deref());
    let other = curl("/big?h=Selvage-Incr:n", None).wait_with_output().expect("curl ends");
    let text = String::from_utf8_lossy(&other.stdout).into_owned();
    assert!(text.starts_with("HTTP/2 200") && text.contains("selvage-copies: 2"), "{:.300}", text);
    assert!(!text.contains("selvage-incr"), "{:.300}", text);
    assert!(held.try_wait().expect("curl").is_none(), "held");
    let leaver = curl("/big?h=Selvage-Incr:n", cookie.as_deref());
    until("two wait", || scene.count("/big") == 3);
    let mut leaver = leaver;
    leaver.kill().expect("killed");
    leaver.wait().expect("ended");
    // Read on, for a pipe holds less than the body.
    let held = std::thread::spawn(move || held.wait_with_output().expect("curl ends"));
    scene.unlock(holder);
    let held = held.join().expect("read");
    assert!(held.status.success() && held.stdout.ends_with(&page()), "{:?}", held.status);
    let n = scene.attributes()["n"].as_i64().expect("a number");
    assert!((1..=2).contains(&n), "{n}");
}
