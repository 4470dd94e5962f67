//! docs/operating.md: its sizes are those that the product takes, and its commands run.

use selvage_fabric::cache::{CacheSpec, chunk_bytes};
use selvage_fabric::config::Config;
use selvage_fabric::ident::Incarnation;
use selvage_fabric::lease::LeaseGeometry;
use selvage_tests::product::workspace_root;
use selvage_tests::stage::{Stage, customers};
use std::fs;
use std::path::Path;
use std::process::Command;

fn page() -> String {
    fs::read_to_string(workspace_root().join("docs/operating.md")).unwrap()
}

/// A configuration with these sizes.
fn config(sessions: u64, cache_mib: u64, lease_mib: u64, servers: u64) -> Config {
    let servers: String = (1..=servers).map(|at| format!("[[server]]\nname = \"s{at}\"\n")).collect();
    let text = format!(
        "[cluster]\nname = \"t\"\nrun_dir = \"/tmp/t\"\ncookie_keys = [\"{key}\"]\n\
         [director]\n\
         [memory]\nsessions_max = {sessions}\ncache_bytes = {cache}\nlease_bytes = {lease}\n{servers}\
         [[node]]\nname = \"n1\"\naddress = \"127.0.0.1:80\"\n",
        key = "1f".repeat(32),
        cache = cache_mib << 20,
        lease = lease_mib << 20,
    );
    Config::parse(Path::new("selvage.toml"), &text).unwrap()
}

#[test]
fn sizes_are_what_the_product_takes() {
    let page = page();
    let mut rows = 0;
    for line in page.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<u64> = line.split('|').filter_map(|cell| cell.trim().parse().ok()).collect();
        let [sessions, cache_mib, lease_mib, servers, segment_mib, whole_lease_mib] = cells[..] else {
            continue;
        };
        let config = config(sessions, cache_mib, lease_mib, servers);
        let segment = CacheSpec::from_config(&config, "n1", Incarnation(1)).segment_bytes().unwrap();
        let geometry = LeaseGeometry {
            slot_count: config.memory.sessions_max,
            heap_bytes: config.memory.lease_bytes,
            chunk_bytes: chunk_bytes(config.session.archive_bytes_max),
        };
        let whole = geometry.total_bytes();
        assert_eq!((segment >> 20, whole >> 20), (segment_mib, whole_lease_mib), "{line}");
        // The formulas of the page.
        let (cache, lease) = (config.memory.cache_bytes, config.memory.lease_bytes);
        let said =
            cache * 65 / 64 + sessions * (330 + 72 * servers) + servers * (lease / 32 + 131_072) + 6_000_000;
        let off = (said as f64 / segment as f64 - 1.0).abs();
        assert!(off < 0.02, "{line}: the formula says {said}, it takes {segment}");
        assert_eq!(lease + sessions * 128 + 4096, whole, "{line}");
        rows += 1;
    }
    assert!(rows >= 4, "only {rows} rows");
}

/// Commands of `console` blocks, in their order.
fn commands(page: &str) -> Vec<&str> {
    let blocks = page.split("```console\n").skip(1).map(|block| block.split("```").next().unwrap());
    blocks.flat_map(|block| block.lines().filter_map(|line| line.strip_prefix("$ "))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_run() {
    let stage = Stage::new(2, 2, 1).await;
    let customers = customers(&stage, 4, 1).await;
    stage.until_protected(customers.len(), 1).await;
    let page = page();
    let commands = commands(&page);
    assert!(commands.len() >= 8, "{commands:?}");
    let tools = stage.product().operator_tool();
    let path = format!("{}:{}", tools.parent().unwrap().display(), std::env::var("PATH").unwrap());
    for command in commands {
        // As a shell of the operator would run it.
        let output = Command::new("bash")
            .args(["-o", "pipefail", "-c", command])
            .env("PATH", &path)
            .env("SELVAGE_CONFIG", stage.folder().unwrap().config())
            .env("ADMIN", stage.admin_address().to_string())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "$ {command}\n{said}");
        assert!(!said.contains("error"), "$ {command}\n{said}");
    }
    stage.until("n1 is back", |view| view.node_is("n1", "up")).await;
    stage.end();
}

/// Whatever the page names must be there: settings, metrics and alerts.
#[test]
fn alerts_and_metrics_of_the_page_exist() {
    let page = page();
    let alerts = fs::read_to_string(workspace_root().join("docs/grafana/alerts.yml")).unwrap();
    let metrics = fs::read_to_string(workspace_root().join("docs/metrics.md")).unwrap();
    let words = page.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    let mut found = 0;
    for word in words {
        let suffixes = ["_total", "_bucket", "_count", "_sum", ""];
        let is_known = |name: &str| metrics.contains(&format!("| `{name}` |"));
        if word.starts_with("Selvage") && word.len() > 7 {
            assert!(alerts.contains(&format!("- alert: {word}\n")), "there is no alert {word}");
            found += 1;
        } else if ["selvage_node_", "selvage_server_", "selvage_cluster_", "selvage_director_"]
            .iter()
            .any(|part| word.starts_with(part))
        {
            let known = suffixes.iter().filter_map(|suffix| word.strip_suffix(suffix)).any(is_known);
            assert!(known, "there is no metric {word}");
            found += 1;
        }
    }
    assert!(found > 25, "only {found} names were looked at");
}
