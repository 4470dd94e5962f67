//! Session data over HTTP: `selvage_api`, and locations that only see to the session.

use std::time::Duration;

use crate::support::http::Browser;
use crate::web::Web;

const LOCATIONS: &str = "selvage_session create;
    location / { index index.html; }
    location /off { selvage_session off; return 200 none; }
    location /on { selvage_session on; empty_gif; }
    location /session { selvage_api; client_max_body_size 32m; client_body_buffer_size 8k; }
    location /known { selvage_session on; selvage_api; }";

fn one_node() -> (Web, Browser) {
    let mut web = Web::new();
    let browser = web.serve("n1", LOCATIONS);
    (web, browser)
}

#[test]
pub fn a_session_is_made_changed_shown_and_destroyed() {
    let (_web, mut browser) = one_node();
    let answer = browser.get("/session");
    assert_eq!((answer.status, answer.header("selvage-node")), (200, Some("n1")), "{answer:?}");
    assert_eq!(answer.header("selvage-copies"), Some("2"));
    let first = answer.json();
    assert_eq!(first["attributes"], serde_json::json!({}));
    assert_eq!((&first["node"], &first["copies"]), (&"n1".into(), &2.into()));
    assert!(browser.cookie.as_ref().expect("a cookie").contains(first["id"].as_str().expect("an id")));

    let answer = browser.send("PUT", "/session/user", Some("grüße".as_bytes()));
    assert_eq!((answer.status, answer.header("selvage-copies")), (204, Some("2")), "{answer:?}");
    assert_eq!(answer.header("set-cookie"), None);
    assert_eq!(browser.send("PUT", "/session/raw", Some(&[0, 255, 7])).status, 204);
    assert_eq!(browser.send("PUT", "/session/empty", Some(b"")).status, 204);
    for expected in ["1\n", "2\n", "3\n"] {
        let answer = browser.send("POST", "/session/visits/incr", None);
        assert_eq!((answer.status, answer.text()), (200, expected));
        assert_eq!(answer.header("selvage-copies"), Some("2"));
    }

    let answer = browser.get("/session/user");
    assert_eq!((answer.status, answer.text()), (200, "grüße"));
    assert_eq!(answer.header("content-type"), Some("text/plain; charset=utf-8"));
    let answer = browser.get("/session/raw");
    assert_eq!((answer.status, &answer.body[..]), (200, &[0, 255, 7][..]));
    assert_eq!(answer.header("content-type"), Some("application/octet-stream"));
    let answer = browser.send("HEAD", "/session/user", None);
    assert_eq!((answer.status, answer.header("content-length")), (200, Some("7")));
    assert_eq!(browser.get("/session/visits").text(), "3");
    assert_eq!(browser.get("/session/empty").text(), "");

    let whole = browser.get("/session/").json();
    assert_eq!(whole["id"], first["id"]);
    let expected =
        serde_json::json!({ "empty": "", "raw": { "base64": "AP8H" }, "user": "grüße", "visits": 3 });
    assert_eq!(whole["attributes"], expected);

    assert_eq!(browser.send("DELETE", "/session/raw", None).status, 204);
    assert_eq!(browser.send("DELETE", "/session/raw", None).status, 404);
    assert_eq!(browser.get("/session/raw").status, 404);

    let old = browser.cookie.clone();
    let answer = browser.send("DELETE", "/session", None);
    assert_eq!(answer.status, 204, "{answer:?}");
    assert!(answer.header("set-cookie").expect("cleared").contains("Max-Age=0"), "{answer:?}");
    assert_eq!(browser.cookie, None);
    browser.cookie = old.clone();
    let answer = browser.get("/known/user");
    assert_eq!((answer.status, &browser.cookie), (404, &None), "gone, and its cookie cleared: {answer:?}");
    browser.cookie = old.clone();
    let again = browser.get("/session").json();
    assert_eq!(again["attributes"], serde_json::json!({}));
    assert_ne!(again["id"], first["id"], "gone is gone");
    assert_ne!(browser.cookie, old);
}

#[test]
pub fn regenerate_gives_a_new_id_and_keeps_the_data() {
    let (_web, mut browser) = one_node();
    assert_eq!(browser.send("PUT", "/session/user", Some(b"ada")).status, 204);
    let before = browser.get("/session").json();
    let old = browser.cookie.clone();
    let answer = browser.send("POST", "/session/regenerate", Some(b"ignored"));
    assert_eq!((answer.status, answer.header("selvage-copies")), (200, Some("2")), "{answer:?}");
    let after = answer.json();
    assert_ne!(after["id"], before["id"]);
    assert_eq!(after["attributes"], before["attributes"]);
    assert_ne!(browser.cookie, old);
    assert_eq!(browser.get("/session/user").text(), "ada");
    browser.cookie = old;
    assert_eq!(browser.get("/known/user").status, 404, "the old id is gone");
    // An attribute may have that name: only POST means the act.
    assert_eq!(browser.send("PUT", "/session/regenerate", Some(b"x")).status, 204);
    assert_eq!(browser.get("/session/regenerate").text(), "x");
}

