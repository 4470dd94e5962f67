//! What the two ends of a connection tell each other, and the attributes of their queue pairs. Pure: what
//! goes to the card is built here and nowhere else, from what is known of both ends.
//!
//! Over RoCE every packet has a global header (GIDs, hop limit, traffic class). Over InfiniBand a LID is
//! enough, unless the ends are in different subnets. **InfiniBand is not tested on hardware.**

use super::choose::Choice;
use crate::config::Rdma;
use crate::control::message::Endpoint;
use crate::error::{Error, ErrorKind, Origin, Result};
use rdma_mummy_sys as sys;

/// Queue pair numbers and packet sequence numbers have 24 bits.
const BITS_24: u32 = 0x00ff_ffff;
/// Partition keys without the bit that says full member.
const PARTITION: u16 = 0x7fff;
/// Hops that a routed packet may take.
const HOP_LIMIT: u8 = 64;
/// Largest MTU exponent: 4096 B.
const MTU_MAX: u8 = 5;

/// Attributes and which of them count.
pub(super) type Change = (sys::ibv_qp_attr, sys::ibv_qp_attr_mask);

/// This end, before the other is known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct LocalEnd {
    /// Device, port and GID.
    pub(super) choice: Choice,
    /// Index of the partition key.
    pub(super) partition_index: u16,
    /// Reads that it may have under way as the one who asks, and as the one who answers.
    pub(super) reads: Reads,
}

/// Limits on reads under way on one queue pair.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Reads {
    /// Asked by this end.
    pub(super) asked: u8,
    /// Answered by this end.
    pub(super) answered: u8,
}

/// What a queue pair lets the other end do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Role {
    /// The node writes and reads; nobody writes to it.
    Node,
    /// The server is written to and read from.
    Server,
}

impl LocalEnd {
    /// What the other end must know.
    pub(super) fn endpoint(&self, qp_number: u32, packet_sequence: u32, service_level: u8) -> Endpoint {
        let port = &self.choice.port;
        let index = usize::from(self.partition_index);
        Endpoint {
            qp_number,
            packet_sequence: packet_sequence & BITS_24,
            gid: self.choice.gid.gid,
            lid: port.lid,
            partition_key: port.partition_keys.get(index).copied().unwrap_or_default(),
            service_level,
            ethernet: port.ethernet,
            mtu: port.mtu,
            reads_max: self.reads.answered,
        }
    }

    /// Checks what the other end has told against this one.
    ///
    /// # Errors
    /// `Corrupt` for numbers that cannot be; `Unreachable` if the two ports cannot speak to each other.
    pub(super) fn check(&self, remote: &Endpoint) -> Result<()> {
        let corrupt = |what: &str| {
            let what = format!("the other end of an RDMA connection tells {what}");
            Err(Error::new(ErrorKind::Corrupt, Origin::Transport, what))
        };
        let port = &self.choice.port;
        let place = format!("{} port {}", self.choice.device, port.number);
        let unreachable = |what: String| {
            Err(Error::new(ErrorKind::Unreachable, Origin::Transport, format!("{place} {what}")))
        };
        if remote.qp_number > BITS_24 || remote.packet_sequence > BITS_24 {
            return corrupt("numbers of more than 24 bits");
        }
        if !(1..=MTU_MAX).contains(&remote.mtu) {
            return corrupt(&format!("MTU exponent {}; 1 to {MTU_MAX} exist", remote.mtu));
        }
        if remote.ethernet != port.ethernet {
            let name = |ethernet| if ethernet { "RoCE" } else { "InfiniBand" };
            let (ours, theirs) = (name(port.ethernet), name(remote.ethernet));
            return unreachable(format!(
                "is {ours} and the other end {theirs}: name device and port in [rdma]"
            ));
        }
        if remote.ethernet && remote.gid == [0; 16] {
            return corrupt("no GID");
        }
        if !remote.ethernet && remote.lid == 0 {
            return corrupt("no LID");
        }
        if !remote.ethernet && self.partition_of(remote.partition_key).is_none() {
            let key = remote.partition_key;
            return unreachable(format!("is not in the other end's partition {key:#06x}"));
        }
        Ok(())
    }

    /// The index of this port's key of the partition that the other end is in. Two limited members of a
    /// partition cannot speak to each other.
    pub(super) fn partition_of(&self, remote_key: u16) -> Option<u16> {
        let both_limited = |key: u16| (key | remote_key) & !PARTITION == 0;
        let fits = |key: u16| {
            key & PARTITION != 0 && key & PARTITION == remote_key & PARTITION && !both_limited(key)
        };
        let index = self.choice.port.partition_keys.iter().position(|key| fits(*key))?;
        u16::try_from(index).ok()
    }

    /// To INIT.
    pub(super) fn init(&self, role: Role) -> Change {
        use sys::ibv_qp_attr_mask as field;
        let mut attributes = empty();
        attributes.qp_state = sys::ibv_qp_state::IBV_QPS_INIT;
        attributes.pkey_index = self.partition_index;
        attributes.port_num = self.choice.port.number;
        attributes.qp_access_flags = match role {
            Role::Node => 0,
            Role::Server => {
                sys::ibv_access_flags::IBV_ACCESS_REMOTE_WRITE.0
                    | sys::ibv_access_flags::IBV_ACCESS_REMOTE_READ.0
            }
        };
        let mask =
            field::IBV_QP_STATE | field::IBV_QP_PKEY_INDEX | field::IBV_QP_PORT | field::IBV_QP_ACCESS_FLAGS;
        (attributes, mask)
    }

