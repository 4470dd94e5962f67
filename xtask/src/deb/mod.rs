//! `cargo x deb`: Debian packages of the product, made by dpkg-deb from the files that `cargo x install`
//! would install.
//!
//! The packages are the same, byte for byte, whenever and wherever they are made from the same files: names
//! are sorted, owners are root, times are `SOURCE_DATE_EPOCH` (or else the last commit's), and the
//! compressor runs in one thread.

mod control;

use crate::install::{self, Item, Layout, Source};
use crate::setup;
use anyhow::{Context, Result, ensure};
use control::{Package, packages};
use selvage_tests::product::workspace_root;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

/// Options of `cargo x deb`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Where the packages are put
    #[arg(long, value_name = "DIR", default_value = "target/deb")]
    out: PathBuf,
    /// Pack this product, built already [default: SELVAGE_BIN_DIR, or one built now]
    #[arg(long, value_name = "DIR")]
    product: Option<PathBuf>,
    /// How hard to compress, 0 (not at all) to 9
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u8).range(0..=9))]
    compression: u8,
}

/// What is the same for all packages of a run.
struct Run {
    /// Of files, and of the changelog.
    time: Duration,
    architecture: String,
    /// Folder of libraries, like `/usr/lib/x86_64-linux-gnu`.
    layout: Layout,
    work: tempfile::TempDir,
    compression: u8,
}

/// Runs the command.
///
/// # Errors
/// The product cannot be built, or a tool fails.
pub fn main(arguments: &Arguments) -> Result<()> {
    setup::ensure(&[setup::INSTALL, setup::DEB])?;
    install::everybody_may_read();
    let product = install::product(arguments.product.as_deref())?;
    let multiarch = ask("dpkg-architecture", &["-qDEB_HOST_MULTIARCH"])?;
    let libdir = Path::new("/usr/lib").join(multiarch);
    let run = Run {
        time: source_date()?,
        architecture: ask("dpkg", &["--print-architecture"])?,
        layout: Layout::new(Path::new("/usr"), Some(&libdir), Path::new("/etc"))?,
        work: tempfile::tempdir().context("a folder to work in")?,
        compression: arguments.compression,
    };
    fs::create_dir_all(&arguments.out).with_context(|| format!("cannot make {}", arguments.out.display()))?;
    let items = install::items(&product, &run.layout, run.work.path())?;
    for package in packages() {
        let deb = run.build(&package, &items, &arguments.out)?;
        println!("{}", deb.display());
    }
    Ok(())
}

/// `SOURCE_DATE_EPOCH`, or the time of the last commit.
fn source_date() -> Result<Duration> {
    let seconds = match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text,
        Err(_) => {
            let root = workspace_root().display().to_string();
            ask("git", &["-C", &root, "log", "-1", "--format=%ct"])
                .context("set SOURCE_DATE_EPOCH, the time that the packages' files shall have")?
        }
    };
    Ok(Duration::from_secs(seconds.parse().context("SOURCE_DATE_EPOCH is no number of seconds")?))
}

fn ask(program: &str, arguments: &[&str]) -> Result<String> {
    Ok(install::run(Command::new(program).args(arguments))?.trim().to_owned())
}

impl Run {
    fn stage(&self, package: &str) -> PathBuf {
        self.work.path().join("stages").join(package)
    }

    /// Stages one package and builds it.
    fn build(&self, package: &Package, items: &[Item], out: &Path) -> Result<PathBuf> {
        let stage = self.stage(package.name);
        for item in items.iter().filter(|item| item.part == package.part) {
            self.put(package, item, &stage)?;
        }
        let doc = self.layout.share().join("doc").join(package.name);
        let text = |path: PathBuf, text: String| Item {
            part: package.part,
            path,
            mode: 0o644,
            source: Source::Text(text),
        };
        self.put(package, &text(doc.join("copyright"), control::copyright()?), &stage)?;
        let changelog = self.work.path().join("changelog.Debian");
        fs::write(&changelog, control::changelog(self.time)?)?;
        let packed = Source::Bytes(gzip(&changelog)?);
        let path = doc.join("changelog.Debian.gz");
        self.put(package, &Item { part: package.part, path, mode: 0o644, source: packed }, &stage)?;
        self.write_control(package, &stage)?;
        self.set_times(&stage)?;
        let name = format!("{}_{}_{}.deb", package.name, control::version(), self.architecture);
        let deb = out.join(name);
        let mut build = Command::new("dpkg-deb");
        build.args(["--root-owner-group", "--threads-max=1"]);
        match self.compression {
            0 => build.arg("-Znone"),
            level => build.args(["-Zxz", &format!("-z{level}")]),
        };
        build.env("SOURCE_DATE_EPOCH", self.time.as_secs().to_string());
        install::run(build.arg("--build").arg(&stage).arg(&deb))?;
        Ok(deb)
    }

