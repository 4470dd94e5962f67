//! Web nodes of a real cluster, each an nginx with two workers.

use std::cell::Cell;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::support::cluster::Cluster;
use crate::support::http::Browser;
use crate::support::{Tool, library_dir, repo};

thread_local! {
    /// Whether nginx is started with operations that never end at once.
    static LATE: Cell<bool> = const { Cell::new(false) };
}

/// A cluster and the nginx processes of its nodes.
pub struct Web {
    pub cluster: Cluster,
}

/// The module, built once for this program.
pub fn module() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT
        .get_or_init(|| {
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("nginx/build.sh");
            let out = library_dir().join("nginx-module");
            let said = Tool::at(&script).arg(&out).arg(library_dir()).succeed();
            PathBuf::from(said.trim())
        })
        .clone()
}

/// Runs a test with operations that never end at once; `tests/c/late.c` says how.
pub fn late(test: fn()) {
    LATE.set(true);
    test();
}

/// Builds what makes them late, in a folder.
fn delay(dir: &Path) -> PathBuf {
    let out = dir.join("late.so");
    Tool::find("cc", "apt-get install gcc")
        .args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"])
        .arg("-I")
        .arg(repo().join("include"))
        .arg("-o")
        .arg(&out)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/c/late.c"))
        .succeed();
    out
}

/// The packaged nginx.
pub fn nginx() -> &'static Path {
    let known = ["/usr/sbin/nginx", "/usr/bin/nginx", "/usr/local/sbin/nginx"].map(Path::new);
    known.into_iter().find(|path| path.is_file()).expect("nginx is missing: apt-get install nginx-light")
}

impl Web {
    /// Of a patient cluster: these tests are many, and load is no death.
    pub fn new() -> Self {
        Self::of(Cluster::start_patient())
    }

    pub fn of(cluster: Cluster) -> Self {
        Self { cluster }
    }

    /// The folder of a node's nginx.
    pub fn dir(&self, node: &str) -> PathBuf {
        self.cluster.dir().join(format!("nginx-{node}"))
    }

    /// Writes the configuration of a node's nginx; `server` stands in its server block, and its part before a
    /// line `---`, if there is one, in the http block. `{dir}` is the folder.
    pub fn configure(&self, node: &str, server: &str) -> PathBuf {
        let dir = self.dir(node);
        std::fs::create_dir_all(dir.join("page")).expect("a folder");
        std::fs::write(dir.join("page/index.html"), "<p>hello</p>\n").expect("the page");
        // Workers that stay the user that runs the test: the node's user, by the configuration's default.
        let uid = Tool::find("id", "apt-get install coreutils").arg("-u").succeed();
        let user = if uid.trim() == "0" { "user root root;" } else { "" };
        let server = server.replace("{dir}", &dir.display().to_string());
        let (http, server) = server.split_once("---\n").unwrap_or(("", &server));
        let text = format!(
            "load_module {module}; {user} worker_processes 2; daemon off;\n\
             pid {dir}/pid; error_log {dir}/error.log notice; worker_rlimit_nofile 16384;\n\
             events {{ worker_connections 4096; }}\n\
             http {{ access_log off; client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy;\n\
             fastcgi_temp_path {dir}/fastcgi; uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;\n\
             types {{ text/html html; }}\n\
             selvage {config} {node};\n\
             {http}\n\
             server {{ listen {address} backlog=4096; root {dir}/page; location = /up {{ return 200 up; }}\n\
             {server}\n}} }}\n",
            module = module().display(),
            dir = dir.display(),
            config = self.cluster.config_path().display(),
            address = self.cluster.address(node),
        );
        let path = dir.join("nginx.conf");
        std::fs::write(&path, text).expect("nginx.conf");
        path
    }

    /// Starts nginx as a node and waits until it has joined. Returns a browser that has been nowhere yet.
    pub fn serve(&mut self, node: &str, server: &str) -> Browser {
        let conf = self.prepare(node, server);
        let process = self.command(node, nginx()).arg("-c").arg(&conf).spawn().expect("nginx starts");
        self.cluster.keep(process);
        self.joined(node)
    }

