//! The director's place on the host: the run folder with the nodes' folders, the lock, the sockets. Every
//! failure is one line that says what is wrong and what to do.

use crate::cluster::Out;
use crate::inherited::{Claimed, Inherited};
use crate::limits;
use rustix::fs::{FlockOperation, flock};
use selvage_fabric::config::{Config, Node};
use selvage_fabric::error::{Error, ErrorKind, Origin, Result};
use selvage_fabric::view::View;
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{ErrorKind as IoErrorKind, Read, Seek, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};
use tracing::warn;

/// What a running director holds. Dropping it frees the lock, unless another director has it, too, and
/// removes the socket if it is this one's.
#[derive(Debug)]
pub struct Place {
    socket: PathBuf,
    /// Held for its lock.
    lock: File,
    /// No other director listens on the socket, nor can one take it back.
    is_own: bool,
}

/// Where a director listens.
#[derive(Debug)]
pub struct Sockets {
    /// Where stewards connect.
    pub control: UnixListener,
    /// Where stewards of other hosts connect, if they may.
    pub remote: Option<Claimed>,
    /// Where browsers connect.
    pub browsers: Claimed,
    /// Where browsers connect with TLS, if they may.
    pub tls: Option<Claimed>,
    /// Where operators connect.
    pub admin: Claimed,
}

/// What a director, or its control side, begins with.
#[derive(Debug)]
pub struct Start {
    /// What is kept for the next director.
    pub memory: Memory,
    /// Nodes that were kept out when the last director here ended, and why.
    pub drained: Vec<(String, Out)>,
    /// The last view of the last director here.
    pub kept: Option<View>,
    /// The least term of this director.
    pub term_min: u32,
}

impl Sockets {
    /// The TCP sockets, each with the name by which the service manager has it.
    pub fn tcp(&self) -> impl Iterator<Item = (Option<&'static str>, &TcpListener)> {
        let all = [
            ("listen", Some(&self.browsers)),
            ("tls_listen", self.tls.as_ref()),
            ("admin_listen", Some(&self.admin)),
            ("control", self.remote.as_ref()),
        ];
        all.into_iter().filter_map(|(key, socket)| {
            let socket = socket?;
            Some((socket.is_named.then_some(key), &socket.listener))
        })
    }
}

impl Start {
    /// What the last control side here has left.
    ///
    /// # Errors
    /// `Os` if the term cannot be kept.
    pub fn read(config: &Config) -> Result<Self> {
        let term_min = next_term(&config.cluster.run_dir.join("director.term"))?;
        let memory = Memory::of(config);
        let (drained, kept) = (memory.drained(), memory.view());
        Ok(Self { memory, drained, kept, term_min })
    }
}

/// What a director keeps in its run folder for the next one.
#[derive(Debug)]
pub struct Memory {
    drained: PathBuf,
    view: PathBuf,
}

impl Memory {
    fn of(config: &Config) -> Self {
        let run_dir = &config.cluster.run_dir;
        Self { drained: run_dir.join("director.drained"), view: run_dir.join("director.view") }
    }

    /// Keeps which nodes the operator keeps out, one per line: the name, and why.
    ///
    /// # Errors
    /// `Os`.
    pub fn keep_drained(&self, names: &[(String, Out)]) -> Result<()> {
        let lines: String = names.iter().map(|(name, out)| format!("{name} {}\n", out.name())).collect();
        replace(&self.drained, &lines)
    }

    /// Keeps a view. If that fails none is kept: an older one would tell what is not true any more.
    ///
    /// # Errors
    /// `Os`.
    pub fn keep_view(&self, view: &View) -> Result<()> {
        let text = serde_json::to_string(view).map_err(|error| {
            Error::new(ErrorKind::Invalid, Origin::Director, "a view cannot be written").with_source(error)
        });
        text.and_then(|text| replace(&self.view, &format!("{text}\n"))).inspect_err(|_| {
            // It may not have been there.
            let _ = std::fs::remove_file(&self.view);
        })
    }

