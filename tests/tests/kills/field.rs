//! The cluster under fire: a director, three session servers and two web nodes of three workers each.

use crate::book::{Book, QUESTIONS, Stage, State, WORKERS, Wish};
use crate::worker::VIOLATION;
use rustix::process::{Pid, Signal};
use selvage_fabric::cache::{Cache, EntryState};
use selvage_fabric::ident::SessionId;
use selvage_fabric::kill::BOARD_VARIABLE;
use selvage_fabric::sync::LockFile;
use selvage_tests::admin::AdminView;
use selvage_tests::cluster::{Cluster, Options};
use selvage_tests::product::{Daemons, Product};
use std::collections::{BTreeMap, HashSet};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Longest wait for anything that must come by itself.
pub const SOON: Duration = Duration::from_secs(30);
/// Longer than every timeout that a stopped process could run into: `SHARD_WAIT` is the longest.
pub const LONG: Duration = Duration::from_millis(2800);
pub const NODES: usize = 2;
const TABLES: &str = "[memory]\nsessions_max = 512\ncache_bytes = 8388608\nlease_bytes = 8388608\n\
    \n[session]\narchive_bytes_max = 65536\nwait_ms = 1500\nidle_s = 12\nregenerate_grace_ms = 200\n\n\
    [timing]\nheartbeat_ms = 25\nmandate_ms = 250\nsilence_ms = 400\n";

pub struct Field {
    pub book: Book,
    cluster: Option<Cluster>,
    workers: Vec<Option<Child>>,
    program: PathBuf,
    board: PathBuf,
    _dir: tempfile::TempDir,
    /// Processes that ended because they were killed.
    pub deaths: u64,
    /// What each node's cache had when it was looked at last.
    hosted: [Vec<SessionId>; NODES],
    /// Sessions that got a new id while their worker died, and were destroyed.
    settled: HashSet<SessionId>,
    /// The same, but not every cache was looked at since: it may still show them.
    just_settled: HashSet<SessionId>,
}

