//! A real cluster: a director, two session servers, and nodes n1 and n2 whose processes a test starts itself.
//!
//! Everything lies in one temporary folder and ends with the value.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use selvage_fabric::config::Config;

/// Timing with which nobody is declared dead soon.
const PATIENT: &str = "[timing]\nheartbeat_ms = 500\nmandate_ms = 10000\nsilence_ms = 20000\n";

/// A running cluster.
pub struct Cluster {
    dir: tempfile::TempDir,
    config: Config,
    processes: Vec<Child>,
    /// Groups of daemons, which nobody is the parent of.
    groups: Vec<u32>,
}

/// The folder of the daemons: `SELVAGE_BIN_DIR`, or else built now, beside this test.
fn daemons() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT
        .get_or_init(|| {
            if let Some(dir) = std::env::var_os("SELVAGE_BIN_DIR") {
                return dir.into();
            }
            let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
            let mut profile = super::library_dir();
            profile.pop();
            let mut build = Command::new(cargo);
            build.current_dir(super::repo()).args(["build", "--quiet", "-p", "selvage-session-server"]);
            build.args(["-p", "selvage-director", "--bins"]);
            if profile.ends_with("release") {
                build.arg("--release");
            }
            assert!(build.status().expect("cargo can be started").success(), "the daemons cannot be built");
            profile
        })
        .clone()
}

/// An address that nobody has: below the ports that the kernel gives to connections, of which tests that run
/// beside this one make thousands, and far from those of other processes.
fn free_address() -> String {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let own = std::process::id().wrapping_mul(61) % 20_000;
    loop {
        let offset = u32::from(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = 12_000 + (own + offset) % 20_000;
        let address = format!("127.0.0.1:{port}");
        if TcpListener::bind(&address).is_ok() {
            return address;
        }
    }
}

impl Cluster {
    /// Starts one and waits until its director can be reached.
    pub fn start() -> Self {
        Self::start_with("", "")
    }

    /// A patient one with more keys in the section `[session]` of the configuration.
    pub fn start_sessions(keys: &str) -> Self {
        Self::start_with(keys, PATIENT)
    }

    /// The same for programs that run many times slower than they should: nobody is declared dead soon.
    pub fn start_patient() -> Self {
        Self::start_with("", PATIENT)
    }

    fn start_with(session: &str, more: &str) -> Self {
        let dir = super::scratch();
        let run_dir = dir.path().join("run");
        std::fs::create_dir(&run_dir).expect("the run folder");
        let path = dir.path().join("selvage.toml");
        let text = format!(
            "[cluster]\nname = \"ffi\"\nrun_dir = \"{run_dir}\"\ncookie_keys = [\"{key}\"]\n\
             [director]\nlisten = \"{}\"\nadmin_listen = \"{}\"\n\
             [session]\narchive_bytes_max = 262144\n{session}\n\
             [memory]\nsessions_max = 4096\ncache_bytes = 16777216\nlease_bytes = 16777216\n\
             {more}[[server]]\nname = \"s1\"\n[[server]]\nname = \"s2\"\n\
             [[node]]\nname = \"n1\"\naddress = \"{}\"\n[[node]]\nname = \"n2\"\naddress = \"{}\"\n",
            free_address(),
            free_address(),
            free_address(),
            free_address(),
            run_dir = run_dir.display(),
            key = "5a".repeat(32),
        );
        std::fs::write(&path, text).expect("the configuration");
        let config = Config::load(&path).expect("a good configuration");
        let mut cluster = Self { dir, config, processes: Vec::new(), groups: Vec::new() };
        for server in ["s1", "s2"] {
            cluster.run(&format!("server-{server}"), "selvage-server", &["--name", server]);
        }
        cluster.run("director", "selvage-director", &[]);
        cluster
    }

    /// The configuration file.
    pub fn config_path(&self) -> PathBuf {
        self.dir.path().join("selvage.toml")
    }

    /// Where a node's web server listens.
    pub fn address(&self, node: &str) -> SocketAddr {
        self.config.node(node).expect("a node of the configuration").address
    }

    /// Where browsers come in.
    pub fn director(&self) -> SocketAddr {
        self.config.director.listen
    }

    /// The folder of everything.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Gives a process that leads a group of its own to the cluster, to be ended with it.
    pub fn keep(&mut self, process: Child) {
        self.processes.push(process);
    }

    /// Gives a daemon that leads a group to the cluster, to be ended with it.
    pub fn keep_group(&mut self, leader: u32) {
        self.groups.push(leader);
    }

    /// The process that was given last.
    pub fn last_pid(&self) -> u32 {
        self.processes.last().expect("a process").id()
    }

    /// Sends a signal to the process that was given last.
    pub fn signal_last(&mut self, signal: &str) -> &mut Child {
        let last = self.processes.last_mut().expect("a process");
        super::Tool::find("kill", "apt-get install procps")
            .arg(format!("-{signal}"))
            .arg(last.id().to_string())
            .succeed();
        last
    }

    /// Starts a daemon and waits for its socket, `<name>.sock`.
    fn run(&mut self, name: &str, program: &str, arguments: &[&str]) {
        let log = std::fs::File::create(self.dir.path().join(format!("{name}.log"))).expect("a log");
        let child = Command::new(daemons().join(program))
            .arg("--config")
            .arg(self.config_path())
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("{program} in {}: {error}", daemons().display()));
        self.processes.push(child);
        let socket = self.config.cluster.run_dir.join(format!("{name}.sock"));
        let end = Instant::now() + Duration::from_secs(10);
        while !socket.exists() {
            assert!(Instant::now() < end, "{name} did not come up:\n{}", self.logs());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What the daemons have said.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        for entry in std::fs::read_dir(self.dir.path()).expect("the folder").flatten() {
            if entry.path().extension().is_some_and(|extension| extension == "log") {
                let log = std::fs::read_to_string(entry.path()).unwrap_or_default();
                text += &format!("--- {}\n{log}", entry.file_name().display());
            }
        }
        text
    }

    /// Names of the cluster's segments that exist.
    pub fn segments(&self) -> Vec<String> {
        let prefix = self.config.segment_prefix();
        let names = std::fs::read_dir(Path::new("/dev/shm")).expect("/dev/shm").flatten();
        let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.starts_with(prefix.trim_start_matches('/'))).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        // The last started first: web servers, then the director, then the session servers. Each leads a
        // group of its own, so that the workers of an nginx end with it.
        let end = |group: u32| {
            let group = format!("-{group}");
            let _ = Command::new("kill").args(["-9", "--", &group]).stderr(Stdio::null()).status();
        };
        self.groups.iter().copied().for_each(end);
        for child in self.processes.iter_mut().rev() {
            end(child.id());
            let _ = child.kill();
            let _ = child.wait();
        }
        for name in self.segments() {
            let _ = std::fs::remove_file(Path::new("/dev/shm").join(name));
        }
    }
}
