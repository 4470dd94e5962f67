//! Doors and openings: who gets in, who is refused, and what is left afterwards.

use super::support::*;
use selvage_fabric::config::Rdma;
use selvage_fabric::control::message::{Endpoint, RemoteMemory};
use selvage_fabric::error::ErrorKind;
use selvage_fabric::limits::PROCESSES_MAX;
use selvage_fabric::transport::verbs::{Door, Opening, PeerId, Verbs};

#[test]
fn what_a_connection_goes_over_is_told() {
    let text = Verbs::new(&over(NODE_DEVICE)).availability(None).unwrap();
    for words in ["rxe0 port 1", "RoCE v2", "10.77.0.1"] {
        assert!(text.contains(words), "{text}");
    }
    // The address of the control connection decides, not the order of the devices.
    let text = Verbs::new(&Rdma::default()).availability(Some("10.77.0.2".parse().unwrap())).unwrap();
    assert!(text.contains("rxe1") && text.contains("10.77.0.2"), "{text}");
}

#[test]
fn wrong_settings_are_named() {
    for (settings, words) in [
        (over("mlx5_7"), "device = \"mlx5_7\""),
        (Rdma { port: Some(2), ..over("rxe0") }, "rxe0 has no port 2"),
        (Rdma { gid_index: Some(0), ..over("rxe0") }, "gid_index = 0"),
        (Rdma { gid_index: Some(9), ..over("rxe0") }, "gid_index = 9"),
        (Rdma { enabled: false, ..Rdma::default() }, "switched off"),
    ] {
        let error = Verbs::new(&settings).availability(None).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[test]
fn many_processes_share_a_lease_and_leave_one_by_one() {
    let ends = Ends::new();
    let links: Vec<_> = (0..8).map(|peer| ends.link(peer).unwrap()).collect();
    assert_eq!(ends.door.peers(), 8);
    assert!(ends.door.detail().contains("path MTU 4096"), "{}", ends.door.detail());
    ends.door.disconnect(PeerId(3)).unwrap();
    ends.door.disconnect(PeerId(3)).unwrap();
    ends.door.disconnect(PeerId(99)).unwrap();
    assert_eq!(ends.door.peers(), 7);
    // Asking again on a connection replaces its queue pair.
    ends.link(4).unwrap();
    assert_eq!(ends.door.peers(), 7);
    drop(links);
}

#[test]
fn no_more_processes_get_in_than_a_node_has() {
    let ends = Ends::new();
    let offer = Opening::begin(&ends.node, &ends.segment.region, None).unwrap().offer();
    for peer in 0..PROCESSES_MAX as u64 {
        ends.door.connect(PeerId(peer), &offer).unwrap();
    }
    let error = ends.door.connect(PeerId(u64::MAX), &offer).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Full, "{error}");
    // Who is in may ask again, and who leaves makes room.
    ends.door.connect(PeerId(0), &offer).unwrap();
    ends.door.disconnect(PeerId(0)).unwrap();
    ends.door.connect(PeerId(u64::MAX), &offer).unwrap();
    assert_eq!(ends.door.peers(), PROCESSES_MAX);
}

#[test]
fn a_sealed_door_lets_nobody_in() {
    let ends = Ends::new();
    let _link = ends.link(1).unwrap();
    assert!(ends.door.is_open());
    ends.lease.seal();
    ends.door.seal().unwrap();
    ends.door.seal().unwrap();
    assert!(!ends.door.is_open());
    assert_eq!(ends.door.peers(), 0);
    assert!(ends.lease.settle(8).unwrap());
    assert_eq!(ends.link(2).map(|_| ()).unwrap_err().kind, ErrorKind::OwnershipLost);
    assert_eq!(ends.door.stage(PeerId(1), &[]).unwrap_err().kind, ErrorKind::OwnershipLost);
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let ends = Ends::new();
    let opening = Opening::begin(&ends.node, &ends.segment.region, None).unwrap();
    let offer = opening.offer();
    for (wrong, kind, words) in [
        (Endpoint { qp_number: 1 << 24, ..offer }, ErrorKind::Corrupt, "24 bits"),
        (Endpoint { packet_sequence: 1 << 24, ..offer }, ErrorKind::Corrupt, "24 bits"),
        (Endpoint { mtu: 0, ..offer }, ErrorKind::Corrupt, "MTU"),
        (Endpoint { mtu: 9, ..offer }, ErrorKind::Corrupt, "MTU"),
        (Endpoint { gid: [0; 16], ..offer }, ErrorKind::Corrupt, "no GID"),
        (Endpoint { ethernet: false, lid: 1, ..offer }, ErrorKind::Unreachable, "rxe1 port 1 is RoCE"),
    ] {
        let error = ends.door.connect(PeerId(1), &wrong).unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
    assert_eq!(ends.door.peers(), 0);
    let (endpoint, memory) = ends.door.connect(PeerId(1), &offer).unwrap();
    let geometry = ends.lease.header().geometry;
    let short = RemoteMemory { bytes: geometry.total_bytes() - 1, ..memory };
    let error = opening.finish(&endpoint, short, geometry, SERVER).map(|_| ()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Corrupt, "{error}");
}

#[test]
fn ends_of_different_mtu_use_the_smaller_one() {
    let ends = Ends::new();
    let opening = Opening::begin(&ends.node, &ends.segment.region, None).unwrap();
    let offer = Endpoint { mtu: 3, ..opening.offer() };
    let (endpoint, memory) = ends.door.connect(PeerId(1), &offer).unwrap();
    assert!(ends.door.detail().contains("path MTU 1024"), "{}", ends.door.detail());
    let answer = Endpoint { mtu: 3, ..endpoint };
    let link = opening.finish(&answer, memory, ends.lease.header().geometry, SERVER).unwrap();
    assert!(link.path().contains("path MTU 1024"), "{}", link.path());
}

#[test]
fn staging_is_bounded_and_needs_a_link() {
    let ends = Ends::new();
    assert_eq!(ends.door.stage(PeerId(1), &[b"x"]).unwrap_err().kind, ErrorKind::Denied);
    let _link = ends.link(1).unwrap();
    let big = vec![7; ARCHIVE_BYTES_MAX];
    let memory = ends.door.stage(PeerId(1), &[&big, b"tail"]).unwrap();
    assert_eq!(memory.bytes, ARCHIVE_BYTES_MAX as u64 + 4);
    let error = ends.door.stage(PeerId(1), &[&big, &big, &big]).unwrap_err();
    assert_eq!(error.kind, ErrorKind::TooLarge, "{error}");
    let again = ends.door.stage(PeerId(1), &[b"other"]).unwrap();
    assert_eq!((again.address, again.key), (memory.address, memory.key));
}

#[test]
fn a_door_outlives_its_lease_and_its_device_handle() {
    let Ends { node, server, lease, door, segment } = Ends::new();
    let link = connect(&node, &segment.region, &door, &lease, PeerId(1)).unwrap();
    // The card may write until the door is sealed, so the memory stays.
    drop((lease, server, segment, node));
    door.seal().unwrap();
    drop(link);
    let fresh = Verbs::new(&over(SERVER_DEVICE));
    Door::open(&fresh, &lease_of("n2", 4 << 20), None, ARCHIVE_BYTES_MAX).unwrap();
}

#[test]
fn what_a_forked_child_drops_stays_its_parents() {
    let ends = Ends::new();
    let link = ends.link(1).unwrap();
    // SAFETY: the child calls nothing but drops and `_exit`; no other thread of this process holds a lock
    // that they take.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        drop((link, ends));
        // SAFETY: ends the child without its parent's exit handlers.
        unsafe { libc::_exit(7) };
    }
    let mut status = 0;
    // SAFETY: waits for the child made above; `status` is writable.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(libc::WEXITSTATUS(status), 7);
    // All of it works still: another process gets in, and what is destroyed is there to be destroyed.
    ends.link(2).unwrap();
    ends.door.disconnect(PeerId(1)).unwrap();
    ends.lease.seal();
    ends.door.seal().unwrap();
    drop(link);
}

/// Runs a test of this program in a process of its own, which is told so by `variable`.
fn in_a_child(test: &str, variable: &str) -> String {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(variable, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Makes this process nobody's. Refused to others than the superuser, who are nobody's enough.
fn become_nobody() {
    // SAFETY: changes who this process is, and no memory.
    let _ = unsafe { libc::setuid(65_534) };
}

const LITTLE: &str = "SELVAGE_TEST_LITTLE_MEMLOCK";

#[test]
fn too_little_locked_memory_is_named_with_what_to_set() {
    let text = in_a_child("door::child_with_little_locked_memory", LITTLE);
    for words in ["said: RDMA device rxe1 must pin", "RLIMIT_MEMLOCK is 65536", "LimitMEMLOCK=infinity"] {
        assert!(text.contains(words), "{text}");
    }
}

/// Not a test of its own: a process that may not lock much memory, and is no superuser, who always may.
#[test]
fn child_with_little_locked_memory() {
    if std::env::var_os(LITTLE).is_none() {
        return;
    }
    let limit = libc::rlimit { rlim_cur: 65_536, rlim_max: 65_536 };
    // SAFETY: reads a whole structure.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) }, 0);
    become_nobody();
    let verbs = Verbs::new(&over(SERVER_DEVICE));
    let error =
        Door::open(&verbs, &lease_of("n1", 4 << 20), None, ARCHIVE_BYTES_MAX).map(|_| ()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Invalid);
    println!("said: {error}");
}

const LOCKED_OUT: &str = "SELVAGE_TEST_LOCKED_OUT";

#[test]
fn devices_that_may_not_be_opened_are_named() {
    let nodes = ["/dev/infiniband/uverbs0", "/dev/infiniband/uverbs1"];
    let all = |mode| nodes.map(|node| std::fs::set_permissions(node, mode_of(mode)).unwrap());
    all(0o600);
    let text = std::panic::catch_unwind(|| in_a_child("door::child_that_is_locked_out", LOCKED_OUT));
    all(0o666);
    let text = text.unwrap();
    for words in ["rxe0 cannot be opened", "rxe1 cannot be opened", "may this user open /dev/infiniband"] {
        assert!(text.contains(words), "{text}");
    }
}

fn mode_of(mode: u32) -> std::fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(mode)
}

/// Not a test of its own: a process that may not open the devices.
#[test]
fn child_that_is_locked_out() {
    if std::env::var_os(LOCKED_OUT).is_none() {
        return;
    }
    become_nobody();
    println!("said: {}", Verbs::new(&Rdma::default()).availability(None).unwrap_err());
}
