//! The module under Valgrind: no access out of bounds or after a free, nothing decided by what nobody wrote.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::app::App;
use crate::support::cluster::Cluster;
use crate::support::http::Browser;
use crate::web::{Web, late, until};

#[test]
fn valgrind_finds_nothing_on_any_way_through_the_module() {
    late(any_way);
}

fn any_way() {
    let go = Arc::new(AtomicBool::new(false));
    let gate = Arc::clone(&go);
    let app = App::start(move |asked, write| {
        while asked.path.starts_with("/locked") && !gate.load(Ordering::Acquire) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let headers: String = asked.query("h").iter().map(|header| format!("{header}\r\n")).collect();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n{}\r\n", headers.replace(':', ": "));
        write(head.as_bytes());
        write(&[b'x'; 60_000]);
    });
    let mut web = Web::of(Cluster::start_patient());
    let mut browser = web.serve_under_valgrind(
        "n1",
        &format!(
            "log_format session '$selvage_id $selvage_attr_n $selvage_attr_a_b $selvage_total_held';
            ---
            selvage_session create; access_log {{dir}}/session.log session;
            location /session {{ selvage_api; }}
            location /app {{ proxy_set_header X-A $selvage_attr_a_b; proxy_pass {app}; }}
            location /direct {{ proxy_buffering off; proxy_pass {app}; }}
            location /set {{ selvage_set A-B $arg_v if=$arg_v; selvage_incr n $arg_n; selvage_owner me;
                index index.html; alias {{dir}}/page/; }}
            location /locked {{ selvage_lock on; proxy_pass {app}; }}
            location /renew {{ selvage_regenerate; selvage_unset n; proxy_pass {app}; }}
            location /out {{ selvage_destroy; empty_gif; }}
            location /sent {{ internal; alias {{dir}}/page; }}",
            app = app.url()
        ),
    );
    let ok = [
        "/session",
        "/set/?v=%20x&n=5",
        "/app?h=Selvage-Set:a=b&h=Selvage-Unset:A-B&h=Selvage-Incr:n",
        "/app?h=X-Accel-Redirect:/sent/index.html&h=Selvage-Set:a=c",
        "/direct?h=Selvage-Set:A-B=%25",
        "/renew?h=Selvage-Set:a=d",
        "/session",
        "/session/a",
    ];
    for path in ok {
        assert_eq!(browser.get(path).status, 200, "{path}");
    }
    for (path, status) in
        [("/app?h=Selvage-Set:%25", 502), ("/set/?n=x", 400), ("/app?h=Selvage-Incr:a", 409)]
    {
        assert_eq!(browser.get(path).status, status, "{path}");
    }
    // Some wait for the lock: one to be served, one to be left, one before its content.
    let ask = |path: &str| {
        let mut one = browser.go_to(browser.address());
        let head = one.head("GET", path, "");
        one.write(head.as_bytes());
        one
    };
    let mut holder = ask("/locked");
    until("the lock is held", || app.asked().iter().any(|asked| asked.path == "/locked"));
    let mut held = ask("/app?h=Selvage-Set:a=e");
    let left = [ask("/app?h=Selvage-Set:a=f"), ask("/set/?n=1"), ask("/direct?h=Selvage-Incr:n")];
    std::thread::sleep(Duration::from_secs(1));
    drop(left);
    std::thread::sleep(Duration::from_millis(500));
    go.store(true, Ordering::Release);
    assert_eq!((holder.answer(false).status, held.answer(false).status), (200, 200));
    assert_eq!(browser.get("/out").status, 200);
    assert_eq!(Browser::at(browser.address()).get("/app").status, 200);

    let process = web.cluster.signal_last("QUIT");
    let end = std::time::Instant::now() + Duration::from_secs(30);
    let status = loop {
        if let Some(status) = process.try_wait().expect("a child") {
            break status;
        }
        assert!(std::time::Instant::now() < end, "nginx does not end");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(status.success(), "{status}\n{}", web.cluster.logs());
    // nginx gives not everything back when it ends; the module and the library do.
    let said = std::fs::read_to_string(web.cluster.dir().join("nginx-n1.log")).expect("what Valgrind says");
    let ours = said.lines().find(|line| line.starts_with("==") && line.contains("selvage"));
    assert_eq!(ours, None, "{said}");
}
