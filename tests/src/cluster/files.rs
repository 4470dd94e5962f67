//! What the launcher writes into the run folder: the configuration of the cluster and of each nginx.

use super::place::Place;
use super::{Options, WebUser, folder};
use crate::guest::Agent;
use anyhow::Result;
use data_encoding::HEXLOWER;
use std::fmt::Write;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The page that shows a browser its session.
pub const PAGE: &str = include_str!("../../../webnode-ffi/nginx/page/index.html");

/// Text of `selvage.toml`.
pub fn config(options: &Options, place: &Place, run_dir: &Path, user: Option<&WebUser>) -> Result<String> {
    let mut key = [0; 32];
    getrandom::fill(&mut key)?;
    let control = |address: Option<SocketAddr>| match address {
        Some(address) => format!("control = \"{address}\"\n"),
        None => String::new(),
    };
    let mut text = format!(
        "[cluster]\nname = \"{}\"\nrun_dir = \"{}\"\ncopies = {}\ncookie_keys = [\"{}\"]\n{}\n\
         [director]\nlisten = \"{}\"\nadmin_listen = \"{}\"\n{}{}\n",
        options.name,
        run_dir.display(),
        options.copies,
        HEXLOWER.encode(&key),
        options.cluster,
        place.director,
        place.admin,
        control(place.director_control),
        options.director,
    );
    text.push_str(&options.tables);
    if options.hosts.is_some() {
        writeln!(text, "\n[tls]\ndir = \"{}/tls\"", run_dir.display())?;
    }
    for (at, name) in options.server_names().enumerate() {
        let weight = options.weights.get(at).copied().unwrap_or(1);
        writeln!(text, "\n[[server]]\nname = \"{name}\"\nweight = {weight}")?;
        text.push_str(&control(place.servers.get(at).copied()));
    }
    for (name, address) in options.node_names().zip(&place.nodes) {
        writeln!(text, "\n[[node]]\nname = \"{name}\"\naddress = \"{address}\"")?;
        if let Some(user) = user {
            writeln!(text, "uids = [{}]", user.uid)?;
        }
    }
    Ok(text)
}

/// Writes a file that holds a secret: for the owner, and for the web servers' group if they have another
/// user.
pub fn write_secret(path: &Path, text: &str, user: Option<&WebUser>) -> Result<()> {
    use std::io::Write as _;
    let mut file = fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    match user {
        Some(user) => folder::share(path, user.gid, 0o640),
        None => Ok(()),
    }
}

/// One nginx.
pub struct Nginx<'a> {
    /// The node's name.
    pub name: &'a str,
    /// Where it listens.
    pub address: SocketAddr,
    /// Worker processes.
    pub workers: u32,
    /// Module to load.
    pub module: PathBuf,
    /// The cluster's configuration.
    pub config: PathBuf,
    /// The run folder.
    pub run_dir: &'a Path,
    /// User of the workers, if not the launcher's.
    pub user: Option<&'a WebUser>,
    /// What the library shall write into the log; empty: what this process's environment says.
    pub log: &'a str,
}

impl Nginx<'_> {
    /// The folder of this nginx.
    pub fn dir(&self) -> PathBuf {
        self.run_dir.join(format!("nginx-{}", self.name))
    }

    /// Writes the folder on this host: configuration, page, folders for temporary files.
    pub fn write(&self) -> Result<()> {
        fs::create_dir_all(self.page())?;
        for (path, text) in self.files() {
            fs::write(&path, text)?;
            if let Some(user) = self.user {
                folder::share(&path, user.gid, 0o640)?;
            }
        }
        if let Some(user) = self.user {
            folder::share(&self.dir(), user.gid, 0o750)?;
            folder::share(&self.page(), user.gid, 0o750)?;
        }
        Ok(())
    }

    /// Writes the folder on another host.
    pub fn write_to(&self, agent: Agent) -> Result<()> {
        let gid = self.user.map_or(0, |user| user.gid);
        for (path, text) in self.files() {
            agent.put_file_of(&path, text.as_bytes(), 0o640, (0, gid))?;
        }
        let (dir, page) = (self.dir(), self.page());
        let (dir, page) = (dir.display(), page.display());
        agent.shell(&format!("chown :{gid} {dir} {page}; chmod 750 {dir} {page}")).map(drop)
    }

    fn page(&self) -> PathBuf {
        self.dir().join("page")
    }

    fn files(&self) -> [(PathBuf, String); 2] {
        [(self.page().join("index.html"), PAGE.into()), (self.dir().join("nginx.conf"), self.text())]
    }

    /// What the library shall write.
    fn log(&self) -> String {
        match self.log {
            "" => std::env::var(super::member::LOG_VARIABLE).unwrap_or_else(|_| "info".into()),
            log => log.to_owned(),
        }
    }

    /// Text of `nginx.conf`.
    fn text(&self) -> String {
        let dir = self.dir();
        let dir = dir.display();
        let user = self.user.map_or(String::new(), |user| format!("user {} {};\n", user.name, user.group));
        format!(
            "load_module {module};\n\
             daemon off;\n\
             worker_processes {workers};\n\
             {user}\
             pid {dir}/nginx.pid;\n\
             error_log stderr notice;\n\
             env SELVAGE_LOG={log};\n\
             events {{ worker_connections 2048; }}\n\
             http {{\n\
             \x20   access_log off;\n\
             \x20   types {{ text/html html; }}\n\
             \x20   client_body_temp_path {dir}/body;\n\
             \x20   proxy_temp_path {dir}/proxy;\n\
             \x20   fastcgi_temp_path {dir}/fastcgi;\n\
             \x20   uwsgi_temp_path {dir}/uwsgi;\n\
             \x20   scgi_temp_path {dir}/scgi;\n\
             \x20   client_max_body_size 64m;\n\
             \x20   keepalive_requests 1000000;\n\
             \x20   selvage {config} {name};\n\
             \x20   server {{\n\
             \x20       listen {address};\n\
             \x20       location /session {{ selvage_session create; selvage_api; }}\n\
             \x20       location / {{ selvage_session create; root {dir}/page; }}\n\
             \x20   }}\n\
             }}\n",
            module = self.module.display(),
            log = self.log(),
            workers = self.workers,
            config = self.config.display(),
            name = self.name,
            address = self.address,
        )
    }
}