    fn drained(&self) -> Vec<(String, Out)> {
        let names = std::fs::read_to_string(&self.drained).unwrap_or_default();
        let line = |line: &str| {
            let (name, why) = line.split_once(' ').unwrap_or((line, ""));
            (name.to_owned(), why.parse().unwrap_or(Out::Drained))
        };
        names.lines().map(line).collect()
    }

    /// A file that makes no sense is as good as none: servers tell what was.
    fn view(&self) -> Option<View> {
        let text = std::fs::read_to_string(&self.view).ok()?;
        let view = serde_json::from_str(&text);
        view.inspect_err(|error| warn!("{} is no view: {error}", self.view.display())).ok()
    }
}

impl Place {
    /// Takes the place.
    ///
    /// # Errors
    /// `Conflict` if another director or another program has it; `Os` if the host refuses; `Invalid` if a
    /// socket that somebody holds for it is none of its own.
    pub fn take(config: &Config, mut inherited: Inherited) -> Result<(Self, Sockets)> {
        make_run_dir(&config.cluster.run_dir)?;
        let path = config.cluster.run_dir.join("director.lock");
        let lock = match inherited.lock.take() {
            Some(file) => sign(file, &path)?,
            None => lock(&path)?,
        };
        for node in &config.nodes {
            make_own_node_dir(config, node)?;
        }
        let mut listen = |address, key| match inherited.claim(key, address) {
            Some(Claimed { listener, is_named }) => Ok(Claimed { listener: ready(listener)?, is_named }),
            None => Ok(Claimed { listener: ready(bind(address, key)?)?, is_named: false }),
        };
        let browsers = listen(config.director.listen, "listen")?;
        let tls = config.director.tls.as_ref().map(|tls| listen(tls.listen, "tls_listen")).transpose()?;
        let admin = listen(config.director.admin_listen, "admin_listen")?;
        let remote = config.director.control.map(|address| listen(address, "control")).transpose()?;
        inherited.none_is_left()?;
        let socket = config.director_socket();
        let (control, is_own) = match inherited.control.take() {
            Some(listener) => (listener, false),
            None => (control(&socket)?, true),
        };
        let sockets = Sockets { control, remote, browsers, tls, admin };
        Ok((Self { socket, lock, is_own }, sockets))
    }

    /// The lock of the run folder.
    pub fn lock(&self) -> &File {
        &self.lock
    }

    /// Another director has everything now.
    pub fn hand_over(&mut self) {
        self.is_own = false;
    }

    /// The director that had it before can take nothing back any more.
    pub fn keep(&mut self) {
        self.is_own = true;
    }

    /// This one has everything again.
    ///
    /// # Errors
    /// `Os`.
    pub fn take_back(&self, config: &Config) -> Result<()> {
        let lock = self.lock.try_clone();
        let path = config.cluster.run_dir.join("director.lock");
        lock.map_err(|error| Error::os(Origin::Director, "cannot take the lock back", error))
            .and_then(|lock| sign(lock, &path))
            .map(drop)
    }
}

/// The folder of a node of this host.
///
/// # Errors
/// `Os`, `Conflict`, `Denied`.
pub fn make_own_node_dir(config: &Config, node: &Node) -> Result<()> {
    match is_here(node.address.ip()) {
        true => make_node_dir(&config.node_dir(&node.name), node),
        false => Ok(()),
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.is_own {
            // If it is gone already, somebody else has cleaned up.
            let _ = std::fs::remove_file(&self.socket);
        }
    }
}

fn make_run_dir(path: &Path) -> Result<()> {
    match DirBuilder::new().mode(0o755).create(path) {
        Ok(()) => set_mode(path, 0o755),
        Err(error) if error.kind() == IoErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => {
            let why = format!(
                "cannot create run_dir {}: its parent must exist and be writable for user {}; or set another \
                 run_dir",
                path.display(),
                uid()
            );
            Err(Error::os(Origin::Director, why, error))
        }
    }
}

