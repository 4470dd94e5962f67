//! The numbers that an operator sees: the page of a cluster with a past is OpenMetrics, is documented, and is
//! all that the dashboard and the alerts ask for. And what he does not see: secrets in logs.

use http::Method;
use selvage_tests::cluster::Options;
use selvage_tests::openmetrics::{self, Family};
use selvage_tests::product::workspace_root;
use selvage_tests::stage::{Stage, all_find_all, customers, options};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

type Families = BTreeMap<String, Family>;

/// The page of a cluster in which sessions were created, changed and taken over.
async fn families() -> Families {
    let mut stage = Stage::new(2, 2, 2).await;
    let customers = customers(&stage, 30, 2).await;
    let dead = stage.incarnation("n1").await;
    stage.kill("n1").unwrap();
    // Requests come while it is taken over, and wait for their sessions.
    let customers = all_find_all(&stage, &customers).await;
    stage.until_taken_over(dead, customers.len(), 2).await;
    stage.restart(&["n1"]).await;
    let mut admin = stage.admin();
    let whole = |families: &Families| {
        let n2 = |name: &str, suffix: &str| families[name].sum(suffix, &[("node", "n2")]);
        let adopted = n2("selvage_node_adopted_sessions", "_total");
        // What comes once a second has come, too, from both nodes and both servers.
        adopted > 0.0
            && n2("selvage_node_commit_duration_seconds", "_count") > 0.0
            && families["selvage_node_lease_slots"].sum("", &[("node", "n1")]) > 0.0
            && families["selvage_server_seal_duration_seconds"].sum("_count", &[]) >= 2.0
    };
    let begun = std::time::Instant::now();
    let families = loop {
        let page = admin.send(Method::GET, "/metrics").await.unwrap().text();
        let families = openmetrics::read(&page).unwrap_or_else(|error| panic!("{error:#}\n{page}"));
        if whole(&families) {
            break families;
        }
        assert!(begun.elapsed() < selvage_tests::stage::SOON, "numbers are missing:\n{page}");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    };
    let node = |name: &str, labels: &[(&str, &str)]| families[name].sum("", labels);
    assert_eq!(node("selvage_node_sessions", &[("copies", "2")]), customers.len() as f64);
    assert_eq!(families["selvage_cluster_takeover_duration_seconds"].sum("_count", &[]), 1.0);
    assert_eq!(families["selvage_cluster_seal_duration_seconds"].sum("_count", &[]), 1.0);
    for server in ["s1", "s2"] {
        let of_server = [("server", server), ("node", "n2")];
        assert_eq!(node("selvage_node_lease_slots_used", &of_server), customers.len() as f64, "{server}");
        assert!(node("selvage_node_lease_used_bytes", &of_server) >= 256.0 * customers.len() as f64);
        let timed = [("server", server), ("transport", "shm")];
        assert!(families["selvage_node_push_duration_seconds"].sum("_count", &timed) > 0.0, "{server}");
    }
    let (answers, pushes) = (
        families["selvage_director_request_duration_seconds"].sum("_count", &[("class", "2xx")]),
        families["selvage_node_payload_pushes"].sum("_total", &[]),
    );
    assert!(answers >= 150.0 && pushes >= 60.0, "{answers} answers, {pushes} pushes");
    stage.end();
    families
}

/// Lines of the tables of docs/metrics.md: name, type, labels, unit.
fn documented() -> BTreeMap<String, [String; 3]> {
    let text = fs::read_to_string(workspace_root().join("docs/metrics.md")).unwrap();
    let mut lines = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [name, kind, labels, unit, meaning, ..] = cells[..] else { panic!("too few cells: {line}") };
        assert!(!meaning.is_empty(), "{line}");
        let plain = |cell: &str| cell.replace('`', "");
        let known = lines.insert(plain(name), [plain(kind), plain(labels), plain(unit)]);
        assert!(known.is_none(), "{name} is there twice");
    }
    lines
}

fn compare_with_documentation(families: &Families) {
    let documented = documented();
    let names = |of: Vec<&String>| of.into_iter().cloned().collect::<BTreeSet<String>>();
    assert_eq!(names(documented.keys().collect()), names(families.keys().collect()), "documented, exported");
    for (name, family) in families {
        let [kind, labels, unit] = &documented[name];
        assert_eq!((kind, unit), (&family.kind, &family.unit), "{name}");
        let labels: BTreeSet<String> =
            labels.split(", ").filter(|it| !it.is_empty()).map(Into::into).collect();
        if !family.labels.is_empty() {
            assert_eq!(labels, family.labels, "{name}");
        }
    }
}

/// Every name in a query that looks like one of a metric.
fn metrics_in(query: &str) -> impl Iterator<Item = &str> {
    let words = query.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    words.filter(|word| word.starts_with("selvage_") || word.starts_with("process_"))
}

