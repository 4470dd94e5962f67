//! The card conforms to the contract of links.

use super::*;
use crate::archive::ArchiveLimits;
use crate::lease::{ScanReport, SessionCopy};
use crate::transport::conformance::{self, Factory};
use crate::transport::{ServerEnd, memory};

/// The server's end over a card: as the session server seals it.
struct Sealed {
    lease: ServerLease,
    card: Arc<Card>,
}

impl ServerEnd for Sealed {
    fn seal(&self) {
        // The suite seals long after it has given pushes up: they have arrived as a whole by then.
        self.card.settle();
        self.lease.seal();
        self.card.fence();
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

struct Cards(u64);

impl Factory for Cards {
    fn open(&self, header: &LeaseHeader) -> Result<(Arc<dyn ServerEnd>, Box<dyn Link>)> {
        let lease = memory::create(header, false)?;
        let card = Card::new(&lease, Manner { seed: self.0, ..Manner::default() })?;
        let link = card.connect();
        Ok((Arc::new(Sealed { lease, card }), Box::new(link)))
    }
}

#[test]
fn the_card_conforms() {
    for seed in [3, 4] {
        let ran = conformance::run(&Cards(seed)).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        assert!(ran >= 17, "{ran}");
    }
}
