//! A cluster's configuration and certificates in a folder of their own, for tests.

use super::ca::{self, Authority, Issued, Validity};
use super::member::Member;
use super::tls::Keyring;
use crate::config::Config;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

pub(crate) struct Certificates {
    folder: tempfile::TempDir,
    pub(crate) config: Config,
}

impl Certificates {
    /// Cluster `name` with servers s1 and s2, nodes n1 and n2.
    pub(crate) fn of(name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = config(name, folder.path());
        ca::make(folder.path(), &config, 30, false).unwrap();
        Self { folder, config }
    }

    pub(crate) fn dir(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn keys(&self, member: Member) -> Keyring {
        Keyring::new(&self.config, member).unwrap()
    }

    /// What is wrong with the member's files.
    pub(crate) fn error(&self, member: Member) -> crate::error::Error {
        Keyring::new(&self.config, member).unwrap_err()
    }

    pub(crate) fn files(&self, member: &Member) -> (PathBuf, PathBuf) {
        ca::files(self.dir(), member)
    }

    /// The cluster's CA.
    pub(crate) fn authority(&self) -> Authority {
        let read = |name: &str| std::fs::read_to_string(self.dir().join(name)).unwrap();
        let issued = Issued { certificate: read("ca.pem"), key: read("ca.key") };
        Authority::open(&self.config.cluster.name, &issued).unwrap()
    }

    /// Puts a certificate for `named`, by `authority`, where that of `member` was.
    pub(crate) fn put(&self, member: &Member, authority: &Authority, named: &Member, validity: Validity) {
        let issued = authority.issue(named, validity).unwrap();
        let (certificate, key) = self.files(member);
        std::fs::write(certificate, issued.certificate).unwrap();
        std::fs::write(&key, issued.key).unwrap();
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
}

pub(crate) fn config(name: &str, dir: &Path) -> Config {
    let dir = dir.display();
    let text = format!(
        "[cluster]\nname = \"{name}\"\nrun_dir = \"{dir}\"\ncookie_keys = [\"{:064}\"]\n[director]\n\
         [tls]\ndir = \"{dir}\"\n[[server]]\nname = \"s1\"\n[[server]]\nname = \"s2\"\n\
         [[node]]\nname = \"n1\"\naddress = \"127.0.0.1:1\"\n\
         [[node]]\nname = \"n2\"\naddress = \"127.0.0.1:2\"\n",
        1
    );
    Config::parse(Path::new("test.toml"), &text).unwrap()
}

pub(crate) fn server(name: &str) -> Member {
    Member::Server(name.to_owned())
}

pub(crate) fn node(name: &str) -> Member {
    Member::Node(name.to_owned())
}
