//! What an operator does: the command `selvage`, the admin API, metrics.

use http::{Method, StatusCode};
use selvage_tests::stage::{Stage, all_find_all, customers};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

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

/// Runs `selvage` with the cluster's configuration; what it prints and whether it succeeded.
fn selvage(stage: &Stage, arguments: &[&str]) -> (bool, String) {
    let mut command = Command::new(stage.product().operator_tool());
    command.args(arguments);
    if arguments[0] != "check-config" {
        command.arg("--config").arg(stage.folder().unwrap().config());
    }
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_shows_and_drains() {
    let stage = Stage::new(2, 2, 2).await;
    let customers = customers(&stage, 30, 2).await;
    let view = stage.until_protected(customers.len(), 2).await;
    let (good, said) = selvage(&stage, &["status"]);
    assert!(good, "{said}");
    for word in ["n1", "n2", "s1", "s2", "up", "30", &view.epoch.to_string()] {
        assert!(said.contains(word), "no {word} in: {said}");
    }
    let (good, said) = selvage(&stage, &["drain", "n1"]);
    assert!(good, "{said}");
    let view = stage.until_protected(customers.len(), 2).await;
    assert!(view.node_is("n1", "drained"), "{view:?}");
    assert_eq!(view.node("n2").unwrap().sessions, 30);
    all_find_all(&stage, &customers).await;
    let (good, said) = selvage(&stage, &["undrain", "n1"]);
    assert!(good, "{said}");
    stage.until("taken back", |view| view.node_is("n1", "up")).await;
    let (good, said) = selvage(&stage, &["drain", "n7"]);
    assert!(!good && said.contains("n7"), "{said}");
    let config = stage.folder().unwrap().config();
    let (good, said) = selvage(&stage, &["check-config", config.to_str().unwrap()]);
    assert!(good, "{said}");
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
    for (metric, value) in [("selvage_nodes_up", 2.0), ("selvage_servers_up", 2.0), ("selvage_dead", 0.0)] {
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
