//! Changes by directives: what they do, when, and how often.

use crate::app::App;
use crate::support::http::{Answer, Browser};
use crate::web::Web;

fn attributes(browser: &mut Browser) -> serde_json::Value {
    browser.get("/session").json()["attributes"].clone()
}

fn ok(answer: &Answer) {
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[test]
pub fn directives_change_the_session_before_the_content() {
    let app = App::echo();
    let mut web = Web::new();
    let mut browser = web.serve(
        "n1",
        &format!(
            "selvage_session create;
            location /session {{ selvage_api; }}
            location /plain {{ return 200; }}
            location /set {{ selvage_set user $arg_user; selvage_set 'raw name' \"<$arg_user>\";
                selvage_incr visits; selvage_incr sum $arg_by; selvage_unset old;
                selvage_set maybe yes if=$arg_maybe; selvage_owner $arg_user;
                proxy_set_header X-User $selvage_attr_user; proxy_set_header X-Visits $selvage_attr_visits;
                proxy_set_header X-Copies $selvage_copies; proxy_pass {app}; }}
            location /out {{ selvage_destroy; proxy_set_header X-Id $selvage_id; proxy_pass {app}; }}
            location /renew {{ selvage_regenerate; selvage_set role admin;
                proxy_set_header X-Id $selvage_id; proxy_pass {app}; }}",
            app = app.url()
        ),
    );
    assert_eq!(browser.send("PUT", "/session/old", Some(b"x")).status, 204);
    let answer = browser.get("/set?user=ada&by=5");
    ok(&answer);
    assert_eq!(answer.text(), "X-User=ada\nX-Visits=1\nX-Copies=2\n", "the application sees what was set");
    assert_eq!((answer.header("selvage-copies"), answer.header("selvage-node")), (Some("2"), Some("n1")));
    assert_eq!(answer.header("set-cookie"), None);
    ok(&browser.get("/set?user=ada&by=-7&maybe=1"));
    let expected =
        serde_json::json!({ "maybe": "yes", "raw name": "<ada>", "sum": -2, "user": "ada", "visits": 2 });
    assert_eq!(attributes(&mut browser), expected);

    // What cannot be added is refused, and nothing of the list is done.
    let answer = browser.get("/set?user=eve&by=x");
    assert_eq!((answer.status, answer.text()), (400, "what is to be added is not a whole number\n"));
    assert_eq!(browser.send("PUT", "/session/visits", Some(b"many")).status, 204);
    let answer = browser.get("/set?user=eve&by=1");
    assert_eq!(answer.status, 409, "{answer:?}");
    // Text that is a number can be added to, as applications write their numbers.
    assert_eq!(browser.send("PUT", "/session/visits", Some(b"41")).status, 204);
    ok(&browser.get("/set?user=ada&by=1"));
    assert_eq!(attributes(&mut browser)["visits"], 42);
    assert_eq!(attributes(&mut browser)["user"], "ada");
    let asked = app.asked().len();
    assert_eq!(asked, 3, "the application is not asked for what is refused");

    let (old, id) = (browser.cookie.clone(), browser.get("/session").json()["id"].clone());
    let answer = browser.get("/renew");
    ok(&answer);
    assert!(answer.header("set-cookie").is_some(), "{answer:?}");
    assert_ne!(browser.cookie, old);
    let session = browser.get("/session").json();
    assert_ne!(session["id"], id);
    assert_eq!(
        (&session["attributes"]["role"], &session["attributes"]["user"]),
        (&"admin".into(), &"ada".into())
    );
    assert_eq!(answer.text(), format!("X-Id={}\n", session["id"].as_str().expect("an id")));

    let answer = browser.get("/out");
    ok(&answer);
    assert!(answer.header("set-cookie").expect("cleared").contains("Max-Age=0"), "{answer:?}");
    assert_eq!((answer.text(), &browser.cookie), ("", &None), "nothing is known of a session that is gone");
    // Nothing is made only to be destroyed.
    let answer = browser.get("/out");
    assert_eq!((answer.status, answer.header("set-cookie")), (200, None));
    ok(&browser.get("/set?user=bob&by=1"));
    assert_eq!(attributes(&mut browser)["visits"], 1, "a new session, changed with its first commit");
}

#[test]
pub fn a_list_is_carried_out_once_and_where_access_is_granted() {
    let mut web = Web::new();
    let mut browser = web.serve(
        "n1",
        "selvage_session create; selvage_incr hits;
        location /session { selvage_api; }
        location / { index index.html; }
        location /try { try_files /nothing /nothing.html @named; }
        location @named { selvage_incr named; return 404; }
        location /denied { deny all; error_page 403 /sorry; }
        location /sorry { selvage_incr sorry; empty_gif; }
        location /none { selvage_lock read_only; empty_gif; }
        location /if { if ($arg_a) { selvage_incr inside; } empty_gif; }
        location /limited { limit_except GET { deny all; } selvage_incr limited; empty_gif; }",
    );
    let count = |browser: &mut Browser, name: &str| attributes(browser)[name].as_i64();
    ok(&browser.get("/"));
    assert_eq!(count(&mut browser, "hits"), Some(1), "also when the index is reached by a redirect");
    assert_eq!(browser.get("/try").status, 404);
    // `return` ends a request before its changes, in @named, too.
    assert_eq!((count(&mut browser, "hits"), count(&mut browser, "named")), (Some(2), None));
    assert_eq!(browser.get("/denied").status, 403);
    assert_eq!((count(&mut browser, "hits"), count(&mut browser, "sorry")), (Some(2), Some(1)));
    ok(&browser.get("/none"));
    assert_eq!(count(&mut browser, "hits"), Some(2));
    ok(&browser.get("/if"));
    assert_eq!((count(&mut browser, "hits"), count(&mut browser, "inside")), (Some(3), None));
    ok(&browser.get("/if?a=1"));
    assert_eq!((count(&mut browser, "hits"), count(&mut browser, "inside")), (Some(3), Some(1)));
    assert_eq!(browser.send("POST", "/limited", None).status, 403);
    assert_eq!(count(&mut browser, "limited"), None);

    // Who is turned away gets no session.
    let mut stranger = Browser::at(browser.address());
    let answer = stranger.send("POST", "/limited", None);
    assert_eq!((answer.status, answer.header("set-cookie")), (403, None));
}

#[test]
pub fn a_session_is_made_when_there_is_something_to_keep() {
    let app = App::echo();
    let mut web = Web::new();
    let mut browser = web.serve(
        "n1",
        &format!(
            "location /session {{ selvage_api; }}
            location /cart {{ selvage_session on_change; selvage_set item $arg_item if=$arg_item;
                selvage_unset gone; proxy_pass {app}; }}
            location /on {{ selvage_session on; selvage_set item x; proxy_pass {app}; }}
            location /off {{ selvage_set item x; proxy_pass {app}; }}",
            app = app.url()
        ),
    );
    for path in ["/cart", "/on", "/off", "/off?h=Selvage-Set:a=b", "/on?h=Selvage-Set:a=b"] {
        let answer = browser.get(path);
        assert_eq!((answer.status, answer.header("set-cookie")), (200, None), "{path}");
        assert!(!format!("{answer:?}").to_lowercase().contains("selvage-"), "{answer:?}");
    }
    let answer = browser.get("/cart?item=book");
    assert!(answer.status == 200 && answer.header("set-cookie").is_some(), "{answer:?}");
    assert_eq!(attributes(&mut browser), serde_json::json!({ "item": "book" }));
    let mut other = Browser::at(browser.address());
    let answer = other.get("/cart?h=Selvage-Set:item=pen");
    assert!(answer.status == 200 && answer.header("set-cookie").is_some(), "{answer:?}");
    assert_eq!(attributes(&mut other), serde_json::json!({ "item": "pen" }));
    // A change that changes nothing is not committed.
    let version = other.get("/session").json()["version"].clone();
    let answer = other.get("/cart?item=pen&h=Selvage-Set:item=pen");
    assert_eq!((answer.status, answer.header("selvage-copies")), (200, None));
    assert_eq!(other.get("/session").json()["version"], version);
}

#[test]
fn what_is_excluded_gets_no_session() {
    let mut web = Web::new();
    let mut browser = web.serve(
        "n1",
        r"selvage_session create; selvage_exclude ~* \.(css|js)$; selvage_exclude /static/;
        selvage_exclude = /robots.txt; selvage_exclude $arg_anonymous;
        location / { empty_gif; }
        location /all { selvage_exclude = /nothing; empty_gif; }",
    );
    let excluded = ["/a.css", "/a/b.JS", "/static/x", "/robots.txt", "/x?anonymous=1"];
    for path in excluded {
        let answer = browser.get(path);
        assert_eq!((answer.status, answer.header("set-cookie")), (200, None), "{path}");
    }
    for path in ["/a.css2", "/statics", "/robots.txt/", "/x?anonymous=0", "/x?anonymous=", "/all.css"] {
        browser.cookie = None;
        let answer = browser.get(path);
        assert!(answer.status == 200 && answer.header("set-cookie").is_some(), "{path}: {answer:?}");
    }
}
