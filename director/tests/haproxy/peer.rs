//! The two proxies: HAProxy as a child process, the director in this one.

use crate::TIMEOUT_MS;
use selvage_director::access_log::AccessLog;
use selvage_director::metrics::Metrics;
use selvage_director::proxy::client::Client;
use selvage_director::proxy::listen::{Front, Stop, connection};
use selvage_director::proxy::phases::Proxy;
use selvage_director::proxy::routes::Routes;
use selvage_director::proxy::visits::Visits;
use selvage_fabric::config::Config;
use selvage_fabric::ident::{Epoch, Incarnation};
use selvage_fabric::view::{NodeEntry, NodeState, View};
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::DuplexStream;

/// A running HAProxy with one front and one web server for each row; it ends with this value.
pub struct Haproxy {
    child: Child,
    folder: PathBuf,
}

impl Haproxy {
    /// Starts it and waits until all its fronts are there.
    pub async fn start(folder: &Path, webs: impl Iterator<Item = SocketAddr>) -> Self {
        let mut config = format!(
            "global\n  maxconn 1000\ndefaults\n  mode http\n  timeout connect 20s\n  timeout server 6s\n  \
             timeout client {TIMEOUT_MS}ms\n  timeout http-request {TIMEOUT_MS}ms\n  \
             timeout http-keep-alive {TIMEOUT_MS}ms\n  timeout tunnel {TIMEOUT_MS}ms\n"
        );
        let mut rows = 0;
        for web in webs {
            let socket = socket(folder, rows);
            let _ = write!(
                config,
                "frontend f{rows}\n  bind unix@{}\n  default_backend b{rows}\nbackend b{rows}\n  server s \
                 {web}\n",
                socket.display()
            );
            rows += 1;
        }
        let path = folder.join("haproxy.cfg");
        std::fs::write(&path, config).unwrap();
        let log = std::fs::File::create(folder.join("haproxy.log")).unwrap();
        let mut command = Command::new("haproxy");
        command.arg("-db").arg("-f").arg(&path).stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let child = command.spawn().expect("haproxy is installed: apt-get install haproxy");
        let mut haproxy = Self { child, folder: folder.to_owned() };
        for _ in 0..400 {
            if tokio::net::UnixStream::connect(haproxy.socket(rows - 1)).await.is_ok() {
                return haproxy;
            }
            let log = || std::fs::read_to_string(folder.join("haproxy.log")).unwrap_or_default();
            assert!(haproxy.child.try_wait().unwrap().is_none(), "haproxy has ended: {}", log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("haproxy does not listen");
    }

    /// The front of a row.
    pub fn socket(&self, row: usize) -> PathBuf {
        socket(&self.folder, row)
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn socket(folder: &Path, row: usize) -> PathBuf {
    folder.join(format!("f{row}"))
}

/// A director for one row.
pub struct DirectorRow(Arc<Front>);

impl DirectorRow {
    /// Before this web server.
    pub fn start(web: SocketAddr) -> Self {
        let key = "11".repeat(32);
        let text = format!(
            "[cluster]\nname = \"t\"\nrun_dir = \"/run/t\"\ncookie_keys = [\"{key}\"]\n[director]\n\
             head_timeout_ms = {TIMEOUT_MS}\nbody_timeout_ms = {TIMEOUT_MS}\n\
             keepalive_timeout_ms = {TIMEOUT_MS}\ntunnel_timeout_ms = {TIMEOUT_MS}\n\
             header_bytes_max = 16384\nuri_bytes_max = 16000\n\
             [[server]]\nname = \"s1\"\n[[node]]\nname = \"n1\"\naddress = \"{web}\"\n"
        );
        let config = Config::parse(Path::new("t.toml"), &text).unwrap();
        let routes = Arc::new(Routes::default());
        let proxy = Proxy::new(&config, Arc::clone(&routes), Arc::new(Metrics::default()));
        let node = NodeEntry {
            name: "n1".into(),
            incarnation: Incarnation(1),
            state: NodeState::Up,
            address: web.to_string(),
        };
        let epoch = Epoch { term: 1, number: 1 };
        routes.publish(&Arc::new(View { epoch, copies: 1, nodes: vec![node], ..View::default() }), &[]);
        Self(Front::new(proxy, AccessLog::off(), Stop::default()))
    }

    /// A browser's end of a connection.
    pub fn connect(&self) -> DuplexStream {
        let (browser, stream) = tokio::io::duplex(1 << 20);
        let client = Client::new(IpAddr::V4(Ipv4Addr::LOCALHOST), None);
        tokio::spawn(connection(&self.0, stream, client, &Visits::default()));
        browser
    }
}
