//! Changes by an application's response headers.

use crate::app::App;
use crate::support::http::{Answer, Browser};
use crate::web::{Web, until};
use std::sync::atomic::{AtomicUsize, Ordering};

fn attributes(browser: &mut Browser) -> serde_json::Value {
    browser.get("/session").json()["attributes"].clone()
}

fn strangers(answer: &Answer) -> Vec<&str> {
    let names = answer.headers.iter().map(|(name, _)| name.as_str());
    let ours = names.filter(|name| name.to_ascii_lowercase().starts_with("selvage-"));
    ours.filter(|name| !["Selvage-Node", "Selvage-Copies"].contains(name)).collect()
}

fn shop(app: &App) -> String {
    format!(
        "proxy_cache_path {{dir}}/cache keys_zone=pages:1m;
        ---
        selvage_session create; proxy_set_header X-User $selvage_attr_user;
        location /session {{ selvage_api; }}
        location /totals {{ return 200 '$selvage_total_bad_instructions $selvage_total_conflict'; }}
        location /app {{ proxy_pass {app}; }}
        location /locked {{ selvage_lock on; proxy_pass {app}; }}
        location /reads {{ selvage_lock read_only; proxy_pass {app}; }}
        location /unbuffered {{ proxy_buffering off; proxy_pass {app}; }}
        location /off {{ selvage_session off; proxy_pass {app}; }}
        location /cached {{ proxy_cache pages; proxy_cache_valid 200 1m; proxy_pass {app};
            add_header Cache $upstream_cache_status; }}
        location /shelf/ {{ internal; alias {{dir}}/page/; selvage_lock read_only; }}
        location /files/ {{ internal; alias {{dir}}/page/; selvage_session off; }}
        location /errors {{ proxy_intercept_errors on; error_page 500 /sorry.html; proxy_pass {app}; }}
        location = /sorry.html {{ return 200 sorry; }}
        location /hidden {{ proxy_hide_header Selvage-Set; proxy_pass {app}; }}
        location /checked {{ auth_request /check; proxy_pass {app}; }}
        location = /check {{ internal; proxy_pass {app}/check?h=Selvage-Set:checked=yes; }}
        location /misled {{ auth_request /misleading; proxy_pass {app}; }}
        location = /misleading {{ internal; proxy_pass {app}/check?h=Selvage-Set:x; }}
        location /page {{ ssi on; ssi_types *; proxy_pass {app}; }}",
        app = app.url()
    )
}

#[test]
pub fn an_application_changes_the_session_by_its_headers() {
    let app = App::echo();
    let mut web = Web::new();
    let mut browser = web.serve("n1", &shop(&app));
    for location in ["/app", "/locked", "/unbuffered", "/hidden"] {
        let mut browser = Browser::at(browser.address());
        let answer = browser.get(&format!(
            "{location}?h=Selvage-Set:user=Ada%20L.&h=selvage-set:b=a=%25%3d&h=SELVAGE-SET:raw=%ff%00&\
             h=Selvage-Incr:n&h=Selvage-Incr:n=41&h=Selvage-Set:e=&h=X-Other:1&h=Selvage-Copies:9"
        ));
        assert_eq!((answer.status, strangers(&answer)), (200, vec![]), "{location}: {answer:?}");
        assert_eq!((answer.header("selvage-copies"), answer.header("x-other")), (Some("2"), Some("1")));
        assert_eq!(answer.headers.iter().filter(|(name, _)| name == "Set-Cookie").count(), 1, "{answer:?}");
        let expected = serde_json::json!({
            "user": "Ada L.", "b": "a=%=", "raw": { "base64": "/wA=" }, "n": 42, "e": ""
        });
        assert_eq!(attributes(&mut browser), expected, "{location}");
        assert!(browser.get(location).text().contains("X-User=Ada%20L.\n"));
        // A HEAD request changes as well, and so does a response without a body.
        let answer = browser.send("HEAD", &format!("{location}?h=Selvage-Unset:b&h=Selvage-Unset:e"), None);
        assert_eq!(answer.status, 200, "{answer:?}");
        let answer = browser.get(&format!("{location}?status=204+No&h=Selvage-Unset:raw"));
        assert_eq!((answer.status, strangers(&answer)), (204, vec![]), "{answer:?}");
        assert_eq!(attributes(&mut browser), serde_json::json!({ "user": "Ada L.", "n": 42 }));

        let old = browser.cookie.clone();
        let answer = browser.get(&format!("{location}?h=Selvage-Regenerate:1&h=Selvage-Set:role=admin"));
        assert!(answer.status == 200 && answer.header("set-cookie").is_some(), "{answer:?}");
        assert_ne!(browser.cookie, old);
        assert_eq!(attributes(&mut browser)["role"], "admin");
        let mut thief = Browser::at(browser.address());
        thief.cookie = old;
        assert_eq!(attributes(&mut thief), serde_json::json!({}), "the old id is gone");
        let answer = browser.get(&format!("{location}?h=Selvage-Destroy:1&h=Selvage-Set:role=guest"));
        assert!(answer.header("set-cookie").expect("cleared").contains("Max-Age=0"), "{answer:?}");
        assert_eq!((answer.status, strangers(&answer), &browser.cookie), (200, vec![], &None));
    }
    // Never from a client.
    let head = browser.head("GET", "/app", "Selvage-Set: user=eve\r\n");
    browser.write(head.as_bytes());
    assert_eq!(browser.answer(false).status, 200);
    assert_eq!(attributes(&mut browser), serde_json::json!({}));
    assert!(!web.log("n1").contains("[alert]"), "{}", web.log("n1"));
}

