//! `cargo x install` and `cargo x uninstall`: the product's files in their places on a host, or in the
//! staging folder of whoever makes packages.
//!
//! Invariant: every file that was installed is named in the list that is installed with it, and every folder
//! that was made for one, with a `/` behind it. `uninstall` removes what that list names and nothing else,
//! and folders only if they are empty. Configuration is not in it: what is there already is the
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
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};
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
    items.push(list_of(&layout, &items, &destination));
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
    // All are looked at before the first is removed.
    for line in text.lines() {
        let path = Path::new(line);
        let plain = path.components().skip(1).all(|part| matches!(part, Component::Normal(_)));
        // Folders above the prefix may have been made for it.
        let ours = path.starts_with(&arguments.prefix)
            || line.ends_with('/') && arguments.prefix.starts_with(path) && path != Path::new("/");
        ensure!(
            path.is_absolute() && plain && ours,
            "{} names {line}, which is no path of this installation: nothing was removed",
            list.display()
        );
    }
    let (folders, files): (Vec<_>, Vec<_>) = text.lines().partition(|line| line.ends_with('/'));
    for path in files {
        let path = below(&destination, Path::new(path));
        match fs::remove_file(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            removed => removed.with_context(|| format!("cannot remove {}", path.display()))?,
        }
        say(&format!("removed {}", path.display()));
    }
    // The deepest first. One that is not empty is somebody else's, too, by now.
    for folder in folders.iter().rev() {
        let folder = below(&destination, Path::new(folder));
        if fs::remove_dir(&folder).is_ok() {
            say(&format!("removed {}", folder.display()));
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

fn list_of(layout: &Layout, items: &[Item], destination: &Path) -> Item {
    let path = layout.list();
    let items = items.iter().filter(|item| !layout.is_configuration(&item.path));
    let mut paths: Vec<PathBuf> = items.map(|item| item.path.clone()).collect();
    // The last file, so that an uninstall that is interrupted can be run again.
    paths.push(path.clone());
    let mut folders = made_before(&below(destination, &path));
    for folder in paths.iter().flat_map(|path| path.ancestors().skip(1)) {
        if !below(destination, folder).exists() {
            folders.insert(format!("{}/", folder.display()));
        }
    }
    let files = paths.iter().map(|path| path.display().to_string());
    let lines: Vec<String> = files.chain(folders).collect();
    Item { part: Part::Tools, path, mode: 0o644, source: Source::Text(lines.join("\n") + "\n") }
}

/// The folders that were made by the installation that is there already. Sorted, so that one comes before
/// what is in it.
fn made_before(list: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(list).unwrap_or_default();
    text.lines().filter(|line| line.ends_with('/')).map(str::to_owned).collect()
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
