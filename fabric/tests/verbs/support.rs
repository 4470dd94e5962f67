//! The two ends: a node on `rxe0`, a server on `rxe1`.

use super::segment::Segment;
use selvage_fabric::config::Rdma;
use selvage_fabric::error::Result;
use selvage_fabric::ident::Incarnation;
use selvage_fabric::lease::{LeaseGeometry, LeaseHeader};
use selvage_fabric::transport::Region;
use selvage_fabric::transport::memory::{ServerLease, create};
use selvage_fabric::transport::verbs::{Door, Opening, PeerId, Verbs, VerbsLink};
use std::sync::Arc;

/// The node's device.
pub const NODE_DEVICE: &str = "rxe0";
/// The server's device.
pub const SERVER_DEVICE: &str = "rxe1";
/// The node's incarnation.
pub const NODE: Incarnation = Incarnation(0x11);
/// The server's incarnation.
pub const SERVER: Incarnation = Incarnation(0x22);
/// Largest archive, bytes.
pub const ARCHIVE_BYTES_MAX: usize = 1 << 20;

/// Settings that name a device. `cargo x rdma-test` names others than soft-RoCE's for the suite, where the
/// host has them: `node's,server's`.
pub fn over(device: &str) -> Rdma {
    let named = std::env::var("SELVAGE_RDMA_DEVICES").unwrap_or_default();
    let device = match (named.split_once(','), device) {
        (Some((node, _)), NODE_DEVICE) => node,
        (Some((_, server)), SERVER_DEVICE) => server,
        _ => device,
    };
    Rdma { device: Some(device.to_owned()), ..Rdma::default() }
}

/// A lease of 64 slots.
pub fn lease_of(node: &str, heap_bytes: u64) -> ServerLease {
    let header = LeaseHeader {
        geometry: LeaseGeometry { slot_count: 64, heap_bytes, chunk_bytes: 1 << 20 },
        node: node.to_owned(),
        node_incarnation: NODE,
        server_incarnation: SERVER,
    };
    create(&header, false).unwrap()
}

/// A lease that is quickly compared: 64 slots and 128 KiB.
pub fn small_lease(node: &str) -> ServerLease {
    let header = LeaseHeader {
        geometry: LeaseGeometry { slot_count: 64, heap_bytes: 128 << 10, chunk_bytes: 64 << 10 },
        node: node.to_owned(),
        node_incarnation: NODE,
        server_incarnation: SERVER,
    };
    create(&header, false).unwrap()
}

/// A server with one lease, and a node's hold on RDMA.
pub struct Ends {
    pub node: Verbs,
    pub server: Verbs,
    pub lease: ServerLease,
    pub door: Door,
    pub segment: Arc<Segment>,
}

impl Ends {
    pub fn new() -> Self {
        let (node, server) = (Verbs::new(&over(NODE_DEVICE)), Verbs::new(&over(SERVER_DEVICE)));
        let lease = lease_of("n1", 4 << 20);
        let door = Door::open(&server, &lease, None, ARCHIVE_BYTES_MAX).unwrap();
        Self { node, server, lease, door, segment: Arc::new(Segment::new()) }
    }

    /// A process's link.
    pub fn link(&self, peer: u64) -> Result<VerbsLink> {
        connect(&self.node, &self.segment.region, &self.door, &self.lease, PeerId(peer))
    }
}

/// The round trip, without a control connection.
pub fn connect(
    node: &Verbs,
    segment: &Arc<dyn Region>,
    door: &Door,
    lease: &ServerLease,
    peer: PeerId,
) -> Result<VerbsLink> {
    let opening = Opening::begin(node, segment, None)?;
    let (endpoint, memory) = door.connect(peer, &opening.offer())?;
    opening.finish(&endpoint, memory, lease.header().geometry, SERVER)
}
