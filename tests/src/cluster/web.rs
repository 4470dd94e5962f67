//! The web servers that can be a node: nginx with the module, and the C++ one of
//! `webnode-ffi/examples/httplib`.

use super::{Cluster, DIRECTOR, files};
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::fs;
use std::process::Command;

/// What a web node is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WebServer {
    /// nginx, with several worker processes.
    #[default]
    Nginx,
    /// One process with many threads, on cpp-httplib. Only on the launcher's own host.
    Httplib,
}

impl WebServer {
    /// At this one it answers what it has begun to, and ends.
    pub(super) fn polite_signal(self) -> Signal {
        match self {
            // It drops its requests at SIGTERM.
            Self::Nginx => Signal::QUIT,
            Self::Httplib => Signal::TERM,
        }
    }
}

impl Cluster {
    /// The command that starts a node's web server, whose files are written now.
    pub(super) fn node_command(&self, name: &str) -> Result<Command> {
        let at = self.options.node_names().position(|node| node == name);
        let at = at.with_context(|| format!("the cluster has no member {name}"))?;
        match self.options.web_server(name) {
            WebServer::Nginx => self.nginx_command(name, at),
            WebServer::Httplib => self.httplib_command(name, at),
        }
    }

    fn nginx_command(&self, name: &str, at: usize) -> Result<Command> {
        let nginx = files::Nginx {
            name,
            address: self.place.nodes[at],
            workers: self.options.workers,
            module: self.product.nginx_module(),
            config: self.folder()?.config(),
            run_dir: self.folder()?.path(),
            user: self.user.as_ref(),
            log: &self.options.log,
        };
        match self.agent_of(name) {
            Some(agent) => nginx.write_to(agent)?,
            None => nginx.write()?,
        }
        let mut command = Command::new(super::nginx_of(&self.nginx)?);
        command.args(["-e", "stderr", "-p"]).arg(nginx.dir()).arg("-c").arg(nginx.dir().join("nginx.conf"));
        Ok(command)
    }

    fn httplib_command(&self, name: &str, at: usize) -> Result<Command> {
        ensure!(self.agent_of(name).is_none(), "{name} is no nginx: it can only run where {DIRECTOR} runs");
        let page = self.folder()?.path().join(format!("httplib-{name}.html"));
        fs::write(&page, files::PAGE)?;
        let mut command = Command::new(self.product.httplib_node()?);
        command.args(["--listen", &self.place.nodes[at].to_string(), "--node", name]);
        command.arg("--config").arg(self.folder()?.config()).arg("--page").arg(page);
        if let Some(user) = &self.user {
            command.args(["--user", &user.name]);
        }
        Ok(command)
    }
}
