//! The leases as memory: made, opened to RDMA, sealed, scanned, read and freed. Caller: `execute`.
//!
//! Invariants:
//! - The table's lock is held only to look up, put in and take out.
//! - **A seal goes in this order** (R2): the lease admits no new door; seal word and full fence; every door
//!   sealed (memory region deregistered, then queue pairs destroyed); the slot table looked at until it is
//!   stable; then scan and index. Nothing in it waits for a node: what is waited for is this host's device.
//! - Memory is freed after its doors are sealed.

use crate::decide::{Batch, LeaseNumber, LinkNumber};
use crate::execute::lock;
use crate::placement::Placement;
use crate::rdma::{Door, Rdma};
use crate::tally::Tally;
use selvage_fabric::archive::ArchiveLimits;
use selvage_fabric::control::message::{Endpoint, FetchedArchive, RemoteMemory, ServerReport, StagedArchive};
use selvage_fabric::error::{Error, ErrorKind, Origin, Result};
use selvage_fabric::ident::Incarnation;
use selvage_fabric::lease::{BadCells, LeaseGeometry, LeaseHeader, LeaseIndex, ScanReport, SessionCopy};
use selvage_fabric::limits::FETCH_BATCH_BYTES;
use selvage_fabric::numbers::ServerTime;
use selvage_fabric::rules::{Rule, holds};
use selvage_fabric::transport::memory::{self, ServerLease};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// Pause before a device that would not give a lease back is asked again.
const DOOR_PAUSE: Duration = Duration::from_millis(20);
/// Looks at the slot table of a sealed lease until it is taken as it is. It is stable at the second if nobody
/// maps the memory any more.
const LOOKS_MAX: u32 = 4;
/// How old an answer to "is there RDMA" may be while no link is open.
const AVAILABILITY_AGE: Duration = Duration::from_secs(5);

/// One lease.
pub(crate) struct Held {
    memory: ServerLease,
    doors: Mutex<Doors>,
    beat: Mutex<Beat>,
}

/// The ways into a lease by RDMA. More than one only while a device that failed has not given back its own.
struct Doors {
    open: Vec<Arc<dyn Door>>,
    /// The lease is being sealed or freed: no more doors.
    closed: bool,
}

/// The node's heartbeat as last seen.
#[derive(Default)]
struct Beat {
    value: u64,
    moved: Option<Instant>,
}

/// All leases of this server.
pub(crate) struct Leases {
    table: Mutex<HashMap<LeaseNumber, Arc<Held>>>,
    geometry: LeaseGeometry,
    huge_pages: bool,
    archive_limits: ArchiveLimits,
    placement: Placement,
    rdma: Box<dyn Rdma>,
    availability: Mutex<Option<(Instant, String)>>,
    tally: Tally,
}

impl Held {
    /// The memory.
    pub(crate) fn memory(&self) -> &ServerLease {
        &self.memory
    }

    /// Lets a link in, by a door that is opened at the first call, and anew after its device has failed.
    fn connect(
        &self,
        rdma: &dyn Rdma,
        link: LinkNumber,
        offer: &Endpoint,
        local: Option<IpAddr>,
    ) -> Result<(Endpoint, RemoteMemory)> {
        let door = {
            let mut doors = lock(&self.doors);
            if doors.closed {
                let what = format!("the lease of node {} is over", self.memory.header().node);
                return Err(Error::new(ErrorKind::OwnershipLost, Origin::Server, what));
            }
            Self::drop_failed_doors(&mut doors);
            match doors.open.iter().find(|door| door.is_open()) {
                Some(door) => Arc::clone(door),
                None => {
                    let door = rdma.open_door(&self.memory, local)?;
                    doors.open.push(Arc::clone(&door));
                    door
                }
            }
        };
        // A seal that comes in between closes this very door, which then refuses.
        door.connect(link, offer)
    }

    fn disconnect(&self, link: LinkNumber) -> Result<()> {
        self.doors().iter().try_for_each(|door| door.disconnect(link))
    }

    fn stage(&self, link: LinkNumber, archives: &[&[u8]]) -> Result<RemoteMemory> {
        let door = self.doors().into_iter().find(|door| door.is_open());
        let gone = || Error::new(ErrorKind::Unreachable, Origin::Server, "the link's RDMA device has gone");
        door.ok_or_else(gone)?.stage(link, archives)
    }