/// The lock that makes this the only director of the run folder; the kernel frees it with the process.
fn lock(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).create(true).truncate(false).mode(0o644);
    let open = options.open(path);
    let mut file =
        open.map_err(|error| Error::os(Origin::Director, format!("cannot open {}", path.display()), error))?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        let mut pid = String::new();
        // Only for the message.
        let _ = file.read_to_string(&mut pid);
        let why = format!(
            "another director (pid {}) holds {}; stop it, or give this one another run_dir",
            pid.trim(),
            path.display()
        );
        return Err(Error::new(ErrorKind::Conflict, Origin::Director, why));
    }
    sign(file, path)
}

/// Writes into the lock file who has it.
fn sign(mut file: File, path: &Path) -> Result<File> {
    let written = file
        .set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| file.write_all(format!("{}\n", std::process::id()).as_bytes()));
    written
        .map_err(|error| Error::os(Origin::Director, format!("cannot write {}", path.display()), error))?;
    Ok(file)
}

/// The Unix time, s, but above the term of the last director here: two may start within a second, and tags
/// must not come back.
fn next_term(path: &Path) -> Result<u32> {
    let unix_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let unix_s = u32::try_from(unix_s).unwrap_or(u32::MAX);
    let last = std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u32>().ok());
    // A last term far ahead of the clock is a damaged file or a clock that was wrong.
    let last = last.filter(|last| *last < unix_s.saturating_add(limits::TERM_AHEAD_MAX_S));
    let term = last.map_or(unix_s, |last| unix_s.max(last + 1));
    replace(path, &format!("{term}\n"))?;
    Ok(term)
}

/// Writes a file whole or not at all.
///
/// # Errors
/// `Os`.
pub(crate) fn replace(path: &Path, text: &str) -> Result<()> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    std::fs::write(&fresh, text)
        .and_then(|()| std::fs::rename(&fresh, path))
        .map_err(|error| Error::os(Origin::Director, format!("cannot write {}", path.display()), error))
}

/// Whether an address is one of this host's: only those can be bound. Nodes of other hosts have their folders
/// there, and their users need not exist here.
fn is_here(address: IpAddr) -> bool {
    match UdpSocket::bind((address, 0)) {
        Err(error) => error.kind() != IoErrorKind::AddrNotAvailable,
        Ok(_) => true,
    }
}

/// A node's folder, private to its first user.
fn make_node_dir(path: &Path, node: &Node) -> Result<()> {
    let fail = |what: &str, error: std::io::Error| {
        Error::os(Origin::Director, format!("cannot {what} {}", path.display()), error)
    };
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == IoErrorKind::AlreadyExists && path.is_dir() => {}
        Err(error) => return Err(fail("create the node's folder", error)),
    }
    let metadata = path.symlink_metadata().map_err(|error| fail("look at", error))?;
    if !metadata.is_dir() {
        let why = format!("{} is no folder; remove it", path.display());
        return Err(Error::new(ErrorKind::Conflict, Origin::Director, why));
    }
    let wanted = node.uids.first().copied().unwrap_or_else(uid);
    if metadata.uid() != wanted {
        if uid() != 0 {
            let why = format!(
                "{} belongs to user {} and node \"{}\" runs as user {wanted}; only root can change that: \
                 remove the folder or start the director as root",
                path.display(),
                metadata.uid(),
                node.name
            );
            return Err(Error::new(ErrorKind::Denied, Origin::Director, why));
        }
        chown(path, Some(wanted), None).map_err(|error| fail("give to its user the folder", error))?;
    }
    if uid() == 0 || uid() == wanted {
        set_mode(path, 0o700)?;
    }
    Ok(())
}

fn bind(address: SocketAddr, key: &str) -> Result<TcpListener> {
    TcpListener::bind(address).map_err(|error| {
        if error.kind() == IoErrorKind::AddrInUse {
            let why = format!(
                "cannot listen on {address}: another program uses this port; stop it, or set another \
                 address as `{key}` in [director]"
            );
            return Error::new(ErrorKind::Conflict, Origin::Director, why);
        }
        Error::os(Origin::Director, format!("cannot listen on {address} (`{key}` in [director])"), error)
    })
}

