//! The push engine against bare verbs, and two copies against one, over two RDMA devices.
//!
//! Both sides post the same work requests (archive, then inline 64-byte cell, chained, the last signalled) on
//! queue pairs of the same setup, and take turns in short slices, so that a busy moment falls on both. What
//! is counted is the engine: archives and cells are made beforehand.

pub mod bare;
pub mod counted;
pub mod report;

use anyhow::{Context, Result, anyhow, bail, ensure};
use bare::{BareLoop, Segment};
use report::{Contest, Copies, Pair, Report, Size};
use selvage_fabric::config::Rdma;
use selvage_fabric::ident::Incarnation;
use selvage_fabric::lease::{BlockOffset, CELL_BYTES, LeaseGeometry, LeaseHeader, Sequence, SlotIndex};
use selvage_fabric::transport::memory::{ServerLease, create};
use selvage_fabric::transport::verbs::{Door, Opening, PeerId, Verbs, VerbsLink};
use selvage_fabric::transport::{Link, Outcome, Posted, Push, PushId};
use std::process::Command;
use std::time::{Duration, Instant};

/// Bytes of the archives.
pub const SIZES: [usize; 4] = [256, 1024, 4096, 65_536];
/// Pushes under way at once when the rate is measured.
pub const WINDOW: u32 = 16;
/// Bursts of each contestant at least, whose middle ratio is looked for.
const BURSTS_MIN: usize = 40;
/// The devices: the node's and the server's, and the interface below the server's.
const DEVICES: [&str; 2] = ["rxe0", "rxe1"];
const INTERFACE: &str = "v1";
/// Pushes of one turn.
const TURN: u32 = 10;
/// Archive of the runs with two copies.
const COPIES_BYTES: usize = 1024;
/// How many times more rounds they take: their bound is near to what two copies cost by nature, twice one.
const COPIES_ROUNDS: u32 = 4;

/// How long it takes.
#[derive(Clone, Copy, Debug)]
pub struct Length {
    /// Turns of each contestant.
    pub rounds: u32,
    /// One turn.
    pub slice: Duration,
}

impl Length {
    /// For CI.
    pub const QUICK: Self = Self { rounds: 10, slice: Duration::from_millis(40) };
    /// For a record.
    pub const FULL: Self = Self { rounds: 40, slice: Duration::from_millis(60) };
}

/// A server's lease and two links into it: the engine's, and one whose queue pair bare verbs use.
struct Way {
    engine: VerbsLink,
    bare: VerbsLink,
    geometry: LeaseGeometry,
    // Kept open, and dropped last.
    _door: Door,
    _lease: ServerLease,
}

impl Way {
    fn open(node: &Verbs, server: &Verbs, segment: &Segment) -> Result<Self> {
        let lease = create(&header(4 << 20), false)?;
        let door = Door::open(server, &lease, None, 1 << 20)?;
        let geometry = lease.header().geometry;
        let link = |peer| -> Result<VerbsLink> {
            let opening = Opening::begin(node, segment.region(), None)?;
            let (endpoint, memory) = door.connect(PeerId(peer), &opening.offer())?;
            Ok(opening.finish(&endpoint, memory, geometry, lease.header().server_incarnation)?)
        };
        Ok(Self { engine: link(1)?, bare: link(2)?, geometry, _door: door, _lease: lease })
    }
}

fn header(heap_bytes: u64) -> LeaseHeader {
    LeaseHeader {
        geometry: LeaseGeometry { slot_count: 64, heap_bytes, chunk_bytes: 1 << 20 },
        node: "bench".to_owned(),
        node_incarnation: Incarnation(1),
        server_incarnation: Incarnation(2),
    }
}

/// Measures everything.
///
/// # Errors
/// If a device is missing or a push fails.
pub fn run(length: Length) -> Result<Report> {
    let over = |device: &str| Verbs::new(&Rdma { device: Some(device.to_owned()), ..Rdma::default() });
    let (node, server) = (over(DEVICES[0]), over(DEVICES[1]));
    let segment = Segment::new(create(&header(1 << 20), false)?.region());
    let (one, two) = (Way::open(&node, &server, &segment)?, Way::open(&node, &server, &segment)?);
    let path = one.engine.path();
    let sizes = SIZES
        .iter()
        .map(|bytes| size(&one, segment.bytes(8192, *bytes), length).with_context(|| format!("{bytes} B")))
        .collect::<Result<_>>()?;
    let archive = segment.bytes(8192, COPIES_BYTES);
    let mut copies = vec![two_copies(&one, &two, archive, length, 0)?];
    let delay = Delay::of(INTERFACE)?;
    copies.push(two_copies(&one, &two, archive, length, 1)?);
    drop(delay);
    Ok(Report { path, rounds: length.rounds, slice_ms: length.slice.as_millis() as u64, sizes, copies })
}

