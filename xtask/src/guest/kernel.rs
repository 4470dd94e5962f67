//! The guests' kernel: Debian's package, downloaded and unpacked into `target/guest`, never installed.

use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

/// Names another kernel: a package of the host's package sources, or a `.deb` file.
pub const KERNEL_VARIABLE: &str = "SELVAGE_GUEST_KERNEL";
/// What a guest may load, in an order that works.
const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_console",
    "virtio_net",
    "crc32_generic",
    "crc32c",
    "veth",
    "sch_netem",
    "sch_prio",
    "sch_ingress",
    "cls_u32",
    "cls_matchall",
    "rdma_ucm",
    "rdma_rxe",
];
/// Folders of modules that no guest needs, and which are most of the package.
const HEAVY: &[&str] = &["sound", "drivers/gpu", "drivers/media", "drivers/usb", "drivers/scsi"];

/// The kernel without the compression that it is delivered in: undoing that would take an emulated processor
/// as long as all the rest of the boot.
const UNPACKED: &str = "boot/vmlinux";
/// How the compressed kernel begins, inside of its file.
const XZ_MAGIC: &[u8] = b"\xfd7zXZ\0";

/// An unpacked kernel.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// The kernel itself.
    pub image: PathBuf,
    /// Its release, as `uname -r` says it.
    pub release: String,
    root: PathBuf,
}

impl Kernel {
    /// The kernel in the cache folder, fetched if it is not there yet.
    ///
    /// # Errors
    /// It cannot be fetched or unpacked.
    pub fn ready(cache: &Path) -> Result<Self> {
        fs::create_dir_all(cache).with_context(|| format!("cannot make {}", cache.display()))?;
        let wanted = std::env::var(KERNEL_VARIABLE).ok();
        let package = match wanted {
            Some(wanted) => wanted,
            // What was fetched once is used until somebody cleans: tests are about soft-RoCE, and asking
            // which kernel is the newest takes longer than making a guest.
            None => match newest(cache) {
                Some(kernel) => return Ok(kernel),
                None => default_package()?,
            },
        };
        let name = Path::new(&package).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let root = cache.join(name.trim_end_matches(".deb"));
        if let Ok(kernel) = Self::at(&root) {
            return Ok(kernel);
        }
        // Two commands may fetch at the same time: each in its own folder, and one rename wins.
        let scratch = cache.join(format!("unpacking-{}", std::process::id()));
        let _ = fs::remove_dir_all(&scratch);
        fs::create_dir(&scratch)?;
        let result = fetch(&package, &scratch).and_then(|()| {
            let _ = fs::remove_dir_all(&root);
            let unpacked = scratch.join("root");
            if let Err(error) = fs::rename(&unpacked, &root) {
                return Self::at(&root).map(drop).with_context(|| format!("{}: {error}", root.display()));
            }
            Ok(())
        });
        let _ = fs::remove_dir_all(&scratch);
        result.with_context(|| format!("fetching the guests' kernel ({package})"))?;
        Self::at(&root)
    }

    fn at(root: &Path) -> Result<Self> {
        let entries = fs::read_dir(root.join("boot")).with_context(|| format!("{}", root.display()))?;
        for entry in entries {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if let Some(release) = name.strip_prefix("vmlinuz-") {
                let (release, unpacked) = (release.to_owned(), root.join(UNPACKED));
                let image = if unpacked.exists() { unpacked } else { path };
                return Ok(Self { image, release, root: root.to_owned() });
            }
        }
        bail!("no kernel in {}", root.display())
    }

    /// The files of all modules that guests use, in the order in which they are to be loaded.
    ///
    /// # Errors
    /// One is not there: a kernel for clouds, say, which has no `rdma_rxe`.
    pub fn modules(&self) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for module in MODULES {
            let mut command = Command::new(program("modprobe")?);
            command.arg("-d").arg(&self.root).args(["-S", &self.release, "--show-depends", module]);
            let output = command.stdin(Stdio::null()).output().context("cannot start modprobe")?;
            ensure!(output.status.success(), "kernel {} has no module {module}", self.release);
            for file in insmod_lines(&String::from_utf8_lossy(&output.stdout)) {
                if !files.contains(&file) {
                    files.push(file);
                }
            }
        }
        Ok(files)
    }
}

/// The files that `modprobe --show-depends` names; what is built in needs none.
fn insmod_lines(text: &str) -> Vec<PathBuf> {
    let files = text.lines().filter_map(|line| line.strip_prefix("insmod "));
    files.map(|file| PathBuf::from(file.trim())).collect()
}