    /// The same as a daemon, as a service manager does: only a daemon lets its binary be replaced. Returns
    /// its process as well.
    pub fn serve_daemon(&mut self, node: &str, server: &str) -> (Browser, u32) {
        let conf = self.prepare(node, server);
        let text = std::fs::read_to_string(&conf).expect("the configuration");
        std::fs::write(&conf, text.replace("daemon off;", "daemon on;")).expect("written");
        let status = self.command(node, nginx()).arg("-c").arg(&conf).status().expect("nginx starts");
        assert!(status.success(), "{status}");
        until("the daemon has written its pid", || self.pid(node).is_some());
        let master = self.pid(node).expect("a process id");
        self.cluster.keep_group(master);
        (self.joined(node), master)
    }

    /// The same as one process, worker and all, under Valgrind, which ends it with 99 if there is any error.
    pub fn serve_under_valgrind(&mut self, node: &str, server: &str) -> Browser {
        let conf = self.prepare(node, server);
        let text = std::fs::read_to_string(&conf).expect("the configuration");
        let text = text.replace("worker_processes 2;", "master_process off;");
        std::fs::write(&conf, text).expect("written");
        let mut valgrind = self.command(node, Path::new("valgrind"));
        valgrind.args(["--quiet", "--error-exitcode=99", "--leak-check=full"]);
        valgrind.args(["--show-leak-kinds=definite", "--errors-for-leak-kinds=none"]);
        valgrind.arg(nginx()).arg("-c").arg(&conf);
        self.cluster.keep(valgrind.spawn().expect("valgrind: apt-get install valgrind"));
        self.joined(node)
    }

    /// The process in a node's pid file.
    pub fn pid(&self, node: &str) -> Option<u32> {
        std::fs::read_to_string(self.dir(node).join("pid")).ok()?.trim().parse().ok()
    }

    fn prepare(&self, node: &str, server: &str) -> PathBuf {
        let ready = "location = /ready { selvage_session on; selvage_api; }";
        self.configure(node, &format!("{server}\n{ready}\n"))
    }

    fn command(&self, node: &str, program: &Path) -> Command {
        let log = std::fs::File::create(self.cluster.dir().join(format!("nginx-{node}.log"))).expect("a log");
        let mut command = Command::new(program);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).process_group(0);
        if LATE.get() {
            command.env("LD_PRELOAD", delay(&self.dir(node)));
        }
        command
    }

    /// Waits until the node has joined: then who names no session is told so.
    fn joined(&self, node: &str) -> Browser {
        let address = self.cluster.address(node);
        let end = Instant::now() + Duration::from_secs(40);
        loop {
            assert!(
                Instant::now() < end,
                "nginx did not come up:\n{}{}",
                self.cluster.logs(),
                self.log(node)
            );
            std::thread::sleep(Duration::from_millis(20));
            if std::net::TcpStream::connect(address).is_ok()
                && Browser::at(address).get("/ready").status == 404
            {
                return Browser::at(address);
            }
        }
    }

    /// What a node's nginx has said.
    pub fn log(&self, node: &str) -> String {
        std::fs::read_to_string(self.dir(node).join("error.log")).unwrap_or_default()
    }

    /// What a node's nginx says of its configuration.
    pub fn refusal(&self, conf: &Path) -> String {
        Tool::at(nginx()).arg("-t").arg("-c").arg(conf).fail()
    }

    /// Processes that a process has started.
    pub fn children(parent: u32) -> Vec<u32> {
        let said = Command::new("pgrep").args(["-P", &parent.to_string()]).output().expect("pgrep");
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        said.split_whitespace().map(|pid| pid.parse().expect("a process id")).collect()
    }
}

/// Waits until something is true.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(15);
    while !holds() {
        assert!(Instant::now() < end, "still not: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
