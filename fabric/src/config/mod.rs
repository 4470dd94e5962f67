//! The one TOML file that configures all parts. Unknown keys and bad values are errors with file, line and
//! key.

mod check;
mod director;
mod front;

use self::check::{Check, File, invalid};
pub use self::director::Director;
pub use self::front::{AccessLogFormat, Certificate, FrontTls, Health};
use crate::error::{Error, Origin, Result};
use crate::ident::CookieKey;
use crate::limits;
use data_encoding::HEXLOWER_PERMISSIVE;
use serde::Deserialize;
use serde::de::Error as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the configuration is looked for when neither an argument nor `SELVAGE_CONFIG` names it.
pub const DEFAULT_PATH: &str = "/etc/selvage/selvage.toml";

/// The whole configuration, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file it came from.
    pub path: PathBuf,
    /// `[cluster]`
    pub cluster: Cluster,
    /// `[director]`
    pub director: Director,
    /// `[session]`
    pub session: Session,
    /// `[timing]`
    pub timing: Timing,
    /// `[memory]`
    pub memory: Memory,
    /// `[tls]`; needed as soon as anything has a `control` address
    pub tls: Option<Tls>,
    /// `[rdma]`
    pub rdma: Rdma,
    /// `[[server]]`, sorted by name
    pub servers: Vec<Server>,
    /// `[[node]]`, sorted by name
    pub nodes: Vec<Node>,
}

/// Ways to reach a lease.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TransportKind {
    /// Shared memory on one host.
    Shm,
    /// RDMA, reliable connections.
    Verbs,
    /// The deterministic simulation; cannot be configured.
    #[serde(skip_deserializing)]
    Sim,
}

/// What all parts share.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// Name of the cluster; part of the names of shared-memory segments.
    pub name: String,
    /// Folder of sockets and lock files, absolute.
    pub run_dir: PathBuf,
    /// Copies of each session, 1 or 2.
    #[serde(default = "default_copies")]
    pub copies: u32,
    /// Keys of the cookies' mac, 64 hexadecimal digits each; the first signs, all verify.
    #[serde(deserialize_with = "cookie_keys")]
    pub cookie_keys: Vec<CookieKey>,
    /// Users that may act as director or operator, beside root and the server's own user.
    #[serde(default)]
    pub operator_uids: Vec<u32>,
    /// The one transport to use between nodes and servers; automatic without it.
    #[serde(default)]
    pub transport: Option<TransportKind>,
}

/// Sessions and their cookie.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Session {
    /// Name of the cookie.
    pub cookie_name: String,
    /// Whether the cookie carries `Secure`.
    pub cookie_secure: bool,
    /// Idle lifetime, s.
    pub idle_s: u64,
    /// Absolute lifetime, s.
    pub absolute_s: u64,
    /// Share of the idle lifetime by which the expiry must move before a touch is pushed.
    pub touch_share: f64,
    /// Largest archive of a session, bytes.
    pub archive_bytes_max: usize,
    /// Requests that may wait for one session.
    pub waiters_max: u32,
    /// Longest wait for a lock or a fetch, ms.
    pub wait_ms: u64,
    /// Longest time that one request may hold a session's lock, ms.
    pub lock_hold_ms: u64,
    /// Clock skew that servers allow before they sweep, ms.
    pub clock_skew_ms: u64,
    /// How long the old id of a session that was given a new one can still be read, at its host, ms.
    pub regenerate_grace_ms: u64,
}

/// Heartbeats.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timing {
    /// Interval of heartbeats, ms.
    pub heartbeat_ms: u64,
    /// Life of a mandate, ms.
    pub mandate_ms: u64,
    /// Silence after which a node or server is declared down, ms.
    pub silence_ms: u64,
    /// Most sessions a steward copies or adopts per second in the background; 0 is no limit.
    pub recopy_per_s: u64,
}

/// Sizes of caches and leases.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Memory {
    /// Most sessions of a node: entries of its cache and slots of each of its leases.
    pub sessions_max: u32,
    /// Heap of a node's cache, bytes.
    pub cache_bytes: u64,
    /// Heap of each lease, bytes.
    pub lease_bytes: u64,
    /// Memory of all leases of a server together, bytes; 0 is no limit but the machine's.
    pub server_bytes_max: u64,
    /// Ask for huge pages for leases, where the machine has them.
    pub huge_pages: bool,
    /// Put leases and the server's threads on the NUMA node of the RDMA device, where there are several.
    pub numa: bool,
}

