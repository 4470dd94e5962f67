//! A director with a configuration of its own, and others' parts of the protocol played against it.

use selvage_fabric::config::Config;
use selvage_fabric::control::ca;
use selvage_fabric::control::member::Member;
use selvage_fabric::control::message::{
    Errand, ErrandOutcome, FromDirector, FromServer, LeaseReport, NodeBeat, Role, ServerReport, ToDirector,
    ToServer,
};
use selvage_fabric::control::stream::Stream;
use selvage_fabric::control::tls::Keyring;
use selvage_fabric::error::ErrorKind;
use selvage_fabric::ident::Incarnation;
use selvage_fabric::view::View;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub(crate) const WAIT: Duration = Duration::from_secs(10);

/// A folder with a configuration of its own, and the programs run with it.
pub(crate) struct Site {
    pub(crate) dir: TempDir,
    pub(crate) browsers: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) node: SocketAddr,
    /// Where the director listens for other hosts, if it does.
    pub(crate) control: Option<SocketAddr>,
    /// Where server s1 listens for other hosts, if it does.
    pub(crate) server: Option<SocketAddr>,
}

impl Site {
    pub(crate) fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let site = Self { dir, browsers: free(), admin: free(), node: free(), control: None, server: None };
        site.configure("");
        site
    }

    /// As [`Site::new`], with addresses for other hosts and certificates for all.
    pub(crate) fn with_hosts() -> Self {
        let site = Self { control: Some(free()), server: Some(free()), ..Self::new() };
        site.configure("");
        let config = Config::load(&site.config()).unwrap();
        ca::make(&site.certificates(), &config, 60, false).unwrap();
        site
    }

    pub(crate) fn certificates(&self) -> PathBuf {
        self.dir.path().join("tls")
    }

    /// What a member shows to others.
    pub(crate) fn keys(&self, member: Member) -> Keyring {
        Keyring::new(&Config::load(&self.config()).unwrap(), member).unwrap()
    }

    pub(crate) fn configure(&self, more: &str) {
        let (run_dir, key) = (self.run_dir(), "22".repeat(32));
        let at = |address: Option<SocketAddr>| {
            address.map(|address| format!("control = \"{address}\"\n")).unwrap_or_default()
        };
        let (control, server) = (at(self.control), at(self.server));
        let tls = match (self.control, self.server) {
            (None, None) => String::new(),
            _ => format!("[tls]\ndir = \"{}\"\n", self.certificates().display()),
        };
        let text = format!(
            "[cluster]\nname = \"t\"\nrun_dir = \"{}\"\ncookie_keys = [\"{key}\"]\n\
             [director]\nlisten = \"{}\"\nadmin_listen = \"{}\"\nhold_ms = 500\n{control}{tls}\
             [[server]]\nname = \"s1\"\n{server}\
             [[node]]\nname = \"n1\"\naddress = \"{}\"\n\
             [[node]]\nname = \"n2\"\naddress = \"127.0.0.1:1\"\n{more}",
            run_dir.display(),
            self.browsers,
            self.admin,
            self.node
        );
        std::fs::write(self.config(), text).unwrap();
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.dir.path().join("selvage.toml")
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.run_dir().join("director.sock")
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_selvage-director"));
        command.arg("--config").arg(self.config()).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).env("SELVAGE_LOG", "warn");
        command
    }

    /// Starts a director and waits until it serves.
    pub(crate) fn start(&self) -> Running {
        let child = self.command().spawn().unwrap();
        let running = Running(child);
        until("the admin API answers", || {
            get(self.admin, "/healthz").is_some_and(|page| page.contains("ok"))
        });
        running
    }

    /// Runs a director that cannot start: its one line of complaint.
    pub(crate) fn refused(&self) -> String {
        self.refused_with(None)
    }

    /// The same, and it ends with this exit status, by which service managers go.
    pub(crate) fn refused_with(&self, status: impl Into<Option<i32>>) -> String {
        let output = finish(self.command().spawn().unwrap());
        assert!(!output.status.success());
        if let Some(status) = status.into() {
            assert_eq!(output.status.code(), Some(status), "{output:?}");
        }
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        text
    }

    pub(crate) fn selvage(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_selvage"));
        command.args(arguments).arg("--config").arg(self.config()).stdin(Stdio::null());
        finish(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }

    /// What `selvage check-config` says of the configuration.
    pub(crate) fn selvage_check(&self, more: &[&str]) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_selvage"));
        command.arg("check-config").arg(self.config()).args(more).stdin(Stdio::null());
        let output = finish(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    }

    /// A steward's connection after its hello.
    pub(crate) fn steward(&self, name: &str, incarnation: Incarnation) -> Stream {
        let mut stream = Stream::connect(&self.socket(), WAIT).unwrap();
        stream.client_hello("t", Role::Node { name: name.to_owned(), incarnation, pid: 0 }, WAIT).unwrap();
        stream
    }

    pub(crate) fn view(&self) -> serde_json::Value {
        let page = get(self.admin, "/admin/view").expect("the admin API answers");
        serde_json::from_str(page.split("\r\n\r\n").nth(1).unwrap()).unwrap()
    }

    pub(crate) fn metric(&self, name: &str) -> u64 {
        self.metric_if_any(name).unwrap_or_else(|| panic!("no metric {name}"))
    }

    /// A family has no line for what never happened.
    pub(crate) fn metric_if_any(&self, name: &str) -> Option<u64> {
        self.value(name).map(|value| value as u64)
    }

    pub(crate) fn value(&self, name: &str) -> Option<f64> {
        let page = get(self.admin, "/metrics").unwrap();
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map(|value| value.parse().unwrap())
    }

    /// Control peers that were cut off, for whatever reason.
    pub(crate) fn peers_cut(&self) -> u64 {
        let page = get(self.admin, "/metrics").unwrap();
        let lines = page.lines().filter(|line| line.starts_with("selvage_director_control_peers_cut_total{"));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }
}