impl Field {
    pub async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let board = dir.path().join("board");
        let book = Book::open(&board);
        let program = std::env::current_exe().unwrap();
        let environment = vec![(BOARD_VARIABLE.to_owned(), board.clone())];
        let daemons = Daemons { program: program.clone(), environment };
        let product = Product { dir: dir.path().to_owned(), daemons: Some(daemons) };
        let options = Options {
            nodes: NODES as u32,
            servers: 3,
            copies: 2,
            later: (1..=NODES).map(|node| format!("n{node}")).collect(),
            tables: TABLES.into(),
            nodes_are_launchers: true,
            ..Options::default()
        };
        let cluster = Some(Cluster::start(product, options).await.unwrap());
        let workers = (0..WORKERS).map(|_| None).collect();
        let mut field = Self {
            book,
            cluster,
            workers,
            program,
            board,
            _dir: dir,
            deaths: 0,
            hosted: [const { Vec::new() }; NODES],
            settled: HashSet::new(),
            just_settled: HashSet::new(),
        };
        (0..WORKERS).for_each(|worker| field.start(worker));
        field
    }

    pub fn cluster(&mut self) -> &mut Cluster {
        self.cluster.as_mut().unwrap()
    }

    /// The node of a worker.
    pub fn node_of(worker: usize) -> usize {
        worker % NODES
    }

    pub fn workers_of(node: usize) -> impl Iterator<Item = usize> {
        (0..WORKERS).filter(move |worker| Self::node_of(*worker) == node)
    }

    fn start(&mut self, worker: usize) {
        let node = format!("n{}", Self::node_of(worker) + 1);
        let folder = self.cluster().folder().unwrap();
        let log =
            std::fs::OpenOptions::new().create(true).append(true).open(folder.log(&format!("w{worker}")));
        let (config, path) = (folder.config(), folder.path().to_owned());
        let child = Command::new(&self.program)
            .arg("worker")
            .arg(config)
            .args([&node, &worker.to_string()])
            .env(BOARD_VARIABLE, &self.board)
            .current_dir(path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.unwrap())
            .spawn()
            .unwrap();
        self.workers[worker] = Some(child);
    }

    /// Collects who has died, and starts them again. A worker that ended in any other way than by a kill has
    /// seen what must not be.
    pub fn tend(&mut self) {
        for worker in 0..WORKERS {
            let ended = self.workers[worker].as_mut().and_then(|child| child.try_wait().unwrap());
            if let Some(status) = ended {
                let leaves = self.book.wish(worker).0 == Wish::Leave;
                if !(leaves && status.success()) {
                    self.died(worker, status);
                }
                if leaves {
                    self.book.set_wish(worker, Wish::Work);
                }
                self.start(worker);
            }
        }
        for (name, status) in self.cluster().deaths() {
            assert!(status.contains("signal: 9"), "{name} ended by itself: {status}\n{}", self.log(&name));
            self.deaths += 1;
            self.cluster().start_member(&name).unwrap();
        }
    }

    fn died(&mut self, worker: usize, status: ExitStatus) {
        let violation = status.code() == Some(i32::from(VIOLATION));
        let log = || self.log(&format!("w{worker}"));
        assert!(!violation, "worker {worker} has seen what must not be:\n{}\n{}", log(), self.logs());
        assert_eq!(status.signal(), Some(9), "worker {worker} ended by itself: {status}\n{}", log());
        self.deaths += 1;
        self.book.doubt(worker);
    }

    /// The end of a log.
    pub fn log(&self, name: &str) -> String {
        let log = self.cluster.as_ref().unwrap().log(name);
        let lines: Vec<&str> = log.lines().collect();
        let most = if std::env::var_os("SELVAGE_LOG").is_some() { 4000 } else { 40 };
        lines[lines.len().saturating_sub(most)..].join("\n")
    }

    /// Kills from outside.
    pub fn kill_worker(&mut self, worker: usize) {
        if let Some(child) = &mut self.workers[worker] {
            child.kill().unwrap();
        }
    }

    pub fn kill_member(&mut self, name: &str) {
        if let Ok(process) = self.cluster().process(name) {
            process.signal(Signal::KILL);
        }
    }

    /// Lets a stopped process go on.
    pub fn wake(&self, pid: u32) {
        signal(pid, Signal::CONT);
    }

    pub fn wish(&self, wish: Wish) {
        (0..WORKERS).for_each(|worker| self.book.set_wish(worker, wish));
    }

    /// Waits until all workers have done what was wished.
    pub fn until_confirmed(&mut self) {
        self.until("the workers confirm", |field| {
            (0..WORKERS).all(|worker| field.book.has_confirmed(worker))
        });
    }

    /// Waits for something, while the dead are replaced.
    pub fn until(&mut self, what: &str, mut good: impl FnMut(&mut Self) -> bool) {
        assert!(self.until_at_most(SOON, &mut good), "not within {SOON:?}: {what}\n{}", self.logs());
    }

    pub fn until_at_most(&mut self, wait: Duration, mut good: impl FnMut(&mut Self) -> bool) -> bool {
        let deadline = Instant::now() + wait;
        loop {
            self.tend();
            if good(self) {
                return true;
            }
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn logs(&self) -> String {
        let workers = (0..WORKERS).map(|worker| format!("w{worker}"));
        let members = self.cluster.as_ref().unwrap().member_names();
        let names = workers.chain(members);
        names.map(|name| format!("--- {name}\n{}\n", self.log(&name))).collect()
    }

    /// Waits until all are up and every session is hosted with both its copies.
    pub async fn until_whole(&mut self) -> AdminView {
        let deadline = Instant::now() + SOON;
        let mut admin = self.cluster().admin();
        loop {
            self.tend();
            let view = admin.view().await;
            if let Ok(view) = &view
                && view.nodes.iter().all(|node| node.state == "up")
                && view.servers.iter().all(|server| server.state == "up")
                && view.protects(0, 2)
            {
                return view.clone();
            }
            assert!(Instant::now() < deadline, "not whole: {view:?}\n{}", self.logs());
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    }

    /// At rest: each node's cache is whole, and nothing in it is held or owned by the dead. The living
    /// processes have done that by themselves; here is only looked, again while the steward still works.
    pub fn check_caches(&mut self) {
        for node in 1..=NODES {
            let mut wrong = Vec::new();
            self.until_at_most(SOON, |field| {
                wrong = field.look(node).unwrap_or_else(|error| vec![error]);
                wrong.is_empty()
            });
            assert!(wrong.is_empty(), "the cache of n{node} is not whole: {wrong:#?}\n{}", self.logs());
        }
    }

    /// At rest, after `check_caches`: what is hosted is what the book names, each session by one node.
    /// A session that is not in the book must be one that got a new id while its worker died.
    pub fn check_hosted(&mut self) {
        let mut wrong = Vec::new();
        self.until_at_most(SOON, |field| {
            wrong = field.strangers();
            if wrong.is_empty() {
                return true;
            }
            // It changes by what the workers have done since, or by what is just on its way.
            let errors: Vec<String> = (1..=NODES).filter_map(|node| field.look(node).err()).collect();
            if errors.is_empty() {
                let seen = std::mem::take(&mut field.just_settled);
                field.settled.extend(seen);
            }
            wrong.extend(errors);
            false
        });
        assert!(wrong.is_empty(), "{wrong:#?}\n{}", self.logs());
    }

    /// Looks for hosted sessions that should not be, and asks the workers about them.
    fn strangers(&mut self) -> Vec<String> {
        let mut wrong = Vec::new();
        for at in 0..QUESTIONS {
            let question = self.book.question(at);
            if question.stage == Stage::Settled {
                self.just_settled.insert(question.id);
                self.book.answer(at, question, Stage::Free);
            }
        }
        let may_be = |state| !matches!(state, State::Empty | State::Gone);
        let known: HashSet<SessionId> = self
            .book
            .records()
            .filter(|record| may_be(record.mark().state))
            .map(|record| record.cookie().id)
            .collect();
        let mut hosts: BTreeMap<SessionId, Vec<usize>> = BTreeMap::new();
        for (node, ids) in self.hosted.iter().enumerate() {
            ids.iter().for_each(|id| hosts.entry(*id).or_default().push(node));
        }
        for (id, nodes) in hosts {
            if nodes.len() > 1 {
                wrong.push(format!("session {id} is hosted by both nodes"));
            }
            if known.contains(&id) {
                continue;
            }
            assert!(!self.settled.contains(&id), "session {id} was destroyed, and is back\n{}", self.logs());
            wrong.push(format!("session {id} is hosted by {nodes:?}, and the book does not know it"));
            if self.just_settled.contains(&id) {
                continue;
            }
            let questions = || (0..QUESTIONS).map(|at| (at, self.book.question(at)));
            let asked = questions().any(|(_, of)| of.stage == Stage::Asked && of.id == id);
            let free = questions().find(|(_, of)| of.stage == Stage::Free);
            if let (false, Some((at, _))) = (asked, free) {
                self.book.ask(at, nodes[0], id);
            }
        }
        wrong
    }

    /// The sessions that the nodes' caches had when they were looked at last, each as often as it is hosted.
    pub fn hosted(&self) -> Vec<SessionId> {
        let mut all: Vec<SessionId> = self.hosted.iter().flatten().copied().collect();
        all.sort_unstable();
        all
    }

    fn look(&mut self, node: usize) -> Result<Vec<String>, String> {
        let folder = self.cluster().folder().unwrap().path().join(format!("node-n{node}"));
        let text = |error: selvage_fabric::error::Error| error.to_string();
        let current = std::fs::read_to_string(folder.join("current")).map_err(|error| error.to_string())?;
        let lock = Arc::new(LockFile::open(&folder.join("lock")).map_err(text)?);
        let cache = {
            let _creation = lock.lock_creation(Duration::from_secs(1)).map_err(text)?;
            Cache::attach(current.trim(), lock.clone()).map_err(text)?
        };
        if cache.is_poisoned() {
            return Err("it is poisoned".into());
        }
        let hosted = (0..cache.spec().sessions_max).map(|index| cache.entry(index));
        let hosted = hosted.collect::<Result<Vec<_>, _>>().map_err(text)?.into_iter().flatten();
        let live = hosted.filter(|info| info.state == EntryState::Live).map(|info| info.id);
        self.hosted[node - 1] = live.collect();
        let dead = cache.processes().into_iter().filter(|process| !process.alive);
        let mut wrong: Vec<String> = dead.map(|process| format!("not repaired: {process:?}")).collect();
        wrong.extend(cache.verify().map_err(text)?);
        Ok(wrong)
    }

    /// Everybody leaves in order; nothing may be left.
    pub fn end(mut self) {
        self.wish(Wish::Leave);
        let deadline = Instant::now() + SOON;
        for worker in 0..WORKERS {
            let mut child = self.workers[worker].take().unwrap();
            let status = loop {
                if let Some(status) = child.try_wait().unwrap() {
                    break status;
                }
                assert!(Instant::now() < deadline, "worker {worker} does not leave\n{}", self.logs());
                std::thread::sleep(Duration::from_millis(2));
            };
            assert!(status.success(), "worker {worker}: {status}\n{}", self.log(&format!("w{worker}")));
        }
        let cluster = self.cluster.take().unwrap();
        let (traces, folder) = (cluster.traces(), cluster.folder().unwrap().path().to_owned());
        assert_eq!(files(&folder, "current"), Vec::<PathBuf>::new(), "nodes that are over");
        let remains = cluster.stop().unwrap();
        assert!(remains.killed.is_empty(), "did not end when asked: {:?}", remains.killed);
        assert!(remains.segments.is_empty(), "members left shared memory: {:?}", remains.segments);
        assert_eq!(traces.left(), Vec::<String>::new());
    }

    /// A node's workers leave in order, all of them, and come again.
    pub fn leave(&mut self, node: usize) {
        for worker in Self::workers_of(node) {
            self.book.set_wish(worker, Wish::Leave);
        }
    }

    /// Waits for those who leave.
    pub fn until_all_are_back(&mut self) {
        self.until("who left is back", |field| {
            (0..WORKERS).all(|worker| field.book.wish(worker).0 != Wish::Leave)
        });
    }
}

impl Drop for Field {
    fn drop(&mut self) {
        for child in self.workers.iter_mut().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid.cast_signed()) {
        // It may have been killed by now.
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// Files of this name in the folders of a folder.
fn files(folder: &std::path::Path, name: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().flatten();
    entries.map(|entry| entry.path().join(name)).filter(|path| path.exists()).collect()
}
