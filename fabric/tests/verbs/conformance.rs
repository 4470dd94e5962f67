//! The suite that every transport passes, over two devices.

use super::segment::Segment;
use super::support::*;
use selvage_fabric::archive::ArchiveLimits;
use selvage_fabric::error::Result;
use selvage_fabric::lease::{LeaseHeader, ScanReport, SessionCopy};
use selvage_fabric::transport::conformance::{Factory, run};
use selvage_fabric::transport::memory::{ServerLease, create};
use selvage_fabric::transport::verbs::{Door, Opening, PeerId, Verbs};
use selvage_fabric::transport::{Link, ServerEnd};
use std::sync::Arc;

struct VerbsFactory {
    node: Verbs,
    server: Verbs,
    segment: Segment,
}

/// A lease and its door, sealed in the order of the fence.
pub struct Fenced {
    pub lease: ServerLease,
    pub door: Door,
}

impl ServerEnd for Fenced {
    fn seal(&self) {
        self.lease.seal();
        self.door.seal().unwrap();
        assert!(self.lease.settle(8).unwrap(), "a sealed lease still changes");
    }

    fn scan(&self, limits: &ArchiveLimits) -> Result<ScanReport> {
        self.lease.scan(limits)
    }

    fn fetch(&self, copy: &SessionCopy, limits: &ArchiveLimits) -> Result<Vec<u8>> {
        self.lease.fetch(copy, limits)
    }

    fn beat(&self, beat: u64) {
        self.lease.beat(beat);
    }

    fn node_beat(&self) -> u64 {
        self.lease.node_beat()
    }

    fn node_sessions(&self) -> u64 {
        self.lease.node_sessions()
    }
}

impl Factory for VerbsFactory {
    fn open(&self, header: &LeaseHeader) -> Result<(Arc<dyn ServerEnd>, Box<dyn Link>)> {
        let lease = create(header, false)?;
        let door = Door::open(&self.server, &lease, None, ARCHIVE_BYTES_MAX)?;
        let opening = Opening::begin(&self.node, &self.segment.region, None)?;
        let (endpoint, memory) = door.connect(PeerId(1), &opening.offer())?;
        let link = opening.finish(&endpoint, memory, header.geometry, header.server_incarnation)?;
        Ok((Arc::new(Fenced { lease, door }), Box::new(link)))
    }

    fn place<'a>(&'a self, archive: &'a [u8]) -> &'a [u8] {
        self.segment.place(archive)
    }
}

#[test]
fn verbs_conform() {
    let factory = VerbsFactory {
        node: Verbs::new(&over(NODE_DEVICE)),
        server: Verbs::new(&over(SERVER_DEVICE)),
        segment: Segment::new(),
    };
    let ran = run(&factory).unwrap_or_else(|why| panic!("{why}"));
    println!("{ran} cases of the transport suite over two devices");
    assert!(ran >= 17, "{ran}");
}
