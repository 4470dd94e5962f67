//! The product's files: the daemons, `libselvage` and the nginx module; how they are built and where they
//! are.
//!
//! The product is always built by a cargo call of its own and in release: built together with the tests
//! crate, cargo would unify features and switch `mutants` on in the daemons.

use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// Names the folder of a product that is built already; set by `cargo x test` for the tests.
pub const PRODUCT_DIR_VARIABLE: &str = "SELVAGE_BIN_DIR";

/// A built product.
#[derive(Debug, Clone)]
pub struct Product {
    /// Folder of the daemons and of `libselvage.so`.
    pub dir: PathBuf,
    /// Other daemons than those in the folder, if a test brings its own.
    pub daemons: Option<Daemons>,
}

/// One program that is both daemons: called with the name of the one that it shall be as its first argument.
#[derive(Debug, Clone)]
pub struct Daemons {
    /// The program.
    pub program: PathBuf,
    /// What it finds in its environment, beside what all find.
    pub environment: Vec<(String, PathBuf)>,
}

/// A cargo call in the workspace, as from a shell: without the variables that tell a program of cargo's which
/// package it is of. Build scripts look at those (ring's does), and cargo would build them and all that needs
/// them again whenever it is called by another package's program.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        let of_package = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
        if name.to_str().is_some_and(of_package) {
            command.env_remove(name);
        }
    }
    command.current_dir(workspace_root()).stdin(Stdio::null());
    command
}

impl Product {
    /// The product that the environment names, or else one built now (once per process).
    ///
    /// # Errors
    /// A build failed, or a file is missing.
    pub fn ready() -> Result<Self> {
        static READY: OnceLock<Result<Product, String>> = OnceLock::new();
        let ready = READY.get_or_init(|| {
            let found = match std::env::var_os(PRODUCT_DIR_VARIABLE) {
                Some(dir) => Self::at(PathBuf::from(dir)),
                None => Self::build(),
            };
            found.map_err(|error| format!("{error:#}"))
        });
        ready.clone().map_err(anyhow::Error::msg)
    }

    /// Builds the product in release, and the nginx module against the installed nginx.
    ///
    /// # Errors
    /// A build failed.
    pub fn build() -> Result<Self> {
        let root = workspace_root();
        let packages = ["selvage-session-server", "selvage-director", "selvage-webnode-ffi"];
        let mut command = cargo();
        command.args(["build", "--release"]);
        for package in packages {
            command.args(["--package", package]);
        }
        run(&mut command, "building the product")?;
        let dir = target_dir(root).join("release");
        let mut module = Command::new(root.join("webnode-ffi/nginx/build.sh"));
        module.arg(dir.join("nginx")).arg(&dir).stdin(Stdio::null());
        run(&mut module, "building the nginx module")?;
        Self::at(dir)
    }

    /// The product in `dir`.
    ///
    /// # Errors
    /// A file is missing.
    pub fn at(dir: PathBuf) -> Result<Self> {
        let dir = dir.canonicalize().with_context(|| format!("no product at {}", dir.display()))?;
        let product = Self { dir, daemons: None };
        for file in [
            product.server(),
            product.director(),
            product.operator_tool(),
            product.library(),
            product.nginx_module(),
        ] {
            ensure!(file.is_file(), "{} is missing: build the product again", file.display());
        }
        Ok(product)
    }

    /// The session server's program.
    pub fn server(&self) -> PathBuf {
        self.dir.join("selvage-server")
    }

    /// The director's program.
    pub fn director(&self) -> PathBuf {
        self.dir.join("selvage-director")
    }

    /// A call of the daemon `name`, without its arguments.
    pub fn daemon(&self, name: &str) -> Command {
        let Some(daemons) = &self.daemons else { return Command::new(self.dir.join(name)) };
        let mut command = Command::new(&daemons.program);
        command.arg(name).envs(daemons.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// The operator's program.
    pub fn operator_tool(&self) -> PathBuf {
        self.dir.join("selvage")
    }

    /// The shared library.
    pub fn library(&self) -> PathBuf {
        self.dir.join("libselvage.so")
    }

    /// The web server on cpp-httplib, built now if it is not there. It is no part of the product: an
    /// example of what others build with it.
    ///
    /// # Errors
    /// The build failed; its standard error has said why.
    pub fn httplib_node(&self) -> Result<PathBuf> {
        let dir = self.dir.join("httplib");
        let mut build = Command::new(workspace_root().join("webnode-ffi/examples/httplib/build.sh"));
        build.arg(&dir).arg(&self.dir).stdin(Stdio::null()).stdout(Stdio::null());
        run(&mut build, "building the web server on cpp-httplib")?;
        Ok(dir.join("selvage-httplib-node"))
    }

    /// The nginx module.
    pub fn nginx_module(&self) -> PathBuf {
        self.dir.join("nginx/ngx_http_selvage_module.so")
    }
}

/// The workspace's folder.
pub fn workspace_root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// The program `name` in `PATH` or where administrators' programs are, which is not in everybody's `PATH`.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

fn target_dir(root: &Path) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from)
}

fn run(command: &mut Command, what: &str) -> Result<()> {
    let status =
        command.status().with_context(|| format!("{what}: cannot start {:?}", command.get_program()))?;
    if !status.success() {
        bail!("{what} failed ({status})");
    }
    Ok(())
}
