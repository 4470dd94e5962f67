//! A real `selvage-server` in a folder of its own, and the director and nodes that talk to it.

use selvage_fabric::archive::{ArchiveLimits, Builder, Head, ValueRef};
use selvage_fabric::config::Config;
use selvage_fabric::control::ca;
use selvage_fabric::control::message::{
    ClaimAnswer, FetchedArchive, FromServer, Role, SealedCopy, ServerReport, ToServer,
};
use selvage_fabric::control::stream::Stream;
use selvage_fabric::ident::{Epoch, Incarnation, SessionId, Version};
use selvage_fabric::lease::{ArchiveChecksum, BlockOffset, Cell, CellState, Sequence, SlotIndex};
use selvage_fabric::numbers::ServerCounter;
use selvage_fabric::transport::shm::{self, ShmLink};
use selvage_fabric::transport::{Link, Outcome, Posted, Push};
use selvage_fabric::view::{DeadEntry, NodeEntry, NodeState, ServerEntry, View};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

/// No answer takes longer, however busy the machine is.
pub const WAIT: Duration = Duration::from_secs(20);

/// A folder with a configuration, and the servers that run in it.
pub struct Host {
    pub dir: tempfile::TempDir,
    pub config: Config,
}

/// A running server; killed when dropped.
pub struct Daemon(Option<Child>);

impl Host {
    /// Servers s1 and s2, nodes n1, n2 and n3 of this user, n4 of user 12345; `more` goes below `[memory]`.
    pub fn new(more: &str) -> Self {
        Self::with(more, None)
    }

    /// As `new`, with certificates for all members; s1 listens for other hosts at `control`.
    pub fn with_hosts(more: &str, control: SocketAddr) -> Self {
        let host = Self::with(more, Some(control));
        ca::make(&host.tls_dir(), &host.config, 30, false).unwrap();
        host
    }

    fn with(more: &str, control: Option<SocketAddr>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = dir.path().join("run");
        std::fs::create_dir(&run_dir).unwrap();
        let (tls, control) = match control {
            Some(address) => (
                format!("[tls]\ndir = \"{}\"\n", dir.path().join("tls").display()),
                format!("control = \"{address}\"\n"),
            ),
            None => Default::default(),
        };
        let mut text = format!(
            "[cluster]\nname = \"test\"\nrun_dir = \"{}\"\ncookie_keys = [\"{:064}\"]\n[director]\n\
             {tls}\
             [memory]\nhuge_pages = false\n{more}\n[[server]]\nname = \"s1\"\n{control}\
             [[server]]\nname = \"s2\"\n",
            run_dir.display(),
            1
        );
        for node in 1..=4 {
            let uids = if node == 4 { "uids = [12345]\n" } else { "" };
            text += &format!("[[node]]\nname = \"n{node}\"\naddress = \"127.0.0.1:{node}\"\n{uids}");
        }
        let path = dir.path().join("selvage.toml");
        std::fs::write(&path, &text).unwrap();
        let config = Config::parse(&path, &text).unwrap();
        Self { dir, config }
    }

    /// Where the certificates are.
    pub fn tls_dir(&self) -> PathBuf {
        self.dir.path().join("tls")
    }

