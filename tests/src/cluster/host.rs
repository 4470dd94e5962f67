//! Clusters whose members run on several hosts: guests, of which this is guest 0.

use super::{Cluster, Kill, Remains, WebUser, folder};
use crate::guest::{self, Agent, Hypervisor};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Longest time from the start of a guest until its agent answers.
const BOOT_WAIT: Duration = Duration::from_secs(90);

/// Which member runs on which host. The director and whatever has no place named run on this one, guest 0.
#[derive(Debug, Clone, Default)]
pub struct Hosts {
    /// The guest that a node or server runs on.
    pub places: BTreeMap<String, u8>,
}

impl Hosts {
    /// The number of a member's host.
    pub fn of(&self, member: &str) -> u8 {
        self.places.get(member).copied().unwrap_or(0)
    }

    /// The agent of a member's host; none if it runs here.
    pub fn agent_of(&self, member: &str) -> Option<Agent> {
        Some(self.of(member)).filter(|guest| *guest != 0).map(Agent::of)
    }

    /// Where a member's host is reached by the others.
    pub fn address_of(&self, member: &str) -> IpAddr {
        guest::address(self.of(member)).into()
    }

    /// The other hosts.
    pub fn others(&self) -> Vec<u8> {
        let mut guests: Vec<u8> = self.places.values().copied().filter(|guest| *guest != 0).collect();
        guests.sort_unstable();
        guests.dedup();
        guests
    }

    /// The members of a host.
    pub fn members_of(&self, guest: u8) -> Vec<String> {
        let there = self.places.iter().filter(|(_, place)| **place == guest);
        there.map(|(member, _)| member.clone()).collect()
    }

    /// Removes what a stopped cluster has left on the other hosts, shared memory and its folder, and tells
    /// what was there, and which processes still work in the folder.
    pub(super) fn clear(&self, run_dir: &Path, segment_prefix: &str, remains: &mut Remains) -> Result<()> {
        let line = format!(
            "for process in /proc/[0-9]*; do \
                 if [ $process/cwd -ef {run_dir} ]; then echo process ${{process##*/}}; fi; done; \
             for segment in /dev/shm/{segment_prefix}*; do \
                 if [ -e $segment ]; then echo $segment; rm -f $segment; fi; done; \
             rm -rf {run_dir}",
            run_dir = run_dir.display(),
        );
        for guest in self.others() {
            for line in Agent::of(guest).shell(&line)?.lines() {
                match line.strip_prefix("process ") {
                    Some(pid) => remains.running.push(format!("process {pid} of guest {guest}")),
                    None => remains.segments.push(line.into()),
                }
            }
        }
        Ok(())
    }
}

impl Cluster {
    /// Makes the certificates of a cluster over several hosts and brings to each host what it needs.
    pub(super) fn prepare_hosts(&self) -> Result<()> {
        let Some(hosts) = &self.options.hosts else { return Ok(()) };
        let mut command = Command::new(self.product.operator_tool());
        command.arg("ca").arg("--config").arg(self.folder()?.config()).stdin(Stdio::null());
        let output = command.output().context("cannot start `selvage ca`")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "`selvage ca` ends with {}: {said}", output.status);
        if let (Some(user), Some(tls)) = (&self.user, &self.config.tls) {
            folder::share(&tls.dir, user.gid, 0o750)?;
            for node in self.options.node_names().filter(|node| hosts.of(node) == 0) {
                let key = tls.dir.join(format!("node-{node}.key"));
                std::os::unix::fs::chown(key, Some(user.uid), Some(user.gid))?;
            }
        }
        hosts.others().into_iter().try_for_each(|guest| self.prepare_host(guest))
    }

    /// Brings to another host what its members need, as an operator would: the configuration, the
    /// certificates of the members there, and the nodes' folders, for their user. At first, and when the host
    /// was started again with nothing on its disks.
    fn prepare_host(&self, guest: u8) -> Result<()> {
        let (agent, config, folder) = (Agent::of(guest), &self.config, self.folder()?);
        let tls = config.tls.as_ref().context("a cluster over several hosts needs [tls]")?;
        let root = WebUser { name: "root".into(), uid: 0, group: "root".into(), gid: 0 };
        let user = self.user.as_ref().unwrap_or(&root);
        let copy = |path: &Path, mode: u32, owner: (u32, u32)| {
            let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            agent.put_file_of(path, &bytes, mode, owner)
        };
        copy(&folder.config(), 0o640, (0, user.gid))?;
        copy(&tls.dir.join("ca.pem"), 0o644, (0, 0))?;
        let mut folders = String::new();
        for member in self.hosts()?.members_of(guest) {
            let is_node = config.node(&member).is_some();
            let name = format!("{}-{member}", if is_node { "node" } else { "server" });
            let owner = if is_node { (user.uid, user.gid) } else { (0, 0) };
            copy(&tls.dir.join(format!("{name}.pem")), 0o644, owner)?;
            copy(&tls.dir.join(format!("{name}.key")), 0o600, owner)?;
            if is_node {
                folders.push_str(&format!(
                    "mkdir -p -m 700 {dir}; chown {}:{} {dir}; ",
                    user.uid,
                    user.gid,
                    dir = config.node_dir(&member).display()
                ));
            }
        }
        let (run_dir, tls_dir) = (folder.path().display(), tls.dir.display());
        let gid = user.gid;
        let line = format!(
            "set -e; mkdir -p {run_dir}/logs; chown :{gid} {run_dir} {tls_dir}; \
             chmod 750 {run_dir} {tls_dir}; {folders}"
        );
        agent.shell(&line).map(drop)
    }

    fn hosts(&self) -> Result<&Hosts> {
        self.options.hosts.as_ref().context("the cluster has one host")
    }

    /// Cuts the power of another host, with all its members.
    ///
    /// # Errors
    /// The hypervisor fails.
    pub fn kill_host(&mut self, guest: u8) -> Result<Kill> {
        let members = self.hosts()?.members_of(guest);
        let sent = Instant::now();
        Hypervisor::of_this_guest()?.kill(guest)?;
        self.processes.retain(|name, _| !members.contains(name));
        Ok(Kill { sent, gone: Instant::now() })
    }

    /// Starts a host whose power was cut, brings to it what its members need, and starts them.
    ///
    /// # Errors
    /// It does not come up, or a member cannot be started.
    pub fn start_host(&mut self, guest: u8) -> Result<()> {
        Hypervisor::of_this_guest()?.start(guest)?;
        Agent::of(guest).ready(BOOT_WAIT)?;
        self.prepare_host(guest)?;
        let members = self.hosts()?.members_of(guest);
        members.iter().try_for_each(|member| self.start_member(member))
    }
}