    /// Ends every way in, for ever. Whoever is still connecting is refused or shut out. Doors that are shut
    /// are let go at once: a device that is to be removed waits for them.
    fn close_doors(&self) -> Result<()> {
        let doors = {
            let mut doors = lock(&self.doors);
            doors.closed = true;
            doors.open.clone()
        };
        // All of them, also when one fails.
        let sealed: Vec<Result<()>> = doors.iter().map(|door| door.seal()).collect();
        let sealed: Result<()> = sealed.into_iter().collect();
        if sealed.is_ok() {
            lock(&self.doors).open.clear();
        }
        sealed
    }

    /// Whether it has a door that can let nobody in.
    fn has_failed_door(&self) -> bool {
        self.doors().iter().any(|door| !door.is_open())
    }

    /// Lets doors go that can let nobody in, unless their device still holds the memory.
    fn drop_failed_doors(doors: &mut Doors) {
        doors.open.retain(|door| door.is_open() || door.seal().is_err());
    }

    fn doors(&self) -> Vec<Arc<dyn Door>> {
        lock(&self.doors).open.clone()
    }

    /// Looks at the node's heartbeat; the time since it was last seen to move.
    fn beat_age(&self, now: Instant) -> Option<Duration> {
        let value = self.memory.node_beat();
        let mut beat = lock(&self.beat);
        if beat.value != value {
            *beat = Beat { value, moved: Some(now) };
        }
        beat.moved.map(|moved| now.saturating_duration_since(moved))
    }
}

impl Leases {
    pub(crate) fn new(
        geometry: LeaseGeometry,
        huge_pages: bool,
        archive_limits: ArchiveLimits,
        placement: Placement,
        rdma: Box<dyn Rdma>,
    ) -> Self {
        Self {
            table: Mutex::default(),
            geometry,
            huge_pages,
            archive_limits,
            placement,
            rdma,
            availability: Mutex::default(),
            tally: Tally::default(),
        }
    }

    /// Errors and durations.
    pub(crate) fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Sizes of every lease.
    pub(crate) fn geometry(&self) -> LeaseGeometry {
        self.geometry
    }

    /// A lease, unless it is released.
    pub(crate) fn find(&self, lease: LeaseNumber) -> Option<Arc<Held>> {
        lock(&self.table).get(&lease).cloned()
    }

    /// Makes a lease for a node.
    pub(crate) fn make(
        &self,
        lease: LeaseNumber,
        node: String,
        node_incarnation: Incarnation,
        server_incarnation: Incarnation,
    ) -> Result<()> {
        let started = Instant::now();
        let header = LeaseHeader { geometry: self.geometry, node, node_incarnation, server_incarnation };
        let memory =
            self.placement.near_card(|| memory::create(&header, self.huge_pages)).inspect_err(|error| {
                tracing::error!(node = header.node, "cannot make a lease: {error}");
            })?;
        tracing::info!(
            node = header.node,
            incarnation = header.node_incarnation.tag(),
            bytes = memory.bytes(),
            took_ms = started.elapsed().as_millis() as u64,
            "made a lease"
        );
        if let Some(why) = memory.huge_pages_refused() {
            tracing::info!(
                node = header.node,
                "the lease has pages of the usual size: {why}; for huge ones set vm.nr_hugepages to {} more \
                 per lease, or memory.huge_pages = false",
                memory.bytes().div_ceil(memory::HUGE_PAGE_BYTES)
            );
        }
        selvage_fabric::kill_point!("start.lease");
        let doors = Mutex::new(Doors { open: Vec::new(), closed: false });
        lock(&self.table).insert(lease, Arc::new(Held { memory, doors, beat: Mutex::default() }));
        Ok(())
    }

