//! What the tests of this package share: tools that must be there, folders that go away.

// Each test program uses its own part of this.
#![allow(dead_code)]

pub mod cluster;
pub mod compile;
pub mod http;
pub mod probe;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The repository's root.
pub fn repo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the repository").to_owned()
}

/// Whether committed generated files shall be written anew.
pub fn blessing() -> bool {
    std::env::var_os("SELVAGE_BLESS").is_some_and(|value| value == "1")
}

/// A folder that is removed with the value.
pub fn scratch() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("selvage-ffi-").tempdir().expect("a temporary folder")
}

/// The folder of this build's libraries: where cargo puts what it links.
pub fn library_dir() -> PathBuf {
    let mut dir = std::env::current_exe().expect("this program's path");
    dir.pop();
    assert!(
        dir.join("libselvage.so").exists(),
        "no libselvage.so in {}: cargo builds it with these tests",
        dir.display()
    );
    dir
}

/// A program that a test needs: its absence is an error that says how to install it.
pub struct Tool {
    name: String,
    command: Command,
}

impl Tool {
    pub fn find(name: &str, install: &str) -> Self {
        let known = std::env::var_os("PATH")
            .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(name).is_file()));
        assert!(known, "`{name}` is missing: {install}");
        Self { name: name.to_owned(), command: Command::new(name) }
    }

    /// A program by its path.
    pub fn at(path: &Path) -> Self {
        Self { name: path.display().to_string(), command: Command::new(path) }
    }

    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Runs it; anything but success fails the test with its output.
    pub fn succeed(mut self) -> String {
        let Output { status, stdout, stderr } = self.command.output().expect("it can be started");
        let stdout = String::from_utf8_lossy(&stdout).into_owned();
        assert!(status.success(), "{}: {status}\n{stdout}\n{}", self.name, String::from_utf8_lossy(&stderr));
        stdout
    }

    /// Runs it; success fails the test. Returns what it said on its standard error.
    pub fn fail(mut self) -> String {
        let Output { status, stdout, stderr } = self.command.output().expect("it can be started");
        assert!(!status.success(), "{}: {status}\n{}", self.name, String::from_utf8_lossy(&stdout));
        String::from_utf8_lossy(&stderr).into_owned()
    }
}
