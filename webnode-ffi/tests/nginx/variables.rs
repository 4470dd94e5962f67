//! `$selvage_...` in requests to applications, in `if` and `map`, in headers and in the log.

use crate::app::App;
use crate::support::http::Browser;
use crate::web::{Web, until};

#[test]
fn variables_show_the_session_and_cannot_break_a_header() {
    let app = App::echo();
    let mut web = Web::new();
    let mut browser = web.serve(
        "n1",
        &format!(
            "selvage_session create;
            location /session {{ selvage_api; client_max_body_size 1m; }}
            location /app {{ proxy_set_header X-User $selvage_attr_user; proxy_set_header X-Id $selvage_id;
                proxy_set_header X-Node $selvage_node; proxy_set_header X-Folded $selvage_attr_first_name;
                proxy_set_header X-Empty \"<$selvage_attr_empty>\";
                proxy_set_header X-None $selvage_attr_none;
                proxy_set_header X-Number $selvage_attr_number; proxy_pass {app}; }}",
            app = app.url()
        ),
    );
    for (name, value) in
        [("user", "a\r\nX-Admin: 1"), ("First-Name", "Ada L%"), ("empty", ""), ("empty2", ""), ("grüße", "x")]
    {
        let name: String = name.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let answer = browser.send("PUT", &format!("/session/{name}"), Some(value.as_bytes()));
        assert_eq!(answer.status, 204, "{answer:?}");
    }
    browser.send("POST", "/session/number/incr", None);
    let id = browser.get("/session").json()["id"].as_str().expect("an id").to_owned();
    // What the client itself sends under these names never arrives.
    let head = browser.head("GET", "/app", "X-None: forged\r\nX-User: forged\r\n");
    browser.write(head.as_bytes());
    let answer = browser.answer(false);
    let expected = format!(
        "X-User=a%0D%0AX-Admin:%201\nX-Id={id}\nX-Node=n1\nX-Folded=Ada%20L%25\nX-Empty=<>\nX-Number=1\n"
    );
    assert_eq!((answer.status, answer.text()), (200, expected.as_str()));
    // An attribute of the very name goes before one that only looks like it.
    browser.send("PUT", "/session/first_name", Some(b"exact"));
    assert!(browser.get("/app").text().contains("X-Folded=exact\n"));
}

#[test]
pub fn variables_decide_and_are_logged_after_the_commit() {
    let app = App::echo();
    let mut web = Web::new();
    let mut browser = web.serve(
        "n1",
        &format!(
            "map $selvage_attr_role $is_admin {{ volatile; default no; admin yes; }}
            log_format session '$uri $selvage_version $selvage_copies $selvage_attr_n $selvage_attr_role';
            ---
            selvage_session create; access_log {{dir}}/session.log session;
            location /session {{ selvage_api; }}
            location /admin {{ if ($selvage_attr_role != admin) {{ return 403; }} empty_gif; }}
            location /mapped {{ add_header Is-Admin $is_admin always; add_header N $selvage_attr_n always;
                selvage_incr n; proxy_pass {app}; }}",
            app = app.url()
        ),
    );
    assert_eq!(browser.get("/admin").status, 403);
    let answer = browser.get("/mapped");
    assert_eq!((answer.header("is-admin"), answer.header("n")), (Some("no"), Some("1")), "{answer:?}");
    let answer = browser.get("/mapped?h=Selvage-Set:role=admin&h=Selvage-Incr:n=10");
    assert_eq!((answer.header("is-admin"), answer.header("n")), (Some("yes"), Some("12")), "{answer:?}");
    assert_eq!(browser.get("/admin").status, 200);
    assert_eq!(Browser::at(browser.address()).get("/admin").status, 403);
    let version = browser.get("/session").json()["version"].as_str().expect("a version").to_owned();
    let line = format!("/mapped {version} 2 12 admin\n");
    let log = web.dir("n1").join("session.log");
    until("the log has the committed values", || {
        std::fs::read_to_string(&log)
            .is_ok_and(|text| text.contains(&line) && text.contains("/admin - - - -\n"))
    });
}