/// Certificates of the control connections between hosts.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// Folder with `ca.pem` and, for each member that runs on this host, `<member>.pem` and `<member>.key`,
    /// as `selvage ca` makes them; absolute.
    pub dir: PathBuf,
}

/// Choice of the RDMA device, and what its connections are given.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rdma {
    /// Whether RDMA is tried at all.
    pub enabled: bool,
    /// The device's name, such as `mlx5_0`; automatic without it.
    pub device: Option<String>,
    /// The device's port, from 1; automatic without it.
    pub port: Option<u8>,
    /// The port's GID index; automatic without it.
    pub gid_index: Option<u8>,
    /// Traffic class of RoCE packets, for lossless queues.
    pub traffic_class: u8,
    /// Service level, 0 to 15.
    pub service_level: u8,
    /// Local ack timeout: 4.096 us x 2^this, 1 to 20.
    pub ack_timeout: u8,
    /// Retries before a connection fails, 1 to 6; 7 would mean for ever.
    pub retry_count: u8,
    /// Pushes of one process that can be under way at one server.
    pub queue_depth: u32,
}

/// A session server.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    /// Its name, unique.
    pub name: String,
    /// Weight in the placement, 1 to 1000.
    #[serde(default = "default_weight")]
    pub weight: u32,
    /// Where it listens for nodes and the director of other hosts; on this host's socket only without it.
    #[serde(default)]
    pub control: Option<SocketAddr>,
}

/// A web node.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Its name, unique.
    pub name: String,
    /// Where its web server listens.
    pub address: SocketAddr,
    /// Users whose processes may attach; empty: the user that runs the director or server.
    #[serde(default)]
    pub uids: Vec<u32>,
    /// Its share of new sessions, 0 to 1000; none with 0.
    #[serde(default = "default_node_weight")]
    pub weight: u32,
    /// Requests that may be under way at it at once; 0: no limit.
    #[serde(default)]
    pub maxconn: usize,
}

impl Config {
    /// Reads and checks a configuration file.
    ///
    /// # Errors
    /// `Os` if it cannot be read, `Invalid` with file, line and key if something in it is wrong.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            Error::os(Origin::Config, format!("cannot read the configuration {}", path.display()), error)
        })?;
        Self::parse(path, &text)
    }

    /// The path to use: the argument, else `SELVAGE_CONFIG`, else [`DEFAULT_PATH`].
    pub fn resolve_path(argument: Option<&Path>) -> PathBuf {
        match argument {
            Some(path) => path.to_owned(),
            None => std::env::var_os("SELVAGE_CONFIG").map_or_else(|| DEFAULT_PATH.into(), PathBuf::from),
        }
    }

    /// Checks the text of a configuration; `path` is for messages.
    ///
    /// # Errors
    /// `Invalid` with file, line and key.
    pub fn parse(path: &Path, text: &str) -> Result<Self> {
        let file: File = toml::from_str(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            invalid(path, text, at, error.message())
        })?;
        let check = Check { path, text };
        file.check(&check)
    }

    /// What is allowed and hardly meant.
    pub fn warnings(&self) -> Vec<String> {
        let open = self.director.tls.is_some() && !self.session.cookie_secure;
        let warning = "browsers reach the director by TLS, and `cookie_secure` in [session] is off: they \
                       send the session's cookie without TLS, too";
        open.then(|| warning.to_owned()).into_iter().collect()
    }

    /// The node with this name.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// The server with this name.
    pub fn server(&self, name: &str) -> Option<&Server> {
        self.servers.iter().find(|server| server.name == name)
    }

    /// The director's control socket.
    pub fn director_socket(&self) -> PathBuf {
        self.cluster.run_dir.join("director.sock")
    }

    /// A server's control socket.
    pub fn server_socket(&self, name: &str) -> PathBuf {
        self.cluster.run_dir.join(format!("server-{name}.sock"))
    }

    /// The folder of a node's lock file; its mode is 0700 and its owner the node's user.
    pub fn node_dir(&self, name: &str) -> PathBuf {
        self.cluster.run_dir.join(format!("node-{name}"))
    }

    /// Start of the names of all shared-memory segments of this cluster's instance. Contains a hash of the
    /// run folder, so that two clusters of the same name on one host do not meet.
    pub fn segment_prefix(&self) -> String {
        let hash = xxhash_rust::xxh3::xxh3_64(self.cluster.run_dir.as_os_str().as_encoded_bytes());
        format!("selvage-{}-{hash:016x}-", self.cluster.name)
    }
}