/// A director that is killed if the test ends before it.
pub(crate) struct Running(pub(crate) Child);

impl Running {
    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    pub(crate) fn ends_well(&mut self) {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                assert!(status.success(), "{status}");
                return;
            }
            assert!(begun.elapsed() < WAIT, "it does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended, which is fine.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A port that is free and stays so: it is below those that the kernel gives to others by itself, and no two
/// tests get the same one.
pub(crate) fn free() -> SocketAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    (0..1000)
        .map(|_| (std::process::id() * 64 + NEXT.fetch_add(1, Ordering::Relaxed)) % 10_000 + 20_000)
        .map(|port| SocketAddr::from(([127, 0, 0, 1], port as u16)))
        .find(|address| TcpListener::bind(address).is_ok())
        .expect("a free port")
}

/// The output of a process that must end by itself.
pub(crate) fn finish(mut child: Child) -> Output {
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begun.elapsed() > WAIT {
            let _ = child.kill();
            panic!("the process does not end");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.wait_with_output().unwrap()
}

pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < WAIT, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// One exchange with a connection of its own; `None` if nobody answers.
pub(crate) fn exchange(address: SocketAddr, head: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(WAIT)).ok()?;
    stream.write_all(format!("{head}\r\nhost: test\r\nconnection: close\r\n\r\n").as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    (!answer.is_empty()).then_some(answer)
}

pub(crate) fn get(address: SocketAddr, path: &str) -> Option<String> {
    exchange(address, &format!("GET {path} HTTP/1.1"))
}

pub(crate) fn post(address: SocketAddr, path: &str, more: &str) -> String {
    exchange(address, &format!("POST {path} HTTP/1.1\r\ncontent-length: 0{more}")).unwrap()
}

pub(crate) fn receive(stream: &mut Stream) -> FromDirector {
    stream.recv::<FromDirector>(WAIT).unwrap().0
}

pub(crate) fn register(stream: &mut Stream) -> Incarnation {
    stream.send(&ToDirector::Register, None, WAIT).unwrap();
    loop {
        if let FromDirector::Registered { incarnation, view } = receive(stream) {
            assert!(view.node(incarnation).is_some());
            return incarnation;
        }
    }
}

/// Plays a session server's part of the protocol at its socket, on a thread: says hello, reports after each
/// request what it was told, and how many sessions of ended nodes are unsettled. Ends when the director
/// closes or `turns` are over.
pub(crate) fn play_server(
    site: &Site,
    incarnation: u64,
    turns: usize,
    unsettled: u64,
) -> std::thread::JoinHandle<()> {
    let socket = site.run_dir().join("server-s1.sock");
    // What an earlier one left.
    let _ = std::fs::remove_file(&socket);
    let listener = UnixListener::bind(socket).unwrap();
    std::thread::spawn(move || {
        let stream = Stream::accepted(listener.accept().unwrap().0).unwrap();
        serve(stream, incarnation, turns, unsettled);
    })
}

/// A session server's part of the protocol on one connection. Returns the newest view that it was told.
pub(crate) fn serve(mut stream: Stream, incarnation: u64, turns: usize, unsettled: u64) -> Option<View> {
    let incarnation = Incarnation(incarnation);
    stream.server_hello("t", incarnation, |_, _| Ok(()), WAIT).unwrap();
    let mut view: Option<View> = None;
    for _ in 0..turns {
        let Ok((message, _)) = stream.recv::<ToServer>(WAIT) else { return view };
        if let ToServer::SetView(told) = message {
            view = Some(told);
        }
        let dead = view.iter().flat_map(|view| &view.dead).map(|dead| LeaseReport {
            node: dead.name.clone(),
            incarnation: dead.incarnation,
            sealed: true,
            sessions: 3,
            unsettled: if dead.sealed { 0 } else { unsettled },
            beat_age_ms: None,
        });
        let report = ServerReport {
            name: "s1".into(),
            incarnation,
            pid: 99,
            epoch: view.as_ref().map(|view| view.epoch).unwrap_or_default(),
            leases: dead.collect(),
            view: view.clone(),
            bytes: 4096,
            counters: vec![2],
            rdma_links: 0,
            numbers: None,
            rdma: "rxe0 port 1, MTU 1024".to_owned(),
        };
        if stream.send(&FromServer::Report(report), None, WAIT).is_err() {
            return view;
        }
    }
    // What is no message: the director must cut this off and go on.
    let _ = stream.send(&"nonsense", None, WAIT);
    let _ = stream.recv::<ToServer>(WAIT);
    view
}

/// A steward that beats on a thread until the director says that it is over; what it said.
pub(crate) fn play_steward(stream: Stream) -> std::thread::JoinHandle<FromDirector> {
    play_host(stream, |errand| panic!("it was asked {errand:?}"))
}

/// The same, of a node that does errands as `host` says; `None`: it never answers that one.
pub(crate) fn play_host(
    mut stream: Stream,
    mut host: impl FnMut(Errand) -> Option<ErrandOutcome> + Send + 'static,
) -> std::thread::JoinHandle<FromDirector> {
    register(&mut stream);
    std::thread::spawn(move || {
        let begun = Instant::now();
        while begun.elapsed() < WAIT {
            let beat = NodeBeat { safe: [0, 5, 0], ..NodeBeat::default() };
            stream.send(&ToDirector::Beat(beat), None, WAIT).unwrap();
            loop {
                match stream.recv(Duration::from_millis(40)) {
                    Ok((FromDirector::PrepareDrain, _)) => {
                        stream.send(&ToDirector::Drained, None, WAIT).unwrap()
                    }
                    Ok((over @ FromDirector::Over { .. }, _)) => return over,
                    Ok((FromDirector::Errand { number, errand, .. }, _)) => {
                        if let Some(outcome) = host(errand) {
                            stream.send(&ToDirector::ErrandEnded { number, outcome }, None, WAIT).unwrap();
                        }
                    }
                    Ok(_) => {}
                    Err(error) if error.kind == ErrorKind::Timeout => break,
                    // The director has ended: so does the test.
                    Err(_) => return FromDirector::PrepareDrain,
                }
            }
        }
        panic!("{begun:?}: the director never said that it is over");
    })
}
