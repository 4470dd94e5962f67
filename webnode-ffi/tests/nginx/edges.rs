//! Who is asked when, and responses that are not one body behind one head.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::app::App;
use crate::support::Tool;
use crate::support::cluster::Cluster;
use crate::support::http::Browser;
use crate::web::{Web, until};

#[test]
pub fn nobody_is_asked_for_a_session_that_is_elsewhere() {
    let app = App::echo();
    let locations = format!(
        "selvage_session create; client_body_buffer_size 1m;
        location /session {{ selvage_api; }}
        location /plain {{ proxy_pass {app}; }}
        location /reads {{ selvage_lock read_only; proxy_pass {app}; }}
        location /locked {{ selvage_lock on; proxy_pass {app}; }}
        location /set {{ selvage_set a b; selvage_owner me; proxy_pass {app}; }}
        location /incr {{ selvage_incr a; proxy_pass {app}; }}
        location /unset {{ selvage_unset a; proxy_pass {app}; }}
        location /renew {{ selvage_regenerate; proxy_pass {app}; }}
        location /out {{ selvage_destroy; proxy_pass {app}; }}
        location /checked {{ auth_request /check; proxy_pass {app}; }}
        location = /check {{ internal; proxy_pass {app}; }}
        location /moved {{ return 302 /plain; }}
        location /decides {{ if ($selvage_attr_a) {{ return 204; }} proxy_pass {app}; }}",
        app = app.url()
    );
    let mut web = Web::new();
    let mut browser = web.serve("n1", &locations);
    web.serve("n2", &locations);
    assert_eq!(browser.send("PUT", "/session/a", Some(b"1")).status, 204);
    let tag = browser.cookie.as_ref().expect("a cookie").split('-').nth(1).expect("a tag").to_owned();
    let mut strayed = browser.go_to(web.cluster.address("n2"));
    let paths =
        ["plain", "reads", "locked", "set", "incr", "unset", "renew", "out", "checked", "moved", "decides"];
    for path in paths {
        for method in ["GET", "POST", "HEAD"] {
            let body = (method == "POST").then_some(&b"some body"[..]);
            let answer = strayed.send(method, &format!("/{path}"), body);
            let elsewhere = answer.header("selvage-elsewhere");
            assert_eq!((answer.status, elsewhere), (421, Some(&*tag)), "{method} {path}: {answer:?}");
            assert_eq!(answer.header("set-cookie"), None, "{method} {path}");
        }
        // It is said before a large body was sent.
        let head = strayed.head("PUT", &format!("/{path}"), "Content-Length: 200000\r\n");
        let mut early = strayed.go_to(web.cluster.address("n2"));
        early.write(head.as_bytes());
        assert_eq!(early.answer(false).status, 421, "{path}");
    }
    assert_eq!(app.asked().len(), 0, "{:?}", app.asked());
    assert_eq!(browser.get("/session").json()["attributes"], serde_json::json!({ "a": "1" }));
}

#[test]
fn a_slow_body_locks_nothing() {
    let app = App::echo();
    let mut web = Web::new();
    let mut browser = web.serve(
        "n1",
        &format!(
            "selvage_session create; selvage_lock on; selvage_incr n; client_body_buffer_size 8k;
            location /session {{ selvage_api; }}
            location /app {{ proxy_pass {app}; }}
            location /app/stream {{ proxy_request_buffering off; proxy_pass {app}; }}",
            app = app.url()
        ),
    );
    browser.get("/session");
    let body = vec![b'x'; 100_000];
    let mut slow = browser.go_to(browser.address());
    let head = slow.head("POST", "/app", &format!("Content-Length: {}\r\n", body.len()));
    slow.write(head.as_bytes());
    slow.write(&body[..60_000]);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(browser.get("/app").status, 200);
    assert_eq!(browser.get("/session/n").text(), "1", "the slow one has changed nothing yet");
    slow.write(&body[60_000..]);
    assert_eq!(slow.answer(false).status, 200);
    assert_eq!(browser.get("/session/n").text(), "2");
    assert!(app.asked().last().expect("asked").body == body, "the application gets all of it");
    // All of the body with the head, and a chunked one.
    assert_eq!(browser.send("POST", "/app", Some(b"short")).status, 200);
    let head = browser.head("POST", "/app", "Transfer-Encoding: chunked\r\n");
    browser.write(format!("{head}5\r\nchunk\r\n0\r\n\r\n").as_bytes());
    assert_eq!(browser.answer(false).status, 200);
    assert_eq!(app.asked().last().expect("asked").body, b"chunk");
    assert_eq!(browser.send("POST", "/app/stream", Some(&body)).status, 200);
    assert!(app.asked().last().expect("asked").body == body);
    assert_eq!(browser.get("/session/n").text(), "5");
}