impl Timing {
    /// Interval of heartbeats.
    pub fn heartbeat(&self) -> Duration {
        Duration::from_millis(self.heartbeat_ms)
    }
    /// Life of a mandate.
    pub fn mandate(&self) -> Duration {
        Duration::from_millis(self.mandate_ms)
    }
    /// Silence after which a peer is declared down.
    pub fn silence(&self) -> Duration {
        Duration::from_millis(self.silence_ms)
    }
}

impl Default for Session {
    fn default() -> Self {
        Self {
            cookie_name: "selvage".into(),
            cookie_secure: false,
            idle_s: limits::IDLE.as_secs(),
            absolute_s: limits::ABSOLUTE.as_secs(),
            touch_share: limits::TOUCH_SHARE,
            archive_bytes_max: limits::ARCHIVE_BYTES_DEFAULT,
            waiters_max: limits::WAITERS_MAX,
            wait_ms: ms(limits::WAIT),
            lock_hold_ms: ms(limits::LOCK_HOLD),
            clock_skew_ms: ms(limits::CLOCK_SKEW),
            regenerate_grace_ms: 0,
        }
    }
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat_ms: ms(limits::HEARTBEAT),
            mandate_ms: ms(limits::MANDATE),
            silence_ms: ms(limits::SILENCE),
            recopy_per_s: 0,
        }
    }
}

impl Default for Rdma {
    fn default() -> Self {
        Self {
            enabled: true,
            device: None,
            port: None,
            gid_index: None,
            traffic_class: 0,
            service_level: 0,
            ack_timeout: limits::RDMA_ACK_TIMEOUT,
            retry_count: limits::RDMA_RETRY_COUNT,
            queue_depth: limits::RDMA_QUEUE_DEPTH,
        }
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            sessions_max: limits::SESSIONS_DEFAULT,
            cache_bytes: limits::CACHE_BYTES_DEFAULT,
            lease_bytes: limits::CACHE_BYTES_DEFAULT,
            server_bytes_max: 0,
            huge_pages: true,
            numa: true,
        }
    }
}

fn cookie_keys<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<CookieKey>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    if texts.is_empty() {
        return Err(D::Error::custom("`cookie_keys` needs at least one key"));
    }
    texts
        .iter()
        .map(|text| match HEXLOWER_PERMISSIVE.decode(text.as_bytes()) {
            Ok(bytes) if bytes.len() == 32 => Ok(CookieKey(bytes)),
            _ => Err(D::Error::custom("each of `cookie_keys` must be 64 hexadecimal digits")),
        })
        .collect()
}

fn ms(duration: Duration) -> u64 {
    duration.as_millis() as u64
}

fn default_copies() -> u32 {
    2
}

fn default_weight() -> u32 {
    1
}

