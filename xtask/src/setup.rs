//! What the host must have, per command. As root on Debian and its kin the missing is installed; everybody
//! else is told the one line that installs it.

use anyhow::{Context, Result, bail, ensure};
use selvage_tests::product::find_program;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// One thing that must be there.
pub struct Need {
    /// A program's name, or a file's absolute path.
    probe: &'static str,
    /// The Debian package that brings it.
    package: &'static str,
    /// What it is for.
    purpose: &'static str,
}

const fn need(probe: &'static str, package: &'static str, purpose: &'static str) -> Need {
    Need { probe, package, purpose }
}

/// Debian's place of nginx's headers; `SELVAGE_NGINX_SOURCE` names another for the module's build.
const NGINX_HEADERS: &str = "/usr/share/nginx/src/conf_flags";

/// The library, wherever a version of LLVM has put it; `LIBCLANG_PATH` names its folder for builds.
const LIBCLANG: &str = "libclang.so";

/// For building the product, beside the Rust toolchain. This program itself needs none of it.
pub const BUILD: &[Need] = &[
    need("cc", "gcc", "C compiler"),
    need("cmake", "cmake", "to build the RDMA transport"),
    need(LIBCLANG, "libclang-dev", "to read the RDMA headers"),
    need("/usr/include/linux/types.h", "linux-libc-dev", "the RDMA headers of the kernel"),
    need("pkg-config", "pkg-config", "to find hwloc"),
    need("/usr/include/hwloc.h", "libhwloc-dev", "to find the processors near a network card"),
    need("/usr/include/libudev.h", "libudev-dev", "hwloc's own need"),
];
/// For `cargo x run` and `demo`.
pub const RUN: &[Need] = &[
    need("nginx", "nginx-light", "the web server of the web nodes"),
    need(NGINX_HEADERS, "nginx-dev", "headers, to build the nginx module"),
    need("cc", "gcc", "C compiler, to build the nginx module"),
    need("make", "make", "to build the nginx module"),
];
/// For the web server in C++.
pub const CPP: &[Need] = &[
    need("g++", "g++", "C++ compiler"),
    need("pkg-config", "pkg-config", "to find cpp-httplib"),
    need("/usr/include/httplib.h", "libcpp-httplib-dev", "the C++ web server"),
];
/// For `cargo x test`, beside [`RUN`] and [`CPP`].
pub const TEST: &[Need] = &[
    need("gcc", "gcc", "C compiler, for the header, the example and AddressSanitizer"),
    need("valgrind", "valgrind", "to run the C example under it"),
    need("setpriv", "util-linux", "to run a test as another user"),
    need("curl", "curl", "a client of web servers"),
    need("wrk", "wrk", "load on web servers"),
    need("h2load", "nghttp2-client", "load by HTTP/2"),
    need("haproxy", "haproxy", "the proxy to compare the director with"),
    need("php-cgi", "php-cgi", "an application behind fastcgi_pass"),
    need("cmake", "cmake", "to build against the installed library"),
    need("readelf", "binutils", "to look at the installed library"),
    need("systemd-analyze", "systemd", "to check the units"),
    need("man", "man-db", "to check the manual pages"),
    need("chromium", "chromium", "the browser for the page"),
    need("chromedriver", "chromium-driver", "to drive the browser"),
];
/// For `cargo x install`, beside a product.
pub const INSTALL: &[Need] = &[
    need("cc", "gcc", "to link the nginx module for its place"),
    need("strip", "binutils", "to leave debug information out"),
];
/// For `cargo x deb`, beside [`INSTALL`].
pub const DEB: &[Need] = &[
    need("dpkg-deb", "dpkg", "to build Debian packages"),
    need("dpkg-shlibdeps", "dpkg-dev", "to find what packages depend on"),
    need("gzip", "gzip", "to compress manual pages"),
];
/// For the side-by-side benchmark, beside [`RUN`].
pub const BENCH: &[Need] = &[need("redis-server", "redis-server", "to measure against")];
/// For guests, and for soft-RoCE on this host.
pub const RDMA: &[Need] = &[
    need("qemu-system-x86_64", "qemu-system-x86", "to run guests"),
    need("busybox", "busybox-static", "the small programs of a guest"),
    need("bash", "bash", "the first process of a guest"),
    need("kmod", "kmod", "to find and load kernel modules"),
    need("rdma", "iproute2", "to make soft-RoCE devices"),
    need("tc", "iproute2", "to lose and delay packets"),
    need("setpriv", "util-linux", "to end guests with their starter"),
    need("xz", "xz-utils", "to unpack the kernel"),
    need("strip", "binutils", "to make programs small enough for guests"),
    need("/etc/libibverbs.d/rxe.driver", "ibverbs-providers", "the driver of soft-RoCE"),
    need("ib_write_lat", "perftest", "to measure beside"),
];
/// For `cargo x setup`.
pub const EVERYTHING: &[&[Need]] = &[BUILD, RUN, CPP, TEST, INSTALL, DEB, BENCH, RDMA];