const CELL: [u8; CELL_BYTES] = [0x5a; CELL_BYTES];

/// Each slot's block, for archives of up to 64 KiB.
fn block_of(slot: u32) -> BlockOffset {
    BlockOffset(slot * 256)
}

fn size(way: &Way, archive: &[u8], length: Length) -> Result<Size> {
    let mut bare = BareLoop::new(way.bare.bare(), &way.geometry, WINDOW, block_of, archive, CELL)?;
    let p50_ns = Contest::run(
        || {
            let mut engine = || engine_push(&[&way.engine], archive);
            contest(length.rounds, length.slice, TURN, &mut engine, &mut || bare_push(&mut bare))
        },
        Size::is_latency_good,
    )?;
    let rate = Contest::run(
        || {
            let mut engine = || engine_burst(&way.engine, archive);
            bursts(length, &mut engine, &mut || bare_burst(&mut bare))
        },
        Size::is_rate_good,
    )?;
    Ok(Size { bytes: archive.len(), p50_ns, rate })
}

fn two_copies(one: &Way, two: &Way, archive: &[u8], length: Length, delay_ms: u32) -> Result<Copies> {
    // With the delay a push takes so long that turns of one are short enough.
    let turn = if delay_ms == 0 { TURN } else { 1 };
    let measure = || {
        let mut double = || engine_push(&[&one.engine, &two.engine], archive);
        let mut single = || engine_push(&[&one.engine], archive);
        contest(length.rounds * COPIES_ROUNDS, length.slice, turn, &mut double, &mut single)
    };
    let p50_ns = Contest::run(measure, |ratio| ratio <= Copies::ratio_max(delay_ms))?;
    Ok(Copies { delay_ms, p50_ns })
}

/// The middle values of two contestants, in so many rounds after one that warms up. Who begins changes with
/// each round.
fn contest(
    rounds: u32,
    slice: Duration,
    turn: u32,
    judged: &mut dyn FnMut() -> Result<f64>,
    baseline: &mut dyn FnMut() -> Result<f64>,
) -> Result<Pair> {
    let (mut judged_ns, mut baseline_ns) = (Vec::new(), Vec::new());
    for round in 0..=rounds {
        if round == 1 {
            judged_ns.clear();
            baseline_ns.clear();
        }
        if round % 2 == 0 {
            take_turns(slice, turn, judged, &mut judged_ns, baseline, &mut baseline_ns)?;
        } else {
            take_turns(slice, turn, baseline, &mut baseline_ns, judged, &mut judged_ns)?;
        }
    }
    let samples = judged_ns.len();
    Ok(Pair::of_middles(median(&mut judged_ns)?, median(&mut baseline_ns)?, samples))
}

/// The rates of two contestants in bursts that follow each other, as long as a contest takes and at least
/// [`BURSTS_MIN`] times.
fn bursts(
    length: Length,
    judged: &mut dyn FnMut() -> Result<f64>,
    baseline: &mut dyn FnMut() -> Result<f64>,
) -> Result<Pair> {
    // One of each warms up.
    judged()?;
    baseline()?;
    let (mut judged_ns, mut baseline_ns, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let began = Instant::now();
    while ratios.len() < BURSTS_MIN || began.elapsed() < length.slice * 2 * length.rounds {
        let (one, other) = if ratios.len() % 2 == 0 {
            let one = judged()?;
            (one, baseline()?)
        } else {
            let other = baseline()?;
            (judged()?, other)
        };
        judged_ns.push(one);
        baseline_ns.push(other);
        // Of rates, so the other way round than of times.
        ratios.push(other / one);
    }
    let rate = |burst_ns: f64| f64::from(WINDOW) * 1e9 / burst_ns;
    Ok(Pair {
        judged: rate(median(&mut judged_ns)?),
        baseline: rate(median(&mut baseline_ns)?),
        samples: ratios.len(),
        ratio: median(&mut ratios)?,
    })
}

fn push(slot: u32, archive: &[u8]) -> Push<'_> {
    let block = Some((block_of(slot), archive));
    Push { slot: SlotIndex(slot), sequence: Sequence(0), cell: &CELL, block }
}

