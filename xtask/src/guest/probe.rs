//! Which kind of processor guests get.
//!
//! `/dev/kvm` may be there, open, and still run no guest: inside of other virtual machines, for one. So a
//! guest is started, and what became of it is remembered until the host is started again.

use super::image::Image;
use super::kernel::Kernel;
use super::qemu::{ACCELERATOR_VARIABLE, Accelerator, Machine};
use anyhow::{Result, bail};
use std::fs::{self, OpenOptions};
use std::path::Path;
use std::time::{Duration, Instant};

/// Time for a guest without a program to start and end; it takes half a second where KVM works.
const PROBE_MAX: Duration = Duration::from_secs(10);
/// What the first process of the probe's guest does: it says that it runs, and ends the guest.
const INIT: &str = "#!/bin/busybox sh\necho selvage-probe-runs\nexec /bin/busybox poweroff -f\n";

/// The kind that the environment forces, or the best one that works.
///
/// # Errors
/// The environment asks for something that does not exist, or QEMU is missing.
pub fn accelerator(kernel: &Kernel, cache: &Path) -> Result<Accelerator> {
    if let Some(forced) = forced(std::env::var(ACCELERATOR_VARIABLE).ok().as_deref())? {
        return Ok(forced);
    }
    if OpenOptions::new().read(true).write(true).open("/dev/kvm").is_err() {
        return Ok(Accelerator::Tcg);
    }
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let note = cache.join(format!("kvm-{}", boot.trim()));
    match fs::read_to_string(&note).ok().as_deref() {
        Some("works") => return Ok(Accelerator::Kvm),
        Some("fails") => return Ok(Accelerator::Tcg),
        _ => {}
    }
    let works = kvm_works(kernel)?;
    eprintln!("KVM {} here", if works { "runs a guest" } else { "opens, but runs no guest: TCG is used" });
    let _ = fs::write(&note, if works { "works" } else { "fails" });
    Ok(if works { Accelerator::Kvm } else { Accelerator::Tcg })
}

fn forced(value: Option<&str>) -> Result<Option<Accelerator>> {
    match value {
        None | Some("") => Ok(None),
        Some("kvm") => Ok(Some(Accelerator::Kvm)),
        Some("tcg") => Ok(Some(Accelerator::Tcg)),
        Some(other) => bail!("{ACCELERATOR_VARIABLE} is {other}; it can be kvm or tcg"),
    }
}

fn kvm_works(kernel: &Kernel) -> Result<bool> {
    let mut image = Image::default();
    image.bytes("/init", INIT, 0o755);
    image.directory("/dev", 0o755);
    image.add_as(&super::qemu::program("busybox")?, "/bin/busybox", 0o755);
    let initramfs = image.write()?;
    let machine = Machine {
        accelerator: Accelerator::Kvm,
        kernel: &kernel.image,
        initramfs: &initramfs,
        memory_mib: 512,
        processors: 2,
        ports: &[],
        host: None,
        tsc_khz: None,
        is_trial: true,
    };
    let mut running = machine.start()?;
    let off = running.wait_until(Instant::now() + PROBE_MAX)?;
    running.kill();
    Ok(off && running.console().contains("selvage-probe-runs"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_decides_first() {
        assert_eq!(forced(Some("tcg")).unwrap(), Some(Accelerator::Tcg));
        assert_eq!(forced(Some("kvm")).unwrap(), Some(Accelerator::Kvm));
        assert_eq!(forced(None).unwrap(), None);
        assert!(forced(Some("xen")).unwrap_err().to_string().contains("kvm or tcg"));
    }
}
