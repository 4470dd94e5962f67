//! What Debian wants to know about each package.

use crate::install::{self, Part, VERSION};
use anyhow::{Context, Result};
use selvage_tests::product::workspace_root;
use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Whoever builds these packages answers for them: `DEBFULLNAME` and `DEBEMAIL`, as Debian's own tools have
/// it.
fn maintainer() -> String {
    let name = std::env::var("DEBFULLNAME").unwrap_or_else(|_| "The Selvage Authors".into());
    let mail = std::env::var("DEBEMAIL").unwrap_or_else(|_| "selvage@localhost.localdomain".into());
    format!("{name} <{mail}>")
}

/// One package.
pub struct Package {
    /// Its name.
    pub name: &'static str,
    /// Its files.
    pub part: Part,
    section: &'static str,
    /// What it depends on beside what dpkg-shlibdeps finds.
    depends: &'static str,
    more: &'static str,
    summary: &'static str,
    description: &'static str,
    /// Other members of its control archive.
    pub members: &'static [(&'static str, &'static str)],
}

/// All packages. The library first, because others are looked at for what they need of it.
pub fn packages() -> [Package; 4] {
    [
        Package {
            name: "libselvage0",
            part: Part::Library,
            section: "libs",
            depends: "",
            more: "Multi-Arch: same\nRecommends: ibverbs-providers\n",
            summary: "sessions of web servers that outlive their host: the library",
            description: " Keeps the sessions of a web server in local shared memory, and pushes every\n \
                change into the memory of session servers, so that another web server serves\n \
                them when this one dies.\n",
            members: &[
                ("shlibs", "libselvage 0 libselvage0 (>= 0.1.0)\n"),
                ("triggers", "activate-noawait ldconfig\n"),
            ],
        },
        Package {
            name: "libselvage-dev",
            part: Part::Development,
            section: "libdevel",
            depends: "libselvage0 (= ${version}), libc6-dev",
            more: "Multi-Arch: same\nSuggests: libcpp-httplib-dev\n",
            summary: "sessions of web servers that outlive their host: development files",
            description: " Headers for C and C++, the static library, files for pkg-config and CMake, and\n \
                examples, among them a whole web server in C++.\n",
            members: &[],
        },
        Package {
            name: "selvage",
            part: Part::Tools,
            section: "httpd",
            depends: "systemd | systemd-standalone-sysusers | systemd-sysusers",
            more: "Recommends: ibverbs-providers\nSuggests: libnginx-mod-http-selvage, logrotate\n",
            summary: "sessions of web servers that outlive their host: daemons and tool",
            description: " The director, which sends each browser to the web server that hosts its\n \
                session; the session server, which holds copies of sessions; and the operator's\n \
                command. Nothing is started before it is configured.\n",
            members: &[],
        },
        Package {
            name: "libnginx-mod-http-selvage",
            part: Part::Nginx,
            section: "httpd",
            depends: "${nginx}, systemd | systemd-standalone-sysusers | systemd-sysusers",
            more: "Recommends: nginx, selvage\n",
            summary: "sessions of web servers that outlive their host: module for nginx",
            description: " Makes an nginx a web node of Selvage: sessions for its pages, and session data\n \
                over HTTP.\n",
            members: &[],
        },
    ]
}

/// The packages' version: the product's, packed for the first time.
pub fn version() -> String {
    format!("{VERSION}-1")
}

impl Package {
    /// The text of `control`.
    pub fn control(&self, architecture: &str, shlibs: &str, kib: u64) -> String {
        let own = self.depends.replace("${version}", &version()).replace("${nginx}", &nginx_abi());
        let depends: Vec<&str> = [&*own, shlibs].into_iter().filter(|it| !it.is_empty()).collect();
        let depends = depends.join(", ");
        format!(
            "Package: {}\nSource: selvage\nVersion: {}\nArchitecture: {architecture}\nMaintainer: {}\n\
             Installed-Size: {kib}\nDepends: {depends}\n{}Section: {}\nPriority: optional\n\
             Description: {}\n{}",
            self.name,
            version(),
            maintainer(),
            self.more,
            self.section,
            self.summary,
            self.description
        )
    }
}

/// The name under which the installed nginx promises to load modules that were built for it; nginx itself
/// where it promises nothing.
fn nginx_abi() -> String {
    let mut query = Command::new("dpkg-query");
    query.args(["-W", "-f=${Provides}\n", "nginx", "nginx-light"]).stdin(Stdio::null());
    let text = query.output().map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let text = text.unwrap_or_default();
    let abi = text.split([',', '\n']).map(str::trim).find(|name| name.starts_with("nginx-abi-"));
    abi.unwrap_or("nginx").to_owned()
}

/// Debian's file about copyright.
///
/// # Errors
/// A licence cannot be read.
pub fn copyright() -> Result<String> {
    let mit = workspace_root().join("LICENSE-MIT");
    let mit = fs::read_to_string(&mit).with_context(|| format!("cannot read {}", mit.display()))?;
    let holder = mit.lines().find(|line| line.starts_with("Copyright")).unwrap_or("The Selvage Authors");
    let body = mit.split_once("\n\n").map_or(&*mit, |(_, body)| body);
    let body =
        body.split_once("Permission is").map_or(body.to_owned(), |(_, rest)| format!("Permission is{rest}"));
    let indented: String = body
        .lines()
        .map(|line| if line.is_empty() { " .\n".to_owned() } else { format!(" {line}\n") })
        .collect();
    Ok(format!(
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\
         Upstream-Name: selvage\n\nFiles: *\nCopyright: {}\nLicense: Apache-2.0 or Expat\n\n\
         License: Apache-2.0\n On Debian systems the text is in /usr/share/common-licenses/Apache-2.0.\n\n\
         License: Expat\n{indented}",
        holder.trim_start_matches("Copyright").trim().trim_start_matches("(c)").trim()
    ))
}

/// Debian's changelog.
///
/// # Errors
/// `date` fails.
pub fn changelog(time: Duration) -> Result<String> {
    let date = install::run(Command::new("date").args(["-uR", "-d", &format!("@{}", time.as_secs())]))?;
    Ok(format!(
        "selvage ({}) unstable; urgency=medium\n\n  * Packages of Selvage {VERSION}; what is new is in \
         changelog.gz.\n\n -- {}  {}\n",
        version(),
        maintainer(),
        date.trim()
    ))
}
