//! `selvage ca`: makes the certificates of a cluster, and says which host needs which.

use super::Common;
use clap::Args;
use selvage_fabric::config::Config;
use selvage_fabric::control::ca::{self, DAYS_DEFAULT, DAYS_MAX, Made};
use selvage_fabric::control::member::Member;
use selvage_fabric::error::{Error, ErrorKind, Origin, Result};
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// Arguments of `selvage ca`.
#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// Where the files go, rather than into the folder of `[tls]`.
    #[arg(long, value_name = "FOLDER", visible_alias = "out")]
    dir: Option<PathBuf>,
    /// Days that the members' certificates are good for.
    #[arg(long, default_value_t = DAYS_DEFAULT, value_parser = clap::value_parser!(u32).range(1..=DAYS_MAX))]
    days: u32,
    /// Make new certificates and keys for all members, by the same authority. Without it, only what is
    /// missing is made.
    #[arg(long)]
    renew: bool,
}

/// Makes what is missing; what to print.
pub(super) fn run(common: &Common, arguments: &Arguments) -> Result<String> {
    let config = Config::load(&Config::resolve_path(common.config.as_deref()))?;
    let dir = match (&arguments.dir, &config.tls) {
        (Some(dir), _) => dir,
        (None, Some(tls)) => &tls.dir,
        (None, None) => {
            let what = format!("{} has no [tls] with dir: add it, or give --dir", config.path.display());
            return Err(Error::new(ErrorKind::Invalid, Origin::Config, what));
        }
    };
    let made = ca::make(dir, &config, arguments.days, arguments.renew)?;
    let paths = |members: &[Member]| -> Vec<PathBuf> {
        members.iter().map(|member| ca::files(dir, member).0).collect()
    };
    let value = json!({
        "dir": dir,
        "authority_made": made.ca,
        "made": paths(&made.issued),
        "kept": paths(&made.kept),
        "days": arguments.days,
    });
    common.say(&value, || text(&config, dir, &made, arguments.days))
}

fn text(config: &Config, dir: &Path, made: &Made, days: u32) -> String {
    let mut text = String::new();
    let authority = if made.ca { "made" } else { "kept" };
    // Writing to a string does not fail.
    let _ = writeln!(
        text,
        "{}: certificate authority of cluster \"{}\" {authority}; certificates made: {}, good for {days} \
         days; kept: {}",
        dir.display(),
        config.cluster.name,
        made.issued.len(),
        made.kept.len()
    );
    for (members, what) in [(&made.issued, "made"), (&made.kept, "kept")] {
        for member in members {
            let _ = writeln!(text, "{what}: {}", ca::files(dir, member).0.display());
        }
    }
    let mut hosts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for member in ca::members(config) {
        let stem = member.file_stem();
        hosts.entry(host(config, &member)).or_default().push(format!("{stem}.pem {stem}.key"));
    }
    let _ = writeln!(text, "copy, keys readable by their own user only:");
    for (host, files) in &hosts {
        let _ = writeln!(text, "  to {host}: ca.pem {}", files.join(" "));
    }
    let _ = writeln!(text, "ca.key stays here or goes somewhere safer: no host needs it");
    text
}

/// Where a member runs, as far as its addresses say.
fn host(config: &Config, member: &Member) -> String {
    let directors = || config.director.control.map(|address| address.ip());
    let ip: Option<IpAddr> = match member {
        Member::Operator => return "whoever may use the tools".to_owned(),
        Member::Director => directors(),
        // Without an address of its own it is reached by its socket, on the director's host.
        Member::Server(name) => match config.server(name).and_then(|server| server.control) {
            Some(address) => Some(address.ip()),
            None => directors(),
        },
        Member::Node(name) => config.node(name).map(|node| node.address.ip()),
    };
    match ip {
        Some(ip) if !ip.is_loopback() => ip.to_string(),
        _ => "the director's host".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"
[cluster]
name = "demo"
run_dir = "/run/selvage"
cookie_keys = ["0000000000000000000000000000000000000000000000000000000000000001"]
[director]
control = "10.0.0.1:7410"
[tls]
dir = "/etc/selvage/tls"
[[server]]
name = "s1"
control = "10.0.0.2:7420"
[[server]]
name = "s2"
[[node]]
name = "n1"
address = "10.0.0.2:9001"
"#;

    fn common(folder: &Path, text: &str, json: bool) -> Common {
        let config = folder.join("selvage.toml");
        std::fs::write(&config, text).unwrap();
        Common { admin: None, config: Some(config), json }
    }

    fn make(folder: &Path, renew: bool, json: bool) -> String {
        let arguments = Arguments { dir: Some(folder.join("tls")), days: 30, renew };
        run(&common(folder, CONFIG, json), &arguments).unwrap()
    }

    #[test]
    fn it_says_what_it_made_and_what_goes_where() {
        let folder = tempfile::tempdir().unwrap();
        let said = make(folder.path(), false, false);
        let node = folder.path().join("tls/node-n1.pem");
        for line in [
            "authority of cluster \"demo\" made; certificates made: 5, good for 30 days; kept: 0",
            &format!("made: {}", node.display()),
            "  to 10.0.0.1: ca.pem director.pem director.key server-s2.pem server-s2.key",
            "  to 10.0.0.2: ca.pem server-s1.pem server-s1.key node-n1.pem node-n1.key",
            "  to whoever may use the tools: ca.pem operator.pem operator.key",
            "ca.key stays here",
        ] {
            assert!(said.contains(line), "{line}: {said}");
        }
        let first = std::fs::read(&node).unwrap();
        let said = make(folder.path(), false, false);
        assert!(said.contains("\"demo\" kept; certificates made: 0") && said.contains("kept: 5"), "{said}");
        assert_eq!(std::fs::read(&node).unwrap(), first);
        let said = make(folder.path(), true, false);
        assert!(said.contains("\"demo\" kept; certificates made: 5"), "{said}");
        assert_ne!(std::fs::read(&node).unwrap(), first, "renewed");
        let json: serde_json::Value = serde_json::from_str(&make(folder.path(), false, true)).unwrap();
        assert_eq!(
            (json["authority_made"].as_bool(), json["kept"].as_array().unwrap().len()),
            (Some(false), 5)
        );
    }

    #[test]
    fn a_configuration_without_a_folder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let without = CONFIG.replace("[tls]\ndir = \"/etc/selvage/tls\"\n", "").replace("control = ", "#");
        let arguments = Arguments { dir: None, days: 30, renew: false };
        let error = run(&common(folder.path(), &without, false), &arguments).unwrap_err().to_string();
        assert!(error.contains("selvage.toml has no [tls]") && error.contains("--dir"), "{error}");
    }
}