    pub fn command(&self, name: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_selvage-server"));
        command.arg("--config").arg(&self.config.path).args(["--name", name]);
        command.env_remove("SELVAGE_LOG").stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    /// Starts a server that is expected to fail, and waits for its end.
    pub fn fails(&self, name: &str) -> (i32, String) {
        let output = output_of(self.command(name));
        (output.status.code().expect("an exit status"), String::from_utf8(output.stderr).unwrap())
    }

    /// Starts a server and waits until it serves.
    pub fn start(&self, name: &str) -> Daemon {
        self.start_with(name, &[])
    }

    /// As [`Self::start`], with more environment.
    pub fn start_with(&self, name: &str, environment: &[(&str, &str)]) -> Daemon {
        let log = std::fs::File::create(self.dir.path().join(format!("{name}.log"))).unwrap();
        let child = self.command(name).envs(environment.iter().copied()).stderr(log).spawn().unwrap();
        let mut daemon = Daemon(Some(child));
        let started = Instant::now();
        while Stream::connect(&self.config.server_socket(name), WAIT).is_err() {
            assert!(daemon.ended().is_none(), "{}", self.log(name));
            assert!(started.elapsed() < WAIT, "{}", self.log(name));
            std::thread::sleep(Duration::from_millis(2));
        }
        daemon
    }

    pub fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(format!("{name}.log"))).unwrap_or_default()
    }

    pub fn run_dir_entries(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&self.config.cluster.run_dir).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    pub fn connect(&self, role: Role) -> Peer {
        let mut stream = Stream::connect(&self.config.server_socket("s1"), WAIT).unwrap();
        let (_, server) = stream.client_hello("test", role, WAIT).unwrap();
        Peer { stream, server }
    }

    pub fn director(&self) -> Peer {
        self.connect(Role::Director)
    }

    pub fn node(&self, node: u64) -> Peer {
        self.connect(Role::Node { name: format!("n{node}"), incarnation: life(node), pid: 0 })
    }
}

