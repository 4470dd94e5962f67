//! Made-up hosts: GID tables as mlx5, irdma, rxe and InfiniBand cards have them.

use super::*;
use crate::error::ErrorKind;

const LINK_LOCAL: &str = "fe80::e8eb:d3ff:fe12:3456";

fn gid(index: u8, kind: GidKind, address: &str) -> GidFacts {
    let address: IpAddr = address.parse().unwrap();
    let gid = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    };
    GidFacts { index, kind, gid }
}

fn roce(number: u8, gids: Vec<GidFacts>) -> PortFacts {
    PortFacts {
        number,
        active: true,
        state: "active",
        ethernet: true,
        mtu: 3,
        speed: 4 * 32,
        lid: 0,
        partition_keys: vec![0xffff],
        gids,
    }
}

fn infiniband(number: u8, lid: u16) -> PortFacts {
    let gids = vec![gid(0, GidKind::InfiniBand, "fe80::506b:4b03:c:1")];
    PortFacts { ethernet: false, mtu: 5, lid, partition_keys: vec![0xffff, 0x8001], ..roce(number, gids) }
}

/// mlx5: each address twice, version 1 and version 2; the first routable one of version 2 is 3.
fn mlx5_port(number: u8, address: &str) -> PortFacts {
    let gids = vec![
        gid(0, GidKind::RoceV1, LINK_LOCAL),
        gid(1, GidKind::RoceV2, LINK_LOCAL),
        gid(2, GidKind::RoceV1, address),
        gid(3, GidKind::RoceV2, address),
    ];
    roce(number, gids)
}

/// irdma: version 2 only.
fn irdma_port(address: &str) -> PortFacts {
    roce(1, vec![gid(0, GidKind::RoceV2, LINK_LOCAL), gid(1, GidKind::RoceV2, address)])
}

fn device(name: &str, ports: Vec<PortFacts>) -> DeviceFacts {
    DeviceFacts { name: name.to_owned(), unusable: None, ports }
}

fn chosen(devices: &[DeviceFacts], config: &Rdma, local: Option<&str>) -> (String, u8, u8) {
    let choice = choose(devices, config, local.map(|local| local.parse().unwrap())).unwrap();
    (choice.device, choice.port.number, choice.gid.index)
}

fn refused(devices: &[DeviceFacts], config: &Rdma) -> (ErrorKind, String) {
    let error = choose(devices, config, None).unwrap_err();
    (error.kind, error.to_string())
}

#[test]
fn the_gid_is_found_whatever_the_driver_puts_where() {
    let any = Rdma::default();
    let mlx5 = [device("mlx5_0", vec![mlx5_port(1, "10.1.0.5")])];
    assert_eq!(chosen(&mlx5, &any, None), ("mlx5_0".into(), 1, 3));
    let irdma = [device("irdma0", vec![irdma_port("10.1.0.5")])];
    assert_eq!(chosen(&irdma, &any, None), ("irdma0".into(), 1, 1));
    // IPv4 goes before IPv6, which goes before nothing.
    let both = vec![
        gid(0, GidKind::RoceV2, LINK_LOCAL),
        gid(1, GidKind::RoceV2, "2001:db8::5"),
        gid(2, GidKind::RoceV2, "192.0.2.5"),
    ];
    assert_eq!(chosen(&[device("rxe0", vec![roce(1, both.clone())])], &any, None).2, 2);
    assert_eq!(chosen(&[device("rxe0", vec![roce(1, both[..2].to_vec())])], &any, None).2, 1);
}

#[test]
fn the_address_of_the_control_connection_decides() {
    let any = Rdma::default();
    let fast = PortFacts { speed: 800, ..mlx5_port(1, "10.1.0.5") };
    let devices = [
        device("mlx5_0", vec![fast, mlx5_port(2, "10.2.0.5")]),
        device("irdma0", vec![irdma_port("10.3.0.5")]),
        device("rxe0", vec![roce(1, vec![gid(4, GidKind::RoceV2, "2001:db8::5")])]),
    ];
    assert_eq!(chosen(&devices, &any, Some("10.2.0.5")), ("mlx5_0".into(), 2, 3));
    assert_eq!(chosen(&devices, &any, Some("10.3.0.5")), ("irdma0".into(), 1, 1));
    assert_eq!(chosen(&devices, &any, Some("2001:db8::5")), ("rxe0".into(), 1, 4));
    // An IPv4 address that the control socket tells as IPv6.
    assert_eq!(chosen(&devices, &any, Some("::ffff:10.2.0.5")), ("mlx5_0".into(), 2, 3));
    // No port has it: the fastest.
    assert_eq!(chosen(&devices, &any, Some("172.16.0.1")), ("mlx5_0".into(), 1, 3));
    // The port that has it is down: another one, rather than none.
    let mut down = devices.clone();
    down[0].ports[1].active = false;
    assert_eq!(chosen(&down, &any, Some("10.2.0.5")), ("mlx5_0".into(), 1, 3));
}

