//! The command `selvage`: what operators type. Talks to the admin API; `check-config` reads a file, and `ca`
//! makes certificates.

mod ca;
mod call;
mod table;

use crate::cluster::status::Status;
use clap::{Args, Parser, Subcommand};
use hyper::Method;
use selvage_fabric::config::{Config, DEFAULT_PATH};
use selvage_fabric::error::{Error, ErrorKind, Origin, Result};
use std::path::PathBuf;

/// Arguments of `selvage`.
#[derive(Parser, Debug)]
#[command(name = "selvage", version, about = "Looks after a Selvage cluster")]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Show nodes, servers and how well sessions are protected.
    Status {
        #[command(flatten)]
        target: Target,
        /// Print the admin API's JSON.
        #[arg(long)]
        json: bool,
    },
    /// Hand the sessions of a node over to the others and keep it out, with no failed request.
    Drain {
        /// The node's name.
        node: String,
        #[command(flatten)]
        target: Target,
    },
    /// Let a drained node come back.
    Undrain {
        /// The node's name.
        node: String,
        #[command(flatten)]
        target: Target,
    },
    /// Check a configuration file.
    CheckConfig {
        /// The file.
        file: PathBuf,
    },
    /// Make the certificates of a cluster over several hosts: those that are missing in the folder of
    /// `[tls]`.
    Ca(ca::Arguments),
}

/// Which cluster.
#[derive(Args, Debug)]
struct Target {
    /// The admin API, like http://127.0.0.1:8081.
    #[arg(long, value_name = "URL", conflicts_with = "config")]
    admin: Option<String>,
    /// The configuration file that names the admin API; else SELVAGE_CONFIG, else /etc/selvage/selvage.toml.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Target {
    fn url(&self) -> Result<String> {
        if let Some(url) = &self.admin {
            return Ok(url.trim_end_matches('/').to_owned());
        }
        let path = Config::resolve_path(self.config.as_deref());
        let default = path.as_os_str() == DEFAULT_PATH && !path.exists();
        let address = match default {
            // Nothing was said and nothing is installed: where a director listens unless told otherwise.
            true => "127.0.0.1:8081".to_owned(),
            false => Config::load(&path)?.director.admin_listen.to_string(),
        };
        Ok(format!("http://{address}"))
    }
}

/// Does what the arguments say; the text to print.
///
/// # Errors
/// One line that says what went wrong.
pub fn run(arguments: Arguments) -> Result<String> {
    match arguments.command {
        Command::Status { target, json } => {
            let page = call::call(Method::GET, &format!("{}/admin/view", target.url()?))?;
            if json {
                return Ok(page);
            }
            let status: Status = serde_json::from_str(&page).map_err(|error| {
                Error::new(ErrorKind::Corrupt, Origin::Director, "the answer is no view").with_source(error)
            })?;
            Ok(table::table(&status))
        }
        Command::Ca(arguments) => ca::run(&arguments),
        Command::Drain { node, target } => change(&node, "drain", &target),
        Command::Undrain { node, target } => change(&node, "undrain", &target),
        Command::CheckConfig { file } => {
            let config = Config::load(&file)?;
            Ok(format!(
                "{}: good: cluster \"{}\", {} nodes, {} servers, {} copies\n",
                file.display(),
                config.cluster.name,
                config.nodes.len(),
                config.servers.len(),
                config.cluster.copies
            ))
        }
    }
}

fn change(node: &str, what: &str, target: &Target) -> Result<String> {
    let answer = call::call(Method::POST, &format!("{}/admin/nodes/{node}/{what}", target.url()?))?;
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap_or_default();
    Ok(format!("node {node}: {}\n", answer["result"].as_str().unwrap_or("done")))
}
