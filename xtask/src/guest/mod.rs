//! Guests: small machines under QEMU with this host's own programs, where soft-RoCE can be loaded, cut off
//! and killed without touching the host.
//!
//! Used by `cargo x rdma-test` and `cargo x rdma-bench`, and by hand as `cargo x guest -- PROGRAM`.

mod clock;
mod closure;
mod files;
mod image;
mod kernel;
mod probe;
mod qemu;
mod site;
mod switch;

pub use site::{End, Site};

use crate::setup;
use anyhow::{Context, Result, ensure};
use image::Image;
use kernel::Kernel;
use qemu::Accelerator;
use selvage_tests::product::workspace_root;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

/// With 4096 bytes of data and its headers in one packet, which is the most that RDMA has.
const MTU_DEFAULT: u32 = 9000;

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
    /// Largest packet of the interfaces; 9000 gives 4096 on soft-RoCE, 1500 gives 1024
    #[arg(long, default_value_t = MTU_DEFAULT)]
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
    /// Say what the guests' consoles said
    #[arg(long)]
    console: bool,
    /// Start this many more guests, as hosts of one network, each with an agent; needs --agent
    #[arg(long, default_value_t = 0, requires = "agent")]
    hosts: u8,
    /// The agent's program
    #[arg(long)]
    agent: Option<PathBuf>,
    /// The program, a file of this host or a name in its PATH, and its arguments
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// What guests are made with.
pub struct Ground {
    kernel: Kernel,
    accelerator: Accelerator,
    tsc_khz: Option<u64>,
}

/// A program and what it needs in its guest.
#[derive(Debug, Default)]
pub struct Work {
    /// The program and its arguments.
    pub command: Vec<OsString>,
    /// Files and folders that it opens.
    pub with: Vec<PathBuf>,
    /// `NAME=VALUE`.
    pub environment: Vec<String>,
    /// Its working folder.
    pub directory: PathBuf,
    /// A file that it writes, and which is wanted afterwards.
    pub results: Option<PathBuf>,
    /// Largest packet of the interfaces; without one, the largest that helps soft-RoCE.
    pub mtu: Option<u32>,
    /// The agent's program, if the guest is one of several.
    pub agent: Option<PathBuf>,
    /// Number of guests beside guest 0, for which its program waits.
    pub hosts: u8,
}

/// Runs the command.
///
/// # Errors
/// The guest could not be made or did not come up; what its program ends with is no error here.
pub fn main(arguments: &Arguments) -> Result<ExitCode> {
    let ground = Ground::ready()?;
    let work = Work {
        command: arguments.command.clone(),
        with: arguments.with.clone(),
        environment: arguments.env.clone(),
        directory: arguments.directory.clone(),
        mtu: Some(arguments.mtu),
        results: None,
        agent: arguments.agent.clone(),
        hosts: arguments.hosts,
    };
    let site = Site {
        hosts: arguments.agent.is_some().then_some(arguments.hosts),
        memory_mib: arguments.mem,
        processors: arguments.cpus,
        limit: Duration::from_secs(arguments.timeout),
        shows_consoles: arguments.console,
    };
    Ok(ExitCode::from(site.run(&ground, &work)?.code))
}

impl Ground {
    /// Makes sure that this host can run guests.
    ///
    /// # Errors
    /// Something is missing and cannot be installed or fetched.
    pub fn ready() -> Result<Self> {
        setup::ensure(&[setup::RDMA])?;
        let kernel = Kernel::ready(&cache())?;
        let accelerator = probe::accelerator(&kernel, &cache())?;
        Ok(Self { kernel, accelerator, tsc_khz: clock::tsc_khz() })
    }

    /// One line about the guests: kernel, QEMU, accelerator, and the processor beneath.
    pub fn description(&self) -> String {
        let version = Command::new("qemu-system-x86_64").arg("--version").output();
        let version = version.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        let version = version.unwrap_or_default();
        let processors = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = processors.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let count = std::thread::available_parallelism().map_or(0, usize::from);
        format!(
            "kernel {}, {}, {}, on {count} processors {}",
            self.kernel.release,
            version.lines().next().unwrap_or("QEMU"),
            self.accelerator,
            model.map_or("of an unknown model", |(_, model)| model)
        )
    }
}

impl Work {
    /// The files of its guest.
    fn image(&self, kernel: &Kernel) -> Result<Image> {
        let mut image = files::base(kernel)?;
        let program = program(self.command.first().context("no program")?)?;
        image.add(&program)?;
        for path in &self.with {
            image.add(path)?;
        }
        let mut command = self.command.clone();
        command[0] = program.into_os_string();
        image.bytes("/etc/selvage/command", zero_ended(&command), 0o644);
        ensure!(self.environment.iter().all(|variable| variable.contains('=')), "a variable without a value");
        let environment: Vec<OsString> = self.environment.iter().map(OsString::from).collect();
        image.bytes("/etc/selvage/environment", zero_ended(&environment), 0o644);
        let text = |path: &Path| {
            let text = path.to_str().filter(|text| !text.contains('\''));
            text.map(str::to_owned).with_context(|| format!("a guest cannot use {}", path.display()))
        };
        let directory =
            text(if self.directory.as_os_str().is_empty() { Path::new("/") } else { &self.directory })?;
        image.directory(&directory, 0o755);
        let mut agent = String::new();
        if let Some(path) = &self.agent {
            let path = path.canonicalize().with_context(|| format!("no program {}", path.display()))?;
            image.add(&path)?;
            agent = text(&path)?;
        }
        let results = self.results.as_deref().map(text).transpose()?.unwrap_or_default();
        let mtu = self.mtu.unwrap_or(MTU_DEFAULT);
        let mut settings = format!("mtu={mtu}\ndirectory='{directory}'\nresults='{results}'\n");
        settings.push_str(&format!("agent='{agent}'\nhosts={}\n", self.hosts));
        image.bytes("/etc/selvage/settings", settings, 0o644);
        Ok(image)
    }
}

/// Where kernels are kept between runs.
fn cache() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    target.unwrap_or_else(|| workspace_root().join("target")).join("guest")
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

fn zero_ended(words: &[OsString]) -> Vec<u8> {
    words.iter().flat_map(|word| word.as_bytes().iter().copied().chain([0])).collect()
}