impl Daemon {
    pub fn pid(&self) -> u32 {
        self.0.as_ref().unwrap().id()
    }

    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.0.as_mut().unwrap().try_wait().unwrap()
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(self.0.as_ref().unwrap());
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Waits for its end.
    pub fn wait(mut self) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.ended() {
                self.0 = None;
                return status;
            }
            assert!(started.elapsed() < WAIT, "the server does not end");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// User and system time that the process has used.
    pub fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        // Linux shows programs 100 ticks a second, whatever it counts in.
        Duration::from_millis(10 * ticks)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Runs a command that must end by itself soon.
pub fn output_of(mut command: Command) -> Output {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let started = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if started.elapsed() > WAIT {
            let _ = child.kill();
            panic!("{command:?} does not end: {:?}", child.wait_with_output());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    child.wait_with_output().unwrap()
}

/// An open connection.
pub struct Peer {
    pub stream: Stream,
    pub server: Incarnation,
}

impl Peer {
    pub fn ask_with_fd(&mut self, message: &ToServer) -> (FromServer, Option<OwnedFd>) {
        self.stream.send(message, None, WAIT).unwrap();
        self.stream.recv(WAIT).unwrap()
    }

    pub fn ask(&mut self, message: &ToServer) -> FromServer {
        self.ask_with_fd(message).0
    }

    pub fn report(&mut self) -> ServerReport {
        self.report_of(&ToServer::Beat)
    }

    pub fn set_view(&mut self, view: View) -> ServerReport {
        self.report_of(&ToServer::SetView(view))
    }

    fn report_of(&mut self, message: &ToServer) -> ServerReport {
        match self.ask(message) {
            FromServer::Report(report) => report,
            other => panic!("no report: {other:?}"),
        }
    }

    pub fn counter(&mut self, counter: ServerCounter) -> u64 {
        self.report().counters[counter as usize]
    }

    #[allow(dead_code, reason = "one of the two test programs that have this file needs RDMA")]
    pub fn rdma_links(&mut self) -> u64 {
        self.report().rdma_links
    }

    /// Waits until a counter has come to a value: a peer that is cut off is counted after it was answered.
    pub fn await_counter(&mut self, counter: ServerCounter, value: u64) {
        let started = Instant::now();
        while self.counter(counter) != value {
            assert!(started.elapsed() < WAIT, "{counter:?} is {}, not {value}", self.counter(counter));
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The node's lease, mapped.
    pub fn lease(&mut self, node: u64) -> ShmLink {
        let (answer, fd) = self.ask_with_fd(&ToServer::Lease);
        let FromServer::Lease { server, .. } = answer else { panic!("no lease: {answer:?}") };
        assert_eq!(server, self.server);
        shm::map(fd.expect("a descriptor beside the lease"), life(node), server).unwrap()
    }

    pub fn claim(&mut self, number: u32, ids: &[SessionId]) -> Vec<ClaimAnswer> {
        let claim = ToServer::Claim { epoch: Epoch { term: 1, number }, ids: ids.to_vec() };
        match self.ask(&claim) {
            FromServer::Claims(answers) => answers,
            other => panic!("no claims: {other:?}"),
        }
    }

    pub fn fetch(&mut self, ids: &[SessionId]) -> Vec<FetchedArchive> {
        match self.ask(&ToServer::Fetch { ids: ids.to_vec() }) {
            FromServer::Archives(archives) => archives,
            other => panic!("no archives: {other:?}"),
        }
    }

    /// A server that is new to the node hears that it holds no claims.
    pub fn register(&mut self, number: u32) {
        let register =
            ToServer::RegisterClaims { epoch: Epoch { term: 1, number }, ids: Vec::new(), last: true };
        assert_eq!(self.ask(&register), FromServer::Done);
    }
}

/// The life of node `n<node>`.
pub fn life(node: u64) -> Incarnation {
    Incarnation((1 << 32) | node)
}

/// A view of term 1 with server s1.
pub fn view(number: u32, server: Incarnation, live: &[u64], dead: &[(u64, bool)]) -> View {
    let node = |node: &u64| NodeEntry {
        name: format!("n{node}"),
        incarnation: life(*node),
        state: NodeState::Up,
        address: "127.0.0.1:1".into(),
    };
    let ended = |(node, sealed): &(u64, bool)| DeadEntry {
        name: format!("n{node}"),
        incarnation: life(*node),
        sealed: *sealed,
    };
    let server =
        ServerEntry { name: "s1".into(), incarnation: server, weight: 1, socket: "s1".into(), control: None };
    View {
        epoch: Epoch { term: 1, number },
        copies: 1,
        nodes: live.iter().map(node).collect(),
        servers: vec![server],
        dead: dead.iter().map(ended).collect(),
    }
}

pub fn id(number: u64) -> SessionId {
    let mut bytes = [7; 16];
    bytes[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    SessionId(bytes)
}

pub fn version(counter: u64) -> Version {
    Version { epoch: 1, counter }
}

/// A session's archive with one attribute.
pub fn archive(id: SessionId, version: Version, value: &[u8]) -> Vec<u8> {
    let head = Head { id, version, created_ms: 1, idle_ms: 1000, absolute_ms: 1000, owner: None };
    let attributes = [("value", ValueRef::Bytes(value))];
    Builder::new().build(&head, attributes.into_iter(), &ArchiveLimits::default()).unwrap().to_vec()
}

/// The live cell of an archive.
pub fn cell(id: SessionId, version: Version, sequence: u32, block: u32, archive_bytes: usize) -> Cell {
    Cell {
        id,
        sequence: Sequence(sequence),
        version,
        state: CellState::Live,
        block: BlockOffset(block),
        archive_bytes: archive_bytes as u32,
        expiry_ms: u64::MAX / 2,
        checksum: ArchiveChecksum::None,
    }
}

pub fn push(link: &ShmLink, slot: u32, cell: &Cell, archive: Option<&[u8]>) -> Outcome {
    let push = Push {
        slot: SlotIndex(slot),
        sequence: cell.sequence,
        cell: &cell.encode(),
        block: archive.map(|archive| (cell.block, archive)),
    };
    match link.post(&push) {
        Posted::Done(outcome) => outcome,
        Posted::Pending(_) => panic!("shared memory acks at once"),
    }
}

pub fn granted(counter: u64) -> ClaimAnswer {
    ClaimAnswer::Granted(Some(SealedCopy { version: version(counter), live: true, expiry_ms: u64::MAX / 2 }))
}
