//! A cluster: session servers, director, and one web server per web node (nginx, or another kind), each a
//! real process, on this host or, but for the director, on others.
//!
//! Invariants: everything on disk is in the run folder, which has the same path on every host; every process
//! of this host is recorded there before it does anything; a `Cluster` that is dropped has killed its
//! processes and, on this host, removed its folder and its shared memory.

mod files;
mod folder;
mod host;
mod member;
mod options;
mod place;
mod ports;
mod process;
#[cfg(test)]
mod tests;
mod user;
mod web;

pub use folder::{Folder, segments};
pub use host::Hosts;
pub use member::{LOG_VARIABLE, Member};
pub use options::Options;
pub use ports::{Port, is_free};
pub use process::{Kill, Process, pids_of_group, pids_working_in};
pub use user::WebUser;
pub use web::WebServer;

use self::member::Remote;
use self::place::Place;
use crate::admin::Admin;
use crate::client::{Browser, Connection};
use crate::guest::Agent;
use crate::product::{Product, find_program};
use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::process::Signal;
use selvage_fabric::config::Config;
use std::collections::BTreeMap;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A cluster that is not up after this time does not come up.
const UP_WAIT: Duration = Duration::from_secs(20);
/// A member that was asked to end is killed after this time.
const STOP_WAIT: Duration = Duration::from_secs(8);
/// A member that was asked to start its program anew has done so after this time.
const UPGRADE_WAIT: Duration = Duration::from_secs(30);
/// Lines of a member's log that are shown when it dies.
const LOG_TAIL_LINES: usize = 8;
/// Lines of each log that are shown when a test fails.
const FAILURE_TAIL_LINES: usize = 60;
/// The same if SELVAGE_LOG is set.
const ASKED_TAIL_LINES: usize = 20_000;
/// The director's name as a member.
pub const DIRECTOR: &str = "director";

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    options: Options,
    product: Product,
    nginx: Option<PathBuf>,
    place: Place,
    user: Option<WebUser>,
    config: Config,
    folder: Option<Folder>,
    processes: BTreeMap<String, Box<dyn Member>>,
    /// Where browsers connect, if the launcher holds it for the director.
    held: Option<TcpListener>,
}

/// What was left when all processes had ended by themselves; empty if they cleaned up well.
#[derive(Debug, Default)]
pub struct Remains {
    /// Members that had to be killed.
    pub killed: Vec<String>,
    /// Shared-memory segments.
    pub segments: Vec<PathBuf>,
    /// Processes that are still there on other hosts.
    pub running: Vec<String>,
}

/// What could be left of a cluster, to be looked for after its end.
#[derive(Debug, Clone)]
pub struct Traces {
    folder: PathBuf,
    prefix: String,
}

impl Cluster {
    /// Starts a cluster and waits until the director's view shows every member up.
    ///
    /// # Errors
    /// In one line what is wrong: a port that is taken, a missing program, a member that died, with the end
    /// of its log.
    pub async fn start(product: Product, options: Options) -> Result<Self> {
        let mut cluster = Self::prepare(product, options)?;
        cluster.start_all().await?;
        Ok(cluster)
    }

    /// Takes the run folder and the ports and writes the configuration; starts nothing.
    ///
    /// # Errors
    /// See [`Self::start`].
    pub fn prepare(product: Product, options: Options) -> Result<Self> {
        // A cluster whose nodes all come later, from elsewhere, or are something else needs no nginx.
        let nginx = find_program("nginx");
        let is_nginx = |node: &String| options.web_server(node) == WebServer::Nginx;
        if options.node_names().any(|node| !options.later.contains(&node) && is_nginx(&node)) {
            nginx_of(&nginx)?;
        }
        let other_user = rustix::process::geteuid().is_root() && !options.nodes_are_launchers;
        let user = if other_user { Some(WebUser::of_this_system()?) } else { None };
        // Workers whose master is killed become ours, so that none of them stays as a zombie.
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        // The folder first: if it is a crashed run's, its processes hold the ports.
        let folder = Folder::take(&place::folder_path(&options)?)?;
        let (place, config) = match place::configure(&options, &folder, user.as_ref()) {
            Ok(configured) => configured,
            Err(error) => {
                folder.remove()?;
                return Err(error);
            }
        };
        let held = match options.hold_socket.then(|| TcpListener::bind(place.director)).transpose() {
            Ok(held) => held,
            Err(error) => {
                folder.remove()?;
                return Err(error).context("cannot hold the director's socket");
            }
        };
        let (folder, processes) = (Some(folder), BTreeMap::new());
        let cluster = Self { options, product, nginx, place, user, config, folder, processes, held };
        cluster.prepare_hosts()?;
        Ok(cluster)
    }

