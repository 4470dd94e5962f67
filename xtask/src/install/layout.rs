//! Where things are on an installed system.

use anyhow::{Context, Result, ensure};
use std::path::{Component, Path, PathBuf};

/// Number in the library's soname, as `webnode-ffi/build.rs` sets it.
pub const SOVERSION: &str = "0";
/// The product's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// What a program needs beside the static library: what rustc names with `--print native-static-libs`.
const STATIC_LIBS: [&str; 6] = ["gcc_s", "util", "rt", "pthread", "m", "dl"];

/// The folders of an installation.
#[derive(Debug, Clone)]
pub struct Layout {
    prefix: PathBuf,
    libdir: PathBuf,
    sysconfdir: PathBuf,
}

impl Layout {
    /// Checks and completes what was asked for.
    ///
    /// # Errors
    /// A folder is not absolute, or the libraries are not below the prefix.
    pub fn new(prefix: &Path, libdir: Option<&Path>, sysconfdir: &Path) -> Result<Self> {
        let libdir = libdir.map_or_else(|| prefix.join("lib"), Path::to_owned);
        for (name, path) in [("--prefix", prefix), ("--libdir", &libdir), ("--sysconfdir", sysconfdir)] {
            let plain = path.components().skip(1).all(|part| matches!(part, Component::Normal(_)));
            let odd =
                path.display().to_string().contains(|c: char| c.is_whitespace() || "\\\"'@%$".contains(c));
            ensure!(
                path.is_absolute() && plain && !odd,
                "{name} {}: an absolute path is needed, without `..`, spaces, quotes, @, % and $",
                path.display()
            );
        }
        libdir.strip_prefix(prefix).with_context(|| {
            format!("--libdir {} is not below --prefix {}", libdir.display(), prefix.display())
        })?;
        Ok(Self { prefix: prefix.to_owned(), libdir, sysconfdir: sysconfdir.to_owned() })
    }

    /// Programs.
    pub fn bin(&self) -> PathBuf {
        self.prefix.join("bin")
    }

    /// Headers.
    pub fn include(&self) -> PathBuf {
        self.prefix.join("include")
    }

    /// Libraries of C programs.
    pub fn libraries(&self) -> &Path {
        &self.libdir
    }

    /// What is the same on all machines and is no library of C programs: units, nginx modules.
    pub fn lib(&self) -> PathBuf {
        self.prefix.join("lib")
    }

    /// Manual pages, documentation, completions.
    pub fn share(&self) -> PathBuf {
        self.prefix.join("share")
    }

    /// Configuration.
    pub fn sysconfdir(&self) -> &Path {
        &self.sysconfdir
    }

    /// Whether a file is the administrator's as soon as it is there.
    pub fn is_configuration(&self, path: &Path) -> bool {
        path.starts_with(&self.sysconfdir)
    }

    /// The list of what is installed.
    pub fn list(&self) -> PathBuf {
        self.share().join("selvage/installed.txt")
    }

    /// Where the loader looks only if it is told to.
    pub fn needs_rpath(&self) -> bool {
        self.prefix != Path::new("/usr")
    }

    /// A file of `packaging/` with the places of this installation.
    pub fn fill(&self, template: &str) -> String {
        // From the CMake folder, three below the libraries' or as many more as these are below the prefix.
        let libdir = self.libdir.strip_prefix(&self.prefix).unwrap_or(&self.libdir);
        let up = vec![".."; libdir.components().count() + 2].join("/");
        let flags: Vec<String> = STATIC_LIBS.iter().map(|name| format!("-l{name}")).collect();
        let names = STATIC_LIBS.map(|name| if name == "pthread" { "Threads::Threads" } else { name });
        template
            .replace("@PREFIX@", &self.prefix.display().to_string())
            .replace("@BINDIR@", &self.bin().display().to_string())
            .replace("@INCLUDEDIR@", &self.include().display().to_string())
            .replace("@LIBDIR@", &self.libdir.display().to_string())
            .replace("@SYSCONFDIR@", &self.sysconfdir.display().to_string())
            .replace("@VERSION@", VERSION)
            .replace("@SOVERSION@", SOVERSION)
            .replace("@STATIC_LIBS@", &flags.join(" "))
            .replace("@CMAKE_STATIC_LIBS@", &names.join(";"))
            .replace("@CMAKE_LIBDIR@", &libdir.display().to_string())
            .replace("@CMAKE_UP@", &up)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_places_are_refused() {
        let layout = |prefix: &str, libdir: &str| {
            Layout::new(Path::new(prefix), Some(Path::new(libdir)), Path::new("/etc")).map(drop)
        };
        layout("/usr", "/usr/lib/x86_64-linux-gnu").unwrap();
        for (prefix, libdir) in
            [("usr", "usr/lib"), ("/usr/../x", "/usr/../x/lib"), ("/a b", "/a b/lib"), ("/opt/x", "/usr/lib")]
        {
            let why = layout(prefix, libdir).unwrap_err().to_string();
            assert!(why.contains(libdir) || why.contains(prefix), "{why}");
        }
    }

    #[test]
    fn no_place_is_left_open_in_a_template() {
        let packaging = selvage_tests::product::workspace_root().join("packaging");
        let layout =
            Layout::new(Path::new("/usr"), Some(Path::new("/usr/lib/here")), Path::new("/etc")).unwrap();
        let mut seen = 0;
        for folder in ["systemd", "pkgconfig", "cmake", "examples"] {
            for file in std::fs::read_dir(packaging.join(folder)).unwrap() {
                let text = layout.fill(&std::fs::read_to_string(file.unwrap().path()).unwrap());
                let open = text.match_indices('@').any(|(at, _)| {
                    text[at + 1..].split('@').next().is_some_and(|name| {
                        !name.is_empty() && name.chars().all(|c| c.is_ascii_uppercase() || c == '_')
                    })
                });
                assert!(!open, "{text}");
                seen += 1;
            }
        }
        assert!(seen > 10, "only {seen} templates");
        assert!(layout.fill("@CMAKE_UP@").ends_with("../../../.."));
    }
}
