//! The named errors of this transport: what is missing or wrong, where, and what to do about it.

use crate::error::{Error, ErrorKind, Origin};
use std::io;

/// The library's wrapper answers `EOPNOTSUPP` to everything when it has not found libibverbs.
const LIBRARY_MISSING: i32 = libc::EOPNOTSUPP;
/// libibverbs answers `ENOSYS` when the kernel has no RDMA support.
const KERNEL_WITHOUT: i32 = libc::ENOSYS;

fn unreachable(what: String) -> Error {
    Error::new(ErrorKind::Unreachable, Origin::Transport, what)
}

/// Switched off.
pub(super) fn switched_off() -> Error {
    unreachable("RDMA is switched off: enabled = false in [rdma]".to_owned())
}

/// Devices cannot be listed.
pub(super) fn cannot_list(error: io::Error) -> Error {
    match error.raw_os_error() {
        Some(LIBRARY_MISSING) => unreachable(
            "there is no RDMA: libibverbs.so.1 is not installed (Debian: apt-get install ibverbs-providers)"
                .to_owned(),
        ),
        Some(KERNEL_WITHOUT) => unreachable(
            "there is no RDMA: the kernel has no support for it (modprobe ib_uverbs, and the card's driver)"
                .to_owned(),
        ),
        _ => unreachable("RDMA devices cannot be listed".to_owned()).with_source(error),
    }
}

/// The list is empty.
pub(super) fn no_device() -> Error {
    unreachable(
        "there is no RDMA: this host has no device (load the card's driver, or for soft-RoCE: \
         rdma link add rxe0 type rxe netdev eth0)"
            .to_owned(),
    )
}

/// The devices there are cannot be used; `refusals` says why, port by port.
pub(super) fn no_usable_port(refusals: &[String]) -> Error {
    unreachable(format!("no RDMA port can be used: {}", refusals.join("; ")))
}

/// The configuration's `[rdma]` names what is not there.
pub(super) fn wrong_setting(what: &str) -> Error {
    Error::new(ErrorKind::Invalid, Origin::Config, format!("[rdma] has {what}"))
}

/// A device, or something of it, refuses.
pub(super) fn device(name: &str, what: &str, error: impl std::error::Error) -> Error {
    unreachable(format!("RDMA device {name}: {what}")).with_source(cause(&error))
}

/// An error with all that lies below it: sideway's say only which call failed.
pub(super) fn cause(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut below = error.source();
    while let Some(error) = below {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        below = error.source();
    }
    text
}

/// A device has gone or its port's addresses have.
pub(super) fn faulted(fault: &str) -> Error {
    unreachable(fault.to_owned())
}

/// More memory would be pinned than the process may.
pub(super) fn memlock(name: &str, bytes: usize, limits: MemlockLimits) -> Error {
    let MemlockLimits { limit, pinned } = limits;
    let what = format!(
        "RDMA device {name} must pin {bytes} bytes, and RLIMIT_MEMLOCK is {limit} of which {pinned} are \
         used: set LimitMEMLOCK=infinity in the systemd unit (or `ulimit -l unlimited`, or memlock in \
         /etc/security/limits.conf)"
    );
    // It is the host's limit, not its memory: nothing will change by itself.
    Error::new(ErrorKind::Invalid, Origin::Transport, what)
}

/// What a process may pin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct MemlockLimits {
    /// `RLIMIT_MEMLOCK`, bytes.
    pub(super) limit: u64,
    /// Already pinned, bytes.
    pub(super) pinned: u64,
}

/// The limit that would stop `bytes` from being pinned, if there is one. A process with `CAP_IPC_LOCK` has
/// none.
pub(super) fn memlock_short(bytes: usize) -> Option<MemlockLimits> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current?;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    if has_ipc_lock(&status) {
        return None;
    }
    let pinned =
        field(&status, "VmPin:").and_then(|text| text.strip_suffix(" kB")?.trim().parse::<u64>().ok());
    let pinned = pinned.unwrap_or(0) * 1024;
    let needed = pinned.saturating_add(bytes as u64);
    (needed > limit).then_some(MemlockLimits { limit, pinned })
}

fn has_ipc_lock(status: &str) -> bool {
    const CAP_IPC_LOCK: u64 = 14;
    let effective = field(status, "CapEff:").and_then(|text| u64::from_str_radix(text, 16).ok());
    effective.is_some_and(|bits| bits >> CAP_IPC_LOCK & 1 == 1)
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_its_remedy() {
        for (errno, words) in [(95, "libibverbs.so.1 is not installed"), (38, "modprobe ib_uverbs")] {
            let error = cannot_list(io::Error::from_raw_os_error(errno));
            assert_eq!(error.kind, ErrorKind::Unreachable);
            assert!(error.to_string().contains(words), "{error}");
        }
        assert!(cannot_list(io::Error::from_raw_os_error(13)).source.is_some());
    }

    #[test]
    fn the_cause_is_told_once() {
        let denied = || io::Error::from_raw_os_error(13);
        let below = Error::new(ErrorKind::Os, Origin::Transport, "cannot open").with_source(denied());
        assert_eq!(cause(&below), "cannot open: Permission denied (os error 13)");
        assert_eq!(cause(&denied()), "Permission denied (os error 13)");
    }

    #[test]
    fn the_status_file_tells_capability_and_pinned_memory() {
        let status = "Name:\tx\nVmPin:\t      12 kB\nCapEff:\t0000000000004000\n";
        assert!(has_ipc_lock(status));
        assert_eq!(field(status, "VmPin:"), Some("12 kB"));
        assert!(!has_ipc_lock("CapEff:\t000001ffffffbfff\n"));
        assert!(!has_ipc_lock(""));
    }

    #[test]
    fn a_small_limit_is_named_with_what_to_set() {
        let text = memlock("mlx5_0", 1 << 20, MemlockLimits { limit: 65_536, pinned: 4096 }).to_string();
        for words in ["mlx5_0", "1048576", "65536", "4096", "LimitMEMLOCK=infinity"] {
            assert!(text.contains(words), "{text}");
        }
    }
}
