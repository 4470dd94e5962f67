//! Memory as these tests' nodes have it.

use crate::host::life;
use selvage_fabric::lease::{LeaseGeometry, LeaseHeader};
use selvage_fabric::transport::memory::{self, ServerLease};

/// Memory of at least so many bytes.
pub fn lease_of(name: &str, bytes: u64) -> ServerLease {
    let geometry = LeaseGeometry { slot_count: 64, heap_bytes: bytes, chunk_bytes: 1 << 20 };
    let (node_incarnation, server_incarnation) = (life(9), life(9));
    let header = LeaseHeader { geometry, node: name.into(), node_incarnation, server_incarnation };
    memory::create(&header, false).unwrap()
}