#[test]
fn the_fastest_active_port_wins_and_the_first_of_equals() {
    let any = Rdma::default();
    let slow = |number| PortFacts { speed: 10, ..mlx5_port(number, "10.1.0.5") };
    let devices = [
        device("mlx5_0", vec![slow(1), slow(2)]),
        device("mlx5_1", vec![PortFacts { speed: 400, ..infiniband(1, 7) }]),
        device("mlx5_2", vec![PortFacts { speed: 400, ..infiniband(1, 8) }]),
    ];
    assert_eq!(chosen(&devices[..1], &any, None), ("mlx5_0".into(), 1, 3));
    assert_eq!(chosen(&devices, &any, None), ("mlx5_1".into(), 1, 0));
}

#[test]
fn what_the_configuration_names_is_taken_or_refused() {
    let devices =
        [device("mlx5_0", vec![mlx5_port(1, "10.1.0.5"), mlx5_port(2, "10.2.0.5")]), device("rxe0", vec![])];
    let named = |device: &str, port: Option<u8>, gid_index: Option<u8>| Rdma {
        device: Some(device.to_owned()),
        port,
        gid_index,
        ..Rdma::default()
    };
    assert_eq!(chosen(&devices, &named("mlx5_0", Some(2), None), None), ("mlx5_0".into(), 2, 3));
    assert_eq!(chosen(&devices, &named("mlx5_0", Some(2), Some(3)), Some("10.1.0.5")).1, 2);
    for (config, kind, words) in [
        (named("mlx4_0", None, None), ErrorKind::Invalid, "this host has mlx5_0, rxe0"),
        (named("mlx5_0", Some(3), None), ErrorKind::Unreachable, "mlx5_0 has no port 3"),
        (named("mlx5_0", None, Some(2)), ErrorKind::Invalid, "is of RoCE version 1"),
        (named("mlx5_0", None, Some(1)), ErrorKind::Invalid, "is link-local at mlx5_0 port 1; usable: 3"),
        (named("mlx5_0", None, Some(9)), ErrorKind::Invalid, "is empty"),
    ] {
        let (found, text) = refused(&devices, &config);
        assert_eq!(found, kind, "{text}");
        assert!(text.contains(words), "{text}");
    }
}

#[test]
fn each_port_that_cannot_be_used_is_named_with_its_remedy() {
    let any = Rdma::default();
    let down = |port: PortFacts| PortFacts { active: false, state: "down", ..port };
    let local = roce(1, vec![gid(0, GidKind::RoceV1, LINK_LOCAL), gid(1, GidKind::RoceV2, LINK_LOCAL)]);
    let old = roce(1, vec![gid(0, GidKind::RoceV1, "10.1.0.5")]);
    for (port, words) in [
        (down(mlx5_port(1, "10.1.0.5")), "x0 port 1 is down (set its network interface up)"),
        (down(infiniband(1, 7)), "x0 port 1 is down (is a subnet manager up?)"),
        (infiniband(1, 0), "x0 port 1 has no LID"),
        (local, "x0 port 1 has only link-local or RoCE v1 GIDs (give its network interface an IP address)"),
        (old, "only link-local or RoCE v1"),
        (roce(1, Vec::new()), "x0 port 1 has no GIDs"),
    ] {
        let (kind, text) = refused(&[device("x0", vec![port])], &any);
        assert_eq!(kind, ErrorKind::Unreachable);
        assert!(text.contains(words), "{text}");
    }
    let unusable = Some("is iWARP".to_owned());
    let iwarp = DeviceFacts { unusable, ..device("siw0", vec![mlx5_port(1, "10.1.0.5")]) };
    assert!(refused(std::slice::from_ref(&iwarp), &any).1.contains("siw0 is iWARP"));
    let good = device("mlx5_0", vec![mlx5_port(1, "10.1.0.5")]);
    assert_eq!(chosen(&[iwarp, good], &any, None).0, "mlx5_0");
    // All of them are told.
    let two = [device("a0", vec![down(infiniband(1, 7))]), device("b0", vec![roce(1, Vec::new())])];
    let (_, text) = refused(&two, &any);
    assert!(text.contains("a0 port 1") && text.contains("b0 port 1"), "{text}");
}
