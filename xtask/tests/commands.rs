//! `cargo x run` as its users meet it: as a command, with signals, twice at a time, after a crash, as root
//! and without.

use rustix::process::{Pid, Signal};
use selvage_fabric::config::Config;
use selvage_tests::client::Browser;
use selvage_tests::cluster::{Port, pids_of_group, pids_working_in, segments};
use selvage_tests::product::{PRODUCT_DIR_VARIABLE, Product};
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

const WAIT: Duration = Duration::from_secs(30);

/// A `cargo x run` that is up.
struct Run {
    child: Child,
    address: SocketAddr,
    folder: PathBuf,
    prefix: String,
    said: String,
}

impl Run {
    /// Starts it with the product and the program in these places, and waits until it says that it is up.
    fn start(address: SocketAddr, product: &Path, command: Command, uid: u32) -> Self {
        let folder = std::env::temp_dir().join(format!("selvage-{uid}-{}", address.port()));
        let mut command = with_ports(command, address);
        command.env(PRODUCT_DIR_VARIABLE, product).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut said = String::new();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        while !said.contains("Ctrl-C stops") {
            match lines.next() {
                Some(line) => said.push_str(&(line.unwrap() + "\n")),
                None => panic!("it ended ({:?}) and said: {said}", child.wait()),
            }
        }
        // Nobody reads on: what it says later must not disturb it.
        let prefix = Config::load(&folder.join("selvage.toml")).unwrap().segment_prefix();
        Self { child, address, folder, prefix, said }
    }

    fn here() -> Self {
        Self::at(free())
    }

    fn at(address: SocketAddr) -> Self {
        let uid = rustix::process::geteuid().as_raw();
        Self::start(address, &product().dir, Command::new(xtask()), uid)
    }

    /// Counts up in a new session until `n`, and looks at the page.
    fn use_it(&self) {
        let address = self.address;
        runtime().block_on(async move {
            let mut browser = Browser::new(address);
            for n in 1..=3 {
                let answer = browser.post("/session/n/incr").await.unwrap();
                assert_eq!((answer.number(), answer.copies()), (Some(n), Some(2)), "{}", answer.text());
            }
            let session = browser.get("/session").await.unwrap().json().unwrap();
            assert_eq!((&session["attributes"]["n"], &session["copies"]), (&3.into(), &2.into()));
            let page = browser.get("/").await.unwrap();
            assert!(page.status.is_success() && page.text().contains("Count up"), "{}", page.status);
        });
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().cast_signed()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Asks it to stop; it does, says so by its status, and leaves nothing.
    fn stop(mut self, signal: Signal) {
        self.signal(signal);
        assert!(ended(&mut self.child).success());
        assert_eq!(pids_working_in(&self.folder), Vec::<u32>::new());
        assert_eq!(segments(&self.prefix), Vec::<PathBuf>::new());
        assert!(!self.folder.exists(), "{} is left", self.folder.display());
    }
}

impl Drop for Run {
    /// After a failed test: end everything, so that the next one is not disturbed.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for pid in pids_working_in(&self.folder) {
            let _ = rustix::process::kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL);
        }
        for segment in segments(&self.prefix) {
            let _ = fs::remove_file(segment);
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn xtask() -> &'static str {
    env!("CARGO_BIN_EXE_xtask")
}