/// Makes a listening socket fit for the runtime, with room for those who wait.
fn ready(listener: TcpListener) -> Result<TcpListener> {
    nonblocking(listener.set_nonblocking(true))?;
    rustix::net::listen(&listener, limits::BACKLOG)
        .map_err(|error| Error::os(Origin::Director, "cannot listen", error))?;
    Ok(listener)
}

/// The control socket. What lies there is a dead director's: the lock is ours.
fn control(socket: &Path) -> Result<UnixListener> {
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != IoErrorKind::NotFound => {
            return Err(Error::os(Origin::Director, format!("cannot remove {}", socket.display()), error));
        }
        _ => {}
    }
    let listener = UnixListener::bind(socket).map_err(|error| {
        Error::os(Origin::Director, format!("cannot listen on {}", socket.display()), error)
    })?;
    // Every node's user must reach it; who may speak is decided by the peer's user id.
    set_mode(socket, 0o666)?;
    nonblocking(listener.set_nonblocking(true))?;
    Ok(listener)
}

fn nonblocking(set: std::io::Result<()>) -> Result<()> {
    set.map_err(|error| Error::os(Origin::Director, "cannot set a socket non-blocking", error))
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    std::fs::set_permissions(path, Permissions::from_mode(mode)).map_err(|error| {
        Error::os(Origin::Director, format!("cannot set the mode of {}", path.display()), error)
    })
}

/// The director's user.
pub(crate) fn uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

#[cfg(test)]
mod tests {
    use super::*;
    use selvage_fabric::ident::{Epoch, Incarnation};
    use selvage_fabric::view::DeadEntry;

    #[test]
    fn a_socket_that_another_director_can_take_back_stays() {
        let folder = tempfile::tempdir().unwrap();
        let text = format!(
            "[cluster]\nname = \"t\"\nrun_dir = \"{}\"\ncookie_keys = [\"{}\"]\n\
             [director]\nlisten = \"127.0.0.1:0\"\nadmin_listen = \"127.0.0.1:0\"\n\
             [[server]]\nname = \"s1\"\n[[node]]\nname = \"n1\"\naddress = \"127.0.0.1:1\"\n",
            folder.path().display(),
            "11".repeat(32)
        );
        let config = Config::parse(Path::new("t.toml"), &text).unwrap();
        let (first, sockets) = Place::take(&config, Inherited::default()).unwrap();
        let successor = || {
            let mut inherited = Inherited::handed_over();
            inherited.lock = Some(first.lock().try_clone().unwrap());
            inherited.control = Some(sockets.control.try_clone().unwrap());
            Place::take(&config, inherited).unwrap().0
        };
        let socket = config.director_socket();
        // It does not get to serving: the first one listens on.
        drop(successor());
        assert!(socket.exists());
        let mut successor = successor();
        successor.keep();
        drop(successor);
        assert!(!socket.exists());
    }

    #[test]
    fn a_view_is_kept_and_nonsense_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name| folder.path().join(name);
        let memory = Memory { drained: path("director.drained"), view: path("director.view") };
        assert_eq!((memory.view(), memory.drained()), (None, Vec::new()));
        let dead = vec![DeadEntry { name: "n1".into(), incarnation: Incarnation(u64::MAX), sealed: true }];
        let view = View { epoch: Epoch { term: 7, number: 9 }, copies: 2, dead, ..View::default() };
        memory.keep_view(&view).unwrap();
        let out = vec![("n2".into(), Out::Drained), ("n3".into(), Out::Maintenance)];
        memory.keep_drained(&out).unwrap();
        assert_eq!((memory.view(), memory.drained()), (Some(view.clone()), out));
        std::fs::write(&memory.view, "{\"epoch\":").unwrap();
        assert_eq!(memory.view(), None);
        // What cannot be kept is not kept half: an older view would tell what is not true any more.
        memory.keep_view(&view).unwrap();
        std::fs::create_dir(path("director.view.new")).unwrap();
        memory.keep_view(&view).unwrap_err();
        assert_eq!(memory.view(), None);
    }
}