fn all_exist(families: &Families, query: &str, place: &str) {
    let samples: BTreeSet<String> =
        families.iter().flat_map(|(name, family)| family.sample_names(name)).collect();
    let mut asked = metrics_in(query).peekable();
    assert!(asked.peek().is_some(), "{place}: a query of nothing: {query}");
    for name in asked {
        assert!(samples.contains(name), "{place}: nobody exports {name}");
    }
}

/// The dashboard can be imported, each panel says what is normal, and each query finds its metrics.
fn check_dashboard(families: &Families) {
    let path = workspace_root().join("docs/grafana/selvage.json");
    let dashboard: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    assert!(dashboard["schemaVersion"].as_u64().is_some_and(|version| version >= 36));
    assert!(dashboard["id"].is_null() && dashboard["uid"].is_string() && dashboard["title"].is_string());
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let names: Vec<&str> = variables.iter().map(|it| it["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["datasource", "node", "server"]);
    for variable in &variables[1..] {
        all_exist(families, variable["query"]["query"].as_str().unwrap(), "a variable");
    }
    let (mut rows, mut queries, mut ids, mut taken) = (Vec::new(), 0, BTreeSet::new(), BTreeSet::new());
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}: an id twice");
        let at = &panel["gridPos"];
        for x in at["x"].as_u64().unwrap()..at["x"].as_u64().unwrap() + at["w"].as_u64().unwrap() {
            for y in at["y"].as_u64().unwrap()..at["y"].as_u64().unwrap() + at["h"].as_u64().unwrap() {
                assert!(x < 24 && taken.insert((x, y)), "{title} lies over another panel");
            }
        }
        match panel["type"].as_str().unwrap() {
            "row" => rows.push(title.to_owned()),
            "text" => assert!(panel["options"]["content"].as_str().is_some_and(|text| text.len() > 80)),
            _ => {
                assert!(panel["description"].as_str().is_some_and(|text| text.len() > 40), "{title}");
                assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
                for target in panel["targets"].as_array().unwrap() {
                    all_exist(families, target["expr"].as_str().unwrap(), title);
                    queries += 1;
                }
            }
        }
    }
    let wanted = [
        "Protection",
        "Requests",
        "Commits",
        "Pushes",
        "Takeover",
        "Servers",
        "Caches and leases",
        "Director",
    ];
    assert_eq!(rows, wanted);
    assert!(queries >= 25, "{queries} queries");
}

/// Each alert has a query that finds its metrics, a severity, and words on what it means and what to do.
fn check_alerts(families: &Families) {
    let text = fs::read_to_string(workspace_root().join("docs/grafana/alerts.yml")).unwrap();
    let alerts: Vec<&str> = text.split("- alert: ").skip(1).collect();
    assert!(alerts.len() >= 12, "{} alerts", alerts.len());
    let mut names = BTreeSet::new();
    for alert in alerts {
        let name = alert.lines().next().unwrap();
        assert!(names.insert(name) && name.starts_with("Selvage"), "{name}");
        let field = |field: &str| {
            let line = alert.lines().find_map(|line| line.trim().strip_prefix(field));
            line.unwrap_or_else(|| panic!("{name} has no {field}")).trim()
        };
        all_exist(families, field("expr:"), name);
        assert!(["page", "ticket"].contains(&field("severity:")), "{name}");
        field("for:");
        assert!(field("summary:").len() > 10 && field("description:").len() > 40, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_numbers_are_whole_documented_and_shown() {
    let families = families().await;
    compare_with_documentation(&families);
    check_dashboard(&families);
    check_alerts(&families);
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_tell_no_secrets() {
    let mut stage =
        Stage::with(Options { nodes: 2, servers: 2, copies: 1, log: "trace".into(), ..options() }).await;
    let customers = customers(&stage, 6, 1).await;
    let dead = stage.incarnation("n1").await;
    stage.kill("n1").unwrap();
    let later = all_find_all(&stage, &customers).await;
    stage.until_taken_over(dead, customers.len(), 1).await;
    let mut secrets: Vec<String> = fs::read_to_string(stage.folder().unwrap().config())
        .unwrap()
        .lines()
        .filter_map(|line| line.strip_prefix("cookie_keys"))
        .flat_map(|keys| keys.split('"').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>())
        .collect();
    assert_eq!(secrets.len(), 1, "{secrets:?}");
    for customer in customers.iter().chain(&later) {
        // The end of a cookie is its signature.
        let cookie = &customer.cookie.text;
        secrets.push(cookie[cookie.len() - 16..].to_owned());
        secrets.push(String::from_utf8(customer.attributes["cart"].to_vec()).unwrap());
    }
    let mut lines = 0;
    for member in ["director", "s1", "s2", "n1", "n2"] {
        let log = stage.log(member);
        lines += log.lines().filter(|line| line.contains("DEBUG") || line.contains("TRACE")).count();
        for secret in &secrets {
            assert!(!log.contains(secret.as_str()), "{member} has written {secret} into its log");
        }
    }
    assert!(lines > 20, "only {lines} lines of detail were looked at");
    stage.end();
}