fn product() -> Product {
    Product::ready().unwrap()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// A free address. Its reservation ends here, because the command that is started next makes its own.
fn free() -> SocketAddr {
    Port::free().unwrap().address
}

fn with_ports(mut command: Command, address: SocketAddr) -> Command {
    command.args(["run", "--nodes", "2", "--servers", "2"]);
    command.args(["--port", &address.port().to_string()]);
    command.args(["--admin-port", &free().port().to_string()]);
    command
}

fn ended(child: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + WAIT;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(Instant::now() < deadline, "it does not end");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn run_starts_a_cluster_and_leaves_nothing() {
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let run = Run::here();
        let uid = rustix::process::geteuid().as_raw();
        for name in ["director", "s1", "s2", "n1", "n2"] {
            let line = run.said.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            let fields: Vec<&str> = line.split_whitespace().collect();
            let [_, pid, log] = fields[..] else { panic!("no line for {name}: {}", run.said) };
            assert!(Path::new(&format!("/proc/{pid}")).exists(), "{line}");
            assert!(Path::new(log).is_file(), "{line}");
        }
        assert!(run.said.contains(&format!("http://{}/", run.address)), "{}", run.said);
        let config = fs::metadata(run.folder.join("selvage.toml")).unwrap();
        assert_eq!((config.uid(), config.mode() & 0o137), (uid, 0), "the cookie key is nobody else's");
        run.use_it();
        run.stop(signal);
    }
}

#[test]
fn run_says_when_a_process_dies_and_goes_on() {
    let run = Run::here();
    let line = run.said.lines().find(|line| line.starts_with("n1")).unwrap();
    let pid: i32 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    rustix::process::kill_process_group(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    // A request that is under way at the kill may fail; the next one does not.
    let deadline = Instant::now() + WAIT;
    while !pids_of_group(pid.cast_unsigned()).is_empty() {
        assert!(Instant::now() < deadline, "n1 is not gone");
        std::thread::sleep(Duration::from_millis(2));
    }
    run.use_it();
    run.stop(Signal::TERM);
}

#[test]
fn run_starts_after_a_crash_of_the_previous_run() {
    let mut crashed = Run::here();
    crashed.signal(Signal::KILL);
    crashed.child.wait().unwrap();
    assert!(!pids_working_in(&crashed.folder).is_empty(), "the crash left processes behind");
    assert!(!segments(&crashed.prefix).is_empty(), "and shared memory");
    let again = Run::at(crashed.address);
    again.use_it();
    again.stop(Signal::TERM);
    assert_eq!(pids_working_in(&crashed.folder), Vec::<u32>::new());
}

#[test]
fn two_runs_live_side_by_side_and_a_third_on_the_same_port_is_refused() {
    let one = Run::here();
    let two = Run::here();
    let mut third = with_ports(Command::new(xtask()), one.address);
    let output = third.env(PRODUCT_DIR_VARIABLE, product().dir).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert_eq!(said.lines().count(), 1, "one line: {said}");
    assert!(said.contains(&one.address.port().to_string()), "{said}");
    one.use_it();
    two.use_it();
    one.stop(Signal::TERM);
    two.use_it();
    two.stop(Signal::TERM);
}

#[test]
fn run_works_as_an_ordinary_user() {
    if !rustix::process::geteuid().is_root() {
        // Then all the other tests show it.
        return Run::here().stop(Signal::TERM);
    }
    const NOBODY: u32 = 65_534;
    // The folder of the build may be closed to others.
    let place = tempfile::tempdir().unwrap();
    let copy = place.path().join("product");
    let product = product();
    fs::create_dir_all(copy.join("nginx")).unwrap();
    let mut files = vec![PathBuf::from(xtask())];
    files.extend([product.server(), product.director(), product.operator_tool(), product.library()]);
    for file in &files {
        fs::copy(file, copy.join(file.file_name().unwrap())).unwrap();
    }
    fs::copy(product.nginx_module(), copy.join("nginx").join(product.nginx_module().file_name().unwrap()))
        .unwrap();
    for folder in [place.path(), &copy, &copy.join("nginx")] {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs::copy(product.library(), copy.join("libselvage.so.0")).unwrap();
    let mut command = Command::new("setpriv");
    let id = NOBODY.to_string();
    command.args(["--reuid", &id, "--regid", &id, "--clear-groups"]).arg(copy.join("xtask"));
    command.env("LD_LIBRARY_PATH", &copy);
    let run = Run::start(free(), &copy, command, NOBODY);
    run.use_it();
    run.stop(Signal::TERM);
}
