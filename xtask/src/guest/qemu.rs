//! One QEMU process: its arguments, its streams, its end.
//!
//! All its streams are socket pairs and its file system is memory, so that a killed guest leaves nothing, and
//! `setpriv` has the kernel kill it when the thread that started it is gone.

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Forces the kind of processor that guests have: `kvm` or `tcg`.
pub const ACCELERATOR_VARIABLE: &str = "SELVAGE_GUEST_ACCEL";
/// How much of what a console said is kept.
const CONSOLE_BYTES_MAX: usize = 256 << 10;
/// Held while descriptors are inheritable, so that no other guest gets them, too.
static SPAWNING: Mutex<()> = Mutex::new(());

/// Who executes a guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// The processor.
    Kvm,
    /// QEMU, by translation.
    Tcg,
}

impl std::fmt::Display for Accelerator {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            Self::Kvm => "KVM",
            Self::Tcg => "TCG",
        })
    }
}

/// A machine to start.
pub struct Machine<'a> {
    /// Who executes it.
    pub accelerator: Accelerator,
    /// The kernel.
    pub kernel: &'a Path,
    /// The root file system.
    pub initramfs: &'a File,
    /// Memory, in MiB.
    pub memory_mib: u32,
    /// Processors.
    pub processors: u32,
    /// Virtio ports by name, in the guest a character device each.
    pub ports: &'a [&'static str],
    /// Its number as a host of a network, if it is one; then it has a card.
    pub host: Option<u8>,
    /// Rate of this host's time stamp counter, if it is known.
    pub tsc_khz: Option<u64>,
    /// Whether it may fail, and nobody wants to read why.
    pub is_trial: bool,
}

/// A running machine; dropping it kills it.
pub struct Running {
    child: Child,
    console: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
    /// This end of each port, in the order asked for.
    pub ports: Vec<UnixStream>,
    /// This end of the network card's cable.
    pub cable: Option<UnixStream>,
}

impl Machine<'_> {
    /// Starts the machine.
    ///
    /// # Errors
    /// QEMU is missing or cannot be started.
    pub fn start(&self) -> Result<Running> {
        let qemu = program("qemu-system-x86_64")?;
        let (console, console_end) = UnixStream::pair()?;
        let pairs = self.ports.iter().map(|_| UnixStream::pair()).collect::<std::io::Result<Vec<_>>>()?;
        let (ports, port_ends): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        let (cable, cable_end) = match self.host {
            Some(_) => UnixStream::pair().map(|(mine, other)| (Some(mine), Some(other)))?,
            None => (None, None),
        };
        let initramfs = OwnedFd::from(self.initramfs.try_clone()?);
        let mut arguments = self.arguments(initramfs.as_raw_fd(), console_end.as_raw_fd());
        for (name, end) in self.ports.iter().zip(&port_ends) {
            arguments.extend(port_arguments(name, end.as_raw_fd()));
        }
        if let (Some(host), Some(end)) = (self.host, &cable_end) {
            arguments.extend(card_arguments(host, end.as_raw_fd()));
        }
        let mut ends: Vec<OwnedFd> = port_ends.into_iter().map(OwnedFd::from).collect();
        ends.extend([initramfs, console_end.into()]);
        ends.extend(cable_end.map(OwnedFd::from));

        let mut command = Command::new(program("setpriv")?);
        command.args(["--pdeathsig", "KILL", "--"]).arg(qemu).args(&arguments).stdin(Stdio::null());
        if self.is_trial {
            command.stderr(Stdio::null());
        }
        let child = {
            let _alone = lock(&SPAWNING);
            for end in &ends {
                rustix::io::fcntl_setfd(end, rustix::io::FdFlags::empty())?;
            }
            let child = command.spawn().context("cannot start QEMU");
            drop(ends);
            child?
        };
        let kept = Arc::new(Mutex::new(Vec::new()));
        let reader = thread::spawn({
            let kept = Arc::clone(&kept);
            move || keep_console(console, &kept)
        });
        Ok(Running { child, console: kept, reader: Some(reader), ports, cable })
    }

    fn arguments(&self, initramfs: i32, console: i32) -> Vec<String> {
        // What 52 of 52 boots came up with. The microvm machine type hangs now and then; with `erms` and
        // `fsrm` TCG copies memory byte by byte.
        let (accelerator, processor) = match self.accelerator {
            Accelerator::Kvm => ("kvm", "host"),
            Accelerator::Tcg => ("tcg,thread=multi", "max,-erms,-fsrm"),
        };
        // A slow host must not look like a broken clock or interrupt.
        let clocks = "tsc=reliable no_timer_check";
        let mut append = format!("console=ttyS0 quiet panic=-1 mitigations=off {clocks} rdinit=/init");
        if let (Accelerator::Tcg, Some(khz)) = (self.accelerator, self.tsc_khz) {
            append.push_str(&format!(" tsc_early_khz={khz}"));
        }
        if let Some(host) = self.host {
            append.push_str(&format!(" selvage.guest={host}"));
        }
        let fixed = "-nodefaults -no-user-config -display none -no-reboot -M q35 -device virtio-serial-pci";
        let mut arguments: Vec<String> = fixed.split(' ').map(str::to_owned).collect();
        let mut add = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
        add("-accel", accelerator.to_owned());
        add("-cpu", processor.to_owned());
        add("-smp", self.processors.to_string());
        add("-m", format!("{}M", self.memory_mib));
        add("-kernel", self.kernel.display().to_string());
        add("-initrd", format!("/dev/fd/{initramfs}"));
        add("-append", append);
        add("-chardev", format!("socket,id=console,fd={console}"));
        add("-serial", "chardev:console".to_owned());
        arguments
    }
}

