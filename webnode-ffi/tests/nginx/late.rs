//! The other files' tests once more, with operations that never end at once: as with session servers on other
//! hosts, every create, open, commit, destroy and regenerate ends by a completion.

use crate::app::App;
use crate::web::{Web, late};

macro_rules! late {
    ($($module:ident::$test:ident),+ $(,)?) => {
        $(#[test]
        fn $test() {
            late(crate::$module::$test);
        })+
    };
}

late! {
    api::a_session_is_made_changed_shown_and_destroyed,
    api::regenerate_gives_a_new_id_and_keeps_the_data,
    api::clients_that_leave_in_the_middle_cost_nothing,
    directives::directives_change_the_session_before_the_content,
    directives::a_list_is_carried_out_once_and_where_access_is_granted,
    directives::a_session_is_made_when_there_is_something_to_keep,
    edges::nobody_is_asked_for_a_session_that_is_elsewhere,
    edges::protocols_switch_and_pages_are_assembled,
    held::a_head_waits_for_its_commit_and_the_body_arrives_whole,
    held::clients_that_leave_while_their_head_is_held_leave_nothing_behind,
    life::a_reload_fails_no_request_and_a_graceful_stop_leaves_nothing,
    upstream::a_refresh_in_the_background_changes_no_session_and_is_not_kept_with_instructions,
    upstream::an_application_changes_the_session_by_its_headers,
    upstream::redirects_errors_caches_and_subrequests_keep_to_the_rules,
    upstream::what_cannot_be_followed_is_answered_502_and_changes_nothing,
    variables::variables_decide_and_are_logged_after_the_commit,
}

fn held_heads() -> String {
    let app = App::echo();
    let mut web = Web::new();
    let mut browser = web.serve(
        "n1",
        &format!(
            "selvage_session create;
            location /totals {{ return 200 $selvage_total_held; }}
            location /app {{ proxy_pass {app}; }}",
            app = app.url()
        ),
    );
    assert_eq!(browser.get("/app?h=Selvage-Incr:n").status, 200);
    browser.get("/totals").text().to_owned()
}

#[test]
fn operations_are_late_where_they_are_made_so() {
    assert_eq!(held_heads(), "0", "through shared memory a commit ends at once");
    late(|| assert_eq!(held_heads(), "1"));
}

fn renewals_that_time_out() {
    let app = App::echo();
    let mut web = Web::new();
    let mut browser = web.serve(
        "n1",
        &format!(
            "selvage_session create; location /session {{ selvage_api; }}
            location /renew {{ selvage_regenerate; proxy_pass {app}; }}
            location /app {{ proxy_pass {app}; }}",
            app = app.url()
        ),
    );
    assert_eq!(browser.send("PUT", "/session/late", Some(b"1")).status, 204);
    for (method, path) in
        [("POST", "/session/regenerate"), ("GET", "/renew"), ("GET", "/app?h=Selvage-Regenerate:1")]
    {
        let old = browser.cookie.clone();
        let answer = browser.send(method, path, None);
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")), "{path}: {answer:?}");
        assert_ne!(browser.cookie, old, "{path}: the old id is gone");
        assert_eq!(browser.get("/session/late").text(), "1", "{path}: the browser has its session");
    }
}

/// The new id may be in force although its request fails: the browser gets it with the error.
#[test]
fn a_new_id_whose_news_is_late_is_the_browsers() {
    late(renewals_that_time_out);
}