    /// Starts every member that is not left for later, and waits until the view shows them up.
    ///
    /// # Errors
    /// See [`Self::start`].
    pub async fn start_all(&mut self) -> Result<()> {
        let names = self.member_names();
        let now: Vec<&String> = names.iter().filter(|name| !self.options.later.contains(name)).collect();
        for name in &now {
            self.start_member(name)?;
            // The director makes the nodes' folders and its socket before a node looks for them.
            if *name == DIRECTOR {
                self.wait_for_director().await?;
            }
        }
        self.wait_up().await
    }

    /// Names of all members, in the order of their start.
    pub fn member_names(&self) -> Vec<String> {
        let director = std::iter::once(DIRECTOR.to_owned());
        self.options.server_names().chain(director).chain(self.options.node_names()).collect()
    }

    /// Starts one member, at first or after its end.
    ///
    /// # Errors
    /// It runs, is unknown, or cannot be started.
    pub fn start_member(&mut self, name: &str) -> Result<()> {
        ensure!(!self.processes.contains_key(name), "{name} runs already");
        let mut command = self.command(name)?;
        let folder = self.folder()?;
        let member: Box<dyn Member> = match self.agent_of(name) {
            Some(agent) => Box::new(Remote::start(agent, name, &command, folder.path(), folder.log(name))?),
            None => {
                let held = self.held.as_ref().filter(|_| name == DIRECTOR);
                let input = match held {
                    Some(socket) => OwnedFd::from(socket.try_clone()?).into(),
                    None => Stdio::null(),
                };
                Box::new(Process::start(folder, name, &mut command, input)?)
            }
        };
        self.processes.insert(name.to_owned(), member);
        self.options.later.retain(|later| later != name);
        Ok(())
    }

    /// The agent of a member's host; none if that is this one.
    fn agent_of(&self, name: &str) -> Option<Agent> {
        self.options.hosts.as_ref()?.agent_of(name)
    }

    /// The command that starts a member.
    ///
    /// # Errors
    /// It is unknown, or its files cannot be written.
    pub fn command(&self, name: &str) -> Result<Command> {
        let config = self.folder()?.config();
        if name == DIRECTOR {
            let mut command = self.product.daemon("selvage-director");
            command.arg("--config").arg(config);
            self.options.ask_for_log(&mut command);
            return Ok(if self.held.is_some() { with_socket(&command) } else { command });
        }
        if self.config.server(name).is_some() {
            let mut command = self.product.daemon("selvage-server");
            command.arg("--config").arg(config).args(["--name", name]);
            self.options.ask_for_log(&mut command);
            return Ok(command);
        }
        self.node_command(name)
    }

    /// Kills a member with SIGKILL, all its processes at once, and waits until they are gone.
    ///
    /// # Errors
    /// It does not run or cannot be killed.
    pub fn kill(&mut self, name: &str) -> Result<Kill> {
        self.processes.remove(name).with_context(|| format!("{name} does not run"))?.kill()
    }

    /// Kills several members at the same time.
    ///
    /// # Errors
    /// One does not run or cannot be killed.
    pub fn kill_together(&mut self, names: &[&str]) -> Result<Kill> {
        let sent = Instant::now();
        for name in names {
            self.process(name)?.signal(Signal::KILL);
        }
        for name in names {
            self.kill(name)?;
        }
        Ok(Kill { sent, gone: Instant::now() })
    }

    /// Ends a member as an operator would, and waits. Returns whether it ended by itself in time.
    ///
    /// # Errors
    /// It does not run.
    pub fn stop_member(&mut self, name: &str) -> Result<bool> {
        let process = self.processes.remove(name).with_context(|| format!("{name} does not run"))?;
        process.stop(self.polite_signal(name), STOP_WAIT * self.options.patience)
    }