#[test]
pub fn what_cannot_be_followed_is_answered_502_and_changes_nothing() {
    let app = App::echo();
    let mut web = Web::new();
    let mut browser = web.serve("n1", &shop(&app));
    browser.get("/app?h=Selvage-Set:user=ada");
    let long = "n".repeat(129);
    for bad in [
        "Set:novalue",
        "Set:=v",
        "Set:a=%4",
        "Set:a=%zz",
        "Set:a=\u{e4}",
        "Incr:n=1x",
        "Incr:=1",
        "Unset:",
        "Regenerate:yes",
        "Destroy:0",
        "Set:%ff=x",
        &format!("Set:{long}=x"),
        &format!("Unset:{long}"),
    ] {
        let answer = browser.get(&format!("/app?h=Selvage-Set:user=eve&h=Selvage-{bad}"));
        assert_eq!((answer.status, strangers(&answer)), (502, vec![]), "{bad}: {answer:?}");
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{answer:?}");
    }
    let answer = browser.get("/app?h=Selvage-Set:user=eve&h=Selvage-Incr:user");
    assert_eq!(answer.status, 409, "{answer:?}");
    let answer = browser.get("/reads?h=Selvage-Set:user=eve");
    assert_eq!((answer.status, strangers(&answer)), (502, vec![]), "{answer:?}");
    let answer = browser.get("/reads");
    assert!(answer.status == 200 && answer.text().contains("X-User=ada\n"), "{answer:?}");
    let answer = browser.send("HEAD", "/app?h=Selvage-Set:novalue", None);
    assert_eq!(answer.status, 502, "{answer:?}");
    // The connection goes on, and where sessions are off nothing is looked at, but for what the client sees.
    let answer = browser.get("/off?h=Selvage-Set:novalue");
    assert_eq!((answer.status, strangers(&answer)), (200, vec![]), "{answer:?}");
    assert_eq!(attributes(&mut browser), serde_json::json!({ "user": "ada" }));
    assert_eq!(browser.get("/totals").text(), "15 1", "over all workers");
    assert!(web.log("n1").contains("cannot be read: \"Selvage-Set: novalue\""), "{}", web.log("n1"));
}