    /// Manual pages and long texts are compressed, as Debian has them; licences are not repeated.
    fn put(&self, package: &Package, item: &Item, stage: &Path) -> Result<()> {
        let name = item.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_manual = item.path.starts_with(self.layout.share().join("man"));
        if name.starts_with("LICENSE-") {
            return Ok(());
        }
        if !is_manual && name != "CHANGELOG.md" {
            return install::write(item, stage, Some(self.time));
        }
        let plain = self.work.path().join(&name);
        match &item.source {
            Source::File(file) => drop(fs::copy(file, &plain)?),
            Source::Text(text) => fs::write(&plain, text)?,
            Source::Bytes(_) | Source::Link(_) => return install::write(item, stage, Some(self.time)),
        }
        let name = if name == "CHANGELOG.md" { "changelog" } else { &name };
        let path = item.path.with_file_name(format!("{name}.gz"));
        let source = Source::Bytes(gzip(&plain)?);
        install::write(&Item { part: package.part, path, mode: item.mode, source }, stage, Some(self.time))
    }

    /// The folder `DEBIAN`.
    fn write_control(&self, package: &Package, stage: &Path) -> Result<()> {
        let folder = stage.join("DEBIAN");
        let files = files_below(stage)?;
        fs::create_dir_all(&folder)?;
        let depends = self.depends(package, stage, &files)?;
        let bytes: u64 = files.iter().map(|file| fs::symlink_metadata(file).map_or(0, |it| it.len())).sum();
        let text = package.control(&self.architecture, &depends, bytes.div_ceil(1024));
        fs::write(folder.join("control"), text)?;
        let inside = |file: &Path| file.strip_prefix(stage).unwrap_or(file).display().to_string();
        let mut sums = String::new();
        for file in files.iter().filter(|file| !file.is_symlink()) {
            let line = ask("md5sum", &[&file.display().to_string()])?;
            let (sum, _) = line.split_once(' ').context("md5sum says something else")?;
            sums.push_str(&format!("{sum}  {}\n", inside(file)));
        }
        fs::write(folder.join("md5sums"), sums)?;
        let conffiles: Vec<String> = files
            .iter()
            .map(|file| format!("/{}\n", inside(file)))
            .filter(|it| it.starts_with("/etc/"))
            .collect();
        if !conffiles.is_empty() {
            fs::write(folder.join("conffiles"), conffiles.concat())?;
        }
        for (name, text) in package.members {
            fs::write(folder.join(name), text)?;
        }
        for name in ["postinst", "prerm", "postrm"] {
            let script = workspace_root().join(format!("packaging/debian/{}.{name}", package.name));
            if script.is_file() {
                fs::copy(script, folder.join(name))?;
                fs::set_permissions(folder.join(name), fs::Permissions::from_mode(0o755))?;
            }
        }
        Ok(())
    }

    /// What dpkg-shlibdeps finds that programs and libraries of the package need.
    fn depends(&self, package: &Package, stage: &Path, files: &[PathBuf]) -> Result<String> {
        let is_code = |file: &&PathBuf| {
            let code = file.starts_with(install::below(stage, &self.layout.bin()))
                || file.to_string_lossy().contains(".so");
            code && !file.is_symlink()
        };
        let code: Vec<&PathBuf> = files.iter().filter(is_code).collect();
        if code.is_empty() {
            return Ok(String::new());
        }
        let folder = self.work.path().join("shlibdeps");
        fs::create_dir_all(folder.join("debian"))?;
        let stub = format!("Source: selvage\n\nPackage: {}\nArchitecture: any\n", package.name);
        fs::write(folder.join("debian/control"), stub)?;
        let ours = format!("libselvage {} libselvage0 (>= {})\n", install::SOVERSION, install::VERSION);
        fs::write(folder.join("debian/shlibs.local"), ours)?;
        let library = install::below(&self.stage("libselvage0"), self.layout.libraries());
        let mut command = Command::new("dpkg-shlibdeps");
        command.current_dir(&folder).arg("-O").arg(format!("-l{}", library.display()));
        // The nginx module's symbols are nginx's own, which loads it.
        command.arg("--warnings=0").args(code);
        let said = install::run(&mut command)?;
        let found = said.trim().strip_prefix("shlibs:Depends=").unwrap_or_default().to_owned();
        ensure!(!found.is_empty(), "dpkg-shlibdeps finds nothing that {} depends on: {said}", package.name);
        Ok(found)
    }

    fn set_times(&self, stage: &Path) -> Result<()> {
        let time = SystemTime::UNIX_EPOCH + self.time;
        for file in files_below(stage)?.iter().filter(|file| !file.is_symlink()) {
            fs::File::open(file)?.set_modified(time)?;
        }
        Ok(())
    }
}

/// Every file and link below a folder, sorted.
fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() && !path.is_symlink() {
            files.extend(files_below(&path)?);
        } else {
            files.push(path);
        }
    }
    files.sort_unstable();
    Ok(files)
}

/// As gzip packs it, without name and time.
fn gzip(file: &Path) -> Result<Vec<u8>> {
    let output = Command::new("gzip").args(["-9nc"]).arg(file).output().context("cannot start gzip")?;
    ensure!(output.status.success(), "gzip ended with {}", output.status);
    Ok(output.stdout)
}
