//! `selvage ca`: the certificate authority of a cluster and a certificate for each of its members.

use clap::Args;
use selvage_fabric::config::Config;
use selvage_fabric::control::ca;
use selvage_fabric::error::{Error, ErrorKind, Origin, Result};
use std::path::PathBuf;

/// Arguments of `selvage ca`.
#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// The cluster's configuration; else SELVAGE_CONFIG, else /etc/selvage/selvage.toml.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where to put them, rather than into the folder that `[tls]` names.
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
    /// How long new certificates are good.
    #[arg(long, default_value_t = 825, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    days: u32,
    /// New certificates and keys for all members, by the authority that is there.
    #[arg(long)]
    renew: bool,
}

/// Makes what is missing; the text to print.
pub(super) fn run(arguments: &Arguments) -> Result<String> {
    let path = Config::resolve_path(arguments.config.as_deref());
    let config = Config::load(&path)?;
    let dir = match (&arguments.dir, &config.tls) {
        (Some(dir), _) => dir,
        (None, Some(tls)) => &tls.dir,
        (None, None) => {
            let what = format!("{}: there is no [tls] with dir; add it, or give --dir", path.display());
            return Err(Error::new(ErrorKind::Invalid, Origin::Config, what));
        }
    };
    let made = ca::make(dir, &config, arguments.days, arguments.renew)?;
    let mut text = format!(
        "{}: certificate authority of cluster \"{}\" {}\n",
        dir.display(),
        config.cluster.name,
        if made.ca { "made" } else { "kept" }
    );
    for (members, what) in [(&made.issued, "made"), (&made.kept, "kept")] {
        for member in members {
            text.push_str(&format!("{what}: {}\n", ca::files(dir, member).0.display()));
        }
    }
    text.push_str(
        "Give each host ca.pem and the .pem and .key of its own members; ca.key and operator.key stay here.\n",
    );
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "[cluster]\nname = \"demo\"\nrun_dir = \"/run/x\"\ncookie_keys = [\
        \"0000000000000000000000000000000000000000000000000000000000000001\"]\n[director]\n\
        [[server]]\nname = \"s1\"\n[[node]]\nname = \"n1\"\naddress = \"127.0.0.1:9001\"\n";

    #[test]
    fn what_is_there_is_kept_and_a_file_without_a_folder_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let config = parent.path().join("selvage.toml");
        std::fs::write(&config, FILE).unwrap();
        let with =
            |dir: Option<PathBuf>, renew| Arguments { config: Some(config.clone()), dir, days: 30, renew };
        let refusal = run(&with(None, false)).unwrap_err();
        assert_eq!(refusal.kind, ErrorKind::Invalid);
        assert!(refusal.to_string().contains("no [tls]"), "{refusal}");
        let dir = parent.path().join("tls");
        let said = run(&with(Some(dir.clone()), false)).unwrap();
        for name in ["director", "operator", "server-s1", "node-n1"] {
            assert!(said.contains(&format!("made: {}/{name}.pem", dir.display())), "{said}");
            assert!(dir.join(format!("{name}.key")).exists(), "{name}");
        }
        let first = std::fs::read(dir.join("node-n1.pem")).unwrap();
        let said = run(&with(Some(dir.clone()), false)).unwrap();
        assert!(said.contains("kept: ") && !said.contains("made: "), "{said}");
        assert_eq!(std::fs::read(dir.join("node-n1.pem")).unwrap(), first);
        run(&with(Some(dir.clone()), true)).unwrap();
        assert_ne!(std::fs::read(dir.join("node-n1.pem")).unwrap(), first, "renewed");
    }
}
