//! The director's place on the host: the run folder with the nodes' folders, the lock, the sockets. Every
//! failure is one line that says what is wrong and what to do.

use crate::inherited::Inherited;
use crate::limits;
use rustix::fs::{FlockOperation, flock};
use selvage_fabric::config::{Config, Node};
use selvage_fabric::error::{Error, ErrorKind, Origin, Result};
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{ErrorKind as IoErrorKind, Read, Seek, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// What a running director holds. Dropping it removes the socket and frees the lock.
#[derive(Debug)]
pub struct Place {
    socket: PathBuf,
    /// Held for its lock.
    _lock: File,
}

/// What a director begins with.
#[derive(Debug)]
pub struct Start {
    /// Where stewards connect.
    pub control: UnixListener,
    /// Where stewards of other hosts connect, if they may.
    pub remote: Option<TcpListener>,
    /// Where browsers connect.
    pub browsers: TcpListener,
    /// Where operators connect.
    pub admin: TcpListener,
    /// Nodes that were drained when the last director here ended.
    pub drained: Vec<String>,
    /// The least term of this director.
    pub term_min: u32,
}

impl Place {
    /// Takes the place.
    ///
    /// # Errors
    /// `Conflict` if another director or another program has it; `Os` if the host refuses; `Invalid` if a
    /// socket that somebody holds for it is none of its own.
    pub fn take(config: &Config, mut inherited: Inherited) -> Result<(Self, Start)> {
        make_run_dir(&config.cluster.run_dir)?;
        let lock = lock(&config.cluster.run_dir.join("director.lock"))?;
        for node in config.nodes.iter().filter(|node| is_here(node.address.ip())) {
            make_node_dir(&config.node_dir(&node.name), node)?;
        }
        let mut listen = |address, key| match inherited.claim(key, address) {
            Some(held) => ready(held),
            None => ready(bind(address, key)?),
        };
        let browsers = listen(config.director.listen, "listen")?;
        let admin = listen(config.director.admin_listen, "admin_listen")?;
        let remote = config.director.control.map(|address| listen(address, "control")).transpose()?;
        inherited.none_is_left()?;
        let socket = config.director_socket();
        let control = control(&socket)?;
        let term_min = next_term(&config.cluster.run_dir.join("director.term"))?;
        let drained = std::fs::read_to_string(drained_path(config)).unwrap_or_default();
        let drained = drained.lines().map(str::to_owned).collect();
        Ok((Self { socket, _lock: lock }, Start { control, remote, browsers, admin, drained, term_min }))
    }
}

/// Where the names of drained nodes are kept over a restart of the director, one per line.
pub fn drained_path(config: &Config) -> PathBuf {
    config.cluster.run_dir.join("director.drained")
}

impl Drop for Place {
    fn drop(&mut self) {
        // If it is gone already, somebody else has cleaned up.
        let _ = std::fs::remove_file(&self.socket);
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
pub fn replace(path: &Path, text: &str) -> Result<()> {
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
