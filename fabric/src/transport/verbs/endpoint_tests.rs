//! Attributes of queue pairs, for made-up ends. InfiniBand's are not tested on hardware.

use super::super::choose::{Choice, GidFacts, GidKind, PortFacts};
use super::*;

fn gid(prefix: u8, last: u8) -> [u8; 16] {
    let mut gid = [0; 16];
    (gid[0], gid[15]) = (prefix, last);
    gid
}

fn end(ethernet: bool) -> LocalEnd {
    let kind = if ethernet { GidKind::RoceV2 } else { GidKind::InfiniBand };
    let port = PortFacts {
        number: 2,
        active: true,
        state: "active",
        ethernet,
        mtu: 4,
        speed: 1,
        lid: if ethernet { 0 } else { 17 },
        partition_keys: if ethernet { vec![0xffff] } else { vec![0xffff, 0x8005, 0x0006] },
        gids: Vec::new(),
    };
    let gid = GidFacts { index: 3, kind, gid: gid(0x20, 1) };
    let choice = Choice { device: "mlx5_0".into(), port, gid };
    LocalEnd { choice, partition_index: 0, reads: Reads { asked: 16, answered: 8 } }
}

fn remote(ethernet: bool) -> Endpoint {
    Endpoint {
        qp_number: 0x123,
        packet_sequence: 0x456,
        gid: gid(0x20, 9),
        lid: if ethernet { 0 } else { 42 },
        partition_key: 0xffff,
        service_level: 0,
        ethernet,
        mtu: 5,
        reads_max: 4,
    }
}

fn destination(attributes: &sys::ibv_qp_attr) -> [u8; 16] {
    // SAFETY: every bit pattern is valid for bytes, and both members have the same size.
    unsafe { attributes.ah_attr.grh.dgid.raw }
}

#[test]
fn over_roce_packets_are_routed_by_gid() {
    let config = Rdma { traffic_class: 106, service_level: 3, ..Rdma::default() };
    let (attributes, mask) = end(true).receive(&remote(true), &config);
    assert_eq!((attributes.ah_attr.is_global, attributes.ah_attr.dlid), (1, 0));
    assert_eq!(destination(&attributes), gid(0x20, 9));
    let route = &attributes.ah_attr.grh;
    assert_eq!((route.sgid_index, route.hop_limit, route.traffic_class), (3, HOP_LIMIT, 106));
    assert_eq!((attributes.ah_attr.sl, attributes.ah_attr.port_num), (3, 2));
    assert_eq!((attributes.dest_qp_num, attributes.rq_psn), (0x123, 0x456));
    assert_eq!((attributes.path_mtu, attributes.max_dest_rd_atomic), (4, 8));
    for bit in [sys::ibv_qp_attr_mask::IBV_QP_AV, sys::ibv_qp_attr_mask::IBV_QP_PATH_MTU] {
        assert_ne!(mask.0 & bit.0, 0);
    }
}

#[test]
fn over_infiniband_the_lid_is_enough_within_a_subnet() {
    let config = Rdma { traffic_class: 106, service_level: 5, ..Rdma::default() };
    let (attributes, _) = end(false).receive(&remote(false), &config);
    assert_eq!((attributes.ah_attr.is_global, attributes.ah_attr.dlid, attributes.ah_attr.sl), (0, 42, 5));
    assert_eq!(destination(&attributes), [0; 16]);
    // Between subnets, which the first half of the GID names, packets need the global header too.
    let far = Endpoint { gid: gid(0x30, 9), ..remote(false) };
    let (attributes, _) = end(false).receive(&far, &config);
    assert_eq!((attributes.ah_attr.is_global, attributes.ah_attr.dlid), (1, 42));
    assert_eq!((destination(&attributes), attributes.ah_attr.grh.hop_limit), (gid(0x30, 9), HOP_LIMIT));
}