    /// To RTR: where the other end is.
    pub(super) fn receive(&self, remote: &Endpoint, config: &Rdma) -> Change {
        use sys::ibv_qp_attr_mask as field;
        let mut attributes = empty();
        attributes.qp_state = sys::ibv_qp_state::IBV_QPS_RTR;
        attributes.path_mtu = u32::from(self.mtu(remote));
        attributes.dest_qp_num = remote.qp_number;
        attributes.rq_psn = remote.packet_sequence;
        // Some drivers refuse none, even to an end that is never read from.
        attributes.max_dest_rd_atomic = self.reads.answered.max(1);
        // There are no receives to be ready for; 1 is the shortest time.
        attributes.min_rnr_timer = 1;
        attributes.ah_attr = self.way(remote, config);
        let mask = field::IBV_QP_STATE
            | field::IBV_QP_AV
            | field::IBV_QP_PATH_MTU
            | field::IBV_QP_DEST_QPN
            | field::IBV_QP_RQ_PSN
            | field::IBV_QP_MAX_DEST_RD_ATOMIC
            | field::IBV_QP_MIN_RNR_TIMER;
        (attributes, mask)
    }

    /// To RTS: how this end sends. Seven retries would be for ever; the configuration allows six, and a
    /// caller that made its own is held to that.
    pub(super) fn send(&self, packet_sequence: u32, remote: &Endpoint, config: &Rdma) -> Change {
        use sys::ibv_qp_attr_mask as field;
        let mut attributes = empty();
        attributes.qp_state = sys::ibv_qp_state::IBV_QPS_RTS;
        attributes.sq_psn = packet_sequence & BITS_24;
        attributes.timeout = config.ack_timeout.clamp(1, 20);
        attributes.retry_cnt = config.retry_count.clamp(1, 6);
        // Nothing is sent that needs a receive.
        attributes.rnr_retry = 0;
        attributes.max_rd_atomic = self.reads.asked.min(remote.reads_max).max(1);
        let mask = field::IBV_QP_STATE
            | field::IBV_QP_SQ_PSN
            | field::IBV_QP_TIMEOUT
            | field::IBV_QP_RETRY_CNT
            | field::IBV_QP_RNR_RETRY
            | field::IBV_QP_MAX_QP_RD_ATOMIC;
        (attributes, mask)
    }

    /// The smaller of both ends' MTU, as an exponent.
    pub(super) fn mtu(&self, remote: &Endpoint) -> u8 {
        self.choice.port.mtu.min(remote.mtu).clamp(1, MTU_MAX)
    }

    /// The address of the other end.
    fn way(&self, remote: &Endpoint, config: &Rdma) -> sys::ibv_ah_attr {
        let port = &self.choice.port;
        let same_subnet = remote.gid[..8] == self.choice.gid.gid[..8];
        let is_global = port.ethernet || !same_subnet;
        let mut route = empty().ah_attr.grh;
        if is_global {
            route.dgid = sys::ibv_gid { raw: remote.gid };
            route.sgid_index = self.choice.gid.index;
            route.hop_limit = HOP_LIMIT;
            route.traffic_class = config.traffic_class;
        }
        sys::ibv_ah_attr {
            grh: route,
            dlid: remote.lid,
            sl: config.service_level,
            src_path_bits: 0,
            static_rate: 0,
            is_global: u8::from(is_global),
            port_num: port.number,
        }
    }
}

/// Bytes of an MTU exponent.
pub(super) fn mtu_bytes(exponent: u8) -> u32 {
    128 << exponent.clamp(1, MTU_MAX)
}

fn empty() -> sys::ibv_qp_attr {
    let route = sys::ibv_global_route {
        dgid: sys::ibv_gid { raw: [0; 16] },
        flow_label: 0,
        sgid_index: 0,
        hop_limit: 0,
        traffic_class: 0,
    };
    let way = sys::ibv_ah_attr {
        grh: route,
        dlid: 0,
        sl: 0,
        src_path_bits: 0,
        static_rate: 0,
        is_global: 0,
        port_num: 0,
    };
    sys::ibv_qp_attr {
        qp_state: 0,
        cur_qp_state: 0,
        path_mtu: 0,
        path_mig_state: 0,
        qkey: 0,
        rq_psn: 0,
        sq_psn: 0,
        dest_qp_num: 0,
        qp_access_flags: 0,
        cap: sys::ibv_qp_cap {
            max_send_wr: 0,
            max_recv_wr: 0,
            max_send_sge: 0,
            max_recv_sge: 0,
            max_inline_data: 0,
        },
        ah_attr: way,
        alt_ah_attr: way,
        pkey_index: 0,
        alt_pkey_index: 0,
        en_sqd_async_notify: 0,
        sq_draining: 0,
        max_rd_atomic: 0,
        max_dest_rd_atomic: 0,
        min_rnr_timer: 0,
        port_num: 0,
        timeout: 0,
        retry_cnt: 0,
        rnr_retry: 0,
        alt_port_num: 0,
        alt_timeout: 0,
        rate_limit: 0,
    }
}

#[cfg(test)]
#[path = "endpoint_tests.rs"]
mod tests;
