//! Tests of the fence's order and of doors that fail, with real lease memory and a device that records.

use super::*;
use selvage_fabric::archive::{Builder, Head, ValueRef};
use selvage_fabric::ident::{SessionId, Version};
use selvage_fabric::lease::{ArchiveChecksum, BlockOffset, Cell, CellState, Sequence, SlotIndex};
use selvage_fabric::rules::assert_teeth;
use selvage_fabric::transport::shm::{self, ShmLink};
use selvage_fabric::transport::{Link, Outcome, Posted, Push};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{MutexGuard, Weak};

const NODE: Incarnation = Incarnation(3);
const SERVER: Incarnation = Incarnation(4);
const LEASE: LeaseNumber = LeaseNumber(1);
const GEOMETRY: LeaseGeometry = LeaseGeometry { slot_count: 64, heap_bytes: 4 << 20, chunk_bytes: 1 << 20 };

/// What a device is asked, in order, and what it does meanwhile.
#[derive(Default)]
struct Device {
    calls: Mutex<Vec<String>>,
    /// What a card writes until its memory is taken back.
    last_writes: Mutex<Vec<(ShmLink, Push0)>>,
    outcomes: Mutex<Vec<Outcome>>,
    staged: Mutex<Vec<Vec<u8>>>,
    doors: AtomicU32,
    /// Times that a seal still fails.
    seals_fail: AtomicU32,
    /// The newest door that has failed with its device.
    failed: AtomicU32,
}

/// A push of a cell without a block.
#[derive(Clone, Copy)]
struct Push0 {
    slot: u32,
    session: u8,
}

struct FakeDoor {
    device: Arc<Device>,
    number: u32,
    memory: Weak<dyn selvage_fabric::transport::Region>,
}

impl Device {
    fn note(&self, what: String) {
        lock(&self.calls).push(what);
    }

    fn calls(&self) -> MutexGuard<'_, Vec<String>> {
        lock(&self.calls)
    }
}

impl Rdma for Arc<Device> {
    fn open_door(&self, lease: &ServerLease, _local: Option<IpAddr>) -> Result<Arc<dyn Door>> {
        let number = self.doors.fetch_add(1, Ordering::Relaxed) + 1;
        self.note(format!("open {number}"));
        let memory = Arc::downgrade(&lease.region());
        Ok(Arc::new(FakeDoor { device: self.clone(), number, memory }))
    }

    fn availability(&self) -> Result<String> {
        self.note("availability".into());
        Err(Error::new(ErrorKind::Unreachable, Origin::Transport, "there is no RDMA: tests have none"))
    }

    fn device(&self) -> Option<String> {
        None
    }
}

impl Door for FakeDoor {
    fn connect(&self, link: LinkNumber, offer: &Endpoint) -> Result<(Endpoint, RemoteMemory)> {
        self.device.note(format!("connect {} to {}", link.0, self.number));
        Ok((*offer, RemoteMemory { address: 1, bytes: 2, key: 3 }))
    }

    fn disconnect(&self, link: LinkNumber) -> Result<()> {
        self.device.note(format!("disconnect {} from {}", link.0, self.number));
        Ok(())
    }

    fn stage(&self, _link: LinkNumber, archives: &[&[u8]]) -> Result<RemoteMemory> {
        *lock(&self.device.staged) = archives.iter().map(|archive| archive.to_vec()).collect();
        Ok(RemoteMemory { bytes: archives.concat().len() as u64, ..RemoteMemory::default() })
    }

    fn seal(&self) -> Result<()> {
        self.device.note(format!("seal {}", self.number));
        assert!(self.memory.strong_count() > 0, "the memory outlives its registration");
        for (link, push) in lock(&self.device.last_writes).drain(..) {
            lock(&self.device.outcomes).push(post(&link, push));
        }
        let fails = &self.device.seals_fail;
        match fails.try_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)) {
            Ok(_) => Err(Error::new(ErrorKind::Unreachable, Origin::Transport, "the device refuses")),
            Err(_) => Ok(()),
        }
    }

    fn is_open(&self) -> bool {
        self.number > self.device.failed.load(Ordering::Relaxed)
    }

    fn detail(&self) -> String {
        format!("fake{} port 1", self.number)
    }
}

