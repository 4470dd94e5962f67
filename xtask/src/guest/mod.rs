//! Guests: small machines under QEMU with this host's own programs, where soft-RoCE can be loaded, cut off
//! and killed without touching the host.
//!
//! Used by `cargo x rdma-test` and `cargo x rdma-bench`, and by hand as `cargo x guest -- PROGRAM`.

mod closure;
mod image;
mod kernel;
mod probe;
mod qemu;

use crate::setup;
use anyhow::{Context, Result, bail, ensure};
use image::Image;
use kernel::Kernel;
use qemu::{Machine, Running};
use selvage_tests::product::workspace_root;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

/// How long a guest may take from its start to its program's.
const BOOT_MAX: Duration = Duration::from_secs(120);
/// How long it may take to go off when its program has ended.
const OFF_MAX: Duration = Duration::from_secs(10);
/// What `timeout` ends with, too.
const TIMED_OUT: u8 = 124;
/// Programs in every guest, beside the one that it is for.
const TOOLS: &[&str] = &["bash", "ip", "tc", "rdma", "kmod", "busybox", "setsid"];
/// Tells libibverbs of soft-RoCE's driver. Guests have no other: it complains of each that it cannot load.
const PROVIDER: &str = "/etc/libibverbs.d/rxe.driver";
/// What busybox stands for in a guest.
const APPLETS: &str = "mount mkdir ln cat cut hostname basename dirname sleep poweroff mkfifo mknod chmod \
    kill ps ls grep head tail sed awk id rm cp mv touch free df dmesg sync uname wc sort date env true false \
    test dd sysctl top nc netstat ping pgrep chown stat readlink find tr seq timeout";

/// Options of `cargo x guest`.
#[derive(clap::Args)]
pub struct Arguments {
    /// End the guest after this many seconds, with status 124
    #[arg(long, default_value_t = 120)]
    timeout: u64,
    /// Memory, in MiB
    #[arg(long, default_value_t = 1024)]
    mem: u32,
    /// Processors
    #[arg(long, default_value_t = 2)]
    cpus: u32,
    /// Largest packet of the two interfaces; 9000 gives 4096 on soft-RoCE, 1500 gives 1024
    #[arg(long, default_value_t = 9000)]
    mtu: u32,
    /// Take this file or folder, with what it is linked to, under its own path; can be repeated
    #[arg(long)]
    with: Vec<PathBuf>,
    /// NAME=VALUE for the program; can be repeated
    #[arg(long)]
    env: Vec<String>,
    /// Working folder of the program in the guest
    #[arg(long, default_value = "/")]
    directory: PathBuf,
    /// Say what the guest's console said
    #[arg(long)]
    console: bool,
    /// The program, a file of this host or a name in its PATH, and its arguments
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// Runs the command.
///
/// # Errors
/// The guest could not be made or did not come up; what its program ends with is no error here.
pub fn main(arguments: &Arguments) -> Result<ExitCode> {
    setup::ensure(&[setup::RDMA])?;
    let kernel = Kernel::ready(&cache())?;
    let accelerator = probe::accelerator(&kernel, &cache())?;
    let mut image = base(&kernel)?;
    let program = program(&arguments.command[0])?;
    image.add(&program)?;
    for path in &arguments.with {
        image.add(path)?;
    }
    let directory = arguments.directory.to_str().context("--directory is no text")?;
    image.directory(directory, 0o755);
    let mut command = arguments.command.clone();
    command[0] = program.into_os_string();
    image.bytes("/etc/selvage/command", zero_ended(&command), 0o644);
    let environment: Vec<OsString> = arguments.env.iter().map(OsString::from).collect();
    ensure!(arguments.env.iter().all(|variable| variable.contains('=')), "--env takes NAME=VALUE");
    image.bytes("/etc/selvage/environment", zero_ended(&environment), 0o644);
    let settings = format!("hostname=guest\naddress=\nmtu={}\ndirectory='{directory}'\n", arguments.mtu);
    image.bytes("/etc/selvage/settings", settings, 0o644);
    let initramfs = image.write()?;
    let machine = Machine {
        accelerator,
        kernel: &kernel.image,
        initramfs: &initramfs,
        memory_mib: arguments.mem,
        processors: arguments.cpus,
        ports: &["status", "stdout", "stderr"],
        card: None,
    };
    let mut running = machine.start()?;
    let code = watch(&mut running, Duration::from_secs(arguments.timeout));
    if arguments.console || code.is_err() {
        eprintln!("console of the guest:\n{}", running.console());
    }
    code
}

/// Where kernels are kept between runs.
fn cache() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| workspace_root().join("target"), PathBuf::from)
        .join("guest")
}

/// The program that `name` means on this host.
fn program(name: &OsString) -> Result<PathBuf> {
    let path = Path::new(name);
    if name.as_bytes().contains(&b'/') {
        return path.canonicalize().with_context(|| format!("no program {}", path.display()));
    }
    let name = name.to_str().context("the program's name is no text")?;
    selvage_tests::product::find_program(name).with_context(|| format!("no program {name}"))
}

/// What every guest has.
fn base(kernel: &Kernel) -> Result<Image> {
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

fn zero_ended(words: &[OsString]) -> Vec<u8> {
    words.iter().flat_map(|word| word.as_bytes().iter().copied().chain([0])).collect()
}

/// Shows what the guest says until it is off, and answers with its program's status.
fn watch(running: &mut Running, limit: Duration) -> Result<ExitCode> {
    let began = Instant::now();
    let mut ports = running.ports.drain(..);
    let (Some(status), Some(out), Some(err)) = (ports.next(), ports.next(), ports.next()) else {
        bail!("the guest has no ports");
    };
    drop(ports);
    let out = thread::spawn(move || pass_on(out, std::io::stdout()));
    let err = thread::spawn(move || pass_on(err, std::io::stderr()));
    let mut status = BufReader::new(status);
    let ready = status_line(&mut status, began + BOOT_MAX.min(limit))?;
    let Some(ready) = ready else { bail!("the guest did not come up in {} s", began.elapsed().as_secs()) };
    ensure!(ready.starts_with("ready "), "the guest did not come up: {ready}");
    let end = status_line(&mut status, began + limit)?;
    let Some(end) = end else {
        running.kill();
        eprintln!("guest: ended after {} s", limit.as_secs());
        return Ok(ExitCode::from(TIMED_OUT));
    };
    running.wait_until(Instant::now() + OFF_MAX)?;
    running.kill();
    let _ = (out.join(), err.join());
    let code = end.strip_prefix("exit ").and_then(|code| code.parse::<u8>().ok());
    code.map(ExitCode::from).with_context(|| format!("the guest said: {end}"))
}

/// The next line of the status port; none if it does not come in time, an error if the guest goes off.
fn status_line(
    port: &mut BufReader<std::os::unix::net::UnixStream>,
    until: Instant,
) -> Result<Option<String>> {
    let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    port.get_ref().set_read_timeout(Some(left))?;
    let mut line = String::new();
    match port.read_line(&mut line) {
        Ok(0) => bail!("the guest went off"),
        Ok(_) => Ok(Some(line.trim().to_owned())),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn pass_on(mut from: impl Read, mut to: impl Write) {
    let mut buffer = [0; 16 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..count]).and_then(|()| to.flush()).is_err() {
            return;
        }
    }
}
