//! Where the members of a cluster listen, and where its run folder is.

use super::files;
use super::ports::{Port, is_free};
use super::{Folder, Options};
use anyhow::{Context, Result, bail};
use selvage_fabric::config::Config;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

/// The addresses of a cluster.
#[derive(Debug)]
pub struct Place {
    /// Where browsers connect.
    pub director: SocketAddr,
    /// The admin API.
    pub admin: SocketAddr,
    /// Where the nodes' web servers listen, in the order of their names.
    pub nodes: Vec<SocketAddr>,
    /// Where the director listens for nodes of other hosts, if there are any.
    pub director_control: Option<SocketAddr>,
    /// The same of the servers.
    pub servers: Vec<SocketAddr>,
    _ports: Vec<Port>,
}

impl Place {
    /// Finds addresses for all members.
    ///
    /// # Errors
    /// A port is taken.
    pub fn of(options: &Options) -> Result<Self> {
        let mut ports = vec![port(options.port, "--port")?, port(options.admin_port, "--admin-port")?];
        let (director, admin) = (ports[0].address, ports[1].address);
        // A number that is free here is also free on a host where only members of such clusters listen.
        let mut free = |member: &str| -> Result<SocketAddr> {
            let port = Port::free()?;
            let mut address = port.address;
            if let Some(hosts) = &options.hosts {
                address.set_ip(hosts.address_of(member));
            }
            ports.push(port);
            Ok(address)
        };
        let nodes = options.node_names().map(|node| free(&node)).collect::<Result<_>>()?;
        let (mut director_control, mut servers) = (None, Vec::new());
        if options.hosts.is_some() {
            director_control = Some(free(super::DIRECTOR)?);
            servers = options.server_names().map(|server| free(&server)).collect::<Result<_>>()?;
        }
        Ok(Self { director, admin, nodes, director_control, servers, _ports: ports })
    }
}

/// Writes the configuration of a cluster into its run folder.
///
/// # Errors
/// The system refuses, or the options make no good configuration.
pub fn configure(
    options: &Options,
    folder: &Folder,
    user: Option<&super::WebUser>,
) -> Result<(Place, Config)> {
    let place = Place::of(options)?;
    let text = files::config(options, &place, folder.path(), user)?;
    files::write_secret(&folder.config(), &text, user)?;
    let config = Config::load(&folder.config())?;
    if let Some(user) = user {
        folder.share_with(user.gid)?;
    }
    Ok((place, config))
}

fn port(wanted: Option<u16>, option: &str) -> Result<Port> {
    let Some(number) = wanted else { return Port::free() };
    match Port::reserve(number) {
        Some(port) if is_free(port.address) => Ok(port),
        _ => bail!(
            "port {number} is taken: choose another with {option}, or end the program that listens there"
        ),
    }
}

/// The run folder: given, or by port, so that a run finds what a crashed one on the same port left; unique
/// without a port.
pub fn folder_path(options: &Options) -> Result<PathBuf> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    if let Some(folder) = &options.folder {
        return Ok(folder.clone());
    }
    let parent = std::env::temp_dir().canonicalize().context("the temporary folder")?;
    let uid = rustix::process::geteuid().as_raw();
    if let Some(port) = options.port {
        return Ok(parent.join(format!("selvage-{uid}-{port}")));
    }
    let prefix = format!("selvage-{uid}-t");
    Folder::sweep(&parent, &prefix);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    Ok(parent.join(format!("{prefix}{}-{number}", std::process::id())))
}