    /// Sends a signal to every process of a member.
    ///
    /// # Errors
    /// It does not run.
    pub fn signal(&self, name: &str, signal: Signal) -> Result<()> {
        self.process(name)?.signal(signal);
        Ok(())
    }

    /// Asks a member to read its configuration again; it goes on as it is, or anew, in its own time.
    ///
    /// # Errors
    /// It does not run.
    pub fn reload(&self, name: &str) -> Result<()> {
        self.process(name)?.signal_main(Signal::HUP);
        Ok(())
    }

    /// Lets a member start its program anew and hand its sockets over, and waits until the old process has
    /// ended.
    ///
    /// # Errors
    /// It does not run, or does not do so in time.
    pub fn upgrade(&mut self, name: &str) -> Result<()> {
        let wait = UPGRADE_WAIT * self.options.patience;
        let process = self.processes.get_mut(name).with_context(|| format!("{name} does not run"))?;
        process.signal_main(Signal::USR2);
        process.await_successor(wait)
    }

    /// A member's process.
    ///
    /// # Errors
    /// It does not run.
    pub fn process(&self, name: &str) -> Result<&dyn Member> {
        self.processes.get(name).map(|member| &**member).with_context(|| format!("{name} does not run"))
    }

    /// Members that have ended without being asked, and how; they count as not running from now on.
    pub fn deaths(&mut self) -> Vec<(String, String)> {
        let ended: Vec<_> = self
            .processes
            .iter_mut()
            .filter_map(|(name, process)| Some((name.clone(), process.ended()?)))
            .collect();
        for (name, _) in &ended {
            // What is left of it cannot work without its first process: nginx workers without a master, for
            // example.
            if let Some(process) = self.processes.remove(name) {
                let _ = process.kill();
            }
        }
        ended
    }