/// What can be done about missing things.
#[derive(Debug, PartialEq, Eq)]
enum Remedy {
    /// Nothing is missing.
    None,
    /// These packages can be installed here and now.
    Install(Vec<&'static str>),
    /// A person must act: what to say.
    Tell(String),
}

/// Makes sure that everything in `needs` is there.
///
/// # Errors
/// It is not, and cannot be installed; the message has the line that installs it.
pub fn ensure(needs: &[&'static [Need]]) -> Result<()> {
    let missing = missing(needs);
    for need in &missing {
        eprintln!("missing: {} ({})", need.probe, need.purpose);
    }
    let is_root = rustix::process::geteuid().is_root();
    match remedy(&missing, find_program("apt-get").is_some(), is_root) {
        Remedy::None => Ok(()),
        Remedy::Tell(what) => bail!(what),
        Remedy::Install(packages) => {
            let line = install_line(&packages);
            eprintln!("installing: {line}");
            install(&packages)
                .with_context(|| format!("could not install what is missing; as root, run: {line}"))?;
            let still: Vec<&str> = self::missing(needs).iter().map(|need| need.probe).collect();
            ensure!(still.is_empty(), "installed {}, yet missing: {}", packages.join(" "), still.join(" "));
            Ok(())
        }
    }
}

fn remedy(missing: &[&Need], has_apt_get: bool, is_root: bool) -> Remedy {
    let mut packages: Vec<&'static str> = missing.iter().map(|need| need.package).collect();
    packages.sort_unstable();
    packages.dedup();
    match (packages.is_empty(), has_apt_get, is_root) {
        (true, _, _) => Remedy::None,
        (_, true, true) => Remedy::Install(packages),
        (_, true, false) => Remedy::Tell(format!("as root, run: {}", install_line(&packages))),
        (_, false, _) => Remedy::Tell(format!(
            "install what is missing with the tools of your system (Debian's packages: {})",
            packages.join(" ")
        )),
    }
}

fn install_line(packages: &[&str]) -> String {
    format!("apt-get update && apt-get install -y --no-install-recommends {}", packages.join(" "))
}

/// Makes sure that the Rust components are there that `cargo x ci` uses.
///
/// # Errors
/// One is not; the message has the line that installs it.
pub fn ensure_components() -> Result<()> {
    for component in ["fmt", "clippy"] {
        let mut command = Command::new("cargo");
        command.args([component, "--version"]).stdout(Stdio::null()).stderr(Stdio::null());
        let there = command.status().is_ok_and(|status| status.success());
        ensure!(there, "cargo {component} is missing; run: rustup component add rustfmt clippy");
    }
    Ok(())
}

fn missing(needs: &[&'static [Need]]) -> Vec<&'static Need> {
    let there = |probe: &str| match probe {
        NGINX_HEADERS if std::env::var_os("SELVAGE_NGINX_SOURCE").is_some() => true,
        LIBCLANG => has_libclang(),
        file if file.starts_with('/') => Path::new(file).exists(),
        program => find_program(program).is_some(),
    };
    needs.iter().flat_map(|needs| needs.iter()).filter(|need| !there(need.probe)).collect()
}

fn has_libclang() -> bool {
    let folders = |parent: &str| fs::read_dir(parent).into_iter().flatten().filter_map(Result::ok);
    let versions = folders("/usr/lib").map(|entry| entry.path().join("lib"));
    let named = std::env::var_os("LIBCLANG_PATH").map(PathBuf::from);
    let known = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64"].map(PathBuf::from);
    let mut all =
        versions.chain(named).chain(known).flat_map(|folder| fs::read_dir(folder).into_iter().flatten());
    all.any(|file| file.is_ok_and(|file| is_libclang(&file.file_name().to_string_lossy())))
}

fn is_libclang(name: &str) -> bool {
    name.strip_prefix("libclang").is_some_and(|rest| {
        let version = rest.trim_start_matches(|c: char| c.is_ascii_digit() || "-.".contains(c));
        version.starts_with("so") && !rest.starts_with("-cpp")
    })
}

fn install(packages: &[&str]) -> Result<()> {
    let _quiet = NoServices::new()?;
    apt_get(&["update"])?;
    let mut arguments = vec!["install", "-y", "--no-install-recommends"];
    arguments.extend(packages);
    apt_get(&arguments)
}

fn apt_get(arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    command.args(["-q", "-o", "DPkg::Lock::Timeout=120"]).args(arguments);
    command.env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
    let status = command.status().context("cannot start apt-get")?;
    ensure!(status.success(), "apt-get {} failed ({status})", arguments[0]);
    Ok(())
}

/// While it lives, installed packages do not start their services: nobody asked for a web server on port 80.
struct NoServices(Option<PathBuf>);

impl NoServices {
    fn new() -> Result<Self> {
        let policy = PathBuf::from("/usr/sbin/policy-rc.d");
        if policy.exists() {
            return Ok(Self(None));
        }
        fs::write(&policy, "#!/bin/sh\nexit 101\n")?;
        fs::set_permissions(&policy, fs::Permissions::from_mode(0o755))?;
        Ok(Self(Some(policy)))
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if let Some(policy) = &self.0 {
            let _ = fs::remove_file(policy);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_program_builds_without_what_it_installs() {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap());
        cargo.args([
            "tree",
            "--package",
            "xtask",
            "--edges",
            "normal,build",
            "--prefix",
            "none",
            "--offline",
        ]);
        let tree = cargo.output().unwrap();
        let tree = String::from_utf8(tree.stdout).unwrap();
        assert!(tree.contains("selvage-fabric "), "{tree}");
        for wants in ["sideway ", "rdma-mummy-sys ", "hwlocality", "bindgen "] {
            assert!(!tree.contains(wants), "{wants} is among xtask's dependencies");
        }
    }

    #[test]
    fn libclang_is_known_by_its_names() {
        for name in ["libclang.so", "libclang.so.1", "libclang-14.so.1", "libclang-14.0.6.so"] {
            assert!(is_libclang(name), "{name}");
        }
        for name in ["libclang-cpp.so.14", "libclangAST.a", "libLLVM-14.so", "libclang.a"] {
            assert!(!is_libclang(name), "{name}");
        }
    }

    #[test]
    fn what_is_missing_is_named_and_what_to_do() {
        const NEEDS: &[Need] = &[
            need("no-such-program-of-selvage", "nginx-light", "the web server"),
            need("/no/such/file/of/selvage", "nginx-dev", "headers"),
            need("sh", "dash", "is everywhere"),
        ];
        let missing = missing(&[NEEDS]);
        assert_eq!(missing.iter().map(|need| need.package).collect::<Vec<_>>(), ["nginx-light", "nginx-dev"]);
        assert_eq!(remedy(&missing, true, true), Remedy::Install(vec!["nginx-dev", "nginx-light"]));
        let told = |has_apt_get| match remedy(&missing, has_apt_get, false) {
            Remedy::Tell(what) => what,
            other => panic!("{other:?}"),
        };
        assert!(told(true).ends_with("install -y --no-install-recommends nginx-dev nginx-light"));
        assert!(told(false).contains("nginx-dev nginx-light"));
        assert_eq!(remedy(&[], true, true), Remedy::None);
    }
}