/// The newest of the kernels in the cache folder.
fn newest(cache: &Path) -> Option<Kernel> {
    let mut folders: Vec<PathBuf> =
        fs::read_dir(cache).ok()?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    folders.retain(|folder| {
        folder.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"linux-image"))
    });
    folders.sort();
    folders.iter().rev().find_map(|folder| Kernel::at(folder).ok())
}

/// The package that the newest kernel's meta package stands for.
fn default_package() -> Result<String> {
    let mut command = Command::new("apt-cache");
    let output = command.args(["depends", "linux-image-amd64"]).env("LC_ALL", "C").output();
    let output = output.context("cannot start apt-cache")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    package_of(&text).with_context(|| {
        format!(
            "the package linux-image-amd64 is not known here; run apt-get update, or name a kernel package \
             or a .deb file of one with rdma_rxe in {KERNEL_VARIABLE}"
        )
    })
}

fn package_of(text: &str) -> Option<String> {
    let depends = text.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    depends.map(str::trim).find(|name| name.starts_with("linux-image-")).map(str::to_owned)
}

fn fetch(package: &str, scratch: &Path) -> Result<()> {
    let deb = if Path::new(package).is_file() {
        PathBuf::from(package)
    } else {
        eprintln!("fetching {package} for the guests");
        download(package, scratch)?
    };
    let root = scratch.join("root");
    run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&root))?;
    let kernel = Kernel::at(&root)?;
    for folder in HEAVY {
        let _ =
            fs::remove_dir_all(root.join("lib/modules").join(&kernel.release).join("kernel").join(folder));
    }
    decompress(&kernel.image, &root.join(UNPACKED))?;
    run(Command::new(program("depmod")?).arg("-b").arg(&root).arg(&kernel.release))
}

/// Writes the kernel inside of a bootable file. One that is packed in another way is booted as it is.
fn decompress(packed: &Path, to: &Path) -> Result<()> {
    let bytes = fs::read(packed)?;
    let Some(at) = bytes.windows(XZ_MAGIC.len()).position(|window| window == XZ_MAGIC) else {
        return Ok(());
    };
    let mut xz = Command::new("xz");
    xz.args(["--decompress", "--stdout", "--single-stream", "--quiet", "--quiet"]).stdin(Stdio::piped());
    let mut child = xz.stdout(Stdio::piped()).spawn().context("cannot start xz")?;
    let mut input = child.stdin.take().context("no pipe")?;
    // What follows the kernel in the file is not for xz, which breaks off there.
    let feeder = thread::spawn(move || drop(input.write_all(&bytes[at..])));
    let mut kernel = Vec::new();
    child.stdout.take().context("no pipe")?.read_to_end(&mut kernel)?;
    child.wait()?;
    let _ = feeder.join();
    ensure!(kernel.starts_with(b"\x7fELF"), "{} has no kernel inside", packed.display());
    Ok(fs::write(to, kernel)?)
}

fn download(package: &str, scratch: &Path) -> Result<PathBuf> {
    let get = || run(Command::new("apt-get").args(["-q", "download", package]).current_dir(scratch));
    if get().is_err() {
        // The host's lists may be older than what the archive still has.
        run(Command::new("apt-get").args(["-q", "update"]))?;
        get()?;
    }
    let files = fs::read_dir(scratch)?.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    let mut debs = files.filter(|path| path.extension().is_some_and(|extension| extension == "deb"));
    debs.next().context("apt-get downloaded nothing")
}

fn program(name: &str) -> Result<PathBuf> {
    selvage_tests::product::find_program(name).with_context(|| format!("{name} is missing (package kmod)"))
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot start {:?}", command.get_program()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{:?}: {}: {}", command.get_program(), output.status, said.trim());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_meta_package_names_the_kernel() {
        let text = "linux-image-amd64\n  Depends: linux-image-6.1.0-56-amd64\n  Conflicts: other\n";
        assert_eq!(package_of(text).as_deref(), Some("linux-image-6.1.0-56-amd64"));
        assert_eq!(package_of("linux-image-amd64\n"), None);
        assert_eq!(package_of(""), None);
    }

    #[test]
    fn modules_come_in_the_order_of_loading() {
        let text = "insmod /k/udp_tunnel.ko \nbuiltin ib_something\ninsmod /k/rdma_rxe.ko \n";
        assert_eq!(insmod_lines(text), ["/k/udp_tunnel.ko", "/k/rdma_rxe.ko"].map(PathBuf::from));
    }
}