fn default_node_weight() -> u32 {
    limits::NODE_WEIGHT
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
[cluster]
name = "demo"
run_dir = "/run/selvage"
cookie_keys = ["0000000000000000000000000000000000000000000000000000000000000001"]

[director]
listen = "127.0.0.1:8080"

[session]
idle_s = 60

[[server]]
name = "s1"

[[node]]
name = "n1"
address = "127.0.0.1:9001"
uids = [33]
"#;

    fn error_of(text: &str) -> String {
        Config::parse(Path::new("x.toml"), text).unwrap_err().to_string()
    }

    #[test]
    fn a_good_file() {
        let config = Config::parse(Path::new("x.toml"), GOOD).unwrap();
        assert_eq!(config.cluster.copies, 2);
        assert_eq!(config.session.idle_s, 60);
        assert_eq!(config.node("n1").unwrap().uids, [33]);
    }

    #[test]
    fn bad_files_name_file_line_and_key() {
        assert!(error_of(&GOOD.replace("idle_s", "idel_s")).starts_with("x.toml:11: unknown field `idel_s`"));
        assert!(
            error_of(&GOOD.replace("= 60", "= 0")).starts_with("x.toml:11: `idle_s`: 0 is not within 1 to")
        );
        assert!(error_of(&GOOD.replace("= 60", "= \"x\"")).starts_with("x.toml:11: "));
        assert!(error_of(&GOOD.replace("0001\"", "001\"")).contains("x.toml:5: "));
        assert!(error_of(&GOOD.replace("\"n1\"", "\"N 1\"")).starts_with("x.toml:17: `name`: \"N 1\""));
        assert!(error_of("[cluster\n").starts_with("x.toml:1: "));
    }

    #[test]
    fn limits_of_the_director_have_ranges() {
        let director = |line: &str| GOOD.replace("listen =", &format!("{line}\nlisten ="));
        let config = Config::parse(Path::new("x.toml"), &director("head_timeout_ms = 7")).unwrap();
        assert_eq!((config.director.head_timeout_ms, config.director.headers_max), (7, 100));
        for (line, why) in [
            ("headers_max = 0", "`headers_max`: 0 is not within 1 to 1000"),
            ("header_bytes_max = 100", "`header_bytes_max`: 100 is not within 1024 to 262144"),
            ("uri_bytes_max = 40000", "`uri_bytes_max`: 40000 does not fit into header_bytes_max, 32768"),
            ("idle_timeout_ms = 0", "`idle_timeout_ms`: 0 is not within 1 to 86400000"),
            ("queue_timeout_ms = 0", "`queue_timeout_ms`: 0 is not within 1 to 600000"),
        ] {
            let error = error_of(&director(line));
            assert!(error.starts_with(&format!("x.toml:8: {why}")), "{error}");
        }
        let error = error_of(&GOOD.replace("uids =", "maxconn = 99999999\nuids ="));
        assert!(error.starts_with("x.toml:19: `maxconn`: 99999999 is not within 0 to"), "{error}");
    }

    #[test]
    fn addresses_for_other_hosts_need_certificates_and_must_be_reachable() {
        let tls = "\n[tls]\ndir = \"/etc/selvage/tls\"\n\n[[server]]";
        let far = GOOD
            .replacen("\n[[server]]", tls, 1)
            .replace("\"s1\"", "\"s1\"\ncontrol = \"10.0.0.2:7420\"")
            .replace("listen =", "control = \"10.0.0.1:7410\"\nlisten =");
        let config = Config::parse(Path::new("x.toml"), &far).unwrap();
        assert_eq!(config.servers[0].control.unwrap().port(), 7420);
        assert_eq!(config.director.control.unwrap().port(), 7410);

        let without = far.replace(tls, "\n[[server]]");
        assert!(error_of(&without).contains("`control`: an address for other hosts needs certificates"));
        assert!(
            error_of(&far.replace("/etc/selvage/tls", "tls")).contains("`dir`: must be an absolute path")
        );
        for (from, to, expected) in [
            (
                "10.0.0.2:7420",
                "0.0.0.0:7420",
                "x.toml:19: `control`: other hosts cannot connect to 0.0.0.0:7420",
            ),
            ("10.0.0.1:7410", "[::]:7410", "x.toml:8: `control`: other hosts cannot connect to [::]:7410"),
            ("10.0.0.2:7420", "10.0.0.2:0", "cannot connect to 10.0.0.2:0"),
            ("10.0.0.1:7410", "10.0.0.2:7420", "`control`: server \"s1\" listens on 10.0.0.2:7420, too"),
            ("10.0.0.2:7420", "s1.example", "x.toml:19: "),
            ("\"s1\"", "\"s1-\"", "x.toml:18: `name`: \"s1-\" begins or ends with -"),
            ("\"demo\"", "\"-demo\"", "x.toml:3: `name`: \"-demo\" begins or ends with -"),
            ("\"n1\"", "\"-n1\"", "`name`: \"-n1\" begins or ends with -"),
        ] {
            let error = error_of(&far.replace(from, to));
            assert!(error.contains(expected), "{to}: {error}");
        }
        // On one host such names are as good as others.
        assert!(Config::parse(Path::new("x.toml"), &GOOD.replace("\"s1\"", "\"s1-\"")).is_ok());
    }
}