    /// Lets a link into a lease.
    pub(crate) fn connect(
        &self,
        lease: LeaseNumber,
        link: LinkNumber,
        offer: &Endpoint,
        local: Option<IpAddr>,
    ) -> Result<(Endpoint, RemoteMemory)> {
        let held = self.find(lease).ok_or_else(released)?;
        let result = held.connect(&*self.rdma, link, offer, local);
        let node = &held.memory.header().node;
        match &result {
            Ok(_) => tracing::info!(node, link = link.0, "connected a process by RDMA"),
            Err(error) => tracing::warn!(node, link = link.0, "cannot connect a process by RDMA: {error}"),
        }
        result
    }

    /// Destroys a link's queue pair. A lease that is released has none.
    pub(crate) fn disconnect(&self, lease: LeaseNumber, link: LinkNumber) -> Result<()> {
        let Some(held) = self.find(lease) else { return Ok(()) };
        held.disconnect(link).inspect_err(|error| {
            tracing::error!(lease = lease.0, link = link.0, "a process may still write: {error}");
        })
    }

    /// Seals, scans and indexes a lease: what is in it, and how many cells failed a check.
    pub(crate) fn seal(&self, lease: LeaseNumber) -> (LeaseIndex, u64) {
        let started = Instant::now();
        let held = self.find(lease);
        let indexed = match &held {
            Some(held) => self.seal_and_index(lease, held),
            None => Err(released()),
        };
        let (index, bad) = indexed.unwrap_or_else(|error| {
            self.tally.error(error.kind);
            tracing::error!(lease = lease.0, "cannot read a sealed lease: {error}");
            (LeaseIndex::new(&ScanReport::default()), BadCells::default())
        });
        self.tally.observe(ServerTime::Seal, started);
        let cells_bad = bad.checksum + bad.meaning + bad.misplaced + bad.bounds + bad.archive;
        if let Some(held) = held {
            let header = held.memory.header();
            tracing::info!(
                node = header.node,
                incarnation = header.node_incarnation.tag(),
                sessions = index.live(),
                cells_bad,
                took_ms = started.elapsed().as_millis() as u64,
                "sealed and indexed a lease"
            );
        }
        (index, cells_bad)
    }

    fn seal_and_index(&self, lease: LeaseNumber, held: &Held) -> Result<(LeaseIndex, BadCells)> {
        held.memory.seal();
        selvage_fabric::kill_point!("seal.word");
        let had_doors = !held.doors().is_empty();
        if holds(Rule::R2SealByView) {
            // A lease that somebody may still write must not be indexed. If its device never gives it back,
            // the director drops this server, which releases the lease.
            while let Err(error) = held.close_doors() {
                self.tally.error(error.kind);
                tracing::error!(lease = lease.0, "cannot seal a lease yet: {error}");
                thread::sleep(DOOR_PAUSE);
                self.find(lease).ok_or_else(released)?;
            }
        }
        if had_doors && !held.memory.settle(LOOKS_MAX)? {
            // Only a process of this host that maps the memory can do that; what it writes is not acked.
            tracing::warn!(lease = lease.0, "somebody goes on writing to a sealed lease");
        }
        let began = Instant::now();
        let indexed = held.memory.index(&self.archive_limits);
        self.tally.observe(ServerTime::Index, began);
        selvage_fabric::kill_point!("seal.indexed");
        indexed
    }

    /// Frees a lease, once nobody can write to it any more. Nothing is freed under a device that does not
    /// give it back: the registration keeps the memory.
    pub(crate) fn release(&self, lease: LeaseNumber) {
        let held = lock(&self.table).remove(&lease);
        if let Some(held) = held
            && let Err(error) = held.close_doors()
        {
            tracing::error!(lease = lease.0, "the memory of a released lease stays taken: {error}");
        }
    }

    /// Reads archives until a reply is full; the caller asks again for the rest.
    pub(crate) fn fetch(&self, batch: Batch) -> Vec<FetchedArchive> {
        let began = Instant::now();
        let mut archives = batch.answered;
        let mut bytes = 0;
        for (lease, copy) in batch.copies {
            let held = self.find(lease).ok_or_else(released);
            let (archive, error) = match held.and_then(|held| held.memory.fetch(&copy, &self.archive_limits))
            {
                Ok(archive) => (archive, None),
                Err(error) => {
                    self.tally.error(error.kind);
                    tracing::warn!(session = %copy.id, lease = lease.0, "cannot serve a copy: {error}");
                    (Vec::new(), Some(error.to_string()))
                }
            };
            bytes += archive.len();
            let SessionCopy { id, version, expiry_ms, .. } = copy;
            archives.push(FetchedArchive { id, version, expiry_ms, archive, error });
            if bytes >= FETCH_BATCH_BYTES {
                break;
            }
        }
        self.tally.observe(ServerTime::Fetch, began);
        archives
    }

