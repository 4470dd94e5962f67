//! The RDMA devices that this host has already.

use std::fs;
use std::path::{Path, PathBuf};

/// Where the kernel tells of them.
pub const SYSFS: &str = "/sys/class/infiniband";

/// The names of those with an active port, in order.
pub fn active(sysfs: &Path) -> Vec<String> {
    let mut names: Vec<String> = children(sysfs)
        .filter(|device| children(&device.join("ports")).any(|port| is_active(&port)))
        .filter_map(|device| Some(device.file_name()?.to_str()?.to_owned()))
        .collect();
    names.sort();
    names
}

/// Two devices, which may be one: a device reaches itself.
pub fn pair(active: &[String]) -> Option<(&str, &str)> {
    let first = active.first()?;
    Some((first, active.get(1).unwrap_or(first)))
}

fn is_active(port: &Path) -> bool {
    fs::read_to_string(port.join("state")).is_ok_and(|state| state.trim().ends_with("ACTIVE"))
}

fn children(folder: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_count_with_an_active_port() {
        let dir = tempfile::tempdir().unwrap();
        assert!(active(&dir.path().join("none")).is_empty());
        for (device, port, state) in [
            ("mlx5_1", "1", "4: ACTIVE\n"),
            ("mlx5_0", "1", "1: DOWN\n"),
            ("mlx5_0", "2", "4: ACTIVE\n"),
            ("irdma0", "1", "2: INIT\n"),
        ] {
            let port = dir.path().join(device).join("ports").join(port);
            fs::create_dir_all(&port).unwrap();
            fs::write(port.join("state"), state).unwrap();
        }
        assert_eq!(active(dir.path()), ["mlx5_0", "mlx5_1"]);
    }

    #[test]
    fn one_device_is_both_ends() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(pair(&names(&[])), None);
        assert_eq!(pair(&names(&["a"])), Some(("a", "a")));
        assert_eq!(pair(&names(&["a", "b", "c"])), Some(("a", "b")));
    }
}
