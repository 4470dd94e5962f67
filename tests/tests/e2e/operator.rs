//! What an operator does: the command `selvage`, the admin API, metrics.

use http::{Method, StatusCode};
use selvage_tests::cluster::Cluster;
use selvage_tests::stage::{Stage, all_find_all, customers};
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::time::Duration;

/// As root, nginx's workers work as another user, and nobody else can open their cache.
#[tokio::test(flavor = "multi_thread")]
async fn the_caches_belong_to_the_web_servers_user() {
    let stage = Stage::new(2, 1, 1).await;
    let uid = stage.web_user().map_or(rustix::process::geteuid().as_raw(), |user| user.uid);
    let view = stage.admin().view().await.unwrap();
    for pid in view.nodes.iter().flat_map(|node| &node.pids) {
        assert_eq!(fs::metadata(format!("/proc/{pid}")).unwrap().uid(), uid, "process {pid}");
    }
    let segments = stage.folder().unwrap().segments();
    assert_eq!(segments.len(), 2, "one cache per node: {segments:?}");
    for segment in segments {
        let meta = fs::metadata(&segment).unwrap();
        assert_eq!((meta.uid(), meta.mode() & 0o777), (uid, 0o600), "{}", segment.display());
    }
    for name in ["n1", "n2"] {
        let meta = fs::metadata(stage.config().node_dir(name)).unwrap();
        assert_eq!((meta.uid(), meta.mode() & 0o777), (uid, 0o700), "{name}'s folder");
    }
    stage.end_untouched();
}