    /// As [`Self::fetch`], into memory that the link's node reads.
    pub(crate) fn stage(
        &self,
        lease: LeaseNumber,
        link: LinkNumber,
        batch: Batch,
    ) -> Result<(RemoteMemory, Vec<StagedArchive>)> {
        let archives = self.fetch(batch);
        let bytes: Vec<&[u8]> = archives.iter().map(|archive| &*archive.archive).collect();
        let memory = self.find(lease).ok_or_else(released)?.stage(link, &bytes)?;
        let staged = archives.into_iter().map(|archive| StagedArchive {
            id: archive.id,
            version: archive.version,
            expiry_ms: archive.expiry_ms,
            // No archive is longer than `ARCHIVE_BYTES_MAX`, which fits.
            bytes: u32::try_from(archive.archive.len()).unwrap_or(u32::MAX),
            error: archive.error,
        });
        Ok((memory, staged.collect()))
    }

    /// The timer: the server's heartbeat for the nodes to see, and a look at theirs.
    pub(crate) fn beat(&self, beat: u64) {
        let now = Instant::now();
        for held in lock(&self.table).values() {
            held.memory.beat(beat);
            held.beat_age(now);
        }
    }

    /// The timer, now and then: devices that have failed or are being removed get everything back, though no
    /// node asks. That can take them a while, so a thread does it.
    pub(crate) fn tend_doors(&self) {
        let failed: Vec<Arc<Held>> =
            lock(&self.table).values().filter(|held| held.has_failed_door()).cloned().collect();
        if failed.is_empty() {
            return;
        }
        tracing::warn!(
            leases = failed.len(),
            "an RDMA device has failed or was removed: its leases are taken back"
        );
        let taking_back = move || {
            for held in failed {
                let mut doors = lock(&held.doors);
                if !doors.closed {
                    Held::drop_failed_doors(&mut doors);
                }
            }
        };
        if let Err(error) = thread::Builder::new().name("doors".into()).spawn(taking_back) {
            tracing::warn!("cannot take leases back from a device: {error}");
        }
    }

    /// Adds to a report what the leases' memory and the devices say. A report is also a look at the
    /// heartbeats: the director asks at every heartbeat of its own, so ages are good to that.
    pub(crate) fn complete(&self, report: &mut ServerReport) {
        let now = Instant::now();
        let leases: Vec<Arc<Held>> = lock(&self.table).values().cloned().collect();
        for held in &leases {
            let incarnation = held.memory.header().node_incarnation;
            let open =
                report.leases.iter_mut().find(|lease| !lease.sealed && lease.incarnation == incarnation);
            if let Some(lease) = open {
                lease.sessions = held.memory.node_sessions();
                let age = held.beat_age(now);
                lease.beat_age_ms = age.map(|age| u32::try_from(age.as_millis()).unwrap_or(u32::MAX));
            }
        }
        let door = leases.iter().flat_map(|held| held.doors()).find(|door| door.is_open());
        report.rdma = door.map_or_else(|| self.availability(now), |door| door.detail());
        report.numbers = self.tally.due();
    }

    /// What RDMA there is, or why none, for people.
    pub(crate) fn rdma(&self) -> String {
        self.availability(Instant::now())
    }

    /// What RDMA there is, asked of the system now and then.
    fn availability(&self, now: Instant) -> String {
        let mut known = lock(&self.availability);
        match &*known {
            Some((asked, text)) if now.saturating_duration_since(*asked) < AVAILABILITY_AGE => text.clone(),
            _ => {
                let text = self.rdma.availability().unwrap_or_else(|error| error.to_string());
                *known = Some((now, text.clone()));
                text
            }
        }
    }
}

fn released() -> Error {
    Error::new(ErrorKind::Gone, Origin::Server, "its lease is released")
}

#[cfg(test)]
mod tests;