fn begin(link: &VerbsLink, slot: u32, archive: &[u8]) -> Result<PushId> {
    match link.post(&push(slot, archive)) {
        Posted::Pending(id) => Ok(id),
        Posted::Done(other) => bail!("a push ended with {other:?}: {}", link.detail()),
    }
}

fn check(link: &VerbsLink, outcome: Outcome) -> Result<()> {
    ensure!(outcome == Outcome::Acked, "a push ended with {outcome:?}: {}", link.detail());
    Ok(())
}

/// Two contestants in turns of a few pushes, each for half of two slices. Soft-RoCE works in two ways, by who
/// runs its tasks, for milliseconds at a time; turns this short meet both alike.
fn take_turns(
    slice: Duration,
    turn: u32,
    one: &mut dyn FnMut() -> Result<f64>,
    one_ns: &mut Vec<f64>,
    two: &mut dyn FnMut() -> Result<f64>,
    two_ns: &mut Vec<f64>,
) -> Result<()> {
    let began = Instant::now();
    while began.elapsed() < slice * 2 {
        for _ in 0..turn {
            one_ns.push(one()?);
        }
        for _ in 0..turn {
            two_ns.push(two()?);
        }
    }
    Ok(())
}

/// One push to each link, all posted before any is awaited: ns from the first post to the last completion.
fn engine_push(links: &[&VerbsLink], archive: &[u8]) -> Result<f64> {
    let mut open = [None; 2];
    let began = Instant::now();
    for (link, open) in links.iter().zip(&mut open) {
        *open = Some(begin(link, 0, archive)?);
    }
    for (link, open) in links.iter().zip(&mut open) {
        let Some(id) = open.take() else { continue };
        let outcome = loop {
            if let Some(outcome) = link.poll(id) {
                break outcome;
            }
        };
        check(link, outcome)?;
    }
    Ok(began.elapsed().as_nanos() as f64)
}

fn bare_push(bare: &mut BareLoop) -> Result<f64> {
    let began = Instant::now();
    bare.post(0)?;
    let mut ended = 0;
    while ended == 0 {
        bare.poll(|_| ended += 1)?;
    }
    Ok(began.elapsed().as_nanos() as f64)
}

/// [`WINDOW`] pushes, all posted before any is awaited: ns until the last has ended. The oldest is asked for,
/// since completions come in order.
fn engine_burst(link: &VerbsLink, archive: &[u8]) -> Result<f64> {
    let mut open = [None; WINDOW as usize];
    let began = Instant::now();
    for (slot, open) in open.iter_mut().enumerate() {
        *open = Some(begin(link, slot as u32, archive)?);
    }
    for id in open.into_iter().flatten() {
        let outcome = loop {
            if let Some(outcome) = link.poll(id) {
                break outcome;
            }
        };
        check(link, outcome)?;
    }
    Ok(began.elapsed().as_nanos() as f64)
}

fn bare_burst(bare: &mut BareLoop) -> Result<f64> {
    let began = Instant::now();
    (0..WINDOW as usize).try_for_each(|slot| bare.post(slot))?;
    let mut ended = 0;
    while ended < WINDOW {
        bare.poll(|_| ended += 1)?;
    }
    Ok(began.elapsed().as_nanos() as f64)
}

fn median(values: &mut [f64]) -> Result<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().ok_or_else(|| anyhow!("nothing was measured"))
}

/// One millisecond of delay on an interface, as long as it lives.
struct Delay(&'static str);

impl Delay {
    fn of(interface: &'static str) -> Result<Self> {
        let status = Command::new("tc")
            .args(["qdisc", "add", "dev", interface, "root", "netem", "delay", "1ms"])
            .status()
            .context("cannot run tc (apt-get install iproute2)")?;
        ensure!(status.success(), "tc could not delay {interface}: {status}");
        Ok(Self(interface))
    }
}

impl Drop for Delay {
    fn drop(&mut self) {
        // The interface belongs to the guest; what cannot be undone ends with it.
        let _ = Command::new("tc").args(["qdisc", "del", "dev", self.0, "root"]).status();
    }
}