fn port_arguments(name: &str, descriptor: i32) -> [String; 4] {
    [
        "-chardev".to_owned(),
        format!("socket,id={name},fd={descriptor}"),
        "-device".to_owned(),
        format!("virtserialport,chardev={name},name={name}"),
    ]
}

fn card_arguments(host: u8, descriptor: i32) -> [String; 4] {
    [
        "-netdev".to_owned(),
        format!("stream,id=net0,server=off,addr.type=fd,addr.str={descriptor}"),
        "-device".to_owned(),
        format!("virtio-net-pci,netdev=net0,mac=52:54:00:77:00:{host:02x},host_mtu=9000"),
    ]
}

impl Running {
    /// The newest part of what the console said.
    pub fn console(&self) -> String {
        String::from_utf8_lossy(&lock(&self.console)).into_owned()
    }

    /// Waits for the machine to go off by itself; false if it has not until `deadline`.
    ///
    /// # Errors
    /// The process cannot be waited for.
    pub fn wait_until(&mut self, deadline: Instant) -> Result<bool> {
        loop {
            if self.child.try_wait()?.is_some() {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Stops the machine's processors, or lets them go on.
    ///
    /// # Errors
    /// The process is gone.
    pub fn pause(&self, is_paused: bool) -> Result<()> {
        let signal = if is_paused { Signal::STOP } else { Signal::CONT };
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }

    /// Ends the machine as a power cut would.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

fn keep_console(mut console: UnixStream, kept: &Mutex<Vec<u8>>) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = console.read(&mut buffer) {
        let mut kept = lock(kept);
        kept.extend_from_slice(&buffer[..count]);
        let excess = kept.len().saturating_sub(CONSOLE_BYTES_MAX);
        kept.drain(..excess);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A program that guests need.
///
/// # Errors
/// It is missing.
pub fn program(name: &str) -> Result<PathBuf> {
    selvage_tests::product::find_program(name).with_context(|| format!("{name} is missing: cargo x setup"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_follow_the_accelerator() {
        let initramfs = File::open("/dev/null").unwrap();
        let mut machine = Machine {
            accelerator: Accelerator::Tcg,
            kernel: Path::new("/boot/vmlinuz"),
            initramfs: &initramfs,
            memory_mib: 512,
            processors: 2,
            ports: &[],
            host: None,
            tsc_khz: Some(2_000_000),
            is_trial: false,
        };
        let line = |machine: &Machine| machine.arguments(7, 8).join(" ");
        let tcg = line(&machine);
        assert!(tcg.contains("-accel tcg,thread=multi -cpu max,-erms,-fsrm -smp 2 -m 512M"), "{tcg}");
        assert!(tcg.contains("-initrd /dev/fd/7"), "{tcg}");
        assert!(tcg.contains("-chardev socket,id=console,fd=8 -serial chardev:console"), "{tcg}");
        assert!(tcg.contains(" tsc_early_khz=2000000"), "{tcg}");
        machine.accelerator = Accelerator::Kvm;
        assert!(!line(&machine).contains("tsc_early_khz"), "KVM tells its guests by itself");
        assert!(line(&machine).contains("-accel kvm -cpu host"));
        assert!(!line(&machine).contains("selvage.guest"));
        machine.host = Some(2);
        assert!(line(&machine).contains(" selvage.guest=2 "), "{}", line(&machine));
    }

    #[test]
    fn every_guest_has_its_own_card() {
        assert!(card_arguments(1, 9).join(" ").contains("addr.type=fd,addr.str=9"));
        assert_ne!(card_arguments(1, 9)[3], card_arguments(2, 9)[3]);
    }
}