#[test]
pub fn protocols_switch_and_pages_are_assembled() {
    let app = App::start(|asked, write| {
        if asked.path.starts_with("/talk") {
            let more = if asked.path.ends_with("changing") { "Selvage-Set: a=b\r\n" } else { "" };
            let head = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: talk\r\n";
            write(format!("{head}{more}\r\nhello").as_bytes());
            return std::thread::sleep(Duration::from_millis(300));
        }
        let (more, body) = match asked.path.as_str() {
            "/page" => ("Selvage-Set: page=1\r\n", "<!--# include virtual=\"/part\" -->!"),
            "/part" => ("Selvage-Set: part=1\r\n", "part"),
            _ => ("Selvage-Set: copied=1\r\n", "mirrored"),
        };
        let length = body.len();
        write(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n{more}\r\n{body}").as_bytes());
    });
    let mut web = Web::new();
    let mut browser = web.serve(
        "n1",
        &format!(
            "selvage_session create;
            location /session {{ selvage_api; }}
            location /page {{ ssi on; ssi_types *; mirror /mirrored; proxy_pass {app}; }}
            location /part {{ proxy_pass {app}; }}
            location /mirrored {{ internal; proxy_pass {app}; }}
            location /talk {{ proxy_pass {app}; proxy_http_version 1.1;
                proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade; }}
            location /accel {{ proxy_pass {app}; }}",
            app = app.url()
        ),
    );
    let answer = browser.get("/page");
    assert_eq!((answer.status, answer.text()), (200, "part!"));
    // The part comes when the head has left; the mirror's answer is nobody's.
    assert_eq!(browser.get("/session").json()["attributes"], serde_json::json!({ "page": "1" }));
    let log = web.log("n1");
    assert!(log.contains("\"Selvage-Set\" comes after the response's head and is ignored"), "{log}");

    let mut talk = TcpStream::connect(browser.address()).expect("nginx listens");
    talk.set_read_timeout(Some(Duration::from_secs(10))).expect("a time limit");
    let cookie = browser.cookie.clone().expect("a cookie");
    let ask =
        |path: &str| format!("GET {path} HTTP/1.1\r\nHost: t\r\nCookie: {cookie}\r\nUpgrade: talk\r\n\r\n");
    talk.write_all(ask("/talk").as_bytes()).expect("written");
    let mut said = String::new();
    talk.read_to_string(&mut said).expect("read");
    assert!(said.starts_with("HTTP/1.1 101 ") && said.ends_with("\r\n\r\nhello"), "{said}");
    let mut one = browser.go_to(browser.address());
    one.write(ask("/talk/changing").as_bytes());
    assert_eq!(one.answer(false).status, 502);
    assert_eq!(Browser::at(browser.address()).get("/page").status, 200);
    assert_eq!(browser.get("/session").json()["attributes"], serde_json::json!({ "page": "1" }));
}

#[test]
fn a_lock_that_is_held_too_long_is_lost_with_its_request() {
    let app = App::start(|asked, write| {
        std::thread::sleep(Duration::from_millis(if asked.path.ends_with("slow") { 900 } else { 0 }));
        write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nSelvage-Incr: n\r\n\r\nok");
    });
    let mut web = Web::of(Cluster::start_sessions("lock_hold_ms = 200"));
    let mut browser = web.serve(
        "n1",
        &format!(
            "selvage_session create; selvage_lock on;
            location /session {{ selvage_api; }}
            location /redirected {{ error_page 404 /session; }}
            location /app {{ proxy_pass {app}; }}",
            app = app.url()
        ),
    );
    browser.get("/session");
    let mut slow = browser.go_to(browser.address());
    let head = slow.head("GET", "/app/slow", "");
    slow.write(head.as_bytes());
    until("the lock is taken", || !app.asked().is_empty());
    assert_eq!(browser.get("/app").status, 200, "the next gets the lock");
    let answer = slow.answer(false);
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")), "{answer:?}");
    assert_eq!(browser.get("/session/n").text(), "1");
    // Who has the lock and is redirected to the session's own location does not wait for itself.
    assert_eq!(browser.get("/redirected").status, 404);
    assert_eq!(browser.get("/app").status, 200);
}

#[test]
fn a_worker_that_cannot_attach_serves_what_needs_no_session() {
    let mut web = Web::new();
    let mut browser = web.serve(
        "n1",
        "location /session { selvage_session create; selvage_api; }
        location /app { selvage_session on; empty_gif; }
        location /excluded { selvage_session on; selvage_exclude /excluded; empty_gif; }",
    );
    assert_eq!(browser.get("/session").status, 200);
    let (master, config) = (web.cluster.last_pid(), web.cluster.config_path());
    let good = std::fs::read_to_string(&config).expect("the configuration");
    std::fs::write(&config, good.replace("[cluster]", "[clutter]")).expect("written");
    let before = Web::children(master);
    for worker in &before {
        Tool::find("kill", "apt-get install procps").args(["-KILL".to_owned(), worker.to_string()]).succeed();
    }
    until("there are other workers", || {
        let now = Web::children(master);
        now.len() == 2 && now.iter().all(|pid| !before.contains(pid))
    });
    browser = browser.go_to(browser.address());
    assert_eq!((browser.get("/up").status, browser.get("/excluded").status), (200, 200));
    for path in ["/app", "/session"] {
        let answer = browser.get(path);
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")), "{path}: {answer:?}");
        assert_eq!(answer.text(), "this worker process could not attach to its node yet\n");
    }
    assert!(web.log("n1").contains("selvage: cannot attach: "), "{}", web.log("n1"));
    std::fs::write(&config, good).expect("written");
    until("they attach by themselves", || browser.get("/session").status == 200);
}

#[test]
fn an_id_that_was_given_up_reads_what_was_before_and_changes_nothing() {
    let app = App::echo();
    let mut web = Web::of(Cluster::start_sessions("regenerate_grace_ms = 20000"));
    let mut browser = web.serve(
        "n1",
        &format!(
            "selvage_session create; proxy_set_header X-User $selvage_attr_user;
            location /session {{ selvage_api; }}
            location /app {{ proxy_pass {app}; }}
            location /set {{ selvage_set user eve; proxy_pass {app}; }}
            location /same {{ selvage_set user guest; proxy_pass {app}; }}
            location /locked {{ selvage_lock on; proxy_pass {app}; }}",
            app = app.url()
        ),
    );
    assert_eq!(browser.get("/app?h=Selvage-Set:user=guest").status, 200);
    let mut parallel = browser.go_to(browser.address());
    assert_eq!(browser.get("/app?h=Selvage-Regenerate:1&h=Selvage-Set:user=ada").status, 200);
    assert_ne!(browser.cookie, parallel.cookie);
    for path in ["/app", "/same", "/locked"] {
        let answer = parallel.get(path);
        assert_eq!((answer.status, answer.text()), (200, "X-User=guest\n"), "{path}: {answer:?}");
        assert_eq!(answer.header("set-cookie"), None, "{path}: the browser has the new id");
    }
    for path in
        ["/set", "/app?h=Selvage-Set:user=eve", "/app?h=Selvage-Destroy:1", "/locked?h=Selvage-Incr:n"]
    {
        let answer = parallel.get(path);
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")), "{path}: {answer:?}");
        assert_eq!(answer.text(), "the session has been given a new id, by which it can be changed\n");
        assert_eq!(answer.header("set-cookie"), None, "{path}");
    }
    assert_eq!(parallel.send("PUT", "/session/user", Some(b"eve")).status, 503);
    assert_eq!(browser.get("/app").text(), "X-User=ada\n");
}