/// One lease of a server with a device.
fn world() -> (Leases, Arc<Device>) {
    let device = Arc::new(Device::default());
    let limits = ArchiveLimits::default();
    let leases = Leases::new(GEOMETRY, false, limits, Placement::anywhere(), Box::new(device.clone()));
    leases.make(LEASE, "n1".into(), NODE, SERVER).unwrap();
    (leases, device)
}

/// A writer into the lease, as a card or a process would be.
fn writer(leases: &Leases) -> ShmLink {
    let held = leases.find(LEASE).unwrap();
    shm::map(held.memory().fd().as_fd().try_clone_to_owned().unwrap(), NODE, SERVER).unwrap()
}

fn connect(leases: &Leases, link: u64) -> Result<(Endpoint, RemoteMemory)> {
    leases.connect(LEASE, LinkNumber(link), &Endpoint::default(), None)
}

fn id(number: u8) -> SessionId {
    SessionId([number; 16])
}

fn version() -> Version {
    Version { epoch: 1, counter: 1 }
}

/// Writes a tombstone.
fn post(link: &ShmLink, push: Push0) -> Outcome {
    let cell = Cell {
        id: id(push.session),
        sequence: Sequence(1),
        version: version(),
        state: CellState::Tombstone,
        block: BlockOffset(0),
        archive_bytes: 0,
        expiry_ms: 1,
        checksum: ArchiveChecksum::None,
    };
    post_cell(link, push.slot, &cell, None)
}

fn post_cell(link: &ShmLink, slot: u32, cell: &Cell, block: Option<(BlockOffset, &[u8])>) -> Outcome {
    let push = Push { slot: SlotIndex(slot), sequence: cell.sequence, cell: &cell.encode(), block };
    match link.post(&push) {
        Posted::Done(outcome) => outcome,
        pending => panic!("shared memory is done at once: {pending:?}"),
    }
}

fn archive(session: u8) -> Vec<u8> {
    let head = Head {
        id: id(session),
        version: version(),
        created_ms: 1,
        idle_ms: 1000,
        absolute_ms: 1000,
        owner: None,
    };
    let attributes = [("data", ValueRef::Bytes(&[session; 1000]))];
    Builder::new().build(&head, attributes.into_iter(), &ArchiveLimits::default()).unwrap().to_vec()
}

#[test]
fn r2_whatever_is_written_until_the_memory_is_taken_back_is_found_and_not_acked() {
    assert_teeth(Rule::R2SealByView, || {
        let (leases, device) = world();
        let link = writer(&leases);
        let acked = post(&link, Push0 { slot: 0, session: 1 });
        if acked != Outcome::Acked {
            return Err(format!("{acked:?}"));
        }
        connect(&leases, 1).map_err(|error| error.to_string())?;
        // The card writes to the very end: while its memory is being deregistered.
        lock(&device.last_writes).push((link, Push0 { slot: 1, session: 2 }));
        let (index, bad) = leases.seal(LEASE);
        let found = [1, 2].map(|session| index.find(&id(session)).is_some());
        let outcomes = lock(&device.outcomes).clone();
        if (found, bad, &outcomes[..]) != ([true, true], 0, &[Outcome::Sealed]) {
            return Err(format!("found {found:?}, bad {bad}, the late write was {outcomes:?}"));
        }
        Ok(())
    });
}

#[test]
fn r2_a_lease_is_indexed_only_when_its_device_has_given_it_back() {
    let (leases, device) = world();
    let link = writer(&leases);
    connect(&leases, 1).unwrap();
    device.seals_fail.store(2, Ordering::Relaxed);
    let late = std::thread::scope(|scope| {
        let sealing = scope.spawn(|| leases.seal(LEASE));
        while device.calls().iter().filter(|call| *call == "seal 1").count() < 2 {
            std::thread::sleep(Duration::from_millis(1));
        }
        // Between two tries the card still writes.
        lock(&device.last_writes).push((link, Push0 { slot: 5, session: 7 }));
        sealing.join().unwrap().0
    });
    assert_eq!(*device.calls(), ["open 1", "connect 1 to 1", "seal 1", "seal 1", "seal 1"]);
    assert!(late.find(&id(7)).is_some());
}

