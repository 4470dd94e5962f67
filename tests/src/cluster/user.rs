//! The user of the web nodes' processes: nginx's workers give up root for it.

use anyhow::{Result, bail};
use std::fs;

/// The user of the web servers' processes when the launcher is root.
#[derive(Debug, Clone)]
pub struct WebUser {
    /// Its name.
    pub name: String,
    /// Its id.
    pub uid: u32,
    /// Its group.
    pub group: String,
    /// Its group's id.
    pub gid: u32,
}

impl WebUser {
    /// The unprivileged user that web servers have on this system.
    ///
    /// # Errors
    /// There is none of the usual names.
    pub fn of_this_system() -> Result<Self> {
        let passwd = fs::read_to_string("/etc/passwd")?;
        let groups = fs::read_to_string("/etc/group")?;
        for wanted in ["www-data", "nginx", "http", "nobody"] {
            let Some(fields) = entry(&passwd, wanted) else { continue };
            let (Ok(uid), Ok(gid)) = (fields[2].parse(), fields[3].parse::<u32>()) else { continue };
            let group = groups.lines().find_map(|line| {
                let fields: Vec<&str> = line.split(':').collect();
                (fields.get(2)?.parse() == Ok(gid)).then(|| fields[0].to_owned())
            });
            let Some(group) = group else { continue };
            return Ok(WebUser { name: wanted.into(), uid, group, gid });
        }
        bail!("no user www-data, nginx, http or nobody for nginx to work as: start this as an ordinary user")
    }
}

fn entry<'a>(passwd: &'a str, name: &str) -> Option<Vec<&'a str>> {
    passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|f| f.len() > 3 && f[0] == name)
}
