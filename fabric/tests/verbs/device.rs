//! What a device does to those who use it: its port goes down and up, its address changes, it is removed.

use super::support::*;
use selvage_fabric::transport::Link;
use selvage_fabric::transport::verbs::{Door, PeerId, Verbs};
use std::process::Command;
use std::time::{Duration, Instant};

/// Longest wait for a device event.
const WAIT: Duration = Duration::from_secs(10);

fn shell(command: &str) {
    let output = Command::new("bash").args(["-c", command]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {text}");
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < WAIT, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Puts a device back that a test has taken away, whatever became of the test.
struct Restored(&'static str);

impl Drop for Restored {
    fn drop(&mut self) {
        let _ = Command::new("bash").args(["-c", self.0]).status();
    }
}

#[test]
fn a_link_whose_address_has_gone_is_broken_and_a_new_one_takes_another() {
    let ends = Ends::new();
    let link = ends.link(1).unwrap();
    assert!(!link.is_broken());
    let _restored = Restored("ip addr flush dev v0 scope global; ip addr add 10.77.0.1/24 dev v0");
    shell("ip addr del 10.77.0.1/24 dev v0 && ip addr add 10.77.0.9/24 dev v0");
    // Device events are taken at beats.
    until("the link notices", || {
        link.beat(1, 0);
        link.is_broken()
    });
    assert!(link.detail().contains("rxe0 port 1 has another address now"), "{}", link.detail());
    until("the new address can be used", || {
        ends.node.availability(None).is_ok_and(|text| text.contains("10.77.0.9"))
    });
    let again = ends.link(2).unwrap();
    assert!(again.detail().contains("10.77.0.9"), "{}", again.detail());
    assert!(!again.is_broken());
}

#[test]
fn a_port_that_is_down_is_named_and_used_again_when_it_is_back() {
    let _restored = Restored("ip link set v1 up");
    shell("ip link set v1 down");
    let error = {
        let verbs = Verbs::new(&over(SERVER_DEVICE));
        until("the port is down", || verbs.availability(None).is_err());
        verbs.availability(None).unwrap_err().to_string()
    };
    assert!(error.contains("rxe1 port 1 is down (set its network interface up)"), "{error}");
    shell("ip link set v1 up");
    let verbs = Verbs::new(&over(SERVER_DEVICE));
    until("the port is back", || verbs.availability(None).is_ok());
}

#[test]
fn a_device_that_is_removed_leaves_its_users_alive() {
    let Ends { node, lease, door, segment, server } = Ends::new();
    let link = connect(&node, &segment.region, &door, &lease, PeerId(1)).unwrap();
    let _restored =
        Restored("rdma link show rxe1/1 >/dev/null 2>&1 || rdma link add rxe1 type rxe netdev v1");
    // It waits for those who have it open, or not, as the driver likes.
    let removal = std::thread::spawn(|| shell("rdma link del rxe1"));
    until("the device is not offered", || Verbs::new(&over(SERVER_DEVICE)).availability(None).is_err());
    until("the door closes", || !door.is_open());
    let error = connect(&node, &segment.region, &door, &lease, PeerId(2)).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("rxe1 was removed"), "{error}");
    // The node's own device is still there; its peer's silence shows in completions.
    assert!(!link.is_broken());
    door.disconnect(PeerId(1)).unwrap();
    door.seal().unwrap();
    drop((link, door, server));
    removal.join().unwrap();
    shell("rdma link add rxe1 type rxe netdev v1");
    let server = Verbs::new(&over(SERVER_DEVICE));
    until("the device is back", || server.availability(None).is_ok());
    let lease = lease_of("n1", 4 << 20);
    let door = Door::open(&server, &lease, None, ARCHIVE_BYTES_MAX).unwrap();
    connect(&node, &segment.region, &door, &lease, PeerId(1)).unwrap();
}

#[test]
fn a_link_over_a_device_that_is_removed_is_broken_and_lets_it_go() {
    let Ends { node, lease, door, segment, server: _server } = Ends::new();
    let link = connect(&node, &segment.region, &door, &lease, PeerId(1)).unwrap();
    let _restored = Restored("rdma link show rxe0/1 >&- 2>&- || rdma link add rxe0 type rxe netdev v0");
    let removal = std::thread::spawn(|| shell("rdma link del rxe0"));
    until("the link notices", || {
        link.beat(1, 0);
        link.is_broken()
    });
    assert!(link.detail().contains("rxe0 was removed"), "{}", link.detail());
    // What is left still answers, and the process lives.
    let error = connect(&node, &segment.region, &door, &lease, PeerId(2)).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("rxe0"), "{error}");
    drop(link);
    removal.join().unwrap();
    shell("rdma link add rxe0 type rxe netdev v0");
    until("the device is back", || node.availability(None).is_ok());
    let again = connect(&node, &segment.region, &door, &lease, PeerId(1)).unwrap();
    again.beat(5, 0);
    until("a beat arrives", || lease.node_beat() == 5);
}
