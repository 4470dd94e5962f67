//! What every guest has on board.

use super::image::Image;
use super::kernel::Kernel;
use super::qemu;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Programs in every guest, beside the one that it is for.
const TOOLS: &[&str] = &["bash", "ip", "tc", "rdma", "kmod", "busybox", "setsid"];
/// Tells libibverbs of soft-RoCE's driver. Guests have no other: it complains of each that it cannot load.
const PROVIDER: &str = "/etc/libibverbs.d/rxe.driver";
/// What busybox stands for in a guest.
const APPLETS: &str = "mount mkdir ln cat cut hostname basename dirname sleep poweroff mkfifo mknod chmod \
    kill ps ls grep head tail sed awk id rm cp mv touch free df dmesg sync uname wc sort date env true false \
    test dd sysctl top nc netstat ping pgrep chown stat readlink find tr seq timeout";

/// The files of a guest without the program that it is for.
///
/// # Errors
/// This host lacks one of them.
pub fn base(kernel: &Kernel) -> Result<Image> {
    let mut image = Image::new();
    image.bytes("/init", include_str!("init.sh"), 0o755);
    for tool in TOOLS {
        image.add(&qemu::program(tool)?)?;
    }
    for applet in APPLETS.split_whitespace() {
        image.link(&format!("/usr/bin/{applet}"), "busybox");
    }
    // Not busybox's, which takes its own `ip` for iproute2's.
    image.link("/usr/bin/sh", "bash");
    image.link("/usr/sbin/insmod", "../bin/kmod");
    for file in [PROVIDER, "/etc/passwd", "/etc/group"] {
        image.add(Path::new(file))?;
    }
    for library in verbs_libraries()? {
        image.add(&library)?;
    }
    image.bytes("/etc/hosts", "127.0.0.1 localhost\n", 0o644);
    image.bytes("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\n", 0o644);
    let mut list = String::new();
    for module in kernel.modules()? {
        let name = module.file_name().context("a module without a name")?.to_string_lossy().into_owned();
        let path = format!("/lib/modules/{name}");
        image.add_as(&module, &format!("/usr{path}"), 0o644);
        list.push_str(&path);
        list.push('\n');
    }
    image.bytes("/etc/selvage/modules", list, 0o644);
    Ok(image)
}

/// libibverbs, librdmacm and soft-RoCE's driver, which programs load at run time.
fn verbs_libraries() -> Result<Vec<PathBuf>> {
    let folders = ["/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib"].map(Path::new);
    let folder = folders.into_iter().find(|folder| folder.join("libibverbs.so.1").exists());
    let folder = folder.context("libibverbs.so.1 is missing: cargo x setup")?;
    let mut libraries = vec![folder.join("libibverbs.so.1"), folder.join("librdmacm.so.1")];
    let drivers = fs::read_dir(folder.join("libibverbs")).context("libibverbs has no drivers")?;
    for entry in drivers {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.as_bytes().starts_with(b"librxe")) {
            libraries.push(path);
        }
    }
    ensure!(libraries.len() > 2, "libibverbs has no driver for soft-RoCE: cargo x setup");
    Ok(libraries)
}