#[test]
fn the_smaller_mtu_and_fewer_reads_are_used() {
    let config = Rdma::default();
    assert_eq!(end(true).mtu(&remote(true)), 4);
    assert_eq!(end(true).mtu(&Endpoint { mtu: 1, ..remote(true) }), 1);
    let reads =
        |reads_max| end(true).send(0, &Endpoint { reads_max, ..remote(true) }, &config).0.max_rd_atomic;
    assert_eq!((reads(4), reads(200), reads(0)), (4, 16, 1));
    assert_eq!((1..=5).map(mtu_bytes).collect::<Vec<_>>(), [256, 512, 1024, 2048, 4096]);
}

#[test]
fn retries_are_never_for_ever() {
    for (retry_count, sent) in [(0, 1), (1, 1), (6, 6), (7, 6), (255, 6)] {
        let config = Rdma { retry_count, ..Rdma::default() };
        let (attributes, mask) = end(true).send(5, &remote(true), &config);
        assert_eq!(attributes.retry_cnt, sent);
        assert_ne!(mask.0 & sys::ibv_qp_attr_mask::IBV_QP_RETRY_CNT.0, 0);
    }
    // A timeout of 0 would be for ever, too.
    let config = Rdma { ack_timeout: 0, ..Rdma::default() };
    assert_eq!(end(true).send(5, &remote(true), &config).0.timeout, 1);
}

#[test]
fn only_the_server_lets_others_in_and_only_to_write_and_read() {
    use sys::ibv_access_flags as flag;
    let access = |role| end(true).init(role).0.qp_access_flags;
    assert_eq!(access(Role::Node), 0);
    assert_eq!(access(Role::Server), flag::IBV_ACCESS_REMOTE_WRITE.0 | flag::IBV_ACCESS_REMOTE_READ.0);
}

#[test]
fn what_the_other_end_tells_is_checked() {
    let message = |end: &LocalEnd, remote: Endpoint| end.check(&remote).unwrap_err().to_string();
    assert!(end(true).check(&remote(true)).is_ok());
    assert!(end(false).check(&remote(false)).is_ok());
    let mixed = message(&end(false), remote(true));
    assert!(mixed.contains("mlx5_0 port 2 is InfiniBand and the other end RoCE"), "{mixed}");
    assert!(message(&end(true), Endpoint { gid: [0; 16], ..remote(true) }).contains("no GID"));
    assert!(message(&end(false), Endpoint { lid: 0, ..remote(false) }).contains("no LID"));
    assert!(message(&end(true), Endpoint { mtu: 6, ..remote(true) }).contains("MTU exponent 6"));
    assert!(message(&end(true), Endpoint { qp_number: u32::MAX, ..remote(true) }).contains("24 bits"));
    let apart = message(&end(false), Endpoint { partition_key: 0x8009, ..remote(false) });
    assert!(apart.contains("partition 0x8009"), "{apart}");
}

#[test]
fn ends_meet_in_a_partition_of_which_one_is_a_full_member() {
    let end = end(false);
    assert_eq!(end.partition_of(0xffff), Some(0));
    assert_eq!(end.partition_of(0x7fff), Some(0));
    assert_eq!(end.partition_of(0x0005), Some(1));
    assert_eq!(end.partition_of(0x8006), Some(2));
    assert_eq!(end.partition_of(0x0006), None);
    assert_eq!(end.partition_of(0), None);
}

#[test]
fn an_end_tells_what_the_other_must_know() {
    let mut end = end(false);
    end.partition_index = 1;
    let told = end.endpoint(0x77, 0xff00_0001, 4);
    assert_eq!((told.qp_number, told.packet_sequence, told.service_level), (0x77, 1, 4));
    assert_eq!((told.lid, told.partition_key, told.gid), (17, 0x8005, gid(0x20, 1)));
    assert_eq!((told.mtu, told.reads_max, told.ethernet), (4, 8, false));
}