#[test]
pub fn redirects_errors_caches_and_subrequests_keep_to_the_rules() {
    let app = App::echo();
    let mut web = Web::new();
    let mut browser = web.serve("n1", &shop(&app));
    // The application answers, and another location delivers.
    let answer = browser.get("/app?h=X-Accel-Redirect:/files/index.html&h=Selvage-Incr:n");
    assert_eq!((answer.status, answer.text(), strangers(&answer)), (200, "<p>hello</p>\n", vec![]));
    assert_eq!(attributes(&mut browser)["n"], 1);
    let answer =
        browser.get("/app?h=X-Accel-Redirect:/shelf/index.html&h=Selvage-Incr:n&h=Selvage-Incr:n=-1");
    assert_eq!(
        (answer.status, strangers(&answer)),
        (200, vec![]),
        "by the rules of who was asked: {answer:?}"
    );
    for path in ["/files/index.html", "/shelf/index.html"] {
        let answer = browser.get(&format!("/app?h=X-Accel-Redirect:{path}&h=Selvage-Incr:n&h=Selvage-Set:x"));
        assert_eq!((answer.status, strangers(&answer)), (502, vec![]), "{path}: {answer:?}");
        let answer = browser.get(&format!("/reads?h=X-Accel-Redirect:{path}&h=Selvage-Incr:n"));
        assert_eq!((answer.status, strangers(&answer)), (502, vec![]), "{path}: {answer:?}");
        let answer = browser.get(&format!("/off?h=X-Accel-Redirect:{path}&h=Selvage-Incr:n"));
        assert_eq!((answer.status, strangers(&answer)), (200, vec![]), "{path}: {answer:?}");
    }
    let answer = browser.get("/errors?status=500+Oh&h=Selvage-Incr:n");
    assert_eq!((answer.status, answer.text(), strangers(&answer)), (500, "sorry", vec![]));
    let answer = browser.get("/app?status=500+Oh&h=Selvage-Incr:n");
    assert_eq!((answer.status, strangers(&answer)), (500, vec![]));
    assert_eq!(attributes(&mut browser)["n"], 3, "an error page's instructions count");

    // What was said to one browser is kept for no other.
    for _ in 0..2 {
        let answer = browser.get("/cached/a?h=Selvage-Incr:n");
        assert_eq!((answer.status, answer.header("cache")), (200, Some("MISS")), "{answer:?}");
    }
    assert_eq!(attributes(&mut browser)["n"], 5);
    assert_eq!(browser.get("/cached/b").header("cache"), Some("MISS"));
    assert_eq!(browser.get("/cached/b").header("cache"), Some("HIT"));

    // Subrequests: the main request owns the session.
    let answer = browser.get("/checked?h=Selvage-Incr:n");
    assert_eq!((answer.status, strangers(&answer)), (200, vec![]), "{answer:?}");
    let asked = app.asked().iter().filter(|asked| asked.path.starts_with("/misled?")).count();
    assert_eq!((browser.get("/misled?h=Selvage-Incr:n").status, asked), (502, 0));
    let now = attributes(&mut browser);
    assert_eq!((&now["n"], &now["checked"]), (&6.into(), &"yes".into()));
}

/// A cache that is refreshed behind its browsers' backs keeps what was said to no browser as little.
#[test]
pub fn a_refresh_in_the_background_changes_no_session_and_is_not_kept_with_instructions() {
    let times = AtomicUsize::new(0);
    let app = App::start(move |_, write| {
        let time = times.fetch_add(1, Ordering::Relaxed) + 1;
        // The first answer and the last one may be kept.
        let instruction = if (2..5).contains(&time) { "Selvage-Incr: n\r\n" } else { "" };
        write(format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n{instruction}\r\n{time}").as_bytes());
    });
    let mut web = Web::new();
    let mut browser = web.serve(
        "n1",
        &format!(
            "proxy_cache_path {{dir}}/cache keys_zone=pages:1m;
            ---
            selvage_session create;
            location /session {{ selvage_api; }}
            location /cached {{ proxy_cache pages; proxy_cache_valid 200 1s; proxy_pass {app};
                proxy_cache_use_stale updating; proxy_cache_background_update on; }}",
            app = app.url()
        ),
    );
    let mut kept = "1".to_owned();
    until("the cache has taken an answer without instructions", || {
        let answer = browser.get("/cached");
        assert_eq!((answer.status, strangers(&answer)), (200, vec![]), "{answer:?}");
        kept = answer.text().to_owned();
        assert!(kept == "1" || kept == "5", "what was said to nobody is kept: {answer:?}");
        kept == "5"
    });
    assert_eq!(attributes(&mut browser), serde_json::json!({}), "and counts for nobody");
}
