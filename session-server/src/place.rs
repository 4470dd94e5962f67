//! A server's name on the host: its lock and its socket, and its address for other hosts. Whoever holds the
//! lock is the server of that name.
//!
//! Invariant: lock file and socket are removed before the lock is let go, and a lock counts only while its
//! file is the one that the path names, so two servers never hold one name, whatever order they start and
//! stop in.

use rustix::fs::{FlockOperation, flock};
use selvage_fabric::config::Config;
use selvage_fabric::error::{Error, ErrorKind, Origin, Result};
use std::fs::{File, OpenOptions, Permissions};
use std::io::ErrorKind as IoErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// Connections of other hosts that the kernel keeps until they are accepted.
const HOSTS_BACKLOG: i32 = 1024;

/// The lock and the listening sockets; what is in the run folder is removed when it is dropped.
pub(crate) struct Place {
    listener: UnixListener,
    hosts: Option<TcpListener>,
    socket: PathBuf,
    lock: PathBuf,
    _held: File,
}

impl Place {
    /// Takes the name, and replaces the socket of a dead server of that name.
    pub(crate) fn take(config: &Config, name: &str) -> Result<Self> {
        let run_dir = &config.cluster.run_dir;
        if !run_dir.is_dir() {
            let why = format!(
                "run_dir {} ({}) does not exist or is no folder: create it, writable by this user",
                run_dir.display(),
                config.path.display()
            );
            return Err(Error::new(ErrorKind::Invalid, Origin::Server, why));
        }
        let lock = run_dir.join(format!("server-{name}.lock"));
        let held = hold(&lock, name)?;
        let socket = config.server_socket(name);
        // First, so that whoever finds the socket finds the address, too.
        let control = config.server(name).and_then(|server| server.control);
        let hosts = control.map(|address| listen_for_hosts(address, name)).transpose();
        let hosts = hosts.inspect_err(|_| remove(&lock))?;
        let listener = listen(&socket).inspect_err(|_| remove(&lock))?;
        Ok(Self { listener, hosts, socket, lock, _held: held })
    }

    /// The listening socket; accepting does not block.
    pub(crate) fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// The listening socket for other hosts, if it is configured; accepting does not block.
    pub(crate) fn hosts(&self) -> Option<&TcpListener> {
        self.hosts.as_ref()
    }

    /// Where it listens on this host.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        remove(&self.socket);
        remove(&self.lock);
    }
}

fn hold(path: &Path, name: &str) -> Result<File> {
    loop {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path)
            .map_err(|error| refused(path, error))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let why = format!(
                    "a server named \"{name}\" runs already (it holds {}): stop it, or choose another --name",
                    path.display()
                );
                return Err(Error::new(ErrorKind::Conflict, Origin::Server, why));
            }
            Err(error) => {
                return Err(Error::os(Origin::Server, format!("cannot lock {}", path.display()), error));
            }
        }
        // The holder before may have removed the file between our open and our lock; then it names nothing
        // any more.
        let ours = file.metadata().map_err(|error| refused(path, error))?;
        if path.metadata().is_ok_and(|named| (named.dev(), named.ino()) == (ours.dev(), ours.ino())) {
            return Ok(file);
        }
    }
}

fn listen(socket: &Path) -> Result<UnixListener> {
    remove(socket);
    let listener = UnixListener::bind(socket).map_err(|error| refused(socket, error))?;
    // Nodes run as other users: who may do what is decided by the kernel's word on each peer, not by the
    // file's mode.
    let opened = std::fs::set_permissions(socket, Permissions::from_mode(0o666))
        .and_then(|()| listener.set_nonblocking(true));
    opened.map_err(|error| {
        remove(socket);
        refused(socket, error)
    })?;
    Ok(listener)
}

fn listen_for_hosts(address: SocketAddr, name: &str) -> Result<TcpListener> {
    let listener = TcpListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        // Every process of every node may come at once, as after a restart.
        rustix::net::listen(&listener, HOSTS_BACKLOG)?;
        Ok(listener)
    });
    listener.map_err(|error| {
        let (kind, why) = match error.kind() {
            IoErrorKind::AddrInUse => (ErrorKind::Conflict, "another program uses this port"),
            IoErrorKind::AddrNotAvailable => (ErrorKind::Os, "this host does not have this address"),
            _ => (ErrorKind::Os, "the system refuses"),
        };
        let what = format!("cannot listen on {address} ({why}): see `control` of server \"{name}\"");
        Error::new(kind, Origin::Server, what).with_source(error)
    })
}

fn refused(path: &Path, error: std::io::Error) -> Error {
    let help = match error.kind() {
        IoErrorKind::PermissionDenied => "make the folder writable for this user, or change run_dir",
        _ => "look after run_dir",
    };
    Error::os(Origin::Server, format!("cannot make {} ({help})", path.display()), error)
}

fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != IoErrorKind::NotFound
    {
        tracing::warn!("cannot remove {}: {error}", path.display());
    }
}