#[test]
fn a_wrong_or_foreign_cookie_is_no_cookie() {
    let (_web, mut browser) = one_node();
    browser.get("/session");
    let good = browser.cookie.clone().expect("a cookie");
    let other = if good.ends_with('a') { 'b' } else { 'a' };
    let forged = format!("{}{other}", &good[..good.len() - 1]);
    let others = ["selvage=", "selvage=x", &forged, "selvage=\u{1}\u{ff}", "PHPSESSID=abc"];
    for cookie in others {
        browser.cookie = Some(cookie.to_owned());
        let answer = browser.get("/session");
        assert_eq!(answer.status, 200, "{cookie}: {answer:?}");
        assert_ne!(answer.json()["id"].as_str().map(|id| good.contains(id)), Some(true), "{cookie}");
        assert_ne!(browser.cookie.as_deref(), Some(cookie), "{cookie}: a new one");
        browser.cookie = Some(cookie.to_owned());
        assert_eq!(browser.get("/known").status, 404, "{cookie}");
    }
}

#[test]
fn an_ordinary_location_gives_the_cookie_and_then_leaves_it_alone() {
    let (_web, mut browser) = one_node();
    // The index is reached by an internal redirect, which must not make a second session.
    let answer = browser.get("/");
    assert_eq!((answer.status, answer.text()), (200, "<p>hello</p>\n"));
    let cookies = answer.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("set-cookie"));
    assert_eq!(cookies.count(), 1, "{answer:?}");
    assert_eq!(answer.header("selvage-node"), Some("n1"));
    let id = browser.get("/session").json()["id"].clone();
    assert!(browser.cookie.as_ref().expect("a cookie").contains(id.as_str().expect("an id")));
    let answer = browser.get("/");
    assert_eq!((answer.status, answer.header("set-cookie")), (200, None));
    let answer = browser.get("/nothing-here");
    assert_eq!((answer.status, answer.header("set-cookie")), (404, None));

    let mut stranger = browser.go_to(browser.address());
    stranger.cookie = None;
    let answer = stranger.get("/off");
    assert_eq!((answer.status, answer.header("set-cookie")), (200, None));
    let answer = stranger.get("/on");
    assert_eq!((answer.status, answer.header("set-cookie")), (200, None));
    assert_eq!(browser.send("DELETE", "/session", None).status, 204);
}

#[test]
fn bad_requests_get_clear_answers_and_change_nothing() {
    let (_web, mut browser) = one_node();
    assert_eq!(browser.send("PUT", "/session/word", Some(b"hello")).status, 204);
    let before = browser.get("/session").json();

    for (method, path, allow) in [
        ("POST", "/session", "GET, HEAD, DELETE"),
        ("PUT", "/session", "GET, HEAD, DELETE"),
        ("POST", "/session/word", "GET, HEAD, PUT, DELETE"),
        ("GET", "/session/word/incr", "POST"),
        ("OPTIONS", "/session/word", "GET, HEAD, PUT, DELETE"),
    ] {
        let answer = browser.send(method, path, Some(b"body"));
        assert_eq!((answer.status, answer.header("allow")), (405, Some(allow)), "{method} {path}");
    }
    for path in ["/session/a/b", "/session/a/incr/c", "/session/word/increase", "/sessions", "/session//incr"]
    {
        let answer = browser.send("POST", path, None);
        assert!([404, 405].contains(&answer.status), "{path}: {answer:?}");
    }
    let answer = browser.send("POST", "/session/word/incr", None);
    assert_eq!((answer.status, answer.text()), (409, "this attribute is not a whole number\n"));

    // Over the test cluster's limit of 256 KiB, by the declared length and by what came chunked.
    let large = vec![b'x'; 262_145];
    let answer = browser.send("PUT", "/session/word", Some(&large));
    assert_eq!(
        (answer.status, answer.text()),
        (413, "the body has 262145 bytes, a session at most 262144\n")
    );
    let head = browser.head("PUT", "/session/word", "Transfer-Encoding: chunked\r\n");
    let mut chunked = head.into_bytes();
    chunked.extend_from_slice(format!("{:x}\r\n", large.len()).as_bytes());
    chunked.extend_from_slice(&large);
    chunked.extend_from_slice(b"\r\n0\r\n\r\n");
    browser.write(&chunked);
    let answer = browser.answer(false);
    assert_eq!(
        (answer.status, answer.text()),
        (413, "the body has 262145 bytes, a session at most 262144\n")
    );
    // The body fits, the session with it does not: the library says so, with both numbers.
    let answer = browser.send("PUT", "/session/other", Some(&large[..262_140]));
    assert_eq!(answer.status, 413, "{answer:?}");
    assert!(answer.text().contains("262144"), "{answer:?}");
    let name = "n".repeat(129);
    let answer = browser.send("PUT", &format!("/session/{name}"), Some(b"x"));
    assert_eq!(answer.status, 413, "{answer:?}");
    assert!(answer.text().contains("129") && answer.text().contains("128"), "{answer:?}");
    let answer = browser.send("PUT", "/session/%ff%fe", Some(b"x"));
    assert_eq!(answer.status, 400, "{answer:?}");

    let after = browser.get("/session").json();
    assert_eq!(after["attributes"], before["attributes"], "the old version is intact");
    assert_eq!(after["id"], before["id"]);
}

