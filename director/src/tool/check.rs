//! `selvage check-config`: whether a file is good, and what each daemon makes of it.

use super::Common;
use super::call::Caller;
use super::table::{bytes, number, table, text, word};
use crate::reload::Pending;
use crate::tls::Certificates;
use hyper::Method;
use selvage_fabric::cache::{CacheSpec, chunk_bytes};
use selvage_fabric::config::Config;
use selvage_fabric::error::{Error, ErrorKind, Origin, Result};
use selvage_fabric::ident::Incarnation;
use selvage_fabric::lease::LeaseGeometry;
use serde::Serialize;
use std::fmt::Write;
use std::path::Path;

/// What a good file says.
#[derive(Serialize)]
struct Report {
    file: String,
    cluster: String,
    copies: u32,
    daemons: Vec<Daemon>,
    /// What works and is probably not meant.
    warnings: Vec<String>,
    /// What a reload would change, if that was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    running: Option<Pending>,
}

/// One daemon, or one web server.
#[derive(Serialize)]
struct Daemon {
    name: String,
    /// Where it is reached.
    at: Vec<String>,
    /// Memory that it takes, bytes, and where.
    bytes: u64,
    memory: &'static str,
}

/// Checks the file, and if that is wanted, what the running director would make of it.
pub(super) fn run(common: &Common, file: &Path, against_running: bool) -> Result<String> {
    let config = Config::load(file)?;
    let report = Report {
        file: file.display().to_string(),
        cluster: config.cluster.name.clone(),
        copies: config.cluster.copies,
        daemons: daemons(&config)?,
        warnings: warnings(&config),
        running: against_running.then(|| pending(common, &config, file)).transpose()?,
    };
    common.say(&report, || describe(&config, &report))
}

/// What the director that runs says, which must be one that reads this file.
fn pending(common: &Common, config: &Config, file: &Path) -> Result<Pending> {
    let url = match (&common.admin, &common.config) {
        (None, None) => format!("http://{}", config.director.admin_listen),
        _ => common.url()?,
    };
    let pending: Pending = Caller::new(url)?.json(Method::GET, "/admin/reload")?;
    // Where the director is on another host it says so by a path that is not there.
    let same = pending.file.canonicalize().ok() == file.canonicalize().ok();
    match same {
        true => Ok(pending),
        false => {
            let what = format!("the running director reads {}, and not this file", pending.file.display());
            Err(Error::new(ErrorKind::Conflict, Origin::Director, what))
        }
    }
}

fn daemons(config: &Config) -> Result<Vec<Daemon>> {
    let socket = |path: std::path::PathBuf| path.display().to_string();
    let control = |address: Option<std::net::SocketAddr>| address.map(|address| format!("tls://{address}"));
    let director = &config.director;
    let mut at = vec![
        format!("http://{}", director.listen),
        format!("http://{} (admin)", director.admin_listen),
        socket(config.director_socket()),
    ];
    at.extend(control(director.control));
    at.extend(director.tls.as_ref().map(|tls| format!("https://{}", tls.listen)));
    let mut daemons = vec![Daemon { name: "director".to_owned(), at, bytes: 0, memory: "" }];
    // One for each node; those of dead ones come on top until their sessions are adopted.
    let leases = lease_bytes(config)?.saturating_mul(config.nodes.len() as u64);
    for server in &config.servers {
        let mut at = vec![socket(config.server_socket(&server.name))];
        at.extend(control(server.control));
        let name = format!("server {}", server.name);
        daemons.push(Daemon { name, at, bytes: leases, memory: "memory for leases" });
    }
    for node in &config.nodes {
        let segment = CacheSpec::from_config(config, &node.name, Incarnation::NONE).segment_bytes()?;
        let (name, at) = (format!("node {}", node.name), vec![format!("http://{}", node.address)]);
        daemons.push(Daemon { name, at, bytes: segment, memory: "/dev/shm" });
    }
    Ok(daemons)
}

fn lease_bytes(config: &Config) -> Result<u64> {
    let chunk_bytes = chunk_bytes(config.session.archive_bytes_max);
    let geometry = LeaseGeometry {
        slot_count: config.memory.sessions_max,
        heap_bytes: config.memory.lease_bytes / chunk_bytes * chunk_bytes,
        chunk_bytes,
    };
    geometry.check()?;
    Ok(geometry.total_bytes())
}

fn warnings(config: &Config) -> Vec<String> {
    let mut warnings = config.warnings();
    let mut warn = |is_so: bool, text: String| {
        if is_so {
            warnings.push(text);
        }
    };
    let (admin, run_dir) = (config.director.admin_listen, &config.cluster.run_dir);
    warn(
        !admin.ip().is_loopback(),
        format!(
            "admin_listen is {admin}: whoever reaches it may see and destroy sessions, without a password"
        ),
    );
    warn(!run_dir.is_dir(), format!("run_dir {} is not there on this host", run_dir.display()));
    let copies = config.cluster.copies as usize;
    warn(
        config.servers.len() < copies,
        format!("{copies} copies are wanted, and there are {} servers", config.servers.len()),
    );
    warn(config.nodes.len() < 2, "with one node nobody can take its sessions over when it dies".to_owned());
    // A node that dies leaves a lease that stays until its sessions have copies in others.
    let leases = lease_bytes(config).unwrap_or_default().saturating_mul(2 * config.nodes.len() as u64);
    let most = config.memory.server_bytes_max;
    warn(
        most != 0 && most < leases,
        format!(
            "server_bytes_max is {}; nodes that all come back at once need {}",
            bytes(most),
            bytes(leases)
        ),
    );
    if let Some(Err(why)) = config.director.tls.as_ref().map(Certificates::load) {
        warn(true, format!("[director.tls] is of no use on this host: {why}"));
    }
    if let Some(tls) = &config.tls {
        warn(
            !tls.dir.join("ca.pem").is_file(),
            format!("[tls] dir {} has no ca.pem on this host: selvage ca makes it", tls.dir.display()),
        );
    }
    warnings
}

fn describe(config: &Config, report: &Report) -> String {
    let mut page = format!(
        "{}: good: cluster \"{}\", {} nodes, {} servers, {} copies\n\n",
        report.file,
        report.cluster,
        config.nodes.len(),
        config.servers.len(),
        report.copies
    );
    let mut rows = table(&["DAEMON", "REACHED AT", "NEEDS", "OF"]);
    for daemon in &report.daemons {
        let needs = if daemon.bytes == 0 { "-".to_owned() } else { bytes(daemon.bytes) };
        rows.add_row(vec![
            word(&daemon.name),
            word(&daemon.at.join(", ")),
            number(needs),
            word(daemon.memory),
        ]);
    }
    page += &text(rows);
    for warning in &report.warnings {
        // Writing into a string cannot fail.
        let _ = write!(page, "\nwarning: {warning}");
    }
    if !report.warnings.is_empty() {
        page.push('\n');
    }
    if let Some(pending) = &report.running {
        let _ = writeln!(page, "\nreload of the running director: {}", pending.changes.said());
    }
    page
}