#[test]
fn a_device_that_never_gives_a_lease_back_keeps_the_seal_waiting_until_the_lease_is_released() {
    let (leases, device) = world();
    let link = writer(&leases);
    post(&link, Push0 { slot: 0, session: 1 });
    connect(&leases, 1).unwrap();
    device.seals_fail.store(u32::MAX, Ordering::Relaxed);
    std::thread::scope(|scope| {
        let sealing = scope.spawn(|| leases.seal(LEASE));
        while device.calls().len() < 4 {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(!sealing.is_finished());
        leases.release(LEASE);
        let (index, _) = sealing.join().unwrap();
        assert!(index.find(&id(1)).is_none(), "nothing is served of what may still change");
    });
}

#[test]
fn nobody_connects_to_a_lease_that_is_over() {
    let (leases, device) = world();
    leases.seal(LEASE);
    assert_eq!(connect(&leases, 1).unwrap_err().kind, ErrorKind::OwnershipLost);
    leases.release(LEASE);
    assert_eq!(connect(&leases, 2).unwrap_err().kind, ErrorKind::Gone);
    assert!(leases.disconnect(LEASE, LinkNumber(1)).is_ok(), "what is released has no queue pairs");
    assert_eq!(*device.calls(), [""; 0], "no device was asked");
}

#[test]
fn r6_a_lease_that_is_released_unsealed_is_taken_back_from_the_device_first() {
    let (leases, device) = world();
    connect(&leases, 1).unwrap();
    leases.release(LEASE);
    assert_eq!(*device.calls(), ["open 1", "connect 1 to 1", "seal 1"]);
    assert!(leases.find(LEASE).is_none());
}

#[test]
fn a_door_is_opened_once_and_anew_after_its_device_has_failed() {
    let (leases, device) = world();
    connect(&leases, 1).unwrap();
    connect(&leases, 2).unwrap();
    let mut report = ServerReport::default();
    leases.complete(&mut report);
    assert_eq!(report.rdma, "fake1 port 1");
    device.failed.store(1, Ordering::Relaxed);
    // The failed device does not give the memory back at first.
    device.seals_fail.store(1, Ordering::Relaxed);
    connect(&leases, 3).unwrap();
    leases.disconnect(LEASE, LinkNumber(1)).unwrap();
    leases.complete(&mut report);
    assert_eq!(report.rdma, "fake2 port 1");
    leases.seal(LEASE);
    let calls = [
        "open 1",
        "connect 1 to 1",
        "connect 2 to 1",
        "seal 1",
        "open 2",
        "connect 3 to 2",
        "disconnect 1 from 1",
        "disconnect 1 from 2",
        "seal 1",
        "seal 2",
    ];
    assert_eq!(*device.calls(), calls);
}

#[test]
fn a_device_that_is_removed_gets_its_memory_back_without_being_asked() {
    let (leases, device) = world();
    connect(&leases, 1).unwrap();
    leases.tend_doors();
    assert_eq!(device.calls().len(), 2, "a door that works stays");
    device.failed.store(1, Ordering::Relaxed);
    device.seals_fail.store(1, Ordering::Relaxed);
    let doors = || leases.find(LEASE).unwrap().doors().len();
    let begun = Instant::now();
    while doors() > 0 {
        assert!(begun.elapsed() < Duration::from_secs(20), "the door stays");
        leases.tend_doors();
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(leases.disconnect(LEASE, LinkNumber(1)).is_ok(), "its queue pair went with the door");
    connect(&leases, 2).unwrap();
    leases.seal(LEASE);
    assert_eq!(doors(), 0, "nothing keeps the device busy");
    assert_eq!(device.calls().last().unwrap(), "seal 2");
}

#[test]
fn archives_are_staged_in_order_and_bounded() {
    let (leases, device) = world();
    let link = writer(&leases);
    let archives: Vec<Vec<u8>> = (1..=3).map(archive).collect();
    for (session, archive) in (1_u8..).zip(&archives) {
        let block = BlockOffset(u32::from(session) * 16);
        let cell = Cell {
            id: id(session),
            sequence: Sequence(1),
            version: version(),
            state: CellState::Live,
            block,
            archive_bytes: archive.len() as u32,
            expiry_ms: u64::MAX / 2,
            checksum: ArchiveChecksum::xxh3(archive),
        };
        assert_eq!(post_cell(&link, u32::from(session), &cell, Some((block, archive))), Outcome::Acked);
    }
    let (index, bad) = leases.seal(LEASE);
    assert_eq!((index.live(), bad), (3, 0));
    // Sessions are staged over a lease that is open: the asker's own.
    let own = LeaseNumber(2);
    leases.make(own, "n2".into(), Incarnation(9), SERVER).unwrap();
    leases.connect(own, LinkNumber(5), &Endpoint::default(), None).unwrap();
    let mut copies: Vec<_> = (1..=3).map(|session| (LEASE, *index.find(&id(session)).unwrap())).collect();
    // This copy's bytes are not what its cell says.
    copies[1].1.checksum = ArchiveChecksum::xxh3(b"other");
    let (memory, staged) =
        leases.stage(own, LinkNumber(5), Batch { copies: copies.clone(), answered: Vec::new() }).unwrap();
    assert_eq!(*lock(&device.staged), [archives[0].clone(), Vec::new(), archives[2].clone()]);
    assert_eq!(memory.bytes as usize, archives[0].len() + archives[2].len());
    let told: Vec<_> = staged.iter().map(|it| (it.id, it.bytes as usize, it.error.is_some())).collect();
    let expected = [(id(1), archives[0].len(), false), (id(2), 0, true), (id(3), archives[2].len(), false)];
    assert_eq!(told, expected);

    let many = FETCH_BATCH_BYTES / archives[0].len() + 50;
    let copies = vec![copies[0]; many];
    let (memory, staged) = leases.stage(own, LinkNumber(5), Batch { copies, answered: Vec::new() }).unwrap();
    assert!(staged.len() < many, "the rest is asked for again");
    assert!((FETCH_BATCH_BYTES..FETCH_BATCH_BYTES + archives[0].len()).contains(&(memory.bytes as usize)));
}

#[test]
fn the_age_of_a_nodes_heartbeat_is_since_it_was_seen_to_move() {
    let (leases, _) = world();
    let link = writer(&leases);
    let age = || {
        let mut report = ServerReport::default();
        report.leases.push(selvage_fabric::control::message::LeaseReport {
            node: "n1".into(),
            incarnation: NODE,
            sealed: false,
            sessions: 0,
            unsettled: 0,
            beat_age_ms: None,
        });
        leases.complete(&mut report);
        (report.leases[0].sessions, report.leases[0].beat_age_ms)
    };
    leases.beat(1);
    assert_eq!(age(), (0, None), "it has never moved");
    link.beat(1, 12);
    let (sessions, fresh) = age();
    assert_eq!(sessions, 12);
    assert!(fresh.unwrap() < 1000);
    std::thread::sleep(Duration::from_millis(40));
    assert!(age().1.unwrap() >= 40, "asking is no movement");
    let before = Instant::now();
    link.beat(2, 12);
    leases.beat(2);
    assert!(u128::from(age().1.unwrap()) <= before.elapsed().as_millis(), "the timer has seen it");
    assert_eq!(link.peer_beat(), 2);
}

#[test]
fn the_report_says_why_there_is_no_rdma_and_asks_the_system_only_now_and_then() {
    let (leases, device) = world();
    for _ in 0..3 {
        let mut report = ServerReport::default();
        leases.complete(&mut report);
        assert!(report.rdma.contains("tests have none"), "{}", report.rdma);
    }
    assert_eq!(*device.calls(), ["availability"]);
}