#[test]
fn bodies_in_files_slow_bodies_and_pipelines() {
    let (_web, mut browser) = one_node();
    browser.get("/session");
    // Larger than client_body_buffer_size, so that nginx keeps it in a file.
    let large: Vec<u8> = (0..200_000_u32).map(|n| b'a' + (n % 26) as u8).collect();
    assert_eq!(browser.send("PUT", "/session/large", Some(&large)).status, 204);
    assert_eq!(browser.get("/session/large").body, large);

    // While one browser's body dawdles, its session is not locked.
    let mut slow = browser.go_to(browser.address());
    let head = slow.head("PUT", "/session/slow", "Content-Length: 8\r\n");
    slow.write(format!("{head}half").as_bytes());
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(browser.send("POST", "/session/n/incr", None).text(), "1\n");
    slow.write(b"half");
    assert_eq!(slow.answer(false).status, 204);
    assert_eq!(browser.get("/session/slow").text(), "halfhalf");

    // Many requests at once on one connection are answered in order.
    let one = browser.head("POST", "/session/n/incr", "Content-Length: 0\r\n");
    browser.write(one.repeat(50).as_bytes());
    for expected in 2..=51 {
        assert_eq!(browser.answer(false).text(), format!("{expected}\n"));
    }
}

#[test]
fn many_connections_share_one_session_fairly() {
    let (_web, mut browser) = one_node();
    browser.get("/session");
    std::thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| {
                let mut one = browser.go_to(browser.address());
                for _ in 0..25 {
                    assert_eq!(one.send("POST", "/session/n/incr", None).status, 200);
                }
            });
        }
    });
    assert_eq!(browser.get("/session/n").text(), "300");
}

#[test]
pub fn clients_that_leave_in_the_middle_cost_nothing() {
    let (_web, mut browser) = one_node();
    browser.get("/session");
    for _ in 0..40 {
        let mut gone = browser.go_to(browser.address());
        let request = gone.head("POST", "/session/n/incr", "Content-Length: 0\r\n");
        gone.write(request.as_bytes());
    }
    // What they began ends by itself, each at most once, and the lock is free again.
    let first: u32 = browser.send("POST", "/session/n/incr", None).text().trim().parse().expect("a number");
    assert!((1..=41).contains(&first), "{first}");
    let second: u32 = browser.send("POST", "/session/m/incr", None).text().trim().parse().expect("a number");
    assert_eq!(second, 1);
}

#[test]
fn a_session_of_another_node_is_elsewhere() {
    let (mut web, mut browser) = one_node();
    web.serve("n2", LOCATIONS);
    assert_eq!(browser.send("POST", "/session/n/incr", None).text(), "1\n");
    let tag = browser.cookie.as_ref().expect("a cookie").split('-').nth(1).expect("a tag").to_owned();
    let mut strayed = browser.go_to(web.cluster.address("n2"));
    for (method, path) in
        [("GET", "/session"), ("POST", "/session/n/incr"), ("DELETE", "/session"), ("GET", "/")]
    {
        let answer = strayed.send(method, path, None);
        assert_eq!(
            (answer.status, answer.header("selvage-elsewhere")),
            (421, Some(&*tag)),
            "{method} {path}"
        );
        assert_eq!(answer.header("set-cookie"), None, "{method} {path}");
    }
    let answer = strayed.send("PUT", "/session/n", Some(b"changed"));
    assert_eq!((answer.status, answer.header("selvage-elsewhere")), (421, Some(&*tag)));
    // A large body: the answer comes before the body was sent.
    let head = strayed.head("PUT", "/session/n", "Content-Length: 200000\r\n");
    strayed.write(head.as_bytes());
    assert_eq!(strayed.answer(false).status, 421);
    assert_eq!(browser.get("/session/n").text(), "1", "nothing was changed");
}
