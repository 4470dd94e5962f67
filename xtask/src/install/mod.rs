//! `cargo x install` and `cargo x uninstall`: the product's files in their places on a host, or in the
//! staging folder of whoever makes packages.
//!
//! Invariant: every file that was installed is named in the list that is installed with it, and `uninstall`
//! removes what that list names and nothing else. Configuration is not in it: what is there already is the
//! administrator's, and stays.

mod files;
mod layout;
mod made;
mod manual;

pub use files::{Item, Part, Source, items};
pub use layout::{Layout, SOVERSION, VERSION};
pub use made::run;

use crate::setup;
use anyhow::{Context, Result, ensure};
use selvage_tests::product::Product;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Options of `cargo x install`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Where the installed files will be used
    #[arg(long, value_name = "DIR", default_value = "/usr/local")]
    prefix: PathBuf,
    /// Folder of the libraries [default: lib below the prefix]
    #[arg(long, value_name = "DIR")]
    libdir: Option<PathBuf>,
    /// Folder of the configuration
    #[arg(long, value_name = "DIR", default_value = "/etc")]
    sysconfdir: PathBuf,
    /// Put everything below this folder, for packages
    #[arg(long, value_name = "DIR")]
    destdir: Option<PathBuf>,
    /// Install this product, built already [default: SELVAGE_BIN_DIR, or one built now]
    #[arg(long, value_name = "DIR")]
    product: Option<PathBuf>,
}

/// Options of `cargo x uninstall`.
#[derive(clap::Args)]
pub struct UninstallArguments {
    /// As it was given to install
    #[arg(long, value_name = "DIR", default_value = "/usr/local")]
    prefix: PathBuf,
    /// As it was given to install
    #[arg(long, value_name = "DIR")]
    destdir: Option<PathBuf>,
}

/// Runs `install`.
///
/// # Errors
/// The product cannot be built, or a file cannot be written.
pub fn main(arguments: &Arguments) -> Result<()> {
    let layout = Layout::new(&arguments.prefix, arguments.libdir.as_deref(), arguments.sysconfdir.as_path())?;
    let destination = arguments.destdir.clone().unwrap_or_else(|| "/".into());
    setup::ensure(&[setup::INSTALL])?;
    everybody_may_read();
    // At once, and not after the work.
    fs::create_dir_all(&destination).with_context(|| format!("cannot make {}", destination.display()))?;
    let product = product(arguments.product.as_deref())?;
    let work = tempfile::tempdir().context("a folder to work in")?;
    let mut items = items(&product, &layout, work.path())?;
    items.push(list_of(&layout, &items));
    for item in &items {
        let path = below(&destination, &item.path);
        if layout.is_configuration(&item.path) && path.exists() {
            say(&format!("{} (stays as it is)", path.display()));
            continue;
        }
        write(item, &destination, None)?;
        say(&format!("{}", path.display()));
    }
    say(&format!("{} files; `cargo x uninstall` with the same options removes them", items.len()));
    if arguments.destdir.is_none() && rustix::process::geteuid().is_root() {
        say("Now run: ldconfig; systemd-sysusers; systemd-tmpfiles --create; systemctl daemon-reload");
    }
    Ok(())
}

/// Runs `uninstall`.
///
/// # Errors
/// Nothing is installed there, or a file cannot be removed.
pub fn uninstall(arguments: &UninstallArguments) -> Result<()> {
    let destination = arguments.destdir.clone().unwrap_or_else(|| "/".into());
    let list = below(&destination, &Layout::new(&arguments.prefix, None, Path::new("/etc"))?.list());
    let text = fs::read_to_string(&list)
        .with_context(|| format!("nothing is installed there: cannot read {}", list.display()))?;
    for path in text.lines().map(Path::new) {
        ensure!(path.is_absolute(), "{} names {}, which is no absolute path", list.display(), path.display());
        let path = below(&destination, path);
        match fs::remove_file(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            removed => removed.with_context(|| format!("cannot remove {}", path.display()))?,
        }
        say(&format!("removed {}", path.display()));
        // Folders that are empty now, as far as they are; others may use the rest.
        let mut folder = path.parent();
        while let Some(empty) = folder.filter(|folder| *folder != destination)
            && fs::remove_dir(empty).is_ok()
        {
            folder = empty.parent();
        }
    }
    Ok(())
}

/// From now on files and folders of this process are as everybody expects them of an installation, whatever
/// the umask of its user is.
pub fn everybody_may_read() {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
}

/// The product that is asked for.
///
/// # Errors
/// It is not whole, or cannot be built.
pub fn product(named: Option<&Path>) -> Result<Product> {
    match named {
        Some(dir) => Product::at(dir.to_owned()),
        None if std::env::var_os(selvage_tests::product::PRODUCT_DIR_VARIABLE).is_some() => Product::ready(),
        None => {
            setup::ensure(&[setup::BUILD, setup::RUN])?;
            Product::build()
        }
    }
}

fn list_of(layout: &Layout, items: &[Item]) -> Item {
    let path = layout.list();
    let items = items.iter().filter(|item| !layout.is_configuration(&item.path));
    let mut paths: Vec<String> = items.map(|item| item.path.display().to_string()).collect();
    // Last, so that an uninstall that is interrupted can be run again.
    paths.push(path.display().to_string());
    Item { part: Part::Tools, path, mode: 0o644, source: Source::Text(paths.join("\n") + "\n") }
}

/// A path of the installed system in the folder where it is put.
pub fn below(destination: &Path, path: &Path) -> PathBuf {
    destination.join(path.strip_prefix("/").unwrap_or(path))
}

/// Writes one file, with the folders above it. An old file is replaced whole: programs may be using it.
/// `time` is its time of change, if not now.
///
/// # Errors
/// The system refuses.
pub fn write(item: &Item, destination: &Path, time: Option<Duration>) -> Result<()> {
    let path = below(destination, &item.path);
    let written = write_to(item, &path, time);
    written.with_context(|| format!("cannot write {}", path.display()))
}

fn write_to(item: &Item, path: &Path, time: Option<Duration>) -> Result<()> {
    let folder = path.parent().context("it has no folder")?;
    fs::create_dir_all(folder)?;
    let mut name = path.file_name().context("it has no name")?.to_owned();
    name.push(".new");
    let new = folder.join(name);
    let _ = fs::remove_file(&new);
    match &item.source {
        Source::Link(target) => symlink(target, &new)?,
        Source::File(from) => drop(fs::copy(from, &new).with_context(|| format!("from {}", from.display()))?),
        Source::Text(text) => fs::write(&new, text)?,
        Source::Bytes(bytes) => fs::write(&new, bytes)?,
    }
    if !matches!(item.source, Source::Link(_)) {
        fs::set_permissions(&new, fs::Permissions::from_mode(item.mode))?;
        if let Some(time) = time {
            fs::OpenOptions::new().append(true).open(&new)?.set_modified(SystemTime::UNIX_EPOCH + time)?;
        }
    }
    Ok(fs::rename(&new, path)?)
}

/// Prints, and does not mind when nobody reads.
fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}