    /// Waits until the view shows every running member up, and every node's lease is made at every server:
    /// before that nodes answer changes with fewer copies.
    ///
    /// # Errors
    /// A member died, or it takes too long.
    pub async fn wait_up(&mut self) -> Result<()> {
        let mut admin = self.admin();
        let deadline = Instant::now() + UP_WAIT * self.options.patience;
        let wanted: Vec<String> = self.processes.keys().filter(|name| *name != DIRECTOR).cloned().collect();
        let nodes = wanted.iter().filter(|name| self.config.node(name).is_some()).count();
        let leases = nodes as u64 * self.config.memory.lease_bytes;
        loop {
            self.no_deaths()?;
            if let Ok(view) = admin.view().await
                && wanted.iter().all(|name| view.node_is(name, "up") || view.server_is(name, "up"))
                && view.servers.iter().all(|server| server.state != "up" || server.bytes >= leases)
            {
                return Ok(());
            }
            if Instant::now() > deadline {
                let view = admin.view().await;
                bail!(
                    "the cluster is not up within {UP_WAIT:?}; the view: {view:?}; {}",
                    self.all_tails(LOG_TAIL_LINES)
                );
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Fails with the end of its log if a member has died.
    fn no_deaths(&mut self) -> Result<()> {
        for (name, member) in &mut self.processes {
            if let Some(status) = member.ended() {
                bail!("{name} ended ({status}); {}", tail(name, &**member, LOG_TAIL_LINES))
            }
        }
        Ok(())
    }

    async fn wait_for_director(&mut self) -> Result<()> {
        let deadline = Instant::now() + UP_WAIT * self.options.patience;
        let mut admin = self.admin();
        while admin.view().await.is_err() {
            self.no_deaths()?;
            ensure!(
                Instant::now() < deadline,
                "the director does not answer; {}",
                self.all_tails(LOG_TAIL_LINES)
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    fn all_tails(&self, lines: usize) -> String {
        self.processes.iter().map(|(name, member)| tail(name, &**member, lines)).collect()
    }

    /// Ends all members in the order in which they disturb each other least, bounded, removes everything, and
    /// tells what the members themselves had left.
    ///
    /// # Errors
    /// Something cannot be killed or removed.
    pub fn stop(mut self) -> Result<Remains> {
        let mut remains = Remains::default();
        let mut names = self.member_names();
        // The director first, so that it declares nobody dead; then the nodes; then the servers.
        names.sort_by_key(|name| (name != DIRECTOR, self.config.server(name).is_some()));
        for name in names {
            let Some(process) = self.processes.remove(&name) else { continue };
            process.signal(Signal::CONT);
            if !process.stop(self.polite_signal(&name), STOP_WAIT * self.options.patience)? {
                remains.killed.push(name);
            }
        }
        if let Some(folder) = self.folder.take() {
            remains.segments = folder.segments();
            if let Some(hosts) = &self.options.hosts {
                hosts.clear(folder.path(), &self.config.segment_prefix(), &mut remains)?;
            }
            folder.remove()?;
        }
        Ok(remains)
    }

    /// What to look for when the cluster has ended.
    pub fn traces(&self) -> Traces {
        let folder = self.folder.as_ref().map(|folder| folder.path().to_owned()).unwrap_or_default();
        Traces { folder, prefix: self.config.segment_prefix() }
    }

    fn polite_signal(&self, name: &str) -> Signal {
        match self.config.node(name) {
            Some(_) => self.options.web_server(name).polite_signal(),
            None => Signal::TERM,
        }
    }

    /// Where browsers connect.
    pub fn address(&self) -> SocketAddr {
        self.place.director
    }

    /// Where the admin API is.
    pub fn admin_address(&self) -> SocketAddr {
        self.place.admin
    }

    /// Where a web node listens, behind the director's back.
    pub fn node_address(&self, name: &str) -> Option<SocketAddr> {
        self.config.node(name).map(|node| node.address)
    }

    /// A client of the admin API.
    pub fn admin(&self) -> Admin {
        Admin::at(self.admin_address())
    }

    /// A browser without a cookie.
    pub fn browser(&self) -> Browser {
        Browser::new(self.address())
    }

    /// A bare connection to the director.
    pub fn connection(&self) -> Connection {
        Connection::to(self.address())
    }

    /// The configuration in force.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The options it was started with.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The product that runs.
    pub fn product(&self) -> &Product {
        &self.product
    }

    /// The user of the web nodes, if the launcher is root.
    pub fn web_user(&self) -> Option<&WebUser> {
        self.user.as_ref()
    }

    /// The run folder.
    ///
    /// # Errors
    /// The cluster is stopped.
    pub fn folder(&self) -> Result<&Folder> {
        self.folder.as_ref().context("the cluster is stopped")
    }

    /// A member's whole log.
    pub fn log(&self, name: &str) -> String {
        let Ok(folder) = self.folder() else { return String::new() };
        let path = folder.log(name);
        match self.agent_of(name) {
            Some(agent) => String::from_utf8_lossy(&agent.file(path).unwrap_or_default()).into_owned(),
            None => fs::read_to_string(path).unwrap_or_default(),
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() && !self.processes.is_empty() {
            // Who asked for more log wants to see it.
            let asked = std::env::var_os("SELVAGE_LOG").is_some();
            let lines = if asked { ASKED_TAIL_LINES } else { FAILURE_TAIL_LINES };
            eprintln!("the cluster at the time of the failure: {}", self.all_tails(lines));
        }
        for (_, process) in std::mem::take(&mut self.processes) {
            let _ = process.kill();
        }
        if let Some(folder) = self.folder.take() {
            let _ = folder.remove();
        }
    }
}

impl Traces {
    /// What is left of the cluster, as text for a message; empty if nothing.
    pub fn left(&self) -> Vec<String> {
        let mut left: Vec<String> =
            pids_working_in(&self.folder).into_iter().map(|pid| format!("process {pid}")).collect();
        left.extend(segments(&self.prefix).iter().map(|segment| segment.display().to_string()));
        if self.folder.exists() {
            left.push(self.folder.display().to_string());
        }
        left
    }
}

/// The command with its standard input as the one socket that is passed by systemd's protocol. The protocol
/// wants the process's own id in the environment, which a shell knows that becomes the program.
fn with_socket(command: &Command) -> Command {
    let script = "exec 3<&0 </dev/null; export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=listen; exec \"$@\"";
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", script, "sh"]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell
}

fn nginx_of(found: &Option<PathBuf>) -> Result<&PathBuf> {
    found.as_ref().ok_or_else(|| anyhow!("nginx is missing: run `cargo x setup`"))
}

/// The last lines of a member's log, in one text.
fn tail(name: &str, member: &dyn Member, count: usize) -> String {
    format!("the log of {name} ends:\n  {}\n", member.tail(count).trim_end().replace('\n', "\n  "))
}