/// Runs `selvage` with the cluster's configuration; whether it succeeded, and what it prints.
pub(crate) fn run_selvage(cluster: &Cluster, arguments: &[&str]) -> (bool, String) {
    let mut command = Command::new(cluster.product().operator_tool());
    command.args(arguments).arg("--config").arg(cluster.folder().unwrap().config()).stdin(Stdio::null());
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    // A list that is not complete (4) says so itself, and callers look for that.
    (matches!(output.status.code(), Some(0 | 4)), String::from_utf8(text).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_shows_and_drains() {
    let stage = Stage::new(2, 2, 2).await;
    let customers = customers(&stage, 30, 2).await;
    let view = stage.until_protected(customers.len(), 2).await;
    let (good, said) = run_selvage(&stage, &["status"]);
    assert!(good, "{said}");
    for word in ["n1", "n2", "s1", "s2", "up", "30", &view.epoch.to_string()] {
        assert!(said.contains(word), "no {word} in: {said}");
    }
    let (good, said) = run_selvage(&stage, &["drain", "n1"]);
    assert!(good, "{said}");
    let view = stage.until_protected(customers.len(), 2).await;
    assert!(view.node_is("n1", "drained"), "{view:?}");
    assert_eq!(view.node("n2").unwrap().sessions, 30);
    all_find_all(&stage, &customers).await;
    let (good, said) = run_selvage(&stage, &["undrain", "n1"]);
    assert!(good, "{said}");
    stage.until("taken back", |view| view.node_is("n1", "up")).await;
    let (good, said) = run_selvage(&stage, &["drain", "n7"]);
    assert!(!good && said.contains("n7"), "{said}");
    let (good, said) = run_selvage(&stage, &["weight", "n1", "0", "--json"]);
    assert!(good && said.contains("\"weight\": 0"), "{said}");
    let (good, said) = run_selvage(&stage, &["weight", "n1", "default"]);
    assert!(good && said.contains("n1"), "{said}");
    let config = stage.folder().unwrap().config();
    let (good, said) = run_selvage(&stage, &["check-config", config.to_str().unwrap()]);
    assert!(good && said.contains("server s2") && said.contains("/dev/shm"), "{said}");
    let (good, said) = run_selvage(&stage, &["completions", "bash"]);
    assert!(good && said.contains("sessions") && said.contains("check-config"), "{said}");
    stage.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_seen_and_killed_one_by_one() {
    let stage = Stage::new(2, 2, 2).await;
    let customers = customers(&stage, 12, 2).await;
    stage.until_protected(customers.len(), 2).await;
    let json = |arguments: &[&str]| -> Value {
        let (good, said) = run_selvage(&stage, &[arguments, &["--json"]].concat());
        assert!(good, "{said}");
        serde_json::from_str(&said).unwrap()
    };
    let page = json(&["sessions", "list", "--limit", "5"]);
    assert_eq!(page["sessions"].as_array().unwrap().len(), 5);
    let rest = json(&["sessions", "list", "--cursor", page["next"].as_str().unwrap()]);
    assert_eq!((rest["sessions"].as_array().unwrap().len(), &rest["next"]), (7, &Value::Null));
    let row = &rest["sessions"][6];
    assert_eq!((row["copies"].as_u64(), row["owner"].as_str()), (Some(2), None));
    let id = customers[0].cookie.text.split('-').next().unwrap();
    let shown = json(&["sessions", "show", id]);
    assert!(shown["attributes"].as_array().unwrap().iter().all(|attribute| attribute["value"].is_null()));
    let shown = json(&["sessions", "show", id, "--values"]);
    assert!(shown["attributes"].as_array().unwrap().iter().any(|attribute| !attribute["value"].is_null()));
    assert_eq!(json(&["sessions", "kill", id, "--yes"]), json!({ "destroyed": 1 }));
    assert_eq!(json(&["sessions", "kill", id, "--yes"]), json!({ "destroyed": 0 }));
    let (good, said) = run_selvage(&stage, &["sessions", "show", id]);
    assert!(!good && said.contains("no node hosts"), "{said}");
    all_find_all(&stage, &customers[1..]).await;
    assert_eq!(json(&["sessions", "list", "--all"])["sessions"].as_array().unwrap().len(), 11);
    stage.end_untouched();
}

#[tokio::test(flavor = "multi_thread")]
async fn top_shows_rates_on_a_terminal_and_without() {
    let stage = Stage::new(2, 1, 1).await;
    let customers = customers(&stage, 10, 1).await;
    stage.until_protected(customers.len(), 1).await;
    let top = ["top", "--batch", "-n", "2", "--interval", "0.3"];
    let (good, said) = run_selvage(&stage, &top);
    assert!(good && said.matches("NODE").count() == 2, "{said}");
    for word in ["10 sessions", "n1-s1 shm", "n2-s1 shm", "requests/s"] {
        assert!(said.contains(word), "no {word} in {said}");
    }
    // Rates are of what happens while it looks.
    let (good, said) = std::thread::scope(|scope| {
        let seen = scope.spawn(|| run_selvage(&stage, &["top", "--json", "-bn", "3", "-i", "0.5"]));
        let visits = async {
            while !seen.is_finished() {
                all_find_all(&stage, &customers).await;
            }
        };
        tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(visits));
        seen.join().unwrap()
    });
    assert!(good, "{said}");
    let pictures: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(pictures.len(), 3);
    let some = |picture: &Value| picture["requests_per_s"].as_f64().unwrap() > 0.0;
    assert!(pictures.iter().any(some), "{said}");

    // A real terminal: util-linux's script gives it one, and "q" ends it.
    let (tool, config) = (stage.product().operator_tool(), stage.folder().unwrap().config());
    let live = format!("stty cols 100 rows 30; {} top -i 0.2 --config {}", tool.display(), config.display());
    let mut script = Command::new("script")
        .args(["-qec", &live, "/dev/null"])
        .env("TERM", "xterm")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut keys = script.stdin.take().unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    keys.write_all(b"q").unwrap();
    let output = script.wait_with_output().unwrap();
    let seen = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{seen}");
    for word in ["requests/s", "n1", "quits", "\u{1b}[?1049h", "\u{1b}[?1049l"] {
        assert!(seen.contains(word), "no {word:?} in {seen:?}");
    }
    stage.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_api_shows_processes_and_metrics() {
    let stage = Stage::new(2, 2, 1).await;
    let customers = customers(&stage, 20, 1).await;
    let view = stage.until_protected(customers.len(), 1).await;
    for name in ["n1", "n2"] {
        let process = stage.process(name).unwrap();
        let mut workers = process.pids();
        workers.retain(|pid| *pid != process.pid());
        let mut shown = view.node(name).unwrap().pids.clone();
        shown.sort_unstable();
        assert_eq!(shown, workers, "{name}");
    }
    for name in ["s1", "s2"] {
        let server = view.server(name).unwrap();
        assert_eq!(server.pid, stage.process(name).unwrap().pid());
        assert!(server.bytes >= 2 * stage.config().memory.lease_bytes, "two leases: {server:?}");
    }
    let mut admin = stage.admin();
    for (metric, value) in [
        ("selvage_cluster_nodes_up", 2.0),
        ("selvage_cluster_servers_up", 2.0),
        ("selvage_cluster_takeovers_open", 0.0),
    ] {
        assert_eq!(admin.metric(metric).await.unwrap(), Some(value), "{metric}");
    }
    for (method, path, status) in [
        (Method::GET, "/nothing", StatusCode::NOT_FOUND),
        (Method::POST, "/admin/view", StatusCode::METHOD_NOT_ALLOWED),
        (Method::POST, "/admin/nodes/n9/drain", StatusCode::NOT_FOUND),
    ] {
        assert_eq!(admin.send(method, path).await.unwrap().status, status, "{path}");
    }
    stage.end_untouched();
}
